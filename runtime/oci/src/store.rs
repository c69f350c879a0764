//! The state directory: one directory per container, made exclusively, locked while a command changes it.
//!
//! | file | what |
//! |---|---|
//! | `state.json` | the [`Record`] |
//! | `config.json` | the bundle's, as it was at creation |
//! | `steps.json` | sentences of the child's steps, for a start that fails |
//! | `start.sock` | where a created container waits for its byte; gone once it runs |
//! | `criu-root` | an empty directory while a restore is under way |
//!
//! A directory without a record is what a creation left that was killed at once; `delete --force` removes it as well.

use crate::bundle;
use crate::fault::Fault;
use crate::record::{self, Record};
use anyhow::{Context, Result, bail};
use oci_spec::runtime::Spec;
use rustix::fs::{FlockOperation, flock};
use slipway_runtime::plan;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const CONFIG: &str = "config.json";
const STEPS: &str = "steps.json";
const SOCKET: &str = "start.sock";
const CRIU_ROOT: &str = "criu-root";

/// All containers below one root.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// One container's directory and record.
#[derive(Debug)]
pub(crate) struct Container {
    directory: PathBuf,
    /// The directory itself, opened: what is locked.
    handle: File,
    pub(crate) record: Record,
}

impl Store {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Makes the container's directory and its record, locked. Of two at once one gets it.
    pub(crate) fn create(&self, record: Record, config: &[u8]) -> Result<Container> {
        let directory = self.directory(&record.id)?;
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o711);
        builder
            .recursive(true)
            .create(&self.root)
            .with_context(|| format!("make {}", self.root.display()))?;
        match builder.mode(0o700).recursive(false).create(&directory) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => bail!(Fault::Exists),
            made => made.with_context(|| format!("make {}", directory.display()))?,
        }
        let open = || -> Result<Container> {
            let handle = File::open(&directory)?;
            flock(&handle, FlockOperation::NonBlockingLockExclusive)?;
            record.save(&directory)?;
            fs::write(directory.join(CONFIG), config)?;
            Ok(Container { directory: directory.clone(), handle, record })
        };
        open().inspect_err(|_| drop(fs::remove_dir_all(&directory)))
    }

    /// # Errors
    /// `Exists` if the id is taken.
    pub(crate) fn must_not_have(&self, id: &str) -> Result<()> {
        if self.directory(id)?.exists() { bail!(Fault::Exists) } else { Ok(()) }
    }

    /// Finds a container, not locked.
    pub(crate) fn open(&self, id: &str) -> Result<Container> {
        let directory = self.directory(id)?;
        let handle = match File::open(&directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => bail!(Fault::Missing),
            opened => opened.with_context(|| format!("open {}", directory.display()))?,
        };
        let record = Record::load(&directory)?.unwrap_or_else(|| unrecorded(id));
        Ok(Container { directory, handle, record })
    }

    /// Finds a container and keeps other commands from changing it until this one ends.
    pub(crate) fn lock(&self, id: &str, patience: Duration) -> Result<Container> {
        let mut container = self.open(id)?;
        if !container.lock(patience)? {
            bail!(Fault::State(format!("container {id} is busy: another command is changing it")));
        }
        // Whoever had the lock may have changed or removed it meanwhile.
        match Record::load(&container.directory)? {
            Some(record) => container.record = record,
            None if container.directory.exists() => {}
            None => bail!(Fault::Missing),
        }
        Ok(container)
    }

    /// Finds a container whose record cannot be read, as far as its other files tell: for a forced deletion.
    pub(crate) fn salvage(&self, id: &str) -> Result<Container> {
        let directory = self.directory(id)?;
        let handle = File::open(&directory).with_context(|| format!("open {}", directory.display()))?;
        let mut container = Container { directory, handle, record: unrecorded(id) };
        let spec = container.config().and_then(|config| bundle::parse::<Spec>(CONFIG, &config));
        // Whatever else is unknown: all its processes are in its control group.
        if let Ok(cgroup) = spec.and_then(|spec| Ok(plan::cgroup_path(id, spec.linux().as_ref())?)) {
            container.record.cgroup = cgroup;
        }
        Ok(container)
    }

    /// All containers, by id. One that goes away or is damaged meanwhile is left out, the latter with a word.
    pub(crate) fn list(&self) -> Result<Vec<Container>> {
        let entries = match fs::read_dir(&self.root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            read => read.with_context(|| format!("list {}", self.root.display()))?,
        };
        let mut ids: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        ids.sort();
        let open = |id: &String| {
            let opened = self.open(id);
            if let Err(error) = &opened
                && error.downcast_ref::<Fault>().is_none()
            {
                eprintln!("{id}: {error:#}");
            }
            opened.ok()
        };
        Ok(ids.iter().filter_map(open).collect())
    }

    fn directory(&self, id: &str) -> Result<PathBuf> {
        check_id(id)?;
        Ok(self.root.join(id))
    }
}

