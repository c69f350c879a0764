//! The HTTP server: one listener on loopback, a request per URL, and everything cut at the end.

use crate::tls::{Acceptor, Tls, Wire};
use crate::tokens::{Refused, Tokens};
use crate::upgrade::{self, Shared};
use crate::{Backend, Request};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// How long a connection may take to send its request.
const REQUEST: Duration = Duration::from_secs(10);
/// Connections that have not sent their request yet; more wait in the kernel's queue.
const STRANGERS: usize = 256;
/// Pause after a failed accept: most likely the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What a server is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Port 0: any free one.
    pub listen: SocketAddr,
    /// A session in which nothing moves for so long is cut (STR-IDLE-01); zero: never.
    pub idle: Duration,
    /// None: plain HTTP.
    pub tls: Option<Tls>,
}

/// A server; dropping it ends it and all its sessions.
#[derive(Debug)]
pub struct Server {
    base: String,
    tokens: Arc<Tokens>,
    stop: watch::Sender<bool>,
}

impl Server {
    /// Binds and serves.
    ///
    /// # Errors
    /// The address cannot be bound, or the files of TLS cannot be used.
    pub async fn start(options: Options, backend: Arc<dyn Backend>) -> io::Result<Self> {
        let tls = options.tls.map(Acceptor::open).transpose()?.map(Arc::new);
        let listener = TcpListener::bind(options.listen).await?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{}", reachable(listener.local_addr()?));
        let tokens = Arc::new(Tokens::default());
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared {
            tokens: Arc::clone(&tokens),
            backend,
            idle: options.idle,
            stopped: Stopped(stopped.clone()),
        });
        tokio::spawn(Stopped(stopped).or(accept(listener, tls, shared)));
        Ok(Self { base, tokens, stop })
    }

    /// An absolute URL that works once, soon (STR-URL-01, STR-URL-02).
    ///
    /// # Errors
    /// Too many wait to be used.
    pub fn url(&self, request: Request) -> Result<String, Refused> {
        let route = request.route();
        Ok(format!("{}/{route}/{}", self.base, self.tokens.issue(request)?))
    }

    /// Stops listening and cuts all sessions; clients see a broken connection, not a success (STR-SHUT-01).
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where a client of this host reaches the address (STR-URL-04).
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

/// The server's end, for whatever must not outlive it.
#[derive(Debug, Clone)]
pub(crate) struct Stopped(watch::Receiver<bool>);

impl Stopped {
    /// Runs `work` until it is done or the server ends.
    pub(crate) async fn or(mut self, work: impl Future<Output = ()>) {
        tokio::select! {
            () = work => {}
            _ = self.0.wait_for(|stopped| *stopped) => {}
        }
    }
}

async fn accept(listener: TcpListener, tls: Option<Arc<Acceptor>>, shared: Arc<Shared>) {
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    loop {
        // Never closed.
        let Ok(permit) = Arc::clone(&strangers).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                let (shared, tls) = (Arc::clone(&shared), tls.clone());
                tokio::spawn(shared.stopped.clone().or(async move {
                    connection(socket, tls, shared).await;
                    drop(permit);
                }));
            }
            Err(error) => {
                tracing::warn!("streaming: accept: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(socket: TcpStream, tls: Option<Arc<Acceptor>>, shared: Arc<Shared>) {
    let _ = socket.set_nodelay(true);
    let Some(tls) = tls else { return speak(socket, shared).await };
    match tokio::time::timeout(REQUEST, tls.accept(socket)).await {
        Ok(Ok(socket)) => speak(socket, shared).await,
        Ok(Err(error)) => tracing::debug!("streaming: TLS handshake: {error}"),
        Err(_) => tracing::debug!("streaming: TLS handshake: too slow"),
    }
}

/// One connection up to its upgrade, or to the answer that says why there is none. HTTP/1.1 only (STR-HTTP-01).
async fn speak<S: Wire>(socket: S, shared: Arc<Shared>) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, std::convert::Infallible>(upgrade::answer::<S>(request, &shared).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!("streaming: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// STR-URL-03, STR-URL-04.
    #[test]
    fn urls_name_an_address_that_can_be_reached() {
        let shown = |address: &str| reachable(address.parse().unwrap()).to_string();
        assert_eq!(shown("0.0.0.0:10010"), "127.0.0.1:10010");
        assert_eq!(shown("[::]:10010"), "[::1]:10010");
        assert_eq!(shown("10.0.0.7:1"), "10.0.0.7:1");
    }
}
