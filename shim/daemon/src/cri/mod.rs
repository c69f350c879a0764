//! The gRPC services. Handlers decode, call, encode; they hold no rules. Each failure is logged once, here.

mod export;
mod filters;
mod image_service;
mod local_service;
mod runtime_service;
mod status;

pub(crate) use image_service::ImageApi;
pub(crate) use local_service::LocalApi;
pub(crate) use runtime_service::RuntimeApi;

use crate::error::Error;
use std::pin::Pin;
use tonic::codegen::tokio_stream::{self, Stream};
use tonic::{Code, Response, Status};

/// A server stream.
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Encodes an outcome; what is the runtime's own fault is logged as an error, a client's mistake as debug.
fn answer<T>(rpc: &'static str, outcome: Result<T, Error>) -> Result<Response<T>, Status> {
    outcome.map(Response::new).map_err(|error| {
        match error.code() {
            Code::Internal | Code::Unknown | Code::DataLoss | Code::ResourceExhausted => {
                tracing::error!(rpc, code = ?error.code(), "{error}");
            }
            _ => tracing::debug!(rpc, code = ?error.code(), "{error}"),
        }
        error.into()
    })
}

/// A list as a stream of messages of at most `CHUNK` items; empty lists send no message (CRI-LSTR-01 to 06).
fn stream<I, T>(items: Vec<I>, wrap: fn(Vec<I>) -> T) -> Streamed<T>
where
    I: Send + 'static,
    T: Send + 'static,
{
    const CHUNK: usize = 1000;
    let mut items = items.into_iter();
    let chunks = std::iter::from_fn(move || {
        let chunk: Vec<_> = items.by_ref().take(CHUNK).collect();
        (!chunk.is_empty()).then(|| Ok(wrap(chunk)))
    });
    Box::pin(tokio_stream::iter(chunks))
}
