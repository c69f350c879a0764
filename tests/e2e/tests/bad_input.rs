//! Wrong requests: the right code, a sentence that names the object, and nothing half-made (the leak check).

use anyhow::{Result, ensure};
use cri_proto::v1;
use e2e::requests::{bind, container, pod, security, shell};
use e2e::{Node, Setup, on_a_node};
use tonic::Code;

/// The error that `result` must be: this code, and a text that holds every one of `words`.
fn refused<T: std::fmt::Debug>(what: &str, result: Result<T>, codes: &[Code], words: &[&str]) -> Result<()> {
    let error = match result {
        Ok(answer) => anyhow::bail!("{what}: accepted: {answer:?}"),
        Err(error) => error,
    };
    let status = error.downcast_ref::<tonic::Status>();
    let status = status.ok_or_else(|| anyhow::anyhow!("{what}: not a gRPC status: {error:#}"))?;
    ensure!(codes.contains(&status.code()), "{what}: code {:?}: {}", status.code(), status.message());
    for word in words {
        ensure!(status.message().contains(word), "{what}: {word:?} is not in {:?}", status.message());
    }
    Ok(())
}

/// CRI-RUN-01, CRI-RUN-04, CRI-RUN-06, CRI-RUN-07, CRI-CC-02, CRI-CC-03, CRI-CC-04, CRI-CC-07, CRI-CC-15, CRI-USR-02, CRI-GEN-07.
#[test]
fn wrong_requests_are_refused_with_a_sentence_and_leave_nothing() {
    on_a_node(Setup::default(), |node| Box::pin(table(node)));
}

async fn table(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "p");
    let sandbox = node.run_pod(&config).await?;
    let invalid = [Code::InvalidArgument];

    let mut nameless = config.clone();
    nameless.metadata = None;
    refused("pod without metadata", node.run_pod(&nameless).await, &invalid, &["metadata"])?;
    refused("the same pod twice", node.run_pod(&config).await, &[Code::AlreadyExists], &["p"])?;
    let request = v1::RunPodSandboxRequest { config: Some(pod(node, "q")), runtime_handler: "nope".into() };
    let answer = node.runtime().await?.run_pod_sandbox(request).await.map_err(Into::into);
    refused("unknown handler", answer, &[Code::InvalidArgument, Code::NotFound], &["nope"])?;
    let mut climbing = pod(node, "climbing");
    climbing.linux.get_or_insert_default().sysctls.insert("kernel.panic".into(), "1".into());
    refused("a sysctl of the whole host", node.run_pod(&climbing).await, &invalid, &["kernel.panic"])?;

    let create = |c: v1::ContainerConfig| node.create(&sandbox, &config, c);
    let c = |name: &str| shell(name, &image, "true");
    refused(
        "unknown image",
        create(shell("a", "test.local/absent:1", "true")).await,
        &[Code::NotFound],
        &["absent"],
    )?;
    let mut unnamed = c("a");
    unnamed.metadata = None;
    refused("container without metadata", create(unnamed).await, &invalid, &["metadata"])?;
    let bare = node.import("bare").await?;
    refused(
        "no command anywhere",
        create(container("bare", &bare, &[])).await,
        &invalid,
        &["command", "bare"],
    )?;
    let mut user = c("user");
    security(&mut user).run_as_username = "nobody-here".into();
    refused("unknown user", create(user).await, &[Code::InvalidArgument, Code::NotFound], &["nobody-here"])?;
    let mut group = c("group");
    security(&mut group).run_as_group = Some(v1::Int64Value { value: 5 });
    refused("group without user", create(group).await, &invalid, &["run_as_group"])?;
    let mut capability = c("capability");
    security(&mut capability).capabilities =
        Some(v1::Capability { add_capabilities: vec!["FLY".into()], ..Default::default() });
    refused("unknown capability", create(capability).await, &invalid, &["FLY"])?;
    let mut source = c("source");
    source.mounts.push(bind(std::path::Path::new("/no/such/source"), "/mnt"));
    // CRI-MNT-03: the contract says error; containerd makes the directory. We follow the contract.
    refused(
        "absent source",
        create(source).await,
        &[Code::InvalidArgument, Code::NotFound],
        &["/no/such/source"],
    )?;
    let mut climbing = c("log");
    climbing.log_path = "../../../escape.log".into();
    refused("a log path that climbs out", create(climbing).await, &invalid, &["escape.log"])?;
    let mut cpus = c("cpus");
    cpus.linux.get_or_insert_default().resources =
        Some(v1::LinuxContainerResources { cpuset_cpus: "4000".into(), ..Default::default() });
    let bad_limit = [Code::InvalidArgument, Code::FailedPrecondition];
    refused("a cpu that does not exist", create(cpus).await, &bad_limit, &["4000"])?;
    let mut memory = c("memory");
    memory.linux.get_or_insert_default().resources = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 1 << 20,
        ..Default::default()
    });
    refused("swap below memory", create(memory).await, &invalid, &["swap"])?;

    // What this kernel lacks, or what nobody installed.
    let local = |path: &str| {
        let kind = v1::security_profile::ProfileType::Localhost.into();
        Some(v1::SecurityProfile { profile_type: kind, localhost_ref: path.into() })
    };
    let mut profile = c("apparmor");
    security(&mut profile).apparmor = local("localhost/mine");
    refused("AppArmor without AppArmor", create(profile).await, &bad_limit, &["AppArmor"])?;
    for (path, word) in [("/no/such/profile.json", "No such file"), ("/dev/zero", "regular file")] {
        let mut profile = c("seccomp");
        security(&mut profile).seccomp = local(path);
        refused("no seccomp profile", create(profile).await, &invalid, &[path, word])?;
    }
    let mut pages = c("pages");
    pages.linux.get_or_insert_default().resources = Some(v1::LinuxContainerResources {
        hugepage_limits: vec![v1::HugepageLimit { page_size: "3MB".into(), limit: 1 << 20 }],
        ..Default::default()
    });
    refused("a page size the kernel has not", create(pages).await, &bad_limit, &["3MB"])?;

    let twice = node.create(&sandbox, &config, c("twice")).await?;
    refused("the same container twice", create(c("twice")).await, &[Code::AlreadyExists], &["twice"])?;
    refused("unknown pod", node.create("nope", &config, c("x")).await, &[Code::NotFound], &["nope"])?;
    refused("status of nothing", node.container_status("nope").await, &[Code::NotFound], &["nope"])?;
    refused("start of nothing", node.start_container("nope").await, &[Code::NotFound], &["nope"])?;
    refused("exec of nothing", node.exec("nope", &["true"]).await, &[Code::NotFound], &["nope"])?;
    let unstarted = [Code::FailedPrecondition, Code::NotFound];
    refused("exec before start", node.exec(&twice, &["true"]).await, &unstarted, &[])?;
    node.start_container(&twice).await?;
    refused("start twice", node.start_container(&twice).await, &[Code::FailedPrecondition], &[])?;

    // CRI-CST-03: a command that does not exist is known at start.
    let missing = node.create(&sandbox, &config, container("missing", &image, &["/no/such/command"])).await?;
    let code = [Code::NotFound, Code::InvalidArgument, Code::FailedPrecondition, Code::Unknown];
    refused("missing command", node.start_container(&missing).await, &code, &["/no/such/command"])?;
    let status = node.container_status(&missing).await?;
    ensure!((status.exit_code, status.reason.as_str()) == (128, "StartError"), "{status:?}");
    Ok(())
}

