//! The wire: decode, call, encode. Rules live in the rooms, error codes in [`crate::error`].

mod extension;
mod metrics;
mod sandbox;
mod task;

use crate::error::Error;
use crate::keeper::Keeper;
use std::collections::HashMap;
use std::sync::Arc;
use ttrpc::r#async::{Server, Service};

/// A server that speaks Task v3, the same as v2 (SHIM-OUT-13), Sandbox, and our extension.
pub(crate) fn server(keeper: &Arc<Keeper>) -> Server {
    let tasks =
        || containerd_shim_protos::shim_async::create_task(Arc::new(task::TaskService(Arc::clone(keeper))));
    let sandboxes = Arc::new(sandbox::SandboxService(Arc::clone(keeper)));
    let extension = Arc::new(extension::ExtensionService(Arc::clone(keeper)));
    Server::new()
        .register_service(tasks())
        .register_service(rename(tasks(), "containerd.task.v3.Task", "containerd.task.v2.Task"))
        .register_service(containerd_shim_protos::sandbox_async::create_sandbox(sandboxes))
        .register_service(cri_proto::keeper::keeper_ttrpc::create_keeper(extension))
}

/// The same methods under another service name.
fn rename(table: HashMap<String, Service>, from: &str, to: &str) -> HashMap<String, Service> {
    table
        .into_iter()
        .map(|(name, service)| (if name == from { to.to_owned() } else { name }, service))
        .collect()
}

/// Of every method: our error as theirs.
fn answer<T>(result: Result<T, Error>) -> ttrpc::Result<T> {
    result.map_err(Error::into_ttrpc)
}
