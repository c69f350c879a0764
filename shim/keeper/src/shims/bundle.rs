//! What a shim is handed for a container (SHIM-BUN-*): a directory with `config.json`, the root file system mounted in it, the
//! fifos of its streams and of the shim's own log.
//!
//! The root file system is mounted by us and not by the shim: as an overlay of any length, the same as everywhere else, and
//! ours to take away when the shim is dead (SHIM-TSK-03).

use crate::error::{Error, Result};
use crate::foreign::write_json;
use oci_spec::runtime::Spec;
use rustix::mount::{UnmountFlags, unmount};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

/// An empty one. What a former keeper may have left there under this id is taken away.
pub(super) fn make(dir: &Path) -> Result<()> {
    let fail = |e: io::Error| Error::io("make", dir.display(), &e);
    remove(dir).map_err(fail)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir.join("rootfs")).map_err(fail)
}

pub(super) fn write(dir: &Path, spec: &Spec) -> Result<()> {
    write_json(&dir.join("config.json"), spec)
}

/// Takes it away with all that is mounted in it. Missing is success.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    let rootfs = dir.join("rootfs");
    while unmount(&rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
    if is_mounted(&rootfs) {
        // Whatever it is: not what is in there.
        return Err(io::Error::other(format!("{} cannot be unmounted", rootfs.display())));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Something else than its parent directory is there.
fn is_mounted(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| fs::symlink_metadata(path).map(|meta| meta.dev());
    match (device(path), path.parent().map(device)) {
        (Ok(own), Some(Ok(above))) => own != above,
        _ => false,
    }
}
