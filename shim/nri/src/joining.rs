//! How plugins come: launched at the start, or by the socket; and how they go.

use crate::error::{Error, Kind, Result};
use crate::host::Host;
use crate::launch::{self, Installed};
use crate::link::Link;
use crate::plugin::Plugin;
use crate::{Nri, events};
use cri_proto::nri::{Container, PodSandbox};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};

/// Pause that lets those through who waited behind a plugin that wants to join.
const AGAIN: Duration = Duration::from_millis(50);

impl Nri {
    /// Starts the installed plugins and waits for them, then listens. A plugin that does not come up is named in the log.
    ///
    /// # Errors
    /// Io: the socket cannot be made. Whoever already serves there keeps it; that is logged.
    pub async fn start(self: &Arc<Self>, host: Arc<dyn Host>) -> Result<()> {
        if self.options.disable {
            return Ok(());
        }
        // Once only: a second start would launch everything twice.
        if self.host.set(host).is_err() {
            return Ok(());
        }
        let mut starts = JoinSet::new();
        for plugin in launch::discover(&self.options.plugin_dir) {
            let nri = Arc::clone(self);
            starts.spawn(async move {
                if let Err(error) = nri.launch(&plugin).await {
                    tracing::error!("NRI plugin {}: {error}", plugin.path.display());
                }
            });
        }
        while starts.join_next().await.is_some() {}
        let Some(socket) = self.options.socket.clone() else { return Ok(()) };
        let Some(listener) = listen(&socket).await? else { return Ok(()) };
        let nri = Arc::clone(self);
        let task = tokio::spawn(async move { nri.accept(&listener).await });
        self.tasks().push(task.abort_handle());
        Ok(())
    }

    /// Tells all plugins, ends those that we have launched, stops listening.
    pub async fn stop(&self) {
        let listening: Vec<_> = self.tasks().drain(..).collect();
        listening.iter().for_each(AbortHandle::abort);
        let mut farewells = JoinSet::new();
        for plugin in self.plugins() {
            farewells.spawn(async move { plugin.shut_down().await });
        }
        while farewells.join_next().await.is_some() {}
        self.write().clear();
        // Not ours when another runtime serves there: then nobody listens here.
        if let Some(socket) = self.options.socket.as_ref().filter(|_| !listening.is_empty()) {
            let _ = std::fs::remove_file(socket);
        }
    }

    async fn launch(self: &Arc<Self>, installed: &Installed) -> Result<()> {
        let config = launch::config(&self.options.config_dir, installed)?;
        let (stream, child) = launch::start(installed)?;
        let identity = (installed.index.clone(), installed.name.clone());
        let link =
            Link::open(stream, Some(identity), self.options.registration_timeout, self.host()?).await?;
        self.join(Plugin::configure(link, config, Some(child), &self.options).await?).await
    }

    /// Each connection on its own: one that never registers holds up nobody.
    async fn accept(self: &Arc<Self>, listener: &UnixListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::error!("NRI socket: {error}");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            let nri = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = nri.welcome(stream).await {
                    tracing::error!("{error}");
                }
            });
        }
    }

    async fn welcome(self: &Arc<Self>, stream: UnixStream) -> Result<()> {
        let link = Link::open(stream, None, self.options.registration_timeout, self.host()?).await?;
        self.join(Plugin::configure(link, String::new(), None, &self.options).await?).await
    }

    fn host(&self) -> Result<Arc<dyn Host>> {
        self.host.get().cloned().ok_or_else(|| Error::new(Kind::Io, "NRI is not started"))
    }

    /// Puts a configured plugin into the list, brings it up to date, lets it be asked.
    async fn join(self: &Arc<Self>, plugin: Plugin) -> Result<()> {
        let plugin = Arc::new(plugin);
        let host = self.host()?;
        let (pods, containers) = self.enlist(&plugin, &*host).await?;
        self.watch(&plugin);
        let updates = plugin.synchronize(pods, containers).await?;
        tracing::info!(plugin = plugin.label(), "NRI plugin is connected and synchronized");
        events::report(&host.update(updates).await, &plugin.label());
        Ok(())
    }

    /// Between two creations: what exists then is in the snapshot, what comes later waits for the plugin (NRI-17). Never
    /// waits long in front of others, who would wait behind it.
    async fn enlist(
        &self,
        plugin: &Arc<Plugin>,
        host: &dyn Host,
    ) -> Result<(Vec<PodSandbox>, Vec<Container>)> {
        loop {
            tokio::select! {
                () = plugin.closed() => {
                    plugin.drop_out("it closed the connection");
                    return Err(Error::new(Kind::Refused, format!("NRI plugin {} has left", plugin.label())));
                }
                between = tokio::time::timeout(self.options.request_timeout, self.creations.write()) => {
                    if between.is_ok() {
                        let (pods, containers) = host.snapshot();
                        self.lives.know(pods.iter().map(|p| &p.id).chain(containers.iter().map(|c| &c.id)));
                        let mut plugins = self.write();
                        plugins.push(Arc::clone(plugin));
                        plugins.sort_by_key(|p| p.index.clone());
                        return Ok((pods, containers));
                    }
                }
            }
            tracing::warn!(plugin = plugin.label(), "NRI plugin waits to join: creations take long");
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Takes it out of the list when its connection ends.
    fn watch(self: &Arc<Self>, plugin: &Arc<Plugin>) {
        let (nri, plugin) = (Arc::downgrade(self), Arc::clone(plugin));
        tokio::spawn(async move {
            plugin.closed().await;
            plugin.drop_out("its connection is closed");
            if let Some(nri) = nri.upgrade() {
                nri.write().retain(|p| !Arc::ptr_eq(p, &plugin));
            }
        });
    }
}

/// None when somebody else serves there.
async fn listen(socket: &Path) -> Result<Option<UnixListener>> {
    if let Some(dir) = socket.parent().filter(|dir| !dir.exists()) {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|e| Error::io("make", dir, e))?;
    }
    if UnixStream::connect(socket).await.is_ok() {
        tracing::error!(
            "NRI socket {} is served by another runtime: plugins cannot connect to this one; set nri.socket_path",
            socket.display()
        );
        return Ok(None);
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("replace", socket, error));
        }
        _ => {}
    }
    UnixListener::bind(socket).map(Some).map_err(|e| Error::io("bind NRI socket", socket, e))
}
