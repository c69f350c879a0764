//! ListPodSandboxMetrics beside the kernel's own files: every name, every label, and the values.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::kernel::{Group, is_v2};
use e2e::requests::{pod, shell};
use e2e::{Node, Setup, on_a_node};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Those that critest 1.37 looks for, and which a kernel with version 1 of control groups cannot all tell.
const CRITEST: &str = "blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total \
    cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total \
    file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes fs_reads_bytes_total fs_reads_total fs_usage_bytes \
    fs_writes_bytes_total fs_writes_total hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen memory_cache \
    memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss \
    memory_swap memory_usage_bytes memory_working_set_bytes network_receive_bytes_total network_receive_errors_total \
    network_receive_packets_dropped_total network_receive_packets_total network_transmit_bytes_total \
    network_transmit_errors_total network_transmit_packets_dropped_total network_transmit_packets_total \
    oom_events_total pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total \
    pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total \
    pressure_memory_waiting_seconds_total processes sockets spec_cpu_period spec_cpu_quota spec_cpu_shares \
    spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes start_time_seconds \
    threads threads_max ulimits_soft";
/// Told only if the container did it (devices), or if the kernel counts it.
const DEPENDS: [&str; 4] = ["blkio_", "fs_reads_", "fs_writes_", "hugetlb_"];

/// A metric with its labels by name.
#[derive(Debug, Clone)]
struct Told {
    name: String,
    labels: BTreeMap<String, String>,
    kind: v1::MetricType,
    timestamp: i64,
    value: u64,
}

/// All of one answer, each metric held against its descriptor.
#[derive(Debug)]
struct Answer {
    of_pods: HashMap<String, Vec<Told>>,
    of_containers: HashMap<String, Vec<Told>>,
}

impl Answer {
    async fn get(node: &Node) -> Result<Self> {
        let mut runtime = node.runtime().await?;
        let pods = runtime.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {}).await?;
        Self::decode(&descriptors(node).await?, pods.into_inner().pod_metrics)
    }

    fn decode(keys: &HashMap<String, Vec<String>>, pods: Vec<v1::PodSandboxMetrics>) -> Result<Self> {
        let decode =
            |all: Vec<v1::Metric>| all.into_iter().map(|m| told(keys, m)).collect::<Result<Vec<_>>>();
        let mut answer = Self { of_pods: HashMap::new(), of_containers: HashMap::new() };
        for pod in pods {
            answer.of_pods.insert(pod.pod_sandbox_id, decode(pod.metrics)?);
            for container in pod.container_metrics {
                answer.of_containers.insert(container.container_id, decode(container.metrics)?);
            }
        }
        Ok(answer)
    }

    fn all(&self) -> impl Iterator<Item = &Told> {
        self.of_pods.values().chain(self.of_containers.values()).flatten()
    }

    /// The container's value of `container_<name>` where the labels are these.
    fn value(&self, container: &str, name: &str, labels: &[(&str, &str)]) -> Result<u64> {
        let all = self.of_containers.get(container).context("no metrics of the container")?;
        find(all, name, labels)
    }
}

fn find(all: &[Told], name: &str, labels: &[(&str, &str)]) -> Result<u64> {
    let has =
        |told: &&Told| labels.iter().all(|(key, value)| told.labels.get(*key).is_some_and(|v| v == value));
    let name = format!("container_{name}");
    let found: Vec<_> = all.iter().filter(|told| told.name == name).filter(has).collect();
    ensure!(found.len() == 1, "{name} {labels:?}: {found:?}");
    Ok(found[0].value)
}

/// CRI-MET-02, CRI-MET-03, CRI-MET-04.
fn told(keys: &HashMap<String, Vec<String>>, metric: v1::Metric) -> Result<Told> {
    let keys = keys.get(&metric.name).with_context(|| format!("{} is not described", metric.name))?;
    ensure!(keys.len() == metric.label_values.len(), "{keys:?}: {metric:?}");
    // cAdvisor's own exceptions.
    let counts = match metric.name.as_str() {
        "container_memory_failcnt" => true,
        "container_fs_inodes_total" => false,
        name => name.ends_with("_total"),
    };
    ensure!((metric.metric_type() == v1::MetricType::Counter) == counts, "{metric:?}");
    Ok(Told {
        kind: metric.metric_type(),
        labels: keys.iter().cloned().zip(metric.label_values).collect(),
        timestamp: metric.timestamp,
        value: metric.value.with_context(|| format!("{} has no value", metric.name))?.value,
        name: metric.name,
    })
}