impl Container {
    pub(crate) fn id(&self) -> &str {
        &self.record.id
    }

    pub(crate) fn start_socket(&self) -> PathBuf {
        self.directory.join(SOCKET)
    }

    /// The directory on which a restore mounts the root filesystem, in a mount namespace of its own.
    pub(crate) fn criu_root(&self) -> Result<PathBuf> {
        let directory =
            fs::canonicalize(&self.directory).with_context(|| self.directory.display().to_string())?;
        let path = directory.join(CRIU_ROOT);
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// The spec's bytes, as they were at creation.
    pub(crate) fn config(&self) -> Result<Vec<u8>> {
        let path = self.directory.join(CONFIG);
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    }

    pub(crate) fn save(&self) -> Result<()> {
        self.record.save(&self.directory)
    }

    pub(crate) fn save_steps(&self, steps: &[String]) -> Result<()> {
        record::replace(&self.directory.join(STEPS), &serde_json::to_vec(steps)?)
    }

    /// Sentences of the child's steps; without them a failed start is told by number.
    pub(crate) fn steps(&self) -> Vec<String> {
        let read = fs::read(self.directory.join(STEPS)).unwrap_or_default();
        serde_json::from_slice(&read).unwrap_or_default()
    }

    /// True if some other command holds the lock.
    pub(crate) fn is_locked(&self) -> bool {
        let Ok(other) = File::open(&self.directory) else { return false };
        flock(&other, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK)
    }

    /// Takes the lock; false if it is not to be had within `patience`.
    fn lock(&self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            match flock(&self.handle, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(true),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
                Err(e) => return Err(e).with_context(|| format!("lock {}", self.directory.display())),
            }
        }
    }

    /// The record last, so that whatever interrupts this leaves what `delete` can find again.
    pub(crate) fn remove(self) -> Result<()> {
        let failed = |e: &io::Error| e.kind() != io::ErrorKind::NotFound;
        let all = fs::read_dir(&self.directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let (last, first): (Vec<_>, Vec<_>) = all.partition(|path| path.ends_with(record::FILE));
        for path in first.iter().chain(&last) {
            let removed =
                if path.ends_with(CRIU_ROOT) { fs::remove_dir(path) } else { fs::remove_file(path) };
            if let Err(e) = removed
                && failed(&e)
            {
                return Err(e).with_context(|| format!("remove {}", path.display()));
            }
        }
        match fs::remove_dir(&self.directory) {
            Err(e) if failed(&e) => Err(e).with_context(|| format!("remove {}", self.directory.display())),
            _ => Ok(()),
        }
    }
}

/// What is known of a container whose creator was killed before it wrote anything.
fn unrecorded(id: &str) -> Record {
    Record {
        version: record::VERSION,
        id: id.to_owned(),
        bundle: PathBuf::new(),
        rootfs: PathBuf::new(),
        created: String::new(),
        owner: 0,
        cgroup: String::new(),
        pid: 0,
        start_time: 0,
        attended: false,
        no_new_keyring: false,
        annotations: Default::default(),
    }
}

/// One path component of letters, digits, `_`, `+`, `-`, `.`, as runc has it.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id.len() > 255 || id.starts_with('.') || !id.chars().all(fits) {
        bail!(Fault::Usage(format!(
            "invalid container ID format: {id:?}: up to 255 of a-z A-Z 0-9 _ + - ., no dot first"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_path_component() {
        assert!(check_id("a-b_c.d+1").is_ok());
        for bad in ["", ".", "..", "a/b", "a b", ".hidden", "ü", &"x".repeat(256)] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_of_two_creators_wins_and_removal_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("root"));
        let first = store.create(unrecorded("c"), b"{}").unwrap();
        let second = store.create(unrecorded("c"), b"{}").unwrap_err();
        assert_eq!(second.to_string(), "container with given ID already exists");
        assert!(store.open("c").unwrap().is_locked());
        assert!(store.lock("c", Duration::ZERO).is_err());
        first.remove().unwrap();
        assert_eq!(store.open("c").unwrap_err().to_string(), "container does not exist");
        assert!(store.list().unwrap().is_empty());
    }
}
