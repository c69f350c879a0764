//! Sizes of a client's terminal: JSON objects one after the other, cut anywhere (STR-STM-17).

use crate::Size;
use crate::mux::Input;
use serde::Deserialize;
use tokio::sync::watch;

/// Bytes of an unfinished object; more is no size.
const MAX_OBJECT: usize = 4096;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Wire {
    width: i64,
    height: i64,
}

/// Reads sizes off a byte stream.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    rest: Vec<u8>,
}

/// Bytes that are no sizes: nothing after them can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Garbage;

impl Parser {
    /// The last good size that is complete with `bytes`; of several only that one matters (STR-TST-09).
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Option<Size>, Garbage> {
        self.rest.extend_from_slice(bytes);
        let mut values = serde_json::Deserializer::from_slice(&self.rest).into_iter::<Wire>();
        let (mut size, mut read) = (None, 0);
        loop {
            match values.next() {
                Some(Ok(wire)) => {
                    read = values.byte_offset();
                    size = good(&wire).or(size);
                }
                None => {
                    read = values.byte_offset();
                    break;
                }
                Some(Err(error)) if error.is_eof() => break,
                Some(Err(_)) => return Err(Garbage),
            }
        }
        self.rest.drain(..read.min(self.rest.len()));
        if self.rest.len() > MAX_OBJECT { Err(Garbage) } else { Ok(size) }
    }
}

/// STR-STM-18.
fn good(wire: &Wire) -> Option<Size> {
    let width = u16::try_from(wire.width).ok().filter(|n| *n > 0)?;
    let height = u16::try_from(wire.height).ok().filter(|n| *n > 0)?;
    Some(Size { width, height })
}

/// Passes the client's sizes on until it ends the stream.
pub(crate) async fn follow(mut input: Input, sizes: watch::Sender<Option<Size>>) {
    let mut parser = Parser::default();
    while let Ok(Some(bytes)) = input.next().await {
        match parser.push(&bytes) {
            Ok(None) => {}
            Ok(size) => drop(sizes.send_replace(size)),
            Err(Garbage) => {
                return tracing::debug!("resize stream: no JSON sizes in it; the rest is ignored");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(width: u16, height: u16) -> Option<Size> {
        Some(Size { width, height })
    }

    /// STR-STM-17, STR-STM-18, STR-TST-09.
    #[test]
    fn sizes_come_in_any_pieces() {
        let mut parser = Parser::default();
        assert_eq!(parser.push(br#"{"Width":80,"Hei"#), Ok(None));
        assert_eq!(parser.push(br#"ght":24}"#), Ok(size(80, 24)));
        let rapid = br#"{"Width":1,"Height":2}{"Width":3,"Height":4}{"Width":5,"Height":6}{"W"#;
        assert_eq!(parser.push(rapid), Ok(size(5, 6)));
        assert_eq!(parser.push(br#"idth":0,"Height":9}"#), Ok(None));
        assert_eq!(parser.push(b"{\"Width\":-1,\"Height\":9}\n{\"Width\":70000,\"Height\":9}\n"), Ok(None));
        assert_eq!(parser.push(br#"{"Width":7,"Height":8}"#), Ok(size(7, 8)));
    }

    #[test]
    fn garbage_is_told() {
        assert_eq!(Parser::default().push(b"hello"), Err(Garbage));
        assert_eq!(Parser::default().push(br#"{"Width":"wide"}"#), Err(Garbage));
        assert_eq!(Parser::default().push(&[b' '; 5000]), Ok(None), "white space is nothing");
        let mut endless = br#"{"Width":""#.to_vec();
        endless.resize(5000, b'x');
        assert_eq!(Parser::default().push(&endless), Err(Garbage));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed(pieces in proptest::collection::vec(any::<Vec<u8>>(), 0..8)) {
            let mut parser = Parser::default();
            for piece in pieces {
                if parser.push(&piece).is_err() {
                    break;
                }
            }
        }

        #[test]
        fn cuts_do_not_matter(sizes in proptest::collection::vec((1u16.., 1u16..), 1..6), cut in 1usize..20) {
            let text: String =
                sizes.iter().map(|(w, h)| format!("{{\"Width\":{w},\"Height\":{h}}}")).collect();
            let (mut parser, mut last) = (Parser::default(), None);
            for piece in text.as_bytes().chunks(cut) {
                last = parser.push(piece).unwrap().or(last);
            }
            let (width, height) = sizes[sizes.len() - 1];
            prop_assert_eq!(last, size(width, height));
        }
    }
}
