//! Pulls, side by side with containerd's: `big` of hack/images (real files of Debian packages, gzip and zstd) from a registry
//! on loopback, as fast as it goes and over a line of 20 MB/s; and ten requests for it at once.

use crate::line::Line;
use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::containerd::{Handler, Release};
use e2e::registry::Registry;
use e2e::{Node, Setup};
use std::path::Path;
use std::time::{Duration, Instant};

const SLOW: u64 = 20_000_000;
/// What is below this is no image: databases and directories.
const EMPTY: u64 = 20 << 20;
/// How long after the answer a daemon may still be at work on what it pulled.
const AFTERWARDS: Duration = Duration::from_secs(5);

struct Puller {
    name: &'static str,
    node: Node,
}

/// What one pull took.
struct Cost {
    wall: Duration,
    /// Of the daemon and of what it started: until the answer, and [`AFTERWARDS`] later.
    cpu: [f64; 2],
    peak_disk: u64,
    disk: u64,
    peak_memory: u64,
    wire: u64,
}

pub(crate) async fn run(rounds: usize) -> Result<()> {
    let ours = Node::start(Setup::default()).await?;
    let registry = Registry::start_big(&ours).await?;
    let lines = [
        Line::open(registry.host.clone(), None).await?,
        Line::open(registry.host.clone(), Some(SLOW)).await?,
    ];
    let mut pullers = vec![Puller { name: "slipway", node: ours }];
    for (name, release) in [("containerd 1.6", Release::Debian), ("containerd 2", Release::Two)] {
        pullers.push(Puller { name, node: Node::containerd(release, Handler::Runc, None).await? });
    }
    for packing in ["gzip", "zstd"] {
        for (line, speed) in lines.iter().zip(["as fast as it goes", "over 20 MB/s"]) {
            compare(&pullers, line, packing, &format!("{speed}, {rounds} rounds"), rounds, 1).await?;
        }
        let title = format!("ten at once, {rounds} rounds");
        compare(&pullers, &lines[0], packing, &title, rounds, 10).await?;
    }
    registry.stop().await?;
    for puller in &mut pullers {
        puller.node.stop().await?;
    }
    Ok(())
}

async fn compare(
    pullers: &[Puller],
    line: &Line,
    packing: &str,
    title: &str,
    rounds: usize,
    at_once: usize,
) -> Result<()> {
    let image = format!("{}/big:{packing}", line.host);
    let mut costs: Vec<Vec<Cost>> = pullers.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (puller, costs) in pullers.iter().zip(&mut costs) {
            let cost = puller.pull(&image, line, at_once).await;
            costs.push(cost.with_context(|| format!("{}: {packing}, {title}", puller.name))?);
        }
    }
    println!("\n# big:{packing}, {title} in turn, medians");
    println!(
        "{:<16}{:>8}{:>8}{:>12}{:>12}{:>8}{:>14}{:>10}",
        "", "wall s", "CPU s", "5 s later", "peak disk", "disk", "peak memory", "wire MB"
    );
    let mut walls = Vec::new();
    for (puller, costs) in pullers.iter().zip(&costs) {
        let of = |value: fn(&Cost) -> f64| median(costs.iter().map(value).collect());
        walls.push(of(|c| c.wall.as_secs_f64()));
        println!(
            "{:<16}{:>8.2}{:>8.2}{:>12.2}{:>12.0}{:>8.0}{:>14.0}{:>10.0}",
            puller.name,
            of(|c| c.wall.as_secs_f64()),
            of(|c| c.cpu[0]),
            of(|c| c.cpu[1]),
            of(|c| megabytes(c.peak_disk)),
            of(|c| megabytes(c.disk)),
            of(|c| megabytes(c.peak_memory)),
            of(|c| megabytes(c.wire)),
        );
    }
    for (puller, wall) in pullers.iter().zip(&walls).skip(1) {
        println!("{} takes {:.1} times as long", puller.name, wall / walls[0]);
    }
    Ok(())
}

impl Puller {
    /// Pulls what is not there, `at_once` times at the same time, and removes it again.
    async fn pull(&self, image: &str, line: &Line, at_once: usize) -> Result<Cost> {
        let root = self.node.path("root");
        written_back(&root)?;
        let pid = self.node.daemon_pid()?;
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset the peak of memory")?;
        line.carried();
        let (used, cpu, start) = (used(&root)?, cpu_seconds(pid)?, Instant::now());
        let mut peak = used;
        let mut pulls = tokio::task::JoinSet::new();
        for _ in 0..at_once {
            let mut images = self.node.images().await?;
            let spec = Some(v1::ImageSpec { image: image.into(), ..Default::default() });
            let request = v1::PullImageRequest { image: spec, ..Default::default() };
            pulls.spawn(async move { images.pull_image(request).await });
        }
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        loop {
            tokio::select! {
                pulled = pulls.join_next() => match pulled {
                    Some(pulled) => { pulled??; }
                    None => break,
                },
                _ = tick.tick() => peak = peak.max(self::used(&root)?),
            }
        }
        let (wall, soon) = (start.elapsed(), cpu_seconds(pid)? - cpu);
        let disk = tree_size(&root);
        tokio::time::sleep(AFTERWARDS).await;
        let cost = Cost {
            wall,
            cpu: [soon, cpu_seconds(pid)? - cpu],
            peak_disk: peak.saturating_sub(used),
            disk,
            peak_memory: peak_memory(pid)?,
            wire: line.carried(),
        };
        self.remove(image, &root).await?;
        Ok(cost)
    }

    /// Until nothing of it is on the disk: containerd collects its garbage later.
    async fn remove(&self, image: &str, root: &Path) -> Result<()> {
        let spec = Some(v1::ImageSpec { image: image.into(), ..Default::default() });
        self.node.images().await?.remove_image(v1::RemoveImageRequest { image: spec }).await?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while tree_size(root) > EMPTY {
            ensure!(Instant::now() < deadline, "{image} is still on the disk a minute after its removal");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

/// One round's writes are not the next one's wait.
fn written_back(dir: &Path) -> Result<()> {
    let status = std::process::Command::new("sync").arg("-f").arg(dir).status()?;
    ensure!(status.success(), "sync -f {}", dir.display());
    Ok(())
}

/// Bytes in use on the file system of `dir`: of everybody, so a quiet machine is needed.
fn used(dir: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    Ok((stat.blocks() - stat.blocks_free()) * stat.fragment_size())
}

/// Bytes of the blocks of all files below `dir`. What vanishes meanwhile does not count.
fn tree_size(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, meta)| meta.blocks() * 512 + if meta.is_dir() { tree_size(&path) } else { 0 })
        .sum()
}

/// User and system time of a process and of its children that have ended (proc_pid_stat(5), fields 14 to 17).
fn cpu_seconds(pid: i32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("a process's stat")?;
    let ticks = fields.split(' ').skip(11).take(4).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / 100.0)
}

/// Bytes: the most that was resident since the reset.
fn peak_memory(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kilobytes << 10)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
