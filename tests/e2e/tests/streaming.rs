//! Exec, attach and port-forward with the real crictl over SPDY and WebSocket, and by hand where crictl is too polite.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::requests::{container, pod, shell};
use e2e::streams::{http, raw, texts, type_into};
use e2e::{Node, Setup, on_a_node};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tonic::Code;

/// STR-WHO-07, STR-WHO-09.
const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

async fn a_shell(node: &Node, name: &str) -> Result<(String, v1::PodSandboxConfig, String, String)> {
    let image = node.import("busybox").await?;
    let config = pod(node, name);
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, "sleep 1000")).await?;
    Ok((sandbox, config, id, image))
}

/// STR-STM-07, STR-STM-10, STR-STM-14, STR-STM-21, STR-TST-03, STR-TST-05, STR-WS-10, STR-WS-14, CRI-XU-01.
#[test]
fn exec_carries_bytes_and_exit_codes() {
    on_a_node(Setup::default(), |node| Box::pin(exec(node)));
}

async fn exec(node: &mut Node) -> Result<()> {
    let (_, _, id, _) = a_shell(node, "exec").await?;
    for transport in TRANSPORTS {
        let run = |stdin: bool, command: &[&str]| {
            let mut args = vec!["exec", "--transport", transport];
            args.extend(stdin.then_some("-i"));
            args.push(&id);
            args.extend(command);
            node.crictl_command(&args)
        };
        let output = type_into(run(false, &["sh", "-c", "printf 'a\\nb'; printf 'e\\n' >&2"]), b"").await?;
        ensure!(output.status.success(), "{transport}: {output:?}");
        // crictl may have words of its own before it.
        ensure!(output.stdout == b"a\nb", "{transport}: exact bytes: {output:?}");
        ensure!(output.stderr.ends_with(b"e\n"), "{transport}: standard error: {output:?}");

        let output = type_into(run(true, &["cat"]), b"there and back\n").await?;
        ensure!(output.stdout == b"there and back\n", "{transport}: half-close ends cat: {output:?}");

        for (script, code) in [("exit 7", "7"), ("exit 255", "255"), ("kill -9 $$", "137")] {
            let output = type_into(run(false, &["sh", "-c", script]), b"").await?;
            let (_, said) = texts(&output);
            ensure!(!output.status.success() && said.contains(code), "{transport}: {script}: {output:?}");
        }
        let output = type_into(run(false, &["/no/such/program"]), b"").await?;
        let (_, said) = texts(&output);
        ensure!(!output.status.success() && said.contains("/no/such/program"), "{transport}: {said}");
        // A child that keeps the streams open does not keep the client.
        let start = Instant::now();
        let output = type_into(run(false, &["sh", "-c", "sleep 60 & echo gone on"]), b"").await?;
        ensure!(output.stdout == b"gone on\n" && start.elapsed().as_secs() < 30, "{transport}: {output:?}");
    }
    Ok(())
}

/// STR-STM-17, STR-STM-19, STR-STM-20, CRI-XS-09, STR-TST-09.
#[test]
fn a_terminal_has_the_clients_size() {
    on_a_node(Setup::default(), |node| Box::pin(terminal(node)));
}

async fn terminal(node: &mut Node) -> Result<()> {
    let (_, _, id, _) = a_shell(node, "terminal").await?;
    // The size may come a moment after the start.
    let script = "tty >/dev/null && echo a terminal of $TERM; \
                  i=0; until [ \"$(stty size)\" = '40 123' ] || [ $i = 600 ]; do i=$((i+1)); sleep 0.05; done; \
                  stty size; echo to stderr >&2; read line; echo \"read $line\"; exit 3";
    for transport in TRANSPORTS {
        let crictl = node.crictl_command(&["exec", "-it", "--transport", transport, &id, "sh", "-c", script]);
        let output = type_into(node.in_a_terminal(&crictl, 123, 40), b"typed\n").await?;
        let (said, _) = texts(&output);
        for words in ["a terminal of xterm\r\n", "40 123", "to stderr\r\n", "read typed\r\n"] {
            ensure!(said.contains(words), "{transport}: {words:?} is not in {said:?}");
        }
    }
    let ours = node.slipway_command(&["exec", "-it", &id, "--", "sh", "-c", script]);
    let output = type_into(node.in_a_terminal(&ours, 123, 40), b"typed\n").await?;
    let (said, _) = texts(&output);
    ensure!(said.contains("40 123") && said.contains("read typed\r\n"), "slipway exec -it: {said:?}");
    ensure!(output.status.code() == Some(3), "slipway exec -it: the exit code: {output:?}");
    Ok(())
}

