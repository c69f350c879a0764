//! A bundle with busybox and a state directory of its own; the end of each test looks for what was left.

use serde_json::{Value, json};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) struct Rig {
    dir: tempfile::TempDir,
    group: String,
}

impl Rig {
    /// A bundle that runs `args`.
    pub(crate) fn new(args: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("slipway-oci-").tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        for name in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
            fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for name in [
            "sh", "cat", "true", "false", "sleep", "echo", "id", "tty", "ls", "stty", "kill", "pwd", "env",
            "grep",
        ] {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name)).unwrap();
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let rig = Self { dir, group: format!("/slipway-oci-test-{}-{number}", std::process::id()) };
        rig.configure(|config| config["process"]["args"] = json!(args));
        rig
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn group(&self) -> &str {
        &self.group
    }

    /// Writes config.json, changed.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Value)) {
        let path = self.path("config.json");
        let mut config = fs::read(&path)
            .map_or_else(|_| config(&self.group), |text| serde_json::from_slice(&text).unwrap());
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    /// The binary with our root, not started yet.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slipway-oci"));
        command
            .arg("--root")
            .arg(self.path("state"))
            .args(words)
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end. Its output goes to files: a container keeps what it inherits, and must not keep us.
    pub(crate) fn run(&self, words: &[&str]) -> Output {
        output(&mut self.command(words))
    }

    /// Runs a command that must succeed; what it wrote.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail with this code; what it said.
    pub(crate) fn fails(&self, code: i32, words: &[&str]) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.ok(&["state", id])).unwrap()
    }

    pub(crate) fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().to_owned()
    }

    pub(crate) fn await_status(&self, id: &str, status: &str) {
        until(&format!("{id} is {status}"), || self.status(id) == status);
    }

    /// No container, group or process is left.
    pub(crate) fn finish(self) {
        let left: Vec<_> =
            fs::read_dir(self.path("state")).into_iter().flatten().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "state is left: {left:?}");
        let groups = self.groups();
        assert!(groups.is_empty(), "groups are left: {groups:?}");
        until("every process of the bundle has ended", || self.processes().is_empty());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "mounts are left");
    }

    /// Directories of our control group in all hierarchies.
    fn groups(&self) -> Vec<PathBuf> {
        let name = self.group.trim_start_matches('/');
        let top = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(top).into_iter().flatten().flatten().map(|e| e.path());
        hierarchies.chain([top.to_owned()]).map(|h| h.join(name)).filter(|dir| dir.exists()).collect()
    }

    /// Processes that have our state directory in their command line: our own, and children not yet through execve.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let state = self.path("state");
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let ours = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(state.to_str().unwrap())
        };
        pids.filter(ours).collect()
    }
}

/// Waits for something that happens soon.
pub(crate) fn until(what: &str, happened: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn output(command: &mut Command) -> Output {
    let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let status = command.stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap()).status().unwrap();
    let text = |file: &mut fs::File| {
        use std::io::{Read, Seek};
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    Output { status, stdout: text(&mut out), stderr: text(&mut err) }
}

/// Starts a command in a process group of its own, so that nothing of the test's terminal reaches it.
pub(crate) fn background(command: &mut Command) -> std::process::Child {
    command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn config(group: &str) -> Value {
    let capabilities = json!(["CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"]);
    json!({
        "ociVersion": "1.2.0",
        "hostname": "oci",
        "annotations": {"org.example.one": "1"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"]}
        ],
        "linux": {
            "cgroupsPath": group,
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}, {"type": "cgroup"}
            ]
        }
    })
}
