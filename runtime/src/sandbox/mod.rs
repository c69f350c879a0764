//! A pod's namespaces, held as descriptors; no pause process (DESIGN 1B).

use crate::Result;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Namespace kinds a pod can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NamespaceKind {
    Network,
    Ipc,
    Uts,
    Pid,
    User,
    Mount,
    Cgroup,
    Time,
}

impl NamespaceKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Network,
        Self::Ipc,
        Self::Uts,
        Self::Pid,
        Self::User,
        Self::Mount,
        Self::Cgroup,
        Self::Time,
    ];

    /// CLONE_NEW* of clone3(2), setns(2), unshare(2).
    pub fn clone_flag(self) -> u32 {
        let flag = match self {
            Self::Network => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Pid => libc::CLONE_NEWPID,
            Self::User => libc::CLONE_NEWUSER,
            Self::Mount => libc::CLONE_NEWNS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Time => libc::CLONE_NEWTIME,
        };
        flag as u32
    }
}

impl std::fmt::Display for NamespaceKind {
    /// The word of the OCI runtime specification.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Pid => "pid",
            Self::User => "user",
            Self::Mount => "mount",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        })
    }
}

/// What a pod asks of its own namespaces.
#[derive(Debug, Clone, Default)]
pub struct SandboxRequest {
    /// Make a new IPC namespace (false: the host's).
    pub ipc: bool,
    /// Make a new UTS namespace with this host name (none: the host's).
    pub hostname: Option<String>,
    /// Sysctls such as `kernel.shm_rmid_forced`, `fs.mqueue.msg_max`, `net.ipv4.ip_unprivileged_port_start`; each must
    /// belong to a namespace of the pod, otherwise `Invalid` (CRI-RUN-23).
    pub sysctls: BTreeMap<String, String>,
    /// The pod's network namespace, already pinned; none: the host's.
    pub netns: Option<std::path::PathBuf>,
    /// Make a shared PID namespace whose pid 1 is our own reaper (no image; a few KB).
    pub shared_pid: bool,
}

/// The pod's namespaces. Dropping it without [`Sandbox::into_fds`] lets the kernel free them.
#[derive(Debug)]
pub struct Sandbox {
    pub namespaces: Vec<(NamespaceKind, OwnedFd)>,
    /// Pid and pidfd of the reaper, only for a shared PID namespace.
    pub reaper: Option<(i32, OwnedFd)>,
}

impl Sandbox {
    /// Makes everything asked for on a throw-away thread; on error nothing is left.
    pub fn create(request: &SandboxRequest) -> Result<Self> {
        let _ = request;
        todo!()
    }
}

/// Makes a network namespace (with `lo` up) and pins it at `path` (bind mount on an O_EXCL file), so that CNI and
/// agents can name it. The directory must be a shared mount for others to see it (CNI-RT-15): made so if needed.
pub fn pin_netns(path: &Path) -> Result<()> {
    let _ = path;
    todo!()
}

/// Unpins: detach, unlink; missing is success (CNI-RT-16).
pub fn unpin_netns(path: &Path) -> Result<()> {
    let _ = path;
    todo!()
}
