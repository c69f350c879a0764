//! Bad input, and calls in the wrong order: the right code, a sentence, and nothing half-made.

use crate::rig::{Rig, address_of, code, soon, wait_until};
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, CreateTaskRequest, PidsRequest, ResizePtyRequest,
    StatsRequest, UpdateTaskRequest,
};
use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use ttrpc::Code;

#[test]
fn unknown_ids_are_not_found() {
    // SHIM-TSK-12, SHIM-TSK-31, SHIM-TSK-34
    let rig = Rig::new();
    let tasks = rig.tasks();
    assert_eq!(code(rig.state("x", "")), Code::NOT_FOUND);
    assert_eq!(code(rig.start("x", "")), Code::NOT_FOUND);
    assert_eq!(code(rig.kill("x", "", 9, false)), Code::NOT_FOUND);
    assert_eq!(code(rig.wait("x", "")), Code::NOT_FOUND);
    assert_eq!(code(rig.delete("x", "")), Code::NOT_FOUND);
    assert_eq!(code(rig.exec("x", "e", &["true"], "")), Code::NOT_FOUND);
    let id = || "x".to_owned();
    assert_eq!(
        code(rig.run(tasks.pids(soon(), &PidsRequest { id: id(), ..Default::default() }))),
        Code::NOT_FOUND
    );
    assert_eq!(
        code(rig.run(tasks.stats(soon(), &StatsRequest { id: id(), ..Default::default() }))),
        Code::NOT_FOUND
    );
    assert_eq!(
        code(rig.run(tasks.update(soon(), &UpdateTaskRequest { id: id(), ..Default::default() }))),
        Code::NOT_FOUND
    );
    assert_eq!(
        code(rig.run(tasks.close_io(soon(), &CloseIORequest { id: id(), ..Default::default() }))),
        Code::NOT_FOUND
    );
    assert_eq!(
        code(rig.run(tasks.resize_pty(soon(), &ResizePtyRequest { id: id(), ..Default::default() }))),
        Code::NOT_FOUND
    );
    let connect = ConnectRequest { id: id(), ..Default::default() };
    let connected = rig.run(tasks.connect(soon(), &connect)).unwrap();
    assert_eq!(connected.task_pid, 0);
    assert_eq!(connected.shim_pid, rig.info().keeper_pid.cast_unsigned());
    rig.create(&rig.bundle("c", &["true"])).unwrap();
    assert_eq!(code(rig.state("c", "no-exec")), Code::NOT_FOUND);
    let checkpoint = CheckpointTaskRequest { id: "no-task".into(), path: "/x".into(), ..Default::default() };
    assert_eq!(code(rig.run(tasks.checkpoint(soon(), &checkpoint))), Code::NOT_FOUND);
    rig.delete("c", "").unwrap();
}

#[test]
fn a_second_create_does_not_disturb_the_first() {
    // SHIM-TSK-04
    let rig = Rig::new();
    let bundle = rig.bundle("c", &["sleep", "1000"]);
    let pid = rig.create(&bundle).unwrap();
    rig.start("c", "").unwrap();
    assert_eq!(code(rig.create(&bundle)), Code::ALREADY_EXISTS);
    let connect = ConnectRequest { id: "c".into(), ..Default::default() };
    assert_eq!(rig.run(rig.tasks().connect(soon(), &connect)).unwrap().task_pid, pid);
    rig.kill("c", "", 9, true).unwrap();
    rig.wait("c", "").unwrap();
    rig.delete("c", "").unwrap();
}

