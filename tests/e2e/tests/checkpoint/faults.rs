//! What fails, is killed or comes from strangers: refused in words, and nothing is left.

use super::{
    COUNT, PATIENCE, checkpoint, clean, counting, counts_on, half_made, in_a_row, refused, request, restored,
    run, status, with_criu,
};
use anyhow::{Context as _, Result, ensure};
use cri_proto::v1;
use e2e::requests::{bind, pod, security, shell};
use e2e::{Node, Setup, on_a_node};
use std::path::Path;
use std::time::{Duration, Instant};
use tonic::{Code, Request};

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
