//! What the mounts of a spec mean: options in mount(8)'s words become attributes, propagation and file system options.

use super::{Facts, NamespacePlan, NamespaceSource, UserPlan, clean, invalid, mapped};
use crate::Result;
use crate::host::CgroupLayout;
use crate::idmap::IdMappings;
use crate::namespace::NamespaceKind;
use crate::sys::raw::MountAttr;
use oci_spec::runtime::Mount;
use std::path::{Path, PathBuf};

const MS_UNBINDABLE: u64 = libc::MS_UNBINDABLE;
const MS_PRIVATE: u64 = libc::MS_PRIVATE;
const MS_SLAVE: u64 = libc::MS_SLAVE;
const MS_SHARED: u64 = libc::MS_SHARED;

/// One mount of the container, in spec order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPlan {
    /// Cleaned, absolute, inside the container.
    pub destination: PathBuf,
    pub delivery: Delivery,
}

/// How a mount comes to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// A detached copy of a tree of the host, made by the parent.
    Bind(BindPlan),
    /// A new file system instance, made by the child in its own namespaces.
    Fresh(FreshPlan),
    /// The usual version 1 tree: a tmpfs with a bind of the container's own group of each hierarchy.
    Groups { hierarchies: Vec<(String, PathBuf)>, readonly: bool },
}

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindPlan {
    pub source: PathBuf,
    pub recursive: bool,
    /// For this mount alone, applied first.
    pub attributes: MountAttr,
    /// For it and all below (`rro`, `rnosuid`, …).
    pub recursive_attributes: MountAttr,
    /// MS_* and whether for all below; none keeps the copy apart from the host (private).
    pub propagation: Option<(u64, bool)>,
    pub idmap: Option<IdmapPlan>,
}

/// Other owners for the files of a bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdmapPlan {
    pub mappings: IdMappings,
    /// For what is mounted below, too.
    pub recursive: bool,
}

/// A file system instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreshPlan {
    pub fstype: String,
    pub source: String,
    pub options: Vec<(String, Option<String>)>,
    pub attributes: u64,
    pub propagation: Option<(u64, bool)>,
}

/// What a mount may depend on.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) facts: &'a Facts<'a>,
    pub(super) cgroup_path: &'a str,
    pub(super) namespaces: &'a [NamespacePlan],
    pub(super) user: Option<&'a UserPlan>,
}

pub(super) fn plan(mounts: &[Mount], context: &Context<'_>) -> Result<Vec<MountPlan>> {
    mounts.iter().map(|mount| one(mount, context)).collect()
}

fn one(mount: &Mount, context: &Context<'_>) -> Result<MountPlan> {
    let destination = clean(mount.destination(), "mounts.destination")?;
    refuse_destination(&destination)?;
    let options = Options::parse(mount.options().as_deref().unwrap_or_default())?;
    let fstype = mount.typ().as_deref().unwrap_or("none");
    let is_bind = options.bind || fstype == "bind";
    let idmap = mapped::idmap(mount, options.idmap, is_bind, context.user)?;
    let delivery = if is_bind {
        Delivery::Bind(BindPlan { idmap, ..bind(mount, &options, context.facts.bundle)? })
    } else if fstype == "cgroup" || fstype == "cgroup2" {
        groups(&options, context)
    } else if let Some(bind) = mapped::in_place_of(fstype, options.attributes, options.propagation, context) {
        Delivery::Bind(bind)
    } else {
        mapped::check_owners(&options.data, destination.display(), context.user)?;
        Delivery::Fresh(fresh(mount, fstype, options)?)
    };
    Ok(MountPlan { destination, delivery })
}

/// Nothing goes over procfs but files that exist to be covered (lxcfs), and nothing over the root.
fn refuse_destination(destination: &Path) -> Result<()> {
    const COVERABLE: [&str; 9] = [
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
        "slabinfo",
        "sys/kernel/ns_last_pid",
    ];
    let shown = destination.display();
    if destination == Path::new("/") {
        return Err(invalid("mounts.destination", "/ is the root filesystem's place"));
    }
    match destination.strip_prefix("/proc") {
        Ok(below)
            if below.as_os_str().is_empty() || COVERABLE.iter().any(|name| below == Path::new(name)) =>
        {
            Ok(())
        }
        Ok(_) => Err(invalid("mounts.destination", format!("{shown} is inside /proc"))),
        Err(_) => Ok(()),
    }
}

