//! The image policy against Debian's docker-registry on loopback: signatures as cosign makes them, made by openssl, good
//! ones and others.

#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use slipway_images::{Demand, Identity, Kind, Policy, PolicyRule, Registries, SignedBy, Store};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::gate::{Gate, Way};
use support::tar::Tar;
use support::{Built, INDEX, OCI, Packing, Registry, assert_layers, build, sha256, store, store_at};
use tempfile::TempDir;

const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// Key pairs in a directory.
struct Signer(TempDir);

impl Signer {
    fn new() -> Self {
        let signer = Self(tempfile::tempdir().unwrap());
        for name in ["team", "other"] {
            let (private, public) = (format!("{name}.key"), format!("{name}.pub"));
            let curve = "ec_paramgen_curve:prime256v1";
            signer.openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", &private]);
            signer.openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]);
        }
        signer
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn public(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.pub"))
    }

    fn sign(&self, name: &str, message: &[u8]) -> String {
        std::fs::write(self.0.path().join("message"), message).unwrap();
        let key = format!("{name}.key");
        self.openssl(&["dgst", "-sha256", "-sign", &key, "-out", "signature", "message"]);
        STANDARD.encode(std::fs::read(self.0.path().join("signature")).unwrap())
    }
}

fn payload(repository: &str, digest: &str) -> Vec<u8> {
    serde_json::json!({
        "critical": {
            "identity": {"docker-reference": repository},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string()
    .into_bytes()
}

/// Pushes what `cosign sign` (before 3) would: a manifest of payloads under the digest's tag. `size`: what the descriptor says.
async fn push_signatures(
    registry: &Registry,
    path: &str,
    digest: &str,
    signatures: &[(Vec<u8>, String)],
    size: Option<u64>,
) {
    registry.push_blob(path, b"{}").await;
    let mut layers = Vec::new();
    for (payload, signature) in signatures {
        registry.push_blob(path, payload).await;
        layers.push(serde_json::json!({
            "mediaType": SIMPLE, "digest": sha256(payload), "size": size.unwrap_or(payload.len() as u64),
            "annotations": {"dev.cosignproject.cosign/signature": signature},
        }));
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI, "layers": layers,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(b"{}"), "size": 2},
    });
    let tag = format!("{}.sig", digest.replace(':', "-"));
    registry.push_manifest(path, manifest.to_string().as_bytes(), OCI, &tag).await;
}

fn image(content: &str) -> Built {
    build(&[(Tar::new().file("f", content).end(), Packing::Gzip)], "{}")
}

fn rule(prefix: &str, demand: Demand) -> PolicyRule {
    PolicyRule { prefix: prefix.parse().unwrap(), demand }
}

fn by(keys: &[&Path], identity: Identity, signed_as: Option<&str>) -> Demand {
    let keys = keys.iter().map(|key| key.display().to_string()).collect();
    Demand::Signed(SignedBy { keys, identity, signed_as: signed_as.map(str::to_owned) })
}

fn set(store: &Store, rules: &[PolicyRule]) {
    let (policy, faults) = Policy::load(rules);
    assert!(faults.is_empty(), "{faults:?}");
    store.set_policy(policy);
}

/// One store that wants signatures of one registry by the key "team".
struct Node {
    registry: Registry,
    signer: Signer,
    dir: TempDir,
    store: Store,
}

impl Node {
    fn new() -> Self {
        let (registry, signer) = (Registry::start(), Signer::new());
        let (dir, store) = store();
        set(
            &store,
            &[rule(&registry.address.to_string(), by(&[&signer.public("team")], Identity::Repository, None))],
        );
        Self { registry, signer, dir, store }
    }

    /// An image at `path`, with one signature.
    async fn push(
        &self,
        path: &str,
        signature: impl FnOnce(&Signer, &str, &str) -> (Vec<u8>, String),
    ) -> String {
        let built = image(path);
        self.registry.push(path, &built, "1").await;
        let signature = signature(&self.signer, &self.registry.name(path), &built.digest());
        push_signatures(&self.registry, path, &built.digest(), &[signature], None).await;
        self.registry.name(&format!("{path}:1"))
    }

    async fn refused(&self, name: &str, word: &str) {
        let before = self.store.refusals();
        let error = self.store.pull(name, None, None).await.expect_err(name);
        let text = error.to_string();
        assert_eq!(error.kind, Kind::Untrusted, "{text}");
        assert!(text.starts_with("SignatureValidationFailed: ") && text.contains(word), "{name}: {text}");
        assert!(text.contains(name) && !text.contains('\n'), "{text}");
        assert_eq!(self.store.refusals(), before + 1);
        assert!(self.store.find(name).is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_signed_by_the_right_key_for_the_right_image() {
    let node = Node::new();
    let good = node
        .push("good", |s, name, digest| {
            let p = payload(name, digest);
            let sig = s.sign("team", &p);
            (p, sig)
        })
        .await;
    let pulled = node.store.pull(&good, None, None).await.unwrap();
    assert_eq!(pulled.verified.len(), 1);
    assert_eq!(pulled.verified[0].repository, node.registry.name("good"));
    node.store.admit(&pulled, &good).unwrap();
    node.store.admit(&pulled, &pulled.id).unwrap();
    assert_layers(&node.dir, 1);

    let bare = image("bare");
    node.registry.push("bare", &bare, "1").await;
    node.refused(&node.registry.name("bare:1"), "the registry has none for it").await;
    let digest_too = node.registry.name(&format!("bare@{}", bare.digest()));
    node.refused(&digest_too, "the registry has none for it").await;

    let other = node
        .push("other", |s, name, digest| {
            let p = payload(name, digest);
            let sig = s.sign("other", &p);
            (p, sig)
        })
        .await;
    node.refused(&other, "by none of the rule's keys").await;
    let wrong = sha256(b"another image");
    let digest = node
        .push("digest", |s, name, _| {
            let p = payload(name, &wrong);
            let sig = s.sign("team", &p);
            (p, sig)
        })
        .await;
    node.refused(&digest, &format!("it is for {wrong}")).await;
    let elsewhere = node
        .push("elsewhere", |s, name, digest| {
            let p = payload(&name.replace("elsewhere", "secret"), digest);
            let sig = s.sign("team", &p);
            (p, sig)
        })
        .await;
    node.refused(&elsewhere, "/secret\", not for ").await;
    let cut = node
        .push("cut", |s, name, digest| {
            let p = payload(name, digest);
            let sig = s.sign("team", &p);
            (p, sig[..sig.len() - 3].to_owned())
        })
        .await;
    node.refused(&cut, "not base64").await;
    let changed = node
        .push("changed", |s, name, digest| {
            let sig = s.sign("team", &payload(name, &wrong));
            (payload(name, digest), sig)
        })
        .await;
    node.refused(&changed, "by none of the rule's keys").await;
    let kind = node
        .push("kind", |s, name, digest| {
            let text = String::from_utf8(payload(name, digest))
                .unwrap()
                .replace("cosign container", "atomic container");
            let sig = s.sign("team", text.as_bytes());
            (text.into_bytes(), sig)
        })
        .await;
    node.refused(&kind, "atomic container image signature").await;
    let more = node
        .push("more", |s, name, digest| {
            let text = String::from_utf8(payload(name, digest))
                .unwrap()
                .replace("\"type\"", "\"only-on\":\"tuesdays\",\"type\"");
            let sig = s.sign("team", text.as_bytes());
            (text.into_bytes(), sig)
        })
        .await;
    node.refused(&more, "unknown field `only-on`").await;
    assert_layers(&node.dir, 1);

    // Of several signatures one is enough.
    let built = image("several");
    node.registry.push("several", &built, "1").await;
    let said = payload(&node.registry.name("several"), &built.digest());
    let all = [
        (said.clone(), "AAAA".into()),
        (said.clone(), node.signer.sign("other", &said)),
        (said.clone(), node.signer.sign("team", &said)),
    ];
    push_signatures(&node.registry, "several", &built.digest(), &all, None).await;
    node.store.pull(&node.registry.name("several:1"), None, None).await.unwrap();
    // A payload that would fill the disk is not read.
    let built = image("huge");
    node.registry.push("huge", &built, "1").await;
    let said = payload(&node.registry.name("huge"), &built.digest());
    let padded = [&said[..], &vec![b' '; 1 << 20]].concat();
    let signature = node.signer.sign("team", &padded);
    push_signatures(&node.registry, "huge", &built.digest(), &[(padded, signature)], None).await;
    node.refused(&node.registry.name("huge:1"), "at most 65536 are read").await;
}

/// A signature of an index is for what the tag stands for; the manifest in it has none of its own.
#[tokio::test(flavor = "multi_thread")]
async fn the_digest_that_the_name_stands_for_is_what_is_signed() {
    let node = Node::new();
    let built = image("in an index");
    node.registry.push("multi", &built, "plain").await;
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [{"mediaType": OCI, "digest": built.digest(), "size": built.manifest.len(),
                       "platform": {"os": "linux", "architecture": "amd64"}}],
    })
    .to_string();
    node.registry.push_manifest("multi", index.as_bytes(), INDEX, "1").await;
    let digest = sha256(index.as_bytes());
    let said = payload(&node.registry.name("multi"), &digest);
    push_signatures(
        &node.registry,
        "multi",
        &digest,
        &[(said.clone(), node.signer.sign("team", &said))],
        None,
    )
    .await;
    node.refused(&node.registry.name("multi:plain"), "none for it").await;
    let pulled = node.store.pull(&node.registry.name("multi:1"), None, None).await.unwrap();
    assert_eq!(pulled.verified[0].digest, digest);
    // By a name that is not signed it is still refused, though its content is here.
    let error = node.store.pull(&node.registry.name("multi:plain"), None, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::Untrusted);
}

/// Copied images keep the name that they were signed by; mirrors change no name.
#[tokio::test(flavor = "multi_thread")]
async fn names_in_signatures() {
    let node = Node::new();
    let built = image("copied");
    node.registry.push("mirror/app", &built, "1").await;
    let said = payload("build.example/team/app", &built.digest());
    let signature = [(said.clone(), node.signer.sign("team", &said))];
    push_signatures(&node.registry, "mirror/app", &built.digest(), &signature, None).await;
    let name = node.registry.name("mirror/app:1");
    node.refused(&name, "build.example/team/app").await;
    let prefix = node.registry.name("mirror");
    let key = node.signer.public("team");
    set(&node.store, &[rule(&prefix, by(&[&key], Identity::Repository, Some("build.example/team")))]);
    node.store.pull(&name, None, None).await.unwrap();
    set(&node.store, &[rule(&prefix, by(&[&key], Identity::Repository, Some("build.example/other")))]);
    let other = tempfile::tempdir().unwrap();
    let fresh = store_at(other.path(), Vec::new());
    set(&fresh, &[rule(&prefix, by(&[&key], Identity::Repository, Some("build.example/other")))]);
    assert_eq!(fresh.pull(&name, None, None).await.unwrap_err().kind, Kind::Untrusted);

    // The same content by a mirror of build.example: the signature is for the original name.
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("build.example");
    std::fs::create_dir(&own).unwrap();
    let hosts = format!("server = \"http://{}/v2/mirror\"\noverride_path = true\n", node.registry.address);
    std::fs::write(own.join("hosts.toml"), hosts).unwrap();
    let built = image("by a mirror");
    node.registry.push("mirror/by/mirror", &built, "1").await;
    let said = payload("build.example/by/mirror", &built.digest());
    push_signatures(
        &node.registry,
        "mirror/by/mirror",
        &built.digest(),
        &[(said.clone(), node.signer.sign("team", &said))],
        None,
    )
    .await;
    fresh.set_registries(Registries {
        hosts_dirs: vec![dir.path().to_owned()],
        auth_file: None,
        parallel_layers: 1,
    });
    set(&fresh, &[rule("*", Demand::Reject), rule("build.example", by(&[&key], Identity::Repository, None))]);
    let pulled = fresh.pull("build.example/by/mirror:1", None, None).await.unwrap();
    assert_eq!(pulled.verified[0].repository, "build.example/by/mirror");
}

/// cosign 3: a sigstore bundle that refers to the image; found by the fallback tag, as this registry knows no referrers.
#[tokio::test(flavor = "multi_thread")]
async fn bundles() {
    let node = Node::new();
    let built = image("bundled");
    node.registry.push("bundled", &built, "1").await;
    let name = node.registry.name("bundled:1");
    let statement = |digest: &str, predicate: &str| {
        serde_json::json!({"_type": "https://in-toto.io/Statement/v1", "subject": [{"digest": {"sha256": &digest[7..]}}],
            "predicateType": predicate, "predicate": {}}).to_string()
    };
    let publish = async |statement: String, key: &str, broken: usize| {
        let kind = "application/vnd.in-toto+json";
        let signed = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
        let bundle = serde_json::json!({
            "mediaType": BUNDLE, "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []},
            "dsseEnvelope": {"payload": STANDARD.encode(&statement), "payloadType": kind,
                "signatures": [{"sig": node.signer.sign(key, signed.as_bytes())}]},
        })
        .to_string();
        for blob in [b"{}".as_slice(), bundle.as_bytes()] {
            node.registry.push_blob("bundled", blob).await;
        }
        let empty = serde_json::json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2});
        let manifest =
            serde_json::json!({"schemaVersion": 2, "mediaType": OCI, "artifactType": BUNDLE, "config": empty,
            "layers": [{"mediaType": BUNDLE, "digest": sha256(bundle.as_bytes()), "size": bundle.len()}]})
            .to_string();
        node.registry.push_manifest("bundled", manifest.as_bytes(), OCI, &sha256(manifest.as_bytes())).await;
        let entry = |digest: String| serde_json::json!({"mediaType": OCI, "artifactType": BUNDLE, "digest": digest, "size": manifest.len()});
        let mut entries = Vec::new();
        for number in 0..broken {
            let other = manifest.replace(BUNDLE, &format!("{BUNDLE}.{number}"));
            let digest = sha256(other.as_bytes());
            node.registry.push_manifest("bundled", other.as_bytes(), OCI, &digest).await;
            entries.push(entry(digest));
        }
        entries.push(entry(sha256(manifest.as_bytes())));
        let index =
            serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
        let tag = built.digest().replace(':', "-");
        node.registry.push_manifest("bundled", index.as_bytes(), INDEX, &tag).await;
        for entry in &entries[..broken] {
            let file = node.registry.blob_file(entry["digest"].as_str().unwrap());
            std::fs::write(&file, format!("{} ", std::fs::read_to_string(&file).unwrap())).unwrap();
        }
    };
    let sign = "https://sigstore.dev/cosign/sign/v1";
    publish(statement(&built.digest(), sign), "team", 0).await;
    node.refused(&name, "names no repository: set identity = \"digest\"").await;
    let key = node.signer.public("team");
    set(&node.store, &[rule(&node.registry.address.to_string(), by(&[&key], Identity::Digest, None))]);
    for (said, by, word) in [
        (statement(&built.digest(), sign), "other", "by none of the rule's keys"),
        (statement(&sha256(b"x"), sign), "team", "for another digest"),
        (statement(&built.digest(), "https://spdx.dev/Document"), "team", "states something else"),
        ("{}".to_owned(), "team", "no statement"),
    ] {
        publish(said, by, 0).await;
        node.refused(&name, word).await;
    }
    // Others may write there, too: what they leave neither hides a good signature nor keeps us reading for ever.
    publish(statement(&built.digest(), sign), "team", 300).await;
    node.refused(&name, "more than 256 documents").await;
    publish(statement(&built.digest(), sign), "team", 3).await;
    let pulled = node.store.pull(&name, None, None).await.unwrap();
    node.store.admit(&pulled, &name).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_at_is_refused() {
    let node = Node::new();
    for (way, kind, words) in [
        (Way::NoSignatures, Kind::Unavailable, ["RegistryUnavailable: ", "signatures cannot be looked for"]),
        (Way::Circle, Kind::Untrusted, ["SignatureValidationFailed: ", "too many redirects"]),
    ] {
        let gate = Gate::start(node.registry.address, way);
        let path = format!("gated{}", way as u8);
        node.registry.push(&path, &image(&path), "1").await;
        let dir = tempfile::tempdir().unwrap();
        let store = store_at(dir.path(), Vec::new());
        set(
            &store,
            &[rule(
                &gate.address.to_string(),
                by(&[&node.signer.public("team")], Identity::Repository, None),
            )],
        );
        let error = store.pull(&format!("{}/{path}:1", gate.address), None, None).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind, kind, "{text}");
        assert!(text.starts_with(words[0]) && text.contains(words[1]), "{text}");
        assert!(store.list().is_empty());
    }
    // A mirror that has the image and no signature, of a registry that cannot be reached: nobody knows whether it is signed.
    let hosts = tempfile::tempdir().unwrap();
    let own = hosts.path().join("build.example");
    std::fs::create_dir(&own).unwrap();
    let text = format!("server = \"http://127.0.0.1:9\"\n[host.\"http://{}\"]\n", node.registry.address);
    std::fs::write(own.join("hosts.toml"), text).unwrap();
    node.registry.push("mirrored", &image("mirrored"), "1").await;
    let dir = tempfile::tempdir().unwrap();
    let store = store_at(dir.path(), Vec::new());
    let hosts_dirs = vec![hosts.path().to_owned()];
    store.set_registries(Registries { hosts_dirs, auth_file: None, parallel_layers: 1 });
    set(&store, &[rule("*", by(&[&node.signer.public("team")], Identity::Repository, None))]);
    let error = store.pull("build.example/mirrored:1", None, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable, "{error}");
    // What is refused by its name is asked of nobody.
    set(&store, &[rule("build.example/banned", Demand::Reject)]);
    let error = store.pull("build.example/banned:1", None, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::Untrusted, "{error}");
    // A key that went away.
    let rules = [rule("*", by(&[Path::new("/absent/team.pub")], Identity::Repository, None))];
    let (policy, faults) = Policy::load(&rules);
    assert!(faults.len() == 1 && faults[0].contains("/absent/team.pub: cannot be read"), "{faults:?}");
    node.store.set_policy(policy);
    let name = node
        .push("fine", |s, name, digest| {
            let p = payload(name, digest);
            let sig = s.sign("team", &p);
            (p, sig)
        })
        .await;
    node.refused(&name, "/absent/team.pub").await;
}

