//! Attacks: kills at any moment of a request, hostile containers, crowds of callers.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::requests::{bind, pod, shell};
use e2e::{Node, Setup, on_a_node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

/// One whole life of a pod, every step good for being repeated after a kill; ends at the first error.
async fn life(
    mut runtime: v1::runtime_service_client::RuntimeServiceClient<tonic::transport::Channel>,
    config: v1::PodSandboxConfig,
    container: v1::ContainerConfig,
) -> Result<()> {
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let pod_sandbox_id =
        runtime.run_pod_sandbox(request).await.context("RunPodSandbox")?.into_inner().pod_sandbox_id;
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
        config: Some(container),
        sandbox_config: Some(config),
    };
    let container_id =
        runtime.create_container(request).await.context("CreateContainer")?.into_inner().container_id;
    runtime.start_container(v1::StartContainerRequest { container_id }).await.context("StartContainer")?;
    let request = v1::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
    runtime.stop_pod_sandbox(request).await.context("StopPodSandbox")?;
    runtime
        .remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id })
        .await
        .context("RemovePodSandbox")?;
    Ok(())
}

/// Stops and removes every pod the daemon lists, as a kubelet does that finds pods it does not want.
async fn remove_listed(node: &Node) -> Result<()> {
    let request = v1::ListPodSandboxRequest::default();
    for pod in node.runtime().await?.list_pod_sandbox(request).await?.into_inner().items {
        node.stop_pod(&pod.id).await.context("stop what was left")?;
        node.remove_pod(&pod.id).await.context("remove what was left")?;
    }
    let left =
        node.runtime().await?.list_containers(v1::ListContainersRequest::default()).await?.into_inner();
    ensure!(left.containers.is_empty(), "containers without a pod: {:?}", left.containers);
    Ok(())
}

fn spread(round: u64, below: u64) -> Duration {
    Duration::from_millis(round * 7919 % below)
}

/// DESIGN 1C: kill -9 at any instant; afterwards no half-made object holds the name, and a retry works.
#[test]
fn killing_the_daemon_at_any_moment_of_a_pods_life() {
    on_a_node(Setup::default(), |node| Box::pin(daemon_dies_anywhere(node)));
}

async fn daemon_dies_anywhere(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "anywhere");
    std::fs::create_dir_all(std::path::Path::new(&config.log_directory).join("main"))?;
    let container = || shell("main", &image, "exec sleep 1000");
    for round in 0..24 {
        let call = tokio::spawn(life(node.runtime().await?, config.clone(), container()));
        tokio::time::sleep(spread(round, 260)).await;
        node.kill_daemon().await?;
        let ended = call.await?;
        drop(ended); // an error or not, by where it was
        node.start_daemon().await?;
        remove_listed(node).await.with_context(|| format!("round {round}"))?;
        life(node.runtime().await?, config.clone(), container())
            .await
            .with_context(|| format!("the retry of round {round}"))?;
    }
    Ok(())
}

/// The same for the keeper, which is started again by itself.
#[test]
fn killing_the_keeper_at_any_moment_of_a_pods_life() {
    on_a_node(Setup::default(), |node| Box::pin(keeper_dies_anywhere(node)));
}

async fn keeper_dies_anywhere(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "anywhere");
    std::fs::create_dir_all(std::path::Path::new(&config.log_directory).join("main"))?;
    let container = || shell("main", &image, "exec sleep 1000");
    let first = node.run_pod(&pod(node, "stays")).await?;
    for round in 0..24 {
        let keeper = Pid::from_raw(node.keeper_pid().await?);
        let call = tokio::spawn(life(node.runtime().await?, config.clone(), container()));
        tokio::time::sleep(spread(round, 260)).await;
        let _ = kill(keeper, Signal::SIGKILL);
        let ended = tokio::time::timeout(Duration::from_secs(30), call).await.context("the call hangs")??;
        ended.with_context(|| format!("round {round}: the keeper's death must be invisible"))?;
        let listed = node.runtime().await?.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?;
        for pod in listed.into_inner().items.into_iter().filter(|p| p.id != first) {
            node.stop_pod(&pod.id).await.with_context(|| format!("stop in round {round}"))?;
            node.remove_pod(&pod.id).await.with_context(|| format!("remove in round {round}"))?;
        }
        life(node.runtime().await?, config.clone(), container())
            .await
            .with_context(|| format!("the retry of round {round}"))?;
    }
    Ok(())
}

/// Fork bomb, memory eater, log flood, a child that holds stdout: they end, and the neighbour is not disturbed.
#[test]
fn hostile_containers_harm_nobody_else() {
    on_a_node(Setup::default(), |node| Box::pin(hostile(node)));
}

