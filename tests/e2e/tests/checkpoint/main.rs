//! Checkpoints through CRI: containers and pods as files, and again from there (CRI-CHK-*, CRI-CHKP-*).
//!
//! SLIPWAY_TEST_CRIU names another criu than that of PATH: Debian 12's does not know the newest kernels. Where none works,
//! the tests say so, and pass.

use anyhow::{Context as _, Result, bail, ensure};
use cri_proto::v1;
use e2e::requests::{bind, container, modes, pod, pod_modes, security, shell};
use e2e::{Node, Scenario, Setup, on_a_node};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};
use tonic::{Code, Request, Status};

/// Counts in memory, tells its log and a file in the writable layer.
const COUNT: &str = "i=0; echo kept > /etc/kept; rm -f /etc/group; \
                     while :; do i=$((i+1)); echo $i; echo $i > /tmp/n.new; mv /tmp/n.new /tmp/n; sleep 0.05; done";
/// As much as a slow machine needs.
const PATIENCE: Duration = Duration::from_secs(120);

fn criu() -> String {
    std::env::var("SLIPWAY_TEST_CRIU").unwrap_or_else(|_| "criu".to_owned())
}

fn works() -> bool {
    let check =
        std::process::Command::new(criu()).arg("check").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let works = check.is_ok_and(|status| status.success());
    if !works {
        eprintln!("{}: not here, or too old for this kernel; SLIPWAY_TEST_CRIU names another one", criu());
    }
    works
}

/// Runs the scenario where criu works, on a node that knows it.
fn with_criu(more: &str, scenario: Scenario) {
    if works() {
        let config = format!("[checkpoints]\ncriu = {:?}\n{more}", criu());
        on_a_node(Setup { config: Box::leak(config.into_boxed_str()), ..Setup::default() }, scenario);
    }
}

fn request(id: &str, location: &Path) -> v1::CheckpointContainerRequest {
    let location = location.display().to_string();
    v1::CheckpointContainerRequest { container_id: id.into(), location, timeout: 0 }
}

async fn checkpoint(node: &Node, id: &str, location: &Path) -> Result<(), Status> {
    let mut runtime = node.runtime().await.map_err(|e| Status::internal(e.to_string()))?;
    runtime.checkpoint_container(request(id, location)).await.map(drop)
}

async fn counted(node: &Node, id: &str) -> Result<u64> {
    let text = node.sh(id, "cat /tmp/n").await?;
    text.trim().parse().with_context(|| format!("a number: {text:?}"))
}

