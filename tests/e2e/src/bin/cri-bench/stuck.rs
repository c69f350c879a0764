//! Many containers, and one of them where no signal reaches it: what lists, statuses and events cost before, and while a
//! stop, an exec and a removal of that one wait.
//!
//! Its pod's group is frozen behind the runtime's back (the freezer of control groups version 1 keeps even from SIGKILL, as
//! an uninterruptible call does; that of version 2 lets it through). The container's own would be thawed by the kill.

use crate::quantile;
use anyhow::{Context, Result, bail, ensure};
use cri_proto::v1;
use e2e::kernel::{Group, is_v2};
use e2e::requests::{pod, shell};
use e2e::{Node, Setup};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Containers of one pod; the stuck one is alone in its own.
const OF_A_POD: usize = 50;
/// Calls of each kind, before and while.
const ROUNDS: usize = 40;
/// Longer than anything that is waited for here may take.
const PATIENCE: Duration = Duration::from_secs(60);

type Samples = BTreeMap<&'static str, Vec<Duration>>;

pub(crate) async fn run(count: usize) -> Result<()> {
    if is_v2() {
        bail!("control groups version 2 freeze nothing that SIGKILL does not end: run it on version 1");
    }
    let mut node = Node::start(Setup::default()).await?;
    let measured = measure(&node, count).await;
    let stopped = node.stop().await;
    measured.and(stopped)
}

async fn measure(node: &Node, count: usize) -> Result<()> {
    let image = node.import("busybox").await?;
    let start = Instant::now();
    let mut ids = Vec::new();
    while ids.len() < count {
        let config = pod(node, &format!("many-{}", ids.len()));
        let sandbox = node.run_pod(&config).await?;
        let size = if ids.is_empty() { 1 } else { OF_A_POD.min(count - ids.len()) };
        for inside in 0..size {
            let main = shell(&format!("c{inside}"), &image, "exec sleep 100000");
            ids.push(node.run(&sandbox, &config, main).await?);
        }
    }
    println!("{count} containers run after {:.1} s", start.elapsed().as_secs_f64());
    let (stuck, other) = (ids.first().context("a container")?, ids.last().context("a container")?);
    let mut before = round(node, &image, stuck, other, count, "before").await?;

    let group = Group::of(node, stuck).await?.parent();
    group.freeze(true)?;
    if let Err(error) = until_frozen(&group).await {
        group.freeze(false)?;
        return Err(error);
    }
    let waiting = async {
        tokio::join!(
            node.stop_container(stuck, 0),
            node.exec(stuck, &["true"]),
            node.remove_container(stuck),
            async {
                let measured = round(node, &image, stuck, other, count, "while").await;
                group.freeze(false)?;
                measured
            }
        )
    };
    let (stop, _, remove, during) = waiting.await;
    let mut during = during?;
    println!("the stop of the stuck one ended with: {}", ended(stop.map(drop)));
    println!("its removal ended with:               {}\n", ended(remove));
    println!("# {ROUNDS} calls each, ms p50 (p95)\n{:<34}{:>20}{:>20}", "", "before", "one is stuck");
    for (what, samples) in &mut before {
        let text = |samples: &mut Vec<Duration>| {
            format!("{:.2} ({:.2})", quantile(samples, 0.5), quantile(samples, 0.95))
        };
        let stuck = during.get_mut(what).map(text).unwrap_or_default();
        println!("{what:<34}{:>20}{stuck:>20}", text(samples));
    }
    Ok(())
}

async fn until_frozen(group: &Group) -> Result<()> {
    let start = Instant::now();
    while !group.is_frozen()? {
        ensure!(start.elapsed() < PATIENCE, "it does not freeze");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn ended(outcome: Result<()>) -> String {
    outcome.map_or_else(|error| format!("{error:#}"), |()| "success".into())
}

/// All kinds of calls; `tag` keeps the names of their pods apart.
async fn round(
    node: &Node,
    image: &str,
    stuck: &str,
    other: &str,
    count: usize,
    tag: &str,
) -> Result<Samples> {
    let mut samples = Samples::new();
    let mut runtime = node.runtime().await?;
    let mut events = runtime.get_container_events(v1::GetEventsRequest {}).await?.into_inner();
    let config = pod(node, &format!("new-{tag}"));
    let sandbox = node.run_pod(&config).await?;
    for number in 0..ROUNDS {
        let start = Instant::now();
        let listed =
            runtime.list_containers(v1::ListContainersRequest::default()).await?.into_inner().containers;
        note(&mut samples, "ListContainers", start);
        ensure!(listed.len() >= count, "{} of {count} are listed", listed.len());
        let start = Instant::now();
        runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?;
        note(&mut samples, "ListPodSandbox", start);
        for (what, id) in [("ContainerStatus of the stuck one", stuck), ("ContainerStatus of another", other)]
        {
            let start = Instant::now();
            node.container_status(id).await?;
            note(&mut samples, what, start);
        }
        let main = shell(&format!("new-{number}"), image, "exec sleep 100000");
        let id = node.create(&sandbox, &config, main).await?;
        let start = Instant::now();
        node.start_container(&id).await?;
        note(&mut samples, "StartContainer", start);
        until_started(&mut events, &id).await?;
        note(&mut samples, "StartContainer to its event", start);
        node.remove_container(&id).await?;
    }
    node.remove_pod(&sandbox).await?;
    Ok(samples)
}

fn note(samples: &mut Samples, what: &'static str, start: Instant) {
    samples.entry(what).or_default().push(start.elapsed());
}

async fn until_started(events: &mut tonic::Streaming<v1::ContainerEventResponse>, id: &str) -> Result<()> {
    let started = v1::ContainerEventType::ContainerStartedEvent;
    loop {
        let event = tokio::time::timeout(PATIENCE, events.message()).await.context("no event comes")??;
        let event = event.context("the stream of events ended")?;
        if event.container_id == id && event.container_event_type() == started {
            return Ok(());
        }
    }
}
