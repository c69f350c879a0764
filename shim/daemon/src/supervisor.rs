//! What systemd (or another service manager with its protocol, sd_notify(3)) is told. Without one, nothing is.

use crate::daemon::Daemon;
use sd_notify::NotifyState;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdDatagram};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixDatagram;

/// For one message.
const PATIENCE: Duration = Duration::from_secs(5);

/// Requests are answered from now on.
pub(crate) async fn ready(pods: usize) {
    tell(&[NotifyState::Ready, NotifyState::Status(&serving(pods))]).await;
}

/// The configuration is being read again; [`ready`] or [`unchanged`] ends this.
pub(crate) async fn reloading() {
    // Since systemd 253 the time is part of the message. The clock has no way to fail here.
    let now = NotifyState::monotonic_usec_now();
    let mut states = vec![NotifyState::Reloading];
    states.extend(now.ok());
    tell(&states).await;
}

/// The reload failed: what was in force still is.
pub(crate) async fn unchanged(why: &str) {
    // One line: the protocol's fields end there.
    let line = why.replace('\n', "; ");
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("configuration not reloaded: {line}"))]).await;
}

/// No request is taken any more.
pub(crate) async fn stopping() {
    tell(&[NotifyState::Stopping]).await;
}

/// Tells the watchdog that we live, as often as it asks for, for as long as a worker thread is free to do so and the
/// tables can be read. Ends at once where there is no watchdog.
pub(crate) async fn watchdog(daemon: Arc<Daemon>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    // Half the time is what sd_watchdog_enabled(3) advises.
    let mut ticks = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let pods = daemon.pods.list().len();
        tell(&[NotifyState::Watchdog, NotifyState::Status(&serving(pods))]).await;
    }
}

fn serving(pods: usize) -> String {
    format!("serving CRI v1, pods: {pods}")
}

/// Nobody waits for an answer; a service manager that cannot be told is its own affair, and one that does not listen holds
/// nobody up for long.
async fn tell(states: &[NotifyState<'_>]) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let message: String = states.iter().map(|state| format!("{state}\n")).collect();
    let sent = match connect(&name) {
        Ok(socket) => {
            tokio::time::timeout(PATIENCE, async move { socket.send(message.as_bytes()).await }).await
        }
        Err(error) => Ok(Err(error)),
    };
    match sent {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!("service manager: {error}"),
        Err(_) => tracing::debug!("service manager: it does not listen"),
    }
}

/// A path, or with '@' a name in the abstract namespace (unix(7)).
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let socket = StdDatagram::unbound()?;
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(name)?,
    }
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
}
