//! Archives: docker save in both forms, OCI layout as tar and directory, compressed, with and without names.

#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use slipway_images::Kind;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use support::tar::Tar;
use support::{Built, INDEX, Packing, assert_layers, build, build_as, pack, sha256, store};

fn image() -> Built {
    build(
        &[
            (Tar::new().dir("d/", 0o700, 1).file("d/f", "one").end(), Packing::Gzip),
            (Tar::new().file("d/g", "two").link("l", "d/f").end(), Packing::Zstd),
        ],
        "{}",
    )
}

fn blob_name(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", &sha256(bytes)[7..])
}

fn index(images: &[(&Built, &str)]) -> Vec<u8> {
    let entries: Vec<String> = images
        .iter()
        .map(|(image, extra)| {
            let (digest, size) = (image.digest(), image.manifest.len());
            format!(r#"{{"mediaType":"{}","digest":"{digest}","size":{size}{extra}}}"#, image.media_type)
        })
        .collect();
    format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#, entries.join(",")).into_bytes()
}

fn named(name: &str) -> String {
    format!(
        r#","annotations":{{"io.containerd.image.name":"{name}","org.opencontainers.image.ref.name":"1"}}"#
    )
}

fn layout_files(images: &[(&Built, &str)]) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index(images)),
    ];
    for (image, _) in images {
        for blob in image.blobs.iter().chain([&image.config, &image.manifest]) {
            files.push((blob_name(blob), blob.clone()));
        }
    }
    files
}

fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    files.iter().fold(Tar::new(), |tar, (name, content)| tar.file(name, content)).end()
}

