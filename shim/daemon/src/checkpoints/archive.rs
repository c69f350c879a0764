//! The archive of one container: a tar with the names that containerd and CRI-O use (CRI-CHK-03), and one file of ours.

use crate::containers::{ContainerRecord, Phase};
use crate::error::{Error, Result};
use cri_proto::v1;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slipway_images::Packer;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Directory of CRIU's images.
pub(super) const IMAGES: &str = "checkpoint";
/// In every one that CRIU has finished.
pub(super) const INVENTORY: &str = "inventory.img";
pub(super) const CONFIG: &str = "config.dump";
pub(super) const SPEC: &str = "spec.dump";
const STATUS: &str = "status.dump";
/// What only we write, and need ourselves: a [`Ours`].
pub(super) const OURS: &str = "slipway.dump";
pub(super) const LAYER: &str = "rootfs-diff.tar";
pub(super) const LOG: &str = "container.log";
/// CRIU's log and statistics; it leaves them beside its images' directory.
const OF_CRIU: [&str; 2] = ["stats-dump", "dump.log"];

/// Version of [`Ours`]; a later one is refused, not guessed at.
const VERSION: u32 = 1;

/// What containerd's and CRI-O's files do not tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Ours {
    pub(super) version: u32,
    /// As its pod's client asked for it.
    pub(super) container: v1::ContainerConfig,
    /// Where the image's `VOLUME`s are in the container, by number.
    pub(super) volumes: Vec<PathBuf>,
}

/// `config.dump`, in the words of checkpointctl's library, which all engines share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ConfigDump {
    pub(super) id: String,
    pub(super) name: String,
    /// Image as its client named it, its id or digest, and its full name.
    pub(super) rootfs_image: String,
    pub(super) rootfs_image_ref: String,
    pub(super) rootfs_image_name: String,
    pub(super) runtime: String,
    pub(super) created_time: String,
    pub(super) checkpointed_time: String,
    pub(super) restored: bool,
}

/// Name of the tar of a volume.
pub(super) fn volume(number: usize) -> String {
    format!("volume-{number}.tar")
}

impl Ours {
    pub(super) fn new(record: &ContainerRecord, spec: &Value) -> Self {
        Self { version: VERSION, container: record.config.clone(), volumes: volumes(&record.id, spec) }
    }

    pub(super) fn is_known(&self) -> bool {
        self.version <= VERSION
    }
}

/// Destinations of the mounts that are volumes beside the container's writable layer, by number.
pub(super) fn volumes(id: &str, spec: &Value) -> Vec<PathBuf> {
    let mounts = spec["mounts"].as_array().into_iter().flatten();
    let below = format!("/containers/{id}/volumes/");
    let one = |mount: &Value| {
        let (_, number) = mount["source"].as_str()?.split_once(&below)?;
        Some((number.parse().ok()?, PathBuf::from(mount["destination"].as_str()?)))
    };
    let mut found: Vec<(usize, PathBuf)> = mounts.filter_map(one).collect();
    found.sort();
    found.into_iter().map(|(_, destination)| destination).collect()
}

/// Writes the archive of what was captured in `captured` to the new file `to`, which reaches the disk. Blocks.
///
/// # Errors
/// ResourceExhausted on a full disk; the file is the caller's to remove.
pub(super) fn write(record: &ContainerRecord, captured: &Path, to: &Path) -> Result<()> {
    let fail = |e: io::Error| Error::io("write the checkpoint", to, &e);
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(fail)?;
    let mut packer = Packer::new(BufWriter::with_capacity(1 << 20, file));
    let spec = json_of(&captured.join(SPEC))?;
    let dumps = [
        (CONFIG, encode(&config_dump(record))?),
        (SPEC, encode(&spec)?),
        (STATUS, encode(&status_dump(record))?),
        (OURS, encode(&Ours::new(record, &spec))?),
    ];
    for (name, text) in &dumps {
        packer.bytes(name, text)?;
    }
    // checkpointctl wants it named.
    packer.directory(IMAGES)?;
    for name in names(&captured.join(IMAGES))? {
        let path = captured.join(IMAGES).join(&name);
        packer.file(&format!("{IMAGES}/{name}"), &open(&path)?)?;
    }
    let others = names(captured)?;
    let is_wanted = |name: &&String| {
        [LAYER, LOG].contains(&name.as_str())
            || OF_CRIU.contains(&name.as_str())
            || name.starts_with("volume-")
    };
    for name in others.iter().filter(is_wanted) {
        packer.file(name, &open(&captured.join(name))?)?;
    }
    let file = packer.finish()?.into_inner().map_err(|e| fail(e.into_error()))?;
    file.sync_all().map_err(fail)
}

