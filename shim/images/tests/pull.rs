//! Pulling from Debian's docker-registry on loopback: names, digests, indexes, damage, cut connections, sharing.

#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use slipway_images::{Image, Kind, Progress, Store};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::tar::Tar;
use support::{
    Built, DOCKER, INDEX, OCI, Packing, Proxy, Registry, assert_layers, build, build_as, sha256, store,
    store_at,
};

const RUN: &str = r#"{"User":"1000:5","Env":["A=b"],"Cmd":["/bin/x"],"WorkingDir":"/w","Labels":{"l":"1"}}"#;

fn base() -> Vec<u8> {
    Tar::new()
        .dir("./", 0o751, 5)
        .dir("bin/", 0o755, 0)
        .file_as("bin/tool", "a tool", 0o4755, 7)
        .dir("etc/", 0o2750, 42)
        .file("etc/passwd", "root:x:0:0::/:/bin/sh\n")
        .dir("gone/", 0o755, 0)
        .file("gone/a", "1")
        .dir("opaque/", 0o700, 3)
        .file("opaque/old", "old")
        .symlink("lib", "usr/lib")
        .dir("usr/", 0o755, 0)
        .dir("usr/lib/", 0o711, 6)
        .file("usr/lib/libold", "old lib")
        .file("replaced", "by a directory")
        .device(b'3', "null", (1, 3))
        .end()
}

fn middle() -> Vec<u8> {
    Tar::new()
        .file(".wh.gone", "")
        .dir("opaque/", 0o711, 4)
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "new")
        .file("etc/hosts", "implicit parent")
        .link("bin/tool2", "bin/tool")
        .file("lib/libnew", "through a symlink below")
        .file(".wh.replaced", "")
        .end()
}

fn top() -> Vec<u8> {
    Tar::new()
        .dir("replaced/", 0o755, 0)
        .file("replaced/inside", "x")
        .file("etc/.wh.hosts", "")
        .file("gone/b", "made anew")
        .file("usr/lib/libold", "newer")
        .end()
}

fn image() -> Built {
    build(&[(base(), Packing::Gzip), (middle(), Packing::Zstd), (top(), Packing::GzipMembers)], RUN)
}

fn kind<T: std::fmt::Debug>(result: Result<T, slipway_images::Error>) -> Kind {
    result.unwrap_err().kind
}

// CRI-IMG-02, -03, -04, -05, -07, -17, -20; IMG-REF-05, -07; IMG-BLOB-01
#[tokio::test(flavor = "multi_thread")]
async fn by_tag() {
    let registry = Registry::start();
    let built = image();
    registry.push("a/b", &built, "latest").await;
    let (dir, store) = store();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let progress = Arc::new(move |step: Progress| sink.lock().unwrap().push(step));
    let image = store.pull(&registry.name("a/b"), None, Some(progress)).await.unwrap();
    assert_eq!(image.id, built.id());
    assert_eq!(image.repo_tags, [registry.name("a/b:latest")]);
    let by_digest = registry.name(&format!("a/b@{}", built.digest()));
    assert_eq!(image.repo_digests, [by_digest.as_str()]);
    let wire: usize = built.blobs.iter().chain([&built.config, &built.manifest]).map(Vec::len).sum();
    assert_eq!(image.size, wire as u64);
    assert_eq!((image.config.user.as_str(), &image.config.env[..]), ("1000:5", &["A=b".to_owned()][..]));
    assert_eq!(image.raw_config.as_bytes(), built.config);
    assert_eq!(image.layers[0], sha256(&built.tars[0]));
    assert_eq!(image.layers[1], sha256(format!("{} {}", image.layers[0], sha256(&built.tars[1])).as_bytes()));
    let hex = &image.id[7..];
    for text in
        [&image.id[..], hex, &hex[..12], &registry.name("a/b"), &registry.name("a/b:latest"), &by_digest]
    {
        assert_eq!(store.find(text).map(|found| found.id.clone()).as_ref(), Some(&image.id), "{text}");
    }
    for text in ["", "sha256:", "zz", &registry.name("a/b:other"), "a/b"] {
        assert!(store.find(text).is_none(), "{text}");
    }
    assert_eq!(store.list().len(), 1);
    assert_layers(&dir, 3);
    let seen = seen.lock().unwrap();
    assert!(matches!(&seen[0], Progress::Resolved { layers: 3, .. }));
    assert_eq!(
        seen.iter().filter(|step| matches!(step, Progress::LayerReady { cached: false, .. })).count(),
        3
    );
    let info = store.fs_info().unwrap();
    assert!(info.used_bytes > 0 && info.inodes_used > 10 && info.mountpoint.is_dir());
}

