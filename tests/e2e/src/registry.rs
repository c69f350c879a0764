//! Test images and a real registry (Debian's docker-registry) on this test's own loopback.

use crate::Node;
use crate::node::repository;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Archive (`docker save`) of a test image that hack/images built.
pub fn archive(name: &str) -> PathBuf {
    repository().join(".cache/images").join(format!("{name}.tar"))
}

impl Node {
    /// Imports a test image into the local store and returns the name to run it by.
    pub async fn import(&self, name: &str) -> Result<String> {
        let path = archive(name);
        ensure!(path.exists(), "{} is missing: hack/images base builds it", path.display());
        let reference = format!("test.local/{name}:1");
        self.slipway(&["import", &path.display().to_string(), "--name", &reference]).await?;
        Ok(reference)
    }
}

/// docker-registry on a loopback port of this test's network namespace, serving what hack/images pushed into
/// `.cache/registry` (a private copy: tests may spoil it).
#[derive(Debug)]
pub struct Registry {
    process: tokio::process::Child,
    storage: PathBuf,
    pub host: String,
}

impl Registry {
    pub async fn start(node: &Node) -> Result<Self> {
        let storage = node.path("registry");
        copy_tree(&repository().join(".cache/registry"), &storage)?;
        Self::serve(node, storage).await
    }

    /// The one with the large image (`hack/images big`), itself: not to be spoiled.
    pub async fn start_big(node: &Node) -> Result<Self> {
        let storage = repository().join(".cache/registry-big");
        ensure!(storage.is_dir(), "{} is missing: hack/images big builds it", storage.display());
        Self::serve(node, storage).await
    }

    async fn serve(node: &Node, storage: PathBuf) -> Result<Self> {
        // The namespace is ours alone: any port is free.
        let host = "127.0.0.1:5000".to_owned();
        let config = node.path("registry.yml");
        let yaml = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: {host}}}\n",
            storage.display()
        );
        std::fs::write(&config, yaml)?;
        let mut process = tokio::process::Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(node.path("registry.log"))?)
            .kill_on_drop(true)
            .spawn()
            .context("start docker-registry: hack/deps test installs it")?;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while tokio::net::TcpStream::connect(&host).await.is_err() {
            let said = || std::fs::read_to_string(node.path("registry.log")).unwrap_or_default();
            if let Some(status) = process.try_wait()? {
                anyhow::bail!("docker-registry ended with {status}: {}", said());
            }
            ensure!(
                tokio::time::Instant::now() < deadline,
                "docker-registry does not listen on {host}: {}",
                said()
            );
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        Ok(Self { process, storage, host })
    }

    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.host)
    }

    /// The file of a blob, to spoil it.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.storage.join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    pub async fn stop(mut self) -> Result<()> {
        Ok(self.process.kill().await?)
    }
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    ensure!(from.is_dir(), "{} is missing: hack/images base builds it", from.display());
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(status.success(), "copy {} to {}", from.display(), to.display());
    Ok(())
}
