//! Port-forward: many connections inside one session.
//!
//! ```text
//!  error stream ┐
//!               ├─ same requestID ──▶ pair ──▶ backend ──▶ TCP      a broken one ends its pair, never the session
//!  data stream ─┘
//! ```

use crate::Backend;
use crate::mux::{Gone, Input, Output};
use crate::session::{CREATION, STREAM_TYPE};
use crate::spdy::connection::Stream;
use crate::spdy::headers::Headers;
use crate::spdy::{Connection, frame::Status};
use crate::websocket::{Channels, Codec, Socket};
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Headers of a stream (STR-PF-02).
pub(crate) const PORT: &str = "port";
pub(crate) const REQUEST_ID: &str = "requestid";

/// The client's end of one forwarded connection.
#[derive(Debug)]
pub struct Duplex {
    input: Input,
    output: Output,
    /// The client can end its half alone; old WebSocket clients cannot.
    half_closes: bool,
}

impl Duplex {
    pub(crate) fn new(input: Input, output: Output, half_closes: bool) -> Self {
        Self { input, output, half_closes }
    }

    /// Carries bytes both ways until both directions have ended, each in its own time (STR-PF-14), or one end breaks.
    pub async fn join(mut self, tcp: TcpStream) {
        // Interactive protocols wait for each other's small packets.
        let _ = tcp.set_nodelay(true);
        let (from, to) = tcp.into_split();
        let up = up(&mut self.input, to);
        let down = down(from, &self.output);
        tokio::pin!(up, down);
        let mut is_up = true;
        loop {
            tokio::select! {
                ended = &mut up, if is_up => match ended {
                    Ok(()) => is_up = false,
                    Err(Gone) => return,
                },
                ended = &mut down => {
                    if ended.is_ok() && is_up && self.half_closes {
                        let _ = up.await;
                    }
                    return;
                }
            }
        }
    }
}

/// To the pod. A peer that reads no more costs only what is still to come.
async fn up(input: &mut Input, mut to: OwnedWriteHalf) -> Result<(), Gone> {
    match input.copy_to(&mut to).await {
        Ok(ended) => {
            ended?;
            let _ = to.shutdown().await;
        }
        Err(_) => while input.next().await?.is_some() {},
    }
    Ok(())
}

/// From the pod. What breaks there is a reset here, so that the client does not take it for the end.
async fn down(mut from: OwnedReadHalf, output: &Output) -> Result<(), Gone> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(crate::mux::PIECE);
        match from.read_buf(&mut buffer).await {
            Ok(0) => {
                output.finish().await;
                return Ok(());
            }
            Ok(_) => output.send(buffer.split().freeze()).await?,
            Err(_) => {
                output.reset(Status::Cancel).await;
                return Err(Gone);
            }
        }
    }
}

/// Streams of a port-forward session; others are refused at once (STR-PF-05).
pub(crate) fn admits(headers: &Headers) -> bool {
    port(headers).is_some() && matches!(headers.get(STREAM_TYPE), Some("data" | "error"))
}

fn port(headers: &Headers) -> Option<u16> {
    headers.get(PORT)?.parse().ok().filter(|port| *port > 0)
}

/// Old clients send no id: their error stream comes right before its data stream (STR-PF-04).
fn request_id(stream: &Stream) -> String {
    match stream.headers.get(REQUEST_ID) {
        Some(id) if !id.is_empty() => id.to_owned(),
        _ if stream.headers.get(STREAM_TYPE) == Some("error") => stream.id.to_string(),
        _ => stream.id.wrapping_sub(2).to_string(),
    }
}

/// A pair that may not be complete yet.
#[derive(Debug)]
struct Pair {
    error: Option<Stream>,
    data: Option<Stream>,
    due: Instant,
}

