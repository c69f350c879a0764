//! One unix connection (the trunk) that carries two ttrpc connections, as containerd's `net/multiplex` does it.
//!
//! ```text
//!            frame: id u32 | length u32 | payload          (big-endian)
//!  plugin ◀───────────────── trunk ─────────────────▶ runtime
//!             id 1: Plugin service, we are its client
//!             id 2: Runtime service, we are its server
//! ```
//! The Go reader hands one frame to one read and fails when the reader's buffer is smaller; ttrpc reads its headers through
//! a buffer of 4096 bytes, and 256 frames may wait. So a message goes out as one frame, or as one of 4096 bytes and one
//! with the rest (NRI-04 to NRI-08).

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;

/// The id on which the plugin serves.
const PLUGIN: u32 = 1;
/// The id on which the runtime serves.
const RUNTIME: u32 = 2;
/// Header of a frame, bytes.
const FRAME: usize = 8;
/// Header of a ttrpc message, bytes: length, stream, type, flags.
const HEADER: usize = 10;
/// The longest ttrpc message, and thus the longest frame.
pub(crate) const MESSAGE_MAX: usize = 4 << 20;
/// What the peer's header reader takes at once.
const FIRST: usize = 4096;
/// What waits between the trunk and a ttrpc connection.
const BUFFER: usize = 64 << 10;

/// The two connections, and the trunk's life.
#[derive(Debug)]
pub(crate) struct Mux {
    pub(crate) plugin: DuplexStream,
    pub(crate) runtime: DuplexStream,
    pub(crate) trunk: Trunk,
}

/// Dropping it closes the trunk, and both connections with it.
#[derive(Debug)]
pub(crate) struct Trunk {
    task: AbortHandle,
    closed: watch::Receiver<bool>,
}

impl Trunk {
    pub(crate) fn close(&self) {
        self.task.abort();
    }

    /// Returns when the trunk is closed, by whichever side.
    pub(crate) async fn closed(&self) {
        self.watch().await;
    }

    /// The same, for whoever must not hold it open.
    pub(crate) fn watch(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closed = self.closed.clone();
        async move {
            // An error means that the task is gone, and with it the trunk.
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }
}

impl Drop for Trunk {
    fn drop(&mut self) {
        self.close();
    }
}

/// Starts to carry.
pub(crate) fn split(trunk: UnixStream) -> Mux {
    let (plugin, plugin_far) = duplex(BUFFER);
    let (runtime, runtime_far) = duplex(BUFFER);
    let (tell, closed) = watch::channel(false);
    let task = tokio::spawn(async move {
        match carry(trunk, plugin_far, runtime_far).await {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                tracing::debug!("NRI connection: {error}");
            }
            _ => {}
        }
        tell.send_replace(true);
    });
    Mux { plugin, runtime, trunk: Trunk { task: task.abort_handle(), closed } }
}

/// Until the first of the three ends: then all are over.
async fn carry(trunk: UnixStream, plugin: DuplexStream, runtime: DuplexStream) -> io::Result<()> {
    let (from_trunk, to_trunk) = trunk.into_split();
    let to_trunk = Mutex::new(to_trunk);
    let (from_plugin, to_plugin) = tokio::io::split(plugin);
    let (from_runtime, to_runtime) = tokio::io::split(runtime);
    tokio::select! {
        done = receive(from_trunk, to_plugin, to_runtime) => done,
        done = send(PLUGIN, from_plugin, &to_trunk) => done,
        done = send(RUNTIME, from_runtime, &to_trunk) => done,
    }
}

