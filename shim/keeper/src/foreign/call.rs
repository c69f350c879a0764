//! One call of a runtime's binary: its process group, its time limit, and what it says when it fails.

use super::Runtime;
use super::{caller, orphans};
use crate::error::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::Access;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};
use slipway_runtime::container::Stdio;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// The most that is kept of what a call says, in bytes.
const KEPT: usize = 64 << 10;
/// The most of it that goes into an error.
const SHOWN: usize = 2048;

/// See the module.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) root: &'a Path,
    /// Its working directory: the container's.
    pub(super) dir: &'a Path,
    pub(super) log: PathBuf,
    pub(super) verb: &'static str,
    pub(super) args: Vec<OsString>,
    pub(super) limit: Duration,
    pub(super) systemd: bool,
}

impl Call<'_> {
    /// The container's control group is to be a scope of systemd's.
    pub(super) fn with_systemd(mut self) -> Self {
        self.systemd = true;
        self
    }

    /// Runs it to its end and answers what it wrote. One that fails, or takes too long, is ended with its whole process group.
    pub(super) fn run(&self) -> Result<String> {
        let fail = |e: io::Error| Error::io("run", self.runtime.path.display(), &e);
        let mut command = Command::new(&self.runtime.path);
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
        rustix::io::ioctl_fionbio(&read, true).map_err(|e| fail(e.into()))?;
        command.stdin(process::Stdio::null());
        command.stdout(write.try_clone().map_err(fail)?).stderr(write);
        self.run_command(command, Some(read), None)
    }

    /// The same for a call that makes a process, which gets the streams; the runtime names it in `pid_file`. `overheard`: what
    /// is written to its standard error can be read here.
    pub(super) fn run_for(
        &self,
        pid_file: &Path,
        streams: Stdio,
        overheard: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0(caller::NAME).arg(caller::ACTION).arg(pid_file).arg(&self.runtime.path);
        command.stdin(or_null(streams.stdin));
        command.stdout(or_null(streams.stdout)).stderr(or_null(streams.stderr));
        self.run_command(command, None, overheard).map(drop)
    }

    fn run_command(
        &self,
        mut command: Command,
        heard: Option<OwnedFd>,
        overheard: Option<BorrowedFd<'_>>,
    ) -> Result<String> {
        let fail = |e: io::Error| Error::io("run", self.runtime.path.display(), &e);
        rustix::fs::access(&self.runtime.path, Access::EXEC_OK).map_err(|e| self.cannot_run(&e.into()))?;
        let _ = fs::remove_file(&self.log);
        self.complete(&mut command);
        tracing::debug!("{command:?}");
        let mut child = command.spawn().map_err(|e| self.cannot_run(&e))?;
        // Our copies of the streams.
        drop(command);
        let (status, said) = watch(&mut child, heard, self.limit).map_err(fail)?;
        let said = String::from_utf8_lossy(&said).into_owned();
        match status {
            Some(status) if status.success() => {
                let _ = fs::remove_file(&self.log);
                Ok(said)
            }
            Some(status) => {
                let overheard = || overheard.map(peek).unwrap_or_default();
                let words = [words(&self.log).unwrap_or_default(), shown(&said), overheard()];
                match words.iter().find(|words| !words.is_empty()) {
                    Some(words) => Err(self.failed(&format!("{status}: {words}"))),
                    None => Err(self.failed(&format!("{status}, and not a word why"))),
                }
            }
            None => {
                let limit = self.limit.as_secs();
                Err(self
                    .failed(&format!("no end within {limit} s; it was killed with all that it had started")))
            }
        }
    }

    /// `<binary> <command>: <why>`.
    pub(super) fn failed(&self, why: &str) -> Error {
        Error::internal(format!("{} {}: {why}", self.runtime.path.display(), self.verb))
    }

    fn cannot_run(&self, error: &io::Error) -> Error {
        let path = self.runtime.path.display();
        let hint = "install it, or correct the handler's runtime_path in the configuration";
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                Error::state(format!("run {path}: {error}; hint: {hint}"))
            }
            _ => Error::io("run", path, error),
        }
    }

    /// The rest of the command line, behind the program's name.
    fn complete(&self, command: &mut Command) {
        command.args(&self.runtime.args).arg("--root").arg(self.root);
        command.arg("--log").arg(&self.log).args(["--log-format", "json"]);
        if self.systemd {
            command.arg("--systemd-cgroup");
        }
        command.arg(self.verb).args(&self.args);
        // Whatever it starts can be ended with it.
        command.process_group(0).env(orphans::MARK, self.dir);
        // One that is gone is no reason not to call: there is nothing to be found there then.
        command.current_dir(if self.dir.is_dir() { self.dir } else { Path::new("/") });
    }
}

fn or_null(stream: Option<OwnedFd>) -> process::Stdio {
    stream.map_or_else(process::Stdio::null, Into::into)
}

/// Until its end, or none if the time was up; and what it said. One that fails is ended with its whole process group.
pub(crate) fn watch(
    child: &mut Child,
    mut heard: Option<OwnedFd>,
    limit: Duration,
) -> io::Result<(Option<ExitStatus>, Vec<u8>)> {
    let group = Pid::from_child(child);
    let end = |child: &mut Child| {
        // Its number is nobody else's as long as it is not reaped.
        let _ = kill_process_group(group, Signal::KILL);
        child.wait()
    };
    let pidfd = match pidfd_open(group, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(error) => return end(child).and(Err(error.into())),
    };
    let (deadline, mut said) = (Instant::now() + limit, Vec::new());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return end(child).map(|_| (None, said));
        }
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        fds.extend(heard.as_ref().map(|heard| PollFd::new(heard, PollFlags::IN)));
        match poll(&mut fds, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return end(child).and(Err(error.into())),
        }
        let has_ended = !fds[0].revents().is_empty();
        if heard.as_ref().is_some_and(|heard| is_over(heard, &mut said)) {
            heard = None;
        }
        if has_ended {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            let status = waitid(WaitId::PidFd(pidfd.as_fd()), options)?;
            let well = status.is_some_and(|status| status.exit_status() == Some(0));
            // What a runtime leaves behind on purpose is its business, unless it failed.
            let status = if well { child.wait()? } else { end(child)? };
            return Ok((Some(status), said));
        }
    }
}

