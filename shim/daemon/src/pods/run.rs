//! RunPodSandbox: intent, network namespace, network, files, the keeper's namespaces, READY.

use super::files::PodDir;
use super::{PodPhase, PodRecord, files};
use crate::daemon::{Daemon, Pod, blocking};
use crate::error::{Error, Result};
use crate::keeper::Shim;
use crate::names::Company;
use crate::rollback::Rollback;
use crate::telemetry::spans;
use cri_proto::v1::{self, ContainerEventType};
use slipway_nri::Admission;
use std::path::PathBuf;
use std::sync::Arc;

const METHOD: &str = "RunPodSandbox";

impl Daemon {
    /// Makes a pod and answers its id; the same request in flight is joined (CRI-RUN-09).
    pub(crate) async fn run_pod(
        self: &Arc<Self>,
        mut config: v1::PodSandboxConfig,
        handler: String,
        company: Company,
    ) -> Result<String> {
        if let Some(metadata) = &config.metadata {
            spans::about_pod(&format!("{}/{}", metadata.namespace, metadata.name));
        }
        super::parse::check(&config)?;
        let live = self.live();
        let Some(settings) = crate::handlers::find(&live, &handler) else {
            return Err(Error::invalid(format!(
                "runtime_handler {handler:?} is unknown; there is{} (or empty); runtime_handlers and [handlers.NAME] in the configuration add names",
                crate::handlers::names(&live).join(" ")
            )));
        };
        super::parse::add_sysctls(&mut config, &live.pods.default_sysctls);
        let options =
            config.linux.as_ref().and_then(|l| l.security_context.as_ref()?.namespace_options.as_ref());
        if options.map(super::user::mappings).transpose()?.flatten().is_some() {
            crate::handlers::check_pod(self, &handler, &settings, true).await?;
            let root = self.config.root.clone();
            blocking(move || super::user::possible(&root)).await?;
        }
        let id = crate::ids::new()?;
        let asked = config.linux.as_ref().map(|l| l.cgroup_parent.clone()).unwrap_or_default();
        let group = self.config.cgroups.pod(&asked, &id)?;
        let mut record = PodRecord::intent(id, config, handler, group.path, group.own);
        record.settings = settings;
        let (name, label) = (record.name(), record.label());
        let daemon = Arc::clone(self);
        let made = self.pod_names.enter(&name, company, async move { daemon.make_pod(record).await }).await;
        made.map_err(|e| e.of(format_args!("run pod {label}")))
    }

    async fn make_pod(self: Arc<Self>, record: PodRecord) -> Result<String> {
        let mut rollback = Rollback::default();
        match self.acquire(record.clone(), &mut rollback).await {
            Ok((ready, admission)) => {
                rollback.commit();
                let (id, pod) = (ready.id.clone(), Arc::new(Pod::new(ready)));
                self.pods.insert(Arc::clone(&pod));
                // From here on a plugin that joins finds it.
                drop(admission);
                self.watch_pod(&pod);
                self.announce(&id, &pod, ContainerEventType::ContainerCreatedEvent);
                self.announce(&id, &pod, ContainerEventType::ContainerStartedEvent);
                tracing::info!(pod = pod.record().label(), id, "pod is ready");
                Ok(id)
            }
            Err(error) => {
                let failed = rollback.undo().await;
                if !failed.is_empty() {
                    self.keep_for_cleanup(record, &failed);
                }
                Err(error)
            }
        }
    }

    /// What could not be given back stays visible as NOTREADY, so that stop and remove try again (CRI-RUN-11).
    fn keep_for_cleanup(&self, mut record: PodRecord, failed: &[&str]) {
        tracing::error!(
            pod = record.label(),
            "clean-up failed at {failed:?}; the pod stays listed as NOTREADY"
        );
        record.phase = PodPhase::NotReady { released: false };
        record.netns = self.netns_path(&record);
        self.pod_names.take(&record.name(), &record.id);
        let pod = Pod::new(record.clone());
        if let Err(error) = pod.set(&self.records, record) {
            tracing::error!("{error}");
        }
        self.pods.insert(Arc::new(pod));
    }

