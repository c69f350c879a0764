//! Public keys from PEM (RFC 7468, SubjectPublicKeyInfo of RFC 5280), and what they say about a signature. The mathematics
//! is ring's.

use crate::digest::Digest;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use std::io::Read as _;
use std::path::Path;

/// No key is longer; a device or a log named by mistake is not read to its end.
const MAX_FILE: u64 = 64 << 10;
const PEM: &str = "-----BEGIN ";
const WANTED: &str = "want a PEM file with a public key (-----BEGIN PUBLIC KEY-----)";
/// RSA below this is refused: ring would, at every image.
const MIN_RSA_BITS: usize = 2048;

/// The contents of object identifiers in DER.
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const ED25519_OID: &[u8] = &[0x2b, 0x65, 0x70];

type Algorithms = &'static [&'static dyn VerificationAlgorithm];
static WITH_P256: Algorithms = &[&ECDSA_P256_SHA256_ASN1];
/// Older cosign hashed by SHA-256 whatever the curve.
static WITH_P384: Algorithms = &[&ECDSA_P384_SHA384_ASN1, &ECDSA_P384_SHA256_ASN1];
static WITH_ED25519: Algorithms = &[&ED25519];
static WITH_RSA: Algorithms = &[&RSA_PKCS1_2048_8192_SHA256];

/// A key that can verify.
#[derive(Clone)]
pub(crate) struct Key {
    /// Digest of its DER: the same key in another file is the same.
    pub(crate) id: String,
    /// For people: its file, or where in the policy it stands.
    pub(crate) source: String,
    algorithms: Algorithms,
    public: Vec<u8>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("source", &self.source).finish_non_exhaustive()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Key {
    /// The keys of `text`: an absolute path of a PEM file, or PEM itself.
    ///
    /// # Errors
    /// A sentence that names the file, what was wanted, and what was there.
    pub(crate) fn read(text: &str) -> Result<Vec<Self>, String> {
        if is_inline(text) {
            return parse(text.as_bytes(), "a key in the configuration itself");
        }
        let said = |what: String| format!("key {text}: {what}; {WANTED}, then reload");
        let bytes = file(Path::new(text)).map_err(|e| said(format!("cannot be read: {e}")))?;
        parse(&bytes, text).map_err(|why| format!("key {text}: {why}"))
    }

    /// Whether `signature` is this key's of `message`, by any algorithm that cosign uses with such keys.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let good = |algorithm: &&'static dyn VerificationAlgorithm| {
            UnparsedPublicKey::new(*algorithm, &self.public).verify(message, signature).is_ok()
        };
        self.algorithms.iter().any(good)
    }
}

/// Whether a key is written out where a file could be named.
pub(crate) fn is_inline(text: &str) -> bool {
    text.trim_start().starts_with(PEM)
}

