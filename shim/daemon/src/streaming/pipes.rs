//! Pipes between a client's streams and the keeper, which opens its ends by their names in /proc (keeper.proto): a session
//! needs no file.

use crate::error::{Error, Result};
use bytes::BytesMut;
use slipway_streaming::{Input, Output};
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::{Receiver, Sender, pipe};

/// What is read at a time.
const PIECE: usize = 32 << 10;

/// Our end of a pipe, and the keeper's: kept open until it has opened its own.
#[derive(Debug)]
pub(super) struct Pipe<End> {
    pub(super) ours: End,
    pub(super) theirs: OwnedFd,
}

impl<End> Pipe<End> {
    /// As keeper.proto names it.
    fn name(&self) -> String {
        format!("pipe://{}/{}", std::process::id(), self.theirs.as_raw_fd())
    }

    /// The keeper has opened its end.
    pub(super) fn handed_over(self) -> End {
        self.ours
    }
}

/// The name of a stream; none is "".
pub(super) fn name<End>(pipe: Option<&Pipe<End>>) -> String {
    pipe.map(Pipe::name).unwrap_or_default()
}

pub(super) fn input() -> Result<Pipe<Sender>> {
    let (ours, theirs) = pipe().map_err(|e| failed(&e))?;
    Ok(Pipe { ours, theirs: theirs.into_blocking_fd().map_err(|e| failed(&e))? })
}

pub(super) fn output() -> Result<Pipe<Receiver>> {
    let (theirs, ours) = pipe().map_err(|e| failed(&e))?;
    Ok(Pipe { ours, theirs: theirs.into_blocking_fd().map_err(|e| failed(&e))? })
}

fn failed(error: &io::Error) -> Error {
    Error::io("make pipe", Path::new("for a client's stream"), error)
}

/// Passes on what the client types, to its end. A reader that is gone costs only what is still to come: the client's other
/// streams share its connection and must not wait.
pub(super) async fn feed(mut input: Input, mut pipe: Sender) {
    if input.copy_to(&mut pipe).await.is_err() {
        drop(pipe);
        while let Ok(Some(_)) = input.next().await {}
    }
}

/// Passes on what comes, to its end or until `enough` returns, which is asked anew after each piece. Without an output,
/// or once the client does not want it any more, it is read and thrown away.
pub(super) async fn drain<F: Future<Output = ()>>(
    mut pipe: Receiver,
    mut output: Option<Output>,
    enough: impl Fn() -> F,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        let read = tokio::select! {
            biased;
            read = pipe.read_buf(&mut buffer) => read,
            () = enough() => return,
        };
        if !matches!(read, Ok(1..)) {
            return;
        }
        let bytes = buffer.split().freeze();
        if let Some(wanted) = &output
            && wanted.send(bytes).await.is_err()
        {
            output = None;
        }
    }
}
