//! Pods with a user namespace of their own (CRI-UNS-*), through CRI, `slipway run` and containerd.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::containerd::{Handler, Release, setup};
use e2e::requests::{bind, in_pod, modes, pod, pod_modes, shell};
use e2e::{Node, Setup, on_a_node};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

/// The host's id of the pods' root here.
const ROOT: u32 = 1_500_000_000;

fn map() -> Vec<v1::IdMapping> {
    vec![v1::IdMapping { container_id: 0, host_id: ROOT, length: 65536 }]
}

fn user() -> Option<v1::UserNamespace> {
    Some(v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: map(), gids: map() })
}

fn user_pod(node: &Node, name: &str) -> v1::PodSandboxConfig {
    let mut config = pod(node, name);
    pod_modes(&mut config).userns_options = user();
    config
}

fn mapped(mut mount: v1::Mount) -> v1::Mount {
    (mount.uid_mappings, mount.gid_mappings) = (map(), map());
    mount
}

/// Whether this host can, as the default handler says.
async fn can(node: &Node) -> Result<bool> {
    let status = node.runtime().await?.status(v1::StatusRequest::default()).await?.into_inner();
    let handler = status.runtime_handlers.iter().find(|h| h.name.is_empty()).context("a default handler")?;
    let can = handler.features.context("features")?.user_namespaces;
    ensure!(status.features.is_none_or(|f| f.user_namespaces_host_network == can), "both or none");
    Ok(can)
}

/// CRI-STA-09, CRI-UNS-01, CRI-UNS-06, CRI-UNS-07, CRI-UNS-08, CRI-RUN-13, CRI-PST-03.
#[test]
fn a_pod_s_containers_are_root_of_nothing_but_themselves() {
    on_a_node(Setup::default(), |node| Box::pin(whole_life(node)));
}