fn write(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn oci_layouts() {
    let built = image();
    let files = layout_files(&[(&built, &named("reg.example/a:1"))]);
    let tar = tar_of(&files);
    for (what, archive) in [
        ("tar", tar.clone()),
        ("gzip", pack(&tar, Packing::Gzip)),
        ("zstd", pack(&tar, Packing::Zstd)),
        ("directory", Vec::new()),
    ] {
        let (dir, store) = store();
        let path = if what == "directory" {
            for (name, content) in &files {
                write(&dir.path().join("in"), name, content);
            }
            dir.path().join("in")
        } else {
            write(dir.path(), "in", &archive)
        };
        let images = store.import(&path, None).await.unwrap().images;
        assert_eq!(images.len(), 1, "{what}");
        assert_eq!(images[0].id, built.id());
        assert_eq!(images[0].repo_tags, ["reg.example/a:1"]);
        assert_eq!(images[0].repo_digests, [format!("reg.example/a@{}", built.digest())]);
        assert_layers(&dir, 2);
        let (reference, mount) = (dir.path().join("reference"), dir.path().join("mount"));
        std::fs::create_dir(&reference).unwrap();
        std::fs::create_dir(&mount).unwrap();
        support::extract_by_tar(&built.tars, &reference);
        let view = store.view(&images[0]).unwrap();
        let strip_root = |text: String| {
            text.lines().filter(|line| !line.starts_with("d . ")).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(
            strip_root(support::mounted_listing(&view, &mount, ":")),
            strip_root(support::listing(&reference))
        );
        // Under a name of one's own.
        let images = store.import(&path, Some("own.example/b")).await.unwrap().images;
        assert!(images[0].repo_tags.contains(&"own.example/b:latest".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_save() {
    let built = image();
    let config_name = format!("{}.json", &built.id()[7..]);
    let manifest = format!(
        r#"[{{"Config":"{config_name}","RepoTags":["reg.example/a:1","b:2"],"Layers":["x/layer.tar","y/layer.tar"]}}]"#
    );
    let (dir, store) = store();
    // The second layer is a link, as older docker save writes equal layers.
    let tar = Tar::new()
        .file(&config_name, &built.config)
        .file("manifest.json", &manifest)
        .dir("x/", 0o755, 0)
        .file("x/layer.tar", &built.tars[0])
        .symlink("y/layer.tar", "../z/layer.tar")
        .file("z/layer.tar", &built.tars[1])
        .end();
    let path = write(dir.path(), "docker.tar", &tar);
    let images = store.import(&path, None).await.unwrap().images;
    assert_eq!(images[0].id, built.id());
    assert_eq!(images[0].repo_tags, ["docker.io/library/b:2", "reg.example/a:1"]);
    assert!(images[0].repo_digests.is_empty());
    assert!(store.find("b:2").is_some());
    assert_layers(&dir, 2);

    // Newer docker save: an OCI layout with manifest.json beside; names only in the latter.
    let mut files = layout_files(&[(&built, "")]);
    let manifest = format!(
        r#"[{{"Config":"{}","RepoTags":["reg.example/c:3"],"Layers":[]}}]"#,
        blob_name(&built.config)
    );
    files.push(("manifest.json".to_owned(), manifest.into_bytes()));
    let path = write(dir.path(), "docker-oci.tar", &tar_of(&files));
    let images = store.import(&path, None).await.unwrap().images;
    assert!(images[0].repo_tags.contains(&"reg.example/c:3".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_archives_leave_nothing() {
    let built = image();
    let other = build_as(&[(Tar::new().file("x", "").end(), Packing::Plain)], "{}", support::OCI, "s390x");
    let (dir, store) = store();
    let nameless = tar_of(&layout_files(&[(&built, "")]));
    let foreign = tar_of(&layout_files(&[(&other, &named("a:1"))]));
    let damaged: Vec<(String, Vec<u8>)> = layout_files(&[(&built, &named("a:1"))])
        .into_iter()
        .map(|(name, mut content)| {
            if name == blob_name(&built.blobs[1]) {
                *content.last_mut().unwrap() ^= 1;
            }
            (name, content)
        })
        .collect();
    let missing: Vec<_> = layout_files(&[(&built, &named("a:1"))])
        .into_iter()
        .filter(|(name, _)| *name != blob_name(&built.blobs[0]))
        .collect();
    let escaping = Tar::new()
        .file("manifest.json", r#"[{"Config":"../../etc/passwd","RepoTags":["a:1"],"Layers":[]}]"#)
        .end();
    let packed = pack(&nameless, Packing::Gzip);
    for (what, archive, kind) in [
        ("no name", nameless.clone(), Kind::Invalid),
        ("other platform", foreign, Kind::NotFound),
        ("damaged blob", tar_of(&damaged), Kind::Corrupt),
        ("missing blob", tar_of(&missing), Kind::Corrupt),
        ("escaping path", escaping, Kind::Corrupt),
        ("no image", Tar::new().file("x", "").end(), Kind::Invalid),
        ("not a tar", vec![1; 2000], Kind::Corrupt),
        ("truncated gzip", packed[..packed.len() / 2].to_vec(), Kind::Corrupt),
        ("truncated tar", nameless[..nameless.len() / 2].to_vec(), Kind::Corrupt),
    ] {
        let path = write(dir.path(), "in", &archive);
        let error = store.import(&path, None).await.unwrap_err();
        assert_eq!(error.kind, kind, "{what}: {error}");
        assert_layers(&dir, 0);
    }
    assert!(store.import(&dir.path().join("absent"), None).await.is_err());
    assert!(store.list().is_empty());
    let path = write(dir.path(), "in", &nameless);
    let images = store.import(&path, Some("a:1")).await.unwrap().images;
    assert_eq!(images[0].repo_tags, ["docker.io/library/a:1"]);
}

/// IMG-OVL-05: as many as containers can be made of, and one more.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_layers_are_refused_before_one_is_unpacked() {
    let (dir, store) = store();
    let built = build(&support::many_layers(500), "{}");
    for (what, archive) in [
        ("docker save", support::docker_archive(&built, "a:1")),
        ("OCI layout", tar_of(&layout_files(&[(&built, &named("a:1"))]))),
    ] {
        let path = write(dir.path(), "in", &archive);
        let error = store.import(&path, None).await.unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{what}: {error}");
        let said = error.to_string();
        assert!(said.contains("500 layers") && said.contains("499 at most: build it anew"), "{what}: {said}");
        assert!(store.list().is_empty());
        assert_layers(&dir, 0);
    }
    let built = build(&support::many_layers(499), "{}");
    let path = write(dir.path(), "in", &support::docker_archive(&built, "a:1"));
    let images = store.import(&path, None).await.unwrap().images;
    assert_layers(&dir, 499);
    let mounted = slipway_runtime::rootfs::mount_overlay(&store.view(&images[0]).unwrap()).unwrap();
    let inside = std::fs::read_dir(format!("/proc/self/fd/{}", mounted.as_raw_fd())).unwrap();
    assert_eq!(inside.count(), 499);
}

/// Artifacts in an OCI layout: those with a name are taken in like any image, those without (what tools put beside images) are
/// left out and told; none of them keeps the images out.
#[tokio::test(flavor = "multi_thread")]
async fn artifacts_beside_images() {
    let built = image();
    let content = b"a list of parts".to_vec();
    let descriptor = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": sha256(bytes), "size": bytes.len()});
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": support::OCI, "artifactType": "application/x-parts",
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"), "layers": [descriptor("text/plain", &content)],
    });
    let artifact = Built {
        config: b"{}".to_vec(),
        blobs: vec![content],
        tars: Vec::new(),
        manifest: manifest.to_string().into_bytes(),
        media_type: support::OCI,
    };
    let (dir, store) = store();
    let beside = layout_files(&[(&artifact, ""), (&built, &named("reg.example/a:1"))]);
    let path = write(dir.path(), "in", &tar_of(&beside));
    let imported = store.import(&path, None).await.unwrap();
    assert_eq!(imported.images[0].repo_tags, ["reg.example/a:1"]);
    assert_eq!(imported.images.len(), 1);
    assert_eq!(imported.skipped.len(), 1);
    assert!(imported.skipped[0].starts_with(&artifact.digest()), "{:?}", imported.skipped);
    assert_layers(&dir, 2);

    let both =
        layout_files(&[(&built, &named("reg.example/a:1")), (&artifact, &named("reg.example/parts:1"))]);
    let path = write(dir.path(), "in", &tar_of(&both));
    let imported = store.import(&path, None).await.unwrap();
    assert!(imported.images.len() == 2 && imported.skipped.is_empty(), "{imported:?}");
    let parts = store.find("reg.example/parts:1").unwrap();
    assert!(parts.is_artifact && !store.find("reg.example/a:1").unwrap().is_artifact);
    assert_layers(&dir, 3);
    // A name of one's own is the image's.
    let imported = store.import(&path, Some("own.example/a:1")).await.unwrap();
    assert!(imported.skipped[0].contains("reg.example/parts:1"), "{:?}", imported.skipped);
    assert!(!store.find("own.example/a:1").unwrap().is_artifact);

    // Alone it may be given one, too; and its blob is compared with its digest.
    let alone = layout_files(&[(&artifact, "")]);
    let path = write(dir.path(), "in", &tar_of(&alone));
    assert_eq!(store.import(&path, None).await.unwrap_err().kind, Kind::Invalid);
    store.import(&path, Some("own.example/parts:1")).await.unwrap();
    assert_eq!(store.find("own.example/parts:1").unwrap().id, parts.id);
    store.remove(&parts.id).await.unwrap();
    let damaged = alone.into_iter().map(|(name, mut content)| {
        if name == blob_name(&artifact.blobs[0]) {
            content[0] ^= 1;
        }
        (name, content)
    });
    let path = write(dir.path(), "in", &tar_of(&damaged.collect::<Vec<_>>()));
    assert_eq!(store.import(&path, Some("x:1")).await.unwrap_err().kind, Kind::Corrupt);
    assert_layers(&dir, 2);
}
