//! Pods and images of other kinds.

use super::{
    COUNT, checkpoint, clean, counting, counts_on, in_a_row, refused, restored, run, status, with_criu,
};
use anyhow::{Context as _, Result, ensure};
use cri_proto::v1;
use e2e::Node;
use e2e::requests::{container, modes, pod, pod_modes, shell};
use std::path::Path;
use tonic::Code;

/// Pods with user namespaces, in words; pods that share their pids.
#[test]
fn user_namespaces_are_refused_and_other_pods_are_not() {
    with_criu("", |node| Box::pin(kinds_of_pods(node)));
}

async fn kinds_of_pods(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let map = vec![v1::IdMapping { container_id: 0, host_id: 300_000, length: 65536 }];
    let users = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: map.clone(), gids: map };
    let mut apart = pod(node, "apart");
    pod_modes(&mut apart).userns_options = Some(users);
    // Where no id-mapped mounts are there are no such pods.
    if let Ok(sandbox) = node.run_pod(&apart).await {
        let config = e2e::requests::in_pod(&apart, shell("main", &image, COUNT));
        let id = node.run(&sandbox, &apart, config).await?;
        refused(
            checkpoint(node, &id, &node.path("a.tar")).await,
            Code::FailedPrecondition,
            "user namespace",
        )?;
        counts_on(node, &id).await?;
    }
    let mut sharing = pod(node, "sharing");
    pod_modes(&mut sharing).pid = v1::NamespaceMode::Pod.into();
    let sandbox = node.run_pod(&sharing).await?;
    let mut config = shell("main", &image, COUNT);
    modes(&mut config).pid = v1::NamespaceMode::Pod.into();
    let id = node.run(&sandbox, &sharing, config).await?;
    counting(node, &id).await?;
    let archive = node.path("sharing.tar");
    checkpoint(node, &id, &archive).await?;
    counts_on(node, &id).await?;
    let mut other = pod(node, "other");
    pod_modes(&mut other).pid = v1::NamespaceMode::Pod.into();
    let sandbox = node.run_pod(&other).await?;
    let mut again = restored("again", &archive);
    let apart = node.create(&sandbox, &other, again.clone()).await.map_err(status);
    refused(apart, Code::InvalidArgument, "namespaces")?;
    modes(&mut again).pid = v1::NamespaceMode::Pod.into();
    let again = node.run(&sandbox, &other, again).await?;
    counts_on(node, &again).await?;
    ensure!(in_a_row(node, &again).await? > 10);
    clean(node, &node.path(""))
}

/// CRI-CHK-03, CRI-CHK-05: an image of an archive's files, as the documents of other engines have it; only where the node
/// allows it.
#[test]
fn an_image_may_hold_a_checkpoint() {
    with_criu("restore_images = true\n", |node| Box::pin(images(node, true)));
    with_criu("", |node| Box::pin(images(node, false)));
}

async fn images(node: &mut Node, allowed: bool) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "pod");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, COUNT)).await?;
    counting(node, &id).await?;
    let dir = node.path("oci");
    std::fs::create_dir_all(dir.join("blobs/sha256"))?;
    let layer = dir.join("layer.tar");
    checkpoint(node, &id, &layer).await?;
    let blob = async |text: String| -> Result<serde_json::Value> {
        std::fs::write(dir.join("new"), &text)?;
        add_blob(&dir, "new").await
    };
    let layer = add_blob(&dir, "layer.tar").await?;
    let platform = std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64");
    let rootfs = serde_json::json!({"type": "layers", "diff_ids": [layer["digest"]]});
    let image_config =
        serde_json::json!({"architecture": platform, "os": "linux", "config": {}, "rootfs": rootfs});
    let mut described = blob(image_config.to_string()).await?;
    described["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "config": described, "layers": [layer],
        "annotations": {"org.criu.checkpoint.container.name": "main"},
    });
    let mut manifest = blob(manifest.to_string()).await?;
    manifest["mediaType"] = "application/vnd.oci.image.manifest.v1+json".into();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(dir.join("index.json"), index.to_string())?;
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
    node.slipway(&["import", &dir.display().to_string(), "--name", "test.local/frozen:1"]).await?;
    let made = node.create(&sandbox, &config, container("again", "test.local/frozen:1", &[])).await;
    if !allowed {
        refused(made.map_err(status), Code::FailedPrecondition, "checkpoints.restore_images")?;
        return clean(node, &dir);
    }
    let again = made?;
    node.start_container(&again).await?;
    counts_on(node, &again).await?;
    ensure!(in_a_row(node, &again).await? > 10);
    clean(node, &dir)
}

/// Moves a file to its place among the blobs; its descriptor.
async fn add_blob(dir: &Path, name: &str) -> Result<serde_json::Value> {
    let sum = run(dir, "sha256sum", &[name]).await?;
    let hex = sum.split(' ').next().context("a digest")?;
    let size = std::fs::metadata(dir.join(name))?.len();
    std::fs::rename(dir.join(name), dir.join("blobs/sha256").join(hex))?;
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    Ok(serde_json::json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": size}))
}
