//! Would a pod get a network now? Asked of the network room itself, over an empty state.

use super::Finding;
use crate::config::Config;
use anyhow::{Context as _, Result};
use slipway_network::{Network, Options};

pub(super) fn check(config: &Config) -> Result<Vec<Finding>> {
    let scratch = tempfile::tempdir().context("make a scratch directory")?;
    let options = Options { state_dir: scratch.path().to_owned(), ..config.network() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let by = how(config);
    let remedy = format!("put a CNI configuration into {} or mend what is named", options.conf_dir.display());
    let finding = match Network::open(options) {
        Err(error) => Finding::failure("network", error.to_string(), remedy),
        Ok(network) => {
            let readiness = runtime.block_on(network.readiness());
            match readiness.ready {
                false => Finding::failure(
                    "network",
                    format!("{}: {}", readiness.reason, readiness.message),
                    remedy,
                ),
                true if readiness.message.is_empty() => Finding::ok("network", by),
                true => {
                    Finding::warning("network", format!("{by}; {}", readiness.message), "see the message")
                }
            }
        }
    };
    Ok(vec![finding, forwarding()])
}

fn how(config: &Config) -> String {
    let network = config.network();
    let dir = &network.conf_dir;
    let configured = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    match &network.builtin {
        Some(bridge) if !configured => format!("built-in bridge {}, pool {}", bridge.bridge, bridge.pool),
        _ => format!("CNI, configured in {}", dir.display()),
    }
}

/// Packets between a pod and the outside pass the host only where this is on.
fn forwarding() -> Finding {
    let forward = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default();
    match forward.trim() {
        "1" => Finding::ok("net.ipv4.ip_forward", "1"),
        other => Finding::warning(
            "net.ipv4.ip_forward",
            format!("{other}: pods reach nothing outside"),
            "sysctl -w net.ipv4.ip_forward=1 (the built-in network does it with its first pod)",
        ),
    }
}
