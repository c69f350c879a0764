//! The streaming server: exec, attach and port-forward for the kubelet, crictl and people, over SPDY/3.1 and WebSocket.
//!
//! ```text
//!  CRI call ──▶ token ──▶ URL          (tokens)
//!  HTTP request with that URL ──▶ upgrade ──▶ SPDY: spdy/         ──▶ streams ──▶ session  exec, attach
//!                  (server, upgrade)      └─▶ WebSocket: websocket/ ─┘       └──▶ forward  port-forward
//!                                                                                    └──▶ [`Backend`]
//! ```
//!
//! Knows HTTP, not pods: what runs behind a URL is the [`Backend`]'s. Never holds more than a bounded number of bytes of
//! a stream whose reader is slow.
#![forbid(unsafe_code)]

pub mod client;
mod forward;
mod mux;
mod protocol;
mod resize;
mod server;
mod session;
mod spdy;
mod status;
mod tls;
mod tokens;
mod upgrade;
mod websocket;

pub use forward::Duplex;
pub use mux::{Gone, Input, Output};
pub use server::{Options, Server};
pub use session::{Client, Session};
pub use tls::{Identity, Tls};
pub use tokens::Refused;

use async_trait::async_trait;

/// What a backend's failure is to this room: a sentence for the client.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The streams that a client asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub terminal: bool,
}

impl Streams {
    /// STR-VAL-02, STR-VAL-03, CRI-XU-01.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.terminal && self.stderr {
            return Err(
                "tty and stderr are both set: a terminal has one output, so its stderr comes with stdout",
            );
        }
        if !(self.stdin || self.stdout || self.stderr) {
            return Err("none of stdin, stdout and stderr is set: at least one is needed");
        }
        Ok(())
    }
}

/// What a token stands for. `target` is the backend's own word for container or pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Exec {
        target: String,
        command: Vec<String>,
        streams: Streams,
    },
    Attach {
        target: String,
        streams: Streams,
    },
    /// `ports` matter to old WebSocket clients alone (STR-PF-17).
    Forward {
        target: String,
        ports: Vec<u16>,
    },
}

impl Request {
    /// The first segment of its URL (STR-URL-01).
    fn route(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::Forward { .. } => "portforward",
        }
    }
}

/// A terminal's size in characters, both at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub width: u16,
    pub height: u16,
}

/// What runs behind the URLs.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Runs a command; called once all its streams are there. Returns its exit code (0 to 255) after all that it wrote
    /// was given to the session.
    async fn exec(&self, target: &str, command: Vec<String>, session: Session) -> Result<u8, Error>;

    /// Connects the session to a running container until that ends (success) or the client leaves.
    async fn attach(&self, target: &str, session: Session) -> Result<(), Error>;

    /// Carries one connection to a port of the pod. An error is a connection that was not made.
    async fn forward(&self, target: &str, port: u16, connection: Duplex) -> Result<(), Error>;
}
