//! `GET /metrics`: OpenMetrics text on the address that the configuration names. Off unless it names one.

use super::state;
use crate::daemon::Daemon;
use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
        // It ends only with the daemon: axum takes no error of accept(2) for the end.
        if let Err(error) = axum::serve(self.0, routes).await {
            tracing::error!("metrics are not served any more: {error}");
        }
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
