//! Bad input to one pod, and the pod beside it: a typed error for the one, and the other does not notice.

use crate::pods::{self, CONTAINER};
use crate::rig::{Bundle, Rig, code, log_lines, soon, wait_until};
use crate::wire::{Raw, TOO_LONG, state};
use containerd_shim_protos::api::{ConnectRequest, CreateTaskRequest};
use containerd_shim_protos::shim::oci::Options;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use ttrpc::Code;

const NEIGHBOUR: &str = "neighbour";

/// A pod with a container that counts into its log.
struct Beside {
    rig: Rig,
    keeper: i32,
    pid: u32,
}

impl Beside {
    fn new() -> Self {
        let rig = Rig::new();
        pods::create(&rig, "beside", CONTAINER, &[]).unwrap();
        let owner = pods::start(&rig, "beside");
        let script = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done";
        rig.create(&pods::member(&rig, NEIGHBOUR, "beside", owner, &["ipc", "uts"], script)).unwrap();
        let pid = rig.start(NEIGHBOUR, "").unwrap();
        let keeper = rig.info().keeper_pid;
        let beside = Self { rig, keeper, pid };
        beside.is_unharmed();
        beside
    }

    /// The same keeper, the same process, a log that goes on without a gap, and room for an exec.
    fn is_unharmed(&self) {
        let rig = &self.rig;
        let info = rig.info();
        assert_eq!((info.keeper_pid, info.generation), (self.keeper, 1), "the keeper lives on");
        assert_eq!(pods::state(rig, "beside").unwrap(), "SANDBOX_READY");
        assert_eq!(rig.state(NEIGHBOUR, "").unwrap(), "RUNNING");
        let connect = ConnectRequest { id: NEIGHBOUR.into(), ..Default::default() };
        assert_eq!(rig.run(rig.tasks().connect(soon(), &connect)).unwrap().task_pid, self.pid);
        let lines = || log_lines(&rig.log_path(NEIGHBOUR), "stdout");
        let before = lines().len();
        wait_until("the neighbour's log to go on", || lines().len() > before + 2);
        assert!(
            lines().iter().enumerate().all(|(number, line)| *line == number.to_string()),
            "no line is lost"
        );
        rig.exec(NEIGHBOUR, "look", &["true"], "").unwrap();
        rig.start(NEIGHBOUR, "look").unwrap();
        assert_eq!(rig.wait(NEIGHBOUR, "look").unwrap(), 0);
        rig.delete(NEIGHBOUR, "look").unwrap();
    }

    fn end(self) {
        self.is_unharmed();
        self.rig.kill(NEIGHBOUR, "", 9, true).unwrap();
        assert_eq!(self.rig.wait(NEIGHBOUR, "").unwrap(), 137);
        self.rig.delete(NEIGHBOUR, "").unwrap();
        pods::shut_down(&self.rig, "beside");
    }

    /// Create with a change to the usual request.
    fn create(&self, bundle: &Bundle, change: impl FnOnce(&mut CreateTaskRequest)) -> ttrpc::Result<u32> {
        let _ = fs::write(bundle.path.join("config.json"), bundle.spec.to_string());
        let mut request = CreateTaskRequest {
            id: bundle.id.clone(),
            bundle: bundle.path.to_str().unwrap().into(),
            ..Default::default()
        };
        change(&mut request);
        self.rig.run(self.rig.tasks().create(soon(), &request)).map(|answer| answer.pid)
    }

    /// Nothing of this id is here, and it can be used.
    fn is_free(&self, id: &str) {
        assert_eq!(code(self.rig.state(id, "")), Code::NOT_FOUND);
        self.rig.create(&self.rig.bundle(id, &["true"])).unwrap();
        self.rig.start(id, "").unwrap();
        assert_eq!(self.rig.wait(id, "").unwrap(), 0);
        self.rig.delete(id, "").unwrap();
    }
}

fn says(result: &ttrpc::Result<u32>, words: &str) {
    assert!(format!("{result:?}").contains(words), "{words:?} is not in {result:?}");
}

/// runtimeoptions.v1.Options with this text as config_body (field 3).
fn table(text: &str) -> Any {
    let mut value = vec![0x1a, u8::try_from(text.len()).unwrap()];
    value.extend(text.as_bytes());
    Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Any::default() }
}

