//! `hack/bench runtime`: the same container made by everybody in turn, in one run.
//!
//!   runtime_bench [--rounds N] [--program NAME=PATH]...
//!
//! Prints, per contender, the median (p10 in brackets) in milliseconds of a whole life of /bin/true with the default seccomp
//! profile: with and without a network namespace of its own, and with 100 ms of rest before each; of the parts of a life
//! and of `run`; the CPU time of a life; what the seccomp profile costs; the peak of memory of a `run`; the smallest memory
//! limit under which it works.
//! As root.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made has nothing to say")]
#![allow(unreachable_pub, missing_debug_implementations, reason = "a program of its own")]

#[path = "../../tests/common/mod.rs"]
mod common;
mod filter;
mod floor;
mod memory;
mod peers;

use floor::Floor;
use peers::{Bundle, Life, Peer, config};
use std::path::PathBuf;
use std::time::Duration;

/// One duration of a life.
type Part = fn(&Life) -> Duration;

const REST: Duration = Duration::from_millis(100);

/// One way of running a life.
struct Column {
    title: &'static str,
    network: bool,
    rest: Duration,
}

const COLUMNS: [Column; 3] = [
    Column { title: "network ns", network: true, rest: Duration::ZERO },
    Column { title: "no network ns", network: false, rest: Duration::ZERO },
    Column { title: "100 ms rest", network: true, rest: REST },
];

fn main() {
    let (rounds, programs) = arguments();
    let rig = common::Rig::new();
    let rootfs = rig.path("lower");
    // Whatever a runtime leaves to its parent is ours: the containers' processes.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let bundles = [true, false].map(|network| {
        Bundle::new(rig.path(if network { "with" } else { "without" }), &config(&rootfs, network))
    });
    let mut peers = vec![Peer::InProcess];
    for (name, path) in programs {
        let state = rig.path(&format!("state-{name}"));
        peers.push(Peer::Program { name, path, state });
    }
    println!("{rounds} rounds, in turn; ms, p50 (p10)\n");
    print!("{:<14}", "whole life");
    COLUMNS.iter().for_each(|column| print!("{:>22}", column.title));
    println!("{:>12}{:>12}", "x floor", "CPU");
    let mut lives: Vec<Vec<Vec<Life>>> = Vec::new();
    let mut floors: Vec<Vec<Life>> = Vec::new();
    let mut cpu = vec![Duration::ZERO; peers.len() + 1];
    for column in &COLUMNS {
        let bundle = if column.network { &bundles[0] } else { &bundles[1] };
        let floor = Peer::Floor(Box::new(floor_of(bundle)));
        let mut all: Vec<Vec<Life>> = vec![Vec::new(); peers.len() + 1];
        for round in 0..=rounds {
            for (index, peer) in std::iter::once(&floor).chain(&peers).enumerate() {
                std::thread::sleep(column.rest);
                let before = used();
                let life = peer.life(bundle).unwrap_or_else(|e| panic!("{}: {e}", peer.name()));
                // The first round only warms caches.
                if round > 0 {
                    all[index].push(life);
                    if column.rest.is_zero() && column.network {
                        cpu[index] += used() - before;
                    }
                }
            }
        }
        floors.push(all.remove(0));
        lives.push(all);
    }
    let whole = |life: &Life| life.whole;
    let row = |name: &str, columns: Vec<&[Life]>, cpu: Duration| {
        print!("{name:<14}");
        columns.iter().for_each(|lives| print!("{:>22}", shown(lives, whole)));
        let ratio = quantile(columns[0], whole, 50) / quantile(&floors[0], whole, 50);
        println!("{ratio:>12.2}{:>12.2}", cpu.as_secs_f64() * 1000.0 / rounds as f64);
    };
    row("floor", floors.iter().map(Vec::as_slice).collect(), cpu[0]);
    for (index, peer) in peers.iter().enumerate() {
        row(peer.name(), lives.iter().map(|column| column[index].as_slice()).collect(), cpu[index + 1]);
    }
    parts(&peers, &lives[0], &bundles[0], rounds);
    filter::table(&bundles[0].config["linux"]["seccomp"]);
    memory::table(&peers, &bundles[0]);
}

fn arguments() -> (usize, Vec<(String, PathBuf)>) {
    let (mut rounds, mut programs) = (30, Vec::new());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_else(|| panic!("{word}: a value is missing"));
        match &*word {
            "--rounds" => rounds = value.parse().unwrap_or_else(|_| panic!("--rounds: a number")),
            "--program" => {
                let (name, path) = value.split_once('=').unwrap_or_else(|| panic!("--program NAME=PATH"));
                programs.push((name.to_owned(), PathBuf::from(path)));
            }
            _ => panic!("unknown word {word}: --rounds N, --program NAME=PATH"),
        }
    }
    (rounds, programs)
}

fn floor_of(bundle: &Bundle) -> Floor {
    let profile = serde_json::from_value(bundle.config["linux"]["seccomp"].clone()).unwrap();
    let filter = slipway_runtime::seccomp::compile(&profile).unwrap().program();
    let namespaces = bundle.config["linux"]["namespaces"].as_array().unwrap();
    Floor::new(&bundle.rootfs(), filter, namespaces.iter().any(|namespace| namespace["type"] == "network"))
}

/// The parts of a life, and `run`.
fn parts(peers: &[Peer], lives: &[Vec<Life>], bundle: &Bundle, rounds: usize) {
    let parts: [(&str, Part); 4] =
        [("create", |l| l.create), ("start", |l| l.start), ("wait", |l| l.wait), ("delete", |l| l.delete)];
    print!("\n{:<14}", "parts");
    parts.iter().for_each(|(name, _)| print!("{name:>18}"));
    println!("{:>18}", "run");
    for (peer, lives) in peers.iter().zip(lives) {
        print!("{:<14}", peer.name());
        parts.iter().for_each(|(_, part)| print!("{:>18}", shown(lives, *part)));
        if peer.is_program() {
            let run = |_| Life { whole: peer.run(bundle).unwrap(), ..Life::default() };
            let runs: Vec<Life> = (0..rounds).map(run).collect();
            println!("{:>18}", shown(&runs, |life| life.whole));
        } else {
            println!("{:>18}", "-");
        }
    }
}

fn shown(lives: &[Life], part: Part) -> String {
    format!("{:.2} ({:.2})", quantile(lives, part, 50), quantile(lives, part, 10))
}

fn quantile(lives: &[Life], part: Part, percent: usize) -> f64 {
    let mut times: Vec<Duration> = lives.iter().map(part).collect();
    times.sort_unstable();
    times[times.len() * percent / 100].as_secs_f64() * 1000.0
}

/// Processor time of this process and of the children it has reaped.
fn used() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let micros = [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN].map(|who| {
        let usage = getrusage(who).unwrap();
        let (user, system) = (usage.user_time(), usage.system_time());
        (user.tv_sec() + system.tv_sec()) * 1_000_000 + user.tv_usec() + system.tv_usec()
    });
    Duration::from_micros(micros.iter().sum::<i64>().unsigned_abs())
}
