//! One small versioned JSON file per task, exec session and sandbox: what a new keeper needs beside the descriptors.
//!
//! Written to a temporary name and renamed; no sync, as /run dies with the boot. A record says what is intended before it
//! is done, so that whatever was half-made can be undone.

use crate::checkpoint::Frozen;
use crate::foreign::Runtime;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use slipway_runtime::cgroup::OomBefore;
use slipway_runtime::rootfs::Rootfs;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Version of all formats below; a record of another one is set aside.
pub(crate) const VERSION: u32 = 1;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// 0-255; 128+signal.
    pub(crate) status: u32,
    /// Nanoseconds since the epoch.
    pub(crate) at: i64,
    /// False: nobody was there to see the status.
    pub(crate) known: bool,
    /// The OOM killer was here, and this is whose memory had run out.
    #[serde(default, deserialize_with = "out_of_memory")]
    pub(crate) oom: Option<OutOfMemory>,
}

/// Records of keepers before levels were told hold a yes or no.
fn out_of_memory<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<OutOfMemory>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Any {
        Level(OutOfMemory),
        Flag(bool),
    }
    Ok(match Option::<Any>::deserialize(from)? {
        Some(Any::Level(level)) => Some(level),
        Some(Any::Flag(true)) => Some(OutOfMemory::Container),
        Some(Any::Flag(false)) | None => None,
    })
}

/// Whose memory ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OutOfMemory {
    Container,
    /// The group directly above the container's.
    Pod,
    /// A group above that: all pods together, or a class of them.
    Pods,
    Node,
}

impl OutOfMemory {
    /// As the wire says it (keeper.proto).
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Pod => "pod",
            Self::Pods => "pods",
            Self::Node => "node",
        }
    }
}

/// Standard streams as the client named them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Streams {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// How far a task is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub(crate) enum TaskPhase {
    /// Being made: whatever exists is to be undone.
    Creating,
    /// Made from a checkpoint, and restored by its start; `begun`: that may be under way.
    Frozen {
        frozen: Frozen,
        begun: bool,
    },
    /// Parked before execve; `steps` as in `StartPipe`.
    Created {
        pid: i32,
        steps: Vec<String>,
    },
    /// The start byte may or may not have been sent.
    Starting {
        pid: i32,
        steps: Vec<String>,
    },
    Running {
        pid: i32,
        started_at: i64,
        paused: bool,
    },
    Stopped {
        pid: i32,
        started_at: i64,
        ended: Ended,
    },
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskRecord {
    pub(crate) version: u32,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) sandbox: String,
    pub(crate) cgroup: String,
    pub(crate) streams: Streams,
    pub(crate) rootfs: Rootfs,
    /// It is mounted at `<bundle>/rootfs`, and that is ours to undo.
    #[serde(default)]
    pub(crate) mounted: bool,
    /// For a control group that may go before it can be asked.
    #[serde(default)]
    pub(crate) oom_before: Option<OomBefore>,
    /// The container sees processes of others: kill its cgroup when its init ends (SHIM-EXIT-03).
    pub(crate) foreign_pids: bool,
    /// Start and deletion need the spec: for hooks, or a seccomp agent.
    #[serde(default)]
    pub(crate) attended: bool,
    /// Owner of the streams, where the client's options name one.
    #[serde(default)]
    pub(crate) io_owner: Option<(u32, u32)>,
    /// CRIU's program.
    #[serde(default)]
    pub(crate) criu: PathBuf,
    /// The OCI runtime that made it, where that is not ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) foreign: Option<Runtime>,
    /// The shim of its pod made it.
    #[serde(default)]
    pub(crate) by_shim: bool,
    /// start_time of /proc/<pid>/stat, to tell the process from a later one with its pid.
    pub(crate) born: u64,
    pub(crate) dropped: u64,
    #[serde(flatten)]
    pub(crate) phase: TaskPhase,
}

/// How far an exec session is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub(crate) enum ExecPhase {
    Added,
    Starting,
    Running { pid: i32 },
    Stopped { pid: i32, ended: Ended },
}

