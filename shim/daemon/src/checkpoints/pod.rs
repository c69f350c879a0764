//! CheckpointPod and RestorePod (CRI-CHKP-*): the archives of a pod's containers, of one moment, in one directory.
//!
//! ```text
//!  output_path/  container-0.tar, container-1.tar, … as CheckpointContainer writes them; pod.json names them, written last
//! ```

use super::capture::Subject;
use super::intent::{Intent, Work};
use super::limit::Limit;
use super::restore::Source;
use super::{archive, check_pod, criu};
use crate::containers::ContainerRecord;
use crate::daemon::{Container, Daemon, Pod, blocking};
use crate::error::{Error, Result};
use crate::names::Company;
use crate::pods::PodPhase;
use crate::telemetry::spans;
use cri_proto::v1;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::MutexGuard;

const METHOD: &str = "CheckpointPod";
const MANIFEST: &str = "pod.json";
/// Where CRIU's images lie until they are archived; gone before the answer.
const WORK: &str = "work";
const VERSION: u32 = 1;

/// What a pod's checkpoint holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    /// Names of the containers; the number of one is that of its archive.
    containers: Vec<String>,
}

fn archive_name(number: usize) -> String {
    format!("container-{number}.tar")
}

impl Daemon {
    /// Writes a checkpoint of all running containers of a pod.
    pub(crate) async fn checkpoint_pod(
        self: &Arc<Self>,
        request: v1::CheckpointPodRequest,
        deadline: Option<Duration>,
    ) -> Result<()> {
        let deadline = needed(deadline)?;
        let pod = self.pods.get(&request.pod_sandbox_id)?;
        let label = pod.record().label();
        let (limit, _caller) = Limit::new("checkpoint", Some(deadline));
        let daemon = Arc::clone(self);
        let work = async move { daemon.checkpoint_pod_known(&pod, &request, &limit).await };
        let done = crate::pods::stop::finish(spans::spawn(work)).await;
        done.map_err(|e| e.of(format_args!("checkpoint pod {label}")))
    }

    async fn checkpoint_pod_known(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        request: &v1::CheckpointPodRequest,
        limit: &Limit,
    ) -> Result<()> {
        no_options(&request.options)?;
        let record = pod.record();
        if record.phase != PodPhase::Ready {
            return Err(Error::state("it is not ready"));
        }
        check_pod(&record)?;
        let asked: Vec<_> =
            request.container_ids.iter().map(|id| self.containers.get(id)).collect::<Result<_>>()?;
        let asked = in_order(asked)?;
        let mut gates = Vec::new();
        for container in &asked {
            gates.push(container.gate.lock().await);
        }
        check_set(&pod.id, &asked, &self.containers_of(&pod.id))?;
        let output = PathBuf::from(&request.output_path);
        let place = output.clone();
        let _claim = blocking(move || claim_output(&place)).await?;
        criu::usable(&self.config.file.checkpoints).await?;
        limit.check()?;
        let archives = (0..asked.len()).map(archive_name);
        let partial = archives.chain([MANIFEST.into(), WORK.into()]).map(|name| output.join(name)).collect();
        let intent = Intent { containers: asked.iter().map(|c| c.id.clone()).collect(), partial };
        let root = self.config.root.clone();
        let work = Arc::new(blocking(move || Work::begin(&root, intent)).await?);
        let made = self.write_pod(&asked, gates, &output, limit).await;
        let is_made = made.is_ok();
        let ended = blocking(move || if is_made { work.end() } else { work.undo() }).await;
        if let (Err(_), Err(more)) = (&made, &ended) {
            tracing::error!(pod = record.label(), "after a failed checkpoint: {more}");
        }
        made.and(ended)?;
        tracing::info!(pod = record.label(), containers = asked.len(), "checkpoint of a pod taken");
        Ok(())
    }

