//! Damage below the store's feet: found, told, pulled again, and never under a container.

#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use slipway_images::{Store, Verdict};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::tar::Tar;
use support::{Built, Packing, Registry, build, store_at};

fn image() -> Built {
    let base = Tar::new().dir("d/", 0o755, 1).file("d/base", "base").end();
    build(&[(base, Packing::Gzip), (Tar::new().file("top", "as it was").end(), Packing::Gzip)], "{}")
}

/// Until the janitor has taken the layers' digests.
fn wait_sealed(root: &Path) {
    let open = || {
        fs::read_dir(root.join("layers")).unwrap().any(|entry| {
            let path = entry.unwrap().path();
            let is_record = path.extension().is_some_and(|e| e == "json");
            is_record && !fs::read_to_string(path).unwrap_or_default().contains(r#""seal":"sha256:"#)
        })
    };
    let until = Instant::now() + Duration::from_secs(60);
    while open() {
        assert!(Instant::now() < until, "layers are never sealed");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The file `name` of whichever layer has it.
fn file(root: &Path, name: &str) -> PathBuf {
    let mut layers = fs::read_dir(root.join("layers")).unwrap().map(|entry| entry.unwrap().path().join(name));
    layers.find(|path| path.is_file()).unwrap()
}

/// Other bytes, everything else as it was: what a bad disk does.
fn damage(path: &Path) {
    let time = fs::metadata(path).unwrap().modified().unwrap();
    fs::write(path, "as it wAs").unwrap();
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

async fn verdicts(store: &Store, repair: bool) -> Vec<Verdict> {
    let mut found: Vec<_> = store.verify(&[], repair).await.unwrap().into_iter().map(|v| v.verdict).collect();
    found.sort_by_key(|verdict| *verdict == Verdict::Intact);
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_and_pulled_again() {
    let registry = Registry::start();
    let built = image();
    registry.push("a", &built, "1").await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = store_at(dir.path(), Vec::new());
    let name = registry.name("a:1");
    let image = store.pull(&name, None, None).await.unwrap();
    wait_sealed(&root);
    assert_eq!(verdicts(&store, true).await, [Verdict::Intact, Verdict::Intact]);

    damage(&file(&root, "top"));
    assert_eq!(verdicts(&store, false).await, [Verdict::Damaged, Verdict::Intact]);
    let told = store.verify(std::slice::from_ref(&name), false).await.unwrap();
    assert!(told.iter().all(|layer| layer.images == [name.as_str()]), "{told:?}");
    assert!(store.verify(&["reg.example/none:1".into()], false).await.is_err());

    // A container stands on it.
    store.prepare(&image, "c1", None).unwrap();
    let [Verdict::Broken(why), Verdict::Intact] = &verdicts(&store, true).await[..] else {
        panic!("repaired")
    };
    assert!(why.contains("in use by c1"), "{why}");
    assert_eq!(fs::read_to_string(file(&root, "top")).unwrap(), "as it wAs");
    store.release("c1").unwrap();

    assert_eq!(verdicts(&store, true).await, [Verdict::Repaired, Verdict::Intact]);
    assert_eq!(fs::read_to_string(file(&root, "top")).unwrap(), "as it was");
    assert_eq!(store.list().len(), 1);
    wait_sealed(&root);
    assert_eq!(verdicts(&store, false).await, [Verdict::Intact, Verdict::Intact]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_gone_leaves_what_there_is() {
    let registry = Registry::start();
    registry.push("a", &image(), "1").await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = store_at(dir.path(), Vec::new());
    store.pull(&registry.name("a:1"), None, None).await.unwrap();
    wait_sealed(&root);
    drop(registry);
    damage(&file(&root, "top"));
    let [Verdict::Broken(_), Verdict::Intact] = &verdicts(&store, true).await[..] else { panic!("repaired") };
    assert_eq!(store.list().len(), 1, "the image is not lost");
    assert!(file(&root, "top").is_file());
}

/// A machine that went down: its layers are looked at without being asked, and the next pull gets the damaged one again.
#[tokio::test(flavor = "multi_thread")]
async fn after_an_unclean_stop() {
    let registry = Registry::start();
    let built = image();
    registry.push("a", &built, "1").await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = store_at(dir.path(), Vec::new());
    store.pull(&registry.name("a:1"), None, None).await.unwrap();
    wait_sealed(&root);
    assert!(root.join("open").is_file());
    drop(store);
    assert!(!root.join("open").exists(), "a clean stop");

    damage(&file(&root, "top"));
    fs::write(root.join("open"), "some other boot").unwrap();
    let store = store_at(dir.path(), Vec::new());
    let until = Instant::now() + Duration::from_secs(60);
    while store.fetched_bytes() == 0 {
        assert!(Instant::now() < until, "the damage was never found");
        store.pull(&registry.name("a:1"), None, None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(fs::read_to_string(file(&root, "top")).unwrap(), "as it was");
}
