//! What a signature in cosign's newer form says: a sigstore bundle with a DSSE envelope (secure-systems-lab/dsse) around an
//! in-toto statement. It names a digest and no repository.

use super::Identity;
use super::payload::{Good, Wanted};
use crate::registry::PREDICATE;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;

const IN_TOTO: &str = "application/vnd.in-toto+json";
const STATEMENT: &str = "https://in-toto.io/Statement/v1";

/// Certificates, entries of logs and time stamps are left alone: a key is trusted by itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    dsse_envelope: Option<Envelope>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

impl Wanted<'_> {
    /// As [`Wanted::by_payload`].
    pub(super) fn by_bundle(&self, bytes: &[u8]) -> Result<Good, String> {
        let bundle: Bundle =
            serde_json::from_slice(bytes).map_err(|e| format!("it is no sigstore bundle: {e}"))?;
        let envelope = bundle.dsse_envelope.ok_or("its bundle has no DSSE envelope")?;
        let payload = STANDARD.decode(&envelope.payload).map_err(|_| "its payload is not base64")?;
        let signed = pre_authentication(&envelope.payload_type, &payload);
        let mut last = "its bundle has no signature".to_owned();
        let mut signers = envelope.signatures.iter().map(|one| self.signer(&signed, &one.sig));
        let key = signers.find_map(|signer| signer.map_err(|why| last = why).ok()).ok_or(last)?;
        if envelope.payload_type != IN_TOTO {
            return Err(format!("its payload is {:?}, not {IN_TOTO:?}", envelope.payload_type));
        }
        let said: Statement =
            serde_json::from_slice(&payload).map_err(|e| format!("its payload is no statement: {e}"))?;
        if said.kind != STATEMENT || said.predicate_type != PREDICATE {
            return Err(format!("it states something else about the image: {:?}", said.predicate_type));
        }
        let (algorithm, hex) = self.digest.as_str().split_once(':').unwrap_or_default();
        if !said.subject.iter().any(|one| one.digest.get(algorithm).is_some_and(|digest| digest == hex)) {
            return Err("it is for another digest".to_owned());
        }
        if self.signed.identity == Identity::Repository {
            let why = "it is a sigstore bundle, which names no repository";
            return Err(format!(
                "{why}: set identity = \"digest\" in the rule, or sign with cosign sign --new-bundle-format=false"
            ));
        }
        Ok(Good { key, signed_for: None })
    }
}

/// What is really signed (DSSE v1, "PAE").
fn pre_authentication(kind: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the protocol's own text.
    #[test]
    fn pae() {
        let signed = pre_authentication("http://example.com/HelloWorld", b"hello world");
        assert_eq!(signed, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }
}
