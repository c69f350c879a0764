//! What the mounts of a spec mean: options in mount(8)'s words become attributes, propagation and file system options.

use super::{Facts, NamespacePlan, NamespaceSource, UserPlan, clean, invalid, mapped};
use crate::Result;
use crate::host::CgroupLayout;
use crate::idmap::IdMappings;
use crate::namespace::NamespaceKind;
use crate::sys::raw::MountAttr;
use oci_spec::runtime::Mount;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const MS_UNBINDABLE: u64 = libc::MS_UNBINDABLE;
const MS_PRIVATE: u64 = libc::MS_PRIVATE;
const MS_SLAVE: u64 = libc::MS_SLAVE;
const MS_SHARED: u64 = libc::MS_SHARED;

/// MS_* of mount(2), and whether for all below.
pub type Propagation = (u64, bool);

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
    /// A file system of the host's own making (ext4, overlay, nfs, …), mounted by the parent.
    Foreign(FreshPlan),
    /// A tmpfs that begins as a copy of what the root filesystem has there (`tmpcopyup`), made by the parent.
    CopyUp(FreshPlan),
    /// `remount`: other attributes for what is mounted there already.
    Change(MountAttr),
    /// The usual version 1 tree: a tmpfs with a bind of the container's own group of each hierarchy.
    Groups { hierarchies: Vec<(String, PathBuf)>, readonly: bool },
}

impl Delivery {
    /// What was asked for it.
    pub(super) fn propagation(&self) -> Option<Propagation> {
        match self {
            Self::Bind(plan) => plan.propagation,
            Self::Fresh(plan) | Self::Foreign(plan) | Self::CopyUp(plan) => plan.propagation,
            Self::Change(_) | Self::Groups { .. } => None,
        }
    }
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
    /// None keeps the copy apart from the host (private).
    pub propagation: Option<Propagation>,
    /// The source must be procfs, as it goes on /proc (CVE-2019-19921).
    pub procfs: bool,
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
    pub propagation: Option<Propagation>,
}

/// What a mount may depend on.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) facts: &'a Facts<'a>,
    pub(super) cgroup_path: &'a str,
    pub(super) namespaces: &'a [NamespacePlan],
    pub(super) user: Option<&'a UserPlan>,
    /// SELinux label for file systems made for the container.
    pub(super) label: Option<&'a str>,
}

pub(super) fn plan(mounts: &[Mount], context: &Context<'_>) -> Result<Vec<MountPlan>> {
    mounts.iter().map(|mount| one(mount, context)).collect()
}

fn one(mount: &Mount, context: &Context<'_>) -> Result<MountPlan> {
    // OCI: a relative path is deprecated and means one below the root.
    let destination = clean(&Path::new("/").join(mount.destination()), "mounts.destination")?;
    let options = Options::parse(mount.options().as_deref().unwrap_or_default())?;
    let fstype = mount.typ().as_deref().unwrap_or("none");
    refuse_destination(&destination, &options, fstype)?;
    let is_bind = !options.remount && (options.bind || fstype == "bind");
    let idmap = mapped::idmap(mount, options.idmap, is_bind, context.user)?;
    if options.copy_up && fstype != "tmpfs" {
        return Err(invalid("mounts.options", format!("tmpcopyup is for tmpfs, not for {fstype}")));
    }
    let delivery = if options.remount {
        Delivery::Change(change_of(&destination, &options)?)
    } else if is_bind {
        Delivery::Bind(BindPlan { idmap, ..bind(mount, &destination, &options, context.facts.bundle)? })
    } else if fstype == "cgroup" || fstype == "cgroup2" {
        groups(&options, context)
    } else if let Some(bind) = mapped::in_place_of(fstype, options.attributes, options.propagation, context) {
        Delivery::Bind(bind)
    } else {
        mapped::owners(fresh(mount, fstype, options, context.label)?, &destination, context.user)?
    };
    Ok(MountPlan { destination, delivery })
}

/// `remount` reaches the mount's own flags; what belongs to the file system was set when it was made.
fn change_of(destination: &Path, options: &Options) -> Result<MountAttr> {
    if let Some((key, _)) = options.data.first() {
        let what = format!("{key}: a remount of {} changes flags only", destination.display());
        return Err(super::unsupported("mounts.options", &what).hint("give the option where it is mounted"));
    }
    Ok(options.attributes)
}

