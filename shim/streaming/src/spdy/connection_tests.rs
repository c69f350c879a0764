//! A connection against a peer that writes frames by hand.

use super::super::frame;
use super::*;
use bytes::Bytes;
use tokio::io::{DuplexStream, duplex};

/// What the peer reads back.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Reply(u32),
    Data(u32, Vec<u8>, bool),
    Reset(u32, u32),
    Ping(u32),
    GoAway,
    Closed,
}

struct Peer {
    pipe: DuplexStream,
    packer: Packer,
    unpacker: Unpacker,
}

impl Peer {
    async fn write(&mut self, bytes: &[u8]) {
        self.pipe.write_all(bytes).await.unwrap();
    }

    async fn open(&mut self, stream: u32, kind: &str) {
        let block = self.packer.pack(&Headers::from_pairs([("streamType", kind)]));
        self.write(&frame::syn_stream(stream, &block)).await;
    }

    async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        self.write(&frame::data(stream, fin, bytes.len())).await;
        self.write(bytes).await;
    }

    async fn see(&mut self) -> Seen {
        let mut head = [0; HEAD];
        if self.pipe.read_exact(&mut head).await.is_err() {
            return Seen::Closed;
        }
        match Head::parse(head).unwrap() {
            Head::Data { stream, fin, length } => {
                let mut bytes = vec![0; length as usize];
                self.pipe.read_exact(&mut bytes).await.unwrap();
                Seen::Data(stream, bytes, fin)
            }
            Head::Control { kind, flags, length } => {
                let mut body = vec![0; length as usize];
                self.pipe.read_exact(&mut body).await.unwrap();
                match Control::parse(kind, flags, &body).unwrap() {
                    Control::SynReply { stream, block, .. } => {
                        assert_eq!(self.unpacker.unpack(block), Ok(Ok(Headers::default())), "SPDY-29");
                        Seen::Reply(stream)
                    }
                    Control::Reset { stream, status } => Seen::Reset(stream, status),
                    Control::Ping(id) => Seen::Ping(id),
                    Control::GoAway => Seen::GoAway,
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

fn pair_with(room: usize, idle: Duration, admit: fn(&Headers) -> bool) -> (Connection, Peer) {
    let (ours, theirs) = duplex(room);
    let (from, to) = tokio::io::split(ours);
    let connection = Connection::start(from, to, Role::Server, idle, admit);
    (connection, Peer { pipe: theirs, packer: Packer::new(), unpacker: Unpacker::new() })
}

fn pair() -> (Connection, Peer) {
    pair_with(1 << 20, Duration::ZERO, |_| true)
}

/// SPDY-14, SPDY-15, SPDY-23, SPDY-24, STR-STM-04.
#[tokio::test]
async fn a_stream_lives_until_both_halves_are_closed() {
    let (mut connection, mut peer) = pair();
    peer.open(1, "stdin").await;
    let mut stream = connection.accept().await.unwrap();
    assert_eq!((stream.id, stream.headers.get("streamType")), (1, Some("stdin")));
    stream.output.send(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(peer.see().await, Seen::Reply(1), "before any data");
    assert_eq!(peer.see().await, Seen::Data(1, b"hello".to_vec(), false));
    peer.data(1, b"", false).await;
    peer.data(1, b"in", false).await;
    peer.data(1, b"", true).await;
    assert_eq!(stream.input.next().await, Ok(Some(Bytes::from_static(b"in"))), "empty data is nothing");
    assert_eq!(stream.input.next().await, Ok(None));
    assert_eq!(connection.open_streams(), 1);
    stream.output.finish().await;
    stream.output.finish().await;
    assert_eq!(peer.see().await, Seen::Data(1, vec![], true));
    assert_eq!(connection.open_streams(), 0);
    assert!(stream.output.send(Bytes::from_static(b"late")).await.is_err());
}

/// SPDY-10, SPDY-13, SPDY-22: none of it ends the connection.
#[tokio::test]
async fn what_is_wrong_costs_its_stream_only() {
    let (mut connection, mut peer) =
        pair_with(1 << 20, Duration::ZERO, |headers| headers.get("streamType") == Some("good"));
    peer.open(2, "good").await;
    assert_eq!(peer.see().await, Seen::Reset(2, 1), "an even number");
    peer.open(5, "bad").await;
    assert_eq!(peer.see().await, Seen::Reset(5, 3), "refused by its headers");
    peer.open(5, "good").await;
    assert_eq!(peer.see().await, Seen::Reset(5, 1), "the same number again");
    peer.open(3, "good").await;
    assert_eq!(peer.see().await, Seen::Reset(3, 1), "a lower number");
    peer.data(99, b"lost", false).await;
    assert_eq!(peer.see().await, Seen::Reset(99, 2), "a stream that never was");
    peer.open(7, "good").await;
    assert_eq!(peer.see().await, Seen::Reply(7), "all blocks were unpacked");
    peer.write(&frame::rst_stream(7, Status::Cancel)).await;
    peer.data(7, b"late", false).await;
    let mut stream = connection.accept().await.unwrap();
    assert_eq!(stream.input.next().await, Err(Gone));
    while stream.output.send(Bytes::from_static(b"x")).await.is_ok() {}
    assert_eq!(connection.open_streams(), 0);
}

/// SPDY-18: pings of the peer's parity are echoed, answers to ours are not.
#[tokio::test]
async fn pings() {
    let (_connection, mut peer) = pair();
    peer.write(&frame::ping(4)).await;
    peer.write(&frame::ping(5)).await;
    assert_eq!(peer.see().await, Seen::Ping(5));
}

/// SPDY-19, SPDY-20.
#[tokio::test]
async fn good_byes() {
    let (mut connection, mut peer) = pair();
    peer.open(1, "data").await;
    let stream = connection.accept().await.unwrap();
    assert_eq!(peer.see().await, Seen::Reply(1));
    peer.write(&frame::go_away(0)).await;
    peer.open(3, "data").await;
    peer.write(&frame::ping(1)).await;
    assert_eq!(peer.see().await, Seen::Ping(1), "the new stream is ignored");
    stream.output.send(Bytes::from_static(b"still")).await.unwrap();
    assert_eq!(peer.see().await, Seen::Data(1, b"still".to_vec(), false), "the old one goes on");
    let closing = tokio::spawn(connection.close());
    assert_eq!(peer.see().await, Seen::GoAway);
    assert_eq!(peer.see().await, Seen::Closed);
    drop(peer);
    closing.await.unwrap();
}

/// SPDY-26, SPDY-27, SPDY-12: framing or compression that is lost ends the connection, and its streams hear so.
#[tokio::test]
async fn lost_framing_ends_the_connection() {
    let version_2 = [0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1].to_vec();
    let short = [0x80, 3, 0, 6, 0, 0, 0, 2, 0, 0].to_vec();
    let block = frame::syn_stream(3, b"this is no zlib stream");
    let long = [0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff].to_vec();
    let http = b"\x80\x03HTTP/1.1 400 Bad Request".to_vec();
    for bytes in [version_2, short, block, long, http] {
        let (mut connection, mut peer) = pair();
        peer.open(1, "data").await;
        let mut stream = connection.accept().await.unwrap();
        peer.write(&bytes).await;
        assert_eq!(stream.input.next().await, Err(Gone), "{bytes:?}");
        assert!(connection.accept().await.is_none());
        connection.link.gone().await;
    }
}

/// STR-IDLE-01, STR-IDLE-02, STR-TST-11.
#[tokio::test(start_paused = true)]
async fn silence_ends_it_and_pings_keep_it() {
    let (mut connection, mut peer) = pair_with(1 << 20, Duration::from_secs(5), |_| true);
    peer.open(1, "data").await;
    let mut stream = connection.accept().await.unwrap();
    assert_eq!(peer.see().await, Seen::Reply(1));
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        peer.write(&frame::ping(1)).await;
        assert_eq!(peer.see().await, Seen::Ping(1));
    }
    let start = tokio::time::Instant::now();
    assert_eq!(stream.input.next().await, Err(Gone));
    assert!((5..7).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_eq!(peer.see().await, Seen::Closed);
}

/// STR-LOAD-02, SPDY-28: a peer that does not read holds little of ours, and pieces are small.
#[tokio::test]
async fn a_peer_that_does_not_read_makes_the_writer_wait() {
    let (mut connection, mut peer) = pair_with(1024, Duration::ZERO, |_| true);
    peer.open(1, "stdout").await;
    let stream = connection.accept().await.unwrap();
    let writer = tokio::spawn(async move {
        let sent = stream.output.send(Bytes::from(vec![7; 4 << 20])).await;
        stream.output.finish().await;
        sent
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!writer.is_finished());
    assert_eq!(peer.see().await, Seen::Reply(1));
    let mut total = 0;
    loop {
        match peer.see().await {
            Seen::Data(1, bytes, false) => {
                assert!(bytes.len() <= PIECE);
                total += bytes.len();
            }
            Seen::Data(1, bytes, true) if bytes.is_empty() => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((total, writer.await.unwrap()), (4 << 20, Ok(())));
}

/// SPDY-17: a stream that nobody reads fills its own queue; others go on until then.
#[tokio::test]
async fn a_slow_reader_does_not_starve_others_at_once() {
    let (mut connection, mut peer) = pair();
    peer.open(1, "stdin").await;
    peer.open(3, "resize").await;
    let _slow = connection.accept().await.unwrap();
    let mut other = connection.accept().await.unwrap();
    for _ in 0..4 {
        peer.data(1, &[1; PIECE], false).await;
    }
    peer.data(3, b"size", false).await;
    assert_eq!(other.input.next().await, Ok(Some(Bytes::from_static(b"size"))));
}

/// Our own client against our own server: both roles agree.
#[tokio::test]
async fn both_roles_understand_each_other() {
    let (ours, theirs) = duplex(1 << 16);
    let (from, to) = tokio::io::split(ours);
    let mut server = Connection::start(from, to, Role::Server, Duration::ZERO, |_| true);
    let (from, to) = tokio::io::split(theirs);
    let client = Connection::start(from, to, Role::Client, Duration::ZERO, |_| false);
    let echo = tokio::spawn(async move {
        while let Some(mut stream) = server.accept().await {
            tokio::spawn(async move {
                while let Ok(Some(bytes)) = stream.input.next().await {
                    stream.output.send(bytes).await.unwrap();
                }
                stream.output.finish().await;
            });
        }
    });
    for n in 0..40u8 {
        let mut stream = client.open(Headers::from_pairs([("port", "80")])).await.unwrap();
        stream.output.send(Bytes::from(vec![n; 100_000])).await.unwrap();
        stream.output.finish().await;
        let mut back = Vec::new();
        while let Ok(Some(bytes)) = stream.input.next().await {
            back.extend_from_slice(&bytes);
        }
        assert_eq!(back, vec![n; 100_000]);
    }
    assert_eq!(client.open_streams(), 0);
    client.close().await;
    echo.await.unwrap();
}

mod fuzz {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// Whatever comes in, the connection ends by itself once the peer is gone.
        #[test]
        fn any_bytes_end_in_peace(bytes in proptest::collection::vec(any::<u8>(), 0..512), whole: bool) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (mut connection, mut peer) = pair();
                if whole {
                    peer.open(1, "data").await;
                }
                let _ = peer.pipe.write_all(&bytes).await;
                drop(peer);
                while connection.accept().await.is_some() {}
                tokio::time::timeout(Duration::from_secs(10), connection.link.gone()).await.unwrap();
            });
        }
    }
}
