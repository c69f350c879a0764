//! The events: who is asked or told, in which order, and what becomes of the answers.

use crate::error::{Error, Kind, Result};
use crate::merge::{self, Creation, Updates};
use crate::plugin::Outcome;
use crate::{Admission, Nri};
use cri_proto::nri::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, Event, LinuxResources,
    PluginInstance, PodSandbox, UpdatePodSandboxRequest, ValidateContainerAdjustmentRequest,
};
use protobuf::MessageField;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Failures that nobody waits for.
pub(crate) fn report(failed: &[ContainerUpdate], asked_by: &str) {
    for update in failed {
        tracing::warn!(container = update.container_id, "update asked by NRI plugin {asked_by} failed");
    }
}

impl Nri {
    /// Asks whether a pod may be; when one says no, those that know it are told of its end (CRI-RUN-16).
    ///
    /// # Errors
    /// Refused.
    pub async fn run_pod(&self, pod: &PodSandbox, _: &Admission) -> Result<()> {
        self.lives.know(std::iter::once(&pod.id));
        let outcome = self.ask(Event::RUN_POD_SANDBOX, pod, None).await;
        if outcome.is_err() {
            self.stop_pod(pod).await;
            self.remove_pod(pod).await;
        }
        outcome
    }

    /// Told before a pod's resources are changed (CRI-UPS-01).
    ///
    /// # Errors
    /// Refused.
    pub async fn update_pod(
        &self,
        pod: &PodSandbox,
        overhead: Option<LinuxResources>,
        resources: Option<LinuxResources>,
    ) -> Result<()> {
        let request = UpdatePodSandboxRequest {
            pod: Some(pod.clone()).into(),
            overhead_linux_resources: overhead.into(),
            linux_resources: resources.into(),
            ..Default::default()
        };
        for plugin in self.plugins() {
            plugin.update_pod(&request).await?;
        }
        Ok(())
    }

    /// Told once (CRI-PSTOP-07).
    pub async fn stop_pod(&self, pod: &PodSandbox) {
        self.lives.stop(&pod.id, self.tell(Event::STOP_POD_SANDBOX, pod, None)).await;
    }

    /// Told once; of the stop first.
    pub async fn remove_pod(&self, pod: &PodSandbox) {
        self.stop_pod(pod).await;
        if self.lives.forget(&pod.id) {
            self.tell(Event::REMOVE_POD_SANDBOX, pod, None).await;
        }
    }

    /// Asks everybody how a container is to be made, and validators whether the outcome may be (NRI-18 to NRI-27).
    ///
    /// # Errors
    /// Refused, Conflict, Rejected; those that know the container have been told of its end.
    pub async fn create_container(
        &self,
        pod: &PodSandbox,
        container: Container,
        _: &Admission,
    ) -> Result<ContainerAdjustment> {
        self.lives.know(std::iter::once(&container.id));
        let mut creation = Creation::of(container.clone());
        if let Err(error) = self.collect(pod, &container, &mut creation).await {
            self.remove_container(pod, &container).await;
            return Err(error);
        }
        let (_, updates, evict) = creation.updates.split(&container.id);
        self.carry_out(updates, evict, "while a container was made").await;
        Ok(creation.adjust)
    }

    async fn collect(&self, pod: &PodSandbox, pristine: &Container, creation: &mut Creation) -> Result<()> {
        let plugins = self.plugins();
        let mut answered = Vec::new();
        for plugin in &plugins {
            match plugin.create_container(pod, &creation.container).await? {
                Outcome::Answered(answer) => creation.take(&answer, &plugin.label())?,
                Outcome::NotAsked => {}
                // Who was dropped has not had its say: a required plugin fails closed.
                Outcome::Gone => continue,
            }
            answered.push(plugin.instance());
        }
        if let Some(validator) = &self.options.validator {
            validator.check(pod, pristine, &creation.updates.owners, &answered)?;
        }
        self.validate(pod, pristine, creation, answered).await
    }

