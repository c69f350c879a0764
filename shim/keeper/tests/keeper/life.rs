//! Containers and exec sessions from create to delete.

use crate::rig::{Rig, code, log_lines, wait_until};
use std::fs;
use std::io::Read as _;
use ttrpc::Code;

#[test]
fn a_container_lives_and_dies() {
    // SHIM-TSK-01, SHIM-TSK-07, SHIM-TSK-11, SHIM-TSK-16, SHIM-TSK-18, SHIM-TSK-20; CRI-LOG-15
    let rig = Rig::new();
    let mut bundle = rig.bundle("c", &["sh", "-c", "echo hello; echo oops >&2; printf tail; exit 7"]);
    bundle.stdout = format!("cri-log://{}", rig.log_path("c").display());
    let pid = rig.create(&bundle).unwrap();
    assert_eq!(rig.state("c", "").unwrap(), "CREATED");
    assert_eq!(rig.start("c", "").unwrap(), pid);
    assert_eq!(rig.wait("c", "").unwrap(), 7);
    assert_eq!(rig.state("c", "").unwrap(), "STOPPED");
    assert_eq!(log_lines(&rig.log_path("c"), "stdout"), ["hello", "tail"]);
    assert_eq!(log_lines(&rig.log_path("c"), "stderr"), ["oops"]);
    let info = rig.wait_task("c");
    assert_eq!((info.exit_status, info.status_known, info.oom_killed), (7, true, false));
    assert!(info.exited_at >= info.started_at && info.started_at > 0);
    assert_eq!(rig.delete("c", "").unwrap(), 7);
    assert_eq!(code(rig.state("c", "")), Code::NOT_FOUND);
    // The id is free again.
    rig.create(&bundle).unwrap();
    rig.delete("c", "").unwrap();
}

#[test]
fn exec_writes_into_the_fifo_and_has_its_own_status() {
    // SHIM-TSK-21, SHIM-TSK-22; DESIGN: the keeper copies nothing
    let rig = Rig::new();
    let bundle = rig.bundle("c", &["sleep", "1000"]);
    rig.create(&bundle).unwrap();
    rig.start("c", "").unwrap();
    let fifo = rig.fifo("out");
    rig.exec("c", "e", &["sh", "-c", "echo from exec; exit 3"], &fifo).unwrap();
    assert_eq!(code(rig.exec("c", "e", &["true"], "")), Code::ALREADY_EXISTS);
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let reader = rustix::fs::open(&fifo, flags, rustix::fs::Mode::empty()).unwrap();
    assert!(rig.start("c", "e").unwrap() > 0);
    assert_eq!(rig.wait("c", "e").unwrap(), 3);
    let mut text = String::new();
    fs::File::from(reader).read_to_string(&mut text).unwrap();
    assert_eq!(text, "from exec\n");
    assert_eq!(rig.delete("c", "e").unwrap(), 3);
    assert_eq!(code(rig.wait("c", "e")), Code::NOT_FOUND);
    rig.kill("c", "", 9, true).unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 137);
    rig.delete("c", "").unwrap();
}

#[test]
fn signals_pause_and_states() {
    // SHIM-TSK-09, SHIM-TSK-10, SHIM-TSK-13, SHIM-TSK-14, SHIM-TSK-15, SHIM-TSK-18, SHIM-TSK-23
    let rig = Rig::new();
    let bundle = rig.bundle("c", &["sh", "-c", "trap 'exit 21' TERM; while :; do sleep 0.01; done"]);
    rig.create(&bundle).unwrap();
    assert_eq!(code(rig.exec("c", "early", &["true"], "")), Code::FAILED_PRECONDITION);
    rig.start("c", "").unwrap();
    assert_eq!(code(rig.start("c", "")), Code::FAILED_PRECONDITION);
    assert_eq!(code(rig.delete("c", "")), Code::FAILED_PRECONDITION);
    assert_eq!(code(rig.kill("c", "", 99, false)), Code::INVALID_ARGUMENT);
    let pause = containerd_shim_protos::api::PauseRequest { id: "c".into(), ..Default::default() };
    rig.run(rig.tasks().pause(crate::rig::soon(), &pause)).unwrap();
    assert_eq!(rig.state("c", "").unwrap(), "PAUSED");
    assert_eq!(code(rig.exec("c", "paused", &["true"], "")), Code::FAILED_PRECONDITION);
    let resume = containerd_shim_protos::api::ResumeRequest { id: "c".into(), ..Default::default() };
    rig.run(rig.tasks().resume(crate::rig::soon(), &resume)).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    rig.kill("c", "", 15, false).unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 21);
    assert_eq!(code(rig.kill("c", "", 15, false)), Code::NOT_FOUND);
    rig.delete("c", "").unwrap();
    // A parked container can be killed.
    rig.create(&bundle).unwrap();
    rig.kill("c", "", 9, false).unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 137);
    rig.delete("c", "").unwrap();
    // A paused one dies of SIGKILL.
    rig.create(&bundle).unwrap();
    rig.start("c", "").unwrap();
    rig.run(rig.tasks().pause(crate::rig::soon(), &pause)).unwrap();
    rig.kill("c", "", 9, false).unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 137);
    rig.delete("c", "").unwrap();
}

