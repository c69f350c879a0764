//! What streaming scenarios share: programs that are typed into, HTTP by hand, payloads that can be checked.

use crate::Node;
use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

/// How long one client may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `command` with `typed` as its standard input.
pub async fn type_into(mut command: Command, typed: &[u8]) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("spawn")?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let write = async {
        // The program may end without having read it all.
        let _ = stdin.write_all(typed).await;
        drop(stdin);
    };
    let both = async { tokio::join!(child.wait_with_output(), write).0 };
    tokio::time::timeout(PATIENCE, both).await.context("the client hangs")?.context("wait")
}

/// Standard output and error as text.
pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Bytes that are never the same for long, so that loss, order and repetition show.
pub fn payload(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Sends a request by hand and returns the head of the answer, or what came until the server closed.
pub async fn http(url: &str, method: &str, headers: &[(&str, &str)]) -> Result<String> {
    let (authority, path) =
        url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).context("URL")?;
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!("{method} /{path} HTTP/1.1\r\nHost: {authority}\r\n{lines}\r\n");
    raw(authority, request.as_bytes()).await
}

/// The same with bytes of any kind.
pub async fn raw(authority: &str, bytes: &[u8]) -> Result<String> {
    let mut tcp = TcpStream::connect(authority).await.context("connect to the streaming server")?;
    // It may have heard enough before the end.
    let _ = tcp.write_all(bytes).await;
    let mut answer = Vec::new();
    let head = async {
        while !answer.windows(4).any(|end| end == b"\r\n\r\n")
            && matches!(tcp.read_buf(&mut answer).await, Ok(1..))
        {}
    };
    tokio::time::timeout(PATIENCE, head).await.context("no answer from the streaming server")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The calls that answer with URLs, in the words of a test.
impl Node {
    pub async fn exec_url(&self, id: &str, command: &[&str], stdin: bool, tty: bool) -> Result<String> {
        let request = v1::ExecRequest {
            container_id: id.into(),
            cmd: command.iter().map(|&c| c.into()).collect(),
            tty,
            stdin,
            stdout: true,
            stderr: !tty,
        };
        Ok(self.runtime().await?.exec(request).await?.into_inner().url)
    }

    pub async fn forward_url(&self, pod: &str) -> Result<String> {
        let request = v1::PortForwardRequest { pod_sandbox_id: pod.into(), port: vec![] };
        Ok(self.runtime().await?.port_forward(request).await?.into_inner().url)
    }

    /// Open descriptors of the daemon.
    pub fn daemon_descriptors(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.daemon_pid()?))?.count())
    }

    /// Waits until the daemon has at most so many descriptors open.
    pub async fn descriptors_settle(&self, most: usize) -> Result<()> {
        for _ in 0..600 {
            if self.daemon_descriptors()? <= most {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let left = self.daemon_descriptors()?;
        ensure!(left <= most, "{left} descriptors are open, {most} were before");
        Ok(())
    }
}