    async fn write_pod(
        self: &Arc<Self>,
        asked: &[Arc<Container>],
        gates: Vec<MutexGuard<'_, ()>>,
        output: &Path,
        limit: &Limit,
    ) -> Result<()> {
        let records: Vec<Arc<ContainerRecord>> = asked.iter().map(|c| c.record()).collect();
        let work = output.join(WORK);
        super::make(&work)?;
        let subject = |(number, container): (usize, &Arc<Container>)| Subject {
            container: Arc::clone(container),
            dir: work.join(number.to_string()),
        };
        let subjects: Vec<Subject> = asked.iter().enumerate().map(subject).collect();
        self.telemetry.phase(METHOD, "capture", self.capture(&subjects, limit)).await?;
        // Packing takes as long as their memory is large, and needs nothing of them.
        drop(gates);
        let (output, limit) = (output.to_owned(), limit.clone());
        let written = blocking(move || {
            for (number, (record, subject)) in records.iter().zip(&subjects).enumerate() {
                limit.check()?;
                archive::write(record, &subject.dir, &output.join(archive_name(number)))?;
            }
            fs::remove_dir_all(&work).map_err(|e| Error::io("remove", &work, &e))?;
            limit.check()?;
            let containers = records.iter().map(|record| record.metadata().name).collect();
            write_manifest(&output, &Manifest { version: VERSION, containers })
        });
        self.telemetry.phase(METHOD, "archive", written).await
    }

    /// Makes a pod and its containers of a checkpoint; they wait for their start. Whatever fails, nothing is left.
    pub(crate) async fn restore_pod(
        self: &Arc<Self>,
        request: v1::RestorePodRequest,
        deadline: Option<Duration>,
    ) -> Result<v1::RestorePodResponse> {
        let (limit, _caller) = Limit::new("restore", Some(needed(deadline)?));
        let daemon = Arc::clone(self);
        let work = spans::spawn(async move { daemon.restore_pod_known(request, &limit).await });
        work.await.unwrap_or_else(|e| Err(Error::internal(format!("the request failed inside: {e}"))))
    }

    async fn restore_pod_known(
        self: &Arc<Self>,
        request: v1::RestorePodRequest,
        limit: &Limit,
    ) -> Result<v1::RestorePodResponse> {
        no_options(&request.options)?;
        let config = request
            .config
            .ok_or_else(|| Error::invalid("config is missing; config.metadata identifies the sandbox"))?;
        let from = PathBuf::from(&request.checkpoint_path);
        let manifest = blocking(move || read_manifest(&from)).await?;
        let numbers = matched(&manifest, &request.container_configs)?;
        criu::usable(&self.config.file.checkpoints).await?;
        limit.check()?;
        let pod = self.run_pod(config, request.runtime_handler, Company::Refused).await?;
        let from = Path::new(&request.checkpoint_path);
        match self.restore_containers(&pod, from, &numbers, request.container_configs, limit).await {
            Ok(restored_containers) => {
                Ok(v1::RestorePodResponse { pod_sandbox_id: pod, restored_containers })
            }
            Err(error) => {
                if let Err(more) = self.remove_pod(&pod).await {
                    tracing::error!(pod, "after a failed restore: {more}");
                }
                Err(error)
            }
        }
    }

    async fn restore_containers(
        self: &Arc<Self>,
        pod: &str,
        from: &Path,
        numbers: &[usize],
        configs: Vec<v1::ContainerConfig>,
        limit: &Limit,
    ) -> Result<Vec<v1::RestoredContainer>> {
        let mut restored = Vec::new();
        for (number, config) in numbers.iter().zip(configs) {
            limit.check()?;
            let name = config.metadata.clone().unwrap_or_default().name;
            let archive = from.join(archive_name(*number));
            let source = Source::OfPod { archive, first: restored.is_empty() };
            let container_id = self.create_container_of(pod, Some(config), Some(source)).await?;
            restored.push(v1::RestoredContainer { name, container_id });
        }
        limit.check()?;
        Ok(restored)
    }
}

/// CRI-CHKP-01.
fn needed(deadline: Option<Duration>) -> Result<Duration> {
    deadline
        .ok_or_else(|| Error::invalid("the call has no deadline, and needs one: set a timeout at the client"))
}

/// CRI-CHKP-05.
fn no_options(options: &HashMap<String, String>) -> Result<()> {
    let mut names: Vec<_> = options.keys().map(String::as_str).collect();
    names.sort_unstable();
    if names.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(format!("options: {} not known; there are none", names.join(", "))))
}

