//! Ctrl-C and SIGTERM as something that can be asked and waited for. Steps that must not be cut in the middle ask
//! between; waits give up at once.

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Counts the signals that came.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    count: watch::Receiver<u32>,
}

impl Interrupt {
    /// From now on SIGINT and SIGTERM no longer end the process.
    pub(crate) fn listen() -> Result<Self> {
        let mut int = signal(SignalKind::interrupt()).context("watch SIGINT")?;
        let mut term = signal(SignalKind::terminate()).context("watch SIGTERM")?;
        let (sender, count) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
                sender.send_modify(|count| *count += 1);
            }
        });
        Ok(Self { count })
    }

    /// An error as soon as a signal has come.
    pub(crate) fn check(&self) -> Result<()> {
        if *self.count.borrow() > 0 {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Returns when `times` signals have come since the beginning.
    pub(crate) async fn came(&self, times: u32) {
        let mut count = self.count.clone();
        if count.wait_for(|count| *count >= times).await.is_err() {
            // The watcher lives as long as the runtime; without it no signal can come.
            std::future::pending::<()>().await;
        }
    }

    /// Runs `work` unless a signal comes first; then `work` is dropped where it is.
    pub(crate) async fn or<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.came(1) => bail!("interrupted"),
            result = work => result,
        }
    }
}
