//! Keeper and guardian become the program that was installed over theirs, and nobody notices (DESIGN 1B, 4).

use crate::rig::{Rig, copy_binary, kill, log_lines, soon, wait_until};
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CreateTaskRequest, DeleteRequest, StartRequest, StateRequest, WaitRequest,
};
use containerd_shim_protos::shim_async::TaskClient;
use cri_proto::keeper::{AttachEnd, AttachRequest, UpgradeRequest};
use serde_json::json;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SIGHUP: i32 = 1;

fn identity(path: impl AsRef<Path>) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn runs(pid: i32) -> Option<(u64, u64)> {
    identity(format!("/proc/{pid}/exe"))
}

impl Rig {
    /// Renames another file into the program's place, as packages do.
    fn install(&self, write: impl FnOnce(&Path)) {
        let new = self.dir().join("new");
        let former = identity(&self.binary);
        write(&new);
        fs::rename(&new, &self.binary).unwrap();
        assert_ne!(identity(&self.binary), former);
    }

    fn install_copy(&self) {
        self.install(copy_binary);
    }

    fn install_script(&self, text: &str) {
        self.install(|new| {
            fs::write(new, text).unwrap();
            fs::set_permissions(new, fs::Permissions::from_mode(0o755)).unwrap();
        });
    }

    /// Connects again and returns once both run the installed file; the guardian is the same process.
    fn upgraded(&mut self) {
        self.reconnect();
        wait_until("both are the new program", || {
            self.reconnect();
            let info = self.run(self.keeper().info(soon(), &cri_proto::keeper::InfoRequest::new()));
            let installed = identity(&self.binary);
            info.is_ok_and(|info| runs(info.keeper_pid) == installed && runs(info.guardian_pid) == installed)
        });
        assert_eq!(self.info().guardian_pid, self.guardian, "another guardian");
    }

    fn hang_up(&self) {
        kill(self.info().keeper_pid, SIGHUP);
    }

    fn keepers_log(&self) -> String {
        let dirs = fs::read_dir(self.dir()).unwrap().map(|entry| entry.unwrap().path().join("log"));
        dirs.filter_map(|log| fs::read_to_string(log).ok()).collect()
    }

    fn logged(&self, id: &str, script: &str) {
        let mut bundle = self.bundle(id, &["sh", "-c", script]);
        bundle.stdout = format!("cri-log://{}", self.log_path(id).display());
        self.create(&bundle).unwrap();
    }

    fn upgrade(&self) -> ttrpc::Result<()> {
        self.run(self.keeper().upgrade(soon(), &UpgradeRequest::new())).map(drop)
    }
}

/// As an operator does on a node of containerd.
fn by_action(rig: &Rig) -> String {
    let mut command = std::process::Command::new(&rig.binary);
    let output = command.arg("upgrade").env("SLIPWAY_KEEPER_STATE", rig.dir()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// `count` numbered lines, and 5.
fn counting(count: u32) -> String {
    format!("i=0; while [ $i -lt {count} ]; do i=$((i+1)); echo line $i; done; exit 5")
}

fn complete(rig: &Rig, id: &str, count: u32) {
    let lines = log_lines(&rig.log_path(id), "stdout");
    let first_wrong = lines.iter().zip(1..).find(|(line, i)| **line != format!("line {i}"));
    assert_eq!((first_wrong, lines.len()), (None, count as usize));
}

/// A terminal session of `cat` on fifos.
struct Terminal {
    keyboard: fs::File,
    screen: std::io::BufReader<fs::File>,
}

impl Terminal {
    fn open(rig: &Rig, id: &str) -> Self {
        let (input, output) = (rig.fifo("keyboard"), rig.fifo("screen"));
        let process = json!({"terminal": true, "user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", "stty raw -echo; exec cat"],
            "env": ["PATH=/bin"], "cwd": "/"});
        let both = |path: &str| fs::File::options().read(true).write(true).open(path).unwrap();
        let (keyboard, screen) = (both(&input), both(&output));
        rig.exec_process(id, "tty", &process, &input, &output, "").unwrap();
        rig.start(id, "tty").unwrap();
        let mut terminal = Self { keyboard, screen: std::io::BufReader::new(screen) };
        std::thread::sleep(Duration::from_millis(300));
        terminal.says("first");
        terminal
    }

    fn says(&mut self, word: &str) {
        self.keyboard.write_all(format!("{word}\n").as_bytes()).unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut self.screen, &mut line).unwrap();
        assert_eq!(line.trim(), word);
    }
}

