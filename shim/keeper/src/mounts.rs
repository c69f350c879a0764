//! Root filesystems of other kinds than one overlay or one directory, which [`crate::prepare`] leaves to the runtime: the
//! client's mounts, each on what the former ones show, at `<bundle>/rootfs` where the client looks for them
//! (SHIM-TSK-01, SHIM-MNT-01, SHIM-MNT-03).
//!
//! These are the only mounts that we make in the host's own mount namespace. Their container's record says that they are
//! there; its removal, and the `delete` action, take them away.

use crate::error::{Error, Result};
use crate::prepare;
use containerd_shim_protos::api::Mount;
use rustix::fd::OwnedFd;
use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};
use slipway_runtime::rootfs;
use slipway_runtime::sys::mount;
use slipway_runtime::sys::raw::MountAttr;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Mounts them all; on error none of them stays. Blocks.
pub(crate) fn mount_all(mounts: &[Mount], bundle: &Path) -> Result<()> {
    let root = place(bundle);
    std::fs::create_dir_all(&root).map_err(|e| Error::io("make", root.display(), &e))?;
    let done = mounts.iter().enumerate().try_for_each(|(number, mount)| {
        let step = |error: Error| error.within(&format!("rootfs: mount {} of {}", number + 1, mounts.len()));
        mount_one(mount, &root).map_err(step)
    });
    done.inspect_err(|_| unmount_all(bundle))
}

/// What is mounted there, and all below it. Nothing is success. Blocks.
pub(crate) fn unmount_all(bundle: &Path) {
    while unmount(place(bundle), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
}

fn place(bundle: &Path) -> PathBuf {
    bundle.join("rootfs")
}

fn mount_one(asked: &Mount, root: &Path) -> Result<()> {
    let tree = if asked.type_ == "overlay" {
        rootfs::mount_overlay(&prepare::overlay(&asked.options)?)?
    } else {
        detached(asked, &Options::parse(&asked.options)?)?
    };
    // Where it goes is looked for in what is mounted already: a link there leads nowhere else.
    let place = match asked.target.trim_start_matches('/') {
        "" => root.to_owned(),
        target => rootfs::directory_in_root(root, Path::new(target))?,
    };
    Ok(rootfs::attach(&tree, &place)?)
}

/// A file system, or a copy of a directory's tree, mounted nowhere yet.
fn detached(asked: &Mount, options: &Options) -> Result<OwnedFd> {
    let fail = |error: io::Error| explain(asked, &error);
    if let Some(recursive) = options.bind.or((asked.type_ == "bind").then_some(false)) {
        let source =
            CString::new(Path::new(&asked.source).as_os_str().as_bytes()).map_err(|e| fail(e.into()))?;
        let tree = mount::clone_path(&source, recursive).map_err(fail)?;
        let attributes = MountAttr { set: u64::from(options.attributes.bits()), ..MountAttr::default() };
        mount::set_attributes(&tree, recursive, &attributes).map_err(fail)?;
        return Ok(tree);
    }
    let mut all = vec![("source", Some(asked.source.as_str()))];
    all.extend(options.data.iter().map(|(key, value)| (key.as_str(), value.as_deref())));
    mount::fresh(&asked.type_, &all, u64::from(options.attributes.bits())).map_err(fail)
}

fn explain(asked: &Mount, error: &io::Error) -> Error {
    let text = format!("{} from {}: {error}", asked.type_, asked.source);
    match error.kind() {
        // Of the type; a missing device is ENXIO or ENOENT.
        _ if error.raw_os_error() == Some(19) => {
            Error::unimplemented(format!("{text}; this kernel has no such file system"))
        }
        io::ErrorKind::NotFound => Error::not_found(text),
        io::ErrorKind::InvalidInput => {
            Error::invalid(format!("{text}; an option may be unknown, see the kernel's log"))
        }
        _ => Error::internal(text),
    }
}

/// What a mount's options mean, in mount(8)'s words.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    /// True: with all that is mounted below.
    bind: Option<bool>,
    attributes: MountAttrFlags,
    /// For the file system.
    data: Vec<(String, Option<String>)>,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self { bind: None, attributes: MountAttrFlags::empty(), data: Vec::new() };
        for word in words {
            match word.as_str() {
                "bind" => options.bind = Some(options.bind.unwrap_or_default()),
                "rbind" => options.bind = Some(true),
                "" | "defaults" | "rw" | "suid" | "dev" | "exec" | "async" | "atime" | "relatime" => {}
                // The file system is told too: its device may be one that cannot be written to.
                "ro" => {
                    options.attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
                    options.data.push(("ro".into(), None));
                }
                word => match attribute(word) {
                    Some(attribute) => options.attributes |= attribute,
                    None => options.data.extend(datum(word)?),
                },
            }
        }
        Ok(options)
    }
}

fn attribute(word: &str) -> Option<MountAttrFlags> {
    Some(match word {
        "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
        "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
        "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
        "noatime" => MountAttrFlags::MOUNT_ATTR_NOATIME,
        "strictatime" => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
        "nodiratime" => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
        _ => return None,
    })
}

/// Key and value for the file system; nothing for what is a comment to mount(8).
fn datum(word: &str) -> Result<Option<(String, Option<String>)>> {
    let (key, value) = match word.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (word, None),
    };
    match key {
        "loop" => Err(Error::unimplemented(
            "option loop: files are not put on loop devices; have containerd's mount manager do that (2.2 and later), or use another snapshotter",
        )),
        "uidmap" | "gidmap" => Err(Error::unimplemented(format!("option {key}: only overlays are mapped"))),
        _ if key.starts_with("X-containerd.") => {
            Err(Error::unimplemented(format!("option {key}: it is for containerd's mount manager")))
        }
        _ if key.starts_with("x-") || key.starts_with("X-") => Ok(None),
        _ => Ok(Some((key.into(), value))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &str) -> Result<Options> {
        Options::parse(&words.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_mounts_or_file_systems() {
        // SHIM-MNT-01
        let options = of("rbind,ro,nosuid,defaults,x-systemd.automount").unwrap();
        let both = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
        assert_eq!((options.bind, options.attributes), (Some(true), both));
        let options = of("bind,rw,noatime").unwrap();
        assert_eq!((options.bind, options.attributes), (Some(false), MountAttrFlags::MOUNT_ATTR_NOATIME));
        assert_eq!(options.data, []);
        let options = of("subvol=a=b,discard").unwrap();
        assert_eq!(options.data, [("subvol".into(), Some("a=b".into())), ("discard".into(), None)]);
        assert_eq!(options.bind, None);
        for words in ["loop", "ro,loop", "uidmap=0:1:2", "X-containerd.mkdir.path=/x"] {
            assert_eq!(of(words).unwrap_err().code(), ttrpc::Code::UNIMPLEMENTED, "{words}");
        }
    }
}
