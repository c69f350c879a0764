//! What a pull of a reference would read and ask, and what the answers are: for an operator whose pull goes elsewhere than he
//! thinks. Asks for manifests only, stores nothing, shows no secret.

use super::{Connector, Registry, authority};
use crate::digest::Digest;
use crate::hosts::{candidates, hosts_for};
use crate::policy::{Policy, PolicyTold};
use crate::reference::Reference;
use crate::types::Registries;
use crate::{Error, Result};
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// All that was found out.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// In full: `docker.io/library/busybox:latest`.
    pub reference: String,
    /// In the order in which they are looked for; the first that is there counts.
    pub files: Vec<FileLooked>,
    /// In the order in which they are asked.
    pub endpoints: Vec<EndpointAsked>,
    /// What the image policy says of it.
    pub policy: PolicyTold,
}

/// A file or directory that decides something.
#[derive(Debug, Clone, Serialize)]
pub struct FileLooked {
    pub path: String,
    /// `read`, `not there`, `not looked at: an earlier one counts`.
    pub outcome: String,
}

/// A server.
#[derive(Debug, Clone, Serialize)]
pub struct EndpointAsked {
    /// Up to `/v2`.
    pub url: String,
    /// `the registry itself` or `mirror`.
    pub role: &'static str,
    /// What it is asked for: `resolve`, `pull`.
    pub capabilities: Vec<&'static str>,
    /// Certificates and the like; empty: the system's.
    pub tls: Vec<String>,
    /// Whose, never what.
    pub credentials: String,
    /// The manifest's digest, or what went wrong.
    pub answer: Result<String, String>,
    /// Of the answer.
    pub milliseconds: u128,
}

/// Reads and asks.
///
/// # Errors
/// Only for what keeps a pull from asking at all: a reference, hosts.toml or credentials that cannot be read.
pub async fn explain(reference: &str, registries: &Registries, policy: &Policy) -> Result<Explanation> {
    let reference = Reference::parse(reference)?;
    let (of, with) = (reference.clone(), registries.clone());
    let opened = tokio::task::spawn_blocking(move || Registry::open(&of, None, &with, &Connector::default()));
    let registry = opened.await.unwrap_or_else(|_| Err(Error::cancelled("explain", &reference)))?;
    let hosts = hosts_for(&reference.host, &registries.hosts_dirs)?;
    let mut endpoints = Vec::new();
    let mut found = None;
    for (endpoint, host) in registry.endpoints.iter().zip(&hosts) {
        let start = Instant::now();
        let asked = tokio::time::timeout(Duration::from_secs(60), registry.ask(endpoint, &reference)).await;
        let answer = match asked {
            Ok(Ok(digest)) => {
                // A pull takes the first answer.
                found = found.or_else(|| endpoint.resolve.then(|| digest.clone()));
                Ok(digest.to_string())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer within 60 s".to_owned()),
        };
        let can = [("resolve", endpoint.resolve), ("pull", endpoint.pull)];
        endpoints.push(EndpointAsked {
            url: format!("{}://{}{}", host.base.scheme(), authority(&host.base), host.base.path()),
            role: if endpoint.is_upstream { "the registry itself" } else { "mirror" },
            capabilities: can.into_iter().filter(|(_, can)| *can).map(|(what, _)| what).collect(),
            tls: host.tls.in_words(),
            credentials: endpoint.session.in_words(),
            answer,
            milliseconds: start.elapsed().as_millis(),
        });
    }
    let policy = crate::policy::told(policy, &registry, &reference, found.as_ref()).await;
    let files = files(&reference.host, registries);
    Ok(Explanation { files, reference: reference.to_string(), endpoints, policy })
}

impl Registry {
    /// The digest that `endpoint` has for the reference now.
    async fn ask(&self, endpoint: &super::Endpoint, reference: &Reference) -> Result<Digest> {
        let resolved = self.resolve_at(endpoint, reference.selector()).await?;
        Ok(resolved.digest)
    }
}

fn files(host: &str, registries: &Registries) -> Vec<FileLooked> {
    let mut files = Vec::new();
    let mut found = false;
    for dir in candidates(host, &registries.hosts_dirs) {
        let outcome = match (found, dir.is_dir()) {
            (true, _) => "not looked at: an earlier one counts",
            (false, false) => "not there",
            (false, true) if dir.join("hosts.toml").is_file() => "read: hosts.toml",
            (false, true) => "read: certificates only, there is no hosts.toml",
        };
        found |= outcome.starts_with("read");
        files.push(FileLooked { path: dir.display().to_string(), outcome: outcome.to_owned() });
    }
    if let Some(file) = registries.auth_file.as_deref() {
        files.push(FileLooked { path: file.display().to_string(), outcome: read_or_not(file) });
    }
    files
}

fn read_or_not(file: &Path) -> String {
    if file.is_file() { "read: credentials".to_owned() } else { "not there".to_owned() }
}
