//! hostname, hosts and resolv.conf, which containers may write to without an end: that fills no memory of the node's.

use anyhow::{Context, Result, ensure};
use e2e::requests::{bind, pod, pod_modes, security, shell};
use e2e::{Node, Setup, on_a_node};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tonic::Code;

const TEXTS: [&str; 3] = ["hostname", "hosts", "resolv.conf"];
const MIB: u64 = 1 << 20;
/// Appends to a file in pieces of 64 KiB until a write fails or it has 64 MiB; says how large it became.
const FILL: &str =
    "dd if=/dev/zero of=$0 bs=64k count=1024 conv=notrunc oflag=append 2>/dev/null; stat -c %s $0";

fn free(path: &Path) -> Result<u64> {
    let all = nix::sys::statvfs::statvfs(path)?;
    Ok(all.blocks_available() as u64 * all.fragment_size() as u64)
}

async fn fill(node: &Node, id: &str, file: &str) -> Result<u64> {
    let (code, out, error) = node.exec(id, &["sh", "-c", FILL, file]).await?;
    ensure!(code == 0, "{file}: {error}");
    Ok(out.trim().parse()?)
}

fn texts_of(node: &Node, pod: &str) -> PathBuf {
    node.path("root/sandboxes").join(pod)
}

#[test]
fn a_container_cannot_fill_the_nodes_memory_with_them() {
    // 2 MiB: what goes there shows at once.
    on_a_node(Setup { small_state: true, ..Default::default() }, |node| Box::pin(endless(node)));
}

async fn endless(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "endless");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, "exec sleep 1000")).await?;
    let state = node.path("state");
    let before = free(&state)?;
    for name in TEXTS {
        let size = fill(node, &id, &format!("/etc/{name}")).await?;
        ensure!(size >= 64 * MIB, "/etc/{name}: {size}");
    }
    let after = free(&state)?;
    ensure!(after + 64 * 1024 > before, "{before} bytes were free, {after} are left");

    // Whatever the container makes of them, it is nobody else's: not by their path, and not in another container.
    let files = texts_of(node, &sandbox);
    node.sh(&id, "cp /bin/busybox /etc/hosts && chmod 4755 /etc/hosts").await?;
    ensure!(std::fs::metadata(files.join("hosts"))?.permissions().mode() & 0o4000 != 0, "it is");
    ensure!(std::fs::metadata(&files)?.mode() & 0o077 == 0, "{files:?} is closed");
    let (code, _, error) = node.exec(&id, &["sh", "-c", "/etc/hosts id"]).await?;
    ensure!(code != 0, "/etc/hosts is run: {error}");
    let mut reader = shell("reader", &image, "exec sleep 1000");
    security(&mut reader).readonly_rootfs = true;
    let reader = node.run(&sandbox, &config, reader).await?;
    let (code, ..) = node.exec(&reader, &["sh", "-c", "echo x >>/etc/resolv.conf"]).await?;
    ensure!(code != 0, "a read-only container has read-only files");

    // What a kubelet brings itself stands in their place.
    let own = node.path("own-hosts");
    std::fs::write(&own, "127.0.0.1 own\n")?;
    let mut other = shell("other", &image, "exec sleep 1000");
    other.mounts.push(bind(&own, "/etc/hosts"));
    let other = node.run(&sandbox, &config, other).await?;
    ensure!(node.sh(&other, "cat /etc/hosts").await? == "127.0.0.1 own\n", "the kubelet's");
    node.stop_pod(&sandbox).await?;
    ensure!(files.join("hosts").exists(), "a stopped pod keeps its files");
    node.remove_pod(&sandbox).await?;
    ensure!(!files.exists(), "a removed one does not");
    Ok(())
}

/// DESIGN 4: what is full refuses new pods, and those that are there go.
#[test]
fn a_full_disk_refuses_pods_and_lets_them_go() {
    on_a_node(Setup::default(), |node| Box::pin(full(node)));
}

