//! TLS with a real client of rustls and our own: certificates of both sides, renewal, and what is said of bad files
//! (STR-TLS-01, STR-TLS-02, STR-URL-03).

#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, unreachable_pub, reason = "each room's tests use a part of it")]
#[path = "../../../tests/e2e/src/certificates.rs"]
mod certificates;

use async_trait::async_trait;
use bytes::Bytes;
use certificates::{Authority, MONTH};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use slipway_streaming::{
    Backend, Duplex, Error, Identity, Options, Request, Server, Session, Streams, Tls, client,
};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};

/// What comes in goes out; a command ends with 7.
struct Echo;

#[async_trait]
impl Backend for Echo {
    async fn exec(&self, _: &str, _: Vec<String>, mut session: Session) -> Result<u8, Error> {
        let (Some(stdin), Some(stdout)) = (&mut session.stdin, &session.stdout) else { return Ok(1) };
        while let Ok(Some(bytes)) = stdin.next().await {
            if stdout.send(bytes).await.is_err() {
                return Ok(2);
            }
        }
        Ok(7)
    }

    async fn attach(&self, _: &str, _: Session) -> Result<(), Error> {
        Err("not here".into())
    }

    async fn forward(&self, _: &str, _: u16, connection: Duplex) -> Result<(), Error> {
        let (ours, mut theirs) = pair().await?;
        tokio::spawn(async move {
            let (mut from, mut to) = theirs.split();
            tokio::io::copy(&mut from, &mut to).await.unwrap();
            to.shutdown().await.unwrap();
        });
        connection.join(ours).await;
        Ok(())
    }
}

/// Two ends of one connection.
async fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (ours, theirs) = tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
    Ok((ours?, theirs?.0))
}

struct Rig {
    ca: Authority,
    server: Server,
}

impl Rig {
    async fn new(client_ca: bool) -> Self {
        let ca = Authority::new();
        ca.issue("server", "IP:127.0.0.1", MONTH);
        let server = serve(files(ca.path(), client_ca)).await.unwrap();
        Self { ca, server }
    }

    fn exec_url(&self) -> String {
        let streams = Streams { stdin: true, stdout: true, ..Streams::default() };
        let request = Request::Exec { target: "c".into(), command: vec!["cat".into()], streams };
        let url = self.server.url(request).unwrap();
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        url
    }

