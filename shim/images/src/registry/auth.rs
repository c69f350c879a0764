//! Credentials and tokens: the token flow of the distribution project, and Basic (IMG-AUTH-*).
//!
//! One [`Session`] per host and repository: requests running at once share one token. Secrets never get into errors or
//! logs: URLs with queries are not printed here.

use super::challenge::{Challenge, parse};
use crate::reference::registry_of;
use crate::types::Auth;
use crate::{Error, Kind, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderMap, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::Mutex;

/// What to prove who we are with.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    None,
    Password {
        username: String,
        password: String,
    },
    /// OAuth refresh token: exchanged for access tokens.
    Identity(String),
    /// Sent as it is.
    Bearer(String),
}

impl Secret {
    /// The credentials in `auth` for `host` (IMG-AUTH-11, -14, -15).
    pub(crate) fn from_cri(auth: Option<&Auth>, host: &str) -> Result<Self> {
        let Some(auth) = auth.filter(|auth| is_for(&auth.server_address, host)) else {
            return Ok(Self::None);
        };
        if !auth.username.is_empty() {
            return Ok(Self::Password { username: auth.username.clone(), password: auth.password.clone() });
        }
        if !auth.identity_token.is_empty() {
            return Ok(Self::Identity(auth.identity_token.clone()));
        }
        if !auth.auth.is_empty() {
            let bad = || Error::invalid("read credentials", host, "auth is not base64 of user:password");
            let decoded = STANDARD.decode(auth.auth.trim()).map_err(|_| bad())?;
            let text = String::from_utf8(decoded).map_err(|_| bad())?;
            let (username, password) = text.split_once(':').ok_or_else(bad)?;
            let password = password.trim_end_matches('\0').to_owned();
            return Ok(Self::Password { username: username.to_owned(), password });
        }
        if !auth.registry_token.is_empty() {
            return Ok(Self::Bearer(auth.registry_token.clone()));
        }
        Ok(Self::None)
    }
}

/// `server_address` may be a host, a host with port, or a URL; Docker's own registry has several names.
fn is_for(server_address: &str, host: &str) -> bool {
    if server_address.is_empty() {
        return true;
    }
    let after_scheme = server_address.split_once("://").map_or(server_address, |(_, rest)| rest);
    let named = after_scheme.split('/').next().unwrap_or_default();
    let plain = |host: &str| registry_of(&host.to_ascii_lowercase()).to_owned();
    plain(named) == plain(host)
}

/// What authorises requests to one host for one repository.
pub(crate) struct Session {
    secret: Secret,
    scope: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    header: Option<Arc<str>>,
    /// Raised with each new header, so that of many requests that got 401 at once only the first fetches a token.
    generation: u64,
}

impl Session {
    pub(super) fn new(secret: Secret, repository: &str) -> Self {
        let header = match &secret {
            Secret::Bearer(token) => Some(format!("Bearer {token}").into()),
            _ => None,
        };
        let state = Mutex::new(State { header, generation: 0 });
        Self { secret, scope: format!("repository:{repository}:pull"), state }
    }

    /// Whose credentials, for people; never what they are.
    pub(super) fn in_words(&self) -> String {
        match &self.secret {
            Secret::None => "none".to_owned(),
            Secret::Password { username, .. } => format!("of user {username} (password hidden)"),
            Secret::Identity(_) => "identity token (hidden)".to_owned(),
            Secret::Bearer(_) => "bearer token (hidden)".to_owned(),
        }
    }

    /// The Authorization header to send, and its generation.
    pub(super) async fn header(&self) -> (Option<Arc<str>>, u64) {
        let state = self.state.lock().await;
        (state.header.clone(), state.generation)
    }

    /// Answers the 401 that a request with the header of `generation` got. Holding the lock while the token is fetched
    /// makes the others wait for it (IMG-AUTH-10).
    pub(super) async fn renew(
        &self,
        client: &reqwest::Client,
        asked: &Url,
        challenges: &HeaderMap,
        generation: u64,
    ) -> Result<()> {
        let mut state = self.state.lock().await;
        if state.generation != generation {
            return Ok(());
        }
        let challenges: Vec<Challenge> = challenges
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(parse)
            .collect();
        let by_scheme = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let header = if let Some(challenge) = by_scheme("bearer") {
            format!("Bearer {}", self.token(client, asked, challenge).await?)
        } else if by_scheme("basic").is_some() {
            self.basic()
                .ok_or_else(|| denied(asked, "the registry wants user name and password, none were given"))?
        } else {
            return Err(denied(asked, "the registry refuses and names no way to authorise"));
        };
        state.header = Some(header.into());
        state.generation += 1;
        Ok(())
    }

    fn basic(&self) -> Option<String> {
        match &self.secret {
            Secret::Password { username, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
            }
            _ => None,
        }
    }

