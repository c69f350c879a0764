//! OCI artifacts from Debian's docker-registry on loopback, and images that would like to be taken for one.

#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use slipway_images::Kind;
use support::tar::Tar;
use support::{OCI, Registry, assert_layers, sha256, store, store_at};

/// An artifact's blobs are files, by their titles or digests; two are not one for sharing the empty config.
#[tokio::test(flavor = "multi_thread")]
async fn artifacts_are_files() {
    let registry = Registry::start();
    let (weights, card) = (vec![7u8; 3 << 20], b"a model".to_vec());
    let empty = b"{}".to_vec();
    let descriptor = |kind: &str, bytes: &[u8], title: &str| {
        let mut descriptor =
            serde_json::json!({"mediaType": kind, "digest": sha256(bytes), "size": bytes.len()});
        if !title.is_empty() {
            descriptor["annotations"] = serde_json::json!({"org.opencontainers.image.title": title});
        }
        descriptor
    };
    let artifact = |kind: &str, title: &str| {
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI, "artifactType": "application/vnd.test.model",
            "config": descriptor(kind, &empty, ""),
            "layers": [descriptor("application/octet-stream", &weights, title), descriptor("text/plain", &card, "")],
        });
        serde_json::to_vec(&manifest).unwrap()
    };
    for blob in [&weights, &card, &empty] {
        registry.push_blob("model", blob).await;
    }
    let nested = artifact("application/vnd.oci.empty.v1+json", "models/weights.bin");
    registry.push_manifest("model", &nested, OCI, "1").await;
    registry.push_manifest("model", &artifact("application/x-helm", "flat"), OCI, "2").await;
    registry.push_manifest("model", &artifact("application/x-helm", "../out"), OCI, "bad").await;
    let (dir, store) = store();
    let image = store.pull(&registry.name("model:1"), None, None).await.unwrap();
    assert!(image.is_artifact);
    assert!(image.repo_digests[0].ends_with(&sha256(&nested)), "{image:?}");
    let mount = dir.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let seen = support::mounted_listing(&store.view(&image).unwrap(), &mount, ":");
    for (path, content) in [("models/weights.bin", &weights), (&sha256(&card)[7..], &card)] {
        assert!(seen.contains(&format!("f ./{path} 644 0 0 {} 1 ", content.len())), "{seen}");
        assert!(seen.contains(&format!("{}  ./{path}", &sha256(content)[7..])), "{seen}");
    }
    assert_layers(&dir, 2);
    // The same blob by another name is another file; the other one is shared.
    let other = store.pull(&registry.name("model:2"), None, None).await.unwrap();
    assert_layers(&dir, 3);
    assert_ne!(other.id, image.id);
    let error = store.pull(&registry.name("model:bad"), None, None).await.unwrap_err().to_string();
    assert!(error.contains("../out") && error.contains("relative path"), "{error}");
    drop(store);
    let store = store_at(dir.path(), Vec::new());
    assert!(store.find(&image.id).is_some_and(|found| found.is_artifact), "after a restart, too");
    store.remove(&image.id).await.unwrap();
    store.remove(&other.id).await.unwrap();
    assert_layers(&dir, 0);
}

/// What a publisher writes into a config makes no artifact of an image: then a blob could be kept by the name of a layer that
/// it is not, and others' images would stand on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_config_cannot_say_that_it_is_an_artifact() {
    let registry = Registry::start();
    let foreign = sha256(&Tar::new().file("base", "of others").end());
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64", "io.slipway.artifact": true, "is_artifact": true,
        "rootfs": {"type": "layers", "diff_ids": [foreign]},
    });
    let (config, blob) = (config.to_string().into_bytes(), b"/evil.so\n".to_vec());
    for data in [&config, &blob] {
        registry.push_blob("evil", data).await;
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI, "artifactType": "application/x",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(&config), "size": config.len()},
        "layers": [{"mediaType": "text/plain", "digest": sha256(&blob), "size": blob.len(),
                    "annotations": {"org.opencontainers.image.title": "etc/ld.so.preload"}}],
    });
    registry.push_manifest("evil", manifest.to_string().as_bytes(), OCI, "1").await;
    let (dir, store) = store();
    let error = store.pull(&registry.name("evil:1"), None, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::Corrupt, "{error}");
    assert_layers(&dir, 0);
}
