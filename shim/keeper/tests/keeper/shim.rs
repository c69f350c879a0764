//! As containerd calls us: bundles, bootstrap in each form, `delete`, streams by URI, and a client that comes and goes.

use crate::rig::{BINARY, Rig, address_of, code, kill, soon, wait_until};
use containerd_shim_protos::api::{CreateTaskRequest, DeleteResponse, PidsRequest};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, Extension};
use containerd_shim_protos::shim::oci::Options;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use serde_json::json;
use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use ttrpc::Code;

/// containerd's side of one bundle: directory, environment, standard input.
pub struct Caller {
    pub dir: tempfile::TempDir,
    pub env: Vec<(&'static str, String)>,
}

impl Caller {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("slk").tempdir().unwrap();
        let env = vec![
            ("SLIPWAY_KEEPER_STATE", dir.path().join("k").to_str().unwrap().into()),
            ("TTRPC_ADDRESS", dir.path().join("c.ttrpc").to_str().unwrap().into()),
        ];
        Self { dir, env }
    }

    pub fn bundle(&self, id: &str) -> PathBuf {
        let bundle = self.dir.path().join("bundles").join(id);
        fs::create_dir_all(&bundle).unwrap();
        bundle
    }

    pub fn call(&self, id: &str, action: &str, input: &[u8]) -> Output {
        let mut child = self.begin(id, action);
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Standard input is still to be written.
    pub fn begin(&self, id: &str, action: &str) -> Child {
        let mut command = Command::new(BINARY);
        command
            .args(["-namespace", "test", "-address", "/c.sock", "-publish-binary", "/c", "-id", id, action])
            .env_remove("MAX_SHIM_VERSION")
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .current_dir(self.bundle(id))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Guardian and keeper behind this address.
    pub fn pids(address: &str) -> [i32; 2] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let info = runtime.block_on(async {
            let client = ttrpc::r#async::Client::connect(address).await.unwrap();
            let keeper = cri_proto::keeper::keeper_ttrpc::KeeperClient::new(client);
            keeper.info(soon(), &Default::default()).await.unwrap()
        });
        [info.guardian_pid, info.keeper_pid]
    }

    /// Ends the keeper behind this address.
    pub fn end(&self, address: &str) {
        let pids = Self::pids(address);
        kill(pids[0], 15);
        wait_until("its end", || pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
    }
}

pub fn options(change: impl FnOnce(&mut Options)) -> Any {
    let mut options = Options::default();
    change(&mut options);
    let value = options.write_to_bytes().unwrap();
    Any { type_url: "containerd.runc.v1.Options".into(), value, ..Any::default() }
}

#[test]
fn each_containerd_is_answered_in_its_own_words() {
    // SHIM-BOOT-01, SHIM-BOOT-02, SHIM-BOOT-05, SHIM-BOOT-06, SHIM-OUT-01, SHIM-OUT-02, SHIM-OUT-03,
    // SHIM-OUT-06, SHIM-OUT-08, SHIM-BUN-03, SHIM-CMD-07, SHIM-VER-01, SHIM-VER-02, SHIM-VER-03, SHIM-VER-04,
    // SHIM-VER-05, SHIM-TST-06
    let mut caller = Caller::new();
    let text = caller.call("a", "start", b"");
    assert!(text.status.success() && text.stderr.is_empty(), "{text:?}");
    let address = String::from_utf8(text.stdout).unwrap();
    assert!(address.starts_with("unix:///"), "{address}");
    assert_eq!(fs::read_to_string(caller.bundle("a").join("address")).unwrap(), address);

    caller.env.push(("MAX_SHIM_VERSION", "2".into()));
    let options = options(|options| options.binary_name = "crun".into());
    let json = caller.call("b", "start", &options.write_to_bytes().unwrap());
    assert_eq!(address_of(&json), address);

    let params = BootstrapParams {
        instance_id: "c".into(),
        namespace: "test".into(),
        log_level: protobuf::EnumOrUnknown::from_i32(-8),
        containerd_ttrpc_address: "/elsewhere.ttrpc".into(),
        containerd_grpc_address: "/c.sock".into(),
        extensions: vec![Extension { value: Some(options).into(), ..Default::default() }],
        ..Default::default()
    };
    let answer = caller.call("c", "start", &params.write_to_bytes().unwrap());
    assert!(answer.status.success() && answer.stderr.is_empty(), "{answer:?}");
    let result = BootstrapResult::parse_from_bytes(&answer.stdout).unwrap();
    assert_eq!((result.version, &*result.address, &*result.protocol), (3, &*address, "ttrpc"));
    caller.end(&address);
}

#[test]
fn bad_options_are_named_and_start_nothing() {
    // SHIM-OUT-07, SHIM-TSK-02
    let caller = Caller::new();
    let unknown = Any { type_url: "example.com/My.Options".into(), ..Any::default() };
    for (input, named) in
        [(unknown.write_to_bytes().unwrap(), "My.Options"), (vec![0xff; 9], "neither options")]
    {
        let output = caller.call("a", "start", &input);
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(named), "{output:?}");
    }
    assert!(!caller.dir.path().join("k").exists());
    let info = Command::new(BINARY).arg("-info").stdin(Stdio::null()).output().unwrap();
    let info =
        containerd_shim_protos::types::introspection::RuntimeInfo::parse_from_bytes(&info.stdout).unwrap();
    let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
    // SHIM-INFO-01, SHIM-INFO-02
    assert!(features["mountOptions"].as_array().unwrap().contains(&json!("rro")), "{features}");
}

#[test]
fn delete_of_nothing_is_success() {
    // SHIM-DEL-01b, SHIM-DEL-02, SHIM-DEL-03, SHIM-TST-10
    let caller = Caller::new();
    for _ in 0..2 {
        let output = caller.call("never", "delete", b"");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let response = DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
        assert_eq!((response.pid, response.exit_status), (0, 137));
        assert!(response.exited_at.is_some());
    }
    let output = caller.call("never", "frobnicate", b"");
    assert!(!output.status.success());
}

#[test]
fn a_keeper_for_each_pod_by_option_is_found_again_by_its_bundle() {
    // SHIM-GRP-01, SHIM-DEL-03, SHIM-SOCK-01
    let mut caller = Caller::new();
    caller.env.push(("MAX_SHIM_VERSION", "2".into()));
    let table = b"Grouping = \"pod\"\n";
    let mut value = vec![0x1a, u8::try_from(table.len()).unwrap()];
    value.extend(table);
    let generic = Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Any::default() };
    let input = generic.write_to_bytes().unwrap();
    for (id, pod) in [("p1", "p1"), ("c1", "p1"), ("p2", "p2")] {
        let spec = json!({"ociVersion": "1.2.0", "annotations": {"io.kubernetes.cri.sandbox-id": pod}});
        fs::write(caller.bundle(id).join("config.json"), spec.to_string()).unwrap();
    }
    let of = |id: &str| address_of(&caller.call(id, "start", &input));
    let (first, second) = (of("p1"), of("p2"));
    assert_eq!(of("c1"), first);
    assert_ne!(first, second);
    // The settings may have changed meanwhile: the bundle knows its keeper.
    fs::remove_file(caller.bundle("c1").join("config.json")).unwrap();
    assert!(caller.call("c1", "delete", b"").status.success());
    caller.end(&first);
    caller.end(&second);
}

