//! Median cost of each control group call on this host, in microseconds.
//!
//!     cargo run --release -p slipway-runtime --example cgroup_bench [rounds]
//!
//! As root. Uses a group of its own (/slipway-bench-<pid>) and leaves nothing.

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder, LinuxPidsBuilder,
    LinuxResources, LinuxResourcesBuilder,
};
use slipway_runtime::cgroup::Cgroup;
use std::error::Error;
use std::time::{Duration, Instant};

/// What kubelet asks of an ordinary container, with the device list that containers get by default.
fn resources() -> Result<LinuxResources, Box<dyn Error>> {
    let cpu = LinuxCpuBuilder::default().shares(512u64).quota(50_000i64).period(100_000u64).build()?;
    let memory = LinuxMemoryBuilder::default().limit(256i64 << 20).swap(256i64 << 20).build()?;
    let pids = LinuxPidsBuilder::default().limit(1000i64).build()?;
    let mut devices = vec![LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?];
    let any = [(LinuxDeviceType::C, "m"), (LinuxDeviceType::B, "m")];
    for (kind, access) in any {
        devices.push(LinuxDeviceCgroupBuilder::default().allow(true).typ(kind).access(access).build()?);
    }
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, -1)] {
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::C).access("rwm");
        devices.push(rule.major(major).minor(minor).build()?);
    }
    Ok(LinuxResourcesBuilder::default().cpu(cpu).memory(memory).pids(pids).devices(devices).build()?)
}

/// Measures calls by name, and prints their medians in the order in which they first came.
#[derive(Default)]
struct Table(Vec<(&'static str, Vec<Duration>)>);

impl Table {
    fn time<T>(&mut self, name: &'static str, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = call();
        let took = start.elapsed();
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, all)) => all.push(took),
            None => self.0.push((name, vec![took])),
        }
        result
    }

    fn print(&mut self) {
        println!("{:24} {:>10} {:>10}", "call", "median µs", "p90 µs");
        for (name, all) in &mut self.0 {
            all.sort();
            let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
            println!("{name:24} {:10.1} {:10.1}", at(0.5), at(0.9));
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let rounds: u32 = std::env::args().nth(1).map_or(Ok(200), |n| n.parse())?;
    let (limits, parent) = (resources()?, format!("/slipway-bench-{}", std::process::id()));
    let update = LinuxResourcesBuilder::default()
        .cpu(LinuxCpuBuilder::default().shares(1024u64).quota(80_000i64).period(100_000u64).build()?)
        .memory(LinuxMemoryBuilder::default().limit(512i64 << 20).swap(512i64 << 20).build()?)
        .build()?;
    // The pod's group is there already, as kubelet makes it.
    let pod = Cgroup::create(&parent, None)?;
    let mut table = Table::default();
    for round in 0..rounds {
        let path = format!("{parent}/{round}");
        let bare = table.time("create, no limits", || Cgroup::create(&path, None))?;
        table.time("remove", || bare.remove(Duration::ZERO))?;
        let group = table.time("create with limits", || Cgroup::create(&path, Some(&limits)))?;
        drop(table.time("join (open files)", || group.join())?);
        drop(table.time("open", || Cgroup::open(&path))?);
        table.time("stats", || group.stats())?;
        table.time("oom_killed", || group.oom_killed())?;
        table.time("pids", || group.pids())?;
        table.time("kill_all of nobody", || group.kill_all())?;
        table.time("update cpu and memory", || group.update(&update))?;
        let session = table.time("exec_group", || group.exec_group("1"))?;
        table.time("remove exec_group", || session.remove(Duration::ZERO))?;
        group.remove(Duration::ZERO)?;
    }
    pod.remove(Duration::from_secs(1))?;
    table.print();
    Ok(())
}
