//! One overlay mount by the new mount API: a layer per call, no page-size limit, nothing visible on the host.

use super::layers::Layers;
use super::{Overlay, clone_directory, legacy};
use crate::error::Kind;
use crate::sys::mount;
use crate::{Error, Result};
use rustix::fs::{Mode, OFlags, open};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// fsconfig(2) takes strings of at most 255 bytes.
const LONGEST_VALUE: usize = 255;
/// The kernel's own limit on lower layers.
const MOST_LAYERS: usize = 500;

/// Mounts `overlay` detached: the descriptor is the mount, closing it is the unmount. For reading
/// `/etc/passwd` of an image (open below it with [`super::open_in_root`]) and for launching.
pub fn mount_overlay(overlay: &Overlay) -> Result<OwnedFd> {
    mount_for(overlay, None)
}

/// The same; see [`super::mount_root`].
pub(super) fn mount_for(overlay: &Overlay, user: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    check(overlay)?;
    let layers = Layers::of(overlay, user)?;
    if let ([only], None) = (overlay.lower.as_slice(), &overlay.upper) {
        // The kernel refuses an overlay of one layer; a read-only view of it is the same.
        return clone_directory(only, true, layers.user());
    }
    if let ([], Some(upper)) = (overlay.lower.as_slice(), &overlay.upper) {
        return clone_directory(upper, false, None);
    }
    forget_volatile_mark(overlay);
    mount_some_way(overlay, &layers)?.map_err(|e| explain(overlay, e))
}

/// One layer per call where the kernel takes that. The outer error is of a layer, the inner of the mount.
fn mount_some_way(overlay: &Overlay, layers: &Layers) -> Result<io::Result<OwnedFd>> {
    // Before 6.15 overlayfs takes no mount that is in no mount namespace, as id-mapped layers are.
    static REFUSES_DETACHED: AtomicBool = AtomicBool::new(false);
    let old_way = layers.are_mapped() && REFUSES_DETACHED.load(Ordering::Relaxed);
    if old_way || !legacy::takes_layers_one_by_one() {
        return Ok(legacy::mount(overlay, layers));
    }
    match mount(overlay, layers)? {
        Err(e) if layers.are_mapped() && e.raw_os_error() == Some(libc::EINVAL) => {
            // The try has left one.
            forget_volatile_mark(overlay);
            let mounted = legacy::mount(overlay, layers);
            REFUSES_DETACHED.fetch_or(mounted.is_ok(), Ordering::Relaxed);
            Ok(mounted)
        }
        mounted => Ok(mounted),
    }
}

/// The outer error is of a layer, the inner of the mount.
fn mount(overlay: &Overlay, layers: &Layers) -> Result<io::Result<OwnedFd>> {
    let mut long = Vec::new();
    let mut options = Vec::new();
    let mapped = layers.mapped();
    for (number, lower) in overlay.lower.iter().enumerate() {
        let value = match mapped.get(number) {
            Some(layer) => short_name(layer),
            None => value(lower, &mut long)?,
        };
        options.push(("lowerdir+", value));
    }
    if let (Some(upper), Some(work)) = (&overlay.upper, &overlay.work) {
        options.push(("upperdir", value(upper, &mut long)?));
        options.push(("workdir", value(work, &mut long)?));
    }
    let mut options: Vec<_> = options.iter().map(|(key, value)| (*key, Some(value.as_str()))).collect();
    if overlay.volatile && overlay.upper.is_some() {
        options.push(("volatile", None));
    }
    if let Some(label) = &overlay.label {
        options.push(("context", Some(label)));
    }
    Ok(mount::fresh("overlay", &options, 0))
}

fn check(overlay: &Overlay) -> Result<()> {
    let refuse = |what: &str| Err(Error::new(Kind::Invalid, "mount the overlay", what));
    if overlay.upper.is_some() != overlay.work.is_some() {
        return refuse("an upper directory needs a work directory, and the other way round");
    }
    if overlay.lower.is_empty() && overlay.upper.is_none() {
        return refuse("it has no layer at all");
    }
    if overlay.lower.len() > MOST_LAYERS {
        return refuse("it has more than 500 layers");
    }
    for directory in overlay.lower.iter().chain(&overlay.upper).chain(&overlay.work) {
        if !directory.is_dir() {
            let what = directory.display().to_string();
            let error = Error::new(Kind::NotFound, "mount the overlay", what);
            return Err(error.hint("the layer directory is missing: pull or unpack the image again"));
        }
    }
    Ok(())
}

/// The path itself if it fits, else a short name for it by a descriptor, kept open in `long` until the mount is made.
fn value(path: &Path, long: &mut Vec<OwnedFd>) -> Result<String> {
    if let Some(text) = path.to_str().filter(|text| text.len() <= LONGEST_VALUE) {
        return Ok(text.to_owned());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = open(path, flags, Mode::empty());
    let fd = opened.map_err(|e| Error::sys("open a layer", path.display().to_string(), e))?;
    let short = short_name(&fd);
    long.push(fd);
    Ok(short)
}

fn short_name(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A volatile mount leaves a mark by which the kernel refuses the next one, since a crash may have lost writes between
/// them. For a container's writable layer that is accepted, and a create that failed may be tried again.
fn forget_volatile_mark(overlay: &Overlay) {
    if let Some(work) = overlay.work.as_ref().filter(|_| overlay.volatile) {
        let _ = std::fs::remove_dir_all(work.join("work/incompat/volatile"));
    }
}

fn explain(overlay: &Overlay, source: io::Error) -> Error {
    let shown = match (&overlay.upper, overlay.lower.first()) {
        (Some(upper), _) => format!("{} layers, upper {}", overlay.lower.len(), upper.display()),
        (None, Some(first)) => format!("{} layers, topmost {}", overlay.lower.len(), first.display()),
        (None, None) => "no layers".to_owned(),
    };
    let hint = match source.raw_os_error() {
        Some(libc::EBUSY) => "upper or work is in use by another overlay",
        Some(libc::EINVAL) if overlay.idmap.is_some() => {
            let hint = "id-mapped layers need Linux 5.19, and on some file systems a newer one: see the kernel log, or run the container without a user namespace";
            return Error::sys("mount the overlay", shown, source).with_kind(Kind::Unsupported).hint(hint);
        }
        Some(libc::EINVAL) => {
            "see the kernel log: upper may be on a file system that cannot hold one (overlay itself, NFS)"
        }
        Some(libc::ENODEV) => "this kernel has no overlayfs",
        Some(libc::ESTALE) => "a layer was changed while mounted",
        _ => return Error::sys("mount the overlay", shown, source),
    };
    Error::sys("mount the overlay", shown, source).hint(hint)
}
