//! What the containers of a pod share and what they do not; real servers in pods; networks.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::requests::{bind, container, pod, shell};
use e2e::{Node, Setup, on_a_node};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// CRI-TST-13, CRI-NET-04, CRI-NET-09, CRI-NS-02, CRI-NS-04: one localhost, one IPC, one hostname, one volume; own pids.
#[test]
fn containers_of_a_pod_share_localhost_ipc_hostname_and_volumes() {
    on_a_node(Setup::default(), |node| Box::pin(sharing(node)));
}

async fn sharing(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let volume = node.path("volume");
    std::fs::create_dir(&volume)?;
    let config = pod(node, "sharing");
    let sandbox = node.run_pod(&config).await?;
    let mut server = shell(
        "server",
        &image,
        "echo made-by-server > /v/page; echo shm > /dev/shm/x; exec httpd -f -p 8080 -h /v",
    );
    server.mounts.push(bind(&volume, "/v"));
    let server = node.run(&sandbox, &config, server).await?;
    let mut client = shell("client", &image, "sleep 1000");
    client.mounts.push(bind(&volume, "/mnt"));
    let client = node.run(&sandbox, &config, client).await?;

    let fetch =
        "for i in $(seq 50); do wget -qO- http://127.0.0.1:8080/page && exit 0; sleep 0.1; done; exit 1";
    ensure!(node.sh(&client, fetch).await?.trim() == "made-by-server", "localhost is shared");
    ensure!(node.sh(&client, "cat /mnt/page").await?.trim() == "made-by-server", "the volume is shared");
    ensure!(node.sh(&client, "cat /dev/shm/x").await?.trim() == "shm", "/dev/shm is shared");
    for id in [&server, &client] {
        ensure!(node.sh(id, "hostname").await?.trim() == "sharing", "hostname");
        ensure!(node.sh(id, "cat /etc/hostname").await?.trim() == "sharing", "/etc/hostname");
    }
    for ns in ["ipc", "net", "uts"] {
        let link = format!("readlink /proc/self/ns/{ns}");
        ensure!(node.sh(&server, &link).await? == node.sh(&client, &link).await?, "one {ns} namespace");
    }
    ensure!(node.sh(&client, "tr '\\0' ' ' < /proc/1/cmdline").await?.contains("sleep 1000"), "own pid 1");
    let page = http_get(&node.pod_ip(&sandbox).await?, 8080, "/page").await?;
    ensure!(page.contains("made-by-server"), "the host reaches the pod: {page}");
    Ok(())
}

/// CRI-NET-10, CRI-NET-11, CRI-NET-12: own address per pod, pods reach each other without NAT, hostPorts.
#[test]
fn pods_reach_each_other_without_nat_and_host_ports_work() {
    on_a_node(Setup::default(), |node| Box::pin(network(node)));
}

/// The same through Debian's CNI plugins.
#[test]
fn pods_reach_each_other_through_debians_cni_plugins() {
    on_a_node(Setup { cni: Some(BRIDGE), ..Setup::default() }, |node| Box::pin(network(node)));
}

const BRIDGE: &str = r#"{"cniVersion": "1.0.0", "name": "e2e", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

async fn network(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    // Answers with the client's address as the server sees it.
    let peer =
        "printf '#!/bin/sh\\necho; echo $REMOTE_ADDR\\n' > /www/cgi-bin/peer; chmod +x /www/cgi-bin/peer; ";
    let mut one = pod(node, "one");
    one.port_mappings.push(v1::PortMapping { container_port: 8080, host_port: 12080, ..Default::default() });
    let sandbox_one = node.run_pod(&one).await?;
    let two = pod(node, "two");
    let sandbox_two = node.run_pod(&two).await?;
    let web = format!("mkdir -p /www/cgi-bin; echo one > /www/who; {peer} exec httpd -f -p 8080 -h /www");
    node.run(&sandbox_one, &one, shell("web", &image, &web)).await?;
    let client = node.run(&sandbox_two, &two, shell("client", &image, "sleep 1000")).await?;

    let (ip_one, ip_two) = (node.pod_ip(&sandbox_one).await?, node.pod_ip(&sandbox_two).await?);
    ensure!(ip_one != ip_two, "each pod has its own address");
    let own = node.sh(&client, "ip -4 addr show eth0").await?;
    ensure!(own.contains(&ip_two), "the status tells eth0's address {ip_two}: {own}");
    let reach = format!(
        "for i in $(seq 50); do wget -qO- http://{ip_one}:8080/who && exit 0; sleep 0.1; done; exit 1"
    );
    ensure!(node.sh(&client, &reach).await?.trim() == "one", "pod to pod");
    let seen = node.sh(&client, &format!("wget -qO- http://{ip_one}:8080/cgi-bin/peer")).await?;
    ensure!(seen.contains(&ip_two), "no NAT between pods: the server sees {seen}, the client is {ip_two}");
    ensure!(http_get(&ip_one, 8080, "/who").await?.contains("one"), "host to pod");
    ensure!(http_get("127.0.0.1", 12080, "/who").await?.contains("one"), "host port through loopback");

    // CRI-PSTOP-01, CRI-PSTOP-02, CRI-PSTOP-04, CRI-PREM-01.
    node.stop_pod(&sandbox_one).await?;
    node.stop_pod(&sandbox_one).await?;
    let status = node.pod_status(&sandbox_one).await?;
    ensure!(status.state() == v1::PodSandboxState::SandboxNotready, "NOTREADY after stop");
    ensure!(status.network.is_none_or(|n| n.ip.is_empty()), "no address after stop");
    ensure!(http_get("127.0.0.1", 12080, "/who").await.is_err(), "the host port is closed");
    node.remove_pod(&sandbox_one).await?;
    node.remove_pod(&sandbox_one).await?;
    node.stop_pod("no-such-pod").await
}

