//! The connection to the keeper: made by its `start` action, made again when the keeper was replaced.

use super::Keeper;
use crate::error::{Error, Result};
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::TaskClient;
use cri_proto::keeper::keeper_ttrpc::KeeperClient;
use std::future::Future;
use std::process::Stdio;
use std::time::Duration;

/// A keeper that died is started again by its guardian within moments.
const RECONNECT: Duration = Duration::from_secs(15);

/// One connection with its three services.
#[derive(Clone)]
pub(super) struct Clients {
    pub(super) task: TaskClient,
    pub(super) sandbox: SandboxClient,
    pub(super) ext: KeeperClient,
}

/// Whether a call may be sent again after the connection broke in the middle of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// Doing it twice is the same as once.
    Safe,
    /// The caller looks at what became of it.
    Never,
}

impl Keeper {
    /// Runs the `start` action (idempotent) and connects.
    async fn connect(&self) -> Result<Clients> {
        std::fs::create_dir_all(&self.state)
            .map_err(|e| Error::io("make keeper directory", &self.state, &e))?;
        let output = tokio::process::Command::new(&self.binary)
            .args(["-namespace", "slipway", "-id", "node", "-address"])
            .arg(&self.client_address)
            .arg("start")
            .env("SLIPWAY_KEEPER_STATE", &self.state)
            // It outlives us, and is not who the service manager listens to.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .current_dir(&self.state)
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|e| Error::io("start keeper", &self.binary, &e))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::internal(format!("start keeper: {}: {text}{said}", output.status)));
        }
        let answer: serde_json::Value = serde_json::from_str(text.trim())
            .map_err(|e| Error::internal(format!("start keeper: it answered {text:?}: {e}")))?;
        let address = answer["address"].as_str().unwrap_or_default();
        let client = ttrpc::asynchronous::Client::connect(address).await.map_err(Error::from)?;
        Ok(Clients {
            task: TaskClient::new(client.clone()),
            sandbox: SandboxClient::new(client.clone()),
            ext: KeeperClient::new(client),
        })
    }

    pub(super) async fn clients(&self) -> Result<Clients> {
        let mut slot = self.clients.lock().await;
        if let Some(clients) = &*slot {
            return Ok(clients.clone());
        }
        let clients = self.connect().await?;
        *slot = Some(clients.clone());
        Ok(clients)
    }

    /// Calls; when the connection is gone, connects again, and repeats what is safe to repeat.
    pub(super) async fn call<T, F>(&self, retry: Retry, call: impl Fn(Clients) -> F) -> Result<T>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let deadline = tokio::time::Instant::now() + RECONNECT;
        loop {
            let error = match self.clients().await {
                Ok(clients) => match call(clients).await {
                    Ok(answer) => return Ok(answer),
                    Err(error @ ttrpc::Error::RpcStatus(_)) => return Err(error.into()),
                    Err(error) => {
                        *self.clients.lock().await = None;
                        if retry == Retry::Never && !never_sent(&error) {
                            return Err(error.into());
                        }
                        Error::from(error)
                    }
                },
                Err(error) => error,
            };
            if tokio::time::Instant::now() > deadline {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The connection was known to be dead before a byte of the call was given to it. ttrpc tells it by text alone.
fn never_sent(error: &ttrpc::Error) -> bool {
    matches!(error, ttrpc::Error::Others(text) if text.starts_with("reserve channel capacity failed"))
}
