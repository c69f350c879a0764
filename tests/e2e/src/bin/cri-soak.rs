//! Pods come and go under containerd with our runtime class, and nothing of them may stay: counts of processes, mounts,
//! namespaces, control groups, descriptors, fifos, sockets and files before and after. hack/soak starts it.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use e2e::Node;
use e2e::containerd::{Handler, Release, census, churn};
use e2e::requests::{pod, shell};
use std::time::{Duration, Instant};

/// After this many pods a line is printed.
const STEP: usize = 100;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: cri-soak [1|2] [PODS]";
    let release = match args.next().as_deref() {
        Some("1") => Release::Debian,
        None | Some("2") => Release::Two,
        Some(_) => bail!(usage),
    };
    let count: usize = args.next().map_or(Ok(1000), |n| n.parse()).context(usage)?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("run as root")?;
    ensure!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success(), "ip");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(soak(release, count))
}

async fn soak(release: Release, count: usize) -> Result<()> {
    let mut node = Node::containerd(release, Handler::Slipway, None).await?;
    let image = node.import_for_cri("busybox").await?;
    // One that stays, so that it is one keeper from first to last.
    let config = pod(&node, "stays");
    let sandbox = node.run_pod(&config).await?;
    node.run(&sandbox, &config, shell("main", &image, "sleep 100000")).await?;
    churn(&node, &image, 8).await?;
    let before = census(&node)?;
    let start = Instant::now();
    for done in (0..count).step_by(STEP) {
        churn(&node, &image, STEP.min(count - done)).await?;
        println!(
            "{:5} pods  {:6.1} s  keeper {} kB",
            done + STEP.min(count - done),
            start.elapsed().as_secs_f64(),
            rss(&node)
        );
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = census(&node)?;
    println!("\n{:<36}{:>8}{:>8}", "", "before", "after");
    before.iter().for_each(|(what, n)| println!("{what:<36}{n:>8}{:>8}", after[what]));
    node.stop().await?;
    let left: Vec<_> =
        node.leaks().into_iter().filter(|l| !l.starts_with("network") && !l.starts_with("nft")).collect();
    ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    ensure!(before == after, "the numbers differ");
    println!("nothing is left behind");
    Ok(())
}

/// Resident memory of guardian and keeper.
fn rss(node: &Node) -> u64 {
    let of = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok())
    };
    node.our_processes().into_iter().filter_map(|(pid, _)| of(pid)).sum()
}