#[test]
fn output_goes_to_files_and_programs() {
    // SHIM-IO-02, SHIM-IO-05, SHIM-IO-06, SHIM-IO-07, SHIM-IO-08, SHIM-IO-09
    let rig = Rig::new();
    let script = "echo out; echo err >&2";
    let file = rig.dir().join("made/for/us.log");
    let mut bundle = rig.bundle("file", &["sh", "-c", script]);
    bundle.stdout = format!("file://{}", file.display());
    let logger = rig.dir().join("logger");
    let log = rig.dir().join("program.log");
    let text = "#!/bin/sh\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $1=$2 $(ls /proc/$$/fd | tr '\\n' ' ')\" > $2\n\
                exec 5>&-\ncat <&3 >> $2\ncat <&4 >> $2\necho bye >> $2\n";
    fs::write(&logger, text).unwrap();
    fs::set_permissions(&logger, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut program = rig.bundle("program", &["sh", "-c", script]);
    program.stdout = format!("binary://{}?to={}", logger.display(), log.display());
    let mut terminal = rig.bundle("terminal", &["sh", "-c", "stty size; echo to a terminal"]);
    terminal.spec["process"]["terminal"] = json!(true);
    terminal.spec["process"]["consoleSize"] = json!({"height": 30, "width": 90});
    let tty_log = rig.dir().join("tty.log");
    terminal.stdout = format!("file://{}", tty_log.display());
    for bundle in [&bundle, &program, &terminal] {
        rig.create(bundle).unwrap();
        rig.start(&bundle.id, "").unwrap();
        assert_eq!(rig.wait(&bundle.id, "").unwrap(), 0);
        // Delete waits for the program.
        rig.delete(&bundle.id, "").unwrap();
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "out\nerr\n");
    let seen = fs::read_to_string(&log).unwrap();
    let expected = format!("program test to={} ", log.display());
    assert!(seen.starts_with(&expected), "{seen}");
    assert!(seen.ends_with("out\nerr\nbye\n"), "{seen}");
    // Delete waits for a terminal's last words, too (SHIM-EXIT-07).
    assert_eq!(fs::read_to_string(&tty_log).unwrap(), "30 90\r\nto a terminal\r\n");
    let tasks = format!("/proc/{}/task", rig.info().keeper_pid);
    let children =
        |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    wait_until("no child and no zombie", || {
        fs::read_dir(&tasks).unwrap().flatten().all(|thread| children(thread).is_empty())
    });
}

#[test]
fn pids_are_there_before_the_start_and_after_the_end() {
    // SHIM-TSK-27, SHIM-DEL-08: containerd throws away what has none after its restart.
    let rig = Rig::new();
    let init = rig.create(&rig.bundle("c", &["true"])).unwrap();
    let pids = || {
        let request = PidsRequest { id: "c".into(), ..Default::default() };
        let answer = rig.run(rig.tasks().pids(soon(), &request)).unwrap();
        answer.processes.iter().map(|process| process.pid).collect::<Vec<_>>()
    };
    assert_eq!(pids(), [init]);
    rig.start("c", "").unwrap();
    rig.wait("c", "").unwrap();
    assert_eq!(pids(), [init]);
    rig.delete("c", "").unwrap();
}

#[test]
fn a_bundle_may_vanish_and_execs_may_run_at_the_end() {
    let mut rig = Rig::new();
    let bundle = rig.bundle("c", &["sleep", "1000"]);
    rig.create(&bundle).unwrap();
    rig.start("c", "").unwrap();
    rig.exec("c", "e", &["sleep", "1000"], "").unwrap();
    rig.start("c", "e").unwrap();
    assert_eq!(code(rig.delete("c", "")), Code::FAILED_PRECONDITION);
    assert_eq!(code(rig.delete("c", "e")), Code::FAILED_PRECONDITION);
    fs::remove_file(bundle.path.join("config.json")).unwrap();
    rig.exec("c", "late", &["true"], "").unwrap();
    assert_eq!(code(rig.start("c", "late")), Code::NOT_FOUND);
    assert_eq!(rig.state("c", "").unwrap(), "RUNNING");
    rig.kill("c", "", 9, false).unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 137);
    rig.delete("c", "").unwrap();
    let request = CreateTaskRequest {
        id: "d".into(),
        bundle: bundle.path.to_str().unwrap().into(),
        options: Some(Any { type_url: "example.com/My.Options".into(), ..Any::default() }).into(),
        ..Default::default()
    };
    assert_eq!(code(rig.run(rig.tasks().create(soon(), &request))), Code::INVALID_ARGUMENT);
    // All of it, root filesystem and all, and the keeper too.
    let gone = rig.bundle("gone", &["sleep", "1000"]);
    rig.create(&gone).unwrap();
    rig.start("gone", "").unwrap();
    fs::remove_dir_all(&gone.path).unwrap();
    rig.kill_keeper();
    assert_eq!(rig.state("gone", "").unwrap(), "RUNNING");
    rig.exec("gone", "e", &["true"], "").unwrap();
    assert_eq!(code(rig.start("gone", "e")), Code::NOT_FOUND);
    assert_eq!(code(rig.create(&rig.bundle("gone", &["true"]))), Code::ALREADY_EXISTS);
    rig.kill("gone", "", 9, true).unwrap();
    assert_eq!(rig.wait("gone", "").unwrap(), 137);
    fs::remove_dir_all(&gone.path).unwrap();
    assert_eq!(rig.delete("gone", "").unwrap(), 137);
}

