//! An NRI plugin beside a node: `nri-plugin` (hack/go-nri), on NRI's own library.

use crate::node::{Node, tool};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A running plugin; dropping it kills it.
#[derive(Debug)]
pub struct Plugin {
    process: tokio::process::Child,
    log: PathBuf,
}

impl Plugin {
    /// Connects as `NN-name` with these options (see hack/go-nri), and waits until it is synchronized.
    pub async fn connect(node: &Node, label: &str, mut options: Value) -> Result<Self> {
        let (index, name) = label.split_once('-').context("NN-name")?;
        let (log, config) = (node.path(&format!("{label}.log")), node.path(&format!("{label}.json")));
        options["log"] = json!(log);
        std::fs::write(&config, options.to_string())?;
        let output = std::fs::File::create(node.path(&format!("{label}.out")))?;
        let joined = || {
            let line = format!("connected and synchronized plugin=\"{label}\"");
            node.log_tail(2000).matches(&line).count()
        };
        let before = joined();
        let process = tokio::process::Command::new(tool("nri-plugin"))
            .args(["-name", name, "-idx", index, "-socket"])
            .arg(node.path("state/nri.sock"))
            .arg("-config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .context("run hack/bin/nri-plugin: hack/tools nri-plugin builds it")?;
        let plugin = Self { process, log };
        plugin.until(|calls| calls.iter().any(|c| c["event"] == "Synchronize")).await?;
        // Only then the daemon has its answer, and asks it.
        let start = Instant::now();
        while joined() == before && start.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(plugin)
    }

    /// All calls so far.
    pub fn calls(&self) -> Result<Vec<Value>> {
        calls(&self.log)
    }

    /// Names of the calls that concern an object, in order.
    pub fn of(&self, id: &str) -> Result<Vec<String>> {
        let calls = self.calls()?.into_iter().filter(|c| c["id"] == id);
        Ok(calls.map(|c| c["event"].as_str().unwrap_or_default().to_owned()).collect())
    }

    /// Waits until `probe` is true of the calls.
    pub async fn until(&self, probe: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        until(&self.log, probe).await
    }

    /// Kills it and waits until it is gone.
    pub async fn end(mut self) -> Result<()> {
        self.process.kill().await.context("kill the plugin")
    }
}

/// What a plugin has written to its log.
pub fn calls(log: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| format!("a call: {line}"))).collect()
}

pub async fn until(log: &Path, probe: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
    let start = Instant::now();
    loop {
        let calls = calls(log)?;
        if probe(&calls) {
            return Ok(calls);
        }
        if start.elapsed() > Duration::from_secs(60) {
            let output = std::fs::read_to_string(log.with_extension("out")).unwrap_or_default();
            bail!("the plugin was not called as expected: {calls:#?}\n{output}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// # Errors
/// With the sentence in which some of `words` are missing; or when it went well.
pub fn refused<T: std::fmt::Debug>(outcome: Result<T>, words: &[&str]) -> Result<()> {
    let error = format!("{:#}", outcome.err().context("it must be refused")?);
    let missing: Vec<_> = words.iter().filter(|w| !error.contains(**w)).collect();
    ensure!(missing.is_empty(), "the error does not say {missing:?}: {error}");
    Ok(())
}