async fn full(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let disk = node.path("root/sandboxes");
    std::fs::create_dir_all(&disk)?;
    mount(Some("disk"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=4m"))?;
    let outcome = on_a_small_disk(node, &image, &disk).await;
    umount2(&disk, MntFlags::MNT_DETACH)?;
    outcome
}

async fn on_a_small_disk(node: &mut Node, image: &str, disk: &Path) -> Result<()> {
    let config = pod(node, "filler");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", image, "exec sleep 1000")).await?;
    let size = fill(node, &id, "/etc/hosts").await?;
    ensure!((3 * MIB..=4 * MIB).contains(&size) && free(disk)? == 0, "full: {size}");
    let refused = node.run_pod(&pod(node, "late")).await.err().context("there is no room")?;
    let status = refused.downcast_ref::<tonic::Status>().context("a status")?;
    ensure!(
        status.code() == Code::ResourceExhausted && status.message().contains("No space left"),
        "{status:?}"
    );
    for dir in [disk, &node.path("state/pods"), &node.path("state/netns")] {
        let left = std::fs::read_dir(dir)?.count();
        ensure!(left == 1, "{}: {left} entries, one pod", dir.display());
    }
    // Others of the pod, and the daemon after a restart, go on.
    node.run(&sandbox, &config, shell("beside", image, "exec sleep 1000")).await?;
    node.kill_daemon().await?;
    node.start_daemon().await?;
    node.run(&sandbox, &config, shell("after", image, "exec sleep 1000")).await?;
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await?;
    ensure!(std::fs::read_dir(disk)?.next().is_none(), "nothing is left of it");
    let again = node.run_pod(&pod(node, "late")).await?;
    node.remove_pod(&again).await
}

/// A pod that a former version made: all of its files are in the state directory.
#[test]
fn a_pod_of_a_former_version_goes_on() {
    on_a_node(Setup::default(), |node| Box::pin(upgraded(node)));
}

async fn upgraded(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "old");
    let sandbox = node.run_pod(&config).await?;
    let before = node.run(&sandbox, &config, shell("before", &image, "exec sleep 1000")).await?;
    node.kill_daemon().await?;
    let (texts, old) = (texts_of(node, &sandbox), node.path("state/pods").join(&sandbox));
    for name in TEXTS {
        let text = std::fs::read(texts.join(name))?;
        std::fs::remove_file(old.join(name)).context("the link of this version")?;
        std::fs::write(old.join(name), text)?;
    }
    std::fs::remove_dir_all(&texts)?;
    node.start_daemon().await?;

    let after = node.run(&sandbox, &config, shell("after", &image, "exec sleep 1000")).await?;
    ensure!(node.sh(&after, "cat /etc/hostname").await? == "old\n", "its name");
    node.sh(&after, "echo '10.1.1.1 added' >>/etc/hosts; echo x >/dev/shm/x").await?;
    ensure!(std::fs::read_to_string(old.join("hosts"))?.contains("10.1.1.1 added"), "in the old place");
    ensure!(node.sh(&before, "cat /dev/shm/x").await? == "x\n", "shm is one");
    ensure!(!texts.exists(), "it stays as it is");
    // And pods of both kinds side by side.
    let new = node.run_pod(&pod(node, "new")).await?;
    ensure!(texts_of(node, &new).join("hosts").exists(), "on the disk");
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await?;
    ensure!(!old.exists() && texts_of(node, &new).exists(), "one is gone, not the other");
    node.remove_pod(&new).await
}

/// After a boot: the disk still has what the state directory has not.
#[test]
fn what_a_boot_left_is_removed() {
    on_a_node(Setup::default(), |node| Box::pin(left_over(node)));
}

async fn left_over(node: &mut Node) -> Result<()> {
    let mut config = pod(node, "kept");
    pod_modes(&mut config).ipc = cri_proto::v1::NamespaceMode::Node.into();
    let kept = node.run_pod(&config).await?;
    node.kill_daemon().await?;
    let stranger = texts_of(node, &"5".repeat(64));
    std::fs::create_dir(&stranger)?;
    std::fs::write(stranger.join("hosts"), "127.0.0.1 localhost\n")?;
    // By its name none of ours.
    let other = texts_of(node, "notes");
    std::fs::create_dir(&other)?;
    node.start_daemon().await?;
    ensure!(!stranger.exists(), "a stranger goes");
    ensure!(node.log_tail(100).contains("pod directory without a record"), "and is named");
    ensure!(texts_of(node, &kept).join("hosts").exists() && other.exists(), "others stay");
    std::fs::remove_dir(&other)?;
    node.remove_pod(&kept).await
}
