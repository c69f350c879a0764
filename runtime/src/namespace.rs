//! The kinds of namespaces (namespaces(7)), as every room names them.

/// One kind; a pod holds some of them for its containers.
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
    pub const ALL: [Self; 8] =
        [Self::Network, Self::Ipc, Self::Uts, Self::Pid, Self::User, Self::Mount, Self::Cgroup, Self::Time];

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

    /// Its link in `/proc/<pid>/ns` (namespaces(7)).
    pub fn link(self) -> &'static str {
        match self {
            Self::Network => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Pid => "pid",
            Self::User => "user",
            Self::Mount => "mnt",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
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