/// Reads what is there; true at the end. One that talks without end is heard in turns.
fn is_over(heard: &OwnedFd, said: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    for _ in 0..64 {
        match rustix::io::read(heard, &mut buffer) {
            Ok(0) => return true,
            Ok(count) => said.extend_from_slice(&buffer[..count.min(KEPT.saturating_sub(said.len()))]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return false,
            Err(_) => return true,
        }
    }
    false
}

/// What lies in a pipe that nobody reads yet.
fn peek(pipe: BorrowedFd<'_>) -> String {
    let mut ready = [PollFd::new(&pipe, PollFlags::IN)];
    let mut buffer = [0; SHOWN];
    match poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(1..) => match rustix::io::read(pipe, &mut buffer) {
            Ok(count) => shown(&String::from_utf8_lossy(&buffer[..count])),
            Err(_) => String::new(),
        },
        _ => String::new(),
    }
}

/// The last error of a log in JSON, or its last line.
fn words(log: &Path) -> Option<String> {
    let mut file = fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(io::SeekFrom::Start(length.saturating_sub(KEPT as u64))).ok()?;
    let mut bytes = Vec::new();
    // It may grow meanwhile: no more than is kept is read.
    file.take(KEPT as u64).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let message = |line: &str| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        let bad = matches!(entry["level"].as_str(), Some("error" | "fatal" | "panic"));
        Some((bad, entry["msg"].as_str()?.to_owned()))
    };
    let messages: Vec<_> = text.lines().filter_map(message).collect();
    let last = messages.iter().rev().find(|(bad, _)| *bad).or(messages.last());
    let words = last.map(|(_, words)| words.clone());
    words.or_else(|| text.lines().last().map(str::to_owned)).map(|words| shown(&words))
}

/// One line, not too long.
pub(crate) fn shown(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut text = lines.join("; ");
    if text.len() > SHOWN {
        let cut = (0..=SHOWN).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(dir: &Path, text: &str) -> Runtime {
        let path = dir.join("runtime");
        // By another process: one that a test beside forks now would hold a file that we write open (ETXTBSY).
        let mut writer = Command::new("sh");
        writer
            .args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .arg(text);
        assert!(writer.status().unwrap().success());
        Runtime { path, root: dir.into(), args: vec!["--some".into()], create_timeout: 1, standalone: false }
    }

    fn run(dir: &Path, runtime: &Runtime, limit: Duration) -> Result<String> {
        let call = Call {
            runtime,
            root: dir,
            dir,
            log: dir.join("x.log"),
            verb: "state",
            args: vec!["id".into()],
            limit,
            systemd: true,
        };
        call.run()
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn arguments_and_answer() {
        let dir = tempfile::tempdir().unwrap();
        let said = run(dir.path(), &script(dir.path(), "echo \"$@\""), LONG).unwrap();
        let root = dir.path().display();
        let wanted =
            format!("--some --root {root} --log {root}/x.log --log-format json --systemd-cgroup state id\n");
        assert_eq!(said, wanted);
    }

    #[test]
    fn failures_speak_the_runtimes_own_words() {
        let dir = tempfile::tempdir().unwrap();
        let logged = r#"printf '%s\n' '{"level":"error","msg":"no such thing"}' '{"level":"info","msg":"bye"}' > "$5"
            echo on stdout; exit 3"#;
        for (text, wanted) in [
            (logged, "state: exit status: 3: no such thing"),
            ("echo a; echo b >&2; exit 1", "state: exit status: 1: a; b"),
            ("exit 4", "state: exit status: 4, and not a word why"),
            ("kill -9 $$", "state: signal: 9 (SIGKILL), and not a word why"),
            ("echo garbage > \"$5\"; exit 1", "state: exit status: 1: garbage"),
        ] {
            let error = run(dir.path(), &script(dir.path(), text), LONG).unwrap_err().to_string();
            assert_eq!(error, format!("{}/runtime {wanted}", dir.path().display()));
        }
        let missing = Runtime { path: dir.path().join("absent"), ..script(dir.path(), "") };
        let error = run(dir.path(), &missing, LONG).unwrap_err();
        assert_eq!(error.code(), ttrpc::Code::FAILED_PRECONDITION);
        assert!(error.to_string().contains("absent: No such file"), "{error}");
    }

    #[test]
    fn one_that_hangs_is_ended_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let hang = script(dir.path(), "sleep 1000 & echo $! > child; yes");
        let start = Instant::now();
        let error = run(dir.path(), &hang, Duration::from_secs(1)).unwrap_err().to_string();
        assert!(error.contains("no end within 1 s"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10));
        let child: i32 = fs::read_to_string(dir.path().join("child")).unwrap().trim().parse().unwrap();
        let gone = || match fs::read_to_string(format!("/proc/{child}/stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        while !gone() {
            assert!(start.elapsed() < Duration::from_secs(10), "its child lives");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
