//! A pod's namespaces, held as descriptors; no pause process (DESIGN 1B).

pub mod files;
mod netns;
mod user;

pub use netns::{inside_netns, pin_netns, release_netns_dir, unpin_netns};

use crate::error::Kind;
use crate::idmap::IdMappings;
use crate::launch::{self, Launch, Launched};
use crate::plan;
use crate::program::Program;
use crate::sys::{namespace, process};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

pub use crate::launch::REAPER;
pub use crate::namespace::NamespaceKind;

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
    /// Make everything in a user namespace with these maps: the one that owns `netns` if it is not ours, else a new one.
    pub user: Option<IdMappings>,
    /// Without `netns`, in a user namespace: make a network namespace (with `lo` up) that belongs to it (CRI-RUN-13). For
    /// clients that pin the one of the pod's process afterwards.
    pub new_network: bool,
    /// Make a shared PID namespace whose pid 1 is our own reaper (no image; a few KB).
    pub shared_pid: bool,
}

/// The pod's namespaces. Dropping it without [`Sandbox::into_fds`] lets the kernel free them.
#[derive(Debug)]
pub struct Sandbox {
    pub namespaces: Vec<(NamespaceKind, OwnedFd)>,
    /// Pid and pidfd of the reaper, only for a shared PID namespace. It leaves on SIGTERM, and the whole namespace with
    /// it; the kernel lets it go only when every other process of the namespace has been reaped by its parent, so wait
    /// for the containers first.
    pub reaper: Option<(i32, OwnedFd)>,
}

impl Sandbox {
    /// Makes everything asked for on a throw-away thread; on error nothing is left.
    pub fn create(request: &SandboxRequest) -> Result<Self> {
        let sysctls = check_sysctls(request)?;
        let netns = request.netns.as_deref().map(open_netns).transpose()?;
        if request.new_network && (request.user.is_none() || netns.is_some()) {
            let what = "new_network: only in a user namespace, and without a network namespace given";
            return Err(Error::new(Kind::Invalid, "make the pod's namespaces", what));
        }
        if let Some(mappings) = &request.user {
            return user::make(request, mappings, netns, sysctls);
        }
        let made = namespace::on_own_thread("sandbox", || make(request, netns, &sysctls));
        made.map_err(|e| Error::sys("make the pod's namespaces", "thread", e))?
    }

    /// Takes the sandbox apart; the descriptors keep the namespaces alive.
    pub fn into_fds(self) -> Vec<(NamespaceKind, OwnedFd)> {
        self.namespaces
    }
}

/// File and value of each sysctl, all of namespaces that the pod has of its own.
fn check_sysctls(request: &SandboxRequest) -> Result<Vec<(String, &str)>> {
    let owned = |kind| match kind {
        NamespaceKind::Ipc => request.ipc,
        NamespaceKind::Uts => request.hostname.is_some(),
        NamespaceKind::Network => request.netns.is_some() || request.new_network,
        _ => false,
    };
    let check = |(key, value): (&'_ String, &'_ String)| -> Result<()> {
        let refuse =
            |why: String| Err(Error::new(Kind::Invalid, "set sysctl", format!("{key}={value}: {why}")));
        match plan::sysctl_namespace(key) {
            None => refuse("it belongs to the whole host, not to a pod".to_owned()),
            Some(kind) if !owned(kind) => refuse(format!("the pod shares the host's {kind} namespace")),
            Some(_) => Ok(()),
        }
    };
    let mut files = Vec::new();
    for (key, value) in &request.sysctls {
        check((key, value))?;
        files.push((plan::sysctl_file(key)?, value.as_str()));
    }
    Ok(files)
}

fn open_netns(path: &Path) -> Result<OwnedFd> {
    let opened = File::open(path)
        .map_err(|e| Error::sys("open the network namespace", path.display().to_string(), e))?;
    Ok(opened.into())
}

/// On a throw-away thread: whatever this does to the thread ends with it.
fn make(request: &SandboxRequest, netns: Option<OwnedFd>, sysctls: &[(String, &str)]) -> Result<Sandbox> {
    let mut kinds = 0;
    if request.ipc {
        kinds |= NamespaceKind::Ipc.clone_flag();
    }
    if request.hostname.is_some() {
        kinds |= NamespaceKind::Uts.clone_flag();
    }
    if kinds != 0 {
        namespace::unshare(kinds).map_err(|e| Error::sys("make the pod's namespaces", "unshare", e))?;
    }
    let mut namespaces = Vec::new();
    if let Some(netns) = netns {
        namespace::join(netns.as_fd(), NamespaceKind::Network.clone_flag())
            .map_err(|e| Error::sys("join the pod's network namespace", "setns", e))?;
        namespaces.push((NamespaceKind::Network, netns));
    }
    if let Some(name) = &request.hostname {
        let error = |e: rustix::io::Errno| Error::sys("set the host name", name.clone(), e);
        rustix::system::sethostname(name.as_bytes()).map_err(error)?;
    }
    for (file, value) in sysctls {
        write_sysctl(file, value)?;
    }
    let own = |name| namespace::own(name).map_err(|e| Error::sys("hold the pod's namespace", name, e));
    if request.ipc {
        namespaces.push((NamespaceKind::Ipc, own("ipc")?));
    }
    if request.hostname.is_some() {
        namespaces.push((NamespaceKind::Uts, own("uts")?));
    }
    let reaper = if request.shared_pid { Some(start_reaper(&mut namespaces)?) } else { None };
    Ok(Sandbox { namespaces, reaper })
}

fn write_sysctl(file: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{file}");
    let written = File::options().write(true).open(&path).and_then(|mut f| f.write_all(value.as_bytes()));
    written.map_err(|e| {
        let hint = match e.raw_os_error() {
            Some(libc::ENOENT) => "this kernel does not have that setting",
            _ => "the kernel refused the value",
        };
        Error::sys("set sysctl", format!("{path}={value}"), e).with_kind(Kind::Invalid).hint(hint)
    })
}

/// Pid 1 of a new PID namespace, in the pod's other namespaces.
fn start_reaper(namespaces: &mut Vec<(NamespaceKind, OwnedFd)>) -> Result<(i32, OwnedFd)> {
    let Launched { pid, pidfd, .. } = launch::launch(&Program::reaper(), Launch::default())?;
    match File::open(format!("/proc/{pid}/ns/pid")) {
        Ok(namespace) => {
            namespaces.push((NamespaceKind::Pid, namespace.into()));
            Ok((pid, pidfd))
        }
        Err(error) => {
            process::end(&pidfd);
            Err(Error::sys("hold the pod's namespace", "pid", error))
        }
    }
}
