//! `slipway attach`: a running container's own streams.

use std::process::ExitCode;

use anyhow::{Context, Result};
use cri_proto::v1 as cri;

use super::client::{Client, said};
use super::console::{self, Console};
use super::exec;
use super::output::eprintln_quietly;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    of: exec::Target,
}

/// Ends with the container, or with Ctrl-C (at a terminal of the container's: Ctrl-P Ctrl-Q); then that runs on.
pub(crate) async fn run(client: &mut Client, args: &Args) -> Result<ExitCode> {
    let container = exec::running(client, &args.of.target, args.of.container.as_deref()).await?;
    let terminal = has_terminal(client, &container.id).await?;
    if terminal && args.of.stdin {
        eprintln_quietly("Ctrl-P Ctrl-Q detaches");
    }
    let request = cri::AttachRequest {
        container_id: container.id,
        stdin: args.of.stdin,
        tty: terminal,
        stdout: true,
        stderr: !terminal,
    };
    let url = client.runtime.attach(request).await.map_err(said("attach"))?.into_inner().url;
    let console = Console { stdin: args.of.stdin, terminal, detaches: true };
    console::run(&url, args.of.tls.identity().as_ref(), console).await
}

/// Only the verbose status says it.
async fn has_terminal(client: &mut Client, id: &str) -> Result<bool> {
    let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer =
        client.runtime.container_status(request).await.map_err(said("read the container's status"))?;
    let info = answer.into_inner().info;
    let info = info.get("info").context("the daemon tells nothing of the container's configuration")?;
    let info: serde_json::Value =
        serde_json::from_str(info).context("decode the container's configuration")?;
    Ok(info["config"]["tty"] == true)
}
