//! The socket as ttrpc's own client never uses it: frames by hand, in order and out of it, and what is no frame at all.

use crate::rig::{Rig, wait_until};
use containerd_shim_protos::api::{StateRequest, StateResponse, Status, WaitRequest, WaitResponse};
use protobuf::Message;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use ttrpc::proto::KeyValue;
use ttrpc::{Code, Request, Response};

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const TASK_V2: &str = "containerd.task.v2.Task";
const TASK_V3: &str = "containerd.task.v3.Task";

/// What the crate says to messages of more than 4 MiB; Go's server says RESOURCE_EXHAUSTED.
pub const TOO_LONG: Code = Code::INVALID_ARGUMENT;

/// A connection of which each byte is ours.
pub struct Raw(UnixStream);

impl Raw {
    pub fn connect(rig: &Rig) -> Self {
        let stream = UnixStream::connect(rig.address().strip_prefix("unix://").unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(stream)
    }

    /// SHIM-TTR-01: length, stream, type, flags, all big-endian.
    pub fn send(&mut self, stream: u32, kind: u8, flags: u8, payload: &[u8]) {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
        frame.extend(stream.to_be_bytes());
        frame.extend([kind, flags]);
        frame.extend(payload);
        self.0.write_all(&frame).unwrap();
    }

    pub fn ask(&mut self, stream: u32, request: &Request) {
        self.send(stream, REQUEST, 0, &request.write_to_bytes().unwrap());
    }

    /// Stream and answer.
    pub fn hear(&mut self) -> (u32, Response) {
        let mut header = [0; 10];
        self.0.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((header[8], header[9]), (RESPONSE, 0), "type and flags");
        let mut payload = vec![0; word(0) as usize];
        self.0.read_exact(&mut payload).unwrap();
        (word(4), Response::parse_from_bytes(&payload).unwrap())
    }

    /// The code of the answer on this stream.
    pub fn told(&mut self, stream: u32) -> Code {
        let (heard, response) = self.hear();
        assert_eq!(heard, stream);
        assert!(response.status().code() == Code::OK || !response.status().message.is_empty(), "a sentence");
        response.status().code()
    }
}

fn request(service: &str, method: &str, payload: &impl Message) -> Request {
    Request {
        service: service.into(),
        method: method.into(),
        payload: payload.write_to_bytes().unwrap(),
        ..Default::default()
    }
}

pub fn state(service: &str, id: &str) -> Request {
    request(service, "State", &StateRequest { id: id.into(), ..Default::default() })
}

fn wait(id: &str) -> Request {
    request(TASK_V3, "Wait", &WaitRequest { id: id.into(), ..Default::default() })
}

#[test]
fn calls_are_answered_in_parallel_on_their_own_streams() {
    // SHIM-TTR-01, SHIM-TTR-03, SHIM-TTR-04, SHIM-TTR-05, SHIM-TTR-06, SHIM-TTR-08, SHIM-TTR-09, SHIM-OUT-11, SHIM-OUT-13
    let rig = Rig::new();
    rig.create(&rig.bundle("c", &["sleep", "1000"])).unwrap();
    rig.start("c", "").unwrap();
    let mut raw = Raw::connect(&rig);
    raw.ask(1, &wait("c"));
    // Both services, old clients without flags and new ones with "remote closed", with containerd's metadata and without.
    let mut namespaced = state(TASK_V3, "c");
    let namespace =
        KeyValue { key: "containerd-namespace-ttrpc".into(), value: "test".into(), ..Default::default() };
    namespaced.metadata.push(namespace);
    let mut answers = Vec::new();
    for (stream, flags, asked) in
        [(3, 0, state(TASK_V2, "c")), (5, 1, state(TASK_V3, "c")), (7, 1, namespaced)]
    {
        raw.send(stream, REQUEST, flags, &asked.write_to_bytes().unwrap());
        let (heard, response) = raw.hear();
        assert_eq!((heard, response.status().code()), (stream, Code::OK), "the wait on 1 goes on");
        let state = StateResponse::parse_from_bytes(&response.payload).unwrap();
        assert_eq!(state.status.enum_value(), Ok(Status::RUNNING));
        answers.push(state);
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "field by field");
    rig.kill("c", "", 9, true).unwrap();
    let (heard, response) = raw.hear();
    assert_eq!(heard, 1);
    assert_eq!(WaitResponse::parse_from_bytes(&response.payload).unwrap().exit_status, 137);
    raw.ask(9, &state(TASK_V3, "nobody"));
    assert_eq!(raw.told(9), Code::NOT_FOUND);
    rig.delete("c", "").unwrap();
}

#[test]
fn the_server_keeps_the_clients_deadline() {
    // SHIM-TTR-07
    let rig = Rig::new();
    rig.create(&rig.bundle("c", &["sleep", "1000"])).unwrap();
    rig.start("c", "").unwrap();
    let mut raw = Raw::connect(&rig);
    let mut brief = wait("c");
    brief.timeout_nano = 200_000_000;
    let begun = Instant::now();
    raw.ask(1, &brief);
    assert_eq!(raw.told(1), Code::DEADLINE_EXCEEDED);
    assert!(begun.elapsed() >= Duration::from_millis(200));
    // Only that call is over.
    raw.ask(3, &wait("c"));
    rig.kill("c", "", 9, true).unwrap();
    assert_eq!(raw.told(3), Code::OK);
    rig.delete("c", "").unwrap();
}

#[test]
fn what_cannot_be_meant_is_answered_and_the_connection_goes_on() {
    // SHIM-TTR-02, SHIM-TTR-03, SHIM-TTR-08, SHIM-TSK-34
    let rig = Rig::new();
    let mut raw = Raw::connect(&rig);
    let mut rubbish = state(TASK_V3, "c");
    rubbish.payload = vec![0xff; 40];
    let mut unknown = state(TASK_V3, "c");
    unknown.method = "Levitate".into();
    for (stream, payload, code) in [
        (1, rubbish.write_to_bytes().unwrap(), Code::INVALID_ARGUMENT),
        (3, vec![0xff; 40], Code::INVALID_ARGUMENT),
        (5, unknown.write_to_bytes().unwrap(), Code::UNIMPLEMENTED),
        (7, state("example.com.Service", "c").write_to_bytes().unwrap(), Code::INVALID_ARGUMENT),
        (8, state(TASK_V3, "c").write_to_bytes().unwrap(), Code::INVALID_ARGUMENT),
        (9, vec![0; 5 << 20], TOO_LONG),
        (11, state(TASK_V3, "c").write_to_bytes().unwrap(), Code::NOT_FOUND),
    ] {
        raw.send(stream, REQUEST, 0, &payload);
        assert_eq!(raw.told(stream), code, "stream {stream}");
    }
    // Data on a stream that is none.
    raw.send(13, 3, 0, b"data");
    assert_eq!(raw.told(13), Code::INVALID_ARGUMENT);
    raw.ask(15, &state(TASK_V3, "c"));
    assert_eq!(raw.told(15), Code::NOT_FOUND);
}

#[test]
fn only_root_may_connect() {
    // SHIM-SOCK-01, SHIM-TTR-10
    let rig = Rig::new();
    let socket = Path::new(rig.address().strip_prefix("unix://").unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(socket), mode(socket.parent().unwrap())), (0o600, 0o700));
}

#[test]
fn who_leaves_in_the_middle_of_a_call_leaves_nothing() {
    // SHIM-TSK-17, SHIM-DEL-10
    let rig = Rig::new();
    rig.create(&rig.bundle("c", &["sleep", "1000"])).unwrap();
    rig.start("c", "").unwrap();
    let keeper = rig.info().keeper_pid;
    let open = || fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().count();
    let before = open();
    for half in [false, true] {
        let mut raw = Raw::connect(&rig);
        raw.ask(1, &wait("c"));
        if half {
            raw.0.write_all(&[0, 0, 1]).unwrap();
        }
        wait_until("the connection", || open() > before);
        drop(raw);
        wait_until("its end", || open() <= before);
    }
    assert_eq!(rig.info().keeper_pid, keeper);
    rig.kill("c", "", 9, true).unwrap();
    rig.wait("c", "").unwrap();
    rig.delete("c", "").unwrap();
}