/// STR-ATT-01 to STR-ATT-09, CRI-CC-10.
#[test]
fn attach_shares_a_containers_streams() {
    on_a_node(Setup::default(), |node| Box::pin(attach(node)));
}

async fn attach(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "attach");
    let sandbox = node.run_pod(&config).await?;
    let script = "echo before; while read line; do echo \"got $line\"; echo \"err $line\" >&2; done; echo over; exit 5";
    let mut talker = shell("talker", &image, script);
    talker.stdin = true;
    let talker = node.run(&sandbox, &config, talker).await?;
    node.log_shows(&talker, |line| line == "before").await?;
    // Watches all the time.
    let mut watcher = node.crictl_command(&["attach", &talker]);
    let mut watcher = watcher.stdout(std::process::Stdio::piped()).spawn()?;
    let mut heard = BufReader::new(watcher.stdout.take().context("stdout")?);
    let mut heard_so_far = until_heard(node, &talker, &mut heard).await?;
    for transport in TRANSPORTS {
        let mut client = node.crictl_command(&["attach", "-i", "--transport", transport, &talker]);
        client.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut client = client.stderr(std::process::Stdio::piped()).spawn()?;
        let mut stdin = client.stdin.take().context("stdin")?;
        let mut lines = BufReader::new(client.stdout.take().context("stdout")?).lines();
        for n in 0..3 {
            stdin.write_all(format!("{transport} {n}\n").as_bytes()).await?;
            let line = loop {
                let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await??;
                if line.as_deref() != Some("got anybody") {
                    break line;
                }
            };
            ensure!(line.as_deref() == Some(&format!("got {transport} {n}")), "{transport}: {line:?}");
        }
        // It leaves; neither container nor watcher mind.
        client.kill().await?;
        node.log_shows(&talker, |line| line == format!("err {transport} 2")).await?;
    }
    ensure!(node.container_status(&talker).await?.state() == v1::ContainerState::ContainerRunning, "runs on");
    node.stop_container(&talker, 0).await?;
    tokio::time::timeout(Duration::from_secs(30), heard.read_to_string(&mut heard_so_far)).await??;
    let heard = heard_so_far;
    let status = watcher.wait().await?;
    ensure!(status.success(), "STR-ATT-07: success, whatever the container's exit code: {status}");
    ensure!(!heard.contains("before"), "STR-ATT-01: no history: {heard:?}");
    ensure!(heard.contains("got spdy 2\n") && heard.contains("got websocket 2\n"), "{heard:?}");

    // stdin_once: the first client's end is the container's (STR-ATT-05).
    let mut once = shell("once", &image, "cat; echo over");
    (once.stdin, once.stdin_once) = (true, true);
    let once = node.run(&sandbox, &config, once).await?;
    let output = type_into(node.crictl_command(&["attach", "-i", &once]), b"the one and only\n").await?;
    let (said, _) = texts(&output);
    ensure!(said == "the one and only\nover\n", "{output:?}");
    ensure!(node.ended(&once).await?.exit_code == 0, "ended by itself");

    // No standard input at all: what is typed is ignored (STR-ATT-04).
    let script = "until [ -e /go ]; do echo tick; sleep 0.1; done; echo end";
    let deaf = node.run(&sandbox, &config, shell("deaf", &image, script)).await?;
    let mut command = node.crictl_command(&["attach", "-i", &deaf]);
    let mut client =
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn()?;
    client.stdin.take().context("stdin")?.write_all(b"hello?\n").await?;
    let mut said = BufReader::new(client.stdout.take().context("stdout")?);
    let mut line = String::new();
    tokio::time::timeout(Duration::from_secs(30), said.read_line(&mut line)).await??;
    ensure!(line == "tick\n", "{line:?}");
    node.sh(&deaf, "touch /go").await?;
    tokio::time::timeout(Duration::from_secs(30), said.read_to_string(&mut line)).await??;
    let status = client.wait().await?;
    ensure!(status.success() && line.ends_with("tick\nend\n"), "{status}: {line:?}");

    // A terminal of the container's own.
    let mut tty = shell("tty", &image, "stty -echo; while read line; do echo \"$(stty size) $line\"; done");
    (tty.stdin, tty.tty) = (true, true);
    let tty = node.run(&sandbox, &config, tty).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let ours = node.slipway_command(&["attach", "-i", &tty]);
    let mut client = node.in_a_terminal(&ours, 99, 33).spawn()?;
    let mut keys = client.stdin.take().context("stdin")?;
    let mut lines = BufReader::new(client.stdout.take().context("stdout")?).lines();
    let shown = async {
        loop {
            keys.write_all(b"size\r").await?;
            let line = lines.next_line().await?.context("the client ended")?;
            if line.contains("33 99 size") {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), shown).await.context("STR-ATT-10: the size")??;
    keys.write_all(b"\x10\x11").await?;
    ensure!(tokio::time::timeout(Duration::from_secs(30), client.wait()).await??.success(), "detached");
    ensure!(node.container_status(&tty).await?.state() == v1::ContainerState::ContainerRunning, "runs on");
    Ok(())
}