#[test]
fn an_upgrade_loses_nothing() {
    let mut rig = Rig::installed("");
    let lines = 60_000;
    rig.logged("logger", &counting(lines));
    rig.logged("steady", "while :; do sleep 0.05; done");
    rig.logged("parked", "echo late; exit 6");
    rig.logged("brief", "sleep 0.4; exit 42");
    let mut pids = Vec::new();
    for id in ["logger", "steady", "brief"] {
        pids.push(rig.start(id, "").unwrap());
    }
    let mut terminal = Terminal::open(&rig, "steady");
    let (keeper, generation) = (rig.info().keeper_pid, rig.info().generation);
    for round in 1..=3 {
        rig.install_copy();
        if round == 2 {
            rig.upgrade().unwrap()
        } else {
            rig.hang_up()
        }
        rig.upgraded();
        terminal.says(&format!("round {round}"));
        assert_eq!(rig.info().generation, generation + round, "one keeper for each upgrade");
    }
    assert_ne!(rig.info().keeper_pid, keeper);
    let now: Vec<_> = rig.list().into_iter().map(|task| (task.id, task.pid.cast_unsigned())).collect();
    assert!(now.contains(&("steady".into(), pids[1])), "{now:?}");
    for (id, status) in [("brief", 42), ("logger", 5)] {
        let info = rig.wait_task(id);
        assert_eq!((info.exit_status, info.status_known, info.log_dropped), (status, true, 0), "{id}");
    }
    complete(&rig, "logger", lines);
    rig.start("parked", "").unwrap();
    assert_eq!(rig.wait("parked", "").unwrap(), 6);
    assert_eq!(log_lines(&rig.log_path("parked"), "stdout"), ["late"]);
    rig.exec("steady", "again", &["sh", "-c", "exit 3"], "").unwrap();
    rig.start("steady", "again").unwrap();
    assert_eq!(rig.wait("steady", "again").unwrap(), 3);
    terminal.says("last");
    drop(terminal);
    rig.kill("steady", "tty", 9, true).unwrap();
    rig.wait("steady", "tty").unwrap();
    rig.delete("steady", "tty").unwrap();
    rig.delete("steady", "again").unwrap();
    rig.kill("steady", "", 9, true).unwrap();
    rig.wait("steady", "").unwrap();
    for id in ["logger", "steady", "parked", "brief"] {
        rig.delete(id, "").unwrap();
    }
}

/// A renewed guardian still is the one: descriptors, deaths, children.
#[test]
fn a_renewed_guardian_has_everything() {
    let mut rig = Rig::installed("");
    rig.logged("c", "until [ -e /go ]; do sleep 0.02; done; echo gone; exit 7");
    rig.logged("parked", "exit 3");
    rig.start("c", "").unwrap();
    rig.install_copy();
    rig.hang_up();
    rig.upgraded();
    // Held while the next keeper dies too, so that the death is told by the renewed guardian alone.
    let keeper = rig.info().keeper_pid;
    kill(rig.guardian, 19);
    kill(keeper, 9);
    fs::write(rig.dir().join("bundles/c/rootfs/go"), "").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    kill(rig.guardian, 18);
    rig.reconnect();
    let info = rig.wait_task("c");
    assert_eq!((info.exit_status, info.status_known), (7, true));
    assert_eq!(log_lines(&rig.log_path("c"), "stdout"), ["gone"]);
    rig.start("parked", "").unwrap();
    assert_eq!(rig.wait("parked", "").unwrap(), 3);
    assert_eq!(rig.info().guardian_pid, rig.guardian);
    for id in ["c", "parked"] {
        rig.delete(id, "").unwrap();
    }
    wait_until("nothing of the containers with the guardian", || {
        fs::read_dir(format!("/proc/{}/fd", rig.guardian)).unwrap().count() < 12
    });
}

