//! Status, Version, RuntimeConfig: what the daemon says of itself.

use crate::daemon::{Daemon, blocking};
use crate::{handlers, pods};
use cri_proto::v1;
use serde_json::json;
use std::collections::HashMap;

/// CRI-VER-01, CRI-VER-02.
pub(super) fn version() -> v1::VersionResponse {
    v1::VersionResponse {
        version: "0.1.0".into(),
        runtime_name: "slipway".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    }
}

/// CRI-STA-01 to CRI-STA-12.
pub(super) async fn status(daemon: &Daemon, verbose: bool) -> v1::StatusResponse {
    let keeper = daemon.keeper.info().await;
    let network = daemon.network.readiness().await;
    let condition = |kind: &str, status: bool, reason: &str, message: String| v1::RuntimeCondition {
        r#type: kind.into(),
        status,
        reason: if status { String::new() } else { reason.into() },
        message: if status { String::new() } else { message },
    };
    let runtime = match &keeper {
        Ok(_) => condition("RuntimeReady", true, "", String::new()),
        Err(error) => condition("RuntimeReady", false, "KeeperUnavailable", error.to_string()),
    };
    let mut conditions =
        vec![runtime, condition("NetworkReady", network.ready, &network.reason, network.message)];
    // Not one of the kubelet's own: it ignores what it does not know (CRI-STA-05).
    if keeper.as_ref().is_ok_and(|info| info.guardian_pid == 0) {
        let message =
            "the guardian is gone: if the keeper dies too, exit codes are lost; drain this node".into();
        conditions.push(condition("SlipwayGuardian", false, "GuardianGone", message));
    }
    let root = daemon.config.root.clone();
    let user_namespaces = blocking(move || pods::user::possible(&root)).await.is_ok();
    let mut info = HashMap::new();
    if verbose {
        info.insert("config".to_owned(), config(daemon));
        if let Ok(k) = keeper {
            let age = daemon.keeper.age(&k);
            let counters = json!({
                "keeperPid": k.keeper_pid, "guardianPid": k.guardian_pid, "generation": k.generation,
                // Another file than the one that is installed.
                "keeperIsOld": age.keeper_is_old, "guardianIsOld": age.guardian_is_old,
                "version": k.version, "logBytes": k.log_bytes, "logLines": k.log_lines, "logDropped": k.log_dropped,
            });
            info.insert("keeper".to_owned(), counters.to_string());
        }
    }
    v1::StatusResponse {
        status: Some(v1::RuntimeStatus { conditions }),
        info,
        runtime_handlers: handlers::list(daemon).await,
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            mount_options: true,
            user_namespaces_host_network: user_namespaces,
        }),
    }
}

fn config(daemon: &Daemon) -> String {
    let config = &daemon.config;
    let (driver, root) = config.cgroups.describe();
    json!({
        "rootDir": config.root, "stateDir": config.state, "address": config.address,
        "cgroupDriver": driver, "cgroupRoot": root, "keeper": config.keeper, "cniConfDir": config.file.cni.conf_dir,
    })
    .to_string()
}

/// CRI-RCF-01: an unset field would say systemd.
pub(super) fn runtime_config(daemon: &Daemon) -> v1::RuntimeConfigResponse {
    let cgroup_driver = daemon.config.cgroups.driver().into();
    v1::RuntimeConfigResponse { linux: Some(v1::LinuxRuntimeConfiguration { cgroup_driver }) }
}
