//! CreateContainer: image, user, spec, writable layer, bundle, and the keeper's parked process.

use super::{ContainerRecord, Phase, parse};
use crate::checkpoints::Source;
use crate::daemon::{Container, Daemon, Pod, blocking};
use crate::error::{Error, Result};
use crate::keeper::{NewTask, Runtime};
use crate::pods::PodPhase;
use crate::pods::files::PodDir;
use crate::rollback::Rollback;
use crate::telemetry::laps;
use crate::{cdi, handlers, keeper, signals, spec};
use cri_proto::nri::Event;
use cri_proto::v1::{self, ContainerEventType};
use slipway_images::Image;
use slipway_nri::Admission;
use slipway_runtime::idmap::IdMappings;
use slipway_runtime::rootfs::Overlay;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path};
use std::sync::Arc;
use tonic::Code;

const METHOD: &str = "CreateContainer";

impl Daemon {
    /// Makes a container in a READY pod and answers its id.
    pub(crate) async fn create_container(
        self: &Arc<Self>,
        pod: &str,
        config: Option<v1::ContainerConfig>,
    ) -> Result<String> {
        self.create_container_of(pod, config, None).await
    }

    /// The same of a checkpoint; none: of whatever its image field names.
    pub(crate) async fn create_container_of(
        self: &Arc<Self>,
        pod: &str,
        config: Option<v1::ContainerConfig>,
        source: Option<Source>,
    ) -> Result<String> {
        let pod = self.pods.get(pod)?;
        let config = config.ok_or_else(|| Error::invalid("config is missing"))?;
        let record = pod.record();
        let (checked, sandbox) = (config.clone(), Arc::clone(&record));
        // It looks at mount sources: one on a dead network filesystem must hold up this request only.
        let checked = blocking(move || parse::check(&checked, &sandbox));
        self.telemetry.phase(METHOD, "check", checked).await?;
        let metadata = config.metadata.clone().unwrap_or_default();
        let name = format!("{}/{}/{}", pod.id, metadata.name, metadata.attempt);
        let daemon = Arc::clone(self);
        let made = self
            .container_names
            .once(&name, async move { daemon.make_container(&pod, config, source).await })
            .await;
        made.map_err(|e| e.of(format_args!("create container {} in pod {}", metadata.name, record.label())))
    }

    async fn make_container(
        self: Arc<Self>,
        pod: &Arc<Pod>,
        config: v1::ContainerConfig,
        source: Option<Source>,
    ) -> Result<String> {
        let mut rollback = Rollback::default();
        match self.build(pod, config, source, &mut rollback).await {
            Ok((record, admission)) => {
                rollback.commit();
                let id = record.id.clone();
                let container = Arc::new(Container::new(record));
                self.containers.insert(Arc::clone(&container));
                // From here on a plugin that joins finds it.
                drop(admission);
                // A pod stopped meanwhile has not seen this container: it must not stay behind.
                if pod.record().phase != PodPhase::Ready {
                    self.remove_container(&container).await?;
                    return Err(Error::state("the pod was stopped meanwhile"));
                }
                self.announce(&id, pod, ContainerEventType::ContainerCreatedEvent);
                self.tell_plugins(Event::POST_CREATE_CONTAINER, &container).await;
                Ok(id)
            }
            Err(error) => {
                rollback.undo().await;
                Err(error)
            }
        }
    }

