//! How keepers come to be, what they are to the system, and how those end that nobody needs.

use crate::pods;
use crate::rig::{Bundle, Rig, address_of, code, kill, soon, wait_until};
use crate::shim::{Caller, options};
use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteResponse, KillRequest, StartRequest, WaitRequest,
};
use containerd_shim_protos::sandbox_api::StopSandboxRequest;
use containerd_shim_protos::shim_async::TaskClient;
use protobuf::Message as _;
use rustix::process::Pid;
use rustix::thread::{CoreSchedulingScope, core_scheduling_cookie};
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use ttrpc::Code;

fn read(pid: i32, name: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap()
}

/// A field of /proc/<pid>/stat behind the name, from 3 on (proc_pid_stat(5)).
fn stat(pid: i32, field: usize) -> i32 {
    let stat = read(pid, "stat");
    stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(field - 3).unwrap().parse().unwrap()
}

/// Processes of ours whose state is in this directory.
fn ours(dir: &Path) -> Vec<i32> {
    let needle = format!("SLIPWAY_KEEPER_STATE={}", dir.display());
    let is_ours = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(needle.as_bytes()))
    };
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(is_ours).collect()
}

#[test]
fn guardian_and_keeper_are_on_their_own() {
    // SHIM-PROC-01, SHIM-PROC-02, SHIM-PROC-03, SHIM-PROC-06, SHIM-CMD-06, SHIM-CMD-08
    let mut caller = Caller::new();
    caller.env.push(("MAX_SHIM_VERSION", "2".into()));
    // Version 3 is the answer whatever the historic limit says.
    let address = address_of(&caller.call("a", "start", b""));
    assert!(caller.bundle("a").join("address").exists(), "the bundle is where it was called");
    let [guardian, keeper] = Caller::pids(&address);
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let status = read(own, "status");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    let capabilities = u64::from_str_radix(effective, 16).unwrap();
    for pid in [guardian, keeper] {
        assert_eq!(stat(pid, 6), guardian, "a session of their own");
        assert_ne!(stat(pid, 5), stat(own, 5));
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"), "bundles come and go");
        // All pods depend on them. Who may not lower the score leaves it (CAP_SYS_RESOURCE is bit 24, capabilities(7)).
        let ours = read(own, "oom_score_adj");
        let expected = if capabilities & 1 << 24 == 0 { ours.trim() } else { "-999" };
        assert_eq!(read(pid, "oom_score_adj").trim(), expected);
        let link = |fd: i32| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
        assert_eq!(link(0), Path::new("/dev/null"));
        assert!(link(1).ends_with("log") && link(2).ends_with("log"), "{:?} {:?}", link(1), link(2));
    }
    caller.end(&address);

    // What loses its parent in a container that shares the host's processes is the guardian's.
    let rig = Rig::new();
    let mut bundle = rig.bundle("c", &["sh", "-c", "sh -c 'sleep 0.5 & echo $! > /orphan'; sleep 1000"]);
    bundle.spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
    rig.create(&bundle).unwrap();
    rig.start("c", "").unwrap();
    let file = bundle.path.join("rootfs/orphan");
    let orphan = || fs::read_to_string(&file).ok()?.trim().parse::<i32>().ok();
    wait_until("the orphan", || orphan().is_some());
    let orphan = orphan().unwrap();
    wait_until("its parent's end", || stat(orphan, 4) == rig.guardian);
    wait_until("no zombie", || !Path::new(&format!("/proc/{orphan}")).exists());
    rig.kill("c", "", 9, true).unwrap();
    rig.wait("c", "").unwrap();
    rig.delete("c", "").unwrap();
}

