//! `slipway run POD.yaml` and the commands for people.

use anyhow::{Context, Result, ensure};
use e2e::{Node, Setup, on_a_node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};

fn manifest(node: &Node, name: &str, body: &str) -> Result<String> {
    let path = node.path(&format!("{name}.yaml"));
    let head = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n"
    );
    std::fs::write(&path, head + body)?;
    Ok(path.display().to_string())
}

const TWO: &str = r#"
  restartPolicy: Never
  volumes:
  - {name: shared, emptyDir: {}}
  initContainers:
  - {name: first, image: "test.local/busybox:1", command: [sh, -c, "echo one > /v/order"], volumeMounts: [{name: shared, mountPath: /v}]}
  - {name: second, image: "test.local/busybox:1", command: [sh, -c, "echo two >> /v/order"], volumeMounts: [{name: shared, mountPath: /v}]}
  containers:
  - name: web
    image: test.local/busybox:1
    command: [sh, -c, "exec httpd -f -p 8080 -h /v"]
    resources: {requests: {cpu: 100m}, limits: {memory: 64Mi, cpu: 500m}}
    volumeMounts: [{name: shared, mountPath: /v, readOnly: true}]
  - name: client
    image: test.local/busybox:1
    env: [{name: WHO, value: me}]
    command: [sh, -c, "until wget -qO- http://localhost:8080/order; do sleep 0.1; done; echo $WHO is done; sleep 1000"]
"#;

#[test]
fn a_manifest_runs_and_is_removed() {
    on_a_node(Setup::default(), |node| Box::pin(run_and_remove(node)));
}

async fn run_and_remove(node: &mut Node) -> Result<()> {
    node.import("busybox").await?;
    let file = manifest(node, "two", TWO)?;
    let said = node.slipway(&["run", &file]).await?;
    let pods: Value = serde_json::from_str(&node.slipway(&["--output", "json", "pods"]).await?)?;
    let pod = pods[0].clone();
    ensure!(pods.as_array().is_some_and(|p| p.len() == 1), "one pod: {pods}");
    let ip = pod["ip"].as_str().context("the pod's address in `pods`")?;
    ensure!(said.contains(ip), "run prints the address {ip}: {said}");
    wait_for_log(node, "two", "me is done").await?;
    let log = node.slipway(&["logs", "two", "-c", "client"]).await?;
    ensure!(log.contains("one\ntwo"), "init containers in order: {log}");
    let containers = node.slipway(&["ps"]).await?;
    ensure!(containers.contains("web") && containers.contains("client"), "ps: {containers}");
    let out = node.slipway(&["exec", "two", "-c", "client", "--", "sh", "-c", "echo $WHO"]).await?;
    ensure!(out.trim() == "me", "exec: {out}");
    let stats: Value = serde_json::from_str(&node.slipway(&["--output", "json", "stats"]).await?)?;
    ensure!(stats.as_array().is_some_and(|s| s.len() >= 2), "stats: {stats}");
    let removed: Value = serde_json::from_str(&node.slipway(&["--output", "json", "rm", "two"]).await?)?;
    ensure!(removed[0]["name"] == "two" && removed[0]["id"] == pod["id"], "removed: {removed}");
    let pods: Value = serde_json::from_str(&node.slipway(&["--output", "json", "pods"]).await?)?;
    ensure!(pods.as_array().is_some_and(Vec::is_empty), "removed: {pods}");
    Ok(())
}

async fn wait_for_log(node: &Node, pod: &str, text: &str) -> Result<()> {
    for _ in 0..300 {
        if node.slipway(&["logs", pod]).await.unwrap_or_default().contains(text) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("{text:?} is not in the logs of {pod}: {}", node.slipway(&["logs", pod]).await?)
}

#[test]
fn ctrl_c_removes_everything() {
    on_a_node(Setup::default(), |node| Box::pin(ctrl_c(node)));
}

async fn ctrl_c(node: &mut Node) -> Result<()> {
    node.import("busybox").await?;
    let file = manifest(node, "two", TWO)?;
    let mut child =
        node.slipway_command(&["run", "-f", &file]).stdout(std::process::Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    let followed = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains("me is done") {
                return Ok(());
            }
        }
        anyhow::bail!("it ended before")
    };
    tokio::time::timeout(Duration::from_secs(60), followed).await.context("-f follows the logs")??;
    let pid = child.id().context("it runs")?;
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGINT)?;
    tokio::time::timeout(Duration::from_secs(60), child.wait()).await.context("Ctrl-C ends it")??;
    ensure!(node.crictl(&["pods", "-q"]).await?.trim().is_empty(), "the pod is gone");
    Ok(())
}

#[test]
fn a_failing_init_container_stops_the_pod_and_leaves_nothing() {
    on_a_node(Setup::default(), |node| Box::pin(failing_init(node)));
}

async fn failing_init(node: &mut Node) -> Result<()> {
    node.import("busybox").await?;
    let body = "  restartPolicy: Never\n  initContainers:\n  - {name: bad, image: 'test.local/busybox:1', command: [sh, -c, 'exit 3']}\n  containers:\n  - {name: main, image: 'test.local/busybox:1', command: [sleep, '1000']}\n";
    let file = manifest(node, "bad", body)?;
    let error = node.slipway(&["run", &file]).await.err().context("must fail")?.to_string();
    ensure!(error.contains("bad") && error.contains('3'), "names container and code: {error}");
    ensure!(node.crictl(&["pods", "-q"]).await?.trim().is_empty(), "the pod is gone");
    let file = manifest(
        node,
        "typo",
        "  containerz: []\n  containers: [{name: main, image: 'test.local/busybox:1'}]\n",
    )?;
    let error = node.slipway(&["run", &file]).await.err().context("must fail")?.to_string();
    ensure!(error.contains("containerz"), "names the unknown field: {error}");
    Ok(())
}

/// restartPolicy: Always is kept by the daemon, with back-off, also over its own restart.
#[test]
fn ended_containers_are_restarted_by_policy() {
    on_a_node(Setup::default(), |node| Box::pin(restarts(node)));
}

async fn restarts(node: &mut Node) -> Result<()> {
    node.import("busybox").await?;
    let body = "  restartPolicy: OnFailure\n  volumes: [{name: v, emptyDir: {}}]\n  containers:\n  - {name: main, image: 'test.local/busybox:1', command: [sh, -c, 'echo x >> /v/n; [ $(wc -l < /v/n) -ge 3 ] && sleep 1000; exit 1'], volumeMounts: [{name: v, mountPath: /v}]}\n";
    let file = manifest(node, "again", body)?;
    node.slipway(&["run", &file]).await?;
    node.kill_daemon().await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.start_daemon().await?;
    for _ in 0..400 {
        let list = node.crictl(&["ps", "-o", "json"]).await?;
        let list: Value = serde_json::from_str(&list)?;
        if list["containers"][0]["metadata"]["attempt"].as_u64().is_some_and(|a| a >= 2) {
            return node.slipway(&["rm", "again"]).await.map(drop);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    anyhow::bail!("no third attempt: {}", node.crictl(&["ps", "-a"]).await?)
}
