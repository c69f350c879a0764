//! The engine against real pipes, terminals, files and child processes.

use super::*;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

struct Rig {
    dir: tempfile::TempDir,
    engine: Engine,
    runtime: tokio::runtime::Runtime,
}

impl Rig {
    fn new() -> Self {
        let journal = Journal::open(rustix::fd::AsFd::as_fd(&Journal::memfd().unwrap())).unwrap();
        Self {
            dir: tempfile::tempdir().unwrap(),
            engine: Engine::start(journal).unwrap(),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("0.log")
    }

    fn add(&self, file: Option<File>, max_line: usize, streams: Vec<(Stream, Source)>) {
        let streams = streams
            .into_iter()
            .map(|(stream, source)| Input { stream, source, hold: hold().unwrap() })
            .collect();
        let log = Log { id: "c".into(), file, max_line, dropped: 0, streams, clients: Vec::new() };
        self.runtime.block_on(self.engine.add(log)).unwrap();
    }

    fn drain(&self) -> u64 {
        self.runtime.block_on(self.engine.drain("c")).unwrap().dropped
    }

    /// Tags and contents, streams in their own order.
    fn lines(&self, path: &Path, stream: &str) -> Vec<(String, String)> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| {
                let mut parts = line.splitn(4, ' ');
                let mut part = || parts.next().unwrap_or_else(|| panic!("bad line {line:?}")).to_owned();
                let (time, name, tag, content) = (part(), part(), part(), part());
                assert!(time.len() == 30 && time.ends_with('Z'), "bad time {time:?}");
                (name, (tag, content))
            })
            .filter_map(|(name, rest)| (name == stream).then_some(rest))
            .collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().append(true).create(true).open(path).unwrap()
}

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn both_streams_of_a_child_are_written_whole() {
    // CRI-LOG-03, 07, 15, 19
    let rig = Rig::new();
    let ((out, out_write), (err, err_write)) = (pipe(), pipe());
    rig.add(
        Some(open(&rig.path())),
        16384,
        vec![(Stream::Stdout, Source::Pipe(out)), (Stream::Stderr, Source::Pipe(err))],
    );
    let script = "i=0; while [ $i -lt 3000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; printf tail";
    let status = Process::new("sh")
        .args(["-c", script])
        .stdin(Stdio::null())
        .stdout(out_write)
        .stderr(err_write)
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(rig.drain(), 0);
    for stream in ["out", "err"] {
        let mut lines = rig.lines(&rig.path(), &format!("std{stream}"));
        if stream == "out" {
            assert_eq!(lines.pop().unwrap(), ("P".into(), "tail".into()));
        }
        let expected: Vec<_> = (0..3000).map(|i| ("F".to_owned(), format!("{stream} {i}"))).collect();
        assert_eq!(lines, expected);
    }
    assert_eq!(rig.engine.counters().lines, 6001);
}

#[test]
fn a_prompt_waits_and_a_long_line_is_cut() {
    // CRI-LOG-05, 06
    let rig = Rig::new();
    let (out, write) = pipe();
    rig.add(Some(open(&rig.path())), 100, vec![(Stream::Stdout, Source::Pipe(out))]);
    let mut write = File::from(write);
    write.write_all(b"name? ").unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(fs::read(rig.path()).unwrap(), b"", "an unfinished line was written");
    write.write_all(b"me\n").unwrap();
    wait_until("the line", || rig.lines(&rig.path(), "stdout") == [("F".into(), "name? me".into())]);
    write.write_all(&[b'x'; 250]).unwrap();
    write.write_all(b"\n").unwrap();
    rig.drain();
    let tags: Vec<_> = rig.lines(&rig.path(), "stdout").into_iter().map(|(t, c)| (t, c.len())).collect();
    assert_eq!(tags[1..], [("P".into(), 100), ("P".into(), 100), ("F".into(), 50)]);
}

#[test]
fn a_full_pipe_without_newline_does_not_block_its_writer() {
    let rig = Rig::new();
    let (out, write) = pipe();
    // Never cut: only fullness can free the writer.
    rig.add(Some(open(&rig.path())), 0, vec![(Stream::Stdout, Source::Pipe(out))]);
    let writer = std::thread::spawn(move || File::from(write).write_all(&vec![b'y'; 1_000_000]).unwrap());
    wait_until("the writer's end", || writer.is_finished());
    rig.drain();
    let total: usize = rig.lines(&rig.path(), "stdout").iter().map(|(_, content)| content.len()).sum();
    assert_eq!(total, 1_000_000);
}

#[test]
fn without_a_file_output_is_drained() {
    // CRI-LOG-02
    let rig = Rig::new();
    let (out, write) = pipe();
    rig.add(None, 16384, vec![(Stream::Stdout, Source::Pipe(out))]);
    // One write(2): it blocks half way with an unfinished line in the pipe, and wakes nobody who left that there.
    File::from(write).write_all(&vec![b'z'; 3_000_000]).unwrap();
    assert_eq!(rig.drain(), 0);
}

