//! One run of one plugin: find it, feed it, watch the clock, understand its answer.
//!
//! Plugins run in the network namespace of the thread that spawns them, which is the host's (CNI-07). A plugin that
//! overruns its deadline is killed with its whole process group; the caller then owes the network a DEL (CNI-31).

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

/// More than this from a plugin is a fault of the plugin.
const OUTPUT_LIMIT: u64 = 4 << 20;
/// CNI-29: a binary that is just being replaced.
const BUSY_RETRIES: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
}

impl Command {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }
}

/// The environment of one operation, the same for all plugins of the list (CNI-05). GC and STATUS concern no
/// container: their `attachment` is none.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) command: Command,
    pub(crate) attachment: Option<AttachmentEnv<'a>>,
    pub(crate) bin_dirs: &'a [PathBuf],
    pub(crate) deadline: Instant,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct AttachmentEnv<'a> {
    pub(crate) container_id: &'a str,
    /// Empty when the namespace is gone.
    pub(crate) netns: &'a str,
    pub(crate) ifname: &'a str,
    pub(crate) args: &'a str,
}

/// Why a plugin did not do what was asked.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// The CNI error code if the plugin said one (CNI-20).
    pub(crate) code: Option<u64>,
    /// One sentence with the plugin's own words.
    pub(crate) text: String,
    /// True if it was killed at the deadline.
    pub(crate) timed_out: bool,
    /// True if there is no such plugin on this host.
    pub(crate) missing: bool,
}

impl Failure {
    fn plain(text: String) -> Self {
        Self { code: None, text, timed_out: false, missing: false }
    }
}

/// CNI-30: first hit in the directories.
pub(crate) fn find(kind: &str, bin_dirs: &[PathBuf]) -> Result<PathBuf, Failure> {
    if kind.is_empty() || kind.contains('/') || kind == "." || kind == ".." {
        return Err(Failure::plain(format!("\"{kind}\" is not a plugin type")));
    }
    if let Some(path) = bin_dirs.iter().map(|dir| dir.join(kind)).find(|path| path.is_file()) {
        return Ok(path);
    }
    let dirs: Vec<String> = bin_dirs.iter().map(|d| d.display().to_string()).collect();
    let text = format!(
        "plugin {kind} not found in {}; hint: install it (Debian: containernetworking-plugins) or set the CNI plugin \
         directories in the configuration",
        if dirs.is_empty() { "no directory".into() } else { dirs.join(", ") }
    );
    Err(Failure { missing: true, ..Failure::plain(text) })
}

/// Runs the plugin `kind` with `config` on its standard input; its standard output on success.
pub(crate) async fn run(kind: &str, config: &[u8], call: &Call<'_>) -> Result<Vec<u8>, Failure> {
    let path = find(kind, call.bin_dirs)?;
    let mut child = spawn(&path, call).await?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let talk = async {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A plugin may answer without reading its input: EPIPE says nothing about success.
                let _ = stdin.write_all(config).await;
            }
        };
        let ((), out, err) = tokio::join!(feed, read_limited(stdout), read_limited(stderr));
        (out, err, child.wait().await)
    };
    let done = tokio::time::timeout_at(call.deadline, talk).await;
    let Ok((out, err, status)) = done else {
        group.kill();
        let _ = child.wait().await;
        let text = "it did not finish in time and was killed".to_owned();
        return Err(Failure { timed_out: true, ..Failure::plain(text) });
    };
    // Waited for: the number may be another's.
    group.0 = None;
    let out = out.map_err(|e| Failure::plain(format!("its output could not be read: {e}")))?;
    match status {
        Ok(status) if status.success() => Ok(out),
        Ok(status) => Err(explain(&out, &err.unwrap_or_default(), &status.to_string())),
        Err(e) => Err(Failure::plain(format!("its end could not be awaited: {e}"))),
    }
}

/// A plugin and what it started: killed together, also when nobody waits for its answer any more.
struct Group(Option<i32>);

