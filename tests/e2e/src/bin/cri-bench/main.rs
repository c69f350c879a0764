//! Side by side in one run, the same client, the same image, the same CNI configuration, A B C A B C: Slipway (CNI and
//! built-in network) and Debian's containerd+runc; or, with `containerd`, containerd 2 with our runtime class (without
//! and with pause containers) and with runc. Prints medians and ratios; judges nothing. With `load`: many callers, log lines
//! and containers; with `phases`: where the time goes within our own daemon; with `stuck`: what one container costs the
//! others that no signal reaches. hack/bench starts it.

#![forbid(unsafe_code)]

mod images;
mod line;
mod load;
mod phases;
mod stuck;

use anyhow::{Context, Result, ensure};
use e2e::containerd::{Handler, Release};
use e2e::registry::Registry;
use e2e::requests::{pod, shell};
use e2e::{Node, Setup};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const CNI: &str = r#"{"cniVersion": "1.0.0", "name": "bench", "plugins": [
  {"type": "bridge", "bridge": "cni-BRIDGE", "isGateway": true, "ipMasq": true,
   "ipam": {"type": "host-local", "dataDir": "DATA", "ranges": [[{"subnet": "SUBNET"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

/// One runtime under measurement, spoken to through a [`Node`]'s calls.
struct Peer {
    name: &'static str,
    node: Node,
    image: String,
    samples: BTreeMap<&'static str, Vec<Duration>>,
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Some(("pull", words)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return runtime.block_on(images::pull(words));
    }
    let mut args = words.into_iter().peekable();
    let what =
        args.next_if(|word| ["containerd", "load", "phases", "stuck", "images"].contains(&word.as_str()));
    let usual = match what.as_deref() {
        Some("stuck") => 1000,
        Some("images" | "load") => 3,
        _ => 30,
    };
    let rounds: usize = args
        .next()
        .map_or(Ok(usual), |n| n.parse())
        .context("usage: cri-bench [containerd | load | phases | images] [ROUNDS] | stuck [CONTAINERS]")?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("run as root")?;
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    ensure!(up.success(), "ip link set lo up");
    runtime.block_on(async {
        match what.as_deref() {
            Some("phases") => phases::run(rounds).await,
            Some("stuck") => stuck::run(rounds).await,
            Some("images") => images::run(rounds).await,
            Some("load") => load::run(daemons().await?, rounds).await,
            Some(_) => bench(behind_containerd().await?, rounds).await,
            None => bench(daemons().await?, rounds).await,
        }
    })
}

/// Our daemon twice, and Debian's containerd.
async fn daemons() -> Result<Vec<Peer>> {
    let cni = Some(&*conflist("ours", "10.61.0.0/16").leak());
    let ours_cni = Node::start(Setup { cni, ..Setup::default() }).await?;
    let registry = Registry::start(&ours_cni).await?;
    let image = registry.image("busybox:1");
    let ours_builtin = Node::start(Setup::default()).await?;
    let theirs =
        Node::containerd(Release::Debian, Handler::Runc, Some(&conflist("theirs", "10.62.0.0/16"))).await?;
    theirs.import_for_cri("busybox").await?;
    let mut peers = Vec::new();
    for (name, node) in
        [("slipway+cni", ours_cni), ("slipway built-in", ours_builtin), ("containerd+runc", theirs)]
    {
        node.pull(&image).await.with_context(|| format!("{name}: pull"))?;
        peers.push(Peer::new(name, node, image.clone()));
    }
    registry.stop().await?;
    Ok(peers)
}

/// containerd 2 three times, the last one with runc.
async fn behind_containerd() -> Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for (name, handler, subnet) in [
        ("slipway", Handler::Slipway, "10.61.0.0/16"),
        ("slipway+pause", Handler::SlipwayClassic, "10.62.0.0/16"),
        ("runc", Handler::Runc, "10.63.0.0/16"),
    ] {
        let node = Node::containerd(Release::Two, handler, Some(&conflist(&subnet[3..5], subnet))).await?;
        let image = node.import_for_cri("busybox").await?;
        peers.push(Peer::new(name, node, image));
    }
    Ok(peers)
}

async fn bench(mut peers: Vec<Peer>, rounds: usize) -> Result<()> {
    println!("# latency, {rounds} rounds in turn; ms p50 (p95)");
    for round in 0..=rounds {
        for peer in &mut peers {
            peer.life(round).await.with_context(|| format!("{}: round {round}", peer.name))?;
        }
        if round == 0 {
            // The first round warms caches.
            peers.iter_mut().for_each(|p| p.samples.clear());
        }
    }
    print_table(&peers);
    println!(
        "\n# memory, PSS in kB of everything that is the runtime's (pause processes too, workloads and the daemon not)"
    );
    let mut slopes = Vec::new();
    for peer in &mut peers {
        slopes.push(peer.memory().await.with_context(|| format!("{}: memory", peer.name))?);
    }
    if let Some((theirs, others)) = slopes.split_last() {
        for (peer, slope) in peers.iter().zip(others) {
            let last = peers.last().map_or("", |peer| peer.name);
            // What is below the noise of a page is "nothing", not a ratio.
            println!("{}: a pod costs {:.1} times less than with {last}", peer.name, theirs / slope.max(4.0));
        }
    }
    for peer in &mut peers {
        peer.node.stop().await?;
    }
    // They share one network namespace, which goes with this process: links and rules say nothing here.
    for peer in &peers {
        let left =
            peer.node.leaks().into_iter().filter(|l| !l.starts_with("network") && !l.starts_with("nft"));
        left.for_each(|leak| println!("{} left behind: {leak}", peer.name));
    }
    Ok(())
}

fn conflist(bridge: &str, subnet: &str) -> String {
    let data = std::env::temp_dir().join(format!("slipway-bench-{}-{bridge}", std::process::id()));
    CNI.replace("BRIDGE", bridge).replace("SUBNET", subnet).replace("DATA", &data.display().to_string())
}

impl Peer {
    fn new(name: &'static str, node: Node, image: String) -> Self {
        Self { name, node, image, samples: BTreeMap::new() }
    }

    /// One pod with one container from first to last, each call timed.
    async fn life(&mut self, round: usize) -> Result<()> {
        let config = pod(&self.node, &format!("bench-{round}"));
        let sandbox = timed(&mut self.samples, "RunPodSandbox", self.node.run_pod(&config)).await?;
        let main = shell("main", &self.image, "exec sleep 1000");
        let id =
            timed(&mut self.samples, "CreateContainer", self.node.create(&sandbox, &config, main)).await?;
        timed(&mut self.samples, "StartContainer", self.node.start_container(&id)).await?;
        for _ in 0..3 {
            timed(&mut self.samples, "ExecSync true", self.node.exec(&id, &["true"])).await?;
            timed(&mut self.samples, "ContainerStatus", self.node.container_status(&id)).await?;
        }
        timed(&mut self.samples, "StopContainer", self.node.stop_container(&id, 0)).await?;
        timed(&mut self.samples, "RemoveContainer", self.node.remove_container(&id)).await?;
        timed(&mut self.samples, "StopPodSandbox", self.node.stop_pod(&sandbox)).await?;
        timed(&mut self.samples, "RemovePodSandbox", self.node.remove_pod(&sandbox)).await
    }

    /// Idle pods (each one sleeping container) at 0, 5, 20 and 50; the slope, in kB, is what a pod costs. Answered for all
    /// that is the runtime's, the daemon not.
    async fn memory(&mut self) -> Result<f64> {
        let mut points = vec![(0, self.pss())];
        let mut running = 0;
        for target in [5, 20, 50] {
            while running < target {
                let config = pod(&self.node, &format!("idle-{running}"));
                let sandbox = self.node.run_pod(&config).await?;
                self.node.run(&sandbox, &config, shell("main", &self.image, "exec sleep 1000")).await?;
                running += 1;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            points.push((target, self.pss()));
        }
        let text: Vec<_> =
            points.iter().map(|(n, (kb, daemon))| format!("{n} pods {kb} + {daemon}")).collect();
        let slope = |of: fn((u64, u64)) -> u64| {
            let (first, last) = (points[1], points[3]);
            (of(last.1) as f64 - of(first.1) as f64) / f64::from(last.0 - first.0)
        };
        let (own, daemon) = (slope(|(own, _)| own), slope(|(_, daemon)| daemon));
        println!("{:<18} {}; per pod {own:.0} + {daemon:.0}", self.name, text.join(", "));
        Ok(own)
    }

    /// Of everything but the daemon, and of the daemon.
    fn pss(&self) -> (u64, u64) {
        let daemon = self.node.daemon_pid().ok();
        let rest = self.node.runtime_pids().into_iter().filter(|pid| Some(*pid) != daemon);
        (rest.filter_map(pss_of).sum(), daemon.and_then(pss_of).unwrap_or_default())
    }
}

fn pss_of(pid: i32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|l| l.starts_with("Pss:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

async fn timed<T>(
    samples: &mut BTreeMap<&'static str, Vec<Duration>>,
    what: &'static str,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    let start = Instant::now();
    let answer = call.await.with_context(|| what)?;
    samples.entry(what).or_default().push(start.elapsed());
    Ok(answer)
}

fn quantile(samples: &mut [Duration], q: f64) -> f64 {
    samples.sort_unstable();
    let index = ((samples.len() - 1) as f64 * q).round() as usize;
    samples[index].as_secs_f64() * 1000.0
}

fn print_table(peers: &[Peer]) {
    let operations: Vec<_> = peers[0].samples.keys().copied().collect();
    print!("{:<18}", "");
    peers.iter().for_each(|p| print!("{:>22}", p.name));
    let (last, others) = peers.split_last().expect("peers");
    println!(
        "   {} /{}",
        last.name,
        others.iter().map(|p| format!(" {}", p.name)).collect::<Vec<_>>().join(",")
    );
    for operation in operations {
        print!("{operation:<18}");
        let mut medians = Vec::new();
        for peer in peers {
            let mut samples = peer.samples[operation].clone();
            let (p50, p95) = (quantile(&mut samples, 0.5), quantile(&mut samples, 0.95));
            print!("{:>22}", format!("{p50:.2} ({p95:.2})"));
            medians.push(p50);
        }
        let (last, others) = medians.split_last().expect("peers");
        let ratios: Vec<_> = others.iter().map(|median| format!("{:.1}x", last / median)).collect();
        println!("   {}", ratios.join(", "));
    }
}
