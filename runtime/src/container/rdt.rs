//! A container's place in the resctrl file system (resctrl.rst): its class is made or found, then its first process goes in
//! before it runs anything, so that all its children are born there.
//!
//! No machine of ours has such a processor: tests hold this against directories that look like the kernel's.

use crate::plan::{self, RdtPlan};
use crate::{Error, Result};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const STEP: &str = "assign a class of caches and bandwidth";

/// For plans that are printed.
pub(super) fn sentence(plan: &RdtPlan) -> String {
    let monitor = if plan.monitor.is_some() { ", counted by itself" } else { "" };
    let lines = plan.schemata.iter().map(|line| format!(", {line}"));
    format!("class {}{}{monitor}", plan.class.display(), lines.collect::<String>())
}

/// Directories that were made for a container; by the end of a failed creation they go.
#[derive(Debug, Default)]
pub(super) struct Assigned {
    made: Vec<PathBuf>,
}

impl Assigned {
    /// Puts the process `pid`, which has one thread, where the plan says.
    pub(super) fn assign(&mut self, plan: &RdtPlan, pid: i32) -> Result<()> {
        let fresh = self.make(&plan.class, plan.named)?;
        match (fresh, plan.schemata.is_empty()) {
            (true, true) if plan.named => {
                return Err(Error::sys(STEP, shown(&plan.class), io::Error::from_raw_os_error(libc::ENOENT))
                    .hint(
                        "make the class that linux.intelRdt.closID names first, or say what it shall have",
                    ));
            }
            (true, _) => write_schemata(&plan.class, &plan.schemata)?,
            (false, _) => compare(&plan.class, &plan.schemata)?,
        }
        write(&plan.class.join("tasks"), &pid.to_string())?;
        if let Some(group) = &plan.monitor {
            self.make(group, false)?;
            write(&group.join("tasks"), &pid.to_string())?;
        }
        Ok(())
    }

    /// True if it was not there. The root class always is.
    fn make(&mut self, dir: &Path, may_exist: bool) -> Result<bool> {
        match fs::create_dir(dir) {
            Ok(()) => {
                self.made.push(dir.to_owned());
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && may_exist => Ok(false),
            Err(e) => {
                let hint = match e.kind() {
                    io::ErrorKind::AlreadyExists => {
                        "a container of that name left it behind, or has it: rmdir it if nobody does"
                    }
                    io::ErrorKind::StorageFull => {
                        "the processor has no class left: share one by linux.intelRdt.closID"
                    }
                    _ => return Err(Error::sys(STEP, shown(dir), e)),
                };
                Err(Error::sys(STEP, shown(dir), e).hint(hint))
            }
        }
    }

    /// What fails here is not told: the first error of the creation is.
    pub(super) fn back(self) {
        for dir in self.made.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// After the container's end; a class that the spec named stays.
pub(super) fn remove(plan: &RdtPlan) -> Result<()> {
    let class = (!plan.named).then_some(&plan.class);
    for dir in plan.monitor.iter().chain(class) {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::sys("remove a class of caches and bandwidth", shown(dir), e));
            }
            _ => {}
        }
    }
    Ok(())
}

fn write_schemata(class: &Path, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    write(&class.join("schemata"), &text).map_err(|error| {
        // Where the kernel says what it did not like, next to the root class.
        let status = class.parent().map(|root| root.join("info/last_cmd_status"));
        let said = status.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        if said.trim().is_empty() || said.trim() == "ok" {
            error
        } else {
            error.hint(format!("the kernel says: {}", said.trim()))
        }
    })
}

