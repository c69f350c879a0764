//! What survives what (DESIGN 4): keeper and guardian killed in every state.

use crate::pods::{self, CONTAINER, POD};
use crate::rig::{Rig, code, kill, kill_both, log_lines, soon, wait_until};
use containerd_shim_protos::api::WaitRequest;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ttrpc::Code;

fn logged(rig: &Rig, id: &str, script: &str) {
    let mut bundle = rig.bundle(id, &["sh", "-c", script]);
    bundle.stdout = format!("cri-log://{}", rig.log_path(id).display());
    rig.create(&bundle).unwrap();
}

#[test]
fn a_killed_keeper_loses_no_line_and_doubles_none() {
    // CRI-LOG: exactly once over kill -9 in the middle of heavy logging, many times.
    let mut rig = Rig::new();
    let script = "i=0; while [ $i -lt 60000 ]; do echo out-$i-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; \
                  echo err-$i >&2; printf '%s' part-$i-; i=$((i+1)); done; exit 5";
    logged(&rig, "c", script);
    rig.start("c", "").unwrap();
    let mut kills = 0;
    while rig.state("c", "").unwrap() == "RUNNING" && kills < 40 {
        // Spread over the batch: from right after the start to the middle of the stream.
        std::thread::sleep(Duration::from_millis(kills * 7 % 60));
        rig.kill_keeper();
        kills += 1;
    }
    let info = rig.wait_task("c");
    assert!(kills > 5, "only {kills} kills while it ran");
    assert_eq!((info.exit_status, info.status_known, info.log_dropped), (5, true, 0));
    let out = log_lines(&rig.log_path("c"), "stdout");
    let expected = |i: usize| {
        let part = if i == 0 { String::new() } else { format!("part-{}-", i - 1) };
        format!("{part}out-{i}-{}", "a".repeat(51))
    };
    for (i, line) in out.iter().take(60_000).enumerate() {
        assert_eq!(*line, expected(i), "after {kills} kills");
    }
    assert_eq!(out.len(), 60_001);
    assert_eq!(out[60_000], "part-59999-");
    let err = log_lines(&rig.log_path("c"), "stderr");
    assert!(err.iter().enumerate().all(|(i, line)| *line == format!("err-{i}")), "stderr differs");
    assert_eq!(err.len(), 60_000);
    assert_eq!(rig.info().generation, u32::try_from(kills).unwrap() + 1);
    rig.delete("c", "").unwrap();
}

#[test]
fn every_state_survives_the_keeper() {
    let mut rig = Rig::new();
    for id in ["created", "running", "stopped"] {
        logged(&rig, id, "echo before; sleep 0.3; echo after; exit 9");
    }
    logged(&rig, "long", "while :; do sleep 1; done");
    for id in ["running", "stopped", "long"] {
        rig.start(id, "").unwrap();
    }
    rig.wait("stopped", "").unwrap();
    let fifo = rig.fifo("exec");
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let reader = rustix::fs::open(&fifo, flags, rustix::fs::Mode::empty()).unwrap();
    rig.exec("long", "added", &["sh", "-c", ": > /go && exit 4"], "").unwrap();
    let waits = "until [ -e /go ]; do sleep 0.1; done; echo exec goes on; exit 6";
    rig.exec("long", "running", &["sh", "-c", waits], &fifo).unwrap();
    rig.start("long", "running").unwrap();
    rig.kill_keeper();
    assert_eq!(rig.state("created", "").unwrap(), "CREATED");
    assert_eq!(rig.state("stopped", "").unwrap(), "STOPPED");
    assert_eq!(rig.state("long", "").unwrap(), "RUNNING");
    assert_eq!(rig.state("long", "running").unwrap(), "RUNNING");
    // A parked one can still be started, also by the next keeper but one.
    rig.kill_keeper();
    rig.start("created", "").unwrap();
    rig.start("long", "added").unwrap();
    rig.kill_keeper();
    for id in ["created", "running", "stopped"] {
        let info = rig.wait_task(id);
        assert_eq!((info.exit_status, info.status_known), (9, true), "{id}");
        assert_eq!(log_lines(&rig.log_path(id), "stdout"), ["before", "after"], "{id}");
        assert_eq!(rig.delete(id, "").unwrap(), 9);
    }
    assert_eq!(rig.wait("long", "added").unwrap(), 4);
    assert_eq!(rig.wait("long", "running").unwrap(), 6);
    let mut text = String::new();
    fs::File::from(reader).read_to_string(&mut text).unwrap();
    assert_eq!(text, "exec goes on\n");
    rig.delete("long", "added").unwrap();
    rig.delete("long", "running").unwrap();
    rig.kill("long", "", 9, true).unwrap();
    assert_eq!(rig.wait("long", "").unwrap(), 137);
    rig.delete("long", "").unwrap();
}

