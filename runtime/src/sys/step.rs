//! The vocabulary of the child: what a [`Step`] can be. Pure data, no calls.
//!
//! A step holds all that is known before launch, already in the form the kernel wants (C strings, flag words), because
//! the child that interprets it may not allocate. What exists only as a descriptor at launch is named by a [`Handle`].
//! `program` arranges steps and explains them; `child` runs them.

use super::raw::MountAttr;
use std::ffi::CString;

/// Index of a descriptor that the parent prepares (see `program::Prepare`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle(pub usize);

/// Strings of execve(2): `argv` or `envp`, with the null-terminated table the kernel reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StringTable {
    strings: Vec<CString>,
    /// Addresses of the strings' heap blocks, which do not move with the vector; the last is 0.
    table: Vec<usize>,
}

impl StringTable {
    pub fn new(strings: Vec<CString>) -> Self {
        let table = strings.iter().map(|s| s.as_ptr() as usize).chain([0]).collect();
        Self { strings, table }
    }

    pub fn strings(&self) -> &[CString] {
        &self.strings
    }

    /// Address of the table, for execve.
    pub fn address(&self) -> usize {
        self.table.as_ptr() as usize
    }
}

/// What a mount target must be, and is made as when it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    Directory,
    File,
    /// Whatever the mounted thing is (a bind of a file needs a file).
    LikeSource,
}

/// Where a mount goes, relative to the container's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Without leading slash; `.` is the root itself.
    pub path: CString,
    pub kind: TargetKind,
    /// Refuse a path that resolves into procfs: a symlink of the image must not lead a volume over /proc
    /// (CVE-2019-16884, CVE-2021-30465).
    pub refuse_procfs: bool,
    /// No symlink anywhere in the path: for /proc and /sys themselves.
    pub no_symlinks: bool,
}

/// A file system made in the child's own namespaces by fsopen(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreshMount {
    pub fstype: CString,
    pub source: CString,
    /// Options for fsconfig(2): with a value a string, without one a flag.
    pub options: Vec<(CString, Option<CString>)>,
    /// MOUNT_ATTR_* for fsmount(2).
    pub attributes: u64,
    /// Its root gets the mode of the directory that it covers, if that was there before.
    pub inherit_mode: bool,
    /// SELinux label for its root, where the kernel takes one.
    pub label: Option<CString>,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Relative to the container's root.
    pub path: CString,
    /// S_IFCHR, S_IFBLK or S_IFIFO with the permission bits.
    pub mode: u32,
    pub major: u32,
    pub minor: u32,
    pub uid: u32,
    pub gid: u32,
}

/// `struct sched_attr` of sched_setattr(2), without its size and utilisation clamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    /// Nanoseconds.
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// What set_mempolicy(2) takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// MPOL_* with MPOL_F_*.
    pub mode: u32,
    /// Node n at bit n, low word first.
    pub nodes: Vec<u64>,
}

