//! Export: what is imported again (by us, by containerd) has the same files, whatever the layers are made of.

#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use slipway_images::{Image, Kind, Store};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::tar::{Head, Tar};
use support::{Built, OCI, Packing, Registry, assert_layers, build, sha256, store};
use tempfile::TempDir;

/// All that a layer can hold, in three layers that depend on each other.
fn everything() -> Built {
    let long = "a-long-name/".repeat(20) + "file";
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let base = Tar::new()
        .dir("./", 0o750, 3)
        .dir("bin/", 0o755, 0)
        .file_as("bin/suid", "suid", 0o4755, 7)
        .pax("SCHILY.xattr.security.capability", capability)
        .file("bin/ping", "capable")
        .pax("SCHILY.xattr.user.note", "of a file")
        .pax("mtime", "1500000000.123456789")
        .file("noted", "times and notes")
        .link("bin/hard", "noted")
        .symlink("bin/soft", "../noted")
        .symlink("lib", "usr/lib")
        .dir("usr/", 0o755, 0)
        .dir("usr/lib/", 0o711, 5)
        .file("usr/lib/old", "old")
        .file("gone", "gone")
        .dir("full/", 0o1777, 9)
        .file("full/a", "a")
        .file("full/b", "b")
        .device(b'3', "null", (1, 3))
        .device(b'4', "disk", (7, 0))
        .device(b'6', "pipe", (0, 0))
        .entry(Head { mtime: 1, ..Head::new(b'5', "old-times/") }, &[])
        .entry(
            Head { uid: 2_000_000, gid: 2_000_001, mode: 0o600, size: 3, ..Head::new(b'0', "big-ids") },
            b"ids",
        )
        .file(&long[long.len() - 99..], "long enough")
        .pax("path", &long)
        .file("short", "in a deep directory")
        .end();
    let middle = Tar::new()
        .file(".wh.gone", "")
        .dir("full/", 0o755, 1)
        .file("full/.wh..wh..opq", "")
        .file("full/c", "new")
        // Behind a link of the layer below, with a parent that this layer does not speak of; and a link to a file below.
        .file("lib/new", "through a link")
        .link("usr/again", "usr/lib/old")
        .end();
    let top = Tar::new().file("usr/lib/top", "top").file(".wh.null", "").dir("empty/", 0o700, 0).end();
    let run = r#"{"Env":["A=b"],"Cmd":["/x"],"Labels":{"l":"v"}}"#;
    build(&[(base, Packing::Gzip), (middle, Packing::Zstd), (top, Packing::Plain)], run)
}

fn files(dir: &TempDir, store: &Store, image: &Image) -> String {
    let mount = dir.path().join(format!("mount-{}", &image.id[7..19]));
    std::fs::create_dir_all(&mount).unwrap();
    support::mounted_listing(&store.view(image).unwrap(), &mount, XATTRS)
}

/// Before the listing: names of extended attributes, and the sum of a tar with all that GNU tar knows of files (but of the root:
/// its times are the store's).
const XATTRS: &str = "t() { tar --sort=name --numeric-owner --format=pax --xattrs --xattrs-include='*' \\
  --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime -cf - -- $(ls -A); }; \\
  t | tar --xattrs --xattrs-include='*' -tvvf - | grep -E '^ +x: ' | sort; t | sha256sum";

fn export(store: &Store, images: &[&str], path: &Path) -> slipway_images::Result<()> {
    let images: Vec<String> = images.iter().map(|&name| name.to_owned()).collect();
    store.export(&images, &mut std::fs::File::create(path).unwrap())
}

