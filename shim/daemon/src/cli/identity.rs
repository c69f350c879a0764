//! What our own clients show to a streaming server that asks for certificates (`streaming.tls_client_ca`).

use std::path::PathBuf;

#[derive(Debug, clap::Args)]
// Flattened into others that are called Args, too: clap would name a group after each.
#[group(skip)]
pub(crate) struct Args {
    /// PEM file of a certificate for a streaming server that asks for one
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM file of its key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl Args {
    pub(super) fn identity(&self) -> Option<slipway_streaming::Identity> {
        let (certificate, key) = (self.tls_cert.clone()?, self.tls_key.clone()?);
        Some(slipway_streaming::Identity { certificate, key })
    }
}