async fn descriptors(node: &Node) -> Result<HashMap<String, Vec<String>>> {
    let answer = node
        .runtime()
        .await?
        .list_metric_descriptors(v1::ListMetricDescriptorsRequest {})
        .await?
        .into_inner();
    ensure!(answer.descriptors.iter().all(|d| !d.help.is_empty() && !d.label_keys.is_empty()), "{answer:?}");
    Ok(answer.descriptors.into_iter().map(|d| (d.name, d.label_keys)).collect())
}

/// The kernel's counters move on between two readings: what was told lies between what was read before and after.
fn between(name: &str, before: u64, told: u64, after: u64) -> Result<()> {
    ensure!(before <= told && told <= after, "{name}: {told} is not in {before}..={after}");
    Ok(())
}

/// Memory moves by whole batches of pages that each processor keeps.
fn near(name: &str, told: u64, kernel: u64) -> Result<()> {
    ensure!(told.abs_diff(kernel) <= 4 << 20, "{name}: {told}, the kernel says {kernel}");
    Ok(())
}

/// CRI-MET-01 to CRI-MET-07: cAdvisor's names and labels, and the kernel's own values.
#[test]
fn metrics_tell_what_the_kernel_tells() {
    on_a_node(Setup::default(), |node| Box::pin(told_and_counted(node)));
}

/// Uses some of everything that is counted, and processor time until told to stop; then holds still.
const BUSY: &str = "nc -l -p 7070 >/dev/null & dd if=/dev/urandom of=/blob bs=64k count=32 2>/dev/null; \
    while [ ! -e /stop ]; do :; done; exec 7</blob 8</blob; echo ready; exec sleep 1000";
/// How long to wait for what comes by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pressure of a group: version 2, on a kernel with CONFIG_PSI.
fn has_pressure() -> bool {
    is_v2() && std::path::Path::new("/proc/pressure/cpu").exists()
}

/// None allowed, where there are any.
fn huge_pages() -> Vec<v1::HugepageLimit> {
    let any = std::path::Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists();
    any.then(|| v1::HugepageLimit { page_size: "2MB".into(), limit: 0 }).into_iter().collect()
}

async fn told_and_counted(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "counted");
    let sandbox = node.run_pod(&config).await?;
    let mut busy = shell("busy", &image, BUSY);
    busy.linux.as_mut().context("linux")?.resources = Some(v1::LinuxContainerResources {
        cpu_period: 50_000,
        cpu_quota: 40_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 96 << 20,
        memory_swap_limit_in_bytes: 96 << 20,
        hugepage_limits: huge_pages(),
        ..Default::default()
    });
    let id = node.run(&sandbox, &config, busy).await?;
    let group = Group::of(node, &id).await?;
    until("a second of processor time and a socket", || {
        Ok(Counted::read(&group)?.cpu_s >= 1 && Open::of(&group.pids()?).sockets >= 1)
    })
    .await?;
    node.sh(&id, "touch /stop").await?;
    node.log_shows(&id, |line| line == "ready").await?;
    // The shell becomes sleep once it has said so; dd and the exec are gone.
    until("sleep and nc", || {
        let of_init = std::fs::read_to_string(format!("/proc/{}/comm", group.init))?;
        Ok(group.pids()?.len() == 2 && of_init.trim() == "sleep")
    })
    .await?;

    names_and_labels(node, &sandbox, &id, &image).await?;
    counters(node, &sandbox, &id, &group).await?;
    gauges(node, &id, &group).await?;
    limits(node, &id, &group).await?;
    node.stop_pod(&sandbox).await?;
    ensure!(Answer::get(node).await?.all().next().is_none(), "a pod that is not ready has none");
    Ok(())
}

