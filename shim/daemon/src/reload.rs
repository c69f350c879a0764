//! SIGHUP: the configuration is read again, and what may change in a running daemon changes. A fault changes nothing.

use crate::config::{Changes, Config, ServeArgs};
use crate::daemon::Daemon;
use crate::logging::Logging;
use crate::supervisor;
use anyhow::{Context, Result};
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Watched from the beginning: an unwatched SIGHUP would end the daemon.
#[derive(Debug)]
pub(crate) struct Hangups(Signal);

impl Hangups {
    pub(crate) fn watch() -> Result<Self> {
        signal(SignalKind::hangup()).map(Self).context("watch for SIGHUP")
    }

    /// Reloads at each, until it is dropped.
    pub(crate) async fn serve(mut self, daemon: Arc<Daemon>, args: ServeArgs, logging: Logging) {
        while self.0.recv().await.is_some() {
            supervisor::reloading().await;
            let (of, args) = (Arc::clone(&daemon), args.clone());
            let read = crate::daemon::blocking(move || {
                let loaded = Config::load(&args, &of.config.address).and_then(Config::sound);
                loaded.map_err(|error| crate::error::Error::invalid(format!("{error:#}")))
            });
            match read.await {
                Ok(new) => {
                    let changes = apply(&daemon, new, &logging);
                    tracing::info!("configuration reloaded; {changes}");
                    supervisor::ready(daemon.pods.list().len()).await;
                }
                Err(error) => {
                    tracing::error!("configuration not reloaded, what was in force still is: {error}");
                    supervisor::unchanged(&error.to_string()).await;
                }
            }
        }
    }
}

fn apply(daemon: &Daemon, new: Config, logging: &Logging) -> Changes {
    let changes = Changes::between(&daemon.config.file, &daemon.live(), &new.file);
    logging.set_level(&new.file.log_level);
    daemon.images.set_registries(new.file.images.registries());
    daemon.limit_writable_layers(new.file.containers.layer_limit());
    daemon.images.set_policy(new.policy);
    daemon.set_live(new.file);
    changes
}
