//! Pods with a user namespace: everything of theirs belongs to it, so it is made by a process inside.

use super::{Sandbox, SandboxRequest};
use crate::error::Kind;
use crate::idmap::{self, IdMappings, Setgroups};
use crate::launch::{self, Launch, Launched};
use crate::namespace::NamespaceKind;
use crate::program::{PodPlan, Program};
use crate::sys::{namespace, process};
use crate::{Error, Result};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// The name in /proc/<pid>/ns.
const FILES: [(NamespaceKind, &str); 4] = [
    (NamespaceKind::Ipc, "ipc"),
    (NamespaceKind::Uts, "uts"),
    (NamespaceKind::Pid, "pid"),
    (NamespaceKind::Network, "net"),
];

pub(super) fn make(
    request: &SandboxRequest,
    mappings: &IdMappings,
    netns: Option<OwnedFd>,
    sysctls: Vec<(String, &str)>,
) -> Result<Sandbox> {
    mappings.check("user", "uids", "gids")?;
    let user = match netns.as_ref().map(owner_of).transpose()?.flatten() {
        Some(owner) => owner,
        None => idmap::user_namespace(mappings, Setgroups::Allow)?,
    };
    let plan = PodPlan {
        network: netns.is_some(),
        new_network: request.new_network,
        ipc: request.ipc,
        uts: request.hostname.clone(),
        sysctls: sysctls.into_iter().map(|(file, value)| (file, value.to_owned())).collect(),
        reaper: request.shared_pid,
    };
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| Error::sys("hold the pod's namespace", "fcntl", e));
    let mut given = vec![copy(&user)?];
    if let Some(netns) = &netns {
        given.push(copy(netns)?);
    }
    let program = Program::pod(&plan);
    let launched = launch::launch(&program, Launch { given, ..Launch::default() })?;
    match hold(&launched, &plan, mappings, &program) {
        Ok(mut namespaces) => {
            namespaces.extend(netns.map(|fd| (NamespaceKind::Network, fd)));
            namespaces.push((NamespaceKind::User, user));
            let Launched { pid, pidfd, .. } = launched;
            if plan.reaper {
                return Ok(Sandbox { namespaces, reaper: Some((pid, pidfd)) });
            }
            process::end(&pidfd);
            Ok(Sandbox { namespaces, reaper: None })
        }
        Err(error) => {
            process::end(&launched.pidfd);
            Err(error)
        }
    }
}

/// The user namespace that a network namespace belongs to, unless that is our own.
fn owner_of(netns: &OwnedFd) -> Result<Option<OwnedFd>> {
    let error =
        |e| Error::sys("find the pod's user namespace", "ioctl NS_GET_USERNS of its network namespace", e);
    let owner = File::from(namespace::owner(netns.as_fd()).map_err(error)?);
    let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    let ours = fs::metadata("/proc/self/ns/user").map_err(error)?;
    Ok((!same(owner.metadata().map_err(error)?, ours)).then(|| owner.into()))
}

/// Opens what the parked process made, and lets it become the reaper if it is to.
fn hold(
    launched: &Launched,
    plan: &PodPlan,
    mappings: &IdMappings,
    program: &Program,
) -> Result<Vec<(NamespaceKind, OwnedFd)>> {
    check_maps(launched.pid, mappings)?;
    let mut namespaces = Vec::new();
    for (kind, name) in FILES {
        let made = match kind {
            NamespaceKind::Ipc => plan.ipc,
            NamespaceKind::Uts => plan.uts.is_some(),
            NamespaceKind::Network => plan.new_network,
            _ => plan.reaper,
        };
        if made {
            let opened = File::open(format!("/proc/{}/ns/{name}", launched.pid));
            let file = opened.map_err(|e| Error::sys("hold the pod's namespace", name, e))?;
            let namespace = OwnedFd::from(file);
            if kind == NamespaceKind::Network {
                let up = namespace::loopback_up_in(namespace.as_fd());
                up.map_err(|e| Error::sys("bring up the pod's loopback", "lo", e))?;
            }
            namespaces.push((kind, namespace));
        }
    }
    if plan.reaper {
        launch::start(&launched.socket, &program.sentences(), &mut |_| Ok(()))?;
    }
    Ok(namespaces)
}

/// A network namespace that came with another user namespace must not decide silently who the pod's root is.
fn check_maps(pid: i32, mappings: &IdMappings) -> Result<()> {
    for (name, list) in [("uid_map", &mappings.uids), ("gid_map", &mappings.gids)] {
        let path = format!("/proc/{pid}/{name}");
        let text = fs::read_to_string(&path).map_err(|e| Error::sys("check the pod's maps", path, e))?;
        let number = |field: Option<&str>| field.and_then(|field| field.parse::<u32>().ok());
        let mut found: Vec<_> = text
            .lines()
            .filter_map(|line| {
                let mut fields = line.split_whitespace();
                Some((number(fields.next())?, number(fields.next())?, number(fields.next())?))
            })
            .collect();
        let mut wanted: Vec<_> = list.iter().map(|m| (m.container, m.host, m.size)).collect();
        found.sort_unstable();
        wanted.sort_unstable();
        if found != wanted {
            let what = format!(
                "the network namespace belongs to a user namespace with other maps: {name} is {found:?}"
            );
            return Err(Error::new(Kind::Invalid, "make the pod's namespaces", what).hint(
                "make the network namespace in a user namespace with the pod's maps, or in the host's",
            ));
        }
    }
    Ok(())
}