    /// A connection by a client that trusts `ca` and shows this certificate.
    async fn connect(&self, own: Option<&Path>) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.ca.ca()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(stem) => {
                let certificate = CertificateDer::from_pem_file(stem.with_extension("crt")).unwrap();
                let key = PrivateKeyDer::from_pem_file(stem.with_extension("key")).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        let url = self.exec_url();
        let tcp = TcpStream::connect(url.split('/').nth(2).unwrap()).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    /// A whole exec over WebSocket.
    async fn session(&self, tls: TlsStream<TcpStream>) -> Result<(), tungstenite::Error> {
        let mut request = self.exec_url().replacen("https", "wss", 1).into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().unwrap());
        let (socket, _) = tokio_tungstenite::client_async(request, tls).await?;
        let (mut to, mut from) = socket.split();
        let sent: Vec<u8> = (0..1u32 << 20).map(|i| (i / 7) as u8).collect();
        let send = async {
            for piece in sent.chunks(30_000) {
                to.send(Message::Binary([&[0], piece].concat().into())).await?;
            }
            // Half-close of standard input.
            to.send(Message::Binary(Bytes::from_static(&[255, 0]))).await
        };
        let receive = async {
            let (mut out, mut status) = (Vec::new(), Vec::new());
            while let Some(Ok(message)) = from.next().await {
                if let Message::Binary(bytes) = message {
                    match bytes.first() {
                        Some(1) => out.extend_from_slice(&bytes[1..]),
                        Some(3) => status.extend_from_slice(&bytes[1..]),
                        _ => {}
                    }
                }
            }
            (out, status)
        };
        let (done, (out, status)) = tokio::join!(send, receive);
        done?;
        assert!(out == sent, "{} of {} bytes", out.len(), sent.len());
        let status = String::from_utf8(status).unwrap();
        assert!(status.contains("NonZeroExitCode") && status.contains(r#""7""#), "{status}");
        Ok(())
    }
}

fn files(dir: &Path, client_ca: bool) -> Tls {
    let path = |name: &str| -> PathBuf { dir.join(name) };
    let client_ca = client_ca.then(|| path("ca.crt"));
    Tls { certificate: path("server.crt"), key: path("server.key"), client_ca }
}

async fn serve(tls: Tls) -> io::Result<Server> {
    let listen = "127.0.0.1:0".parse().unwrap();
    Server::start(Options { listen, idle: Duration::ZERO, tls: Some(tls) }, Arc::new(Echo)).await
}

#[tokio::test]
async fn clients_show_a_certificate_where_one_is_wanted() {
    let rig = Rig::new(true).await;
    let other = Authority::new();
    let alice = rig.ca.issue("alice", "DNS:alice", MONTH);
    let mallory = other.issue("mallory", "DNS:mallory", MONTH);
    rig.session(rig.connect(Some(&alice)).await.unwrap()).await.unwrap();
    for stranger in [None, Some(mallory.as_path())] {
        // With TLS 1.3 the client hears of it with the first answer only.
        let refused = match rig.connect(stranger).await {
            Err(_) => true,
            Ok(tls) => rig.session(tls).await.is_err(),
        };
        assert!(refused, "{stranger:?}");
    }
    // Our own command line is told what to show.
    let identity =
        |stem: &Path| Identity { certificate: stem.with_extension("crt"), key: stem.with_extension("key") };
    for stranger in [None, Some(&identity(&mallory))] {
        let error = client::Command::open(&rig.exec_url(), stranger).await.err().unwrap().to_string();
        assert!(error.contains("--tls-cert"), "{error}");
    }
    client::Command::open(&rig.exec_url(), Some(&identity(&alice))).await.unwrap();
    rig.session(rig.connect(Some(&alice)).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn our_own_client_and_plain_http() {
    let rig = Rig::new(false).await;
    rig.session(rig.connect(None).await.unwrap()).await.unwrap();
    let mut command = client::Command::open(&rig.exec_url(), None).await.unwrap();
    let stdin = command.stdin.take().unwrap();
    stdin.send(Bytes::from_static(b"hello")).await.unwrap();
    stdin.finish().await;
    let mut out = Vec::new();
    let mut stdout = command.stdout.take().unwrap();
    while let Ok(Some(bytes)) = stdout.next().await {
        out.extend_from_slice(&bytes);
    }
    assert_eq!((out.as_slice(), command.status().await.unwrap()), (&b"hello"[..], 7));
    // Whoever speaks plain HTTP is not answered.
    assert!(client::Command::open(&rig.exec_url().replacen("https", "http", 1), None).await.is_err());
}

#[tokio::test]
async fn ports_are_forwarded_over_tls() {
    let rig = Rig::new(false).await;
    let url = rig.server.url(Request::Forward { target: "p".into(), ports: vec![] }).unwrap();
    let forwarder = client::Forwarder::open(&url, None).await.unwrap();
    let (ours, mut theirs) = pair().await.unwrap();
    let exchange = async {
        let sent: Vec<u8> = (0..1u32 << 20).map(|i| (i / 3) as u8).collect();
        let (mut from, mut to) = theirs.split();
        let send = async {
            to.write_all(&sent).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let mut back = Vec::new();
        let ((), read) = tokio::join!(send, from.read_to_end(&mut back));
        read.unwrap();
        assert!(back == sent, "{} of {} bytes", back.len(), sent.len());
    };
    let (carried, ()) = tokio::join!(forwarder.carry(80, ours), exchange);
    carried.unwrap();
}

#[tokio::test]
async fn a_renewed_certificate_counts_at_once_and_a_broken_one_not() {
    let rig = Rig::new(false).await;
    let shown = async || -> Vec<u8> {
        let tls = rig.connect(None).await.unwrap();
        tls.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let first = shown().await;
    assert_eq!(shown().await, first);
    rig.ca.issue("server", "IP:127.0.0.1", MONTH);
    let second = shown().await;
    assert_ne!(second, first, "renewed");
    std::fs::write(rig.ca.path().join("server.crt"), "rubbish").unwrap();
    assert_eq!(shown().await, second, "the last good one");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let ca = Authority::new();
    for name in ["server", "other"] {
        ca.issue(name, "IP:127.0.0.1", MONTH);
    }
    let good = files(ca.path(), true);
    let path = |name: &str| ca.path().join(name);
    std::fs::write(path("empty"), "").unwrap();
    for (bad, word) in [
        (Tls { certificate: path("absent"), ..good.clone() }, "absent"),
        (Tls { certificate: path("empty"), ..good.clone() }, "no certificate in it"),
        (Tls { key: path("server.crt"), ..good.clone() }, "TLS key"),
        (Tls { key: path("other.key"), ..good.clone() }, "server.crt"),
        (Tls { client_ca: Some(path("empty")), ..good.clone() }, "TLS client authority"),
    ] {
        let error = serve(bad).await.err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
    serve(good).await.unwrap();
}
