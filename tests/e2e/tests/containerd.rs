//! The containerd door: `io.containerd.slipway.v1` behind Debian's containerd (1.6) and the pinned 2.x, by crictl and
//! CRI calls (ctr's side is in containerd_ctr.rs). Every test ends with the leak check of a node.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::containerd::{Handler, OURS, Release, setup, until};
use e2e::requests::{bind, in_pod, pod, pod_modes, shell};
use e2e::streams::{texts, type_into};
use e2e::{Node, on_a_node};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// A node of each kind that runs pods under our handler.
const CLASSIC_1: (Release, Handler) = (Release::Debian, Handler::SlipwayClassic);
const CLASSIC_2: (Release, Handler) = (Release::Two, Handler::SlipwayClassic);
const SANDBOX_2: (Release, Handler) = (Release::Two, Handler::Slipway);

// ---------------------------------------------------------------- CRI

/// SHIM-VER-01, SHIM-GRP-01, SHIM-GRP-02, SHIM-TST-01.
#[test]
fn pods_in_the_classic_sandbox_of_debians_containerd() {
    on_a_node(setup(CLASSIC_1.0, CLASSIC_1.1), |node| Box::pin(pods(node)));
}

/// SHIM-GRP-03, SHIM-GRP-04.
#[test]
fn pods_in_the_classic_sandbox_of_containerd_2() {
    on_a_node(setup(CLASSIC_2.0, CLASSIC_2.1), |node| Box::pin(pods(node)));
}

/// SHIM-SBX-01, SHIM-SBX-03, SHIM-SBX-04, SHIM-SBX-06, SHIM-SBX-07, SHIM-SBX-13, SHIM-SBX-14.
#[test]
fn pods_without_a_pause_container_on_containerd_2() {
    on_a_node(setup(SANDBOX_2.0, SANDBOX_2.1), |node| Box::pin(pods_without_pause(node)));
}

async fn pods_without_pause(node: &mut Node) -> Result<()> {
    pods(node).await?;
    let config = pod(node, "bare");
    let sandbox = node.run_pod(&config).await?;
    let listed = node.ctr(&["-n", "k8s.io", "task", "ls", "-q"]).await?;
    ensure!(listed.trim().is_empty(), "a pod without containers has no task: {listed}");
    let keepers = node.keepers();
    ensure!(keepers.len() == 1, "one keeper: {keepers:?}");
    let below = e2e::leaks::children(keepers[0]);
    ensure!(below.is_empty(), "a pod has no process of its own: {below:?}");
    // Its files hold no more than they should, and outlive the keeper.
    let image = "test.local/busybox:1";
    let main = node.run(&sandbox, &config, shell("main", image, "exec sleep 1000")).await?;
    let fill = "dd if=/dev/zero of=/etc/hostname bs=64k count=1024 conv=notrunc oflag=append; stat -c %s /etc/hostname";
    let (_, size, error) = node.exec(&main, &["sh", "-c", fill]).await?;
    let size: u64 = size.trim().parse()?;
    ensure!(size <= 1 << 20 && error.contains("No space left"), "{size}: {error}");
    let keeper = nix::unistd::Pid::from_raw(keepers[0]);
    nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGKILL)?;
    let late = node.run(&sandbox, &config, shell("late", image, "exec sleep 1000")).await?;
    let shown = node.sh(&late, "stat -c %s /etc/hostname").await?;
    ensure!(shown.trim().parse() == Ok(size), "the same file: {shown}");
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}