/// By id, so that two requests at once wait for each other rather than for ever.
fn in_order(mut asked: Vec<Arc<Container>>) -> Result<Vec<Arc<Container>>> {
    if asked.is_empty() {
        return Err(Error::invalid("container_ids is empty: name all running containers of the pod"));
    }
    asked.sort_by(|a, b| a.id.cmp(&b.id));
    if let Some(pair) = asked.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(Error::invalid(format!("container_ids holds {} twice", pair[0].id)));
    }
    Ok(asked)
}

/// CRI-CHKP-03.
fn check_set(pod: &str, asked: &[Arc<Container>], all: &[Arc<Container>]) -> Result<()> {
    for container in asked {
        let record = container.record();
        if record.pod_id != pod {
            return Err(Error::invalid(format!("container {} is of another pod", record.label())));
        }
        if !record.is_running() {
            return Err(Error::state(format!("container {} does not run", record.label())));
        }
    }
    let known: BTreeSet<_> = asked.iter().map(|container| &container.id).collect();
    match all.iter().find(|container| container.record().is_running() && !known.contains(&container.id)) {
        None => Ok(()),
        Some(other) => Err(Error::invalid(format!(
            "container {} runs and is not in container_ids: all that run must be",
            other.record().label()
        ))),
    }
}

/// CRI-CHKP-02: the directory, empty, and nobody else's until what is answered is dropped. Blocks.
fn claim_output(output: &Path) -> Result<Flock<fs::File>> {
    let refuse = |why: &str| Err(Error::invalid(format!("output_path {:?} {why}", output.display())));
    if !output.is_absolute() {
        return refuse("is not absolute");
    }
    if !fs::symlink_metadata(output).is_ok_and(|meta| meta.is_dir()) {
        return refuse("is no directory: it must exist");
    }
    let dir = fs::File::open(output).map_err(|e| Error::io("open", output, &e))?;
    let Ok(claim) = Flock::lock(dir, FlockArg::LockExclusiveNonblock) else {
        return refuse("is where another checkpoint is being written");
    };
    match fs::read_dir(output).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(claim),
        Ok(false) => refuse("is not empty"),
        Err(e) => Err(Error::io("look into", output, &e)),
    }
}

/// Last of all, so that a directory without it is no checkpoint.
fn write_manifest(output: &Path, manifest: &Manifest) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = output.join(MANIFEST);
    let fail = |e: std::io::Error| Error::io("write", &path, &e);
    let text =
        serde_json::to_vec(manifest).map_err(|e| Error::internal(format!("encode {MANIFEST}: {e}")))?;
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(fail)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(fail)?;
    fs::File::open(output).and_then(|dir| dir.sync_all()).map_err(|e| Error::io("sync", output, &e))
}

fn read_manifest(from: &Path) -> Result<Manifest> {
    let refuse = |why: String| Error::invalid(format!("checkpoint_path {:?}: {why}", from.display()));
    if !from.is_absolute() {
        return Err(refuse("it is not absolute".into()));
    }
    let text = fs::read(from.join(MANIFEST))
        .map_err(|e| refuse(format!("it holds no checkpoint of a pod: {MANIFEST}: {e}")))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| refuse(format!("{MANIFEST}: {e}")))?;
    if manifest.version > VERSION {
        return Err(refuse(format!("a newer slipway has made it (version {})", manifest.version)));
    }
    Ok(manifest)
}

