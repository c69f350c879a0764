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
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.ok(&["inspect", name, "--format", "{{.State.Status}}"])? != state {
            ensure!(Instant::now() < deadline, "{name} is not {state} within 30 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Removes everything and looks for processes and mounts that are left.
    fn finish(self) -> Result<()> {
        self.ok(&["rm", "--all", "--force", "--time", "0"])?;
        let left = self.ok(&["ps", "--all", "--quiet"])?;
        ensure!(left.is_empty(), "containers are left: {left}");
        let deadline = Instant::now() + Duration::from_secs(30);
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

impl Podman {
    /// Runs podman on a terminal of its own, made by script(1); what came out of it.
    fn on_terminal(&self, words: &[&str]) -> Result<String> {
        let plain = self.command(words);
        let line: Vec<String> = std::iter::once(plain.get_program())
            .chain(plain.get_args())
            .map(|w| format!("'{}'", w.to_string_lossy()))
            .collect();
        // A user who types nothing: at an end of input script(1) would type Ctrl-D.
        let (input, _silent) = std::io::pipe()?;
        let script = Command::new("script")
            .args(["-qec", &line.join(" "), "/dev/null"])
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .stdin(input)
            .output()?;
        ensure!(script.status.success(), "{words:?}: {script:?}");
        Ok(String::from_utf8(script.stdout)?)
    }
}

#[test]
fn terminals_and_logs() -> Result<()> {
    let podman = Podman::new()?;
    let words = ["run", "-it", "--rm", "--network", "none", "localhost/box", "tty"];
    let output = podman.on_terminal(&words)?;
    ensure!(output.contains("/dev/pts/"), "{output:?}");
    podman.sleeper("a", &[])?;
    ensure!(podman.on_terminal(&["exec", "-it", "a", "tty"])?.contains("/dev/pts/"));
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
    podman.finish()
}

#[test]
fn sessions_signals_and_ends() -> Result<()> {
    let podman = Podman::new()?;
    let script = "trap 'exit 33' USR1; touch /tmp/ready; while :; do sleep 0.05; done";
    podman.ok(&["run", "-d", "--name", "a", "--network", "none", "localhost/box", "sh", "-c", script])?;
    podman.ok(&["exec", "-d", "a", "sleep", "1000"])?;
    ensure!(podman.ok(&["exec", "--env", "A=b", "a", "sh", "-c", "echo $A"])? == "b");
    podman.ok(&["pause", "a"])?;
    ensure!(podman.code(&["exec", "a", "true"])? != Some(0), "into a paused container");
    podman.ok(&["unpause", "a"])?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while podman.code(&["exec", "a", "cat", "/tmp/ready"])? != Some(0) {
        ensure!(Instant::now() < deadline, "the container is not ready");
    }
    podman.ok(&["kill", "--signal", "USR1", "a"])?;
    ensure!(podman.ok(&["wait", "a"])? == "33");
    podman.ok(&["restart", "a"])?;
    podman.await_state("a", "running")?;
    podman.ok(&["update", "--memory", "48m", "a"])?;
    let limit =
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    ensure!(podman.ok(&["exec", "a", "sh", "-c", limit])? == (48 << 20).to_string());
    podman.ok(&["rm", "--force", "--time", "0", "a"])?;
    podman.finish()
}

#[test]
fn what_a_container_is_given() -> Result<()> {
    let podman = Podman::new()?;
    let shared = podman.path("shared");
    fs::create_dir(&shared)?;
    fs::write(shared.join("file"), "from outside\n")?;
    let volume = format!("{}:/data:ro", shared.display());
    let common = ["run", "--rm", "--network", "none"];
    let run = |options: &[&str], script: &str| {
        podman.ok(&[&common, options, &["localhost/box", "sh", "-c", script]].concat())
    };
    ensure!(run(&["--volume", &volume], "cat /data/file")? == "from outside");
    ensure!(run(&["--volume", &volume], "echo x 2>/dev/null > /data/new || echo kept out")? == "kept out");
    ensure!(run(&["--read-only", "--tmpfs", "/scratch"], "echo x > /scratch/y; cat /scratch/y")? == "x");
    ensure!(
        run(&["--hostname", "box", "--workdir", "/tmp"], "cat /proc/sys/kernel/hostname; pwd")?
            == "box\n/tmp"
    );
    ensure!(run(&[], "echo x > /dev/null && echo usable")? == "usable", "podman forbids all devices by rule");
    let none = run(&["--cap-drop", "all"], "cat /proc/self/status")?;
    ensure!(none.contains("CapEff:\t0000000000000000"), "{none}");
    podman.finish()
}

#[test]
fn health_checks_tell_good_from_bad() -> Result<()> {
    let podman = Podman::new()?;
    let check =
        ["--health-cmd", "cat /tmp/well || exit 1", "--health-interval", "disable", "--health-retries", "1"];
    podman.sleeper("a", &check)?;
    ensure!(podman.code(&["healthcheck", "run", "a"])? == Some(1));
    podman.ok(&["exec", "a", "sh", "-c", "echo > /tmp/well"])?;
    ensure!(podman.code(&["healthcheck", "run", "a"])? == Some(0));
    podman.finish()
}

#[test]
fn pods_share_what_their_infra_container_has() -> Result<()> {
    let podman = Podman::new()?;
    podman.ok(&["pod", "create", "--name", "bare", "--infra=false"])?;
    podman.sleeper("member", &["--pod", "bare"])?;
    ensure!(podman.ok(&["pod", "ps", "--format", "{{.Name}} {{.Status}}"])? == "bare Running");
    podman.ok(&["pod", "kill", "bare"])?;
    podman.await_state("member", "exited")?;
    podman.ok(&["pod", "rm", "--force", "bare"])?;
    let infra = ["--infra-image", "localhost/box", "--infra-command", "sleep 1000"];
    podman.ok(&[&["pod", "create", "--name", "pod", "--network", "none"], &infra[..]].concat())?;
    for name in ["one", "two"] {
        podman.ok(&["run", "-d", "--name", name, "--pod", "pod", "localhost/box", "sleep", "1000"])?;
    }
    for namespace in ["net", "ipc", "uts"] {
        let of = |name: &str| podman.ok(&["exec", name, "ls", "-l", &format!("/proc/self/ns/{namespace}")]);
        let last = |text: String| text.split(' ').next_back().unwrap_or_default().to_owned();
        let (one, two) = (last(of("one")?), last(of("two")?));
        ensure!(one == two && one.starts_with(namespace), "{namespace}: {one} {two}");
    }
    let stats = podman.ok(&["pod", "stats", "--no-stream", "--format", "{{.Name}}", "pod"])?;
    ensure!(stats.contains("one") && stats.contains("two"), "{stats}");
    podman.ok(&["pod", "pause", "pod"])?;
    podman.await_state("one", "paused")?;
    podman.ok(&["pod", "unpause", "pod"])?;
    podman.ok(&["pod", "stop", "--time", "0", "pod"])?;
    podman.await_state("one", "exited")?;
    podman.ok(&["pod", "start", "pod"])?;
    podman.await_state("two", "running")?;
    podman.ok(&["pod", "rm", "--force", "--time", "0", "pod"])?;
    podman.finish()
}
