//! Brings planned limits into control files: plainly for a new group, and all or nothing for a live one.

use super::check::check;
use super::devices::{self, Rule};
use super::files::{self, Refused, absent};
use super::layout::Layout;
use super::limits::{Limit, Limits, Now, UNLIMITED, hugetlb_v2, wants_hugetlb};
use super::{v1, v2};
use crate::error::Kind;
use crate::{Error, Result};
use oci_spec::runtime::LinuxResources;

/// Everything that one request changes.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) limits: Vec<Limit>,
    /// None when the request says nothing of devices.
    pub(super) devices: Option<Vec<Rule>>,
}

impl Change {
    /// Plans `r` for this host; refuses it before anything is touched. `now` is given for a live group.
    pub(super) fn plan(layout: &Layout, r: &LinuxResources, now: Option<&Now>) -> Result<Self> {
        check(r)?;
        let mut limits = match layout {
            Layout::V2(_) => v2::limits(r, now)?,
            Layout::V1 { .. } => {
                let mut limits = v1::limits(r, now)?;
                limits.extend(hugetlb(layout, r));
                limits
            }
        };
        if !offers_hugetlb(layout) {
            // "No huge pages" is true where no controller hands any out (CRI-RES-13: kubelet says it of each size).
            limits.retain(|l| l.controller != "hugetlb" || l.value != "0");
        }
        let devices =
            r.devices().as_ref().filter(|d| !d.is_empty()).map(|d| devices::rules(d)).transpose()?;
        Ok(Self { limits, devices })
    }

    /// True if `file` will be written.
    pub(super) fn sets(&self, file: &str) -> bool {
        self.limits.iter().any(|l| l.file == file)
    }

    /// The controllers that something was asked of.
    pub(super) fn controllers(&self) -> Vec<String> {
        let mut names: Vec<String> = self.limits.iter().map(|l| l.controller.clone().into_owned()).collect();
        names.sort();
        names.dedup();
        names.retain(|c| c != "cgroup");
        names
    }
}

fn offers_hugetlb(layout: &Layout) -> bool {
    layout.all().any(|h| h.has("hugetlb"))
}

/// Version 1 files where version 1 has the controller; else those of the version 2 mount beside it.
fn hugetlb(layout: &Layout, r: &LinuxResources) -> Vec<Limit> {
    if layout.v1("hugetlb").is_some() {
        return v1::hugetlb(r);
    }
    let mut out = Limits::default();
    hugetlb_v2(&mut out, r);
    out.0
}

/// True if the group needs a directory on the version 2 mount of a hybrid host.
pub(super) fn needs_unified(layout: &Layout, r: &LinuxResources) -> bool {
    let offered = matches!(layout, Layout::V1 { unified: Some(u), .. } if u.has("hugetlb"));
    wants_hugetlb(r) && layout.v1("hugetlb").is_none() && offered
}

/// The directory in which a limit of `controller` is set for group `path`.
///
/// # Errors
/// `Unsupported` when no hierarchy of this host has the controller.
pub(super) fn place(layout: &Layout, path: &str, limit: &Limit) -> Result<String> {
    let controller = &*limit.controller;
    match layout {
        Layout::V2(unified) => Ok(unified.dir(path)),
        Layout::V1 { unified, .. } => {
            let beside = unified.as_ref().filter(|u| controller == "hugetlb" && u.has(controller));
            layout.v1(controller).or(beside).map(|h| h.dir(path)).ok_or_else(|| {
                Error::new(Kind::Unsupported, format!("set {controller} limit {:?}", limit.value), &*limit.file).hint(format!(
                    "no mounted hierarchy of this host has the {controller} controller; enable it or drop the limit"
                ))
            })
        }
    }
}

/// Writes one limit; false if its file is absent and may be.
fn write(dir: &str, limit: &Limit) -> Result<bool> {
    let path = format!("{dir}/{}", limit.file);
    match files::write(&path, &limit.value) {
        Ok(()) => Ok(true),
        Err(e) if limit.optional && absent(&e) => Ok(false),
        Err(e) => Err(Refused { controller: &limit.controller, path: &path, value: &limit.value }.because(e)),
    }
}