async fn pods(node: &mut Node) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    let volume = node.path("volume");
    std::fs::create_dir(&volume)?;
    let mut config = pod(node, "both");
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.9.9.9".into()],
        searches: vec!["a.b".into()],
        options: vec![],
    });
    let sandbox = node.run_pod(&config).await?;
    let script = "echo page > /v/page; echo shm > /dev/shm/x; exec httpd -f -p 8080 -h /v";
    let mut server = shell("server", &image, script);
    server.mounts.push(bind(&volume, "/v"));
    let server = node.run(&sandbox, &config, server).await?;
    let client = node.run(&sandbox, &config, shell("client", &image, "sleep 1000")).await?;
    let fetch =
        "for i in $(seq 50); do wget -qO- http://127.0.0.1:8080/page && exit 0; sleep 0.1; done; exit 1";
    ensure!(node.sh(&client, fetch).await?.trim() == "page", "localhost is shared");
    ensure!(node.sh(&client, "cat /dev/shm/x").await?.trim() == "shm", "/dev/shm is shared");
    ensure!(node.sh(&client, "hostname; cat /etc/hostname").await? == "both\nboth\n", "hostname");
    let resolv = node.sh(&client, "cat /etc/resolv.conf").await?;
    ensure!(resolv.contains("nameserver 10.9.9.9") && resolv.contains("search a.b"), "resolv.conf: {resolv}");
    ensure!(node.sh(&client, "cat /proc/1/cmdline").await?.starts_with("sleep"), "a pid 1 of its own");
    let (code, out, err) = node.exec(&client, &["sh", "-c", "echo o; echo e >&2; exit 3"]).await?;
    ensure!((code, out.as_str(), err.as_str()) == (3, "o\n", "e\n"), "exec: {code} {out} {err}");
    ensure!(!node.pod_ip(&sandbox).await?.is_empty(), "an address");
    let brief = node.run(&sandbox, &config, shell("brief", &image, "echo last words; exit 42")).await?;
    let ended = node.ended(&brief).await?;
    ensure!(ended.exit_code == 42, "{ended:?}");
    node.log_shows(&brief, |line| line == "last words").await?;
    ensure!(node.keepers().len() == 1, "one keeper for all: {:?}", node.keepers());
    let shown = node.crictl(&["stats", "--output", "json"]).await?;
    ensure!(shown.contains(&client), "crictl stats: {shown}");
    let inside = node.crictl(&["exec", "-s", &client, "echo", "by crictl"]).await?;
    ensure!(inside.trim() == "by crictl", "{inside}");
    node.stop_container(&server, 1).await?;
    node.remove_container(&server).await?;
    node.stop_pod(&sandbox).await?;
    ensure!(node.pod_status(&sandbox).await?.state() == v1::PodSandboxState::SandboxNotready, "stopped");
    node.remove_pod(&sandbox).await
}

/// STR-STM-17, STR-STM-20, SHIM-TSK-25, SHIM-IO-09: crictl's terminals through containerd, of an exec and of a container.
#[test]
fn crictls_terminals_on_debians_containerd() {
    on_a_node(setup(CLASSIC_1.0, CLASSIC_1.1), |node| Box::pin(crictl_terminals(node)));
}

#[test]
fn crictls_terminals_on_containerd_2() {
    on_a_node(setup(SANDBOX_2.0, SANDBOX_2.1), |node| Box::pin(crictl_terminals(node)));
}

async fn crictl_terminals(node: &mut Node) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    let config = pod(node, "terminals");
    let sandbox = node.run_pod(&config).await?;
    let client = node.run(&sandbox, &config, shell("main", &image, "sleep 1000")).await?;
    let script = "tty >/dev/null && echo a terminal; \
                  i=0; until [ \"$(stty size)\" = '40 123' ] || [ $i = 600 ]; do i=$((i+1)); sleep 0.05; done; \
                  stty size; echo to stderr >&2; read line; echo \"read $line\"; exit 3";
    let crictl = node.crictl_command(&["exec", "-it", &client, "sh", "-c", script]);
    let output = type_into(node.in_a_terminal(&crictl, 123, 40), b"typed\n").await?;
    let (said, _) = texts(&output);
    for words in ["a terminal\r\n", "40 123", "to stderr\r\n", "read typed\r\n"] {
        ensure!(said.contains(words), "exec -it: {words:?} is not in {said:?}");
    }
    let mut tty = shell("tty", &image, "stty -echo; while read line; do echo \"$(stty size) $line\"; done");
    (tty.stdin, tty.tty) = (true, true);
    let tty = node.run(&sandbox, &config, tty).await?;
    for (columns, rows) in [(99, 33), (88, 22)] {
        // The second client finds the terminal as the first one left it.
        let crictl = node.crictl_command(&["attach", "-it", &tty]);
        let mut client = node.in_a_terminal(&crictl, columns, rows).spawn()?;
        let mut keys = client.stdin.take().context("stdin")?;
        let mut lines = BufReader::new(client.stdout.take().context("stdout")?).lines();
        let expected = format!("{rows} {columns} size");
        let shown = async {
            loop {
                keys.write_all(b"size\r").await?;
                let line = lines.next_line().await?.context("the client ended")?;
                if line.contains(&expected) {
                    return anyhow::Ok(());
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), shown).await.context("attach -it: the size")??;
        client.kill().await?;
    }
    ensure!(node.container_status(&tty).await?.state() == v1::ContainerState::ContainerRunning, "runs on");
    Ok(())
}

/// A pod among the host's processes, as the whole pod's configuration says.
#[test]
fn a_pod_among_the_hosts_processes() {
    on_a_node(setup(SANDBOX_2.0, SANDBOX_2.1), |node| Box::pin(host_processes(node)));
}