/// Makes a written archive visible under its name, for good. Blocks.
pub(super) fn publish(temporary: &Path, location: &Path) -> Result<()> {
    let fail = |e: io::Error| Error::io("rename the checkpoint to", location, &e);
    fs::rename(temporary, location).map_err(fail)?;
    let parent = location.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(fail)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io("read what was captured", path, &e))
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let fail = |e: io::Error| Error::io("read what was captured", dir, &e);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_type().map_err(fail)?.is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn json_of(path: &Path) -> Result<Value> {
    let text = fs::read(path).map_err(|e| Error::io("read", path, &e))?;
    serde_json::from_slice(&text).map_err(|e| Error::internal(format!("{}: {e}", path.display())))
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::internal(format!("encode a checkpoint: {e}")))
}

fn config_dump(record: &ContainerRecord) -> ConfigDump {
    let named = record.config.image.as_ref().map(|i| i.image.clone()).unwrap_or_default();
    ConfigDump {
        id: record.id.clone(),
        name: record.metadata().name,
        rootfs_image: named,
        rootfs_image_ref: record.image_id.clone(),
        rootfs_image_name: record.image_name.clone(),
        runtime: "slipway".into(),
        created_time: rfc3339(record.created_at),
        checkpointed_time: rfc3339(crate::clock::now()),
        restored: record.restored,
    }
}

/// As containerd keeps a container's status.
fn status_dump(record: &ContainerRecord) -> Value {
    let (started_at, pid) = match record.phase {
        Phase::Running { started_at, pid } => (started_at, pid),
        _ => (0, 0),
    };
    json!({
        "Pid": pid, "CreatedAt": record.created_at, "StartedAt": started_at, "FinishedAt": 0,
        "ExitCode": 0, "Reason": "", "Message": "",
    })
}

fn rfc3339(nanoseconds: i64) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(nanoseconds.into()).ok();
    time.and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_known_by_their_sources() {
        let id = "c".repeat(64);
        let mount = |source: String, destination: &str| json!({"source": source, "destination": destination});
        let own = |number: usize| format!("/var/lib/slipway/images/containers/{id}/volumes/{number}");
        let spec = json!({"mounts": [
            mount("proc".into(), "/proc"), mount(own(1), "/b"), mount(own(0), "/a"),
            mount(format!("/x/containers/{}/volumes/0", "d".repeat(64)), "/other"),
        ]});
        assert_eq!(volumes(&id, &spec), [PathBuf::from("/a"), "/b".into()]);
    }

    /// CRI-CHK-03: names and words that checkpointctl reads.
    #[test]
    fn what_other_tools_read() {
        let mut record = crate::spec::tests::container();
        record.phase = Phase::Running { started_at: 7, pid: 8 };
        let config = serde_json::to_value(config_dump(&record)).expect("json");
        assert_eq!((&config["rootfsImageName"], &config["name"]), (&"r/i:1".into(), &"main".into()));
        assert_eq!(config["createdTime"], "1970-01-01T00:00:00.000000001Z");
        let status = status_dump(&record);
        assert_eq!((&status["StartedAt"], &status["Pid"]), (&7.into(), &8.into()));
    }

    #[test]
    fn an_archive_is_a_new_file_of_root_s_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("dir");
        let (captured, to) = (dir.path().join("c"), dir.path().join("out.tar"));
        fs::create_dir_all(captured.join(IMAGES)).expect("mkdir");
        for name in ["checkpoint/inventory.img", "checkpoint/core-1.img", LAYER, LOG, "dump.log", "other"] {
            fs::write(captured.join(name), name).expect("write");
        }
        fs::write(captured.join(SPEC), "{}").expect("write");
        let record = crate::spec::tests::container();
        write(&record, &captured, &to).expect("written");
        assert_eq!(fs::metadata(&to).expect("meta").permissions().mode() & 0o777, 0o600);
        assert!(write(&record, &captured, &to).is_err(), "never over something else");
        let back = dir.path().join("back");
        fs::create_dir(&back).expect("mkdir");
        slipway_images::unpack_archive(File::open(&to).expect("open"), &back).expect("unpacked");
        let mut found = names(&back).expect("names");
        found.extend(names(&back.join(IMAGES)).expect("names"));
        let expected =
            [CONFIG, LOG, "dump.log", LAYER, OURS, SPEC, STATUS, "core-1.img", INVENTORY].map(str::to_owned);
        assert_eq!(found, expected);
    }
}
