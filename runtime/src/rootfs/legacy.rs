//! Overlay mounts on kernels whose overlayfs does not take one layer per call (before 6.8): mount(2) with one option
//! string, made short enough for its one page, in a mount namespace that nobody else sees and that is gone at once.

use super::Overlay;
use super::layers::Layers;
use crate::sys::namespace;
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{FsOpenFlags, MountFlags, fsconfig_set_flag, fsconfig_set_string, fsopen};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

/// Whether overlayfs knows `lowerdir+`. Asked once.
pub(super) fn takes_layers_one_by_one() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let Ok(context) = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) else { return true };
        // Before 6.5 every key is taken, whatever it is, and read only at the mount itself.
        fsconfig_set_flag(&context, "slipway-no-such-option").is_err()
            && fsconfig_set_string(&context, "lowerdir+", "/").is_ok()
    })
}

/// The overlay as a detached mount.
pub(super) fn mount(overlay: &Overlay, layers: &Layers) -> io::Result<OwnedFd> {
    namespace::on_own_thread("overlay", || {
        namespace::unshare((libc::CLONE_NEWNS | libc::CLONE_FS) as u32)?;
        crate::sys::mount::make_tree_private()?;
        mount_here(overlay, layers)
    })?
}

/// In a mount namespace of our own. The layers are opened in it too, or mounted if they are id-mapped: overlayfs refuses
/// mounts of another namespace.
fn mount_here(overlay: &Overlay, layers: &Layers) -> io::Result<OwnedFd> {
    let directory =
        |path: &Path| open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    // Anywhere will do, since the namespace is gone in a moment.
    let place = overlay.lower.first().ok_or(io::ErrorKind::InvalidInput)?;
    let place = CString::new(place.as_os_str().as_bytes())?;
    let mut opened = Vec::new();
    let lower = if layers.are_mapped() {
        // One on the other; the descriptors still tell them apart.
        layers.mapped().iter().try_for_each(|layer| crate::sys::mount::attach(layer, &place))?;
        layers.mapped()
    } else {
        for path in &overlay.lower {
            opened.push(directory(path)?);
        }
        &opened
    };
    let upper = overlay.upper.as_deref().map(directory).transpose()?;
    let work = overlay.work.as_deref().map(directory).transpose()?;
    let options = CString::new(options(lower, upper.as_ref(), work.as_ref(), overlay))?;
    // Names like `12` instead of paths: 500 layers fit.
    rustix::process::chdir("/proc/thread-self/fd")?;
    rustix::mount::mount("overlay", &place, "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
    crate::sys::mount::clone_path(&place, false)
}

fn options(lower: &[OwnedFd], upper: Option<&OwnedFd>, work: Option<&OwnedFd>, overlay: &Overlay) -> String {
    let names: Vec<String> = lower.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    let mut options = format!("lowerdir={}", names.join(":"));
    if let (Some(upper), Some(work)) = (upper, work) {
        options += &format!(",upperdir={},workdir={}", upper.as_raw_fd(), work.as_raw_fd());
        if overlay.volatile {
            options += ",volatile";
        }
    }
    if let Some(label) = &overlay.label {
        options += &format!(",context=\"{label}\"");
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;

    /// The way of old kernels works on new ones too, so that it can be tested everywhere (as root).
    #[test]
    fn mounts_many_layers_in_one_page() {
        let dir = tempfile::tempdir().unwrap();
        let lower: Vec<_> = (0..300).map(|n| dir.path().join(format!("{}{n}", "layer".repeat(20)))).collect();
        for (number, layer) in lower.iter().enumerate() {
            fs::create_dir(layer).unwrap();
            fs::write(layer.join("same"), number.to_string()).unwrap();
        }
        let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let (upper, work) = (Some(upper), Some(work));
        let overlay = Overlay { lower, upper, work, ..Overlay::default() };
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounted = mount(&overlay, &Layers::of(&overlay, None).unwrap()).unwrap();
        let mut text = String::new();
        super::super::open_in_root(&mounted, Path::new("same")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "0");
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    }
}
