//! One request to one host: authorisation, redirects, a few retries, and errors in the registry's own words.

use super::auth::{Session, name};
use super::certificate;
use crate::{Error, Kind, Result};
use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION, RETRY_AFTER, WARNING};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// In all, authorisation included (IMG-RES-06).
const ATTEMPTS: u32 = 5;
const REDIRECTS: u32 = 10;
/// Until the answer's headers are there.
const ANSWER: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A host that is being asked.
pub(crate) struct Endpoint {
    pub(crate) client: reqwest::Client,
    pub(crate) base: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) namespace: Option<String>,
    pub(crate) session: Session,
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    pub(crate) is_upstream: bool,
    /// Only the last host is asked again after 5xx: before it there is another to ask (IMG-RES-05).
    pub(crate) is_last: bool,
    /// Could not be reached in this pull: asked after the others.
    pub(crate) is_down: AtomicBool,
}

impl Endpoint {
    /// `<base>/<name>/<kind>/<selector>`, with `ns=` for mirrors (IMG-HOST-07).
    pub(crate) fn url(&self, repository: &str, kind: &str, selector: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{repository}/{kind}/{selector}", self.base.path().trim_end_matches('/')));
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// Sends and waits for the headers of the answer; success is 2xx, and what `also` takes.
    pub(crate) async fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        also: &[StatusCode],
    ) -> Result<Response> {
        let answer = self.attempt(method, url, headers, also).await;
        let is_down = answer.as_ref().is_err_and(|error| error.kind == Kind::Unavailable);
        self.is_down.store(is_down, Ordering::Relaxed);
        answer
    }

    async fn attempt(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        also: &[StatusCode],
    ) -> Result<Response> {
        let mut pause = Duration::from_millis(200);
        let mut renewed = 0;
        for attempt in 1.. {
            let (authorisation, generation) = self.session.header().await;
            let mut answer = self.follow(method, url, headers, authorisation.as_deref()).await?;
            let status = answer.status();
            if let Some(warning) = answer.headers().get(WARNING) {
                tracing::info!(registry = %name(url), ?warning, "registry warns");
            }
            if status.is_success() || also.contains(&status) {
                return Ok(answer);
            }
            let may_retry = attempt < ATTEMPTS;
            // Once without a header, once with one that is no longer good; a third refusal is meant (IMG-AUTH-08).
            if status == StatusCode::UNAUTHORIZED && may_retry && renewed < 2 {
                renewed += 1;
                let had_header = authorisation.is_some() && renewed > 1;
                if !had_header {
                    self.session.renew(&self.client, url, answer.headers(), generation).await?;
                    continue;
                }
            }
            let is_passing = match status.as_u16() {
                408 | 429 => true,
                500 | 502 | 503 | 504 => self.is_last,
                _ => false,
            };
            if !is_passing || !may_retry {
                return Err(refusal(url, &mut answer).await);
            }
            tokio::time::sleep(advice(answer.headers()).unwrap_or(pause).min(LONGEST_PAUSE)).await;
            pause *= 2;
        }
        Err(Error::unavailable("ask registry", name(url), "too many attempts"))
    }

    /// Follows redirects. Authorization and the host's own headers go only to the very same origin (IMG-AUTH-12), and
    /// https never becomes http (IMG-AUTH-13).
    async fn follow(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        authorisation: Option<&str>,
    ) -> Result<Response> {
        let mut target = url.clone();
        for _ in 0..REDIRECTS {
            let mut request = self.client.request(method.clone(), target.clone()).headers(headers.clone());
            if target.origin() == url.origin() {
                request = request.headers(self.headers.clone());
                if let Some(value) = authorisation {
                    request = request.header(AUTHORIZATION, value);
                }
            }
            let sent = tokio::time::timeout(ANSWER, request.send()).await;
            let answer = sent
                .map_err(|_| Error::unavailable("ask registry", name(&target), "no answer within 60 s"))?
                .map_err(|e| Error::unavailable("ask registry", name(&target), text(&e)))?;
            let is_redirect = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let Some(location) = location.filter(|_| is_redirect) else { return Ok(answer) };
            let next = target.join(location).ok().filter(|next| matches!(next.scheme(), "http" | "https"));
            let next = next.ok_or_else(|| wrong(&target, "redirect to what is no http or https URL"))?;
            if target.scheme() == "https" && next.scheme() == "http" {
                return Err(wrong(&target, "redirect from https to http"));
            }
            target = next;
        }
        Err(wrong(url, "too many redirects"))
    }
}

fn wrong(url: &Url, why: &str) -> Error {
    Error::corrupt("ask registry", name(url), why)
}

/// Seconds only: dates are rare and a pause is advice.
fn advice(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

async fn refusal(url: &Url, answer: &mut Response) -> Error {
    let status = answer.status();
    let body = read_limited(answer, 64 << 10).await.unwrap_or_default();
    let why = format!("HTTP {status}{}", registry_errors(&body));
    match status.as_u16() {
        401 | 403 => Error::new(Kind::Unauthorized, "ask registry", name(url), why),
        404 => Error::new(Kind::NotFound, "ask registry", name(url), why),
        408 | 429 | 500..=599 => Error::unavailable("ask registry", name(url), why),
        _ => Error::invalid("ask registry", name(url), why),
    }
}

/// `{"errors":[{code, message}]}` as `: CODE: message` (IMG-RES-13); empty if it is none.
pub(super) fn registry_errors(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors = serde_json::from_slice::<Errors>(body).map(|e| e.errors).unwrap_or_default();
    let printable = |text: &str| text.chars().filter(|c| !c.is_control()).take(300).collect::<String>();
    errors.iter().take(3).map(|e| format!(": {}: {}", printable(&e.code), printable(&e.message))).collect()
}

/// An error without its URL (which may hold secrets in its query), with its causes, as the first alone says little; a
/// failed handshake is a sentence of its own.
pub(super) fn text(error: &reqwest::Error) -> String {
    let causes = || std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    if let Some(sentence) = causes().find_map(certificate::explain) {
        return sentence;
    }
    let first = match (error.is_connect(), error.is_timeout()) {
        (true, _) => "cannot connect",
        (_, true) => "timed out",
        _ => "connection failed",
    };
    causes().map(ToString::to_string).fold(first.to_owned(), |text, line| {
        if text.contains(&line) { text } else { format!("{text}: {line}") }
    })
}

/// The body, if it is not longer than `limit`. Each piece must come within a minute.
pub(super) async fn read_limited(answer: &mut Response, limit: u64) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let piece = tokio::time::timeout(ANSWER, answer.chunk()).await;
        match piece.map_err(|_| "no data within 60 s".to_owned())?.map_err(|e| text(&e))? {
            None => return Ok(body),
            Some(piece) if body.len() as u64 + piece.len() as u64 > limit => {
                return Err(format!("longer than {limit} bytes"));
            }
            Some(piece) => body.extend_from_slice(&piece),
        }
    }
}
