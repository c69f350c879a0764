//! Events, as containerd's end of them hears them.

use crate::rig::{Rig, code, kill, soon, wait_until};
use async_trait::async_trait;
use containerd_shim_protos::api::{CreateTaskRequest, Empty, PauseRequest, ResumeRequest};
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed,
    TaskStart,
};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events, create_events};
use protobuf::Message;
use serde_json::json;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use ttrpc::Code;

#[derive(Debug, Default)]
struct Recorder(Arc<Mutex<Vec<Envelope>>>);

#[async_trait]
impl Events for Recorder {
    async fn forward(
        &self,
        _: &ttrpc::r#async::TtrpcContext,
        request: ForwardRequest,
    ) -> ttrpc::Result<Empty> {
        self.0.lock().unwrap().push(request.envelope.unwrap());
        Ok(Empty::default())
    }
}

/// containerd's end of events, for as long as it lives.
struct Client {
    events: Arc<Mutex<Vec<Envelope>>>,
    _runtime: tokio::runtime::Runtime,
    _server: ttrpc::r#async::Server,
}

impl Client {
    fn listen(socket: &Path) -> Self {
        let events = Arc::new(Mutex::new(Vec::new()));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = create_events(Arc::new(Recorder(Arc::clone(&events))));
        let mut server = {
            let _inside = runtime.enter();
            ttrpc::r#async::Server::new()
                .bind(&format!("unix://{}", socket.display()))
                .unwrap()
                .register_service(service)
        };
        runtime.block_on(server.start()).unwrap();
        Self { events, _runtime: runtime, _server: server }
    }

    /// Waits for the events of [`one_life`] and checks that they came once, in order, init's exit last.
    fn expect_one_life(&self) {
        wait_until("all events", || self.events.lock().unwrap().len() >= 7);
        let events = self.events.lock().unwrap();
        let topics: Vec<_> = events.iter().map(|event| event.topic.as_str()).collect();
        let expected = ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"]
            .map(|name| format!("/tasks/{name}"));
        assert_eq!(topics, expected);
        let exits: Vec<_> = events
            .iter()
            .filter(|event| event.topic == "/tasks/exit")
            .map(|event| {
                assert_eq!(
                    (event.event.type_url.as_str(), event.namespace.as_str()),
                    ("containerd.events.TaskExit", "test")
                );
                TaskExit::parse_from_bytes(&event.event.value).unwrap().id
            })
            .collect();
        assert_eq!(exits, ["e", "c"], "init's exit is the last");
    }
}

fn one_life(rig: &Rig) {
    rig.create(&rig.bundle("c", &["sleep", "1000"])).unwrap();
    rig.start("c", "").unwrap();
    rig.exec("c", "e", &["sleep", "1000"], "").unwrap();
    rig.start("c", "e").unwrap();
    rig.kill("c", "", 9, false).unwrap();
    rig.wait("c", "").unwrap();
    rig.delete("c", "").unwrap();
}

#[test]
fn events_come_in_order() {
    // SHIM-EVT-01, SHIM-EVT-02, SHIM-EVT-03, SHIM-EVT-05; SHIM-EXIT-01, SHIM-EXIT-02; SHIM-TSK-08
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("events");
    let client = Client::listen(&socket);
    let rig = Rig::with_events(socket.to_str().unwrap());
    one_life(&rig);
    client.expect_one_life();
}

#[test]
fn events_wait_for_a_client_that_is_away() {
    // SHIM-EVT-04, SHIM-EVT-05, SHIM-EVT-06, SHIM-EXIT-01: also over a keeper's death.
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("events");
    let rig = Rig::with_events(socket.to_str().unwrap());
    one_life(&rig);
    let keeper = rig.info().keeper_pid;
    kill(keeper, 9);
    wait_until("the next keeper", || rig.info().keeper_pid != keeper);
    Client::listen(&socket).expect_one_life();
}

/// A keeper that tells its events to a client, and that client.
fn told() -> (Client, Rig, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("events");
    let client = Client::listen(&socket);
    let rig = Rig::with_events(socket.to_str().unwrap());
    (client, rig, dir)
}

impl Client {
    /// Waits until so many have come.
    fn topics(&self, count: usize) -> Vec<String> {
        wait_until("the events", || self.events.lock().unwrap().len() >= count);
        self.events.lock().unwrap().iter().map(|event| event.topic["/tasks/".len()..].to_owned()).collect()
    }

    fn decoded<T: Message>(&self, number: usize) -> T {
        let events = self.events.lock().unwrap();
        let event = &events[number].event;
        assert_eq!(event.type_url, format!("containerd.events.{}", T::NAME), "event {number}");
        T::parse_from_bytes(&event.value).unwrap()
    }
}

