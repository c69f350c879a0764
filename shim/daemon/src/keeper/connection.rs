//! The connection to the keeper: made by its `start` action, made again when the keeper was replaced.

use super::Keeper;
use crate::error::{Error, Result};
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::TaskClient;
use cri_proto::keeper::InfoRequest;
use cri_proto::keeper::keeper_ttrpc::KeeperClient;
use std::future::Future;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;
use tonic::Code;
use ttrpc::context::with_duration;

/// How long a keeper that is known from before may take to answer.
const FORMER: Duration = Duration::from_secs(5);
/// A keeper that died is started again by its guardian within moments.
const RECONNECT: Duration = Duration::from_secs(15);
/// How long one `start` action and the connecting may take; the action itself gives a new keeper 20 s, twice.
pub(super) const CONNECT: Duration = Duration::from_secs(45);

/// One connection with its three services.
#[derive(Clone)]
pub(super) struct Clients {
    pub(super) task: TaskClient,
    pub(super) sandbox: SandboxClient,
    pub(super) ext: KeeperClient,
}

impl Clients {
    fn of(client: ttrpc::asynchronous::Client) -> Self {
        Self {
            task: TaskClient::new(client.clone()),
            sandbox: SandboxClient::new(client.clone()),
            ext: KeeperClient::new(client),
        }
    }
}

/// Whether a call may be sent again after the connection broke in the middle of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// Doing it twice is the same as once.
    Safe,
    /// The caller looks at what became of it.
    Never,
}

/// The connection that calls use now.
#[derive(Default)]
pub(super) struct Slot {
    /// Counts connections, so that a call which fails late throws away the one it was made on and no other.
    generation: u64,
    clients: Option<Clients>,
}

impl Keeper {
    /// Runs the `start` action (idempotent) and connects. Where the installed program cannot even do that, a keeper that lives
    /// is found all the same: a broken file must not cost a node.
    async fn connect(&self) -> Result<Clients> {
        let failure = match self.start_action().await {
            Ok(address) => {
                let client = ttrpc::asynchronous::Client::connect(&address).await.map_err(Error::from)?;
                self.remember(&address);
                return Ok(Clients::of(client));
            }
            Err(failure) => failure,
        };
        let former = std::fs::read_to_string(self.address_file()).unwrap_or_default();
        let found = async {
            let client = ttrpc::asynchronous::Client::connect(former.trim()).await.ok()?;
            let clients = Clients::of(client);
            let info = clients.ext.info(with_duration(FORMER), &InfoRequest::new()).await.ok()?;
            Some((clients, info))
        };
        match found.await {
            Some((clients, info)) => {
                tracing::warn!(keeper = info.keeper_pid, "the keeper that runs is used: {failure}");
                Ok(clients)
            }
            None => Err(failure),
        }
    }

    /// The address that it answers.
    async fn start_action(&self) -> Result<String> {
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
            .kill_on_drop(true)
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
        Ok(answer["address"].as_str().unwrap_or_default().to_owned())
    }

    fn address_file(&self) -> PathBuf {
        self.state.join("address")
    }

    /// Without it only the way round a broken program is missing.
    fn remember(&self, address: &str) {
        let (file, temporary) = (self.address_file(), self.state.join(".address"));
        if std::fs::read_to_string(&file).is_ok_and(|known| known == address) {
            return;
        }
        let written = std::fs::write(&temporary, address).and_then(|()| std::fs::rename(&temporary, &file));
        if let Err(error) = written {
            tracing::debug!("remember the keeper's address: {error}");
        }
    }

    /// The connection and its generation. One caller at a time makes it; the others wait for that one, and none of them
    /// longer than [`CONNECT`] for each try.
    pub(super) async fn clients(&self) -> Result<(u64, Clients)> {
        if let Some(found) = self.connected() {
            return Ok(found);
        }
        let _connecting = self.connecting.lock().await;
        if let Some(found) = self.connected() {
            return Ok(found);
        }
        let clients = tokio::time::timeout(self.patience, self.connect()).await.map_err(|_| {
            let what = format!(
                "start keeper: {} did not answer within {} s; hint: look into the file log below {}",
                self.binary.display(),
                self.patience.as_secs_f32(),
                self.state.display()
            );
            Error::new(Code::Unavailable, what)
        })??;
        let mut slot = self.slot();
        slot.generation += 1;
        slot.clients = Some(clients.clone());
        Ok((slot.generation, clients))
    }

