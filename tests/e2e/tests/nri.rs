//! NRI with plugins on NRI's own Go library (hack/go-nri): what they see, what they change, and what their faults cost.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::plugin::{self, Plugin, refused};
use e2e::requests::{pod, shell};
use e2e::{Node, Setup, on_a_node};
use serde_json::{Value, json};
use std::time::Duration;

const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// NRI-10, NRI-13, NRI-16, NRI-30, NRI-31, NRI-33, NRI-34, NRI-35, CRI-STOP-13, CRI-PSTOP-07, CRI-PSTOP-08, CRI-UPS-01.
#[test]
fn a_plugin_sees_lives_from_their_beginning_to_their_end() {
    on_a_node(Setup::default(), |node| Box::pin(lives(node)));
}

async fn lives(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "seen");
    let sandbox = node.run_pod(&config).await?;
    let early = node.run(&sandbox, &config, shell("early", &image, SLEEP)).await?;
    let plugin = Plugin::connect(node, "10-see", json!({})).await?;
    let sync = plugin.until(|c| c.iter().any(|c| c["event"] == "Synchronize")).await?;
    let sync = sync.iter().find(|c| c["event"] == "Synchronize").context("Synchronize")?;
    ensure!(
        sync["pods"] == json!(["seen"]) && sync["ids"] == json!([early]),
        "it is brought up to date: {sync}"
    );

    let id = node.run(&sandbox, &config, shell("late", &image, "exit 3")).await?;
    node.ended(&id).await?;
    plugin.until(|c| c.iter().any(|c| c["id"] == *id && c["event"] == "StopContainer")).await?;
    node.stop_container(&id, 5).await?;
    node.remove_container(&id).await?;
    let expected = [
        "CreateContainer",
        "ValidateContainerAdjustment",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "StopContainer",
        "RemoveContainer",
    ];
    // The end of so short a life may be told before PostStartContainer.
    let mut told = plugin.of(&id)?;
    told.sort();
    let mut sorted = expected.map(str::to_owned).to_vec();
    sorted.sort();
    ensure!(told == sorted, "each once: {told:?}");
    let calls = plugin.calls()?;
    let stop = calls.iter().find(|c| c["id"] == *id && c["event"] == "StopContainer").context("stop")?;
    ensure!(stop["state"] == "CONTAINER_STOPPED" && stop["exit_code"] == 3, "the end as it was: {stop}");
    let create =
        calls.iter().find(|c| c["id"] == *id && c["event"] == "CreateContainer").context("create")?;
    let full = &create["full"];
    ensure!(full["args"] == json!(["sh", "-c", "exit 3"]) && full["pod_sandbox_id"] == *sandbox, "{full}");
    ensure!(full["mounts"].as_array().is_some_and(|m| m.len() > 5), "{full}");
    ensure!(full["image"]["name"].as_str().is_some_and(|n| n.contains("busybox")), "{full}");

    let request = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: sandbox.clone(),
        resources: Some(v1::LinuxContainerResources { cpu_shares: 10, ..Default::default() }),
        ..Default::default()
    };
    node.runtime().await?.update_pod_sandbox_resources(request).await?;
    node.stop_pod(&sandbox).await?;
    node.stop_pod(&sandbox).await?;
    refused(node.create(&sandbox, &config, shell("dead", &image, SLEEP)).await, &["not ready"])?;
    node.remove_pod(&sandbox).await?;
    ensure!(plugin.of(&early)? == ["StopContainer", "RemoveContainer"], "{:?}", plugin.of(&early)?);
    let told = plugin.of(&sandbox)?;
    let expected = ["UpdatePodSandbox", "PostUpdatePodSandbox", "StopPodSandbox", "RemovePodSandbox"];
    ensure!(told == expected, "each once: {told:?}");
    let calls = plugin.calls()?;
    let at = |id: &str, event: &str| calls.iter().position(|c| c["id"] == id && c["event"] == event);
    ensure!(at(&early, "StopContainer") < at(&sandbox, "StopPodSandbox"), "containers first");
    ensure!(!calls.iter().any(|c| c["container"] == "dead"), "nothing of what was refused before");
    plugin.end().await
}