async fn counts_on(node: &Node, id: &str) -> Result<()> {
    let (before, start) = (counted(node, id).await?, Instant::now());
    while counted(node, id).await? <= before + 2 {
        ensure!(start.elapsed() < PATIENCE, "it stands still at {before}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Once its log shows some numbers.
async fn counting(node: &Node, id: &str) -> Result<()> {
    node.log_shows(id, |line| line == "10").await
}

/// The numbers in a log, which must follow each other from 1 on: nothing lost, nothing twice, no new beginning.
async fn in_a_row(node: &Node, id: &str) -> Result<u64> {
    let lines = node.log(id).await?;
    for (place, (_, _, text)) in lines.iter().enumerate() {
        ensure!(*text == (place + 1).to_string(), "line {} of the log is {text:?}", place + 1);
    }
    Ok(lines.len() as u64)
}

/// What is half-made anywhere: beside the archives, and in the daemon's own directory.
fn half_made(node: &Node, beside: &Path) -> Vec<PathBuf> {
    let inside = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let partial = inside(beside).filter(|path| path.extension().is_some_and(|e| e == "partial"));
    partial.chain(inside(&node.path("root/checkpoints"))).collect()
}

fn clean(node: &Node, beside: &Path) -> Result<()> {
    let left = half_made(node, beside);
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// A container whose image field names this.
fn restored(name: &str, from: &Path) -> v1::ContainerConfig {
    container(name, &from.display().to_string(), &[])
}

async fn run(dir: &Path, program: &str, args: &[&str]) -> Result<String> {
    let output = tokio::process::Command::new(program).args(args).current_dir(dir).output().await;
    let output = output.with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, word: &str) -> Result<()> {
    let error = outcome.err().with_context(|| format!("{word}: it must be refused"))?;
    ensure!(error.code() == code && error.message().contains(word), "{word}: {error:?}");
    Ok(())
}

fn status(error: anyhow::Error) -> Status {
    error.downcast().unwrap_or_else(|other| Status::unknown(format!("{other:#}")))
}

// ---------------------------------------------------------------- one container

/// CRI-CHK-01, CRI-CHK-03, CRI-CHK-05.
#[test]
fn a_container_goes_on_where_it_was_frozen() {
    with_criu("", |node| Box::pin(goes_on(node)));
}

async fn goes_on(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let shared = node.path("shared");
    std::fs::create_dir(&shared)?;
    let mut config = shell("main", &image, COUNT);
    config.mounts = vec![bind(&shared, "/shared")];
    config.envs = vec![v1::KeyValue { key: "MINE".into(), value: "here".into() }];
    let first_pod = pod(node, "first");
    let sandbox = node.run_pod(&first_pod).await?;
    let first = node.run(&sandbox, &first_pod, config).await?;
    counting(node, &first).await?;
    let archive = node.path("frozen.tar");
    std::fs::write(&archive, "an older one")?;
    checkpoint(node, &first, &archive).await?;
    clean(node, &node.path(""))?;
    counts_on(node, &first).await?;

    use std::os::unix::fs::PermissionsExt as _;
    ensure!(std::fs::metadata(&archive)?.permissions().mode() & 0o777 == 0o600, "only root may read memory");
    let listed = run(&node.path(""), "tar", &["-tf", "frozen.tar"]).await?;
    for name in [
        "config.dump",
        "spec.dump",
        "status.dump",
        "rootfs-diff.tar",
        "container.log",
        "dump.log",
        "stats-dump",
    ] {
        ensure!(listed.lines().any(|line| line == name), "{name} is missing: {listed}");
    }
    ensure!(listed.contains("checkpoint/inventory.img") && listed.contains("checkpoint/pages-"), "{listed}");
    let diff = run(&node.path(""), "sh", &["-c", "tar -xOf frozen.tar rootfs-diff.tar | tar -t"]).await?;
    ensure!(diff.contains("etc/kept") && diff.contains("etc/.wh.group"), "{diff}");

    // In another pod, while the first goes on.
    let second_pod = pod(node, "second");
    let sandbox = node.run_pod(&second_pod).await?;
    let mut again = restored("again", &archive);
    again.mounts = vec![bind(&shared, "/shared")];
    let second = node.create(&sandbox, &second_pod, again.clone()).await?;
    let created = node.container_status(&second).await?;
    ensure!(created.state() == v1::ContainerState::ContainerCreated, "{created:?}");
    ensure!(created.image.as_ref().is_some_and(|i| i.image == image), "{created:?}");
    // A new daemon finds it as it was.
    node.kill_daemon().await?;
    node.start_daemon().await?;
    node.start_container(&second).await?;
    ensure!(node.container_status(&second).await?.state() == v1::ContainerState::ContainerRunning);
    clean(node, &node.path(""))?;
    counts_on(node, &second).await?;
    ensure!(in_a_row(node, &second).await? > 10);
    ensure!(node.sh(&second, "cat /etc/kept; ls /etc").await?.starts_with("kept\n"));
    ensure!(!node.sh(&second, "ls /etc").await?.contains("group"), "what was deleted stays deleted");
    let told = node.sh(&second, "echo $MINE; hostname; cat /etc/hostname").await?;
    ensure!(told == "here\nsecond\nsecond\n", "its variables, the pod's name: {told:?}");
    ensure!(node.sh(&second, "grep -c shared /proc/self/mounts").await?.trim() == "1");
    counts_on(node, &first).await?;
    ensure!(in_a_row(node, &first).await? > 10);

    // A restored one is a container like others: it is checkpointed, stopped, restarted, removed.
    let twice = node.path("twice.tar");
    checkpoint(node, &second, &twice).await?;
    node.stop_container(&second, 0).await?;
    node.remove_container(&second).await?;
    again.metadata = Some(v1::ContainerMetadata { name: "third".into(), attempt: 0 });
    again.image = restored("", &twice).image;
    again.log_path = "third/0.log".into();
    let third = node.run(&sandbox, &second_pod, again).await?;
    counts_on(node, &third).await?;
    ensure!(in_a_row(node, &third).await? > 20);
    node.remove_pod(&sandbox).await?;
    clean(node, &node.path(""))
}

/// CRI-CHK-01, CRI-CHK-04: nothing at the location, nothing beside it, and the container goes on.
#[test]
fn a_checkpoint_that_fails_leaves_nothing() {
    with_criu("", |node| Box::pin(fails(node)));
}

async fn fails(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "pod");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, COUNT)).await?;
    let idle = node.create(&sandbox, &config, shell("idle", &image, "exec sleep 1000")).await?;
    counting(node, &id).await?;
    let places = node.path("places");
    std::fs::create_dir(&places)?;
    let archive = places.join("a.tar");
    refused(checkpoint(node, &idle, &archive).await, Code::FailedPrecondition, "does not run")?;
    refused(checkpoint(node, "nobody", &archive).await, Code::NotFound, "nobody")?;
    refused(checkpoint(node, &id, Path::new("a.tar")).await, Code::InvalidArgument, "absolute")?;
    refused(checkpoint(node, &id, &places.join("no/a.tar")).await, Code::InvalidArgument, "does not exist")?;
    refused(checkpoint(node, &id, &places).await, Code::InvalidArgument, "no plain file")?;
    // What no layer can say is found while the container is paused.
    std::fs::write(&archive, "an older one")?;
    node.sh(&id, "touch /tmp/.wh.x").await?;
    refused(checkpoint(node, &id, &archive).await, Code::InvalidArgument, ".wh.")?;
    node.sh(&id, "rm /tmp/.wh.x").await?;
    // A running exec no restore could bring back.
    let (code, ..) = {
        let exec =
            node.exec(&id, &["sh", "-c", "touch /tmp/in; while [ ! -e /tmp/out ]; do sleep 0.05; done"]);
        let during = async {
            while node.exec(&id, &["test", "-e", "/tmp/in"]).await?.0 != 0 {}
            refused(checkpoint(node, &id, &archive).await, Code::FailedPrecondition, "exec session")?;
            node.sh(&id, "touch /tmp/out").await
        };
        let (exec, during) = tokio::join!(exec, during);
        during?;
        exec?
    };
    ensure!(code == 0);
    ensure!(std::fs::read_to_string(&archive)? == "an older one", "the location is untouched");
    let mut late = request(&id, &archive);
    late.timeout = -1;
    refused(node.runtime().await?.checkpoint_container(late).await, Code::InvalidArgument, "negative")?;
    let names: Vec<_> = std::fs::read_dir(&places)?.flatten().map(|e| e.file_name()).collect();
    ensure!(names == ["a.tar"], "{names:?}");
    clean(node, &places)?;
    counts_on(node, &id).await?;
    checkpoint(node, &id, &archive).await?;
    ensure!(std::fs::metadata(&archive)?.len() > 1000);
    counts_on(node, &id).await?;
    in_a_row(node, &id).await.map(drop)
}

/// CRI-GEN-06, CRI-CHK-01, CRI-CHK-04, CRI-CHKP-09: needs no CRIU that works.
#[test]
fn without_criu_it_is_told_what_to_install() {
    let config = "[checkpoints]\ncriu = \"/no/criu\"\n";
    on_a_node(Setup { config, ..Setup::default() }, |node| Box::pin(without_criu(node)));
}

async fn without_criu(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "pod");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, COUNT)).await?;
    let idle = node.create(&sandbox, &config, shell("idle", &image, "exec sleep 1000")).await?;
    let archive = node.path("a.tar");
    // What is wrong with the request comes first.
    refused(checkpoint(node, "nobody", &archive).await, Code::NotFound, "nobody")?;
    refused(checkpoint(node, &idle, &archive).await, Code::FailedPrecondition, "does not run")?;
    refused(checkpoint(node, &id, &archive).await, Code::Unimplemented, "/no/criu is not installed")?;
    ensure!(!archive.exists(), "a file is left");
    std::fs::write(&archive, "")?;
    let made = node.create(&sandbox, &config, restored("again", &archive)).await.map_err(status);
    refused(made, Code::Unimplemented, "/no/criu is not installed")?;
    let request = v1::CheckpointPodRequest {
        pod_sandbox_id: sandbox,
        output_path: node.path("out").display().to_string(),
        container_ids: vec![id.clone()],
        ..Default::default()
    };
    std::fs::create_dir(node.path("out"))?;
    let mut timed = Request::new(request);
    timed.set_timeout(PATIENCE);
    refused(node.runtime().await?.checkpoint_pod(timed).await, Code::Unimplemented, "not installed")?;
    clean(node, &node.path(""))?;
    counts_on(node, &id).await
}