#[test]
fn bad_bundles_and_streams_are_refused_and_leave_nothing() {
    let rig = Rig::new();
    let create = |change: &dyn Fn(&mut CreateTaskRequest)| {
        let bundle = rig.bundle("c", &["true"]);
        fs::write(bundle.path.join("config.json"), bundle.spec.to_string()).unwrap();
        let mut request = CreateTaskRequest {
            id: "c".into(),
            bundle: bundle.path.to_str().unwrap().into(),
            ..Default::default()
        };
        change(&mut request);
        rig.run(rig.tasks().create(soon(), &request))
    };
    for id in ["", ".", "../x", "a/b", &"x".repeat(77)] {
        assert_eq!(code(create(&|request| request.id = id.into())), Code::INVALID_ARGUMENT, "{id:?}");
    }
    assert_eq!(code(create(&|request| request.bundle = "/nonexistent".into())), Code::NOT_FOUND);
    assert_eq!(code(create(&|request| request.checkpoint = "/no/such".into())), Code::NOT_FOUND);
    // The second is what containerd 2 sends by io_type = "streaming".
    for (unknown, scheme) in [("fd:///3", "fd:"), ("ttrpc+unix:///s.ttrpc?streaming_id=1", "ttrpc+unix:")] {
        let refused = create(&|request| request.stdout = unknown.into());
        assert!(format!("{refused:?}").contains(scheme), "{refused:?}");
        assert_eq!(code(refused), Code::UNIMPLEMENTED, "{unknown}");
    }
    let no_program = create(&|request| request.stdout = "binary:///no/such/program".into());
    assert!(format!("{no_program:?}").contains("does not run"), "{no_program:?}");
    assert_eq!(code(no_program), Code::FAILED_PRECONDITION);
    let mute = create(&|request| request.stdout = "binary-v2:///bin/true".into());
    assert!(format!("{mute:?}").contains("without a word"), "{mute:?}");
    assert_eq!(
        code(create(&|request| request.stdout = "cri-log:///no/such/dir/0.log".into())),
        Code::NOT_FOUND
    );
    assert_eq!(code(create(&|request| request.stdout = "/no/such/fifo".into())), Code::NOT_FOUND);
    assert_eq!(code(create(&|request| request.stdin = "/dev/null".into())), Code::INVALID_ARGUMENT);
    let bad = rig.bundle("bad", &["true"]);
    fs::write(bad.path.join("config.json"), "{").unwrap();
    let path = bad.path.to_str().unwrap().to_owned();
    assert_eq!(code(create(&|request| request.bundle.clone_from(&path))), Code::INVALID_ARGUMENT);
    assert_eq!(rig.list().len(), 0);
    assert_eq!(rig.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_bad_exec_is_refused() {
    let rig = Rig::new();
    rig.create(&rig.bundle("c", &["sleep", "1000"])).unwrap();
    rig.start("c", "").unwrap();
    assert_eq!(code(rig.exec("c", "a/b", &["true"], "")), Code::INVALID_ARGUMENT);
    assert_eq!(
        code(rig.exec_process("c", "e", &serde_json::json!({"args": 5}), "", "", "")),
        Code::INVALID_ARGUMENT
    );
    rig.exec("c", "missing", &["/no/such/program"], "").unwrap();
    let error = rig.start("c", "missing").unwrap_err().to_string();
    assert!(error.contains("/no/such/program"), "{error}");
    assert_eq!(code(rig.start("c", "missing")), Code::FAILED_PRECONDITION);
    rig.delete("c", "missing").unwrap();
    // A fifo nobody reads, and more than fits into it: only this process waits (SHIM-TST-05).
    let fifo = rig.fifo("unread");
    rig.exec("c", "stuck", &["head", "-c", "1000000", "/dev/zero"], &fifo).unwrap();
    rig.exec("c", "beside", &["true"], "").unwrap();
    rig.start("c", "stuck").unwrap();
    rig.start("c", "beside").unwrap();
    assert_eq!(rig.wait("c", "beside").unwrap(), 0);
    rig.kill("c", "stuck", 9, false).unwrap();
    assert_eq!(rig.wait("c", "stuck").unwrap(), 137);
    rig.delete("c", "stuck").unwrap();
    rig.delete("c", "beside").unwrap();
    rig.kill("c", "", 9, true).unwrap();
    rig.wait("c", "").unwrap();
    rig.delete("c", "").unwrap();
}

#[test]
fn rubbish_on_the_socket_hurts_only_its_own_connection() {
    let rig = Rig::new();
    let path = rig.address().strip_prefix("unix://").unwrap().to_owned();
    for rubbish in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0; 10], &[0, 0, 0, 0, 0, 0, 0, 1, 1, 0], b"x"]
    {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(rubbish).unwrap();
        assert!(rig.info().keeper_pid > 0);
    }
    // A frame that promises more than it brings, left open.
    let mut half = UnixStream::connect(&path).unwrap();
    half.write_all(&[0, 0x3f, 0xff, 0xff, 0, 0, 0, 1, 1, 0]).unwrap();
    rig.create(&rig.bundle("c", &["true"])).unwrap();
    rig.start("c", "").unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 0);
    rig.delete("c", "").unwrap();
    drop(half);
}