#[test]
fn unknown_options() {
    // SHIM-TSK-02
    let beside = Beside::new();
    let of = |url: &str, value: Vec<u8>| Any { type_url: url.into(), value, ..Any::default() };
    let bundle = beside.rig.bundle("c", &["true"]);
    for (options, words) in [
        (of("example.com/My.Options", vec![1, 2, 3]), "My.Options"),
        (of("containerd.runc.v1.Options", vec![0xff; 20]), "containerd.runc.v1.Options"),
        (table("SystemdCgruop = true\n"), "SystemdCgruop"),
        (table("IoUid = \"root\"\n"), "IoUid"),
    ] {
        let refused = beside.create(&bundle, |request| request.options = Some(options).into());
        says(&refused, words);
        assert_eq!(code(refused), Code::INVALID_ARGUMENT);
        beside.is_unharmed();
    }
    beside.is_free("c");
    beside.end();
}

#[test]
fn a_bundle_that_vanished() {
    let beside = Beside::new();
    let rig = &beside.rig;
    let bundle = rig.bundle("c", &["sleep", "1000"]);
    fs::remove_dir_all(&bundle.path).unwrap();
    let refused = beside.create(&bundle, |_| ());
    says(&refused, bundle.path.to_str().unwrap());
    assert_eq!(code(refused), Code::NOT_FOUND);
    beside.is_unharmed();
    // With its configuration, but without the root filesystem.
    let bundle = rig.bundle("c", &["sleep", "1000"]);
    fs::remove_dir_all(bundle.path.join("rootfs")).unwrap();
    let refused = beside.create(&bundle, |_| ());
    says(&refused, "rootfs");
    assert_eq!(code(refused), Code::NOT_FOUND);
    beside.is_unharmed();
    // Between Create and Start, and under a running container.
    let bundle = rig.bundle("c", &["sleep", "1000"]);
    beside.create(&bundle, |_| ()).unwrap();
    fs::remove_file(bundle.path.join("config.json")).unwrap();
    rig.start("c", "").unwrap();
    fs::remove_dir_all(&bundle.path).unwrap();
    rig.exec("c", "e", &["true"], "").unwrap();
    assert_eq!(code(rig.start("c", "e")), Code::NOT_FOUND);
    beside.is_unharmed();
    rig.kill("c", "", 9, true).unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 137);
    assert_eq!(rig.delete("c", "").unwrap(), 137);
    beside.is_free("c");
    beside.end();
}

#[test]
fn a_fifo_that_nobody_reads() {
    // SHIM-IO-04, SHIM-TST-05
    let beside = Beside::new();
    let rig = &beside.rig;
    let fifo = rig.fifo("unread");
    let bundle = rig.bundle("c", &["sh", "-c", "head -c 1000000 /dev/zero; exit 4"]);
    // What is no fifo is told from one that nobody reads.
    let path = bundle.path.join("config.json").display().to_string();
    for (name, expected) in [(path.as_str(), Code::INVALID_ARGUMENT), ("/no/such/fifo", Code::NOT_FOUND)] {
        let refused = beside.create(&bundle, |request| request.stdout = name.into());
        says(&refused, name);
        assert_eq!(code(refused), expected);
    }
    beside.create(&bundle, |request| request.stdout.clone_from(&fifo)).unwrap();
    rig.start("c", "").unwrap();
    beside.is_unharmed();
    assert_eq!(rig.state("c", "").unwrap(), "RUNNING", "it waits for a reader");
    assert_eq!(code(rig.delete("c", "")), Code::FAILED_PRECONDITION);
    // A late reader gets every byte.
    let mut bytes = Vec::new();
    fs::File::open(&fifo).unwrap().take(1_000_000).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, vec![0; 1_000_000]);
    assert_eq!(rig.wait("c", "").unwrap(), 4);
    rig.delete("c", "").unwrap();
    // And one that never gets a reader can be ended.
    beside.create(&bundle, |request| request.stdout.clone_from(&fifo)).unwrap();
    rig.start("c", "").unwrap();
    rig.kill("c", "", 9, false).unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 137);
    rig.delete("c", "").unwrap();
    beside.is_free("c");
    beside.end();
}

