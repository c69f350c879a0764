//! `slipway check`: what is wrong with a host is named, with a remedy, and nothing is left by looking.

use anyhow::{Context as _, Result, ensure};
use e2e::{Node, Setup, on_a_node};
use serde_json::Value;
use std::process::Command;

/// All findings and the exit code of `slipway check` with these further arguments.
async fn check(node: &Node, args: &[&str]) -> Result<(Vec<Value>, i32)> {
    let out = node.slipway_command(&["--output", "json", "check"]).args(args).output().await?;
    let findings = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&out.stderr)))?;
    Ok((findings, out.status.code().unwrap_or(-1)))
}

fn finding<'a>(findings: &'a [Value], subject: &str) -> Result<&'a Value> {
    findings.iter().find(|f| f["subject"] == subject).with_context(|| format!("no finding {subject}"))
}

#[test]
fn a_fit_host_is_told_so_and_nothing_stays() {
    on_a_node(Setup::default(), |node| Box::pin(fit(node)));
}

async fn fit(node: &mut Node) -> Result<()> {
    let (root, state) = (node.path("elsewhere"), node.path("state"));
    std::fs::create_dir(&root)?;
    // A disk of its own: how full the machine's is says nothing of this test.
    let disk = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "none"]).arg(&root).status()?;
    ensure!(disk.success(), "mount a tmpfs");
    let config =
        write(node, "fit.toml", &format!("[cni]\nconf_dir = \"{}\"\n", node.path("none").display()))?;
    let (root_text, state_text) = (root.display().to_string(), state.display().to_string());
    let args = ["--root", &root_text, "--state", &state_text, "--config", &config];
    let (findings, code) = check(node, &args).await?;
    for subject in
        ["kernel", "namespaces", "cgroup controllers", "capabilities", "overlay", "network", "clock"]
    {
        let found = finding(&findings, subject)?;
        ensure!(found["verdict"] != "failure", "{found}");
    }
    // Also where a hybrid host has it on version 2 alone.
    let unified = ["/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/unified/cgroup.controllers"];
    let has = unified.iter().any(|f| std::fs::read_to_string(f).is_ok_and(|text| text.contains("hugetlb")));
    let lacks = finding(&findings, "cgroup controllers")?["found"].to_string().contains("no hugetlb");
    ensure!(!(has && lacks), "{findings:?}");
    ensure!(code == 0, "exit code {code}: {findings:?}");
    ensure!(findings.iter().all(|f| f["verdict"] == "ok" || f["remedy"].is_string()), "{findings:?}");
    ensure!(std::fs::read_dir(&root)?.next().is_none(), "something stayed in {}", root.display());
    let unmounted = Command::new("umount").arg(&root).status()?;
    ensure!(unmounted.success(), "umount: check left something busy");
    std::fs::remove_dir(&root)?;
    Ok(())
}

#[test]
fn what_is_unfit_is_named_with_a_remedy() {
    on_a_node(Setup::default(), |node| Box::pin(unfit(node)));
}

async fn unfit(node: &mut Node) -> Result<()> {
    // An overlay cannot carry the upper layer of another one.
    for dir in ["low", "up", "work", "tree"] {
        std::fs::create_dir(node.path(dir))?;
    }
    let at = |dir: &str| node.path(dir).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", at("low"), at("up"), at("work"));
    let mounted =
        Command::new("mount").args(["-t", "overlay", "-o", &options, "none", &at("tree")]).status()?;
    ensure!(mounted.success(), "mount an overlay");
    std::fs::create_dir(node.path("rubbish"))?;
    write(node, "rubbish/10-net.conflist", "{")?;
    let config = write(node, "bare.toml", &format!("[cni]\nconf_dir = \"{}\"\n", at("rubbish")))?;
    let (findings, code) = check(node, &["--root", &at("tree"), "--config", &config]).await?;
    let unmounted = Command::new("umount").arg(at("tree")).status()?;
    ensure!(unmounted.success(), "umount: check left something busy");
    ensure!(code == 1, "exit code {code}");
    let overlay = finding(&findings, "overlay")?;
    ensure!(overlay["verdict"] == "failure", "{overlay}");
    ensure!(overlay["remedy"].as_str().is_some_and(|r| r.contains("ext4")), "{overlay}");
    let network = finding(&findings, "network")?;
    ensure!(network["verdict"] == "failure", "{network}");
    ensure!(network["found"].as_str().is_some_and(|f| f.contains("10-net.conflist")), "{network}");

    let typo = write(node, "typo.toml", "[network]\nbrigde = \"br0\"\n")?;
    let (findings, code) = check(node, &["--config", &typo]).await?;
    let configuration = finding(&findings, "configuration")?;
    ensure!(code == 1 && configuration["verdict"] == "failure", "{configuration}");
    let found = configuration["found"].as_str().unwrap_or_default();
    ensure!(found.contains("brigde") && found.contains("typo.toml:2:"), "{found}");
    Ok(())
}

fn write(node: &Node, name: &str, text: &str) -> Result<String> {
    let path = node.path(name);
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}
