//! Which file a process runs, and which one is to be run next.
//!
//! Files are compared by device and inode: a package replaces a program by renaming another file into its place, and a
//! version alone does not tell two builds apart.

use rustix::fs::{MemfdFlags, memfd_create};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Tells guardian and keeper by which path the program is installed: what they run themselves may be gone from there.
pub(crate) const VARIABLE: &str = "SLIPWAY_KEEPER_BINARY";
/// The file that this process runs, whatever has become of its name.
pub(crate) const OURS: &str = "/proc/self/exe";
/// argv[0] of what we start, and the beginning of what the program says of itself.
pub(crate) const NAME: &str = "containerd-shim-slipway-v1";

/// How long a program may take to say its version, and how often that is looked at.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);
const HALF: Duration = Duration::from_secs(5);
/// How much of what it says is read, in bytes.
const SAID: usize = 4096;

/// Names one file for as long as something holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let meta = path.metadata()?;
        Ok(Self { device: meta.dev(), inode: meta.ino() })
    }

    /// What a process runs.
    pub(crate) fn of_process(pid: i32) -> io::Result<Self> {
        Self::of(Path::new(&format!("/proc/{pid}/exe")))
    }

    pub(crate) fn own() -> io::Result<Self> {
        Self::of(Path::new(OURS))
    }
}

/// The path by which this program is installed: as a former one of us was told, or else as we were called, so that a link
/// to a versioned file is followed anew each time.
pub(crate) fn installed() -> PathBuf {
    match std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => path.into(),
        None => called_by().unwrap_or_else(own_path),
    }
}

/// For the `start` action: as [`installed`], whatever the environment says, which another program may have left there.
pub(crate) fn started() -> PathBuf {
    called_by().unwrap_or_else(own_path)
}

/// As the kernel was asked to execute us, if that is a path of lasting meaning which leads to what we run.
fn called_by() -> Option<PathBuf> {
    let name = OsStr::from_bytes(rustix::param::linux_execfn().to_bytes());
    let path = std::path::absolute(name).ok()?;
    let lasts = !["/proc", "/dev/fd"].iter().any(|passing| path.starts_with(passing));
    let leads_here = lasts && Identity::of(&path).ok()? == Identity::own().ok()?;
    leads_here.then_some(path)
}

/// As the kernel names what we run; a file that was replaced or removed has a note behind its name (proc_pid_exe(5)).
pub(crate) fn own_path() -> PathBuf {
    let path = std::fs::read_link(OURS).unwrap_or_else(|_| OURS.into());
    let bytes = path.into_os_string().into_vec();
    let name = bytes.strip_suffix(b" (deleted)").map_or_else(|| bytes.clone(), <[u8]>::to_vec);
    OsString::from_vec(name).into()
}

/// Has the program at `path` say what it is: the one thing that tells a good file from a half-copied one, one for another
/// machine, or another program altogether. Blocks.
///
/// # Errors
/// A sentence for people: what it did instead.
pub(crate) fn ask_version(path: &Path) -> Result<String, String> {
    let failed = |what: &str| format!("{} {what}", path.display());
    // Files, not pipes: whatever it leaves behind cannot keep us reading.
    let file = || io::Result::Ok(File::from(memfd_create("slipway-said", MemfdFlags::CLOEXEC)?));
    let (out, err) =
        file().and_then(|out| Ok((out, file()?))).map_err(|error| failed(&format!("-v: {error}")))?;
    let end = Instant::now() + PATIENCE;
    let mut child = loop {
        let copies = out.try_clone().and_then(|copy| Ok((copy, err.try_clone()?)));
        let (to_out, to_err) = copies.map_err(|error| failed(&format!("-v: {error}")))?;
        let mut command = Command::new(path);
        command.arg0(NAME).arg("-v").stdin(Stdio::null()).stdout(to_out).stderr(to_err);
        match command.spawn() {
            Ok(child) => break child,
            // Whoever has written it, or a child of that, is about to let go of it.
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() + HALF < end =>
            {
                std::thread::sleep(LOOK);
            }
            Err(error) => return Err(failed(&format!("cannot be executed: {error}"))),
        }
    };
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => std::thread::sleep(LOOK),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(&format!("-v does not end within {} s", PATIENCE.as_secs())));
            }
            Err(error) => return Err(failed(&format!("-v: {error}"))),
        }
    };
    let (said, complaint) = (beginning(&out), beginning(&err));
    if !status.success() {
        return Err(failed(&format!("-v fails: {status}: {}", complaint.trim())));
    }
    match said.trim().strip_prefix(NAME) {
        Some(version) if version.starts_with(' ') => Ok(version.trim().to_owned()),
        _ => Err(failed(&format!("is another program: -v answers {:?}", said.trim()))),
    }
}

fn beginning(file: &File) -> String {
    let mut bytes = vec![0; SAID];
    let count = file.read_at(&mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn only_our_own_kind_is_good_enough() {
        let dir = tempfile::tempdir().unwrap();
        let good = script(dir.path(), "good", "#!/bin/sh\necho containerd-shim-slipway-v1 9.8.7\n");
        assert_eq!(ask_version(&good).unwrap(), "9.8.7");
        for (text, word) in [
            ("#!/bin/sh\necho no memory >&2; exit 1\n", "no memory"),
            ("#!/bin/sh\necho containerd-shim-runc-v2: \n", "another program"),
            ("#!/bin/sh\necho containerd-shim-slipway-v1x 1\n", "another program"),
            ("#!/no/such/interpreter\n", "cannot be executed"),
            ("\x7fELF", "cannot be executed"),
        ] {
            let error = ask_version(&script(dir.path(), "bad", text)).unwrap_err();
            assert!(error.contains(word) && error.contains("/bad "), "{error}");
        }
        let missing = ask_version(&dir.path().join("missing")).unwrap_err();
        assert!(missing.contains("cannot be executed"), "{missing}");
    }

    #[test]
    fn a_renamed_file_is_another_one_and_a_link_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "1").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let first = Identity::of(&file).unwrap();
        assert_eq!(Identity::of(&link).unwrap(), first);
        let held = std::fs::File::open(&file).unwrap();
        std::fs::write(dir.path().join("new"), "1").unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        assert_ne!(Identity::of(&link).unwrap(), first);
        drop(held);
        assert_eq!(Identity::own().unwrap(), Identity::of_process(std::process::id().cast_signed()).unwrap());
    }
}
