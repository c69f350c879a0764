//! The systemd driver, where systemd is pid 1 on version 2 (hack/test-v2 boots such a machine); elsewhere, its refusal.

use super::*;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder, LinuxPidsBuilder,
    LinuxThrottleDeviceBuilder,
};
use slipway_runtime::cgroup::{OomLevel, prefers_systemd};
use slipway_runtime::error::Kind;

/// A scope name of its own for one test; the end checks that systemd has forgotten it, and its slice.
struct Unit {
    slice: String,
    name: String,
}

impl Unit {
    /// None where systemd is not there to be asked.
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        prefers_systemd().then(|| Self { slice: format!("slipwaytest-{tag}.slice"), name: format!("c{tag}") })
    }

    fn path(&self) -> String {
        format!("{}:slipway:{}", self.slice, self.name)
    }

    fn scope(&self) -> String {
        format!("slipway-{}.scope", self.name)
    }

    fn slice_path(&self) -> String {
        format!("/slipwaytest.slice/{}", self.slice)
    }

    fn dir(&self) -> String {
        format!("{}/{}", self.slice_path(), self.scope())
    }

    fn property(&self, name: &str) -> String {
        systemctl(&["show", "--property", name, "--value", &self.scope()])
    }

    /// A control file of the scope.
    fn file(&self, name: &str) -> String {
        let path = format!("/sys/fs/cgroup{}/{name}", self.dir());
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")).trim().to_owned()
    }

    fn end(self) {
        assert_eq!(self.property("LoadState"), "not-found", "systemd still has {}", self.scope());
        Cgroup::remove_if_empty(&self.slice_path()).expect("stop the slice");
        for dir in [self.dir(), self.slice_path()] {
            assert!(directories(&dir).is_empty(), "left behind: {dir}");
        }
    }
}

