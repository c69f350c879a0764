//! A layer's blob as a stream: bounded, hashed, resumed in the middle when the connection breaks.

use super::Registry;
use super::request::{Endpoint, text};
use crate::digest::Digest;
use crate::manifest::Descriptor;
use crate::{Error, Result};
use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// No bytes for so long: the connection is given up and opened anew. With [`TRIES`] this makes the five minutes of
/// IMG-BLOB-07. Waiting for the unpacker is not counted: the clock runs only while a read is wanted.
const STALL: Duration = Duration::from_secs(90);
/// Reopenings without a byte in between (IMG-BLOB-08).
const TRIES: u32 = 3;

/// Where a blob's bytes go.
pub(crate) struct Sink {
    pub(crate) chunks: mpsc::Sender<Option<Bytes>>,
    /// Told the length of each piece.
    pub(crate) on_bytes: Arc<dyn Fn(u64) + Send + Sync>,
}

impl Sink {
    /// None if the other end is gone.
    async fn put(&self, piece: Bytes) -> Option<()> {
        let length = piece.len() as u64;
        self.chunks.send(Some(piece)).await.ok()?;
        (self.on_bytes)(length);
        Some(())
    }
}

impl Registry {
    /// Streams the blob of `layer` into `sink` and verifies size and digest at its end: only then the sink gets its end
    /// (`None`). `Cancelled` means that nobody wants more.
    pub(crate) async fn stream(&self, layer: &Descriptor, sink: &Sink) -> Result<()> {
        let (digest, size) = (layer.digest()?, layer.size()?);
        let mut hasher = digest.hasher();
        let mut done = 0u64;
        let mut tries = 0;
        let mut body: Option<Body> = None;
        while done < size {
            let piece = match &mut body {
                Some(open) => open.next().await,
                None => match self.open_blob(layer, &digest, done, size).await {
                    Ok(opened) => {
                        body = Some(opened);
                        continue;
                    }
                    // The first opening has had its retries; a later one is a try like any other.
                    Err(error) if done == 0 || error.kind != crate::Kind::Unavailable => return Err(error),
                    Err(error) => Err(error.to_string()),
                },
            };
            match piece {
                Ok(Some(piece)) => {
                    done += piece.len() as u64;
                    if done > size {
                        return Err(Error::corrupt(
                            "fetch blob",
                            digest,
                            format!("longer than the {size} bytes promised"),
                        ));
                    }
                    tries = 0;
                    hasher.update(&piece);
                    sink.put(piece).await.ok_or_else(|| Error::cancelled("fetch blob", &digest))?;
                }
                broken => {
                    let why = broken
                        .err()
                        .unwrap_or_else(|| format!("connection ended after {done} of {size} bytes"));
                    tries += 1;
                    tracing::debug!(%digest, done, size, tries, why, "blob broke off");
                    if tries > TRIES {
                        return Err(Error::unavailable("fetch blob", digest, why));
                    }
                    body = None;
                    tokio::time::sleep(Duration::from_millis(100) * tries * tries).await;
                }
            }
        }
        if let Some(mut open) = body
            && let Ok(Some(_)) = open.next().await
        {
            return Err(Error::corrupt(
                "fetch blob",
                digest,
                format!("longer than the {size} bytes promised"),
            ));
        }
        let found = hasher.finish();
        if found != digest {
            let why = format!("digest mismatch: got {found}; the next pull starts anew");
            return Err(Error::corrupt("fetch blob", digest, why));
        }
        sink.chunks.send(None).await.map_err(|_| Error::cancelled("fetch blob", digest))
    }

    /// A body that begins at `offset`, from the first host that has one; then from the descriptor's own addresses.
    async fn open_blob(&self, layer: &Descriptor, digest: &Digest, offset: u64, size: u64) -> Result<Body> {
        let mut worst = super::Worst::default();
        for endpoint in self.order(|endpoint| endpoint.pull) {
            let url = endpoint.url(&self.repository, "blobs", digest.as_str());
            match open_at(endpoint, &url, offset, size).await {
                Ok(body) => return Ok(body),
                Err(error) => worst.add(error, endpoint.is_upstream),
            }
        }
        // IMG-MT-06: foreign layers. Another origin, so nothing of ours is sent along.
        let urls = layer.urls.iter().flatten().filter_map(|url| Url::parse(url).ok());
        if let Some(endpoint) = self.endpoints.last() {
            for url in urls.filter(|url| url.scheme() == "https" && url.origin() != endpoint.base.origin()) {
                match open_foreign(endpoint, &url, offset, size).await {
                    Ok(body) => return Ok(body),
                    Err(error) => worst.add(error, false),
                }
            }
        }
        Err(worst.into_error(digest))
    }
}

fn range(offset: u64) -> HeaderMap {
    let mut headers = super::identity();
    if let Ok(value) = HeaderValue::try_from(format!("bytes={offset}-"))
        && offset > 0
    {
        headers.insert(RANGE, value);
    }
    headers
}

async fn open_at(endpoint: &Endpoint, url: &Url, offset: u64, size: u64) -> Result<Body> {
    let answer =
        endpoint.send(&Method::GET, url, &range(offset), &[StatusCode::RANGE_NOT_SATISFIABLE]).await?;
    begin(answer, url, offset, size)
}

async fn open_foreign(endpoint: &Endpoint, url: &Url, offset: u64, size: u64) -> Result<Body> {
    let sent = endpoint.client.get(url.clone()).headers(range(offset)).send().await;
    let answer = sent.map_err(|e| Error::unavailable("fetch blob", super::auth::name(url), text(&e)))?;
    if !answer.status().is_success() {
        let why = format!("HTTP {}", answer.status());
        return Err(Error::new(crate::Kind::NotFound, "fetch blob", super::auth::name(url), why));
    }
    begin(answer, url, offset, size)
}

/// IMG-BLOB-03: 206 must begin where asked; 200 begins at zero.
fn begin(answer: Response, url: &Url, offset: u64, size: u64) -> Result<Body> {
    let wrong = |why: String| Error::corrupt("fetch blob", super::auth::name(url), why);
    match answer.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range =
                answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let start =
                range.strip_prefix("bytes ").and_then(|range| range.split('-').next()?.parse::<u64>().ok());
            if start != Some(offset) {
                return Err(wrong(format!("asked for bytes from {offset}, got {range:?}")));
            }
            Ok(Body { answer, skip: 0 })
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            Err(wrong(format!("the registry has no byte {offset} of {size}")))
        }
        _ => Ok(Body { answer, skip: offset }),
    }
}

struct Body {
    answer: Response,
    /// Bytes we have already.
    skip: u64,
}

impl Body {
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let piece = tokio::time::timeout(STALL, self.answer.chunk()).await;
            let piece =
                piece.map_err(|_| format!("no data for {} s", STALL.as_secs()))?.map_err(|e| text(&e))?;
            let Some(mut piece) = piece else { return Ok(None) };
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(piece.len());
            self.skip -= skipped as u64;
            let _ = piece.split_to(skipped);
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }
}