// IMG-OVL-06, -09, -13; IMG-UNP-07, -10; IMG-WH-*: the mounted image equals what extracting in order gives.
#[tokio::test(flavor = "multi_thread")]
async fn the_mounted_image_is_what_tar_extracts() {
    let registry = Registry::start();
    let built = image();
    registry.push("a", &built, "1").await;
    let (dir, store) = store();
    let image = store.pull(&registry.name("a:1"), None, None).await.unwrap();
    let (reference, mount) = (dir.path().join("reference"), dir.path().join("mount"));
    std::fs::create_dir(&reference).unwrap();
    std::fs::create_dir(&mount).unwrap();
    support::extract_by_tar(&built.tars, &reference);
    let wanted = support::listing(&reference);
    assert!(wanted.contains("usr/lib/libnew") && wanted.contains("bin/tool2"), "{wanted}");
    let view = store.view(&image).unwrap();
    assert_eq!(support::mounted_listing(&view, &mount, ":"), wanted);

    let prepared = store.prepare(&image, "box", None).unwrap();
    assert!(prepared.volatile);
    let upper = prepared.upper.clone().unwrap();
    let root = std::fs::metadata(&upper).unwrap();
    assert_eq!((root.permissions().mode() & 0o7777, root.uid()), (0o751, 5));
    assert_eq!(support::mounted_listing(&prepared, &mount, ":"), wanted);
    // Written in the container: there again, and nothing in the layers.
    let _ = std::fs::remove_dir_all(prepared.work.as_ref().unwrap().join("work"));
    let changed = support::mounted_listing(&prepared, &mount, "echo hi > written; rm -r etc");
    assert!(changed.contains("./written") && !changed.contains("./etc"));
    assert_eq!(support::mounted_listing(&view, &mount, ":"), wanted);
    let (bytes, inodes) = store.usage("box").unwrap();
    assert!(bytes >= 4096 && inodes == 3, "{bytes} {inodes}");
}

/// A layer with implicit parents is one thing at the bottom and another over a base: never taken for each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_depends_on_its_base_is_not_shared() {
    let registry = Registry::start();
    let loose = (Tar::new().file("etc/app/conf", "x").end(), Packing::Gzip);
    let bases: Vec<_> = [0o750, 0o1711]
        .map(|mode| (Tar::new().dir("./", 0o755, 0).dir("etc/", mode, 9).end(), Packing::Gzip))
        .into();
    let (dir, store) = store();
    let mount = dir.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    for (index, base) in [None].into_iter().chain(bases.iter().map(Some)).enumerate() {
        let layers: Vec<_> = base.into_iter().chain([&loose]).cloned().collect();
        let built = build(&layers, &format!("{{\"Labels\":{{\"n\":\"{index}\"}}}}"));
        registry.push("a", &built, &index.to_string()).await;
        let image = store.pull(&registry.name(&format!("a:{index}")), None, None).await.unwrap();
        let reference = dir.path().join(index.to_string());
        std::fs::create_dir(&reference).unwrap();
        support::extract_by_tar(&built.tars, &reference);
        let seen = support::mounted_listing(&store.view(&image).unwrap(), &mount, ":");
        assert_eq!(seen, support::listing(&reference), "{index}");
    }
    assert_layers(&dir, 5);
}

// CRI-IMG-06, -08; IMG-REF-03
#[tokio::test(flavor = "multi_thread")]
async fn by_digest() {
    let registry = Registry::start();
    let built = image();
    registry.push("a", &built, "1").await;
    let (_dir, store) = store();
    let name = registry.name(&format!("a@{}", built.digest()));
    let with_tag = registry.name(&format!("a:no-such-tag@{}", built.digest()));
    let image = store.pull(&with_tag, None, None).await.unwrap();
    assert!(image.repo_tags.is_empty());
    assert_eq!(image.repo_digests, [name.as_str()]);
    assert_eq!(store.find(&with_tag).unwrap().id, image.id);
    // Then by tag: the same image, one more name.
    let again = store.pull(&registry.name("a:1"), None, None).await.unwrap();
    assert_eq!((again.id.as_str(), again.repo_tags.len()), (image.id.as_str(), 1));
    assert_eq!(again.repo_digests, [name.as_str()]);
    assert_eq!(store.list().len(), 1);
}

