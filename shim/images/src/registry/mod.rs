//! Asking registries: the pull half of the OCI distribution-spec over mirrors and their registry. Knows HTTP and
//! digests, not files: blobs are handed on as a stream of verified-to-be bytes ([`blob`]).

mod auth;
pub(crate) mod blob;
mod certificate;
mod challenge;
mod connect;
mod explain;
mod request;
mod signatures;

use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::hosts::{Host, hosts_for};
use crate::manifest::{ACCEPT, MAX_MANIFEST};
use crate::reference::Reference;
use crate::types::{Auth, Registries};
use crate::{Error, Kind, Result};
use auth::{Secret, Session};
pub(crate) use connect::Connector;
pub use explain::{EndpointAsked, Explanation, FileLooked, explain};
use request::Endpoint;
use reqwest::header::{
    ACCEPT as ACCEPT_HEADER, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};
use reqwest::{Method, Response, StatusCode};
pub(crate) use signatures::{Candidate, PREDICATE};
use std::sync::atomic::{AtomicBool, Ordering};

/// The servers for one repository, for the length of one pull.
pub(crate) struct Registry {
    endpoints: Vec<Endpoint>,
    repository: String,
}

/// What a name stands for now.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    pub(crate) digest: Digest,
    /// The document, if it had to be fetched to know its digest.
    pub(crate) document: Option<Fetched>,
}

/// A manifest or index, its bytes known to match the digest it was asked by (or hashed).
#[derive(Debug, Clone)]
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    /// Without parameters; empty if the registry did not say.
    pub(crate) content_type: String,
}

impl Registry {
    /// Reads hosts.toml and credentials anew (IMG-HOST-12). May run a credential helper: for a thread that may block.
    pub(crate) fn open(
        reference: &Reference,
        auth: Option<&Auth>,
        registries: &Registries,
        connector: &Connector,
    ) -> Result<Self> {
        let own = registries.auth_file.as_deref().map(Credentials::read).transpose()?;
        let own = |host: &str| match &own {
            Some(own) => Secret::from_cri(own.of(host, &reference.path)?.as_ref(), host),
            None => Ok(Secret::None),
        };
        let secret = match Secret::from_cri(auth, &reference.host)? {
            Secret::None => own(&reference.host)?,
            given => given,
        };
        let hosts = hosts_for(&reference.host, &registries.hosts_dirs)?;
        let endpoint = |(index, host): (usize, &Host)| {
            // A mirror does not get the registry's secret (IMG-AUTH-11), but its own.
            let secret = if host.is_upstream { secret.clone() } else { own(&authority(&host.base))? };
            Ok(Endpoint {
                client: connector.client(host)?,
                base: host.base.clone(),
                headers: own_headers(host)?,
                namespace: host.namespace.clone(),
                session: Session::new(secret, &reference.path),
                pull: host.pull,
                resolve: host.resolve,
                is_upstream: host.is_upstream,
                is_last: index + 1 == hosts.len(),
                is_down: AtomicBool::new(false),
            })
        };
        let endpoints = hosts.iter().enumerate().map(endpoint).collect::<Result<_>>()?;
        Ok(Self { endpoints, repository: reference.path.clone() })
    }

    /// The hosts that `can`, in their order; those that could not be reached last time come after the others.
    fn order(&self, can: impl Fn(&Endpoint) -> bool) -> Vec<&Endpoint> {
        let mut hosts: Vec<&Endpoint> = self.endpoints.iter().filter(|endpoint| can(endpoint)).collect();
        hosts.sort_by_key(|endpoint| endpoint.is_down.load(Ordering::Relaxed));
        hosts
    }