#[test]
fn events_hold_what_happened() {
    // SHIM-TSK-05, SHIM-TSK-07, SHIM-TSK-19, SHIM-TSK-21, SHIM-TSK-24, SHIM-EVT-03, SHIM-EXIT-01, SHIM-EXIT-04
    let (client, rig, _dir) = told();
    let bundle = rig.bundle("c", &["sleep", "1000"]);
    fs::write(bundle.path.join("config.json"), bundle.spec.to_string()).unwrap();
    let (stdin, stdout) = (rig.fifo("in"), rig.fifo("out"));
    let request = CreateTaskRequest {
        id: "c".into(),
        bundle: bundle.path.to_str().unwrap().into(),
        stdin: stdin.clone(),
        stdout: stdout.clone(),
        ..Default::default()
    };
    let began = SystemTime::now();
    let pid = rig.run(rig.tasks().create(soon(), &request)).unwrap().pid;
    rig.start("c", "").unwrap();
    let pause = PauseRequest { id: "c".into(), ..Default::default() };
    let resume = ResumeRequest { id: "c".into(), ..Default::default() };
    assert_eq!(code(rig.run(rig.tasks().resume(soon(), &resume))), Code::FAILED_PRECONDITION);
    rig.run(rig.tasks().pause(soon(), &pause)).unwrap();
    assert_eq!(code(rig.run(rig.tasks().pause(soon(), &pause))), Code::FAILED_PRECONDITION);
    rig.run(rig.tasks().resume(soon(), &resume)).unwrap();
    rig.exec("c", "e", &["sh", "-c", "exit 300"], "").unwrap();
    let exec_pid = rig.start("c", "e").unwrap();
    assert_eq!(rig.wait("c", "e").unwrap(), 300 & 0xff);
    rig.delete("c", "e").unwrap();
    rig.kill("c", "", 9, false).unwrap();
    rig.wait("c", "").unwrap();
    assert!(rig.cgroups().iter().any(|group| group.join("c").exists()));
    assert_eq!(rig.delete("c", "").unwrap(), 137);
    assert!(rig.cgroups().iter().all(|group| !group.join("c").exists()), "its control group is gone");
    let expected =
        ["create", "start", "paused", "resumed", "exec-added", "exec-started", "exit", "exit", "delete"];
    assert_eq!(client.topics(expected.len()), expected, "an exec's deletion is no event");

    let created: TaskCreate = client.decoded(0);
    assert_eq!((&*created.container_id, created.pid, &*created.bundle), ("c", pid, &*request.bundle));
    let io = created.io.unwrap();
    assert_eq!((io.stdin, io.stdout, &*io.stderr, io.terminal), (stdin, stdout, "", false));
    assert!(created.rootfs.is_empty() && created.checkpoint.is_empty());
    let started: TaskStart = client.decoded(1);
    assert_eq!((&*started.container_id, started.pid), ("c", pid));
    assert_eq!(client.decoded::<TaskPaused>(2).container_id, "c");
    assert_eq!(client.decoded::<TaskResumed>(3).container_id, "c");
    let added: TaskExecAdded = client.decoded(4);
    assert_eq!((&*added.container_id, &*added.exec_id), ("c", "e"));
    let started: TaskExecStarted = client.decoded(5);
    assert_eq!((&*started.container_id, &*started.exec_id, started.pid), ("c", "e", exec_pid));
    let exited: TaskExit = client.decoded(6);
    assert_eq!(
        (&*exited.container_id, &*exited.id, exited.pid, exited.exit_status),
        ("c", "e", exec_pid, 44)
    );
    let exited: TaskExit = client.decoded(7);
    assert_eq!((&*exited.container_id, &*exited.id, exited.pid, exited.exit_status), ("c", "c", pid, 137));
    let deleted: TaskDelete = client.decoded(8);
    assert_eq!((&*deleted.container_id, deleted.pid, deleted.exit_status), ("c", pid, 137));
    assert_eq!(deleted.exited_at, exited.exited_at, "one time for one end");
    let at: SystemTime = exited.exited_at.unwrap().into();
    assert!(began < at && at < SystemTime::now(), "{at:?}");
}

#[test]
fn out_of_memory_is_told_once_before_the_exit() {
    // SHIM-TSK-06, SHIM-EVT-08
    let (client, rig, _dir) = told();
    let mut bundle = rig.bundle("c", &["busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M"]);
    bundle.spec["linux"]["resources"] = json!({"memory": {"limit": 15 << 20, "swap": 15 << 20}});
    rig.create(&bundle).unwrap();
    rig.start("c", "").unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 137);
    rig.delete("c", "").unwrap();
    assert_eq!(client.topics(5), ["create", "start", "oom", "exit", "delete"]);
    assert_eq!(client.decoded::<TaskOOM>(2).container_id, "c");
}

#[test]
fn what_ends_at_once_is_seen_to_have_begun() {
    // SHIM-TST-02, SHIM-TSK-08, SHIM-EXIT-06: 500 inits, 100 execs.
    let (client, rig, _dir) = told();
    let bundle = rig.bundle("c", &["true"]);
    for round in 0..500 {
        let pid = rig.create(&bundle).unwrap();
        assert_eq!(rig.start("c", "").unwrap(), pid);
        assert_eq!(rig.wait("c", "").unwrap(), 0, "round {round}");
        assert_eq!(rig.delete("c", "").unwrap(), 0, "round {round}");
    }
    let topics = client.topics(2000);
    assert!(topics.chunks(4).all(|life| life == ["create", "start", "exit", "delete"]));
    rig.create(&rig.bundle("long", &["sleep", "1000"])).unwrap();
    rig.start("long", "").unwrap();
    for round in 0..100 {
        let id = format!("e{round}");
        rig.exec("long", &id, &["true"], "").unwrap();
        rig.start("long", &id).unwrap();
        assert_eq!(rig.wait("long", &id).unwrap(), 0, "exec {round}");
        rig.delete("long", &id).unwrap();
    }
    let topics = client.topics(2002 + 300).split_off(2002);
    assert!(topics.chunks(3).all(|life| life == ["exec-added", "exec-started", "exit"]));
    rig.kill("long", "", 9, true).unwrap();
    rig.wait("long", "").unwrap();
    rig.delete("long", "").unwrap();
}
