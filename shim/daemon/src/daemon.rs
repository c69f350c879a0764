//! Everything the services work on, in one place; the services themselves hold no rules.

use crate::config::{Config, File};
use crate::containers::ContainerRecord;
use crate::containers::shim_stats::Told;
use crate::containers::stats::Rates;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::handlers::Features;
use crate::keeper::Keeper;
use crate::names::Names;
use crate::object::{Object, Table};
use crate::pods::PodRecord;
use crate::records::Records;
use crate::selinux::Selinux;
use crate::telemetry::Telemetry;
use crate::user::Accounts;
use slipway_images::Store;
use slipway_network::Network;
use slipway_nri::Nri;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

pub(crate) type Pod = Object<PodRecord>;
pub(crate) type Container = Object<ContainerRecord>;

/// The daemon's parts. Cheap to share; no lock over all pods anywhere.
#[derive(Debug)]
pub(crate) struct Daemon {
    /// What this daemon was started with; keys that may change meanwhile: [`Daemon::live`].
    pub(crate) config: Config,
    live: RwLock<Arc<File>>,
    pub(crate) keeper: Keeper,
    pub(crate) images: Store,
    pub(crate) network: Network,
    pub(crate) nri: Arc<Nri>,
    pub(crate) records: Records,
    pub(crate) pods: Table<PodRecord>,
    pub(crate) containers: Table<ContainerRecord>,
    pub(crate) pod_names: Names,
    pub(crate) container_names: Names,
    pub(crate) events: Events,
    pub(crate) rates: Rates,
    /// What shims say that containers use.
    pub(crate) told: Told,
    pub(crate) features: Features,
    pub(crate) accounts: Accounts,
    pub(crate) selinux: Selinux,
    /// Held while a pod's view of an image is looked for and mounted.
    pub(crate) views: Mutex<()>,
    pub(crate) telemetry: Arc<Telemetry>,
}

impl Daemon {
    /// Opens stores and directories; starts nothing.
    pub(crate) fn open(config: Config) -> anyhow::Result<Arc<Self>> {
        for fault in &config.faults {
            tracing::error!("{fault}");
        }
        let daemon = Arc::new(Self {
            keeper: Keeper::new(&config),
            images: Store::open(config.images())?,
            network: Network::open(config.network())?,
            nri: Nri::new(config.nri.clone()),
            records: Records::open(&config.state)?,
            pods: Table::default(),
            containers: Table::default(),
            pod_names: Names::default(),
            container_names: Names::default(),
            events: Events::default(),
            rates: Rates::default(),
            told: Told::default(),
            features: Features::default(),
            accounts: Accounts::default(),
            selinux: Selinux::new(&config.file.selinux),
            views: Mutex::default(),
            telemetry: Arc::default(),
            live: RwLock::new(Arc::new(config.file.clone())),
            config,
        });
        daemon.limit_writable_layers(daemon.config.file.containers.layer_limit());
        Ok(daemon)
    }

    /// `bytes`: 0 for no limit. A node whose disk cannot limit them runs on without, and says so.
    pub(crate) fn limit_writable_layers(&self, bytes: u64) {
        if let Err(error) = self.images.limit_writable_layers(bytes) {
            tracing::warn!("containers.writable_layer_limit has no effect: {error}");
        }
    }

    /// The configuration as it was read last: for keys that SIGHUP changes (`config::keys::LIVE`).
    pub(crate) fn live(&self) -> Arc<File> {
        // Poisoned or not, the pointer in it is whole.
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_live(&self, file: File) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(file);
    }

    /// The containers of one pod.
    pub(crate) fn containers_of(&self, pod: &str) -> Vec<Arc<Container>> {
        self.containers.list().into_iter().filter(|c| c.record().pod_id == pod).collect()
    }

    /// Tells all listeners what became of a container (or of a pod: then `id` is the pod's).
    pub(crate) fn announce(&self, id: &str, pod: &Pod, kind: cri_proto::v1::ContainerEventType) {
        let statuses = self.containers_of(&pod.id).iter().map(|c| c.record().status()).collect();
        self.events.publish(cri_proto::v1::ContainerEventResponse {
            container_id: id.into(),
            container_event_type: kind.into(),
            created_at: 0,
            pod_sandbox_status: Some(pod.record().status()),
            containers_statuses: statuses,
        });
    }
}

/// Runs a synchronous call that may block for milliseconds where it holds nobody up.
pub(crate) async fn blocking<T, E>(call: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    E: Into<Error> + Send + 'static,
{
    let span = tracing::Span::current();
    let done = tokio::task::spawn_blocking(move || span.in_scope(call).map_err(Into::into)).await;
    done.unwrap_or_else(|e| Err(Error::internal(format!("a worker thread failed: {e}"))))
}