/// Types into the talker until `heard`, a watcher's output, has it; answers what that is so far.
async fn until_heard(
    node: &Node,
    talker: &str,
    heard: &mut (impl tokio::io::AsyncBufRead + Unpin),
) -> Result<String> {
    let mut command = node.crictl_command(&["attach", "-i", talker]);
    let mut client =
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn()?;
    let mut keys = client.stdin.take().context("stdin")?;
    let mut line = String::new();
    let listen = heard.read_line(&mut line);
    tokio::pin!(listen);
    for _ in 0..150 {
        keys.write_all(b"anybody\n").await?;
        tokio::select! {
            read = &mut listen => {
                read?;
                client.kill().await?;
                return Ok(line);
            }
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    }
    anyhow::bail!("the watcher hears nothing")
}

/// STR-VAL-01 to STR-VAL-05, CRI-XU-01, CRI-XU-02, CRI-GEN-07.
#[test]
fn wrong_requests_get_no_url() {
    on_a_node(Setup::default(), |node| Box::pin(wrong(node)));
}

async fn wrong(node: &mut Node) -> Result<()> {
    let (sandbox, config, id, image) = a_shell(node, "wrong").await?;
    let created = node.create(&sandbox, &config, container("created", &image, &["true"])).await?;
    let good = v1::ExecRequest {
        container_id: id.clone(),
        cmd: vec!["true".into()],
        stdout: true,
        ..Default::default()
    };
    let cases = [
        ("no id", v1::ExecRequest { container_id: String::new(), ..good.clone() }, Code::InvalidArgument),
        ("unknown", v1::ExecRequest { container_id: "nope".into(), ..good.clone() }, Code::NotFound),
        ("not started", v1::ExecRequest { container_id: created, ..good.clone() }, Code::FailedPrecondition),
        ("no command", v1::ExecRequest { cmd: vec![], ..good.clone() }, Code::InvalidArgument),
        ("no stream", v1::ExecRequest { stdout: false, ..good.clone() }, Code::InvalidArgument),
        (
            "tty and stderr",
            v1::ExecRequest { tty: true, stderr: true, ..good.clone() },
            Code::InvalidArgument,
        ),
    ];
    let mut runtime = node.runtime().await?;
    for (what, request, code) in cases {
        let answer = runtime.exec(request).await;
        ensure!(answer.as_ref().is_err_and(|status| status.code() == code), "{what}: {answer:?}");
    }
    let attach = v1::AttachRequest { container_id: id, tty: true, stderr: true, ..Default::default() };
    ensure!(runtime.attach(attach).await.is_err_and(|s| s.code() == Code::InvalidArgument), "attach");
    for (pod, port, code) in [
        ("", vec![], Code::InvalidArgument),
        ("nope", vec![], Code::NotFound),
        (&sandbox, vec![0], Code::InvalidArgument),
        (&sandbox, vec![70_000], Code::InvalidArgument),
    ] {
        let request = v1::PortForwardRequest { pod_sandbox_id: pod.into(), port };
        ensure!(runtime.port_forward(request).await.is_err_and(|s| s.code() == code), "{pod:?}");
    }
    node.stop_pod(&sandbox).await?;
    let request = v1::PortForwardRequest { pod_sandbox_id: sandbox, port: vec![] };
    ensure!(
        runtime.port_forward(request).await.is_err_and(|s| s.code() == Code::FailedPrecondition),
        "stopped"
    );
    Ok(())
}

/// CRI-XU-03, CRI-XU-04, STR-URL-01 to STR-URL-11, STR-UPG-01 to STR-UPG-11, STR-TST-06, STR-TST-10, STR-HTTP-01 to 03, STR-LOAD-03.
#[test]
fn the_port_is_for_holders_of_tokens_only() {
    on_a_node(Setup::default(), |node| Box::pin(tokens(node)));
}

async fn tokens(node: &mut Node) -> Result<()> {
    let (sandbox, _, id, _) = a_shell(node, "tokens").await?;
    let url = node.exec_url(&id, &["touch", "/ran"], false, false).await?;
    ensure!(url.starts_with("http://127.0.0.1:"), "absolute, loopback: {url}");
    let (base, token) = url.rsplit_once('/').context("URL")?;
    ensure!(base.ends_with("/exec") && token.len() >= 8, "{url}");
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
    let with = |version: &'static str| {
        [upgrade[0], upgrade[1], ("X-Stream-Protocol-Version", version), ("Content-Length", "0")]
    };

    // Each of these uses its token up.
    let answer = http(&url.replace("/exec/", "/attach/"), "POST", &with("v4.channel.k8s.io")).await?;
    ensure!(answer.starts_with("HTTP/1.1 404 "), "another route: {answer}");
    let answer = http(&url, "POST", &with("v4.channel.k8s.io")).await?;
    ensure!(answer.starts_with("HTTP/1.1 404 "), "used up: {answer}");
    let fresh = || node.exec_url(&id, &["touch", "/ran"], false, false);
    for (what, method, headers, status) in [
        ("no upgrade", "POST", vec![with("v4.channel.k8s.io")[2]], "400"),
        ("no version", "POST", upgrade.to_vec(), "400"),
        ("unknown version", "POST", with("v9.channel.k8s.io").to_vec(), "403"),
        ("wrong method", "PUT", with("v4.channel.k8s.io").to_vec(), "405"),
        ("old WebSocket", "GET", vec![("Connection", "Upgrade"), ("Upgrade", "websocket")], "426"),
    ] {
        let answer = http(&fresh().await?, method, &headers).await?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
        if status == "403" {
            let listed = answer.to_lowercase().matches("x-accepted-stream-protocol-versions: ").count();
            ensure!(listed == 4, "STR-UPG-05: one header per protocol: {answer}");
        }
    }
    let answer = http(&fresh().await?, "POST", &with("v5.channel.k8s.io, v4.channel.k8s.io")).await?;
    ensure!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    ensure!(answer.to_lowercase().contains("x-stream-protocol-version: v4.channel.k8s.io"), "{answer}");
    let answer = http(&node.forward_url(&sandbox).await?, "POST", &with("portforward.k8s.io")).await?;
    ensure!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    ensure!(node.exec(&id, &["ls", "/ran"]).await?.0 != 0, "STR-VAL-06: nothing ran without its streams");

    // Anything at all on the port.
    let authority = url.split('/').nth(2).context("authority")?;
    for garbage in [
        &b"\0\x01\x02\xff\n\n\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        &[b'A'; 200_000],
    ] {
        raw(authority, garbage).await?;
    }
    ensure!(node.exec(&id, &["true"]).await?.0 == 0, "the daemon lives");

    // STR-URL-08: the 1001st.
    let request =
        v1::ExecRequest { container_id: id, cmd: vec!["true".into()], stdout: true, ..Default::default() };
    let mut runtime = node.runtime().await?;
    let mut refused = None;
    for _ in 0..1001 {
        if let Err(status) = runtime.exec(request.clone()).await {
            refused = Some(status.code());
            break;
        }
    }
    ensure!(refused == Some(Code::ResourceExhausted), "{refused:?}");
    Ok(())
}

