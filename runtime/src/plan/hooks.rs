//! Hooks of a spec, checked: what to run at which moment of a container's life.

use super::{invalid, process::strings};
use crate::Result;
use oci_spec::runtime::{Hook, Hooks, Spec};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// When a hook runs (OCI runtime specification, "POSIX-platform Hooks"), in the order of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Moment {
    /// Deprecated; the same moment as [`Moment::CreateRuntime`], before it.
    Prestart,
    /// Namespaces and mounts are there, the root has not changed; in the runtime's namespaces.
    CreateRuntime,
    /// The same, in the container's namespaces, with the runtime's file system tree.
    CreateContainer,
    /// Right before the container's command, inside the container.
    StartContainer,
    /// The command runs, `start` has not answered; in the runtime's namespaces.
    Poststart,
    /// The container is deleted, `delete` has not answered; in the runtime's namespaces.
    Poststop,
}

impl Moment {
    /// Every moment.
    pub const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];
}

impl std::fmt::Display for Moment {
    /// The key of `hooks` in config.json.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        })
    }
}

/// One program to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookPlan {
    pub path: CString,
    /// argv; the path alone when the spec has none.
    pub args: Vec<CString>,
    /// The whole environment.
    pub env: Vec<CString>,
    /// After which it is killed, and has failed.
    pub timeout: Option<Duration>,
}

/// All hooks of a container, each list in the order of the spec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HookPlans {
    lists: [Vec<HookPlan>; Moment::ALL.len()],
}

impl HookPlans {
    /// Checks the hooks of a spec; `Invalid` names the hook and what is wrong with it.
    pub fn new(spec: &Spec) -> Result<Self> {
        let Some(hooks) = spec.hooks() else { return Ok(Self::default()) };
        let mut plans = Self::default();
        for moment in Moment::ALL {
            let field = format!("hooks.{moment}");
            let list = listed(hooks, moment).iter();
            plans.lists[moment as usize] = list.map(|hook| plan(hook, &field)).collect::<Result<_>>()?;
        }
        Ok(plans)
    }

    pub fn at(&self, moment: Moment) -> &[HookPlan] {
        &self.lists[moment as usize]
    }

    /// Whether a hook wants to see the container between its mounts and its change of root.
    pub fn during_creation(&self) -> bool {
        [Moment::Prestart, Moment::CreateRuntime, Moment::CreateContainer]
            .iter()
            .any(|moment| !self.at(*moment).is_empty())
    }
}

fn listed(hooks: &Hooks, moment: Moment) -> &[Hook] {
    #[allow(deprecated, reason = "engines still write prestart hooks")]
    let list = match moment {
        Moment::Prestart => hooks.prestart(),
        Moment::CreateRuntime => hooks.create_runtime(),
        Moment::CreateContainer => hooks.create_container(),
        Moment::StartContainer => hooks.start_container(),
        Moment::Poststart => hooks.poststart(),
        Moment::Poststop => hooks.poststop(),
    };
    list.as_deref().unwrap_or_default()
}

fn plan(hook: &Hook, field: &str) -> Result<HookPlan> {
    let shown = hook.path().display();
    if !hook.path().is_absolute() {
        return Err(invalid(field, format!("path {shown:?} is not absolute")));
    }
    let path = CString::new(hook.path().as_os_str().as_bytes())
        .map_err(|_| invalid(field, "path contains a NUL byte"))?;
    let timeout = match hook.timeout() {
        None => None,
        Some(seconds) if seconds > 0 => Some(Duration::from_secs(seconds.unsigned_abs())),
        Some(seconds) => return Err(invalid(field, format!("{shown}: timeout {seconds} is not above zero"))),
    };
    let args = match hook.args().as_deref().unwrap_or_default() {
        [] => vec![path.clone()],
        args => strings(args, field)?,
    };
    Ok(HookPlan { path, args, env: strings(hook.env().as_deref().unwrap_or_default(), field)?, timeout })
}
