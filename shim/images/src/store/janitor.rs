//! Two threads that do what nobody should wait for. One deletes what is in trash/ and brings new layers to the disk; the
//! other one takes the seals of new layers, at the lowest priority: a node that runs out of space does not wait for it.
//!
//! A layer is visible as soon as it is renamed into place, but its record says in which boot, and after another boot
//! it does not count. The janitor calls syncfs(2) once for all new layers and then rewrites their records without that
//! mark. So a pull does not wait for the disk, a killed daemon loses nothing (the page cache outlives it), and after a
//! power cut no layer with holes is ever believed. fsync of every file would cost a journal commit per file; syncfs
//! before the rename would make every pull wait for every other writer of the file system.

use super::layout::Layout;
use super::ledger::Ledger;
use super::record::to_json;
use super::seal::seal;
use crate::unpack::tree::remove_tree;
use rustix::fs::{CWD, Mode, OFlags, openat, renameat, syncfs};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// What janitor and store share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) layout: Layout,
    pub(crate) ledger: Mutex<Ledger>,
}

impl Shared {
    pub(crate) fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        // Every change of the ledger is one step: it is whole even if a thread died holding it.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
enum Job {
    EmptyTrash,
    Sync,
}

#[derive(Debug)]
pub(crate) struct Janitor {
    jobs: Option<Sender<Job>>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Janitor {
    pub(crate) fn start(shared: Arc<Shared>) -> std::io::Result<Self> {
        let (jobs, queue) = channel();
        let (seals, to_seal) = channel();
        let stopping = Arc::new(AtomicBool::new(false));
        let mut janitor = Self { jobs: Some(jobs), stopping: stopping.clone(), threads: Vec::new() };
        let (store, stop) = (shared.clone(), stopping.clone());
        janitor.spawn("images-janitor", move || work(&store, &queue, &seals, &stop))?;
        janitor.spawn("images-sealer", move || take_seals(&shared, &to_seal, &stopping))?;
        Ok(janitor)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(work)?);
        Ok(())
    }

    pub(crate) fn empty_trash(&self) {
        self.send(Job::EmptyTrash);
    }