/// CRI-CHK-04: kill -9 of the daemon at any moment; its successor takes away what is half-made and resumes what is paused.
#[test]
fn a_daemon_killed_during_a_checkpoint_leaves_nothing() {
    with_criu("", |node| Box::pin(killed(node)));
}

async fn killed(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "pod");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, COUNT)).await?;
    counting(node, &id).await?;
    let (places, mut during) = (node.path("places"), 0);
    std::fs::create_dir(&places)?;
    let archive = places.join("a.tar");
    for moment in 0..8_u64 {
        let mut runtime = node.runtime().await?;
        let asked = request(&id, &archive);
        let call = tokio::spawn(async move { runtime.checkpoint_container(asked).await.is_ok() });
        // The first ones come early, the others when something is there to be left behind.
        let begun = Instant::now();
        while moment >= 3 && half_made(node, &places).is_empty() && !call.is_finished() {
            ensure!(begun.elapsed() < PATIENCE, "it does not begin");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::time::sleep(Duration::from_millis(moment % 3 * 60)).await;
        node.kill_daemon().await?;
        let done = call.await?;
        during += u32::from(!half_made(node, &places).is_empty());
        node.start_daemon().await?;
        let start = Instant::now();
        while !half_made(node, &places).is_empty() {
            ensure!(start.elapsed() < PATIENCE, "left behind: {:?}", half_made(node, &places));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if archive.exists() {
            run(&places, "tar", &["-tf", "a.tar"]).await.context("what is there is whole")?;
            std::fs::remove_file(&archive)?;
        } else {
            ensure!(!done, "it was answered and is not there");
        }
        counts_on(node, &id).await.with_context(|| format!("after moment {moment}"))?;
    }
    ensure!(during > 0, "no moment was during a checkpoint");
    checkpoint(node, &id, &archive).await?;
    in_a_row(node, &id).await.map(drop)
}

/// CRI-CHK-05: archives of strangers, and requests that are not what was frozen.
#[test]
fn what_cannot_be_restored_is_refused_and_leaves_nothing() {
    with_criu("", |node| Box::pin(cannot(node)));
}

async fn cannot(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "pod");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, COUNT)).await?;
    counting(node, &id).await?;
    let dir = node.path("archives");
    std::fs::create_dir(&dir)?;
    checkpoint(node, &id, &dir.join("good.tar")).await?;
    let script = r"
        mkdir x && tar -xf good.tar -C x
        head -c 20000 good.tar > cut.tar
        echo no archive > text.tar
        ln -s /etc/shadow x/checkpoint/planted.img && tar -cf planted.tar -C x . && rm x/checkpoint/planted.img
        tar -cf climbs.tar -C x --transform 's,^./spec.dump,../../spec.dump,' .
        mv x/config.dump x/other && tar -cf headless.tar -C x . && mv x/other x/config.dump
        mkdir layer && ln -s / layer/out && tar -cf l1.tar -C layer . && rm layer/out && mkdir layer/out
        touch layer/out/escaped-of-slipway && tar -cf l2.tar -C layer out/escaped-of-slipway
        cat l1.tar > x/rootfs-diff.tar; tar -Af x/rootfs-diff.tar l2.tar; tar -cf outside.tar -C x .";
    run(&dir, "sh", &["-ec", script]).await?;
    let create = async |from: &str, change: fn(&mut v1::ContainerConfig)| {
        let mut asked = restored("again", &dir.join(from));
        change(&mut asked);
        node.create(&sandbox, &config, asked).await.map_err(status)
    };
    let nothing = |_: &mut v1::ContainerConfig| {};
    for (from, code, word) in [
        ("missing.tar", Code::NotFound, "no such file"),
        ("cut.tar", Code::InvalidArgument, "cut.tar"),
        ("text.tar", Code::InvalidArgument, "text.tar"),
        ("planted.tar", Code::InvalidArgument, "planted.img is no plain file"),
        ("climbs.tar", Code::InvalidArgument, "leaves the root"),
        ("headless.tar", Code::InvalidArgument, "no config.dump"),
    ] {
        refused(create(from, nothing).await, code, word)?;
    }
    type Change = fn(&mut v1::ContainerConfig);
    let other: [(&str, Change); 3] = [
        ("capabilities", |c| {
            let more = v1::Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() };
            security(c).capabilities = Some(more);
        }),
        ("user", |c| security(c).run_as_user = Some(v1::Int64Value { value: 1000 })),
        ("/extra, which the checkpoint lacks", |c| c.mounts = vec![bind(Path::new("/usr"), "/extra")]),
    ];
    for (word, change) in other {
        refused(create("good.tar", change).await, Code::InvalidArgument, word)?;
    }
    // Its layer has a link to the host's root, and a file behind it.
    let outside = create("outside.tar", nothing).await.map_err(|e| anyhow::anyhow!("{e}"))?;
    ensure!(!Path::new("/escaped-of-slipway").exists(), "it left its root");
    node.remove_container(&outside).await?;
    // One whose restore fails by CRIU says so, and can be removed.
    run(
        &dir,
        "sh",
        &["-ec", "rm x/checkpoint/pages-*; echo > x/rootfs-diff.tar; tar -cf pageless.tar -C x . "],
    )
    .await?;
    let made = create("pageless.tar", nothing).await;
    if let Ok(id) = &made {
        let failed = node.start_container(id).await.err().context("it cannot be restored")?;
        ensure!(format!("{failed:#}").contains("restore"), "{failed:#}");
        node.remove_container(id).await?;
    }
    clean(node, &dir)?;
    counts_on(node, &id).await
}

