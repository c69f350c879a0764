//! The containerd door by ctr: tasks from first to last, standard streams of every kind, terminals, checkpoints, options.
//! Every test ends with the leak check of a node.

use anyhow::{Context, Result, ensure};
use e2e::containerd::{Handler, Release, setup, until};
use e2e::streams::{texts, type_into};
use e2e::{Node, on_a_node};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

/// SHIM-BIN-01, SHIM-BOOT-01, SHIM-OUT-03, SHIM-VER-01, SHIM-TSK-01, SHIM-TSK-16: one line switches over.
#[test]
fn ctr_runs_containers_on_debians_containerd() {
    on_a_node(setup(Release::Debian, Handler::Runc), |node| Box::pin(by_ctr(node)));
}

/// SHIM-BOOT-02, SHIM-OUT-01, SHIM-VER-03, SHIM-VER-04: the same on 2.x with its bootstrap protocol.
#[test]
fn ctr_runs_containers_on_containerd_2() {
    on_a_node(setup(Release::Two, Handler::Runc), |node| Box::pin(by_ctr(node)));
}

async fn by_ctr(node: &mut Node) -> Result<()> {
    node.ctr_import("busybox").await?;
    let execs = std::cell::Cell::new(0);
    let name = || {
        execs.set(execs.get() + 1);
        format!("read-{}", execs.get())
    };
    let ran = node.ctr_run("brief", &["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"]).await?;
    ensure!(ran == (7, "out\n".into(), "err\n".into()), "{ran:?}");
    for round in 0..10 {
        // SHIM-TST-02: what ends at once is seen to have begun.
        let id = format!("true-{round}");
        ensure!(node.ctr_run(&id, &["--rm"], &["true"]).await?.0 == 0, "true, round {round}");
    }
    node.ctr_run("long", &["-d"], &["sleep", "1000"]).await?;
    let task = async |command: &str| node.ctr(&["task", command, "long"]).await;
    ensure!(node.ctr(&["task", "ls"]).await?.contains("RUNNING"), "task ls");
    let exec =
        node.ctr(&["task", "exec", "--exec-id", "e1", "long", "sh", "-c", "echo in; hostname"]).await?;
    ensure!(exec.starts_with("in\n"), "exec: {exec}");
    let failing = node.ctr(&["task", "exec", "--exec-id", "e2", "long", "sh", "-c", "exit 5"]).await;
    ensure!(failing.is_err(), "an exec's exit code is ctr's");
    let words = ["task", "exec", "--exec-id", "e3", "--user", "1000:1001", "--cwd", "/tmp"];
    let as_another = node.ctr(&[&words[..], &["long", "sh", "-c", "id -u; id -g; pwd"]].concat()).await?;
    ensure!(as_another == "1000\n1001\n/tmp\n", "exec as another user elsewhere: {as_another}");
    let detached = ["task", "exec", "-d", "--exec-id", "e4", "long", "sh", "-c", "echo seen > /tmp/detached"];
    node.ctr(&detached).await?;
    until("a detached exec's work", async || {
        let read = node.ctr(&["task", "exec", "--exec-id", &name(), "long", "cat", "/tmp/detached"]).await;
        Ok(read.is_ok_and(|text| text == "seen\n"))
    })
    .await?;
    task("pause").await?;
    ensure!(node.ctr(&["task", "ls"]).await?.contains("PAUSED"), "paused");
    task("resume").await?;
    // SHIM-TSK-28, SHIM-TST-09: ctr decodes them by the standard types.
    ensure!(task("metrics").await?.to_lowercase().contains("memory"), "metrics");
    ensure!(task("ps").await?.lines().count() >= 2, "ps");
    removed(node, "long").await?;
    logs_by_uri(node).await
}

