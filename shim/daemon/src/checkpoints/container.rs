//! CheckpointContainer (CRI-CHK-01 to CRI-CHK-04).

use super::capture::Subject;
use super::intent::{Intent, Work};
use super::limit::Limit;
use super::{archive, check_pod, criu};
use crate::daemon::{Container, Daemon, blocking};
use crate::error::{Error, Result};
use crate::pods::stop::finish;
use crate::telemetry::spans;
use cri_proto::v1;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::MutexGuard;

const METHOD: &str = "CheckpointContainer";

impl Daemon {
    /// Writes the archive of a running container, which runs on, to `location`. A client that goes away, or whose time is
    /// over, finds nothing there; criu itself cannot be cut short without harm, so the container may stay paused as long as
    /// that takes.
    pub(crate) async fn checkpoint_container(
        self: &Arc<Self>,
        request: v1::CheckpointContainerRequest,
    ) -> Result<()> {
        let container = self.containers.get(&request.container_id)?;
        let label = container.record().label();
        let patience = match u64::try_from(request.timeout) {
            Ok(seconds) => (seconds > 0).then(|| Duration::from_secs(seconds)),
            Err(_) => return Err(Error::invalid(format!("timeout {} is negative", request.timeout))),
        };
        let (limit, _caller) = Limit::new("checkpoint", patience);
        let daemon = Arc::clone(self);
        let work = async move { daemon.checkpoint_known(&container, &request.location, &limit).await };
        finish(spans::spawn(work)).await.map_err(|e| e.of(format_args!("checkpoint container {label}")))
    }

    async fn checkpoint_known(
        self: &Arc<Self>,
        container: &Arc<Container>,
        location: &str,
        limit: &Limit,
    ) -> Result<()> {
        // One transition at a time: nobody stops or removes it until it is captured.
        let gate = container.gate.lock().await;
        let record = container.record();
        if !record.is_running() {
            return Err(Error::state("it does not run"));
        }
        let location = PathBuf::from(location);
        let place = location.clone();
        blocking(move || check_location(&place)).await?;
        check_pod(&self.pods.get(&record.pod_id)?.record())?;
        criu::usable(&self.config.file.checkpoints).await?;
        limit.check()?;
        let temporary = beside(&location)?;
        let intent = Intent { containers: vec![record.id.clone()], partial: vec![temporary.clone()] };
        let root = self.config.root.clone();
        let work = Arc::new(blocking(move || Work::begin(&root, intent)).await?);
        let made = self.write_archive(container, gate, &work, temporary, location, limit).await;
        let is_made = made.is_ok();
        let ended = blocking(move || if is_made { work.end() } else { work.undo() }).await;
        match (made, ended) {
            // It is there, and whole; what is left over is found again at the next start.
            (Ok(()), Err(error)) => {
                tracing::error!(container = record.label(), "after a checkpoint: {error}")
            }
            (Err(error), Err(more)) => {
                tracing::error!(container = record.label(), "after a failed checkpoint: {more}");
                return Err(error);
            }
            (made, _) => made?,
        }
        tracing::info!(container = record.label(), "checkpoint taken");
        Ok(())
    }

    async fn write_archive(
        self: &Arc<Self>,
        container: &Arc<Container>,
        gate: MutexGuard<'_, ()>,
        work: &Work,
        temporary: PathBuf,
        location: PathBuf,
        limit: &Limit,
    ) -> Result<()> {
        let record = container.record();
        let subject = Subject { container: Arc::clone(container), dir: work.dir.join("0") };
        let captured = self.capture(std::slice::from_ref(&subject), limit);
        self.telemetry.phase(METHOD, "capture", captured).await?;
        // Packing takes as long as its memory is large, and needs nothing of the container.
        drop(gate);
        let limit = limit.clone();
        let written = blocking(move || {
            archive::write(&record, &subject.dir, &temporary)?;
            limit.check()?;
            archive::publish(&temporary, &location)
        });
        self.telemetry.phase(METHOD, "archive", written).await
    }
}

/// # Errors
/// InvalidArgument for what can be no file's place. Blocks.
fn check_location(location: &Path) -> Result<()> {
    let shown = location.display();
    let named = location.to_str().is_some_and(|text| text.starts_with('/') && !text.contains('\0'));
    if !named || location.file_name().is_none() {
        return Err(Error::invalid(format!("location {shown:?} is not the absolute path of a file")));
    }
    let parent = location.parent().unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        return Err(Error::invalid(format!(
            "location {shown}: the directory {} does not exist",
            parent.display()
        )));
    }
    match std::fs::symlink_metadata(location) {
        Ok(meta) if !meta.is_file() => {
            Err(Error::invalid(format!("location {shown} is there, and no plain file")))
        }
        _ => Ok(()),
    }
}

/// A new name in the same directory, so that a rename is all that is left to do.
fn beside(location: &Path) -> Result<PathBuf> {
    let mut name = std::ffi::OsString::from(".slipway-");
    name.push(crate::ids::new()?);
    name.push(".partial");
    Ok(location.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-CHK-03.
    #[test]
    fn locations() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("old.tar"), "x").expect("write");
        std::os::unix::fs::symlink(at("old.tar"), at("link")).expect("link");
        assert_eq!(check_location(&at("new.tar")), Ok(()));
        assert_eq!(check_location(&at("old.tar")), Ok(()), "it is replaced");
        for bad in [
            at("link"),
            dir.path().into(),
            at("no/such"),
            "relative.tar".into(),
            "".into(),
            "/".into(),
            "/a/..".into(),
        ] {
            let error = check_location(&bad).expect_err("refused");
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
        }
        let temporary = beside(&at("new.tar")).expect("name");
        assert_eq!(temporary.parent(), Some(dir.path()));
    }
}
