//! The daemon's own log: to standard error, for people or as JSON, its filter changeable while it runs.

mod json;

use crate::config::{File, Level, LogFormat};
use crate::telemetry::Traces;
use anyhow::{Context, Result};
use std::fmt::Debug;
use tracing::field::Field;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// As usual, but for what only traces need.
fn text_field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    match field.name() {
        name if name.starts_with("otel.") => Ok(()),
        "message" => write!(writer, "{value:?}"),
        name => write!(writer, "{name}={value:?}"),
    }
}

/// A handle on the running log.
#[derive(Debug, Clone)]
pub(crate) struct Logging(reload::Handle<EnvFilter, Registry>);

impl Logging {
    /// Begins to log as the configuration says.
    pub(crate) fn start(file: &File, traces: Option<&Traces>) -> Result<Self> {
        let (filter, handle) = reload::Layer::new(file.log_level.filter());
        let lines = match file.log_format {
            LogFormat::Text => {
                let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
                lines.fmt_fields(fmt::format::debug_fn(text_field).delimited(" ")).boxed()
            }
            LogFormat::Json => fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(false)
                .fmt_fields(fmt::format::JsonFields::new())
                .event_format(json::Lines)
                .boxed(),
        };
        let traces = traces.map(Traces::layer);
        tracing_subscriber::registry()
            .with(filter)
            .with(lines)
            .with(traces)
            .try_init()
            .context("begin to log")?;
        Ok(Self(handle))
    }

    /// Logs by another filter from now on.
    pub(crate) fn set_level(&self, level: &Level) {
        // It fails only when the subscriber is gone, which lives as long as the process.
        let _ = self.0.reload(level.filter());
    }
}