async fn until(what: &str, condition: impl Fn() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !condition()? {
        ensure!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Open descriptors of these processes; one that ends meanwhile has none.
#[derive(Debug, Default)]
struct Open {
    all: u64,
    sockets: u64,
}

impl Open {
    fn of(pids: &[i64]) -> Self {
        let mut open = Self::default();
        let entries = pids.iter().filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).ok());
        for entry in entries.flatten().flatten() {
            let to = std::fs::read_link(entry.path()).unwrap_or_default();
            open.all += 1;
            open.sockets += u64::from(to.to_string_lossy().starts_with("socket:"));
        }
        open
    }
}

/// CRI-MET-02, CRI-MET-05, CRI-MET-07, CRI-LSTR-01.
async fn names_and_labels(node: &Node, sandbox: &str, id: &str, image: &str) -> Result<()> {
    let keys = descriptors(node).await?;
    let answer = Answer::get(node).await?;
    for name in CRITEST.split_ascii_whitespace() {
        let full = format!("container_{name}");
        ensure!(keys.contains_key(&full), "{full} is not described");
        let depends =
            DEPENDS.iter().any(|d| name.starts_with(d)) || name.starts_with("pressure_") && !has_pressure();
        ensure!(depends || answer.all().any(|told| told.name == full), "{full} is not told");
    }
    for told in answer.of_containers.get(id).context("the container")? {
        let label = |key: &str| told.labels.get(key).map(String::as_str);
        let expected = [
            ("container", "busy"),
            ("pod", "counted"),
            ("namespace", "default"),
            ("name", id),
            ("image", image),
        ];
        for (key, value) in expected {
            ensure!(label(key) == Some(value), "{told:?}");
        }
        ensure!(label("id").is_some_and(|group| group.contains(id)), "{told:?}");
        ensure!(
            told.timestamp > 0 && (told.kind == v1::MetricType::Counter || told.value < 1 << 62),
            "{told:?}"
        );
    }
    let of_pod = answer.of_pods.get(sandbox).context("the pod")?;
    ensure!(of_pod.iter().all(|told| told.labels["container"].is_empty() && told.labels["pod"] == "counted"));
    let mut stream = node
        .runtime()
        .await?
        .stream_pod_sandbox_metrics(v1::StreamPodSandboxMetricsRequest {})
        .await?
        .into_inner();
    let first = stream.message().await?.context("a message")?;
    let streamed = Answer::decode(&keys, first.pod_sandbox_metrics)?;
    ensure!(
        streamed.of_containers.contains_key(id) && streamed.of_pods.contains_key(sandbox),
        "{streamed:?}"
    );
    ensure!(stream.message().await?.is_none(), "one pod, one message");
    Ok(())
}

/// What only grows.
async fn counters(node: &Node, sandbox: &str, id: &str, group: &Group) -> Result<()> {
    let before = Counted::read(group)?;
    let answer = Answer::get(node).await?;
    let after = Counted::read(group)?;
    let value = |name: &str, labels: &[(&str, &str)]| answer.value(id, name, labels);
    between("cpu", before.cpu_s, value("cpu_usage_seconds_total", &[("cpu", "total")])?, after.cpu_s)?;
    ensure!(before.cpu_s >= 1, "the container was busy: {before:?}");
    between("periods", before.periods, value("cpu_cfs_periods_total", &[])?, after.periods)?;
    let faults = value("memory_failures_total", &[("failure_type", "pgfault"), ("scope", "container")])?;
    between("faults", before.faults, faults, after.faults)?;
    ensure!(before.faults > 0);
    let of_pod = answer.of_pods.get(sandbox).context("the pod")?;
    let received = find(of_pod, "network_receive_bytes_total", &[("interface", "eth0")])?;
    between("eth0", before.received, received, after.received)?;
    // The pod's group holds the container's.
    ensure!(find(of_pod, "cpu_usage_seconds_total", &[("cpu", "total")])? >= before.cpu_s);
    ensure!(value("oom_events_total", &[])? == 0);
    Ok(())
}

#[derive(Debug)]
struct Counted {
    cpu_s: u64,
    periods: u64,
    faults: u64,
    received: u64,
}

