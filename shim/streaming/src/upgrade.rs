//! From an HTTP request to a session: route, token, protocol, upgrade.

use crate::protocol::{self, Version, choose, listed};
use crate::server::Stopped;
use crate::spdy::{Connection, Role};
use crate::tls::Wire;
use crate::tokens::Tokens;
use crate::websocket::{self, Codec, Socket, Tunnel};
use crate::{Backend, Request, forward, session};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, BufWriter};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role as SocketRole;

/// A body is read and means nothing; a longer one is refused.
const MAX_BODY: usize = 64 << 10;
/// A frame of SPDY's that becomes one message of a tunnel.
const TUNNEL_BUFFER: usize = 40 << 10;

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) idle: Duration,
    pub(crate) stopped: Stopped,
}

type Answer = hyper::Response<Full<Bytes>>;

/// Answers one request; a session goes on after its answer.
pub(crate) async fn answer<S: Wire>(mut request: hyper::Request<Incoming>, shared: &Arc<Shared>) -> Answer {
    match accept::<S>(&mut request, shared).await {
        Ok(answer) => answer,
        Err(answer) => *answer,
    }
}

/// The error is an answer too (STR-HTTP-03).
async fn accept<S: Wire>(
    request: &mut hyper::Request<Incoming>,
    shared: &Arc<Shared>,
) -> Result<Answer, Box<Answer>> {
    // STR-URL-10.
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return Err(text(StatusCode::METHOD_NOT_ALLOWED, "streaming URLs are for GET and POST"));
    }
    let unknown = || {
        let sentence =
            "no such streaming request: its URL works once, for a minute; ask the runtime for a new one";
        text(StatusCode::NOT_FOUND, sentence)
    };
    let mut path = request.uri().path().strip_prefix('/').unwrap_or_default().splitn(2, '/');
    let (route, token) = (path.next().unwrap_or_default(), path.next().unwrap_or_default());
    let session = shared.tokens.redeem(route, token).ok_or_else(unknown)?;
    let plan = plan(request.headers(), &session)?;
    let upgrade = hyper::upgrade::on(&mut *request);
    // Before the answer: the session's own bytes begin behind it (STR-HTTP-02).
    if Limited::new(request.body_mut(), MAX_BODY).collect().await.is_err() {
        return Err(text(StatusCode::PAYLOAD_TOO_LARGE, "a streaming request has no body"));
    }
    let answer = plan.answer();
    let shared = Arc::clone(shared);
    tokio::spawn(shared.stopped.clone().or(async move {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!("streaming: upgrade: {error}"),
        };
        // It is what the server was given.
        if let Ok(parts) = upgraded.downcast::<TokioIo<S>>() {
            plan.run(parts.io.into_inner(), parts.read_buf, session, &shared).await;
        }
    }));
    Ok(answer)
}