fn file(path: &Path) -> std::io::Result<Vec<u8>> {
    // Before it is opened: a pipe would never end.
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    if metadata.len() > MAX_FILE {
        return Err(std::io::Error::other(format!("it is longer than {MAX_FILE} bytes")));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(pem: &[u8], source: &str) -> Result<Vec<Key>, String> {
    let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let sections = sections.map_err(|e| format!("is damaged PEM ({e}); {WANTED}"))?;
    let mut keys = Vec::new();
    for (kind, der) in sections {
        match kind {
            SectionKind::PublicKey => {
                let der = SubjectPublicKeyInfoDer::from(der);
                keys.push(key(&der, source)?);
            }
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                let why = "holds a private key, which has no business on a node";
                return Err(format!(
                    "{why}: put the public one there (cosign public-key, openssl pkey -pubout)"
                ));
            }
            SectionKind::Certificate => {
                return Err(format!("holds a certificate; {WANTED}: openssl x509 -pubkey -noout"));
            }
            _ => return Err(format!("holds something else than a public key; {WANTED}")),
        }
    }
    if keys.is_empty() {
        // cosign's own private keys are of a kind that the parser passes over.
        return Err(format!("has no key in it; {WANTED}"));
    }
    Ok(keys)
}

fn key(der: &[u8], source: &str) -> Result<Key, String> {
    let (algorithm, public) =
        subject_public_key(der).ok_or_else(|| format!("its DER is damaged; {WANTED}"))?;
    let (oid, parameters) =
        element(algorithm, 0x06).ok_or_else(|| format!("its DER is damaged; {WANTED}"))?;
    let curve = || element(parameters, 0x06).map(|(curve, _)| curve);
    let algorithms = match oid {
        EC if curve() == Some(P256) && public.len() == 65 => WITH_P256,
        EC if curve() == Some(P384) && public.len() == 97 => WITH_P384,
        ED25519_OID if public.len() == 32 => WITH_ED25519,
        RSA => {
            let bits = rsa_bits(public).ok_or_else(|| format!("its DER is damaged; {WANTED}"))?;
            if !(MIN_RSA_BITS..=8192).contains(&bits) {
                return Err(format!("is an RSA key of {bits} bits: want one of {MIN_RSA_BITS} to 8192"));
            }
            WITH_RSA
        }
        _ => {
            let why = "is of a kind that cannot be verified here";
            return Err(format!("{why}: use ECDSA on P-256 (cosign's) or P-384, Ed25519, or RSA"));
        }
    };
    let id = Digest::sha256(der).to_string();
    Ok(Key { id, source: source.to_owned(), algorithms, public: public.to_vec() })
}

/// The algorithm's content and the key's bytes.
fn subject_public_key(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (info, rest) = element(der, 0x30)?;
    let (algorithm, more) = element(info, 0x30)?;
    let (bits, end) = element(more, 0x03)?;
    // No bits of the last byte are unused.
    let public = bits.strip_prefix(&[0])?;
    (rest.is_empty() && end.is_empty()).then_some((algorithm, public))
}

fn rsa_bits(public: &[u8]) -> Option<usize> {
    let (numbers, _) = element(public, 0x30)?;
    let (modulus, _) = element(numbers, 0x02)?;
    let significant: Vec<u8> = modulus.iter().copied().skip_while(|byte| *byte == 0).collect();
    let first = significant.first()?;
    Some(significant.len() * 8 - first.leading_zeros() as usize)
}

/// The content of the DER element of kind `tag` that `bytes` begin with, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<2>()?;
    if head[0] != tag {
        return None;
    }
    let (length, rest) = match head[1] {
        short @ 0..=0x7f => (usize::from(short), rest),
        // A key's length takes two bytes at most.
        0x81 => {
            let (length, rest) = rest.split_first()?;
            (usize::from(*length), rest)
        }
        0x82 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn openssl(dir: &Path, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn made(dir: &Path, name: &str, algorithm: &[&str]) {
        let private = format!("{name}.key");
        openssl(dir, &[&["genpkey", "-out", &private][..], algorithm].concat());
        openssl(dir, &["pkey", "-in", &private, "-pubout", "-out", &format!("{name}.pub")]);
    }

    fn read(dir: &Path, name: &str) -> Result<Vec<Key>, String> {
        Key::read(dir.join(name).to_str().unwrap())
    }

    #[test]
    fn every_kind_verifies_its_own_signatures_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let ec = |curve: &'static str| ["-algorithm", "EC", "-pkeyopt", curve];
        made(dir, "p256", &ec("ec_paramgen_curve:prime256v1"));
        made(dir, "other", &ec("ec_paramgen_curve:prime256v1"));
        made(dir, "p384", &ec("ec_paramgen_curve:secp384r1"));
        made(dir, "rsa", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
        made(dir, "ed25519", &["-algorithm", "ED25519"]);
        std::fs::write(dir.join("message"), "signed").unwrap();
        let other = read(dir, "other.pub").unwrap();
        for (name, hash) in
            [("p256", "-sha256"), ("p384", "-sha384"), ("p384", "-sha256"), ("rsa", "-sha256")]
        {
            let private = format!("{name}.key");
            openssl(dir, &["dgst", hash, "-sign", &private, "-out", "signature", "message"]);
            let signature = std::fs::read(dir.join("signature")).unwrap();
            let keys = read(dir, &format!("{name}.pub")).unwrap();
            assert!(keys[0].verifies(b"signed", &signature), "{name} {hash}");
            assert!(!keys[0].verifies(b"Signed", &signature), "{name}");
            assert!(!keys[0].verifies(b"signed", &signature[1..]) && !keys[0].verifies(b"signed", b""));
            assert!(!other[0].verifies(b"signed", &signature), "{name}");
        }
        openssl(
            dir,
            &["pkeyutl", "-sign", "-inkey", "ed25519.key", "-rawin", "-in", "message", "-out", "signature"],
        );
        let signature = std::fs::read(dir.join("signature")).unwrap();
        let keys = read(dir, "ed25519.pub").unwrap();
        assert!(keys[0].verifies(b"signed", &signature) && !keys[0].verifies(b"signe", &signature));

        // The same key written out, and two in one file.
        let text = std::fs::read_to_string(dir.join("ed25519.pub")).unwrap();
        assert_eq!(Key::read(&text).unwrap(), keys);
        std::fs::write(dir.join("two"), text + &std::fs::read_to_string(dir.join("p256.pub")).unwrap())
            .unwrap();
        assert_eq!(read(dir, "two").unwrap().len(), 2);
    }

    #[test]
    fn what_is_no_public_key_is_told_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        made(dir, "good", &["-algorithm", "ED25519"]);
        made(dir, "small", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]);
        made(dir, "p521", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp521r1"]);
        openssl(dir, &["req", "-x509", "-key", "good.key", "-subj", "/CN=x", "-out", "certificate"]);
        let good = std::fs::read_to_string(dir.join("good.pub")).unwrap();
        for (name, text) in [
            ("empty", String::new()),
            ("words", "no key at all".into()),
            ("cut", good.lines().take(2).collect::<Vec<_>>().join("\n")),
            ("short", good.replace("MCow", "MCkw")),
            (
                "cosign.key",
                "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n"
                    .into(),
            ),
            ("big", "x".repeat(70_000)),
        ] {
            std::fs::write(dir.join(name), text).unwrap();
        }
        for (name, word) in [
            ("absent", "cannot be read"),
            (".", "not a regular file"),
            ("big", "longer than 65536"),
            ("empty", "has no key in it"),
            ("words", "has no key in it"),
            ("cosign.key", "has no key in it"),
            ("cut", "damaged PEM"),
            ("short", "DER is damaged"),
            ("good.key", "holds a private key"),
            ("certificate", "holds a certificate"),
            ("small.pub", "1024 bits"),
            ("p521.pub", "of a kind"),
        ] {
            let error = read(dir, name).expect_err(name);
            assert!(error.contains(word), "{name}: {error}");
            assert!(error.contains(dir.to_str().unwrap()) && !error.contains('\n'), "{error}");
        }
    }
}