#[test]
fn an_exit_while_no_keeper_lives_is_not_lost() {
    let mut rig = Rig::new();
    logged(&rig, "c", "echo last words; exit 11");
    let pid = rig.create(&rig.bundle("d", &["sleep", "1000"])).unwrap();
    rig.start("d", "").unwrap();
    let keeper = rig.info().keeper_pid;
    // Stopped processes neither serve nor restart: the guardian is held while both die.
    rig.start("c", "").unwrap();
    kill(rig.guardian, 19);
    kill(keeper, 9);
    kill(i32::try_from(pid).unwrap(), 9);
    std::thread::sleep(Duration::from_millis(100));
    kill(rig.guardian, 18);
    rig.reconnect();
    let info = rig.wait_task("d");
    assert_eq!((info.exit_status, info.status_known), (137, true));
    assert_eq!(rig.wait("c", "").unwrap(), 11);
    assert_eq!(log_lines(&rig.log_path("c"), "stdout"), ["last words"]);
    rig.delete("c", "").unwrap();
    rig.delete("d", "").unwrap();
}

#[test]
fn keepers_killed_at_every_step_of_create_and_start_leave_nothing_half_made() {
    let mut rig = Rig::new();
    for round in 0..25u64 {
        let bundle = rig.bundle(&format!("c{round}"), &["sh", "-c", "exit 3"]);
        let keeper = rig.info().keeper_pid;
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(round * 700));
            kill(keeper, 9);
        });
        let id = bundle.id.clone();
        let created = rig.create(&bundle).and_then(|_| rig.start(&id, ""));
        killer.join().unwrap();
        rig.reconnect();
        match rig.state(&id, "") {
            // Half-made and undone, or never begun: then the same id can be used at once.
            Err(_) => assert!(created.is_err(), "round {round}: a started container is gone"),
            Ok(state) => {
                if state == "CREATED" {
                    rig.kill(&id, "", 9, false).unwrap();
                }
                let status = rig.wait(&id, "").unwrap();
                assert!(status == 3 || state == "CREATED", "round {round}: {state} {status}");
                rig.delete(&id, "").unwrap();
            }
        }
        assert_eq!(rig.list().len(), 0, "round {round}");
    }
}

/// Since Linux 6.15 it says how a process ended that somebody else has reaped.
fn kernel_tells_exits() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 15)
}

/// How it ended where the kernel tells; lost where it does not, or where this host's init reaps too late to be waited for.
fn told_or_lost(info: &cri_proto::keeper::TaskInfo, status: u32) -> bool {
    let told = (info.exit_status, info.status_known);
    told == (255, false) || kernel_tells_exits() && told == (status, true)
}

#[test]
fn a_dead_guardian_is_replaced_and_containers_go_on() {
    let mut rig = Rig::new();
    logged(&rig, "c", "echo one; sleep 0.4; echo two; exit 8");
    rig.start("c", "").unwrap();
    let keeper = rig.info().keeper_pid;
    // More than once: the second of them is a child of ours.
    for _ in 0..3 {
        let former = rig.guardian;
        kill(former, 9);
        wait_until("another guardian", || ![0, former].contains(&rig.info().guardian_pid));
        rig.guardian = rig.info().guardian_pid;
        wait_until("no zombie", || !Path::new(&format!("/proc/{former}")).exists());
    }
    let info = rig.wait_task("c");
    assert_eq!((info.exit_status, info.status_known), (8, true));
    assert_eq!(log_lines(&rig.log_path("c"), "stdout"), ["one", "two"]);
    rig.delete("c", "").unwrap();
    // New containers too, and `start` still answers with this keeper.
    logged(&rig, "d", "exit 2");
    rig.start("d", "").unwrap();
    assert_eq!(rig.wait("d", "").unwrap(), 2);
    rig.delete("d", "").unwrap();
    assert_eq!(crate::rig::address_of(&rig.shim("node", "start")), rig.address());
    assert_eq!(rig.info().keeper_pid, keeper);
    kill_both(rig.guardian, keeper);
    // Both gone: the next start makes both anew.
    assert_eq!(crate::rig::address_of(&rig.shim("node", "start")), rig.address());
    rig.reconnect();
    rig.guardian = rig.info().guardian_pid;
    assert!(rig.guardian > 0);
}