#[test]
fn connections_outlive_the_keeper_and_rubbish_does_not_hurt() {
    // DESIGN 1B, SHIM-TSK-16, SHIM-TTR-01, SHIM-TTR-02, SHIM-TTR-08, SHIM-TTR-09
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::with_events(dir.path().join("away.ttrpc").to_str().unwrap());
    let path = rig.address().strip_prefix("unix://").unwrap().to_owned();
    let mut rubbish = Vec::new();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0; 10], b"x"] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(bytes).unwrap();
        rubbish.push(stream);
    }
    rig.create(&rig.bundle("c", &["sh", "-c", "sleep 1; exit 7"])).unwrap();
    rig.start("c", "").unwrap();
    let first = rig.info();
    let waiting = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| rig.wait("c", ""));
        for _ in 0..2 {
            std::thread::sleep(std::time::Duration::from_millis(200));
            let keeper = rig.info().keeper_pid;
            kill(keeper, 9);
            // On the same connection.
            wait_until("the next keeper", || rig.info().keeper_pid != keeper);
        }
        waiter.join().unwrap()
    });
    assert_eq!(waiting.unwrap(), 7, "the wait that began under the first keeper");
    assert_eq!(rig.info().generation, first.generation + 2);
    assert_eq!(rig.info().guardian_pid, first.guardian_pid);
    rig.delete("c", "").unwrap();
    drop(rubbish);
    let calls = fs::read_dir(rig.dir()).unwrap().flatten().map(|entry| entry.path().join("calls"));
    let calls = calls.into_iter().find(|path| path.is_dir()).expect("open requests are on record");
    wait_until("no open request", || fs::read_dir(&calls).unwrap().count() == 0);
}

