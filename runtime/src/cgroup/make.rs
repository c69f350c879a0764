//! Making a group with its limits, and changing them; both undo what they did when something fails.

use super::files::{read, write, write_if_there};
use super::layout::{Hierarchy, Layout};
use super::limits::{self, Setting};
use super::{devices, kill};
use crate::host::CgroupLayout;
use crate::sys::bpf;
use crate::{Error, Result, error::Kind};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Directories made so far; removed again, last first, unless kept.
#[derive(Debug, Default)]
struct Made {
    dirs: Vec<PathBuf>,
    keep: bool,
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.keep {
            for dir in self.dirs.iter().rev() {
                // Best effort: the error that brought us here is the one to report.
                let _ = std::fs::remove_dir(dir);
            }
        }
    }
}

/// Makes `path` in every hierarchy of `layout` and writes `resources`.
pub(crate) fn make(layout: &Layout, path: &str, resources: Option<&LinuxResources>) -> Result<()> {
    let mut made = Made::default();
    let settings = resources.map_or_else(|| Ok(Vec::new()), |r| settings(layout, r))?;
    for hierarchy in &layout.hierarchies {
        make_in(layout.kind, hierarchy, path, &mut made)?;
    }
    if let Some(unified) = layout.unified.as_ref().filter(|u| needs_unified(layout, u, &settings)) {
        make_in(CgroupLayout::V2, unified, path, &mut made)?;
    }
    for setting in &settings {
        apply(layout, path, setting)?;
    }
    if let Some(rules) = resources.and_then(|r| r.devices().as_deref()).filter(|r| !r.is_empty()) {
        restrict_devices(layout, path, rules)?;
    }
    made.keep = true;
    Ok(())
}

/// All-or-nothing change of a live group.
pub(crate) fn update(layout: &Layout, path: &str, resources: &LinuxResources) -> Result<()> {
    let mut settings = settings(layout, resources)?;
    keep_quota(layout, path, resources, &mut settings);
    raise_swap_first(layout, path, &mut settings);
    let mut undo: Vec<(PathBuf, String, String)> = Vec::new();
    for setting in &settings {
        let before =
            directory(layout, path, setting).and_then(|d| Some((d.clone(), read(&d, &setting.file).ok()?)));
        if let Err(error) = apply(layout, path, setting) {
            // Limits depend on each other (memory below memory+swap): a second pass restores what the first could not.
            for (dir, file, value) in undo.iter().rev().chain(&undo) {
                let _ = write(dir, file, value);
            }
            return Err(error);
        }
        undo.extend(before.map(|(dir, value)| (dir, setting.file.clone(), value)));
    }
    Ok(())
}

fn settings(layout: &Layout, resources: &LinuxResources) -> Result<Vec<Setting>> {
    match layout.kind {
        CgroupLayout::V1 => limits::v1(resources),
        CgroupLayout::V2 => limits::v2(resources),
    }
}

/// On a hybrid host some controllers live on the version 2 mount only (hugetlb here).
fn needs_unified(layout: &Layout, unified: &Hierarchy, settings: &[Setting]) -> bool {
    settings.iter().any(|s| layout.v1(s.controller).is_none() && unified.has(s.controller))
}

/// The group's directory in the hierarchy that has the setting's controller.
fn directory(layout: &Layout, path: &str, setting: &Setting) -> Option<PathBuf> {
    let hierarchy = match layout.kind {
        CgroupLayout::V2 => layout.hierarchies.first(),
        CgroupLayout::V1 => {
            layout.v1(setting.controller).or(layout.unified.as_ref().filter(|u| u.has(setting.controller)))
        }
    };
    hierarchy.map(|h| h.mount.join(path.trim_start_matches('/')))
}

fn apply(layout: &Layout, path: &str, setting: &Setting) -> Result<()> {
    let Some(dir) = directory(layout, path, setting) else {
        // "No huge pages" is true where there is no controller to grant any (CRI-RES-13).
        if setting.optional || (setting.controller == "hugetlb" && setting.value == "0") {
            return Ok(());
        }
        return Err(Error::new(Kind::Unsupported, format!("set {} = {}", setting.file, setting.value), path)
            .hint(format!("this host has no {} controller", setting.controller)));
    };
    let on_unified = layout.kind == CgroupLayout::V1 && layout.v1(setting.controller).is_none();
    let file = if on_unified { setting.file.replace("limit_in_bytes", "max") } else { setting.file.clone() };
    if setting.optional {
        return write_if_there(&dir, &file, &setting.value).map(drop);
    }
    write(&dir, &file, &setting.value).map_err(|e| {
        let missing_page_size = setting.controller == "hugetlb" && e.errno() == Some(libc::ENOENT);
        if missing_page_size {
            e.with_kind(Kind::Invalid).hint("this host has no huge pages of that size")
        } else {
            e
        }
    })
}

