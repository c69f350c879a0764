//! Stores that were not closed: half-made things, damaged records, power cuts, kill -9 in the middle of a pull.

#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use slipway_images::{Options, Registries, Store};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::tar::Tar;
use support::{Built, Packing, Registry, assert_layers, build, store_at};

fn image(content: &str) -> Built {
    let base = Tar::new().dir("d/", 0o700, 1).file("d/f", "base").end();
    build(&[(base, Packing::Gzip), (Tar::new().file("d/g", content).end(), Packing::Gzip)], "{}")
}

fn only_file(dir: &Path, suffix: &str) -> std::path::PathBuf {
    let mut found = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.to_string_lossy().ends_with(suffix));
    found.next().unwrap()
}

/// The janitor has brought everything to the disk.
fn wait_synced(root: &Path) {
    let unsynced = || {
        std::fs::read_dir(root.join("layers")).unwrap().any(|entry| {
            let path = entry.unwrap().path();
            path.is_file() && !std::fs::read_to_string(path).unwrap().contains(r#""unsynced_in_boot":null"#)
        })
    };
    let until = Instant::now() + Duration::from_secs(60);
    while unsynced() {
        assert!(Instant::now() < until, "layers are never marked as synced");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_set_aside_by_name() {
    let registry = Registry::start();
    let (one, two) = (image("one"), image("two"));
    registry.push("a", &one, "1").await;
    registry.push("a", &two, "2").await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = store_at(dir.path(), Vec::new());
    let first = store.pull(&registry.name("a:1"), None, None).await.unwrap();
    store.pull(&registry.name("a:2"), None, None).await.unwrap();
    store.prepare(&first, "c1", None).unwrap();
    wait_synced(&root);
    // One process at a time.
    let again = Store::open(Options {
        root: root.clone(),
        registries: Registries { hosts_dirs: Vec::new(), auth_file: None, parallel_layers: 1 },
        policy: Default::default(),
    });
    assert!(again.unwrap_err().to_string().contains("another process"));
    drop(store);

    std::fs::create_dir_all(root.join("tmp/half/made")).unwrap();
    std::fs::create_dir_all(root.join("layers").join("0".repeat(64))).unwrap();
    std::fs::create_dir_all(root.join("trash/old/deep")).unwrap();
    let record = root.join("images").join(format!("{}.json", &two.id()[7..]));
    std::fs::write(&record, "{ half").unwrap();
    std::fs::write(root.join("images/future.json"), r#"{"version":99}"#).unwrap();
    let store = store_at(dir.path(), Vec::new());
    assert_eq!(store.list().len(), 1);
    assert_eq!(store.list()[0].id, one.id());
    assert_eq!(std::fs::read_dir(root.join("damaged")).unwrap().count(), 2);
    assert_eq!(store.owners(), ["c1"]);
    assert_layers(&dir, 2);
    // A record whose config was changed is not believed.
    drop(store);
    let record = root.join("images").join(format!("{}.json", &one.id()[7..]));
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace("amd64", "arm64")).unwrap();
    let store = store_at(dir.path(), Vec::new());
    assert!(store.list().is_empty());
    // The container's layers stay.
    assert_layers(&dir, 2);
    store.release("c1").unwrap();
    assert_layers(&dir, 0);
}

/// What the disk does not give: read(2) fails.
fn make_unreadable(record: &Path, way: &str) {
    std::fs::remove_file(record).unwrap();
    match way {
        "EISDIR" => std::fs::create_dir_all(record.join("x")).unwrap(),
        "ELOOP" => std::os::unix::fs::symlink(record, record).unwrap(),
        "ENOENT" => std::os::unix::fs::symlink("absent", record).unwrap(),
        _ => std::fs::write(record, b"\xff\xfe\0").unwrap(),
    }
}

/// Names in damaged/, without what makes them unique.
fn set_aside(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root.join("damaged")).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = entries.map(|entry| name(entry).rsplit('-').next().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// One record that cannot be read, of each kind and in each way: the store opens, the rest goes on, the record is kept under
/// its name, and what it was of can be had again.
#[tokio::test(flavor = "multi_thread")]
async fn unreadable_records_are_set_aside_and_never_fatal() {
    let registry = Registry::start();
    let (lost, other) = (image("lost"), image("other"));
    registry.push("a", &lost, "1").await;
    registry.push("a", &other, "2").await;
    for way in ["EISDIR", "ELOOP", "ENOENT", "no text"] {
        // Of the image; of the layer that only this image has; of a writable layer.
        for kind in ["image", "layer", "owner"] {
            let what = format!("{kind}, {way}");
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("store");
            let store = store_at(dir.path(), Vec::new());
            let kept = store.pull(&registry.name("a:2"), None, None).await.unwrap();
            let before: Vec<_> = layer_records(&root);
            let image = store.pull(&registry.name("a:1"), None, None).await.unwrap();
            store.prepare(&image, "c1", None).unwrap();
            wait_synced(&root);
            drop(store);
            let layer = layer_records(&root).into_iter().find(|path| !before.contains(path)).unwrap();
            let record = match kind {
                "image" => root.join("images").join(format!("{}.json", &lost.id()[7..])),
                "layer" => layer,
                _ => root.join("containers/c1/owner.json"),
            };
            make_unreadable(&record, way);

            let store = store_at(dir.path(), Vec::new());
            let images = store.list();
            assert!(images.iter().any(|image| image.id == kept.id), "{what}");
            assert_eq!(images.len(), if kind == "owner" { 2 } else { 1 }, "{what}");
            // A layer's record takes its image along, as that cannot be mounted any more.
            let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
            let mut named = match kind {
                "owner" => Vec::new(),
                "layer" => vec![name(&record), format!("{}.json", &lost.id()[7..])],
                _ => vec![name(&record)],
            };
            named.sort();
            assert_eq!(set_aside(&root), named, "{what}");
            assert_eq!(store.owners(), ["c1"], "{what}: the daemon can still release it");
            store.release("c1").unwrap();
            let again = store.pull(&registry.name("a:1"), None, None).await.unwrap();
            store.prepare(&again, "c2", None).unwrap();
            store.release("c2").unwrap();
            assert_layers(&dir, 3);
            drop(store);
            // And it is done once.
            let store = store_at(dir.path(), Vec::new());
            assert_eq!((store.list().len(), set_aside(&root)), (2, named), "{what}");
        }
    }
}

fn layer_records(root: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(root.join("layers")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
}

// IMG-CHAIN-03: after a power cut only what had reached the disk counts.
#[tokio::test(flavor = "multi_thread")]
async fn layers_of_another_boot_count_only_if_synced() {
    let registry = Registry::start();
    registry.push("a", &image("x"), "1").await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = store_at(dir.path(), Vec::new());
    store.pull(&registry.name("a:1"), None, None).await.unwrap();
    wait_synced(&root);
    drop(store);
    assert_eq!(store_at(dir.path(), Vec::new()).list().len(), 1);

    let record = only_file(&root.join("layers"), ".json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace(r#""unsynced_in_boot":null"#, r#""unsynced_in_boot":"another""#))
        .unwrap();
    let store = store_at(dir.path(), Vec::new());
    assert!(store.list().is_empty());
    assert_layers(&dir, 0);
    // And can be had again.
    store.pull(&registry.name("a:1"), None, None).await.unwrap();
    assert_layers(&dir, 2);
}

/// Not a test of its own: what the next one kills.
#[tokio::test(flavor = "multi_thread")]
async fn child_of_the_kill_test() {
    let (Ok(dir), Ok(name)) = (std::env::var("SLIPWAY_TEST_STORE"), std::env::var("SLIPWAY_TEST_IMAGE"))
    else {
        return;
    };
    let store = store_at(Path::new(&dir), Vec::new());
    loop {
        let image = store.pull(&name, None, None).await.unwrap();
        store.prepare(&image, "c1", None).unwrap();
        store.release("c1").unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        store.remove(&image.id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment() {
    let registry = Registry::start();
    let layers: Vec<_> = (0..6u8)
        .map(|n| {
            (
                Tar::new().file(&format!("d/f{n}"), vec![n; 200_000]).link(&format!("l{n}"), "d/f0").end(),
                Packing::Gzip,
            )
        })
        .collect();
    let built = build(&layers, "{}");
    registry.push("a", &built, "1").await;
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let mut wanted: Option<String> = None;
    let (mut whole, mut absent) = (0, 0);
    // Until both have been met some times.
    for round in 0..100u64 {
        if round >= 12 && whole >= 3 && absent >= 3 {
            break;
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_of_the_kill_test"])
            .env("SLIPWAY_TEST_STORE", dir.path())
            .env("SLIPWAY_TEST_IMAGE", registry.name("a:1"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Later rounds wait longer: a busy machine may need a second for what takes a tenth at rest.
        tokio::time::sleep(Duration::from_millis((60 + round * 37 % 300) * (1 + round / 12))).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let store = store_at(dir.path(), Vec::new());
        let damaged = std::fs::read_dir(dir.path().join("store/damaged")).unwrap().count();
        assert_eq!(damaged, 0, "round {round}");
        if let Some(image) = store.list().first() {
            assert_layers(&dir, 6);
            let seen = support::mounted_listing(&store.view(image).unwrap(), &mount, ":");
            assert_eq!(wanted.get_or_insert_with(|| seen.clone()), &seen, "round {round}");
            whole += 1;
        } else {
            absent += 1;
            // A container that was being made holds the layers of an image that is gone.
            assert_layers(&dir, if store.owners().is_empty() { 0 } else { 6 });
        }
        for owner in store.owners() {
            store.release(&owner).unwrap();
        }
    }
    println!("image whole in {whole}, absent in {absent} rounds");
    assert!(whole > 0 && absent > 0);
}

/// A container may leave a tree deeper than descriptors or stack allow.
#[tokio::test(flavor = "multi_thread")]
async fn deep_trees_are_deleted() {
    let registry = Registry::start();
    registry.push("a", &image("x"), "1").await;
    let (dir, store) = support::store();
    let image = store.pull(&registry.name("a:1"), None, None).await.unwrap();
    let overlay = store.prepare(&image, "c1", None).unwrap();
    let mut at = std::fs::File::open(overlay.upper.unwrap()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "d", rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        at = rustix::fs::openat(&at, "d", flags, rustix::fs::Mode::empty()).unwrap().into();
    }
    drop(at);
    store.release("c1").unwrap();
    store.remove(&image.id).await.unwrap();
    assert_layers(&dir, 0);
}
