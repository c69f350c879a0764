//! Container Device Interface: devices by qualified name (`vendor.com/class=name`), whose files under /etc/cdi and
//! /var/run/cdi say how a container is changed to use them (CDI-01 to CDI-15, CRI-DEV-04, CRI-DEV-05).
//!
//! The files are read when a container asks for a device, never before: a plugin may write its file just before. A file
//! that cannot be used is named, and its devices do not exist; it never harms others.

mod apply;
mod file;
mod name;

pub(crate) use apply::apply;
pub(crate) use file::Edits;

use crate::error::{Error, Result};
use cri_proto::v1;
use file::File;
use name::Qualified;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Annotations whose values are comma lists of devices.
const ANNOTATION: &str = "cdi.k8s.io/";

/// Names of the devices that a container asks for: the field first, then annotations by key; each once (CDI-15).
///
/// # Errors
/// InvalidArgument for what is no qualified name.
fn asked(config: &v1::ContainerConfig) -> Result<Vec<Qualified>> {
    let of_field = config.cdi_devices.iter().map(|d| d.name.as_str());
    let annotations: BTreeMap<_, _> =
        config.annotations.iter().filter(|(k, _)| k.starts_with(ANNOTATION)).collect();
    let of_annotations = annotations.values().flat_map(|v| v.split(',')).map(str::trim);
    let mut names = Vec::new();
    for text in of_field.chain(of_annotations) {
        let name =
            Qualified::parse(text).map_err(|why| Error::invalid(format!("CDI device {text:?}: {why}")))?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// What the devices of this container change, in order: each file's own edits before its first device's (CDI-06). Reads
/// the directories, later ones winning. Blocks.
///
/// # Errors
/// InvalidArgument naming devices that do not exist or that two files of one directory claim (CDI-05).
pub(crate) fn edits(config: &v1::ContainerConfig, dirs: &[PathBuf]) -> Result<Vec<Edits>> {
    let names = asked(config)?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let known = Known::read(dirs);
    let mut edits = Vec::new();
    let mut used: Vec<*const File> = Vec::new();
    let mut unknown = Vec::new();
    for name in &names {
        match known.devices.get(name) {
            Some(Found::One(file, index)) => {
                if !used.contains(&Arc::as_ptr(file)) {
                    used.push(Arc::as_ptr(file));
                    edits.push(file.container_edits.clone());
                }
                edits.push(file.devices[*index].container_edits.clone());
            }
            Some(Found::Conflict(one, other)) => {
                return Err(Error::invalid(format!(
                    "CDI device {name}: both {} and {} define it: remove one of them",
                    one.display(),
                    other.display()
                )));
            }
            None => unknown.push(name.to_string()),
        }
    }
    if unknown.is_empty() {
        return Ok(edits);
    }
    let dirs: Vec<_> = dirs.iter().map(|d| d.display().to_string()).collect();
    let damaged = if known.damaged.is_empty() {
        String::new()
    } else {
        format!("; files that cannot be used: {}", known.damaged.join("; "))
    };
    Err(Error::invalid(format!(
        "unresolvable CDI devices {}: no file in {} defines them{damaged}",
        unknown.join(", "),
        dirs.join(", ")
    )))
}

enum Found {
    One(Arc<File>, usize),
    Conflict(PathBuf, PathBuf),
}

/// All devices of all directories.
#[derive(Default)]
struct Known {
    devices: BTreeMap<Qualified, Found>,
    damaged: Vec<String>,
}

impl Known {
    fn read(dirs: &[PathBuf]) -> Self {
        let mut known = Self::default();
        for dir in dirs {
            let mut of_dir: BTreeMap<Qualified, Found> = BTreeMap::new();
            for path in files(dir) {
                match File::read(&path) {
                    Ok(file) => add(&mut of_dir, file),
                    Err(why) => {
                        tracing::warn!(file = %path.display(), "CDI file is not used: {why}");
                        known.damaged.push(format!("{}: {why}", path.display()));
                    }
                }
            }
            known.devices.extend(of_dir);
        }
        known
    }
}

fn add(devices: &mut BTreeMap<Qualified, Found>, file: File) {
    let file = Arc::new(file);
    for (index, device) in file.devices.iter().enumerate() {
        let name = Qualified { kind: file.kind.clone(), device: device.name.clone() };
        let found = match devices.get(&name) {
            None => Found::One(Arc::clone(&file), index),
            Some(Found::One(other, _)) => Found::Conflict(other.path.clone(), file.path.clone()),
            Some(Found::Conflict(one, other)) => Found::Conflict(one.clone(), other.clone()),
        };
        devices.insert(name, found);
    }
}

/// The directory's own files by name, without what is below it (CDI-01).
fn files(dir: &Path) -> Vec<PathBuf> {
    let is_spec =
        |path: &PathBuf| path.extension().is_some_and(|e| e == "json" || e == "yaml") && path.is_file();
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let mut files: Vec<_> = entries.filter(is_spec).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests;
