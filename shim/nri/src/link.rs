//! A connection with a plugin up to its registration: what we serve on it, and what we call it by.

use crate::error::{Error, Kind, Result};
use crate::host::Host;
use crate::mux::{self, Trunk};
use async_trait::async_trait;
use cri_proto::nri::nri_ttrpc::{PluginClient, Runtime, create_runtime};
use cri_proto::nri::{Empty, RegisterPluginRequest, UpdateContainersRequest, UpdateContainersResponse};
use futures_core::Stream;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use ttrpc::asynchronous::transport::{Listener, Socket};
use ttrpc::asynchronous::{Client, Server, TtrpcContext};

/// Index and name.
type Identity = (String, String);

/// A registered plugin's connection.
pub(crate) struct Link {
    trunk: Trunk,
    client: Client,
    identity: Identity,
}

impl Link {
    /// Waits for the plugin to register (NRI-10). `known` is what the file name of a launched one says: that counts.
    ///
    /// # Errors
    /// Refused: nothing in time, or an impossible name.
    pub(crate) async fn open(
        stream: UnixStream,
        known: Option<Identity>,
        limit: Duration,
        host: Arc<dyn Host>,
    ) -> Result<Self> {
        let mux = mux::split(stream);
        let (tell, told) = oneshot::channel();
        let ears = Ears { host, known, tell: Mutex::new(Some(tell)), identity: Mutex::default() };
        let mut server = Server::new()
            .add_listener(Listener::new(Once(Some(mux.runtime))))
            .register_service(create_runtime(Arc::new(ears)));
        let failed = |why: String| Error::new(Kind::Refused, format!("NRI plugin: {why}"));
        server.start().await.map_err(|e| failed(e.to_string()))?;
        // It serves as long as it lives.
        let closed = mux.trunk.watch();
        tokio::spawn(async move {
            closed.await;
            drop(server);
        });
        let client = Client::new(Socket::new(mux.plugin));
        let identity = tokio::select! {
            told = tokio::time::timeout(limit, told) => match told {
                Ok(Ok(identity)) => identity,
                Ok(Err(_)) => return Err(failed("its registration was refused".into())),
                Err(_) => return Err(failed(format!("no registration within {limit:?}"))),
            },
            () = mux.trunk.closed() => return Err(failed("it closed the connection before it registered".into())),
        };
        Ok(Self { trunk: mux.trunk, client, identity })
    }

    pub(crate) fn client(&self) -> PluginClient {
        PluginClient::new(self.client.clone())
    }

    pub(crate) fn index(&self) -> String {
        self.identity.0.clone()
    }

    pub(crate) fn name(&self) -> String {
        self.identity.1.clone()
    }

    pub(crate) fn label(&self) -> String {
        format!("{}-{}", self.identity.0, self.identity.1)
    }

    pub(crate) async fn closed(&self) {
        self.trunk.closed().await;
    }

    pub(crate) fn close(&self) {
        self.trunk.close();
    }
}

/// What a plugin may call.
struct Ears {
    host: Arc<dyn Host>,
    known: Option<Identity>,
    /// Taken by the first registration.
    tell: Mutex<Option<oneshot::Sender<Identity>>>,
    identity: Mutex<Option<String>>,
}

#[async_trait]
impl Runtime for Ears {
    async fn register_plugin(&self, _: &TtrpcContext, asked: RegisterPluginRequest) -> ttrpc::Result<Empty> {
        let tell = lock(&self.tell).take();
        let Some(tell) = tell else {
            return Err(invalid("this connection is registered already".into()));
        };
        let identity = self.known.clone().unwrap_or((asked.plugin_idx, asked.plugin_name));
        check(&identity.0, &identity.1).map_err(invalid)?;
        *lock(&self.identity) = Some(format!("{}-{}", identity.0, identity.1));
        // Nobody listens any more: the time is up, and the connection closes.
        let _ = tell.send(identity);
        Ok(Empty::new())
    }

    /// NRI-29.
    async fn update_containers(
        &self,
        _: &TtrpcContext,
        asked: UpdateContainersRequest,
    ) -> ttrpc::Result<UpdateContainersResponse> {
        let Some(plugin) = lock(&self.identity).clone() else {
            return Err(invalid("register first".into()));
        };
        tracing::debug!(
            plugin,
            updates = asked.update.len(),
            evictions = asked.evict.len(),
            "asked by an NRI plugin"
        );
        self.host.evict(asked.evict).await;
        let failed = self.host.update(asked.update).await;
        Ok(UpdateContainersResponse { failed, ..Default::default() })
    }
}

/// A poisoned lock only means that a holder panicked; what it holds is whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn invalid(why: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, why))
}

/// NRI-11.
pub(crate) fn check(index: &str, name: &str) -> Result<(), String> {
    if index.len() != 2 || !index.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("plugin index {index:?} is not two digits"));
    }
    let possible = |b: u8| b.is_ascii_alphanumeric() || b"_.+-".contains(&b);
    if name.is_empty() || !name.bytes().all(possible) {
        return Err(format!("plugin name {name:?} is not made of letters, digits, '_', '.', '+' and '-'"));
    }
    Ok(())
}

/// A listener with one connection.
struct Once(Option<DuplexStream>);

impl Stream for Once {
    type Item = std::io::Result<DuplexStream>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.take().map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NRI-11.
    #[test]
    fn names_and_indices() {
        assert_eq!(check("00", "a.b_c+d-e"), Ok(()));
        for (index, name) in [("0", "a"), ("000", "a"), ("a0", "a"), ("00", ""), ("00", "a/b"), ("00", "ä")]
        {
            assert!(check(index, name).is_err(), "{index} {name}");
        }
    }
}
