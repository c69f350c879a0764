//! An unpacked checkpoint: found whole or refused, and what it says.
//!
//! It may come from anywhere. The image room's unpacker keeps it in its directory; here only plain files of known names are
//! looked at, so that no link in it leads elsewhere. (What CRIU makes of its own images is another matter: those are to be
//! trusted as a program of root's is.)

use super::archive::{self, CONFIG, ConfigDump, IMAGES, INVENTORY, LAYER, LOG, OURS, Ours, SPEC};
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// More than any spec or configuration has.
const MAX_JSON: u64 = 16 << 20;

/// CRIU's images of the objects in an IPC namespace.
const OF_IPC: [&str; 3] = ["ipcns-shm-", "ipcns-msg-", "ipcns-sem-"];

/// See the module.
#[derive(Debug)]
pub(super) struct Contents {
    dir: PathBuf,
    pub(super) config: ConfigDump,
    pub(super) spec: Value,
    /// Of archives that other engines made there is none.
    pub(super) ours: Option<Ours>,
}

fn refuse(why: impl std::fmt::Display) -> Error {
    Error::invalid(format!("the checkpoint cannot be used: {why}"))
}

impl Contents {
    /// Reads what was unpacked into `dir`. Blocks.
    ///
    /// # Errors
    /// InvalidArgument for what is no checkpoint of a container, or not whole.
    pub(super) fn read(dir: PathBuf) -> Result<Self> {
        check_images(&dir.join(IMAGES))?;
        let config = json(&dir, CONFIG)?.ok_or_else(|| refuse(format!("it has no {CONFIG}")))?;
        let spec = json(&dir, SPEC)?.ok_or_else(|| refuse(format!("it has no {SPEC}")))?;
        let ours: Option<Ours> = json(&dir, OURS)?;
        if let Some(ours) = ours.as_ref().filter(|ours| !ours.is_known()) {
            return Err(refuse(format!("a newer slipway has made it (version {})", ours.version)));
        }
        Ok(Self { dir, config, spec, ours })
    }

    /// The directory of CRIU's images.
    pub(super) fn images(&self) -> PathBuf {
        self.dir.join(IMAGES)
    }

    /// Takes the pod's System V objects out: CRIU would make them again in the pod's IPC namespace, where they are already.
    pub(super) fn leave_shared(&self) -> Result<()> {
        let images = self.images();
        let fail = |e: std::io::Error| Error::io("leave out", &images, &e);
        for entry in fs::read_dir(&images).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            if OF_IPC.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                fs::remove_file(entry.path()).map_err(fail)?;
            }
        }
        Ok(())
    }

    pub(super) fn layer(&self) -> Result<Option<File>> {
        plain(&self.dir, LAYER)
    }

    pub(super) fn log(&self) -> Result<Option<File>> {
        plain(&self.dir, LOG)
    }

    /// The tar of the volume at `destination`.
    pub(super) fn volume(&self, destination: &Path) -> Result<Option<File>> {
        let volumes = self.ours.iter().flat_map(|ours| &ours.volumes);
        match volumes.enumerate().find(|(_, known)| *known == destination) {
            Some((number, _)) => plain(&self.dir, &archive::volume(number)),
            None => Ok(None),
        }
    }
}

/// CRIU follows links that it finds there, and so must not find any.
fn check_images(dir: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(dir);
    if !meta.is_ok_and(|meta| meta.is_dir()) {
        return Err(refuse(format!("it has no directory {IMAGES}")));
    }
    let fail = |e: std::io::Error| Error::io("read", dir, &e);
    for entry in fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if !entry.file_type().map_err(fail)?.is_file() {
            return Err(refuse(format!("{IMAGES}/{} is no plain file", entry.file_name().to_string_lossy())));
        }
    }
    if !dir.join(INVENTORY).is_file() {
        return Err(refuse(format!("it has no {IMAGES}/{INVENTORY}, so CRIU has not finished it")));
    }
    Ok(())
}

/// A file of this name, unless there is none.
fn plain(dir: &Path, name: &str) -> Result<Option<File>> {
    let path = dir.join(name);
    match fs::symlink_metadata(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Ok(meta) if !meta.is_file() => Err(refuse(format!("{name} is no plain file"))),
        _ => File::open(&path).map(Some).map_err(|e| Error::io("open", &path, &e)),
    }
}

fn json<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<Option<T>> {
    let Some(file) = plain(dir, name)? else { return Ok(None) };
    let mut text = Vec::new();
    file.take(MAX_JSON + 1).read_to_end(&mut text).map_err(|e| Error::io("read", &dir.join(name), &e))?;
    if text.len() as u64 > MAX_JSON {
        return Err(refuse(format!("{name} is longer than {MAX_JSON} bytes")));
    }
    serde_json::from_slice(&text).map(Some).map_err(|e| refuse(format!("{name}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn good() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("dir");
        fs::create_dir(dir.path().join(IMAGES)).expect("mkdir");
        for (name, text) in [("checkpoint/inventory.img", "x"), (CONFIG, "{\"name\": \"a\"}"), (SPEC, "{}")] {
            fs::write(dir.path().join(name), text).expect("write");
        }
        dir
    }

    /// CRI-CHK-05: archives of strangers.
    #[test]
    fn only_whole_checkpoints_of_plain_files_are_read() {
        let dir = good();
        let contents = Contents::read(dir.path().into()).expect("good");
        assert_eq!((contents.config.name.as_str(), contents.ours.is_none()), ("a", true));
        for name in ["ipcns-shm-9.img", "ipcns-var-9.img"] {
            fs::write(contents.images().join(name), "x").expect("write");
        }
        contents.leave_shared().expect("removed");
        let left = |name: &str| contents.images().join(name).exists();
        assert!(!left("ipcns-shm-9.img") && left("ipcns-var-9.img") && left(INVENTORY));
        assert!(contents.layer().expect("none is fine").is_none());
        type Spoil = fn(&Path);
        let cases: [(&str, Spoil); 7] = [
            ("no config.dump", |dir| fs::remove_file(dir.join(CONFIG)).expect("rm")),
            ("no directory", |dir| {
                fs::rename(dir.join(IMAGES), dir.join("elsewhere")).expect("mv");
                symlink("elsewhere", dir.join(IMAGES)).expect("link");
            }),
            ("pages-1.img is no plain file", |dir| {
                symlink("/etc/shadow", dir.join("checkpoint/pages-1.img")).expect("link");
            }),
            ("spec.dump is no plain file", |dir| {
                fs::remove_file(dir.join(SPEC)).expect("rm");
                symlink("/etc/passwd", dir.join(SPEC)).expect("link");
            }),
            ("has not finished", |dir| fs::remove_file(dir.join("checkpoint/inventory.img")).expect("rm")),
            ("spec.dump: ", |dir| fs::write(dir.join(SPEC), "{").expect("write")),
            ("a newer slipway", |dir| {
                fs::write(dir.join(OURS), r#"{"version": 9, "container": null, "volumes": []}"#)
                    .expect("write");
            }),
        ];
        for (word, spoil) in cases {
            let dir = good();
            spoil(dir.path());
            let error = Contents::read(dir.path().into()).expect_err(word);
            let known = error.to_string().contains(word) || word == "a newer slipway";
            assert!(known && error.code() == tonic::Code::InvalidArgument, "{word}: {error}");
        }
        let dir = good();
        symlink("/etc/passwd", dir.path().join(LAYER)).expect("link");
        assert!(Contents::read(dir.path().into()).expect("read").layer().is_err());
    }
}