/// What a request is upgraded to.
#[derive(Debug)]
enum Plan {
    Spdy { protocol: &'static str },
    WebSocket { protocol: &'static str, accept: String },
}

fn plan(headers: &HeaderMap, session: &Request) -> Result<Plan, Box<Answer>> {
    if is_upgrade(headers, "websocket") {
        return plan_websocket(headers, session);
    }
    let theirs = listed(headers.get_all(protocol::VERSIONS).iter().map(HeaderValue::as_bytes));
    if !is_upgrade(headers, "spdy/3.1") {
        // STR-UPG-01.
        let sentence = "unable to upgrade: missing upgrade headers in request: Connection: Upgrade with Upgrade: SPDY/3.1 or \
                        Upgrade: websocket";
        return Err(text(StatusCode::BAD_REQUEST, sentence));
    }
    if theirs.is_empty() {
        // STR-UPG-03.
        let sentence = format!("Upgrade request: unable to upgrade: it must contain {}", protocol::VERSIONS);
        return Err(text(StatusCode::BAD_REQUEST, sentence));
    }
    let ours: &[&str] = match session {
        Request::Forward { .. } => &[protocol::FORWARD],
        _ => &protocol::SPDY_COMMAND,
    };
    let protocol = choose(&theirs, ours).ok_or_else(|| refusal(&theirs, ours))?;
    Ok(Plan::Spdy { protocol })
}

fn plan_websocket(headers: &HeaderMap, session: &Request) -> Result<Plan, Box<Answer>> {
    let mut theirs = listed(headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().map(HeaderValue::as_bytes));
    if theirs.is_empty() {
        theirs.push(String::new());
    }
    let ours: &[&str] = match session {
        Request::Forward { .. } => &protocol::SOCKET_FORWARD,
        _ => &protocol::SOCKET_COMMAND,
    };
    let protocol = choose(&theirs, ours).ok_or_else(|| refusal(&theirs, ours))?;
    if let Request::Forward { ports, .. } = session
        && protocol != protocol::TUNNEL
        && !(1..=forward::MAX_PORTS).contains(&ports.len())
    {
        let most = forward::MAX_PORTS;
        let sentence =
            format!("port-forward over {protocol:?} needs 1 to {most} ports in PortForwardRequest");
        return Err(text(StatusCode::BAD_REQUEST, sentence));
    }
    if headers.get("sec-websocket-version").is_none_or(|version| version != "13") {
        let mut answer = text(StatusCode::UPGRADE_REQUIRED, "Sec-WebSocket-Version: 13 is wanted");
        answer.headers_mut().insert("sec-websocket-version", HeaderValue::from_static("13"));
        return Err(answer);
    }
    let Some(key) = headers.get("sec-websocket-key") else {
        return Err(text(StatusCode::BAD_REQUEST, "unable to upgrade: no Sec-WebSocket-Key"));
    };
    Ok(Plan::WebSocket { protocol, accept: derive_accept_key(key.as_bytes()) })
}

/// STR-WS-18, STR-UPG-01.
fn is_upgrade(headers: &HeaderMap, to: &str) -> bool {
    let names = |header| listed(headers.get_all(header).iter().map(HeaderValue::as_bytes));
    names(CONNECTION).iter().any(|name| name.eq_ignore_ascii_case("upgrade"))
        && names(UPGRADE).iter().any(|name| name.eq_ignore_ascii_case(to))
}

/// STR-UPG-05.
fn refusal(theirs: &[String], ours: &[&'static str]) -> Box<Answer> {
    let sentence = format!(
        "unable to upgrade: unable to negotiate protocol: client supports {theirs:?}, server supports {ours:?}"
    );
    let mut answer = text(StatusCode::FORBIDDEN, sentence);
    for name in ours.iter().filter(|name| !name.is_empty()) {
        answer.headers_mut().append(protocol::ACCEPTED, HeaderValue::from_static(name));
    }
    answer
}

fn text(status: StatusCode, sentence: impl Into<String>) -> Box<Answer> {
    let mut answer = Box::new(hyper::Response::new(Full::new(Bytes::from(sentence.into() + "\n"))));
    *answer.status_mut() = status;
    answer
}

impl Plan {
    /// 101 (STR-UPG-06).
    fn answer(&self) -> Answer {
        let mut answer = hyper::Response::new(Full::default());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        match self {
            Self::Spdy { protocol } => {
                headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
                headers.insert(protocol::VERSIONS, HeaderValue::from_static(protocol));
            }
            Self::WebSocket { protocol, accept } => {
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                if let Ok(accept) = HeaderValue::from_str(accept) {
                    headers.insert("sec-websocket-accept", accept);
                }
                if !protocol.is_empty() {
                    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
                }
            }
        }
        answer
    }

    /// The whole session. `early`: what the client sent before it had our answer (STR-UPG-07).
    async fn run<S: Wire>(self, wire: S, early: Bytes, session: Request, shared: &Shared) {
        let (backend, idle) = (&shared.backend, shared.idle);
        match self {
            Self::Spdy { protocol } => {
                let (from, to) = wire.halves();
                let from = Cursor::new(early).chain(from);
                if let Request::Forward { target, .. } = session {
                    let connection = Connection::start(from, to, Role::Server, idle, forward::admits);
                    return forward::over_spdy(connection, &target, backend).await;
                }
                let connection = Connection::start(from, to, Role::Server, idle, session::admits);
                session::over_spdy(connection, session, Version::of(protocol), &**backend).await;
            }
            Self::WebSocket { protocol, .. } => {
                let config = Some(websocket::config());
                let socket =
                    Socket::from_partially_read(wire, early.to_vec(), SocketRole::Server, config).await;
                match session {
                    Request::Forward { target, .. } if protocol == protocol::TUNNEL => {
                        let (from, to) = tokio::io::split(Tunnel::new(socket));
                        let to = BufWriter::with_capacity(TUNNEL_BUFFER, to);
                        let connection = Connection::start(from, to, Role::Server, idle, forward::admits);
                        forward::over_spdy(connection, &target, backend).await;
                    }
                    Request::Forward { target, ports } => {
                        let codec = Codec::of(protocol);
                        forward::over_websocket(socket, codec, &target, &ports, backend, idle).await;
                    }
                    session => {
                        let (codec, version) = (Codec::of(protocol), Version::of(protocol));
                        session::over_websocket(socket, codec, session, version, &**backend, idle).await;
                    }
                }
            }
        }
    }
}
