//! Our own program, kept out of reach for containers.
//!
//! A process inside a container that can look at one of our children before its execve (a shared pid namespace, a
//! command of `/proc/self/exe`) gets hold of the file we run, and could write to it once nobody runs it any more
//! (CVE-2019-5736). Run through a read-only mount that exists nowhere else, every such path is read-only for good.

use super::mount;
use super::raw::{MountAttr, call, ptr, word};
use super::step::StringTable;
use rustix::fs::{StatVfsMountFlags, fstat, fstatvfs};
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// Executes this program again through a read-only detached mount of its own file, with the same arguments and
/// environment; returns at once if that has happened already. Call it first in `main`, before any thread: execve ends
/// them. Afterwards /proc/self/exe has no useful name, so whoever needs the path must take it along.
pub fn run_read_only() -> io::Result<()> {
    let current = File::open("/proc/self/exe")?;
    if fstatvfs(&current)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let copy = clone_own(&current)?;
    let attr =
        MountAttr { set: libc::MOUNT_ATTR_RDONLY, propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    mount::set_attributes(&copy, false, &attr)?;
    let argv = table(std::env::args_os())?;
    let env = table(std::env::vars_os().map(|(key, value)| [key, value].join(&OsString::from("="))))?;
    let flags = libc::AT_EMPTY_PATH as usize;
    let args = [word(copy.as_raw_fd()), ptr(c""), argv.address(), env.address(), flags, 0];
    match call(libc::SYS_execveat, args) {
        Err(errno) => Err(io::Error::from_raw_os_error(errno)),
        // Success does not return.
        Ok(_) => Ok(()),
    }
}

/// A detached mount of the file that we run. After unshare(2) the link leads to a mount of the former namespace, which
/// cannot be cloned from here (EINVAL): then through the name it has in this one, if that is the same file.
fn clone_own(current: &File) -> io::Result<OwnedFd> {
    match mount::clone_path(c"/proc/self/exe", false) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
        cloned => return cloned,
    }
    let name = CString::new(std::fs::read_link("/proc/self/exe")?.into_os_string().into_vec())?;
    let copy = mount::clone_path(&name, false)?;
    let (ours, there) = (fstat(current)?, fstat(&copy)?);
    if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino) {
        return Err(io::Error::other(format!("{name:?} is no longer the program that runs")));
    }
    Ok(copy)
}

fn table(strings: impl Iterator<Item = OsString>) -> io::Result<StringTable> {
    let converted = strings.map(|text| CString::new(text.into_vec()));
    Ok(StringTable::new(converted.collect::<Result<_, _>>()?))
}
