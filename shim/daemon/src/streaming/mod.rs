//! Exec, Attach and PortForward: checked requests become URLs; behind them run the keeper's sessions and the pods' ports.
//!
//! HTTP, SPDY and WebSocket are the streaming room's ([`slipway_streaming`]); pods and containers are this one's.

mod attach;
mod exec;
mod forward;
mod pipes;

use crate::containers::Phase;
use crate::daemon::{Container, Daemon};
use crate::error::{Error, Result};
use crate::pods::PodPhase;
use anyhow::Context as _;
use async_trait::async_trait;
use cri_proto::v1;
use slipway_streaming::{Backend, Duplex, Options, Refused, Request, Server, Session, Streams};
use std::sync::Arc;
use tonic::Code;

/// Beginning of the ids of exec sessions that a client drives; others are ExecSync's.
const INTERACTIVE: &str = "i-";

/// Binds the server; it serves until it is dropped.
pub(crate) async fn start(daemon: &Arc<Daemon>) -> anyhow::Result<Server> {
    let streaming = &daemon.config.file.streaming;
    let options = Options { listen: streaming.address, idle: streaming.idle(), tls: streaming.tls()? };
    let server = Server::start(options, Arc::new(Door(Arc::clone(daemon)))).await;
    let server = server.with_context(|| {
        let address = streaming.address;
        format!("start the streaming server on {address}: is the port taken? (streaming.address, .tls_*)")
    })?;
    Ok(server)
}

/// Exec (CRI-XU-01, CRI-XU-03, STR-VAL-01, STR-VAL-05). Nothing runs before the URL is used (STR-VAL-06).
pub(crate) fn exec_url(daemon: &Daemon, server: &Server, request: v1::ExecRequest) -> Result<String> {
    let streams = Streams {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.tty,
    };
    streams.check().map_err(Error::invalid)?;
    if request.cmd.is_empty() {
        return Err(Error::invalid("cmd is empty: name a command"));
    }
    let container = running(daemon, &request.container_id)?;
    url(server, Request::Exec { target: container.id.clone(), command: request.cmd, streams })
}

/// Attach (CRI-XU-02).
pub(crate) fn attach_url(daemon: &Daemon, server: &Server, request: &v1::AttachRequest) -> Result<String> {
    let streams = Streams {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.tty,
    };
    streams.check().map_err(Error::invalid)?;
    let container = running(daemon, &request.container_id)?;
    url(server, Request::Attach { target: container.id.clone(), streams })
}

/// PortForward (CRI-XU-02, STR-VAL-04).
pub(crate) fn forward_url(
    daemon: &Daemon,
    server: &Server,
    request: &v1::PortForwardRequest,
) -> Result<String> {
    if request.pod_sandbox_id.is_empty() {
        return Err(Error::invalid("pod_sandbox_id is empty: name a pod"));
    }
    let port = |port: &i32| {
        let good = u16::try_from(*port).ok().filter(|port| *port > 0);
        good.ok_or_else(|| Error::invalid(format!("port {port} is not between 1 and 65535")))
    };
    let ports = request.port.iter().map(port).collect::<Result<_>>()?;
    let pod = daemon.pods.get(&request.pod_sandbox_id)?;
    if pod.record().phase != PodPhase::Ready {
        return Err(Error::state(format!("port-forward to pod {}: it is not ready", pod.record().label())));
    }
    url(server, Request::Forward { target: pod.id.clone(), ports })
}

fn url(server: &Server, request: Request) -> Result<String> {
    server.url(request).map_err(|refused| match refused {
        Refused::TooMany => Error::new(Code::ResourceExhausted, refused.to_string()),
        Refused::Random(_) => Error::internal(refused.to_string()),
    })
}

/// A container in which something runs now.
fn running(daemon: &Daemon, id: &str) -> Result<Arc<Container>> {
    if id.is_empty() {
        return Err(Error::invalid("container_id is empty: name a container"));
    }
    let container = daemon.containers.get(id)?;
    let record = container.record();
    if matches!(record.phase, Phase::Running { .. }) {
        return Ok(container);
    }
    let state = record.state().as_str_name();
    Err(Error::state(format!("container {}: it is {state}, not running", record.label())))
}

/// What the streaming server asks of us.
struct Door(Arc<Daemon>);

#[async_trait]
impl Backend for Door {
    async fn exec(
        &self,
        target: &str,
        command: Vec<String>,
        session: Session,
    ) -> std::result::Result<u8, slipway_streaming::Error> {
        Ok(exec::run(&self.0, &running(&self.0, target)?, command, session).await?)
    }

    async fn attach(
        &self,
        target: &str,
        session: Session,
    ) -> std::result::Result<(), slipway_streaming::Error> {
        Ok(attach::run(&self.0, &running(&self.0, target)?, session).await?)
    }

    async fn forward(
        &self,
        target: &str,
        port: u16,
        connection: Duplex,
    ) -> std::result::Result<(), slipway_streaming::Error> {
        let pod = self.0.pods.get(target)?;
        Ok(forward::run(&pod, port, connection).await?)
    }
}

/// Sessions of the time before a restart: their clients are gone with the connections that this daemon had (STR-SHUT-02).
/// Those of ExecSync die, as their callers have an error already; the others run on to their end.
pub(crate) async fn abandon_all(daemon: &Daemon, left: &[cri_proto::keeper::ExecInfo]) {
    for exec in left {
        let mut done = Ok(());
        if !exec.id.starts_with(INTERACTIVE) {
            done = daemon.keeper.kill_all(&exec.task_id, &exec.id).await;
        }
        let forgotten = daemon.keeper.abandon(&exec.task_id, &exec.id).await;
        if let Err(error) = done.and(forgotten) {
            tracing::warn!(exec = exec.id, "session of the time before the restart: {error}");
        }
    }
}