#[test]
fn guardian_then_keeper_die_and_nothing_is_lost() {
    // CRI-EXIT-01: the second guardian is nobody's parent, and yet logs, exit codes and parked containers come through.
    let mut rig = Rig::new();
    pods::create(&rig, "pod", CONTAINER, &[]).unwrap();
    let owner = pods::start(&rig, "pod");
    logged(&rig, "c", "echo one; while [ ! -e go ]; do sleep 0.05; done; echo two; exit 8");
    rig.start("c", "").unwrap();
    logged(&rig, "parked", "echo late; exit 3");
    let former = rig.guardian;
    kill(former, 9);
    wait_until("another guardian", || ![0, former].contains(&rig.info().guardian_pid));
    rig.guardian = rig.info().guardian_pid;
    let (keeper, generation) = (rig.info().keeper_pid, rig.info().generation);
    kill(keeper, 9);
    rig.reconnect();
    let info = rig.info();
    assert_ne!(info.keeper_pid, keeper);
    assert_eq!((info.guardian_pid, info.generation), (rig.guardian, generation + 1));
    assert_eq!(pods::state(&rig, "pod").unwrap(), "SANDBOX_READY");
    assert_eq!(pods::start(&rig, "pod"), owner);
    rig.start("parked", "").unwrap();
    fs::write(rig.dir().join("bundles/c/rootfs/go"), "").unwrap();
    for (id, status) in [("c", 8), ("parked", 3)] {
        let info = rig.wait_task(id);
        assert!(told_or_lost(&info, status), "{info:?}");
        rig.delete(id, "").unwrap();
    }
    assert_eq!(log_lines(&rig.log_path("c"), "stdout"), ["one", "two"]);
    assert_eq!(log_lines(&rig.log_path("parked"), "stdout"), ["late"]);
    pods::shut_down(&rig, "pod");
}

#[test]
fn both_killed_a_pod_without_reaper_lives_by_its_containers_or_is_told_dead() {
    // CRI-PSTOP-09
    let mut rig = Rig::new();
    for pod in ["empty", "inhabited"] {
        pods::create(&rig, pod, CONTAINER, &[]).unwrap();
    }
    let owner = pods::start(&rig, "inhabited");
    pods::start(&rig, "empty");
    let kinds = ["ipc", "uts"];
    let join = |rig: &Rig, id: &str| {
        rig.create(&pods::member(rig, id, "inhabited", owner, &kinds, "sleep 1000")).unwrap();
        namespaces(rig.start(id, "").unwrap().cast_signed())[..2].to_vec()
    };
    let own = join(&rig, "before");
    assert_ne!(own, namespaces(rig.info().keeper_pid)[..2], "the host's");
    both_anew(&mut rig, |_| ());
    assert_eq!(pods::state(&rig, "empty").unwrap(), "SANDBOX_NOTREADY", "its namespaces are gone");
    assert_eq!(pods::state(&rig, "inhabited").unwrap(), "SANDBOX_READY");
    assert_eq!(join(&rig, "after"), own);
    for id in ["before", "after"] {
        rig.kill(id, "", 9, true).unwrap();
        rig.wait(id, "").unwrap();
        rig.delete(id, "").unwrap();
    }
    both_anew(&mut rig, |_| ());
    assert_eq!(pods::state(&rig, "inhabited").unwrap(), "SANDBOX_NOTREADY", "nobody lives in them");
    for pod in ["empty", "inhabited"] {
        pods::shut_down(&rig, pod);
    }
}