/// STR-IDLE-01, STR-IDLE-02.
#[test]
fn an_idle_session_is_cut() {
    let setup = Setup { config: "[streaming]\nidle_timeout = 12\n", ..Setup::default() };
    on_a_node(setup, |node| Box::pin(idle(node)));
}

async fn idle(node: &mut Node) -> Result<()> {
    let (_, _, id, _) = a_shell(node, "idle").await?;
    let script = |silent: u32| {
        format!("i=0; while [ $i -lt 14 ]; do sleep 1; echo $i; i=$((i+1)); done; sleep {silent}")
    };
    // Our own client never pings: what moves for longer than the timeout is not cut, what is silent is.
    let silent = node.slipway_command(&["exec", "-i", &id, "--", "sh", "-c", &script(600)]);
    // crictl pings every five seconds.
    let [spdy, websocket] = TRANSPORTS.map(|transport| {
        node.crictl_command(&["exec", "--transport", transport, &id, "sh", "-c", &script(14)])
    });
    let (silent, spdy, websocket) =
        tokio::try_join!(type_into(silent, b""), type_into(spdy, b""), type_into(websocket, b""))?;
    ensure!(!silent.status.success() && silent.stdout.ends_with(b"13\n"), "a silent one is cut: {silent:?}");
    for output in [spdy, websocket] {
        ensure!(output.status.success() && output.stdout.ends_with(b"13\n"), "pings are life: {output:?}");
    }
    Ok(())
}

