//! Runs a [`Program`]: prepares its descriptors, makes the one clone3, and turns the child's 8 bytes into a sentence.
//!
//! Owns everything it makes until it answers; on error the child is dead and reaped and every descriptor closed, and with
//! them every mount and namespace that only they held.

mod bind;
mod device;
mod filesystem;
mod listener;
mod prepare;
mod stdio;

pub use prepare::REAPER;
pub use stdio::Stdio;

use crate::cgroup::Join;
use crate::error::Kind;
use crate::program::{EXECUTE, FIND_COMMAND, JOIN_PROCESS, PidNamespace, Program, scheduling_sentence};
use crate::seccomp::Filter;
use crate::sys::child::{LISTENER, MET, PARKED, REBORN, Report, Script, TERMINAL};
use crate::sys::clone::{Born, spawn};
use crate::sys::socket::{self, Message};
use crate::sys::step::Step;
use crate::sys::step_clock::StepClock;
use crate::sys::{namespace, process};
use crate::{Error, Result};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

/// What a program needs that is not data.
#[derive(Debug, Default)]
pub struct Launch<'a> {
    /// The root filesystem, when the caller has it already; for `Prepare::TargetRoot` the running container's.
    pub root: Option<OwnedFd>,
    /// The container's new user namespace, when the caller has it already.
    pub user: Option<OwnedFd>,
    /// For `Prepare::Given`.
    pub given: Vec<OwnedFd>,
    /// For `Prepare::Target`.
    pub target: Option<BorrowedFd<'a>>,
    pub stdio: Stdio,
    pub filter: Option<Filter>,
    pub join: Option<Join>,
    /// Where a parked child waits for its byte; none: at the socket that [`Launched`] holds.
    pub listener: Option<OwnedFd>,
    /// Descriptors that the process keeps, by number; without close-on-exec.
    pub preserved: Vec<i32>,
    /// Columns and rows of the terminal.
    pub window: Option<(u16, u16)>,
    /// On which the child marks the end of each step.
    pub clock: Option<&'a StepClock>,
}

/// A child that is parked (the program has a `Park`), or has passed execve.
#[derive(Debug)]
pub struct Launched {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub socket: OwnedFd,
    pub pty: Option<OwnedFd>,
}

/// What a caller does while the child waits for it.
pub struct Attend<'a> {
    /// At the program's `Meet`, when its namespaces and mounts are there.
    pub meet: &'a mut dyn FnMut(&Born) -> Result<()>,
    /// When a filter with a listener is loaded, before the child's next call.
    pub listener: &'a mut dyn FnMut(&Born, &OwnedFd) -> Result<()>,
}

impl std::fmt::Debug for Attend<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Attend")
    }
}

/// Runs `program` up to its `Park`, or to execve if it has none. Nobody attends the child: it must not ask for it.
pub fn launch(program: &Program, launch: Launch<'_>) -> Result<Launched> {
    let alone = || Error::new(Kind::Invalid, "follow the launch", "nobody attends to the child");
    let attend = Attend { meet: &mut |_| Err(alone()), listener: &mut |_, _| Err(alone()) };
    launch_attended(program, launch, attend)
}

/// The same, attended.
pub fn launch_attended(program: &Program, launch: Launch<'_>, mut attend: Attend<'_>) -> Result<Launched> {
    let (window, clock) = (launch.window, launch.clock);
    let prepared = prepare::Prepared::new(program, launch)?;
    let (ours, theirs) = socket::pair().map_err(|e| Error::sys("make the launch socket", "socketpair", e))?;
    let theirs = process::raised(theirs).map_err(|e| Error::sys("make the launch socket", "fcntl", e))?;
    let mut born = clone_child(program, &prepared, &theirs, clock)?;
    drop((theirs, prepared));
    match follow(&ours, program, &mut born, &mut attend) {
        Ok(pty) => {
            if let (Some(pty), Some((columns, rows))) = (&pty, window) {
                // A terminal without its first size still works, and resizes later.
                let _ = process::set_window(pty, columns, rows);
            }
            Ok(Launched { pid: born.pid, pidfd: born.pidfd, socket: ours, pty })
        }
        Err(failure) => Err(fail(&born, failure)),
    }
}

/// Why a child did not get there.
enum Failure {
    Told(Error),
    /// The socket ended without a word.
    Silent,
}