async fn whole_life(node: &mut Node) -> Result<()> {
    // This machine and the test machines can; elsewhere there is nothing to see.
    ensure!(can(node).await?, "user namespaces and id-mapped mounts work on this kernel");
    let image = node.import("busybox").await?;
    let volume = node.path("volume");
    std::fs::create_dir(&volume)?;
    std::fs::write(volume.join("of-root"), "x")?;
    std::fs::set_permissions(volume.join("of-root"), std::fs::Permissions::from_mode(0o600))?;
    let mut config = user_pod(node, "users");
    config.linux.get_or_insert_default().sysctls =
        [("net.ipv4.ip_unprivileged_port_start", "80"), ("kernel.shm_rmid_forced", "1")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
    let sandbox = node.run_pod(&config).await?;
    let status = node.pod_status(&sandbox).await?;
    let told = status.linux.and_then(|l| l.namespaces?.options?.userns_options);
    ensure!(told == user(), "the status repeats the options: {told:?}");
    let mut main = in_pod(&config, shell("main", &image, "echo logged; echo x > /written; exec sleep 1000"));
    main.mounts.push(mapped(bind(&volume, "/v")));
    main.mounts.push(bind(&volume, "/plain"));
    let main = node.run(&sandbox, &config, main).await?;
    let other = in_pod(&config, shell("other", &image, "exec sleep 1000"));
    let other = node.run(&sandbox, &config, other).await?;
    inside(node, &main, &other).await?;
    volumes(node, &main, &volume).await?;
    from_outside(node, &main).await?;
    node.log_shows(&main, |line| line == "logged").await?;
    let mut runtime = node.runtime().await?;
    let stats = runtime.container_stats(v1::ContainerStatsRequest { container_id: main.clone() });
    let stats = stats.await?.into_inner().stats.context("stats")?;
    ensure!(stats.cpu.is_some() && stats.memory.is_some() && stats.writable_layer.is_some(), "{stats:?}");
    // The daemon's memory is the record's.
    node.kill_daemon().await?;
    node.start_daemon().await?;
    ensure!(node.sh(&other, "id -u").await?.trim() == "0", "exec after a restart");
    let again = in_pod(&config, shell("again", &image, "cat /proc/self/uid_map"));
    let again = node.run(&sandbox, &config, again).await?;
    ensure!(node.ended(&again).await?.exit_code == 0, "it ended well");
    node.log_shows(&again, |line| line.contains(&ROOT.to_string())).await?;
    node.stop_container(&main, 1).await?;
    ensure!(node.ended(&main).await?.exit_code == 137, "sleep as pid 1 hears no SIGTERM");
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}

async fn inside(node: &Node, main: &str, other: &str) -> Result<()> {
    let seen = node.sh(main, "id -u; cat /proc/self/uid_map; stat -c %u:%g / /etc /written").await?;
    let words: Vec<&str> = seen.split_whitespace().collect();
    ensure!(words == ["0", "0", &ROOT.to_string(), "65536", "0:0", "0:0", "0:0"], "{seen}");
    for ns in ["user", "net", "ipc", "uts"] {
        let link = format!("readlink /proc/self/ns/{ns}");
        ensure!(node.sh(main, &link).await? == node.sh(other, &link).await?, "one {ns} namespace");
    }
    // CRI-UNS-08: the pod's files are its root's.
    let owners = node.sh(main, "stat -c '%u %n' /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm").await?;
    ensure!(owners.lines().all(|line| line.starts_with("0 ")), "{owners}");
    ensure!(
        node.sh(main, "echo x > /dev/shm/x; echo '# mine' >> /etc/hosts; hostname").await? == "users\n",
        "files"
    );
    ensure!(node.sh(other, "cat /dev/shm/x").await? == "x\n", "shm is shared");
    // CRI-UNS-09, CRI-RUN-13: sysfs and the sysctls of the pod's own network namespace.
    let network = "ls /sys/class/net; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    let network = node.sh(main, network).await?;
    ensure!(
        network.contains("lo\n") && network.contains("eth0") && network.ends_with("80\n1\n"),
        "{network}"
    );
    let serve = "echo page > /tmp/index.html; httpd -p 80 -h /tmp; for i in $(seq 50); do wget -qO- http://127.0.0.1/ && exit 0; sleep 0.1; done; exit 1";
    ensure!(node.sh(main, serve).await? == "page\n", "a server");
    let (code, _, _) = node.exec(main, &["sh", "-c", "echo 1 > /proc/sys/vm/swappiness"]).await?;
    ensure!(code != 0, "the host's settings are not its own");
    Ok(())
}

/// CRI-UNS-06: a mapped volume has its files' own ids inside, an unmapped one is nobody's.
async fn volumes(node: &Node, main: &str, volume: &std::path::Path) -> Result<()> {
    let seen = node.sh(main, "cat /v/of-root; echo; stat -c %u:%g /v/of-root /plain/of-root; echo y > /v/new; chown 7:8 /v/new").await?;
    ensure!(seen == "x\n0:0\n65534:65534\n", "{seen}");
    let new = std::fs::metadata(volume.join("new"))?;
    ensure!((new.uid(), new.gid()) == (7, 8), "on disk as inside: {new:?}");
    let (code, _, _) = node.exec(main, &["cat", "/plain/of-root"]).await?;
    ensure!(code != 0, "the host root's file is closed");
    Ok(())
}

/// For the host every process of the pod is a user without rights, and so are its files.
async fn from_outside(node: &Node, main: &str) -> Result<()> {
    let request = v1::ContainerStatusRequest { container_id: main.into(), verbose: true };
    let info = node.runtime().await?.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("verbose info")?)?;
    let pid = info["pid"].as_i64().context("a pid")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.contains(&format!("Uid:\t{ROOT}\t{ROOT}\t{ROOT}\t{ROOT}")), "{status}");
    Ok(())
}

/// CRI-NS-03 with CRI-UNS-01: the reaper of a shared PID namespace is the pod's own too; CRI-NS-05.
#[test]
fn a_shared_pid_namespace_and_the_host_s_network() {
    on_a_node(Setup::default(), |node| Box::pin(other_modes(node)));
}

async fn other_modes(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let mut config = user_pod(node, "shared");
    pod_modes(&mut config).pid = v1::NamespaceMode::Pod.into();
    let sandbox = node.run_pod(&config).await?;
    let one = node.run(&sandbox, &config, in_pod(&config, shell("one", &image, "exec sleep 1000"))).await?;
    let two = node.run(&sandbox, &config, in_pod(&config, shell("two", &image, "exec sleep 2000"))).await?;
    ensure!(node.sh(&one, "ps").await?.contains("sleep 2000"), "processes are shared");
    ensure!(
        node.sh(&two, "kill -0 1 && stat -c %u /proc/1").await?.trim() == "0",
        "pid 1 is the pod's own root's"
    );
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await?;
    // CRI-UNS-09: where the network is the host's, its sysfs can be seen only.
    let mut config = user_pod(node, "hostnet");
    pod_modes(&mut config).network = v1::NamespaceMode::Node.into();
    let sandbox = node.run_pod(&config).await?;
    let main = node.run(&sandbox, &config, in_pod(&config, shell("main", &image, "exec sleep 1000"))).await?;
    let seen =
        node.sh(&main, "readlink /proc/self/ns/net; cat /proc/self/uid_map; ls -d /sys/class/net").await?;
    let host = std::fs::read_link("/proc/thread-self/ns/net")?.display().to_string();
    ensure!(
        seen.starts_with(&host) && seen.contains(&ROOT.to_string()) && seen.ends_with("/sys/class/net\n"),
        "{seen}"
    );
    Ok(())
}