#[test]
fn sigusr1_asks_what_there_is() {
    // SHIM-PROC-05
    let rig = Rig::new();
    rig.create(&rig.bundle("asked-for", &["sleep", "1000"])).unwrap();
    rig.start("asked-for", "").unwrap();
    let info = rig.info();
    for pid in [info.guardian_pid, info.keeper_pid] {
        kill(pid, 10);
    }
    let log = || {
        let dirs = fs::read_dir(rig.dir()).unwrap().flatten();
        dirs.filter_map(|dir| fs::read_to_string(dir.path().join("log")).ok()).collect::<String>()
    };
    wait_until("the answer", || {
        log().lines().any(|line| line.contains("asked-for") && line.contains("Running"))
    });
    let after = rig.info();
    assert_eq!((after.guardian_pid, after.keeper_pid), (info.guardian_pid, info.keeper_pid));
    rig.kill("asked-for", "", 9, true).unwrap();
    rig.wait("asked-for", "").unwrap();
    rig.delete("asked-for", "").unwrap();
}

#[test]
fn a_keeper_whose_directory_was_removed_can_be_ended() {
    let mut caller = Caller::new();
    caller.env.push(("MAX_SHIM_VERSION", "2".into()));
    let pids = Caller::pids(&address_of(&caller.call("a", "start", b"")));
    fs::remove_dir_all(caller.dir.path().join("k")).unwrap();
    kill_and_wait(&pids);
}

#[test]
fn short_actions_are_not_cut_short() {
    // SHIM-PROC-05
    let mut caller = Caller::new();
    caller.env.push(("MAX_SHIM_VERSION", "2".into()));
    let mut start = caller.begin("a", "start");
    let pid = start.id().cast_signed();
    // It reads its standard input by then; before that nothing has begun.
    let blocks =
        || read(pid, "status").lines().any(|line| line.starts_with("SigBlk:") && line.ends_with("4002"));
    wait_until("it to run", blocks);
    for signal in [15, 2] {
        kill(pid, signal);
    }
    std::thread::sleep(Duration::from_millis(50));
    drop(start.stdin.take());
    let address = address_of(&start.wait_with_output().unwrap());
    caller.end(&address);
}

#[test]
fn the_address_answers_before_a_keeper_does() {
    // SHIM-SOCK-04
    let mut rig = Rig::new();
    let (guardian, keeper) = (rig.guardian, rig.info().keeper_pid);
    kill(guardian, 19);
    kill(keeper, 9);
    let path = rig.address().strip_prefix("unix://").unwrap().to_owned();
    wait_until("the keeper's end", || {
        stat(keeper, 3 + 1) == guardian && read(keeper, "stat").contains(") Z ")
    });
    let early = UnixStream::connect(&path).unwrap();
    kill(guardian, 18);
    rig.reconnect();
    assert_ne!(rig.info().keeper_pid, keeper);
    drop(early);
}

#[test]
fn a_start_that_is_killed_leaves_no_keeper_that_nobody_needs() {
    // SHIM-CMD-11
    let caller = Caller::new();
    let state = caller.dir.path().join("k");
    for round in 0..16 {
        let mut start = caller.begin(&format!("c{round}"), "start");
        drop(start.stdin.take());
        std::thread::sleep(Duration::from_millis(round * 3));
        start.kill().unwrap();
        start.wait().unwrap();
    }
    // Whatever there is now, a start that is let live finds or makes one that serves.
    let output = caller.call("last", "start", b"");
    assert!(output.status.success(), "{output:?}");
    let address = String::from_utf8(output.stdout).unwrap();
    let pids = Caller::pids(&address);
    let mut there = ours(&state);
    there.sort_unstable();
    let mut expected = pids.to_vec();
    expected.sort_unstable();
    assert_eq!(there, expected, "one guardian, one keeper");
    // Its client is killed as well, so to say.
    let begun = Instant::now();
    wait_until("the end of what nobody uses", || ours(&state).is_empty());
    assert!(begun.elapsed() > Duration::from_secs(5), "a client that is slow finds it");
    assert!(!Path::new(address.strip_prefix("unix://").unwrap()).exists(), "SHIM-SOCK-05");
}

/// The cookie of a process's core scheduling domain; none where the kernel has no such thing.
fn cookie(pid: i32) -> Option<u64> {
    core_scheduling_cookie(Pid::from_raw(pid)?, CoreSchedulingScope::Thread).ok()
}

