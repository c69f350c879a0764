//! Containers: created, started, stopped, removed, entered, measured.
//!
//! ```text
//!  Creating ──▶ Created ──start──▶ Running ──exit──▶ Exited (final)
//!                  └────── start failed ─────────────▲
//! ```

mod create;
mod exec;
mod image_mounts;
pub(crate) mod life;
mod parse;
mod propagation;
mod relabel;
pub(crate) mod shim_stats;
pub(crate) mod stats;
mod update;

pub(crate) use create::remove_tree;
pub(crate) use exec::{Output, process as exec_process};
pub(crate) use image_mounts::pod_of_view;
pub(crate) use life::Stop;

use crate::object::Record;
use cri_proto::v1;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Each variant holds only what is true then (CRI-FSM-01). Times in nanoseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Intent: what this record names may exist in part. Never listed.
    Creating,
    Created,
    Running {
        started_at: i64,
        pid: u32,
    },
    Exited {
        started_at: i64,
        finished_at: i64,
        exit_code: i32,
        reason: String,
        message: String,
    },
}

/// All that must survive the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) pod_id: String,
    pub(crate) config: v1::ContainerConfig,
    pub(crate) created_at: i64,
    pub(crate) image_id: String,
    /// First repo tag and first repo digest at creation; status must work when the image is gone (CRI-CSTAT-03).
    pub(crate) image_name: String,
    pub(crate) image_ref: String,
    /// Absolute, or empty: no log.
    pub(crate) log_path: String,
    pub(crate) user: v1::LinuxContainerUser,
    /// Number for this architecture; the effective one.
    pub(crate) stop_signal: u32,
    /// What the config or the image asked for, as CRI names it; 0: neither.
    pub(crate) stop_signal_name: i32,
    pub(crate) cgroup: String,
    pub(crate) bundle: PathBuf,
    /// What NRI plugins have set of its limits: an overlay, see [`crate::nri`].
    #[serde(default)]
    pub(crate) nri: serde_json::Value,
    /// Made of a checkpoint: its start restores.
    #[serde(default)]
    pub(crate) restored: bool,
    /// SELinux labels of its processes and files; none: there are none here.
    #[serde(default)]
    pub(crate) selinux: Option<crate::selinux::Labels>,
    pub(crate) phase: Phase,
}

impl Record for ContainerRecord {
    const KIND: &'static str = "container";
    fn id(&self) -> &str {
        &self.id
    }
}

impl ContainerRecord {
    pub(crate) fn metadata(&self) -> v1::ContainerMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    /// `pod id/name/attempt`: only one container may have it, also after its end (CRI-CC-02).
    pub(crate) fn name(&self) -> String {
        let m = self.metadata();
        format!("{}/{}/{}", self.pod_id, m.name, m.attempt)
    }

    /// For sentences and logs.
    pub(crate) fn label(&self) -> String {
        format!("{} ({})", self.metadata().name, &self.id[..12.min(self.id.len())])
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Exited { .. })
    }

    pub(crate) fn state(&self) -> v1::ContainerState {
        match self.phase {
            Phase::Creating | Phase::Created => v1::ContainerState::ContainerCreated,
            Phase::Running { .. } => v1::ContainerState::ContainerRunning,
            Phase::Exited { .. } => v1::ContainerState::ContainerExited,
        }
    }

    /// ContainerStatus (CRI-CSTAT-*).
    pub(crate) fn status(&self) -> v1::ContainerStatus {
        let mut status = v1::ContainerStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state().into(),
            created_at: self.created_at,
            image: Some(v1::ImageSpec {
                image: self.image_name.clone(),
                ..self.config.image.clone().unwrap_or_default()
            }),
            image_ref: self.image_ref.clone(),
            image_id: self.image_id.clone(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            mounts: self.config.mounts.clone(),
            log_path: self.log_path.clone(),
            user: Some(v1::ContainerUser { linux: Some(self.user.clone()) }),
            stop_signal: self.stop_signal_name,
            resources: Some(v1::ContainerResources {
                linux: self.config.linux.as_ref().and_then(|l| l.resources.clone()),
                ..Default::default()
            }),
            ..Default::default()
        };
        match &self.phase {
            Phase::Running { started_at, .. } => status.started_at = *started_at,
            Phase::Exited { started_at, finished_at, exit_code, reason, message } => {
                status.started_at = *started_at;
                status.finished_at = *finished_at;
                status.exit_code = *exit_code;
                status.reason.clone_from(reason);
                status.message.clone_from(message);
            }
            _ => {}
        }
        status
    }

    /// The list item (CRI-LIST-01).
    pub(crate) fn item(&self) -> v1::Container {
        v1::Container {
            id: self.id.clone(),
            pod_sandbox_id: self.pod_id.clone(),
            metadata: self.config.metadata.clone(),
            image: self.config.image.clone(),
            image_ref: self.image_ref.clone(),
            image_id: self.image_id.clone(),
            state: self.state().into(),
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
        }
    }
}