/// Nothing goes over procfs but files that exist to be covered (lxcfs), and nothing over the root.
fn refuse_destination(destination: &Path, options: &Options, fstype: &str) -> Result<()> {
    const COVERABLE: [&str; 11] = [
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
        "slabinfo",
        "net/dev",
        "sys/kernel/ns_last_pid",
        "sys/crypto/fips_enabled",
    ];
    let shown = destination.display();
    if options.remount {
        return Ok(());
    }
    if destination == Path::new("/") {
        return Err(invalid("mounts.destination", "/ is the root filesystem's place"));
    }
    if destination == Path::new("/proc") && !options.bind && !matches!(fstype, "proc" | "bind") {
        return Err(invalid("mounts.destination", format!("/proc is procfs, {fstype} cannot be there")));
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

fn bind(mount: &Mount, destination: &Path, options: &Options, bundle: &Path) -> Result<BindPlan> {
    let source = mount.source().as_ref().filter(|path| !path.as_os_str().is_empty());
    let shown = destination.display();
    let source = source.ok_or_else(|| invalid("mounts.source", format!("the bind on {shown} names none")))?;
    if source.as_os_str().as_bytes().contains(&0) {
        return Err(invalid("mounts.source", format!("{source:?} contains a NUL byte")));
    }
    // The kernel ignores options of file systems here; a word that is none may be a flag misspelt.
    let meaningless = |(key, value): &&(String, Option<String>)| {
        value.is_none() && !is_for_programs(key) && !OF_FILE_SYSTEMS.contains(&key.as_str())
    };
    if let Some((key, _)) = options.data.iter().find(meaningless) {
        return Err(invalid("mounts.options", format!("{key} means nothing for the bind on {shown}")));
    }
    Ok(BindPlan {
        source: bundle.join(source),
        recursive: options.recursive,
        attributes: options.attributes,
        recursive_attributes: options.recursive_attributes,
        propagation: options.propagation,
        procfs: destination == Path::new("/proc"),
        idmap: None,
    })
}

/// Words of fstab(5) for programs, not for the kernel.
fn is_for_programs(key: &str) -> bool {
    matches!(key, "_netdev" | "nofail" | "user" | "users" | "owner" | "group")
        || key.starts_with("x-")
        || key.starts_with("X-")
        || key == "comment"
}

fn fresh(mount: &Mount, fstype: &str, options: Options, label: Option<&str>) -> Result<Delivery> {
    /// Instances of the container's own namespaces.
    const OWN: [&str; 9] =
        ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "ramfs", "hugetlbfs", "securityfs", "tracefs"];
    /// Those that keep SELinux labels in memory, one for all files; that of mqueue is for its root (see `Builder::fresh`).
    const LABELLED: [&str; 5] = ["tmpfs", "devpts", "ramfs", "hugetlbfs", "mqueue"];
    if matches!(fstype, "none" | "") {
        let shown = mount.destination().display();
        let hint = "a bind mount has `bind` or `rbind` among its options";
        return Err(invalid("mounts.type", format!("the mount on {shown} has none")).hint(hint));
    }
    let source = mount.source().as_ref().map_or_else(|| fstype.to_owned(), |path| path.display().to_string());
    if fstype.contains('\0') || source.contains('\0') {
        return Err(invalid("mounts.source", "source or type contains a NUL byte"));
    }
    let mut data: Vec<_> = options.data.into_iter().filter(|(key, _)| !is_for_programs(key)).collect();
    if let Some(label) = label.filter(|_| LABELLED.contains(&fstype)) {
        data.push(("context".to_owned(), Some(label.to_owned())));
    }
    // A new instance has nothing below it: `rro` is `ro`.
    let mut attributes = options.attributes;
    change(&mut attributes, options.recursive_attributes.set, options.recursive_attributes.clear);
    let plan = FreshPlan {
        fstype: fstype.to_owned(),
        source,
        options: data,
        attributes: attributes.set,
        propagation: options.propagation,
    };
    Ok(match fstype {
        _ if options.copy_up => Delivery::CopyUp(plan),
        fstype if OWN.contains(&fstype) => Delivery::Fresh(plan),
        _ => Delivery::Foreign(plan),
    })
}

fn groups(options: &Options, context: &Context<'_>) -> Delivery {
    let Context { facts, cgroup_path, namespaces, .. } = *context;
    let readonly = options.attributes.set & libc::MOUNT_ATTR_RDONLY != 0;
    if !facts.host.makes_groups && facts.host.cgroups == CgroupLayout::V1 {
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
            procfs: false,
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
        procfs: false,
        idmap: None,
    })
}

