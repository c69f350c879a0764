//! Writable layers limited by project quotas of the file system; what a node without them says.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::requests::{pod, shell};
use e2e::{Node, Setup, on_a_node};

const LIMIT: &str = "[containers]\nwritable_layer_limit = \"8Mi\"\n";
const MIB: u64 = 1 << 20;

/// IMG-OVL-17, CRI-SS-12.
#[test]
fn a_container_writes_no_more_than_its_layer_may_hold() {
    let setup = Setup { quotas: true, config: LIMIT, ..Default::default() };
    on_a_node(setup, |node| Box::pin(limited(node)));
}

async fn limited(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "limited");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, "exec sleep 1000")).await?;
    let fill = &["dd", "if=/dev/zero", "of=/fill", "bs=1M", "count=16"];
    let (code, _, error) = node.exec(&id, fill).await?;
    if !node.has_quotas()? {
        // Nothing is limited, and the daemon said so when it started.
        ensure!(code == 0, "{error}");
        return says_why(node).await;
    }
    ensure!(code != 0 && error.contains("quota exceeded"), "{code}: {error}");
    // Other containers have limits of their own; one file from the image may be written, which copies it up.
    let other = node.run(&sandbox, &config, shell("other", &image, "exec sleep 1000")).await?;
    node.sh(&other, "echo more >>/etc/passwd && dd if=/dev/zero of=/half bs=1M count=4").await?;
    node.sh(&id, "rm /fill && dd if=/dev/zero of=/again bs=1M count=4 && mkdir /d && mv /again /d/moved")
        .await?;

    let used = used(node, &other).await?;
    ensure!((4 * MIB..5 * MIB).contains(&used), "{used}");

    // Neither number nor limit outlives the container: as many as come and go find their own.
    for round in 0..3 {
        let id = node.create(&sandbox, &config, shell("brief", &image, "true")).await?;
        node.remove_container(&id).await.with_context(|| format!("round {round}"))?;
    }
    // A limit that is lifted by SIGHUP counts for the next containers; the old ones keep theirs.
    std::fs::write(node.path("config.d/50-no-limit.toml"), LIMIT.replace("8Mi", "0"))?;
    let daemon = nix::unistd::Pid::from_raw(node.daemon_pid()?);
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGHUP)?;
    let reloaded = |log: &str| log.contains("applied: containers.writable_layer_limit");
    for _ in 0..200 {
        if reloaded(&node.log_tail(200)) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    ensure!(reloaded(&node.log_tail(200)), "the reload is told");
    let free = node.run(&sandbox, &config, shell("free", &image, "exec sleep 1000")).await?;
    ensure!(node.exec(&free, fill).await?.0 == 0, "no limit");
    let (code, _, error) = node.exec(&id, fill).await?;
    ensure!(code != 0 && error.contains("quota exceeded"), "{code}: {error}");
    Ok(())
}

async fn says_why(node: &Node) -> Result<()> {
    let log = node.log_tail(200);
    ensure!(
        log.contains("containers.writable_layer_limit has no effect") && log.contains("prjquota"),
        "{log}"
    );
    let mut check = node.slipway_command(&["check", "--root"]);
    let checked = check.arg(node.path("root")).arg("--config").arg(node.path("config.toml")).output().await?;
    let said = String::from_utf8_lossy(&checked.stdout);
    ensure!(said.contains("project quotas") && said.contains("prjquota"), "{said}");
    Ok(())
}

async fn used(node: &Node, id: &str) -> Result<u64> {
    let request = v1::ContainerStatsRequest { container_id: id.into() };
    let stats = node.runtime().await?.container_stats(request).await?.into_inner().stats.context("stats")?;
    Ok(stats.writable_layer.and_then(|layer| layer.used_bytes).context("a writable layer")?.value)
}
