//! The commands that only look: `pods`, `ps`, `images`, `stats`.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use cri_proto::v1 as cri;
use serde::Serialize;

use super::client::{Client, attempt, container_name, is_ready, said};
use super::output::{Output, age, json, list, print, short, size};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodRow {
    id: String,
    name: String,
    namespace: String,
    uid: String,
    attempt: u32,
    state: &'static str,
    ip: String,
    created_at: i64,
    labels: HashMap<String, String>,
}

pub(crate) async fn pods(client: &mut Client, output: Output) -> Result<()> {
    let mut rows = Vec::new();
    for sandbox in client.sandboxes().await? {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.id.clone(), verbose: false };
        let status = match client.runtime.pod_sandbox_status(request).await {
            Ok(answer) => answer.into_inner().status,
            // Removed since it was listed.
            Err(status) if status.code() == tonic::Code::NotFound => continue,
            Err(status) => return Err(said("read the pod's status")(status)),
        };
        let state = if is_ready(&sandbox) { "ready" } else { "not ready" };
        let meta = sandbox.metadata.unwrap_or_default();
        rows.push(PodRow {
            id: sandbox.id,
            name: meta.name,
            namespace: meta.namespace,
            uid: meta.uid,
            attempt: meta.attempt,
            state,
            ip: status.and_then(|status| status.network).map(|network| network.ip).unwrap_or_default(),
            created_at: sandbox.created_at,
            labels: sandbox.labels,
        });
    }
    list(output, &rows, &["POD ID", "NAME", "NAMESPACE", "STATE", "IP", "AGE"], |pod| {
        let ip = if pod.ip.is_empty() { "-".to_owned() } else { pod.ip.clone() };
        vec![
            short(&pod.id),
            pod.name.clone(),
            pod.namespace.clone(),
            pod.state.into(),
            ip,
            age(pod.created_at),
        ]
    })
}

#[derive(Debug, clap::Args)]
pub(crate) struct PsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerRow {
    id: String,
    name: String,
    pod: String,
    pod_id: String,
    image: String,
    image_id: String,
    attempt: u32,
    state: &'static str,
    /// Only of what has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    created_at: i64,
    labels: HashMap<String, String>,
}

pub(crate) async fn ps(client: &mut Client, args: &PsArgs, output: Output) -> Result<()> {
    let pods = pod_names(client).await?;
    let mut rows = Vec::new();
    for container in client.containers(None).await? {
        let state =
            cri::ContainerState::try_from(container.state).unwrap_or(cri::ContainerState::ContainerUnknown);
        if !args.all && state != cri::ContainerState::ContainerRunning {
            continue;
        }
        let image = container.image.clone().unwrap_or_default();
        let ended = if state == cri::ContainerState::ContainerExited {
            client.container_status(&container.id).await?
        } else {
            None
        };
        rows.push(ContainerRow {
            name: container_name(&container).to_owned(),
            pod: pods.get(&container.pod_sandbox_id).cloned().unwrap_or_default(),
            image: if image.user_specified_image.is_empty() {
                image.image
            } else {
                image.user_specified_image
            },
            attempt: attempt(&container),
            state: match state {
                cri::ContainerState::ContainerCreated => "created",
                cri::ContainerState::ContainerRunning => "running",
                cri::ContainerState::ContainerExited => "exited",
                cri::ContainerState::ContainerUnknown => "unknown",
            },
            exit_code: ended.as_ref().map(|status| status.exit_code),
            reason: ended.map(|status| status.reason).unwrap_or_default(),
            id: container.id,
            pod_id: container.pod_sandbox_id,
            image_id: container.image_id,
            created_at: container.created_at,
            labels: container.labels,
        });
    }
    list(output, &rows, &["CONTAINER ID", "NAME", "POD", "IMAGE", "STATE", "ATTEMPT", "AGE"], |row| {
        let (name, pod, image) = (row.name.clone(), row.pod.clone(), row.image.clone());
        vec![
            short(&row.id),
            name,
            pod,
            short_image(&image),
            ended(row.state, row.exit_code, &row.reason),
            row.attempt.to_string(),
            age(row.created_at),
        ]
    })
}