/// Whether the last word on /sys/fs/cgroup is a mount of control groups that can be written.
pub(super) fn writes_groups(mounts: &[Mount]) -> bool {
    let there = |mount: &&Mount| mount.destination() == Path::new("/sys/fs/cgroup");
    let last = mounts.iter().rfind(there);
    let readonly =
        |mount: &Mount| mount.options().iter().flatten().any(|option| matches!(&**option, "ro" | "rro"));
    last.is_some_and(|mount| matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2")) && !readonly(mount))
}

/// Propagation words of mount(8) and of `linux.rootfsPropagation`: MS_* and whether for all below.
pub(super) fn propagation(word: &str) -> Result<Propagation> {
    propagation_word(word).ok_or_else(|| invalid("linux.rootfsPropagation", format!("{word} is unknown")))
}

fn propagation_word(word: &str) -> Option<Propagation> {
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
    remount: bool,
    copy_up: bool,
    /// Asked for, and whether for all below.
    idmap: Option<bool>,
    attributes: MountAttr,
    recursive_attributes: MountAttr,
    propagation: Option<Propagation>,
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
            "defaults" | "auto" | "noauto" | "nouser" => {}
            word if WITHOUT_EFFECT.contains(&word) => {}
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            word if OF_FILE_SYSTEMS.contains(&word) => self.data.push((word.to_owned(), None)),
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

/// Words of the specification's table (config.md, "Linux mount options") that say the default, or what has no effect on
/// the kernels we run on.
const WITHOUT_EFFECT: [&str; 10] =
    ["async", "nomand", "mand", "loud", "silent", "iversion", "noiversion", "nolazytime", "acl", "noacl"];

/// Flags of the whole file system: they go where its options go.
const OF_FILE_SYSTEMS: [&str; 3] = ["sync", "dirsync", "lazytime"];

/// Mount options that mean something here whatever the file system is.
pub fn known_options() -> Vec<String> {
    let plain = ["defaults", "bind", "rbind", "remount", "tmpcopyup"].into_iter();
    let plain = plain.chain(WITHOUT_EFFECT).chain(OF_FILE_SYSTEMS).map(str::to_owned);
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
    let mut all: Vec<String> = plain.chain(words).collect();
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
            let of_file_systems = OF_FILE_SYSTEMS.contains(&word.as_str());
            assert_eq!(parse(&[&word]).data.is_empty(), !of_file_systems, "{word}");
        }
    }

    /// The table of config.md, "Linux mount options", word by word, beside the two that need a user namespace.
    #[test]
    fn every_word_of_the_specification_is_known() {
        let all = "async atime bind defaults dev diratime dirsync exec iversion lazytime loud noatime nodev nodiratime \
                   noexec noiversion nolazytime norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev \
                   rdiratime relatime remount rexec rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime \
                   rnosuid rnosymfollow ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow \
                   runbindable rw shared silent slave strictatime suid symfollow sync tmpcopyup unbindable";
        let known = known_options();
        for word in all.split_whitespace() {
            assert!(known.iter().any(|known| known == word), "{word}");
        }
    }

    #[test]
    fn nothing_goes_into_procfs() {
        let refuse = |path, fstype| refuse_destination(Path::new(path), &parse(&[]), fstype);
        assert!(refuse("/proc", "proc").is_ok());
        assert!(refuse("/proc", "tmpfs").is_err());
        assert!(refuse("/proc/meminfo", "bind").is_ok());
        assert!(refuse("/process", "tmpfs").is_ok());
        assert!(refuse("/proc/self/attr", "bind").is_err());
        assert!(refuse("/", "tmpfs").is_err());
    }
}
