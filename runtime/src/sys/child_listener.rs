//! A filter whose listener is handed to the parent.
//!
//! Once the filter is loaded every call may stop the child until somebody answers at the listener, and nobody has it yet.
//! So there is no call at all between seccomp(2) and the moment the parent has taken the descriptor (pidfd_getfd(2)): the
//! two speak through words of a page that they share, and the child waits in a loop that only reads memory. The
//! descriptor itself is close-on-exec: the container never has it.

use super::child::{Child, LISTENER, Report};
use super::raw::{self, Raw, call, ptr};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the page; see `SharedPage`, whose seals this must have.
const PAGE: usize = 4096;
/// Word of the page where the child puts the listener's number plus one.
pub(super) const NUMBER: usize = 0;
/// Word where the parent puts 1 when it has the descriptor and the child may go on.
pub(super) const TAKEN: usize = 1;
/// Looks at the page before a child gives its parent up: some seconds to a minute, whatever the processor.
const PATIENCE: u64 = 1 << 31;

impl Child<'_> {
    pub(super) fn install_with_listener(&self, program: &libc::sock_fprog, flags: u32) -> Raw<()> {
        let page = self.share_page()?;
        const SET_MODE_FILTER: usize = 1;
        let args = [SET_MODE_FILTER, flags as usize, std::ptr::from_ref(program) as usize, 0, 0, 0];
        let listener = call(libc::SYS_seccomp, args)?;
        page[NUMBER].store(listener as u64 + 1, Ordering::Release);
        for _ in 0..PATIENCE {
            if page[TAKEN].load(Ordering::Acquire) == 1 {
                return Ok(());
            }
            core::hint::spin_loop();
        }
        // The parent is gone, and leaving by a call may not be possible.
        raw::trap()
    }

    /// A page in common with whoever follows the launch, sent with a handle on ourselves.
    fn share_page(&self) -> Raw<&'static [AtomicU64; PAGE / 8]> {
        let flags = (libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) as usize;
        let memfd = call(libc::SYS_memfd_create, [ptr(c"slipway-listener"), flags, 0, 0, 0, 0])?;
        call(libc::SYS_ftruncate, [memfd, PAGE, 0, 0, 0, 0])?;
        let seals = (libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL) as usize;
        call(libc::SYS_fcntl, [memfd, libc::F_ADD_SEALS as usize, seals, 0, 0, 0])?;
        let rights = (libc::PROT_READ | libc::PROT_WRITE) as usize;
        let address = call(libc::SYS_mmap, [0, PAGE, rights, libc::MAP_SHARED as usize, memfd, 0])?;
        let pid = call(libc::SYS_getpid, [0; 6])?;
        let own = call(libc::SYS_pidfd_open, [pid, 0, 0, 0, 0, 0])?;
        self.send_with(Report { step: LISTENER, errno: 0 }, [memfd as i32, own as i32])?;
        raw::close(memfd as i32);
        raw::close(own as i32);
        // SAFETY: mmap has just made this mapping of one page, aligned and zeroed; it is never unmapped (execve ends it)
        // and can never shrink (sealed). Both sides use it through atomics only.
        Ok(unsafe { &*(address as *const [AtomicU64; PAGE / 8]) })
    }
}
