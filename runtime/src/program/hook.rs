//! Programs that run a hook: much like exec, but as root, with the runtime's own rights, and often on the host's tree.

use super::{Builder, INSIDE, PidNamespace, Prepare, Program, text};
use crate::Result;
use crate::idmap::Setgroups;
use crate::namespace::NamespaceKind;
use crate::plan::{HookPlan, UserPlan};
use crate::sys::step::{Handle, Step, StringTable};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whose namespaces a hook sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPlace<'a> {
    /// Those of this process.
    Runtime,
    /// Those of the process behind [`Prepare::Target`], with the root directory of its mount namespace.
    /// `user`: its user namespace, if that is not ours. Then the hook has the rights of that namespace's root and no more:
    /// whoever may ask for a container with one must not get the host's root by a hook.
    Container { user: Option<&'a UserPlan> },
}

impl Program {
    /// The program of a hook that is not the container's own: it may do what this process may do, or all that may be done
    /// in the container's user namespace.
    pub fn hook(hook: &HookPlan, place: HookPlace<'_>, cwd: &Path) -> Result<Self> {
        let mut builder = Builder::default();
        builder.push(Step::CloseForeign);
        builder.push(Step::ResetSignals);
        builder.push(Step::NewSession);
        let cwd = CString::new(cwd.as_os_str().as_bytes()).unwrap_or_else(|_| text("/"));
        let pid_namespace = match place {
            HookPlace::Runtime => PidNamespace::Inherited,
            HookPlace::Container { user } => {
                let target = builder.handle(Prepare::Target);
                match user {
                    Some(user) => builder.hook_in_user_namespace(target, user, &cwd),
                    None => {
                        builder.join_process(target);
                        PidNamespace::OfProcess(target)
                    }
                }
            }
        };
        // In a user namespace its root may not be able to search the way, and is there already.
        let cwd = if matches!(place, HookPlace::Container { user: Some(_) }) { text(".") } else { cwd };
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
        Ok(builder.program(0, pid_namespace))
    }
}

impl Builder {
    /// The working directory is taken with the host's rights: joining a mount namespace leads to its root.
    fn hook_in_user_namespace(&mut self, target: Handle, user: &UserPlan, cwd: &CString) -> PidNamespace {
        let (root, groups) = (user.host_root().0, user.setgroups == Setgroups::Allow);
        let (user_kind, pid_kind) = (NamespaceKind::User.clone_flag(), NamespaceKind::Pid.clone_flag());
        self.push(Step::GiveStreams { uid: root });
        let pid_namespace = if user.ordinary {
            self.push(Step::JoinProcess {
                pidfd: target,
                kinds: (INSIDE | pid_kind) & !user.shared | user_kind,
            });
            self.again(Vec::new());
            self.push(Step::ChangeDirectory(cwd.clone()));
            PidNamespace::Inherited
        } else {
            self.join_process(target);
            self.push(Step::ChangeDirectory(cwd.clone()));
            self.push(Step::JoinProcess { pidfd: target, kinds: user_kind });
            PidNamespace::OfProcess(target)
        };
        self.push(Step::BecomeNamespaceRoot { groups });
        pid_namespace
    }
}
