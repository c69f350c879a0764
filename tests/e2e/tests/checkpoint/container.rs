//! One container: frozen, carried away, and going on.

use super::{
    COUNT, checkpoint, clean, counting, counts_on, in_a_row, refused, restored, run, status, with_criu,
};
use anyhow::{Context as _, Result, ensure};
use cri_proto::v1;
use e2e::Node;
use e2e::requests::{bind, pod, shell};
use tonic::Code;

/// CRI-CHK-01, CRI-CHK-03, CRI-CHK-05.
#[test]
fn a_container_goes_on_where_it_was_frozen() {
    with_criu("", |node| Box::pin(goes_on(node)));
}

async fn goes_on(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let shared = node.path("shared");
    std::fs::create_dir(&shared)?;
    let mut config = shell("main", &image, COUNT);
    config.mounts = vec![bind(&shared, "/shared")];
    config.envs = vec![v1::KeyValue { key: "MINE".into(), value: "here".into() }];
    let first_pod = pod(node, "first");
    let sandbox = node.run_pod(&first_pod).await?;
    let first = node.run(&sandbox, &first_pod, config).await?;
    counting(node, &first).await?;
    let archive = node.path("frozen.tar");
    std::fs::write(&archive, "an older one")?;
    checkpoint(node, &first, &archive).await?;
    clean(node, &node.path(""))?;
    counts_on(node, &first).await?;

    use std::os::unix::fs::PermissionsExt as _;
    ensure!(std::fs::metadata(&archive)?.permissions().mode() & 0o777 == 0o600, "only root may read memory");
    let listed = run(&node.path(""), "tar", &["-tf", "frozen.tar"]).await?;
    for name in [
        "config.dump",
        "spec.dump",
        "status.dump",
        "rootfs-diff.tar",
        "container.log",
        "dump.log",
        "stats-dump",
    ] {
        ensure!(listed.lines().any(|line| line == name), "{name} is missing: {listed}");
    }
    ensure!(listed.contains("checkpoint/inventory.img") && listed.contains("checkpoint/pages-"), "{listed}");
    let diff = run(&node.path(""), "sh", &["-c", "tar -xOf frozen.tar rootfs-diff.tar | tar -t"]).await?;
    ensure!(diff.contains("etc/kept") && diff.contains("etc/.wh.group"), "{diff}");

    // In another pod, while the first goes on.
    let second_pod = pod(node, "second");
    let sandbox = node.run_pod(&second_pod).await?;
    let mut again = restored("again", &archive);
    again.mounts = vec![bind(&shared, "/shared")];
    let second = node.create(&sandbox, &second_pod, again.clone()).await?;
    let created = node.container_status(&second).await?;
    ensure!(created.state() == v1::ContainerState::ContainerCreated, "{created:?}");
    ensure!(created.image.as_ref().is_some_and(|i| i.image == image), "{created:?}");
    // A new daemon finds it as it was.
    node.kill_daemon().await?;
    node.start_daemon().await?;
    node.start_container(&second).await?;
    ensure!(node.container_status(&second).await?.state() == v1::ContainerState::ContainerRunning);
    clean(node, &node.path(""))?;
    counts_on(node, &second).await?;
    ensure!(in_a_row(node, &second).await? > 10);
    ensure!(node.sh(&second, "cat /etc/kept; ls /etc").await?.starts_with("kept\n"));
    ensure!(!node.sh(&second, "ls /etc").await?.contains("group"), "what was deleted stays deleted");
    let told = node.sh(&second, "echo $MINE; hostname; cat /etc/hostname").await?;
    ensure!(told == "here\nsecond\nsecond\n", "its variables, the pod's name: {told:?}");
    ensure!(node.sh(&second, "grep -c shared /proc/self/mounts").await?.trim() == "1");
    counts_on(node, &first).await?;
    ensure!(in_a_row(node, &first).await? > 10);

    // A restored one is a container like others: it is checkpointed, stopped, restarted, removed.
    let twice = node.path("twice.tar");
    checkpoint(node, &second, &twice).await?;
    node.stop_container(&second, 0).await?;
    node.remove_container(&second).await?;
    again.metadata = Some(v1::ContainerMetadata { name: "third".into(), attempt: 0 });
    again.image = restored("", &twice).image;
    again.log_path = "third/0.log".into();
    let third = node.run(&sandbox, &second_pod, again).await?;
    counts_on(node, &third).await?;
    ensure!(in_a_row(node, &third).await? > 20);
    node.remove_pod(&sandbox).await?;
    clean(node, &node.path(""))
}

