//! What an operator types: explain without root, where a pull goes, damaged layers, events, another runtime's configuration.

use anyhow::{Context as _, Result, ensure};
use e2e::containerd::Release;
use e2e::registry::Registry;
use e2e::requests::{pod, shell};
use e2e::{Node, Setup, on_a_node};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};

const POD: &str = r#"apiVersion: v1
kind: Pod
metadata: {name: web, namespace: team}
spec:
  securityContext: {runAsUser: 1000, runAsGroup: 1000}
  containers:
  - name: main
    image: reg.example/web:1
    command: [serve, --now]
    resources: {limits: {memory: 64Mi}}
    securityContext: {readOnlyRootFilesystem: true}
  - name: side
    image: reg.example/side:1
"#;

#[test]
fn a_pod_is_explained_without_root() {
    on_a_node(Setup::default(), |node| Box::pin(explained(node)));
}

async fn explained(node: &mut Node) -> Result<()> {
    let file = node.path("pod.yaml");
    std::fs::write(&file, POD)?;
    std::fs::set_permissions(file.parent().context("dir")?, std::fs::Permissions::from_mode(0o755))?;
    // The program by its descriptor: the way to it may be root's.
    let program = std::fs::File::open(e2e::node::binary("slipway"))?;
    let mut command = tokio::process::Command::new("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]);
    command.args(["/proc/self/fd/0", "explain"]).arg(&file);
    let output = command.stdin(Stdio::from(program)).output().await.context("setpriv")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let (main, side) = text.split_once("pod team/web, container side").context(text.clone())?;
    ensure!(main.starts_with("pod team/web, container main"), "{main}");
    for part in ["67108864", "1000", "execute", "pivot"] {
        ensure!(main.contains(part), "no {part} in {main}");
    }
    ensure!(side.contains("assumed: the command is the image's ENTRYPOINT"), "{side}");

    std::fs::write(&file, POD.replace("name: main", "name: Main"))?;
    let bad = node.slipway_command(&["explain"]).arg(&file).output().await?;
    let said = String::from_utf8_lossy(&bad.stderr).into_owned();
    ensure!(!bad.status.success() && said.contains("\"Main\""), "{said}");
    Ok(())
}

#[test]
fn where_a_pull_goes_and_what_became_of_a_layer() {
    on_a_node(Setup::default(), |node| Box::pin(images(node)));
}

async fn images(node: &mut Node) -> Result<()> {
    let registry = Registry::start(node).await?;
    let name = registry.image("busybox:1");
    let told = node.slipway(&["registry", "explain", &name]).await?;
    ensure!(told.contains("1. http://127.0.0.1:5000/v2 (the registry itself; for resolve, pull)"), "{told}");
    ensure!(told.contains("has it: sha256:"), "{told}");
    let told = node.slipway(&["registry", "explain", &registry.image("busybox:absent")]).await?;
    ensure!(!told.contains("has it"), "{told}");

    node.slipway(&["pull", &name]).await?;
    sealed(node).await?;
    let intact = node.slipway(&["images", "verify"]).await?;
    ensure!(intact.contains("intact") && intact.contains("busybox"), "{intact}");
    spoil(&layers(node)?)?;
    let found = node.slipway_command(&["--output", "json", "verify", &name]).output().await?;
    ensure!(!found.status.success(), "damage is a failure");
    let rows: Vec<Value> = serde_json::from_slice(&found.stdout)?;
    ensure!(rows.iter().any(|row| row["verdict"] == "damaged"), "{rows:?}");
    let repaired = node.slipway(&["images", "verify", "--repair"]).await?;
    ensure!(repaired.contains("pulled again"), "{repaired}");
    sealed(node).await?;
    let intact = node.slipway(&["verify"]).await?;
    ensure!(!intact.contains("damaged"), "{intact}");

    ensure!(node.slipway(&["rmi", &name, "test.local/absent:1"]).await.is_err(), "a mistyped name");
    ensure!(node.slipway(&["images"]).await?.contains("busybox"), "removes nothing");
    node.slipway(&["rmi", &name]).await?;
    ensure!(!node.slipway(&["images"]).await?.contains("busybox"), "removed");
    registry.stop().await
}

/// Records of layers.
fn layers(node: &Node) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(node.path("root/images/layers"))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "json")).collect())
}