/// Real servers, spoken to in their own protocols.
#[test]
fn nginx_redis_and_python_serve_in_one_pod() {
    on_a_node(Setup::default(), |node| Box::pin(servers(node)));
}

async fn servers(node: &mut Node) -> Result<()> {
    let config = pod(node, "servers");
    let sandbox = node.run_pod(&config).await?;
    let nginx = node.import("nginx").await?;
    let redis = node.import("redis").await?;
    let python = node.import("python3").await?;
    // No command: the image's own entrypoint (CRI-CC-06).
    node.run(&sandbox, &config, container("web", &nginx, &[])).await?;
    node.run(&sandbox, &config, container("redis", &redis, &[])).await?;
    let app = "import http.server as h\nclass A(h.BaseHTTPRequestHandler):\n def do_GET(s):\n  import socket\n  r=socket.create_connection(('127.0.0.1',6379)); r.sendall(b'INCR hits\\r\\n'); n=r.recv(99)\n  s.send_response(200); s.end_headers(); s.wfile.write(b'hits '+n)\nh.HTTPServer(('',8000),A).serve_forever()";
    node.run(&sandbox, &config, container("app", &python, &["python3", "-c", app])).await?;
    let ip = node.pod_ip(&sandbox).await?;
    ensure!(eventually(&ip, 80, "/").await?.contains("200 OK"), "nginx answers");
    ensure!(eventually(&ip, 8000, "/").await?.contains("hits :1"), "python reaches redis over localhost");
    ensure!(http_get(&ip, 8000, "/").await?.contains("hits :2"), "redis counts");
    Ok(())
}

/// CRI-USR-01, CRI-USR-03, CRI-USR-08, CRI-CAP-10, CRI-SEC-02, CRI-SEC-14, CRI-RES-06: what the container sees of itself.
#[test]
fn security_and_limits_are_what_was_asked_for() {
    on_a_node(Setup::default(), |node| Box::pin(security(node)));
}

async fn security(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "security");
    let sandbox = node.run_pod(&config).await?;
    let mut strict = shell("strict", &image, "sleep 1000");
    let linux = strict.linux.get_or_insert_default();
    linux.resources = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        oom_score_adj: 900,
        ..Default::default()
    });
    let security = linux.security_context.get_or_insert_default();
    security.run_as_user = Some(v1::Int64Value { value: 1000 });
    security.run_as_group = Some(v1::Int64Value { value: 2000 });
    security.supplemental_groups = vec![3000, 4000];
    security.no_new_privs = true;
    security.readonly_rootfs = true;
    security.capabilities =
        Some(v1::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    security.masked_paths = vec!["/proc/kcore".into(), "/proc/absent".into()];
    security.readonly_paths = vec!["/proc/sys".into()];
    let id = node.run(&sandbox, &config, strict).await?;

    let ids = node.sh(&id, "id -u; id -g; id -G").await?;
    ensure!(ids.split_whitespace().collect::<Vec<_>>()[..2] == ["1000", "2000"], "ids: {ids}");
    ensure!(ids.contains("3000") && ids.contains("4000"), "supplementary groups: {ids}");
    let status = node.sh(&id, "cat /proc/self/status").await?;
    for want in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapBnd:\t0000000000000000", "CapEff:\t0000000000000000"] {
        ensure!(status.contains(want), "{want:?} is not in {status}");
    }
    ensure!(node.sh(&id, "cat /proc/1/oom_score_adj").await?.trim() == "900", "oom_score_adj");
    let (code, _, err) = node.exec(&id, &["touch", "/x"]).await?;
    ensure!(code != 0 && err.contains("Read-only file system"), "readonly root: {code} {err}");
    let (code, out, _) = node.exec(&id, &["sh", "-c", "head -c1 /proc/kcore"]).await?;
    ensure!(code != 0 || out.is_empty(), "masked /proc/kcore shows nothing");
    let (code, _, _) = node.exec(&id, &["sh", "-c", "echo 1 > /proc/sys/kernel/domainname"]).await?;
    ensure!(code != 0, "/proc/sys is read-only");
    Ok(())
}