/// CRI-XS-01, CRI-XS-02, CRI-XS-03, CRI-XS-04, CRI-XS-05, CRI-XS-07, CRI-XS-07b.
#[test]
fn exec_sync_keeps_its_promises() {
    on_a_node(Setup::default(), |node| Box::pin(exec_sync(node)));
}

async fn exec_sync(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "exec");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, "sleep 1000")).await?;
    let (code, out, err) = node.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 4"]).await?;
    ensure!((code, out.as_str(), err.as_str()) == (4, "out\n", "err\n"), "{code} {out:?} {err:?}");
    let (_, out, _) = node.exec(&id, &["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"]).await?;
    ensure!(out.len() == 3_000_000, "every byte: {}", out.len());
    // What is too much is read and thrown away: the command neither waits nor fails.
    let request = v1::ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["sh", "-c", "head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2"]
            .map(Into::into)
            .into(),
        timeout: 60,
    };
    let mut runtime = node.runtime().await?.max_decoding_message_size(40 << 20);
    let much = runtime.exec_sync(request).await?.into_inner();
    let lengths = (much.exit_code, much.stdout.len(), much.stderr.len());
    ensure!(lengths == (0, 16 << 20, 16 << 20), "16 MiB of each: {lengths:?}");
    refused("empty command", node.exec(&id, &[]).await, &[Code::InvalidArgument], &["cmd"])?;
    ensure!(node.exec(&id, &["/absent"]).await.is_err(), "a missing command is an RPC error");
    let request = v1::ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["sh", "-c", "sleep 4242 & (sleep 4243 &) ; sleep 4244"].map(Into::into).into(),
        timeout: 1,
    };
    let start = std::time::Instant::now();
    let answer = node.runtime().await?.exec_sync(request).await.map_err(Into::into);
    refused("timeout", answer, &[Code::DeadlineExceeded], &[])?;
    ensure!(start.elapsed() < std::time::Duration::from_secs(30), "at once: {:?}", start.elapsed());
    let left = node.sh(&id, "ps | grep 'sleep 424' | grep -v grep | wc -l").await?;
    ensure!(left.trim() == "0", "the whole subtree is dead: {left}");
    Ok(())
}