/// A whole session on a SPDY connection, or in a tunnel. Ends with the connection (STR-PF-18).
pub(crate) async fn over_spdy(mut connection: Connection, target: &str, backend: &Arc<dyn Backend>) {
    let mut pairs: HashMap<String, Pair> = HashMap::new();
    // Dropped at the end, and with it what still runs.
    let mut running = JoinSet::new();
    loop {
        let due = pairs.values().map(|pair| pair.due).min();
        tokio::select! {
            stream = connection.accept() => {
                let Some(stream) = stream else { return };
                if let Some((data, error)) = pair_up(&mut pairs, stream).await {
                    let (target, backend) = (target.to_owned(), Arc::clone(backend));
                    running.spawn(async move { carry(&target, data, error, &*backend).await });
                }
            }
            Some(_) = running.join_next() => {}
            () = until(due) => expire(&mut pairs).await,
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Pairs come in any order and many at a time (STR-PF-03). Answers data and error stream of a complete one.
async fn pair_up(pairs: &mut HashMap<String, Pair>, stream: Stream) -> Option<(Stream, Stream)> {
    let id = request_id(&stream);
    let fresh = || Pair { error: None, data: None, due: Instant::now() + CREATION };
    let pair = pairs.entry(id.clone()).or_insert_with(fresh);
    let slot = match stream.headers.get(STREAM_TYPE) {
        Some("error") => &mut pair.error,
        _ => &mut pair.data,
    };
    if slot.is_some() {
        // STR-PF-06.
        stream.output.reset(Status::ProtocolError).await;
        return None;
    }
    *slot = Some(stream);
    if pair.error.is_none() || pair.data.is_none() {
        return None;
    }
    let pair = pairs.remove(&id)?;
    pair.data.zip(pair.error)
}

/// STR-PF-07.
async fn expire(pairs: &mut HashMap<String, Pair>) {
    let now = Instant::now();
    let late: Vec<_> = pairs.extract_if(|_, pair| pair.due <= now).collect();
    for (id, pair) in late {
        if let Some(error) = pair.error {
            let text = format!("request {id}: its data stream did not come within {CREATION:?}");
            let _ = error.output.send(Bytes::from(text)).await;
            error.output.finish().await;
            error.output.reset(Status::Cancel).await;
        }
        if let Some(data) = pair.data {
            data.output.reset(Status::Cancel).await;
        }
    }
}

/// One forwarded connection to its end; afterwards both streams are gone (STR-PF-10, STR-PF-15).
async fn carry(target: &str, data: Stream, error: Stream, backend: &dyn Backend) {
    // Both were admitted with one.
    let port = port(&data.headers).unwrap_or_default();
    let failed = forward(target, port, Duplex::new(data.input, data.output.clone(), true), backend).await;
    if let Some(text) = &failed {
        let _ = error.output.send(Bytes::from(text.clone())).await;
    }
    error.output.finish().await;
    if failed.is_some() {
        data.output.reset(Status::Cancel).await;
    } else {
        data.output.finish().await;
    }
}

/// The sentence for the error stream (STR-PF-09).
async fn forward(target: &str, port: u16, duplex: Duplex, backend: &dyn Backend) -> Option<String> {
    let failed = backend.forward(target, port, duplex).await.err()?;
    Some(format!("error forwarding port {port} to pod {target}, uid : {failed}"))
}

/// Most ports of an old WebSocket client: two channels each.
pub(crate) const MAX_PORTS: usize = 100;

/// A whole session of an old WebSocket client: channels 2n and 2n+1 for the n-th port (STR-PFW-01).
pub(crate) async fn over_websocket<S>(
    socket: Socket<S>,
    codec: Codec,
    target: &str,
    ports: &[u16],
    backend: &Arc<dyn Backend>,
    idle: Duration,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut channels = Channels::new(codec, false);
    let mut connections = Vec::new();
    for (number, port) in (0u8..).step_by(2).zip(ports) {
        let (input, data) = (channels.input(number), channels.output(number));
        connections.push((*port, input, data, channels.output(number + 1)));
    }
    let running = channels.start(socket, idle);
    let mut tasks = JoinSet::new();
    for (port, input, data, error) in connections {
        let (target, backend) = (target.to_owned(), Arc::clone(backend));
        tasks.spawn(async move {
            // STR-PFW-02.
            for output in [&data, &error] {
                let _ = output.send(Bytes::copy_from_slice(&port.to_le_bytes())).await;
            }
            if let Some(text) = forward(&target, port, Duplex::new(input, data, false), &*backend).await {
                let _ = error.send(Bytes::from(text)).await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    running.close().await;
}