#[test]
fn what_does_not_run_changes_nothing() {
    let mut rig = Rig::installed("");
    rig.logged("c", &counting(40_000));
    rig.start("c", "").unwrap();
    let before = (rig.info().keeper_pid, rig.info().guardian_pid);
    for (text, word) in [
        ("#!/bin/sh\necho no libc here >&2; exit 1\n", "no libc here"),
        ("#!/bin/sh\necho containerd-shim-runc-v2 1\n", "is another program"),
        ("\x7fELF", "cannot be executed"),
    ] {
        rig.install_script(text);
        match rig.upgrade() {
            Err(ttrpc::Error::RpcStatus(status)) => {
                assert_eq!(status.code(), ttrpc::Code::FAILED_PRECONDITION);
                assert!(status.message().contains(word), "{status:?}");
            }
            other => panic!("{other:?}"),
        }
        rig.hang_up();
        wait_until("it is said", || rig.keepers_log().contains(word));
        let info = rig.info();
        assert_eq!((info.keeper_pid, info.guardian_pid), before);
    }
    rig.install(|new| fs::write(new, "").unwrap());
    assert!(rig.upgrade().is_err(), "not executable");
    fs::remove_file(&rig.binary).unwrap();
    assert!(rig.upgrade().is_err(), "gone");
    // A death meanwhile: the guardian has a way back.
    rig.kill_keeper();
    assert_eq!(rig.info().guardian_pid, rig.guardian);
    let info = rig.wait_task("c");
    assert_eq!((info.exit_status, info.status_known), (5, true));
    complete(&rig, "c", 40_000);
    rig.delete("c", "").unwrap();
    copy_binary(&rig.binary);
    rig.upgrade().unwrap();
    rig.upgraded();
}

/// One that says its version and cannot serve.
#[test]
fn a_program_that_does_not_serve_is_followed_by_the_former_one() {
    let mut rig = Rig::installed("");
    let former = identity(&rig.binary);
    rig.logged("c", &counting(40_000));
    rig.start("c", "").unwrap();
    let held = fs::File::open(&rig.binary).unwrap();
    rig.install_script("#!/bin/sh\n[ \"$1\" = -v ] || exit 1\necho containerd-shim-slipway-v1 9.9.9\n");
    let keeper = rig.info().keeper_pid;
    rig.upgrade().unwrap();
    wait_until("its end", || !Path::new(&format!("/proc/{keeper}")).exists());
    rig.reconnect();
    assert_eq!(runs(rig.info().keeper_pid), former);
    assert_eq!((rig.info().guardian_pid, runs(rig.guardian)), (rig.guardian, former));
    assert!(rig.keepers_log().contains("does not serve"), "{}", rig.keepers_log());
    assert_eq!(rig.wait_task("c").exit_status, 5);
    complete(&rig, "c", 40_000);
    rig.delete("c", "").unwrap();
    drop(held);
    rig.install_copy();
    rig.hang_up();
    rig.upgraded();
}

