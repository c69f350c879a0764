//! Classes of service for caches and memory bandwidth (config-linux.md, "IntelRdt"; the kernel's resctrl.rst).

use super::{invalid, unsupported};
use crate::Result;
use crate::host::Host;
use oci_spec::runtime::{Linux, LinuxIntelRdt};
use std::path::PathBuf;

const FIELD: &str = "linux.intelRdt";

/// What one container asks of the resctrl file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdtPlan {
    /// Directory of the class; that of the file system itself for the root class.
    pub class: PathBuf,
    /// closID named the class: it may be there before the container, and stays after it.
    pub named: bool,
    /// Lines for `schemata`; none: the class must be there already.
    pub schemata: Vec<String>,
    /// Its own group for counters below the class.
    pub monitor: Option<PathBuf>,
}

/// None where the spec asks for nothing.
pub(crate) fn plan(id: &str, linux: &Linux, host: &Host) -> Result<Option<RdtPlan>> {
    let Some(rdt) = linux.intel_rdt() else { return Ok(None) };
    let named = rdt.clos_id().as_deref().filter(|name| !name.is_empty());
    let name = named.unwrap_or(id);
    check_name(name, named.is_some())?;
    let schemata = schemata(rdt)?;
    let Some(mount) = &host.resctrl else {
        let hint = "leave it out, or run `mount -t resctrl resctrl /sys/fs/resctrl` where the processor has such classes \
                    (rdt_a in /proc/cpuinfo)";
        return Err(unsupported(FIELD, "this host has no resctrl file system").hint(hint));
    };
    let class = if name == "/" { mount.clone() } else { mount.join(name) };
    let monitor = rdt.enable_monitoring().unwrap_or(false).then(|| class.join("mon_groups").join(id));
    Ok(Some(RdtPlan { class, named: named.is_some(), schemata, monitor }))
}

/// A directory of the file system that is not one of the kernel's own.
fn check_name(name: &str, may_be_root: bool) -> Result<()> {
    let taken = [".", "..", "info", "mon_groups", "mon_data"].contains(&name);
    if name == "/" && may_be_root || !(taken || name.contains(['/', '\n', '\0']) || name.len() > 255) {
        return Ok(());
    }
    Err(invalid("linux.intelRdt.closID", format!("{name:?} is no name of a class"))
        .hint("a file name, or / for the root class"))
}

/// In the order of the specification: what `schemata` says comes last, and wins.
fn schemata(rdt: &LinuxIntelRdt) -> Result<Vec<String>> {
    let single = [("l3CacheSchema", rdt.l3_cache_schema()), ("memBwSchema", rdt.mem_bw_schema())];
    let single = single.into_iter().filter_map(|(field, line)| Some((field, line.as_ref()?)));
    let several = rdt.schemata().iter().flatten().map(|line| ("schemata", line));
    let mut lines = Vec::new();
    for (field, text) in single.chain(several) {
        // l3CacheSchema may have one line for code and one for data.
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if parse(line).is_none() {
                let field = format!("{FIELD}.{field}");
                return Err(invalid(&field, format!("{line:?} is no line of a schemata file"))
                    .hint("RESOURCE:ID=VALUE;ID=VALUE, as in L3:0=ff or MB:0=50"));
            }
            lines.push(line.to_owned());
        }
    }
    Ok(lines)
}

/// `L3:0=ff;1=0f` as its resource and what it gives of each.
pub(crate) fn parse(line: &str) -> Option<(&str, Vec<(u32, &str)>)> {
    let (resource, shares) = line.split_once(':')?;
    let share = |part: &'_ str| -> Option<(u32, usize)> {
        let (id, value) = part.split_once('=')?;
        (!value.trim().is_empty()).then_some(())?;
        Some((id.trim().parse().ok()?, id.len() + 1))
    };
    let shares = shares.split(';').map(|part| share(part).map(|(id, at)| (id, part[at..].trim())));
    (!resource.trim().is_empty()).then_some(())?;
    Some((resource.trim(), shares.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(rdt: &Value) -> Result<Option<RdtPlan>> {
        let linux: Linux = serde_json::from_value(json!({"intelRdt": rdt})).expect("types as in the spec");
        let host = Host { resctrl: Some("/sys/fs/resctrl".into()), ..Host::current().clone() };
        plan("one", &linux, &host)
    }

    #[test]
    fn a_class_is_the_containers_own_unless_it_is_named() {
        let own =
            of(&json!({"l3CacheSchema": "L3:0=ff;1=f", "memBwSchema": "MB:0=50", "enableMonitoring": true}));
        let expected = RdtPlan {
            class: "/sys/fs/resctrl/one".into(),
            named: false,
            schemata: vec!["L3:0=ff;1=f".to_owned(), "MB:0=50".to_owned()],
            monitor: Some("/sys/fs/resctrl/one/mon_groups/one".into()),
        };
        assert_eq!(own.ok().flatten(), Some(expected));
        let named = of(&json!({"closID": "gold"})).ok().flatten().expect("a plan");
        assert_eq!((named.class, named.named), ("/sys/fs/resctrl/gold".into(), true));
        let root = of(&json!({"closID": "/", "enableMonitoring": true})).ok().flatten().expect("a plan");
        assert_eq!(root.class, PathBuf::from("/sys/fs/resctrl"));
        assert_eq!(root.monitor, Some("/sys/fs/resctrl/mon_groups/one".into()));
    }

    #[test]
    fn what_is_no_class_and_no_schema_is_refused_by_field() {
        for (rdt, said) in [
            (json!({"closID": "../x"}), "linux.intelRdt.closID"),
            (json!({"closID": "info"}), "linux.intelRdt.closID"),
            (json!({"schemata": ["L3:0=ff", "MB"]}), "linux.intelRdt.schemata"),
            (json!({"memBwSchema": "MB:x=1"}), "linux.intelRdt.memBwSchema"),
            (json!({"l3CacheSchema": "L3:0="}), "linux.intelRdt.l3CacheSchema"),
        ] {
            let error = of(&rdt).expect_err("refused").to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
