//! What systemd (or another service manager with its protocol, sd_notify(3)) is told. Without one, nothing is.

use crate::daemon::Daemon;
use sd_notify::NotifyState;
use std::sync::Arc;
use std::time::Duration;

/// Requests are answered from now on.
pub(crate) fn ready(pods: usize) {
    tell(&[NotifyState::Ready, NotifyState::Status(&serving(pods))]);
}

/// The configuration is being read again; [`ready`] or [`unchanged`] ends this.
pub(crate) fn reloading() {
    // Since systemd 253 the time is part of the message. The clock has no way to fail here.
    let now = NotifyState::monotonic_usec_now();
    let mut states = vec![NotifyState::Reloading];
    states.extend(now.ok());
    tell(&states);
}

/// The reload failed: what was in force still is.
pub(crate) fn unchanged(why: &str) {
    // One line: the protocol's fields end there.
    let line = why.replace('\n', "; ");
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("configuration not reloaded: {line}"))]);
}

/// No request is taken any more.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
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
        tell(&[NotifyState::Watchdog, NotifyState::Status(&serving(pods))]);
    }
}

fn serving(pods: usize) -> String {
    format!("serving CRI v1, pods: {pods}")
}

/// Nobody waits for an answer; a service manager that cannot be told is its own affair.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("service manager: {error}");
    }
}
