//! The keeper's log, also for the client: containerd copies what comes out of `<bundle>/log`, a fifo, to its own log
//! (SHIM-LOG-01, SHIM-LOG-02, SHIM-LOG-03).
//!
//! The fifo of any living bundle will do, as we serve them all. Writing never blocks and never fails: without a reader, or
//! with a slow one, the line is in our own file alone.

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Our own file never grows beyond it: it may lie in memory (/run).
const LARGEST: u64 = 4 * 1024 * 1024;
/// Between searches for a fifo with a reader, while there is none.
const PAUSE: Duration = Duration::from_secs(1);

static CLIENT: Mutex<Client> =
    Mutex::new(Client { bundles: BTreeSet::new(), fifo: None, searched: None, written: 0 });

#[derive(Debug)]
struct Client {
    bundles: BTreeSet<PathBuf>,
    fifo: Option<(PathBuf, File)>,
    searched: Option<Instant>,
    written: u64,
}

/// From now on this bundle's fifo may be used.
pub(crate) fn add(bundle: &Path) {
    let mut client = CLIENT.lock().unwrap_or_else(PoisonError::into_inner);
    client.bundles.insert(bundle.to_owned());
    client.searched = None;
}

/// The bundle is about to go.
pub(crate) fn remove(bundle: &Path) {
    let mut client = CLIENT.lock().unwrap_or_else(PoisonError::into_inner);
    client.bundles.remove(bundle);
    if client.fifo.as_ref().is_some_and(|(of, _)| of == bundle) {
        (client.fifo, client.searched) = (None, None);
    }
}

/// Writes one formatted line to standard error, which is our own file, and to the client. For tracing.
#[derive(Debug)]
pub(crate) struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut client = CLIENT.lock().unwrap_or_else(PoisonError::into_inner);
        client.written += line.len() as u64;
        if client.written > LARGEST {
            client.written = 0;
            // A pipe or terminal in its place cannot be cut, and need not be.
            let _ = rustix::fs::ftruncate(rustix::stdio::stderr(), 0);
        }
        let _ = io::stderr().write_all(line);
        client.tell(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Client {
    fn tell(&mut self, line: &[u8]) {
        if self.fifo.is_none() && self.searched.is_none_or(|at| at.elapsed() > PAUSE) {
            self.searched = Some(Instant::now());
            self.fifo = self.bundles.iter().find_map(|bundle| Some((bundle.clone(), open(bundle)?)));
        }
        if let Some((_, fifo)) = &self.fifo
            && rustix::io::write(fifo, line) == Err(Errno::PIPE)
        {
            self.fifo = None;
        }
    }
}

/// Only with a reader: else ENXIO.
fn open(bundle: &Path) -> Option<File> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fifo = rustix::fs::open(bundle.join("log"), flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&fifo).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::Fifo).then(|| fifo.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn fifo(dir: &Path) -> PathBuf {
        std::fs::create_dir(dir).unwrap();
        let path = dir.join("log");
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).unwrap();
        path
    }

    #[test]
    fn goes_to_whichever_bundle_has_a_reader() {
        // SHIM-LOG-01, SHIM-LOG-02, SHIM-LOG-03
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        fifo(&one);
        let path = fifo(&two);
        let mut client =
            Client { bundles: BTreeSet::from([one, two.clone()]), fifo: None, searched: None, written: 0 };
        client.tell(b"lost\n");
        assert!(client.fifo.is_none(), "nobody reads");
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        let mut reader = File::from(rustix::fs::open(&path, flags, Mode::empty()).unwrap());
        client.searched = None;
        client.tell(b"seen\n");
        let mut text = [0; 16];
        assert_eq!(reader.read(&mut text).unwrap(), 5);
        drop(reader);
        client.tell(b"lost\n");
        assert!(client.fifo.is_none(), "the reader is gone");
    }
}