#[test]
fn the_keeper_is_born_in_the_group_that_the_options_name() {
    // SHIM-PROC-04, SHIM-OPT-01
    let mut caller = Caller::new();
    caller.env.push(("MAX_SHIM_VERSION", "2".into()));
    let group = format!("slipway-test-{}-shims", std::process::id());
    let options = options(|options| options.shim_cgroup = format!("/{group}"));
    let address = address_of(&caller.call("a", "start", &options.write_to_bytes().unwrap()));
    for pid in Caller::pids(&address) {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(groups.lines().any(|line| line.ends_with(&format!(":/{group}"))), "{groups}");
    }
    caller.end(&address);
    let parents = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    for dir in parents.chain([PathBuf::from("/sys/fs/cgroup")]).map(|parent| parent.join(&group)) {
        if dir.exists() {
            wait_until("an empty group", || fs::remove_dir(&dir).is_ok());
        }
    }
}

#[test]
fn what_init_leaves_in_the_hosts_pid_namespace_dies_with_it() {
    // SHIM-TST-08, SHIM-EXIT-03
    let rig = Rig::new();
    let mut bundle = rig.bundle("c", &["sh", "-c", "sleep 1000 & sleep 1000 & exit 3"]);
    bundle.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]);
    rig.create(&bundle).unwrap();
    rig.start("c", "").unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 3);
    let procs = rig.cgroups().into_iter().map(|group| group.join("c/cgroup.procs"));
    let procs: Vec<_> = procs.filter(|path| path.exists()).collect();
    assert!(!procs.is_empty());
    wait_until("an empty group", || procs.iter().all(|file| fs::read_to_string(file).unwrap().is_empty()));
    rig.delete("c", "").unwrap();
}