async fn pulled(registry: &Registry, built: &Built, store: &Store, name: &str) -> std::sync::Arc<Image> {
    registry.push(name, built, "1").await;
    store.pull(&registry.name(&format!("{name}:1")), None, None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_is_what_went_out() {
    let registry = Registry::start();
    let (dir, source) = store();
    let (image, name) = (pulled(&registry, &everything(), &source, "all").await, registry.name("all:1"));
    let before = files(&dir, &source, &image);
    for word in [
        "user.note",
        "security.capability",
        "1500000000.123456789",
        "./usr/lib/new",
        "./usr/again",
        "c ./null",
    ] {
        assert_eq!(before.contains(word), word != "c ./null", "{word}: {before}");
    }
    let archive = dir.path().join("archive.tar");
    export(&source, &[&name], &archive).unwrap();
    let (other_dir, other) = store();
    let imported = other.import(&archive, None).await.unwrap().images;
    assert_eq!(imported.len(), 1);
    assert_eq!(imported[0].repo_tags, [name.as_str()]);
    assert_eq!(imported[0].config, image.config);
    assert_ne!(imported[0].id, image.id, "layers are packed anew, and so it is another image");
    assert_eq!(files(&other_dir, &other, &imported[0]), before);

    // The same bytes again, also from there; and each tar is one that GNU tar understands.
    let again = dir.path().join("again.tar");
    export(&source, &[&name], &again).unwrap();
    assert!(std::fs::read(&archive).unwrap() == std::fs::read(&again).unwrap());
    export(&other, &[&name], &again).unwrap();
    let difference = || {
        let script = "for a in \"$1\" \"$2\"; do for b in $(tar -tf $a | grep blobs/); do \\
            tar -xOf $a $b | (tar --full-time --xattrs --xattrs-include='*' -tvvf - 2>/dev/null || true); done >$a.list; done; diff $1.list $2.list";
        let said = Command::new("sh").args(["-c", script, "sh"]).args([&archive, &again]).output().unwrap();
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    let is_same = std::fs::read(&archive).unwrap() == std::fs::read(&again).unwrap();
    assert!(is_same, "what was imported is exported as it was: {}", difference());
    let unpacked = unpacked(&archive, dir.path());
    let tars = blobs(&unpacked).into_iter().filter(|blob| is_tar(blob));
    for blob in tars {
        let listed = Command::new("tar").arg("-tvf").arg(&blob).output().unwrap();
        assert!(
            listed.status.success() && listed.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&listed.stderr)
        );
    }

    // By id: all names. Several images share what they share.
    source.import(&archive, None).await.unwrap();
    let small = build(&[(Tar::new().file("f", "x").end(), Packing::Gzip)], "{}");
    let small = pulled(&registry, &small, &source, "small").await;
    export(&source, &[&small.id, &name], &again).unwrap();
    let (_both_dir, both) = store();
    let mut names: Vec<_> =
        both.import(&again, None).await.unwrap().images.iter().flat_map(|i| i.repo_tags.clone()).collect();
    names.sort();
    assert_eq!(names, [name, registry.name("small:1")]);
}

fn unpacked(archive: &Path, dir: &Path) -> PathBuf {
    let into = dir.join("unpacked");
    std::fs::create_dir(&into).unwrap();
    assert!(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&into).status().unwrap().success());
    into
}

fn blobs(layout: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let all: Vec<_> = all.map(|entry| entry.unwrap().path()).collect();
    for blob in &all {
        let digest = sha256(&std::fs::read(blob).unwrap());
        assert!(blob.ends_with(&digest[7..]), "{} is {digest}", blob.display());
    }
    all
}

fn is_tar(blob: &Path) -> bool {
    !std::fs::read(blob).unwrap().starts_with(b"{")
}

/// Holes stay holes: a file of 400 MiB takes no 400 MiB in the archive.
#[tokio::test(flavor = "multi_thread")]
async fn holes_are_not_written_out() {
    let registry = Registry::start();
    let (dir, source) = store();
    let made = dir.path().join("made");
    std::fs::create_dir(&made).unwrap();
    let file = std::fs::File::create(made.join("sparse")).unwrap();
    file.write_all_at(b"beginning", 0).unwrap();
    file.write_all_at(b"middle", 300 << 20).unwrap();
    file.set_len(400 << 20).unwrap();
    std::fs::File::create(made.join("hole")).unwrap().set_len(64 << 20).unwrap();
    let tar = Command::new("tar")
        .args(["-S", "--format=pax", "-cf", "-", "-C"])
        .arg(&made)
        .arg(".")
        .output()
        .unwrap();
    let image = pulled(&registry, &build(&[(tar.stdout, Packing::Gzip)], "{}"), &source, "holes").await;
    let before = files(&dir, &source, &image);
    let archive = dir.path().join("archive.tar");
    export(&source, &[&image.id], &archive).unwrap();
    assert!(std::fs::metadata(&archive).unwrap().len() < 1 << 20);
    let (other_dir, other) = store();
    let imported = other.import(&archive, None).await.unwrap().images;
    assert_eq!(files(&other_dir, &other, &imported[0]), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_keep_their_files_and_blobs() {
    let registry = Registry::start();
    let (content, empty) = (vec![3u8; 100_000], b"{}".to_vec());
    for blob in [&content, &empty] {
        registry.push_blob("model", blob).await;
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI, "artifactType": "application/x-model",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(&empty), "size": 2},
        "layers": [{"mediaType": "application/x-weights", "digest": sha256(&content), "size": content.len(),
                    "annotations": {"org.opencontainers.image.title": "models/weights.bin"}}],
    })
    .to_string();
    registry.push_manifest("model", manifest.as_bytes(), OCI, "1").await;
    let (dir, source) = store();
    let name = registry.name("model:1");
    let artifact = source.pull(&name, None, None).await.unwrap();
    let image = pulled(
        &registry,
        &build(&[(Tar::new().file("f", "x").end(), Packing::Gzip)], "{}"),
        &source,
        "image",
    )
    .await;
    let archive = dir.path().join("archive.tar");
    export(&source, &[&name, &image.id], &archive).unwrap();
    assert!(unpacked(&archive, dir.path()).join("blobs/sha256").join(&sha256(&content)[7..]).is_file());
    // An artifact beside images.
    let (other_dir, other) = store();
    let imported = other.import(&archive, None).await.unwrap();
    assert!(imported.skipped.is_empty() && imported.images.len() == 2, "{imported:?}");
    let back = other.find(&name).unwrap();
    assert!(back.is_artifact);
    assert_eq!(back.id, artifact.id, "its files are what it is");
    // Of directories that no archive speaks of the times are nobody's.
    let listing = |text: String| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(listing(files(&other_dir, &other, &back)), listing(files(&dir, &source, &artifact)));
}

/// Takes so many bytes and no more.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_and_leave_the_store_alone() {
    let registry = Registry::start();
    let (dir, source) = store();
    let image = pulled(&registry, &everything(), &source, "all").await;
    let mut all = Vec::new();
    source.export(std::slice::from_ref(&image.id), &mut all).unwrap();
    for room in [0, 100, 512, 5000, all.len() - 1] {
        let error = source.export(std::slice::from_ref(&image.id), &mut Full(room)).unwrap_err();
        assert_eq!(error.kind, Kind::Exhausted, "{error}");
    }
    source.export(std::slice::from_ref(&image.id), &mut Full(all.len())).unwrap();
    let mut nothing = Vec::new();
    let error = source.export(&[image.id.clone(), "absent.example/x:1".into()], &mut nothing).unwrap_err();
    assert!(error.kind == Kind::NotFound && nothing.is_empty(), "{error}");
    // What was pinned is not any more.
    source.remove(&image.id).await.unwrap();
    assert_layers(&dir, 0);
}
