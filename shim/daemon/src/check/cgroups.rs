//! Control groups: which version, which controllers, writable or not, pressure.

use super::Finding;
use nix::unistd::{AccessFlags, access};
use slipway_runtime::host::{CgroupLayout, Hierarchy, Host};
use std::path::Path;

const TOP: &str = "/sys/fs/cgroup";
/// Without them a pod's limits are not kept.
const NEEDED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// What version 1 needs besides: on version 2 both are done without a controller.
const NEEDED_V1: [&str; 2] = ["devices", "freezer"];

pub(super) fn check() -> Vec<Finding> {
    let host = Host::current();
    let (layout, controllers) = match host.cgroups {
        CgroupLayout::V2 => (version_2(), unified_controllers(Path::new(TOP))),
        CgroupLayout::V1 => (version_1(), hierarchy_controllers(&host.hierarchies)),
    };
    let needed = match host.cgroups {
        CgroupLayout::V2 => NEEDED.to_vec(),
        CgroupLayout::V1 => [&NEEDED[..], &NEEDED_V1[..]].concat(),
    };
    vec![layout, complete(&controllers, &needed), writable(host), pressure()]
}

fn version_2() -> Finding {
    if Path::new("/run/systemd/system").is_dir() {
        return Finding::ok("cgroups", "version 2, managed by systemd");
    }
    Finding::ok("cgroups", "version 2")
}

fn version_1() -> Finding {
    Finding::warning(
        "cgroups",
        "version 1: no pressure per pod, no memory.high, no group kill",
        "boot with systemd.unified_cgroup_hierarchy=1, or set failCgroupV1: false in the kubelet's configuration",
    )
}

fn unified_controllers(mount: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Of version 1, and what a hybrid host has on version 2 beside it.
fn hierarchy_controllers(hierarchies: &[Hierarchy]) -> Vec<String> {
    let of_version_1 = hierarchies.iter().flat_map(|h| h.name.split(',')).map(str::to_owned);
    of_version_1.chain(unified_controllers(&Path::new(TOP).join("unified"))).collect()
}

fn complete(controllers: &[String], needed: &[&str]) -> Finding {
    let missing = |name: &&&str| !controllers.iter().any(|c| c == **name);
    let lost: Vec<&str> = needed.iter().filter(missing).copied().collect();
    if !lost.is_empty() {
        let remedy = "enable them on the kernel's command line (cgroup_enable=…) or in the parent's cgroup.subtree_control";
        return Finding::failure("cgroup controllers", format!("missing: {}", lost.join(" ")), remedy);
    }
    if !controllers.iter().any(|c| c == "hugetlb") {
        return Finding::warning(
            "cgroup controllers",
            "no hugetlb: limits of huge pages are refused",
            "use a kernel with CONFIG_CGROUP_HUGETLB, or mount its hierarchy, if pods use huge pages",
        );
    }
    Finding::ok("cgroup controllers", controllers.join(" "))
}

fn writable(host: &Host) -> Finding {
    let tops: Vec<&Path> = match host.cgroups {
        CgroupLayout::V2 => vec![Path::new(TOP)],
        CgroupLayout::V1 => host.hierarchies.iter().map(|h| h.path.as_path()).collect(),
    };
    let refused = tops.iter().find_map(|top| access(*top, AccessFlags::W_OK).err().map(|errno| (top, errno)));
    match refused {
        None => Finding::ok("cgroup access", "writable"),
        Some((top, errno)) => Finding::failure(
            "cgroup access",
            format!("{} cannot be written: {errno}", top.display()),
            "run as root, outside of containers, or delegate a writable cgroup tree",
        ),
    }
}

fn pressure() -> Finding {
    if Path::new("/proc/pressure/memory").exists() {
        return Finding::ok("pressure", "PSI is on");
    }
    Finding::warning("pressure", "PSI is off: no pressure in statistics", "boot with psi=1")
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn missing_controllers_are_named() {
        let have = ["cpu", "cpuset", "memory"].map(str::to_owned);
        let finding = complete(&have, &NEEDED);
        assert_eq!((finding.verdict, finding.found.as_str()), (Verdict::Failure, "missing: pids"));
        let have = ["cpu", "cpuset", "memory", "pids"].map(str::to_owned);
        assert_eq!(complete(&have, &NEEDED).verdict, Verdict::Warning);
    }
}