fn index_of(entries: &[(&Built, &str)]) -> Vec<u8> {
    let entries: Vec<String> = entries
        .iter()
        .map(|(image, platform)| {
            let (digest, size) = (image.digest(), image.manifest.len());
            format!(r#"{{"mediaType":"{}","digest":"{digest}","size":{size}{platform}}}"#, image.media_type)
        })
        .collect();
    format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#, entries.join(",")).into_bytes()
}

// IMG-MT-09, -10, -11, -12, -13; CRI-IMG-07
#[tokio::test(flavor = "multi_thread")]
async fn by_index() {
    let registry = Registry::start();
    let ours = image();
    let other = build_as(&[(base(), Packing::Plain)], "{}", OCI, "s390x");
    let attestation = build_as(&[(top(), Packing::Plain)], "{}", OCI, "unknown");
    for image in [&ours, &other, &attestation] {
        registry.push("a", image, "part").await;
    }
    let platform = |architecture: &str, os: &str| {
        format!(r#","platform":{{"architecture":"{architecture}","os":"{os}"}}"#)
    };
    let index = index_of(&[
        (&attestation, &platform("unknown", "unknown")),
        (&other, &platform("s390x", "linux")),
        (&ours, &platform("amd64", "linux")),
    ]);
    registry.push_manifest("a", &index, INDEX, "index").await;
    let outer = Built { manifest: index.clone(), media_type: INDEX, ..ours.clone() };
    registry.push_manifest("a", &index_of(&[(&outer, "")]), INDEX, "nested").await;
    registry.push_manifest("a", &index_of(&[(&other, ""), (&ours, "")]), INDEX, "silent").await;
    registry.push_manifest("a", &index_of(&[(&other, &platform("s390x", "linux"))]), INDEX, "foreign").await;

    let (_dir, store) = store();
    let image = store.pull(&registry.name("a:index"), None, None).await.unwrap();
    assert_eq!(image.id, ours.id());
    assert_eq!(image.repo_digests, [registry.name(&format!("a@{}", sha256(&index)))]);
    for tag in ["nested", "silent"] {
        assert_eq!(
            store.pull(&registry.name(&format!("a:{tag}")), None, None).await.unwrap().id,
            ours.id(),
            "{tag}"
        );
    }
    let error = store.pull(&registry.name("a:foreign"), None, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert!(error.to_string().contains("no match for platform in manifest"), "{error}");
}

// IMG-MT-01, -02; CRI-IMG-21: docker's media types; one image from two registries has one id.
#[tokio::test(flavor = "multi_thread")]
async fn docker_manifest_and_two_registries() {
    let (one, two) = (Registry::start(), Registry::start());
    let layers = [(base(), Packing::Gzip), (top(), Packing::Gzip)];
    let (docker, oci) = (build_as(&layers, RUN, DOCKER, "amd64"), build_as(&layers, RUN, OCI, "amd64"));
    one.push("x", &docker, "1").await;
    two.push("y", &oci, "2").await;
    let (dir, store) = store();
    let first = store.pull(&one.name("x:1"), None, None).await.unwrap();
    let second = store.pull(&two.name("y:2"), None, None).await.unwrap();
    assert_eq!(first.id, second.id);
    assert_eq!((second.repo_tags.len(), second.repo_digests.len(), store.list().len()), (2, 2, 1));
    // CRI-IMG-14, -15, -13: by one name all go, at once; five at once all succeed.
    let removals = (0..5).map(|_| {
        let (store, id) = (store.clone(), second.id.clone());
        tokio::spawn(async move {
            store.remove(&id).await.unwrap();
            assert!(store.find(&id).is_none());
        })
    });
    for removal in removals.collect::<Vec<_>>() {
        removal.await.unwrap();
    }
    assert!(store.list().is_empty() && store.find(&one.name("x:1")).is_none());
    store.remove("sha256:unknown").await.unwrap();
    assert_layers(&dir, 0);
}

/// A tag that moves: the new image has it, the old one keeps only its digest, also after reopening.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves() {
    let registry = Registry::start();
    let (old, new) = (
        build(&[(base(), Packing::Gzip)], "{}"),
        build(&[(base(), Packing::Gzip), (top(), Packing::Gzip)], "{}"),
    );
    let dir = tempfile::tempdir().unwrap();
    let store = store_at(dir.path(), Vec::new());
    registry.push("a", &old, "1").await;
    store.pull(&registry.name("a:1"), None, None).await.unwrap();
    registry.push("a", &new, "1").await;
    store.pull(&registry.name("a:1"), None, None).await.unwrap();
    let check = |store: &Store| {
        assert_eq!(store.find(&registry.name("a:1")).unwrap().id, new.id());
        assert!(store.find(&old.id()).unwrap().repo_tags.is_empty());
        assert_eq!(store.list().len(), 2);
    };
    check(&store);
    drop(store);
    check(&store_at(dir.path(), Vec::new()));
}

// IMG-BLOB-11, IMG-UNP-01: what is not what was promised is refused and nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_refused_and_leaves_nothing() {
    let registry = Registry::start();
    let built = image();
    registry.push("a", &built, "1").await;
    let (dir, store) = store();
    let name = registry.name("a:1");

    let blob = registry.blob_file(&sha256(&built.blobs[1]));
    let good = std::fs::read(&blob).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    std::fs::write(&blob, &bad).unwrap();
    let error = store.pull(&name, None, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::Corrupt, "{error}");
    assert!(error.to_string().contains(&name), "{error}");
    assert_layers(&dir, 0);

    std::fs::write(&blob, &good[..good.len() - 7]).unwrap();
    assert_ne!(kind(store.pull(&name, None, None).await), Kind::NotFound);
    std::fs::write(&blob, [&good[..], b"more"].concat()).unwrap();
    assert!(store.pull(&name, None, None).await.is_err());
    assert_layers(&dir, 0);
    std::fs::write(&blob, &good).unwrap();

    // A right blob whose content is not the diff id the config promises.
    let mut lying = built.clone();
    let (from, to) = (sha256(&built.tars[0]), sha256(b"else"));
    lying.config = String::from_utf8(built.config.clone()).unwrap().replace(&from, &to).into_bytes();
    let manifest = String::from_utf8(built.manifest.clone()).unwrap();
    lying.manifest = manifest.replace(&sha256(&built.config), &sha256(&lying.config)).into_bytes();
    registry.push("a", &lying, "lying").await;
    let error = store.pull(&registry.name("a:lying"), None, None).await.unwrap_err();
    assert!(error.kind == Kind::Corrupt && error.to_string().contains("diff id"), "{error}");
    // IMG-MT-14
    let mut short = built.clone();
    short.config =
        String::from_utf8(built.config.clone()).unwrap().replace(&format!("\"{from}\","), "").into_bytes();
    short.manifest = manifest
        .replace(&sha256(&built.config), &sha256(&short.config))
        .replace(
            &format!("\"size\":{}}},\"layers\"", built.config.len()),
            &format!("\"size\":{}}},\"layers\"", short.config.len()),
        )
        .into_bytes();
    registry.push("a", &short, "short").await;
    assert_eq!(kind(store.pull(&registry.name("a:short"), None, None).await), Kind::Corrupt);
    // An archive that cannot be unpacked.
    let hostile = build(&[(base(), Packing::Gzip), (Tar::new().file("../x", "").end(), Packing::Gzip)], "{}");
    registry.push("a", &hostile, "hostile").await;
    assert_eq!(kind(store.pull(&registry.name("a:hostile"), None, None).await), Kind::Corrupt);
    assert_layers(&dir, 0);
    assert!(store.list().is_empty());
    // And the store goes on.
    store.pull(&name, None, None).await.unwrap();
    assert_layers(&dir, 3);
}

/// IMG-OVL-05: no container could be made of it.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_layers_are_refused_before_one_is_fetched() {
    let registry = Registry::start();
    let built = build(&support::many_layers(500), "{}");
    registry.push("a", &built, "1").await;
    let (dir, store) = store();
    for blob in &built.blobs {
        std::fs::remove_file(registry.blob_file(&sha256(blob))).unwrap();
    }
    let error = store.pull(&registry.name("a:1"), None, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::Invalid, "a layer that was asked for would be missing: {error}");
    assert!(error.to_string().contains("500 layers") && error.to_string().contains("499 at most"), "{error}");
    assert_layers(&dir, 0);
    assert!(store.list().is_empty());
}