/// Reads the child's messages until it is parked or gone through execve. `born` becomes the process that is so.
fn follow(
    socket: &OwnedFd,
    program: &Program,
    born: &mut Born,
    attend: &mut Attend<'_>,
) -> Result<Option<OwnedFd>, Failure> {
    let sentences = program.sentences();
    let parks = sentences.iter().any(|sentence| sentence == crate::program::PARK);
    let mut pty = None;
    loop {
        match socket::receive_from(socket, &born.pidfd)
            .map_err(|e| Failure::Told(Error::sys("follow the launch", "recvmsg", e)))?
        {
            Message::End if parks => return Err(Failure::Silent),
            Message::End => return Ok(pty),
            Message::Report(Report { step: PARKED, .. }, _) => return Ok(pty),
            Message::Report(Report { step: TERMINAL, .. }, master) => pty = master.into_iter().next(),
            Message::Report(Report { step: REBORN, errno: pid }, rights) => {
                // Our own child, which nobody else waits for: its number is its own.
                let pidfd = rights.into_iter().next().map_or_else(|| process::open(pid), Ok);
                let pidfd =
                    pidfd.map_err(|e| Failure::Told(Error::sys("follow the launch", "pidfd_open", e)))?;
                let former = std::mem::replace(born, Born { pid, pidfd });
                let _ = process::reap(&former.pidfd);
                for_the_reborn(program, born.pid).map_err(Failure::Told)?;
                socket::send_byte(socket).map_err(|_| Failure::Silent)?;
            }
            Message::Report(Report { step: LISTENER, .. }, rights) => {
                listener::take(socket, rights, &mut |listener| (attend.listener)(born, listener))?;
            }
            Message::Report(Report { step: MET, .. }, _) => {
                (attend.meet)(born).map_err(Failure::Told)?;
                // A child that is gone meanwhile shows at the next message.
                let _ = socket::send_byte(socket);
            }
            Message::Report(report, _) => return Err(Failure::Told(explain_report(report, &sentences))),
        }
    }
}

/// What the new process could not do for itself (see [`Step::Rebirth`]). It is our child: its pid is nobody else's.
fn for_the_reborn(program: &Program, pid: i32) -> Result<()> {
    for step in program.steps.iter().flat_map(|step| match step {
        Step::Rebirth { outside } => outside.as_slice(),
        _ => &[],
    }) {
        let done = match step {
            Step::Schedule(schedule) => process::schedule(pid, schedule),
            Step::IoPriority(word) => process::io_priority(pid, *word),
            _ => Ok(()),
        };
        done.map_err(|e| explain_failure("from outside", &scheduling_sentence(step), e))?;
    }
    Ok(())
}

impl Failure {
    fn into_error(self) -> Error {
        match self {
            Self::Told(error) => error,
            Self::Silent => Error::new(Kind::Kernel, "start", "the process ended without a word"),
        }
    }
}

fn fail(born: &Born, failure: Failure) -> Error {
    match failure {
        Failure::Told(error) => {
            process::end(&born.pidfd);
            error
        }
        Failure::Silent => {
            // The end of the socket is the end of the process: this does not wait for long.
            let status = process::reap(&born.pidfd).unwrap_or(0);
            let how = if status < 0 { format!("signal {}", -status) } else { format!("exit code {status}") };
            Error::new(Kind::Kernel, "set up the container", format!("its process ended early by {how}"))
                .hint("look for the OOM killer in the kernel log, or who killed it")
        }
    }
}

/// The failed step in words, with the errno's class and a hint.
pub fn explain_report(report: Report, sentences: &[String]) -> Error {
    let number = report.step as usize;
    let sentence = sentences.get(number).map_or("an unknown step", String::as_str);
    let step = format!("step {} of {}", number + 1, sentences.len());
    explain_failure(&step, sentence, io::Error::from_raw_os_error(report.errno))
}

