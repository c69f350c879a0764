//! Where the control group hierarchies of this host are mounted: read once, from /proc/self/mountinfo.
//!
//! Never mounts anything. See cgroups(7), proc_pid_mountinfo(5).

use super::files;
use crate::error::Kind;
use crate::{Error, Result};
use std::sync::OnceLock;

/// Controllers of version 2 that every group we make gets when the host has them: limits and stats need them.
pub(super) const WANTED: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Mount point, without a slash at the end.
    pub(super) mount: String,
    /// `cpu`, `memory`, ...; a named one has `name=systemd` or the like.
    pub(super) controllers: Vec<String>,
}

impl Hierarchy {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }

    /// The directory of group `path` (which begins with a slash).
    pub(super) fn dir(&self, path: &str) -> String {
        format!("{}{path}", self.mount)
    }
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// Version 1 hierarchies with the controllers; a version 2 mount may stand beside them and own what is left.
    V1 { hierarchies: Vec<Hierarchy>, unified: Option<Hierarchy> },
    /// One hierarchy with everything.
    V2(Hierarchy),
}

impl Layout {
    /// This host's layout.
    ///
    /// # Errors
    /// `Unsupported` when no cgroup file system is mounted.
    pub(super) fn get() -> Result<&'static Self> {
        static LAYOUT: OnceLock<Layout> = OnceLock::new();
        if let Some(layout) = LAYOUT.get() {
            return Ok(layout);
        }
        let table = files::must_read("/proc/self/mountinfo")?;
        let found = Self::parse(&table, |mount| {
            let list = files::read(&format!("{mount}/cgroup.controllers")).unwrap_or_default();
            list.split_whitespace().map(str::to_owned).collect()
        });
        let found = found.ok_or_else(|| {
            Error::new(Kind::Unsupported, "find control groups", "/proc/self/mountinfo")
                .hint("mount cgroup2 on /sys/fs/cgroup, or the version 1 hierarchies below it")
        })?;
        Ok(LAYOUT.get_or_init(|| found))
    }

    /// The version 1 hierarchy that `controller` is bound to.
    pub(super) fn v1(&self, controller: &str) -> Option<&Hierarchy> {
        match self {
            Self::V1 { hierarchies, .. } => hierarchies.iter().find(|h| h.has(controller)),
            Self::V2(_) => None,
        }
    }

    /// The version 1 hierarchy in which processes are listed, frozen and killed.
    pub(super) fn freezer(&self) -> Option<&Hierarchy> {
        match self {
            Self::V1 { hierarchies, .. } => self.v1("freezer").or_else(|| hierarchies.first()),
            Self::V2(_) => None,
        }
    }

    /// Every mounted hierarchy.
    pub(super) fn all(&self) -> impl Iterator<Item = &Hierarchy> {
        let (v1, v2) = match self {
            Self::V1 { hierarchies, unified } => (hierarchies.as_slice(), unified.as_ref()),
            Self::V2(unified) => ([].as_slice(), Some(unified)),
        };
        v1.iter().chain(v2)
    }

    fn parse(mountinfo: &str, controllers_of: impl Fn(&str) -> Vec<String>) -> Option<Self> {
        let (mut hierarchies, mut unified) = (Vec::<Hierarchy>::new(), None);
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (mut left, mut right) = (left.split(' '), right.split(' '));
            let (Some(mount), Some(fs), Some(options)) = (left.nth(4), right.next(), right.nth(1)) else {
                continue;
            };
            let mount = unescape(mount);
            match fs {
                "cgroup2" if unified.is_none() => {
                    unified = Some(Hierarchy { controllers: controllers_of(&mount), mount });
                }
                "cgroup" => {
                    let controllers: Vec<String> =
                        options.split(',').filter(|o| is_controller(o)).map(str::to_owned).collect();
                    // A hierarchy may be mounted twice; one directory in it is enough.
                    if !hierarchies.iter().any(|h| h.controllers == controllers) {
                        hierarchies.push(Hierarchy { mount, controllers });
                    }
                }
                _ => {}
            }
        }
        // A lone `name=systemd` beside cgroup2 holds no controller: that host is version 2.
        let real = hierarchies.iter().any(|h| h.controllers.iter().any(|c| !c.starts_with("name=")));
        match unified {
            Some(unified) if !real => Some(Self::V2(unified)),
            unified if real => Some(Self::V1 { hierarchies, unified }),
            _ => None,
        }
    }
}

/// Mount options of a version 1 super block that are no controllers.
fn is_controller(option: &str) -> bool {
    !matches!(
        option,
        "rw" | "ro"
            | "xattr"
            | "clone_children"
            | "noprefix"
            | "none"
            | "all"
            | "cpuset_v2_mode"
            | "favordynmods"
    ) && !option.starts_with("release_agent=")
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")].iter().fold(
        field.to_owned(),
        |text, (code, plain)| if text.contains('\\') { text.replace(code, plain) } else { text },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
34 30 0:27 / /else\\040where rw - cgroup cgroup rw,cpu,cpuacct";

    #[test]
    fn hybrid_is_version_1_with_a_version_2_mount_beside_it() {
        let layout = Layout::parse(HYBRID, |_| vec!["hugetlb".into()]).unwrap();
        assert_eq!(
            layout.v1("cpuacct").map(|h| h.dir("/a")).as_deref(),
            Some("/sys/fs/cgroup/cpu,cpuacct/a")
        );
        let Layout::V1 { hierarchies, unified } = layout else { panic!("must be version 1") };
        assert_eq!(hierarchies.len(), 2, "the second mount of cpu,cpuacct is the same hierarchy");
        assert_eq!(hierarchies[1].controllers, ["name=systemd"]);
        assert!(unified.unwrap().has("hugetlb"));
    }

    #[test]
    fn a_named_hierarchy_alone_does_not_make_a_host_version_1() {
        let both = "1 1 0:1 / /sys/fs/cgroup rw - cgroup2 none rw\n2 1 0:2 / /sys/fs/cgroup/systemd rw - cgroup none rw,name=systemd";
        assert!(
            matches!(Layout::parse(both, |_| vec![]), Some(Layout::V2(h)) if h.mount == "/sys/fs/cgroup")
        );
        assert_eq!(Layout::parse("1 1 0:1 / / rw - ext4 /dev/vda rw", |_| vec![]), None);
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134"), "/a b\\");
    }
}