#[test]
fn a_pod_has_processor_cores_to_itself_where_the_client_wants_that() {
    // SHIM-CMD-10
    let mut caller = Caller::new();
    caller.env.extend([("MAX_SHIM_VERSION", "2".into()), ("SCHED_CORE", "1".into())]);
    for (id, pod) in [("p1", "p1"), ("p2", "p2")] {
        let spec = json!({"ociVersion": "1.2.0", "annotations": {"io.kubernetes.cri.sandbox-id": pod}});
        fs::write(caller.bundle(id).join("config.json"), spec.to_string()).unwrap();
    }
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let outputs = ["p1", "p2"].map(|id| caller.call(id, "start", b""));
    if cookie(own).is_none() && !outputs[0].status.success() {
        println!("this kernel has no core scheduling: that is told, and nothing started");
        for output in outputs {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("SCHED_CORE is set") && output.stdout.is_empty(), "{said}");
        }
        assert_eq!(ours(&caller.dir.path().join("k")), Vec::<i32>::new());
        return;
    }
    let addresses = outputs.map(|output| address_of(&output));
    assert_ne!(addresses[0], addresses[1], "a keeper for each");
    let cookies = addresses.each_ref().map(|address| Caller::pids(address).map(cookie));
    if cookies[0][0] != Some(0) {
        assert_eq!(cookies[0][0], cookies[0][1], "guardian and keeper share");
        assert_ne!(cookies[0][0], cookies[1][0], "pods do not");
        assert_ne!(cookies[0][0], cookie(own));
    }
    for address in addresses {
        caller.end(&address);
    }
}

#[test]
fn a_delete_may_be_run_from_another_bundle() {
    // SHIM-DEL-01, SHIM-DEL-02, SHIM-DEL-03 (DEL-01b), SHIM-BUN-03
    let mut caller = Caller::new();
    caller.env.push(("MAX_SHIM_VERSION", "2".into()));
    let address = address_of(&caller.call("a", "start", b""));
    // containerd's own note of the address, which is what counts after changes of the settings.
    let bootstrap = json!({"version": 3, "address": address, "protocol": "ttrpc"});
    fs::write(caller.bundle("b").join("bootstrap.json"), bootstrap.to_string()).unwrap();
    let rootfs = caller.bundle("b").join("rootfs");
    fs::create_dir(&rootfs).unwrap();
    for _ in 0..2 {
        let tmpfs = Some("tmpfs");
        nix_mount(tmpfs, &rootfs);
    }
    let mut other = std::process::Command::new(crate::rig::BINARY);
    let output = other
        .args(["-namespace", "test", "-address", "/c.sock", "-id", "b", "-bundle", "/ignored", "delete"])
        .envs(caller.env.iter().map(|(key, value)| (key, value)))
        .current_dir(caller.bundle("a"))
        .output()
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(DeleteResponse::parse_from_bytes(&output.stdout).unwrap().exit_status, 137);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(rootfs.to_str().unwrap()), "nothing is mounted there any more");
    Caller::pids(&address);
    caller.end(&address);
}

fn nix_mount(kind: Option<&str>, at: &Path) {
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount(kind.unwrap(), at, kind.unwrap(), flags, None).unwrap();
}

#[test]
fn options_outlive_the_keeper() {
    // SHIM-OPT-04: what is needed later is in the record.
    let mut rig = Rig::new();
    let mut bundle = rig.bundle("c", &["sleep", "1000"]);
    bundle.spec["process"]["user"] = json!({"uid": 77, "gid": 88});
    fs::write(bundle.path.join("config.json"), bundle.spec.to_string()).unwrap();
    let request = CreateTaskRequest {
        id: "c".into(),
        bundle: bundle.path.to_str().unwrap().into(),
        options: Some(options(|options| (options.io_uid, options.io_gid) = (77, 4321))).into(),
        ..Default::default()
    };
    rig.run(rig.tasks().create(soon(), &request)).unwrap();
    rig.start("c", "").unwrap();
    rig.kill_keeper();
    let fifo = rig.fifo("out");
    let process = json!({"user": {"uid": 77, "gid": 88}, "args": ["true"], "env": ["PATH=/bin"], "cwd": "/"});
    rig.exec_process("c", "e", &process, "", &fifo, "").unwrap();
    rig.start("c", "e").unwrap();
    assert_eq!(rig.wait("c", "e").unwrap(), 0);
    let meta = fs::metadata(&fifo).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (77, 4321));
    rig.delete("c", "e").unwrap();
    rig.kill("c", "", 9, true).unwrap();
    rig.wait("c", "").unwrap();
    rig.delete("c", "").unwrap();
}