// IMG-RES-05, -13; CRI-IMG-25
#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_unreachable() {
    let registry = Registry::start();
    let (_dir, store) = store();
    let error = store.pull(&registry.name("nothing:here"), None, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "{error}");
    let digest = registry.name(&format!("a@sha256:{}", "0".repeat(64)));
    assert_eq!(kind(store.pull(&digest, None, None).await), Kind::NotFound);
    for bad in ["", "a/UPPER", "a b", "a@sha256:1"] {
        assert_eq!(kind(store.pull(bad, None, None).await), Kind::Invalid, "{bad}");
    }
    let address = registry.address;
    drop(registry);
    let error = store.pull(&format!("{address}/a:1"), None, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.to_string().starts_with("RegistryUnavailable"), "{error}");
}

/// Content that does not compress, so that blobs are as large as they say.
fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let step = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(step).take(length / 8 + 1).flatten().collect();
    bytes.truncate(length);
    bytes
}

// IMG-BLOB-03, -08
#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_are_resumed() {
    let registry = Registry::start();
    let built = build(&[(Tar::new().file("big", noise(4 << 20, 1)).end(), Packing::Gzip)], "{}");
    registry.push("a", &built, "1").await;
    // Each connection ends in the middle of something; together they make enough.
    let proxy = Proxy::start(registry.address, vec![1 << 20, 700_000, 1, 1 << 20, 100_000]);
    let (dir, store) = store();
    let image = store.pull(&format!("{}/a:1", proxy.address), None, None).await.unwrap();
    assert_eq!(image.id, built.id());
    assert!(proxy.connections.load(Ordering::SeqCst) >= 6);
    // Resumed, not begun anew.
    let blob = built.blobs[0].len() as u64;
    let bytes = proxy.bytes.load(Ordering::SeqCst);
    assert!(bytes < blob + (1 << 20), "{bytes} for {blob}");
    assert_layers(&dir, 1);

    // A server that always breaks off is given up, and nothing is left.
    let hopeless =
        Proxy::start(registry.address, vec![20_000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    store.remove(&image.id).await.unwrap();
    let error = store.pull(&format!("{}/a:1", hopeless.address), None, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable, "{error}");
    assert_layers(&dir, 0);
}

/// What is removed leaves the disk, and a store is closed, while a layer that takes minutes to read is being sealed.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_seal() {
    let registry = Registry::start();
    let hole = Tar::new()
        .pax("GNU.sparse.map", "0,4,400000000000,0")
        .pax("GNU.sparse.size", "400000000000")
        .pax("GNU.sparse.name", "hole")
        .file("GNUSparseFile.0/hole", "head")
        .end();
    registry.push("sparse", &build(&[(hole, Packing::Gzip)], "{}"), "1").await;
    registry.push("small", &build(&[(Tar::new().file("f", "x").end(), Packing::Gzip)], "{}"), "1").await;
    let (dir, store) = store();
    store.pull(&registry.name("sparse:1"), None, None).await.unwrap();
    let small = store.pull(&registry.name("small:1"), None, None).await.unwrap();
    store.remove(&small.id).await.unwrap();
    assert_layers(&dir, 1);
    let start = Instant::now();
    drop(store);
    assert!(start.elapsed() < Duration::from_secs(20), "closing took {:?}", start.elapsed());
}