#[test]
fn reopening_cuts_between_lines() {
    // CRI-LOG-12
    let rig = Rig::new();
    let (out, write) = pipe();
    rig.add(Some(open(&rig.path())), 16384, vec![(Stream::Stdout, Source::Pipe(out))]);
    let writer = std::thread::spawn(move || {
        let mut write = File::from(write);
        for i in 0..20_000 {
            writeln!(write, "line {i}").unwrap();
        }
    });
    let mut files = vec![rig.path()];
    while !writer.is_finished() {
        let rotated = rig.dir.path().join(format!("{}.log.old", files.len()));
        fs::rename(rig.path(), &rotated).unwrap();
        let size = || fs::metadata(&rotated).unwrap().len();
        assert!(rig.runtime.block_on(rig.engine.reopen("c", open(&rig.path()))).unwrap());
        let then = size();
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(size(), then, "the old file still grows");
        files.insert(files.len() - 1, rotated);
    }
    writer.join().unwrap();
    rig.drain();
    let all: Vec<_> = files.iter().flat_map(|path| rig.lines(path, "stdout")).collect();
    assert!(files.len() > 2, "no rotation happened while lines were written");
    assert_eq!(all, (0..20_000).map(|i| ("F".to_owned(), format!("line {i}"))).collect::<Vec<_>>());
    assert!(!rig.runtime.block_on(rig.engine.reopen("unknown", open(&rig.path()))).unwrap());
}

#[test]
fn a_grandchild_that_keeps_printing_does_not_hold_up_the_drain() {
    // CRI-LOG-16
    let rig = Rig::new();
    let (out, write) = pipe();
    rig.add(Some(open(&rig.path())), 16384, vec![(Stream::Stdout, Source::Pipe(out))]);
    let mut noisy = Process::new("sh")
        .args(["-c", "while :; do echo noise; done"])
        .stdout(write.try_clone().unwrap())
        .spawn()
        .unwrap();
    File::from(write).write_all(b"mine\n").unwrap();
    let start = Instant::now();
    rig.drain();
    assert!(start.elapsed() < Duration::from_secs(60));
    noisy.kill().unwrap();
    noisy.wait().unwrap();
    assert_eq!(rig.lines(&rig.path(), "stdout").iter().filter(|(_, line)| line == "mine").count(), 1);
}

#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    // CRI-LOG-10: a file size limit stands for the full disk; /dev/full has no size.
    let rig = Rig::new();
    let (out, write) = pipe();
    let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
    rig.add(Some(full), 16384, vec![(Stream::Stdout, Source::Pipe(out))]);
    let mut write = File::from(write);
    for i in 0..1000 {
        writeln!(write, "{i:0100}").unwrap();
    }
    assert_eq!(rig.drain(), 1000);
    assert!(rig.runtime.block_on(rig.engine.reopen("c", open(&rig.path()))).unwrap());
    write.write_all(b"space again\n").unwrap();
    rig.drain();
    assert_eq!(rig.lines(&rig.path(), "stdout"), [("F".into(), "space again".into())]);
    assert_eq!(rig.engine.counters().dropped, 1000);
}

#[test]
fn a_terminal_is_logged_too() {
    let rig = Rig::new();
    let pty = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
    rustix::pty::unlockpt(&pty).unwrap();
    let slave = rustix::pty::ptsname(&pty, Vec::new()).unwrap();
    let slave = OpenOptions::new().read(true).write(true).open(slave.to_str().unwrap()).unwrap();
    let (read, write) = pipe();
    rig.add(
        Some(open(&rig.path())),
        16384,
        vec![(Stream::Stdout, Source::Terminal { master: pty, read, write })],
    );
    let mut child = Process::new("sh")
        .args(["-c", "for i in 1 2 3; do echo tty $i; done; test -t 1 && printf end"])
        .stdin(Stdio::null())
        .stdout(slave)
        .spawn()
        .unwrap();
    child.wait().unwrap();
    rig.drain();
    let expected: Vec<(String, String)> = vec![
        ("F".into(), "tty 1".into()),
        ("F".into(), "tty 2".into()),
        ("F".into(), "tty 3".into()),
        ("P".into(), "end".into()),
    ];
    assert_eq!(rig.lines(&rig.path(), "stdout"), expected);
}

/// A stream that failed is served again without any event: its pipe may be full, and then none comes.
#[test]
fn a_stream_that_failed_is_served_again() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    struct Mounted<'a>(&'a Path);
    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            unmount(self.0, UnmountFlags::DETACH).unwrap();
        }
    }
    let rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    mount("slipway-full", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=64k")).unwrap();
    let mounted = Mounted(dir.path());
    let options = || OpenOptions::new().read(true).write(true).create(true).to_owned();
    // Where the beginning of a line is kept has no room.
    let held = options().open(dir.path().join("hold")).unwrap();
    let filler = dir.path().join("filler");
    fs::write(&filler, vec![0; 1 << 17]).unwrap_err();
    let (out, write) = pipe();
    rustix::io::write(&write, b"a beginning").unwrap();
    let hold = held.try_clone().unwrap().into();
    let streams =
        vec![Input { stream: Stream::Stdout, source: Source::Pipe(out.try_clone().unwrap()), hold }];
    let log = Log {
        id: "c".into(),
        file: Some(open(&rig.path())),
        max_line: 16384,
        dropped: 0,
        streams,
        clients: Vec::new(),
    };
    rig.runtime.block_on(rig.engine.add(log)).unwrap();
    let waiting = || rustix::io::ioctl_fionread(&out).unwrap();
    // Longer than it waits before it tries again.
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!((waiting(), held.metadata().unwrap().len()), (11, 0), "it is still in the pipe");
    fs::remove_file(filler).unwrap();
    wait_until("the beginning is taken", || waiting() == 0);
    assert_eq!(held.metadata().unwrap().len(), 11);
    rustix::io::write(&write, b" and an end\n").unwrap();
    wait_until("the line", || !rig.lines(&rig.path(), "stdout").is_empty());
    assert_eq!(rig.lines(&rig.path(), "stdout"), [("F".to_owned(), "a beginning and an end".to_owned())]);
    drop(write);
    rig.drain();
    drop(rig);
    drop(held);
    drop(mounted);
}
