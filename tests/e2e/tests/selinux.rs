//! SELinux: labels of processes and files, categories that keep pods apart, relabelled volumes. `hack/test-v2 selinux` runs this
//! where the kernel has it, enforcing, with the policy of tests/e2e/selinux; elsewhere it shows that options and relabelling have
//! no effect and hinder nobody.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::requests::{bind, in_pod, modes, pod_modes, pod_security, security, shell};
use e2e::{Node, Setup, on_a_node};
use std::path::{Path, PathBuf};
use std::process::Command;
use tonic::Code;

fn is_on() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// On the host's network, which has no label and would take most of the time where QEMU emulates the processor.
fn pod(node: &Node, name: &str) -> v1::PodSandboxConfig {
    let mut config = e2e::requests::pod(node, name);
    pod_modes(&mut config).network = v1::NamespaceMode::Node.into();
    config
}

fn sleeper(name: &str, image: &str, mounts: Vec<v1::Mount>) -> v1::ContainerConfig {
    let mut config = v1::ContainerConfig { mounts, ..shell(name, image, "exec sleep 1000") };
    modes(&mut config).network = v1::NamespaceMode::Node.into();
    security(&mut config).masked_paths = vec!["/sys/firmware".into()];
    config
}

fn relabelled(host: &Path, container: &str) -> v1::Mount {
    v1::Mount { selinux_relabel: true, ..bind(host, container) }
}

/// A directory of the host with a file in it.
fn directory(node: &Node, name: &str) -> Result<PathBuf> {
    let dir = node.path(name);
    std::fs::create_dir_all(dir.join("below"))?;
    std::fs::write(dir.join("below/file"), name)?;
    Ok(dir)
}

/// The label of the container's init and of an exec session in it, which must be the same.
async fn label(node: &Node, id: &str) -> Result<String> {
    let both = node.sh(id, "cat /proc/1/attr/current; echo; cat /proc/self/attr/current").await?;
    // The kernel ends it with a NUL.
    let both = both.replace('\0', "");
    let (init, session) = both.split_once('\n').context("two labels")?;
    ensure!(init == session, "init is {init}, a session {session}");
    Ok(session.to_owned())
}

/// As coreutils see it from the host.
fn label_of_file(path: &Path) -> Result<String> {
    let out = Command::new("stat").args(["-c", "%C"]).arg(path).output()?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8(out.stdout)?.trim().to_owned())
}

fn level(label: &str) -> Result<&str> {
    label.splitn(4, ':').nth(3).with_context(|| format!("{label:?} has no level"))
}

/// Whether the container may read the file: refused it must be by EACCES.
async fn reads(node: &Node, id: &str, file: &str) -> Result<bool> {
    let (code, _, said) = node.exec(id, &["cat", file]).await?;
    ensure!(code == 0 || said.contains("Permission denied"), "{file}: {said}");
    Ok(code == 0)
}

async fn refusal(
    node: &Node,
    sandbox: &str,
    pod: &v1::PodSandboxConfig,
    config: v1::ContainerConfig,
) -> Result<tonic::Status> {
    let error = node.run(sandbox, pod, config).await.err().context("it must be refused")?;
    error.downcast::<tonic::Status>()
}

/// CRI-SEC-10, CRI-SEC-11, CRI-MNT-09, CRI-XS-08, CRI-TST-03, CRI-TST-15.
#[test]
fn pods_are_kept_apart_by_labels_where_the_kernel_has_them() {
    on_a_node(Setup::default(), |node| {
        Box::pin(async move { if is_on() { apart(node).await } else { without_effect(node).await } })
    });
}