impl Group {
    fn kill(&mut self) {
        if let Some(group) = self.0.take() {
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn spawn(path: &Path, call: &Call<'_>) -> Result<tokio::process::Child, Failure> {
    let search = std::env::join_paths(call.bin_dirs)
        .map_err(|e| Failure::plain(format!("a plugin directory cannot be in CNI_PATH: {e}")))?;
    let mut command = tokio::process::Command::new(path);
    command
        .env("CNI_COMMAND", call.command.name())
        .env("CNI_PATH", search)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    for key in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
        command.env_remove(key);
    }
    if let Some(a) = call.attachment {
        command
            .env("CNI_CONTAINERID", a.container_id)
            .env("CNI_NETNS", a.netns)
            .env("CNI_IFNAME", a.ifname)
            .env("CNI_ARGS", a.args);
    }
    let mut tries = 0;
    loop {
        match command.spawn() {
            Ok(child) => return Ok(child),
            Err(e)
                if e.kind() == std::io::ErrorKind::ExecutableFileBusy
                    && tries < BUSY_RETRIES
                    && Instant::now() + BUSY_PAUSE < call.deadline =>
            {
                tries += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(e) => {
                let hint = if e.kind() == std::io::ErrorKind::PermissionDenied {
                    "; hint: is it executable, and its filesystem not mounted noexec?"
                } else {
                    ""
                };
                return Err(Failure::plain(format!("{} could not be started: {e}{hint}", path.display())));
            }
        }
    }
}

async fn read_limited(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(OUTPUT_LIMIT).read_to_end(&mut bytes).await?;
        // Read on and drop, so that the plugin is not stopped by a full pipe.
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}

/// CNI-19: the error is JSON on standard output; else standard error has to do.
fn explain(stdout: &[u8], stderr: &[u8], status: &str) -> Failure {
    if let Ok(Value::Object(object)) = serde_json::from_slice::<Value>(stdout) {
        let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().trim().to_owned();
        let (msg, details) = (text("msg"), text("details"));
        let code = object.get("code").and_then(Value::as_u64);
        if code.is_some() || !msg.is_empty() {
            let code_text = code.map(|c| format!(" (code {c}{})", meaning(c))).unwrap_or_default();
            let details = if details.is_empty() { details } else { format!("; {details}") };
            return Failure { code, ..Failure::plain(format!("{msg}{details}{code_text}")) };
        }
    }
    let said = if stdout.iter().all(u8::is_ascii_whitespace) { stderr } else { stdout };
    Failure::plain(format!("{status}: {}", excerpt(said)))
}

fn meaning(code: u64) -> &'static str {
    match code {
        1 => ", incompatible CNI version",
        2 => ", unsupported field",
        3 => ", unknown container",
        4 => ", bad environment",
        5 => ", input or output failed",
        6 => ", undecodable content",
        7 => ", invalid network configuration",
        8 => ", invalid network namespace",
        11 => ", try again later",
        50 => ", plugin cannot ADD now",
        51 => ", plugin cannot ADD now and connectivity is limited",
        _ => "",
    }
}

/// The beginning of what a program said, on one line, fit for a message.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]);
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = line.chars().filter(|c| !c.is_control()).take(400).collect();
    if short.is_empty() { "(it said nothing)".into() } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon that ends, or a request whose task is aborted, in the middle of an ADD.
    #[tokio::test]
    async fn a_call_that_is_dropped_takes_the_plugin_and_its_children_along() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait", pid.display());
        // A link, as a script of our own might still be open for writing in another test's fork.
        std::os::unix::fs::symlink("/bin/sh", dir.path().join("plugin")).unwrap();
        let dirs = vec![dir.path().to_owned()];
        let called = tokio::spawn(async move {
            let deadline = Instant::now() + Duration::from_secs(600);
            let call = Call { command: Command::Status, attachment: None, bin_dirs: &dirs, deadline };
            // A shell reads its program from standard input.
            run("plugin", script.as_bytes(), &call).await
        });
        let started = Instant::now();
        let child = loop {
            if let Ok(text) = std::fs::read_to_string(&pid) {
                break text.trim().to_owned();
            }
            assert!(started.elapsed() < Duration::from_secs(30), "the plugin does not start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        called.abort();
        let line = format!("/proc/{child}/cmdline");
        while std::fs::read(&line).is_ok_and(|line| !line.is_empty()) {
            assert!(started.elapsed() < Duration::from_secs(60), "its child lives");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
