//! Every call of every step fails once: the error names the step, the object, the errno and what to do, and nothing stays.
//!
//! How a step is made to fail: the thread that launches has a seccomp filter of its own whose listener is this test. It
//! lets all calls go on but the n-th, which the kernel then answers with ENOMEM as it may at any time; the runtime is the
//! one that users have. The child inherits the filter, so that its steps are reached like the parent's preparations.
//!
//! One test in a process of its own, so that everything this process has can be counted.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, add_mount, finish, in_user_namespace, spec, unique_group};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{self, CreateRequest, Parked, StartRequest, Stdio};
use slipway_runtime::program::Parking;
use slipway_runtime::sys::seccomp;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

type Failure = slipway_runtime::Error;

/// The calls that steps and preparations consist of. What only carries reports (recvmsg, poll) and what a C library does
/// for itself is not among them.
const CALLS: &[(i64, &str)] = &[
    (libc::SYS_close_range, "close_range"),
    (libc::SYS_rt_sigaction, "rt_sigaction"),
    (libc::SYS_rt_sigprocmask, "rt_sigprocmask"),
    (libc::SYS_setsid, "setsid"),
    (libc::SYS_keyctl, "keyctl"),
    (libc::SYS_openat, "openat"),
    (libc::SYS_write, "write"),
    (libc::SYS_setns, "setns"),
    (libc::SYS_unshare, "unshare"),
    (libc::SYS_setresuid, "setresuid"),
    (libc::SYS_setresgid, "setresgid"),
    (libc::SYS_setgroups, "setgroups"),
    (libc::SYS_prctl, "prctl"),
    (libc::SYS_sethostname, "sethostname"),
    (libc::SYS_setdomainname, "setdomainname"),
    (libc::SYS_mount_setattr, "mount_setattr"),
    (libc::SYS_move_mount, "move_mount"),
    (libc::SYS_open_tree, "open_tree"),
    (libc::SYS_fsopen, "fsopen"),
    (libc::SYS_fsconfig, "fsconfig"),
    (libc::SYS_fsmount, "fsmount"),
    (libc::SYS_fchdir, "fchdir"),
    (libc::SYS_chdir, "chdir"),
    (libc::SYS_chroot, "chroot"),
    (libc::SYS_pivot_root, "pivot_root"),
    (libc::SYS_umount2, "umount2"),
    (libc::SYS_openat2, "openat2"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_mknodat, "mknodat"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_newfstatat, "newfstatat"),
    (libc::SYS_fstatfs, "fstatfs"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_dup3, "dup3"),
    (libc::SYS_prlimit64, "prlimit64"),
    (libc::SYS_umask, "umask"),
    (libc::SYS_capset, "capset"),
    (libc::SYS_getcwd, "getcwd"),
    (libc::SYS_seccomp, "seccomp"),
    (libc::SYS_execve, "execve"),
    (libc::SYS_sched_setattr, "sched_setattr"),
    (libc::SYS_ioprio_set, "ioprio_set"),
    (libc::SYS_sched_setaffinity, "sched_setaffinity"),
    (libc::SYS_set_mempolicy, "set_mempolicy"),
    (libc::SYS_personality, "personality"),
    (libc::SYS_faccessat2, "faccessat2"),
    (libc::SYS_clone3, "clone3"),
    (libc::SYS_memfd_create, "memfd_create"),
    (libc::SYS_socketpair, "socketpair"),
];

/// A call made during creation and start, by us or by a child before its execve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    ours: bool,
    number: i64,
}

impl Call {
    fn name(self) -> &'static str {
        CALLS.iter().find(|(number, _)| *number == self.number).map_or("?", |(_, name)| name)
    }
}

/// The n-th call of ours, or of the children: parent and child take turns as they are scheduled, each on its own is the
/// same every time.
#[derive(Debug, Clone, Copy)]
struct Nth {
    ours: bool,
    at: usize,
}

impl Nth {
    fn of(self, calls: &[Call]) -> Option<Call> {
        calls.iter().filter(|call| call.ours == self.ours).nth(self.at).copied()
    }
}

