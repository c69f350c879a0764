//! Images from a real registry and from archives.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::registry::Registry;
use e2e::requests::{pod, shell};
use e2e::{Node, Setup, on_a_node};

/// CRI-IMG-01, CRI-IMG-02, CRI-IMG-03, CRI-IMG-06, CRI-IMG-07, CRI-IMG-13, CRI-IMG-14, CRI-IMG-16, CRI-IMG-17, CRI-IMG-20, CRI-IMG-27, CRI-CSTAT-04.
#[test]
fn images_are_pulled_listed_run_and_removed() {
    on_a_node(Setup::default(), |node| Box::pin(pulled(node)));
}

async fn pulled(node: &mut Node) -> Result<()> {
    let registry = Registry::start(node).await?;
    let (tag, zstd) = (registry.image("busybox:1"), registry.image("busybox:zstd"));
    let id = node.pull(&tag).await?;
    ensure!(id.starts_with("sha256:"), "image_ref is the image's id: {id}");
    let image = status(node, &tag).await?.context("in Status at once")?;
    ensure!(image.id == id && image.size > 0 && image.repo_tags == [tag.clone()], "{image:?}");
    let digest = image.repo_digests.first().context("a repo digest")?.clone();
    for name in [&id, &digest, &tag] {
        ensure!(status(node, name).await?.as_ref() == Some(&image), "found by {name}");
    }
    ensure!(node.pull(&digest).await? == id, "the same by digest");
    let zstd_id = node.pull(&zstd).await?;
    let config = pod(node, "images");
    let sandbox = node.run_pod(&config).await?;
    for (name, image) in [("gzip", &id), ("zstd", &zstd_id)] {
        let container =
            node.run(&sandbox, &config, shell(name, image, "ls -l /bin/busybox && exit 3")).await?;
        ensure!(node.ended(&container).await?.exit_code == 3, "{name} runs");
        ensure!(node.container_status(&container).await?.image_id == *image, "one id everywhere");
    }
    let running = node.run(&sandbox, &config, shell("running", &id, "sleep 1000")).await?;

    let filesystems = node.images().await?.image_fs_info(v1::ImageFsInfoRequest {}).await?.into_inner();
    let fs = filesystems.image_filesystems.first().context("one file system")?;
    let mountpoint = &fs.fs_id.as_ref().context("fs_id")?.mountpoint;
    ensure!(std::path::Path::new(mountpoint).exists(), "{mountpoint} can be looked at");
    ensure!(fs.used_bytes.as_ref().is_some_and(|b| b.value > 0), "used bytes: {fs:?}");

    remove(node, &tag).await?;
    ensure!(status(node, &tag).await?.is_none() && status(node, &id).await?.is_none(), "gone with all names");
    remove(node, &tag).await?;
    ensure!(
        node.sh(&running, "ls /bin/busybox").await?.contains("busybox"),
        "a running container keeps its layers"
    );
    ensure!(node.container_status(&running).await?.image_id == id, "and its status");
    registry.stop().await
}

/// Wrong digest, unknown image, dead registry: a clear code, and no partial image.
#[test]
fn bad_pulls_leave_nothing() {
    on_a_node(Setup::default(), |node| Box::pin(bad_pulls(node)));
}

async fn bad_pulls(node: &mut Node) -> Result<()> {
    let registry = Registry::start(node).await?;
    let absent = node.pull(&registry.image("absent:1")).await;
    ensure!(code(absent)? == tonic::Code::NotFound, "unknown image");
    let wrong = registry.image(&format!("busybox@sha256:{}", "0".repeat(64)));
    ensure!(code(node.pull(&wrong).await)? == tonic::Code::NotFound, "unknown digest");
    ensure!(
        code(node.pull(&registry.image("UPPER:1")).await)? == tonic::Code::InvalidArgument,
        "malformed reference"
    );

    spoil_largest_blob(node, &registry)?;
    let error = node
        .pull(&registry.image("busybox:1"))
        .await
        .err()
        .context("a spoiled layer must not be accepted")?;
    ensure!(format!("{error:#}").contains("sha256:"), "names the blob: {error:#}");
    ensure!(status(node, &registry.image("busybox:1")).await?.is_none(), "nothing half-made");
    let image = registry.image("busybox:1");
    registry.stop().await?;
    let error = node.pull(&image).await.err().context("no registry")?;
    let status = error.downcast_ref::<tonic::Status>().context("a status")?;
    ensure!(status.message().starts_with("RegistryUnavailable"), "CRI-IMG-25: {status:?}");
    ensure!(
        status.code() == tonic::Code::Unknown,
        "CRI-IMG-25: the kubelet strips this code only: {status:?}"
    );
    Ok(())
}

