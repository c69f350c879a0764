//! Can pods get a network now, and if not, why? Asked every few seconds; never asks a pod.

use super::{Inner, blocking};
use crate::types::Readiness;
use std::time::Duration;

/// For STATUS, asked every few seconds.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

impl Inner {
    pub(super) async fn readiness(&self) -> Readiness {
        let found = self.conf.look();
        let skipped = match found.skipped.len() {
            0 => String::new(),
            _ => format!("skipped: {}", found.skipped.join("; ")),
        };
        let not = |reason: &str, message: String| Readiness { ready: false, reason: reason.into(), message };
        if let Some(list) = &found.list {
            return match self.cni.status(list, STATUS_TIMEOUT).await {
                Ok(()) => Readiness { ready: true, reason: String::new(), message: skipped },
                Err(e) => {
                    let file = list.file.display();
                    not(
                        "NetworkPluginNotReady",
                        format!("{} (configured in {file}) {skipped}", e.error).trim().into(),
                    )
                }
            };
        }
        if let Some(why) = &found.unreadable {
            return not("NetworkConfigurationUnreadable", format!("{why}; hint: check its permissions"));
        }
        if found.any_file {
            let dir = self.conf.dir().display();
            return not(
                "NetworkConfigurationInvalid",
                format!("no usable CNI configuration in {dir}; {skipped}"),
            );
        }
        let Some(bridge) = self.builtin.clone() else {
            let dir = self.conf.dir().display();
            return not(
                "NetworkPluginNotReady",
                format!(
                    "no CNI configuration in {dir}; hint: install a CNI network there or enable the built-in one"
                ),
            );
        };
        match blocking("network readiness", move || bridge.readiness()).await {
            Ok(note) => Readiness { ready: true, reason: String::new(), message: note },
            Err(e) => not("BuiltinNetworkNotReady", e.to_string()),
        }
    }
}
