//! Black box: a whole node of our own per test, driven by real clients, and a leak check at its end.
//!
//! Each test owns a thread, and the thread a network namespace: that is the "host" of its node, so that bridges, firewall
//! rules and ports of tests that run side by side never meet, and the machine's own network is never touched.
//! Everything else (state, cgroups, sockets) lives under one temporary directory and one cgroup name.

#![forbid(unsafe_code)]

pub mod certificates;
pub mod containerd;
pub mod kernel;
pub mod leaks;
pub mod node;
pub mod plugin;
pub mod registry;
pub mod requests;
pub mod shims;
pub mod streams;

pub use node::{Node, Setup};

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// What a scenario is: it borrows the node and may fail with a sentence.
pub type Scenario = for<'a> fn(&'a mut Node) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// How long one scenario may take before it counts as hung; slow shared machines are the measure.
const PATIENCE: Duration = Duration::from_secs(240);

/// Runs `scenario` on a fresh node, then takes the node down and checks that nothing is left behind.
///
/// # Panics
/// When the scenario fails, hangs or leaks; the message ends with the daemon's log.
pub fn on_a_node(setup: Setup, scenario: Scenario) {
    let name = std::thread::current().name().unwrap_or("e2e").to_owned();
    std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            own_network();
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio runtime");
            runtime.block_on(drive(setup, scenario));
        })
        .expect("thread")
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

async fn drive(setup: Setup, scenario: Scenario) {
    let mut node = Node::start(setup).await.unwrap_or_else(|e| panic!("node did not start: {e:#}"));
    let outcome = match tokio::time::timeout(PATIENCE, scenario(&mut node)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(anyhow::anyhow!("the scenario hung for {PATIENCE:?}")),
    };
    let log = node.log_tail(80);
    let stopped = node.stop().await;
    let leaks = node.leaks();
    let ok = outcome.is_ok() && stopped.is_ok() && leaks.is_empty();
    assert!(
        ok,
        "scenario: {}\nstop: {}\nleft behind:\n{}\n--- last lines of the daemon's log\n{log}",
        outcome.map_or_else(|e| format!("{e:#}"), |()| "ok".into()),
        stopped.map_or_else(|e| format!("{e:#}"), |()| "ok".into()),
        leaks.join("\n"),
    );
}

/// Moves this thread, and whatever it starts, into a network namespace of its own with `lo` up.
fn own_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare(CLONE_NEWNET): run as root");
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.is_ok_and(|s| s.success()), "ip link set lo up failed: install iproute2");
}
