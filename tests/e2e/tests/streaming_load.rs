//! Much data, slow clients: nothing is lost, nothing hangs, nobody else waits. `SLIPWAY_SOAK_MB` sets how much (16).

use anyhow::{Context, Result, ensure};
use e2e::requests::{container, pod, shell};
use e2e::streams::payload;
use e2e::{Node, Setup, on_a_node};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn amount() -> usize {
    let megabytes = std::env::var("SLIPWAY_SOAK_MB").ok().and_then(|text| text.parse().ok());
    megabytes.unwrap_or(16) << 20
}

/// Writes `count` bytes of a repeated block and reads them back, both at once.
async fn through(
    mut to: impl tokio::io::AsyncWrite + Unpin,
    mut from: impl tokio::io::AsyncRead + Unpin,
    count: usize,
) -> Result<()> {
    let block = payload((1 << 20) + 7);
    let write = async {
        let mut left = count;
        while left > 0 {
            let piece = &block[..left.min(block.len())];
            to.write_all(piece).await.context("write")?;
            left -= piece.len();
        }
        to.shutdown().await.context("end")?;
        drop(to);
        anyhow::Ok(())
    };
    let read = async {
        let (mut at, mut buffer) = (0, vec![0; 256 << 10]);
        loop {
            let got = from.read(&mut buffer).await.context("read")?;
            if got == 0 {
                break;
            }
            let mut fresh = &buffer[..got];
            while !fresh.is_empty() {
                let wanted = &block[at % block.len()..];
                let count = wanted.len().min(fresh.len());
                ensure!(fresh[..count] == wanted[..count], "bytes {at} to {} are others", at + count);
                (at, fresh) = (at + count, &fresh[count..]);
            }
        }
        ensure!(at == count, "{at} of {count} bytes came back");
        Ok(())
    };
    tokio::try_join!(write, read).map(drop)
}

/// STR-TST-04, STR-LOAD-02, SPDY-16, SPDY-17.
#[test]
fn much_data_goes_through_exec_intact() {
    on_a_node(Setup::default(), |node| Box::pin(exec(node)));
}

async fn exec(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "much-exec");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, "sleep 1000")).await?;
    for transport in ["spdy", "websocket"] {
        let mut command = node.crictl_command(&["exec", "-i", "--transport", transport, &id, "cat"]);
        let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (to, from) = (client.stdin.take().context("stdin")?, client.stdout.take().context("stdout")?);
        through(to, from, amount()).await.with_context(|| transport.to_owned())?;
        ensure!(client.wait().await?.success(), "{transport}: the exit code");
        let memory = memory_of(node.daemon_pid()?)?;
        ensure!(memory < 200 << 10, "{transport}: the daemon has {memory} KiB");
    }
    Ok(())
}

/// The same through a forwarded port.
#[test]
fn much_data_goes_through_port_forward_intact() {
    on_a_node(Setup::default(), |node| Box::pin(forward(node)));
}

async fn forward(node: &mut Node) -> Result<()> {
    let image = node.import("python3").await?;
    let config = pod(node, "much-forward");
    let sandbox = node.run_pod(&config).await?;
    let server = "import socket; s = socket.create_server(('', 7)); print('ready', flush=True)\nwhile True:\n  c, _ = s.accept()\n  \
                  while b := c.recv(65536): c.sendall(b)\n  c.close()";
    let id = node.run(&sandbox, &config, container("server", &image, &["python3", "-c", server])).await?;
    node.log_shows(&id, |line| line == "ready").await?;
    for transport in ["spdy", "websocket"] {
        let mut command =
            node.crictl_command(&["port-forward", "--transport", transport, &sandbox, "17070:7"]);
        let mut client = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let start = Instant::now();
        let tcp = loop {
            match tokio::net::TcpStream::connect("127.0.0.1:17070").await {
                Ok(tcp) => break tcp,
                Err(error) => ensure!(start.elapsed() < Duration::from_secs(30), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let (from, to) = tcp.into_split();
        through(to, from, amount()).await.with_context(|| transport.to_owned())?;
        // Gone before the next one listens: a connection to it would be reset.
        client.kill().await?;
    }
    Ok(())
}

/// STR-ATT-03, STR-LOAD-02: a client that does not read is cut off and told; log and container never wait for it.
#[test]
fn a_slow_watcher_holds_up_nobody() {
    on_a_node(Setup::default(), |node| Box::pin(slow(node)));
}

async fn slow(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "slow");
    let sandbox = node.run_pod(&config).await?;
    let script = "until [ -e /go ]; do echo x; sleep 0.1; done; head -c 80000000 /dev/zero | tr '\\0' 'x' | fold -w 99";
    let id = node.run(&sandbox, &config, shell("loud", &image, script)).await?;
    let mut command = node.crictl_command(&["attach", &id]);
    let mut sleeper = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdout = sleeper.stdout.take().context("stdout")?;
    tokio::time::timeout(Duration::from_secs(30), stdout.read_exact(&mut [0; 2])).await??;
    node.sh(&id, "touch /go").await?;
    let start = Instant::now();
    while std::fs::metadata(node.container_status(&id).await?.log_path)?.len() < 80_000_000 {
        ensure!(start.elapsed() < Duration::from_secs(120), "the log stands still");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(node.ended(&id).await?.exit_code == 0, "it ended, though nobody read");
    let mut heard = Vec::new();
    stdout.read_to_end(&mut heard).await?;
    let output = sleeper.wait_with_output().await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("cut off"), "it is told so: {said}");
    ensure!(heard.iter().all(|byte| b"x\n".contains(byte)), "what it has is what was written");
    Ok(())
}

/// VmRSS in KiB (proc_pid_status(5)).
fn memory_of(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().context("VmRSS")
}
