//! Memory: the peak that a `run` is charged for, and the smallest limit of a container in which /bin/true runs.

use crate::peers::{Bundle, Peer};
use serde_json::json;
use slipway_runtime::host::{CgroupLayout, Host};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const KIB: u64 = 1024;

pub fn table(peers: &[Peer], bundle: &Bundle) {
    println!("\n{:<14}{:>18}{:>18}", "memory, KiB", "peak of a run", "smallest limit");
    let shown = |bytes: u64| (bytes / KIB).to_string();
    for peer in peers {
        let peak = if peer.is_program() { shown(peak(peer, bundle)) } else { "-".to_owned() };
        println!("{:<14}{peak:>18}{:>18}", peer.name(), shown(smallest(peer, bundle)));
    }
}

/// Runs of one program that its peak is the median of: the kernel charges in lots of 256 KiB for each CPU, and one run says
/// little.
const RUNS: usize = 15;

/// What a control group around a `run` was charged at most.
fn peak(peer: &Peer, bundle: &Bundle) -> u64 {
    let (group, procs, file) = match Host::current().cgroups {
        CgroupLayout::V1 => ("/sys/fs/cgroup/memory", "tasks", "memory.max_usage_in_bytes"),
        CgroupLayout::V2 => ("/sys/fs/cgroup", "cgroup.procs", "memory.peak"),
    };
    let group = PathBuf::from(group).join(format!("slipway-bench-peak-{}", std::process::id()));
    fs::create_dir(&group).unwrap();
    let words = peer.words(&["run", "--bundle", bundle.dir.to_str().unwrap(), "bench"]);
    let run = || {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 0 > $0 && exec taskset -c 0 \"$@\""]).arg(group.join(procs)).args(&words);
        assert!(command.stdin(Stdio::null()).status().unwrap().success(), "{}", peer.name());
    };
    // The first one may be charged for pages of files.
    run();
    let mut peaks = Vec::new();
    for _ in 0..RUNS {
        fs::remove_dir(&group).unwrap();
        fs::create_dir(&group).unwrap();
        run();
        peaks.push(fs::read_to_string(group.join(file)).unwrap().trim().parse().unwrap());
    }
    fs::remove_dir(&group).unwrap();
    peaks.sort_unstable();
    peaks[RUNS / 2]
}

/// Bisected to 64 KiB; a limit counts only if three runs succeed.
fn smallest(peer: &Peer, bundle: &Bundle) -> u64 {
    let (mut fails, mut works) = (0, 64 * 1024 * KIB);
    let mut tight = Bundle::new(bundle.dir.with_extension("tight"), &bundle.config);
    while works - fails > 64 * KIB {
        let limit = (fails + works) / 2 / (4 * KIB) * 4 * KIB;
        tight.config["linux"]["resources"]["memory"] = json!({"limit": limit});
        tight.write();
        let lives = |_| peer.life(&tight).is_ok();
        if (0..3).all(lives) { works = limit } else { fails = limit }
    }
    works
}
