//! The control group of a container, and doing without.

use super::resources;
use crate::cgroup::Cgroup;
use crate::plan::Plan;
use crate::{Error, Result};
use oci_spec::runtime::{LinuxResources, Spec};

/// Makes it; `may_miss`: where that is not allowed to this user, a container that asks for nothing has none, as with runc.
pub(super) fn make(plan: &Plan, spec: &Spec, may_miss: bool) -> Result<Cgroup> {
    match Cgroup::create(&plan.cgroup_path, resources(spec).as_ref()) {
        Err(error) if may_miss && is_forbidden(&error) => match asked(spec) {
            None => Ok(Cgroup::none()),
            Some(field) => Err(error.hint(format!(
                "this user may not make control groups there: leave out {field}, or have a group delegated (cgroups(7)) and \
                 name one below it"
            ))),
        },
        made => made,
    }
}

fn is_forbidden(error: &Error) -> bool {
    matches!(error.errno(), Some(libc::EACCES | libc::EPERM | libc::EROFS))
}

/// What of the spec cannot be had without a group. Device rules can: who may not make groups may not make devices either.
fn asked(spec: &Spec) -> Option<&'static str> {
    let linux = spec.linux().as_ref()?;
    if linux.cgroups_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty()) {
        return Some("linux.cgroupsPath");
    }
    let limits = linux.resources().clone().map(|mut resources| {
        resources.set_devices(None);
        resources
    });
    limits.is_some_and(|limits| limits != LinuxResources::default()).then_some("linux.resources")
}