/// IMG-VOL-03, and the `VOLUME`s of an image: what an image brings is its root's inside.
#[test]
fn image_volumes_are_mapped() {
    on_a_node(Setup::default(), |node| Box::pin(image_volumes(node)));
}

async fn image_volumes(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = user_pod(node, "images");
    let sandbox = node.run_pod(&config).await?;
    let mut main = in_pod(&config, shell("main", &image, "exec sleep 1000"));
    main.mounts.push(mapped(v1::Mount {
        container_path: "/image".into(),
        image: Some(v1::ImageSpec { image: image.clone(), ..Default::default() }),
        readonly: true,
        ..Default::default()
    }));
    let main = node.run(&sandbox, &config, main).await?;
    let seen = node.sh(&main, "stat -c %u:%g /image /image/bin; touch /image/x 2>&1 || true").await?;
    ensure!(seen.starts_with("0:0\n0:0\n") && seen.contains("Read-only"), "{seen}");
    Ok(())
}

/// CRI-UNS-02, CRI-UNS-03, CRI-UNS-04, CRI-UNS-05: refused by name, with nothing left (the node's leak check).
#[test]
fn what_cannot_be_is_refused() {
    on_a_node(Setup::default(), |node| Box::pin(refusals(node)));
}

async fn refusals(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let line = |container_id, host_id, length| v1::IdMapping { host_id, container_id, length };
    let with = |mode: v1::NamespaceMode, uids: Vec<v1::IdMapping>, gids: Vec<v1::IdMapping>| {
        Some(v1::UserNamespace { mode: mode.into(), uids, gids })
    };
    use v1::NamespaceMode::{Container, Pod};
    for (asked, word) in [
        (with(Container, map(), map()), "CONTAINER"),
        (with(Pod, vec![], vec![]), "exactly one"),
        (with(Pod, vec![line(0, ROOT, 5), line(5, 9, 5)], map()), "exactly one"),
        (with(Pod, map(), vec![line(0, 9, 65536)]), "the same"),
        (with(Pod, vec![line(0, ROOT, 0)], vec![line(0, ROOT, 0)]), "size 0"),
        (with(Pod, vec![line(3, ROOT, 9)], vec![line(3, ROOT, 9)]), "must be 0"),
    ] {
        let mut config = pod(node, "bad");
        pod_modes(&mut config).userns_options = asked;
        let error = node.run_pod(&config).await.err().context(word)?;
        let status = error.downcast_ref::<tonic::Status>().context("a status")?;
        ensure!(
            status.code() == tonic::Code::InvalidArgument && status.message().contains(word),
            "{word}: {error}"
        );
    }
    let config = user_pod(node, "good");
    let sandbox = node.run_pod(&config).await?;
    let mut foreign = in_pod(&config, shell("foreign", &image, "true"));
    modes(&mut foreign).userns_options = with(Pod, vec![line(0, 9, 65536)], vec![line(0, 9, 65536)]);
    let error = node.create(&sandbox, &config, foreign).await.err().context("another mapping")?;
    ensure!(error.to_string().contains("must be the sandbox's"), "{error}");
    // A file system that cannot be id-mapped: named, with what to do.
    let mut proc = in_pod(&config, shell("proc", &image, "true"));
    proc.mounts.push(mapped(bind(std::path::Path::new("/proc/sys"), "/host")));
    let outcome = node.run(&sandbox, &config, proc).await;
    let error = outcome.err().context("procfs cannot be id-mapped")?.to_string();
    ensure!(error.contains("cannot be id-mapped") && error.contains("/proc/sys"), "{error}");
    let plain = pod(node, "plain");
    let sandbox = node.run_pod(&plain).await?;
    let mut volume = shell("volume", &image, "true");
    volume.mounts.push(mapped(bind(&node.path("logs"), "/v")));
    let error = node.create(&sandbox, &plain, volume).await.err().context("maps without a namespace")?;
    ensure!(error.to_string().contains("user namespace"), "{error}");
    Ok(())
}

/// `hostUsers: false` without a kubelet.
#[test]
fn a_manifest_may_ask_for_users_of_its_own() {
    on_a_node(Setup::default(), |node| Box::pin(by_manifest(node)));
}

