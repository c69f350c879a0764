//! Pods with a user namespace of their own, where it is hard: what their root tries in vain, what must work all the same,
//! and kills in the middle (CRI-UNS-*).

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::requests::{in_pod, pod, pod_modes, pod_security, security, shell};
use e2e::{Node, Setup, on_a_node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The host's id of the pods' root here.
const ROOT: u32 = 1_600_000_000;

/// A pod whose `length` first ids are the host's from [`ROOT`] on.
fn user_pod(node: &Node, name: &str, length: u32) -> v1::PodSandboxConfig {
    let mut config = pod(node, name);
    let map = vec![v1::IdMapping { container_id: 0, host_id: ROOT, length }];
    let user = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: map.clone(), gids: map };
    pod_modes(&mut config).userns_options = Some(user);
    config
}

/// CRI-UNS-01, CRI-UNS-09: its root has no rights on the host, whatever it finds.
#[test]
fn root_inside_is_nobody_outside() {
    on_a_node(Setup::default(), |node| Box::pin(in_vain(node)));
}

async fn in_vain(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = user_pod(node, "vain", 65536);
    let sandbox = node.run_pod(&config).await?;
    let mut main = in_pod(&config, shell("main", &image, "exec sleep 1000"));
    // All that can be given, given.
    security(&mut main).capabilities =
        Some(v1::Capability { add_capabilities: vec!["ALL".into()], ..Default::default() });
    let main = node.run(&sandbox, &config, main).await?;
    for script in [
        "echo /x > /proc/sys/kernel/core_pattern",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo h > /proc/sysrq-trigger",
        "echo 1 > /sys/kernel/mm/ksm/run",
        "mknod /sda b 8 0",
        "mknod /dev/kmsg2 c 1 11 && cat /dev/kmsg2",
        "hostname other-than-the-host-s && mount -o remount,rw /sys",
        "umount /proc/kcore",
        "mkdir -p /d && mount -t devtmpfs none /d",
        "chroot /proc/1/root ls /root/.cargo",
        "echo 0 0 4294967295 > /proc/self/uid_map",
        "echo -1000 > /proc/self/oom_score_adj",
    ] {
        let (code, out, err) = node.exec(&main, &["sh", "-c", script]).await?;
        ensure!(code != 0, "{script:?} succeeded: {out}{err}");
    }
    // What is its own, it may change: its network, its mounts, its host name.
    let own = "ip addr add 10.9.9.9/32 dev lo && ping -c 1 -W 5 10.9.9.9 >/dev/null && mkdir /m && mount -t tmpfs none /m && hostname mine && hostname";
    ensure!(node.sh(&main, own).await? == "mine\n", "its own");
    let raw = node.sh(&main, "cat /proc/self/cgroup | cut -d: -f3 | sort -u").await?;
    let own = |line: &str| line == "/" || line.starts_with("/exec-");
    ensure!(raw.lines().all(own), "a view of control groups from its own: {raw}");
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}

/// CRI-USR-*, CRI-RES-14, CRI-DEV-01 in a user namespace: users, groups, streams, terminals, devices, scores.
#[test]
fn users_inside_have_what_users_have() {
    on_a_node(Setup::default(), |node| Box::pin(ordinary_things(node)));
}

async fn ordinary_things(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = user_pod(node, "ordinary", 65536);
    let sandbox = node.run_pod(&config).await?;
    let script = "id -u; id -G; cat /proc/self/oom_score_adj; echo opened > /dev/stdout; head -c 4 /dev/mine | wc -c; stat -c %u:%g:%a /dev/null /dev/pts; exec sleep 1000";
    let mut user = in_pod(&config, shell("user", &image, script));
    user.linux.get_or_insert_default().resources =
        Some(v1::LinuxContainerResources { oom_score_adj: 500, ..Default::default() });
    let context = security(&mut user);
    (context.run_as_user, context.run_as_group) =
        (Some(v1::Int64Value { value: 1000 }), Some(v1::Int64Value { value: 2000 }));
    context.supplemental_groups = vec![3000];
    user.devices.push(v1::Device {
        container_path: "/dev/mine".into(),
        host_path: "/dev/zero".into(),
        permissions: "rw".into(),
    });
    let user = node.run(&sandbox, &config, user).await?;
    node.log_shows(&user, |line| line.contains("755")).await?;
    let log: Vec<String> = node.log(&user).await?.into_iter().map(|(_, _, text)| text).collect();
    // As without a user namespace: nodes and their modes, the score, the groups (two are the image's own).
    let expected = ["1000", "2000 3000 5000 5001", "500", "opened", "4", "0:0:666", "0:0:755"];
    ensure!(log == expected, "{log:?}");
    let seen = node.sh(&user, "id -u; id -G; cat /proc/self/oom_score_adj; echo again > /dev/stdout").await?;
    ensure!(seen == "1000\n2000 3000 5000 5001\n500\nagain\n", "exec is the same: {seen}");

    let script = "stat -c %u $(tty); echo written > $(tty); exec sleep 1000";
    let mut terminal = in_pod(&config, shell("terminal", &image, script));
    terminal.tty = true;
    security(&mut terminal).run_as_user = Some(v1::Int64Value { value: 1000 });
    let terminal = node.run(&sandbox, &config, terminal).await?;
    node.log_shows(&terminal, |line| line.trim() == "written").await?;
    ensure!(node.log(&terminal).await?.iter().any(|(_, _, text)| text.trim() == "1000"), "its terminal");

    // CRI-OOM: told as for anybody.
    let script = "exec tail -c 100m /dev/zero";
    let mut eater = in_pod(&config, shell("eater", &image, script));
    eater.linux.get_or_insert_default().resources = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 24 << 20,
        memory_swap_limit_in_bytes: 24 << 20,
        ..Default::default()
    });
    let eater = node.run(&sandbox, &config, eater).await?;
    let end = node.ended(&eater).await?;
    ensure!((end.exit_code, &*end.reason) == (137, "OOMKilled"), "{end:?}");
    Ok(())
}