/// Pods with user namespaces, in words; pods that share their pids.
#[test]
fn user_namespaces_are_refused_and_other_pods_are_not() {
    with_criu("", |node| Box::pin(kinds_of_pods(node)));
}

async fn kinds_of_pods(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let map = vec![v1::IdMapping { container_id: 0, host_id: 300_000, length: 65536 }];
    let users = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: map.clone(), gids: map };
    let mut apart = pod(node, "apart");
    pod_modes(&mut apart).userns_options = Some(users);
    // Where no id-mapped mounts are there are no such pods.
    if let Ok(sandbox) = node.run_pod(&apart).await {
        let config = e2e::requests::in_pod(&apart, shell("main", &image, COUNT));
        let id = node.run(&sandbox, &apart, config).await?;
        refused(
            checkpoint(node, &id, &node.path("a.tar")).await,
            Code::FailedPrecondition,
            "user namespace",
        )?;
        counts_on(node, &id).await?;
    }
    let mut sharing = pod(node, "sharing");
    pod_modes(&mut sharing).pid = v1::NamespaceMode::Pod.into();
    let sandbox = node.run_pod(&sharing).await?;
    let mut config = shell("main", &image, COUNT);
    modes(&mut config).pid = v1::NamespaceMode::Pod.into();
    let id = node.run(&sandbox, &sharing, config).await?;
    counting(node, &id).await?;
    let archive = node.path("sharing.tar");
    checkpoint(node, &id, &archive).await?;
    counts_on(node, &id).await?;
    let mut other = pod(node, "other");
    pod_modes(&mut other).pid = v1::NamespaceMode::Pod.into();
    let sandbox = node.run_pod(&other).await?;
    let mut again = restored("again", &archive);
    let apart = node.create(&sandbox, &other, again.clone()).await.map_err(status);
    refused(apart, Code::InvalidArgument, "namespaces")?;
    modes(&mut again).pid = v1::NamespaceMode::Pod.into();
    let again = node.run(&sandbox, &other, again).await?;
    counts_on(node, &again).await?;
    ensure!(in_a_row(node, &again).await? > 10);
    clean(node, &node.path(""))
}