/// CRI-CHK-05: what lies in an image's `VOLUME` comes back, too.
#[test]
fn volumes_of_the_image_come_back() {
    with_criu("", |node| Box::pin(volumes(node)));
}

async fn volumes(node: &mut Node) -> Result<()> {
    let dir = node.path("image");
    std::fs::create_dir(&dir)?;
    run(&dir, "tar", &["-xf", &e2e::registry::archive("busybox").display().to_string()]).await?;
    let read = |name: &str| -> Result<serde_json::Value> {
        Ok(serde_json::from_slice(&std::fs::read(dir.join(name))?)?)
    };
    let mut manifest = read("manifest.json")?;
    let mut config = read(manifest[0]["Config"].as_str().context("a config")?)?;
    config["config"]["Volumes"] = serde_json::json!({"/var/kept": {}, "/etc": {}});
    std::fs::write(dir.join("with-volumes.json"), config.to_string())?;
    manifest[0]["Config"] = "with-volumes.json".into();
    std::fs::write(dir.join("manifest.json"), manifest.to_string())?;
    run(&dir, "rm", &["-f", "index.json", "oci-layout"]).await?;
    run(&dir, "tar", &["-cf", "../with-volumes.tar", "."]).await?;
    let (archive, image) = (node.path("with-volumes.tar"), "test.local/with-volumes:1");
    node.slipway(&["import", &archive.display().to_string(), "--name", image]).await?;
    let config = pod(node, "pod");
    let sandbox = node.run_pod(&config).await?;
    // An open file in a volume must be there again, and be as long, or CRIU restores nothing.
    let script = format!("exec 5> /var/kept/open; echo data >&5; mkdir /var/kept/deep; {COUNT}");
    let id = node.run(&sandbox, &config, shell("main", image, &script)).await?;
    counting(node, &id).await?;
    let archive = node.path("a.tar");
    checkpoint(node, &id, &archive).await?;
    let again = node.run(&sandbox, &config, restored("again", &archive)).await?;
    counts_on(node, &again).await?;
    let told =
        node.sh(&again, "cat /var/kept/open /etc/kept; ls -d /var/kept/deep; ls /etc/group || true").await?;
    ensure!(told == "data\nkept\n/var/kept/deep\n", "{told:?}");
    clean(node, &node.path(""))
}

/// Terminals come back, too.
#[test]
fn a_container_with_a_terminal() {
    with_criu("", |node| Box::pin(terminal(node)));
}

async fn terminal(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "pod");
    let sandbox = node.run_pod(&config).await?;
    let mut with_tty = shell("main", &image, COUNT);
    with_tty.tty = true;
    let id = node.run(&sandbox, &config, with_tty).await?;
    node.log_shows(&id, |line| line.trim() == "10").await?;
    let archive = node.path("a.tar");
    checkpoint(node, &id, &archive).await?;
    counts_on(node, &id).await?;
    let mut again = restored("again", &archive);
    refused(
        node.create(&sandbox, &config, again.clone()).await.map_err(status),
        Code::InvalidArgument,
        "tty",
    )?;
    again.tty = true;
    let again = node.run(&sandbox, &config, again).await?;
    counts_on(node, &again).await?;
    node.log_shows(&again, |line| line.trim().parse::<u64>().is_ok_and(|n| n > 30)).await
}

/// The real crictl.
#[test]
fn crictl_takes_checkpoints() {
    with_criu("", |node| Box::pin(by_crictl(node)));
}

async fn by_crictl(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "pod");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, COUNT)).await?;
    counting(node, &id).await?;
    let archive = node.path("by-crictl.tar");
    node.crictl(&["checkpoint", &format!("--export={}", archive.display()), &id]).await?;
    let again = node.run(&sandbox, &config, restored("again", &archive)).await?;
    counts_on(node, &again).await?;
    ensure!(in_a_row(node, &again).await? > 10);
    let listed = node.crictl(&["ps"]).await?;
    ensure!(listed.contains("main") && listed.contains("again"), "{listed}");
    clean(node, &node.path(""))
}