/// CRI-UNS-03: who is nobody in the pod's ids is told so before anything runs.
#[test]
fn a_user_outside_of_the_map_is_refused() {
    on_a_node(Setup::default(), |node| Box::pin(outside(node)));
}

async fn outside(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = user_pod(node, "narrow", 1000);
    let sandbox = node.run_pod(&config).await?;
    let mut who = in_pod(&config, shell("who", &image, "true"));
    security(&mut who).run_as_user = Some(v1::Int64Value { value: 5000 });
    let error = node.run(&sandbox, &config, who).await.err().context("5000 is not mapped")?.to_string();
    ensure!(error.contains("process.user.uid") && error.contains("5000"), "{error}");
    let mut group = in_pod(&config, shell("group", &image, "true"));
    security(&mut group).supplemental_groups = vec![70_000];
    let error = node.run(&sandbox, &config, group).await.err().context("70000 is not mapped")?.to_string();
    ensure!(error.contains("additionalGids") && error.contains("70000"), "{error}");
    // The last id of the map is somebody.
    let mut last = in_pod(&config, shell("last", &image, "id -u; touch /tmp/x && stat -c %u /tmp/x"));
    security(&mut last).run_as_user = Some(v1::Int64Value { value: 999 });
    let last = node.run(&sandbox, &config, last).await?;
    let end = node.ended(&last).await?;
    ensure!(end.exit_code == 0, "{end:?}: {:?}", node.log(&last).await?);
    Ok(())
}

/// A privileged container of a privileged pod is root of its own user namespace, and no more.
#[test]
fn privileged_is_not_the_host_s_root() {
    on_a_node(Setup::default(), |node| Box::pin(privileged(node)));
}

async fn privileged(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let mut config = user_pod(node, "privileged", 65536);
    pod_security(&mut config).privileged = true;
    let sandbox = node.run_pod(&config).await?;
    let mut main = in_pod(&config, shell("main", &image, "exec sleep 1000"));
    security(&mut main).privileged = true;
    let main = node.run(&sandbox, &config, main).await?;
    let seen = node.sh(&main, "cat /proc/self/uid_map; mkdir /m && mount -t tmpfs none /m && echo mounted; test -c /dev/null && echo x > /dev/null && echo device").await?;
    ensure!(seen.contains(&ROOT.to_string()) && seen.ends_with("mounted\ndevice\n"), "{seen}");
    let vain = [
        "echo /x > /proc/sys/kernel/core_pattern",
        "mknod /sda b 8 0",
        "mkdir -p /d && mount -t devtmpfs none /d",
    ];
    for script in vain {
        let (code, out, err) = node.exec(&main, &["sh", "-c", script]).await?;
        ensure!(code != 0, "{script:?} succeeded: {out}{err}");
    }
    Ok(())
}

/// DESIGN 1B: the pod's namespaces outlive keeper and daemon.
#[test]
fn kills_in_the_middle_lose_nothing() {
    on_a_node(Setup::default(), |node| Box::pin(kills(node)));
}

async fn kills(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let mut config = user_pod(node, "kills", 65536);
    pod_modes(&mut config).pid = v1::NamespaceMode::Pod.into();
    let sandbox = node.run_pod(&config).await?;
    let steady = in_pod(&config, shell("steady", &image, "trap 'exit 9' TERM; while :; do sleep 0.1; done"));
    let steady = node.run(&sandbox, &config, steady).await?;
    let parked = in_pod(&config, shell("parked", &image, "id -u; exit 6"));
    let parked = node.create(&sandbox, &config, parked).await?;
    let before = node.sh(&steady, "readlink /proc/self/ns/user").await?;
    kill(Pid::from_raw(node.keeper_pid().await?), Signal::SIGKILL)?;
    node.kill_daemon().await?;
    node.start_daemon().await?;
    node.start_container(&parked).await?;
    ensure!(node.ended(&parked).await?.exit_code == 6, "created before, started after");
    ensure!(node.sh(&steady, "readlink /proc/self/ns/user").await? == before, "exec joins the same");
    let late =
        in_pod(&config, shell("late", &image, "readlink /proc/self/ns/user; cat /etc/hosts >/dev/null"));
    let late = node.run(&sandbox, &config, late).await?;
    ensure!(node.ended(&late).await?.exit_code == 0, "a new one");
    node.log_shows(&late, |line| line == before.trim()).await?;
    node.stop_container(&steady, 10).await?;
    ensure!(node.container_status(&steady).await?.exit_code == 9, "stopped by its own handler");
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}
