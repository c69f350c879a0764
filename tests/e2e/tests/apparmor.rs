//! AppArmor: the default profile and what it forbids, profiles by name, none. `hack/test-v2 apparmor` runs this where the
//! kernel has it; here it shows that a request for a profile is never ignored.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use cri_proto::v1::security_profile::ProfileType;
use e2e::requests::{pod, security, shell};
use e2e::{Node, Setup, on_a_node};
use std::io::Write;
use std::process::{Command, Stdio};
use tonic::Code;

const PARSER: &str = "/usr/sbin/apparmor_parser";
const MINE: &str = "slipway-e2e-mine";

fn is_on() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|value| value.starts_with(b"Y"))
}

fn asking(image: &str, name: &str, asked: Option<(ProfileType, &str)>) -> v1::ContainerConfig {
    let mut config = shell(name, image, "exec sleep 1000");
    security(&mut config).apparmor = asked.map(|(kind, reference)| v1::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: reference.into(),
    });
    config
}

async fn refusal(
    node: &Node,
    sandbox: &str,
    pod: &v1::PodSandboxConfig,
    config: v1::ContainerConfig,
) -> Result<tonic::Status> {
    let error = node.run(sandbox, pod, config).await.err().context("it must be refused")?;
    error.downcast::<tonic::Status>()
}

/// AA-01, AA-02, AA-03, AA-05, AA-07, CRI-SEC-06, CRI-SEC-08, CRI-SEC-09, CRI-CAP-08, CRI-XS-08.
#[test]
fn containers_are_confined_by_apparmor_where_the_kernel_has_it() {
    on_a_node(Setup::default(), |node| {
        Box::pin(async move { if is_on() { confined(node).await } else { refused(node).await } })
    });
}

async fn refused(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "apparmor");
    let sandbox = node.run_pod(&config).await?;
    for (name, asked) in [("a", (ProfileType::RuntimeDefault, "")), ("b", (ProfileType::Localhost, MINE))] {
        let error = refusal(node, &sandbox, &config, asking(&image, name, Some(asked))).await?;
        ensure!(
            error.code() == Code::FailedPrecondition && error.message().contains("no AppArmor"),
            "{error:?}"
        );
    }
    for (name, asked) in [("c", None), ("d", Some((ProfileType::Unconfined, "")))] {
        node.run(&sandbox, &config, asking(&image, name, asked)).await?;
    }
    Ok(())
}

async fn confined(node: &mut Node) -> Result<()> {
    ensure!(std::path::Path::new(PARSER).exists(), "the package apparmor is not installed");
    let image = node.import("busybox").await?;
    let config = pod(node, "apparmor");
    let sandbox = node.run_pod(&config).await?;
    // All rights, so that whatever is refused is refused by the profile.
    let mut main = asking(&image, "default", None);
    let rights = v1::Capability { add_capabilities: vec!["ALL".into()], ..Default::default() };
    security(&mut main).capabilities = Some(rights);
    let main = node.run(&sandbox, &config, main).await?;
    let label = async |id: &str| node.sh(id, "cat /proc/1/attr/current /proc/self/attr/current").await;
    let both = |name: &str| format!("{name}\n{name}\n");
    ensure!(label(&main).await? == both("slipway-default (enforce)"), "{}", label(&main).await?);
    for (script, allowed) in [
        ("mount -t tmpfs none /mnt", false),
        ("echo 1 > /proc/sys/kernel/shm_rmid_forced", true),
        ("echo x > /proc/sys/kernel/domainname", false),
        ("echo h > /proc/sysrq-trigger", false),
        ("head -c 1 /proc/kcore", false),
        ("echo 0 > /proc/1/oom_score_adj", true),
        ("mkdir /sys/fs/cgroup/x", false),
        ("touch /tmp/file && rm /tmp/file", true),
    ] {
        let (code, _, said) = node.exec(&main, &["sh", "-c", script]).await?;
        ensure!((code == 0) == allowed, "{script}: exit code {code}: {said}");
    }
    // The keeper is outside of the profile, and may signal what is inside.
    node.stop_container(&main, 30).await?;
    // Somebody has unloaded it: it is loaded again.
    let removed = Command::new(PARSER).arg("-R").stdin(Stdio::piped()).spawn();
    let mut removed = removed.context("apparmor_parser")?;
    removed.stdin.take().context("stdin")?.write_all(b"profile slipway-default {\n}\n")?;
    ensure!(removed.wait()?.success(), "unload");
    let again = Some((ProfileType::RuntimeDefault, ""));
    let again = node.run(&sandbox, &config, asking(&image, "again", again)).await?;
    ensure!(label(&again).await? == both("slipway-default (enforce)"));

    let free =
        node.run(&sandbox, &config, asking(&image, "free", Some((ProfileType::Unconfined, "")))).await?;
    ensure!(label(&free).await? == both("unconfined"));

    let error =
        refusal(node, &sandbox, &config, asking(&image, "unknown", Some((ProfileType::Localhost, MINE))))
            .await?;
    ensure!(error.code() == Code::InvalidArgument && error.message().contains("not loaded"), "{error:?}");
    let mut loaded =
        Command::new(PARSER).arg("-K").stdin(Stdio::piped()).spawn().context("apparmor_parser")?;
    let text = format!(
        "profile {MINE} flags=(attach_disconnected) {{\n  file,\n  signal,\n  deny /tmp/forbidden w,\n}}\n"
    );
    loaded.stdin.take().context("stdin")?.write_all(text.as_bytes())?;
    ensure!(loaded.wait()?.success(), "load");
    let mine =
        node.run(&sandbox, &config, asking(&image, "mine", Some((ProfileType::Localhost, MINE)))).await?;
    ensure!(label(&mine).await? == both(&format!("{MINE} (enforce)")));
    let (code, _, said) =
        node.exec(&mine, &["sh", "-c", "touch /tmp/allowed && ! touch /tmp/forbidden"]).await?;
    ensure!(code == 0, "{said}");
    Ok(())
}

/// CRI-SEC-09: privileged drops the default profile.
#[test]
fn a_privileged_container_has_no_profile_of_ours() {
    on_a_node(Setup::default(), |node| Box::pin(privileged(node)));
}

async fn privileged(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let mut config = pod(node, "privileged");
    e2e::requests::pod_security(&mut config).privileged = true;
    let sandbox = node.run_pod(&config).await?;
    let mut main = asking(&image, "main", Some((ProfileType::RuntimeDefault, "")));
    security(&mut main).privileged = true;
    let main = node.run(&sandbox, &config, main).await?;
    if is_on() {
        let label = node.sh(&main, "cat /proc/self/attr/current").await?;
        ensure!(label == "unconfined\n", "{label}");
    }
    Ok(())
}