    async fn build(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        config: v1::ContainerConfig,
        source: Option<Source>,
        rollback: &mut Rollback,
    ) -> Result<(ContainerRecord, Admission)> {
        let sandbox = pod.record();
        if sandbox.phase != PodPhase::Ready {
            return Err(Error::state("the pod is not ready: it was stopped, or its namespaces are gone"));
        }
        let handler = &sandbox.settings;
        handlers::check_container(self, &sandbox.handler, handler, &config).await?;
        let id = crate::ids::new()?;
        let wanted = config.image.as_ref().map(|i| i.image.clone()).unwrap_or_default();
        let (image, thawing) = match source.or_else(|| self.checkpoint_named(&wanted)) {
            None => {
                let image = self.image_to_run(&wanted)?;
                self.images.admit(&image, asked_image(&config))?;
                (image, None)
            }
            Some(source) => {
                let thaw = self.thaw(&id, &source, &config, &sandbox, rollback);
                let thawing = Arc::new(self.telemetry.phase(METHOD, "checkpoint", thaw).await?);
                (Arc::clone(&thawing.image), Some(thawing))
            }
        };
        let mut record = self.intent(&id, &sandbox, config, &image)?;
        record.restored = thawing.is_some();

        let daemon = Arc::clone(self);
        let (view, security) =
            (Arc::clone(&image), record.config.linux.clone().unwrap_or_default().security_context);
        let identity =
            blocking(move || daemon.accounts.resolve(&daemon.images, &view, &security.unwrap_or_default()));
        let identity = self.telemetry.phase(METHOD, "user", identity).await?;
        record.user = identity.to_cri();
        self.label(&mut record, &sandbox, rollback)?;
        let target = self.target_pid(&record, pod)?;
        let (asked, dirs) = (record.config.clone(), self.live().cdi.spec_dirs.clone());
        let edits = blocking(move || cdi::edits(&asked, &dirs));
        let cdi = self.telemetry.phase(METHOD, "devices", edits).await?;

        let owner = id.clone();
        let daemon = Arc::clone(self);
        rollback.push("record", blocking(move || daemon.records.delete::<ContainerRecord>(&owner)));
        self.records.save(&record)?;
        let sources = self.mount_sources(&mut record).await?;
        let layer = self.writable_layer(&image, &id, sandbox.user(), rollback);
        let mut overlay = self.telemetry.phase(METHOD, "writable layer", layer).await?;
        overlay.label = record.selinux.as_ref().map(|labels| labels.file.clone());
        let volumes = self.volumes(&image, &record).await?;
        let relabelled = self.relabel(&record, &sandbox, &sources, &volumes);
        self.telemetry.phase(METHOD, "SELinux labels", relabelled).await?;
        let built = spec::build(&spec::Inputs {
            pod: &sandbox,
            container: &record,
            image: &image.config,
            identity: &identity,
            pod_dir: &PodDir::new(&self.config, &sandbox.id),
            sources: &sources,
            volumes: &volumes,
            cdi: &cdi,
            defaults: &self.live().containers,
            handler,
            target_pid: target,
        })?;
        let profile = built.process().as_ref().and_then(|process| process.apparmor_profile().as_deref());
        if profile == Some(crate::apparmor::DEFAULT) {
            // Somebody may have unloaded it; nothing is done if not.
            blocking(crate::apparmor::load).await?;
        }
        let mut built =
            serde_json::to_value(built).map_err(|e| Error::internal(format!("encode the spec: {e}")))?;
        let admission = self.nri.admit().await;
        self.adjust(&mut record, &mut built, &sandbox, rollback, &admission).await?;
        if let Some(thawing) = &thawing {
            thawing.adopt(&mut built)?;
            let filled = self.fill(thawing, &record, &volumes, rollback);
            self.telemetry.phase(METHOD, "checkpoint: files", filled).await?;
        }
        let dir = record.bundle.clone();
        rollback.push("bundle", blocking(move || remove_tree(&dir)));
        let (dir, text) = (record.bundle.clone(), serde_json::to_vec(&built));
        let text = text.map_err(|e| Error::internal(format!("encode the spec: {e}")))?;
        let written = blocking(move || write_bundle(&dir, &text));
        self.telemetry.phase(METHOD, "bundle", written).await?;
        let (daemon, task) = (Arc::clone(self), id.clone());
        rollback.push("task", async move { daemon.discard_task(&task).await });
        let runtime = Runtime::of(handler, &sandbox.handler, &self.config.state);
        let task = NewTask {
            id: &id,
            bundle: &record.bundle,
            rootfs: &overlay,
            terminal: record.config.tty,
            log: self.log_uri(&record),
            checkpoint: thawing.map(|thawing| thawing.images()),
            criu: self.config.file.checkpoints.criu.as_deref(),
            runtime: runtime.as_ref(),
            patience: keeper::patience(handler),
        };
        let made = laps::traced(&self.keeper, &id, self.keeper.create_task(&task));
        self.telemetry.phase(METHOD, "keeper: create", made).await?;
        record.phase = Phase::Created;
        self.records.save(&record)?;
        Ok((record, admission))
    }

