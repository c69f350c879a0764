//! What belongs to a container's life beside its process: hooks before the start, after it, and after the deletion.
//!
//! ```text
//!  create: prestart, createRuntime, createContainer   a failure undoes the creation and ends with poststop
//!  start:  startContainer, <execve>, poststart        a failure kills the container; its holder deletes it
//!  delete: …, poststop                                failures are warnings
//! ```

use super::{StartPipe, agent, filter, home, rdt, root, start_at, user};
use crate::cgroup::Cgroup;
use crate::hooks::{self, Inside, Session, Subject};
use crate::host::Host;
use crate::plan::{self, HookPlans, Moment, UserPlan};
use crate::program::Joined;
use crate::sys::process;
use crate::{Error, Result};
use oci_spec::runtime::{ContainerState, Spec};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// A created container that is to be started.
#[derive(Debug)]
pub struct StartRequest<'a> {
    pub subject: Subject<'a>,
    pub pid: i32,
    pub pidfd: &'a OwnedFd,
    pub cgroup: &'a Cgroup,
    pub parked: Parked<'a>,
}

/// Where a created child waits.
#[derive(Debug, Clone, Copy)]
pub enum Parked<'a> {
    Pipe(&'a StartPipe),
    /// On a listening socket at this path; sentences as in [`StartPipe::steps`].
    Listening(&'a Path, &'a [String]),
}

impl Parked<'_> {
    fn start(&self, hand_over: &mut dyn FnMut(&OwnedFd) -> Result<()>) -> Result<Option<OwnedFd>> {
        match self {
            Self::Pipe(pipe) => pipe.start_with(hand_over),
            Self::Listening(path, steps) => start_at(path, steps, hand_over),
        }
    }
}

/// What a start leaves in the caller's hands.
#[derive(Debug, Default)]
pub struct Started {
    /// The listener of a seccomp profile with SCMP_ACT_NOTIFY; its agent has a copy.
    pub listener: Option<OwnedFd>,
}

/// Whether a spec asks for more after the creation than its process: hooks, a seccomp agent, or a class of caches.
/// Without it a start needs no spec, and a deletion neither.
pub fn is_attended(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let seccomp = linux.and_then(|linux| linux.seccomp().as_ref());
    let classed = linux.is_some_and(|linux| linux.intel_rdt().is_some());
    spec.hooks().is_some() || classed || seccomp.is_some_and(|profile| profile.listener_path().is_some())
}

/// Starts a container with all that belongs to it: startContainer hooks, the command, poststart hooks.
///
/// # Errors
/// The failed hook, or what [`StartPipe::start`] says. The container is dead or dying then: its holder reaps it, removes
/// it and calls [`after_delete`].
pub fn start(request: &StartRequest<'_>) -> Result<Started> {
    let hooks = HookPlans::new(request.subject.spec)?;
    let (subject, pid) = (&request.subject, request.pid);
    let mut hand_over =
        |listener: &OwnedFd| agent::hand_over(subject, ContainerState::Created, pid, pid, listener);
    let started =
        before(request, &hooks).and_then(|()| request.parked.start(&mut hand_over)).and_then(|listener| {
            let state = subject.state(ContainerState::Running, Some(pid));
            hooks::run_outside(&hooks, Moment::Poststart, &state, subject.bundle)?;
            Ok(Started { listener })
        });
    if started.is_err() {
        process::kill(request.pidfd);
    }
    started
}

fn before(request: &StartRequest<'_>, hooks: &HookPlans) -> Result<()> {
    let spec = request.subject.spec;
    let (Some(process), false) = (spec.process(), hooks.at(Moment::StartContainer).is_empty()) else {
        return Ok(());
    };
    let home = home::find_in_process(request.pid, process);
    let host = Host::current();
    let user = user::of_running(spec, host, request.pid)?;
    let plan = plan::exec(process, spec, host, home.as_deref(), user.as_ref())?;
    let inside = Inside { pid: request.pid, pidfd: request.pidfd.as_fd() };
    let root = root::of_running(spec, request.pid, request.pidfd)?;
    let time = user::differs(request.pid, "time");
    let joined = Joined { user: user.as_ref(), time, root: root.is_some() };
    let session = Session { inside, process: &plan, joined, root, filter: filter(spec)? };
    let state = request.subject.state(ContainerState::Created, Some(inside.own_pid()));
    let mut hand_over = |pid: i32, listener: &OwnedFd| {
        agent::hand_over(&request.subject, ContainerState::Created, request.pid, pid, listener)
    };
    hooks::run_inside(hooks, &state, &session, || request.cgroup.join(), &mut hand_over)
}

/// Runs the hooks that see a container being made: in our namespaces first, then in its own.
pub(super) fn during_creation(
    hooks: &HookPlans,
    subject: &Subject<'_>,
    inside: Inside<'_>,
    user: Option<&UserPlan>,
    root: &Path,
) -> Result<()> {
    outside(hooks, subject, inside.pid)?;
    let state = subject.state(ContainerState::Creating, Some(inside.own_pid()));
    hooks::run_in_creation(hooks, &state, inside, user, root)
}

/// Runs the hooks that a restored container has: those of our own namespaces, once its namespaces are there again.
pub fn during_restore(subject: &Subject<'_>, pid: i32) -> Result<()> {
    outside(&HookPlans::new(subject.spec)?, subject, pid)
}

fn outside(hooks: &HookPlans, subject: &Subject<'_>, pid: i32) -> Result<()> {
    let state = subject.state(ContainerState::Creating, Some(pid));
    for moment in [Moment::Prestart, Moment::CreateRuntime] {
        hooks::run_outside(hooks, moment, &state, subject.bundle)?;
    }
    Ok(())
}

/// What comes after a container's process, control group and mounts are gone, before its deletion is told: the end of its
/// class of caches, and the poststop hooks. All of it is tried; what failed is answered, for a warning.
pub fn after_delete(subject: &Subject<'_>) -> Vec<Error> {
    let linux = subject.spec.linux().as_ref();
    let class = linux.map_or(Ok(None), |linux| plan::rdt(subject.id, linux, Host::current()));
    let class = class.and_then(|class| class.iter().try_for_each(rdt::remove));
    let hooks = HookPlans::new(subject.spec).map(|hooks| {
        let state = subject.state(ContainerState::Stopped, None);
        hooks::run_all_outside(&hooks, Moment::Poststop, &state, subject.bundle)
    });
    class.err().into_iter().chain(hooks.unwrap_or_else(|error| vec![error])).collect()
}
