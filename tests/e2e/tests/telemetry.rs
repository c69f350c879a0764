//! The Prometheus endpoint, and that every query of the dashboard finds its metric there.

use anyhow::{Context as _, Result, ensure};
use e2e::requests::{pod, shell};
use e2e::{Node, Setup, on_a_node};
use std::collections::{BTreeSet, HashMap};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Each node has a network namespace of its own: the port is free.
const CONFIG: &str = "[metrics]\naddress = \"127.0.0.1:9479\"\n";

#[test]
fn what_happens_on_the_node_is_counted() {
    on_a_node(Setup { config: CONFIG, ..Setup::default() }, |node| Box::pin(counted(node)));
}

async fn counted(node: &mut Node) -> Result<()> {
    let before = scrape().await?;
    ensure!(before["slipway_pods{state=\"ready\"}"] == 0.0, "a node without pods: {before:?}");
    let image = node.import("busybox").await?;
    let config = pod(node, "counted");
    let sandbox = node.run_pod(&config).await?;
    node.run(&sandbox, &config, shell("main", &image, "echo a line; exec sleep 1000")).await?;
    let missing = node.crictl(&["inspect", "nobody"]).await;
    ensure!(missing.is_err(), "inspect of a container that is not there");

    let now = scrape().await?;
    let at = |key: &str| now.get(key).copied().with_context(|| format!("no {key} in {now:#?}"));
    ensure!(at("slipway_pods{state=\"ready\"}")? == 1.0);
    ensure!(at("slipway_containers{state=\"running\"}")? == 1.0);
    ensure!(at("slipway_images")? == 1.0);
    ensure!(at("slipway_keeper_up")? == 1.0 && at("slipway_guardian_up")? == 1.0);
    ensure!(at("slipway_keeper_restarts_total")? == 0.0);
    ensure!(at("slipway_cri_requests_total{method=\"RunPodSandbox\",code=\"OK\"}")? == 1.0);
    ensure!(at("slipway_cri_requests_total{method=\"ContainerStatus\",code=\"NotFound\"}")? >= 1.0);
    ensure!(at("slipway_cri_request_duration_seconds_count{method=\"RunPodSandbox\"}")? == 1.0);
    ensure!(at("slipway_cri_requests_in_flight{method=\"RunPodSandbox\"}")? == 0.0);
    ensure!(at("slipway_network_duration_seconds_count{operation=\"setup\",outcome=\"ok\"}")? == 1.0);
    ensure!(at("slipway_process_resident_memory_bytes")? > 0.0 && at("slipway_process_open_fds")? > 3.0);

    node.stop_pod(&sandbox).await?;
    let now = scrape().await?;
    ensure!(now["slipway_pods{state=\"not_ready\"}"] == 1.0, "{now:?}");
    ensure!(now["slipway_network_duration_seconds_count{operation=\"teardown\",outcome=\"ok\"}"] == 1.0);
    node.remove_pod(&sandbox).await
}

/// Whoever reaches the address does not take the daemon's descriptors, and is cut off when it says nothing.
#[test]
fn idle_connections_are_few_and_short() {
    on_a_node(Setup { config: CONFIG, ..Setup::default() }, |node| Box::pin(idle(node)));
}

async fn idle(node: &mut Node) -> Result<()> {
    let held =
        || -> Result<usize> { Ok(std::fs::read_dir(format!("/proc/{}/fd", node.daemon_pid()?))?.count()) };
    let before = held()?;
    let mut strangers = Vec::new();
    for _ in 0..80 {
        strangers.push(TcpStream::connect("127.0.0.1:9479").await?);
    }
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let during = held()?;
    ensure!(during < before + 64, "{before} descriptors before, {during} with 80 idle connections");
    // The first ones make room for others within the time that a request's head may take.
    let answered = tokio::time::timeout(std::time::Duration::from_secs(100), scrape()).await;
    answered.context("no answer while strangers wait")??;
    drop(strangers);
    Ok(())
}

#[test]
fn every_query_of_the_dashboard_finds_its_metric() {
    on_a_node(Setup { config: CONFIG, ..Setup::default() }, |node| Box::pin(dashboard(node)));
}

async fn dashboard(node: &mut Node) -> Result<()> {
    let file = e2e::node::repository().join("hack/grafana.json");
    let board: serde_json::Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let panels = board["panels"].as_array().context("panels")?;
    let mut wanted = BTreeSet::new();
    for query in panels.iter().flat_map(|p| p["targets"].as_array().into_iter().flatten()) {
        let query = query["expr"].as_str().context("an expression")?;
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        wanted.extend(words.filter(|word| word.starts_with("slipway_")).map(str::to_owned));
    }
    ensure!(wanted.len() > 10, "the dashboard asks for {wanted:?}");

    // Families with labels appear with their first event: a pod, a failed pull.
    let config = pod(node, "seen");
    let sandbox = node.run_pod(&config).await?;
    ensure!(node.crictl(&["pull", "127.0.0.1:9/none:1"]).await.is_err(), "nobody listens there");
    let there: BTreeSet<String> =
        scrape().await?.into_keys().filter_map(|key| key.split('{').next().map(str::to_owned)).collect();
    let absent: Vec<_> = wanted.difference(&there).collect();
    ensure!(absent.is_empty(), "the dashboard asks for {absent:?}; the endpoint has {there:?}");
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}

#[test]
fn a_taken_address_is_named() {
    on_a_node(Setup::default(), |node| Box::pin(taken(node)));
}

async fn taken(node: &mut Node) -> Result<()> {
    let _other = std::net::TcpListener::bind("127.0.0.1:9479")?;
    let config = node.path("taken.toml");
    std::fs::write(&config, CONFIG)?;
    let dirs = [node.path("other-root"), node.path("other-state")].map(|dir| dir.display().to_string());
    let config = config.display().to_string();
    let mut serve = node.slipway_command(&["serve", "--root", &dirs[0], "--state", &dirs[1]]);
    let out = serve.args(["--config", &config]).output().await?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(!out.status.success() && said.contains("metrics.address = \"127.0.0.1:9479\""), "{said}");
    dirs.iter().try_for_each(|dir| std::fs::remove_dir_all(dir).context("remove"))
}

/// Every sample of the endpoint: `name{labels}` and its value.
async fn scrape() -> Result<HashMap<String, f64>> {
    let mut stream = TcpStream::connect("127.0.0.1:9479").await.context("connect")?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("# EOF\n"), "{answer}");
    ensure!(answer.contains("application/openmetrics-text"), "{answer}");
    let samples = answer.lines().filter(|line| line.starts_with("slipway_"));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').context("a sample")?;
            Ok((name.to_owned(), value.parse().with_context(|| line.to_owned())?))
        })
        .collect()
}
