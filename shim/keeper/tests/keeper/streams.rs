//! Logs, rotation, terminals, standard input.

use crate::rig::{Rig, code, log_lines, soon, wait_until};
use containerd_shim_protos::api::{CloseIORequest, CreateTaskRequest, ResizePtyRequest};
use cri_proto::keeper::ReopenLogRequest;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use ttrpc::Code;

fn reopen(rig: &Rig, id: &str) -> ttrpc::Result<()> {
    let request = ReopenLogRequest { id: id.into(), ..Default::default() };
    rig.run(rig.keeper().reopen_log(soon(), &request)).map(drop)
}

#[test]
fn logs_rotate_while_lines_are_written() {
    // CRI-LOG-11, 12, 13
    let rig = Rig::new();
    let mut bundle =
        rig.bundle("c", &["sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done"]);
    let path = rig.log_path("c");
    bundle.stdout = format!("cri-log://{}", path.display());
    rig.create(&bundle).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    rig.start("c", "").unwrap();
    let mut lines = Vec::new();
    let mut rotations = 0;
    while rotations < 5 {
        let old = rig.dir().join(format!("old.{rotations}"));
        fs::rename(&path, &old).unwrap();
        match reopen(&rig, "c") {
            Ok(()) => assert!(path.exists(), "it answered before the new file was there"),
            Err(_) => {
                fs::rename(&old, &path).unwrap();
                break;
            }
        }
        let rotated = log_lines(&old, "stdout");
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(log_lines(&old, "stdout").len(), rotated.len(), "the old file still grows");
        lines.extend(rotated);
        rotations += 1;
    }
    rig.wait("c", "").unwrap();
    lines.extend(log_lines(&path, "stdout"));
    assert!(rotations > 0);
    assert_eq!(lines, (0..20_000).map(|i| format!("line {i}")).collect::<Vec<_>>());
    fs::remove_file(&path).unwrap();
    assert_eq!(code(reopen(&rig, "c")), Code::FAILED_PRECONDITION);
    assert!(!path.exists(), "no new file for what does not run");
    rig.delete("c", "").unwrap();
}

/// As the kubelet does whose ReopenContainerLog was carried out, but whose answer got lost: the old file comes back over the
/// new one, and is rotated again later, or never.
#[test]
fn a_log_file_that_is_replaced_loses_no_line() {
    for rotated_again in [true, false] {
        let rig = Rig::new();
        let script =
            "for part in /one /two /three; do seq 1000; until [ -e $part ]; do sleep 0.1; done; done";
        let mut bundle = rig.bundle("c", &["sh", "-c", script]);
        let (path, old) = (rig.log_path("c"), rig.dir().join("old"));
        bundle.stdout = format!("cri-log://{}", path.display());
        rig.create(&bundle).unwrap();
        rig.start("c", "").unwrap();
        let lines_are = |count: u64| wait_until("lines are written", || rig.info().log_lines == count);
        let go_on = |part: &str| {
            rig.exec("c", part, &["sh", "-c", &format!(": > /{part}")], "").unwrap();
            rig.start("c", part).unwrap();
        };
        lines_are(1000);
        fs::rename(&path, &old).unwrap();
        reopen(&rig, "c").unwrap();
        go_on("one");
        lines_are(2000);
        fs::rename(&old, &path).unwrap();
        go_on("two");
        lines_are(3000);
        assert_eq!(log_lines(&path, "stdout").len(), 1000, "the others are in a file without a name");
        let mut lines = Vec::new();
        if rotated_again {
            fs::rename(&path, &old).unwrap();
            reopen(&rig, "c").unwrap();
            lines.extend(log_lines(&old, "stdout"));
        }
        go_on("three");
        rig.wait("c", "").unwrap();
        lines.extend(log_lines(&path, "stdout"));
        let thousand = (1..=1000).map(|i| i.to_string());
        assert_eq!(lines, std::iter::repeat_n(thousand, 3).flatten().collect::<Vec<_>>());
        rig.delete("c", "").unwrap();
    }
}

#[test]
fn output_nobody_wants_does_not_block() {
    // CRI-LOG-02
    let rig = Rig::new();
    rig.create(&rig.bundle("c", &["head", "-c", "3000000", "/dev/zero"])).unwrap();
    rig.start("c", "").unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 0);
    rig.delete("c", "").unwrap();
}

/// A file system of 64 KiB without a free byte; unmounted in the end.
struct FullDisk(tempfile::TempDir);

impl FullDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mount = ["-t", "tmpfs", "-o", "size=64k", "slipway-full"];
        assert!(Command::new("mount").args(mount).arg(dir.path()).status().unwrap().success());
        let full = std::fs::write(dir.path().join("filler"), vec![0; 65536 + 1]);
        assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        Self(dir)
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(std::thread::panicking() || unmounted.unwrap().success());
    }
}

