//! What is in force inside: kernel parameters, name service, limits, capabilities, devices, masks; for the first process
//! and for commands alike.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::requests::{bind, modes, pod, pod_modes, pod_security, security, shell};
use e2e::{Node, Setup, on_a_node};
use std::collections::HashMap;
use tonic::Code;

const SLEEP: &str = "exec sleep 1000";

/// A line of a process's /proc/<pid>/status or limits on the host.
fn line_of(pid: i32, file: &str, key: &str) -> Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line =
        text.lines().find(|line| line.starts_with(key)).with_context(|| format!("no {key}: {text}"))?;
    Ok(line.to_owned())
}

/// CRI-RUN-22, CRI-RUN-23, CRI-NET-05, CRI-NET-06, CRI-NS-06.
#[test]
fn pods_have_their_kernel_parameters_and_name_servers() {
    on_a_node(Setup::default(), |node| Box::pin(parameters(node)));
}

async fn parameters(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let sysctl = |name: &str, value: &str| HashMap::from([(name.to_owned(), value.to_owned())]);
    let mut config = pod(node, "parameters");
    let linux = config.linux.get_or_insert_default();
    linux.sysctls = sysctl("kernel.shm_rmid_forced", "1");
    linux.sysctls.extend(sysctl("fs.mqueue.msg_max", "20"));
    linux.sysctls.extend(sysctl("net.ipv4.ip_unprivileged_port_start", "80"));
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.9.8.7".into(), "10.9.8.6".into()],
        searches: vec!["a.example".into(), "b.example".into()],
        options: vec!["ndots:3".into()],
    });
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, SLEEP)).await?;
    for (file, value) in [
        ("kernel/shm_rmid_forced", "1"),
        ("fs/mqueue/msg_max", "20"),
        ("net/ipv4/ip_unprivileged_port_start", "80"),
    ] {
        let seen = node.sh(&id, &format!("cat /proc/sys/{file}")).await?;
        ensure!(seen.trim() == value, "{file}: {seen}");
    }
    let resolv = node.sh(&id, "cat /etc/resolv.conf").await?;
    let expected = "search a.example b.example\nnameserver 10.9.8.7\nnameserver 10.9.8.6\noptions ndots:3\n";
    ensure!(resolv == expected, "{resolv}");

    // What a namespace does not hold would be the host's own.
    let before = std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced")?;
    for (name, ipc) in [("net.ipv4.ip_unprivileged_port_start", false), ("kernel.shm_rmid_forced", true)] {
        let mut host = pod(node, "on-the-host");
        host.linux.get_or_insert_default().sysctls = sysctl(name, "1");
        let options = pod_modes(&mut host);
        let mode = if ipc { &mut options.ipc } else { &mut options.network };
        *mode = v1::NamespaceMode::Node.into();
        let error =
            node.run_pod(&host).await.err().context("it must be refused")?.downcast::<tonic::Status>()?;
        ensure!(error.code() == Code::InvalidArgument && error.message().contains(name), "{error:?}");
    }
    ensure!(std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced")? == before);

    let mut host = pod(node, "host-ipc");
    pod_modes(&mut host).ipc = v1::NamespaceMode::Node.into();
    let sandbox = node.run_pod(&host).await?;
    let mut main = shell("main", &image, SLEEP);
    modes(&mut main).ipc = v1::NamespaceMode::Node.into();
    let main = node.run(&sandbox, &host, main).await?;
    let ours = std::fs::read_link("/proc/self/ns/ipc")?;
    ensure!(
        node.sh(&main, "readlink /proc/1/ns/ipc").await?.trim() == ours.to_string_lossy(),
        "the host's IPC"
    );
    Ok(())
}

/// CRI-CC-11, CRI-CC-12, CRI-RES-14, CRI-SEC-13, CRI-SEC-14, CRI-USR-04, CRI-USR-11, CRI-XS-08, CRI-DEV-01, CRI-MNT-14.
#[test]
fn processes_are_confined_as_asked() {
    on_a_node(Setup::default(), |node| Box::pin(confined(node)));
}