fn bind(mount: &Mount, options: &Options, bundle: &Path) -> Result<BindPlan> {
    let source = mount.source().as_ref().filter(|path| !path.as_os_str().is_empty());
    let shown = mount.destination().display().to_string();
    let source = source.ok_or_else(|| invalid("mounts.source", format!("the bind on {shown} names none")))?;
    if let Some((key, _)) = options.data.first() {
        return Err(invalid("mounts.options", format!("{key} means nothing for the bind on {shown}")));
    }
    Ok(BindPlan {
        source: bundle.join(source),
        recursive: options.recursive,
        attributes: options.attributes,
        recursive_attributes: options.recursive_attributes,
        propagation: options.propagation,
        idmap: None,
    })
}

fn fresh(mount: &Mount, fstype: &str, options: Options) -> Result<FreshPlan> {
    let known = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "ramfs", "hugetlbfs", "securityfs", "tracefs"];
    if !known.contains(&fstype) {
        let hint = "bind-mount it from the host instead";
        return Err(invalid("mounts.type", format!("{fstype} cannot be mounted by a container")).hint(hint));
    }
    if options.recursive_attributes != MountAttr::default() {
        return Err(invalid("mounts.options", "recursive attributes are for bind mounts"));
    }
    let source = mount.source().as_ref().map_or_else(|| fstype.to_owned(), |path| path.display().to_string());
    Ok(FreshPlan {
        fstype: fstype.to_owned(),
        source,
        options: options.data,
        attributes: options.attributes.set,
        propagation: options.propagation,
    })
}

fn groups(options: &Options, context: &Context<'_>) -> Delivery {
    let Context { facts, cgroup_path, namespaces, user } = *context;
    let readonly = options.attributes.set & libc::MOUNT_ATTR_RDONLY != 0;
    if user.is_some_and(|user| user.ordinary) && facts.host.cgroups == CgroupLayout::V1 {
        // No group of its own, and none of the host's that it could change.
        let attributes = options.attributes;
        let (recursive_attributes, propagation) =
            (MountAttr { set: attributes.set, ..MountAttr::default() }, None);
        let source = PathBuf::from("/sys/fs/cgroup");
        return Delivery::Bind(BindPlan {
            source,
            recursive: true,
            attributes,
            recursive_attributes,
            propagation,
            idmap: None,
        });
    }
    if facts.host.cgroups == CgroupLayout::V1 {
        let below = cgroup_path.trim_start_matches('/');
        let own = |h: &crate::host::Hierarchy| (h.name.clone(), h.path.join(below));
        return Delivery::Groups { hierarchies: facts.host.hierarchies.iter().map(own).collect(), readonly };
    }
    let new = |n: &NamespacePlan| n.kind == NamespaceKind::Cgroup && n.source == NamespaceSource::New;
    let attributes = options.attributes;
    if namespaces.iter().any(new) {
        return Delivery::Fresh(FreshPlan {
            fstype: "cgroup2".to_owned(),
            source: "cgroup".to_owned(),
            options: Vec::new(),
            attributes: attributes.set,
            propagation: None,
        });
    }
    // In the host's cgroup namespace a mount of cgroup2 would show every group of the node: its own is enough.
    Delivery::Bind(BindPlan {
        source: Path::new("/sys/fs/cgroup").join(cgroup_path.trim_start_matches('/')),
        recursive: false,
        attributes,
        recursive_attributes: MountAttr::default(),
        propagation: None,
        idmap: None,
    })
}

/// Propagation words of mount(8) and of `linux.rootfsPropagation`: MS_* and whether for all below.
pub(super) fn propagation(word: &str) -> Result<(u64, bool)> {
    propagation_word(word).ok_or_else(|| invalid("linux.rootfsPropagation", format!("{word} is unknown")))
}

fn propagation_word(word: &str) -> Option<(u64, bool)> {
    Some(match word {
        "private" => (MS_PRIVATE, false),
        "rprivate" => (MS_PRIVATE, true),
        "slave" => (MS_SLAVE, false),
        "rslave" => (MS_SLAVE, true),
        "shared" => (MS_SHARED, false),
        "rshared" => (MS_SHARED, true),
        "unbindable" => (MS_UNBINDABLE, false),
        "runbindable" => (MS_UNBINDABLE, true),
        _ => return None,
    })
}

