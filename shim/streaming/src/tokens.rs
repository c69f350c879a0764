//! Tokens: what a URL stands for, until it is used once or its time is over (STR-URL-05 to STR-URL-08).

use crate::Request;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a token waits for its request.
const LIFE: Duration = Duration::from_secs(60);
/// Tokens that may wait at a time.
const MOST: usize = 1000;
/// Random bytes of a token. On plain HTTP it is all that protects a container from other users of this host, so it has
/// more than the 6 that containerd gives it.
const BYTES: usize = 18;

/// Why there is no URL.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{MOST} streaming URLs wait to be used: use them, or try again in a minute")]
    TooMany,
    #[error("read random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<String, (Instant, Request)>>);

impl Tokens {
    pub(crate) fn issue(&self, request: Request) -> Result<String, Refused> {
        let mut random = [0; BYTES];
        getrandom::fill(&mut random)?;
        let token = URL_SAFE_NO_PAD.encode(random);
        let now = Instant::now();
        // A poisoned lock only means that another task panicked between two whole changes.
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MOST {
            waiting.retain(|_, (issued, _)| now.duration_since(*issued) < LIFE);
        }
        if waiting.len() >= MOST {
            return Err(Refused::TooMany);
        }
        waiting.insert(token.clone(), (now, request));
        Ok(token)
    }

    /// What the token stands for; nothing the second time, too late, or under another route (STR-URL-09). It is used up
    /// in any case.
    pub(crate) fn redeem(&self, route: &str, token: &str) -> Option<Request> {
        let (issued, request) = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(token)?;
        (issued.elapsed() < LIFE && request.route() == route).then_some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward() -> Request {
        Request::Forward { target: "p".into(), ports: vec![] }
    }

    /// STR-URL-05, STR-URL-06, STR-URL-07, STR-URL-09, STR-TST-06.
    #[tokio::test(start_paused = true)]
    async fn a_token_works_once_in_its_time_and_for_its_route() {
        let tokens = Tokens::default();
        let token = tokens.issue(forward()).unwrap();
        assert!(token.len() >= 8 && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
        assert_ne!(token, tokens.issue(forward()).unwrap());
        assert_eq!(tokens.redeem("portforward", &token), Some(forward()));
        assert_eq!(tokens.redeem("portforward", &token), None);
        let wrong = tokens.issue(forward()).unwrap();
        assert_eq!(tokens.redeem("exec", &wrong), None);
        assert_eq!(tokens.redeem("portforward", &wrong), None, "guessing the route uses it up");
        let old = tokens.issue(forward()).unwrap();
        tokio::time::advance(LIFE).await;
        assert_eq!(tokens.redeem("portforward", &old), None);
    }

    /// STR-URL-08.
    #[tokio::test(start_paused = true)]
    async fn the_1001st_waits_for_the_others() {
        let tokens = Tokens::default();
        for _ in 0..MOST {
            tokens.issue(forward()).unwrap();
        }
        assert!(matches!(tokens.issue(forward()), Err(Refused::TooMany)));
        tokio::time::advance(LIFE).await;
        tokens.issue(forward()).unwrap();
        assert_eq!(tokens.0.lock().unwrap().len(), 1, "expired ones are purged");
    }
}
