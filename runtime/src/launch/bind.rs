//! Bind mounts as detached trees: copied, kept apart from the host, id-mapped, with their attributes.

use super::prepare::c_path;
use crate::error::Kind;
use crate::idmap::{self, IdMappings, Setgroups};
use crate::plan::{BindPlan, IdmapPlan};
use crate::sys::mount;
use crate::sys::raw::MountAttr;
use crate::{Error, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// The user namespaces of this launch by their maps: a pod's volumes mostly share one.
#[derive(Debug, Default)]
pub(super) struct Maps(Vec<(IdMappings, OwnedFd)>);

impl Maps {
    /// Remembers a namespace that has these maps.
    pub(super) fn know(&mut self, mappings: &IdMappings, user: &OwnedFd) -> Result<()> {
        let copy = user.try_clone().map_err(|e| Error::sys("prepare a descriptor", "fcntl", e))?;
        self.0.push((mappings.clone(), copy));
        Ok(())
    }

    fn get(&mut self, mappings: &IdMappings) -> Result<&OwnedFd> {
        let at = match self.0.iter().position(|(known, _)| known == mappings) {
            Some(at) => at,
            None => {
                self.0.push((mappings.clone(), idmap::user_namespace(mappings, Setgroups::Allow)?));
                self.0.len() - 1
            }
        };
        Ok(&self.0[at].1)
    }
}

pub(super) fn tree(plan: &BindPlan, maps: &mut Maps) -> Result<OwnedFd> {
    let shown = || plan.source.display().to_string();
    let source = c_path(&plan.source)?;
    let tree = mount::clone_path(&source, plan.recursive).map_err(|e| {
        let missing = e.raw_os_error() == Some(libc::ENOENT);
        let error = Error::sys("prepare a bind mount", shown(), e);
        if missing { error.hint("the source must exist on the host") } else { error }
    })?;
    if plan.procfs && !mount::is_procfs(&tree).unwrap_or(false) {
        let what = format!("{} is not procfs", shown());
        return Err(Error::new(Kind::Invalid, "prepare a bind mount on /proc", what));
    }
    let attribute = |recursive, attr: &MountAttr| {
        if *attr == MountAttr::default() {
            return Ok(());
        }
        mount::set_attributes(&tree, recursive, attr)
            .map_err(|e| Error::sys("set mount attributes", shown(), e))
    };
    // Apart from the host first; then what was asked.
    let (kind, recursive) = plan.propagation.unwrap_or((libc::MS_PRIVATE, true));
    attribute(recursive, &MountAttr { propagation: kind, ..MountAttr::default() })?;
    if let Some(asked) = &plan.idmap {
        map_ids(&tree, &plan.source, asked, maps)?;
    }
    attribute(false, &plan.attributes)?;
    attribute(true, &plan.recursive_attributes)?;
    Ok(tree)
}

fn map_ids(tree: impl AsFd, source: &Path, asked: &IdmapPlan, maps: &mut Maps) -> Result<()> {
    let user = maps.get(&asked.mappings)?;
    mount::map_ids(tree, asked.recursive, user).map_err(|e| {
        let below = if asked.recursive { ", or one mounted below it," } else { "" };
        let (kind, hint) = match e.raw_os_error() {
            Some(libc::EINVAL) => (
                Kind::Unsupported,
                format!("its file system{below} cannot be id-mapped (ext4, xfs, btrfs, and from Linux 6.3 tmpfs can): use another one, or no user namespace"),
            ),
            Some(libc::EPERM) => (Kind::Unsupported, format!("it{below} is id-mapped already")),
            _ => (Kind::Kernel, "see mount_setattr(2), \"ID-mapped mounts\"".to_owned()),
        };
        Error::sys("map the ids of a bind mount", source.display().to_string(), e).with_kind(kind).hint(hint)
    })
}
