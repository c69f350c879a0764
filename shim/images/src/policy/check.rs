//! What the policy says of an image that is about to be pulled; and, for people, of one that might be.

use super::payload::Wanted;
use super::{Decided, Identity, Policy, Verification, canonical};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::registry::{Candidate, Registry};
use crate::{Error, Kind, Result};
use serde::Serialize;

/// Whether anything may be pulled as `reference`, as far as its name says: what is refused anyway is asked of no server.
///
/// # Errors
/// `Untrusted` if it may not.
pub(crate) fn before_pull(policy: &Policy, reference: &Reference) -> Result<()> {
    let refusal = policy.rule(&canonical(reference)).and_then(|rule| rule.refusal(reference));
    refusal.map_or(Ok(()), Err)
}

/// Whether `digest` may be pulled as `reference`: then with the signature that says so, unless none is wanted. `known`: what
/// was verified of it before; that needs no registry again.
///
/// The signature is for the digest by which all content is fetched then: nothing else can take its place in between.
///
/// # Errors
/// `Untrusted` if it may not; what the registry's client says (`Unavailable`) if nobody could be asked.
pub(crate) async fn at_pull(
    policy: &Policy,
    registry: &Registry,
    reference: &Reference,
    digest: &Digest,
    known: &[Verification],
) -> Result<Option<Verification>> {
    let repository = canonical(reference);
    let Some(rule) = policy.rule(&repository) else { return Ok(None) };
    if let Some(error) = rule.refusal(digest) {
        return Err(error);
    }
    let Decided::Signed(signed) = &rule.decided else { return Ok(None) };
    let is_known =
        |one: &&Verification| one.digest == digest.as_str() && rule.still_holds(signed, &repository, one);
    if let Some(one) = known.iter().find(is_known) {
        return Ok(Some(one.clone()));
    }
    let wanted = Wanted { digest, repository: &repository, rule, signed };
    let mut reasons: Vec<String> = Vec::new();
    let mut looked_at = None;
    let judge = |candidate: Candidate| {
        let outcome = match candidate {
            Candidate::Payload { payload, signature } => wanted.by_payload(&payload, &signature),
            Candidate::Bundle(bytes) => wanted.by_bundle(&bytes),
            Candidate::Unusable(why) => Err(why),
            Candidate::More(most) => {
                looked_at = Some(most);
                return None;
            }
        };
        outcome.map_err(|why| reasons.push(why)).ok()
    };
    let good = registry.signatures(digest, judge).await.map_err(|error| unverifiable(error, digest))?;
    let Some(good) = good else {
        return Err(unsigned(digest, &rule.prefix.to_string(), &reasons, looked_at));
    };
    let (key, signed_for) = (good.key, good.signed_for);
    Ok(Some(Verification { repository, digest: digest.to_string(), key, signed_for }))
}

/// What says something about the network stays that: the same pull may be good in a moment.
fn unverifiable(error: Error, digest: &Digest) -> Error {
    match error.kind {
        Kind::Unavailable | Kind::Unauthorized | Kind::Cancelled => Error {
            cause: format!("{}; signatures cannot be looked for, so the image is not taken", error.cause),
            ..error
        },
        _ => Error::untrusted(digest, format!("its signatures cannot be read: {error}")),
    }
}

/// `looked_at`: there are more documents than these.
fn unsigned(digest: &Digest, prefix: &str, reasons: &[String], looked_at: Option<usize>) -> Error {
    let wants = format!("the rule for {prefix} in images.policy wants a signature");
    let why = match reasons {
        [] => "the registry has none for it; sign it (cosign sign --key), or change the rule".to_owned(),
        [only] => format!("the registry's is not good: {only}"),
        [first, rest @ ..] => {
            let mut all = vec![first];
            all.extend(rest.iter().filter(|other| *other != first));
            all.dedup();
            let said: Vec<_> = all.iter().take(3).map(|why| why.as_str()).collect();
            format!("none of the registry's {} is good: {}", reasons.len(), said.join("; "))
        }
    };
    let more = looked_at
        .map(|most| format!("; it has more than {most} documents for it, and no others were looked at"));
    Error::untrusted(digest, format!("{wants}: {why}{}", more.unwrap_or_default()))
}

/// For people: the rule for a reference, and what comes of it now.
#[derive(Debug, Clone, Serialize)]
pub struct PolicyTold {
    /// None: no rule is for it, so it is accepted.
    pub prefix: Option<String>,
    /// `accept`, `reject`, `signed`.
    pub rule: &'static str,
    /// Files of keys; any suffices.
    pub keys: Vec<String>,
    /// What signatures must name: `repository NAME`, `digest`; empty where none is wanted.
    pub identity: String,
    /// What comes of it now: why it is accepted, or why not.
    pub outcome: Result<String, String>,
}

/// What a pull of `reference`, which stands for `digest` now, would be told. `digest`: None if no server has it.
pub(crate) async fn told(
    policy: &Policy,
    registry: &Registry,
    reference: &Reference,
    digest: Option<&Digest>,
) -> PolicyTold {
    let repository = canonical(reference);
    let Some(rule) = policy.rule(&repository) else {
        let outcome = Ok("no rule is for it".to_owned());
        return PolicyTold {
            prefix: None,
            rule: "accept",
            keys: Vec::new(),
            identity: String::new(),
            outcome,
        };
    };
    let mut told = PolicyTold {
        prefix: Some(rule.prefix.to_string()),
        rule: "accept",
        keys: Vec::new(),
        identity: String::new(),
        outcome: Ok("no signature is wanted".to_owned()),
    };
    match &rule.decided {
        Decided::Accept => return told,
        Decided::Reject => told.rule = "reject",
        Decided::Broken(_) => told.rule = "signed",
        Decided::Signed(signed) => {
            told.rule = "signed";
            told.keys = signed.keys.iter().map(|key| key.source.clone()).collect();
            told.identity = match (signed.identity, &signed.signed_as) {
                (Identity::Digest, _) => "digest".to_owned(),
                (Identity::Repository, None) => format!("repository {repository}"),
                (Identity::Repository, Some(other)) => {
                    format!("repository {}", rule.prefix.replaced(&repository, other))
                }
            };
        }
    }
    if let Some(error) = rule.refusal(reference) {
        told.outcome = Err(error.cause);
        return told;
    }
    let Some(digest) = digest else {
        told.outcome = Err("no server has it: there is nothing to look for signatures of".to_owned());
        return told;
    };
    told.outcome = match at_pull(policy, registry, reference, digest, &[]).await {
        Ok(verified) => {
            let id = verified.map(|one| one.key).unwrap_or_default();
            let Decided::Signed(signed) = &rule.decided else { return told };
            let by =
                signed.keys.iter().find(|key| key.id == id).map_or(id.as_str(), |key| key.source.as_str());
            Ok(format!("{digest} is signed by {by}"))
        }
        Err(error) => Err(error.cause),
    };
    told
}
