//! What the kernel itself says of a container: the other side of every comparison.

use crate::Node;
use anyhow::{Context, Result};
use cri_proto::v1;
use std::path::{Path, PathBuf};

const CGROUPS: &str = "/sys/fs/cgroup";

/// One container's control group and first process, on either version of control groups.
#[derive(Debug, Clone)]
pub struct Group {
    /// Below the mount point of each hierarchy.
    path: PathBuf,
    pub init: i64,
}

/// True where version 2 alone is mounted.
pub fn is_v2() -> bool {
    Path::new(CGROUPS).join("cgroup.controllers").exists()
}

/// True where nftables has tables for IPv4 (user-mode Linux has none): without them no hostPorts, no masquerading.
/// Asked in the caller's network namespace, in which nothing stays.
pub fn has_nat() -> bool {
    let script = "add table ip slipway-probe; delete table ip slipway-probe";
    let nft = std::process::Command::new("nft").arg(script).stderr(std::process::Stdio::null()).status();
    nft.is_ok_and(|status| status.success())
}

impl Group {
    /// As verbose ContainerStatus tells it.
    pub async fn of(node: &Node, container: &str) -> Result<Self> {
        let request = v1::ContainerStatusRequest { container_id: container.into(), verbose: true };
        let info = node.runtime().await?.container_status(request).await?.into_inner().info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("info")?)?;
        let path = info["cgroup"].as_str().context("cgroup")?;
        Ok(Self {
            path: Path::new(path).strip_prefix("/").unwrap_or(Path::new(path)).to_owned(),
            init: info["pid"].as_i64().context("pid")?,
        })
    }

    /// The group around it: its pod's.
    pub fn parent(&self) -> Self {
        Self { path: self.path.parent().unwrap_or(&self.path).to_owned(), init: self.init }
    }

    /// The directory in `controller`'s hierarchy, or in the only one.
    pub fn dir(&self, controller: &str) -> PathBuf {
        let hierarchy = if is_v2() { PathBuf::from(CGROUPS) } else { Path::new(CGROUPS).join(controller) };
        hierarchy.join(&self.path)
    }

    /// A control file by its name on each version, without the newline.
    pub fn text(&self, controller: &str, v1: &str, v2: &str) -> Result<String> {
        let file = self.dir(controller).join(if is_v2() { v2 } else { v1 });
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(text.trim().to_owned())
    }

    /// The same where the file holds a number; `max` is none.
    pub fn number(&self, controller: &str, v1: &str, v2: &str) -> Result<u64> {
        let text = self.text(controller, v1, v2)?;
        if text == "max" { Ok(0) } else { text.parse().with_context(|| format!("{v1}, {v2}: {text}")) }
    }

    /// One key of a file of `key value` lines.
    pub fn key(&self, controller: &str, v1: (&str, &str), v2: (&str, &str)) -> Result<u64> {
        let key = if is_v2() { v2.1 } else { v1.1 };
        let text = self.text(controller, v1.0, v2.0)?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value.and_then(|v| v.parse().ok()).with_context(|| format!("no {key} in {text}"))
    }

    /// All its processes.
    pub fn pids(&self) -> Result<Vec<i64>> {
        let text = self.text("memory", "cgroup.procs", "cgroup.procs")?;
        text.lines().map(|pid| Ok(pid.parse()?)).collect()
    }

    /// Stops every process where it is, or lets them go on.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let (file, word) = match (is_v2(), frozen) {
            (true, _) => ("cgroup.freeze", if frozen { "1" } else { "0" }),
            (false, _) => ("freezer.state", if frozen { "FROZEN" } else { "THAWED" }),
        };
        let file = self.dir("freezer").join(file);
        std::fs::write(&file, word).with_context(|| format!("write {word} to {}", file.display()))
    }

    /// What the group has read, for a wait on it.
    pub fn is_frozen(&self) -> Result<bool> {
        if is_v2() {
            return Ok(self.key("freezer", ("", ""), ("cgroup.events", "frozen"))? == 1);
        }
        Ok(self.text("freezer", "freezer.state", "")? == "FROZEN")
    }
}