// IMG-BLOB-09, IMG-CHAIN-04: images that share layers, at once: each blob over the wire once.
#[tokio::test(flavor = "multi_thread")]
async fn shared_layers_are_fetched_once() {
    let registry = Registry::start();
    let shared = (Tar::new().file("big", noise(3 << 20, 2)).end(), Packing::Gzip);
    let one = build(&[shared.clone(), (base(), Packing::Gzip), (middle(), Packing::Gzip)], "{}");
    let two = build(&[shared.clone(), (base(), Packing::Gzip), (top(), Packing::Gzip)], "{}");
    // The same layer, elsewhere in the stack.
    let three = build(&[(base(), Packing::Gzip), shared.clone()], "{}");
    for (image, tag) in [(&one, "1"), (&two, "2"), (&three, "3")] {
        registry.push("a", image, tag).await;
    }
    let proxy = Proxy::start(registry.address, Vec::new());
    let (dir, store) = store();
    let pull = |tag: &str| {
        let (store, name) = (store.clone(), format!("{}/a:{tag}", proxy.address));
        tokio::spawn(async move { store.pull(&name, None, None).await.unwrap() })
    };
    let pulls: Vec<_> = ["1", "1", "2", "3", "2"].into_iter().map(pull).collect();
    for pull in pulls {
        pull.await.unwrap();
    }
    let bytes = proxy.bytes.load(Ordering::SeqCst);
    assert!(bytes < one.blobs[0].len() as u64 + (1 << 20), "{bytes} bytes");
    assert_eq!(store.list().len(), 3);
    // Shared, base, and one of middle and top each.
    assert_layers(&dir, 4);
    // IMG-BLOB-10: here already, under another name: nothing but HEADs.
    let before = proxy.bytes.load(Ordering::SeqCst);
    pull("1").await.unwrap();
    assert!(proxy.bytes.load(Ordering::SeqCst) - before < 2000);
}

