//! A client on a running container's own streams.

use super::pipes::{self, Pipe};
use crate::daemon::{Container, Daemon};
use crate::error::{Error, Result};
use crate::keeper::ExecStreams;
use cri_proto::keeper::AttachEnd;
use slipway_streaming::Session;
use std::future::pending;
use std::sync::Arc;
use tokio::net::unix::pipe::Receiver;
use tonic::Code;

/// Until the container has ended (success, whatever its exit code: STR-ATT-07) or the client leaves (STR-ATT-08).
pub(super) async fn run(daemon: &Arc<Daemon>, container: &Arc<Container>, session: Session) -> Result<()> {
    let record = container.record();
    let Session { stdin, stdout, stderr, mut sizes, client, .. } = session;
    // The container's own terminal decides (STR-ATT-02): it has no stderr.
    let terminal = record.config.tty;
    let input = (stdin.is_some() && record.config.stdin).then(pipes::input).transpose()?;
    let out = stdout.is_some().then(pipes::output).transpose()?;
    let err = (stderr.is_some() && !terminal).then(pipes::output).transpose()?;
    let streams = ExecStreams {
        stdin: pipes::name(input.as_ref()),
        stdout: pipes::name(out.as_ref()),
        stderr: pipes::name(err.as_ref()),
        terminal,
    };
    let label = record.label();
    let work = async {
        // The keeper's ends stay open here until it is done: it says when that is, and only then do ours see the end.
        let (out, keep_out) = split(out);
        let (err, keep_err) = split(err);
        let attached = async {
            let end = daemon.keeper.attach(&record.id, &streams).await;
            drop((keep_out, keep_err));
            end
        };
        tokio::join!(attached, drain(out, stdout), drain(err, stderr)).0
    };
    let feed = async {
        match (input, stdin) {
            (Some(input), Some(stdin)) => {
                // The keeper's end stays open to the last: a client may be done before the keeper has opened it.
                let (pipe, _keep) = (input.ours, input.theirs);
                pipes::feed(stdin, pipe).await;
                pending::<()>().await;
            }
            // Nobody listens (STR-ATT-04); it must not hold up the client's other streams.
            (None, Some(mut stdin)) => while let Ok(Some(_)) = stdin.next().await {},
            _ => {}
        }
        pending::<Result<AttachEnd>>().await
    };
    let resize = async {
        if terminal {
            daemon.follow_sizes(&record.id, "", &mut sizes).await;
        }
        pending::<Result<AttachEnd>>().await
    };
    let end = tokio::select! {
        end = work => end,
        end = feed => end,
        end = resize => end,
        () = client.gone() => return Ok(()),
    };
    match end.map_err(|e| e.of(format_args!("attach to container {label}")))? {
        AttachEnd::TOO_SLOW => Err(Error::new(
            Code::ResourceExhausted,
            format!(
                "attach to container {label}: this client reads more slowly than the container writes and was cut off; the log \
                 has everything, attach again to go on"
            ),
        )),
        AttachEnd::CLIENT_GONE => Ok(()),
        AttachEnd::OUTPUT_OVER | AttachEnd::HANDED_OVER => {
            // It may have closed its output and live on.
            tokio::select! {
                _ = container.wait_until(|record| record.has_ended()) => {}
                () = client.gone() => {}
            }
            Ok(())
        }
    }
}

fn split(pipe: Option<Pipe<Receiver>>) -> (Option<Receiver>, Option<std::os::fd::OwnedFd>) {
    pipe.map_or((None, None), |pipe| (Some(pipe.ours), Some(pipe.theirs)))
}

async fn drain(pipe: Option<Receiver>, output: Option<slipway_streaming::Output>) {
    if let Some(pipe) = pipe {
        pipes::drain(pipe, output, pending).await;
    }
}