/// As containerd: one connection for ever, and no call that fails.
#[test]
fn a_client_that_keeps_its_connection_sees_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::installed(dir.path().join("nobody").to_str().unwrap());
    rig.logged("waited", "until [ -e /go ]; do sleep 0.02; done; exit 9");
    rig.start("waited", "").unwrap();
    let bundles: Vec<_> = (0..2).map(|n| rig.bundle(&format!("h{n}"), &["sh", "-c", "exit 4"])).collect();
    for bundle in &bundles {
        fs::write(bundle.path.join("config.json"), bundle.spec.to_string()).unwrap();
    }
    let address = rig.address().to_owned();
    let over = Arc::new(AtomicBool::new(false));
    let hammers: Vec<_> = bundles
        .into_iter()
        .map(|bundle| {
            let (over, address) = (Arc::clone(&over), address.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let client = TaskClient::new(ttrpc::r#async::Client::connect(&address).await.unwrap());
                    let (id, mut lives) = (bundle.id.clone(), 0);
                    while !over.load(Ordering::Relaxed) {
                        let create = CreateTaskRequest {
                            id: id.clone(),
                            bundle: bundle.path.to_str().unwrap().into(),
                            ..Default::default()
                        };
                        client.create(soon(), &create).await.unwrap();
                        let state = StateRequest { id: id.clone(), ..Default::default() };
                        client.state(soon(), &state).await.unwrap();
                        let start = StartRequest { id: id.clone(), ..Default::default() };
                        client.start(soon(), &start).await.unwrap();
                        let wait = WaitRequest { id: id.clone(), ..Default::default() };
                        assert_eq!(client.wait(soon(), &wait).await.unwrap().exit_status, 4);
                        let delete = DeleteRequest { id: id.clone(), ..Default::default() };
                        client.delete(soon(), &delete).await.unwrap();
                        lives += 1;
                    }
                    lives
                })
            })
        })
        .collect();
    let waiting = {
        let address = address.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = TaskClient::new(ttrpc::r#async::Client::connect(&address).await.unwrap());
                let wait = WaitRequest { id: "waited".into(), ..Default::default() };
                client.wait(soon(), &wait).await.unwrap().exit_status
            })
        })
    };
    std::thread::sleep(Duration::from_millis(300));
    for round in 0..4 {
        let generation = rig.info().generation;
        rig.install_copy();
        if round == 1 {
            let said = by_action(&rig);
            let info = rig.info();
            let pids = format!("keeper {} and guardian {}", info.keeper_pid, info.guardian_pid);
            assert!(said.contains(&pids) && said.lines().count() == 1, "{said}");
            assert_eq!(by_action(&rig), said, "there is nothing to do");
        } else {
            rig.hang_up();
        }
        rig.upgraded();
        assert_eq!(rig.info().generation, generation + 1);
        std::thread::sleep(Duration::from_millis(200));
    }
    // The start action answers with the keeper that runs, whichever file it is of.
    assert_eq!(crate::rig::address_of(&crate::rig::shim(rig.dir(), "node", "start")), address);
    assert_eq!(runs(rig.info().keeper_pid), identity(&rig.binary));
    over.store(true, Ordering::Relaxed);
    for hammer in hammers {
        let lives = hammer.join().unwrap();
        assert!(lives > 10, "only {lives} lives");
    }
    fs::write(rig.dir().join("bundles/waited/rootfs/go"), "").unwrap();
    assert_eq!(waiting.join().unwrap(), 9);
    rig.delete("waited", "").unwrap();
}

/// keeper.proto, Attach: an attached client is with the next keeper, and misses nothing.
#[test]
fn attached_clients_are_handed_over() {
    let mut rig = Rig::installed("");
    let mut bundle = rig.bundle("c", &["sh", "-c", "while read line; do echo \"got $line\"; done; exit 2"]);
    bundle.stdout = format!("cri-log://{}?stdin=1", rig.log_path("c").display());
    rig.create(&bundle).unwrap();
    rig.start("c", "").unwrap();
    let (their_in, mut ours_in) = std::io::pipe().unwrap();
    let (mut ours_out, their_out) = std::io::pipe().unwrap();
    let name = |fd: i32| format!("pipe://{}/{fd}", std::process::id());
    let mut request = AttachRequest {
        id: "c".into(),
        stdin: name(their_in.as_raw_fd()),
        stdout: name(their_out.as_raw_fd()),
        ..Default::default()
    };
    let attach = |rig: &Rig, request: &AttachRequest| {
        let (keeper, request) = (rig.keeper().clone(), request.clone());
        rig.spawn(async move { keeper.attach(soon(), &request).await.map(|answer| answer.end) })
    };
    let mut heard = |word: &str| {
        let mut bytes = vec![0; word.len()];
        ours_out.read_exact(&mut bytes).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), word);
    };
    let mut attached = attach(&rig, &request);
    for round in 0..3 {
        ours_in.write_all(format!("{round}\n").as_bytes()).unwrap();
        heard(&format!("got {round}\n"));
        rig.install_copy();
        rig.hang_up();
        assert_eq!(rig.run(attached).unwrap().unwrap(), AttachEnd::HANDED_OVER.into());
        ours_in.write_all(b"between\n").unwrap();
        rig.upgraded();
        request.again = true;
        attached = attach(&rig, &request);
        heard("got between\n");
    }
    let unknown = AttachRequest { stdout: name(1), ..request.clone() };
    let unknown = rig.run(rig.keeper().attach(soon(), &unknown));
    assert_eq!(crate::rig::code(unknown), ttrpc::Code::NOT_FOUND);
    rig.kill("c", "", 9, true).unwrap();
    assert_eq!(rig.run(attached).unwrap().unwrap(), AttachEnd::OUTPUT_OVER.into());
    rig.wait("c", "").unwrap();
    rig.delete("c", "").unwrap();
}

