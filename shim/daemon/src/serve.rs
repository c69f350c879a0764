//! `slipway serve`: opens everything, recovers, then answers.

use crate::config::{Config, ServeArgs};
use crate::cri::{ImageApi, LocalApi, RuntimeApi};
use crate::daemon::Daemon;
use crate::incoming;
use crate::logging::Logging;
use crate::recovery;
use crate::reload::Hangups;
use crate::supervisor;
use crate::telemetry::{Endpoint, Measure};
use anyhow::{Context, Result, bail};
use cri_proto::slipway::local_server::LocalServer;
use cri_proto::v1::image_service_server::ImageServiceServer;
use cri_proto::v1::runtime_service_server::RuntimeServiceServer;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::sync::Arc;
use tokio::net::UnixListener;

/// Larger requests are refused; what the kubelet itself allows for answers (CRI-GEN-03).
const MAX_MESSAGE: usize = 16 << 20;
/// Streams of one connection: a client that opens more waits.
const MAX_STREAMS: u32 = 1024;

/// How long requests under way get at the end.
const FAREWELL: std::time::Duration = std::time::Duration::from_millis(500);

/// Runs until SIGTERM or SIGINT. Containers run on.
pub(crate) async fn serve(config: Config, args: ServeArgs, logging: Logging) -> Result<()> {
    let hangups = Hangups::watch()?;
    let _lock = prepare(&config)?;
    let metrics = match config.file.metrics.address {
        Some(address) => Some(Endpoint::bind(address).await?),
        None => None,
    };
    let daemon = Daemon::open(config)?;
    // Its own thread: no pod needs to wait for a parser, and who comes before it waits for the lock.
    tokio::task::spawn_blocking(|| {
        if let Err(error) = crate::apparmor::load() {
            tracing::warn!("{error}");
        }
    });
    // First: whatever is asked of the keeper from now on is asked of the one that stays.
    daemon.keeper.bring_up_to_date().await;
    recovery::recover(&daemon).await.context("recover")?;
    // Before the first request: a plugin that must have its say is there.
    let plugins = crate::nri::Plugins(Arc::downgrade(&daemon));
    daemon.nri.start(Arc::new(plugins)).await.context("NRI")?;
    let streaming = Arc::new(crate::streaming::start(&daemon).await?);
    let listener = listen(&daemon.config)?;
    tracing::info!(address = %daemon.config.address.display(), "serving CRI v1");
    let restarter =
        tokio::spawn(crate::restarter::run(daemon.config.address.clone(), daemon.config.root.clone()));
    let metrics = metrics.map(|endpoint| tokio::spawn(endpoint.serve(Arc::clone(&daemon))));
    let reloads = tokio::spawn(hangups.serve(Arc::clone(&daemon), args, logging));
    let watchdog = tokio::spawn(supervisor::watchdog(Arc::clone(&daemon)));
    supervisor::ready(daemon.pods.list().len()).await;
    let (tell, told) = tokio::sync::watch::channel(false);
    let served = tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .layer(Measure(Arc::clone(&daemon.telemetry)))
        .add_service(
            RuntimeServiceServer::new(RuntimeApi(Arc::clone(&daemon), Arc::clone(&streaming)))
                .max_decoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            ImageServiceServer::new(ImageApi(Arc::clone(&daemon))).max_decoding_message_size(MAX_MESSAGE),
        )
        .add_service(LocalServer::new(LocalApi(Arc::clone(&daemon))))
        .serve_with_incoming_shutdown(incoming::of(listener, daemon.config.group.is_some()), async move {
            asked_to_end().await;
            supervisor::stopping().await;
            restarter.abort();
            tell.send_replace(true);
        });
    let served = tokio::select! {
        served = served => served,
        // Event streams never end by themselves: they get a moment for what is under way, then they are cut.
        () = a_moment_after(told) => Ok(()),
    };
    for task in metrics.into_iter().chain([reloads, watchdog]) {
        task.abort();
    }
    let _ = fs::remove_file(&daemon.config.address);
    streaming.stop();
    leave(&daemon).await;
    served.context("serve")
}

/// Directories, and the lock that keeps a second daemon away from the same state.
fn prepare(config: &Config) -> Result<nix::fcntl::Flock<fs::File>> {
    for dir in [&config.root, &config.state] {
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(dir);
        made.with_context(|| format!("make {}: is this root, and is there space?", dir.display()))?;
    }
    let path = config.state.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("open {}", path.display()))?;
    match nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            bail!("another slipway serves from {}: stop it, or give another --state", config.state.display())
        }
        Err((_, error)) => bail!("lock {}: {error}", path.display()),
    }
}

/// A socket for whom the configuration names. A stale one is replaced: the lock says that nobody serves it.
fn listen(config: &Config) -> Result<UnixListener> {
    let address = &config.address;
    if let Some(dir) = address.parent() {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    match fs::symlink_metadata(address) {
        Ok(meta) if std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => fs::remove_file(address)?,
        Ok(_) => bail!("--address {} exists and is no socket: not replaced", address.display()),
        Err(_) => {}
    }
    // Nobody's but root's until it has its owner.
    let usual = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(address);
    nix::sys::stat::umask(usual);
    let listener = bound.with_context(|| format!("bind {}", address.display()))?;
    let owned = std::os::unix::fs::chown(address, None, config.group);
    let mode = fs::Permissions::from_mode(config.file.socket.mode.bits());
    owned
        .and_then(|()| fs::set_permissions(address, mode))
        .with_context(|| format!("give {} its owner and mode", address.display()))?;
    Ok(listener)
}

async fn a_moment_after(mut told: tokio::sync::watch::Receiver<bool>) {
    // The sender lives in the server, which is polled beside us.
    let _ = told.wait_for(|told| *told).await;
    tokio::time::sleep(FAREWELL).await;
}

async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be watched: end this daemon with SIGKILL, which is safe");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("asked to end; containers run on");
}

/// An idle node is left without keeper, bridge and mounts; one with pods keeps them.
async fn leave(daemon: &Daemon) {
    daemon.nri.stop().await;
    if !daemon.pods.list().is_empty() {
        return;
    }
    if let Err(error) = daemon.keeper.shutdown().await {
        tracing::warn!("keeper stays: {error}");
    }
    if let Err(error) = daemon.network.close().await {
        tracing::warn!("network stays: {error}");
    }
    let netns = daemon.config.state.join("netns");
    if let Err(error) = slipway_runtime::sandbox::release_netns_dir(&netns) {
        tracing::warn!("{error}");
    }
}
