//! Taking down what containers are: all paused before the first, all resumed after the last (CRI-CHKP-04).

use super::archive::{self, IMAGES, LAYER, LOG, SPEC};
use super::limit::Limit;
use super::restore::open_log;
use crate::containers::ContainerRecord;
use crate::daemon::{Container, Daemon, blocking};
use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One container, and the directory for what is taken of it.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) container: Arc<Container>,
    pub(super) dir: PathBuf,
}

impl Daemon {
    /// Captures all `subjects`, whose gates the caller holds. However it ends, none of them stays paused.
    pub(super) async fn capture(self: &Arc<Self>, subjects: &[Subject], limit: &Limit) -> Result<()> {
        let mut paused = Vec::new();
        let outcome = self.capture_paused(subjects, &mut paused, limit).await;
        let mut resumed = Ok(());
        for container in paused {
            let one = self.keeper.pause(&container.id, false).await;
            resumed = resumed.and(one.map_err(|e| {
                // One that has been killed meanwhile has nothing to be resumed.
                e.of(format_args!("resume container {}", container.record().label()))
            }));
        }
        outcome.and(resumed)
    }

    async fn capture_paused(
        self: &Arc<Self>,
        subjects: &[Subject],
        paused: &mut Vec<Arc<Container>>,
        limit: &Limit,
    ) -> Result<()> {
        for Subject { container, .. } in subjects {
            limit.check()?;
            // Before it is done: an answer may get lost.
            paused.push(Arc::clone(container));
            self.keeper.pause(&container.id, true).await?;
        }
        for Subject { container, dir } in subjects {
            limit.check()?;
            let record = container.record();
            super::make(dir)?;
            self.keeper.checkpoint(&record.id, &dir.join(IMAGES), dir).await?;
            let (daemon, dir) = (Arc::clone(self), dir.clone());
            blocking(move || daemon.take_files(&record, &dir)).await?;
        }
        limit.check()
    }

    /// What the container has written. Blocks.
    fn take_files(&self, record: &ContainerRecord, dir: &Path) -> Result<()> {
        self.images.pack_layer(&record.id, create(&dir.join(LAYER))?)?;
        copy(&record.bundle.join("config.json"), &dir.join(SPEC))?;
        let spec = fs::read(dir.join(SPEC)).map_err(|e| Error::io("read", &dir.join(SPEC), &e))?;
        let spec = serde_json::from_slice(&spec).map_err(|e| Error::internal(format!("the spec: {e}")))?;
        for number in 0..archive::volumes(&record.id, &spec).len() {
            self.images.pack_volume(&record.id, number, create(&dir.join(archive::volume(number)))?)?;
        }
        if !record.log_path.is_empty() {
            let mut text = create(&dir.join(LOG))?;
            // It may have been rotated away.
            if let Some(mut log) = open_log(record)? {
                io::copy(&mut log, &mut text)
                    .map_err(|e| Error::io("copy the log to", &dir.join(LOG), &e))?;
            }
            io::Write::flush(&mut text).map_err(|e| Error::io("write", &dir.join(LOG), &e))?;
        }
        Ok(())
    }
}

fn create(path: &Path) -> Result<io::BufWriter<File>> {
    let file = File::create_new(path).map_err(|e| Error::io("write", path, &e))?;
    Ok(io::BufWriter::with_capacity(1 << 20, file))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).map_err(|e| Error::io("copy", from, &e))
}