fn explain_failure(step: &str, sentence: &str, source: io::Error) -> Error {
    let errno = source.raw_os_error().unwrap_or(0);
    let mut error = Error::sys(step, sentence, source);
    if let Some(kind) = kind_of(sentence, errno) {
        error = error.with_kind(kind);
    }
    match hint_for(sentence, errno) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn kind_of(sentence: &str, errno: i32) -> Option<Kind> {
    let command = sentence.starts_with(FIND_COMMAND) || sentence.starts_with(EXECUTE);
    match errno {
        libc::ENOENT if command => Some(Kind::NotFound),
        libc::EACCES | libc::ENOEXEC | libc::ENOTDIR | libc::ELOOP | libc::E2BIG | libc::EISDIR
            if command =>
        {
            Some(Kind::Invalid)
        }
        libc::EXDEV | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG | libc::EINVAL => Some(Kind::Invalid),
        libc::ENODEV => Some(Kind::Unsupported),
        libc::ESRCH if sentence.starts_with(JOIN_PROCESS) => Some(Kind::State),
        _ => None,
    }
}

fn hint_for(sentence: &str, errno: i32) -> Option<&'static str> {
    let is = |start: &str| sentence.starts_with(start);
    match errno {
        libc::ESRCH if is(JOIN_PROCESS) => Some("the container is not running"),
        libc::ENOENT if is(FIND_COMMAND) => {
            Some("no such command in the container: check the image and PATH")
        }
        libc::ENOENT if is(EXECUTE) => Some("the file is there, its interpreter or loader is not"),
        libc::EACCES if is(FIND_COMMAND) => Some("the file is not executable by this user"),
        libc::ENOEXEC if is(EXECUTE) => Some("not a program for this machine, or a script without #! line"),
        libc::EXDEV if is("place") || is("mount") => Some("the target leads into /proc"),
        libc::ENOTDIR if is("place") => {
            Some("a directory cannot be mounted on a file, nor a file on a directory")
        }
        libc::EROFS if is("place") || is("mount") || is("make") => {
            Some("the target is missing on a read-only file system")
        }
        libc::ENOENT | libc::ENOTDIR if is("hang") => {
            Some("hooks look for the root filesystem where root.path says: make that directory")
        }
        libc::EACCES if is("hang") => {
            Some("this user must be able to search every directory above root.path")
        }
        libc::ELOOP if is("mount proc") || is("mount sysfs") => {
            Some("it must be mounted on ordinary directory: the image has a symlink there")
        }
        libc::ENODEV if is("mount") => Some("this kernel does not have that file system"),
        libc::EACCES | libc::EOVERFLOW if is("place") || is("mount") || is("make") || is("link") => Some(
            "in a user namespace the root filesystem must belong to its users: files of ids outside the mapping are nobody's",
        ),
        libc::EPERM if is("mount") => Some(
            "in a user namespace proc, sysfs and mqueue need a pid, network and ipc namespace that belong to it, and an uncovered one on the host",
        ),
        libc::EINVAL if is("become") => Some("that id is outside the user namespace's mapping"),
        libc::EPERM if is("schedule") => {
            Some("needs CAP_SYS_NICE, and a share of real time in the control group (cpu.rt_runtime_us)")
        }
        libc::EBUSY if is("schedule") => Some("no CPU time is left for another deadline"),
        libc::EPERM if is("I/O priority") => Some("the real-time class needs CAP_SYS_ADMIN or CAP_SYS_NICE"),
        libc::EINVAL if is("run on") => Some("none of these CPUs is online and the container's"),
        libc::EINVAL if is("memory policy") => {
            Some("this host does not have these nodes, or not that policy")
        }
        libc::ENOSYS if is("memory policy") => Some("this kernel knows no memory nodes (CONFIG_NUMA)"),
        libc::EPERM if is("limit") => {
            Some("raising a hard limit needs CAP_SYS_RESOURCE, which this process lacks")
        }
        libc::ENOENT if is("write") => Some("this kernel does not have that setting"),
        libc::EINVAL if is("write") => Some("the kernel refused the value"),
        libc::ENOENT if is("verify directory") => {
            Some("the working directory is outside the root filesystem")
        }
        _ => None,
    }
}