/// Sets everything on a group that holds nobody yet; the caller removes it if this fails.
pub(super) fn fresh(layout: &Layout, path: &str, change: &Change) -> Result<()> {
    for limit in &change.limits {
        write(&place(layout, path, limit)?, limit)?;
    }
    // A new group of version 2 has no program, which is the same as being allowed everything.
    let program = change
        .devices
        .as_deref()
        .filter(|rules| !(matches!(layout, Layout::V2(_)) && devices::allows_everything(rules)));
    program.map_or(Ok(()), |rules| set_devices(layout, path, rules))
}

/// Changes a live group; when a step fails, the values before it are put back, the last first (CRI-UPD-01).
pub(super) fn live(layout: &Layout, path: &str, change: &Change) -> Result<()> {
    let mut undo: Vec<(String, Limit)> = Vec::new();
    let mut step = |limit: &Limit| -> Result<()> {
        let dir = place(layout, path, limit)?;
        let former = former(&dir, limit)?;
        if write(&dir, limit)?
            && let Some(value) = former
        {
            undo.push((dir, Limit { value, ..limit.clone() }));
        }
        Ok(())
    };
    let done = change.limits.iter().try_for_each(&mut step);
    // Devices come last: their own change undoes itself by being one program, or by starting from the present list.
    let done = done
        .and_then(|()| change.devices.as_deref().map_or(Ok(()), |rules| set_devices(layout, path, rules)));
    done.map_err(|error| {
        let stuck: Vec<String> = undo
            .iter()
            .rev()
            .filter_map(|(dir, limit)| write(dir, limit).err().map(|_| format!("{}/{}", dir, limit.file)))
            .collect();
        if stuck.is_empty() {
            error
        } else {
            error.hint(format!("former values could not be put back: {stuck:?}"))
        }
    })
}

/// What to write so that `limit` is as if it had never been written. None if the file is absent (and may be).
fn former(dir: &str, limit: &Limit) -> Result<Option<String>> {
    let path = format!("{dir}/{}", limit.file);
    match files::read(&path) {
        Ok(text) => Ok(Some(former_value(&limit.file, &text, &limit.value))),
        Err(e) if limit.optional && absent(&e) => Ok(None),
        Err(e) => Err(Refused { controller: &limit.controller, path: &path, value: &limit.value }.because(e)),
    }
}

/// Most files hold one value; some have a line per device, and one of them a line for the default.
fn former_value(file: &str, text: &str, new: &str) -> String {
    if file == "memory.oom_control" {
        return files::keyed(text, "oom_kill_disable").unwrap_or(0).to_string();
    }
    let Some((key, setting)) = new.split_once(' ').filter(|(key, _)| *key == "default" || key.contains(':'))
    else {
        return text.trim().to_owned();
    };
    let line = text.lines().find(|line| line.split(' ').next() == Some(key));
    match (line, setting.split_once('=')) {
        (Some(line), _) => line.trim().to_owned(),
        (None, Some((name, _))) => format!("{key} {name}=max"),
        (None, None) if file.contains("weight") && !file.starts_with("blkio") => format!("{key} default"),
        (None, None) => format!("{key} 0"),
    }
}

fn set_devices(layout: &Layout, path: &str, rules: &[Rule]) -> Result<()> {
    match (layout, layout.v1("devices")) {
        (Layout::V2(unified), _) => devices::apply_v2(&unified.dir(path), rules),
        (_, Some(hierarchy)) => devices::apply_v1(&hierarchy.dir(path), rules),
        (_, None) if devices::allows_everything(rules) => Ok(()),
        (_, None) => Err(Error::new(Kind::Unsupported, "set device rules", path).hint(
            "the devices controller of version 1 is not mounted; without it a container could use any device",
        )),
    }
}

