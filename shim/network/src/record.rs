//! What was done, or is about to be done, for each pod: one small file per pod under `state_dir/pods`.
//!
//! The file is written before the first act (the intent) and removed after the last undo, so whatever a crash leaves
//! is found by `collect`. It holds the configuration, arguments and result of the ADD, so DEL needs nothing else
//! (CNI-26, CNI-27). Writes go to a temporary name and are renamed. Never calls a plugin and never touches a link.

use crate::builtin::Lease;
use crate::cni::CniAttachment;
use crate::cni::config::check_name;
use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const VERSION: u32 = 1;

/// One pod, and which path made its network: that path also takes it back.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) netns: PathBuf,
    pub(crate) made_by: MadeBy,
}

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MadeBy {
    Cni(CniAttachment),
    Builtin(Lease),
}

impl Record {
    pub(crate) fn new(pod: &crate::types::PodNetwork, made_by: MadeBy) -> Self {
        Self {
            version: VERSION,
            id: pod.id.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            netns: pod.netns.clone(),
            made_by,
        }
    }
}

/// What a lookup found.
#[derive(Debug)]
pub(crate) enum Loaded {
    Missing,
    Found(Box<Record>),
    /// The file was unreadable; it has been moved aside.
    Damaged,
}

/// The directory of records.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    damaged: PathBuf,
    counter: AtomicU64,
}

impl Store {
    pub(crate) fn open(state_dir: &Path) -> Result<Self> {
        let dir = state_dir.join("pods");
        fs::create_dir_all(&dir).map_err(|e| fail("make the directory of network records", &dir, &e))?;
        let store = Self { dir, damaged: state_dir.join("damaged"), counter: AtomicU64::new(0) };
        for name in store.names()? {
            if name.starts_with('.') {
                let _ = fs::remove_file(store.dir.join(name)); // half-written by a crash, never renamed
            }
        }
        Ok(store)
    }

    /// Makes the record visible to whoever comes after a crash of this process. `persist` waits for the disk too.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let path = self.path(&record.id);
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(format!(".{}.{number}", record.id));
        let bytes = serde_json::to_vec(record)
            .map_err(|e| Error::new("write network record", path.display().to_string(), e))?;
        let written = File::create(&temporary)
            .and_then(|mut f| f.write_all(&bytes))
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|e| {
            let _ = fs::remove_file(&temporary);
            fail("write network record", &path, &e)
        })
    }

    /// Waits until the record is on the disk, so that a power loss cannot forget an intent whose act it remembers.
    pub(crate) fn persist(&self, id: &str) -> Result<()> {
        let path = self.path(id);
        File::open(&path)
            .and_then(|f| f.sync_all())
            .and_then(|()| File::open(&self.dir))
            .and_then(|d| d.sync_all())
            .map_err(|e| fail("sync network record", &path, &e))
    }

    /// An id that could not be a file name was never set up.
    pub(crate) fn load(&self, id: &str) -> Result<Loaded> {
        if check_name("pod id", id).is_err() {
            return Ok(Loaded::Missing);
        }
        let path = self.path(id);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Loaded::Missing),
            Err(e) => return Err(fail("read network record", &path, &e)),
        };
        match serde_json::from_slice::<Record>(&text) {
            Ok(record) if record.version == VERSION && record.id == id => Ok(Loaded::Found(Box::new(record))),
            Ok(record) => self.set_aside(id, &format!("version {}, id {}", record.version, record.id)),
            Err(e) => self.set_aside(id, &e.to_string()),
        }
    }

    fn set_aside(&self, id: &str, why: &str) -> Result<Loaded> {
        let (from, to) = (self.path(id), self.damaged.join(format!("{id}.json")));
        tracing::warn!(record = %from.display(), moved_to = %to.display(), why, "damaged network record set aside");
        fs::create_dir_all(&self.damaged)
            .and_then(|()| fs::rename(&from, &to))
            .map_err(|e| fail("set damaged network record aside", &from, &e))?;
        Ok(Loaded::Damaged)
    }

    /// Missing is success.
    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(fail("remove network record", &path, &e)),
            _ => Ok(()),
        }
    }

    /// Ids of all pods with a record.
    pub(crate) fn ids(&self) -> Result<Vec<String>> {
        let names = self.names()?;
        let ids = names.iter().filter(|n| !n.starts_with('.')).filter_map(|n| n.strip_suffix(".json"));
        Ok(ids.map(str::to_owned).collect())
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.dir).map_err(|e| fail("list network records", &self.dir, &e))?;
        Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

fn fail(step: &str, path: &Path, error: &std::io::Error) -> Error {
    let told = Error::io(step, path.display().to_string(), error);
    match error.kind() {
        ErrorKind::ReadOnlyFilesystem => told.hint("the state directory must be writable"),
        _ => told,
    }
}
