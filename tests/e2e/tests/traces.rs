//! Traces: a collector of our own on loopback gets the spans of a request, below the client's.

use anyhow::{Context as _, Result, ensure};
use cri_proto::v1;
use e2e::requests::{in_pod, pod, shell};
use e2e::{Node, Setup, on_a_node};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Each node has a network namespace of its own: the port is free.
const CONFIG: &str = "[tracing]\nendpoint = \"127.0.0.1:4317\"\n";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Keeps what it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let spans = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        self.0.lock().expect("spans").extend(spans);
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn spans(&self) -> Vec<Span> {
        self.0.lock().expect("spans").clone()
    }

    /// The first span of this name, once it is there.
    async fn span(&self, name: &str) -> Result<Span> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(span) = self.spans().into_iter().find(|span| span.name == name) {
                return Ok(span);
            }
            let names: Vec<_> = self.spans().into_iter().map(|span| span.name).collect();
            ensure!(
                tokio::time::Instant::now() < deadline,
                "no span {name} within 60 s; there are {names:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
    match value {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn traced_request<T>(message: T) -> Result<tonic::Request<T>> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{PARENT}-01").parse()?);
    Ok(request)
}

/// What the keeper does for a container is traced down to the steps of its program, before and after it is parked.
async fn steps_of_a_container(
    node: &Node,
    collector: &Collector,
    sandbox: &str,
    pod: &v1::PodSandboxConfig,
) -> Result<()> {
    let image = node.import("busybox").await?;
    std::fs::create_dir_all(Path::new(&pod.log_directory).join("steps"))?;
    let create = traced_request(v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.into(),
        config: Some(in_pod(pod, shell("steps", &image, "exec sleep 1000"))),
        sandbox_config: Some(pod.clone()),
    })?;
    let id = node.runtime().await?.create_container(create).await?.into_inner().container_id;
    let start = traced_request(v1::StartContainerRequest { container_id: id })?;
    node.runtime().await?.start_container(start).await?;
    for (call, wanted) in [
        ("keeper: create", &["mount the root filesystem", "make control groups", "prepare", "pivot"][..]),
        ("keeper: start", &["execute"]),
    ] {
        let call = collector.span(call).await?;
        let below = collector.spans().into_iter().filter(|span| span.parent_span_id == call.span_id);
        let mut below: Vec<_> = below.collect();
        below.sort_by_key(|span| span.start_time_unix_nano);
        let steps: Vec<_> = below.iter().filter_map(|span| attribute(span, "step")).collect();
        for wanted in wanted {
            ensure!(steps.iter().any(|step| step.starts_with(wanted)), "no {wanted} within {steps:#?}");
        }
        let (first, last) = (below.first().context("steps")?, below.last().context("steps")?);
        ensure!(first.start_time_unix_nano >= call.start_time_unix_nano, "{first:?} {call:?}");
        ensure!(last.end_time_unix_nano <= call.end_time_unix_nano, "{last:?} {call:?}");
        let sum: u64 = below.iter().map(|span| span.end_time_unix_nano - span.start_time_unix_nano).sum();
        ensure!(sum <= call.end_time_unix_nano - call.start_time_unix_nano, "they do not overlap");
    }
    Ok(())
}

#[test]
fn a_request_is_traced_below_the_kubelets_span() {
    on_a_node(Setup { config: CONFIG, ..Setup::default() }, |node| Box::pin(traced(node)));
}

async fn traced(node: &mut Node) -> Result<()> {
    // A collector that comes late holds up nothing.
    let mut early = tonic::Request::new(v1::VersionRequest::default());
    early.metadata_mut().insert("traceparent", format!("00-{TRACE}-{PARENT}-01").parse()?);
    node.runtime().await?.version(early).await?;
    let collector = Collector::default();
    let service = TraceServiceServer::new(collector.clone());
    let listener = tonic::transport::server::TcpIncoming::bind("127.0.0.1:4317".parse()?);
    let listener = listener.map_err(|e| anyhow::anyhow!("listen as a collector: {e}"))?;
    let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(listener);
    let server = tokio::spawn(server);

    let config = pod(node, "traced");
    let mut request = tonic::Request::new(v1::RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: String::new(),
    });
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{PARENT}-01").parse()?);
    let sandbox = node.runtime().await?.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    // Without a trace of the client's, and the rate is 0: not traced.
    node.crictl(&["inspectp", &sandbox]).await?;
    // A failure is told.
    let mut failing = tonic::Request::new(v1::StartContainerRequest { container_id: "nobody".into() });
    failing.metadata_mut().insert("traceparent", format!("00-{TRACE}-{PARENT}-01").parse()?);
    ensure!(node.runtime().await?.start_container(failing).await.is_err(), "a container that is not there");

    let span = collector.span("RunPodSandbox").await?;
    ensure!(hex(&span.trace_id) == TRACE && hex(&span.parent_span_id) == PARENT, "{span:?}");
    ensure!(span.kind() == SpanKind::Server, "{span:?}");
    let name = config.metadata.as_ref().map(|m| format!("{}/{}", m.namespace, m.name)).context("metadata")?;
    ensure!(attribute(&span, "pod").as_deref() == Some(name.as_str()), "{span:?}");
    let step = collector.span("network").await?;
    ensure!(step.trace_id == span.trace_id && step.parent_span_id == span.span_id, "{step:?}");
    ensure!(step.start_time_unix_nano >= span.start_time_unix_nano, "{step:?}");
    ensure!(step.end_time_unix_nano <= span.end_time_unix_nano, "{step:?}");
    let failed = collector.span("StartContainer").await?;
    ensure!(failed.status.as_ref().is_some_and(|status| status.code == 2), "{failed:?}");
    let names: Vec<_> = collector.spans().into_iter().map(|span| span.name).collect();
    ensure!(!names.iter().any(|name| name == "PodSandboxStatus"), "{names:?}");
    steps_of_a_container(node, &collector, &sandbox, &config).await?;
    server.abort();
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}