/// What the group has now, as far as a plan depends on it.
pub(super) fn now(layout: &Layout, path: &str) -> Now {
    let limit = |file: &str| {
        let dir = layout.v1("memory")?.dir(path);
        files::number(&format!("{dir}/{file}")).ok().flatten().filter(|n| *n < UNLIMITED)
    };
    let (memory, memsw) = (limit("memory.limit_in_bytes"), limit("memory.memsw.limit_in_bytes"));
    let quota = match layout {
        Layout::V2(unified) => files::read(&format!("{}/cpu.max", unified.dir(path))).ok(),
        Layout::V1 { .. } => None,
    };
    Now { memory, memsw, quota: quota.and_then(|q| q.split(' ').next().map(str::to_owned)) }
}

/// CRI-UPD-05: refuses a version 2 memory limit below what is in use, when the request wants that looked at; the kernel
/// would take it and call the OOM killer. Version 1 refuses by itself.
pub(super) fn check_usage(layout: &Layout, path: &str, r: &LinuxResources) -> Result<()> {
    let (Layout::V2(unified), Some(memory)) = (layout, r.memory()) else { return Ok(()) };
    let limit = memory.limit().and_then(|l| u64::try_from(l).ok()).filter(|l| *l > 0);
    let (Some(limit), Some(true)) = (limit, memory.check_before_update()) else { return Ok(()) };
    let file = format!("{}/memory.current", unified.dir(path));
    let used = files::number(&file).map_err(|e| Error::sys("read memory in use", &*file, e))?.unwrap_or(0);
    if used <= limit {
        return Ok(());
    }
    Err(Error::new(Kind::State, format!("set memory limit {limit}"), file)
        .hint(format!("{used} bytes are in use; a limit below would call the OOM killer")))
}

#[cfg(test)]
mod tests {
    use super::super::layout::Hierarchy;
    use super::*;

    /// CRI-RES-13, for a host that has huge pages (in sysfs) and lacks the controller.
    #[test]
    fn no_huge_pages_needs_no_controller() {
        let Some(size) = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten().next()
        else {
            return;
        };
        let kib = size
            .file_name()
            .to_string_lossy()
            .trim_matches(|c: char| !c.is_ascii_digit())
            .parse::<u64>()
            .unwrap();
        let size = if kib >= 1 << 20 { format!("{}GB", kib >> 20) } else { format!("{}MB", kib >> 10) };
        let plan = |limit: i64, controllers: &[&str]| {
            let limit = oci_spec::runtime::LinuxHugepageLimitBuilder::default()
                .page_size(&*size)
                .limit(limit)
                .build()
                .unwrap();
            let r = oci_spec::runtime::LinuxResourcesBuilder::default()
                .hugepage_limits(vec![limit])
                .build()
                .unwrap();
            let controllers = controllers.iter().map(|c| (*c).to_owned()).collect();
            let layout = Layout::V2(Hierarchy { mount: "/sys/fs/cgroup".into(), controllers });
            Change::plan(&layout, &r, None).unwrap().limits.len()
        };
        assert_eq!(plan(0, &["memory"]), 0);
        assert_eq!(plan(0, &["memory", "hugetlb"]), 2, "usage and reservations");
        assert_eq!(plan(2 << 30, &["memory"]), 2, "a real limit is not passed over");
    }

    #[test]
    fn former_values_are_found_by_device() {
        let io = "8:0 rbps=1 wbps=max riops=max wiops=max\n8:16 rbps=2 wbps=max riops=max wiops=max\n";
        assert_eq!(former_value("io.max", io, "8:16 rbps=9"), "8:16 rbps=2 wbps=max riops=max wiops=max");
        assert_eq!(former_value("io.max", io, "9:0 wiops=9"), "9:0 wiops=max");
        assert_eq!(former_value("blkio.throttle.read_bps_device", "8:0 5\n", "8:0 7"), "8:0 5");
        assert_eq!(former_value("blkio.throttle.read_bps_device", "", "8:0 7"), "8:0 0");
        assert_eq!(former_value("io.weight", "default 100\n8:0 50\n", "default 7"), "default 100");
        assert_eq!(former_value("io.weight", "default 100\n", "8:0 50"), "8:0 default");
        assert_eq!(former_value("cpu.max", "max 100000\n", "5 100000"), "max 100000");
        assert_eq!(former_value("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", "1"), "0");
    }
}
