//! One CDI file: parsed, checked against its own version, whole or not at all (CDI-02, CDI-03).

use super::name::{Kind, check_device};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A file above this is not read: no vendor needs it, and it must not make the daemon grow.
const LARGEST: u64 = 16 << 20;

/// Released versions of the specification, oldest first.
const VERSIONS: [&str; 8] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

#[derive(Debug)]
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) devices: Vec<Device>,
    pub(super) container_edits: Edits,
}

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Raw {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// Changes to a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct Edits {
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) net_devices: Vec<NetDevice>,
    pub(super) hooks: Vec<Hook>,
    pub(super) mounts: Vec<Mount>,
    pub(super) intel_rdt: Option<IntelRdt>,
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct DeviceNode {
    pub(super) path: String,
    pub(super) host_path: String,
    pub(super) r#type: String,
    pub(super) major: i64,
    pub(super) minor: i64,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NetDevice {
    pub(super) host_interface_name: String,
    pub(super) name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: String,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<String>,
    pub(super) timeout: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default)]
    pub(super) options: Vec<String>,
    #[serde(default)]
    pub(super) r#type: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct IntelRdt {
    #[serde(rename = "closID")]
    pub(super) clos_id: String,
    #[serde(rename = "l3CacheSchema")]
    pub(super) l3_cache_schema: String,
    #[serde(rename = "memBwSchema")]
    pub(super) mem_bw_schema: String,
    pub(super) schemata: Vec<String>,
    #[serde(rename = "enableMonitoring")]
    pub(super) enable_monitoring: bool,
    #[serde(rename = "enableCMT")]
    pub(super) enable_cmt: bool,
    #[serde(rename = "enableMBM")]
    pub(super) enable_mbm: bool,
}

/// The names of hooks in an OCI spec (CDI-13).
const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

impl File {
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let fail = |e: std::io::Error| e.to_string();
        let mut options = std::fs::OpenOptions::new();
        // A pipe must not hold up whoever asks for a device.
        let file = options.read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map_err(fail)?;
        if !file.metadata().map_err(fail)?.is_file() {
            return Err("it is no regular file".into());
        }
        let mut text = String::new();
        // Not by its size, which may grow, or be told as 0.
        file.take(LARGEST + 1).read_to_string(&mut text).map_err(fail)?;
        if text.len() as u64 > LARGEST {
            return Err(format!("more than {LARGEST} bytes is more than a CDI file needs"));
        }
        Self::parse(path, &text)
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let raw: Raw = if path.extension().is_some_and(|e| e == "json") {
            serde_json::from_str(text).map_err(|e| e.to_string())?
        } else {
            serde_saphyr::from_str(text).map_err(|e| e.to_string())?
        };
        let version = position(&raw.cdi_version)
            .ok_or_else(|| format!("cdiVersion {:?} is unknown", raw.cdi_version))?;
        let kind = Kind::parse(&raw.kind)?;
        if raw.devices.is_empty() {
            return Err("devices is empty".into());
        }
        for (at, device) in raw.devices.iter().enumerate() {
            check_device(&device.name)?;
            if raw.devices[..at].iter().any(|d| d.name == device.name) {
                return Err(format!("device {:?} is there twice", device.name));
            }
            if device.container_edits == Edits::default() {
                return Err(format!("device {:?} has no containerEdits", device.name));
            }
            device.container_edits.check().map_err(|why| format!("device {:?}: {why}", device.name))?;
        }
        raw.container_edits.check()?;
        let (needed, why) = raw.needs(&kind);
        if version < needed {
            return Err(format!(
                "{why} needs cdiVersion {} or later, the file says {}",
                VERSIONS[needed], raw.cdi_version
            ));
        }
        let Raw { devices, container_edits, .. } = raw;
        Ok(Self { path: path.to_owned(), kind, devices, container_edits })
    }
}

fn position(version: &str) -> Option<usize> {
    VERSIONS.iter().position(|known| *known == version)
}

impl Raw {
    /// The version that first had all that the file uses, and what decides it.
    fn needs(&self, kind: &Kind) -> (usize, &'static str) {
        let all = || self.devices.iter().map(|d| &d.container_edits).chain([&self.container_edits]);
        let any = |test: fn(&Edits) -> bool| all().any(test);
        let annotated =
            !self.annotations.is_empty() || self.devices.iter().any(|d| !d.annotations.is_empty());
        let digits = self.devices.iter().any(|d| d.name.starts_with(|c: char| c.is_ascii_digit()));
        let features = [
            (any(|e| !e.net_devices.is_empty()), "1.1.0", "netDevices"),
            (
                any(|e| e.intel_rdt.as_ref().is_some_and(|r| r.enable_monitoring || !r.schemata.is_empty())),
                "1.1.0",
                "intelRdt.schemata or enableMonitoring",
            ),
            (
                any(|e| e.intel_rdt.is_some() || !e.additional_gids.is_empty()),
                "0.7.0",
                "intelRdt or additionalGids",
            ),
            (annotated || kind.class.contains('.'), "0.6.0", "an annotation, or a dot in the class,"),
            (
                digits || any(|e| e.device_nodes.iter().any(|n| !n.host_path.is_empty())),
                "0.5.0",
                "a device name that begins with a digit, or deviceNodes.hostPath,",
            ),
            (any(|e| e.mounts.iter().any(|m| !m.r#type.is_empty())), "0.4.0", "mounts.type"),
        ];
        let used = features.into_iter().find(|(used, ..)| *used);
        used.and_then(|(_, version, why)| Some((position(version)?, why))).unwrap_or((0, "the file"))
    }
}

impl Edits {
    fn check(&self) -> Result<(), String> {
        if let Some(bad) = self.env.iter().find(|e| e.split_once('=').is_none_or(|(key, _)| key.is_empty())) {
            return Err(format!("env {bad:?} is not NAME=value"));
        }
        for node in &self.device_nodes {
            node.check()?;
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) || hook.path.is_empty() {
                return Err(format!(
                    "hook {:?} with path {:?}: want one of {HOOKS:?}, and a path",
                    hook.hook_name, hook.path
                ));
            }
        }
        if let Some(bad) =
            self.mounts.iter().find(|m| m.host_path.is_empty() || !m.container_path.starts_with('/'))
        {
            return Err(format!(
                "mount of {:?} on {:?}: want a hostPath, and an absolute containerPath",
                bad.host_path, bad.container_path
            ));
        }
        if let Some(bad) =
            self.net_devices.iter().find(|n| n.host_interface_name.is_empty() || n.name.is_empty())
        {
            return Err(format!("netDevice {bad:?} lacks a name"));
        }
        match self.intel_rdt.as_ref().map(|r| r.clos_id.as_str()) {
            Some(id) if id.len() >= 4096 || matches!(id, "." | "..") || id.contains(['/', '\n']) => {
                Err(format!("intelRdt.closID {id:?} is no file name"))
            }
            _ => Ok(()),
        }
    }
}

impl DeviceNode {
    fn check(&self) -> Result<(), String> {
        if !self.path.starts_with('/') {
            return Err(format!("deviceNodes.path {:?} is not absolute", self.path));
        }
        if !matches!(self.r#type.as_str(), "" | "b" | "c" | "u" | "p") {
            return Err(format!("deviceNode {}: type {:?} is not b, c, u or p", self.path, self.r#type));
        }
        let known = |c: char| "rwm".contains(c);
        if self.permissions == "none" || self.permissions.chars().all(known) {
            return Ok(());
        }
        Err(format!("deviceNode {}: permissions {:?} are not of r, w, m", self.path, self.permissions))
    }
}
