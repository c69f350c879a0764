//! Podman from Debian on `slipway-oci`: what people do every day, on storage of its own, with nothing left at the end.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// One podman with everything it owns below a temporary directory, and an image made of busybox.
struct Podman {
    dir: tempfile::TempDir,
}

impl Podman {
    fn new() -> Result<Self> {
        // Short: podman's sockets lie below.
        let dir = tempfile::Builder::new().prefix("slp-").tempdir_in("/tmp")?;
        let podman = Self { dir };
        // A node without CAP_SYS_RESOURCE cannot raise limits to podman's own defaults.
        let limits = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n";
        fs::write(podman.path("containers.conf"), limits)?;
        podman.make_image()?;
        Ok(podman)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn make_image(&self) -> Result<()> {
        let root = self.path("rootfs");
        for name in ["bin", "etc", "tmp"] {
            fs::create_dir_all(root.join(name))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox"))
            .context("package busybox-static: hack/deps test")?;
        for name in ["sh", "cat", "true", "sleep", "echo", "id", "tty", "ls"] {
            symlink("busybox", root.join("bin").join(name))?;
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\nweb:x:33:33:web:/:/bin/sh\n")?;
        let archive = self.path("rootfs.tar");
        let made = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").status()?;
        ensure!(made.success(), "tar: {made}");
        self.ok(&["import", archive.to_str().context("a path")?, "localhost/box"]).map(drop)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("podman");
        for (option, name) in [("--root", "storage"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(self.path(name));
        }
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        command.arg("--runtime").arg(e2e::node::binary("slipway-oci"));
        command.args(words).env("CONTAINERS_CONF", self.path("containers.conf")).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        self.command(words).output().context("run podman: hack/deps test installs it")
    }

    fn ok(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        ensure!(output.status.success(), "podman {words:?}: {output:?}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn code(&self, words: &[&str]) -> Result<Option<i32>> {
        Ok(self.run(words)?.status.code())
    }

    /// A container that sleeps.
    fn sleeper(&self, name: &str, options: &[&str]) -> Result<()> {
        let words = [
            &["run", "-d", "--name", name, "--network", "none"],
            options,
            &["localhost/box", "sleep", "1000"],
        ];
        self.ok(&words.concat()).map(drop)
    }

    fn await_state(&self, name: &str, state: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.ok(&["inspect", name, "--format", "{{.State.Status}}"])? != state {
            ensure!(Instant::now() < deadline, "{name} is not {state} within 20 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Removes everything and looks for processes and mounts that are left.
    fn finish(self) -> Result<()> {
        self.ok(&["rm", "--all", "--force", "--time", "0"])?;
        let left = self.ok(&["ps", "--all", "--quiet"])?;
        ensure!(left.is_empty(), "containers are left: {left}");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !e2e::leaks::processes_naming(self.dir.path()).is_empty() {
            let left = e2e::leaks::processes_naming(self.dir.path());
            ensure!(Instant::now() < deadline, "processes are left: {left:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let own = self.dir.path().to_str().context("a path")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        // Podman's own: it keeps its storage bound to itself.
        for line in mounts.lines().filter(|line| line.contains(own)) {
            let point = line.split(' ').nth(4).unwrap_or_default();
            ensure!(
                point == self.path("storage/vfs").to_str().unwrap_or_default() || point.ends_with("/netns"),
                "mount is left: {line}"
            );
            let _ = Command::new("umount").arg(point).status();
        }
        Ok(())
    }
}

/// `podman run` of a command, to its end.
fn boxed<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--rm", "--network", "none", "localhost/box"], words].concat()
}

#[test]
fn run_gives_output_and_exit_codes() -> Result<()> {
    let podman = Podman::new()?;
    ensure!(podman.ok(&boxed(&["echo", "hello"]))? == "hello");
    ensure!(podman.code(&boxed(&["sh", "-c", "exit 7"]))? == Some(7));
    ensure!(podman.code(&boxed(&["no-such-command"]))? == Some(127), "command not found");
    ensure!(podman.code(&boxed(&["/etc/passwd"]))? == Some(126), "command not executable");
    let who = ["run", "--rm", "--network", "none", "--user", "web", "localhost/box", "id", "-u"];
    ensure!(podman.ok(&who)? == "33");
    podman.finish()
}

#[test]
fn a_container_s_day() -> Result<()> {
    let podman = Podman::new()?;
    podman.sleeper("a", &["--memory", "64m", "--pids-limit", "50"])?;
    ensure!(podman.ok(&["exec", "a", "echo", "inside"])? == "inside");
    ensure!(podman.code(&["exec", "a", "sh", "-c", "exit 3"])? == Some(3));
    ensure!(podman.code(&["exec", "a", "no-such-command"])? == Some(127));
    ensure!(
        podman.ok(&["exec", "--user", "web", "--workdir", "/tmp", "a", "sh", "-c", "id -u; pwd"])?
            == "33\n/tmp"
    );
    let stats = podman.ok(&["stats", "--no-stream", "--format", "{{.PIDs}} {{.MemUsage}}", "a"])?;
    ensure!(stats.starts_with("1 ") && stats.contains("67.11MB"), "{stats}");
    ensure!(podman.ok(&["top", "a", "args"])?.contains("sleep 1000"));
    podman.ok(&["pause", "a"])?;
    podman.await_state("a", "paused")?;
    podman.ok(&["unpause", "a"])?;
    podman.ok(&["kill", "a"])?;
    podman.await_state("a", "exited")?;
    ensure!(podman.ok(&["inspect", "a", "--format", "{{.State.ExitCode}}"])? == "137");
    podman.ok(&["start", "a"])?;
    podman.await_state("a", "running")?;
    podman.ok(&["stop", "--time", "1", "a"])?;
    podman.ok(&["rm", "a"])?;
    podman.finish()
}

#[test]
fn terminals_logs_health_and_pods() -> Result<()> {
    let podman = Podman::new()?;
    // script(1) gives podman a terminal of its own.
    let words = ["run", "-it", "--rm", "--network", "none", "localhost/box", "tty"];
    let plain = podman.command(&words);
    let line: Vec<String> = std::iter::once(plain.get_program())
        .chain(plain.get_args())
        .map(|w| format!("'{}'", w.to_string_lossy()))
        .collect();
    let script = Command::new("script")
        .args(["-qec", &line.join(" "), "/dev/null"])
        .env("CONTAINERS_CONF", podman.path("containers.conf"))
        .stdin(Stdio::null())
        .output()?;
    ensure!(String::from_utf8_lossy(&script.stdout).contains("/dev/pts/"), "{script:?}");
    podman.ok(&[
        "run",
        "--name",
        "log",
        "--network",
        "none",
        "localhost/box",
        "sh",
        "-c",
        "echo one; echo two >&2",
    ])?;
    let logs = podman.run(&["logs", "log"])?;
    ensure!(logs.stdout == b"one\n" && logs.stderr == b"two\n", "{logs:?}");
    podman.sleeper(
        "health",
        &["--health-cmd", "test -e /etc/passwd || exit 1", "--health-interval", "disable"],
    )?;
    ensure!(podman.code(&["healthcheck", "run", "health"])? == Some(0));
    podman.ok(&["pod", "create", "--name", "pod", "--infra=false"])?;
    podman.sleeper("member", &["--pod", "pod"])?;
    ensure!(podman.ok(&["pod", "ps", "--format", "{{.Name}} {{.Status}}"])? == "pod Running");
    podman.ok(&["pod", "kill", "pod"])?;
    podman.await_state("member", "exited")?;
    podman.ok(&["pod", "rm", "--force", "pod"])?;
    podman.finish()
}