/// CRI-CHK-05: what lies in an image's `VOLUME` comes back, too.
#[test]
fn volumes_of_the_image_come_back() {
    with_criu("", |node| Box::pin(volumes(node)));
}

async fn volumes(node: &mut Node) -> Result<()> {
    let dir = node.path("image");
    std::fs::create_dir(&dir)?;
    run(&dir, "tar", &["-xf", &e2e::registry::archive("busybox").display().to_string()]).await?;
    let read = |name: &str| -> Result<serde_json::Value> {
        Ok(serde_json::from_slice(&std::fs::read(dir.join(name))?)?)
    };
    let mut manifest = read("manifest.json")?;
    let mut config = read(manifest[0]["Config"].as_str().context("a config")?)?;
    config["config"]["Volumes"] = serde_json::json!({"/var/kept": {}, "/etc": {}});
    std::fs::write(dir.join("with-volumes.json"), config.to_string())?;
    manifest[0]["Config"] = "with-volumes.json".into();
    std::fs::write(dir.join("manifest.json"), manifest.to_string())?;
    run(&dir, "rm", &["-f", "index.json", "oci-layout"]).await?;
    run(&dir, "tar", &["-cf", "../with-volumes.tar", "."]).await?;
    let (archive, image) = (node.path("with-volumes.tar"), "test.local/with-volumes:1");
    node.slipway(&["import", &archive.display().to_string(), "--name", image]).await?;
    let config = pod(node, "pod");
    let sandbox = node.run_pod(&config).await?;
    // An open file in a volume must be there again, and be as long, or CRIU restores nothing.
    let script = format!("exec 5> /var/kept/open; echo data >&5; mkdir /var/kept/deep; {COUNT}");
    let id = node.run(&sandbox, &config, shell("main", image, &script)).await?;
    counting(node, &id).await?;
    let archive = node.path("a.tar");
    checkpoint(node, &id, &archive).await?;
    let again = node.run(&sandbox, &config, restored("again", &archive)).await?;
    counts_on(node, &again).await?;
    let told =
        node.sh(&again, "cat /var/kept/open /etc/kept; ls -d /var/kept/deep; ls /etc/group || true").await?;
    ensure!(told == "data\nkept\n/var/kept/deep\n", "{told:?}");
    clean(node, &node.path(""))
}

/// Terminals come back, too.
#[test]
fn a_container_with_a_terminal() {
    with_criu("", |node| Box::pin(terminal(node)));
}

async fn terminal(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "pod");
    let sandbox = node.run_pod(&config).await?;
    let mut with_tty = shell("main", &image, COUNT);
    with_tty.tty = true;
    let id = node.run(&sandbox, &config, with_tty).await?;
    node.log_shows(&id, |line| line.trim() == "10").await?;
    let archive = node.path("a.tar");
    checkpoint(node, &id, &archive).await?;
    counts_on(node, &id).await?;
    let mut again = restored("again", &archive);
    refused(
        node.create(&sandbox, &config, again.clone()).await.map_err(status),
        Code::InvalidArgument,
        "tty",
    )?;
    again.tty = true;
    let again = node.run(&sandbox, &config, again).await?;
    counts_on(node, &again).await?;
    node.log_shows(&again, |line| line.trim().parse::<u64>().is_ok_and(|n| n > 30)).await
}

