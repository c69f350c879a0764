//! What a caller may wish otherwise than a plan has it.

use super::{Prepare, Program, text};
use crate::sys::raw::MountAttr;
use crate::sys::step::{Handle, Step};
use std::ffi::CString;

impl Program {
    /// Enters the root without pivot_root(2): for hosts whose root is an initramfs. Who may call chroot(2) inside can leave
    /// it again, so it is for those only.
    #[must_use]
    pub fn without_pivot(mut self) -> Self {
        for step in &mut self.steps {
            match step {
                Step::EnterRoot(root) => *step = Step::MoveRoot(Some(*root)),
                Step::Pivot => *step = Step::MoveRoot(None),
                _ => {}
            }
        }
        self
    }

    /// Gives the process the session keyring of its container, by the name that runc gives it. Made with the rights of this
    /// process: a user's own quota of keys is small.
    #[must_use]
    pub fn with_keyring(mut self, id: &str) -> Self {
        let at = self.steps.iter().position(|step| *step == Step::NewSession).map_or(0, |at| at + 1);
        self.steps.insert(at, Step::SessionKeyring(text(&format!("_ses.{id}"))));
        // With SELinux the ring is the container's, not its runtime's: else nobody inside could use it. Ends with execve(2).
        let label = self.steps.iter().find_map(|step| match step {
            Step::WriteProc { path, value, .. } if path.as_c_str() == c"/proc/self/attr/exec" => {
                Some(value.clone())
            }
            _ => None,
        });
        if let Some(value) = label {
            let path = text("/proc/self/attr/keycreate");
            self.steps.insert(at, Step::WriteProc { path, value, forgive: libc::ENOENT });
        }
        self
    }

    /// Lets the container's table of mounts list them in the order of its specification, for who reads that from it. Since
    /// Linux 6.8 the table is sorted by when a mount came to be, not by when it was placed, and what the parent prepares
    /// comes first: a copy of the finished tree is made in the tree's own order. It costs a second change of root.
    #[must_use]
    pub fn in_order_of_the_spec(mut self) -> Self {
        let of_the_tree = |step: &Step| {
            matches!(
                step,
                Step::MountFresh { .. }
                    | Step::Place { .. }
                    | Step::Symlink { .. }
                    | Step::EnterRoot(_)
                    | Step::Pivot
            )
        };
        let Some(last) = self.steps.iter().rposition(of_the_tree) else { return self };
        self.prepare.push(Prepare::InChild { what: "the finished tree".to_owned() });
        let copy = Handle(self.prepare.len() - 1);
        // What is unbindable is not copied: it becomes so afterwards.
        let unbindable = self.take_unbindable();
        let later = unbindable.into_iter().map(|(path, recursive)| {
            let attr = MountAttr { propagation: libc::MS_UNBINDABLE, ..MountAttr::default() };
            Step::SetAttributes { path, recursive, attr }
        });
        let steps = [Step::CopyRoot { into: copy }, Step::EnterRoot(copy)].into_iter().chain(later);
        self.steps.splice(last + 1..last + 1, steps.collect::<Vec<_>>());
        self
    }

    /// Makes the mounts that are to be unbindable private; answers where they are, and whether it is for all below.
    fn take_unbindable(&mut self) -> Vec<(CString, bool)> {
        let mut found = Vec::new();
        for step in &mut self.steps {
            match step {
                Step::MountFresh { target, propagation: Some(attr), recursive, .. }
                    if attr.propagation == libc::MS_UNBINDABLE =>
                {
                    attr.propagation = libc::MS_PRIVATE;
                    found.push((target.path.clone(), *recursive));
                }
                Step::Place { from, target } => {
                    if let Some(propagation) = self.prepare.get_mut(from.0).and_then(Prepare::propagation)
                        && propagation.0 == libc::MS_UNBINDABLE
                    {
                        propagation.0 = libc::MS_PRIVATE;
                        found.push((target.path.clone(), propagation.1));
                    }
                }
                _ => {}
            }
        }
        found
    }
}

impl Prepare {
    /// What was asked for a mount that the parent makes.
    fn propagation(&mut self) -> Option<&mut crate::plan::Propagation> {
        match self {
            Self::Bind(plan) => plan.propagation.as_mut(),
            Self::FileSystem(plan) | Self::CopyUp { plan, .. } => plan.propagation.as_mut(),
            _ => None,
        }
    }
}
