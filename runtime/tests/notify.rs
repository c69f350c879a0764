//! SCMP_ACT_NOTIFY through a whole container: the agent has the listener before the command's first call.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, finish, kill, piped, spec};
use serde_json::{Value, json};
use slipway_runtime::container::{self, Parked, StartRequest, Stdio, Subject};
use slipway_runtime::error::Kind;
use slipway_runtime::sys::process;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// One message of the runtime: the container process state and the listener.
fn receive(socket: &UnixStream) -> (Value, OwnedFd) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut bytes = vec![0; 65536];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got =
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(
            |message| if let RecvAncillaryMessage::ScmRights(fds) = message { Some(fds) } else { None },
        )
        .flatten()
        .collect();
    assert_eq!(fds.len(), 1);
    (serde_json::from_slice(&bytes[..got.bytes]).unwrap(), fds.remove(0))
}

/// Answers every call with `error`, or lets it go on (0), until nobody asks any more; counts the calls.
fn serve(listener: &OwnedFd, error: i32) -> usize {
    const RECEIVE: libc::c_ulong = 0xc050_2100;
    const SEND: libc::c_ulong = 0xc018_2101;
    const CONTINUE: u32 = 1;
    let mut count = 0;
    loop {
        let mut fds = [libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        // SAFETY: one live pollfd.
        assert!(unsafe { libc::poll(fds.as_mut_ptr(), 1, 30_000) } > 0, "nobody asked for a long time");
        if fds[0].revents & libc::POLLIN == 0 {
            return count;
        }
        // SAFETY: plain numbers, for which all zeros is a value; the kernel wants it zeroed.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the listener is open and `asked` is the structure this request writes.
        if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut asked) } != 0 {
            continue;
        }
        count += 1;
        let flags = if error == 0 { CONTINUE } else { 0 };
        let answer = libc::seccomp_notif_resp { id: asked.id, val: 0, error: -error, flags };
        // SAFETY: as above, for the structure this request reads.
        unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw const answer) };
    }
}

fn profile(agent: &Path, rule: &Value) -> Value {
    let mut profile =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": agent, "listenerMetadata": "meta"});
    for (key, value) in rule.as_object().unwrap() {
        profile[key] = value.clone();
    }
    profile
}

/// Starts a container with its agent on a thread; its output, what the agent was told and how often it was asked.
fn attended(rule: &Value, error: i32, script: &str) -> (String, Value, usize) {
    let rig = Rig::new();
    let agent = rig.path("agent.sock");
    let socket = UnixListener::bind(&agent).unwrap();
    let serving = std::thread::spawn(move || {
        let (stream, _) = socket.accept().unwrap();
        let (state, listener) = receive(&stream);
        let mut rest = Vec::new();
        (&stream).read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "one state per connection");
        (state, serve(&listener, error))
    });
    let mut spec = spec(&["sh", "-c", script]);
    spec["linux"]["seccomp"] = profile(&agent, rule);
    let (mut read, stdio) = piped();
    let request = rig.request(&spec, stdio, Vec::new());
    let (bundle, parsed) = (request.bundle.clone(), request.spec.clone());
    let created = container::create(request).unwrap();
    let started = container::start(&StartRequest {
        subject: Subject { id: "watched", bundle: &bundle, spec: &parsed },
        pid: created.pid,
        pidfd: &created.pidfd,
        cgroup: &created.cgroup,
        parked: Parked::Pipe(&created.start),
    })
    .unwrap();
    drop(started.listener.expect("the caller has a copy"));
    let mut out = String::new();
    read.read_to_string(&mut out).unwrap();
    let pid = created.pid;
    finish(created);
    let (state, count) = serving.join().unwrap();
    assert_eq!(state["pid"], pid);
    (out, state, count)
}

