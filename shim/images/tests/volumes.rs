//! `VOLUME`s: copied with all that makes a file what it is, beside the writable layer, and gone with it.

#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use support::tar::Tar;
use support::{Packing, Registry, build, store_at};

#[tokio::test(flavor = "multi_thread")]
async fn volumes_have_what_the_image_has_there() {
    let registry = Registry::start();
    let low = Tar::new()
        .dir("data/", 0o750, 7)
        .file_as("data/gone", "x", 0o600, 7)
        .file_as("data/suid", "s", 0o4755, 8)
        .dir("data/sub/", 0o1777, 9)
        .file("data/sub/f", "deep")
        .symlink("data/link", "/etc/passwd")
        .symlink("way", "/data")
        .file("plain", "no directory")
        .device(b'6', "data/fifo", (0, 0))
        .end();
    let high = Tar::new().file("data/.wh.gone", "").end();
    let built = build(&[(low, Packing::Gzip), (high, Packing::Gzip)], "{}");
    registry.push("a", &built, "1").await;
    let dir = tempfile::tempdir().unwrap();
    let store = store_at(dir.path(), Vec::new());
    let image = store.pull(&registry.name("a:1"), None, None).await.unwrap();
    store.prepare(&image, "c1").unwrap();
    let wanted = ["/data".to_owned(), "/new/here".into(), "/way".into()];
    let volumes = store.volumes(&image, "c1", &wanted).unwrap();
    let [data, new, way] = volumes.as_slice() else { panic!("{volumes:?}") };

    let meta = |path: &str| fs::symlink_metadata(data.join(path)).unwrap();
    assert_eq!((meta("").permissions().mode() & 0o7777, meta("").uid()), (0o750, 7));
    assert_eq!((meta("suid").permissions().mode() & 0o7777, meta("suid").uid()), (0o4755, 8));
    assert_eq!((meta("sub").permissions().mode() & 0o7777, meta("sub").uid()), (0o1777, 9));
    assert_eq!(fs::read_to_string(data.join("sub/f")).unwrap(), "deep");
    assert_eq!(fs::read_link(data.join("link")).unwrap().to_str(), Some("/etc/passwd"));
    assert!(meta("fifo").file_type().is_fifo());
    assert!(!data.join("gone").exists(), "a whiteout of a higher layer counts");
    assert_eq!(fs::read_dir(new).unwrap().count(), 0, "what the image does not have is empty");
    assert_eq!(fs::read_to_string(way.join("sub/f")).unwrap(), "deep", "links are resolved inside the image");
    let error = store.prepare(&image, "c2").and_then(|_| store.volumes(&image, "c2", &["/plain".into()]));
    assert!(error.unwrap_err().to_string().contains("/plain"));

    let held = store.hold_view(&image, "pod.view").unwrap();
    assert_eq!(store.hold_view(&image, "pod.view").unwrap(), held, "twice is once");
    for owner in ["c1", "c2"] {
        store.release(owner).unwrap();
    }
    assert!(!data.exists());
    store.remove(&image.id).await.unwrap();
    assert!(held.lower.iter().all(|layer| layer.is_dir()), "layers stay while they are held");
    store.release("pod.view").unwrap();
    assert!(store.owners().is_empty());
}