async fn hostile(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "hostile");
    let sandbox = node.run_pod(&config).await?;
    let neighbour = node.run(&sandbox, &config, shell("neighbour", &image, "exec sleep 1000")).await?;

    let mut eater = shell("eater", &image, "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done");
    eater.linux.get_or_insert_default().resources =
        Some(v1::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() });
    let eater = node.run(&sandbox, &config, eater).await?;
    let flood = node.run(&sandbox, &config, shell("flood", &image, "yes 'a line of the flood'")).await?;
    let stubborn = node
        .run(&sandbox, &config, shell("stubborn", &image, "trap '' TERM; while :; do sleep 1; done"))
        .await?;
    let binary = node
        .run(
            &sandbox,
            &config,
            shell("binary", &image, "echo x > /proc/self/exe; echo wrote $?; exec sleep 1000"),
        )
        .await?;
    let holder = node.run(&sandbox, &config, shell("holder", &image, "(sleep 1000) & exit 3")).await?;
    ensure!(node.ended(&holder).await?.exit_code == 3, "a child that holds stdout does not hold the exit");
    let eaten = node.ended(&eater).await?;
    ensure!(eaten.reason == "OOMKilled", "{eaten:?}");

    let start = std::time::Instant::now();
    ensure!(node.sh(&neighbour, "echo in").await?.trim() == "in", "exec in the neighbour");
    ensure!(start.elapsed() < Duration::from_secs(5), "the neighbour waits: {:?}", start.elapsed());
    node.stop_container(&stubborn, 1).await?;
    ensure!(node.container_status(&stubborn).await?.exit_code == 137, "killed");
    node.log_shows(&binary, |l| l == "wrote 1").await.context("the own program can be written to")?;
    let start = std::time::Instant::now();
    node.stop_container(&flood, 1).await?;
    ensure!(start.elapsed() < Duration::from_secs(10), "stop of the flood: {:?}", start.elapsed());
    ensure!(!node.log(&flood).await?.is_empty(), "the flood was logged");

    // Exec while the container ends: an answer or an error, no hang.
    for n in 0..10 {
        let brief = node.run(&sandbox, &config, shell(&format!("brief{n}"), &image, "sleep 0.05")).await?;
        tokio::time::sleep(Duration::from_millis(35 + n * 4)).await;
        let exec = tokio::time::timeout(Duration::from_secs(10), node.exec(&brief, &["true"])).await;
        drop(exec.context("exec during exit hangs")?);
    }
    Ok(())
}

/// A crowd that wants one name gets one pod; Stop and Remove at once agree; 100 containers in parallel.
#[test]
fn crowds_of_callers_agree() {
    on_a_node(Setup::default(), |node| Box::pin(crowd(node)));
}

async fn crowd(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "crowd");
    std::fs::create_dir_all(&config.log_directory)?;
    let runtime = node.runtime().await?;
    let calls: Vec<_> = (0..1000)
        .map(|_| {
            let (mut runtime, config) = (runtime.clone(), config.clone());
            tokio::spawn(async move {
                let request = v1::RunPodSandboxRequest { config: Some(config), ..Default::default() };
                runtime.run_pod_sandbox(request).await.map(|r| r.into_inner().pod_sandbox_id)
            })
        })
        .collect();
    let mut ids = std::collections::BTreeSet::new();
    for call in calls {
        match call.await? {
            Ok(id) => drop(ids.insert(id)),
            Err(e) => ensure!(e.code() == tonic::Code::AlreadyExists, "{e:?}"),
        }
    }
    ensure!(ids.len() == 1, "one pod: {ids:?}");
    let sandbox = ids.pop_first().context("one")?;
    let names: Vec<String> = (0..100).map(|n| format!("c{n}")).collect();
    let runs = names.iter().map(|n| node.run(&sandbox, &config, shell(n, &image, "exec sleep 1000")));
    let mut tasks = Vec::new();
    for run in runs {
        tasks.push(run);
    }
    let ran = all(tasks).await;
    for (id, name) in ran.into_iter().zip(&names) {
        id.with_context(|| format!("container {name} of 100"))?;
    }
    let (stop, remove) = tokio::join!(node.stop_pod(&sandbox), node.remove_pod(&sandbox));
    stop.and(remove).context("stop and remove at once")?;
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await?;

    // Cancelled by the client: afterwards the same request succeeds or finds the pod made.
    for ms in [0, 1, 3, 6, 10, 15, 25, 40] {
        let cancelled = tokio::time::timeout(Duration::from_millis(ms), node.run_pod(&config)).await;
        drop(cancelled);
        let again = node.run_pod(&config).await;
        if let Err(e) = &again {
            let code = e.downcast_ref::<tonic::Status>().map(tonic::Status::code);
            ensure!(code == Some(tonic::Code::AlreadyExists), "{e:?}");
        }
        remove_listed(node).await?;
    }
    Ok(())
}

