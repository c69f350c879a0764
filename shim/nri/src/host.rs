//! What this room needs of the runtime around it.

use async_trait::async_trait;
use cri_proto::nri::{Container, ContainerEviction, ContainerUpdate, PodSandbox};

/// The runtime, as plugins see it.
#[async_trait]
pub trait Host: Send + Sync {
    /// All pods that are ready and all containers that have not ended. Must not wait.
    fn snapshot(&self) -> (Vec<PodSandbox>, Vec<Container>);
    /// Changes containers; answers what failed and was not to be ignored. Unknown ones are ignored.
    async fn update(&self, updates: Vec<ContainerUpdate>) -> Vec<ContainerUpdate>;
    /// Stops containers at once; failures are logged.
    async fn evict(&self, evictions: Vec<ContainerEviction>);
}
