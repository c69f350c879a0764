//! One page of memory that outlives the process which wrote it: a sealed memfd, mapped.
//!
//! The keeper's log journal lives here (DESIGN 1B): whoever maps the same memfd after a `kill -9` sees every store the
//! dead process made. All access is by atomics, so sharing needs no lock; meaning is the caller's business.

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Size of the mapping in bytes.
const BYTES: usize = 4096;

/// A shared, zero-initialised page of 512 words.
pub struct SharedPage {
    base: NonNull<c_void>,
}

// SAFETY: the page is reached only through `&[AtomicU64]` and through read_over, whose single kernel store is to a word
// that every other user reads as an atomic; nothing in it is tied to a thread.
unsafe impl Send for SharedPage {}
// SAFETY: as above; atomics may be shared.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    /// Words in the page.
    pub const WORDS: usize = BYTES / size_of::<u64>();

    /// A new memfd of one page that can never shrink (memfd_create(2), F_SEAL_SHRINK), so that a mapping of it
    /// cannot fault.
    pub fn memfd(name: &str) -> io::Result<OwnedFd> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
        let memfd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&memfd, BYTES as u64)?;
        fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(memfd)
    }

    /// Maps a descriptor made by [`SharedPage::memfd`], here or in a former process.
    ///
    /// # Errors
    /// `InvalidData` if it is not such a descriptor.
    pub fn map(memfd: BorrowedFd<'_>) -> io::Result<Self> {
        let sealed = rustix::fs::fcntl_get_seals(memfd)?.contains(rustix::fs::SealFlags::SHRINK);
        if !sealed || rustix::fs::fstat(memfd)?.st_size < BYTES as i64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a sealed page"));
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory; the seal and the size
        // checked above promise that every byte of it stays backed.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                memfd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(base).map(|base| Self { base }).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// The words of the page.
    pub fn words(&self) -> &[AtomicU64; Self::WORDS] {
        // SAFETY: base is a live, page-aligned mapping of exactly WORDS words for as long as self; zeroed memory is a valid
        // AtomicU64, and only atomics (and the kernel, see read_over) write to it.
        unsafe { self.base.cast::<[AtomicU64; Self::WORDS]>().as_ref() }
    }

    /// read(2) from `fd` whose first byte lands in the first byte of word `word`, the rest in `rest`: one system call,
    /// so that consuming from a pipe and leaving the trace of it in the page are one act.
    ///
    /// Returns the number of bytes read, the first one included.
    pub fn read_over(&self, word: usize, fd: BorrowedFd<'_>, rest: &mut [u8]) -> io::Result<usize> {
        assert!(word < Self::WORDS, "word {word} is outside the page");
        let parts = [
            libc::iovec {
                // SAFETY: word < WORDS, so the address is inside the mapping.
                iov_base: unsafe { self.base.as_ptr().byte_add(word * size_of::<u64>()) },
                iov_len: 1,
            },
            libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() },
        ];
        loop {
            // SAFETY: both parts are writable for their lengths: one byte of the mapping, and the exclusive borrow `rest`.
            let n = unsafe { libc::readv(fd.as_raw_fd(), parts.as_ptr(), 2) };
            if let Ok(n) = usize::try_from(n) {
                return Ok(n);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: base is our own mapping of BYTES bytes; no reference into it outlives self.
        unsafe { libc::munmap(self.base.as_ptr(), BYTES) };
    }
}

impl fmt::Debug for SharedPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedPage")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering;

    #[test]
    fn two_mappings_see_one_page_and_reads_land_in_it() {
        let memfd = SharedPage::memfd("test").unwrap();
        let (a, b) = (SharedPage::map(memfd.as_fd()).unwrap(), SharedPage::map(memfd.as_fd()).unwrap());
        a.words()[3].store(7, Ordering::Release);
        assert_eq!(b.words()[3].load(Ordering::Acquire), 7);
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&writer, b"xyz").unwrap();
        let mut rest = [0; 8];
        assert_eq!(a.read_over(4, reader.as_fd(), &mut rest).unwrap(), 3);
        assert_eq!(b.words()[4].load(Ordering::Acquire).to_ne_bytes()[0], b'x');
        assert_eq!(&rest[..2], b"yz");
    }

    #[test]
    fn anything_else_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(SharedPage::map(file.as_fd()).is_err());
    }
}
