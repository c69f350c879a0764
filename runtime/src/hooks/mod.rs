//! Running hooks: programs of others at fixed moments of a container's life, told its state on their standard input.
//!
//! Owns: one hook from its program to its exit code, within its time, with the end of what it wrote for the error.
//! Never decides what a failure means: that is the life of the container (`container::life`).
//!
//! A hook is launched like every other process here, by a [`Program`], so that one mechanism does all six kinds: in our
//! own namespaces, in those of a container that is still being made (by its pidfd), or as a session of the container.

mod watch;

use crate::cgroup::Join;
use crate::error::Kind;
use crate::launch::{self, Attend, Launch, Launched, Stdio};
use crate::plan::{HookPlan, HookPlans, Moment, ProcessPlan, UserPlan};
use crate::program::{HookPlace, Joined, Program};
use crate::seccomp::Filter;
use crate::sys::process;
use crate::{Error, Result};
use oci_spec::runtime::{ContainerState, Spec, State};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// Whose life it is: all that the state of a container says and that does not change.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    pub spec: &'a Spec,
}

impl Subject<'_> {
    /// The state of OCI's "State" section.
    pub fn state(&self, status: ContainerState, pid: Option<i32>) -> State {
        let mut state = State::default();
        state.set_version(self.spec.version().clone());
        state.set_id(self.id.to_owned());
        state.set_status(status);
        state.set_pid(pid);
        state.set_bundle(std::path::absolute(self.bundle).unwrap_or_else(|_| self.bundle.to_owned()));
        state.set_annotations(self.spec.annotations().clone());
        state
    }
}

/// A process whose namespaces hooks see: the container's first one, or its child that is still being made.
#[derive(Debug, Clone, Copy)]
pub struct Inside<'a> {
    pub pid: i32,
    pub pidfd: BorrowedFd<'a>,
}

impl Inside<'_> {
    /// The pid as the container's own pid namespace has it: what hooks inside are told.
    pub fn own_pid(&self) -> i32 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        line.split_whitespace().next_back().and_then(|pid| pid.parse().ok()).unwrap_or(self.pid)
    }
}

/// Runs the hooks of one moment in our own namespaces, in order; the first failure ends it.
pub fn run_outside(hooks: &HookPlans, moment: Moment, state: &State, bundle: &Path) -> Result<()> {
    for hook in hooks.at(moment) {
        let program = Program::hook(hook, HookPlace::Runtime, bundle)?;
        run_one(hook, moment, state, &program, Launch::default(), &mut no_listener)?;
    }
    Ok(())
}

/// The same, but all of them whatever happens; answers what failed.
pub fn run_all_outside(hooks: &HookPlans, moment: Moment, state: &State, bundle: &Path) -> Vec<Error> {
    let run = |hook| {
        let program = Program::hook(hook, HookPlace::Runtime, bundle)?;
        run_one(hook, moment, state, &program, Launch::default(), &mut no_listener)
    };
    hooks.at(moment).iter().filter_map(|hook| run(hook).err()).collect()
}

/// Runs the createContainer hooks: in the namespaces of a child that has not changed its root yet, in the directory
/// where the root filesystem hangs, as root of the container's user namespace if it has one. They are not in the container's control group: making is not charged to it.
pub fn run_in_creation(
    hooks: &HookPlans,
    state: &State,
    inside: Inside<'_>,
    user: Option<&UserPlan>,
    root: &Path,
) -> Result<()> {
    for hook in hooks.at(Moment::CreateContainer) {
        let program = Program::hook(hook, HookPlace::Container { user }, root)?;
        let launch = Launch { target: Some(inside.pidfd), ..Launch::default() };
        run_one(hook, Moment::CreateContainer, state, &program, launch, &mut no_listener)?;
    }
    Ok(())
}

/// What a hook inside a container shares with the container's command.
#[derive(Debug)]
pub struct Session<'a> {
    pub inside: Inside<'a>,
    /// Credentials, limits and rights: those of the command.
    pub process: &'a ProcessPlan,
    pub joined: Joined<'a>,
    /// The container's root directory, where it must be entered.
    pub root: Option<OwnedFd>,
    pub filter: Option<Filter>,
}

/// Runs the startContainer hooks: as the container's command would run, beside it; `join` enters its control group, and
/// `hand_over` gets the listener of the process's filter if it has one.
pub fn run_inside(
    hooks: &HookPlans,
    state: &State,
    session: &Session<'_>,
    join: impl Fn() -> Result<Join>,
    hand_over: &mut dyn FnMut(i32, &OwnedFd) -> Result<()>,
) -> Result<()> {
    for hook in hooks.at(Moment::StartContainer) {
        let process = ProcessPlan {
            terminal: false,
            args: hook.args.clone(),
            env: if hook.env.is_empty() { session.process.env.clone() } else { hook.env.clone() },
            candidates: vec![hook.path.clone()],
            ..session.process.clone()
        };
        let root = session.root.as_ref().map(OwnedFd::try_clone).transpose();
        let root = root.map_err(|e| Error::sys("prepare a descriptor", "fcntl F_DUPFD_CLOEXEC", e))?;
        let launch = Launch {
            target: Some(session.inside.pidfd),
            root,
            filter: session.filter.clone(),
            join: Some(join()?),
            ..Launch::default()
        };
        let program = Program::exec(&process, session.joined)?;
        run_one(hook, Moment::StartContainer, state, &program, launch, hand_over)?;
    }
    Ok(())
}

fn run_one(
    hook: &HookPlan,
    moment: Moment,
    state: &State,
    program: &Program,
    launch: Launch<'_>,
    hand_over: &mut dyn FnMut(i32, &OwnedFd) -> Result<()>,
) -> Result<()> {
    let step = || format!("run the {moment} hook");
    let shown = || hook.path.to_string_lossy().into_owned();
    let error = |e: std::io::Error| Error::sys(step(), shown(), e);
    let (output, write) = std::io::pipe().map_err(error)?;
    let errors = write.try_clone().map_err(error)?;
    let stdio = Stdio {
        stdin: Some(state_file(state).map_err(error)?),
        stdout: Some(write.into()),
        stderr: Some(errors.into()),
    };
    let attend =
        Attend { meet: &mut |_| Ok(()), listener: &mut |born, listener| hand_over(born.pid, listener) };
    let launched = launch::launch_attended(program, Launch { stdio, ..launch }, attend);
    let Launched { pid, pidfd, .. } = launched.map_err(|e| {
        let kind = e.kind();
        Error::new(kind, step(), format!("{}: {e}", shown()))
    })?;
    let end = watch::to_its_end(pid, &pidfd, output, hook.timeout).map_err(error)?;
    match end.complaint() {
        None => Ok(()),
        Some(complaint) => Err(Error::new(Kind::Kernel, step(), format!("{}: {complaint}", shown()))),
    }
}

/// Only a filter has a listener, and only what runs inside has a filter.
fn no_listener(_: i32, _: &OwnedFd) -> Result<()> {
    Ok(())
}

/// The state as a file in memory: a hook may read it or not, and nobody has to wait for it.
fn state_file(state: &State) -> std::io::Result<OwnedFd> {
    process::memory_file("slipway-state", &serde_json::to_vec(state)?)
}
