//! Exec and attach: which streams a session has, and what is said at its end.

use crate::mux::{Input, Link, Output};
use crate::protocol::Version;
use crate::spdy::headers::Headers;
use crate::spdy::{Connection, frame::Status};
use crate::websocket::{Channels, Codec, Socket};
use crate::{Backend, Request, Size, Streams, resize, status};
use bytes::Bytes;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// How long the client gets to open all streams (STR-UPG-10).
pub(crate) const CREATION: Duration = Duration::from_secs(30);

/// Header that says what a stream of SPDY is for (STR-STM-01).
pub(crate) const STREAM_TYPE: &str = "streamtype";

/// Channels of WebSocket (STR-WS-02).
pub(crate) mod channel {
    pub(crate) const STDIN: u8 = 0;
    pub(crate) const STDOUT: u8 = 1;
    pub(crate) const STDERR: u8 = 2;
    pub(crate) const ERROR: u8 = 3;
    pub(crate) const RESIZE: u8 = 4;
}

/// What a backend gets of one client.
#[derive(Debug)]
pub struct Session {
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    pub terminal: bool,
    /// The last size the client told; only terminals have one.
    pub sizes: watch::Receiver<Option<Size>>,
    pub client: Client,
}

/// The client as such.
#[derive(Debug, Clone)]
pub struct Client(Link);

impl Client {
    /// Returns when it is gone: it left, it was idle for too long, or the server is ending.
    pub async fn gone(&self) {
        self.0.gone().await;
    }
}

/// All streams of a session.
#[derive(Debug, Default)]
struct Roles {
    error: Option<Output>,
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    resize: Option<Input>,
}

impl Roles {
    /// STR-STM-02: as asked in the CRI call; resizing only where there is a terminal and the protocol knows it.
    fn complete(&self, wanted: &Streams, version: Version) -> bool {
        self.error.is_some()
            && (self.stdin.is_some() || !wanted.stdin)
            && (self.stdout.is_some() || !wanted.stdout)
            && (self.stderr.is_some() || !wanted.stderr)
            && (self.resize.is_some() || !(wanted.terminal && version.resizes()))
    }

    /// The same role twice: the second one comes back.
    fn put(&mut self, role: &str, input: Input, output: Output) -> Option<Output> {
        match role {
            "error" if self.error.is_none() => self.error = Some(output),
            "stdin" if self.stdin.is_none() => self.stdin = Some(input),
            "stdout" if self.stdout.is_none() => self.stdout = Some(output),
            "stderr" if self.stderr.is_none() => self.stderr = Some(output),
            "resize" if self.resize.is_none() => self.resize = Some(input),
            _ => return Some(output),
        }
        None
    }

    /// What the CRI call did not ask for is not there, whatever the client opened.
    fn only(mut self, wanted: &Streams) -> Self {
        self.stdin = self.stdin.filter(|_| wanted.stdin);
        self.stdout = self.stdout.filter(|_| wanted.stdout);
        self.stderr = self.stderr.filter(|_| wanted.stderr);
        self
    }
}

/// Streams that exec and attach know; others are refused and the session goes on (STR-STM-05).
pub(crate) fn admits(headers: &Headers) -> bool {
    matches!(headers.get(STREAM_TYPE), Some("error" | "stdin" | "stdout" | "stderr" | "resize"))
}

fn wanted(request: &Request) -> Streams {
    match request {
        Request::Exec { streams, .. } | Request::Attach { streams, .. } => *streams,
        Request::Forward { .. } => Streams::default(),
    }
}

/// A whole session on a SPDY connection.
pub(crate) async fn over_spdy(
    mut connection: Connection,
    request: Request,
    version: Version,
    backend: &dyn Backend,
) {
    let (wanted, mut roles) = (wanted(&request), Roles::default());
    match tokio::time::timeout(CREATION, gather(&mut connection, &mut roles, &wanted, version)).await {
        Ok(true) => {
            connection.refuse();
            let link = connection.link.clone();
            run(backend, request, version, roles.only(&wanted), link).await;
        }
        Ok(false) => return,
        Err(_) => {
            let late = Err(format!("the client did not open all its streams within {CREATION:?}").into());
            if let Some(error) = &roles.error {
                say(error, version, &late).await;
            }
        }
    }
    connection.close().await;
}

/// Takes streams in any order until all are there (STR-STM-03). False: the client left.
async fn gather(connection: &mut Connection, roles: &mut Roles, wanted: &Streams, version: Version) -> bool {
    while !roles.complete(wanted, version) {
        let Some(stream) = connection.accept().await else { return false };
        let role = stream.headers.get(STREAM_TYPE).unwrap_or_default().to_owned();
        if let Some(second) = roles.put(&role, stream.input, stream.output) {
            second.reset(Status::ProtocolError).await;
        }
    }
    true
}

/// A whole session on a WebSocket.
pub(crate) async fn over_websocket<S>(
    socket: Socket<S>,
    codec: Codec,
    request: Request,
    version: Version,
    backend: &dyn Backend,
    idle: Duration,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let wanted = wanted(&request);
    let (mut channels, mut roles) = (Channels::new(codec, version.closes()), Roles::default());
    if wanted.stdin {
        roles.stdin = Some(channels.input(channel::STDIN));
    }
    if wanted.terminal {
        roles.resize = Some(channels.input(channel::RESIZE));
    }
    roles.error = Some(channels.output(channel::ERROR));
    roles.stdout = wanted.stdout.then(|| channels.output(channel::STDOUT));
    roles.stderr = wanted.stderr.then(|| channels.output(channel::STDERR));
    let link = channels.link();
    let lowest = match (wanted.stdout, wanted.stderr) {
        (true, _) => channel::STDOUT,
        (false, true) => channel::STDERR,
        (false, false) => channel::ERROR,
    };
    let running = channels.start(socket, idle);
    // STR-WS-06.
    running.greet(lowest).await;
    run(backend, request, version, roles, link).await;
    running.close().await;
}

/// The session itself, then its streams' ends in the order that clients rely on (STR-STM-14, STR-STM-15).
async fn run(backend: &dyn Backend, request: Request, version: Version, roles: Roles, link: Link) {
    let (tell, sizes) = watch::channel(None);
    if let Some(resize) = roles.resize {
        // Ends with the connection.
        tokio::spawn(resize::follow(resize, tell));
    }
    let outputs = [roles.stdout.clone(), roles.stderr.clone()];
    let session = Session {
        stdin: roles.stdin,
        stdout: roles.stdout,
        stderr: roles.stderr,
        terminal: wanted(&request).terminal,
        sizes,
        client: Client(link),
    };
    let outcome: Result<u8, crate::Error> = match request {
        Request::Exec { target, command, .. } => backend
            .exec(&target, command, session)
            .await
            .map_err(|e| format!("error executing command in container: {e}").into()),
        Request::Attach { target, .. } => backend
            .attach(&target, session)
            .await
            .map(|()| 0)
            .map_err(|e| format!("error attaching to container: {e}").into()),
        Request::Forward { .. } => Err("port-forward is no session".into()),
    };
    for output in outputs.into_iter().flatten() {
        output.finish().await;
    }
    if let Some(error) = roles.error {
        say(&error, version, &outcome).await;
    }
}

async fn say(error: &Output, version: Version, outcome: &Result<u8, crate::Error>) {
    if let Some(text) = status::encode(version, outcome) {
        let _ = error.send(Bytes::from(text)).await;
    }
    error.finish().await;
}
