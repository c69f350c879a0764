//! One small versioned JSON file per object under the state directory, written to a temporary name and renamed.
//!
//! No fsync: the state directory dies with the boot. A damaged file is set aside and named, never fatal.

use crate::error::{Error, Result};
use crate::object::Record;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Version of the record format; a record of a later version is set aside, not guessed at.
const VERSION: u32 = 1;

/// The directory of all records.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Versioned<R> {
    version: u32,
    #[serde(flatten)]
    record: R,
}

impl Records {
    /// Uses `<state>/records`, made if absent.
    pub(crate) fn open(state: &Path) -> Result<Self> {
        let dir = state.join("records");
        for kind in ["pod", "container"] {
            let path = dir.join(kind);
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|e| Error::io("make record directory", &path, &e))?;
        }
        Ok(Self { dir })
    }

    fn path<R: Record>(&self, id: &str) -> PathBuf {
        self.dir.join(R::KIND).join(format!("{id}.json"))
    }

    /// Writes the record; the former one stays whole until the new one is.
    pub(crate) fn save<R: Record>(&self, record: &R) -> Result<()> {
        let path = self.path::<R>(record.id());
        let text = serde_json::to_vec(&Versioned { version: VERSION, record })
            .map_err(|e| Error::internal(format!("encode record {}: {e}", path.display())))?;
        let temporary = path.with_extension("tmp");
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            io::Write::write_all(&mut file, &text)?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|e| {
            // On a full disk each try would leave one more.
            let _ = fs::remove_file(&temporary);
            Error::io("save record", &path, &e)
        })
    }

    /// Missing is success.
    pub(crate) fn delete<R: Record>(&self, id: &str) -> Result<()> {
        let path = self.path::<R>(id);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("delete record", &path, &e)),
            _ => Ok(()),
        }
    }

    /// Ids whose records were set aside: what they name may live, and nobody may take it for a stranger.
    pub(crate) fn set_aside<R: Record>(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join(R::KIND)).into_iter().flatten().flatten().map(|e| e.path());
        let aside = entries.filter(|p| p.extension().is_some_and(|e| e == "damaged"));
        aside.filter_map(|p| Some(p.file_stem()?.to_str()?.to_owned())).collect()
    }

    /// Every readable record; damaged ones are renamed to `*.damaged` and named in the log.
    pub(crate) fn load<R: Record>(&self) -> Vec<R> {
        let dir = self.dir.join(R::KIND);
        let mut found = Vec::new();
        for path in fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path()) {
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => match read(&path) {
                    Ok(record) => found.push(record),
                    Err(why) => set_aside(&path, &why),
                },
                // A write that was cut off before its rename.
                Some("tmp") => drop(fs::remove_file(&path)),
                _ => {}
            }
        }
        found
    }
}

fn read<R: Record>(path: &Path) -> std::result::Result<R, String> {
    let text = fs::read(path).map_err(|e| e.to_string())?;
    let versioned: Versioned<R> = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    if versioned.version > VERSION {
        return Err(format!("it has version {}, this daemon knows {VERSION}", versioned.version));
    }
    Ok(versioned.record)
}

fn set_aside(path: &Path, why: &str) {
    let aside = path.with_extension("damaged");
    let moved = fs::rename(path, &aside)
        .map_or_else(|e| format!("and cannot be moved: {e}"), |()| "set aside".into());
    tracing::error!(record = %path.display(), "damaged record {moved}: {why}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::PodRecord;

    #[test]
    fn records_come_back_and_damaged_ones_are_set_aside() {
        let dir = tempfile::tempdir().expect("dir");
        let records = Records::open(dir.path()).expect("open");
        let mut record =
            PodRecord::intent("a".repeat(64), Default::default(), String::new(), "/x".into(), true);
        record.sandbox_pid = 7;
        records.save(&record).expect("save");
        let broken = dir.path().join("records/pod/broken.json");
        fs::write(&broken, b"{\"version\": 1, ").expect("write");
        fs::write(dir.path().join("records/pod/cut.tmp"), "half").expect("write");
        let loaded = records.load::<PodRecord>();
        assert_eq!(loaded.len(), 1);
        assert_eq!((loaded[0].id.as_str(), loaded[0].sandbox_pid), (record.id.as_str(), 7));
        assert_eq!(records.set_aside::<PodRecord>(), ["broken"]);
        assert!(!dir.path().join("records/pod/cut.tmp").exists());
        // A save that fails leaves the former record, and nothing else.
        fs::create_dir(dir.path().join("records/pod/dir.json")).expect("in the way");
        record.id = "dir".into();
        records.save(&record).expect_err("cannot be renamed there");
        assert!(!dir.path().join("records/pod/dir.tmp").exists());
        record.id = "a".repeat(64);
        records.delete::<PodRecord>(&record.id).expect("delete");
        records.delete::<PodRecord>(&record.id).expect("missing is success");
        assert!(records.load::<PodRecord>().is_empty());
    }
}