/// NRI-18, NRI-21, NRI-22, NRI-25, NRI-28, NRI-29, CRI-UPD-06.
#[test]
fn plugins_change_containers_and_limits() {
    on_a_node(Setup::default(), |node| Box::pin(changes(node)));
}

async fn changes(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    std::fs::create_dir(node.path("given"))?;
    std::fs::write(node.path("given/file"), "from a plugin")?;
    let adjust = json!({
        "annotations": {"note": "1"},
        "env": [{"key": "FIRST", "value": "one"}, {"key": "-HOSTNAME"}],
        "mounts": [{"destination": "/given", "type": "bind", "source": node.path("given"), "options": ["rbind", "ro"]}],
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 321, "soft": 123}],
        "linux": {
            "devices": [{"path": "/dev/injected", "type": "c", "major": 1, "minor": 3}],
            "oom_score_adj": {"value": 77},
            "resources": {"cpu": {"shares": {"value": 345}}, "memory": {"limit": {"value": 67_108_864}}},
        },
    });
    let unsolicited = json!({"cpu": {"shares": {"value": 555}}});
    let first = Plugin::connect(node, "10-first", json!({"adjust": adjust, "pod": "changed"})).await?;
    let only = json!(["UpdateContainer", "CreateContainer", "PostStartContainer"]);
    let second = json!({"only": only, "limits": {"cpu": {"shares": {"value": 444}}}, "unsolicited": unsolicited,
                        "adjust": {"env": [{"key": "SECOND", "value": "two"}]}});
    let second = Plugin::connect(node, "20-second", second).await?;
    let config = pod(node, "changed");
    let sandbox = node.run_pod(&config).await?;
    let id = node.create(&sandbox, &config, shell("main", &image, SLEEP)).await?;
    let spec = spec_of(node, &id).await?;
    ensure!(spec["linux"]["resources"]["cpu"]["shares"] == 345, "{}", spec["linux"]["resources"]);
    ensure!(spec["linux"]["resources"]["memory"]["limit"] == 67_108_864, "{}", spec["linux"]["resources"]);
    ensure!(spec["annotations"]["note"] == "1", "{}", spec["annotations"]);
    let seen = second.calls()?;
    let seen = seen.iter().find(|c| c["event"] == "CreateContainer").context("the second one is asked")?;
    let env = seen["full"]["env"].as_array().context("env")?;
    ensure!(env.contains(&json!("FIRST=one")), "it sees what the first has changed: {env:?}");
    node.start_container(&id).await?;
    let inside = node
        .sh(&id, "echo $FIRST $SECOND [$(cat /proc/1/environ | tr '\\0' '\\n' | grep ^HOSTNAME)]; cat /given/file; echo; \
                  stat -c '%t %T' /dev/injected; cat /proc/1/oom_score_adj; grep 'open files' /proc/1/limits; echo x >/dev/injected")
        .await?;
    ensure!(inside.starts_with("one two []\nfrom a plugin\n1 3\n77\n"), "{inside}");
    ensure!(inside.contains("123") && inside.contains("321"), "{inside}");

    second.until(|c| c.iter().any(|c| c["event"] == "Unsolicited")).await?;
    let calls = second.calls()?;
    let answer = calls.iter().find(|c| c["event"] == "Unsolicited").context("answer")?;
    ensure!(answer.get("failed").is_none(), "nothing failed: {answer}");
    ensure!(shares(node, &id).await? == shares_as_written(555), "unsolicited: {}", shares(node, &id).await?);
    let resources = v1::LinuxContainerResources {
        cpu_shares: 222,
        memory_limit_in_bytes: 134_217_728,
        ..Default::default()
    };
    let request = v1::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(resources),
        ..Default::default()
    };
    node.runtime().await?.update_container_resources(request).await?;
    ensure!(shares(node, &id).await? == shares_as_written(444), "the plugin's word goes over the client's");
    let told = first.of(&id)?;
    ensure!(told.ends_with(&["UpdateContainer".into(), "PostUpdateContainer".into()]), "{told:?}");
    first.end().await?;
    second.end().await
}

/// The container's spec, as `crictl inspect` shows it.
async fn spec_of(node: &Node, id: &str) -> Result<Value> {
    let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: true };
    let info = node.runtime().await?.container_status(request).await?.into_inner().info;
    let info: Value = serde_json::from_str(info.get("info").context("info")?)?;
    Ok(info["runtimeSpec"].clone())
}

