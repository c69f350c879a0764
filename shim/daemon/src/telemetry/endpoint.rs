//! `GET /metrics`: OpenMetrics text on the address that the configuration names. Off unless it names one.

use super::state;
use crate::daemon::Daemon;
use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Connections at once; more wait. Whoever reaches the address must not take the daemon's descriptors.
const SCRAPERS: usize = 32;
/// For a request's head, and for all of it up to the last byte that the client reads.
const HEAD: Duration = Duration::from_secs(10);
const WHOLE: Duration = Duration::from_secs(60);
/// After accept(2) has failed for want of something.
const PAUSE: Duration = Duration::from_millis(100);

/// A bound and not yet served socket.
#[derive(Debug)]
pub(crate) struct Endpoint(TcpListener);

impl Endpoint {
    /// Binds, so that a wrong address is told before anything else is started.
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self> {
        let bound = TcpListener::bind(address).await;
        Ok(Self(bound.with_context(|| format!("metrics.address = \"{address}\": cannot listen there"))?))
    }

    /// Answers until it is dropped.
    pub(crate) async fn serve(self, daemon: Arc<Daemon>) {
        if let Ok(address) = self.0.local_addr() {
            tracing::info!("metrics on http://{address}/metrics");
        }
        let routes = Router::new().route("/metrics", get(metrics)).with_state(daemon);
        let scrapers = Arc::new(Semaphore::new(SCRAPERS));
        loop {
            // Never closed.
            let Ok(permit) = Arc::clone(&scrapers).acquire_owned().await else { return };
            match self.0.accept().await {
                Ok((socket, _)) => {
                    let routes = routes.clone();
                    tokio::spawn(async move {
                        connection(socket, routes).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!("metrics: accept: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// One request: a scraper that comes again connects again, so that nobody holds a place while nothing is asked.
async fn connection(socket: TcpStream, routes: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(routes));
    match tokio::time::timeout(WHOLE, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("metrics: {error}"),
        Err(_) => tracing::debug!("metrics: a client was too slow"),
    }
}

async fn metrics(State(daemon): State<Arc<Daemon>>) -> Response {
    let now = state::snapshot(&daemon).await;
    let mut text = String::new();
    let encoded = encode_registry(&mut text, &daemon.telemetry.registry)
        .and_then(|()| encode_registry(&mut text, &now))
        .and_then(|()| encode_eof(&mut text));
    match encoded {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