    async fn token(&self, client: &reqwest::Client, asked: &Url, challenge: &Challenge) -> Result<String> {
        let realm = challenge.get("realm").and_then(|realm| Url::parse(realm).ok());
        let realm = realm.filter(|realm| matches!(realm.scheme(), "http" | "https"));
        let realm =
            realm.ok_or_else(|| denied(asked, "the token service (realm) is no http or https URL"))?;
        // IMG-AUTH-13
        if asked.scheme() == "https" && realm.scheme() == "http" && self.secret != Secret::None {
            return Err(denied(asked, "the token service is plain http: secrets are not sent there"));
        }
        let service = challenge.get("service").unwrap_or_default();
        let scope = challenge.get("scope").filter(|scope| !scope.is_empty()).unwrap_or(&self.scope);
        if let Some(form) = self.oauth_form(service, scope) {
            let answer =
                send(&realm, client.post(realm.clone()).header("content-type", FORM).body(form)).await?;
            let falls_back = matches!(answer.status().as_u16(), 400 | 401 | 404 | 405);
            if !falls_back || matches!(self.secret, Secret::Identity(_)) {
                return read_token(&realm, answer).await;
            }
        }
        let mut url = realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if !service.is_empty() {
                query.append_pair("service", service);
            }
            for scope in scope.split(' ').filter(|scope| !scope.is_empty()) {
                query.append_pair("scope", scope);
            }
        }
        let mut request = client.get(url);
        if let Some(basic) = self.basic() {
            request = request.header(AUTHORIZATION, basic);
        }
        read_token(&realm, send(&realm, request).await?).await
    }

    /// IMG-AUTH-04.
    fn oauth_form(&self, service: &str, scope: &str) -> Option<String> {
        let (grant, secret) = match &self.secret {
            Secret::Password { username, password } => {
                ("password", vec![("username", username.as_str()), ("password", password.as_str())])
            }
            Secret::Identity(token) => ("refresh_token", vec![("refresh_token", token.as_str())]),
            Secret::None | Secret::Bearer(_) => return None,
        };
        // Query encoding is form encoding.
        let mut url = Url::parse("form:/").ok()?;
        url.query_pairs_mut()
            .append_pair("grant_type", grant)
            .append_pair("service", service)
            .append_pair("client_id", "slipway")
            .append_pair("scope", scope)
            .extend_pairs(secret);
        url.query().map(str::to_owned)
    }
}

const FORM: &str = "application/x-www-form-urlencoded";

async fn send(realm: &Url, request: reqwest::RequestBuilder) -> Result<reqwest::Response> {
    let request = request.timeout(std::time::Duration::from_secs(60));
    request.send().await.map_err(|e| Error::unavailable("get token", name(realm), super::request::text(&e)))
}

async fn read_token(realm: &Url, mut answer: reqwest::Response) -> Result<String> {
    #[derive(Deserialize)]
    struct Token {
        token: Option<String>,
        access_token: Option<String>,
    }
    let status = answer.status();
    let body = super::request::read_limited(&mut answer, 1 << 20)
        .await
        .map_err(|e| Error::unavailable("get token", name(realm), e))?;
    if !status.is_success() {
        let why = format!("HTTP {status}{}", super::request::registry_errors(&body));
        return Err(match status {
            StatusCode::TOO_MANY_REQUESTS => Error::unavailable("get token", name(realm), why),
            _ if status.is_server_error() => Error::unavailable("get token", name(realm), why),
            _ => Error::new(Kind::Unauthorized, "get token", name(realm), why),
        });
    }
    let token: Option<Token> = serde_json::from_slice(&body).ok();
    let token =
        token.and_then(|t| t.token.filter(|t| !t.is_empty()).or(t.access_token.filter(|t| !t.is_empty())));
    let token = token.filter(|token| token.bytes().all(|b| b.is_ascii_graphic()));
    token.ok_or_else(|| denied(realm, "the token service answered without a token"))
}

/// A URL as it may be shown: no user info, no query (IMG-AUTH-16).
pub(super) fn name(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

fn denied(url: &Url, why: &str) -> Error {
    Error::new(Kind::Unauthorized, "authorise", name(url), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(auth: &Auth, host: &str) -> Secret {
        Secret::from_cri(Some(auth), host).unwrap()
    }

    // IMG-AUTH-11, -14, -15; CRI-IMG-22
    #[test]
    fn from_cri_fields() {
        let password = |username: &str, password: &str| Secret::Password {
            username: username.into(),
            password: password.into(),
        };
        let auth = Auth { auth: STANDARD.encode("me:a:b\0\0"), ..Auth::default() };
        assert!(secret(&auth, "h") == password("me", "a:b"));
        let both = Auth {
            username: "u".into(),
            password: "p".into(),
            identity_token: "i".into(),
            ..Auth::default()
        };
        assert!(secret(&both, "h") == password("u", "p"));
        let identity = Auth { identity_token: "i".into(), auth: STANDARD.encode("a:b"), ..Auth::default() };
        assert!(secret(&identity, "h") == Secret::Identity("i".into()));
        let bearer = Auth { registry_token: "t".into(), ..Auth::default() };
        assert!(secret(&bearer, "h") == Secret::Bearer("t".into()));
        assert!(Secret::from_cri(Some(&Auth { auth: "%%".into(), ..Auth::default() }), "h").is_err());
        for (address, host, wanted) in [
            ("https://index.docker.io/v1/", "docker.io", true),
            ("https://index.docker.io/v1/", "registry.hub.docker.com", true),
            ("reg.example:5000", "reg.example:5000", true),
            ("reg.example", "reg.example:5000", false),
            ("http://reg.example", "other.example", false),
        ] {
            let auth = Auth { server_address: address.into(), ..both.clone() };
            assert_eq!(secret(&auth, host) != Secret::None, wanted, "{address} {host}");
        }
        assert_eq!(format!("{both:?}"), "Auth(…)");
    }
}