#[test]
fn the_agent_answers_for_the_kernel() {
    let rule = json!({"syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]});
    let (out, state, count) =
        attended(&rule, libc::EXDEV, "busybox mkdir /new 2>&1; ls /proc/self/fd; echo end");
    assert!(out.contains("Invalid cross-device link") && out.ends_with("end\n"), "{out}");
    assert!(out.contains("\n0\n1\n2\n3\nend"), "the container has no listener: {out}");
    assert_eq!(count, 1);
    assert_eq!(state["fds"], json!(["seccompFd"]));
    assert_eq!(state["metadata"], "meta");
    assert_eq!((&state["state"]["id"], &state["state"]["status"]), (&json!("watched"), &json!("created")));
    assert_eq!(state["state"]["pid"], state["pid"]);
    assert_eq!(state["ociVersion"], "1.2.0");
}

/// Calls the start itself needs, write(2) and execve(2) among them, may be asked about too: runc refuses that.
#[test]
fn every_call_may_be_asked_about() {
    let rule = json!({"syscalls": [{"names": ["write", "execve", "sendmsg", "close"], "action": "SCMP_ACT_NOTIFY"}]});
    let (out, _, count) = attended(&rule, 0, "echo hello");
    assert_eq!(out, "hello\n");
    assert!(count >= 2, "{count}");
    let (out, _, count) = attended(&json!({"defaultAction": "SCMP_ACT_NOTIFY"}), 0, "echo all");
    assert_eq!(out, "all\n");
    assert!(count > 10, "{count}");
}

#[test]
fn an_exec_session_has_a_listener_of_its_own() {
    let rig = Rig::new();
    let agent = rig.path("agent.sock");
    let socket = UnixListener::bind(&agent).unwrap();
    let serving = std::thread::spawn(move || {
        let both: Vec<_> = (0..2).map(|_| receive(&socket.accept().unwrap().0)).collect();
        let second = serve(&both[1].1, libc::EXDEV);
        (both, second)
    });
    let mut container_spec = spec(&["sleep", "100"]);
    container_spec["linux"]["seccomp"] =
        profile(&agent, &json!({"syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]}));
    let request = rig.request(&container_spec, Stdio::default(), Vec::new());
    let parsed = request.spec.clone();
    let created = container::create(request).unwrap();
    container::start(&StartRequest {
        subject: common::subject(&parsed),
        pid: created.pid,
        pidfd: &created.pidfd,
        cgroup: &created.cgroup,
        parked: Parked::Pipe(&created.start),
    })
    .unwrap();
    let (mut read, stdio) = piped();
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": ["busybox", "mkdir", "/x"]});
    let process = serde_json::from_value(process).unwrap();
    let exec = container::exec(common::exec_in(&created, &parsed, &process, "x", stdio)).unwrap();
    let mut out = String::new();
    read.read_to_string(&mut out).unwrap();
    process::reap(&exec.pidfd).unwrap();
    exec.cgroup.remove(std::time::Duration::from_secs(5)).unwrap();
    let (pid, exec_pid) = (created.pid, exec.pid);
    kill(created);
    let (both, count) = serving.join().unwrap();
    assert!(out.contains("cross-device"), "{out}");
    assert_eq!(count, 1);
    assert_eq!((&both[0].0["pid"], &both[1].0["pid"]), (&json!(pid), &json!(exec_pid)));
    assert_eq!(both[1].0["state"]["pid"], pid);
    assert_eq!(both[1].0["state"]["status"], "running");
}

#[test]
fn without_an_agent_nothing_starts() {
    let rig = Rig::new();
    let notify = json!({"syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
    let mut missing = spec(&["true"]);
    missing["linux"]["seccomp"] = profile(Path::new("/x"), &notify);
    missing["linux"]["seccomp"].as_object_mut().unwrap().remove("listenerPath");
    let error = rig.create(&missing, Stdio::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("linux.seccomp.listenerPath"), "{error}");
    let mut deaf = spec(&["true"]);
    deaf["linux"]["seccomp"] = profile(&rig.path("nobody.sock"), &notify);
    let request = rig.request(&deaf, Stdio::default(), Vec::new());
    let parsed = request.spec.clone();
    let created = container::create(request).unwrap();
    let error = container::start(&StartRequest {
        subject: common::subject(&parsed),
        pid: created.pid,
        pidfd: &created.pidfd,
        cgroup: &created.cgroup,
        parked: Parked::Pipe(&created.start),
    })
    .unwrap_err();
    assert!(error.to_string().contains("nobody.sock") && error.to_string().contains("agent"), "{error}");
    assert_eq!(finish(created), -libc::SIGKILL);
}
