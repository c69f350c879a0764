//! Logging programs of the client, `binary://PATH?key=value…`: they read a container's output themselves
//! (SHIM-IO-05, SHIM-IO-06, SHIM-IO-07; containerd's core/runtime/v2/logging).
//!
//! ```text
//!  keeper ──spawn──▶ ourselves, action "logger" ──exec──▶ PATH key value …
//!           0,1,2 = stdout, stderr, ready          3,4,5 = stdout, stderr, ready
//! ```
//!
//! Descriptors of a given number cannot be handed over without unsafe code; a program of which nothing is open above 2
//! can move them there itself.

use crate::error::{Error, Result};
use crate::process::Process;
use crate::stdio::absolute;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{self, Stdio};
use std::time::Duration;

/// Of our own binary.
pub(crate) const ACTION: &str = "logger";
/// How long a program may take until it is ready.
const READY: Timespec = Timespec { tv_sec: 12, tv_nsec: 0 };
/// How long it may take to see the end of its input and go by itself.
const FAREWELL: Duration = Duration::from_secs(2);
/// Between SIGTERM and SIGKILL (SHIM-IO-07).
const GRACE: Duration = Duration::from_secs(12);

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    path: PathBuf,
    args: Vec<String>,
    /// `binary-v2`: it must say that it is ready; an end without a word is a failure.
    must_say_ready: bool,
}

impl Command {
    /// `rest` is what follows the scheme of `name`.
    pub(crate) fn parse(name: &str, rest: &str, must_say_ready: bool) -> Result<Self> {
        let rest = rest.trim_start_matches("//");
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = absolute(name, &decode(name, path)?)?;
        let mut args = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            args.push(decode(name, &key.replace('+', " "))?);
            args.push(decode(name, &value.replace('+', " "))?);
        }
        Ok(Self { path, args, must_say_ready })
    }
}

/// `%41` is `A` (RFC 3986).
fn decode(name: &str, text: &str) -> Result<String> {
    let bad = || Error::invalid(format!("standard stream {name}: bad % escape"));
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let code = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()).ok_or_else(bad)?;
            bytes.push(u8::from_str_radix(code, 16).map_err(|_| bad())?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

/// Whose output a program reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Logger<'a> {
    pub(crate) id: &'a str,
    pub(crate) namespace: &'a str,
}

impl Logger<'_> {
    /// Starts the program on the read ends of the pipes and waits until it is ready; its pidfd. Blocks.
    pub(crate) fn start(&self, command: &Command, out: OwnedFd, err: OwnedFd) -> Result<OwnedFd> {
        let shown = command.path.display();
        let fail = |e: std::io::Error| Error::io("start logging program", shown.to_string(), &e);
        let (ready, said) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
        let child = process::Command::new("/proc/self/exe")
            .arg(ACTION)
            .arg(&command.path)
            .args(&command.args)
            .env("CONTAINER_ID", self.id)
            .env("CONTAINER_NAMESPACE", self.namespace)
            .stdin(Stdio::from(out))
            .stdout(Stdio::from(err))
            .stderr(Stdio::from(said))
            .current_dir("/")
            .process_group(0)
            .spawn()
            .map_err(fail)?;
        // Our own child, not reaped: the number is still its own.
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| fail(e.into()))?;
        if let Err(why) = wait_ready(ready, command.must_say_ready) {
            Process::new(pid.as_raw_nonzero().get(), pidfd).kill_and_reap();
            return Err(Error::state(format!("logging program {shown} {why}")));
        }
        // Whatever becomes of the container: no zombie stays.
        let copy = pidfd.try_clone().map_err(fail)?;
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { Process::new(0, copy).reap_at_end().await });
        }
        Ok(pidfd)
    }
}

/// One byte, or with the old protocol the end, says ready. The end of a program that could not be run looks the same but
/// for a byte that says so.
fn wait_ready(ready: OwnedFd, must_say: bool) -> std::result::Result<(), String> {
    let mut fds = [PollFd::new(&ready, PollFlags::IN)];
    match poll(&mut fds, Some(&READY)) {
        Ok(0) => return Err(format!("is not ready after {} s", READY.tv_sec)),
        Ok(_) => {}
        Err(error) => return Err(format!("cannot be waited for: {error}")),
    }
    let mut said = Vec::new();
    let mut ready = File::from(ready);
    let mut byte = [0];
    match ready.read(&mut byte) {
        Ok(0) if must_say => Err("ended without a word".into()),
        Ok(0) => Ok(()),
        Ok(_) if byte == [FAILED] => {
            let _ = ready.read_to_end(&mut said);
            Err(format!("does not run: {}", String::from_utf8_lossy(&said)))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(format!("cannot be heard: {error}")),
    }
}

/// Before the reason why the program could not be run: no logger says "ready" by this byte.
const FAILED: u8 = 0xff;

/// The action: puts 0, 1 and 2 where the program wants them and becomes it. Returns only the error.
pub(crate) fn become_program(args: &[OsString]) -> std::io::Error {
    // Gone with execve; until then the way to say why there was none.
    let ready = match rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 6) {
        Ok(ready) => ready,
        Err(error) => return error.into(),
    };
    let error = match (args.split_first(), hand_over()) {
        (None, _) => std::io::Error::other("no program given"),
        (_, Err(error)) => error,
        (Some((program, args)), Ok(())) => process::Command::new(program).args(args).exec(),
    };
    let mut text = vec![FAILED];
    text.extend_from_slice(error.to_string().as_bytes());
    let _ = rustix::io::write(&ready, &text);
    error
}

fn hand_over() -> std::io::Result<()> {
    let copies = [
        fcntl(rustix::stdio::stdin(), FcntlArg::F_DUPFD(3)),
        fcntl(rustix::stdio::stdout(), FcntlArg::F_DUPFD(3)),
        fcntl(rustix::stdio::stderr(), FcntlArg::F_DUPFD(3)),
    ];
    for (copy, expected) in copies.into_iter().zip(3..) {
        if copy? != expected {
            return Err(std::io::Error::other("descriptors 3 to 5 are taken"));
        }
    }
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// At the end of what it listened to: waits until the program has gone by itself, then tells it to.
pub(crate) async fn finish(logger: Option<OwnedFd>) {
    let Some(pidfd) = logger else { return };
    let process = Process::new(0, pidfd);
    if tokio::time::timeout(FAREWELL, process.reap_at_end()).await.is_ok() {
        return;
    }
    let _ = process.signal(15);
    tokio::spawn(async move {
        if tokio::time::timeout(GRACE, process.reap_at_end()).await.is_err() {
            let _ = process.signal(9);
            process.reap_at_end().await;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        // SHIM-IO-05, SHIM-IO-06
        let of = |name: &str| {
            let (scheme, rest) = name.split_once(':').unwrap();
            Command::parse(name, rest, scheme == "binary-v2")
        };
        let command = of("binary:///bin/my%20log?a=1&b=x+y%2Fz&flag").unwrap();
        assert_eq!(command.path, PathBuf::from("/bin/my log"));
        assert_eq!(command.args, ["a", "1", "b", "x y/z", "flag", ""]);
        assert!(!command.must_say_ready && of("binary-v2:///l").unwrap().must_say_ready);
        for bad in ["binary://l", "binary:///l?a=%4", "binary:///l?a=%ff"] {
            assert_eq!(of(bad).unwrap_err().code(), ttrpc::Code::INVALID_ARGUMENT, "{bad}");
        }
    }
}
