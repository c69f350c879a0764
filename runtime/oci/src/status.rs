//! What a container is doing right now: asked of the kernel, never remembered.

use crate::store::Container;
use crate::verified;
use serde::Serialize;
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container;
use std::fmt;

/// OCI runtime specification, "State"; `paused` as runc has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

impl Status {
    pub(crate) fn of(container: &Container) -> Self {
        let record = &container.record;
        if record.pid == 0 {
            // Its creator holds the lock for as long as it lives.
            return if container.is_locked() { Self::Creating } else { Self::Stopped };
        }
        if !verified::is_alive(record.pid, record.start_time) {
            return Self::Stopped;
        }
        if Cgroup::open(&record.cgroup).is_ok_and(|group| group.is_frozen()) {
            return Self::Paused;
        }
        if container::is_parked_at(&container.start_socket()) { Self::Created } else { Self::Running }
    }

    pub(crate) fn is_alive(self) -> bool {
        matches!(self, Self::Created | Self::Running | Self::Paused)
    }
}
