//! What a container sees of the host's files: propagation in both directions, links, what may be written.

use anyhow::{Context, Result, ensure};
use cri_proto::v1::{self, MountPropagation};
use e2e::requests::{bind, pod, pod_security, security, shell};
use e2e::{Node, Setup, on_a_node};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::path::Path;
use std::time::{Duration, Instant};

/// CRI-MNT-05, CRI-MNT-06: mounts travel in the directions that were asked for; a source that lets none travel is refused.
#[test]
fn mounts_propagate_as_asked() {
    on_a_node(Setup::default(), |node| Box::pin(propagation(node)));
}

async fn propagation(node: &mut Node) -> Result<()> {
    let made = Sources::make(node)?;
    let outcome = propagated(node, &made).await;
    drop(made);
    outcome
}

/// Three directories with a mount each: shared, slave of the first, and private.
struct Sources([std::path::PathBuf; 3]);

impl Sources {
    fn make(node: &Node) -> Result<Self> {
        let made = Self(["shared", "slave", "lone"].map(|name| node.path(name)));
        let none = None::<&str>;
        for path in &made.0 {
            std::fs::create_dir(path)?;
        }
        let [shared, slave, lone] = &made.0;
        for path in [shared, lone] {
            mount(Some("e2e"), path, Some("tmpfs"), MsFlags::empty(), none)?;
            mount(none, path, none, MsFlags::MS_PRIVATE, none)?;
        }
        mount(none, shared, none, MsFlags::MS_SHARED, none)?;
        mount(Some(shared), slave, none, MsFlags::MS_BIND, none)?;
        mount(none, slave, none, MsFlags::MS_SLAVE, none)?;
        std::fs::create_dir_all(shared.join("early"))?;
        std::fs::create_dir_all(shared.join("late"))?;
        Ok(made)
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

async fn propagated(node: &Node, made: &Sources) -> Result<()> {
    let [shared, slave, lone] = &made.0;
    let image = node.import("busybox").await?;
    let mut config = pod(node, "propagates");
    pod_security(&mut config).privileged = true;
    let sandbox = node.run_pod(&config).await?;
    let with = |name: &str, source: &Path, propagation: MountPropagation| {
        let mut container = shell(name, &image, "trap 'exit 0' TERM; while :; do sleep 0.1; done");
        security(&mut container).privileged = true;
        container.mounts = vec![v1::Mount { propagation: propagation.into(), ..bind(source, "/m") }];
        container
    };
    use MountPropagation::{PropagationBidirectional as Both, PropagationHostToContainer as In};
    for (source, wanted, words) in [
        (lone, Both, "is not a shared mount"),
        (slave, Both, "is not a shared mount"),
        (lone, In, "is not a shared or slave mount"),
    ] {
        let error = node.create(&sandbox, &config, with("refused", source, wanted)).await;
        let error = error.err().context("it must be refused")?.downcast::<tonic::Status>()?;
        ensure!(error.code() == tonic::Code::FailedPrecondition, "{error:?}");
        let text = error.message();
        ensure!(text.contains(words) && text.contains(&source.display().to_string()), "{text}");
    }

    let both = node.run(&sandbox, &config, with("both", shared, Both)).await?;
    let inward = node.run(&sandbox, &config, with("inward", slave, In)).await?;
    let alone =
        node.run(&sandbox, &config, with("alone", shared, MountPropagation::PropagationPrivate)).await?;
    node.sh(&both, "mount -t tmpfs inside /m/early && touch /m/early/from-inside").await?;
    appears(&shared.join("early/from-inside"))?;
    // The host's mount goes into both that receive, the one through its master.
    mount(Some("late"), &shared.join("late"), Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    std::fs::write(shared.join("late/from-outside"), "")?;
    for id in [&both, &inward] {
        node.sh(id, "ls /m/early/from-inside /m/late/from-outside").await?;
    }
    node.sh(&alone, "[ ! -e /m/early/from-inside ] && [ ! -e /m/late/from-outside ]").await?;
    // One that only receives keeps its own to itself.
    node.sh(&inward, "mkdir -p /m/own && mount -t tmpfs own /m/own && touch /m/own/x").await?;
    ensure!(!shared.join("own/x").exists() && !slave.join("own/x").exists(), "a slave does not send");
    for id in [both, inward, alone] {
        node.stop_container(&id, 0).await?;
        node.remove_container(&id).await?;
    }
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}

fn appears(path: &Path) -> Result<()> {
    let start = Instant::now();
    while !path.exists() {
        ensure!(start.elapsed() < Duration::from_secs(30), "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// CRI-MNT-04, CRI-MNT-07, CRI-MNT-16, CRI-MNT-17, CRI-CSTAT-06, CRI-CSTAT-07: links of the host are followed before the
/// bind, read-only is the top mount's unless asked for recursively, files are mounted over nothing; the status repeats
/// the request and nothing else.
#[test]
fn binds_follow_links_and_are_as_writable_as_asked() {
    on_a_node(Setup::default(), |node| Box::pin(binds(node)));
}

async fn binds(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let top = node.path("top");
    let sub = top.join("sub");
    std::fs::create_dir_all(&sub)?;
    let link = node.path("link");
    std::os::unix::fs::symlink(&top, &link)?;
    let log = node.path("termination");
    std::fs::write(&log, "")?;
    mount(Some("e2e"), &sub, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    let outcome = bound(node, &image, &link, &log).await;
    umount2(&sub, MntFlags::MNT_DETACH)?;
    outcome
}

async fn bound(node: &Node, image: &str, link: &Path, log: &Path) -> Result<()> {
    let config = pod(node, "binds");
    let sandbox = node.run_pod(&config).await?;
    let mut main = shell("main", image, "exec sleep 1000");
    main.mounts = vec![
        v1::Mount { readonly: true, ..bind(link, "/ro") },
        v1::Mount { readonly: true, recursive_read_only: true, ..bind(link, "/rro") },
        bind(link, "/rw"),
        bind(log, "/not/there/yet/termination-log"),
    ];
    let asked = main.mounts.clone();
    let id = node.run(&sandbox, &config, main).await?;
    node.sh(&id, "touch /rw/a /rw/sub/b && [ -e /ro/a ] && [ -e /ro/sub/b ] && touch /ro/sub/c").await?;
    for path in ["/ro/x", "/rro/x", "/rro/sub/x"] {
        let (code, _, error) = node.exec(&id, &["touch", path]).await?;
        ensure!(code != 0 && error.contains("Read-only"), "{path}: {code} {error}");
    }
    node.sh(&id, "echo -n last words > /not/there/yet/termination-log").await?;
    ensure!(std::fs::read_to_string(log)? == "last words");
    let told = node.container_status(&id).await?.mounts;
    ensure!(told == asked, "{told:?}");
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}
