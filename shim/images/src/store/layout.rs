//! Where everything lies below the store's root, and how a small file gets there whole.
//!
//! ```text
//! lock                       held by the process that has the store open
//! images/<hex>.json          one record per image, by id
//! layers/<key>/ <key>.json   a layer in overlay form, and its record
//! containers/<owner>/        owner.json (the layers it holds), upper/, work/
//! roots/<mode>-<uid>-<gid>/  empty directories: `/` of read-only views
//! tmp/                       half-made; emptied at open
//! trash/                     renamed here, deleted later by the janitor
//! damaged/                   records that could not be read, kept for people
//! ```

use crate::{Error, Result};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Layout {
    /// Makes what is missing. Directories are 0700: layers hold setuid programs that the host's users must not reach.
    pub(crate) fn create(root: &Path) -> Result<Self> {
        let layout = Self { root: root.to_owned() };
        for name in ["", "images", "layers", "containers", "roots", "tmp", "trash", "damaged"] {
            let path = root.join(name);
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|e| Error::io("make store", &path, e))?;
        }
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(root, private).map_err(|e| Error::io("make store", root, e))?;
        Ok(layout)
    }

    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn image(&self, hex: &str) -> PathBuf {
        self.root.join("images").join(format!("{hex}.json"))
    }

    pub(crate) fn layer(&self, key: &str) -> PathBuf {
        self.root.join("layers").join(key)
    }

    pub(crate) fn layer_record(&self, key: &str) -> PathBuf {
        self.root.join("layers").join(format!("{key}.json"))
    }

    pub(crate) fn container(&self, owner: &str) -> PathBuf {
        self.root.join("containers").join(owner)
    }

    /// A new name in tmp/.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.root.join("tmp").join(unique())
    }

    /// Takes `path` out of sight at once; the janitor deletes it later. Missing is success.
    pub(crate) fn discard(&self, path: &Path) -> Result<()> {
        match std::fs::rename(path, self.root.join("trash").join(unique())) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("move to trash", path, e)),
            _ => Ok(()),
        }
    }

    /// Puts a record that cannot be used aside, by name.
    pub(crate) fn set_aside(&self, path: &Path, why: &dyn std::fmt::Display) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let target = self.root.join("damaged").join(format!("{}-{name}", unique()));
        tracing::warn!(record = %path.display(), kept_as = %target.display(), %why, "damaged record set aside");
        if let Err(e) = std::fs::rename(path, &target) {
            tracing::warn!(record = %path.display(), error = %e, "cannot set the damaged record aside");
        }
    }

    /// Writes `path` so that it is there whole or not at all while this kernel runs. After a power cut the record may
    /// be missing or damaged until the janitor's sync has passed: that is what records carry their boot id for.
    pub(crate) fn write(&self, path: &Path, contents: &[u8]) -> Result<()> {
        let temporary = self.temporary();
        let written = std::fs::write(&temporary, contents)
            .map_err(|e| Error::io("write record", &temporary, e))
            .and_then(|()| std::fs::rename(&temporary, path).map_err(|e| Error::io("write record", path, e)));
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }
}

/// Unique in this store for ever: trash may hold names of earlier processes.
fn unique() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{}-{}", now.as_nanos(), std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A half-made thing in tmp/, thrown away unless taken.
#[derive(Debug)]
pub(crate) struct Temporary {
    layout: Layout,
    path: PathBuf,
    kept: bool,
}

impl Temporary {
    pub(crate) fn directory(layout: &Layout) -> Result<Self> {
        let this = Self::name(layout);
        let made = std::fs::DirBuilder::new().mode(0o755).create(&this.path);
        // The daemon's umask must not reach a layer's root (IMG-UNP-22).
        let plain = std::fs::Permissions::from_mode(0o755);
        made.and_then(|()| std::fs::set_permissions(&this.path, plain))
            .map_err(|e| Error::io("make temporary directory", &this.path, e))?;
        Ok(this)
    }

    /// A name for a file to be made.
    pub(crate) fn name(layout: &Layout) -> Self {
        Self { layout: layout.clone(), path: layout.temporary(), kept: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames it to `target`: from here on it is whole.
    pub(crate) fn commit(mut self, target: &Path) -> Result<()> {
        std::fs::rename(&self.path, target).map_err(|e| Error::io("make visible", target, e))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept
            && let Err(e) = self.layout.discard(&self.path)
        {
            tracing::warn!(error = %e, "cannot throw away a half-made layer");
        }
    }
}