    fn image_to_run(&self, wanted: &str) -> Result<Arc<Image>> {
        let image = self.images.find(wanted);
        let image = image.ok_or_else(|| {
            Error::not_found(format!("image {wanted:?} is not in the store: pull it first"))
        })?;
        if image.is_artifact {
            let why = "is an artifact: files to be mounted as an image volume, with nothing to run";
            return Err(Error::invalid(format!("image {wanted:?} {why}")));
        }
        Ok(image)
    }

    /// Lets plugins change what is about to be made (NRI-25).
    async fn adjust(
        self: &Arc<Self>,
        record: &mut ContainerRecord,
        spec: &mut serde_json::Value,
        pod: &crate::pods::PodRecord,
        rollback: &mut Rollback,
        admission: &Admission,
    ) -> Result<()> {
        if !self.nri.concerns_creation() {
            return Ok(());
        }
        let (pod, message) = (crate::nri::pod(pod), crate::nri::container(record, spec));
        let (daemon, of_pod, of_container) = (Arc::clone(self), pod.clone(), message.clone());
        rollback.push("NRI", async move {
            daemon.nri.remove_container(&of_pod, &of_container).await;
            Ok(())
        });
        let adjust = self.nri.create_container(&pod, message, admission).await?;
        let names = adjust.CDI_devices.iter().map(|d| v1::CdiDevice { name: d.name.clone() }).collect();
        let (asked, dirs) = (
            v1::ContainerConfig { cdi_devices: names, ..Default::default() },
            self.live().cdi.spec_dirs.clone(),
        );
        let edits = blocking(move || cdi::edits(&asked, &dirs)).await?;
        record.nri = crate::nri::apply(spec, &adjust, &edits)?;
        if !adjust.linux.cgroups_path.is_empty() {
            record.cgroup.clone_from(&adjust.linux.cgroups_path);
        }
        Ok(())
    }

    fn intent(
        &self,
        id: &str,
        pod: &crate::pods::PodRecord,
        config: v1::ContainerConfig,
        image: &Image,
    ) -> Result<ContainerRecord> {
        let (stop_signal, stop_signal_name) =
            signals::effective(config.stop_signal, &image.config.stop_signal)?;
        let named = config.image.as_ref().map(|i| i.image.clone()).unwrap_or_default();
        let image_name = image.repo_tags.first().cloned().unwrap_or(named);
        let image_ref = image.repo_digests.first().cloned().unwrap_or_else(|| image.id.clone());
        Ok(ContainerRecord {
            id: id.into(),
            pod_id: pod.id.clone(),
            created_at: crate::clock::now(),
            image_id: image.id.clone(),
            image_name,
            image_ref,
            log_path: parse::log_path(&pod.config.log_directory, &config.log_path)?,
            user: v1::LinuxContainerUser::default(),
            stop_signal,
            stop_signal_name,
            cgroup: self.config.cgroups.container(&pod.cgroup_parent, id),
            bundle: self.config.state.join("containers").join(id),
            nri: serde_json::Value::Null,
            restored: false,
            selinux: None,
            phase: Phase::Creating,
            config,
        })
    }

