//! A pod's whole life through the real crictl, as an operator would drive it.

use anyhow::{Context, Result, ensure};
use e2e::{Node, Setup, on_a_node};
use serde_json::{Value, json};

/// CRI-TST-01, CRI-TST-02 in crictl's words; CRI-VER-01, CRI-STA-01, CRI-RUN-02, CRI-CC-16, CRI-STOP-08, CRI-PREM-05.
#[test]
fn crictl_drives_a_pod_through_its_whole_life() {
    on_a_node(Setup::default(), |node| Box::pin(whole_life(node)));
}

async fn whole_life(node: &mut Node) -> Result<()> {
    let registry = e2e::registry::Registry::start(node).await?;
    let image = registry.image("busybox:1");
    ensure!(node.crictl(&["version"]).await?.contains("slipway"), "crictl version names the runtime");
    let info: Value = serde_json::from_str(&node.crictl(&["info"]).await?)?;
    for condition in info["status"]["conditions"].as_array().context("conditions")? {
        ensure!(condition["status"] == true, "not ready: {condition}");
    }
    node.crictl(&["pull", &image]).await?;
    ensure!(node.crictl(&["images"]).await?.contains("busybox"), "crictl images shows what was pulled");

    let logs = node.path("logs/life");
    std::fs::create_dir_all(logs.join("main"))?;
    let pod_file = write(
        node,
        "pod.json",
        &json!({
            "metadata": {"name": "life", "namespace": "default", "uid": "u1", "attempt": 0},
            "hostname": "life", "log_directory": logs,
            "linux": {"security_context": {"namespace_options": {"pid": 1}}}
        }),
    )?;
    let container_file = write(
        node,
        "container.json",
        &json!({
            "metadata": {"name": "main", "attempt": 0}, "image": {"image": image},
            "command": ["sh", "-c", "echo hello from $(hostname); echo oops >&2; trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done"],
            "log_path": "main/0.log", "linux": {}
        }),
    )?;
    let pod = node.crictl(&["runp", &pod_file]).await?.trim().to_owned();
    let id = node.crictl(&["create", &pod, &container_file, &pod_file]).await?.trim().to_owned();
    ensure!(state(node, &id).await? == "CONTAINER_CREATED", "created");
    node.crictl(&["start", &id]).await?;
    ensure!(state(node, &id).await? == "CONTAINER_RUNNING", "running");
    node.log_shows(&id, |l| l == "hello from life").await?;
    ensure!(node.crictl(&["logs", &id]).await?.contains("hello from life"), "crictl logs");
    let echoed = node.crictl(&["exec", "-s", &id, "echo", "from inside"]).await?;
    ensure!(echoed.contains("from inside"), "crictl exec -s: {echoed}");
    ensure!(node.crictl(&["pods"]).await?.contains("life"), "crictl pods");
    ensure!(node.crictl(&["ps"]).await?.contains("main"), "crictl ps");
    let stats: Value = serde_json::from_str(&node.crictl(&["stats", "-o", "json", "--id", &id]).await?)?;
    let memory = &stats["stats"][0]["memory"]["workingSetBytes"]["value"];
    ensure!(memory.as_str().and_then(|v| v.parse::<u64>().ok()).is_some_and(|v| v > 0), "stats: {stats}");

    node.crictl(&["stop", "--timeout", "10", &id]).await?;
    let status: Value = serde_json::from_str(&node.crictl(&["inspect", &id]).await?)?;
    ensure!(status["status"]["exitCode"] == 3, "the handler's exit code: {}", status["status"]);
    node.log_shows(&id, |l| l == "bye").await?;
    node.crictl(&["rm", &id]).await?;
    node.crictl(&["stopp", &pod]).await?;
    node.crictl(&["rmp", &pod]).await?;
    ensure!(node.crictl(&["pods", "-q"]).await?.trim().is_empty(), "no pod is listed any more");
    node.crictl(&["rmi", &image]).await?;
    ensure!(node.crictl(&["images", "-q"]).await?.trim().is_empty(), "no image is listed any more");
    registry.stop().await
}

async fn state(node: &Node, id: &str) -> Result<String> {
    let answer: Value = serde_json::from_str(&node.crictl(&["inspect", id]).await?)?;
    Ok(answer["status"]["state"].as_str().context("state")?.to_owned())
}

fn write(node: &Node, name: &str, value: &Value) -> Result<String> {
    let path = node.path(name);
    std::fs::write(&path, value.to_string())?;
    Ok(path.display().to_string())
}