async fn confined(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "confined");
    let sandbox = node.run_pod(&config).await?;
    let link = node.path("device");
    std::os::unix::fs::symlink("/dev/kmsg", &link)?;
    let data = node.path("data");
    std::fs::create_dir(&data)?;
    let mut main = shell("main", &image, SLEEP);
    main.envs = vec![v1::KeyValue { key: "COLOUR".into(), value: b"blue".to_vec() }];
    main.mounts = vec![v1::Mount {
        mount_options: ["noexec", "nodev", "nosuid"].map(Into::into).into(),
        ..bind(&data, "/data")
    }];
    main.devices = vec![v1::Device {
        host_path: link.display().to_string(),
        container_path: "/dev/mine".into(),
        permissions: "w".into(),
    }];
    main.linux.get_or_insert_default().resources =
        Some(v1::LinuxContainerResources { oom_score_adj: 500, ..Default::default() });
    let wants = security(&mut main);
    wants.no_new_privs = true;
    wants.readonly_rootfs = true;
    wants.masked_paths = ["/etc/passwd", "/sys/kernel", "/absent"].map(Into::into).into();
    wants.readonly_paths = vec!["/proc/sys".into()];
    let id = node.run(&sandbox, &config, main).await?;

    ensure!(
        node.sh(&id, "cat /etc/passwd; ls -A /sys/kernel; cat /proc/1/oom_score_adj").await?.trim() == "500"
    );
    for path in ["/x", "/sys/kernel/x", "/proc/sys/kernel/domainname"] {
        let (code, _, error) = node.exec(&id, &["sh", "-c", &format!("echo x > {path}")]).await?;
        ensure!(code != 0 && error.contains("Read-only"), "{path}: {code} {error}");
    }
    node.sh(&id, "cp /bin/busybox /data/tool && chmod 4755 /data/tool").await?;
    let (code, _, error) = node.exec(&id, &["sh", "-c", "/data/tool true"]).await?;
    ensure!(code != 0 && error.contains("ermission denied"), "noexec: {code} {error}");
    let options = node.sh(&id, "grep ' /data ' /proc/self/mountinfo").await?;
    ensure!(["noexec", "nodev", "nosuid"].iter().all(|o| options.contains(o)), "{options}");
    // Opened for writing, and nothing is written: it is the host's.
    node.sh(&id, "[ -c /dev/mine ] && : >> /dev/mine").await?;
    let (code, _, error) = node.exec(&id, &["sh", "-c", ": < /dev/mine"]).await?;
    ensure!(code != 0 && error.contains("not permitted"), "write only: {code} {error}");

    // A command is confined as the first process is.
    let same = "for key in CapBnd CapEff CapPrm CapInh CapAmb NoNewPrivs Seccomp: Uid Gid Groups; do \
        a=$(grep \"^$key\" /proc/1/status); b=$(grep \"^$key\" /proc/self/status); \
        [ \"$a\" = \"$b\" ] || echo \"$a is not $b\"; done; echo $COLOUR $HOME; grep '^NoNew\\|^Seccomp:' /proc/self/status";
    let seen = node.sh(&id, same).await?;
    ensure!(
        seen == "blue /\nNoNewPrivs:\t1\nSeccomp:\t2\n"
            || seen == "blue /root\nNoNewPrivs:\t1\nSeccomp:\t2\n",
        "{seen}"
    );
    for namespace in ["mnt", "net", "ipc", "uts", "pid", "cgroup"] {
        let script =
            format!("[ \"$(readlink /proc/1/ns/{namespace})\" = \"$(readlink /proc/self/ns/{namespace})\" ]");
        node.sh(&id, &script).await.with_context(|| namespace.to_owned())?;
    }
    // No limits of our own: those that the daemon was started with.
    let init = e2e::kernel::Group::of(node, &id).await?.init;
    for limit in ["Max open files", "Max processes", "Max core file size", "Max locked memory"] {
        let (ours, theirs) =
            (line_of(node.daemon_pid()?, "limits", limit)?, line_of(i32::try_from(init)?, "limits", limit)?);
        ensure!(ours == theirs, "{ours}\n{theirs}");
    }

    let mut stranger = shell("stranger", &image, "id -u; id -g; echo $HOME; exec sleep 1000");
    security(&mut stranger).run_as_user = Some(v1::Int64Value { value: 4242 });
    let stranger = node.run(&sandbox, &config, stranger).await?;
    node.log_shows(&stranger, |line| line == "/").await?;
    let lines: Vec<_> = node.log(&stranger).await?.into_iter().map(|(_, _, line)| line).collect();
    ensure!(lines == ["4242", "0", "/"], "nobody in /etc/passwd: {lines:?}");

    let mut terminal = shell("terminal", &image, "[ -t 0 ] && [ -t 2 ] && echo tty; echo error >&2");
    terminal.tty = true;
    let terminal = node.run(&sandbox, &config, terminal).await?;
    node.ended(&terminal).await?;
    let lines = node.log(&terminal).await?;
    ensure!(lines.iter().all(|(stream, ..)| stream == "stdout"), "{lines:?}");
    let texts: Vec<_> = lines.iter().map(|(_, _, line)| line.trim_end_matches('\r')).collect();
    ensure!(texts == ["tty", "error"], "{lines:?}");
    Ok(())
}

