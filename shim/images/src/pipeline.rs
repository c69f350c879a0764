//! One layer from its source to a directory in tmp/, in one pass over three stages that run at the same time:
//! the network (async, hashes what it gets), a thread that decompresses and hashes, a thread that unpacks.
//!
//! Bounded channels between them; each stage ends the others by dropping its end. A stream that merely stops is an
//! error everywhere: only an explicit end is an end.

use crate::artifact::Blob;
use crate::digest::Digest;
use crate::manifest::Descriptor;
use crate::registry::Registry;
use crate::registry::blob::Sink;
use crate::store::Inner;
use crate::store::layers::{Tidy, Unpacked};
use crate::store::layout::Temporary;
use crate::unpack::decode::{decode, decode_unbuffered};
use crate::unpack::{Form, Limits, unpack};
use crate::{Error, Kind, Result};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use tokio::sync::mpsc;

/// Where a layer's bytes come from.
#[derive(Clone)]
pub(crate) enum Source {
    /// A layer; or a blob of an artifact, as the file that it becomes.
    Registry(Arc<Registry>, Box<Descriptor>, Option<Blob>),
    /// Part of a file; its digest and size are checked if they are known. A blob of an artifact as for a registry.
    File(Section, Option<Digest>, Option<Blob>),
}

/// A part of an open file, read by position: many may read at once.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Section {
    pub(crate) fn reader(&self) -> SectionReader {
        SectionReader { section: self.clone(), done: 0 }
    }
}

pub(crate) struct SectionReader {
    section: Section,
    done: u64,
}

impl Read for SectionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.section.length - self.done).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.section.file.read_at(&mut buffer[..left], self.section.offset + self.done)?;
        if count == 0 && left > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it says"));
        }
        self.done += count as u64;
        Ok(count)
    }
}

/// Called with the number of bytes that came from the source.
pub(crate) type OnBytes = Arc<dyn Fn(u64) + Send + Sync>;

/// Pieces of plain tar on their way to the unpacker.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;
/// Pieces from the network on their way to the decompressor, some 64 KiB each.
const CHUNKS: usize = 16;

/// Fetches, verifies and unpacks the layer `diff_id`. Nothing is left in tmp/ after an error or when dropped.
pub(crate) async fn run(
    inner: &Arc<Inner>,
    source: Source,
    diff_id: &Digest,
    on_bytes: OnBytes,
) -> Result<Unpacked> {
    let (plain, pieces) = sync_channel(PIECES);
    let (used, free) = channel();
    let hasher = diff_id.hasher();
    let output = Output { pieces: plain, free, hasher };
    let unpacker = {
        let (inner, diff_id) = (inner.clone(), diff_id.clone());
        tokio::task::spawn_blocking(move || unpacked(&inner, Pieces::new(pieces, used), diff_id))
    };
    let (Source::Registry(_, _, blob) | Source::File(_, _, blob)) = &source;
    let blob = blob.as_ref().map(Blob::identity);
    let decoded = match source {
        Source::Registry(registry, descriptor, blob) => {
            let (chunks, queue) = mpsc::channel(CHUNKS);
            let decoder = tokio::task::spawn_blocking(move || {
                let chunks = Chunks { queue, current: Bytes::new(), ended: false };
                match blob {
                    None => output.pump(decode(chunks)),
                    Some(blob) => {
                        let archive = blob.archive(chunks).map_err(Stop::Failed)?;
                        output.pump(Ok(Box::new(archive)))
                    }
                }
            });
            let inner = inner.clone();
            let on_bytes = Arc::new(move |count| {
                inner.fetched.fetch_add(count, Ordering::Relaxed);
                on_bytes(count);
            });
            let sink = Sink { chunks, on_bytes };
            let streamed = registry.stream(&descriptor, &sink).await;
            drop(sink);
            match streamed {
                // A cancelled stream means that a later stage gave up: its error is the cause.
                Err(error) if error.kind != Kind::Cancelled => {
                    // The threads end by themselves; waiting leaves nothing half-made when this returns.
                    let _ = tokio::join!(decoder, unpacker);
                    return Err(error);
                }
                _ => decoder.await,
            }
        }
        Source::File(section, digest, blob) => {
            let pump = move || output.pump_file(&section, digest, blob.as_ref(), &on_bytes);
            tokio::task::spawn_blocking(pump).await
        }
    };
    let unpacked = unpacker.await.map_err(|_| Error::cancelled("unpack", diff_id))?;
    let found = match decoded.map_err(|_| Error::cancelled("decompress", diff_id))? {
        Ok(found) => found,
        Err(Stop::Failed(error)) => return Err(error),
        Err(Stop::NobodyListens) => return unpacked.and(Err(Error::cancelled("unpack", diff_id))),
    };
    let unpacked = unpacked?;
    // A blob was compared with its digest, of which its identity is made.
    let found = blob.unwrap_or(found);
    if found == *diff_id {
        Ok(unpacked)
    } else {
        let why = format!("the unpacked layer is {found}, its image config promises something else");
        Err(Error::corrupt("verify diff id", diff_id, why))
    }
}