#[test]
fn a_command_that_is_missing_is_named() {
    let rig = Rig::new();
    let bundle = rig.bundle("c", &["/no/such/program"]);
    rig.create(&bundle).unwrap();
    let error = rig.start("c", "").unwrap_err().to_string();
    assert!(error.contains("/no/such/program"), "{error}");
    rig.wait("c", "").unwrap();
    rig.delete("c", "").unwrap();
}

#[test]
fn an_exec_is_killed_with_all_it_started() {
    let rig = Rig::new();
    rig.create(&rig.bundle("c", &["sleep", "1000"])).unwrap();
    rig.start("c", "").unwrap();
    rig.exec("c", "e", &["sh", "-c", "sleep 1000 & sleep 1000; true"], "").unwrap();
    rig.start("c", "e").unwrap();
    let pids = containerd_shim_protos::api::PidsRequest { id: "c".into(), ..Default::default() };
    let count = || rig.run(rig.tasks().pids(crate::rig::soon(), &pids)).unwrap().processes.len();
    wait_until("four processes", || count() == 4);
    let kill =
        cri_proto::keeper::KillAllRequest { id: "c".into(), exec_id: "e".into(), ..Default::default() };
    rig.run(rig.keeper().kill_all(crate::rig::soon(), &kill)).unwrap();
    assert_eq!(rig.wait("c", "e").unwrap(), 137);
    wait_until("only init", || count() == 1);
    assert_eq!(rig.state("c", "").unwrap(), "RUNNING");
    rig.delete("c", "e").unwrap();
    rig.kill("c", "", 9, true).unwrap();
    rig.wait("c", "").unwrap();
    rig.delete("c", "").unwrap();
}

#[test]
fn nothing_of_the_keeper_leaks_into_a_process() {
    // DESIGN 8: descriptors; also limits, OOM score and ignored signals, which the keeper has changed for itself.
    let rig = Rig::new();
    rig.create(&rig.bundle("c", &["sleep", "1000"])).unwrap();
    rig.exec("c", "e", &["sleep", "1000"], "").unwrap_err();
    let init = rig.start("c", "").unwrap();
    rig.exec("c", "e", &["sleep", "1000"], "").unwrap();
    let exec = rig.start("c", "e").unwrap();
    let own = fs::read_to_string("/proc/self/limits").unwrap();
    let nofile =
        |limits: &str| limits.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
    for pid in [init, exec] {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().file_name());
        let mut open: Vec<_> = open.map(|name| name.into_string().unwrap()).collect();
        open.sort();
        assert_eq!(open, ["0", "1", "2"]);
        assert_eq!(nofile(&read("limits")), nofile(&own));
        assert_eq!(read("oom_score_adj").trim(), "0");
        for line in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"] {
            assert!(read("status").contains(line), "{line} of {}", read("status"));
        }
    }
    rig.kill("c", "", 9, true).unwrap();
    rig.wait("c", "").unwrap();
    assert_eq!(rig.wait("c", "e").unwrap(), 137);
    rig.delete("c", "").unwrap();
}

#[test]
fn containers_do_not_wait_for_each_other() {
    // SHIM-GRP-05, SHIM-TTR-09
    let rig = Rig::new();
    let stuck = rig.bundle("stuck", &["sleep", "1000"]);
    rig.create(&stuck).unwrap();
    rig.start("stuck", "").unwrap();
    std::thread::scope(|scope| {
        for i in 0..12 {
            let rig = &rig;
            scope.spawn(move || {
                let id = format!("c{i}");
                rig.create(&rig.bundle(&id, &["sh", "-c", &format!("exit {i}")])).unwrap();
                rig.start(&id, "").unwrap();
                assert_eq!(rig.wait(&id, "").unwrap(), i);
                assert_eq!(rig.delete(&id, "").unwrap(), i);
            });
        }
    });
    rig.kill("stuck", "", 9, true).unwrap();
    rig.wait("stuck", "").unwrap();
    rig.delete("stuck", "").unwrap();
}