    async fn writable_layer(
        self: &Arc<Self>,
        image: &Arc<Image>,
        id: &str,
        user: Option<IdMappings>,
        undo: &mut Rollback,
    ) -> Result<Overlay> {
        let (daemon, owner) = (Arc::clone(self), id.to_owned());
        undo.push("writable layer", blocking(move || daemon.images.release(&owner)));
        let (daemon, image, owner) = (Arc::clone(self), Arc::clone(image), id.to_owned());
        blocking(move || daemon.images.prepare(&image, &owner, user.as_ref())).await
    }

    /// pid=TARGET joins the namespace of a running container of the same pod (CRI-NS-05).
    fn target_pid(&self, record: &ContainerRecord, pod: &Pod) -> Result<Option<u32>> {
        let options =
            record.config.linux.as_ref().and_then(|l| l.security_context.as_ref()?.namespace_options.clone());
        let Some(options) = options.filter(|o| o.pid() == v1::NamespaceMode::Target) else { return Ok(None) };
        let target = self.containers.get(&options.target_id)?.record();
        match target.phase {
            Phase::Running { pid, .. } if target.pod_id == pod.id => {
                self.check_pid(&target, pod, pid)?;
                Ok(Some(pid))
            }
            _ => Err(Error::invalid(format!(
                "namespace_options.target_id {:?} is not a running container of this pod",
                options.target_id
            ))),
        }
    }

    /// A shim may tell any pid for a container, its own on this host even: only what is in the container's own group is its.
    fn check_pid(&self, target: &ContainerRecord, pod: &Pod, pid: u32) -> Result<()> {
        let Some(shim) = pod.record().settings.shim.clone() else { return Ok(()) };
        let inside = slipway_runtime::cgroup::Cgroup::open(&target.cgroup).and_then(|group| group.pids());
        if inside.is_ok_and(|pids| pids.iter().any(|inside| inside.cast_unsigned() == pid)) {
            return Ok(());
        }
        let (label, shim) = (target.label(), shim.display());
        Err(Error::invalid(format!(
            "namespace_options.target_id: the processes of {label} are not on this host but where {shim} has them: nothing can join them"
        )))
    }

    fn log_uri(&self, record: &ContainerRecord) -> String {
        // CRI-CC-10.
        let stdin = match (record.config.stdin, record.config.stdin_once) {
            (false, _) => "",
            (true, false) => "&stdin=1",
            (true, true) => "&stdin=once",
        };
        let max_line = self.live().logs.max_line;
        if record.log_path.is_empty() {
            return format!("cri-log:?max_line={max_line}{stdin}");
        }
        // The pod's own directory and what is below it: a container may be able to write there, and to plant links.
        let own = Path::new(&record.config.log_path)
            .components()
            .filter(|c| matches!(c, Component::Normal(_)))
            .count()
            + 1;
        format!("cri-log://{}?max_line={max_line}&own={own}{stdin}", record.log_path)
    }

    /// Kills and forgets a task in any state; unknown is success.
    pub(crate) async fn discard_task(&self, id: &str) -> Result<()> {
        self.keeper.kill_made(id).await?;
        match self.keeper.wait_task(id).await {
            // Never made, or forgotten meanwhile by whoever watched its end.
            Err(error) if error.code() == Code::NotFound => return Ok(()),
            ended => ended?,
        };
        self.keeper.delete(id, "").await
    }
}

/// The image as the pod names it; the kubelet itself asks by the id that a pull gave it.
fn asked_image(config: &v1::ContainerConfig) -> &str {
    let Some(asked) = &config.image else { return "" };
    if asked.user_specified_image.is_empty() { &asked.image } else { &asked.user_specified_image }
}

fn write_bundle(dir: &Path, config: &[u8]) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| Error::io("make bundle", dir, &e))?;
    let file = dir.join("config.json");
    fs::write(&file, config).map_err(|e| Error::io("write bundle", &file, &e))
}

/// Missing is success.
pub(crate) fn remove_tree(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir, &e)),
        _ => Ok(()),
    }
}