/// CRI-CAP-04, CRI-CAP-07, CRI-CAP-08, CRI-CC-14.
#[test]
fn capabilities_are_all_some_or_none() {
    on_a_node(Setup::default(), |node| Box::pin(capabilities(node)));
}

async fn capabilities(node: &mut Node) -> Result<()> {
    let node = &*node;
    let image = node.import("busybox").await?;
    let plain = pod(node, "plain");
    let sandbox = node.run_pod(&plain).await?;
    let bounding = |id: String| async move {
        let line = node.sh(&id, "grep CapBnd /proc/1/status").await?;
        anyhow::Ok(line.trim().to_owned())
    };
    let with = |name: &str, add: &[&str], drop: &[&str]| {
        let mut container = shell(name, &image, SLEEP);
        let list = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        security(&mut container).capabilities = Some(v1::Capability {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            ..Default::default()
        });
        container
    };
    let ours = line_of(node.daemon_pid()?, "status", "CapBnd")?;
    let all = node.run(&sandbox, &plain, with("all", &["ALL"], &[])).await?;
    ensure!(bounding(all).await? == ours, "all that the daemon has: {ours}");
    let none = node.run(&sandbox, &plain, with("none", &[], &["all"])).await?;
    ensure!(bounding(none).await? == "CapBnd:\t0000000000000000");
    let one = node.run(&sandbox, &plain, with("one", &["NET_ADMIN"], &["ALL"])).await?;
    ensure!(bounding(one).await? == "CapBnd:\t0000000000001000");

    let mut privileged = shell("privileged", &image, SLEEP);
    security(&mut privileged).privileged = true;
    security(&mut privileged).masked_paths = vec!["/proc/kcore".into(), "/sys/kernel".into()];
    security(&mut privileged).readonly_paths = vec!["/proc/sys".into()];
    let refused = node.create(&sandbox, &plain, privileged.clone()).await.err().context("the pod is not")?;
    ensure!(refused.downcast::<tonic::Status>()?.code() == Code::InvalidArgument);
    let mut config = pod(node, "privileged");
    pod_security(&mut config).privileged = true;
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, privileged).await?;
    ensure!(node.sh(&id, "grep CapBnd /proc/1/status").await?.trim() == ours);
    ensure!(node.sh(&id, "grep ^Seccomp: /proc/1/status").await? == "Seccomp:\t0\n");
    let mounts = node.sh(&id, "cut -d' ' -f5,6 /proc/self/mountinfo").await?;
    for point in ["/proc", "/sys"] {
        ensure!(mounts.lines().any(|l| l.starts_with(&format!("{point} rw"))), "{point}: {mounts}");
    }
    let covered = ["/proc/kcore ", "/sys/kernel ", "/proc/sys "];
    ensure!(!mounts.lines().any(|l| covered.iter().any(|c| l.starts_with(c))), "nothing is masked: {mounts}");
    node.sh(&id, "[ -n \"$(ls /sys/kernel)\" ] && [ -c /dev/kmsg ] && head -c 1 /dev/zero >/dev/null")
        .await?;
    Ok(())
}