/// STR-STM-16, STR-TST-07, STR-ATT-03, STR-ATT-08, STR-LOAD-03: a client that vanishes leaves nothing.
#[test]
fn clients_that_vanish_leave_nothing() {
    on_a_node(Setup::default(), |node| Box::pin(vanish(node)));
}

async fn vanish(node: &mut Node) -> Result<()> {
    let (sandbox, config, id, image) = a_shell(node, "vanish").await?;
    let loud = "i=0; while :; do i=$((i+1)); echo line $i; done";
    let loud = node.run(&sandbox, &config, shell("loud", &image, loud)).await?;
    node.exec(&id, &["true"]).await?;
    let before = node.daemon_descriptors()?;
    let mut clients = Vec::new();
    for transport in TRANSPORTS {
        for args in [
            vec!["exec", "-i", "--transport", transport, &id, "sh", "-c", "cat; touch /ran-on"],
            vec!["exec", "--transport", transport, &id, "sh", "-c", "while :; do echo spam; done"],
            vec!["attach", "--transport", transport, &loud],
        ] {
            let mut command = node.crictl_command(&args);
            // Nobody reads: they are stuck in the middle of their output.
            command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
            clients.push(command.spawn()?);
        }
        let terminal = node.crictl_command(&["exec", "-it", "--transport", transport, &id, "sleep", "777"]);
        clients.push(node.in_a_terminal(&terminal, 80, 24).spawn()?);
    }
    let mut all = String::new();
    for _ in 0..300 {
        all = node.sh(&id, "ps").await?;
        if ["sleep 777", "cat;", "echo spam"].iter().all(|command| all.matches(command).count() >= 2) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(all.matches("sleep 777").count() == 2, "{all}");
    for client in &mut clients {
        client.kill().await?;
    }
    node.descriptors_settle(before + 2).await?;
    // cat has seen its end, and what came after it ran; a terminal's command is hung up; only what never stops goes on.
    for _ in 0..300 {
        all = node.sh(&id, "ps").await?;
        if !all.contains("sleep 777") && !all.contains("cat;") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(!all.contains("sleep 777") && !all.contains("cat;"), "still there:\n{all}");
    ensure!(node.exec(&id, &["ls", "/ran-on"]).await?.0 == 0, "runs on to its end");
    ensure!(all.matches("echo spam").count() == 2, "STR-STM-16: not killed, and not stuck:\n{all}");
    let log = node.container_status(&loud).await?.log_path;
    let size = std::fs::metadata(&log)?.len();
    let start = Instant::now();
    while std::fs::metadata(&log)?.len() <= size {
        ensure!(start.elapsed() < Duration::from_secs(30), "the log stands still");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    node.stop_container(&loud, 0).await
}

/// STR-SHUT-01, STR-SHUT-02; DESIGN section 4: streams break cleanly, and what ran runs on.
#[test]
fn restarts_break_streams_cleanly() {
    on_a_node(Setup::default(), |node| Box::pin(restarts(node)));
}

async fn restarts(node: &mut Node) -> Result<()> {
    let (_, _, id, _) = a_shell(node, "restarts").await?;
    let script = "echo begun; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo 123456789012345678901234567890; done; touch /done";
    // The daemon dies: the client hears of no success; the command runs to its end, though nobody reads its output.
    // (Over SPDY client-go takes any end of a connection for a success.)
    let mut command = node.crictl_command(&["exec", "--transport", "websocket", &id, "sh", "-c", script]);
    let mut client =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn()?;
    let mut first = [0; 6];
    client.stdout.as_mut().context("stdout")?.read_exact(&mut first).await?;
    node.kill_daemon().await?;
    let mut rest = Vec::new();
    client.stdout.take().context("stdout")?.read_to_end(&mut rest).await?;
    let status = tokio::time::timeout(Duration::from_secs(30), client.wait()).await??;
    ensure!(!status.success(), "a broken connection is no success");
    node.start_daemon().await?;
    let start = Instant::now();
    while node.exec(&id, &["ls", "/done"]).await?.0 != 0 {
        ensure!(start.elapsed() < Duration::from_secs(30), "the command is stuck");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The keeper dies: an exec session's pipes are its own, so it goes on.
    let mut command = node.crictl_command(&["exec", "-i", &id, "sh", "-c", "echo begun; cat; exit 9"]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut client = command.stderr(std::process::Stdio::piped()).spawn()?;
    let mut stdout = client.stdout.take().context("stdout")?;
    stdout.read_exact(&mut first).await?;
    let keeper = nix::unistd::Pid::from_raw(node.keeper_pid().await?);
    nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGKILL)?;
    let mut stdin = client.stdin.take().context("stdin")?;
    stdin.write_all(b"after\n").await?;
    drop(stdin);
    let mut rest = String::new();
    tokio::time::timeout(Duration::from_secs(30), stdout.read_to_string(&mut rest)).await??;
    let output = client.wait_with_output().await?;
    ensure!(rest == "after\n", "{rest:?}");
    ensure!(texts(&output).1.contains('9'), "the exit code: {output:?}");
    Ok(())
}