async fn host_processes(node: &mut Node) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    let mut config = pod(node, "hostpid");
    pod_modes(&mut config).pid = v1::NamespaceMode::Node.into();
    let sandbox = node.run_pod(&config).await?;
    let main = node.run(&sandbox, &config, in_pod(&config, shell("main", &image, "sleep 1000"))).await?;
    let inside = node.sh(&main, "readlink /proc/self/ns/pid").await?;
    let ours = std::fs::read_link("/proc/self/ns/pid")?.display().to_string();
    ensure!(inside.trim() == ours, "{inside} is not {ours}");
    node.stop_container(&main, 0).await
}

/// SHIM-INFO-01, SHIM-INFO-02, SHIM-INFO-04: what `-info` tells, containerd offers, and it is there.
#[test]
fn containerd_offers_what_the_shim_can_do() {
    on_a_node(setup(SANDBOX_2.0, SANDBOX_2.1), |node| Box::pin(offers(node)));
}

async fn offers(node: &mut Node) -> Result<()> {
    let status = node.runtime().await?.status(v1::StatusRequest::default()).await?.into_inner();
    let ours = status.runtime_handlers.iter().find(|handler| handler.name == OURS);
    let features = ours.and_then(|handler| handler.features).context("our handler's features")?;
    ensure!(features.recursive_read_only_mounts && features.user_namespaces, "{features:?}");
    let image = node.import_for_cri("busybox").await?;
    // A mount below the volume, that recursively read-only includes.
    let volume = node.path("volume");
    let below = volume.join("below");
    std::fs::create_dir_all(&below)?;
    let tmpfs = Some("tmpfs");
    nix::mount::mount(tmpfs, &below, tmpfs, nix::mount::MsFlags::empty(), None::<&str>)?;
    let used = features_used(node, &image, &volume).await;
    nix::mount::umount(&below)?;
    used
}

async fn features_used(node: &Node, image: &str, volume: &std::path::Path) -> Result<()> {
    let map = || vec![v1::IdMapping { host_id: 300_000, container_id: 0, length: 65_536 }];
    let mut config = pod(node, "mapped");
    pod_modes(&mut config).userns_options =
        Some(v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: map(), gids: map() });
    let sandbox = node.run_pod(&config).await?;
    let mapped = node.run(&sandbox, &config, in_pod(&config, shell("main", image, "sleep 1000"))).await?;
    let map = node.sh(&mapped, "cat /proc/self/uid_map").await?;
    ensure!(map.split_whitespace().eq(["0", "300000", "65536"]), "{map}");
    let config = pod(node, "mounts");
    let sandbox = node.run_pod(&config).await?;
    let mut main = shell("main", image, "sleep 1000");
    main.mounts.push(v1::Mount { readonly: true, recursive_read_only: true, ..bind(volume, "/rro") });
    main.mounts.push(v1::Mount { readonly: true, ..bind(volume, "/ro") });
    let spec = v1::ImageSpec { image: image.into(), ..Default::default() };
    let from_image = v1::Mount { container_path: "/image".into(), readonly: true, ..Default::default() };
    main.mounts.push(v1::Mount { image: Some(spec), ..from_image });
    let main = node.run(&sandbox, &config, main).await?;
    node.sh(&main, "[ -e /image/bin/busybox ] && touch /ro/below/x").await?;
    for path in ["/rro/x", "/rro/below/y", "/image/new"] {
        let (code, _, error) = node.exec(&main, &["touch", path]).await?;
        ensure!(code != 0 && error.contains("Read-only"), "{path}: {code} {error}");
    }
    node.stop_container(&main, 0).await?;
    node.stop_container(&mapped, 0).await
}

/// A RuntimeClass beside runc on one node, on both releases.
#[test]
fn a_runtime_class_beside_runc_on_debians_containerd() {
    on_a_node(setup(Release::Debian, Handler::Runc), |node| Box::pin(beside_runc(node)));
}

#[test]
fn a_runtime_class_beside_runc_on_containerd_2() {
    on_a_node(setup(Release::Two, Handler::Runc), |node| Box::pin(beside_runc(node)));
}

async fn beside_runc(node: &mut Node) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    let (theirs, ours) = (pod(node, "theirs"), pod(node, "ours"));
    let (pod_theirs, pod_ours) = (node.run_pod(&theirs).await?, node.run_pod_under(&ours, OURS).await?);
    let one = node.run(&pod_theirs, &theirs, shell("c", &image, "sleep 1000")).await?;
    let two = node.run(&pod_ours, &ours, shell("c", &image, "sleep 1000")).await?;
    for id in [&one, &two] {
        ensure!(node.sh(id, "echo in").await?.trim() == "in", "exec");
    }
    ensure!(node.keepers().len() == 1, "one is ours: {:?}", node.keepers());
    let reach = format!("ping -c 1 -W 2 {}", node.pod_ip(&pod_theirs).await?);
    node.sh(&two, &reach).await.context("pods of both reach each other")?;
    for id in [&pod_theirs, &pod_ours] {
        node.stop_pod(id).await?;
        node.remove_pod(id).await?;
    }
    Ok(())
}