/// CRI-CHK-03, CRI-CHK-05: an image of an archive's files, as the documents of other engines have it; only where the node
/// allows it.
#[test]
fn an_image_may_hold_a_checkpoint() {
    with_criu("restore_images = true\n", |node| Box::pin(images(node, true)));
    with_criu("", |node| Box::pin(images(node, false)));
}

async fn images(node: &mut Node, allowed: bool) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "pod");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, COUNT)).await?;
    counting(node, &id).await?;
    let dir = node.path("oci");
    std::fs::create_dir_all(dir.join("blobs/sha256"))?;
    let layer = dir.join("layer.tar");
    checkpoint(node, &id, &layer).await?;
    let blob = async |text: String| -> Result<serde_json::Value> {
        std::fs::write(dir.join("new"), &text)?;
        add_blob(&dir, "new").await
    };
    let layer = add_blob(&dir, "layer.tar").await?;
    let platform = std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64");
    let rootfs = serde_json::json!({"type": "layers", "diff_ids": [layer["digest"]]});
    let image_config =
        serde_json::json!({"architecture": platform, "os": "linux", "config": {}, "rootfs": rootfs});
    let mut described = blob(image_config.to_string()).await?;
    described["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "config": described, "layers": [layer],
        "annotations": {"org.criu.checkpoint.container.name": "main"},
    });
    let mut manifest = blob(manifest.to_string()).await?;
    manifest["mediaType"] = "application/vnd.oci.image.manifest.v1+json".into();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(dir.join("index.json"), index.to_string())?;
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
    node.slipway(&["import", &dir.display().to_string(), "--name", "test.local/frozen:1"]).await?;
    let made = node.create(&sandbox, &config, container("again", "test.local/frozen:1", &[])).await;
    if !allowed {
        refused(made.map_err(status), Code::FailedPrecondition, "checkpoints.restore_images")?;
        return clean(node, &dir);
    }
    let again = made?;
    node.start_container(&again).await?;
    counts_on(node, &again).await?;
    ensure!(in_a_row(node, &again).await? > 10);
    clean(node, &dir)
}

/// Moves a file to its place among the blobs; its descriptor.
async fn add_blob(dir: &Path, name: &str) -> Result<serde_json::Value> {
    let sum = run(dir, "sha256sum", &[name]).await?;
    let hex = sum.split(' ').next().context("a digest")?;
    let size = std::fs::metadata(dir.join(name))?.len();
    std::fs::rename(dir.join(name), dir.join("blobs/sha256").join(hex))?;
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    Ok(serde_json::json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": size}))
}

/// The real crictl.
#[test]
fn crictl_takes_checkpoints() {
    with_criu("", |node| Box::pin(by_crictl(node)));
}

async fn by_crictl(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "pod");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, COUNT)).await?;
    counting(node, &id).await?;
    let archive = node.path("by-crictl.tar");
    node.crictl(&["checkpoint", &format!("--export={}", archive.display()), &id]).await?;
    let again = node.run(&sandbox, &config, restored("again", &archive)).await?;
    counts_on(node, &again).await?;
    ensure!(in_a_row(node, &again).await? > 10);
    let listed = node.crictl(&["ps"]).await?;
    ensure!(listed.contains("main") && listed.contains("again"), "{listed}");
    clean(node, &node.path(""))
}

// ---------------------------------------------------------------- pods

fn of_pod(pod: &str, output: &Path, ids: &[&str]) -> v1::CheckpointPodRequest {
    v1::CheckpointPodRequest {
        pod_sandbox_id: pod.into(),
        output_path: output.display().to_string(),
        container_ids: ids.iter().map(|id| (*id).into()).collect(),
        ..Default::default()
    }
}

async fn checkpoint_pod(node: &Node, request: v1::CheckpointPodRequest, timed: bool) -> Result<(), Status> {
    let mut request = Request::new(request);
    if timed {
        request.set_timeout(PATIENCE);
    }
    let mut runtime = node.runtime().await.map_err(|e| Status::internal(e.to_string()))?;
    runtime.checkpoint_pod(request).await.map(drop)
}

async fn restore_pod(
    node: &Node,
    request: v1::RestorePodRequest,
    timed: bool,
) -> Result<v1::RestorePodResponse, Status> {
    let mut request = Request::new(request);
    if timed {
        request.set_timeout(PATIENCE);
    }
    let mut runtime = node.runtime().await.map_err(|e| Status::internal(e.to_string()))?;
    Ok(runtime.restore_pod(request).await?.into_inner())
}

