//! Programs that run a hook: much like exec, but as root, with the runtime's own rights, and often on the host's tree.

use super::{Builder, PidNamespace, Prepare, Program, text};
use crate::Result;
use crate::plan::HookPlan;
use crate::sys::step::{Step, StringTable};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whose namespaces a hook sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPlace {
    /// Those of this process.
    Runtime,
    /// Those of the process behind [`Prepare::Target`], with the root directory of its mount namespace.
    Container,
}

impl Program {
    /// The program of a hook that is not the container's own: it may do what this process may do.
    pub fn hook(hook: &HookPlan, place: HookPlace, cwd: &Path) -> Result<Self> {
        let mut builder = Builder::default();
        builder.push(Step::CloseForeign);
        builder.push(Step::ResetSignals);
        builder.push(Step::NewSession);
        let pid_namespace = match place {
            HookPlace::Runtime => PidNamespace::Inherited,
            HookPlace::Container => {
                let target = builder.handle(Prepare::Target);
                builder.join_process(target);
                PidNamespace::OfProcess(target)
            }
        };
        let cwd = CString::new(cwd.as_os_str().as_bytes()).unwrap_or_else(|_| text("/"));
        let argv = StringTable::new(hook.args.clone());
        let env = StringTable::new(hook.env.clone());
        builder.steps.extend([
            Step::StandardStreams { uid: 0 },
            Step::CloseAll,
            Step::ChangeDirectory(cwd),
            Step::FileModeMask(0o022),
            Step::FindCommand { candidates: vec![hook.path.clone()] },
            Step::UnblockSignals,
            Step::Execute { argv, env },
        ]);
        Ok(Self {
            prepare: builder.prepare,
            new_namespaces: 0,
            pid_namespace,
            birth_cpus: None,
            steps: builder.steps,
        })
    }
}
