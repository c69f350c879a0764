//! The other end, for our own command line: exec and attach over WebSocket (v5), port-forward over SPDY.

use crate::forward::{Duplex, PORT, REQUEST_ID};
use crate::mux::{Input, Output};
use crate::protocol;
use crate::session::{STREAM_TYPE, channel};
use crate::spdy::headers::Headers;
use crate::spdy::{Connection, Role};
use crate::tls::{self, Identity, Wire};
use crate::websocket::{self, Channels, Codec, Running};
use crate::{Size, mux};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::StatusCode;
use hyper::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use hyper_util::rt::TokioIo;
use std::io::{self, Cursor};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

/// A failure in words.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("streaming URL {0:?}: not http(s)://HOST:PORT/…")]
    Url(String),
    #[error("connect to the streaming server: {0}")]
    Connect(#[from] io::Error),
    #[error("streaming server: {0}")]
    Refused(String),
    #[error("the connection to the streaming server broke")]
    Broken,
}

/// A connection to the server of a URL.
enum Connected {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

async fn connect(url: &str, identity: Option<&Identity>) -> Result<Connected, Error> {
    let (tls, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => return Err(Error::Url(url.to_owned())),
    };
    let tcp = TcpStream::connect(rest.split('/').next().unwrap_or_default()).await?;
    let _ = tcp.set_nodelay(true);
    if !tls {
        return Ok(Connected::Plain(tcp));
    }
    // With TLS 1.3 a server that wants a certificate of ours says so only later.
    let connected = tls::connect(tcp, identity).await.map_err(|error| Error::Refused(said(&error)))?;
    Ok(Connected::Tls(Box::new(connected)))
}

/// An exec or attach session; its streams can be taken out.
#[derive(Debug)]
pub struct Command {
    pub stdin: Option<Output>,
    pub stdout: Option<Input>,
    pub stderr: Option<Input>,
    sizes: Output,
    status: Input,
    running: Running,
}

impl Command {
    /// Opens the session that an Exec or Attach call answered with.
    pub async fn open(url: &str, identity: Option<&Identity>) -> Result<Self, Error> {
        match connect(url, identity).await? {
            Connected::Plain(wire) => Self::open_over(wire, url).await,
            Connected::Tls(wire) => Self::open_over(*wire, url).await,
        }
    }

    async fn open_over(wire: impl Wire, url: &str) -> Result<Self, Error> {
        let mut request =
            url.replacen("http", "ws", 1).into_client_request().map_err(|_| Error::Url(url.to_owned()))?;
        let protocol = HeaderValue::from_static(protocol::SOCKET_COMMAND[0]);
        request.headers_mut().insert("sec-websocket-protocol", protocol);
        let opened =
            tokio_tungstenite::client_async_with_config(request, wire, Some(websocket::config())).await;
        let (socket, _) = opened.map_err(|error| Error::Refused(refused(error)))?;
        let mut channels = Channels::of_client(Codec::Binary);
        Ok(Self {
            stdin: Some(channels.output(channel::STDIN)),
            stdout: Some(channels.input(channel::STDOUT)),
            stderr: Some(channels.input(channel::STDERR)),
            sizes: channels.output(channel::RESIZE),
            status: channels.input(channel::ERROR),
            running: channels.start(socket, Duration::ZERO),
        })
    }

    /// Tells the size of our terminal.
    pub async fn resize(&self, size: Size) {
        let json = serde_json::json!({"Width": size.width, "Height": size.height});
        let _ = self.sizes.send(Bytes::from(json.to_string())).await;
    }

    /// The exit code, once the session is over.
    ///
    /// # Errors
    /// What the server says, or that it said nothing.
    pub async fn status(&mut self) -> Result<u8, Error> {
        let mut text = Vec::new();
        while let Ok(Some(bytes)) = self.status.next().await {
            text.extend_from_slice(&bytes);
        }
        let status: serde_json::Value = serde_json::from_slice(&text).map_err(|_| Error::Broken)?;
        if status["status"] == "Success" {
            return Ok(0);
        }
        let code = status["details"]["causes"][0]["message"].as_str().and_then(|code| code.parse().ok());
        match code {
            Some(code) if status["reason"] == "NonZeroExitCode" => Ok(code),
            _ => Err(Error::Refused(status["message"].as_str().unwrap_or("no reason given").to_owned())),
        }
    }