    pub(crate) fn sync(&self) {
        self.send(Job::Sync);
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread lives as long as this sender.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Janitor {
    /// Finishes syncs (or the layers would not count after a reboot); deleting goes on at the next open.
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Ends the one thread, and that the other one.
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared, queue: &Receiver<Job>, seals: &Sender<()>, stopping: &AtomicBool) {
    while let Ok(job) = queue.recv() {
        match job {
            Job::EmptyTrash if stopping.load(Ordering::Relaxed) => {}
            Job::EmptyTrash => empty_trash(&shared.layout, stopping),
            Job::Sync => {
                sync_layers(shared);
                // Gone only if it has died: then later verifications find no seals, and say so.
                let _ = seals.send(());
            }
        }
    }
}

fn take_seals(shared: &Shared, queue: &Receiver<()>, stopping: &AtomicBool) {
    super::verify::lower_priority();
    while queue.recv().is_ok() {
        seal_layers(shared, stopping);
    }
}

fn sync_layers(shared: &Shared) {
    let new = shared.ledger().unsynced();
    let path = |key: &String| shared.layout.layer(key);
    // Held, to be told from those that are pulled again under the same names while the disk is waited for.
    let new: Vec<(String, OwnedFd)> =
        new.into_iter().filter_map(|key| open(&path(&key)).ok().map(|tree| (key, tree))).collect();
    if new.is_empty() {
        return;
    }
    let synced = open(&shared.layout.root).and_then(|root| syncfs(&root));
    if let Err(e) = synced {
        tracing::warn!(error = %e, "syncfs of the image store failed; new layers will not count after a reboot");
        return;
    }
    for (key, tree) in new {
        // Held while writing, so that the record of a layer removed meanwhile does not come back.
        let mut ledger = shared.ledger();
        if !lies_at(&tree, &path(&key)) {
            continue;
        }
        let Some(record) = ledger.layer_mut(&key) else { continue };
        record.unsynced_in_boot = None;
        let written = to_json(record, &key)
            .and_then(|json| shared.layout.write(&shared.layout.layer_record(&key), &json));
        if let Err(e) = written {
            tracing::warn!(error = %e, "cannot mark a layer as being on disk");
        }
    }
}

/// Takes the digests that a later verification compares with. Ends early when the store is closed: what is missing is taken
/// after the next open.
fn seal_layers(shared: &Shared, stopping: &AtomicBool) {
    let unsealed = shared.ledger().unsealed();
    for key in unsealed {
        let path = shared.layout.layer(&key);
        // Removed meanwhile.
        let Ok(tree) = open(&path) else { continue };
        let sealed = match seal(&path, stopping) {
            Ok(Some(sealed)) => sealed,
            Ok(None) => return,
            // Removed meanwhile, or a bad disk: then nobody can say what it should be.
            Err(error) => {
                tracing::debug!("{error}");
                continue;
            }
        };
        // Held from here on: nobody moves a layer without it.
        let mut ledger = shared.ledger();
        if !lies_at(&tree, &path) {
            continue;
        }
        let Some(record) = ledger.layer_mut(&key) else { continue };
        record.seal = Some(sealed);
        let written = to_json(record, &key)
            .and_then(|json| shared.layout.write(&shared.layout.layer_record(&key), &json));
        if let Err(e) = written {
            tracing::warn!(error = %e, "cannot write a layer's seal");
        }
    }
}

/// Whether it is still this directory that lies there: a layer may be removed and pulled again under the same name, and
/// what was read of it on its way out is no measure for the new one. An inode that is held open is nobody else's.
fn lies_at(tree: &OwnedFd, path: &std::path::Path) -> bool {
    let (Ok(held), Ok(there)) = (rustix::fs::fstat(tree), rustix::fs::lstat(path)) else { return false };
    (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)
}

fn open(path: &std::path::Path) -> rustix::io::Result<OwnedFd> {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Deletes all in trash/. Containers may leave trees thousands of levels deep: those are cut in pieces.
fn empty_trash(layout: &Layout, stopping: &AtomicBool) {
    let trash = layout.dir("trash");
    let mut cut = 0u64;
    loop {
        let names: Vec<_> = match std::fs::read_dir(&trash) {
            Ok(entries) => entries.flatten().map(|entry| entry.file_name()).collect(),
            Err(e) => return tracing::warn!(trash = %trash.display(), error = %e, "cannot read the trash"),
        };
        let mut again = false;
        for name in names {
            if stopping.load(Ordering::Relaxed) {
                return;
            }
            let result = open(&trash).and_then(|dir| {
                again |= flatten(&dir, &dir, &name, 0, &mut cut)?;
                remove_tree(&dir, &name)
            });
            if let Err(e) = result {
                tracing::warn!(path = %trash.join(&name).display(), error = %e, "cannot delete from the trash");
                return;
            }
        }
        if !again {
            return;
        }
    }
}

const DEPTH: usize = 128;

/// Moves what lies deeper than [`DEPTH`] up into the trash itself, so that deleting needs few descriptors and little
/// stack. True if something was moved. Never leaves the file system's tree: only directories are entered, no symlinks.
fn flatten(
    trash: &OwnedFd,
    parent: impl AsFd,
    name: &OsStr,
    depth: usize,
    cut: &mut u64,
) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match openat(&parent, name, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => return Ok(false),
        Err(e) => return Err(e),
    };
    if depth == DEPTH {
        drop(directory);
        *cut += 1;
        let target = format!("cut-{}-{cut}", std::process::id());
        renameat(parent, name, trash, target)?;
        return Ok(true);
    }
    let mut moved = false;
    let mut children = Vec::new();
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let bytes = entry.file_name().to_bytes();
        let may_be_directory =
            matches!(entry.file_type(), rustix::fs::FileType::Directory | rustix::fs::FileType::Unknown);
        if may_be_directory && !matches!(bytes, b"." | b"..") {
            children.push(bytes.to_vec());
        }
    }
    for child in children {
        moved |= flatten(
            trash,
            &directory,
            std::os::unix::ffi::OsStrExt::from_bytes(child.as_slice()),
            depth + 1,
            cut,
        )?;
    }
    Ok(moved)
}
