//! WebSocket as Kubernetes' clients use it: channels for exec, attach and old port-forwards; a tunnel for SPDY.

mod channels;
mod codec;
mod tunnel;

pub(crate) use channels::{Channels, Running};
pub(crate) use codec::Codec;
pub(crate) use tunnel::Tunnel;

use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

pub(crate) type Socket<S> = WebSocketStream<S>;

/// Longest message, in one frame or in several (STR-WS-15). Clients send 32 KiB.
const MAX_MESSAGE: usize = 4 << 20;

/// Limits and buffers of every connection.
pub(crate) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        .read_buffer_size(32 << 10)
        .write_buffer_size(32 << 10)
        // A message may be larger than what was flushed before it.
        .max_write_buffer_size(MAX_MESSAGE)
}
