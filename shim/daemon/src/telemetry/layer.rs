//! The clock around every RPC, as a layer of the gRPC server: handlers know nothing of it.

use super::{Answer, Method, Telemetry, seconds, spans, traces};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tonic::Code;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};
use tracing::Instrument as _;

/// Wraps a service so that its calls are counted and timed.
#[derive(Debug, Clone)]
pub(crate) struct Measure(pub(crate) Arc<Telemetry>);

impl<S> Layer<S> for Measure {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured { inner, telemetry: Arc::clone(&self.0) }
    }
}

/// A service under the clock.
#[derive(Debug, Clone)]
pub(crate) struct Measured<S> {
    inner: S,
    telemetry: Arc<Telemetry>,
}

impl<S, B, R> Service<Request<B>> for Measured<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send,
    R: Send,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let span = spans::of_request(&method);
        traces::below_the_clients(&span, request.headers());
        let mut underway = Underway::begin(&self.telemetry, method);
        let answer = span.in_scope(|| self.inner.call(request));
        let answered = async move {
            let answer = answer.await;
            let code = answer.as_ref().map_or(Code::Unknown, |answer| code(answer.headers()));
            if code != Code::Ok {
                spans::failed(&tracing::Span::current());
            }
            underway.answered(code);
            answer
        };
        Box::pin(answered.instrument(span))
    }
}

/// A failure's status is in the headers ("Trailers-Only" of gRPC over HTTP/2); a success has none there.
fn code(headers: &HeaderMap) -> Code {
    headers.get("grpc-status").map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()))
}

/// One call. Counted when it is dropped, so that a client that goes away is counted as well.
struct Underway {
    telemetry: Arc<Telemetry>,
    method: Method,
    start: Instant,
    code: Code,
}

impl Underway {
    fn begin(telemetry: &Arc<Telemetry>, method: String) -> Self {
        let method = Method { method };
        telemetry.in_flight.get_or_create(&method).inc();
        Self { telemetry: Arc::clone(telemetry), method, start: Instant::now(), code: Code::Cancelled }
    }

    fn answered(&mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let telemetry = &self.telemetry;
        telemetry.in_flight.get_or_create(&self.method).dec();
        telemetry.durations.get_or_create(&self.method).observe(seconds(self.start.elapsed()));
        let answer = Answer { method: self.method.method.clone(), code: name(self.code) };
        telemetry.requests.get_or_create(&answer).inc();
    }
}

/// As gRPC spells it, but for the shouting: `OK`, `NotFound`.
fn name(code: Code) -> String {
    match code {
        Code::Ok => "OK".into(),
        code => format!("{code:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(telemetry: &Telemetry, code: &str) -> u64 {
        telemetry.requests.get_or_create(&Answer { method: "Version".into(), code: code.into() }).get()
    }

    async fn call(telemetry: &Arc<Telemetry>, status: Option<&'static str>) {
        let service = tower::service_fn(move |_: Request<()>| async move {
            let mut answer = Response::new(());
            if let Some(status) = status {
                answer.headers_mut().insert("grpc-status", status.parse().expect("a header"));
            }
            Ok::<_, std::convert::Infallible>(answer)
        });
        let request = Request::builder().uri("/runtime.v1.RuntimeService/Version").body(()).expect("request");
        Measure(Arc::clone(telemetry)).layer(service).call(request).await.expect("answer");
    }

    #[tokio::test]
    async fn answers_are_counted_by_code() {
        let telemetry = Arc::new(Telemetry::default());
        call(&telemetry, None).await;
        call(&telemetry, Some("5")).await;
        assert_eq!((count(&telemetry, "OK"), count(&telemetry, "NotFound")), (1, 1));
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_counted_and_nothing_stays_in_flight() {
        let telemetry = Arc::new(Telemetry::default());
        let service =
            tower::service_fn(|_: Request<()>| std::future::pending::<Result<Response<()>, String>>());
        let request = Request::builder().uri("/runtime.v1.RuntimeService/Version").body(()).expect("request");
        drop(Measure(Arc::clone(&telemetry)).layer(service).call(request));
        assert_eq!(count(&telemetry, "Cancelled"), 1);
        assert_eq!(telemetry.in_flight.get_or_create(&Method { method: "Version".into() }).get(), 0);
    }
}
