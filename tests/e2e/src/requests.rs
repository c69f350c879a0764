//! Requests as a kubelet shapes them, and the few calls that every scenario makes.

use crate::Node;
use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A pod on the pod network, with its log directory below the node's.
pub fn pod(node: &Node, name: &str) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        log_directory: node.path("logs").join(name).display().to_string(),
        labels: HashMap::from([("io.kubernetes.pod.name".into(), name.into())]),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: node.cgroup_parent(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What the kubelet sends for an ordinary pod: own network and IPC, a PID namespace per container.
pub fn namespaces() -> v1::NamespaceOption {
    v1::NamespaceOption {
        network: v1::NamespaceMode::Pod.into(),
        pid: v1::NamespaceMode::Container.into(),
        ipc: v1::NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

pub fn pod_security(pod: &mut v1::PodSandboxConfig) -> &mut v1::LinuxSandboxSecurityContext {
    pod.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// Namespace modes of a pod.
pub fn pod_modes(pod: &mut v1::PodSandboxConfig) -> &mut v1::NamespaceOption {
    pod_security(pod).namespace_options.get_or_insert_default()
}

pub fn security(container: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    container.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// Namespace modes of a container.
pub fn modes(container: &mut v1::ContainerConfig) -> &mut v1::NamespaceOption {
    security(container).namespace_options.get_or_insert_default()
}

/// The container with its pod's namespace modes, as the kubelet sends it.
pub fn in_pod(pod: &v1::PodSandboxConfig, mut container: v1::ContainerConfig) -> v1::ContainerConfig {
    let modes =
        pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref()?.namespace_options.clone());
    security(&mut container).namespace_options = modes;
    container
}

/// A container with a command line; its log is `<name>/0.log`.
pub fn container(name: &str, image: &str, command: &[&str]) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: image.into(), ..Default::default() }),
        command: command.iter().map(|&c| c.into()).collect(),
        log_path: format!("{name}/0.log"),
        linux: Some(v1::LinuxContainerConfig {
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                seccomp: Some(v1::SecurityProfile::default()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// `sh -c script` in busybox.
pub fn shell(name: &str, image: &str, script: &str) -> v1::ContainerConfig {
    container(name, image, &["sh", "-c", script])
}

pub fn bind(host: &std::path::Path, container: &str) -> v1::Mount {
    v1::Mount {
        host_path: host.display().to_string(),
        container_path: container.into(),
        ..Default::default()
    }
}

/// The calls, in the words of a test.
impl Node {
    pub async fn run_pod(&self, config: &v1::PodSandboxConfig) -> Result<String> {
        self.run_pod_under(config, "").await
    }

    /// The same with a RuntimeClass's handler.
    pub async fn run_pod_under(&self, config: &v1::PodSandboxConfig, handler: &str) -> Result<String> {
        let request =
            v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        // As the kubelet does: the runtime need not make the directory.
        std::fs::create_dir_all(&config.log_directory)?;
        Ok(self.runtime().await?.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub async fn create(
        &self,
        pod: &str,
        sandbox_config: &v1::PodSandboxConfig,
        config: v1::ContainerConfig,
    ) -> Result<String> {
        let name = config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
        std::fs::create_dir_all(std::path::Path::new(&sandbox_config.log_directory).join(name))?;
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config.clone()),
        };
        Ok(self.runtime().await?.create_container(request).await?.into_inner().container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<()> {
        let request = v1::StartContainerRequest { container_id: id.into() };
        self.runtime().await?.start_container(request).await?;
        Ok(())
    }

    /// Create and start.
    pub async fn run(
        &self,
        pod: &str,
        sandbox_config: &v1::PodSandboxConfig,
        config: v1::ContainerConfig,
    ) -> Result<String> {
        let id = self.create(pod, sandbox_config, config).await?;
        self.start_container(&id).await?;
        Ok(id)
    }

    pub async fn container_status(&self, id: &str) -> Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: false };
        self.runtime().await?.container_status(request).await?.into_inner().status.context("status is absent")
    }

    pub async fn pod_status(&self, id: &str) -> Result<v1::PodSandboxStatus> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        self.runtime()
            .await?
            .pod_sandbox_status(request)
            .await?
            .into_inner()
            .status
            .context("status is absent")
    }

    pub async fn pod_ip(&self, id: &str) -> Result<String> {
        Ok(self.pod_status(id).await?.network.context("no network in the status")?.ip)
    }

    /// Waits until the container has ended and returns its status.
    pub async fn ended(&self, id: &str) -> Result<v1::ContainerStatus> {
        let start = Instant::now();
        loop {
            let status = self.container_status(id).await?;
            if status.state() == v1::ContainerState::ContainerExited {
                return Ok(status);
            }
            ensure!(start.elapsed() < Duration::from_secs(150), "container {id} does not end: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// ExecSync; returns (exit code, stdout, stderr).
    pub async fn exec(&self, id: &str, command: &[&str]) -> Result<(i32, String, String)> {
        let request = v1::ExecSyncRequest {
            container_id: id.into(),
            cmd: command.iter().map(|&c| c.into()).collect(),
            timeout: 30,
        };
        let answer = self.runtime().await?.exec_sync(request).await?.into_inner();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((answer.exit_code, text(answer.stdout), text(answer.stderr)))
    }

    /// Runs `sh -c script` in the container, expects exit code 0 and returns stdout.
    pub async fn sh(&self, id: &str, script: &str) -> Result<String> {
        let (code, out, err) = self.exec(id, &["sh", "-c", script]).await?;
        ensure!(code == 0, "{script:?} ended with {code}: {out}{err}");
        Ok(out)
    }

    pub async fn stop_container(&self, id: &str, timeout: i64) -> Result<()> {
        let request = v1::StopContainerRequest { container_id: id.into(), timeout };
        self.runtime().await?.stop_container(request).await?;
        Ok(())
    }

    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = v1::RemoveContainerRequest { container_id: id.into() };
        self.runtime().await?.remove_container(request).await?;
        Ok(())
    }

    pub async fn stop_pod(&self, id: &str) -> Result<()> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime().await?.stop_pod_sandbox(request).await?;
        Ok(())
    }

    pub async fn remove_pod(&self, id: &str) -> Result<()> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime().await?.remove_pod_sandbox(request).await?;
        Ok(())
    }

    /// The container's CRI log, parsed: (stream, tag, text) a line.
    pub async fn log(&self, id: &str) -> Result<Vec<(String, String, String)>> {
        let path = self.container_status(id).await?.log_path;
        parse_log(&std::fs::read_to_string(&path).with_context(|| format!("read the log {path}"))?)
    }

    /// Waits until `probe` is true of the container's log.
    pub async fn log_shows(&self, id: &str, probe: impl Fn(&str) -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            let lines = self.log(id).await.unwrap_or_default();
            if lines.iter().any(|(_, _, text)| probe(text)) {
                return Ok(());
            }
            ensure!(start.elapsed() < Duration::from_secs(60), "the log does not show it: {lines:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn pull(&self, image: &str) -> Result<String> {
        let request = v1::PullImageRequest {
            image: Some(v1::ImageSpec { image: image.into(), ..Default::default() }),
            ..Default::default()
        };
        Ok(self.images().await?.pull_image(request).await?.into_inner().image_ref)
    }
}

/// Splits `TIMESTAMP STREAM TAG CONTENT` lines (CRI-LOG-03); a line of another shape is an error.
pub fn parse_log(text: &str) -> Result<Vec<(String, String, String)>> {
    let parse = |line: &str| {
        let mut parts = line.splitn(4, ' ');
        let time = parts.next().context("no timestamp")?;
        ensure!(
            time.contains('T') && (time.ends_with('Z') || time.contains('+')),
            "bad timestamp in {line:?}"
        );
        let stream = parts.next().with_context(|| format!("no stream in {line:?}"))?;
        let tag = parts.next().with_context(|| format!("no tag in {line:?}"))?;
        ensure!(matches!(stream, "stdout" | "stderr") && matches!(tag, "F" | "P"), "malformed line {line:?}");
        Ok((stream.to_owned(), tag.to_owned(), parts.next().unwrap_or_default().to_owned()))
    };
    text.lines().map(parse).collect()
}