async fn all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut pinned: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = pinned.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, slot) in pinned.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *slot = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// Log paths that are no files, mount sources that vanish, ports that are taken, garbage on the sockets.
#[test]
fn bad_surroundings_are_survived() {
    on_a_node(Setup::default(), |node| Box::pin(surroundings(node)));
}

async fn surroundings(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "bad");
    let sandbox = node.run_pod(&config).await?;
    let logs = std::path::PathBuf::from(&config.log_directory);
    let victim = node.path("victim");
    std::fs::write(&victim, "precious\n")?;
    let brief = std::time::Duration::from_secs(15);
    for kind in ["symlink", "directory", "fifo"] {
        std::fs::create_dir_all(logs.join(kind))?;
        let path = logs.join(kind).join("0.log");
        match kind {
            "symlink" => std::os::unix::fs::symlink(&victim, &path)?,
            "directory" => std::fs::create_dir(&path)?,
            _ => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU)?,
        }
        let run = node.run(&sandbox, &config, shell(kind, &image, "echo overwritten; exec sleep 1000"));
        let run =
            tokio::time::timeout(brief, run).await.with_context(|| format!("log path as {kind} hangs"))?;
        // A link may have been planted by a container that sees the log directory: never followed.
        ensure!(run.is_err(), "log path as {kind}: {run:?}");
    }
    ensure!(std::fs::read_to_string(&victim)? == "precious\n", "a planted link was followed");

    let source = node.path("vanishing");
    std::fs::create_dir(&source)?;
    let mut vanishing = shell("vanishing", &image, "ls /mnt; exec sleep 1000");
    vanishing.mounts.push(bind(&source, "/mnt"));
    let id = node.create(&sandbox, &config, vanishing).await?;
    std::fs::remove_dir(&source)?;
    node.start_container(&id).await.context("the source is held since the creation")?;

    // container_path through a symlink that an earlier mount brings: must stay inside the root filesystem.
    let planted = node.path("planted");
    std::fs::create_dir(&planted)?;
    std::os::unix::fs::symlink(node.path("outside"), planted.join("link"))?;
    std::fs::create_dir(node.path("outside"))?;
    let mut through = shell("through", &image, "exec sleep 1000");
    through.mounts.push(bind(&planted, "/planted"));
    through.mounts.push(bind(&victim, "/planted/link/file"));
    drop(node.run(&sandbox, &config, through).await);
    ensure!(std::fs::read_dir(node.path("outside"))?.next().is_none(), "made outside the root filesystem");

    let port = |name: &str| {
        let mut config = pod(node, name);
        config.port_mappings =
            vec![v1::PortMapping { container_port: 80, host_port: 8080, ..Default::default() }];
        config
    };
    node.run_pod(&port("port-a")).await?;
    let taken = node.run_pod(&port("port-b")).await;
    ensure!(taken.is_err(), "a host port taken twice");

    let mut huge = pod(node, "huge");
    huge.annotations.insert("huge".into(), "x".repeat(15 << 20));
    let refused = node.run_pod(&huge).await.err().context("a pod of 15 MiB")?;
    let code = refused.downcast_ref::<tonic::Status>().map(tonic::Status::code);
    ensure!(code == Some(tonic::Code::InvalidArgument), "{refused:?}");
    let mut sockets = vec![node.socket()];
    let output = std::process::Command::new("find").arg(node.path("state")).args(["-type", "s"]).output()?;
    sockets.extend(String::from_utf8(output.stdout)?.lines().map(Into::into));
    for socket in sockets {
        for garbage in
            [vec![0xff; 4096], vec![0; 4096], b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0x7f; 1 << 20]]
        {
            if let Ok(mut stream) = std::os::unix::net::UnixStream::connect(&socket) {
                stream.set_write_timeout(Some(Duration::from_secs(1)))?;
                let _ = std::io::Write::write_all(&mut stream, &garbage);
            }
        }
    }
    let id = node.run(&sandbox, &config, shell("after", &image, "exec sleep 1000")).await?;
    ensure!(node.sh(&id, "echo in").await?.trim() == "in", "works after the garbage");
    Ok(())
}