/// "running", "exited (3, Error)".
fn ended(state: &str, exit_code: Option<i32>, reason: &str) -> String {
    match exit_code {
        None => state.to_owned(),
        Some(code) if reason.is_empty() => format!("{state} ({code})"),
        Some(code) => format!("{state} ({code}, {reason})"),
    }
}

/// A bare image id is as long as any id; names are left whole.
fn short_image(image: &str) -> String {
    if image.starts_with("sha256:") { short(image) } else { image.to_owned() }
}

async fn pod_names(client: &mut Client) -> Result<HashMap<String, String>> {
    let sandboxes = client.sandboxes().await?;
    Ok(sandboxes.into_iter().map(|sandbox| (sandbox.id, sandbox.metadata.unwrap_or_default().name)).collect())
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageRow {
    id: String,
    names: Vec<String>,
    digests: Vec<String>,
    size: u64,
    pinned: bool,
}

pub(crate) async fn images(client: &mut Client, output: Output) -> Result<()> {
    let answer = client.images.list_images(cri::ListImagesRequest { filter: None }).await;
    let images = answer.map_err(said("list images"))?.into_inner().images;
    let row = |image: cri::Image| ImageRow {
        id: image.id,
        names: image.repo_tags,
        digests: image.repo_digests,
        size: image.size,
        pinned: image.pinned,
    };
    let mut rows: Vec<_> = images.into_iter().map(row).collect();
    rows.sort_by(|a, b| (&a.names, &a.id).cmp(&(&b.names, &b.id)));
    list(output, &rows, &["IMAGE ID", "SIZE", "NAMES"], |image| {
        let names = if image.names.is_empty() { &image.digests } else { &image.names };
        let names = if names.is_empty() { "<none>".to_owned() } else { names.join(" ") };
        vec![short(&image.id), size(image.size), names]
    })
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatsArgs {
    /// Again every second, until Ctrl-C
    #[arg(short, long)]
    pub(super) watch: bool,
}

/// One container's use. CPU is a rate in billionths of a core; none where two samples could not be had.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatsRow {
    id: String,
    name: String,
    pod: String,
    cpu_nano_cores: Option<u64>,
    cpu_usage_core_nano_seconds: Option<u64>,
    memory_working_set_bytes: Option<u64>,
    memory_usage_bytes: Option<u64>,
    writable_layer_bytes: Option<u64>,
}

pub(crate) async fn stats(client: &mut Client, args: &StatsArgs, output: Output) -> Result<()> {
    let mut before = sample(client).await?;
    loop {
        // A rate needs two samples; the daemon has none of its own while nobody asks (CRI-SS-05).
        let wait = if args.watch { Duration::from_secs(1) } else { Duration::from_millis(500) };
        tokio::time::sleep(wait).await;
        let now = sample(client).await?;
        let rows: Vec<StatsRow> =
            now.iter().filter(|stats| runs(stats)).map(|stats| stats_row(stats, &before)).collect();
        if !args.watch {
            return show_stats(&rows, output);
        }
        match output {
            Output::Json => json(&rows)?,
            Output::Table => {
                if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
                    print("\x1b[H\x1b[2J")?;
                }
                show_stats(&rows, output)?;
            }
        }
        before = now;
    }
}

/// CRI-SS-13: of an ended container there is at most the writable layer.
fn runs(stats: &cri::ContainerStats) -> bool {
    stats.cpu.is_some() || stats.memory.is_some()
}

async fn sample(client: &mut Client) -> Result<Vec<cri::ContainerStats>> {
    let answer = client.runtime.list_container_stats(cri::ListContainerStatsRequest { filter: None }).await;
    Ok(answer.map_err(said("read the containers' statistics"))?.into_inner().stats)
}

