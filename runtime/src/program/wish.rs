//! What a caller may wish otherwise than a plan has it.

use super::{Program, text};
use crate::sys::step::Step;

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
        self
    }
}
