//! Port-forward: many connections, both address families, host network, broken ones beside living ones.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::requests::{container, modes, pod, pod_modes};
use e2e::streams::payload;
use e2e::{Node, Setup, on_a_node};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Child;

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// A running forwarder, and the local ports that it listens on.
struct Forward {
    _child: Child,
    ports: Vec<u16>,
}

async fn forward(mut command: tokio::process::Command, count: usize) -> Result<Forward> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let mut ports = Vec::new();
    while ports.len() < count {
        let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await??;
        let line = line.context("the forwarder ended")?;
        // "Forwarding from 127.0.0.1:41234 -> 80"
        let Some(rest) = line.strip_prefix("Forwarding from 127.0.0.1:") else { continue };
        ports.push(rest.split(' ').next().unwrap_or_default().parse().with_context(|| line.clone())?);
    }
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok(Forward { _child: child, ports })
}

async fn crictl(node: &Node, transport: &str, pod: &str, ports: &[&str]) -> Result<Forward> {
    let mut args = vec!["port-forward", "--transport", transport, pod];
    args.extend(ports);
    forward(node.crictl_command(&args), ports.len()).await
}

/// Sends `bytes`, ends its half, and returns all that comes back.
async fn exchange(port: u16, bytes: &[u8]) -> Result<Vec<u8>> {
    let (mut from, mut to) = TcpStream::connect(("127.0.0.1", port)).await?.into_split();
    let send = async {
        to.write_all(bytes).await?;
        to.shutdown().await
    };
    let mut back = Vec::new();
    let receive = from.read_to_end(&mut back);
    let both = async { tokio::join!(send, receive) };
    let (_, received) = tokio::time::timeout(Duration::from_secs(60), both).await.context("hangs")?;
    received.context("read")?;
    Ok(back)
}

/// An echo server on port 7 (IPv4), one on port 8 (IPv6 alone), one that resets its connections on port 9.
const SERVERS: &str = r"
import socket, struct, threading
def echo(c):
    while b := c.recv(65536): c.sendall(b)
    c.close()
def reset(c):
    c.recv(1)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    c.close()
def guarded(handle, c):
    try: handle(c)
    except OSError: c.close()
def serve(s, handle):
    while True: threading.Thread(target=guarded, args=(handle, s.accept()[0])).start()
for family, host, port, handle in [(socket.AF_INET, '127.0.0.1', 7, echo), (socket.AF_INET6, '::1', 8, echo),
                                   (socket.AF_INET, '127.0.0.1', 9, reset), (socket.AF_INET, '127.0.0.1', 17777, echo)]:
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((host, port))
    s.listen(256)
    threading.Thread(target=serve, args=(s, handle)).start()
print('ready', flush=True)
";

/// A pod with these servers.
async fn servers(node: &Node, name: &str, network: v1::NamespaceMode) -> Result<String> {
    let image = node.import("python3").await?;
    let mut config = pod(node, name);
    let mut server = container("servers", &image, &["python3", "-c", SERVERS]);
    pod_modes(&mut config).network = network.into();
    modes(&mut server).network = network.into();
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, server).await?;
    node.log_shows(&id, |line| line == "ready").await?;
    Ok(sandbox)
}

/// STR-PF-01 to STR-PF-03, STR-PF-11, STR-PF-14, STR-PF-15, STR-PFW-04, STR-TUN-01 to STR-TUN-03, CRI-XU-02.
#[test]
fn many_connections_over_one_session() {
    on_a_node(Setup::default(), |node| Box::pin(many(node)));
}

async fn many(node: &mut Node) -> Result<()> {
    let sandbox = servers(node, "many", v1::NamespaceMode::Pod).await?;
    let before = node.daemon_descriptors()?;
    for transport in TRANSPORTS {
        let session = crictl(node, transport, &sandbox, &["0:7", "0:8"]).await?;
        let (v4, v6) = (session.ports[0], session.ports[1]);
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..64u16 {
            let port = if n % 2 == 0 { v4 } else { v6 };
            tasks.spawn(async move {
                let bytes = payload(100_000 + usize::from(n));
                let back = exchange(port, &bytes).await.with_context(|| format!("connection {n}"))?;
                ensure!(back == bytes, "connection {n}: {} of {} bytes came back", back.len(), bytes.len());
                Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done?.with_context(|| transport.to_owned())?;
        }
        // In one session one after the other, nothing piles up.
        for _ in 0..20 {
            ensure!(exchange(v4, b"hello").await? == b"hello", "{transport}");
        }
        drop(session);
        node.descriptors_settle(before + 2).await.with_context(|| transport.to_owned())?;
    }
    let command = node.slipway_command(&["port-forward", &sandbox, ":7", ":8"]);
    let session = forward(command, 2).await?;
    for port in &session.ports {
        ensure!(exchange(*port, b"for people").await? == b"for people", "slipway port-forward");
    }
    Ok(())
}

/// STR-PF-09, STR-PF-10, STR-PF-16, STR-TST-08: with our own client, as crictl's gives up the session by itself.
#[test]
fn a_broken_port_leaves_the_others() {
    on_a_node(Setup::default(), |node| Box::pin(broken(node)));
}

async fn broken(node: &mut Node) -> Result<()> {
    let sandbox = servers(node, "broken", v1::NamespaceMode::Pod).await?;
    let session = forward(node.slipway_command(&["port-forward", &sandbox, ":4444", ":7", ":9"]), 3).await?;
    let [closed, echo, resets] = session.ports[..] else { anyhow::bail!("ports") };
    for _ in 0..5 {
        ensure!(exchange(closed, b"anybody?").await.unwrap_or_default().is_empty(), "a closed port");
        let _ = exchange(resets, &payload(300_000)).await;
        // A client that is gone before the server has dialled.
        drop(TcpStream::connect(("127.0.0.1", echo)).await?);
        ensure!(exchange(echo, b"still here").await? == b"still here", "the session lives");
    }
    // crictl's own session lives through a peer that breaks in the middle.
    for transport in TRANSPORTS {
        let session = crictl(node, transport, &sandbox, &["0:9", "0:7"]).await?;
        let _ = exchange(session.ports[0], &payload(300_000)).await;
        ensure!(exchange(session.ports[1], b"still here").await? == b"still here", "{transport}");
    }
    Ok(())
}

/// STR-PF-12, STR-PF-18: the host's network, and a pod that stops.
#[test]
fn host_network_and_stopped_pods() {
    on_a_node(Setup::default(), |node| Box::pin(host(node)));
}

async fn host(node: &mut Node) -> Result<()> {
    let sandbox = servers(node, "host", v1::NamespaceMode::Node).await?;
    let session = crictl(node, "spdy", &sandbox, &["0:17777"]).await?;
    ensure!(exchange(session.ports[0], b"the host's").await? == b"the host's", "host network");
    drop(session);

    let sandbox = servers(node, "stops", v1::NamespaceMode::Pod).await?;
    let session = crictl(node, "spdy", &sandbox, &["0:7"]).await?;
    let mut open = TcpStream::connect(("127.0.0.1", session.ports[0])).await?;
    open.write_all(b"x").await?;
    open.read_exact(&mut [0]).await?;
    node.stop_pod(&sandbox).await?;
    let ended = tokio::time::timeout(Duration::from_secs(30), open.read(&mut [0])).await;
    ensure!(matches!(ended, Ok(Ok(0) | Err(_))), "an open connection ends with its pod: {ended:?}");
    Ok(())
}