#[test]
fn a_full_disk_does_not_block_and_is_counted() {
    // CRI-LOG-10
    let rig = Rig::new();
    let disk = FullDisk::new();
    let mut bundle = rig.bundle("c", &["seq", "1", "5000"]);
    bundle.stdout = format!("cri-log://{}", disk.0.path().join("c.log").display());
    rig.create(&bundle).unwrap();
    rig.start("c", "").unwrap();
    let info = rig.wait_task("c");
    assert_eq!((info.exit_status, info.log_dropped), (0, 5000));
    assert_eq!(rig.info().log_dropped, 5000);
    rig.delete("c", "").unwrap();
}

#[test]
fn a_terminal_on_a_log_survives_the_keeper_too() {
    let mut rig = Rig::new();
    let mut bundle = rig.bundle(
        "c",
        &["sh", "-c", "test -t 0 && test -t 1 && echo a tty; i=0; while [ $i -lt 3000 ]; do echo tty $i; i=$((i+1)); done"],
    );
    bundle.spec["process"]["terminal"] = true.into();
    let path = rig.log_path("c");
    bundle.stdout = format!("cri-log://{}", path.display());
    rig.create(&bundle).unwrap();
    rig.start("c", "").unwrap();
    for _ in 0..3 {
        rig.kill_keeper();
    }
    assert_eq!(rig.wait("c", "").unwrap(), 0);
    let mut expected = vec!["a tty".to_owned()];
    expected.extend((0..3000).map(|i| format!("tty {i}")));
    assert_eq!(log_lines(&path, "stdout"), expected);
    rig.delete("c", "").unwrap();
}

#[test]
fn fifos_in_both_directions_and_close_io() {
    // SHIM-IO-03, SHIM-IO-04, SHIM-IO-04c; SHIM-TSK-26
    let rig = Rig::new();
    let bundle = rig.bundle("c", &["cat"]);
    fs::write(bundle.path.join("config.json"), bundle.spec.to_string()).unwrap();
    let (stdin, stdout) = (rig.fifo("in"), rig.fifo("out"));
    let request = CreateTaskRequest {
        id: "c".into(),
        bundle: bundle.path.to_str().unwrap().into(),
        stdin: stdin.clone(),
        stdout: stdout.clone(),
        ..Default::default()
    };
    // Nobody has opened the other ends yet: Create must not wait for them.
    rig.run(rig.tasks().create(soon(), &request)).unwrap();
    rig.start("c", "").unwrap();
    let mut input = fs::OpenOptions::new().write(true).open(&stdin).unwrap();
    input.write_all(b"there and back\n").unwrap();
    drop(input);
    // The client has left; the process does not see an end until CloseIO.
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(rig.state("c", "").unwrap(), "RUNNING");
    let close = CloseIORequest { id: "c".into(), stdin: true, ..Default::default() };
    rig.run(rig.tasks().close_io(soon(), &close)).unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 0);
    // The process is gone and nobody has read yet: the bytes wait for a late reader.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let mut text = String::new();
    let reader = rustix::fs::open(&stdout, flags, rustix::fs::Mode::empty()).unwrap();
    fs::File::from(reader).read_to_string(&mut text).unwrap();
    assert_eq!(text, "there and back\n");
    rig.delete("c", "").unwrap();
}

#[test]
fn an_interactive_exec_has_a_terminal_of_the_right_size() {
    // SHIM-IO-09, SHIM-TSK-25
    let rig = Rig::new();
    rig.create(&rig.bundle("c", &["sleep", "1000"])).unwrap();
    rig.start("c", "").unwrap();
    let (stdin, stdout) = (rig.fifo("in"), rig.fifo("out"));
    let process = serde_json::json!({
        "terminal": true, "user": {"uid": 0, "gid": 0}, "args": ["sh"], "env": ["PATH=/bin"], "cwd": "/",
    });
    rig.exec_process("c", "e", &process, &stdin, &stdout, "").unwrap();
    let output = fs::OpenOptions::new().read(true).write(true).open(&stdout).unwrap();
    rig.start("c", "e").unwrap();
    let size =
        ResizePtyRequest { id: "c".into(), exec_id: "e".into(), width: 77, height: 33, ..Default::default() };
    rig.run(rig.tasks().resize_pty(soon(), &size)).unwrap();
    let mut input = fs::OpenOptions::new().write(true).open(&stdin).unwrap();
    input.write_all(b"stty size; echo $((6*7)); exit 5\n").unwrap();
    assert_eq!(rig.wait("c", "e").unwrap(), 5);
    let seen = std::cell::RefCell::new(Vec::new());
    wait_until("the shell's answers", || {
        let mut buffer = [0; 4096];
        rustix::io::ioctl_fionbio(&output, true).unwrap();
        if let Ok(count) = rustix::io::read(&output, &mut buffer) {
            seen.borrow_mut().extend_from_slice(&buffer[..count]);
        }
        let seen = String::from_utf8_lossy(&seen.borrow()).into_owned();
        seen.contains("33 77") && seen.contains("\n42\r")
    });
    rig.delete("c", "e").unwrap();
    rig.kill("c", "", 9, true).unwrap();
    rig.wait("c", "").unwrap();
    rig.delete("c", "").unwrap();
}