/// A process beside a container's init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExecRecord {
    pub(crate) version: u32,
    pub(crate) task: String,
    pub(crate) id: String,
    pub(crate) streams: Streams,
    /// The OCI process object as the client sent it.
    pub(crate) process: serde_json::Value,
    pub(crate) cgroup: String,
    /// Its client is gone: nobody will ask for it to be deleted.
    #[serde(default)]
    pub(crate) abandoned: bool,
    #[serde(flatten)]
    pub(crate) phase: ExecPhase,
}

/// How far a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub(crate) enum SandboxPhase {
    Creating,
    /// Namespaces exist.
    Created,
    Ready,
    Stopped {
        at: i64,
        status: u32,
    },
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) version: u32,
    pub(crate) id: String,
    /// Empty: the host's network.
    pub(crate) netns: PathBuf,
    /// As StartSandbox answers: the reaper's pid, or that of the keeper of then. Names the sandbox in namespace paths.
    pub(crate) pid: i32,
    pub(crate) reaper: bool,
    /// start_time of the reaper, as for tasks.
    #[serde(default)]
    pub(crate) born: u64,
    /// The pod's control group, where the client named one.
    #[serde(default)]
    pub(crate) cgroup: String,
    /// Its containers are among the host's processes, by the pod's own configuration.
    #[serde(default)]
    pub(crate) host_pids: bool,
    /// Kinds of the namespaces that are the pod's own and held by descriptor, as in /proc/<pid>/ns.
    #[serde(default)]
    pub(crate) namespaces: Vec<String>,
    /// A shim of somebody else runs it.
    #[serde(default)]
    pub(crate) by_shim: bool,
    pub(crate) created_at: i64,
    #[serde(flatten)]
    pub(crate) phase: SandboxPhase,
}

/// Something kept as a file of its own.
pub(crate) trait Record: Serialize + DeserializeOwned {
    fn version(&self) -> u32;
    fn file_name(&self) -> String;
}

impl Record for TaskRecord {
    fn version(&self) -> u32 {
        self.version
    }
    fn file_name(&self) -> String {
        format!("{}.json", self.id)
    }
}

impl Record for ExecRecord {
    fn version(&self) -> u32 {
        self.version
    }
    fn file_name(&self) -> String {
        format!("{}:{}.json", self.task, self.id)
    }
}

impl Record for SandboxRecord {
    fn version(&self) -> u32 {
        self.version
    }
    fn file_name(&self) -> String {
        format!("{}.json", self.id)
    }
}

/// Writes or replaces the record; on error (a full disk, say) the former one stays and nothing else does.
pub(crate) fn save<R: Record>(dir: &Path, record: &R) -> io::Result<()> {
    let name = record.file_name();
    let temporary = dir.join(format!(".{name}"));
    let content = serde_json::to_vec(record)?;
    let saved = fs::write(&temporary, content).and_then(|()| fs::rename(&temporary, dir.join(name)));
    if saved.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    saved
}

/// Reads one record.
pub(crate) fn load<R: Record>(path: &Path) -> io::Result<R> {
    let record: R = serde_json::from_slice(&fs::read(path)?)?;
    if record.version() == VERSION {
        Ok(record)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("record of version {}", record.version())))
    }
}