    /// All at the same time; the first refusal counts.
    async fn validate(
        &self,
        pod: &PodSandbox,
        pristine: &Container,
        creation: &Creation,
        answered: Vec<PluginInstance>,
    ) -> Result<()> {
        let validators: Vec<_> =
            self.plugins().into_iter().filter(|p| p.wants(Event::VALIDATE_CONTAINER_ADJUSTMENT)).collect();
        if validators.is_empty() {
            return Ok(());
        }
        let request = Arc::new(ValidateContainerAdjustmentRequest {
            pod: Some(pod.clone()).into(),
            container: Some(pristine.clone()).into(),
            adjust: Some(creation.adjust.clone()).into(),
            update: creation.updates.all().to_vec(),
            owners: Some(creation.updates.owners.to_message()).into(),
            plugins: answered,
            ..Default::default()
        });
        let mut asked = JoinSet::new();
        for validator in validators {
            let request = Arc::clone(&request);
            asked.spawn(async move { validator.validate(&request).await });
        }
        let mut outcome = Ok(());
        while let Some(one) = asked.join_next().await {
            outcome = outcome.and(one.unwrap_or_else(|e| Err(Error::new(Kind::Rejected, e.to_string()))));
        }
        outcome
    }

    /// Asks whether a container may start.
    ///
    /// # Errors
    /// Refused.
    pub async fn start_container(&self, pod: &PodSandbox, container: &Container) -> Result<()> {
        self.ask(Event::START_CONTAINER, pod, Some(container)).await
    }

    /// Asks how a container's resources are to be changed: what plugins set goes over what the client asked (NRI-28).
    ///
    /// # Errors
    /// Refused, Conflict.
    pub async fn update_container(
        &self,
        pod: &PodSandbox,
        container: &Container,
        asked: LinuxResources,
    ) -> Result<Option<LinuxResources>> {
        let mut updates = Updates::default();
        let mut seen = MessageField::some(asked);
        for plugin in self.plugins() {
            let answer = plugin.update_container(pod, container, &seen).await?.answer();
            if let Some(answer) = answer {
                updates.take(&answer.update, &plugin.label())?;
                updates.evict.extend(answer.evict);
                merge::show(&mut seen, &answer.update, &container.id);
            }
        }
        let (own, others, evict) = updates.split(&container.id);
        self.carry_out(others, evict, "while a container was updated").await;
        Ok(own)
    }

    /// Told once, on a stop or on the container's own end (NRI-30). Nobody can hold the container alive.
    pub async fn stop_container(&self, pod: &PodSandbox, container: &Container) {
        let told = async {
            let mut updates = Updates::default();
            for plugin in self.plugins() {
                let taken = match plugin.stop_container(pod, container).await {
                    Ok(outcome) => updates.take(&outcome.answer().unwrap_or_default(), &plugin.label()),
                    Err(error) => Err(error),
                };
                if let Err(error) = taken {
                    tracing::warn!("{error}");
                }
            }
            let (_, others, _) = updates.split(&container.id);
            self.carry_out(others, Vec::new(), "while a container stopped").await;
        };
        self.lives.stop(&container.id, told).await;
    }

    /// Told once; of the stop first (NRI-31).
    pub async fn remove_container(&self, pod: &PodSandbox, container: &Container) {
        self.stop_container(pod, container).await;
        if self.lives.forget(&container.id) {
            self.tell(Event::REMOVE_CONTAINER, pod, Some(container)).await;
        }
    }

    /// Tells what has happened already: whatever a plugin says is only logged (NRI-32).
    pub async fn tell(&self, event: Event, pod: &PodSandbox, container: Option<&Container>) {
        for plugin in self.plugins() {
            if let Err(error) = plugin.tell(event, pod, container).await {
                tracing::warn!("{error}");
            }
        }
    }

    async fn ask(&self, event: Event, pod: &PodSandbox, container: Option<&Container>) -> Result<()> {
        for plugin in self.plugins() {
            plugin.tell(event, pod, container).await?;
        }
        Ok(())
    }

    async fn carry_out(&self, updates: Vec<ContainerUpdate>, evict: Vec<ContainerEviction>, when: &str) {
        let Some(host) = self.host.get() else { return };
        if !evict.is_empty() {
            host.evict(evict).await;
        }
        if !updates.is_empty() {
            report(&host.update(updates).await, when);
        }
    }
}