#[test]
fn standard_input_of_a_logged_container_stays_open() {
    let rig = Rig::new();
    let mut bundle = rig.bundle("c", &["sh", "-c", "cat; echo end of input"]);
    let path = rig.log_path("c");
    bundle.stdout = format!("cri-log://{}?stdin=1", path.display());
    rig.create(&bundle).unwrap();
    rig.start("c", "").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(rig.state("c", "").unwrap(), "RUNNING");
    let close = CloseIORequest { id: "c".into(), stdin: true, ..Default::default() };
    rig.run(rig.tasks().close_io(soon(), &close)).unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 0);
    assert_eq!(log_lines(&path, "stdout"), ["end of input"]);
    rig.delete("c", "").unwrap();
}

/// Nobody can write without waiting.
fn is_full(fifo: &str) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    let fifo = rustix::fs::open(fifo, flags, rustix::fs::Mode::empty()).unwrap();
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&fifo, PollFlags::OUT)], Some(&at_once)).unwrap() == 0
}

/// Clients that make fifos and never read them, or have left: their containers wait, and nobody else; all that can be done to
/// a container can be done to these, also under the next keeper, and nothing of them stays.
#[test]
fn fifos_that_nobody_reads_hold_up_their_own_container_only() {
    // SHIM-IO-03, SHIM-IO-04, SHIM-IO-04b, SHIM-TST-05
    let mut rig = Rig::new();
    rig.create(&rig.bundle("beside", &["sleep", "1000"])).unwrap();
    rig.start("beside", "").unwrap();
    let held = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let keeper = rig.info().keeper_pid;
    let before = (held(rig.guardian), held(keeper));
    for (id, terminal, kill_keeper) in [
        ("plain", false, false),
        ("tty", true, false),
        ("plain-after", false, true),
        ("tty-after", true, true),
    ] {
        let script = "while :; do head -c 100000 /dev/zero; head -c 100000 /dev/zero >&2; done";
        let mut bundle = rig.bundle(id, &["sh", "-c", script]);
        bundle.spec["process"]["terminal"] = terminal.into();
        fs::write(bundle.path.join("config.json"), bundle.spec.to_string()).unwrap();
        let names = ["in", "out", "err"].map(|name| rig.fifo(&format!("{id}-{name}")));
        let request = CreateTaskRequest {
            id: id.into(),
            bundle: bundle.path.to_str().unwrap().into(),
            terminal,
            stdin: names[0].clone(),
            stdout: names[1].clone(),
            stderr: if terminal { String::new() } else { names[2].clone() },
            ..Default::default()
        };
        rig.run(rig.tasks().create(soon(), &request)).unwrap();
        rig.start(id, "").unwrap();
        wait_until("a full fifo", || is_full(&names[1]));
        if kill_keeper {
            rig.kill_keeper();
        }
        for (task, exec) in [("beside", format!("{id}-1")), (id, format!("{id}-2"))] {
            rig.exec(task, &exec, &["true"], "").unwrap();
            rig.start(task, &exec).unwrap();
            assert_eq!(rig.wait(task, &exec).unwrap(), 0, "{task}");
            rig.delete(task, &exec).unwrap();
        }
        assert_eq!(code(rig.delete(id, "")), Code::FAILED_PRECONDITION, "it runs");
        rig.kill(id, "", 9, true).unwrap();
        assert_eq!(rig.wait(id, "").unwrap(), 137);
        assert_eq!(rig.delete(id, "").unwrap(), 137);
        assert!(names.iter().all(|name| fs::exists(name).unwrap()), "the fifos are the client's");
        wait_until("the guardian to close its descriptors", || held(rig.guardian) <= before.0);
        wait_until("the keeper to close its own", || kill_keeper || held(keeper) <= before.1);
    }
    rig.kill("beside", "", 9, true).unwrap();
    rig.wait("beside", "").unwrap();
    rig.delete("beside", "").unwrap();
}
