//! Channels of one WebSocket: a task that reads, writes and watches the clock, as for SPDY.

use super::Socket;
use super::codec::{Codec, Meaning};
use crate::mux::{Activity, Inbound, Input, Link, LinkEnd, Outgoing, Output, PIECE, link};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};

/// How long the peer gets to answer our good-bye.
const LINGER: Duration = Duration::from_secs(5);
/// A reader that is held up by a full channel gives a sign of life so often: clients take silence for death (STR-WS-13).
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// Channels before their connection is served.
#[derive(Debug)]
pub(crate) struct Channels {
    codec: Codec,
    closes: bool,
    says_ends: bool,
    inputs: HashMap<u8, mpsc::Sender<Inbound>>,
    link: Link,
    end: LinkEnd,
}

/// A connection that is served; dropping it cuts it.
#[derive(Debug)]
pub(crate) struct Running {
    link: Link,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Channels {
    /// `closes`: the peer can end its channels (STR-WS-10).
    pub(crate) fn new(codec: Codec, closes: bool) -> Self {
        let (link, end) = link();
        Self { codec, closes, says_ends: false, inputs: HashMap::new(), link, end }
    }

    /// Channels of a client: it tells their ends, which no client wants to hear.
    pub(crate) fn of_client(codec: Codec) -> Self {
        Self { says_ends: true, ..Self::new(codec, false) }
    }

    pub(crate) fn link(&self) -> Link {
        self.link.clone()
    }

    /// A channel that the peer writes.
    pub(crate) fn input(&mut self, channel: u8) -> Input {
        let (sender, input) = Input::new();
        self.inputs.insert(channel, sender);
        input
    }

    /// A channel that we write.
    pub(crate) fn output(&self, channel: u8) -> Output {
        Output::new(channel.into(), self.link.clone(), Arc::default())
    }

    pub(crate) fn start<S>(self, socket: Socket<S>, idle: Duration) -> Running
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let link = self.link.clone();
        Running { link, task: tokio::spawn(self.drive(socket, Activity::new(idle))) }
    }

    async fn drive<S: AsyncRead + AsyncWrite + Unpin>(self, socket: Socket<S>, activity: Activity) {
        let (sink, stream) = socket.split();
        let Self { codec, closes, says_ends, inputs, link, mut end } = self;
        let read = read(stream, codec, closes, inputs, &link, &activity);
        let write = write(sink, codec, says_ends, &mut end, &activity);
        tokio::pin!(read, write);
        tokio::select! {
            ended = &mut read => log(ended),
            ended = &mut write => match ended {
                Ok(()) => drop(tokio::time::timeout(LINGER, read).await),
                error => log(error),
            },
            () = activity.idle() => tracing::debug!("WebSocket: idle for too long"),
        }
    }
}

fn log(ended: tungstenite::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!("WebSocket: {error}");
    }
}

impl Running {
    /// An empty message: the client learns that the connection is open (STR-WS-06).
    pub(crate) async fn greet(&self, channel: u8) {
        let _ = self.link.send(Outgoing::Data { stream: channel.into(), bytes: Bytes::new() }).await;
    }

    /// Says good-bye with code 1000 after all that was sent, and waits for the peer's (STR-WS-14).
    pub(crate) async fn close(self) {
        if self.link.send(Outgoing::Close).await.is_ok() {
            self.link.gone().await;
        }
    }
}

/// Until the peer closes. What is for no channel of ours is ignored (STR-WS-07).
async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<Socket<S>>,
    codec: Codec,
    closes: bool,
    mut inputs: HashMap<u8, mpsc::Sender<Inbound>>,
    link: &Link,
    activity: &Activity,
) -> tungstenite::Result<()> {
    while let Some(message) = stream.next().await {
        activity.touch();
        match codec.decode(message?, closes) {
            Some(Meaning::Data(channel, mut bytes)) => {
                while let Some(queue) = inputs.get(&channel)
                    && !bytes.is_empty()
                {
                    let piece = bytes.split_to(bytes.len().min(PIECE));
                    if !deliver(queue, piece, link).await {
                        inputs.remove(&channel);
                    }
                }
            }
            Some(Meaning::End(channel)) => {
                if let Some(queue) = inputs.remove(&channel) {
                    let _ = queue.send(Inbound::End).await;
                }
            }
            // Control messages are answered by the library while we read.
            None => {}
        }
    }
    Ok(())
}

/// False: nobody reads this channel any more.
async fn deliver(queue: &mpsc::Sender<Inbound>, piece: Bytes, link: &Link) -> bool {
    let send = queue.send(Inbound::Data(piece));
    tokio::pin!(send);
    loop {
        tokio::select! {
            sent = &mut send => return sent.is_ok(),
            () = tokio::time::sleep(SIGN_OF_LIFE) => {
                if link.send(Outgoing::Pong).await.is_err() {
                    return false;
                }
            }
        }
    }
}

/// Until the good-bye is written.
async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<Socket<S>, Message>,
    codec: Codec,
    says_ends: bool,
    end: &mut LinkEnd,
    activity: &Activity,
) -> tungstenite::Result<()> {
    while let Some(outgoing) = end.out.recv().await {
        let message = match outgoing {
            Outgoing::Data { stream, bytes } => codec.encode(u8::try_from(stream).unwrap_or(u8::MAX), &bytes),
            Outgoing::End { stream } if says_ends => Codec::end(u8::try_from(stream).unwrap_or(u8::MAX)),
            Outgoing::Pong => Message::Pong(Bytes::new()),
            Outgoing::Close => break,
            _ => continue,
        };
        sink.feed(message).await?;
        if end.out.is_empty() {
            sink.flush().await?;
        }
        activity.touch();
    }
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    sink.send(Message::Close(Some(normal))).await
}