/// Removes the record; missing is success.
pub(crate) fn remove<R: Record>(dir: &Path, record: &R) -> io::Result<()> {
    match fs::remove_file(dir.join(record.file_name())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// All records of a directory. A damaged one is named, set aside under `<name>.bad`, and never fatal (DESIGN 4).
pub(crate) fn load_all<R: Record>(dir: &Path) -> io::Result<Vec<R>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') {
            // A write that was cut off before its rename.
            if let Err(error) = fs::remove_file(&path) {
                tracing::error!(path = %path.display(), "left-over that cannot be removed: {error}");
            }
        } else if name.ends_with(".json") {
            match load(&path) {
                Ok(record) => records.push(record),
                Err(error) => {
                    let moved = fs::rename(&path, path.with_extension("bad"));
                    let what =
                        moved.map_or_else(|e| format!("cannot be moved: {e}"), |()| "set aside".into());
                    tracing::error!(path = %path.display(), "damaged record, {what}: {error}");
                }
            }
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str, phase: TaskPhase) -> TaskRecord {
        TaskRecord {
            version: VERSION,
            id: id.into(),
            bundle: "/b".into(),
            sandbox: String::new(),
            cgroup: "/x".into(),
            oom_before: None,
            streams: Streams::default(),
            rootfs: Rootfs::Directory("/b/rootfs".into()),
            mounted: false,
            foreign_pids: false,
            attended: false,
            io_owner: None,
            criu: "criu".into(),
            foreign: None,
            by_shim: false,
            born: 0,
            dropped: 0,
            phase,
        }
    }

    #[test]
    fn records_come_back_and_damage_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let ended = Ended { status: 137, at: 5, known: true, oom: Some(OutOfMemory::Pod) };
        let records = [
            task("a", TaskPhase::Creating),
            task("b", TaskPhase::Created { pid: 4, steps: vec!["execve".into()] }),
            task("c", TaskPhase::Stopped { pid: 4, started_at: 1, ended }),
            task("f", TaskPhase::Frozen { frozen: Frozen::default(), begun: true }),
        ];
        for record in &records {
            save(dir.path(), record).unwrap();
        }
        fs::write(dir.path().join("d.json"), b"{\"version\":1").unwrap();
        fs::write(dir.path().join("e.json"), b"{\"version\":99}").unwrap();
        fs::write(dir.path().join(".f.json"), b"half").unwrap();
        fs::create_dir_all(dir.path().join(".dir/x")).unwrap();
        fs::create_dir(dir.path().join("g.json")).unwrap();
        let mut back: Vec<TaskRecord> = load_all(dir.path()).unwrap();
        back.sort_by(|a, b| a.id.cmp(&b.id));
        assert_eq!(back, records);
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, [".dir", "a.json", "b.json", "c.json", "d.bad", "e.bad", "f.json", "g.bad"]);
        remove(dir.path(), &records[0]).unwrap();
        remove(dir.path(), &records[0]).unwrap();
    }

    #[test]
    fn a_full_disk_keeps_the_former_record_and_no_temporary() {
        use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
        struct Mounted<'a>(&'a Path);
        impl Drop for Mounted<'_> {
            fn drop(&mut self) {
                unmount(self.0, UnmountFlags::DETACH).unwrap();
            }
        }
        let names = |dir: &Path| -> Vec<_> {
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        };
        let dir = tempfile::tempdir().unwrap();
        mount("slipway-full", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=64k")).unwrap();
        let mounted = Mounted(dir.path());
        let former = task("a", TaskPhase::Creating);
        save(dir.path(), &former).unwrap();
        let filler = dir.path().join("filler");
        fs::write(&filler, vec![0; 1 << 17]).unwrap_err();
        for id in ["a", "b"] {
            let mut big = task(id, TaskPhase::Created { pid: 4, steps: vec!["execve".into()] });
            big.cgroup = "x".repeat(8192);
            assert_eq!(save(dir.path(), &big).unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
        fs::remove_file(filler).unwrap();
        assert_eq!(names(dir.path()), ["a.json"]);
        assert_eq!(load::<TaskRecord>(&dir.path().join("a.json")).unwrap(), former);
        drop(mounted);
        // Nor if it is the rename that fails.
        fs::create_dir_all(dir.path().join("a.json/x")).unwrap();
        save(dir.path(), &former).unwrap_err();
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[test]
    fn a_yes_or_no_of_former_keepers_is_understood() {
        let read = |oom: &str| -> Ended {
            serde_json::from_str(&format!(r#"{{"status": 137, "at": 1, "known": true{oom}}}"#)).unwrap()
        };
        assert_eq!(read(r#", "oom": true"#).oom, Some(OutOfMemory::Container));
        assert_eq!(read(r#", "oom": false"#).oom, None);
        assert_eq!(read("").oom, None);
        assert_eq!(read(r#", "oom": "node""#).oom, Some(OutOfMemory::Node));
    }
}