/// SHIM-IO-05, SHIM-IO-06, SHIM-IO-07, SHIM-IO-08.
async fn logs_by_uri(node: &Node) -> Result<()> {
    let file = node.path("logs/new/file.log");
    let uri = format!("file://{}", file.display());
    let script = "echo out; echo err >&2";
    node.ctr_run("to-file", &["-d", "--log-uri", &uri], &["sh", "-c", script]).await?;
    until("both streams in the file", async || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        Ok(text.contains("out\n") && text.contains("err\n"))
    })
    .await?;
    let program = node.path("logger.sh");
    std::fs::write(
        &program,
        "#!/bin/sh\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $1 $2\" > $2\nexec 5>&-\ncat <&3 >> $2\ncat <&4 >> $2\n",
    )?;
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let seen = node.path("logs/program.log");
    let uri = format!("binary://{}?to={}", program.display(), seen.display());
    node.ctr_run("to-program", &["-d", "--log-uri", &uri], &["sh", "-c", script]).await?;
    let expected = format!("to-program default to {}\nout\nerr\n", seen.display());
    until(
        "the program's output",
        async || Ok(std::fs::read_to_string(&seen).unwrap_or_default() == expected),
    )
    .await?;
    for id in ["to-file", "to-program"] {
        node.ctr_stopped(id).await?;
        node.ctr(&["task", "rm", id]).await?;
        node.ctr(&["containers", "rm", id]).await?;
    }
    Ok(())
}

/// SHIM-EVT-01, SHIM-EVT-02, SHIM-EVT-03, SHIM-EVT-05, SHIM-EXIT-01, SHIM-EXIT-02: all events, once, in order.
#[test]
fn events_come_once_and_in_order() {
    on_a_node(setup(Release::Debian, Handler::Runc), |node| Box::pin(events(node)));
}

async fn events(node: &mut Node) -> Result<()> {
    node.ctr_import("busybox").await?;
    let file = node.path("logs/events");
    let mut watcher =
        node.ctr_command(&["events"])?.stdout(std::fs::File::create(&file)?).spawn().context("ctr events")?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    node.ctr_run("watched", &["-d"], &["sleep", "1000"]).await?;
    node.ctr(&["task", "exec", "--exec-id", "e1", "watched", "true"]).await?;
    node.ctr(&["task", "kill", "-s", "SIGKILL", "watched"]).await?;
    node.ctr_stopped("watched").await?;
    node.ctr(&["task", "rm", "watched"]).await.ok();
    let topics = || -> Result<Vec<String>> {
        let text = std::fs::read_to_string(&file)?;
        let topic =
            |line: &str| line.split_whitespace().find(|w| w.starts_with("/tasks/")).map(str::to_owned);
        Ok(text.lines().filter_map(topic).collect())
    };
    let expected = ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"];
    let expected: Vec<_> = expected.iter().map(|topic| format!("/tasks/{topic}")).collect();
    until("all events", async || Ok(topics()?.len() >= expected.len())).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(topics()? == expected, "{:?}", topics()?);
    let exits = std::fs::read_to_string(&file)?;
    let exits: Vec<_> = exits.lines().filter(|line| line.contains("/tasks/exit")).collect();
    ensure!(exits[0].contains("\"id\":\"e1\"") && exits[1].contains("\"id\":\"watched\""), "{exits:?}");
    watcher.kill().await?;
    node.ctr(&["containers", "rm", "watched"]).await?;
    Ok(())
}

/// SHIM-EVT-04, SHIM-EVT-05, SHIM-EVT-06: exits while containerd is away come once, in order, and with their codes.
#[test]
fn exits_while_debians_containerd_is_away_come_once_and_in_order() {
    on_a_node(setup(Release::Debian, Handler::Runc), |node| Box::pin(exits_while_away(node)));
}

#[test]
fn exits_while_containerd_2_is_away_come_once_and_in_order() {
    on_a_node(setup(Release::Two, Handler::Runc), |node| Box::pin(exits_while_away(node)));
}

