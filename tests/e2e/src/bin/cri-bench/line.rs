//! A TCP proxy to the registry that counts what comes from it, and may be as slow as a network line.

use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// One line, shared by all its connections.
pub(crate) struct Line {
    /// What images are named by: `127.0.0.1:PORT`.
    pub(crate) host: String,
    state: Arc<State>,
}

struct State {
    /// Bytes from the registry.
    carried: AtomicU64,
    /// Bytes a second; None: as fast as it goes.
    rate: Option<u64>,
    /// When the line has carried all that it has taken on.
    free: Mutex<Instant>,
}

impl Line {
    /// Carries to `registry` until the program ends.
    pub(crate) async fn open(registry: String, rate: Option<u64>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen on loopback")?;
        let host = listener.local_addr()?.to_string();
        let state = State { carried: AtomicU64::new(0), rate, free: Mutex::new(Instant::now()) };
        let state = Arc::new(state);
        let line = Self { host, state: Arc::clone(&state) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, registry.clone(), Arc::clone(&state)));
            }
        });
        Ok(line)
    }

    /// Bytes carried since the last question.
    pub(crate) fn carried(&self) -> u64 {
        self.state.carried.swap(0, Ordering::Relaxed)
    }
}

/// An end of either side ends the connection; nobody needs to hear of it.
async fn carry(client: TcpStream, registry: String, state: Arc<State>) {
    let Ok(server) = TcpStream::connect(&registry).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::spawn(copy(from_client, to_server, None));
    copy(from_server, to_client, Some(state)).await;
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: Option<Arc<State>>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if let Some(state) = &state {
            state.take(length as u64).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

impl State {
    /// Waits until the line has carried `bytes` after all that it was given before.
    async fn take(&self, bytes: u64) {
        self.carried.fetch_add(bytes, Ordering::Relaxed);
        let Some(rate) = self.rate else { return };
        let done = {
            let mut free = self.free.lock().await;
            *free = (*free).max(Instant::now()) + Duration::from_nanos(bytes * 1_000_000_000 / rate);
            *free
        };
        tokio::time::sleep_until(done).await;
    }
}