async fn without_effect(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let volume = directory(node, "volume")?;
    let options =
        v1::SeLinuxOption { r#type: "no_such_t".into(), level: "s0:c1,c2".into(), ..Default::default() };
    let mut config = pod(node, "selinux");
    pod_security(&mut config).selinux_options = Some(options.clone());
    let sandbox = node.run_pod(&config).await?;
    let mut main = sleeper("main", &image, vec![relabelled(&volume, "/volume")]);
    security(&mut main).selinux_options = Some(options);
    let main = node.run(&sandbox, &config, main).await?;
    ensure!(node.sh(&main, "cat /volume/below/file").await? == "volume");
    let found = node.slipway_command(&["check"]).output().await?;
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    let line =
        found.lines().find(|line| line.contains("SELinux")).context("check says nothing of SELinux")?;
    ensure!(line.trim_end().ends_with(" off") && line.starts_with("ok"), "{line}");
    Ok(())
}

async fn apart(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let (own, foreign) = (directory(node, "own")?, directory(node, "foreign")?);
    let config = pod(node, "one");
    let sandbox = node.run_pod(&config).await?;
    let of_image = v1::Mount {
        container_path: "/image".into(),
        image: Some(v1::ImageSpec { image: image.clone(), ..Default::default() }),
        readonly: true,
        ..Default::default()
    };
    let mounts = vec![relabelled(&own, "/own"), bind(&foreign, "/foreign"), of_image];
    let main = node.run(&sandbox, &config, sleeper("main", &image, mounts)).await?;
    let first = label(node, &main).await?;
    ensure!(first.starts_with("system_u:system_r:container_t:s0:c"), "{first}");
    // Its own files, wherever they come from: the root, the pod's, file systems made for it.
    node.sh(&main, OWN_FILES).await?;
    // The image volume is every container's to read, the session keyring is the container's own.
    node.sh(&main, "cat /image/bin/busybox >/dev/null && grep -q _ses. /proc/keys").await?;
    // A volume that was relabelled, to the last file; and one that was not.
    let wanted = first.replace("system_r:container_t", "object_r:container_file_t");
    for file in [own.clone(), own.join("below/file")] {
        ensure!(label_of_file(&file)? == wanted, "{}", label_of_file(&file)?);
    }
    ensure!(
        reads(node, &main, "/own/below/file").await? && !reads(node, &main, "/foreign/below/file").await?
    );

    // A neighbour has other categories, and is refused what is the first one's.
    let other = pod(node, "two");
    let neighbour = node.run_pod(&other).await?;
    let mounts = vec![bind(&own, "/own"), relabelled(&foreign, "/foreign")];
    let second = node.run(&neighbour, &other, sleeper("main", &image, mounts)).await?;
    let its = label(node, &second).await?;
    ensure!(its.starts_with("system_u:system_r:container_t:s0:c") && its != first, "{its}");
    ensure!(
        !reads(node, &second, "/own/below/file").await?
            && reads(node, &second, "/foreign/below/file").await?
    );

    options(node, &image, &sandbox, &config, &first).await?;
    // The categories outlive the daemon.
    node.kill_daemon().await?;
    node.start_daemon().await?;
    let later = node.run(&sandbox, &config, sleeper("later", &image, vec![bind(&own, "/own")])).await?;
    ensure!(label(node, &later).await? == first && label(node, &main).await? == first);
    ensure!(reads(node, &later, "/own/below/file").await?);
    told(node).await
}

/// What belongs to a container, wherever it comes from: the root, the pod's files, file systems made for it, masks.
const OWN_FILES: &str = "touch /new /dev/shm/new /dev/mqueue/new && mkdir /dev/new && echo >>/etc/hosts && \
    cat /etc/hosts /etc/hostname /etc/resolv.conf >/new && ls /proc/self /sys /dev/pts /sys/firmware >/dev/null && \
    head -c 1 /dev/zero >/dev/null";

/// A user namespace: devices are binds, layers are mapped, and the labels are the same.
#[test]
fn pods_with_user_namespaces_have_labels_too() {
    // Addresses without rules of the firewall, for which QEMU takes too long.
    let cni = Some(
        r#"{"cniVersion": "1.0.0", "name": "plain", "plugins": [{"type": "bridge", "bridge": "cni0",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]]}}]}"#,
    );
    on_a_node(Setup { cni, ..Setup::default() }, |node| Box::pin(in_a_user_namespace(node)));
}

async fn in_a_user_namespace(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let line = vec![v1::IdMapping { host_id: 65536, container_id: 0, length: 65536 }];
    let mut config = e2e::requests::pod(node, "users");
    // The kubelet refuses them on the host's network.
    let user = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: line.clone(), gids: line };
    pod_modes(&mut config).userns_options = Some(user);
    pod_modes(&mut config).pid = v1::NamespaceMode::Pod.into();
    let sandbox = node.run_pod(&config).await?;
    let main = v1::ContainerConfig { ..shell("main", &image, "exec sleep 1000") };
    let mut main = in_pod(&config, main);
    security(&mut main).masked_paths = vec!["/sys/firmware".into()];
    let main = node.run(&sandbox, &config, main).await?;
    node.sh(&main, OWN_FILES).await?;
    if is_on() {
        let label = node.sh(&main, "cat /proc/self/attr/current").await?;
        ensure!(label.starts_with("system_u:system_r:container_t:s0:c"), "{label}");
    }
    Ok(())
}