/// Dropping a pull undoes it; dropping one of two waiters disturbs nobody.
#[tokio::test(flavor = "multi_thread")]
async fn cancelling() {
    let registry = Registry::start();
    let built = build(
        &[(Tar::new().file("big", noise(8 << 20, 3)).end(), Packing::Gzip), (base(), Packing::Gzip)],
        "{}",
    );
    registry.push("a", &built, "1").await;
    let (dir, store) = store();
    let name = registry.name("a:1");
    for wait in [0, 2, 5, 10, 20, 40] {
        let _ = tokio::time::timeout(Duration::from_millis(wait), store.pull(&name, None, None)).await;
    }
    if store.list().is_empty() {
        assert_layers(&dir, 0);
    }
    for image in store.list() {
        store.remove(&image.id).await.unwrap();
    }
    let patient = {
        let (store, name) = (store.clone(), name.clone());
        tokio::spawn(async move { store.pull(&name, None, None).await })
    };
    let _ = tokio::time::timeout(Duration::from_millis(10), store.pull(&name, None, None)).await;
    assert_eq!(patient.await.unwrap().unwrap().id, built.id());
    assert_layers(&dir, 2);
}

// CRI-IMG-16, IMG-GC-04
#[tokio::test(flavor = "multi_thread")]
async fn layers_in_use_outlive_their_image() {
    let registry = Registry::start();
    registry.push("a", &image(), "1").await;
    let dir = tempfile::tempdir().unwrap();
    let store = store_at(dir.path(), Vec::new());
    let image: Arc<Image> = store.pull(&registry.name("a:1"), None, None).await.unwrap();
    let overlay = store.prepare(&image, "c1", None).unwrap();
    assert_eq!(kind(store.prepare(&image, "c1", None)), Kind::Invalid);
    assert_eq!(kind(store.prepare(&image, "../c2", None)), Kind::Invalid);
    store.remove(&image.id).await.unwrap();
    assert!(store.list().is_empty());
    assert!(overlay.lower.iter().all(|layer| layer.is_dir()));
    assert_eq!(kind(store.prepare(&image, "c2", None)), Kind::NotFound);
    assert_eq!(kind(store.view(&image)), Kind::NotFound);
    // Also after the daemon was started again.
    drop(store);
    let store = store_at(dir.path(), Vec::new());
    assert_eq!(store.owners(), ["c1"]);
    assert!(overlay.lower.iter().all(|layer| layer.is_dir()));
    store.release("c1").unwrap();
    store.release("c1").unwrap();
    assert!(store.owners().is_empty());
    assert_eq!(kind(store.usage("c1")), Kind::NotFound);
    assert_layers(&dir, 0);
    assert!(!Path::new(overlay.upper.as_ref().unwrap()).exists());
}