/// CRI-EXIT-01, CRI-EXIT-03, CRI-CSTAT-12, CRI-CSTAT-13.
#[test]
fn exit_codes_and_oom_are_told_right() {
    on_a_node(Setup::default(), |node| Box::pin(exits(node)));
}

async fn exits(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "exits");
    let sandbox = node.run_pod(&config).await?;
    for (name, script, code, reason) in [
        ("ok", "exit 0", 0, "Completed"),
        ("seven", "exit 7", 7, "Error"),
        ("killed", "kill -9 $$", 137, "Error"),
    ] {
        // pid 1 of a PID namespace ignores a signal from inside: give the shell a child to be killed in.
        let script = if name == "killed" { "sh -c 'kill -9 $$'; exit $?" } else { script };
        let id = node.run(&sandbox, &config, shell(name, &image, script)).await?;
        let status = node.ended(&id).await?;
        ensure!(status.exit_code == code, "{name}: exit code {}", status.exit_code);
        ensure!(status.reason == reason, "{name}: reason {}", status.reason);
        ensure!(status.started_at > 0 && status.finished_at >= status.started_at, "{name}: times");
    }
    let mut eater = shell("eater", &image, "x=a; while :; do x=$x$x; done");
    eater.linux.get_or_insert_default().resources = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 15 << 20,
        memory_swap_limit_in_bytes: 15 << 20,
        ..Default::default()
    });
    let id = node.run(&sandbox, &config, eater).await?;
    let status = node.ended(&id).await?;
    ensure!((status.exit_code, status.reason.as_str()) == (137, "OOMKilled"), "OOM: {status:?}");
    Ok(())
}

/// GET over plain HTTP; the whole answer as text.
async fn http_get(host: &str, port: u16, path: &str) -> Result<String> {
    let talk = async {
        let mut stream = tokio::net::TcpStream::connect((host, port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(Duration::from_secs(20), talk).await??;
    ensure!(!answer.is_empty(), "{host}:{port} answered nothing");
    Ok(answer)
}

/// The same, while the server may still be starting.
async fn eventually(host: &str, port: u16, path: &str) -> Result<String> {
    for _ in 0..300 {
        if let Ok(answer) = http_get(host, port, path).await {
            return Ok(answer);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    http_get(host, port, path).await
}

/// CRI-UPS-01, CRI-UPS-02, CRI-RUN-21, CRI-CSTAT-17: kept, told, and there again after kill -9 of the daemon.
#[test]
fn what_the_kubelet_says_of_a_pods_resources_is_kept() {
    on_a_node(Setup::default(), |node| Box::pin(pod_resources(node)));
}

async fn pod_resources(node: &mut Node) -> Result<()> {
    let mut config = pod(node, "resized");
    config.linux.get_or_insert_default().resources =
        Some(v1::LinuxContainerResources { cpu_shares: 100, ..Default::default() });
    let sandbox = node.run_pod(&config).await?;
    ensure!(kept(node, &sandbox).await? == (json!(100), json!(null)), "as the pod was made");
    let limits = |shares, memory| {
        Some(v1::LinuxContainerResources {
            cpu_shares: shares,
            memory_limit_in_bytes: memory,
            ..Default::default()
        })
    };
    let request = |id: &str, overhead, resources| v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.into(),
        overhead,
        resources,
    };
    let mut runtime = node.runtime().await?;
    runtime.update_pod_sandbox_resources(request(&sandbox, limits(0, 7 << 20), limits(2048, 0))).await?;
    ensure!(kept(node, &sandbox).await? == (json!(2048), json!(7 << 20)), "as the kubelet said");
    // Nothing to do is no failure, and nothing is lost by it.
    runtime.update_pod_sandbox_resources(request(&sandbox, None, None)).await?;
    let bad = runtime.update_pod_sandbox_resources(request(&sandbox, None, limits(-5, 0))).await;
    let bad = bad.err().context("it must be refused")?;
    ensure!(bad.code() == tonic::Code::InvalidArgument && bad.message().contains("cpu_shares"), "{bad:?}");
    let unknown = runtime.update_pod_sandbox_resources(request("nobody", None, None)).await;
    ensure!(unknown.is_err_and(|e| e.code() == tonic::Code::NotFound));
    node.kill_daemon().await?;
    node.start_daemon().await?;
    ensure!(kept(node, &sandbox).await? == (json!(2048), json!(7 << 20)), "after kill -9");
    Ok(())
}

/// The pod's CPU shares and memory overhead in verbose PodSandboxStatus.
async fn kept(node: &Node, sandbox: &str) -> Result<(Value, Value)> {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.into(), verbose: true };
    let info = node.runtime().await?.pod_sandbox_status(request).await?.into_inner().info;
    let info: Value = serde_json::from_str(info.get("info").context("info")?)?;
    let linux = &info["config"]["linux"];
    Ok((
        linux["resources"]["cpu_shares"].clone(),
        linux["overhead"].get("memory_limit_in_bytes").cloned().unwrap_or_default(),
    ))
}
