//! Pulls, side by side with containerd's: `big` of hack/images (real files of Debian packages, gzip and zstd) from a registry
//! on loopback, as fast as it goes and over a line of 20 MB/s; and ten requests for it at once.
//!
//! Each pull is made by a process of its own (`cri-bench pull PULLER IMAGE REQUESTS`) with a new daemon on a new ext4: where
//! thousands of files were deleted a minute ago, ext4 looks for inodes that were not, and that would be measured instead.

use crate::line::Line;
use anyhow::{Context, Result, bail, ensure};
use cri_proto::v1;
use e2e::containerd::{Handler, Release};
use e2e::registry::Registry;
use e2e::{Node, Setup};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const SLOW: u64 = 20_000_000;
/// How long after the answer a daemon may still be at work on what it pulled.
const AFTERWARDS: Duration = Duration::from_secs(5);
const PULLERS: [&str; 3] = ["slipway", "containerd 1.6", "containerd 2"];

/// What one pull took, in the order in which [`pull`] prints it.
struct Cost {
    wall: f64,
    /// Seconds, of the daemon and of what it started: until the answer, and [`AFTERWARDS`] later.
    cpu: [f64; 2],
    /// Megabytes.
    peak_disk: f64,
    disk: f64,
    peak_memory: f64,
    wire: f64,
}

pub(crate) async fn run(rounds: usize) -> Result<()> {
    // Serves the large image from where it lies; a node of its own gives it a place for its configuration.
    let mut host = Node::start(Setup::default()).await?;
    let registry = Registry::start_big(&host).await?;
    let lines = [
        Line::open(registry.host.clone(), None).await?,
        Line::open(registry.host.clone(), Some(SLOW)).await?,
    ];
    for packing in ["gzip", "zstd"] {
        for (line, speed) in lines.iter().zip(["as fast as it goes", "over 20 MB/s"]) {
            compare(line, packing, &format!("{speed}, {rounds} rounds"), rounds, 1).await?;
        }
        compare(&lines[0], packing, &format!("ten at once, {rounds} rounds"), rounds, 10).await?;
    }
    registry.stop().await?;
    host.stop().await
}

async fn compare(line: &Line, packing: &str, title: &str, rounds: usize, at_once: usize) -> Result<()> {
    let image = format!("{}/big:{packing}", line.host);
    let mut costs = PULLERS.map(|_| Vec::new());
    for _ in 0..rounds {
        for (puller, costs) in PULLERS.iter().zip(&mut costs) {
            let cost = on_a_new_disk(puller, &image, line, at_once).await;
            costs.push(cost.with_context(|| format!("{puller}: {packing}, {title}"))?);
        }
    }
    println!("\n# big:{packing}, {title} in turn, medians");
    println!(
        "{:<16}{:>8}{:>8}{:>12}{:>12}{:>8}{:>14}{:>10}",
        "", "wall s", "CPU s", "5 s later", "peak MB", "disk MB", "memory MB", "wire MB"
    );
    let mut walls = Vec::new();
    for (puller, costs) in PULLERS.iter().zip(&costs) {
        let of = |value: fn(&Cost) -> f64| median(costs.iter().map(value).collect());
        walls.push(of(|c| c.wall));
        println!(
            "{puller:<16}{:>8.2}{:>8.2}{:>12.2}{:>12.0}{:>8.0}{:>14.0}{:>10.0}",
            of(|c| c.wall),
            of(|c| c.cpu[0]),
            of(|c| c.cpu[1]),
            of(|c| c.peak_disk),
            of(|c| c.disk),
            of(|c| c.peak_memory),
            of(|c| c.wire),
        );
    }
    for (puller, wall) in PULLERS.iter().zip(&walls).skip(1) {
        println!("{puller} takes {:.1} times as long", wall / walls[0]);
    }
    Ok(())
}

/// Has one pull made where nothing was before.
async fn on_a_new_disk(puller: &str, image: &str, line: &Line, at_once: usize) -> Result<Cost> {
    let dir = tempfile::Builder::new().prefix("pull-").tempdir()?;
    let (disk, mount) = (dir.path().join("disk"), dir.path().join("m"));
    std::fs::create_dir(&mount)?;
    std::fs::File::create(&disk)?.set_len(8 << 30)?;
    must(Command::new("mkfs.ext4").arg("-q").arg(&disk))?;
    must(Command::new("mount").args(["-o", "loop"]).arg(&disk).arg(&mount))?;
    line.carried();
    let words = ["pull", puller, image, &at_once.to_string()].map(str::to_owned);
    let mut child = tokio::process::Command::new(std::env::current_exe()?);
    let output = child.args(words).env("TMPDIR", &mount).kill_on_drop(true).output().await;
    must(Command::new("umount").arg(&mount))?;
    let output = output?;
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{said}{error}");
    let numbers: Vec<f64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [wall, soon, later, peak_disk, disk, peak_memory] = numbers[..] else { bail!("it said {said:?}") };
    Ok(Cost { wall, cpu: [soon, later], peak_disk, disk, peak_memory, wire: megabytes(line.carried()) })
}

fn must(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The other process: one pull by one daemon, `at_once` times at the same time; prints what it took.
pub(crate) async fn pull(words: &[String]) -> Result<()> {
    let [puller, image, at_once] = words else { bail!("pull PULLER IMAGE REQUESTS") };
    let mut node = match puller.as_str() {
        "slipway" => Node::start(Setup::default()).await?,
        "containerd 1.6" => Node::containerd(Release::Debian, Handler::Runc, None).await?,
        _ => Node::containerd(Release::Two, Handler::Runc, None).await?,
    };
    let root = node.path("root");
    let pid = node.daemon_pid()?;
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset the peak of memory")?;
    must(Command::new("sync").arg("-f").arg(&root))?;
    let (used, cpu, start) = (used(&root)?, cpu_seconds(pid)?, Instant::now());
    let mut peak = used;
    let mut pulls = tokio::task::JoinSet::new();
    for _ in 0..at_once.parse::<usize>()? {
        let mut images = node.images().await?;
        let spec = Some(v1::ImageSpec { image: image.clone(), ..Default::default() });
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
    let (wall, soon) = (start.elapsed().as_secs_f64(), cpu_seconds(pid)? - cpu);
    tokio::time::sleep(AFTERWARDS).await;
    must(Command::new("sync").arg("-f").arg(&root))?;
    let (later, disk) = (cpu_seconds(pid)? - cpu, self::used(&root)?);
    let [peak, disk] = [peak, disk].map(|bytes| megabytes(bytes.saturating_sub(used)));
    println!("{wall} {soon} {later} {} {disk} {}", peak.max(disk), megabytes(peak_memory(pid)?));
    node.stop().await
}

/// Bytes in use on the file system of `dir`: which is its own.
fn used(dir: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    Ok((stat.blocks() - stat.blocks_free()) * stat.fragment_size())
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