/// Asks the listener about every call of `CALLS`.
fn filter() -> Vec<libc::sock_filter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUALS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut words = vec![libc::sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 }];
    for (at, (number, _)) in CALLS.iter().enumerate() {
        let jt = u8::try_from(CALLS.len() - at).unwrap();
        words.push(libc::sock_filter { code: EQUALS, jt, jf: 0, k: u32::try_from(*number).unwrap() });
    }
    for k in [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_USER_NOTIF] {
        words.push(libc::sock_filter { code: ANSWER, jt: 0, jf: 0, k });
    }
    words
}

/// Answers the listener until nobody is left who could ask. `fail`: which of the calls made while `making` fails.
fn supervise(listener: &OwnedFd, making: &AtomicBool, fail: Option<Nth>) -> Vec<Call> {
    const RECEIVE: libc::c_ulong = 0xc050_2100;
    const SEND: libc::c_ulong = 0xc018_2101;
    const CONTINUE: u32 = 1;
    let (mut calls, mut gone) = (Vec::new(), BTreeSet::new());
    loop {
        let mut fds = [libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        // SAFETY: one live pollfd.
        assert!(unsafe { libc::poll(fds.as_mut_ptr(), 1, 60_000) } > 0, "hangs after {:?}", calls.last());
        if fds[0].revents & libc::POLLIN == 0 {
            return calls;
        }
        // SAFETY: plain numbers, for which all zeros is a value; the kernel wants it zeroed.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the listener is open and `asked` is the structure this request writes.
        if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut asked) } != 0 {
            continue;
        }
        let number = i64::from(asked.data.nr);
        let ours = Path::new(&format!("/proc/self/task/{}", asked.pid)).exists();
        let counts = making.load(SeqCst) && !gone.contains(&asked.pid);
        let mut fails = false;
        if counts {
            let before = fail.and_then(|nth| nth.of(&calls));
            calls.push(Call { ours, number });
            fails = before.is_none() && fail.and_then(|nth| nth.of(&calls)).is_some();
        }
        if number == libc::SYS_execve && !fails {
            // What it does from now on is no step.
            gone.insert(asked.pid);
        }
        let (error, flags) = if fails { (-libc::ENOMEM, 0) } else { (0, CONTINUE) };
        let answer = libc::seccomp_notif_resp { id: asked.id, val: 0, error, flags };
        // SAFETY: as above, for the structure this request reads.
        unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw const answer) };
    }
}

/// Runs `act` on a thread with the filter; what it calls between `making` and not.
fn watched<T: Send>(
    fail: Option<Nth>,
    act: impl FnOnce(&AtomicBool) -> Result<T, Failure> + Send,
) -> (Vec<Call>, Result<T, Failure>) {
    let making = Arc::new(AtomicBool::new(false));
    let (give, take) = mpsc::channel();
    std::thread::scope(|scope| {
        let theirs = Arc::clone(&making);
        let runner = scope.spawn(move || {
            const NEW_LISTENER: u32 = 1 << 3;
            give.send(seccomp::install_filter(&filter(), NEW_LISTENER).unwrap().unwrap()).unwrap();
            drop(give);
            act(&theirs)
        });
        let listener = take.recv().unwrap();
        let calls = supervise(&listener, &making, fail);
        (calls, runner.join().unwrap())
    })
}

/// One scenario: a specification, and what is done with it.
struct Scenario {
    name: &'static str,
    rig: Rig,
    spec: Value,
    in_order: bool,
    group: String,
}

impl Scenario {
    fn request(&self) -> CreateRequest {
        let mut spec = self.spec.clone();
        spec["linux"]["cgroupsPath"] = json!(self.group);
        let mut request = self.rig.request(&spec, Stdio::default(), Vec::new());
        request.options.in_order = self.in_order;
        request
    }

