//! Images as a stream of pieces of one archive.

use super::Streamed;
use super::local_service::Receiving;
use crate::error::Error;
use cri_proto::slipway::ExportPiece;
use slipway_images::Store;
use std::io::{self, BufWriter, Write};
use tokio::sync::mpsc;
use tonic::Status;

/// Bytes in a piece.
const PIECE: usize = 256 << 10;
/// Pieces on the way to a slow client.
const PIECES: usize = 8;

/// The archive of `images`; ends with an error if it is not whole.
pub(super) fn pieces(store: Store, images: Vec<String>) -> Streamed<ExportPiece> {
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(PIECE, Pieces(sender.clone()));
        if let Err(error) = store.export(&images, &mut out) {
            // What is left in the buffer belongs to nothing.
            let _ = out.into_parts();
            // A client that left needs no answer.
            let _ = sender.blocking_send(Err(Status::from(Error::from(error))));
        }
    });
    Box::pin(Receiving(receiver))
}

struct Pieces(mpsc::Sender<Result<ExportPiece, Status>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A large write goes past the buffer.
        let taken = &bytes[..bytes.len().min(PIECE)];
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody takes it any more");
        self.0.blocking_send(Ok(ExportPiece { data: taken.to_vec() })).map_err(gone)?;
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
