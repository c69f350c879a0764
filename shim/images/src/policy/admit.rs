//! Whether an image that is in the store may be run: by what its record says was verified, without asking a registry.

use super::{Decided, Policy, Rule, Verification, canonical};
use crate::reference::Reference;
use crate::store::Store;
use crate::types::Image;
use crate::{Error, Kind, Result};

impl Store {
    /// Whether the policy lets `image` be run or mounted under the name `asked` (what the pod says). Where the image is not
    /// known by that name (it was asked for by its id), one of its own names must be good enough.
    ///
    /// Imported images and those that were pulled before the policy was there have no signature that was verified.
    ///
    /// # Errors
    /// `Untrusted`: text begins with `SignatureValidationFailed`.
    pub fn admit(&self, image: &Image, asked: &str) -> Result<()> {
        let policy = self.inner.policy();
        if policy.is_empty() {
            return Ok(());
        }
        let catalog = self.inner.catalog();
        let stored = catalog.get(&image.id);
        let stored =
            stored.ok_or_else(|| Error::new(Kind::NotFound, "find image", &image.id, "it was removed"))?;
        self.inner.counted(judge(&policy, &stored.record.verified, &names(image), asked))
    }
}

/// The repositories that the image is known by.
fn names(image: &Image) -> Vec<String> {
    let all = image.repo_tags.iter().chain(&image.repo_digests);
    let mut names: Vec<String> =
        all.filter_map(|name| Some(canonical(&Reference::parse(name).ok()?))).collect();
    names.sort();
    names.dedup();
    names
}

fn judge(policy: &Policy, verified: &[Verification], names: &[String], asked: &str) -> Result<()> {
    let asked = Reference::parse(asked).ok().map(|reference| canonical(&reference));
    if let Some(asked) = asked.filter(|asked| names.contains(asked)) {
        return by_name(policy, verified, &asked);
    }
    let mut refused = None;
    for name in names {
        match by_name(policy, verified, name) {
            Ok(()) => return Ok(()),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    match refused {
        Some(error) => Err(error),
        // It has no name: the rule for all decides.
        None => by_name(policy, verified, ""),
    }
}

fn by_name(policy: &Policy, verified: &[Verification], name: &str) -> Result<()> {
    let Some(rule) = policy.rule(name) else { return Ok(()) };
    let object = if name.is_empty() { "image without a name" } else { name };
    if let Some(error) = rule.refusal(&object) {
        return Err(error);
    }
    let Decided::Signed(signed) = &rule.decided else { return Ok(()) };
    if verified.iter().any(|one| rule.still_holds(signed, name, one)) {
        return Ok(());
    }
    let why =
        "it was imported, or pulled before there was this rule, and no signature as it wants it was verified";
    Err(Error::untrusted(
        object,
        format!("{}: {why}; pull it again (imagePullPolicy: Always, or slipway pull)", wants(rule)),
    ))
}

fn wants(rule: &Rule) -> String {
    format!("the rule for {} in images.policy wants a signature", rule.prefix)
}

/// Whether an image of an archive may be stored by `names`: archives carry no signatures.
pub(crate) fn importable(policy: &Policy, names: &[Reference]) -> Result<()> {
    for name in names {
        let Some(rule) = policy.rule(&canonical(name)) else { continue };
        if let Some(error) = rule.refusal(name) {
            return Err(error);
        }
        if matches!(rule.decided, Decided::Signed(_)) {
            let why = "archives have none; pull it, or import it by a name that the policy accepts (--name)";
            return Err(Error::untrusted(name, format!("{}: {why}", wants(rule))));
        }
    }
    Ok(())
}
