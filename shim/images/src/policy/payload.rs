//! What a signature in cosign's older form says: "simple signing" JSON (containers-signature(5)), signed as it is.

use super::{Identity, Rule, Signed, canonical};
use crate::digest::Digest;
use crate::reference::Reference;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

const KIND: &str = "cosign container image signature";

/// Unknown members of `critical` might change what it means: they are refused, as containers/image does.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    critical: Critical,
    #[serde(default)]
    #[allow(dead_code, reason = "named so that nothing else is allowed beside it")]
    optional: serde::de::IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Claimed,
    image: SignedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Claimed {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SignedImage {
    docker_manifest_digest: String,
}

/// What is to be shown: that this digest may be run under this name.
pub(super) struct Wanted<'a> {
    pub(super) digest: &'a Digest,
    /// As in [`canonical`].
    pub(super) repository: &'a str,
    pub(super) rule: &'a Rule,
    pub(super) signed: &'a Signed,
}

/// A signature that is good enough.
pub(super) struct Good {
    /// The key's id.
    pub(super) key: String,
    /// As in [`super::Verification`].
    pub(super) signed_for: Option<String>,
}

impl Wanted<'_> {
    /// What says so; or why this signature does not.
    pub(super) fn by_payload(&self, payload: &[u8], signature: &str) -> Result<Good, String> {
        let key = self.signer(payload, signature)?;
        let said: Payload = serde_json::from_slice(payload)
            .map_err(|e| format!("its payload is not what cosign signs: {e}"))?;
        let critical = said.critical;
        if critical.kind != KIND {
            return Err(format!("it is a {:?}, not a {KIND:?}", critical.kind));
        }
        if critical.image.docker_manifest_digest != self.digest.as_str() {
            return Err(format!("it is for {}", critical.image.docker_manifest_digest));
        }
        let claimed = critical.identity.docker_reference;
        let signed_for = Reference::parse(&claimed).ok().map(|claimed| canonical(&claimed));
        let wanted = self.rule.signed_name(self.signed, self.repository);
        if self.signed.identity == Identity::Repository && signed_for.as_ref() != Some(&wanted) {
            return Err(format!("it is for {claimed:?}, not for {wanted}"));
        }
        Ok(Good { key, signed_for })
    }

    /// The id of the key that `signature` (base64) of `message` is by.
    pub(super) fn signer(&self, message: &[u8], signature: &str) -> Result<String, String> {
        let signature = STANDARD.decode(signature).map_err(|_| "its signature is not base64".to_owned())?;
        let key = self.signed.keys.iter().find(|key| key.verifies(message, &signature));
        key.map(|key| key.id.clone()).ok_or_else(|| "it is by none of the rule's keys".to_owned())
    }
}