/// What the kernel has of CPU shares: the number itself on v1, the weight on v2.
async fn shares(node: &Node, id: &str) -> Result<String> {
    let spec = spec_of(node, id).await?;
    let group = spec["linux"]["cgroupsPath"].as_str().context("cgroupsPath")?.to_owned();
    let v1 = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"];
    let files = v1.map(|dir| format!("{dir}{group}/cpu.shares"));
    let found = files.iter().find_map(|file| std::fs::read_to_string(file).ok());
    let found = found.or_else(|| std::fs::read_to_string(format!("/sys/fs/cgroup{group}/cpu.weight")).ok());
    Ok(found.context("the container's group")?.trim().to_owned())
}

fn shares_as_written(shares: u64) -> String {
    let on_v1 = std::path::Path::new("/sys/fs/cgroup/cpu").exists();
    if on_v1 { shares.to_string() } else { (1 + ((shares - 2) * 9999) / 262_142).to_string() }
}

/// NRI-19, NRI-23, NRI-26, CRI-RUN-16, CRI-CC-13.
#[test]
fn what_plugins_refuse_leaves_nothing() {
    on_a_node(Setup::default(), |node| Box::pin(refusals(node)));
}

async fn refusals(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let no = Plugin::connect(node, "10-no", json!({"fail": ["RunPodSandbox"]})).await?;
    let config = pod(node, "refused");
    refused(node.run_pod(&config).await, &["10-no", "says no to RunPodSandbox"])?;
    let pods = node.runtime().await?.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?;
    ensure!(pods.into_inner().items.is_empty(), "nothing of it is listed");
    let calls: Vec<_> =
        no.calls()?.iter().filter(|c| c["pod"] == "refused").map(|c| c["event"].clone()).collect();
    ensure!(calls == ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"], "told of its end: {calls:?}");
    gone(node, no).await?;
    let sandbox = node.run_pod(&config).await?;

    let set = |value: &str| json!({"adjust": {"env": [{"key": "WHO", "value": value}]}});
    let (one, two) =
        (Plugin::connect(node, "10-one", set("1")).await?, Plugin::connect(node, "20-two", set("2")).await?);
    let create = || node.create(&sandbox, &config, shell("main", &image, SLEEP));
    refused(create().await, &["10-one", "20-two", "WHO"])?;
    gone(node, two).await?;
    let validator = Plugin::connect(
        node,
        "30-check",
        json!({"reject": "not on my watch", "only": ["ValidateContainerAdjustment"]}),
    )
    .await?;
    refused(create().await, &["30-check", "not on my watch"])?;
    let containers = node.runtime().await?.list_containers(v1::ListContainersRequest::default()).await?;
    ensure!(containers.into_inner().containers.is_empty(), "nothing is left of them");
    gone(node, validator).await?;
    let id = create().await?;
    ensure!(
        spec_of(node, &id).await?["process"]["env"].as_array().is_some_and(|e| e.contains(&json!("WHO=1")))
    );
    let start = Plugin::connect(
        node,
        "40-start",
        json!({"fail": ["StartContainer"], "only": ["StartContainer", "StopContainer"]}),
    )
    .await?;
    refused(node.start_container(&id).await, &["40-start"])?;
    let status = node.container_status(&id).await?;
    ensure!(
        status.state() == v1::ContainerState::ContainerExited && status.reason == "StartError",
        "{status:?}"
    );
    ensure!(start.of(&id)? == ["StartContainer", "StopContainer"], "{:?}", start.of(&id)?);
    start.end().await?;
    one.end().await
}

/// CRI-RUN-15.
#[test]
fn a_pod_is_not_ready_before_plugins_agree() {
    let nri = "plugin_request_timeout = \"4m\"\n";
    on_a_node(Setup { nri, ..Default::default() }, |node| Box::pin(asked_first(node)));
}

async fn asked_first(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let plugin = Plugin::connect(node, "10-thinks", json!({"stall": ["RunPodSandbox"]})).await?;
    let config = pod(node, "asked");
    let is_asked = |c: &Value| c["event"] == "RunPodSandbox";
    let own: &Node = node;
    let meanwhile = async {
        let calls = plugin.until(|calls| calls.iter().any(is_asked)).await?;
        let id = calls.iter().find(|c| is_asked(c)).and_then(|c| c["id"].as_str()).context("its id")?;
        let listed = own.runtime().await?.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?;
        let ready = v1::PodSandboxState::SandboxReady;
        let listed = listed.into_inner().items;
        ensure!(listed.iter().all(|p| p.id != id || p.state() != ready), "{listed:?}");
        let made = own.create(id, &config, shell("early", &image, SLEEP)).await;
        ensure!(made.is_err(), "a container in a pod that is not there yet: {made:?}");
        gone(own, plugin).await
    };
    let (sandbox, looked) = tokio::join!(own.run_pod(&config), meanwhile);
    looked?;
    // Without the plugin there is nobody left to agree.
    let sandbox = sandbox?;
    ensure!(own.pod_status(&sandbox).await?.state() == v1::PodSandboxState::SandboxReady);
    own.run(&sandbox, &config, shell("late", &image, SLEEP)).await?;
    Ok(())
}

/// Ends a plugin and waits until the daemon has noticed.
async fn gone(node: &Node, plugin: Plugin) -> Result<()> {
    let dropped = || {
        let log = std::fs::read_to_string(node.path("daemon.log")).unwrap_or_default();
        log.matches("NRI plugin is dropped").count()
    };
    let before = dropped();
    plugin.end().await?;
    let start = std::time::Instant::now();
    while dropped() == before {
        ensure!(
            start.elapsed() < Duration::from_secs(30),
            "the daemon does not notice that a plugin is gone"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

const REQUIRED: &str = "[nri.default_validator]\nenable = true\nrequired_plugins = [\"policy\"]\ntolerate_missing_plugins_annotation = \"tolerate\"\n";

/// NRI-20, NRI-27, NRI-39: a required plugin that is missing, or goes in the middle, fails closed; and the pods that it
/// does not hold are not held up by those that it does.
#[test]
fn a_stuck_plugin_costs_only_its_own_pod() {
    const NRI: &str = "plugin_request_timeout = \"4m\"\n";
    let nri = Box::leak(format!("{NRI}{REQUIRED}").into_boxed_str());
    on_a_node(Setup { nri, ..Default::default() }, |node| Box::pin(stuck(node)));
}

async fn stuck(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let (victim, other) = (pod(node, "victim"), pod(node, "other"));
    let mut free = pod(node, "free");
    free.annotations.insert("tolerate".into(), "true".into());
    let (victims, others) = (node.run_pod(&victim).await?, node.run_pod(&other).await?);
    let frees = node.run_pod(&free).await?;
    refused(node.create(&others, &other, shell("early", &image, SLEEP)).await, &["required", "policy"])?;
    node.run(&frees, &free, shell("tolerant", &image, SLEEP)).await?;

    let options = json!({"stall": ["CreateContainer"], "pod": "victim"});
    let policy = Plugin::connect(node, "10-policy", options).await?;
    let held = node.create(&victims, &victim, shell("held", &image, SLEEP));
    let unheld = async {
        policy.until(|c| c.iter().any(|c| c["container"] == "held")).await?;
        let id = node.run(&others, &other, shell("unheld", &image, SLEEP)).await?;
        node.stop_container(&id, 1).await?;
        // Otherwise it would hold the first one for the rest of the time.
        policy.end().await
    };
    let (held, unheld) = tokio::join!(held, unheld);
    unheld.context("a pod that the plugin does not hold")?;
    refused(held, &["required", "policy"])?;
    refused(node.create(&others, &other, shell("late", &image, SLEEP)).await, &["required", "policy"])?;
    let again = Plugin::connect(node, "10-policy", json!({})).await?;
    node.run(&others, &other, shell("again", &image, SLEEP)).await?;
    again.end().await
}

/// NRI-12, NRI-20, NRI-27: one that takes too long is dropped; required, it fails the request, else that goes on.
#[test]
fn a_plugin_that_takes_too_long_is_dropped() {
    let nri = Box::leak(format!("plugin_request_timeout = \"5s\"\n{REQUIRED}").into_boxed_str());
    on_a_node(Setup { nri, ..Default::default() }, |node| Box::pin(too_late(node)));
}

async fn too_late(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let (strict, mut lax) = (pod(node, "strict"), pod(node, "lax"));
    lax.annotations.insert("tolerate".into(), "true".into());
    let (stricts, laxes) = (node.run_pod(&strict).await?, node.run_pod(&lax).await?);
    for (sandbox, config) in [(&stricts, &strict), (&laxes, &lax)] {
        let policy = Plugin::connect(
            node,
            "10-policy",
            json!({"stall": ["CreateContainer"], "only": ["CreateContainer"]}),
        )
        .await?;
        let outcome = node.create(sandbox, config, shell("main", &image, SLEEP)).await;
        if sandbox == &stricts {
            refused(outcome, &["required", "policy"])?;
        } else {
            outcome.context("a pod that can do without it")?;
        }
        policy.until(|c| c.iter().any(|c| c["event"] == "Closed")).await?;
        policy.end().await?;
    }
    ensure!(node.log_tail(400).contains("no answer within 5s"), "the log says why");
    Ok(())
}

/// NRI-02, NRI-03, NRI-11, NRI-37, NRI-38, and CRI-REC: after a kill of the daemon plugins come again and are told anew.
#[test]
fn installed_plugins_are_launched_with_their_configuration() {
    let plugins = &[("05-installed", "{\"log\": \"{dir}/installed.log\"}"), ("x-bad", "")];
    on_a_node(Setup { plugins, ..Default::default() }, |node| Box::pin(installed(node)));
}

async fn installed(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let log = node.path("installed.log");
    let calls = plugin::calls(&log)?;
    let first = calls.first().context("it was configured before the daemon served")?;
    ensure!(
        first["event"] == "Configure" && first["config"].as_str().is_some_and(|c| c.starts_with("slipway ")),
        "{first}"
    );
    let mut env: Vec<_> = first["env"].as_array().context("env")?.iter().filter_map(Value::as_str).collect();
    env.sort_unstable();
    ensure!(env == ["NRI_PLUGIN_IDX=05", "NRI_PLUGIN_NAME=installed", "NRI_PLUGIN_SOCKET=3"], "{env:?}");
    ensure!(node.log_tail(400).contains("x-bad is not started"), "a program of another name is named");
    let config = pod(node, "watched");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, SLEEP)).await?;
    // The plugin ends with the daemon, whether or not it still says that its connection closed.
    node.kill_daemon().await?;
    node.start_daemon().await?;
    let calls =
        plugin::until(&log, |c| c.iter().filter(|c| c["event"] == "Synchronize").count() == 2).await?;
    let last = calls.iter().rfind(|c| c["event"] == "Synchronize").context("the second one")?;
    ensure!(last["pods"] == json!(["watched"]) && last["ids"] == json!([id]), "{last}");
    node.remove_pod(&sandbox).await?;
    let calls = plugin::calls(&log)?;
    let told: Vec<_> = calls.iter().filter(|c| c["id"] == *id).map(|c| c["event"].clone()).collect();
    ensure!(told.ends_with(&[json!("StopContainer"), json!("RemoveContainer")]), "{told:?}");
    Ok(())
}

/// NRI-17: what is created while a plugin is being brought up to date reaches it, once.
#[test]
fn nothing_is_lost_while_a_plugin_joins() {
    on_a_node(Setup::default(), |node| Box::pin(joining(node)));
}

async fn joining(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "busy");
    let sandbox = node.run_pod(&config).await?;
    let slow = json!({"slow_sync": 1_500_000_000_i64});
    let create = |n: usize| node.create(&sandbox, &config, shell(&format!("c{n}"), &image, SLEEP));
    let (plugin, made) = tokio::join!(Plugin::connect(node, "10-slow", slow), async {
        let mut made = Vec::new();
        for n in 0..10 {
            made.push(create(n).await?);
        }
        anyhow::Ok(made)
    });
    let (plugin, made) = (plugin?, made?);
    let calls = plugin.calls()?;
    for id in &made {
        let synced = calls.iter().any(|c| c["ids"].as_array().is_some_and(|ids| ids.contains(&json!(id))));
        let asked = calls.iter().any(|c| c["event"] == "CreateContainer" && c["id"] == **id);
        ensure!(synced != asked, "container {id}: in the synchronization {synced}, asked {asked}");
    }
    plugin.end().await
}
