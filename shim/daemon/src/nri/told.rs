//! When plugins are asked and told in the life of our pods and containers.

use super::{container, from_cri, pod};
use crate::containers::ContainerRecord;
use crate::daemon::{Container, Daemon, Pod, blocking};
use crate::error::{Error, Result};
use crate::pods::PodRecord;
use crate::spec::resources;
use cri_proto::nri::{self, Event};
use cri_proto::v1;
use serde_json::Value;

impl Daemon {
    /// Both as messages; the container's with its spec, read from its bundle. A pod that is gone has its id only.
    async fn messages(&self, record: &ContainerRecord) -> (nri::PodSandbox, nri::Container) {
        let file = record.bundle.join("config.json");
        let read = blocking(move || Ok::<_, Error>(std::fs::read(file).unwrap_or_default())).await;
        // Without its spec a container is still told of by what the record says.
        let spec = read.ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or(Value::Null);
        (self.nri_pod(&record.pod_id), container(record, &spec))
    }

    fn nri_pod(&self, id: &str) -> nri::PodSandbox {
        match self.pods.get(id) {
            Ok(found) => pod(&found.record()),
            Err(_) => nri::PodSandbox { id: id.into(), ..Default::default() },
        }
    }

    /// Before a container starts.
    pub(crate) async fn ask_to_start(&self, record: &ContainerRecord) -> Result<()> {
        if !self.nri.wants(Event::START_CONTAINER) {
            return Ok(());
        }
        let (pod, container) = self.messages(record).await;
        Ok(self.nri.start_container(&pod, &container).await?)
    }

    /// After something has happened.
    pub(crate) async fn tell_plugins(&self, event: Event, container: &Container) {
        if self.nri.wants(event) {
            let (pod, container) = self.messages(&container.record()).await;
            self.nri.tell(event, &pod, Some(&container)).await;
        }
    }

    /// Once for each container, however often it is called (CRI-STOP-13).
    pub(crate) async fn tell_stopped(&self, container: &Container) {
        let (pod, message) = self.last_messages(&container.record()).await;
        self.nri.stop_container(&pod, &message).await;
    }

    /// The messages of a container at its end, made before its files go; in full only if somebody wants them.
    pub(crate) async fn last_messages(&self, record: &ContainerRecord) -> (nri::PodSandbox, nri::Container) {
        if self.nri.wants(Event::STOP_CONTAINER) || self.nri.wants(Event::REMOVE_CONTAINER) {
            return self.messages(record).await;
        }
        let bare = nri::Container { id: record.id.clone(), ..Default::default() };
        (nri::PodSandbox { id: record.pod_id.clone(), ..Default::default() }, bare)
    }

    /// How plugins want a container's update to be; what they set goes over it (CRI-UPD-06).
    pub(crate) async fn ask_to_update(
        &self,
        record: &ContainerRecord,
        asked: &v1::LinuxContainerResources,
    ) -> Result<Option<nri::LinuxResources>> {
        if !self.nri.wants(Event::UPDATE_CONTAINER) {
            return Ok(None);
        }
        let (pod, container) = self.messages(record).await;
        Ok(self.nri.update_container(&pod, &container, from_cri(asked)).await?)
    }

    /// The kubelet changed the pod's group itself: plugins are asked, the values are stored (CRI-UPS-01).
    ///
    /// # Errors
    /// InvalidArgument for values that no container may have; Internal when they cannot be stored.
    pub(crate) async fn update_pod(
        &self,
        found: &Pod,
        overhead: Option<v1::LinuxContainerResources>,
        resources: Option<v1::LinuxContainerResources>,
    ) -> Result<()> {
        for asked in overhead.iter().chain(&resources) {
            resources::build(asked)?;
        }
        let _gate = found.gate.lock().await;
        let message = pod(&found.record());
        let asked = (overhead.as_ref().map(from_cri), resources.as_ref().map(from_cri));
        let label = found.record().label();
        self.nri
            .update_pod(&message, asked.0, asked.1)
            .await
            .map_err(|e| Error::from(e).of(format_args!("update pod {label}")))?;
        let saved = found.note(&self.records, |record: &mut PodRecord| {
            let linux = record.config.linux.get_or_insert_default();
            linux.overhead = overhead.or(linux.overhead.take());
            linux.resources = resources.or(linux.resources.take());
        });
        if !saved {
            let why =
                "the values hold until the daemon ends, but could not be written to the state directory";
            return Err(Error::internal(format!("update pod {label}: {why}")));
        }
        self.nri.tell(Event::POST_UPDATE_POD_SANDBOX, &pod(&found.record()), None).await;
        Ok(())
    }
}
