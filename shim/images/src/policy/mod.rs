//! Which images may be pulled, imported and run: rules by repository prefix; signatures by key in cosign's formats.
//!
//! ```text
//!  PolicyRule (as configured) ─ load ─► Policy: by name ─► accept
//!       keys: PEM ([`key`])                               ├► refuse
//!                                                         └► signed: [`check`] at a pull asks the registry for signatures of
//!                                                            the digest, [`payload`] and [`bundle`] say what they are for,
//!                                                            and the image's record remembers which key it was;
//!                                                            [`admit`] at a container's creation reads that record
//! ```
//!
//! Fails closed: what cannot be judged (a key that cannot be read, a registry that is down) is refused. No rule for a name
//! means that it is accepted, as without any policy.

mod admit;
mod bundle;
mod check;
mod key;
mod payload;
mod prefix;

pub(crate) use admit::importable;
pub use check::PolicyTold;
pub(crate) use check::{at_pull, before_pull, told};
pub use prefix::Prefix;
pub(crate) use prefix::canonical;

use crate::{Error, Result};
use key::Key;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A rule as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    pub prefix: Prefix,
    pub demand: Demand,
}

/// What is asked of the images below a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    Accept,
    Reject,
    Signed(SignedBy),
}

/// A signature by one of these keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedBy {
    /// Absolute paths of PEM files, or PEM itself; any of them suffices.
    pub keys: Vec<String>,
    pub identity: Identity,
    /// What the prefix is called in signatures, of images that were signed before they were copied here.
    pub signed_as: Option<String>,
}

/// What a signature must be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// The digest, and the repository that the image is pulled from by name (mirrors do not count).
    Repository,
    /// The digest alone.
    Digest,
}

/// What an image's record keeps of a signature that was good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// As in [`canonical`].
    pub repository: String,
    /// Of the index or manifest that was signed.
    pub digest: String,
    /// Digest of the key's DER.
    pub key: String,
    /// The repository that the signature itself names, as in [`canonical`]; None: it names only the digest. Records of before
    /// this was kept say None: a rule with [`Identity::Repository`] wants them verified again.
    #[serde(default)]
    pub signed_for: Option<String>,
}

/// All rules, with their keys. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Policy(Arc<Vec<Rule>>);

#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) prefix: Prefix,
    pub(crate) decided: Decided,
}

#[derive(Debug)]
pub(crate) enum Decided {
    Accept,
    Reject,
    Signed(Signed),
    /// Nothing can be judged by it, and why.
    Broken(String),
}

#[derive(Debug)]
pub(crate) struct Signed {
    pub(crate) keys: Vec<Key>,
    pub(crate) identity: Identity,
    pub(crate) signed_as: Option<String>,
}

impl Policy {
    /// Reads the keys. Blocks for files.
    ///
    /// What is wrong comes beside the policy, a sentence each: a rule with such a fault refuses its images.
    pub fn load(rules: &[PolicyRule]) -> (Self, Vec<String>) {
        let mut faults = Vec::new();
        let mut decide = |rule: &PolicyRule| {
            let decided = match &rule.demand {
                Demand::Accept => Decided::Accept,
                Demand::Reject => Decided::Reject,
                Demand::Signed(by) => {
                    match by.keys.iter().map(|key| Key::read(key)).collect::<Result<Vec<_>, _>>() {
                        Ok(keys) => Decided::Signed(Signed {
                            keys: keys.into_iter().flatten().collect(),
                            identity: by.identity,
                            signed_as: by.signed_as.clone(),
                        }),
                        Err(why) => {
                            faults.push(format!("images.policy for {}: {why}", rule.prefix));
                            Decided::Broken(why)
                        }
                    }
                }
            };
            Rule { prefix: rule.prefix.clone(), decided }
        };
        let rules = rules.iter().map(&mut decide).collect();
        (Self(Arc::new(rules)), faults)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rule for `repository` (as in [`canonical`]): the longest prefix of it.
    pub(crate) fn rule(&self, repository: &str) -> Option<&Rule> {
        let fitting = self.0.iter().filter_map(|rule| Some((rule.prefix.rank(repository)?, rule)));
        fitting.max_by_key(|(rank, _)| *rank).map(|(_, rule)| rule)
    }
}

impl Rule {
    /// The name that signatures wanted by `signed` have for `repository`.
    fn signed_name(&self, signed: &Signed, repository: &str) -> String {
        match &signed.signed_as {
            Some(other) => self.prefix.replaced(repository, other),
            None => repository.to_owned(),
        }
    }

    /// Whether what was verified before would be good today, for `signed` as this rule's demand now is.
    fn still_holds(&self, signed: &Signed, repository: &str, one: &Verification) -> bool {
        let named = || one.signed_for.as_deref() == Some(&self.signed_name(signed, repository));
        one.repository == repository
            && signed.keys.iter().any(|key| key.id == one.key)
            && (signed.identity == Identity::Digest || named())
    }

    /// What refuses `object` at once; None: accepted, or to be seen from signatures.
    fn refusal(&self, object: &dyn std::fmt::Display) -> Option<Error> {
        let prefix = &self.prefix;
        match &self.decided {
            Decided::Accept | Decided::Signed(_) => None,
            Decided::Reject => {
                let why = format!("the rule for {prefix} in images.policy is \"reject\"");
                Some(Error::untrusted(object, why))
            }
            Decided::Broken(why) => Some(Error::untrusted(
                object,
                format!("the rule for {prefix} in images.policy is broken: {why}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(prefix: &str, demand: Demand) -> PolicyRule {
        PolicyRule { prefix: prefix.parse().unwrap(), demand }
    }

    #[test]
    fn the_longest_prefix_decides() {
        let rules = [
            rule("*", Demand::Reject),
            rule("*.example", Demand::Accept),
            rule("reg.example", Demand::Reject),
            rule("reg.example/team", Demand::Accept),
            rule("reg.example/team/secret", Demand::Reject),
        ];
        let (policy, faults) = Policy::load(&rules);
        assert!(faults.is_empty());
        let of = |name: &str| policy.rule(name).map(|rule| rule.prefix.to_string()).unwrap();
        for (name, wanted) in [
            ("docker.io/library/busybox", "*"),
            ("a.b.example/x", "*.example"),
            ("example/x", "*"),
            ("reg.example/x", "reg.example"),
            ("reg.example/team/app", "reg.example/team"),
            ("reg.example/teams/app", "reg.example"),
            ("reg.example/team/secret", "reg.example/team/secret"),
            ("reg.example/team/secret/x", "reg.example/team/secret"),
            ("reg.example:5000/team/app", "*"),
            // An image without a name.
            ("", "*"),
        ] {
            assert_eq!(of(name), wanted, "{name}");
        }
        assert!(Policy::default().rule("reg.example/x").is_none());
    }

    #[test]
    fn a_key_that_cannot_be_read_breaks_its_rule_and_no_other() {
        let by = SignedBy {
            keys: vec!["/absent/key.pub".into()],
            identity: Identity::Repository,
            signed_as: None,
        };
        let (policy, faults) =
            Policy::load(&[rule("a.example", Demand::Signed(by)), rule("b.example", Demand::Accept)]);
        assert_eq!(faults.len(), 1);
        assert!(
            faults[0].starts_with("images.policy for a.example: key /absent/key.pub: cannot be read"),
            "{faults:?}"
        );
        let refusal = |name: &str| policy.rule(name).unwrap().refusal(&name);
        assert!(refusal("a.example/x").unwrap().to_string().contains("/absent/key.pub"));
        assert!(refusal("b.example/x").is_none());
    }
}
