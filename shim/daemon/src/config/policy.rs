//! `[[images.policy]]`: a rule as written, and what it means.

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_images::{Demand, Identity, PolicyRule, Prefix, SignedBy};
use std::path::Path;

/// A rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// Images that it is for, by whole components of their full names: "*" (all), "*.example.com" (registries below a domain),
    /// "registry.example", "registry.example/team". Docker's own images are "docker.io/library"; what is for docker.io is for all
    /// names of its servers (registry-1.docker.io, registry.hub.docker.com, …).
    #[schemars(with = "String")]
    pub(crate) prefix: Prefix,
    /// "accept" and "reject" whatever they are; "signed": the registry must have a signature of the digest that the image's
    /// name stands for (that of an index if it is one).
    pub(crate) rule: Kind,
    /// Public keys, any of which suffices: absolute paths of PEM files, or PEM itself. ECDSA on P-256 (cosign's) or P-384,
    /// Ed25519, RSA.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) keys: Vec<String>,
    /// What a signature must name: "repository", that of the image as the pod names it (mirrors change nothing), whatever the
    /// tag; "digest": only the digest. Signatures of cosign 3 are bundles without a repository and need "digest" (or were made
    /// with --new-bundle-format=false). Without it: "repository".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) identity: Option<Named>,
    /// What stands in signatures in the prefix's place, of images that were copied here after they were signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) signed_as: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Accept,
    Reject,
    Signed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Named {
    Repository,
    Digest,
}

/// All rules, if they make sense together.
///
/// # Errors
/// A sentence about the first that does not.
pub(super) fn rules(written: &[Rule]) -> Result<Vec<PolicyRule>> {
    for (place, rule) in written.iter().enumerate() {
        if written.iter().take(place).any(|other| other.prefix == rule.prefix) {
            bail!("images.policy has two rules for {}: which of them counts? Leave one out", rule.prefix);
        }
    }
    written.iter().map(decide).collect()
}

fn decide(rule: &Rule) -> Result<PolicyRule> {
    let prefix = rule.prefix.clone();
    let wrong = |why: &str| anyhow::anyhow!("images.policy for {prefix}: {why}");
    let has_more = !rule.keys.is_empty() || rule.identity.is_some() || rule.signed_as.is_some();
    let demand = match rule.rule {
        Kind::Accept | Kind::Reject if has_more => {
            return Err(wrong("keys, identity and signed_as belong to rule = \"signed\""));
        }
        Kind::Accept => Demand::Accept,
        Kind::Reject => Demand::Reject,
        Kind::Signed => Demand::Signed(signed(rule).map_err(|why| wrong(&why))?),
    };
    Ok(PolicyRule { prefix, demand })
}

fn signed(rule: &Rule) -> Result<SignedBy, String> {
    if rule.keys.is_empty() {
        return Err("rule = \"signed\" needs keys = [\"/path/of/a/public/key.pub\"]".into());
    }
    let is_inline = |key: &str| key.trim_start().starts_with("-----BEGIN ");
    if let Some(key) = rule.keys.iter().find(|key| !is_inline(key) && !Path::new(key).is_absolute()) {
        return Err(format!("key {key:?} is neither an absolute path nor a public key in PEM"));
    }
    let identity = match rule.identity {
        Some(Named::Digest) => Identity::Digest,
        _ => Identity::Repository,
    };
    if let Some(other) = &rule.signed_as {
        if identity == Identity::Digest {
            return Err("signed_as has no meaning with identity = \"digest\"".into());
        }
        if !matches!(rule.prefix, Prefix::Path(_)) {
            return Err("signed_as needs a prefix that names a registry".into());
        }
        if !matches!(other.parse::<Prefix>(), Ok(Prefix::Path(_))) {
            return Err(format!(
                "signed_as = {other:?}: write a registry, or a path there, such as \"build.example/team\""
            ));
        }
    }
    // As names in signatures are read: registries in small letters.
    let signed_as =
        rule.signed_as.as_ref().and_then(|other| other.parse::<Prefix>().ok()).map(|p| p.to_string());
    Ok(SignedBy { keys: rule.keys.clone(), identity, signed_as })
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ServeArgs};
    use std::path::Path;

    fn load(policy: &str) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir()?;
        let (file, keeper) = (dir.path().join("config.toml"), std::env::current_exe()?);
        std::fs::write(&file, format!("{policy}\n[keeper]\npath = {keeper:?}\n"))?;
        let (root, state) = (dir.path().join("root"), dir.path().join("state"));
        let args = ServeArgs { root, state, config: Some(file), log_level: None };
        Config::load(&args, Path::new("/run/x.sock"))
    }

    #[test]
    fn rules_are_read_or_their_line_is_told() {
        let good = load(
            "[[images.policy]]\nprefix = \"*\"\nrule = \"reject\"\n\n[[images.policy]]\nprefix = \"reg.example\"\nrule = \"accept\"\n",
        );
        assert!(good.is_ok_and(|config| config.file.images.policy.len() == 2 && config.faults.is_empty()));
        for (text, wanted) in [
            (
                "prefix = \"busybox\"\nrule = \"accept\"",
                "config.toml:2: prefix \"busybox\": it begins with no registry",
            ),
            ("prefix = \"*\"\nrule = \"sign\"", "config.toml:3: unknown variant `sign`, expected one of"),
            (
                "prefix = \"*\"\nrule = \"accept\"\nkye = []",
                "config.toml:4: unknown field `kye`, expected one of",
            ),
            ("prefix = \"*\"", "config.toml:1: images.policy: missing field `rule`"),
            ("prefix = \"*\"\nrule = \"signed\"", "images.policy for *: rule = \"signed\" needs keys"),
            ("prefix = \"*\"\nrule = \"reject\"\nkeys = [\"/k\"]", "belong to rule = \"signed\""),
            (
                "prefix = \"*\"\nrule = \"signed\"\nkeys = [\"k.pub\"]",
                "\"k.pub\" is neither an absolute path",
            ),
            (
                "prefix = \"*\"\nrule = \"signed\"\nkeys = [\"/k\"]\nsigned_as = \"b.example\"",
                "needs a prefix that names a registry",
            ),
            (
                "prefix = \"a.example\"\nrule = \"signed\"\nkeys = [\"/k\"]\nsigned_as = \"x\"",
                "signed_as = \"x\": write",
            ),
            (
                "prefix = \"*\"\nrule = \"accept\"\n[[images.policy]]\nprefix = \"*\"\nrule = \"reject\"",
                "two rules for *",
            ),
        ] {
            let error = format!("{:#}", load(&format!("[[images.policy]]\n{text}")).expect_err(text));
            assert!(error.contains(wanted), "{text:?}: {error}");
            assert!(error.contains("config.toml:"), "{error}");
        }
    }

    #[test]
    fn a_missing_key_stops_no_start_and_no_reload_takes_it() {
        let config =
            load("[[images.policy]]\nprefix = \"*\"\nrule = \"signed\"\nkeys = [\"/absent/key.pub\"]")
                .expect("loads");
        assert_eq!(config.faults.len(), 1);
        let error = config.sound().expect_err("not sound").to_string();
        assert!(error.starts_with("images.policy for *: key /absent/key.pub: cannot be read"), "{error}");
    }
}
