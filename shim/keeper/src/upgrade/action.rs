//! `containerd-shim-slipway-v1 upgrade`: for the operator of a containerd node, where no daemon of ours asks for it.
//!
//! All keepers below the state directory, one line for each. (A signal by name would do harm: containers that wait for their
//! start are processes of the same name.)

use crate::binary::{self, Identity};
use crate::layout::Layout;
use cri_proto::keeper::keeper_ttrpc::KeeperClient;
use cri_proto::keeper::{InfoRequest, InfoResponse, UpgradeRequest};
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};
use ttrpc::context::with_duration;

/// What the first argument says.
pub(crate) const ACTION: &str = "upgrade";

/// For one keeper, its calls under way included.
const PATIENCE: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(50);

/// Returns what is to be printed.
///
/// # Errors
/// The same with the failures, if there is one.
pub(crate) fn upgrade_all() -> Result<String, Box<dyn Error>> {
    let state = Layout::state_from_env();
    let mut sockets = Vec::new();
    for entry in std::fs::read_dir(&state).map_err(|error| format!("{}: {error}", state.display()))? {
        let socket = entry?.path().join("sock");
        // One that nobody listens at is of a keeper that has ended.
        if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            sockets.push(socket);
        }
    }
    sockets.sort();
    if sockets.is_empty() {
        return Ok(format!("no keeper runs below {}\n", state.display()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut said, mut failed) = (String::new(), false);
    for socket in sockets {
        let dir = socket.parent().unwrap_or(&socket).display();
        match runtime.block_on(upgrade(&socket)) {
            Ok(info) => writeln!(
                said,
                "{dir}: keeper {} and guardian {} are version {} of {}",
                info.keeper_pid,
                info.guardian_pid,
                info.version,
                binary::started().display()
            )?,
            Err(error) => {
                failed = true;
                writeln!(said, "{dir}: {error}")?;
            }
        }
    }
    if failed { Err(said.into()) } else { Ok(said) }
}

async fn upgrade(socket: &Path) -> Result<InfoResponse, Box<dyn Error>> {
    let address = format!("unix://{}", socket.display());
    let connect = || async { ttrpc::r#async::Client::connect(&address).await.map(KeeperClient::new) };
    let request = UpgradeRequest { path: binary::started().display().to_string(), ..Default::default() };
    match connect().await?.upgrade(with_duration(PATIENCE), &request).await {
        // Somebody else has asked already.
        Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::ABORTED => {}
        Err(ttrpc::Error::RpcStatus(status)) => return Err(status.message().into()),
        other => drop(other?),
    }
    let ours = Identity::own()?;
    let is_ours = |pid: i32| Identity::of_process(pid).is_ok_and(|theirs| theirs == ours);
    let end = Instant::now() + PATIENCE;
    loop {
        let info = async { connect().await?.info(with_duration(PATIENCE), &InfoRequest::new()).await };
        match info.await {
            Ok(info) if is_ours(info.keeper_pid) && is_ours(info.guardian_pid) => return Ok(info),
            _ if Instant::now() < end => tokio::time::sleep(LOOK).await,
            _ => {
                return Err(
                    format!("not upgraded within {} s: its file log says why", PATIENCE.as_secs()).into()
                );
            }
        }
    }
}
