//! Mounts of a container that come from outside: criu notes them by name and is told their sources at the restore.

use crate::rpc::ExternalMount;
use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use slipway_runtime::plan::{Delivery, Plan};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The name of all masked files: each is the null device of the host.
const NULL: &str = "/dev/null";

/// One mount from outside; its destination in the container is its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct External {
    destination: PathBuf,
    source: PathBuf,
}

/// All of a container, in the plan's order.
#[derive(Debug)]
pub(crate) struct Externals {
    mounts: Vec<External>,
    masked: Vec<PathBuf>,
}

impl Externals {
    pub(crate) fn new(plan: &Plan) -> Self {
        let mut mounts = Vec::new();
        for mount in &plan.mounts {
            let destination = mount.destination.clone();
            match &mount.delivery {
                Delivery::Bind(bind) => mounts.push(External { destination, source: bind.source.clone() }),
                Delivery::Groups { hierarchies, .. } => {
                    let one = |(name, source): &(String, PathBuf)| External {
                        destination: destination.join(name),
                        source: source.clone(),
                    };
                    mounts.extend(hierarchies.iter().map(one));
                }
                _ => {}
            }
        }
        Self { mounts, masked: plan.masked.clone() }
    }

    /// For the dump of a container whose root is open as `root`: mount points become names.
    pub(crate) fn at_dump(&self, root: &OwnedFd) -> Vec<ExternalMount> {
        let mounts = self.mounts.iter().map(|mount| {
            let place = resolve(root, &mount.destination).unwrap_or_else(|| mount.destination.clone());
            pair(&place, &mount.destination)
        });
        let file = |path: &&PathBuf| open(root, path).is_some_and(|fd| !is_directory(&fd));
        let masked = self.masked.iter().filter(file).map(|path| pair(path, Path::new(NULL)));
        mounts.chain(masked).collect()
    }

    /// For the restore: names become sources.
    pub(crate) fn at_restore(&self) -> Vec<ExternalMount> {
        let mounts = self.mounts.iter().map(|mount| pair(&mount.destination, &mount.source));
        let masked = (!self.masked.is_empty()).then(|| pair(Path::new(NULL), Path::new(NULL)));
        mounts.chain(masked).collect()
    }
}

/// Makes the mount points of a root filesystem that may be a fresh one: criu expects them. What lies on a file system of
/// the container's own comes back with that.
pub(crate) fn make_points(plan: &Plan, root: &Path) -> Result<()> {
    for (index, mount) in plan.mounts.iter().enumerate() {
        let below =
            plan.mounts[..index].iter().rev().find(|above| mount.destination.starts_with(&above.destination));
        let (base, rest) = match below.map(|above| (&above.delivery, &above.destination)) {
            None => (root.to_owned(), mount.destination.strip_prefix("/")),
            Some((Delivery::Bind(bind), above)) => {
                (bind.source.clone(), mount.destination.strip_prefix(above))
            }
            Some(_) => continue,
        };
        let rest = rest.unwrap_or(Path::new(""));
        let directory = match &mount.delivery {
            Delivery::Bind(bind) => bind.source.is_dir(),
            Delivery::Change(_) => continue,
            _ => true,
        };
        if !rest.as_os_str().is_empty() {
            make_point(&base, rest, directory)
                .with_context(|| format!("make the mount point {}", mount.destination.display()))?;
        }
    }
    Ok(())
}

/// Makes one path below `base` as if that were `/`.
fn make_point(base: &Path, path: &Path, directory: bool) -> Result<()> {
    let mut at: OwnedFd = File::open(base).with_context(|| base.display().to_string())?.into();
    let root = at.try_clone()?;
    if open(&root, path).is_some() {
        return Ok(());
    }
    let mut walked = PathBuf::new();
    let parts: Vec<_> = path.iter().collect();
    for (index, part) in parts.iter().enumerate() {
        walked.push(part);
        if let Some(there) = open(&root, &walked) {
            at = there;
            continue;
        }
        let last = index + 1 == parts.len();
        if last && !directory {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(&at, *part, flags, Mode::from_raw_mode(0o644))?;
            return Ok(());
        }
        rustix::fs::mkdirat(&at, *part, Mode::from_raw_mode(0o755))?;
        let Some(made) = open(&root, &walked) else { bail!("{} vanished", walked.display()) };
        at = made;
    }
    Ok(())
}

fn pair(key: &Path, value: &Path) -> ExternalMount {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    ExternalMount { key: text(key), val: text(value) }
}

/// `path` as if `root` were `/`; none if nothing is there.
fn open(root: &OwnedFd, path: &Path) -> Option<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).ok()
}

/// Where a path of the container really is: symlinks of the image followed. The kernel names what another mount namespace
/// has from its root on.
fn resolve(root: &OwnedFd, path: &Path) -> Option<PathBuf> {
    let opened = open(root, path)?;
    std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).ok()
}

fn is_directory(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_made_inside_the_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("real")).unwrap();
        std::os::unix::fs::symlink("/real", root.join("link")).unwrap();
        make_point(&root, Path::new("link/a/b"), true).unwrap();
        make_point(&root, Path::new("real/file"), false).unwrap();
        make_point(&root, Path::new("real/file"), false).unwrap();
        assert!(root.join("real/a/b").is_dir() && root.join("real/file").is_file());
        std::os::unix::fs::symlink("../../../..", root.join("out")).unwrap();
        make_point(&root, Path::new("out/inside"), true).unwrap();
        assert!(root.join("inside").is_dir());
    }
}
