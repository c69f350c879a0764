//! `slipway exec`: one command to its end, by ExecSync.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cri_proto::v1 as cri;

use super::client::{Client, container_name, said};
use super::output::eprintln_quietly;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A pod, or a container (name or id)
    #[arg(value_name = "POD|CONTAINER")]
    target: String,
    /// Which container of the pod (default: the first that runs)
    #[arg(short, long)]
    container: Option<String>,
    /// Seconds after which the command is killed; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout: u32,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// The exit code is the command's own.
pub(crate) async fn run(client: &mut Client, args: &Args) -> Result<ExitCode> {
    let mut found = client.find_containers(&args.target, args.container.as_deref()).await?;
    found.retain(|container| container.state == i32::from(cri::ContainerState::ContainerRunning));
    let Some(container) = found.first() else { bail!("no container of {} runs", args.target) };
    if found.len() > 1 && args.container.is_none() {
        let names: Vec<_> = found.iter().map(container_name).collect();
        eprintln_quietly(&format!("in container {} (of {}; -c chooses)", names[0], names.join(", ")));
    }
    let request = cri::ExecSyncRequest {
        container_id: container.id.clone(),
        cmd: args.command.clone(),
        timeout: i64::from(args.timeout),
    };
    let answer = client.runtime.exec_sync(request).await.map_err(said("run the command"))?.into_inner();
    std::io::stdout().lock().write_all(&answer.stdout).context("write to standard output")?;
    std::io::stderr().lock().write_all(&answer.stderr).context("write to standard error")?;
    Ok(ExitCode::from(u8::try_from(answer.exit_code).unwrap_or(255)))
}