#[test]
fn both_killed_containers_are_found_again_and_the_lost_status_is_said_to_be_lost() {
    // CRI-EXIT-02
    let mut rig = Rig::new();
    let [_, dies] = ["lives", "dies"].map(|id| {
        rig.create(&rig.bundle(id, &["sleep", "1000"])).unwrap();
        rig.start(id, "").unwrap().cast_signed()
    });
    both_anew(&mut rig, |_| {
        kill(dies, 9);
        wait_until("its end", || !Path::new(&format!("/proc/{dies}")).exists());
    });
    // Nobody was there to see it.
    let info = rig.wait_task("dies");
    assert_eq!((info.exit_status, info.status_known), (255, false));
    assert_eq!(rig.state("lives", "").unwrap(), "RUNNING");
    rig.kill("lives", "", 9, true).unwrap();
    let info = rig.wait_task("lives");
    assert!(told_or_lost(&info, 137), "{info:?}");
    for id in ["lives", "dies"] {
        rig.delete(id, "").unwrap();
    }
}

/// Guardian, then keeper; a new pair; `between` happens while there is none.
fn both_anew(rig: &mut Rig, between: impl FnOnce(&Rig)) {
    let keeper = rig.info().keeper_pid;
    kill_both(rig.guardian, keeper);
    between(rig);
    crate::rig::address_of(&rig.shim("node", "start"));
    rig.reconnect();
    rig.guardian = rig.info().guardian_pid;
}

/// A process's own namespaces of a pod, as the kernel names them: `ipc:[4026532456]`.
fn namespaces(pid: i32) -> Vec<PathBuf> {
    let read = |kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    ["ipc", "uts", "pid", "mnt"].into_iter().map(read).collect()
}

