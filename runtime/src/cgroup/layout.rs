//! Where the hierarchies are: read once from /proc/self/mountinfo (proc_pid_mountinfo(5), cgroups(7)).

use crate::host::CgroupLayout;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The hierarchies of this host that a container gets a directory in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) kind: CgroupLayout,
    /// Version 1: each hierarchy with its controllers (`name=systemd` has none we use). Version 2: one entry.
    pub(crate) hierarchies: Vec<Hierarchy>,
    /// Hybrid hosts only: the version 2 mount beside the version 1 ones, and the controllers it has (hugetlb, say).
    pub(crate) unified: Option<Hierarchy>,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) mount: PathBuf,
    pub(crate) controllers: Vec<String>,
}

impl Hierarchy {
    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
}

impl Layout {
    /// The layout of this host; the first call reads it.
    pub(crate) fn get() -> &'static Self {
        static LAYOUT: OnceLock<Layout> = OnceLock::new();
        LAYOUT.get_or_init(|| {
            let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            Self::parse(&table, |mount| {
                let controllers =
                    std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
                controllers.split_whitespace().map(str::to_owned).collect()
            })
        })
    }

    /// The version 1 hierarchy of `controller`.
    pub(crate) fn v1(&self, controller: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.has(controller))
    }

    fn parse(mountinfo: &str, controllers_of: impl Fn(&Path) -> Vec<String>) -> Self {
        let (mut v1, mut v2) = (Vec::<Hierarchy>::new(), None);
        for line in mountinfo.lines() {
            let Some((fields, rest)) = line.split_once(" - ") else { continue };
            let mut rest = rest.split(' ');
            let (kind, options) = (rest.next().unwrap_or_default(), rest.nth(1).unwrap_or_default());
            let Some(mount) = fields.split(' ').nth(4).map(PathBuf::from) else { continue };
            if kind == "cgroup2" && v2.is_none() {
                v2 = Some(Hierarchy { controllers: controllers_of(&mount), mount });
            } else if kind == "cgroup" {
                let controllers: Vec<String> =
                    options.split(',').filter(|o| is_controller(o)).map(str::to_owned).collect();
                // A hierarchy may be mounted more than once; one directory in it is enough.
                if !v1.iter().any(|h| h.controllers == controllers) {
                    v1.push(Hierarchy { mount, controllers });
                }
            }
        }
        match (v1.is_empty(), v2) {
            (true, Some(unified)) => {
                Self { kind: CgroupLayout::V2, hierarchies: vec![unified], unified: None }
            }
            (_, unified) => Self { kind: CgroupLayout::V1, hierarchies: v1, unified },
        }
    }
}

/// Mount options of a version 1 hierarchy that are not its controllers.
fn is_controller(option: &str) -> bool {
    !matches!(option, "rw" | "ro" | "xattr" | "clone_children" | "noprefix" | "none")
        && !option.starts_with("release_agent=")
        && !option.starts_with("cpuset_v2_mode")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
34 30 0:27 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct";

    #[test]
    fn hybrid_hosts_are_version_1_with_a_unified_mount() {
        let layout = Layout::parse(HYBRID, |_| vec!["hugetlb".into()]);
        assert_eq!(layout.kind, CgroupLayout::V1);
        assert_eq!(layout.hierarchies.len(), 2);
        assert_eq!(
            layout.v1("cpuacct").map(|h| h.mount.as_path()),
            Some(Path::new("/sys/fs/cgroup/cpu,cpuacct"))
        );
        assert!(layout.unified.is_some_and(|u| u.has("hugetlb")));
    }

    #[test]
    fn a_lone_cgroup2_mount_is_version_2() {
        let line = "33 30 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(Layout::parse(line, |_| vec!["cpu".into()]).kind, CgroupLayout::V2);
    }
}