/// The specification: a class that is there already must have what is asked for.
fn compare(class: &Path, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let path = class.join("schemata");
    let there = fs::read_to_string(&path).map_err(|e| Error::sys(STEP, shown(&path), e))?;
    let there: Vec<_> = there.lines().filter_map(|line| plan::parse_schema(line.trim())).collect();
    for line in lines {
        let Some((resource, asked)) = plan::parse_schema(line) else { continue };
        let has = |(id, value): &(u32, &str)| {
            let mut shares =
                there.iter().filter(|(name, _)| *name == resource).flat_map(|(_, shares)| shares);
            shares.any(|(known, given)| known == id && same(given, value))
        };
        if !asked.iter().all(has) {
            return Err(Error::sys(STEP, shown(&path), io::Error::from_raw_os_error(libc::EEXIST)).hint(format!(
                "the class is there and has something else than linux.intelRdt asks for ({line}): choose another closID, or ask \
                 for nothing"
            )));
        }
    }
    Ok(())
}

/// Bit masks are printed with leading zeros.
fn same(one: &str, other: &str) -> bool {
    let plain = |text: &str| text.trim_start_matches('0').to_ascii_lowercase();
    plain(one) == plain(other)
}

/// One write(2): the kernel takes a text whole.
fn write(path: &Path, text: &str) -> Result<()> {
    let written =
        OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|e| Error::sys(STEP, shown(path), e))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A directory with the files that the kernel would put there.
    fn class(root: &Path, name: &str, schemata: &str) -> PathBuf {
        let dir = root.join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("schemata"), schemata).unwrap();
        fs::write(dir.join("tasks"), "").unwrap();
        dir
    }

    fn plan(class: PathBuf, named: bool, schemata: &[&str]) -> RdtPlan {
        RdtPlan {
            class,
            named,
            schemata: schemata.iter().map(|&line| line.to_owned()).collect(),
            monitor: None,
        }
    }

    fn left(root: &Path) -> Vec<String> {
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_class_that_is_there_takes_the_process_if_it_has_what_is_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let gold = class(root.path(), "gold", "    L3:0=00ff;1=000f\n    MB:0=  50;1=100\n");
        for asked in [&[][..], &["L3:0=ff", "MB:0=50"], &["L3:1=F;0=0ff"]] {
            let mut assigned = Assigned::default();
            assigned.assign(&plan(gold.clone(), true, asked), 4711).unwrap();
            assert_eq!(fs::read_to_string(gold.join("tasks")).unwrap(), "4711");
            assigned.back();
        }
        let error =
            Assigned::default().assign(&plan(gold.clone(), true, &["L3:0=f"]), 4711).unwrap_err().to_string();
        assert!(error.contains("schemata") && error.contains("choose another closID"), "{error}");
        remove(&plan(gold, true, &[])).unwrap();
        assert_eq!(left(root.path()), ["gold"], "what the spec named stays");
    }

    #[test]
    fn what_was_made_goes_with_a_failed_creation() {
        let root = tempfile::tempdir().unwrap();
        // Here no kernel puts files into a new class, so the writing fails.
        let new = plan(root.path().join("one"), false, &["L3:0=f"]);
        let mut assigned = Assigned::default();
        let error = assigned.assign(&new, 4711).unwrap_err().to_string();
        assert!(error.contains("one/schemata"), "{error}");
        assigned.back();
        assert!(left(root.path()).is_empty());
        // A named class that nobody made, and nothing to make it of.
        let mut assigned = Assigned::default();
        let error =
            assigned.assign(&plan(root.path().join("gold"), true, &[]), 4711).unwrap_err().to_string();
        assert!(error.contains("make the class that linux.intelRdt.closID names first"), "{error}");
        assigned.back();
        // One's own that is there already is somebody else's.
        class(root.path(), "one", "");
        let error = Assigned::default().assign(&new, 4711).unwrap_err().to_string();
        assert!(error.contains("left it behind"), "{error}");
        fs::remove_file(root.path().join("one/tasks")).unwrap();
        fs::remove_file(root.path().join("one/schemata")).unwrap();
        remove(&new).unwrap();
        remove(&new).unwrap();
        assert!(left(root.path()).is_empty());
    }
}
