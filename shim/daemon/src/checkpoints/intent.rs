//! What a checkpoint under way has touched, on disk before it does: a killed daemon's successor undoes it.

use super::home;
use crate::containers::{ContainerRecord, remove_tree};
use crate::daemon::{Daemon, blocking};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FILE: &str = "intent.json";
/// In front of the names of directories of checkpoints that are being taken.
const PREFIX: &str = "dump-";

/// See the module.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Intent {
    /// Containers that may be paused.
    pub(super) containers: Vec<String>,
    /// Files and directories elsewhere that are not to stay.
    pub(super) partial: Vec<PathBuf>,
}

/// The directory of one checkpoint that is being taken.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) dir: PathBuf,
    intent: Intent,
}

impl Work {
    /// Makes it, and says in it what may be left behind. Blocks.
    pub(super) fn begin(root: &Path, intent: Intent) -> Result<Self> {
        let dir = home(root)?.join(format!("{PREFIX}{}", crate::ids::new()?));
        super::make(&dir)?;
        let work = Self { dir, intent };
        let path = work.dir.join(FILE);
        let text = serde_json::to_vec(&work.intent)
            .map_err(|e| Error::internal(format!("encode {}: {e}", path.display())));
        let written = text.and_then(|text| fs::write(&path, text).map_err(|e| Error::io("write", &path, &e)));
        if let Err(error) = written {
            let _ = remove_tree(&work.dir);
            return Err(error);
        }
        Ok(work)
    }

    /// After a failure: takes away what is half-made. Blocks.
    pub(super) fn undo(&self) -> Result<()> {
        for path in &self.intent.partial {
            remove(path)?;
        }
        self.end()
    }

    /// The checkpoint is whole, or undone. Blocks.
    pub(super) fn end(&self) -> Result<()> {
        // The intent first: what is whole must not be taken for half-made.
        remove(&self.dir.join(FILE))?;
        remove_tree(&self.dir)
    }
}

/// Missing is success.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, &e)),
        _ => Ok(()),
    }
}

/// After a start of the daemon, once all containers are known: undoes the checkpoints that its predecessor was taking, and
/// forgets what restored containers left. The keeper may still be at a dump: that is waited for in the background.
pub(crate) fn recover(daemon: &Arc<Daemon>) {
    let entries = fs::read_dir(daemon.config.root.join("checkpoints")).into_iter().flatten().flatten();
    let kept: BTreeSet<String> = daemon.records.set_aside::<ContainerRecord>().into_iter().collect();
    for entry in entries {
        let (dir, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.starts_with(PREFIX) {
            let daemon = Arc::clone(daemon);
            tokio::spawn(async move {
                tracing::warn!(dir = %dir.display(), "half-made checkpoint of the time before the restart: undone");
                if let Err(error) = undo(&daemon, dir).await {
                    tracing::error!("undo a half-made checkpoint: {error}");
                }
            });
        } else if !kept.contains(&name)
            && daemon.containers.get(&name).is_err()
            && let Err(error) = remove_tree(&dir)
        {
            tracing::error!("remove the left-over of a restore: {error}");
        }
    }
}

async fn undo(daemon: &Arc<Daemon>, dir: PathBuf) -> Result<()> {
    // Without a readable intent nothing had begun.
    let text = fs::read(dir.join(FILE)).unwrap_or_default();
    let intent: Intent = serde_json::from_slice(&text).unwrap_or_default();
    for id in &intent.containers {
        let Ok(container) = daemon.containers.get(id) else { continue };
        let _gate = container.gate.lock().await;
        // Only what we have paused ourselves is paused: nobody else can by CRI.
        if container.record().is_running()
            && let Err(error) = daemon.keeper.pause(id, false).await
        {
            tracing::error!(container = container.record().label(), "resume: {error}");
        }
    }
    blocking(move || Work { dir, intent }.undo()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-CHK-04, CRI-CHKP-02.
    #[test]
    fn what_is_half_made_goes_and_what_is_whole_stays() {
        let dir = tempfile::tempdir().expect("dir");
        let (file, tree) = (dir.path().join("a.partial"), dir.path().join("tree"));
        let intent =
            Intent { containers: vec![], partial: vec![file.clone(), tree.clone(), "/no/such/file".into()] };
        for whole in [true, false] {
            let work = Work::begin(dir.path(), intent.clone()).expect("begin");
            fs::write(&file, "x").expect("write");
            fs::create_dir_all(tree.join("deep")).expect("mkdir");
            if whole { work.end() } else { work.undo() }.expect("ended");
            assert!(!work.dir.exists());
            assert_eq!((file.exists(), tree.exists()), (whole, whole));
        }
    }
}
