//! Messages with a channel number in front; pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::Message;

/// First byte of a message that ends a channel, named by the second (STR-WS-10).
const CLOSE: u8 = 255;

/// How channel and bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// A byte, then the bytes (STR-WS-03).
    Binary,
    /// A digit, then base64, as text (STR-WS-04).
    Base64,
}

/// What a message means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    Data(u8, Bytes),
    /// No more data on this channel.
    End(u8),
}

impl Codec {
    pub(crate) fn of(protocol: &str) -> Self {
        if protocol.contains("base64") { Self::Base64 } else { Self::Binary }
    }

    pub(crate) fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut message = BytesMut::with_capacity(bytes.len() + 1);
                message.put_u8(channel);
                message.put_slice(bytes);
                Message::Binary(message.freeze())
            }
            Self::Base64 => {
                let mut text = String::with_capacity(bytes.len() * 4 / 3 + 8);
                text.push(char::from(b'0'.wrapping_add(channel)));
                STANDARD.encode_string(bytes, &mut text);
                Message::Text(text.into())
            }
        }
    }

    /// The message that ends a channel.
    pub(crate) fn end(channel: u8) -> Message {
        Message::Binary(Bytes::copy_from_slice(&[CLOSE, channel]))
    }

    /// `None`: it says nothing. `closes`: the protocol knows how to end a channel.
    pub(crate) fn decode(self, message: Message, closes: bool) -> Option<Meaning> {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            _ => return None,
        };
        let channel = *bytes.first()?;
        if closes && channel == CLOSE {
            return if bytes.len() == 2 { Some(Meaning::End(bytes[1])) } else { None };
        }
        let rest = bytes.split_off(1);
        match self {
            Self::Binary => Some(Meaning::Data(channel, rest)),
            Self::Base64 => {
                let plain = STANDARD.decode(&rest).ok()?;
                Some(Meaning::Data(channel.wrapping_sub(b'0'), plain.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// STR-WS-02, STR-WS-03, STR-WS-04, in the words of Kubernetes' own documentation.
    #[test]
    fn both_forms() {
        assert_eq!(Codec::Binary.encode(1, b"foo\n"), Message::Binary(b"\x01foo\n"[..].into()));
        assert_eq!(Codec::Base64.encode(0, b"foo\n"), Message::Text("0Zm9vCg==".into()));
        let data = Some(Meaning::Data(0, b"foo\n"[..].into()));
        assert_eq!(Codec::Base64.decode(Message::Text("0Zm9vCg==".into()), false), data);
        assert_eq!(Codec::Binary.decode(Message::Binary(b"\x00foo\n"[..].into()), true), data);
        assert_eq!(Codec::of("v4.base64.channel.k8s.io"), Codec::Base64);
        assert_eq!(Codec::of(""), Codec::Binary, "STR-WS-05");
    }

    /// STR-WS-10, STR-WS-11: only version 5 ends channels, and an empty message never does.
    #[test]
    fn the_end_of_a_channel() {
        assert_eq!(Codec::Binary.decode(Codec::end(0), true), Some(Meaning::End(0)));
        assert_eq!(
            Codec::Binary.decode(Codec::end(0), false),
            Some(Meaning::Data(255, b"\0"[..].into())),
            "an unknown channel"
        );
        assert_eq!(
            Codec::Binary.decode(Message::Binary(b"\0"[..].into()), true),
            Some(Meaning::Data(0, Bytes::new()))
        );
        for broken in [&[255u8][..], &[255, 0, 0], &[]] {
            assert_eq!(Codec::Binary.decode(Message::Binary(Bytes::copy_from_slice(broken)), true), None);
        }
        assert_eq!(Codec::Base64.decode(Message::Text("0!".into()), false), None);
    }

    proptest! {
        #[test]
        fn messages_come_back(channel in 0u8..10, bytes: Vec<u8>, base64: bool) {
            let codec = if base64 { Codec::Base64 } else { Codec::Binary };
            let back = codec.decode(codec.encode(channel, &bytes), true);
            prop_assert_eq!(back, Some(Meaning::Data(channel, bytes.into())));
        }

        #[test]
        fn any_message_is_decoded(bytes: Vec<u8>, text: String, closes: bool) {
            for codec in [Codec::Binary, Codec::Base64] {
                let _ = codec.decode(Message::Binary(bytes.clone().into()), closes);
                let _ = codec.decode(Message::Text(text.clone().into()), closes);
            }
        }
    }
}