async fn exits_while_away(node: &mut Node) -> Result<()> {
    node.ctr_import("busybox").await?;
    let logs = node.path("logs");
    let mount = format!("type=bind,src={},dst=/v,options=rbind:rw", logs.display());
    let ids = ["one", "two", "three"];
    for (id, code) in ids.iter().zip(21..) {
        let script = format!("until [ -e /v/{id} ]; do sleep 0.02; done; exit {code}");
        node.ctr_run(id, &["-d", "--mount", &mount], &["sh", "-c", &script]).await?;
    }
    let keeper = Waiting::of(node)?;
    until("containerd has all events", async || Ok(keeper.count()? == 0)).await?;
    node.kill_daemon().await?;
    // None is told before somebody listens: a watcher can begin only once containerd serves.
    let address = keeper.send_events_to("/nowhere")?;
    let order = ["two", "three", "one"];
    for (id, waiting) in order.iter().zip(1..) {
        std::fs::write(logs.join(id), "")?;
        until("the exit is on record", async || Ok(keeper.count()? == waiting)).await?;
    }
    node.start_daemon().await?;
    let file = logs.join("events");
    let mut watcher =
        node.ctr_command(&["events"])?.stdout(std::fs::File::create(&file)?).spawn().context("ctr events")?;
    let seen = |words: &str| Ok(std::fs::read_to_string(&file)?.contains(words));
    let mut marks = 0;
    until("the watcher sees events", async || {
        marks += 1;
        node.ctr(&["namespaces", "create", &format!("mark-{marks}")]).await?;
        seen("/namespaces/create")
    })
    .await?;
    keeper.send_events_to(&address)?;
    until("containerd has all events", async || Ok(keeper.count()? == 0)).await?;
    node.ctr(&["namespaces", "create", "last"]).await?;
    until("the last mark", async || seen("\"last\"")).await?;
    let text = std::fs::read_to_string(&file)?;
    let exits: Vec<_> = text.lines().filter(|line| line.contains("/tasks/exit")).collect();
    let expected = [("two", 22), ("three", 23), ("one", 21)];
    let told = |line: &str, (id, code): (&str, i32)| {
        line.contains(&format!("\"container_id\":\"{id}\""))
            && line.contains(&format!("\"exit_status\":{code}"))
    };
    let right = exits.len() == 3 && exits.iter().zip(expected).all(|(line, exit)| told(line, exit));
    ensure!(right, "exits of {order:?}, in this order, once: {text}");
    watcher.kill().await?;
    for (id, code) in ids.iter().zip(21..) {
        // ctr warns of an exit code other than 0, and ends with 0 itself.
        let removed = node.ctr_command(&["task", "rm", id])?.output().await?;
        let told = String::from_utf8_lossy(&removed.stderr).contains(&format!("exit code {code}"));
        ensure!(removed.status.success() && told, "{id}: {removed:?}");
        node.ctr(&["containers", "rm", id]).await?;
    }
    Ok(())
}

/// Events that the keeper holds until containerd has them.
struct Waiting(PathBuf);

impl Waiting {
    fn of(node: &Node) -> Result<Self> {
        let groups = std::fs::read_dir(node.path("state/keeper"))?.flatten().map(|entry| entry.path());
        let all: Vec<_> = groups.filter(|path| path.join("events-address").exists()).collect();
        let [root] = &all[..] else { anyhow::bail!("one keeper: {all:?}") };
        Ok(Self(root.clone()))
    }

    fn count(&self) -> Result<usize> {
        Ok(std::fs::read_dir(self.0.join("events"))?.count())
    }

    /// As a client does that comes back with another address; answers the one before.
    fn send_events_to(&self, address: &str) -> Result<String> {
        let (file, new) = (self.0.join("events-address"), self.0.join("events-address.new"));
        let before = std::fs::read_to_string(&file)?;
        std::fs::write(&new, address)?;
        std::fs::rename(new, file)?;
        Ok(before)
    }
}