#[test]
fn a_second_create_with_the_same_id() {
    // SHIM-TSK-04
    let beside = Beside::new();
    let rig = &beside.rig;
    let bundle = Bundle { id: NEIGHBOUR.into(), ..rig.bundle("another", &["true"]) };
    assert_eq!(code(beside.create(&bundle, |_| ())), Code::ALREADY_EXISTS);
    beside.is_unharmed();
    // At the same time: one is made, the others are told so; the one can be used.
    let bundle = rig.bundle("c", &["sh", "-c", "exit 6"]);
    fs::write(bundle.path.join("config.json"), bundle.spec.to_string()).unwrap();
    let request = CreateTaskRequest {
        id: "c".into(),
        bundle: bundle.path.to_str().unwrap().into(),
        ..Default::default()
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let create = || rig.run(rig.tasks().create(soon(), &request));
        let all: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let (made, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!((made.len(), refused.len()), (1, 7));
    for refused in refused {
        assert_eq!(code(refused), Code::ALREADY_EXISTS);
    }
    assert_eq!(made[0].as_ref().unwrap().pid, rig.start("c", "").unwrap());
    assert_eq!(rig.wait("c", "").unwrap(), 6);
    assert_eq!(code(beside.create(&bundle, |_| ())), Code::ALREADY_EXISTS, "until it is deleted");
    rig.delete("c", "").unwrap();
    beside.is_free("c");
    beside.end();
}

#[test]
fn a_delete_while_an_exec_runs() {
    // SHIM-TSK-18, SHIM-EXIT-02
    let beside = Beside::new();
    let rig = &beside.rig;
    rig.create(&rig.bundle("c", &["sleep", "1000"])).unwrap();
    rig.start("c", "").unwrap();
    rig.exec("c", "e", &["sh", "-c", "until [ -e /go ]; do sleep 0.01; done; exit 5"], "").unwrap();
    rig.start("c", "e").unwrap();
    for exec in ["", "e"] {
        assert_eq!(code(rig.delete("c", exec)), Code::FAILED_PRECONDITION, "{exec:?}");
        beside.is_unharmed();
    }
    assert_eq!(rig.state("c", "e").unwrap(), "RUNNING", "it was not disturbed");
    fs::write(rig.dir().join("bundles/c/rootfs/go"), "").unwrap();
    assert_eq!(rig.wait("c", "e").unwrap(), 5);
    rig.delete("c", "e").unwrap();
    // The end of the container is the end of its execs, and of what is known of them.
    rig.exec("c", "late", &["sleep", "1000"], "").unwrap();
    rig.start("c", "late").unwrap();
    rig.kill("c", "", 9, false).unwrap();
    rig.wait("c", "").unwrap();
    assert_eq!(rig.state("c", "late").unwrap(), "STOPPED", "before the container's own exit is told");
    rig.delete("c", "").unwrap();
    assert_eq!(code(rig.wait("c", "late")), Code::NOT_FOUND);
    beside.is_free("c");
    beside.end();
}

#[test]
fn protocol_garbage_on_the_socket() {
    // SHIM-TTR-02, SHIM-TTR-08
    let beside = Beside::new();
    let rig = &beside.rig;
    let task = "containerd.task.v3.Task";
    let bytes = |request: &ttrpc::Request| request.write_to_bytes().unwrap();
    let mut undecodable = state(task, NEIGHBOUR);
    undecodable.payload = vec![0xff; 100];
    let mut raw = Raw::connect(rig);
    for (stream, payload, expected) in [
        (1, bytes(&undecodable), Code::INVALID_ARGUMENT),
        (3, vec![0xee; 1000], Code::INVALID_ARGUMENT),
        (5, vec![0x20; (4 << 20) + 1], TOO_LONG),
        (6, bytes(&state(task, NEIGHBOUR)), Code::INVALID_ARGUMENT),
    ] {
        raw.send(stream, 1, 0, &payload);
        assert_eq!(raw.told(stream), expected, "stream {stream}");
        beside.is_unharmed();
    }
    // Of these nothing can be answered; they stay open meanwhile.
    let path = rig.address().strip_prefix("unix://").unwrap();
    let open: Vec<_> = [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 70_000],
        &[0; 10],
        &[0, 0x3f, 0xff, 0xff, 0, 0, 0, 1, 1, 0],
        b"x",
    ]
    .into_iter()
    .map(|rubbish| {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(rubbish).unwrap();
        beside.is_unharmed();
        stream
    })
    .collect();
    // Create with rubbish in each of its fields that hold messages of others.
    let bundle = rig.bundle("c", &["true"]);
    let options = Options { binary_name: "\u{1}".repeat(1000), ..Default::default() };
    let value = options.write_to_bytes().unwrap();
    let cut =
        Any { type_url: "containerd.runc.v1.Options".into(), value: value[..500].to_vec(), ..Any::default() };
    assert_eq!(
        code(beside.create(&bundle, |request| request.options = Some(cut).into())),
        Code::INVALID_ARGUMENT
    );
    rig.exec_process(NEIGHBOUR, "bad", &serde_json::json!([1, 2]), "", "", "").map_or_else(
        |error| assert_eq!(code::<()>(Err(error)), Code::INVALID_ARGUMENT),
        |()| panic!("a list is no process"),
    );
    drop((raw, open));
    beside.is_free("c");
    beside.end();
}
