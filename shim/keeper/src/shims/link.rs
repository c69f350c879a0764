//! The connection to a shim's server: Task v2 or v3 over ttrpc (SHIM-TTR-*, SHIM-OUT-11, SHIM-OUT-13).

use super::answer::Endpoint;
use crate::error::Error;
use protobuf::Message;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::time::Duration;
use tokio::net::UnixStream;
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;

/// Metadata key of the namespace (SHIM-TTR-06).
const NAMESPACE: &str = "containerd-namespace-ttrpc";
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A connected shim; cheap to clone.
#[derive(Clone)]
pub(super) struct Link {
    client: Client,
    service: &'static str,
    namespace: String,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("service", &self.service).finish_non_exhaustive()
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The shim says no.
    Refused(Code, String),
    /// It was heard by a shim that does not answer in time, as far as is known.
    Late(Duration),
    /// There is no connection, or none any more.
    Lost(String),
}

impl Fault {
    /// What was asked for is not there, or has ended.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(Code::NOT_FOUND, _))
    }

    /// A no without a reason: shims that give every error as that (kata's) say so also of what they do not know.
    pub(super) fn is_vague(&self) -> bool {
        matches!(self, Self::Refused(Code::UNKNOWN, _))
    }

    /// `<shim> <method>: <why>`.
    pub(super) fn within(self, place: &str) -> Error {
        let text = format!("{place}: {self}");
        match self {
            Self::Refused(Code::NOT_FOUND, _) => Error::not_found(text),
            Self::Refused(Code::INVALID_ARGUMENT, _) => Error::invalid(text),
            Self::Refused(Code::FAILED_PRECONDITION, _) => Error::state(text),
            Self::Refused(Code::UNIMPLEMENTED, _) => Error::unimplemented(text),
            _ => Error::internal(text),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(_, text) => f.write_str(text.trim_end()),
            Self::Late(limit) if limit.is_zero() => f.write_str("it takes no connections"),
            Self::Late(limit) => write!(f, "no answer within {} s", limit.as_millis().div_ceil(1000)),
            Self::Lost(why) => write!(f, "the shim cannot be reached: {why}"),
        }
    }
}

impl Link {
    pub(super) async fn connect(endpoint: &Endpoint, namespace: &str) -> Result<Self, Fault> {
        let service =
            if endpoint.version >= 3 { "containerd.task.v3.Task" } else { "containerd.task.v2.Task" };
        // Not by ttrpc's own connect, which blocks the event loop for as long as the shim's backlog is full.
        let connected = tokio::time::timeout(CONNECT, UnixStream::connect(endpoint.path())).await;
        match connected {
            Ok(Ok(stream)) => {
                let client = Client::new(Socket::from(stream));
                Ok(Self { client, service, namespace: namespace.into() })
            }
            // It listens, and takes nobody in.
            Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Err(Fault::Late(Duration::ZERO)),
            Ok(Err(error)) => Err(Fault::Lost(format!("{}: {error}", endpoint.address))),
            Err(_) => Err(Fault::Late(CONNECT)),
        }
    }

    /// One call; without a `limit` it takes as long as it takes.
    pub(super) async fn call<A: Message>(
        &self,
        method: &str,
        request: &impl Message,
        limit: Option<Duration>,
    ) -> Result<A, Fault> {
        let damaged = |error: protobuf::Error| Fault::Lost(format!("{method}: {error}"));
        let mut call = ttrpc::Request::new();
        (call.service, call.method) = (self.service.into(), method.into());
        call.payload = request.write_to_bytes().map_err(damaged)?;
        let metadata = HashMap::from([(NAMESPACE.to_owned(), vec![self.namespace.clone()])]);
        call.metadata = ttrpc::context::to_pb(metadata);
        let answer = match limit {
            None => self.client.request(call).await,
            Some(limit) => match tokio::time::timeout(limit, self.client.request(call)).await {
                Ok(answer) => answer,
                Err(_) => return Err(Fault::Late(limit)),
            },
        };
        match answer {
            Ok(answer) => A::parse_from_bytes(&answer.payload).map_err(damaged),
            Err(ttrpc::Error::RpcStatus(status)) => Err(Fault::Refused(status.code(), status.message)),
            Err(error) => Err(Fault::Lost(error.to_string())),
        }
    }
}