#[test]
fn two_namespaces_have_the_same_ids() {
    // SHIM-OPT-05, SHIM-CMD-03
    let rig = Rig::new();
    let start = std::process::Command::new(crate::rig::BINARY)
        .args(["-namespace", "other", "-address", "/nowhere.sock", "-id", "c", "start"])
        .env("SLIPWAY_KEEPER_STATE", rig.dir())
        .env("MAX_SHIM_VERSION", "2")
        .env_remove("TTRPC_ADDRESS")
        .current_dir(rig.dir())
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let address = address_of(&start);
    assert_ne!(address, rig.address());
    let other = TaskClient::new(rig.run(ttrpc::r#async::Client::connect(&address)).unwrap());
    // Without a path each has its control group below its namespace's.
    let plain = |dir: &str| {
        let mut bundle: Bundle = rig.bundle(dir, &["sleep", "1000"]);
        bundle.spec["linux"].as_object_mut().unwrap().remove("cgroupsPath");
        bundle.id = format!("c-{}", rig.group);
        fs::write(bundle.path.join("config.json"), bundle.spec.to_string()).unwrap();
        bundle
    };
    let (ours, theirs) = (plain("one"), plain("two"));
    let id = ours.id.clone();
    rig.create(&ours).unwrap();
    rig.start(&id, "").unwrap();
    let request = CreateTaskRequest {
        id: id.clone(),
        bundle: theirs.path.to_str().unwrap().into(),
        ..Default::default()
    };
    rig.run(other.create(soon(), &request)).unwrap();
    rig.run(other.start(soon(), &StartRequest { id: id.clone(), ..Default::default() })).unwrap();
    rig.kill(&id, "", 9, true).unwrap();
    assert_eq!(rig.wait(&id, "").unwrap(), 137);
    rig.delete(&id, "").unwrap();
    assert_eq!(code(rig.state(&id, "")), Code::NOT_FOUND);
    let kill = KillRequest { id: id.clone(), signal: 15, all: true, ..Default::default() };
    rig.run(other.kill(soon(), &kill)).expect("the other one lives on");
    let kill = KillRequest { signal: 9, ..kill };
    let _ = rig.run(other.kill(soon(), &kill));
    rig.run(other.wait(soon(), &WaitRequest { id: id.clone(), ..Default::default() })).unwrap();
    let delete = containerd_shim_protos::api::DeleteRequest { id, ..Default::default() };
    rig.run(other.delete(soon(), &delete)).unwrap();
    let pids = Caller::pids(&address);
    kill_and_wait(&pids);
    forget_namespaces();
}

/// Keepers leave the groups of their namespaces, as all runtimes leave parents that others may use; the machine is not ours.
fn forget_namespaces() {
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path()) {
        for group in ["slipway/test", "slipway/other", "slipway"] {
            // Busy or absent is fine: another run has them, or there are none.
            let _ = fs::remove_dir(hierarchy.join(group));
        }
    }
    for group in ["test", "other", ""] {
        let _ = fs::remove_dir(Path::new("/sys/fs/cgroup/slipway").join(group));
    }
}

fn kill_and_wait(pids: &[i32; 2]) {
    kill(pids[0], 15);
    wait_until("its end", || pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
}

#[test]
fn a_pod_that_is_not_there_is_said_to_be_so() {
    // SHIM-SBX-08: its client takes that for stopped.
    let rig = Rig::new();
    let request = StopSandboxRequest { sandbox_id: "nobody".into(), timeout_secs: 1, ..Default::default() };
    assert_eq!(code(rig.run(rig.sandboxes().stop_sandbox(soon(), &request))), Code::NOT_FOUND);
    pods::shut_down(&rig, "nobody");
}