    /// From creation to its end; `making` until it is started.
    fn live(&self, making: &AtomicBool) -> Result<(), Failure> {
        let request = self.request();
        let (bundle, spec): (_, Spec) = (request.bundle.clone(), request.spec.clone());
        making.store(true, SeqCst);
        let created = container::create(request).inspect_err(|_| making.store(false, SeqCst))?;
        let started = container::start(&StartRequest {
            subject: container::Subject { id: "test", bundle: &bundle, spec: &spec },
            pid: created.pid,
            pidfd: &created.pidfd,
            cgroup: &created.cgroup,
            parked: Parked::Pipe(&created.start),
        });
        making.store(false, SeqCst);
        finish(created);
        started.map(drop)
    }
}

/// What could stay.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    descriptors: BTreeSet<String>,
    mounts: Vec<String>,
}

fn traces(rig: &Rig) -> Traces {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let name = rig.dir.path().display().to_string();
    let kind = |entry: fs::DirEntry| fs::read_link(entry.path()).ok().map(|link| (entry, link));
    Traces {
        descriptors: fs::read_dir("/proc/self/fd")
            .unwrap()
            .flatten()
            .filter_map(kind)
            .filter(|(_, link)| !link.starts_with("/proc"))
            .map(|(entry, link)| format!("{} {}", entry.file_name().display(), link.display()))
            .collect(),
        mounts: table.lines().filter(|line| line.contains(&name)).map(str::to_owned).collect(),
    }
}

/// Where calls may fail without harm: nothing depends on them. By who calls, and what.
fn may_be_forgiven(call: Call) -> bool {
    let ours: &[&str] = &["openat", "newfstatat", "prctl", "write", "openat2", "fstatfs", "rt_sigprocmask"];
    // newfstatat: of one candidate of several for the command. openat: the container's own /dev/null in place of the host's.
    // sendmsg: what is said of a second birth is said again.
    let theirs: &[&str] = &["umask", "prctl", "newfstatat", "openat", "sendmsg"];
    (if call.ours { ours } else { theirs }).contains(&call.name())
}

/// `(step or preparation, errors that named it)`; the first number after the mark in the error.
#[derive(Default)]
struct Seen {
    steps: BTreeMap<usize, usize>,
    preparations: BTreeMap<usize, usize>,
    forgiven: BTreeMap<String, usize>,
    failed: usize,
    complaints: Vec<String>,
}

fn number_between(text: &str, before: &str, after: &str) -> Option<usize> {
    text.match_indices(before).find_map(|(at, _)| {
        let rest = &text[at + before.len()..];
        rest.split_once(after)?.0.parse().ok()
    })
}

impl Seen {
    fn forgive(&mut self, scenario: &Scenario, call: Call) {
        let who = if call.ours { "ours" } else { "the child's" };
        if !may_be_forgiven(call) {
            self.complaints.push(format!("{}: {who}: {} is not missed", scenario.name, call.name()));
        }
        *self.forgiven.entry(format!("{who} {}", call.name())).or_default() += 1;
    }

    fn take(&mut self, scenario: &Scenario, sentences: &[String], call: Call, error: &Failure) {
        let text = error.to_string();
        let about = format!(
            "{}: {} of {}: {text}",
            scenario.name,
            call.name(),
            if call.ours { "ours" } else { "the child" }
        );
        self.failed += 1;
        // A file of ours that may be missing: what follows from that is told. A C library calls a missing thread EAGAIN.
        let otherwise =
            call.ours && (may_be_forgiven(call) || text.contains("thread") && text.contains("os error 11"));
        if !text.contains("os error 12") && !otherwise {
            self.complaints.push(format!("no errno: {about}"));
        }
        if !text.contains("; ") {
            self.complaints.push(format!("no hint: {about}"));
        }
        if text.starts_with("run the ") {
            // A step of a hook's own program.
            if !text.contains("hook: /bin/true: ") {
                self.complaints.push(format!("no object: {about}"));
            }
        } else if let Some(number) = number_between(&text, "step ", " of ") {
            let sentence = &sentences[number - 1];
            if !text.contains(sentence.as_str()) {
                self.complaints.push(format!("no object: {about}"));
            }
            *self.steps.entry(number).or_default() += 1;
        } else if text.contains("prepare ") {
            if let Some(number) = number_between(&text, "(", " of ") {
                *self.preparations.entry(number).or_default() += 1;
            }
        } else if !call.ours && !text.starts_with("make a user namespace: ") {
            self.complaints.push(format!("no step: {about}"));
        }
    }
}