async fn by_manifest(node: &mut Node) -> Result<()> {
    node.import("busybox").await?;
    for name in ["first", "second"] {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  hostUsers: false\n  terminationGracePeriodSeconds: 1\n  volumes: [{{name: v, emptyDir: {{}}}}]\n  containers:\n  - {{name: main, image: 'test.local/busybox:1', command: [sh, -c, 'echo x > /v/x; exec sleep 1000'], volumeMounts: [{{name: v, mountPath: /v}}]}}\n"
        );
        let file = node.path(&format!("{name}.yaml"));
        std::fs::write(&file, text)?;
        node.slipway(&["run", &file.display().to_string()]).await?;
    }
    let mut roots = Vec::new();
    for name in ["first", "second"] {
        let script = "until [ -s /v/x ]; do sleep 0.1; done; stat -c %u /v/x; cat /proc/self/uid_map";
        let seen = node.slipway(&["exec", name, "--", "sh", "-c", script]).await?;
        let words: Vec<String> = seen.split_whitespace().map(str::to_owned).collect();
        ensure!(words.len() == 4 && words[..2] == ["0", "0"] && words[3] == "65536", "{seen}");
        roots.push(words[2].parse::<u32>()?);
        node.slipway(&["rm", name]).await?;
    }
    ensure!(roots.iter().all(|root| *root >= 1 << 30) && roots[0] != roots[1], "each its own: {roots:?}");
    Ok(())
}

const RUNTIME: &str = "io.containerd.slipway.v1";

/// SHIM-BUN-04, SHIM-IO-10: `ctr run --uidmap`, with a snapshot copied for the mapping and with layers mapped.
#[test]
fn ctr_runs_mapped_containers_on_containerd_2() {
    on_a_node(setup(Release::Two, Handler::Runc), |node| Box::pin(by_ctr(node)));
}

async fn by_ctr(node: &mut Node) -> Result<()> {
    let archive = e2e::registry::archive("busybox");
    node.ctr(&["images", "import", &archive.display().to_string()]).await?;
    let id_map = format!("0:{ROOT}:65536");
    let script = "id -u; cat /proc/self/uid_map; stat -c %u:%g /bin/busybox; echo x > /new; stat -c %u /new; echo out > /dev/stdout";
    for (id, how) in [("copied", &[][..]), ("mapped", &["--remap-labels"][..])] {
        let cgroup = format!("{}/{id}", node.cgroup_root());
        let maps = ["--uidmap", &id_map, "--gidmap", &id_map];
        let args = [
            &["run", "--rm", "--runtime", RUNTIME, "--cgroup", &cgroup][..],
            how,
            &maps,
            &["test.local/busybox:1", id, "sh", "-c", script],
        ]
        .concat();
        let seen = node.ctr(&args).await?;
        let words: Vec<&str> = seen.split_whitespace().collect();
        ensure!(words == ["0", "0", &ROOT.to_string(), "65536", "0:0", "0", "out"], "{id}: {seen}");
    }
    Ok(())
}

/// CRI-UNS-01, CRI-RUN-13, SHIM-SBX-04 through containerd 2: without a pause container, and in its classic sandbox.
#[test]
fn containerd_s_pods_have_users_of_their_own() {
    on_a_node(setup(Release::Two, Handler::Slipway), |node| Box::pin(containerd_pod(node)));
}

#[test]
fn containerd_s_classic_pods_have_users_of_their_own() {
    on_a_node(setup(Release::Two, Handler::SlipwayClassic), |node| Box::pin(containerd_pod(node)));
}

async fn containerd_pod(node: &mut Node) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    let volume = node.path("volume");
    std::fs::create_dir(&volume)?;
    let config = user_pod(node, "users");
    let sandbox = node.run_pod(&config).await?;
    let mut main = in_pod(&config, shell("main", &image, "echo logged; exec sleep 1000"));
    main.mounts.push(mapped(bind(&volume, "/v")));
    let main = node.run(&sandbox, &config, main).await?;
    let script = "id -u; cat /proc/self/uid_map; stat -c %u:%g / /v; echo x > /v/x; ls /sys/class/net; stat -c '%u' /etc/hosts";
    let seen = node.sh(&main, script).await?;
    let words: Vec<&str> = seen.split_whitespace().collect();
    ensure!(words[..6] == ["0", "0", &ROOT.to_string(), "65536", "0:0", "0:0"], "{seen}");
    ensure!(words.contains(&"eth0") && words.contains(&"lo"), "its own network: {seen}");
    ensure!(std::fs::metadata(volume.join("x"))?.uid() == 0, "on disk as inside");
    let start = Instant::now();
    while !node.log(&main).await.unwrap_or_default().iter().any(|(_, _, text)| text == "logged") {
        ensure!(start.elapsed() < Duration::from_secs(30), "no log");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}