    /// Leaves the session as it is (a detach).
    pub async fn leave(self) {
        self.running.close().await;
    }
}

fn refused(error: tokio_tungstenite::tungstenite::Error) -> String {
    match error {
        tokio_tungstenite::tungstenite::Error::Http(answer) => {
            let body = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            format!("{}: {}", answer.status(), body.trim_end())
        }
        other => said(&other),
    }
}

/// An error, and what to do where it is about certificates.
fn said(error: &(dyn std::error::Error + 'static)) -> String {
    if !tls::wants_identity(error) {
        return error.to_string();
    }
    let file = "streaming.tls_client_ca";
    format!(
        "{error}: it wants a client certificate (its {file}); name a good one by --tls-cert and --tls-key"
    )
}

/// A port-forward session.
#[derive(Debug)]
pub struct Forwarder {
    connection: Connection,
    next: std::sync::atomic::AtomicU64,
}

impl Forwarder {
    /// Opens the session that a PortForward call answered with.
    pub async fn open(url: &str, identity: Option<&Identity>) -> Result<Self, Error> {
        match connect(url, identity).await? {
            Connected::Plain(wire) => Self::open_over(wire, url).await,
            Connected::Tls(wire) => Self::open_over(*wire, url).await,
        }
    }

    async fn open_over<S: Wire>(wire: S, url: &str) -> Result<Self, Error> {
        let path = url.splitn(4, '/').nth(3).unwrap_or_default();
        let request = hyper::Request::post(format!("/{path}"))
            .header(HOST, "localhost")
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "SPDY/3.1")
            .header(protocol::VERSIONS, protocol::FORWARD)
            .body(Empty::<Bytes>::new())
            .map_err(|_| Error::Url(url.to_owned()))?;
        let said = |error: hyper::Error| Error::Refused(said(&error));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(wire)).await.map_err(said)?;
        tokio::spawn(connection.with_upgrades());
        let answer = sender.send_request(request).await.map_err(said)?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::Refused(answer.status().to_string()));
        }
        let upgraded = hyper::upgrade::on(answer).await.map_err(said)?;
        let parts = upgraded.downcast::<TokioIo<S>>().map_err(|_| Error::Broken)?;
        let (from, to) = parts.io.into_inner().halves();
        let from = Cursor::new(parts.read_buf).chain(from);
        let connection = Connection::start(from, to, Role::Client, Duration::ZERO, |_| false);
        Ok(Self { connection, next: std::sync::atomic::AtomicU64::new(0) })
    }

    /// Carries one connection to `port` of the pod, to its end.
    ///
    /// # Errors
    /// What the server says of that port; others go on.
    pub async fn carry(&self, port: u16, tcp: TcpStream) -> Result<(), Error> {
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
        let port = port.to_string();
        let headers = |kind| {
            Headers::from_pairs([(STREAM_TYPE, kind), (PORT, port.as_str()), (REQUEST_ID, id.as_str())])
        };
        let open = |kind| self.connection.open(headers(kind));
        let mut error = open("error").await.map_err(broken)?;
        error.output.finish().await;
        let data = open("data").await.map_err(broken)?;
        let output = data.output.clone();
        Duplex::new(data.input, data.output, true).join(tcp).await;
        output.reset(crate::spdy::frame::Status::Cancel).await;
        let mut text = Vec::new();
        while let Ok(Some(bytes)) = error.input.next().await {
            text.extend_from_slice(&bytes);
        }
        if text.is_empty() {
            Ok(())
        } else {
            Err(Error::Refused(String::from_utf8_lossy(&text).into_owned()))
        }
    }

    /// Returns when the session is over.
    pub async fn gone(&self) {
        self.connection.link.gone().await;
    }
}

fn broken(_: mux::Gone) -> Error {
    Error::Broken
}
