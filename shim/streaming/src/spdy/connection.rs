//! A SPDY connection: one task that reads, writes and watches the clock.
//!
//! ```text
//!  peer ──▶ read ──▶ queue of each stream ──▶ Input
//!    ▲        │ replies, pongs, resets
//!    └── write ◀── queue of the connection ◀── Output
//! ```
//!
//! The compressor belongs to the writer alone, so blocks are packed in the order in which they are written (SPDY-25).
//! There are no windows (SPDY-16): a stream whose queue is full holds up the reading of the others until its reader goes
//! on (SPDY-17).

use super::frame::{self, Control, FrameError, HEAD, Head, Status};
use super::headers::{BlockError, Headers, Packer, Unpacker};
use super::table::{Refused, Table};
use crate::mux::{Activity, Gone, Inbound, Input, Link, LinkEnd, Outgoing, Output, PIECE, link};
use bytes::{Buf, BytesMut};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long the peer gets to close after our good-bye. Closing at once, with bytes of it still unread, would make the
/// kernel reset the connection and throw away what the peer has not read yet.
const LINGER: Duration = Duration::from_secs(5);
/// Streams that wait for whoever takes them.
const BACKLOG: usize = 64;

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Client,
}

/// A stream that the peer opened, or that we did.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: u32,
    pub(crate) headers: Headers,
    pub(crate) input: Input,
    pub(crate) output: Output,
}