    fn connected(&self) -> Option<(u64, Clients)> {
        let slot = self.slot();
        slot.clients.clone().map(|clients| (slot.generation, clients))
    }

    /// Throws the connection of this generation away; one that was made since stays.
    fn disconnect(&self, generation: u64) {
        let mut slot = self.slot();
        if slot.generation == generation {
            slot.clients = None;
        }
    }

    /// Takes the connection, if there is one.
    pub(super) fn take_clients(&self) -> Option<Clients> {
        self.slot().clients.take()
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls; when the connection is gone, connects again, and repeats what is safe to repeat.
    pub(super) async fn call<T, F>(&self, retry: Retry, call: impl Fn(Clients) -> F) -> Result<T>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let mut deadline = tokio::time::Instant::now() + RECONNECT;
        loop {
            let error = match self.clients().await {
                Ok((generation, clients)) => match call(clients).await {
                    Ok(answer) => return Ok(answer),
                    // It makes way for the next one, and has done nothing of it (keeper.proto).
                    Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::ABORTED => {
                        self.disconnect(generation);
                        // It may have been a wait of hours.
                        deadline = tokio::time::Instant::now() + RECONNECT;
                        Error::from(ttrpc::Error::RpcStatus(status))
                    }
                    Err(error @ ttrpc::Error::RpcStatus(_)) => return Err(error.into()),
                    Err(error) => {
                        self.disconnect(generation);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::Arc;

    /// A keeper whose `start` action is this script.
    fn keeper(dir: &Path, script: &str) -> Arc<Keeper> {
        let binary = dir.join("shim");
        crate::testing::script(&binary, script);
        Arc::new(Keeper::at(binary, dir.join("keeper"), dir.join("client")))
    }

    async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        for _ in 0..3000 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: not within 30 s");
    }

    #[tokio::test]
    async fn a_start_that_hangs_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = keeper(dir.path(), "exec sleep 600");
        Arc::get_mut(&mut keeper).unwrap().patience = Duration::from_millis(200);
        let error = keeper.clients().await.err().unwrap();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.to_string().contains("did not answer within 0.2 s"), "{error}");
    }

    #[tokio::test]
    async fn a_caller_that_leaves_takes_its_start_along_and_lets_the_next_one_in() {
        let dir = tempfile::tempdir().unwrap();
        let script = "pid=$$; echo $pid > ../pid.new; mv ../pid.new ../pid; exec sleep 600";
        let keeper = keeper(dir.path(), script);
        let read =
            || std::fs::read_to_string(dir.path().join("pid")).ok().and_then(|t| t.trim().parse().ok());
        for _ in 0..2 {
            let caller = Arc::clone(&keeper);
            let call = tokio::spawn(async move { caller.clients().await.map(drop) });
            until("the start action runs", || read().is_some()).await;
            let pid: i32 = read().unwrap();
            call.abort();
            until("it is killed", || !Path::new(&format!("/proc/{pid}/cmdline")).exists()).await;
            std::fs::remove_file(dir.path().join("pid")).unwrap();
        }
    }

    #[tokio::test]
    async fn a_late_failure_leaves_the_new_connection_alone() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let answer = format!("echo '{{\"address\":\"unix://{}\"}}'", socket.display());
        let keeper = keeper(dir.path(), &answer);
        let (first, _) = keeper.clients().await.unwrap();
        assert_eq!(keeper.clients().await.unwrap().0, first, "made once");
        keeper.disconnect(first);
        let (second, _) = keeper.clients().await.unwrap();
        keeper.disconnect(first);
        assert_eq!(keeper.clients().await.unwrap().0, second, "thrown away by a call on another connection");
    }
}