/// Frames of other ids are dropped without a word.
async fn receive(
    mut trunk: OwnedReadHalf,
    mut plugin: impl AsyncWrite + Unpin,
    mut runtime: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut payload = Vec::new();
    loop {
        let (id, length) = (trunk.read_u32().await?, trunk.read_u32().await? as usize);
        if length > HEADER + MESSAGE_MAX {
            let text = format!("a frame of {length} bytes on id {id}; the most is {}", HEADER + MESSAGE_MAX);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        payload.resize(length, 0);
        trunk.read_exact(&mut payload).await?;
        match id {
            PLUGIN => plugin.write_all(&payload).await?,
            RUNTIME => runtime.write_all(&payload).await?,
            _ => {}
        }
    }
}

/// Takes whole ttrpc messages, sends each as one or two frames.
async fn send(id: u32, mut from: impl AsyncRead + Unpin, trunk: &Mutex<OwnedWriteHalf>) -> io::Result<()> {
    loop {
        let mut message = vec![0; HEADER];
        from.read_exact(&mut message).await?;
        let length = u32::from_be_bytes([message[0], message[1], message[2], message[3]]) as usize;
        message.resize(HEADER + length, 0);
        from.read_exact(&mut message[HEADER..]).await?;
        let (first, rest) = message.split_at(message.len().min(FIRST));
        let mut trunk = trunk.lock().await;
        for part in [first, rest].into_iter().filter(|part| !part.is_empty()) {
            trunk.write_all(&frame(id, part)).await?;
        }
    }
}

fn frame(id: u32, payload: &[u8]) -> Vec<u8> {
    // Never more than HEADER + MESSAGE_MAX: ttrpc has checked it.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(FRAME + payload.len());
    frame.extend(id.to_be_bytes());
    frame.extend(length.to_be_bytes());
    frame.extend(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut message = u32::try_from(length).expect("short").to_be_bytes().to_vec();
        message.extend([0; HEADER - 4]);
        message.extend((0..length).map(|n| n.to_le_bytes()[0]));
        message
    }

    async fn next_frame(peer: &mut UnixStream) -> (u32, Vec<u8>) {
        let (id, length) = (peer.read_u32().await.expect("id"), peer.read_u32().await.expect("length"));
        let mut payload = vec![0; length as usize];
        peer.read_exact(&mut payload).await.expect("payload");
        (id, payload)
    }

    /// NRI-04, NRI-05, NRI-06, NRI-06b.
    #[tokio::test]
    async fn a_message_is_one_frame_or_a_short_one_and_its_rest() {
        let (ours, mut peer) = UnixStream::pair().expect("pair");
        let mut mux = split(ours);
        for length in [0, 4086, 4087, 1 << 20] {
            let sent = message(length);
            let write = mux.plugin.write_all(&sent);
            let read = async {
                let (id, mut got) = next_frame(&mut peer).await;
                assert_eq!(id, PLUGIN);
                assert_eq!(got.len(), sent.len().min(FIRST), "the first frame of {length}");
                if got.len() < sent.len() {
                    let (id, rest) = next_frame(&mut peer).await;
                    assert_eq!(id, PLUGIN);
                    got.extend(rest);
                }
                assert_eq!(got, sent);
            };
            let (written, ()) = tokio::join!(write, read);
            written.expect("write");
        }
    }

    /// NRI-07, NRI-08: many frames of both ids, and one of an id that nobody opened.
    #[tokio::test]
    async fn frames_find_their_connection_and_strangers_are_dropped() {
        let (ours, mut peer) = UnixStream::pair().expect("pair");
        let mut mux = split(ours);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for n in 0..300_u32 {
            let (id, text) = (n % 3 + 1, n.to_be_bytes());
            peer.write_all(&frame(id, &text)).await.expect("write");
            match id {
                PLUGIN => first.extend(text),
                RUNTIME => second.extend(text),
                _ => {}
            }
        }
        let (mut got, mut got_second) = (vec![0; first.len()], vec![0; second.len()]);
        mux.plugin.read_exact(&mut got).await.expect("first");
        mux.runtime.read_exact(&mut got_second).await.expect("second");
        assert_eq!((got, got_second), (first, second));
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_closes_the_connection() {
        let (ours, mut peer) = UnixStream::pair().expect("pair");
        let mut mux = split(ours);
        peer.write_all(&[0, 0, 0, 1, 0xff, 0, 0, 0]).await.expect("write");
        mux.trunk.closed().await;
        assert_eq!(mux.plugin.read(&mut [0]).await.expect("end"), 0);
        assert_eq!(peer.read(&mut [0]).await.expect("end"), 0, "the plugin learns it");
    }
}