fn systemctl(args: &[&str]) -> String {
    let output = Command::new("systemctl").args(args).output().expect("systemctl");
    assert!(output.status.success(), "systemctl {args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The quota is one that systemd holds exactly (whole hundredths of a cpu); others are rounded up when it writes them itself.
fn limits(memory: i64) -> LinuxResources {
    resources(|r| {
        let memory = LinuxMemoryBuilder::default().limit(memory).swap(memory).build().expect("memory");
        let cpu = LinuxCpuBuilder::default().shares(512u64).quota(12_500i64).period(50_000u64).build();
        let pids = LinuxPidsBuilder::default().limit(50i64).build().expect("pids");
        let null = LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::C).major(1).minor(3);
        let deny = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build().expect("rule");
        let devices = vec![deny, null.access("rw").build().expect("rule")];
        r.memory(memory).cpu(cpu.expect("cpu")).pids(pids).devices(devices)
    })
}

const FILES: [&str; 5] = ["memory.max", "memory.swap.max", "cpu.weight", "cpu.max", "pids.max"];

/// CRI-CG-02, CRI-RES-02, CRI-RES-06: systemd knows the limits, and a reload changes nothing.
#[test]
fn a_scope_keeps_its_limits_over_a_reload() {
    let Some(unit) = Unit::new() else { return };
    let mut group = Cgroup::create(&unit.path(), Some(&limits(64 << 20))).expect("create");
    let child = spawn_in(&group, "exec sleep 1000");
    group.joined();
    let pids = vec![i32::try_from(child.id()).expect("pid")];
    assert_eq!(group.pids().expect("pids"), pids, "only the child is in it");
    let state = || FILES.map(|file| unit.file(file));
    let expected = ["67108864", "0", "59", "12500 50000", "50"].map(str::to_owned);
    assert_eq!(state(), expected);
    let known =
        ["ActiveState", "Slice", "Delegate", "MemoryMax", "TasksMax", "CPUWeight", "CPUQuotaPerSecUSec"]
            .map(|name| unit.property(name));
    assert_eq!(known, ["active", &unit.slice, "yes", "67108864", "50", "59", "250ms"]);
    assert_eq!(unit.property("DevicePolicy"), "strict");
    assert_eq!(unit.property("DeviceAllow"), "/dev/char/1:3 rw");
    systemctl(&["daemon-reload"]);
    assert_eq!(state(), expected, "after daemon-reload");

    group.update(&limits(128 << 20)).expect("update");
    assert_eq!(
        (unit.file("memory.max"), unit.property("MemoryMax")),
        ("134217728".into(), "134217728".into())
    );
    systemctl(&["daemon-reload"]);
    assert_eq!(unit.file("memory.max"), "134217728", "an update survives a reload, too");
    assert_eq!(Cgroup::open(&group.path()).expect("open").pids().expect("pids"), pids);
    finish(group, &mut [child]);
    assert_eq!(Cgroup::open(&unit.path()).expect_err("gone").kind(), Kind::NotFound);
    unit.end();
}

/// CRI-UPD-01: when a file refuses its value, systemd is told the former ones again.
#[test]
fn a_failed_update_leaves_systemd_as_it_was() {
    let Some(unit) = Unit::new() else { return };
    let mut group = Cgroup::create(&unit.path(), Some(&limits(64 << 20))).expect("create");
    let child = spawn_in(&group, "exec sleep 1000");
    group.joined();
    let names = ["MemoryMax", "TasksMax", "DeviceAllow", "CPUWeight"];
    let state = || (FILES.map(|file| unit.file(file)), names.map(|name| unit.property(name)));
    let before = state();
    let absent =
        LinuxThrottleDeviceBuilder::default().major(4000).minor(1).rate(1u64).build().expect("device");
    let io = oci_spec::runtime::LinuxBlockIoBuilder::default().throttle_read_bps_device(vec![absent]);
    let mut bad = limits(32 << 20);
    bad.set_block_io(Some(io.build().expect("io")));
    let error = group.update(&bad).expect_err("no such device");
    assert!(error.to_string().contains("4000:1"), "{error}");
    assert_eq!(state(), before);
    finish(group, &mut [child]);
    unit.end();
}

/// A scope that cannot have all its limits is stopped again.
#[test]
fn a_refused_limit_leaves_no_unit() {
    let Some(unit) = Unit::new() else { return };
    let absent =
        LinuxThrottleDeviceBuilder::default().major(4000).minor(1).rate(1u64).build().expect("device");
    let io = oci_spec::runtime::LinuxBlockIoBuilder::default().throttle_write_bps_device(vec![absent]);
    let bad = resources(|r| r.block_io(io.build().expect("io")));
    let error = Cgroup::create(&unit.path(), Some(&bad)).expect_err("no such device");
    assert!(error.to_string().contains("4000:1"), "{error}");
    unit.end();
}

/// One name, one container; a unit that failed long ago is in nobody's way.
#[test]
fn names_in_use_and_names_left_over() {
    let Some(unit) = Unit::new() else { return };
    let mut group = Cgroup::create(&unit.path(), None).expect("create");
    let child = spawn_in(&group, "exec sleep 1000");
    group.joined();
    let error = Cgroup::create(&unit.path(), None).expect_err("in use");
    assert_eq!(error.kind(), Kind::Exists, "{error}");
    assert_eq!(group.pids().expect("pids").len(), 1, "and it lives");
    finish(group, &mut [child]);
    // A scope fails when its time is over.
    let slice = format!("--slice={}", unit.slice);
    let name = format!("--unit={}", unit.scope());
    let run = ["--scope", "--quiet", &slice, &name, "--property=RuntimeMaxSec=1", "sleep", "100"];
    Command::new("systemd-run").args(run).output().expect("systemd-run");
    let start = std::time::Instant::now();
    while unit.property("ActiveState") != "failed" {
        assert!(start.elapsed() < PATIENCE, "it is {}", unit.property("ActiveState"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut group = Cgroup::create(&unit.path(), None).expect("a failed unit is replaced");
    let child = spawn_in(&group, "exec sleep 1000");
    group.joined();
    finish(group, &mut [child]);
    unit.end();
}

/// Exec sessions are groups inside the scope; what stays is named and not killed by removal.
#[test]
fn exec_groups_and_removal() {
    let Some(unit) = Unit::new() else { return };
    let mut group = Cgroup::create(&unit.path(), None).expect("create");
    let mut main = spawn_in(&group, "exec sleep 1000");
    group.joined();
    let session = group.exec_group("probe").expect("exec group");
    let mut exec = spawn_in(&session, "sleep 1001 & sleep 1002");
    let session = Cgroup::open(&session.path()).expect("open");
    session.kill_all().expect("kill");
    exec.wait().expect("wait");
    session.remove(PATIENCE).expect("remove the session");
    let error = group.clone().remove(Duration::from_millis(20)).expect_err("in use");
    assert_eq!(error.kind(), Kind::State, "{error}");
    assert!(error.to_string().contains(&main.id().to_string()), "{error}");
    assert!(main.try_wait().expect("try_wait").is_none(), "it lives");
    group.freeze(true).expect("freeze");
    assert!(group.is_frozen());
    group.kill_all().expect("kill");
    main.wait().expect("wait");
    group.remove(PATIENCE).expect("remove");
    unit.end();
}

/// CRI-CSTAT: a scope goes with its last process, and its counts with it; its slice still knows.
#[test]
fn the_oom_killer_is_seen_when_the_scope_has_gone() {
    let Some(unit) = Unit::new() else { return };
    let small = resources(|r| {
        let memory = LinuxMemoryBuilder::default().limit(16 << 20).swap(16 << 20).build().expect("memory");
        r.memory(memory)
    });
    for (script, level) in [("x=a; while :; do x=$x$x; done", Some(OomLevel::Own)), ("kill -9 $$", None)] {
        let mut group = Cgroup::create(&unit.path(), Some(&small)).expect("create");
        let before = group.oom_before().expect("read").expect("a scope has a slice");
        let mut child = spawn_in(&group, script);
        group.joined();
        child.wait().expect("wait");
        let start = std::time::Instant::now();
        while group.oom().is_ok() {
            assert!(start.elapsed() < Duration::from_secs(30), "systemd keeps the scope");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(group.oom().expect_err("gone").kind(), Kind::NotFound);
        let told = group.oom_since(&before).expect("read");
        assert_eq!(told.as_ref().map(|oom| oom.level.clone()), level, "{script}: {told:?}");
        group.remove(PATIENCE).expect("remove");
    }
    unit.end();
}

/// Where there is no systemd the sentence says so, and what to use instead.
#[test]
fn without_systemd_a_scope_is_refused() {
    if prefers_systemd() {
        return;
    }
    let error = Cgroup::create("system.slice:slipway:c1", None).expect_err("no systemd");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("cgroupfs driver"), "{error}");
}