/// The clone, on a throw-away thread when a pid namespace is to be joined or CPUs chosen: that changes the thread for good.
fn clone_child(
    program: &Program,
    prepared: &prepare::Prepared<'_>,
    socket: &OwnedFd,
    clock: Option<&StepClock>,
) -> Result<Born> {
    let stdio = prepared.stdio();
    let tasks = prepared.tasks();
    let socket = socket.as_raw_fd();
    let numbers: Vec<i32> = prepared.numbers().iter().map(|fd| fd.load(Relaxed)).collect();
    let group: Vec<i32> = prepared.cgroup().iter().map(AsRawFd::as_raw_fd).collect();
    let mut stay: Vec<i32> = prepared.preserved().to_vec();
    stay.extend([socket, prepared.listener()]);
    let mut keep: Vec<i32> = [&numbers, stdio.as_slice(), &tasks, &group, &stay].concat();
    for list in [&mut stay, &mut keep] {
        list.retain(|fd| *fd > 2);
        list.sort_unstable();
        list.dedup();
    }
    // Who is born twice enters its group the second time, so that there is one process in it, never two.
    let reborn = program.steps.iter().any(|step| matches!(step, Step::Rebirth { .. }));
    let script = Script {
        steps: &program.steps,
        descriptors: prepared.numbers(),
        socket,
        listener: prepared.listener(),
        stdio,
        tasks: &tasks,
        keep: &keep,
        cgroup: prepared.cgroup().filter(|_| reborn).map(|group| group.as_raw_fd()),
        stay: &stay,
        filter: prepared.filter(),
        filter_flags: prepared.filter_flags(),
        clock: clock.map_or(&[], StepClock::words),
        own_binary: process::own_binary()
            .map_err(|e| Error::sys("look at our own program", "/proc/self/exe", e))?,
    };
    let cgroup = prepared.cgroup().filter(|_| !reborn);
    let clone = || spawn(&script, program.new_namespaces, cgroup).map_err(clone_error);
    let pid = libc::CLONE_NEWPID as u32;
    let from = match program.pid_namespace {
        PidNamespace::Inherited if program.birth_cpus.is_none() => return clone(),
        PidNamespace::Inherited => None,
        PidNamespace::Joined(handle) | PidNamespace::OfProcess(handle) => Some(prepared.get(handle)?),
    };
    let born = namespace::on_own_thread("launch", || {
        if let Some(from) = from {
            let by_process = matches!(program.pid_namespace, PidNamespace::OfProcess(_));
            let joined = if by_process { namespace::join_pid_of(from) } else { namespace::join(from, pid) };
            joined.map_err(join_error)?;
        }
        if let Some(cpus) = &program.birth_cpus {
            process::run_on(cpus).map_err(affinity_error)?;
        }
        clone()
    });
    born.map_err(|e| Error::sys("clone the process", "thread", e))?
}

fn affinity_error(source: io::Error) -> Error {
    Error::sys("choose the first cpus", "process.execCPUAffinity.initial", source)
        .with_kind(Kind::Invalid)
        .hint("none of them is online, or this process may use none of them")
}

fn join_error(source: io::Error) -> Error {
    let errno = source.raw_os_error();
    let error = Error::sys("join the pid namespace", "setns", source);
    match errno {
        Some(libc::ESRCH) => error.with_kind(Kind::State).hint("the container is not running"),
        Some(libc::EINVAL | libc::EBADF) => error.with_kind(Kind::Invalid).hint("it is not a pid namespace"),
        _ => error,
    }
}

fn clone_error(source: io::Error) -> Error {
    let hint = match source.raw_os_error() {
        Some(libc::EAGAIN) => "a limit on processes is reached: pids cgroup, RLIMIT_NPROC or kernel.pid_max",
        Some(libc::ENOSPC) => "a limit on namespaces is reached: see /proc/sys/user",
        Some(libc::ENOMEM) => "the pid namespace has lost its first process, or memory is short",
        Some(libc::EBUSY) => "the control group is frozen, or holds only groups",
        _ => return Error::sys("clone the process", "clone3", source),
    };
    Error::sys("clone the process", "clone3", source).hint(hint)
}

/// Sends the byte to a parked child and waits for execve's fate; answers the listener of its filter, after `hand_over`
/// has seen it.
pub fn start(
    socket: impl AsFd,
    sentences: &[String],
    hand_over: &mut dyn FnMut(&OwnedFd) -> Result<()>,
) -> Result<Option<OwnedFd>> {
    socket::send_byte(&socket).map_err(|source| {
        Error::sys("start", "send the start byte", source)
            .with_kind(Kind::State)
            .hint("the container is not waiting: it was started before, or its process is gone")
    })?;
    let mut listener = None;
    loop {
        match socket::receive(&socket).map_err(|e| Error::sys("start", "recvmsg", e))? {
            Message::End => return Ok(listener),
            Message::Report(Report { step: LISTENER, .. }, rights) => {
                listener = listener::take(&socket, rights, hand_over).map_err(Failure::into_error)?;
            }
            Message::Report(report, _) => return Err(explain_report(report, sentences)),
        }
    }
}
