//! The one extra clone (DESIGN 1A): a process that joined a user namespace gets a PID namespace only for its children.
//!
//! ```text
//!  launcher ──clone3──▶ A: joins, unshares ──clone3(CLONE_PARENT)──▶ B: goes on with the steps
//!     ▲                 └─ REBORN, pid, pidfd ─┐ and is gone                ▲
//!     └────────────────────────────────────────┘ ──────── one byte ─────────┘
//! ```
//!
//! B is a child of the launcher, as A was: whoever waits for containers notices nothing.

use super::child::{ABSENT, Child, REBORN, Report, exit};
use super::clone::{CLONE_INTO_CGROUP, CLONE_PIDFD, CloneArgs};
use super::raw::{Raw, call};

impl Child<'_> {
    /// Comes back in B only, and only once the launcher has B's descriptor.
    pub(super) fn rebirth(&self) -> Raw<()> {
        let mut pidfd = ABSENT;
        let mut args = CloneArgs {
            // With CLONE_PARENT the signal at the end is the caller's own.
            flags: libc::CLONE_PARENT as u64 | CLONE_PIDFD,
            pidfd: &raw mut pidfd as u64,
            ..CloneArgs::default()
        };
        if let Some(cgroup) = self.script.cgroup {
            // Allowed as long as our ids are still the launcher's: they own the group, whatever namespace we are in.
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup as u64;
        }
        match call(libc::SYS_clone3, [&raw const args as usize, size_of::<CloneArgs>(), 0, 0, 0, 0])? {
            0 => {
                self.wait_for_byte();
                Ok(())
            }
            pid => {
                // The launcher must hear of its new child, or nobody would ever wait for it.
                let born = Report { step: REBORN, errno: pid as i32 };
                if self.send(born, Some(pidfd)).is_err() {
                    let _ = self.send(born, None);
                }
                exit()
            }
        }
    }
}