fn unpacked(inner: &Arc<Inner>, pieces: Pieces, diff_id: Digest) -> Result<Unpacked> {
    let tidy = Tidy(inner.clone());
    let directory = Temporary::directory(inner.layout())?;
    let tree = unpack(pieces, directory.path(), Limits::default(), Form::Layer)?;
    Ok(Unpacked { directory, tree, diff_id, tidy })
}

/// Why the decompressor stopped.
enum Stop {
    Failed(Error),
    /// The unpacker is gone: it knows why.
    NobodyListens,
}

struct Output {
    pieces: SyncSender<Option<Vec<u8>>>,
    free: Receiver<Vec<u8>>,
    hasher: crate::digest::Hasher,
}

impl Output {
    /// Reads `decoder` to its end and hands everything on; the digest of it all.
    fn pump(mut self, decoder: io::Result<Box<dyn Read + Send + '_>>) -> Result<Digest, Stop> {
        let failed = |e: io::Error| Stop::Failed(Error::corrupt("decompress", "layer", e));
        let mut decoder = decoder.map_err(failed)?;
        let mut allocated = 0;
        loop {
            let mut piece = match self.free.try_recv() {
                Ok(piece) => piece,
                Err(_) if allocated <= PIECES => {
                    allocated += 1;
                    vec![0; PIECE]
                }
                Err(_) => self.free.recv().map_err(|_| Stop::NobodyListens)?,
            };
            piece.resize(PIECE, 0);
            let count = fill(&mut decoder, &mut piece).map_err(failed)?;
            piece.truncate(count);
            self.hasher.update(&piece);
            let end = count == 0;
            self.pieces.send((!end).then_some(piece)).map_err(|_| Stop::NobodyListens)?;
            if end {
                return Ok(self.hasher.finish());
            }
        }
    }

    fn pump_file(
        self,
        section: &Section,
        digest: Option<Digest>,
        blob: Option<&Blob>,
        on_bytes: &OnBytes,
    ) -> Result<Digest, Stop> {
        let Some(digest) = digest else {
            return self.pump(decode_unbuffered(section.reader()));
        };
        let hasher = Arc::new(std::sync::Mutex::new(digest.hasher()));
        let reader = HashingReader { inner: section.reader(), hasher: hasher.clone() };
        let decoder: io::Result<Box<dyn Read + Send>> = match blob {
            None => decode_unbuffered(reader),
            Some(blob) => Ok(Box::new(blob.archive(reader).map_err(Stop::Failed)?)),
        };
        let found = self.pump(decoder)?;
        on_bytes(section.length);
        let hasher = hasher.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if hasher.finish() == digest {
            Ok(found)
        } else {
            Err(Stop::Failed(Error::corrupt("read blob", digest, "digest mismatch")))
        }
    }
}

struct HashingReader {
    inner: SectionReader,
    hasher: Arc<std::sync::Mutex<crate::digest::Hasher>>,
}

impl Read for HashingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.lock().unwrap_or_else(std::sync::PoisonError::into_inner).update(&buffer[..count]);
        Ok(count)
    }
}

/// Fills as much as there is: small pieces cost a channel round each.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the stream was cut off")
}

/// The network's pieces as a reader; used on a blocking thread.
struct Chunks {
    queue: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    ended: bool,
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.queue.blocking_recv() {
                Some(Some(piece)) => self.current = piece,
                Some(None) => self.ended = true,
                None => return Err(cut_off()),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        let _ = self.current.split_to(amount);
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// The decompressor's pieces as a reader; used pieces go back to be filled again.
struct Pieces {
    queue: Receiver<Option<Vec<u8>>>,
    used: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Pieces {
    fn new(queue: Receiver<Option<Vec<u8>>>, used: Sender<Vec<u8>>) -> Self {
        Self { queue, used, current: Vec::new(), at: 0, ended: false }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.current.len() && !self.ended {
            match self.queue.recv().map_err(|_| cut_off())? {
                Some(piece) => {
                    let used = std::mem::replace(&mut self.current, piece);
                    self.at = 0;
                    if used.capacity() > 0 {
                        // The decompressor may have finished and gone.
                        let _ = self.used.send(used);
                    }
                }
                None => self.ended = true,
            }
        }
        let rest = &self.current[self.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}
