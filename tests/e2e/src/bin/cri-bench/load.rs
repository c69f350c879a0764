//! What a busy node asks for: whole pods one after another and ten at a time, exec sessions likewise, logs as fast as they
//! come, and lists with a thousand containers. Everybody in turn, A B C A B C.

use crate::quantile;
use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::Node;
use e2e::requests::{pod, shell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Callers at the same time.
const PARALLEL: [usize; 2] = [1, 10];
/// Pods, and exec sessions, of one turn.
const LIVES: usize = 10;
const EXECS: usize = 50;
/// Containers while lists are asked for, how many of them share a pod, and how often each list is asked for in a turn.
const CONTAINERS: usize = 1000;
const OF_A_POD: usize = 50;
const ASKED: usize = 10;
/// A log's line without its end, the lines written in one go, and how often: 200 MB.
const LINE: usize = 99;
const LINES: usize = 200_000;
const REPEATS: usize = 10;
/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// One runtime under measurement.
struct Peer {
    name: &'static str,
    node: Arc<Node>,
    image: String,
    samples: Samples,
    /// What was done in a second, by what; one for each turn.
    rates: BTreeMap<String, Vec<f64>>,
}

type Samples = BTreeMap<String, Vec<Duration>>;

pub(crate) async fn run(peers: Vec<crate::Peer>, rounds: usize) -> Result<()> {
    let mut peers: Vec<_> = peers
        .into_iter()
        .map(|peer| Peer {
            name: peer.name,
            node: Arc::new(peer.node),
            image: peer.image,
            samples: Samples::new(),
            rates: BTreeMap::new(),
        })
        .collect();
    for parallel in PARALLEL {
        for round in 0..=rounds {
            for peer in &mut peers {
                let name = peer.name;
                let named = || format!("{name}: {parallel} at a time, round {round}");
                peer.lives(parallel, round).await.with_context(named)?;
                peer.execs(parallel, round).await.with_context(named)?;
                if round == 0 {
                    // The first one warms caches.
                    peer.forget(parallel);
                }
            }
        }
    }
    for round in 0..rounds {
        for peer in &mut peers {
            let name = peer.name;
            peer.log(round).await.with_context(|| format!("{name}: log, round {round}"))?;
        }
    }
    for peer in &mut peers {
        let name = peer.name;
        peer.many().await.with_context(|| format!("{name}: {CONTAINERS} containers"))?;
    }
    for _ in 0..rounds {
        for peer in &mut peers {
            let name = peer.name;
            peer.lists().await.with_context(|| format!("{name}: lists"))?;
        }
    }
    print(&peers);
    for peer in peers {
        let mut node = Arc::try_unwrap(peer.node).ok().context("a task of the bench still runs")?;
        node.stop().await?;
    }
    Ok(())
}

impl Peer {
    /// Whole pods with one container, `parallel` at a time.
    async fn lives(&mut self, parallel: usize, round: usize) -> Result<()> {
        let (node, image) = (Arc::clone(&self.node), self.image.clone());
        let start = Instant::now();
        let samples = together(parallel, LIVES, move |number| {
            let name = format!("life-{parallel}-{round}-{number}");
            life(Arc::clone(&node), image.clone(), name)
        })
        .await?;
        self.note(parallel, samples);
        self.rate(format!("pods a second, {parallel} at a time"), LIVES as f64, start);
        Ok(())
    }

    /// ExecSync of `true` in one container, `parallel` at a time.
    async fn execs(&mut self, parallel: usize, round: usize) -> Result<()> {
        let config = pod(&self.node, &format!("exec-{parallel}-{round}"));
        let sandbox = self.node.run_pod(&config).await?;
        let id = self.node.run(&sandbox, &config, shell("main", &self.image, "exec sleep 1000")).await?;
        let node = Arc::clone(&self.node);
        let start = Instant::now();
        let samples = together(parallel, EXECS, move |_| {
            let (node, id) = (Arc::clone(&node), id.clone());
            async move {
                let mut samples = Vec::new();
                let (code, ..) = timed(&mut samples, "ExecSync true", node.exec(&id, &["true"])).await?;
                ensure!(code == 0, "true ended with {code}");
                Ok(samples)
            }
        })
        .await?;
        self.note(parallel, samples);
        self.rate(format!("execs a second, {parallel} at a time"), EXECS as f64, start);
        self.node.remove_pod(&sandbox).await
    }

    /// How fast lines get from a container's standard output to the file.
    async fn log(&mut self, round: usize) -> Result<()> {
        let config = pod(&self.node, &format!("log-{round}"));
        let sandbox = self.node.run_pod(&config).await?;
        let line = "x".repeat(LINE);
        let script = format!(
            "yes {line} | head -n {LINES} > /tmp/lines; touch /tmp/ready; while [ ! -e /tmp/go ]; do sleep 0.01; done; \
             for i in $(seq {REPEATS}); do cat /tmp/lines; done; echo end; exec sleep 1000"
        );
        let id = self.node.run(&sandbox, &config, shell("main", &self.image, &script)).await?;
        let begun = Instant::now();
        while self.node.exec(&id, &["test", "-e", "/tmp/ready"]).await?.0 != 0 {
            ensure!(begun.elapsed() < PATIENCE, "the lines are not made");
        }
        let path = self.node.container_status(&id).await?.log_path;
        let start = Instant::now();
        self.node.sh(&id, "touch /tmp/go").await?;
        while !ends_with(Path::new(&path), b" stdout F end\n")? {
            ensure!(start.elapsed() < PATIENCE, "the log does not come to its end");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.rate("MB of log a second".into(), (LINES * REPEATS * (LINE + 1)) as f64 / 1e6, start);
        let lines = LINES * REPEATS + 1;
        let written = std::fs::read(&path)?.iter().filter(|byte| **byte == b'\n').count();
        ensure!(written == lines, "{written} lines in the log, of {lines}");
        self.node.remove_pod(&sandbox).await
    }

    /// Leaves [`CONTAINERS`] running.
    async fn many(&mut self) -> Result<()> {
        for number in 0..CONTAINERS / OF_A_POD {
            let config = pod(&self.node, &format!("many-{number}"));
            let sandbox = self.node.run_pod(&config).await?;
            for inside in 0..OF_A_POD {
                let main = shell(&format!("c{inside}"), &self.image, "exec sleep 100000");
                self.node.run(&sandbox, &config, main).await?;
            }
        }
        Ok(())
    }

    async fn lists(&mut self) -> Result<()> {
        let mut runtime = self.node.runtime().await?;
        let mut samples = Vec::new();
        for _ in 0..ASKED {
            let call = runtime.list_containers(v1::ListContainersRequest::default());
            let listed = timed(&mut samples, "ListContainers", answer(call)).await?.containers;
            ensure!(listed.len() >= CONTAINERS, "{} are listed", listed.len());
            let call = runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default());
            timed(&mut samples, "ListPodSandbox", answer(call)).await?;
            let call = runtime.list_container_stats(v1::ListContainerStatsRequest::default());
            timed(&mut samples, "ListContainerStats", answer(call)).await?;
            let call = runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default());
            timed(&mut samples, "ListPodSandboxStats", answer(call)).await?;
        }
        for (what, took) in samples {
            self.samples.entry(format!("{what}, {CONTAINERS} containers")).or_default().push(took);
        }
        Ok(())
    }

    fn note(&mut self, parallel: usize, samples: Vec<(&'static str, Duration)>) {
        for (what, took) in samples {
            self.samples.entry(format!("{what}, {parallel} at a time")).or_default().push(took);
        }
    }

    fn rate(&mut self, what: String, count: f64, start: Instant) {
        self.rates.entry(what).or_default().push(count / start.elapsed().as_secs_f64());
    }

    fn forget(&mut self, parallel: usize) {
        let of_these = format!(", {parallel} at a time");
        self.samples.retain(|what, _| !what.ends_with(&of_these));
        self.rates.retain(|what, _| !what.ends_with(&of_these));
    }
}

/// One pod with one container from first to last, each call timed.
async fn life(node: Arc<Node>, image: String, name: String) -> Result<Vec<(&'static str, Duration)>> {
    let mut samples = Vec::new();
    let config = pod(&node, &name);
    let sandbox = timed(&mut samples, "RunPodSandbox", node.run_pod(&config)).await?;
    let main = shell("main", &image, "exec sleep 1000");
    let id = timed(&mut samples, "CreateContainer", node.create(&sandbox, &config, main)).await?;
    timed(&mut samples, "StartContainer", node.start_container(&id)).await?;
    timed(&mut samples, "StopContainer", node.stop_container(&id, 0)).await?;
    timed(&mut samples, "RemoveContainer", node.remove_container(&id)).await?;
    timed(&mut samples, "StopPodSandbox", node.stop_pod(&sandbox)).await?;
    timed(&mut samples, "RemovePodSandbox", node.remove_pod(&sandbox)).await?;
    Ok(samples)
}

/// Does it `count` times, never more than `parallel` at once.
async fn together<F>(
    parallel: usize,
    count: usize,
    one: impl Fn(usize) -> F,
) -> Result<Vec<(&'static str, Duration)>>
where
    F: Future<Output = Result<Vec<(&'static str, Duration)>>> + Send + 'static,
{
    let (mut tasks, mut samples) = (JoinSet::new(), Vec::new());
    for number in 0..count {
        if tasks.len() == parallel
            && let Some(done) = tasks.join_next().await
        {
            samples.extend(done??);
        }
        tasks.spawn(one(number));
    }
    while let Some(done) = tasks.join_next().await {
        samples.extend(done??);
    }
    Ok(samples)
}

async fn timed<T>(
    samples: &mut Vec<(&'static str, Duration)>,
    what: &'static str,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    let start = Instant::now();
    let answer = call.await.context(what)?;
    samples.push((what, start.elapsed()));
    Ok(answer)
}

async fn answer<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T> {
    Ok(call.await?.into_inner())
}

fn ends_with(path: &Path, end: &[u8]) -> Result<bool> {
    let mut file = std::fs::File::open(path)?;
    let Some(at) = file.metadata()?.len().checked_sub(end.len() as u64) else { return Ok(false) };
    file.seek(SeekFrom::Start(at))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(tail.ends_with(end))
}

fn print(peers: &[Peer]) {
    let Some((last, others)) = peers.split_last() else { return };
    let heads: Vec<_> = others.iter().map(|peer| peer.name).collect();
    let head = || {
        peers.iter().for_each(|peer| print!("{:>24}", peer.name));
        println!("   {} / {}", last.name, heads.join(", "));
    };
    print!("{:<40}", "# in a second, medians");
    head();
    for (what, theirs) in &last.rates {
        print!("{what:<40}");
        let theirs = median(theirs);
        let of_all: Vec<_> = peers.iter().map(|peer| median(&peer.rates[what])).collect();
        of_all.iter().for_each(|rate| print!("{rate:>24.1}"));
        let ours = of_all.iter().take(others.len());
        let ratios: Vec<_> = ours.map(|rate| format!("{:.1}x", rate / theirs)).collect();
        println!("   {}", ratios.join(", "));
    }
    print!("\n{:<40}", "# ms, p50 (p95)");
    head();
    for what in last.samples.keys() {
        print!("{what:<40}");
        let mut medians = Vec::new();
        for peer in peers {
            let mut samples = peer.samples[what].clone();
            let (p50, p95) = (quantile(&mut samples, 0.5), quantile(&mut samples, 0.95));
            print!("{:>24}", format!("{p50:.2} ({p95:.2})"));
            medians.push(p50);
        }
        let theirs = medians.pop().unwrap_or_default();
        let ratios: Vec<_> = medians.iter().map(|median| format!("{:.1}x", theirs / median)).collect();
        println!("   {}", ratios.join(", "));
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
