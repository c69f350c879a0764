//! What making a group does, in words: the same lines that a failed one quotes.

use super::apply::{self, Change};
use super::layout::{Hierarchy, Layout};
use super::{Cgroup, Name, devices};
use crate::Result;
use oci_spec::runtime::LinuxResources;

impl Cgroup {
    /// What [`Cgroup::create`] would do for a group that is not there yet, a line for each directory and each file, without
    /// doing it.
    ///
    /// # Errors
    /// As [`Cgroup::create`], as far as it is known beforehand.
    pub fn explain(path: &str, resources: Option<&LinuxResources>) -> Result<Vec<String>> {
        let name = Name::parse(path)?;
        let layout = Layout::get()?;
        let change = resources.map(|r| Change::plan(layout, r, None)).transpose()?.unwrap_or_default();
        let unified = resources.is_some_and(|r| apply::needs_unified(layout, r));
        let mut lines = Vec::new();
        if let Some(scope) = &name.scope {
            lines.push(format!("ask systemd to start {} in {}", scope.unit, scope.slice));
        }
        let path = name.dir;
        for hierarchy in
            layout.all().filter(|h| matches!(layout, Layout::V2(_)) || unified || !is_unified(layout, h))
        {
            lines.push(format!("make control group {}", hierarchy.dir(&path)));
            if hierarchy.has("cpuset") && !matches!(layout, Layout::V2(_)) {
                let inherited = ["cpuset.cpus", "cpuset.mems"].into_iter().filter(|file| !change.sets(file));
                lines.extend(
                    inherited
                        .map(|file| format!("copy {file} of the group above to {}", hierarchy.dir(&path))),
                );
            }
        }
        for limit in &change.limits {
            let file = format!("{}/{}", apply::place(layout, &path, limit)?, limit.file);
            lines.push(write(&limit.value, &file));
        }
        if let Some(rules) = &change.devices {
            lines.extend(device_lines(layout, &path, rules)?);
        }
        Ok(lines)
    }
}

/// The sentence of one value for one control file.
pub(super) fn write(value: &str, file: &str) -> String {
    format!("write {value} to {file}")
}

fn is_unified(layout: &Layout, hierarchy: &Hierarchy) -> bool {
    matches!(layout, Layout::V1 { unified: Some(unified), .. } if unified == hierarchy)
}

fn device_lines(layout: &Layout, path: &str, rules: &[devices::Rule]) -> Result<Vec<String>> {
    match (layout, layout.v1("devices")) {
        (Layout::V2(_), _) if devices::allows_everything(rules) => Ok(Vec::new()),
        (Layout::V2(unified), _) => {
            Ok(vec![format!("attach a program of {} device rules to {}", rules.len(), unified.dir(path))])
        }
        (_, None) => Ok(Vec::new()),
        (_, Some(hierarchy)) => {
            let file = |name: &str| format!("{}/{name}", hierarchy.dir(path));
            let writes = devices::writes_v1(rules)?;
            Ok(writes.iter().map(|(name, value)| write(value, &file(name))).collect())
        }
    }
}