#[test]
fn starts_at_the_same_time_give_one_keeper() {
    // SHIM-SOCK-03, SHIM-TST-01
    let rig = Rig::new();
    let info = rig.info();
    let starts: Vec<_> = (0..6)
        .map(|i| {
            let state = rig.dir().to_owned();
            std::thread::spawn(move || address_of(&crate::rig::shim(&state, &format!("pod{i}"), "start")))
        })
        .collect();
    for start in starts {
        assert_eq!(start.join().unwrap(), rig.address());
    }
    assert_eq!(rig.info().keeper_pid, info.keeper_pid);
    let dir = tempfile::Builder::new().prefix("slk").tempdir().unwrap();
    let together: Vec<_> = (0..4)
        .map(|_| {
            let state = dir.path().to_owned();
            std::thread::spawn(move || address_of(&crate::rig::shim(&state, "node", "start")))
        })
        .collect();
    let addresses: Vec<_> = together.into_iter().map(|start| start.join().unwrap()).collect();
    assert!(addresses.iter().all(|address| *address == addresses[0]));
    let client = rig.run(ttrpc::r#async::Client::connect(&addresses[0])).unwrap();
    let keeper = cri_proto::keeper::keeper_ttrpc::KeeperClient::new(client);
    let info = rig.run(keeper.info(soon(), &Default::default())).unwrap();
    crate::rig::kill(info.guardian_pid, 15);
    wait_until("its end", || !std::path::Path::new(&format!("/proc/{}", info.guardian_pid)).exists());
    let socket = addresses[0].strip_prefix("unix://").unwrap();
    assert!(!std::path::Path::new(socket).exists(), "SHIM-SOCK-05");
}

#[test]
fn the_command_line_is_containerds() {
    // SHIM-CMD-01, SHIM-CMD-02, SHIM-CMD-03, SHIM-CMD-04, SHIM-OUT-07, SHIM-INFO-04
    let run = |args: &[&str]| {
        std::process::Command::new(crate::rig::BINARY)
            .args(args)
            .env("SLIPWAY_KEEPER_STATE", "/nonexistent/never/made")
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap()
    };
    let version = run(&["-v"]);
    let said = format!("containerd-shim-slipway-v1 {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((version.status.code(), version.stdout), (Some(0), said.into_bytes()));
    let info = run(&["-info"]);
    let info: containerd_shim_protos::types::introspection::RuntimeInfo =
        protobuf::Message::parse_from_bytes(&info.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.slipway.v1");
    for args in [
        &["start"][..],
        &["-namespace", "", "-id", "x", "start"],
        &["-namespace", "n", "-id", "x", "frobnicate"],
    ] {
        let output = run(args);
        assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
    assert!(!std::path::Path::new("/nonexistent").exists());
}

#[test]
fn a_keeper_with_containers_refuses_to_end() {
    // SHIM-TSK-32, SHIM-PROC-05
    let rig = Rig::new();
    rig.create(&rig.bundle("c", &["sleep", "1000"])).unwrap();
    let keeper = rig.info().keeper_pid;
    crate::rig::kill(rig.guardian, 15);
    rig.run(rig.tasks().shutdown(soon(), &Default::default())).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(rig.info().keeper_pid, keeper);
    rig.delete("c", "").unwrap();
}