/// Mount options, sorted by what they are for.
#[derive(Default)]
struct Options {
    bind: bool,
    recursive: bool,
    /// Asked for, and whether for all below.
    idmap: Option<bool>,
    attributes: MountAttr,
    recursive_attributes: MountAttr,
    propagation: Option<(u64, bool)>,
    data: Vec<(String, Option<String>)>,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for word in words {
            if word.contains('\0') {
                return Err(invalid("mounts.options", "contains a NUL byte"));
            }
            options.take(word);
        }
        Ok(options)
    }

    fn take(&mut self, word: &str) {
        match word {
            "defaults" | "async" | "nomand" | "mand" | "loud" | "silent" | "auto" | "noauto" | "nouser" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            _ => self.take_attribute(word),
        }
    }

    fn take_attribute(&mut self, word: &str) {
        if let Some(propagation) = propagation_word(word) {
            self.propagation = Some(propagation);
        } else if let Some((set, clear)) = attribute(word) {
            change(&mut self.attributes, set, clear);
        } else if let Some((set, clear)) = word.strip_prefix('r').and_then(attribute) {
            change(&mut self.recursive_attributes, set, clear);
        } else {
            let (key, value) = word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
            self.data.push((key.to_owned(), value.map(str::to_owned)));
        }
    }
}

/// The later word wins, as with mount(8).
fn change(attr: &mut MountAttr, set: u64, clear: u64) {
    attr.set = attr.set & !clear | set;
    attr.clear = attr.clear & !set | clear;
}

/// Mount options that mean something here whatever the file system is.
pub fn known_options() -> Vec<String> {
    let plain = ["defaults", "bind", "rbind"].map(str::to_owned);
    let propagations = ["private", "slave", "shared", "unbindable"];
    let attributes = [
        "ro",
        "rw",
        "nosuid",
        "suid",
        "nodev",
        "dev",
        "noexec",
        "exec",
        "nodiratime",
        "diratime",
        "nosymfollow",
        "symfollow",
        "relatime",
        "norelatime",
        "atime",
        "noatime",
        "strictatime",
        "nostrictatime",
    ];
    let both = |word: &&str| [(*word).to_owned(), format!("r{word}")];
    let words = propagations.iter().chain(&attributes).flat_map(both);
    let mut all: Vec<String> = plain.into_iter().chain(words).collect();
    all.sort_unstable();
    all
}

/// (set, clear) of one word, mount_setattr(2).
fn attribute(word: &str) -> Option<(u64, u64)> {
    const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
    Some(match word {
        "ro" => (libc::MOUNT_ATTR_RDONLY, 0),
        "rw" => (0, libc::MOUNT_ATTR_RDONLY),
        "nosuid" => (libc::MOUNT_ATTR_NOSUID, 0),
        "suid" => (0, libc::MOUNT_ATTR_NOSUID),
        "nodev" => (libc::MOUNT_ATTR_NODEV, 0),
        "dev" => (0, libc::MOUNT_ATTR_NODEV),
        "noexec" => (libc::MOUNT_ATTR_NOEXEC, 0),
        "exec" => (0, libc::MOUNT_ATTR_NOEXEC),
        "nodiratime" => (libc::MOUNT_ATTR_NODIRATIME, 0),
        "diratime" => (0, libc::MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, 0),
        "symfollow" => (0, libc::MOUNT_ATTR_NOSYMFOLLOW),
        "relatime" | "atime" | "nostrictatime" => (libc::MOUNT_ATTR_RELATIME, ATIME),
        "noatime" => (libc::MOUNT_ATTR_NOATIME, ATIME),
        "strictatime" | "norelatime" => (libc::MOUNT_ATTR_STRICTATIME, ATIME),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Options {
        Options::parse(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn sorts_options_by_what_they_are_for() {
        let options = parse(&["rbind", "rslave", "ro", "rro", "noexec", "exec", "size=1k", "huge"]);
        assert!(options.bind && options.recursive);
        assert_eq!(options.propagation, Some((MS_SLAVE, true)));
        assert_eq!(options.attributes.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.attributes.clear, libc::MOUNT_ATTR_NOEXEC);
        assert_eq!(options.recursive_attributes.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.data, [("size".into(), Some("1k".into())), ("huge".into(), None)]);
    }

    #[test]
    fn every_known_option_is_taken_for_what_it_is() {
        for word in known_options() {
            assert!(parse(&[&word]).data.is_empty(), "{word}");
        }
    }

    #[test]
    fn nothing_goes_into_procfs() {
        assert!(refuse_destination(Path::new("/proc")).is_ok());
        assert!(refuse_destination(Path::new("/proc/meminfo")).is_ok());
        assert!(refuse_destination(Path::new("/process")).is_ok());
        assert!(refuse_destination(Path::new("/proc/self/attr")).is_err());
    }
}