impl Counted {
    fn read(group: &Group) -> Result<Self> {
        let cpu_s = if is_v2() {
            group.key("cpuacct", ("", ""), ("cpu.stat", "usage_usec"))? / 1_000_000
        } else {
            group.number("cpuacct", "cpuacct.usage", "")? / 1_000_000_000
        };
        let devices = std::fs::read_to_string(format!("/proc/{}/net/dev", group.init))?;
        let eth0 = devices.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("eth0")?;
        Ok(Self {
            cpu_s,
            periods: group.key("cpu", ("cpu.stat", "nr_periods"), ("cpu.stat", "nr_periods"))?,
            faults: group.key("memory", ("memory.stat", "total_pgfault"), ("memory.stat", "pgfault"))?,
            received: eth0.split_ascii_whitespace().next().context("a number")?.parse()?,
        })
    }
}

/// What the container holds while it is still.
async fn gauges(node: &Node, id: &str, group: &Group) -> Result<()> {
    let answer = Answer::get(node).await?;
    let value = |name: &str| answer.value(id, name, &[]);
    near(
        "usage",
        value("memory_usage_bytes")?,
        group.number("memory", "memory.usage_in_bytes", "memory.current")?,
    )?;
    let rss = group.key("memory", ("memory.stat", "total_rss"), ("memory.stat", "anon"))?;
    near("rss", value("memory_rss")?, rss)?;
    let cache = group.key("memory", ("memory.stat", "total_cache"), ("memory.stat", "file"))?;
    near("cache", value("memory_cache")?, cache)?;
    let inactive =
        group.key("memory", ("memory.stat", "total_inactive_file"), ("memory.stat", "inactive_file"))?;
    near("working set", value("memory_working_set_bytes")? + inactive, value("memory_usage_bytes")?)?;

    let pids = group.pids()?;
    ensure!(pids.len() == 2 && value("processes")? == 2 && value("threads")? == 2, "{pids:?}");
    let open = Open::of(&pids);
    ensure!(value("file_descriptors")? == open.all && value("sockets")? == open.sockets, "{open:?}");
    ensure!(open.sockets >= 1 && open.all > 6, "{open:?}");

    let status = node.container_status(id).await?;
    ensure!(value("start_time_seconds")? == u64::try_from(status.started_at / 1_000_000_000)?);
    ensure!(value("creation_time_seconds")? == u64::try_from(status.created_at / 1_000_000_000)?);
    ensure!(value("last_seen")? >= value("start_time_seconds")?);
    let layer = value("fs_usage_bytes")?;
    ensure!((2 << 20..8 << 20).contains(&layer), "2 MiB were written: {layer}");
    let disk = nix::sys::statvfs::statvfs(&node.path("root"))?;
    let size = disk.blocks() * disk.fragment_size();
    ensure!(value("fs_limit_bytes")? == size && value("fs_inodes_total")? == disk.files(), "{size}");
    ensure!(value("fs_inodes_free")? > 0);
    Ok(())
}

