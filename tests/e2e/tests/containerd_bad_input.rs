//! Bad input by way of a real containerd: told in a sentence, and the container beside it does not notice. What containerd's own
//! client refuses first (a second task of a name, a deletion of what runs) is in the keeper's tests, with the codes.

use anyhow::{Result, ensure};
use e2e::containerd::{Handler, Release, setup, until};
use e2e::{Node, on_a_node};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// SHIM-TSK-02, SHIM-OUT-07, SHIM-TTR-02.
#[test]
fn bad_input_by_way_of_debians_containerd() {
    on_a_node(setup(Release::Debian, Handler::Runc), |node| Box::pin(bad_input(node)));
}

#[test]
fn bad_input_by_way_of_containerd_2() {
    on_a_node(setup(Release::Two, Handler::Runc), |node| Box::pin(bad_input(node)));
}

/// A container that counts into a file.
struct Beside {
    log: PathBuf,
    keepers: Vec<i32>,
    execs: usize,
}

impl Beside {
    async fn new(node: &Node) -> Result<Self> {
        let log = node.path("logs/steady.log");
        let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
        let uri = format!("file://{}", log.display());
        node.ctr_run("steady", &["-d", "--log-uri", &uri], &["sh", "-c", script]).await?;
        Ok(Self { log, keepers: node.keepers(), execs: 0 })
    }

    fn lines(&self) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(&self.log)?;
        Ok(text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect())
    }

    async fn is_unharmed(&mut self, node: &Node) -> Result<()> {
        ensure!(node.keepers() == self.keepers, "the same keeper: {:?}, {:?}", self.keepers, node.keepers());
        let before = self.lines()?.len();
        until("the log goes on", async || Ok(self.lines()?.len() > before + 2)).await?;
        let lines = self.lines()?;
        ensure!(lines.iter().zip(1..).all(|(line, i)| *line == i.to_string()), "no line is lost: {lines:?}");
        self.execs += 1;
        let name = format!("look-{}", self.execs);
        let seen = node.ctr(&["task", "exec", "--exec-id", &name, "steady", "echo", "in"]).await?;
        ensure!(seen == "in\n", "exec: {seen}");
        Ok(())
    }
}

async fn bad_input(node: &mut Node) -> Result<()> {
    node.ctr_import("busybox").await?;
    let mut beside = Beside::new(node).await?;
    beside.is_unharmed(node).await?;

    let options = node.path("options.toml");
    for (text, named) in [("SystemdCgruop = true\n", "SystemdCgruop"), ("IoUid = \"root\"\n", "IoUid")] {
        std::fs::write(&options, text)?;
        let more = ["--rm", "--runtime-config-path", options.to_str().unwrap_or_default()];
        let (code, _, error) = node.ctr_run("misled", &more, &["true"]).await?;
        ensure!(code != 0 && error.contains(named), "{code}: {error}");
        node.ctr(&["containers", "rm", "misled"]).await.ok();
        beside.is_unharmed(node).await?;
    }
    ensure!(node.ctr_run("misled", &["--rm"], &["true"]).await?.0 == 0, "the name can be used");

    node.ctr_run("robbed", &["-d"], &["sleep", "1000"]).await?;
    std::fs::remove_file(node.path("state/io.containerd.runtime.v2.task/default/robbed/config.json"))?;
    let error = node.ctr(&["task", "exec", "--exec-id", "e1", "robbed", "true"]).await.err();
    let error = error.map(|error| error.to_string()).unwrap_or_default();
    ensure!(error.contains("robbed/config.json: No such file"), "{error}");
    beside.is_unharmed(node).await?;
    node.ctr(&["task", "kill", "-s", "SIGKILL", "robbed"]).await?;
    node.ctr_stopped("robbed").await?;
    node.ctr(&["task", "rm", "robbed"]).await.ok();
    node.ctr(&["containers", "rm", "robbed"]).await?;

    let groups =
        std::fs::read_dir(node.path("state/keeper"))?.flatten().map(|entry| entry.path().join("sock"));
    let mut open = Vec::new();
    for socket in groups.filter(|path| path.exists()) {
        for rubbish in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 70_000], &[0; 10], b"x"] {
            let mut stream = UnixStream::connect(&socket)?;
            stream.write_all(rubbish)?;
            open.push(stream);
        }
    }
    ensure!(!open.is_empty(), "a socket");
    beside.is_unharmed(node).await?;
    drop(open);
    beside.is_unharmed(node).await?;
    node.ctr(&["task", "kill", "-s", "SIGKILL", "steady"]).await?;
    node.ctr_stopped("steady").await?;
    node.ctr(&["task", "rm", "steady"]).await.ok();
    node.ctr(&["containers", "rm", "steady"]).await.map(drop)
}