/// What a container asks for itself.
async fn options(
    node: &Node,
    image: &str,
    sandbox: &str,
    config: &v1::PodSandboxConfig,
    first: &str,
) -> Result<()> {
    let asking = |name: &str, options: v1::SeLinuxOption| {
        let mut asked = sleeper(name, image, Vec::new());
        security(&mut asked).selinux_options = Some(options);
        asked
    };
    let own = v1::SeLinuxOption { level: "s0:c900,c901".into(), ..Default::default() };
    let own = node.run(sandbox, config, asking("level", own)).await?;
    ensure!(label(node, &own).await? == "system_u:system_r:container_t:s0:c900,c901");
    // What is the pod's is every container's still.
    node.sh(&own, "touch /new /dev/shm/other && cat /etc/hosts >/new").await?;
    let kind = v1::SeLinuxOption { r#type: "spc_t".into(), ..Default::default() };
    let kind = node.run(sandbox, config, asking("type", kind)).await?;
    let wanted = format!("system_u:system_r:spc_t:{}", level(first)?);
    ensure!(label(node, &kind).await? == wanted, "{}", label(node, &kind).await?);
    let unknown = v1::SeLinuxOption { r#type: "no_such_t".into(), ..Default::default() };
    let error = refusal(node, sandbox, config, asking("unknown", unknown)).await?;
    ensure!(error.code() == Code::InvalidArgument && error.message().contains("no_such_t"), "{error:?}");
    let error =
        refusal(node, sandbox, config, sleeper("etc", image, vec![relabelled(Path::new("/etc"), "/host")]))
            .await?;
    ensure!(
        error.message().contains("mount /host") && error.message().contains("never changed"),
        "{error:?}"
    );
    Ok(())
}

/// `slipway check` and `slipway explain` say what is the case.
async fn told(node: &Node) -> Result<()> {
    let found = node.slipway_command(&["check"]).output().await?;
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    ensure!(found.contains("enforcing, policy slipway, containers are container_t"), "{found}");
    let manifest = node.path("pod.yaml");
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - {name: c, image: i, command: [/c]}\n";
    std::fs::write(&manifest, text)?;
    let steps = node.slipway(&["explain", &manifest.display().to_string()]).await?;
    for word in [
        "system_u:system_r:container_t:s0:c0,c1",
        "label system_u:object_r:container_file_t:s0:c0,c1",
        "context=system_u:object_r:container_file_t:s0:c0,c1",
    ] {
        ensure!(steps.contains(word), "{word} is missing in {steps}");
    }
    Ok(())
}

/// CRI-CAP-08, CRI-SEC-10.
#[test]
fn what_is_the_host_s_is_not_kept_apart_from_it() {
    on_a_node(Setup::default(), |node| Box::pin(free(node)));
}

async fn free(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let foreign = directory(node, "foreign")?;
    let mut privileged = pod(node, "privileged");
    pod_security(&mut privileged).privileged = true;
    let mut main = sleeper("main", &image, vec![bind(&foreign, "/foreign")]);
    security(&mut main).privileged = true;
    let mut host = pod(node, "host");
    pod_modes(&mut host).pid = v1::NamespaceMode::Node.into();
    let in_host = in_pod(&host, sleeper("main", &image, vec![bind(&foreign, "/foreign")]));
    for (config, container) in [(privileged, main), (host, in_host)] {
        let sandbox = node.run_pod(&config).await?;
        let id = node.run(&sandbox, &config, container).await?;
        ensure!(reads(node, &id, "/foreign/below/file").await?);
        if is_on() {
            let label = node.sh(&id, "cat /proc/self/attr/current").await?.replace('\0', "");
            ensure!(label == "system_u:system_r:spc_t:s0", "{label}");
        }
    }
    Ok(())
}