    /// Finds the digest of a tag, or the document of a digest: HEAD, then GET where HEAD does not tell (IMG-RES-01..05).
    pub(crate) async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        if let Some(digest) = &reference.digest {
            let document = self.manifest(digest).await?;
            return Ok(Resolved { digest: digest.clone(), document: Some(document) });
        }
        let mut worst = Worst::default();
        for endpoint in self.order(|endpoint| endpoint.resolve) {
            match self.resolve_at(endpoint, reference.selector()).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => worst.add(error, endpoint.is_upstream),
            }
        }
        Err(worst.into_error(reference))
    }

    async fn resolve_at(&self, endpoint: &Endpoint, tag: &str) -> Result<Resolved> {
        let url = endpoint.url(&self.repository, "manifests", tag);
        let also = [StatusCode::METHOD_NOT_ALLOWED];
        let answer = endpoint.send(&Method::HEAD, &url, &accept(), &also).await?;
        let headers = answer.headers();
        let digest = headers.get("docker-content-digest").and_then(|v| v.to_str().ok());
        if let Some(digest) = digest.and_then(|text| Digest::parse(text).ok())
            && answer.status().is_success()
            && headers.contains_key(CONTENT_LENGTH)
        {
            return Ok(Resolved { digest, document: None });
        }
        let answer = endpoint.send(&Method::GET, &url, &accept(), &[]).await?;
        let document = read_document(answer).await?;
        Ok(Resolved { digest: Digest::sha256(&document.bytes), document: Some(document) })
    }

    /// A manifest or index by digest. Some registries keep it only as a blob (IMG-RES-04).
    pub(crate) async fn manifest(&self, digest: &Digest) -> Result<Fetched> {
        let mut worst = Worst::default();
        for kind in ["manifests", "blobs"] {
            for endpoint in self.order(|endpoint| endpoint.pull) {
                let url = endpoint.url(&self.repository, kind, digest.as_str());
                let fetched = match endpoint.send(&Method::GET, &url, &accept(), &[]).await {
                    Ok(answer) => read_document(answer).await,
                    Err(error) => Err(error),
                };
                match fetched {
                    // IMG-RES-11
                    Ok(document) if digest.matches(&document.bytes) => {
                        return Ok(if kind == "blobs" {
                            Fetched { content_type: String::new(), ..document }
                        } else {
                            document
                        });
                    }
                    Ok(_) => {
                        worst.add(mismatch(digest, url.host_str().unwrap_or_default()), endpoint.is_upstream)
                    }
                    Err(error) => worst.add(error, endpoint.is_upstream),
                }
            }
            if !worst.is_only_not_found() {
                break;
            }
        }
        Err(worst.into_error(digest))
    }

    /// A small blob, whole and verified.
    pub(crate) async fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>> {
        let mut worst = Worst::default();
        for endpoint in self.order(|endpoint| endpoint.pull) {
            let url = endpoint.url(&self.repository, "blobs", digest.as_str());
            let read = match endpoint.send(&Method::GET, &url, &identity(), &[]).await {
                Ok(mut answer) => request::read_limited(&mut answer, size)
                    .await
                    .map_err(|why| Error::corrupt("fetch blob", digest, why)),
                Err(error) => Err(error),
            };
            match read {
                Ok(bytes) if bytes.len() as u64 == size && digest.matches(&bytes) => return Ok(bytes),
                Ok(_) => {
                    worst.add(mismatch(digest, url.host_str().unwrap_or_default()), endpoint.is_upstream)
                }
                Err(error) => worst.add(error, endpoint.is_upstream),
            }
        }
        Err(worst.into_error(digest))
    }
}

/// `host` or `host:port`, as credentials are kept by.
fn authority(url: &reqwest::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn mismatch(digest: &Digest, host: &str) -> Error {
    Error::corrupt("verify", digest, format!("digest mismatch: what {host} sent is something else"))
}

fn own_headers(host: &Host) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in &host.headers {
        let wrong =
            || Error::invalid("read hosts.toml", &host.base, format!("header {name:?} is not usable"));
        let name = HeaderName::try_from(name.as_str()).map_err(|_| wrong())?;
        headers.append(name, HeaderValue::try_from(value.as_str()).map_err(|_| wrong())?);
    }
    Ok(headers)
}

fn accept() -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT_HEADER, HeaderValue::from_static(ACCEPT))])
}

/// Bodies as they are: digests are of the blob, not of a transport coding (IMG-BLOB-06).
fn identity() -> HeaderMap {
    HeaderMap::from_iter([(reqwest::header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))])
}

async fn read_document(mut answer: Response) -> Result<Fetched> {
    let content_type = answer.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let content_type = content_type.split(';').next().unwrap_or_default().trim().to_owned();
    let host = answer.url().host_str().unwrap_or_default().to_owned();
    if answer.content_length().is_some_and(|length| length > MAX_MANIFEST) {
        return Err(Error::corrupt("fetch manifest", host, format!("longer than {MAX_MANIFEST} bytes")));
    }
    let bytes = request::read_limited(&mut answer, MAX_MANIFEST).await;
    Ok(Fetched { bytes: bytes.map_err(|why| Error::unavailable("fetch manifest", host, why))?, content_type })
}

/// Of several hosts' errors the most telling one (IMG-RES-07): the registry's own before a mirror's, and what says
/// something about the image before what says something about the network.
#[derive(Default)]
struct Worst(Option<(u8, Error)>);

impl Worst {
    fn add(&mut self, error: Error, is_upstream: bool) {
        let weight = match error.kind {
            Kind::Corrupt => 4,
            Kind::Unauthorized => 3,
            Kind::Unavailable => 2,
            _ => 1,
        };
        let weight = weight * 2 + u8::from(is_upstream) * 5;
        if self.0.as_ref().is_none_or(|(so_far, _)| weight >= *so_far) {
            self.0 = Some((weight, error));
        }
    }

    fn is_only_not_found(&self) -> bool {
        self.0.as_ref().is_some_and(|(_, error)| error.kind == Kind::NotFound)
    }

    fn into_error(self, object: impl std::fmt::Display) -> Error {
        self.0.map(|(_, error)| error).unwrap_or_else(|| {
            Error::invalid("ask registry", object, "no host in hosts.toml has the capability for it")
        })
    }
}