/// An image whose good signature is for the same digest in another repository.
async fn built_and_signed_for_another(registry: &Registry, signer: &Signer) -> String {
    let built = image("copied");
    registry.push("copied", &built, "1").await;
    let payload = payload("registry.example/original", &built.digest());
    let signature = signer.sign("team", &payload);
    push_signatures(registry, "copied", &built.digest(), &[(payload, signature)], None).await;
    registry.name("copied:1")
}

/// What was here before the rule, came from an archive, or is known by several names.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_store_is_judged_when_it_is_to_be_run() {
    let node = Node::new();
    let strict = [rule(
        &node.registry.address.to_string(),
        by(&[&node.signer.public("team")], Identity::Repository, None),
    )];
    set(&node.store, &[]);
    let name = node
        .push("early", |s, name, digest| {
            let p = payload(name, digest);
            let sig = s.sign("team", &p);
            (p, sig)
        })
        .await;
    let early = node.store.pull(&name, None, None).await.unwrap();
    node.store.admit(&early, &name).unwrap();
    set(&node.store, &strict);
    for asked in [name.as_str(), early.id.as_str(), "", "other.example/early:1"] {
        let error = node.store.admit(&early, asked).expect_err(asked);
        assert_eq!(error.kind, Kind::Untrusted, "{error}");
        assert!(error.to_string().contains("pull it again"), "{error}");
    }
    // Pulled again it is verified, though nothing is fetched; and stays so across a restart and another key in the rule.
    let fetched = node.store.fetched_bytes();
    let early = node.store.pull(&name, None, None).await.unwrap();
    assert_eq!(node.store.fetched_bytes(), fetched);
    node.store.admit(&early, &name).unwrap();
    let Node { registry, signer, dir, store } = node;
    drop(store);
    let store = store_at(dir.path(), Vec::new());
    set(&store, &strict);
    let early = store.find(&name).unwrap();
    store.admit(&early, &name).unwrap();
    set(
        &store,
        &[rule(&registry.address.to_string(), by(&[&signer.public("other")], Identity::Repository, None))],
    );
    assert!(store.admit(&early, &name).is_err(), "by a key that the rule does not have any more");

    // A rule that wants more than the one that it was verified by.
    let strange = built_and_signed_for_another(&registry, &signer).await;
    let by_digest = by(&[&signer.public("team")], Identity::Digest, None);
    set(&store, &[rule(&registry.address.to_string(), by_digest)]);
    let copied = store.pull(&strange, None, None).await.unwrap();
    store.admit(&copied, &strange).unwrap();
    set(&store, &strict);
    assert!(store.admit(&copied, &strange).is_err(), "the signature names another repository");
    let error = store.pull(&strange, None, None).await.unwrap_err();
    assert!(error.to_string().contains("it is for"), "{error}");

    // Archives have no signatures: neither taken in by such a name, nor run by it if they were.
    let (free, bad) = ("free.example/app:1", registry.name("archived:1"));
    let built = image("archived");
    let config = format!("{}.json", &built.id()[7..]);
    let manifest = format!(r#"[{{"Config":"{config}","RepoTags":["{free}","{bad}"],"Layers":["l"]}}]"#);
    let archive = Tar::new()
        .file(&config, &built.config)
        .file("manifest.json", &manifest)
        .file("l", &built.tars[0])
        .end();
    let path = dir.path().join("archive.tar");
    std::fs::write(&path, archive).unwrap();
    set(&store, &strict);
    let error = store.import(&path, None).await.unwrap_err();
    assert!(error.kind == Kind::Untrusted && error.to_string().contains("archives have none"), "{error}");
    set(&store, &[]);
    let imported = store.import(&path, None).await.unwrap().images.remove(0);
    set(&store, &strict);
    assert!(store.admit(&imported, &bad).is_err());
    store.admit(&imported, free).unwrap();
    // By its id: one of its names is good enough.
    store.admit(&imported, &imported.id).unwrap();
    set(&store, &[rule("*", Demand::Reject)]);
    assert!(store.admit(&imported, &imported.id).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn explained() {
    let node = Node::new();
    let name = node
        .push("good", |s, name, digest| {
            let p = payload(name, digest);
            let sig = s.sign("team", &p);
            (p, sig)
        })
        .await;
    node.registry.push("bare", &image("x"), "1").await;
    let registries = Registries { hosts_dirs: Vec::new(), auth_file: None, parallel_layers: 1 };
    let key = node.signer.public("team");
    let (policy, _) =
        Policy::load(&[rule(&node.registry.address.to_string(), by(&[&key], Identity::Repository, None))]);
    let told = slipway_images::explain(&name, &registries, &policy).await.unwrap().policy;
    assert_eq!((told.rule, told.prefix.unwrap()), ("signed", node.registry.address.to_string()));
    assert_eq!(told.keys, [key.display().to_string()]);
    assert!(told.outcome.as_ref().is_ok_and(|text| text.contains("is signed by")), "{:?}", told.outcome);
    let told =
        slipway_images::explain(&node.registry.name("bare:1"), &registries, &policy).await.unwrap().policy;
    assert!(told.outcome.as_ref().is_err_and(|text| text.contains("none for it")), "{:?}", told.outcome);
    let told = slipway_images::explain(&name, &registries, &Policy::default()).await.unwrap().policy;
    assert_eq!((told.rule, told.prefix), ("accept", None));
}
