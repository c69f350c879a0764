//! The wire: decode, call, encode. Rules live in the rooms, error codes in [`crate::error`].

mod extension;
mod metrics;
mod sandbox;
mod task;

use crate::error::Error;
use crate::keeper::Keeper;
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::Arc;
use ttrpc::r#async::{MethodHandler, Server, Service, TtrpcContext};
use ttrpc::proto::ResponseInit as _;
use ttrpc::{Request, Response};

/// A server that speaks Task v3, the same as v2 (SHIM-OUT-13), Sandbox, and our extension.
pub(crate) fn server(keeper: &Arc<Keeper>) -> Server {
    let tasks =
        || containerd_shim_protos::shim_async::create_task(Arc::new(task::TaskService(Arc::clone(keeper))));
    let sandboxes = Arc::new(sandbox::SandboxService(Arc::clone(keeper)));
    let extension = Arc::new(extension::ExtensionService(Arc::clone(keeper)));
    let services = [
        tasks(),
        rename(tasks(), "containerd.task.v3.Task", "containerd.task.v2.Task"),
        containerd_shim_protos::sandbox_async::create_sandbox(sandboxes),
        cri_proto::keeper::keeper_ttrpc::create_keeper(extension),
    ];
    services.into_iter().map(checked).fold(Server::new(), Server::register_service)
}

/// The same services, which know rubbish when they see it.
fn checked(table: HashMap<String, Service>) -> HashMap<String, Service> {
    let check = |(name, method)| (name, Box::new(Checked(method)) as Box<dyn MethodHandler + Send + Sync>);
    let service =
        |service: Service| Service { methods: service.methods.into_iter().map(check).collect(), ..service };
    table.into_iter().map(|(name, of)| (name, service(of))).collect()
}

/// A method that answers requests it cannot decode as what they are; to the crate their error is an unknown one.
struct Checked(Box<dyn MethodHandler + Send + Sync>);

#[async_trait]
impl MethodHandler for Checked {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let name = format!("{}/{}", request.service, request.method);
        // The methods' own errors are answers; only what was never decoded comes as an error.
        self.0.handler(context, request).await.or_else(|error| {
            let text = format!("{name}: the request cannot be decoded: {error}");
            Ok(Response::init_status(ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, text)))
        })
    }
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
