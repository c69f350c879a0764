//! `slipway exec`: one command to its end, over the same URLs that the kubelet gets; with `--timeout` by ExecSync.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cri_proto::v1 as cri;

use super::client::{Client, container_name, said};
use super::console::{self, Console};
use super::identity;
use super::output::eprintln_quietly;

/// Whose streams, and whether ours go in: what exec and attach ask alike.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// A pod, or a container (name or id)
    #[arg(value_name = "POD|CONTAINER")]
    pub(super) target: String,
    /// Which container of the pod (default: the first that runs)
    #[arg(short, long)]
    pub(super) container: Option<String>,
    /// Pass our standard input on
    #[arg(short = 'i', long)]
    pub(super) stdin: bool,
    #[command(flatten)]
    pub(super) tls: identity::Args,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    of: Target,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Seconds after which the command is killed; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 0, conflicts_with_all = ["stdin", "tty"])]
    timeout: u32,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// The exit code is the command's own.
pub(crate) async fn run(client: &mut Client, args: &Args) -> Result<ExitCode> {
    let container = running(client, &args.of.target, args.of.container.as_deref()).await?;
    if args.timeout > 0 {
        return run_to_the_end(client, &container.id, args).await;
    }
    if args.tty && !std::io::stdin().is_terminal() {
        eprintln_quietly("standard input is no terminal: its size is not known and keys are not raw");
    }
    let request = cri::ExecRequest {
        container_id: container.id,
        cmd: args.command.clone(),
        tty: args.tty,
        stdin: args.of.stdin,
        stdout: true,
        stderr: !args.tty,
    };
    let url = client.runtime.exec(request).await.map_err(said("run the command"))?.into_inner().url;
    let console = Console { stdin: args.of.stdin, terminal: args.tty, detaches: false };
    console::run(&url, args.of.tls.identity().as_ref(), console).await
}

async fn run_to_the_end(client: &mut Client, container: &str, args: &Args) -> Result<ExitCode> {
    let request = cri::ExecSyncRequest {
        container_id: container.to_owned(),
        cmd: args.command.clone(),
        timeout: i64::from(args.timeout),
    };
    let answer = client.runtime.exec_sync(request).await.map_err(said("run the command"))?.into_inner();
    std::io::stdout().lock().write_all(&answer.stdout).context("write to standard output")?;
    std::io::stderr().lock().write_all(&answer.stderr).context("write to standard error")?;
    Ok(ExitCode::from(u8::try_from(answer.exit_code).unwrap_or(255)))
}

/// The running container that is meant; of several the first, which is said.
pub(super) async fn running(
    client: &mut Client,
    target: &str,
    container: Option<&str>,
) -> Result<cri::Container> {
    let mut found = client.find_containers(target, container).await?;
    found.retain(|container| container.state == i32::from(cri::ContainerState::ContainerRunning));
    if found.len() > 1 && container.is_none() {
        let names: Vec<_> = found.iter().map(container_name).collect();
        eprintln_quietly(&format!("in container {} (of {}; -c chooses)", names[0], names.join(", ")));
    }
    match found.into_iter().next() {
        Some(container) => Ok(container),
        None => bail!("no container of {target} runs"),
    }
}