/// An open file of each process that is in one of these namespaces: unlike a number it never means another process.
fn inside(namespaces: &[PathBuf]) -> Vec<fs::File> {
    let is_inside = |dir: &Path| {
        let mut links = fs::read_dir(dir.join("ns")).into_iter().flatten().flatten();
        links.any(|link| fs::read_link(link.path()).is_ok_and(|link| namespaces.contains(&link)))
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    processes.filter(|dir| is_inside(dir)).filter_map(|dir| fs::File::open(dir.join("stat")).ok()).collect()
}

/// Fails to be read once its process is gone, and not even a zombie.
fn is_gone(mut stat: &fs::File) -> bool {
    stat.seek(SeekFrom::Start(0)).unwrap();
    stat.read(&mut [0; 64]).is_err()
}

#[test]
fn both_killed_a_pods_reaper_is_found_again_and_goes_with_the_pod() {
    // SHIM-SBX-09
    let mut rig = Rig::new();
    pods::create(&rig, "pod", POD, &[]).unwrap();
    let reaper = pods::start(&rig, "pod");
    let own = namespaces(reaper.cast_signed());
    let kinds = ["ipc", "uts", "pid"];
    let join = |rig: &Rig, id: &str| {
        rig.create(&pods::member(rig, id, "pod", reaper, &kinds, "sleep 1000")).unwrap();
        let pid = rig.start(id, "").unwrap();
        assert_eq!(namespaces(pid.cast_signed())[..3], own[..3], "{id}");
    };
    join(&rig, "before");
    // Once more: the second pair has nothing from a guardian that had everything.
    for id in ["after", "again"] {
        both_anew(&mut rig, |_| ());
        assert_eq!(pods::state(&rig, "pod").unwrap(), "SANDBOX_READY");
        assert_eq!(pods::start(&rig, "pod"), reaper);
        join(&rig, id);
    }
    let processes = inside(&own);
    assert_eq!(processes.len(), 4, "the reaper and three containers");
    for id in ["before", "after", "again"] {
        rig.kill(id, "", 9, true).unwrap();
        rig.wait(id, "").unwrap();
        rig.delete(id, "").unwrap();
    }
    pods::shut_down(&rig, "pod");
    wait_until("the end of all in the pod", || processes.iter().all(is_gone));
    let holds = |pid: i32| {
        let mut open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        open.any(|fd| fs::read_link(fd.path()).is_ok_and(|link| own.contains(&link)))
    };
    let info = rig.info();
    wait_until("no namespace held", || ![info.keeper_pid, info.guardian_pid].into_iter().any(holds));
}

#[test]
fn both_killed_a_found_reaper_is_watched_and_a_dead_one_is_noticed() {
    // SHIM-SBX-09
    let mut rig = Rig::new();
    let pods = ["watched", "dead", "half-made"].map(|id| {
        pods::create(&rig, id, POD, &[]).unwrap();
        (id, pods::start(&rig, id).cast_signed())
    });
    let processes = pods.map(|(_, reaper)| fs::File::open(format!("/proc/{reaper}/stat")).unwrap());
    let [watched, dead, half_made] = &processes;
    both_anew(&mut rig, |rig| {
        kill(pods[1].1, 9);
        wait_until("the reaper's end", || is_gone(dead));
        let states = fs::read_dir(rig.dir()).unwrap().map(|entry| entry.unwrap().path());
        let records: Vec<_> =
            states.map(|dir| dir.join("sandboxes/half-made.json")).filter(|path| path.exists()).collect();
        let [record] = &records[..] else { panic!("{records:?}") };
        let text = fs::read_to_string(record).unwrap();
        let earlier = text.replace(r#""phase":"ready""#, r#""phase":"creating""#);
        assert_ne!(earlier, text);
        fs::write(record, earlier).unwrap();
    });
    wait_until("the end of what was half-made", || is_gone(half_made));
    assert_eq!(code(pods::state(&rig, "half-made")), Code::NOT_FOUND);
    assert_eq!(pods::state(&rig, "dead").unwrap(), "SANDBOX_NOTREADY");
    assert_eq!(pods::state(&rig, "watched").unwrap(), "SANDBOX_READY");
    kill(pods[0].1, 9);
    wait_until("the pod's end", || pods::state(&rig, "watched").unwrap() == "SANDBOX_NOTREADY");
    wait_until("no zombie", || is_gone(watched));
    pods::shut_down(&rig, "watched");
    pods::shut_down(&rig, "dead");
}

#[test]
fn delete_works_with_and_without_a_keeper() {
    // SHIM-DEL-01, SHIM-DEL-02, SHIM-DEL-03; SHIM-TST-10
    let mut rig = Rig::new();
    for id in ["a", "b"] {
        rig.create(&rig.bundle(id, &["sleep", "1000"])).unwrap();
        rig.start(id, "").unwrap();
    }
    let status = |output: std::process::Output| {
        assert!(output.status.success(), "{output:?}");
        let answer: containerd_shim_protos::api::DeleteResponse =
            protobuf::Message::parse_from_bytes(&output.stdout).unwrap();
        answer.exit_status
    };
    assert_eq!(status(rig.shim("a", "delete")), 137);
    assert_eq!(status(rig.shim("a", "delete")), 137, "idempotent");
    assert_eq!(code(rig.state("a", "")), Code::NOT_FOUND);
    assert_eq!(rig.state("b", "").unwrap(), "RUNNING", "only that id");
    let keeper = rig.info().keeper_pid;
    kill_both(rig.guardian, keeper);
    assert_eq!(status(rig.shim("b", "delete")), 137);
    assert_eq!(status(rig.shim("b", "delete")), 137, "idempotent");
    crate::rig::address_of(&rig.shim("node", "start"));
    rig.reconnect();
    rig.guardian = rig.info().guardian_pid;
}

#[test]
fn a_wait_whose_client_leaves_costs_nothing() {
    // SHIM-TSK-17
    let mut rig = Rig::new();
    rig.create(&rig.bundle("c", &["sleep", "1000"])).unwrap();
    rig.start("c", "").unwrap();
    let keeper = rig.info().keeper_pid;
    let open = || fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().count();
    let before = open();
    for _ in 0..20 {
        let client = rig.run(ttrpc::r#async::Client::connect(rig.address())).unwrap();
        let client = containerd_shim_protos::shim_async::TaskClient::new(client);
        let request = WaitRequest { id: "c".into(), ..Default::default() };
        let waited = rig.run(async {
            tokio::time::timeout(Duration::from_millis(10), client.wait(soon(), &request)).await
        });
        assert!(waited.is_err());
    }
    wait_until("the connections' end", || open() <= before);
    rig.kill_keeper();
    rig.kill("c", "", 9, true).unwrap();
    rig.wait("c", "").unwrap();
    rig.delete("c", "").unwrap();
}