/// Capability sets as bit masks, number n at bit n.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilityMasks {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// One kernel step of the child. The order in the list is the order of execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Close every descriptor but those this program uses: the parent's others must not live on in a parked child.
    CloseForeign,
    /// All signals back to their default action (the parent blocks them around clone3).
    ResetSignals,
    /// setsid(2).
    NewSession,
    /// Write one file of the host's own procfs, reached before the root changes: oom_score_adj, sysctls (which namespace
    /// they speak of is the child's own), security labels for the next execve. `forgive` is an errno that is success.
    WriteProc { path: CString, value: CString, forgive: i32 },
    /// setns(2) to a namespace descriptor, with its CLONE_NEW* type.
    JoinNamespace { from: Handle, kind: u32 },
    /// setns(2) by a pidfd: all kinds of this CLONE_NEW* mask at once.
    JoinProcess { pidfd: Handle, kinds: u32 },
    /// unshare(2) of these CLONE_NEW* kinds; a PID namespace is for what [`Step::Rebirth`] makes.
    Unshare(u32),
    /// clone3(2) once more: the next steps are those of a new child of our parent (see `sys::rebirth`). `outside`:
    /// [`Step::Schedule`] and [`Step::IoPriority`] that the parent takes for it before it goes on. They ask for rights of
    /// the host, which the child has no more, and a task with a deadline could not clone.
    Rebirth { outside: Vec<Step> },
    /// Become user and group 0 of the user namespace just joined, in which our ids so far mean nobody; `groups`: leave all
    /// supplementary ones (an ordinary user may not).
    BecomeNamespaceRoot { groups: bool },
    /// Pipes and terminals among the streams go to this user of the host, while we may still give them.
    GiveStreams { uid: u32 },
    /// prctl(2) PR_SET_DUMPABLE: for a child without secrets, whose files in /proc the parent must open.
    AllowInspection,
    /// sethostname(2).
    SetHostName(CString),
    /// setdomainname(2).
    SetDomainName(CString),
    /// unshare(2) CLONE_NEWCGROUP, after the group was joined so that it becomes the root.
    NewCgroupNamespace,
    /// keyctl(2) KEYCTL_JOIN_SESSION_KEYRING: the host's keys stay with the host.
    SessionKeyring(CString),
    /// Make every inherited mount private: nothing done here can reach the host.
    DetachPropagation,
    /// chdir(2) to where [`Step::HangRoot`] will find `.`: while the host's rights can still search the way to it. A new
    /// mount namespace takes the working directory along.
    GoToPlace(CString),
    /// move_mount(2) the new root onto `/`, pivot_root(2) into it, drop the old tree.
    EnterRoot(Handle),
    /// The first half of [`Step::EnterRoot`]: move_mount(2) of the new root onto a directory of the host's tree, as this
    /// namespace sees it, and chdir(2) into it. Paths of later steps begin there as they do after the second half.
    HangRoot { root: Handle, at: CString },
    /// The second half: pivot_root(2) into the working directory, drop the old tree.
    Pivot,
    /// In place of pivot_root(2), which an initramfs does not take: move_mount(2) of the new root (or of the working
    /// directory, which is it) onto `/`, chroot(2). What the host has mounted on /proc and /sys goes first.
    MoveRoot(Option<Handle>),
    /// open_tree(2) with OPEN_TREE_CLONE of the whole finished tree, for a mount namespace that is not the one it was made in.
    CopyRoot { into: Handle },
    /// fchdir(2), chroot(2): into a root that is in no mount namespace's table. Nothing is above it: who may chroot again
    /// gets no further than it.
    ChangeRoot(Handle),
    /// Tell the parent that everything is there but the change of root, and wait for its byte.
    Meet,
    /// fsopen, fsconfig, fsmount, move_mount.
    MountFresh { mount: FreshMount, target: Target, propagation: Option<MountAttr>, recursive: bool },
    /// The same without move_mount: kept for a later [`Step::Place`]. What may be mounted only where the host's own is in
    /// sight (proc and sysfs in a user namespace) is made before the root changes.
    MakeMount { mount: FreshMount, into: Handle, propagation: Option<MountAttr>, recursive: bool },
    /// move_mount(2) of a tree the parent prepared, or [`Step::MakeMount`] made.
    Place { from: Handle, target: Target },
    /// mkdir -p.
    MakeDirectory(CString),
    /// symlinkat(2); an existing entry stays.
    Symlink { target: CString, path: CString },
    /// mknodat(2); an existing entry stays.
    MakeNode(Node),
    /// mount_setattr(2) on a mounted path.
    SetAttributes { path: CString, recursive: bool, attr: MountAttr },
    /// Cover a path: a file by /dev/null, a directory by an empty read-only tmpfs, with this SELinux label. Absent is
    /// success.
    Mask { path: CString, null: Handle, label: Option<CString> },
    /// Bind a path on itself read-only. Absent is success.
    ReadOnly(CString),
    /// Allocate a pty in the container's devpts, send its master to the parent, keep the peer for the standard streams.
    OpenTerminal,
    /// Bind the pty's peer on /dev/console.
    BindConsole,
    /// dup3(2) of the three streams to 0, 1, 2, given to `uid`.
    StandardStreams { uid: u32 },
    /// The terminal becomes the controlling one.
    ControlTerminal,
    /// prlimit64(2): the hard limit, if it is lower, up to this. What needs the host's rights of a [`Step::ResourceLimit`]
    /// that comes when they are gone.
    RaiseLimit { resource: u32, hard: u64 },
    /// prlimit64(2).
    ResourceLimit { resource: u32, soft: u64, hard: u64 },
    /// Write `0` to the version 1 `tasks` files (nothing to do when clone3 already put the child into its group).
    EnterCgroup,
    /// sched_setattr(2).
    Schedule(Schedule),
    /// ioprio_set(2) for this process.
    IoPriority(u32),
    /// sched_setaffinity(2): CPU n at bit n.
    Affinity(Vec<u64>),
    /// set_mempolicy(2).
    MemoryPolicy(MemoryPolicy),
    /// personality(2).
    Personality(u32),
    /// umask(2).
    FileModeMask(u32),
    /// prctl(2) PR_CAPBSET_DROP of all capabilities not in the mask.
    BoundingSet(u64),
    /// setgroups (none: not allowed, stays as it is), setresgid, setresuid, keeping capabilities.
    Credentials { uid: u32, gid: u32, groups: Option<Vec<u32>> },
    /// capset(2) and the ambient set; `extra` stays effective until execve takes it away (CAP_SYS_ADMIN for seccomp).
    Capabilities { masks: CapabilityMasks, extra: u64 },
    /// prctl(2) PR_SET_NO_NEW_PRIVS.
    NoNewPrivileges,
    /// Nothing above 2 but the sockets to the launcher and preserved descriptors stays open (CVE-2024-21626).
    CloseAll,
    /// chdir(2), as root; a refusal is tried again after the credentials.
    ChangeDirectory(CString),
    /// chdir(2) if the first try was refused; then getcwd(2) must lie below the root (CVE-2024-21626).
    VerifyDirectory(CString),
    /// Tell the parent all is done and wait for the byte, on the launcher's socket or a listening one.
    Park,
    /// Choose the first candidate that may be executed by the final user.
    FindCommand { candidates: Vec<CString> },
    /// rt_sigprocmask(2) with an empty mask: what arrived meanwhile acts now.
    UnblockSignals,
    /// seccomp(2) SECCOMP_SET_MODE_FILTER.
    Seccomp,
    /// execve(2).
    Execute { argv: StringTable, env: StringTable },
    /// execveat(2) of a descriptor (a program of ours that has no path).
    ExecuteDescriptor { from: Handle, argv: StringTable },
}
