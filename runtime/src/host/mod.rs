//! Facts about this host, probed once per process: cgroup layout, kernel features, own capabilities.

/// How control groups are laid out on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupLayout {
    /// Every controller on version 1 hierarchies (a v2 mount may exist beside them: hybrid).
    V1,
    /// One unified hierarchy at /sys/fs/cgroup.
    V2,
}