/// A running connection; dropping it cuts it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) link: Link,
    incoming: mpsc::Receiver<Stream>,
    table: Arc<Table>,
    /// Number of the next stream of our own.
    next: tokio::sync::Mutex<u32>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("read: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error(transparent)]
    Gone(#[from] Gone),
}

impl Connection {
    /// Serves `reader` and `writer` on a task of its own. `admit` says which streams the peer may open, by their headers;
    /// `idle` zero: for ever.
    pub(crate) fn start(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
        role: Role,
        idle: Duration,
        admit: fn(&Headers) -> bool,
    ) -> Self {
        let (link, end) = link();
        let (accepted, incoming) = mpsc::channel(BACKLOG);
        let (table, activity) = (Arc::new(Table::default()), Activity::new(idle));
        let reading = Reading {
            reader: BufReader::with_capacity(PIECE, reader),
            unpacker: Unpacker::new(),
            table: Arc::clone(&table),
            link: link.clone(),
            accepted,
            activity: activity.clone(),
            role,
            admit,
            going: false,
        };
        let task = tokio::spawn(drive(reading, writer, end, Arc::clone(&table), activity));
        Self { link, incoming, table, next: tokio::sync::Mutex::new(1), task }
    }

    /// The next stream of the peer's; `None` when the connection is over.
    pub(crate) async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// From now on streams of the peer's are refused.
    pub(crate) fn refuse(&mut self) {
        self.incoming.close();
    }

    /// Opens a stream of our own.
    pub(crate) async fn open(&self, headers: Headers) -> Result<Stream, Gone> {
        // Held until it is in the queue: numbers must rise on the wire.
        let mut next = self.next.lock().await;
        let id = *next;
        *next += 2;
        let (input, over) = self.table.open(id);
        self.link.send(Outgoing::Open { stream: id, headers: headers.clone() }).await?;
        Ok(Stream { id, headers, input, output: Output::new(id, self.link.clone(), over) })
    }

    /// Says good-bye after all that was sent, and waits until the peer has closed or [`LINGER`] is over.
    pub(crate) async fn close(mut self) {
        self.refuse();
        if self.link.send(Outgoing::Close).await.is_ok() {
            self.link.gone().await;
        }
    }

    #[cfg(test)]
    pub(super) fn open_streams(&self) -> usize {
        self.table.len()
    }
}

/// The whole life of a connection.
async fn drive(
    mut reading: Reading<impl AsyncRead + Unpin>,
    writer: impl AsyncWrite + Unpin,
    mut end: LinkEnd,
    table: Arc<Table>,
    activity: Activity,
) {
    {
        let read = reading.run();
        let write = write(writer, &mut end, &table, &activity);
        tokio::pin!(read, write);
        tokio::select! {
            ended = &mut read => {
                if let Err(error) = ended {
                    tracing::debug!("SPDY connection: {error}");
                }
            }
            ended = &mut write => match ended {
                Ok(()) => drop(tokio::time::timeout(LINGER, read).await),
                Err(error) => tracing::debug!("SPDY connection: write: {error}"),
            },
            () = activity.idle() => tracing::debug!("SPDY connection: idle for too long"),
        }
    }
    // Readers first hear that there is no more, then that the connection is over (STR-IDLE-02, STR-LOAD-03).
    table.clear();
}

struct Reading<R> {
    reader: BufReader<R>,
    unpacker: Unpacker,
    table: Arc<Table>,
    link: Link,
    accepted: mpsc::Sender<Stream>,
    activity: Activity,
    role: Role,
    admit: fn(&Headers) -> bool,
    /// The peer said good-bye: no new streams (SPDY-19).
    going: bool,
}

impl<R: AsyncRead + Unpin> Reading<R> {
    /// Until the peer closes.
    async fn run(&mut self) -> Result<(), Lost> {
        loop {
            let mut head = [0; HEAD];
            if self.reader.read(&mut head[..1]).await? == 0 {
                return Ok(());
            }
            self.reader.read_exact(&mut head[1..]).await?;
            self.activity.touch();
            match Head::parse(head)? {
                Head::Data { stream, fin, length } => self.data(stream, fin, length as usize).await?,
                Head::Control { kind, flags, length } => {
                    let mut body = vec![0; length as usize];
                    self.reader.read_exact(&mut body).await?;
                    self.control(Control::parse(kind, flags, &body)?).await?;
                }
            }
        }
    }

    /// Passes a frame on piece by piece, as it comes; without a receiver it is read and thrown away (SPDY-22).
    async fn data(&mut self, stream: u32, fin: bool, length: usize) -> Result<(), Lost> {
        let mut input = self.table.input(stream);
        if input.is_none() && !self.table.knows(stream) {
            self.link.send(Outgoing::Reset { stream, status: Status::InvalidStream }).await?;
        }
        let mut left = length;
        while left > 0 {
            let mut piece = BytesMut::with_capacity(left.min(PIECE));
            let count = (&mut self.reader).take(left.min(PIECE) as u64).read_buf(&mut piece).await?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            left -= count;
            self.activity.touch();
            if let Some(queue) = &input
                && queue.send(Inbound::Data(piece.freeze())).await.is_err()
            {
                input = None;
            }
        }
        if fin {
            self.end(stream).await;
        }
        Ok(())
    }

    async fn end(&mut self, stream: u32) {
        if let Some(queue) = self.table.ended_by_peer(stream) {
            let _ = queue.send(Inbound::End).await;
        }
    }

    async fn control(&mut self, control: Control<'_>) -> Result<(), Lost> {
        match control {
            Control::SynStream { stream, fin, unidirectional, block } => {
                let headers = self.unpacker.unpack(block)?;
                match self.admit(stream, headers.ok()) {
                    Ok(Some(headers)) => self.accept(stream, headers, fin, unidirectional).await?,
                    Ok(None) => {}
                    Err(status) => self.link.send(Outgoing::Reset { stream, status }).await?,
                }
            }
            Control::SynReply { stream, fin, block } | Control::Headers { stream, fin, block } => {
                let _ = self.unpacker.unpack(block)?;
                if fin {
                    self.end(stream).await;
                }
            }
            Control::Reset { stream, .. } => self.table.remove(stream),
            // An even one answers a ping of the server's, an odd one a client's (SPDY-18).
            Control::Ping(id) if id.is_multiple_of(2) == (self.role == Role::Client) => {
                self.link.send(Outgoing::Ping(id)).await?
            }
            Control::GoAway => self.going = true,
            Control::Ping(_) | Control::Other => {}
        }
        Ok(())
    }

    /// `None` in silence: after a good-bye.
    fn admit(&self, stream: u32, headers: Option<Headers>) -> Result<Option<Headers>, Status> {
        if self.going {
            return Ok(None);
        }
        if self.role == Role::Client {
            return Err(Status::RefusedStream);
        }
        match (self.table.admit(stream), headers) {
            (Err(Refused::Number), _) | (Ok(()), None) => Err(Status::ProtocolError),
            (Err(Refused::TooMany), _) => Err(Status::RefusedStream),
            (Ok(()), Some(headers)) if !(self.admit)(&headers) => Err(Status::RefusedStream),
            (Ok(()), Some(headers)) => Ok(Some(headers)),
        }
    }

    async fn accept(
        &mut self,
        stream: u32,
        headers: Headers,
        fin: bool,
        unidirectional: bool,
    ) -> Result<(), Lost> {
        let (input, over) = self.table.open(stream);
        // Before anything else of this stream is in the queue: the peer drops data that comes before it (SPDY-15).
        self.link.send(Outgoing::Reply { stream }).await?;
        if fin {
            self.end(stream).await;
        }
        if unidirectional {
            over.store(true, Ordering::Relaxed);
            self.table.ended_by_us(stream);
        }
        let output = Output::new(stream, self.link.clone(), over);
        if self.accepted.send(Stream { id: stream, headers, input, output }).await.is_err() {
            self.link.send(Outgoing::Reset { stream, status: Status::RefusedStream }).await?;
        }
        Ok(())
    }
}

/// Until the good-bye is written.
async fn write(
    mut writer: impl AsyncWrite + Unpin,
    end: &mut LinkEnd,
    table: &Table,
    activity: &Activity,
) -> io::Result<()> {
    let mut packer = Packer::new();
    while let Some(outgoing) = end.out.recv().await {
        match outgoing {
            Outgoing::Data { stream, bytes } if table.is_open(stream) => {
                let head = frame::data(stream, false, bytes.len());
                writer.write_all_buf(&mut Buf::chain(head.as_slice(), bytes)).await?;
            }
            Outgoing::End { stream } if table.is_open(stream) => {
                table.ended_by_us(stream);
                writer.write_all(&frame::data(stream, true, 0)).await?;
            }
            Outgoing::Reset { stream, status } => {
                table.remove(stream);
                writer.write_all(&frame::rst_stream(stream, status)).await?;
            }
            Outgoing::Reply { stream } => {
                let block = packer.pack(&Headers::default());
                writer.write_all(&frame::syn_reply(stream, &block)).await?;
            }
            Outgoing::Open { stream, headers } => {
                let block = packer.pack(&headers);
                writer.write_all(&frame::syn_stream(stream, &block)).await?;
            }
            Outgoing::Ping(id) => writer.write_all(&frame::ping(id)).await?,
            // Of a stream that was reset meanwhile.
            Outgoing::Data { .. } | Outgoing::End { .. } | Outgoing::Pong => {}
            Outgoing::Close => break,
        }
        activity.touch();
        if end.out.is_empty() {
            writer.flush().await?;
        }
    }
    writer.write_all(&frame::go_away(table.last())).await?;
    writer.flush().await?;
    writer.shutdown().await
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
