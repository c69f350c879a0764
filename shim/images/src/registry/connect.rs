//! HTTP clients: TLS by rustls with ring, the system's certificates, settings of hosts.toml, proxies of the environment.

use crate::hosts::{Host, Tls, is_loopback};
use crate::{Error, Result};
use reqwest::redirect::Policy;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use slipway_tls::AnyCertificate;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a connection may take to come up.
const DIAL: Duration = Duration::from_secs(30);

/// Makes clients; those without settings of their own are made once and keep their connections.
#[derive(Default)]
pub(crate) struct Connector {
    plain: Mutex<Option<reqwest::Client>>,
    loopback: Mutex<Option<reqwest::Client>>,
}

impl Connector {
    pub(crate) fn client(&self, host: &Host) -> Result<reqwest::Client> {
        let is_local = is_loopback(&host.base);
        if !host.tls.is_default() || host.dial_timeout.is_some() {
            return build(&host.tls, true, is_local, host.dial_timeout);
        }
        // Plain HTTP on loopback needs no certificates: reading them costs milliseconds and memory.
        let without_tls = is_local && host.base.scheme() == "http";
        let cached = if without_tls { &self.loopback } else { &self.plain };
        let mut cached = cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*cached {
            return Ok(client.clone());
        }
        let client = build(&host.tls, !without_tls, is_local, None)?;
        // A client for https on loopback differs only in using no proxy: not worth keeping.
        if without_tls || !is_local {
            *cached = Some(client.clone());
        }
        Ok(client)
    }
}

fn build(tls: &Tls, with_roots: bool, is_local: bool, dial: Option<Duration>) -> Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(configure(tls, with_roots)?)
        .user_agent(concat!("slipway/", env!("CARGO_PKG_VERSION")))
        // Redirects are followed by `request`, which knows what must not be carried along.
        .redirect(Policy::none())
        .connect_timeout(dial.unwrap_or(DIAL))
        .pool_idle_timeout(Duration::from_secs(30));
    // As in Go, proxies of the environment are not asked for loopback addresses.
    let builder = if is_local { builder.no_proxy() } else { builder };
    builder.build().map_err(|e| Error::invalid("make HTTP client", "registry", e))
}

fn configure(tls: &Tls, with_roots: bool) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |what: &str, e: &dyn std::fmt::Display| Error::invalid("set up TLS", what, e);
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| failed("provider", &e))?;
    let builder = if tls.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        builder.with_root_certificates(roots(tls, with_roots)?)
    };
    let Some((certificate, key)) = tls.client.first() else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(certificate)?;
    let key = key.as_ref().unwrap_or(certificate);
    let key = slipway_tls::private_key(key).map_err(|e| failed(&key.display().to_string(), &e))?;
    builder.with_client_auth_cert(chain, key).map_err(|e| failed(&certificate.display().to_string(), &e))
}

/// The system's certificates, and those of hosts.toml besides (as containerd does).
fn roots(tls: &Tls, with_system: bool) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if with_system {
        // Damaged ones on a host are its own affair; without any, the handshake will say so.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    for file in &tls.ca {
        for certificate in certificates(file)? {
            roots.add(certificate).map_err(|e| Error::invalid("read CA", file.display(), e))?;
        }
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    slipway_tls::certificates(file).map_err(|e| Error::invalid("read certificate", file.display(), e))
}