/// Until there is something to compare with.
async fn sealed(node: &Node) -> Result<()> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let records = layers(node)?;
        let sealed = |path: &PathBuf| {
            std::fs::read_to_string(path).is_ok_and(|text| text.contains(r#""seal":"sha256:"#))
        };
        if !records.is_empty() && records.iter().all(sealed) {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < deadline, "layers are not sealed: {records:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One byte of the largest file of the layers; everything else stays as it was.
fn spoil(records: &[PathBuf]) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    let mut files = Vec::new();
    for record in records {
        regular_files(&record.with_extension(""), &mut files)?;
    }
    let (size, path) = files.into_iter().max().context("no file")?;
    let file = std::fs::File::options().read(true).write(true).open(&path)?;
    let time = file.metadata()?.modified()?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, size / 2)?;
    file.write_all_at(&[!byte[0]], size / 2)?;
    Ok(file.set_modified(time)?)
}

fn regular_files(dir: &Path, files: &mut Vec<(u64, PathBuf)>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.path().symlink_metadata()?;
        if meta.is_dir() {
            regular_files(&entry.path(), files)?;
        } else if meta.is_file() && meta.len() > 0 {
            files.push((meta.len(), entry.path()));
        }
    }
    Ok(())
}

#[test]
fn events_are_followed() {
    on_a_node(Setup::default(), |node| Box::pin(followed(node)));
}

async fn followed(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let mut follower = node.slipway_command(&["--output", "json", "events"]);
    let mut follower = follower.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(follower.stdout.take().context("output")?).lines();
    // It is listening once an event of a pod arrives: pods come and go until then.
    let mut probes = 0;
    loop {
        probes += 1;
        ensure!(probes < 60, "no event of any pod");
        let probe = node.run_pod(&pod(node, &format!("probe{probes}"))).await?;
        let heard = tokio::time::timeout(Duration::from_millis(500), lines.next_line()).await;
        node.stop_pod(&probe).await?;
        node.remove_pod(&probe).await?;
        if matches!(heard, Ok(Ok(Some(_)))) {
            break;
        }
    }
    let config = pod(node, "told");
    let sandbox = node.run_pod(&config).await?;
    let container = node.run(&sandbox, &config, shell("main", &image, "exit 7")).await?;
    node.ended(&container).await?;
    let mut told = Vec::new();
    let read = async {
        while let Some(line) = lines.next_line().await? {
            let event: Value = serde_json::from_str(&line)?;
            if event["id"] == container {
                told.push((event["what"].as_str().unwrap_or_default().to_owned(), event["exitCode"].clone()));
                let named = event["container"] == "main"
                    && event["pod"].as_str().is_some_and(|p| p.ends_with("/told"));
                ensure!(named, "{event}");
                if event["what"] == "stopped" {
                    return anyhow::Ok(());
                }
            }
        }
        anyhow::bail!("the events end")
    };
    tokio::time::timeout(Duration::from_secs(60), read).await.context("events within 60 s")??;
    let what: Vec<_> = told.iter().map(|(what, _)| what.as_str()).collect();
    ensure!(what == ["created", "started", "stopped"], "{told:?}");
    ensure!(told.last().is_some_and(|(_, code)| *code == 7), "{told:?}");
    follower.kill().await?;
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}

#[test]
fn containerds_own_defaults_are_translated() {
    on_a_node(Setup::default(), |node| Box::pin(imported(node)));
}

/// A dumped default configuration of each containerd leaves no key unspoken, and what comes out is a configuration of ours.
async fn imported(node: &mut Node) -> Result<()> {
    for (release, name) in [(Release::Debian, "1"), (Release::Two, "2")] {
        let dump = tokio::process::Command::new(release.binary("containerd"))
            .args(["config", "default"])
            .output()
            .await?;
        ensure!(dump.status.success(), "containerd config default: {dump:?}");
        let text = String::from_utf8(dump.stdout)?.replace("SystemdCgroup = false", "SystemdCgroup = true");
        let file = node.path(&format!("containerd-{name}.toml"));
        std::fs::write(&file, text)?;
        let into = node.path(&format!("slipway-{name}"));
        let mut import = node.slipway_command(&["config", "import", "containerd"]);
        let import = import.arg(&file).arg("--into").arg(&into).output().await?;
        let left = String::from_utf8_lossy(&import.stderr).into_owned();
        ensure!(import.status.success(), "{left}");
        ensure!(!left.contains("there is no such setting here"), "keys that nobody knows: {left}");
        let written = std::fs::read_to_string(into.join("config.toml"))?;
        for line in ["cgroup_driver = \"systemd\"", "runtime_handlers = [\"runc\"]", "parallel_layers = 3"] {
            ensure!(written.contains(line), "no {line} in {written}");
        }
        // Whether this host has systemd or not: every key is one of ours.
        let config = into.join("config.toml").display().to_string();
        let check = node.slipway_command(&["config", "check", "--config", &config]).output().await?;
        let said = String::from_utf8_lossy(&check.stderr).into_owned();
        ensure!(check.status.success() || said.contains("does not run systemd"), "{said}");
    }
    Ok(())
}