/// SHIM-IO-03, SHIM-IO-04, SHIM-TST-05: a client that is killed leaves fifos that nobody reads: its container waits, can be
/// asked, entered and ended, and others do not notice.
#[test]
fn a_client_that_is_gone_leaves_its_fifos_unread_on_debians_containerd() {
    on_a_node(setup(Release::Debian, Handler::Runc), |node| Box::pin(client_is_gone(node)));
}

#[test]
fn a_client_that_is_gone_leaves_its_fifos_unread_on_containerd_2() {
    on_a_node(setup(Release::Two, Handler::Runc), |node| Box::pin(client_is_gone(node)));
}

async fn client_is_gone(node: &mut Node) -> Result<()> {
    node.ctr_import("busybox").await?;
    let fifos = node.path("fifos").display().to_string();
    let script = "while :; do head -c 100000 /dev/zero; echo x >> /tmp/rounds; done";
    let words = node.ctr_run_words("left", &["--fifo-dir", &fifos], &["sh", "-c", script]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut client = node.ctr_command(&words)?.stdout(Stdio::null()).spawn()?;
    until("it runs", async || {
        let listed = node.ctr(&["task", "ls"]).await?;
        Ok(listed.lines().any(|line| line.starts_with("left") && line.contains("RUNNING")))
    })
    .await?;
    client.kill().await?;
    let mut execs = 0;
    let mut rounds = async || {
        execs += 1;
        let name = format!("e{execs}");
        node.ctr(&["task", "exec", "--exec-id", &name, "left", "sh", "-c", "wc -l < /tmp/rounds || :"]).await
    };
    let mut last = None;
    until("it stands still", async || {
        let now = Some(rounds().await?);
        Ok(std::mem::replace(&mut last, now.clone()) == now)
    })
    .await?;
    let beside = node.ctr_run("beside", &["--rm"], &["echo", "not affected"]).await?;
    ensure!(beside == (0, "not affected\n".into(), String::new()), "{beside:?}");
    removed(node, "left").await
}

// ---------------------------------------------------------------- terminals

/// SHIM-IO-09, SHIM-TSK-25: a terminal of the task and of an exec: its size, a new size, the keyboard, exit codes.
#[test]
fn terminals_on_debians_containerd() {
    on_a_node(setup(Release::Debian, Handler::Runc), |node| Box::pin(terminals(node)));
}

#[test]
fn terminals_on_containerd_2() {
    on_a_node(setup(Release::Two, Handler::Runc), |node| Box::pin(terminals(node)));
}

/// Waits for the first size, has the client's terminal changed, waits for the second, reads a line.
const TYPED_INTO: &str = "wait() { i=0; until [ \"$(stty size)\" = \"$1\" ] || [ $i = 600 ]; do i=$((i+1)); sleep 0.05; done; }; \
     tty >/dev/null && echo a terminal; wait '40 123'; echo now $(stty size); touch /v/$1; wait '33 99'; echo then $(stty size); \
     echo to stderr >&2; read line; echo \"read $line\"; exit 3";

/// `ctr words` in a terminal of 123 columns, that becomes one of 99 once `flag` is there; answers what it showed.
async fn typed_into(node: &Node, words: &[&str], flag: &str) -> Result<(i32, String)> {
    let flag = node.path("logs").join(flag);
    let script = format!(
        "t=$(tty); {{ until [ -e '{}' ]; do sleep 0.05; done; stty -F $t cols 99 rows 33; }} & exec \"$@\"",
        flag.display()
    );
    let ctr = node.ctr_command(words)?;
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", &script, "sh"]).arg(ctr.as_std().get_program()).args(ctr.as_std().get_args());
    let output = type_into(node.in_a_terminal(&shell, 123, 40), b"typed\n").await?;
    Ok((output.status.code().unwrap_or(-1), texts(&output).0))
}

fn shows_a_terminal((code, said): &(i32, String)) -> Result<()> {
    // Each end of line may have passed through both terminals.
    for words in ["a terminal\r", "now 40 123", "then 33 99", "to stderr\r", "read typed\r"] {
        ensure!(said.contains(words), "{words:?} is not in {said:?}");
    }
    ensure!(*code == 3, "the exit code: {code}: {said:?}");
    Ok(())
}

async fn terminals(node: &mut Node) -> Result<()> {
    node.ctr_import("busybox").await?;
    let logs = node.path("logs").display().to_string();
    let mount = format!("type=bind,src={logs},dst=/v,options=rbind:rw");
    let words =
        node.ctr_run_words("tty", &["-t", "--rm", "--mount", &mount], &["sh", "-c", TYPED_INTO, "sh", "one"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    shows_a_terminal(&typed_into(node, &words, "one").await?).context("ctr run -t")?;
    node.ctr_run("long", &["-d", "--mount", &mount], &["sleep", "1000"]).await?;
    let exec = ["task", "exec", "-t", "--exec-id", "e1", "long", "sh", "-c", TYPED_INTO, "sh", "two"];
    shows_a_terminal(&typed_into(node, &exec, "two").await?).context("ctr task exec -t")?;
    removed(node, "long").await
}

// ---------------------------------------------------------------- checkpoints

/// SHIM-TSK-30: whole where this host's criu works (SLIPWAY_TEST_CRIU names another one's directory and program), and
/// where it does not, told and without a trace.
#[test]
fn checkpoints_on_debians_containerd() {
    on_a_node(setup(Release::Debian, Handler::Runc), |node| Box::pin(checkpoints(node)));
}

#[test]
fn checkpoints_on_containerd_2() {
    on_a_node(setup(Release::Two, Handler::Runc), |node| Box::pin(checkpoints(node)));
}

fn criu_works() -> bool {
    let criu = std::env::var("SLIPWAY_TEST_CRIU").unwrap_or_else(|_| "criu".to_owned());
    let check =
        std::process::Command::new(&criu).arg("check").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let works = check.as_ref().is_ok_and(|status| status.success());
    if !works {
        println!("no restore is tried: `{criu} check` says {check:?} (SLIPWAY_TEST_CRIU names another criu)");
    }
    works
}

async fn checkpoints(node: &mut Node) -> Result<()> {
    node.ctr_import("busybox").await?;
    let count = "i=0; while :; do i=$((i+1)); echo $i > /tmp/n.new; mv /tmp/n.new /tmp/n; sleep 0.02; done";
    node.ctr_run("counting", &["-d"], &["sh", "-c", count]).await?;
    let mut execs = 0;
    let mut counted = async || -> Result<u64> {
        execs += 1;
        let name = format!("e{execs}");
        let said = node.ctr(&["task", "exec", "--exec-id", &name, "counting", "cat", "/tmp/n"]).await?;
        said.trim().parse().with_context(|| format!("a number: {said:?}"))
    };
    until("it counts", async || Ok(counted().await.is_ok_and(|n| n > 10))).await?;
    let taken = node
        .ctr(&["containers", "checkpoint", "--task", "--image", "--rw", "counting", "test.local/cp:1"])
        .await;
    if !criu_works() {
        let said = taken.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(said.contains("checkpoint container counting: "), "what failed is told: {said}");
        let before = counted().await?;
        until("it counts on", async || Ok(counted().await? > before)).await?;
        return removed(node, "counting").await;
    }
    taken?;
    let frozen = counted().await?;
    removed(node, "counting").await?;
    node.ctr(&["containers", "restore", "--live", "--rw", "counting", "test.local/cp:1"]).await?;
    let first = counted().await?;
    ensure!(first >= 10, "it begins where it was frozen, not at 1: {first} (frozen before {frozen})");
    until("it counts on", async || Ok(counted().await? > first)).await?;
    removed(node, "counting").await
}

/// Ends a task by force and removes its container.
async fn removed(node: &Node, id: &str) -> Result<()> {
    node.ctr(&["task", "kill", "-s", "SIGKILL", id]).await?;
    node.ctr_stopped(id).await?;
    node.ctr(&["task", "rm", id]).await.ok();
    node.ctr(&["containers", "rm", id]).await.map(drop)
}