/// criu that is killed leaves a container frozen: the keeper stays until it is done.
#[test]
fn a_checkpoint_is_not_cut_short() {
    let mut rig = Rig::installed("");
    let (criu, go) = (rig.dir().join("criu"), rig.dir().join("go"));
    let script =
        format!("#!/bin/sh\n: > {0}.begun; until [ -e {0} ]; do sleep 0.02; done; exit 1\n", go.display());
    fs::write(&criu, script).unwrap();
    fs::set_permissions(&criu, fs::Permissions::from_mode(0o755)).unwrap();
    let bundle = rig.bundle("c", &["sleep", "1000"]);
    crate::checkpoint::create_with(&rig, &bundle, Path::new(""), criu.to_str().unwrap()).unwrap();
    rig.start("c", "").unwrap();
    let request = CheckpointTaskRequest {
        id: "c".into(),
        path: rig.dir().join("images").to_str().unwrap().into(),
        ..Default::default()
    };
    let tasks = rig.tasks().clone();
    let dump = rig.spawn(async move { tasks.checkpoint(soon(), &request).await });
    wait_until("criu runs", || rig.dir().join("go.begun").exists());
    let keeper = rig.info().keeper_pid;
    rig.install_copy();
    match rig.upgrade() {
        Err(ttrpc::Error::RpcStatus(status)) => {
            assert!(status.message().contains("checkpoint"), "{status:?}")
        }
        other => panic!("{other:?}"),
    }
    rig.hang_up();
    wait_until("it is said", || rig.keepers_log().contains("SIGHUP: upgrade: a checkpoint is under way"));
    assert_eq!(rig.info().keeper_pid, keeper);
    assert!(!dump.is_finished());
    fs::write(go, "").unwrap();
    let failed = rig.run(dump).unwrap().unwrap_err().to_string();
    assert!(!failed.contains("connection"), "it was answered: {failed}");
    rig.upgrade().unwrap();
    rig.upgraded();
    assert_eq!(rig.state("c", "").unwrap(), "RUNNING");
    rig.kill("c", "", 9, true).unwrap();
    rig.wait("c", "").unwrap();
    rig.delete("c", "").unwrap();
}

/// Whoever dies in the middle of an upgrade: it is done later, and nothing is lost.
#[test]
fn deaths_around_an_upgrade_lose_nothing() {
    let mut rig = Rig::installed("");
    let lines = 200_000;
    rig.logged("c", &counting(lines));
    rig.start("c", "").unwrap();
    let mut rounds = 0;
    while rig.state("c", "").unwrap() == "RUNNING" && rounds < 12 {
        let keeper = rig.info().keeper_pid;
        rig.install_copy();
        kill(keeper, SIGHUP);
        // From before it looks at the file to after the guardian's renewal.
        std::thread::sleep(Duration::from_millis(rounds * 8));
        rig.reconnect();
        let now = rig.run(rig.keeper().info(soon(), &cri_proto::keeper::InfoRequest::new()));
        kill(now.map_or(keeper, |info| info.keeper_pid), 9);
        rig.reconnect();
        wait_until("a keeper", || {
            rig.reconnect();
            rig.run(rig.keeper().list(soon(), &cri_proto::keeper::ListRequest::new())).is_ok()
        });
        rounds += 1;
    }
    assert!(rounds > 3, "only {rounds} rounds while it ran");
    rig.install_copy();
    rig.hang_up();
    rig.upgraded();
    let info = rig.wait_task("c");
    assert_eq!((info.exit_status, info.status_known, info.log_dropped), (5, true, 0));
    complete(&rig, "c", lines);
    rig.delete("c", "").unwrap();
    // The guardian's death: the next one is of the keeper's file, and knows where later ones come from.
    let former = rig.guardian;
    rig.install_copy();
    rig.hang_up();
    kill(former, 9);
    wait_until("both are there and new", || {
        rig.reconnect();
        let info = rig.run(rig.keeper().info(soon(), &cri_proto::keeper::InfoRequest::new()));
        info.is_ok_and(|info| {
            rig.guardian = info.guardian_pid;
            if runs(info.keeper_pid) != identity(&rig.binary) {
                kill(info.keeper_pid, SIGHUP);
            }
            ![0, former].contains(&info.guardian_pid)
                && [info.keeper_pid, info.guardian_pid].map(runs) == [identity(&rig.binary); 2]
        })
    });
}