/// A new period without a quota keeps the quota that is set (CRI-RES-04).
fn keep_quota(layout: &Layout, path: &str, resources: &LinuxResources, settings: &mut [Setting]) {
    if resources.cpu().as_ref().is_none_or(|cpu| cpu.quota().is_some_and(|q| q != 0)) {
        return;
    }
    if let Some(setting) = settings.iter_mut().find(|s| s.file == "cpu.max")
        && let Some(text) = directory(layout, path, setting).and_then(|d| read(&d, "cpu.max").ok())
        && let (Some(quota), Some(period)) = (text.split(' ').next(), setting.value.split(' ').nth(1))
    {
        setting.value = format!("{quota} {period}");
    }
}

/// Version 1 refuses a memory limit above the present memory+swap limit: then the latter goes first.
fn raise_swap_first(layout: &Layout, path: &str, settings: &mut [Setting]) {
    let find = |s: &[Setting], file: &str| s.iter().position(|s| s.file == file);
    let memory = find(settings, "memory.limit_in_bytes");
    let swap = find(settings, "memory.memsw.limit_in_bytes");
    let (Some(memory), Some(swap)) = (memory, swap) else { return };
    let present = directory(layout, path, &settings[swap])
        .and_then(|d| read(&d, "memory.memsw.limit_in_bytes").ok()?.parse::<i64>().ok());
    let wanted = settings[memory].value.parse::<i64>().unwrap_or(0);
    if present.is_some_and(|present| wanted == -1 || wanted > present) {
        settings.swap(memory, swap);
    }
}

/// mkdir -p of `path` below the hierarchy, ready for processes.
fn make_in(kind: CgroupLayout, hierarchy: &Hierarchy, path: &str, made: &mut Made) -> Result<()> {
    let mut dir = hierarchy.mount.clone();
    let parts: Vec<_> = path.split('/').filter(|p| !p.is_empty()).collect();
    for (index, part) in parts.iter().enumerate() {
        if kind == CgroupLayout::V2 {
            enable_controllers(&dir)?;
        }
        dir.push(part);
        let leaf = index + 1 == parts.len();
        match std::fs::create_dir(&dir) {
            Ok(()) => made.dirs.push(dir.clone()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && !leaf => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => refuse_occupied(&dir)?,
            Err(e) => return Err(Error::sys("make cgroup", dir.display().to_string(), e)),
        }
        if kind == CgroupLayout::V1 && hierarchy.has("cpuset") {
            inherit_cpuset(&dir)?;
        }
    }
    Ok(())
}

/// An empty leaf from an interrupted attempt may be used again; one with processes belongs to somebody.
fn refuse_occupied(dir: &Path) -> Result<()> {
    let pids = kill::pids_below(dir);
    if pids.is_empty() {
        return Ok(());
    }
    Err(Error::new(Kind::Exists, "make cgroup", dir.display().to_string())
        .hint(format!("it exists and holds processes {pids:?}")))
}

/// Version 2: what the parent has, its children get. The root and groups without processes allow it.
fn enable_controllers(dir: &Path) -> Result<()> {
    let enabled = read(dir, "cgroup.subtree_control")?;
    for controller in read(dir, "cgroup.controllers")?.split_whitespace() {
        if enabled.split_whitespace().any(|e| e == controller) {
            continue;
        }
        write(dir, "cgroup.subtree_control", &format!("+{controller}")).map_err(|e| {
            e.hint("a group with processes of its own cannot have limited groups below it (cgroups(7), no internal processes)")
        })?;
    }
    Ok(())
}

/// Version 1: a group without cpus and memory nodes accepts no process.
fn inherit_cpuset(dir: &Path) -> Result<()> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read(dir, file)?.is_empty() {
            write(dir, file, &read(parent, file)?)?;
        }
    }
    Ok(())
}

fn restrict_devices(layout: &Layout, path: &str, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    if layout.kind == CgroupLayout::V1 {
        let Some(hierarchy) = layout.v1("devices") else {
            return Err(Error::new(Kind::Unsupported, "device rules", path)
                .hint("this host has no devices controller"));
        };
        let dir = hierarchy.mount.join(path.trim_start_matches('/'));
        return devices::v1_lines(rules).iter().try_for_each(|(file, line)| write(&dir, file, line));
    }
    let dir = layout.hierarchies[0].mount.join(path.trim_start_matches('/'));
    let attach = || {
        let group = std::fs::File::open(&dir)?;
        let program = bpf::load_device_program(&devices::program(rules))?;
        bpf::attach_device_program(group.as_fd(), program.as_fd())
    };
    attach().map_err(|e: io::Error| {
        Error::sys("attach device rules (bpf)", dir.display().to_string(), e)
            .hint("the kernel needs CONFIG_CGROUP_BPF, and this process CAP_BPF or CAP_SYS_ADMIN")
    })
}
