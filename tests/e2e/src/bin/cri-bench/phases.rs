//! Where each millisecond goes: the daemon's own clock around every call and its steps (`[metrics]`), over some lives of a
//! pod. Means, as a histogram's sums give them.

use crate::Peer;
use anyhow::{Context, Result};
use e2e::registry::Registry;
use e2e::{Node, Setup};
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const WITH_CNI: &str = "127.0.0.1:9479";
const BUILT_IN: &str = "127.0.0.1:9480";

/// Seconds and calls, by method and phase; the phase of a whole call is empty.
type Clock = BTreeMap<(String, String), (f64, f64)>;

pub(crate) async fn run(rounds: usize) -> Result<()> {
    let cni = Some(&*crate::conflist("ours", "10.61.0.0/16").leak());
    let config = "[metrics]\naddress = \"127.0.0.1:9479\"\n";
    let with_cni = Node::start(Setup { cni, config, ..Setup::default() }).await?;
    let registry = Registry::start(&with_cni).await?;
    let image = registry.image("busybox:1");
    let config = "[metrics]\naddress = \"127.0.0.1:9480\"\n";
    let built_in = Node::start(Setup { config, ..Setup::default() }).await?;
    let mut peers = Vec::new();
    for (name, node) in [(WITH_CNI, with_cni), (BUILT_IN, built_in)] {
        node.pull(&image).await?;
        peers.push(Peer::new(name, node, image.clone()));
    }
    registry.stop().await?;
    let mut clocks = Vec::new();
    for peer in &mut peers {
        // The first life warms caches.
        peer.life(0).await?;
        let before = scrape(peer.name).await?;
        for round in 1..=rounds {
            peer.life(round).await.with_context(|| format!("{}: round {round}", peer.name))?;
        }
        clocks.push(since(&scrape(peer.name).await?, &before));
    }
    println!("# inside the daemon, mean of {rounds} lives, ms");
    println!("{:<18}{:<44}{:>12}{:>12}", "", "", "with CNI", "built-in");
    print(&clocks[0], &clocks[1]);
    for peer in &mut peers {
        peer.node.stop().await?;
    }
    Ok(())
}

fn print(with_cni: &Clock, built_in: &Clock) {
    let mean = |clock: &Clock, key: &(String, String)| {
        clock.get(key).filter(|(_, calls)| *calls > 0.0).map(|(sum, calls)| sum / calls * 1000.0)
    };
    let text = |value: Option<f64>| value.map_or("-".into(), |ms| format!("{ms:.2}"));
    let row = |method: &str, phase: &str, values: [Option<f64>; 2]| {
        println!("{method:<18}{phase:<44}{:>12}{:>12}", text(values[0]), text(values[1]));
    };
    let methods: Vec<&String> = with_cni.keys().filter(|key| key.1.is_empty()).map(|key| &key.0).collect();
    for method in methods {
        let phases = || with_cni.keys().filter(|(of, phase)| of == method && !phase.is_empty());
        if phases().next().is_none() {
            continue;
        }
        let whole = (method.clone(), String::new());
        row(method, "whole", [mean(with_cni, &whole), mean(built_in, &whole)]);
        for key in phases() {
            row("", &key.1, [mean(with_cni, key), mean(built_in, key)]);
        }
        let rest = |clock: &Clock| {
            let steps = phases().filter_map(|key| mean(clock, key));
            Some(mean(clock, &whole)? - steps.sum::<f64>())
        };
        row("", "the rest: decode, records, encode", [rest(with_cni), rest(built_in)]);
    }
}

fn since(now: &Clock, before: &Clock) -> Clock {
    let difference = |(key, (sum, calls)): (&(String, String), &(f64, f64))| {
        let (earlier, earlier_calls) = before.get(key).copied().unwrap_or_default();
        (key.clone(), (sum - earlier, calls - earlier_calls))
    };
    now.iter().map(difference).collect()
}

/// Sums and counts of the two histograms that say where time goes.
async fn scrape(address: &str) -> Result<Clock> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let mut clock = Clock::new();
    for line in answer.lines() {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let Some((labels, value)) = rest.split_once("} ") else { continue };
        let Some(part) = ["slipway_cri_request_duration_seconds_", "slipway_cri_phase_duration_seconds_"]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))
        else {
            continue;
        };
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            Some(rest.split_once('"')?.0.to_owned())
        };
        let key = (label("method").context("no method")?, label("phase").unwrap_or_default());
        let value: f64 = value.parse().with_context(|| line.to_owned())?;
        let entry = clock.entry(key).or_default();
        match part {
            "sum" => entry.0 = value,
            "count" => entry.1 = value,
            _ => {}
        }
    }
    Ok(clock)
}