/// Names and checksums of all that is in a directory.
async fn contents(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let sum = run(dir, "sha256sum", &[&name]).await?;
        found.insert(name, sum);
    }
    Ok(found)
}

/// CRI-CHKP-01 to CRI-CHKP-08.
#[test]
fn a_pod_goes_on_where_it_was_frozen() {
    with_criu("", |node| Box::pin(whole_pod(node)));
}

async fn whole_pod(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "pod");
    let sandbox = node.run_pod(&config).await?;
    let shapes = ["one", "two"].map(|name| shell(name, &image, COUNT));
    let one = node.run(&sandbox, &config, shapes[0].clone()).await?;
    let two = node.run(&sandbox, &config, shapes[1].clone()).await?;
    let idle = node.create(&sandbox, &config, shell("idle", &image, "exec sleep 1000")).await?;
    counting(node, &one).await?;
    counting(node, &two).await?;
    // In the pod's IPC namespace, as both of them see it.
    for object in [&["-M", "4096"][..], &["-Q"], &["-S", "2"]] {
        in_ipc(node, &one, &[&["ipcmk"], object].concat()).await?;
    }
    let output = node.path("output");
    std::fs::create_dir(&output)?;
    let both = of_pod(&sandbox, &output, &[&two, &one]);
    for (code, word, asked, timed) in [
        (Code::InvalidArgument, "no deadline", both.clone(), false),
        (Code::NotFound, "nobody", of_pod("nobody", &output, &[&one, &two]), true),
        (Code::InvalidArgument, "empty", of_pod(&sandbox, &output, &[]), true),
        (Code::InvalidArgument, "twice", of_pod(&sandbox, &output, &[&one, &two, &one]), true),
        (Code::InvalidArgument, "two", of_pod(&sandbox, &output, &[&one]), true),
        (Code::FailedPrecondition, "does not run", of_pod(&sandbox, &output, &[&one, &two, &idle]), true),
        (Code::InvalidArgument, "not absolute", of_pod(&sandbox, Path::new("output"), &[&one, &two]), true),
        (Code::InvalidArgument, "must exist", of_pod(&sandbox, &output.join("x"), &[&one, &two]), true),
        (Code::InvalidArgument, "not empty", of_pod(&sandbox, &node.path(""), &[&one, &two]), true),
        (
            Code::InvalidArgument,
            "options",
            v1::CheckpointPodRequest { options: [("x".to_owned(), "y".to_owned())].into(), ..both.clone() },
            true,
        ),
    ] {
        refused(checkpoint_pod(node, asked, timed).await, code, word)?;
        ensure!(std::fs::read_dir(&output)?.next().is_none(), "{word}: something is left");
    }
    // One of the two cannot be packed: none is kept, and both go on.
    node.sh(&one, "touch /tmp/.wh.x").await?;
    refused(checkpoint_pod(node, both.clone(), true).await, Code::InvalidArgument, ".wh.")?;
    ensure!(std::fs::read_dir(&output)?.next().is_none(), "something is left");
    node.sh(&one, "rm /tmp/.wh.x").await?;
    for id in [&one, &two] {
        counts_on(node, id).await?;
    }
    let begun = SystemTime::now();
    checkpoint_pod(node, both, true).await?;
    let during = [begun, SystemTime::now()].map(second_of_day);
    clean(node, &output)?;
    for id in [&one, &two] {
        counts_on(node, id).await?;
        in_a_row(node, id).await?;
    }
    at_one_moment(node, [&one, &two], during).await?;
    let taken = contents(&output).await?;
    ensure!(taken.len() == 3, "{taken:?}");

    let again = pod(node, "again");
    let request = v1::RestorePodRequest {
        checkpoint_path: output.display().to_string(),
        config: Some(again.clone()),
        container_configs: shapes.to_vec(),
        ..Default::default()
    };
    for name in ["one", "two"] {
        std::fs::create_dir_all(Path::new(&again.log_directory).join(name))?;
    }
    wrong_restores(node, &request).await?;
    let restored = restore_pod(node, request.clone(), true).await?;
    let names: Vec<_> = restored.restored_containers.iter().map(|c| c.name.as_str()).collect();
    ensure!(names == ["one", "two"], "{restored:?}");
    for container in &restored.restored_containers {
        let status = node.container_status(&container.container_id).await?;
        ensure!(status.state() == v1::ContainerState::ContainerCreated, "{status:?}");
        ensure!(status.metadata.is_some_and(|m| m.name == container.name));
    }
    ensure!(contents(&output).await? == taken, "the checkpoint is untouched");
    for container in &restored.restored_containers {
        node.start_container(&container.container_id).await?;
        counts_on(node, &container.container_id).await?;
        ensure!(in_a_row(node, &container.container_id).await? > 10);
    }
    let objects = in_ipc(node, &restored.restored_containers[1].container_id, &["ipcs"]).await?;
    let found = objects.lines().filter(|line| line.starts_with("0x")).count();
    ensure!(found == 3, "the pod's System V objects, once: {objects}");
    refused(restore_pod(node, request, true).await, Code::AlreadyExists, "again")?;
    for container in &restored.restored_containers {
        counts_on(node, &container.container_id).await.context("after another try under its name")?;
    }
    node.remove_pod(&restored.pod_sandbox_id).await?;
    clean(node, &output)
}