    /// Everything a pod holds, each with its undo beside it.
    async fn acquire(
        self: &Arc<Self>,
        mut record: PodRecord,
        rollback: &mut Rollback,
    ) -> Result<(PodRecord, Admission)> {
        let id = record.id.clone();
        record.netns = self.netns_path(&record);
        self.push_undo(rollback, "SELinux categories", id.clone(), |d, id| {
            d.selinux.free(&id);
            Ok(())
        });
        record.selinux = self.selinux.pod(&id, record.security().selinux_options.as_ref())?;
        self.push_undo(rollback, "record", id.clone(), |d, id| d.records.delete::<PodRecord>(&id));
        self.records.save(&record)?;
        if let Some(netns) = record.netns.clone() {
            let path = netns.clone();
            rollback
                .push("network namespace", blocking(move || slipway_runtime::sandbox::unpin_netns(&path)));
            // The pod's user namespace comes with it, and the keeper finds it there (CRI-RUN-13).
            let (path, user) = (netns.clone(), record.user());
            let pinned = blocking(move || slipway_runtime::sandbox::pin_netns(&path, user.as_ref()));
            self.telemetry.phase(METHOD, "network namespace", pinned).await?;
            let (daemon, network) = (Arc::clone(self), record.network(netns));
            let request = network.clone();
            rollback.push("network", async move {
                Ok(daemon.network.teardown(&request, Some(&request.netns)).await?)
            });
            let connected = self.telemetry.network("setup", self.network.setup(&network));
            record.attachment = Some(self.telemetry.phase(METHOD, "network", connected).await?);
        }
        self.push_undo(rollback, "pod files", id.clone(), |d, id| PodDir::new(&d.config, &id).remove());
        let (dir, pod) = (PodDir::new(&self.config, &id), record.clone());
        self.telemetry.phase(METHOD, "files", blocking(move || dir.make(&pod))).await?;
        let daemon = Arc::clone(self);
        let sandbox = id.clone();
        let mut config = record.config.clone();
        config.hostname = files::hostname(&record);
        let dir = PodDir::new(&self.config, &id);
        let group = self.config.cgroups.container(&record.cgroup_parent, &id);
        let shim = Shim::of(&record, group, &self.config.state);
        let patience = shim.as_ref().map(Shim::patience);
        rollback.push("namespaces", async move {
            // One that is still made must not be left to nobody.
            daemon.keeper.remove_made_sandbox(&sandbox, patience).await
        });
        let made = self.keeper.run_sandbox(&id, dir.path(), &config, record.netns.as_deref(), shim.as_ref());
        record.sandbox_pid = self.telemetry.phase(METHOD, "keeper: namespaces", made).await?;
        let admission = self.nri.admit().await;
        let (daemon, message) = (Arc::clone(self), crate::nri::pod(&record));
        let known = message.clone();
        rollback.push("NRI", async move {
            daemon.nri.remove_pod(&known).await;
            Ok(())
        });
        // Not ready before plugins agree (CRI-RUN-15).
        self.nri.run_pod(&message, &admission).await?;
        record.phase = PodPhase::Ready;
        self.records.save(&record)?;
        Ok((record, admission))
    }

    fn push_undo(
        self: &Arc<Self>,
        rollback: &mut Rollback,
        name: &'static str,
        id: String,
        undo: fn(&Self, String) -> Result<()>,
    ) {
        let daemon = Arc::clone(self);
        rollback.push(name, blocking(move || undo(&daemon, id)));
    }

    /// Where the pod's network namespace is pinned; none with the host's network (CRI-RUN-14).
    pub(crate) fn netns_path(&self, record: &PodRecord) -> Option<PathBuf> {
        (!record.host_network()).then(|| self.config.state.join("netns").join(&record.id))
    }
}