/// The number of the archive for each configuration (CRI-CHKP-06).
fn matched(manifest: &Manifest, configs: &[v1::ContainerConfig]) -> Result<Vec<usize>> {
    let name = |config: &v1::ContainerConfig| config.metadata.clone().unwrap_or_default().name;
    let names: Vec<String> = configs.iter().map(name).collect();
    if names.is_empty() || names.iter().any(String::is_empty) {
        return Err(Error::invalid(
            "container_configs: there must be some, and each must have a metadata.name",
        ));
    }
    let set: BTreeSet<&String> = names.iter().collect();
    let held: BTreeSet<&String> = manifest.containers.iter().collect();
    if set.len() < names.len() {
        return Err(Error::invalid("container_configs: two of them have the same metadata.name"));
    }
    if set != held {
        return Err(Error::invalid(format!(
            "container_configs: they name {names:?}, and the checkpoint holds {:?}: they must be the same",
            manifest.containers
        )));
    }
    let number = |name: &String| manifest.containers.iter().position(|held| held == name);
    // Each is in the set.
    Ok(names.iter().filter_map(number).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::Phase;
    use tonic::Code;

    fn container(id: &str, pod: &str, running: bool) -> Arc<Container> {
        let mut record = crate::spec::tests::container();
        (record.id, record.pod_id) = (id.into(), pod.into());
        record.phase = if running { Phase::Running { started_at: 1, pid: 2 } } else { Phase::Created };
        Arc::new(Container::new(record))
    }

    /// CRI-CHKP-03.
    #[test]
    fn exactly_the_running_containers_are_taken() {
        let (a, b) = (container("a", "p", true), container("b", "p", true));
        let (created, foreign) = (container("c", "p", false), container("d", "q", true));
        let all = [a.clone(), b.clone(), created.clone()];
        let code = |asked: &[Arc<Container>]| {
            let asked = in_order(asked.to_vec())?;
            check_set("p", &asked, &all)
        };
        assert_eq!(code(&[b.clone(), a.clone()]), Ok(()));
        let is = |asked: &[Arc<Container>], wanted: Code| code(asked).is_err_and(|e| e.code() == wanted);
        assert!(is(&[], Code::InvalidArgument));
        assert!(is(&[a.clone(), b.clone(), a.clone()], Code::InvalidArgument));
        assert!(is(std::slice::from_ref(&a), Code::InvalidArgument), "b runs, too");
        assert!(is(&[a.clone(), b.clone(), created], Code::FailedPrecondition));
        assert!(is(&[a, b, foreign], Code::InvalidArgument));
    }

    /// CRI-CHKP-02, CRI-CHKP-05.
    #[test]
    fn the_output_is_an_empty_directory() {
        let dir = tempfile::tempdir().expect("dir");
        let first = claim_output(dir.path()).expect("claimed");
        let second = claim_output(dir.path()).expect_err("one at a time");
        assert!(second.to_string().contains("another checkpoint"), "{second}");
        drop(first);
        assert!(claim_output(dir.path()).is_ok());
        fs::write(dir.path().join("file"), "").expect("write");
        for bad in [dir.path(), &dir.path().join("file"), Path::new("/no/such/dir"), Path::new("here")] {
            assert!(claim_output(bad).is_err_and(|e| e.code() == Code::InvalidArgument), "{bad:?}");
        }
        assert_eq!(no_options(&HashMap::new()), Ok(()));
        assert!(no_options(&[("x".into(), "y".into())].into()).is_err_and(|e| e.to_string().contains('x')));
    }

    /// CRI-CHKP-06.
    #[test]
    fn configurations_are_found_by_name() {
        let manifest = Manifest { version: 1, containers: vec!["a".into(), "b".into()] };
        let of = |names: &[&str]| {
            let one = |name: &&str| v1::ContainerConfig {
                metadata: Some(v1::ContainerMetadata { name: (*name).into(), attempt: 0 }),
                ..Default::default()
            };
            matched(&manifest, &names.iter().map(one).collect::<Vec<_>>())
        };
        assert_eq!(of(&["b", "a"]), Ok(vec![1, 0]));
        for bad in [&[][..], &["a"], &["a", "b", "c"], &["a", "a"], &["a", ""]] {
            assert!(of(bad).is_err_and(|e| e.code() == Code::InvalidArgument), "{bad:?}");
        }
    }

    #[test]
    fn a_manifest_comes_back() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(read_manifest(dir.path()).is_err_and(|e| e.to_string().contains("no checkpoint of a pod")));
        let manifest = Manifest { version: 1, containers: vec!["a".into()] };
        write_manifest(dir.path(), &manifest).expect("written");
        assert_eq!(read_manifest(dir.path()), Ok(manifest));
    }
}