/// CRI-IMG-04, CRI-IMG-15, CRI-IMG-31, CRI-IMG-32, CRI-IMG-33: one image under two names is one image, listed by each,
/// shown in full when asked, and gone for everybody at once.
#[test]
fn an_image_of_many_names_is_one_image() {
    on_a_node(Setup::default(), |node| Box::pin(many_names(node)));
}

async fn many_names(node: &mut Node) -> Result<()> {
    let archive = e2e::registry::archive("busybox").display().to_string();
    let names = ["test.local/first:1", "test.local/second:2"];
    for name in names {
        ensure!(status(node, name).await?.is_none(), "not there yet");
        node.slipway(&["import", &archive, "--name", name]).await?;
    }
    let other = node.import("redis").await?;
    let image = status(node, names[0]).await?.context("the first name")?;
    ensure!(status(node, names[1]).await?.as_ref() == Some(&image), "both are it");
    ensure!(names.iter().all(|name| image.repo_tags.iter().any(|tag| tag == name)), "{image:?}");
    ensure!(image.id.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64), "{image:?}");

    for (filter, expected) in
        [("", 2), (names[0], 1), (names[1], 1), (image.id.as_str(), 1), ("test.local/absent:1", 0)]
    {
        let spec = v1::ImageSpec { image: filter.into(), ..Default::default() };
        let filter = Some(v1::ImageFilter { image: Some(spec) });
        let request = v1::ListImagesRequest { filter: filter.clone() };
        let images = node.images().await?.list_images(request).await?.into_inner().images;
        ensure!(images.len() == expected, "{filter:?}: {images:?}");
        let request = v1::StreamImagesRequest { filter };
        let mut stream = node.images().await?.stream_images(request).await?.into_inner();
        let first = stream.message().await?.map(|m| m.images).unwrap_or_default();
        ensure!(first == images && stream.message().await?.is_none(), "the stream differs: {first:?}");
    }
    let spec = v1::ImageSpec { image: names[0].into(), ..Default::default() };
    let request = v1::ImageStatusRequest { image: Some(spec), verbose: true };
    let info = node.images().await?.image_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("info")?)?;
    ensure!(info["chainID"].as_str().is_some_and(|id| id.starts_with("sha256:")), "{info}");
    ensure!(
        info["imageSpec"]["rootfs"]["diff_ids"].is_array() && info["imageSpec"]["config"].is_object(),
        "{info}"
    );

    let gone = || async {
        remove(node, &image.id).await?;
        ensure!(
            status(node, names[0]).await?.is_none() && status(node, &image.id).await?.is_none(),
            "still there"
        );
        anyhow::Ok(())
    };
    let all = tokio::join!(gone(), gone(), gone(), gone(), gone());
    for outcome in [all.0, all.1, all.2, all.3, all.4] {
        outcome?;
    }
    ensure!(status(node, &other).await?.is_some(), "and no other image");
    Ok(())
}

/// Changes one byte in the middle of every blob above 100 kB (the layers; manifests and configs are small).
fn spoil_largest_blob(node: &Node, registry: &Registry) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let found = std::process::Command::new("find")
        .arg(node.path("registry"))
        .args(["-name", "data", "-size", "+100k"])
        .output()?;
    let files = String::from_utf8(found.stdout)?;
    ensure!(!files.trim().is_empty(), "no layer blob in {}", registry.host);
    for file in files.lines() {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(file)?;
        let middle = file.metadata()?.len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, middle)?;
        file.write_all_at(&[!byte[0]], middle)?;
    }
    Ok(())
}

async fn status(node: &Node, image: &str) -> Result<Option<v1::Image>> {
    let spec = v1::ImageSpec { image: image.into(), ..Default::default() };
    let request = v1::ImageStatusRequest { image: Some(spec), verbose: false };
    Ok(node.images().await?.image_status(request).await?.into_inner().image)
}

async fn remove(node: &Node, image: &str) -> Result<()> {
    let spec = v1::ImageSpec { image: image.into(), ..Default::default() };
    node.images().await?.remove_image(v1::RemoveImageRequest { image: Some(spec) }).await?;
    Ok(())
}

fn code<T: std::fmt::Debug>(result: Result<T>) -> Result<tonic::Code> {
    let error = result.err().context("accepted")?;
    Ok(error.downcast_ref::<tonic::Status>().context("a status")?.code())
}