/// One scenario under way.
struct Trial<'a> {
    scenario: &'a Scenario,
    steps: Vec<String>,
    before: Traces,
    seen: Seen,
}

impl Trial<'_> {
    /// Lets one call fail, and checks all that must hold then. Answers what the error calls the place; none where
    /// nothing depends on the call.
    fn fail(&mut self, nth: Nth) -> Option<String> {
        let scenario = self.scenario;
        let (calls, lived) = watched(Some(nth), |making| scenario.live(making));
        let hit = nth.of(&calls)?;
        let place = match lived {
            Ok(()) => {
                self.seen.forgive(scenario, hit);
                None
            }
            Err(error) => {
                self.seen.take(scenario, &self.steps, hit, &error);
                error.to_string().split(": ").next().map(str::to_owned)
            }
        };
        let left = Cgroup::open(&scenario.group).is_ok();
        assert!(!left, "{}: {} left {}", scenario.name, hit.name(), scenario.group);
        let deadline = Instant::now() + Duration::from_secs(30);
        while traces(&scenario.rig) != self.before {
            let now = traces(&scenario.rig);
            assert!(Instant::now() < deadline, "{}, {}: {now:?}", scenario.name, hit.name());
            std::thread::sleep(Duration::from_millis(5));
        }
        place
    }

    /// The calls of one step stand together: between two of the same place none is of another.
    fn fail_between(&mut self, calls: &[Nth], first: &Option<String>, last: &Option<String>) {
        let alike = first.is_some() && first == last && std::env::var_os("SLIPWAY_EVERY_CALL").is_none();
        if calls.len() <= 2 || alike {
            return;
        }
        let middle = calls.len() / 2;
        let place = self.fail(calls[middle]);
        self.fail_between(&calls[..=middle], first, &place);
        self.fail_between(&calls[middle..], &place, last);
    }

    fn fail_all(&mut self, calls: &[Nth]) {
        let (Some(&first), Some(&last)) = (calls.first(), calls.last()) else { return };
        let (first, last) = (self.fail(first), self.fail(last));
        self.fail_between(calls, &first, &last);
    }
}

/// Every step and every preparation of a scenario fails at least once; `never` are the beginnings of those that cannot.
fn each_step_fails(scenario: &Scenario, never: &[&str]) {
    let explained = container::explain(&scenario.request(), Parking::CommandOpen).unwrap();
    let live = || {
        let (calls, lived) = watched(None, |making| scenario.live(making));
        lived.unwrap_or_else(|error| panic!("{}: {error}", scenario.name));
        calls
    };
    // What is asked of the host once is asked in the first.
    let _ = live();
    let calls = live();
    let before = traces(&scenario.rig);
    let mut trial = Trial { scenario, steps: explained.steps.clone(), before, seen: Seen::default() };
    for ours in [false, true] {
        let count = calls.iter().filter(|call| call.ours == ours).count();
        trial.fail_all(&(0..count).map(|at| Nth { ours, at }).collect::<Vec<_>>());
    }
    assert_eq!(common::zombies(), Vec::<String>::new(), "{}", scenario.name);
    let seen = trial.seen;
    println!(
        "{}: {} calls, {} failures, forgiven {:?}",
        scenario.name,
        calls.len(),
        seen.failed,
        seen.forgiven
    );
    let missing = |what: &[String], met: &BTreeMap<usize, usize>| -> Vec<String> {
        let unmet = what.iter().enumerate().filter(|(at, _)| !met.contains_key(&(at + 1)));
        let unmet = unmet.map(|(_, sentence)| sentence.clone());
        unmet.filter(|sentence| !never.iter().any(|start| sentence.starts_with(start))).collect()
    };
    assert_eq!(seen.complaints, Vec::<String>::new(), "{}", scenario.name);
    assert_eq!(missing(&explained.steps, &seen.steps), Vec::<String>::new(), "{}: steps", scenario.name);
    let preparations = missing(&explained.prepare, &seen.preparations);
    assert_eq!(preparations, Vec::<String>::new(), "{}: preparations", scenario.name);
}