/// SHIM-GRP-01, SHIM-OPT-03, SHIM-SBX-11: a crash domain per pod by one option; a keeper ends with its pod.
#[test]
fn each_pod_has_a_keeper_of_its_own_by_an_option() {
    on_a_node(setup(Release::Two, Handler::SlipwayPerPod), |node| Box::pin(keeper_per_pod(node)));
}

#[test]
fn each_pod_has_a_keeper_of_its_own_on_debians_containerd() {
    on_a_node(setup(Release::Debian, Handler::SlipwayPerPod), |node| Box::pin(keeper_per_pod(node)));
}

async fn keeper_per_pod(node: &mut Node) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    let mut pods = Vec::new();
    for name in ["one", "two"] {
        let config = pod(node, name);
        let sandbox = node.run_pod(&config).await?;
        let main = node.run(&sandbox, &config, shell("main", &image, "sleep 1000")).await?;
        node.run(&sandbox, &config, shell("side", &image, "sleep 1000")).await?;
        pods.push((sandbox, main));
    }
    ensure!(node.keepers().len() == 2, "{:?}", node.keepers());
    let (sandbox, _) = &pods[0];
    node.stop_pod(sandbox).await?;
    node.remove_pod(sandbox).await?;
    until("the first pod's keeper is gone", async || Ok(node.keepers().len() == 1)).await?;
    ensure!(node.sh(&pods[1].1, "echo in").await?.trim() == "in", "the other is not affected");
    Ok(())
}

/// hack/containerd sets a node up and back: afterwards its configuration is as it was, to the byte.
#[test]
fn the_script_turns_the_handler_on_and_off() {
    let dir = tempfile::tempdir().expect("directory");
    let root = dir.path().to_str().expect("utf-8").to_owned();
    let bin = e2e::node::binary("slipway");
    let script = |action: &str| {
        let output = std::process::Command::new(e2e::node::repository().join("hack/containerd"))
            .args([action, "--root", &root])
            .env("SLIPWAY_BIN_DIR", bin.parent().expect("directory"))
            .output()
            .expect("hack/containerd");
        assert!(output.status.success(), "{action}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let config = dir.path().join("etc/containerd/config.toml");
    let read = || std::fs::read_to_string(&config).expect("configuration");
    script("on");
    assert_eq!(script("status"), "on");
    assert!(read().contains("io.containerd.slipway.v1"), "{}", read());
    script("off");
    assert!(!config.exists(), "there was none before");
    let text = "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"x\" # mine\n";
    std::fs::write(&config, text).expect("write");
    script("on");
    script("on");
    assert!(read().starts_with(text) && read().contains("runtimes.slipway]"), "{}", read());
    script("off");
    assert_eq!((read(), script("status")), (text.to_owned(), "off".to_owned()));
    assert_eq!(std::fs::read_dir(dir.path().join("usr/local/bin")).expect("bin").count(), 0);
}

// ---------------------------------------------------------------- churn

/// Pods come and go, eight at a time, and nothing of them stays (hack/soak does the same with 1,000).
#[test]
fn churn_leaves_nothing_on_debians_containerd() {
    on_a_node(setup(CLASSIC_1.0, CLASSIC_1.1), |node| Box::pin(churn(node, 24)));
}

#[test]
fn churn_leaves_nothing_on_containerd_2() {
    on_a_node(setup(SANDBOX_2.0, SANDBOX_2.1), |node| Box::pin(churn(node, 24)));
}

async fn churn(node: &mut Node, count: usize) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    // One that stays, so that the same keeper is looked at.
    let config = pod(node, "stays");
    let sandbox = node.run_pod(&config).await?;
    node.run(&sandbox, &config, shell("main", &image, "sleep 1000")).await?;
    e2e::containerd::churn(node, &image, 4).await?;
    let before = e2e::containerd::census(node)?;
    e2e::containerd::churn(node, &image, count).await?;
    let mut after = BTreeMap::new();
    until("the same numbers as before", async || {
        after = e2e::containerd::census(node)?;
        Ok(after == before)
    })
    .await
    .with_context(|| format!("before {before:?}, after {after:?}"))
}
