//! The one thing a new network namespace needs from us: its loopback device up.

use super::raw::{call, word};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;
use std::os::fd::AsRawFd;

/// `struct ifreq` with `ifr_flags` (netdevice(7)).
#[repr(C)]
struct FlagsRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    padding: [u8; 22],
}

/// Sets IFF_UP on `lo` of this thread's network namespace.
pub fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request =
        FlagsRequest { name: [0; libc::IFNAMSIZ], flags: libc::IFF_UP as i16, padding: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    let args = [word(socket.as_raw_fd()), libc::SIOCSIFFLAGS as usize, &raw const request as usize, 0, 0, 0];
    call(libc::SYS_ioctl, args).map(drop).map_err(io::Error::from_raw_os_error)
}