/// Most kinds of steps in one container.
fn rich() -> Scenario {
    let rig = Rig::new();
    fs::create_dir_all(rig.path("data/below")).unwrap();
    fs::create_dir_all(rig.path("lower/var/seed")).unwrap();
    let mut spec = spec(&["true"]);
    spec["domainname"] = json!("example.org");
    spec["root"]["readonly"] = json!(true);
    spec["process"]["terminal"] = json!(true);
    spec["process"]["cwd"] = json!("/made/here");
    spec["process"]["user"] = json!({"uid": 0, "gid": 0, "additionalGids": [3]});
    spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 3});
    spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 4});
    spec["process"]["capabilities"]["ambient"] = json!(["CAP_NET_RAW"]);
    spec["process"]["capabilities"]["inheritable"] = json!(["CAP_NET_RAW"]);
    spec["linux"]["personality"] = json!({"domain": "LINUX"});
    spec["linux"]["sysctl"] = json!({"kernel.shm_rmid_forced": "1"});
    spec["linux"]["rootfsPropagation"] = json!("rprivate");
    spec["linux"]["devices"] = json!([{"path": "/dev/pipe", "type": "p", "fileMode": 0o600}]);
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}]});
    spec["linux"]["namespaces"] =
        json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}]);
    spec["linux"]["maskedPaths"] = json!(["/proc/kcore", "/proc/scsi", "/proc/absent"]);
    spec["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    // The version 1 groups alone would be a dozen binds.
    spec["mounts"].as_array_mut().unwrap().pop();
    add_mount(&mut spec, "/data", &rig.path("data"), &["rbind", "rro", "rslave"]);
    let seeded =
        json!({"destination": "/var/seed", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]});
    spec["mounts"].as_array_mut().unwrap().push(seeded);
    Scenario { name: "rich", rig, spec, in_order: true, group: unique_group() }
}

/// What hooks and another's mount namespace add.
fn hooked() -> Scenario {
    let rig = Rig::new();
    fs::create_dir(rig.path("rootfs")).unwrap();
    let mut spec = spec(&["true"]);
    spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "uts"}]);
    spec["linux"]["maskedPaths"] = json!([]);
    spec["linux"]["readonlyPaths"] = json!([]);
    spec["mounts"].as_array_mut().unwrap().truncate(1);
    let hook = json!([{"path": "/bin/true"}]);
    spec["hooks"] = json!({"createRuntime": hook, "createContainer": hook, "startContainer": hook});
    Scenario { name: "hooked", rig, spec, in_order: false, group: unique_group() }
}

/// What a user namespace adds.
fn mapped() -> Scenario {
    let rig = Rig::mapped(300_000);
    let mut spec = spec(&["true"]);
    spec["linux"]["namespaces"].as_array_mut().unwrap().pop();
    in_user_namespace(&mut spec, 300_000);
    spec["linux"]["maskedPaths"] = json!([]);
    spec["linux"]["readonlyPaths"] = json!([]);
    spec["mounts"].as_array_mut().unwrap().truncate(2);
    Scenario { name: "mapped", rig, spec, in_order: false, group: unique_group() }
}

#[test]
fn each_step_of_a_creation_may_fail() {
    for scenario in [rich(), hooked(), mapped()] {
        // Made before there is a plan, and told in words of their own; or a courtesy whose failure does not matter.
        let never = ["root filesystem", "a user namespace", "give the standard streams"];
        each_step_fails(&scenario, &never);
    }
}