fn stats_row(stats: &cri::ContainerStats, before: &[cri::ContainerStats]) -> StatsRow {
    let attributes = stats.attributes.clone().unwrap_or_default();
    let label = |name: &str| attributes.labels.get(name).cloned();
    let own_name = || attributes.metadata.as_ref().map(|meta| meta.name.clone()).unwrap_or_default();
    let earlier =
        before.iter().find(|other| other.attributes.as_ref().is_some_and(|a| a.id == attributes.id));
    let value = |number: &Option<cri::UInt64Value>| number.as_ref().map(|number| number.value);
    let memory = stats.memory.as_ref();
    StatsRow {
        pod: label(super::translate::LABEL_POD_NAME).unwrap_or_default(),
        name: label(super::translate::LABEL_CONTAINER_NAME).unwrap_or_else(own_name),
        cpu_nano_cores: rate(earlier, stats),
        cpu_usage_core_nano_seconds: stats.cpu.as_ref().and_then(|cpu| value(&cpu.usage_core_nano_seconds)),
        memory_working_set_bytes: memory.and_then(|memory| value(&memory.working_set_bytes)),
        memory_usage_bytes: memory.and_then(|memory| value(&memory.usage_bytes)),
        writable_layer_bytes: stats.writable_layer.as_ref().and_then(|layer| value(&layer.used_bytes)),
        id: attributes.id,
    }
}

/// From our own two samples, else what the daemon says.
fn rate(earlier: Option<&cri::ContainerStats>, now: &cri::ContainerStats) -> Option<u64> {
    let used = |stats: &cri::ContainerStats| {
        let cpu = stats.cpu.as_ref()?;
        Some((cpu.timestamp, cpu.usage_core_nano_seconds.as_ref()?.value))
    };
    let said = || now.cpu.as_ref()?.usage_nano_cores.as_ref().map(|rate| rate.value);
    let (Some((t0, u0)), Some((t1, u1))) = (earlier.and_then(used), used(now)) else { return said() };
    let elapsed = u128::try_from(t1.checked_sub(t0)?).ok()?;
    if elapsed == 0 || u1 < u0 {
        return said();
    }
    u64::try_from(u128::from(u1 - u0) * 1_000_000_000 / elapsed).ok()
}

fn show_stats(rows: &[StatsRow], output: Output) -> Result<()> {
    let bytes = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), size);
    list(output, rows, &["CONTAINER ID", "NAME", "POD", "CPU", "MEMORY", "WRITTEN"], |row| {
        let cpu =
            row.cpu_nano_cores.map_or_else(|| "-".to_owned(), |nano| format!("{:.1}%", nano as f64 / 1e7));
        let (memory, written) = (bytes(row.memory_working_set_bytes), bytes(row.writable_layer_bytes));
        vec![short(&row.id), row.name.clone(), row.pod.clone(), cpu, memory, written]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(timestamp: i64, used: u64, said: Option<u64>) -> cri::ContainerStats {
        cri::ContainerStats {
            cpu: Some(cri::CpuUsage {
                timestamp,
                usage_core_nano_seconds: Some(cri::UInt64Value { value: used }),
                usage_nano_cores: said.map(|value| cri::UInt64Value { value }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_rate_comes_from_two_samples() {
        let first = stats(1_000_000_000, 5_000_000, None);
        assert_eq!(
            rate(Some(&first), &stats(1_500_000_000, 255_000_000, None)),
            Some(500_000_000),
            "half a core"
        );
        assert_eq!(rate(None, &stats(1, 1, None)), None, "unknown is not zero");
        assert_eq!(rate(None, &stats(1, 1, Some(7))), Some(7));
        assert_eq!(rate(Some(&first), &first), None, "no time has passed");
        assert_eq!(rate(Some(&first), &stats(2_000_000_000, 1, Some(3))), Some(3), "the counter began anew");
    }
}
