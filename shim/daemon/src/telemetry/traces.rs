//! Traces by OpenTelemetry. Made only when the configuration names a collector; costs nothing else.
//!
//! The spans are those of the log (see [`super::spans`]); the kubelet's own span, by its `traceparent` header, is their parent.

use super::spans;
use crate::config::Tracing;
use anyhow::{Context as _, Result};
use cri_proto::keeper::Lap;
use opentelemetry::KeyValue;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{Span as _, SpanBuilder, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};
use tonic::codegen::http::HeaderMap;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Whether spans should carry what only traces need.
pub(super) fn are_on() -> bool {
    TRACER.get().is_some()
}

/// Whether what happens now is part of a trace that will be sent.
pub(crate) fn is_sampled() -> bool {
    are_on() && Span::current().context().span().span_context().is_sampled()
}

/// Adds what is over already below the span of now. A span's name is the step's first word: backends keep lists of names, and
/// steps name paths.
pub(super) fn add(laps: Vec<Lap>) {
    let Some(tracer) = TRACER.get() else { return };
    let parent = Span::current().context();
    let at = |nanoseconds| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds);
    for lap in laps {
        let name = lap.step.split(' ').next().unwrap_or_default().to_owned();
        let span = SpanBuilder::from_name(name)
            .with_start_time(at(lap.begun))
            .with_attributes([KeyValue::new("step", lap.step)]);
        tracer.build_with_context(span, &parent).end_with_timestamp(at(lap.ended));
    }
}

/// The way to the collector.
#[derive(Debug, Clone)]
pub(crate) struct Traces(SdkTracerProvider);

impl Traces {
    /// None: not configured. Connects when the first spans are sent; a collector that is not there loses them, no more. Needs
    /// the runtime entered, on which the connection lives.
    pub(crate) fn open(config: &Tracing) -> Result<Option<Self>> {
        let Some(collector) = &config.endpoint else { return Ok(None) };
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(collector.url()).build();
        let exporter = exporter.with_context(|| format!("tracing.endpoint = {:?}", collector.url()))?;
        let ratio = config.sampling_rate_per_million.ratio();
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio)));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(Resource::builder().with_service_name("slipway").build())
            .build();
        let _ = TRACER.set(provider.tracer("slipway"));
        Ok(Some(Self(provider)))
    }

    /// For the log's subscriber. Requests and their steps are sent, with the log's lines in them; the spans of a pod's or
    /// container's whole life, which are there for the log, are not.
    pub(crate) fn layer<S>(&self) -> impl Layer<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("slipway"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_filter(filter_fn(|what| what.is_event() || spans::TRACED.contains(&what.name())))
    }

    /// Sends what is left. Blocks for as long as the collector takes, at most some seconds.
    pub(crate) fn close(&self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!("the last traces are lost: {error}");
        }
    }
}

/// Puts a request's span below the client's.
pub(super) fn below_the_clients(span: &Span, headers: &HeaderMap) {
    if are_on() && headers.contains_key("traceparent") {
        // A span without a place in a trace (not sampled, filtered) has no parent to be given either.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&Headers(headers)));
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|key| key.as_str()).collect()
    }
}