/// What was asked for is what is in force.
async fn limits(node: &Node, id: &str, group: &Group) -> Result<()> {
    let answer = Answer::get(node).await?;
    let value = |name: &str| answer.value(id, name, &[]);
    let in_kernel = if is_v2() {
        group.text("cpu", "", "cpu.max")?
    } else {
        let file = |name| group.text("cpu", name, "");
        format!("{} {}", file("cpu.cfs_quota_us")?, file("cpu.cfs_period_us")?)
    };
    ensure!(
        format!("{} {}", value("spec_cpu_quota")?, value("spec_cpu_period")?) == in_kernel,
        "{in_kernel}"
    );
    ensure!(is_v2() || value("spec_cpu_shares")? == group.number("cpu", "cpu.shares", "")?);
    let memory = group.number("memory", "memory.limit_in_bytes", "memory.max")?;
    ensure!(value("spec_memory_limit_bytes")? == memory, "{memory}");
    ensure!(value("spec_memory_swap_limit_bytes")? == 96 << 20);
    ensure!(value("threads_max")? == group.number("pids", "pids.max", "pids.max")?);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", group.init))?;
    let files =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("limit of files")?;
    let soft: u64 = files.split_ascii_whitespace().next().context("soft")?.parse()?;
    ensure!(answer.value(id, "ulimits_soft", &[("ulimit", "max_open_files")])? == soft);
    // Huge pages and pressure are counted in the hierarchy of version 2 only, on some machines beside version 1.
    let beside = if is_v2() { group.dir("") } else { group.dir("unified") };
    let pages = |size: &str| answer.value(id, "hugetlb_usage_bytes", &[("pagesize", size)]);
    if let Ok(used) = std::fs::read_to_string(beside.join("hugetlb.2MB.current")) {
        ensure!(pages("2MB")? == used.trim().parse::<u64>()?);
    }
    if let Ok(pressure) = std::fs::read_to_string(beside.join("cpu.pressure")) {
        let total = |line: &str| line.rsplit_once("total=").and_then(|(_, n)| n.parse::<u64>().ok());
        let some = pressure.lines().next().and_then(total).context("some")? / 1_000_000;
        between("pressure", 0, value("pressure_cpu_waiting_seconds_total")?, some)?;
        ensure!(value("pressure_io_stalled_seconds_total")? <= value("pressure_io_waiting_seconds_total")?);
    }
    Ok(())
}

/// CRI-KUB-03, CRI-LIST-02, CRI-SS-13, CRI-SS-20: one that does not move at all, and one whose process was killed for
/// want of memory. Nobody waits for the first; of the second it is told.
#[test]
fn a_stuck_container_holds_nothing_up_and_an_oom_kill_is_counted() {
    on_a_node(Setup::default(), |node| Box::pin(stuck(node)));
}

async fn stuck(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "stuck");
    let sandbox = node.run_pod(&config).await?;
    let still = node.run(&sandbox, &config, shell("still", &image, "echo up; exec sleep 1000")).await?;
    let hungry = "tail /dev/zero; echo \"ended with $?\"; exec sleep 1000";
    let mut hungry = shell("hungry", &image, hungry);
    hungry.linux.as_mut().context("linux")?.resources = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 24 << 20,
        memory_swap_limit_in_bytes: 24 << 20,
        ..Default::default()
    });
    let hungry = node.run(&sandbox, &config, hungry).await?;
    node.log_shows(&still, |line| line == "up").await?;
    node.log_shows(&hungry, |line| line == "ended with 137").await?;

    let group = Group::of(node, &still).await?;
    group.freeze(true)?;
    let outcome = asked_while_frozen(node, &sandbox, [&still, &hungry], &group).await;
    group.freeze(false)?;
    outcome
}

async fn asked_while_frozen(node: &Node, pod: &str, ids: [&str; 2], group: &Group) -> Result<()> {
    until("a frozen container", || group.is_frozen()).await?;
    let answer = tokio::time::timeout(PATIENCE, Answer::get(node)).await.context("metrics wait")??;
    ensure!(answer.value(ids[0], "processes", &[])? == 1);
    let kills = Group::of(node, ids[1]).await?.key(
        "memory",
        ("memory.oom_control", "oom_kill"),
        ("memory.events", "oom_kill"),
    )?;
    ensure!(kills >= 1 && answer.value(ids[1], "oom_events_total", &[])? == kills, "{kills}");

    let mut runtime = node.runtime().await?;
    let stats = runtime.list_container_stats(v1::ListContainerStatsRequest::default());
    let stats = tokio::time::timeout(PATIENCE, stats).await.context("statistics wait")??.into_inner().stats;
    ensure!(stats.len() == 2 && stats.iter().all(|s| s.cpu.is_some() && s.memory.is_some()), "{stats:?}");
    let stats = runtime.pod_sandbox_stats(v1::PodSandboxStatsRequest { pod_sandbox_id: pod.into() });
    tokio::time::timeout(PATIENCE, stats).await.context("the pod's statistics wait")??;
    let list = runtime.list_containers(v1::ListContainersRequest::default());
    let list = tokio::time::timeout(PATIENCE, list).await.context("the list waits")??.into_inner();
    ensure!(list.containers.iter().all(|c| c.state() == v1::ContainerState::ContainerRunning), "{list:?}");
    Ok(())
}
