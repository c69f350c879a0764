//! TLS between the streaming server and its clients, our own command line among them (STR-TLS-01).
//!
//! The server's files are read for each connection, so that a renewed certificate counts at once; while they cannot be
//! read, or do not fit each other, the last ones that did go on being used.

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use slipway_tls::AnyCertificate;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// Files in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Clients must show a certificate of one of these authorities. The kubelet cannot (STR-TLS-02).
    pub client_ca: Option<PathBuf>,
}

/// Takes TLS connections.
#[derive(Debug)]
pub(crate) struct Acceptor {
    files: Tls,
    good: Mutex<Arc<ServerConfig>>,
}

impl Acceptor {
    /// # Errors
    /// Which file cannot be used, and why.
    pub(crate) fn open(files: Tls) -> io::Result<Self> {
        let good = Mutex::new(config(&files)?);
        Ok(Self { files, good })
    }

    pub(crate) async fn accept(self: &Arc<Self>, tcp: TcpStream) -> io::Result<server::TlsStream<TcpStream>> {
        let own = Arc::clone(self);
        let config = tokio::task::spawn_blocking(move || own.current()).await.map_err(io::Error::other)?;
        TlsAcceptor::from(config).accept(tcp).await
    }

    fn current(&self) -> Arc<ServerConfig> {
        let read = config(&self.files);
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(config) => *good = config,
            Err(error) => tracing::warn!("streaming: {error}; the former certificate goes on being used"),
        }
        Arc::clone(&good)
    }
}

/// A file that cannot be used.
fn fail(what: &str, path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{what} {}: {error}", path.display()))
}

fn certificates(what: &str, path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    slipway_tls::certificates(path).map_err(|e| fail(what, path, &e))
}

fn key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    slipway_tls::private_key(path).map_err(|e| fail("TLS key", path, &e))
}

fn config(files: &Tls) -> io::Result<Arc<ServerConfig>> {
    let chain = certificates("TLS certificate", &files.certificate)?;
    let key = key(&files.key)?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates("TLS client authority", path)? {
                roots.add(authority).map_err(|e| fail("TLS client authority", path, &e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|e| fail("TLS client authority", path, &e))?)
        }
    };
    let mut config =
        builder.with_single_cert(chain, key).map_err(|e| fail("TLS certificate", &files.certificate, &e))?;
    // STR-HTTP-01: upgrades are HTTP/1.1's.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What sessions run over; its two ends can be used at once.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    fn halves(self) -> (impl AsyncRead + Send + Unpin + 'static, impl AsyncWrite + Send + Unpin + 'static);
}

impl Wire for TcpStream {
    fn halves(self) -> (impl AsyncRead + Send + Unpin + 'static, impl AsyncWrite + Send + Unpin + 'static) {
        self.into_split()
    }
}

impl Wire for server::TlsStream<TcpStream> {
    fn halves(self) -> (impl AsyncRead + Send + Unpin + 'static, impl AsyncWrite + Send + Unpin + 'static) {
        tokio::io::split(self)
    }
}

impl Wire for client::TlsStream<TcpStream> {
    fn halves(self) -> (impl AsyncRead + Send + Unpin + 'static, impl AsyncWrite + Send + Unpin + 'static) {
        tokio::io::split(self)
    }
}

/// What a client shows to a server that asks for a certificate; files in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The client's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Our own command line's end. As the kubelet and crictl do, it does not verify the certificate (STR-WHO-11): the URL came
/// over a socket that is root's alone, and holds the secret.
pub(crate) async fn connect(
    tcp: TcpStream,
    identity: Option<&Identity>,
) -> io::Result<client::TlsStream<TcpStream>> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(AnyCertificate(Arc::clone(&provider)));
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let chain = certificates("client certificate", &own.certificate)?;
            let chosen = builder.with_client_auth_cert(chain, key(&own.key)?);
            chosen.map_err(|e| fail("client certificate", &own.certificate, &e))?
        }
    };
    let name = ServerName::from(tcp.peer_addr()?.ip());
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

/// Whether the other side ended the connection over the certificate that it was shown, or not shown.
pub(crate) fn wants_identity(error: &(dyn Error + 'static)) -> bool {
    use rustls::AlertDescription as Alert;
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::AlertReceived(alert)) = error.downcast_ref() {
            return matches!(
                alert,
                Alert::CertificateRequired
                    | Alert::BadCertificate
                    | Alert::UnknownCA
                    | Alert::CertificateExpired
                    | Alert::CertificateUnknown
                    | Alert::DecryptError
                    | Alert::AccessDenied
            );
        }
        // What an io::Error holds is not what it says it comes from.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    false
}