/// Runs a program of the host's in the IPC namespace of a container.
async fn in_ipc(node: &Node, id: &str, command: &[&str]) -> Result<String> {
    let info: serde_json::Value = serde_json::from_str(&node.crictl(&["inspect", id]).await?)?;
    let namespace = format!("--ipc=/proc/{}/ns/ipc", info["info"]["pid"]);
    run(&node.path(""), "nsenter", &[&[namespace.as_str()], command].concat()).await
}

/// CRI-CHKP-06, CRI-CHKP-07, CRI-CHKP-08.
async fn wrong_restores(node: &Node, good: &v1::RestorePodRequest) -> Result<()> {
    let before =
        node.runtime().await?.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.into_inner();
    let configs = &good.container_configs;
    let with = |configs: Vec<v1::ContainerConfig>| v1::RestorePodRequest {
        container_configs: configs,
        ..good.clone()
    };
    let changed = |change: fn(&mut v1::ContainerConfig)| {
        let mut configs = configs.clone();
        change(&mut configs[1]);
        with(configs)
    };
    for (word, asked, timed) in [
        ("no deadline", good.clone(), false),
        ("container_configs", with(vec![]), true),
        ("container_configs", with(configs[..1].to_vec()), true),
        ("same metadata.name", with(vec![configs[0].clone(), configs[0].clone()]), true),
        ("container_configs", changed(|c| c.metadata = None), true),
        ("command", changed(|c| c.command.push("more".into())), true),
        ("envs", changed(|c| c.envs = vec![v1::KeyValue { key: "A".into(), value: "1".into() }]), true),
        ("user", changed(|c| security(c).run_as_user = Some(v1::Int64Value { value: 7 })), true),
        (
            "image",
            changed(|c| c.image = Some(v1::ImageSpec { image: "other".into(), ..Default::default() })),
            true,
        ),
        ("runtime_handler", v1::RestorePodRequest { runtime_handler: "nobody".into(), ..good.clone() }, true),
        ("config is missing", v1::RestorePodRequest { config: None, ..good.clone() }, true),
        ("pod.json", v1::RestorePodRequest { checkpoint_path: "/".into(), ..good.clone() }, true),
        (
            "options",
            v1::RestorePodRequest { options: [("x".to_owned(), "y".to_owned())].into(), ..good.clone() },
            true,
        ),
    ] {
        refused(restore_pod(node, asked, timed).await, Code::InvalidArgument, word)?;
        let after =
            node.runtime().await?.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.into_inner();
        ensure!(after.items.len() == before.items.len(), "{word}: a pod is left: {after:?}");
        ensure!(half_made(node, &node.path("")).is_empty(), "{word}: {:?}", half_made(node, &node.path("")));
    }
    Ok(())
}

/// CRI-CHKP-04: the pauses of both, as their logs' times tell them, are the same one: the longest between two lines while
/// the call was under way.
async fn at_one_moment(node: &Node, ids: [&str; 2], [begun, ended]: [f64; 2]) -> Result<()> {
    let mut pauses = Vec::new();
    for id in ids {
        let text = std::fs::read_to_string(node.container_status(id).await?.log_path)?;
        let times: Vec<f64> = text.lines().filter_map(seconds).collect();
        let gaps = times.windows(2).map(|pair| (pair[1] - pair[0], pair[0], pair[1]));
        let pause =
            gaps.filter(|(_, from, to)| *to > begun && *from < ended).max_by(|a, b| a.0.total_cmp(&b.0));
        pauses.push(pause.with_context(|| format!("no line in that time: {text}"))?);
    }
    let [(length, begin, end), (other_length, other_begin, other_end)] = pauses[..] else {
        bail!("{pauses:?}")
    };
    let common = end.min(other_end) - begin.max(other_begin);
    ensure!(common > 0.5 * length.max(other_length), "not one moment: {pauses:?}");
    Ok(())
}

fn second_of_day(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64() % 86400.0
}

/// Seconds of the day of a line `2026-01-01T10:11:12.123456789Z …`.
fn seconds(line: &str) -> Option<f64> {
    let time = line.split_once('T')?.1.split_once(['Z', '+'])?.0;
    let mut parts = time.split(':').map(|part| part.parse::<f64>().ok());
    Some(parts.next()?? * 3600.0 + parts.next()?? * 60.0 + parts.next()??)
}
