//! The wire: decode, call, encode. Rules live in the rooms, error codes in [`crate::error`].

mod extension;
mod metrics;
mod sandbox;
mod task;

use crate::error::Error;
use crate::keeper::Keeper;
use crate::upgrade::{Call, Kind};
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
    services.into_iter().map(|table| checked(table, keeper)).fold(Server::new(), Server::register_service)
}

/// The same services, which know rubbish when they see it, and take no calls once the keeper leaves.
fn checked(table: HashMap<String, Service>, keeper: &Arc<Keeper>) -> HashMap<String, Service> {
    let check = |(name, method): (String, Box<dyn MethodHandler + Send + Sync>)| {
        let checked = Checked { method, kind: Kind::of(&name), keeper: Arc::clone(keeper) };
        (name, Box::new(checked) as Box<dyn MethodHandler + Send + Sync>)
    };
    let service =
        |service: Service| Service { methods: service.methods.into_iter().map(check).collect(), ..service };
    table.into_iter().map(|(name, of)| (name, service(of))).collect()
}

/// A method that answers requests it cannot decode as what they are; to the crate their error is an unknown one.
struct Checked {
    method: Box<dyn MethodHandler + Send + Sync>,
    kind: Kind,
    keeper: Arc<Keeper>,
}

impl Checked {
    /// A client that must not lose its connection waits, for the next keeper, which finds the request on record, or for this
    /// one, should it stay. None: it is to connect again.
    async fn enter(&self) -> Option<Call> {
        let gate = &self.keeper.upgrade.gate;
        loop {
            match gate.enter(self.kind) {
                None if self.keeper.events.is_wanted() => gate.until(false).await,
                call => return call,
            }
        }
    }
}

#[async_trait]
impl MethodHandler for Checked {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let name = format!("{}/{}", request.service, request.method);
        let leaving = || {
            let text = "this keeper makes way for the next one: nothing of the call was done, connect again";
            Ok(Response::init_status(ttrpc::get_status(ttrpc::Code::ABORTED, text)))
        };
        let Some(_call) = self.enter().await else { return leaving() };
        // An attached client is told in its own words.
        let may_be_cut =
            self.kind == Kind::Wait && request.method != "Attach" && !self.keeper.events.is_wanted();
        let answer = tokio::select! {
            answer = self.method.handler(context, request) => answer,
            () = self.keeper.upgrade.gate.until(true), if may_be_cut => return leaving(),
        };
        // The methods' own errors are answers; only what was never decoded comes as an error.
        answer.or_else(|error| {
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
