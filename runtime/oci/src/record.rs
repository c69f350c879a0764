//! `state.json`: what one container is, for the next command. Written to a temporary name and renamed.

use crate::fault::Fault;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use slipway_runtime::cgroup::Cgroup;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

pub(crate) const FILE: &str = "state.json";

/// One container. `pid` 0: it was being created; everything that names what was made is there before it is made.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    /// Of this form of the file.
    pub(crate) version: u32,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    /// RFC 3339.
    pub(crate) created: String,
    /// Uid of whoever created it.
    pub(crate) owner: u32,
    /// As `Cgroup::open` takes it.
    pub(crate) cgroup: String,
    pub(crate) pid: i32,
    /// Field 22 of /proc/pid/stat: with the pid it names one process for as long as the machine runs.
    pub(crate) start_time: u64,
    /// Whether start and deletion need the spec: for hooks, or a seccomp agent.
    #[serde(default)]
    pub(crate) attended: bool,
    /// Its sessions keep their caller's keyring, too.
    #[serde(default)]
    pub(crate) no_new_keyring: bool,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

pub(crate) const VERSION: u32 = 1;

impl Record {
    /// The container's control group.
    ///
    /// # Errors
    /// `NotFound` if it has gone.
    pub(crate) fn group(&self) -> Result<Cgroup> {
        if self.cgroup.is_empty() { Ok(Cgroup::none()) } else { Ok(Cgroup::open(&self.cgroup)?) }
    }

    /// For what cannot be done without one.
    pub(crate) fn own_group(&self) -> Result<Cgroup> {
        if self.cgroup.is_empty() {
            bail!(Fault::State(format!(
                "container {} has no control group: it was made by a user who may not make any; have one delegated (cgroups(7)) \
                 and name it in linux.cgroupsPath",
                self.id
            )));
        }
        self.group()
    }

    /// Reads the record of a state directory; none if there is none.
    pub(crate) fn load(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(FILE);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("read {}", path.display()))?,
        };
        let record: Self = serde_json::from_slice(&bytes).with_context(|| {
            format!("{} is damaged; `delete --force` removes what is left of the container", path.display())
        })?;
        Ok(Some(record))
    }

    pub(crate) fn save(&self, directory: &Path) -> Result<()> {
        replace(&directory.join(FILE), &serde_json::to_vec(self)?)
    }
}

/// Writes a whole file or nothing.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| file.write_all(content));
    let done = written.and_then(|()| fs::rename(&temporary, path));
    done.inspect_err(|_| drop(fs::remove_file(&temporary)))
        .with_context(|| format!("write {}", path.display()))
}
