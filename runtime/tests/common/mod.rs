//! What the tests of this crate share: a root filesystem with busybox, a Kubernetes-like spec, one way to run it.

#![allow(dead_code, unreachable_pub, missing_debug_implementations, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};
use slipway_runtime::Result;
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{self, CreateRequest, Created, ExecRequest, Options, Stdio, Subject};
use slipway_runtime::idmap::{IdMap, IdMappings};
use slipway_runtime::rootfs::{Overlay, Rootfs};
use slipway_runtime::sandbox::NamespaceKind;
use slipway_runtime::sys::{process, signal};
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A directory tree that goes away with its value.
pub struct Rig {
    pub dir: tempfile::TempDir,
    /// Maps of the root filesystem's layers.
    pub idmap: Option<IdMappings>,
}

/// What a container wrote and how it ended (signals negative).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub out: String,
    pub status: i32,
}

impl Rig {
    /// A lower layer with busybox and its links, and places for upper and work.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lower = dir.path().join("lower");
        for name in ["bin", "etc", "tmp", "root", "usr/bin", "proc", "sys", "dev"] {
            fs::create_dir_all(lower.join(name)).unwrap();
        }
        let busybox = if Path::new("/bin/busybox").exists() { "/bin/busybox" } else { "/usr/bin/busybox" };
        copy_program(Path::new(busybox), &lower.join("bin/busybox"));
        for name in [
            "sh", "cat", "true", "false", "ls", "id", "stat", "sleep", "tty", "echo", "mount", "touch",
            "stty",
        ] {
            std::os::unix::fs::symlink("busybox", lower.join("bin").join(name)).unwrap();
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/srv/www:/bin/sh\n";
        fs::write(lower.join("etc/passwd"), passwd).unwrap();
        fs::create_dir_all(dir.path().join("upper")).unwrap();
        fs::create_dir_all(dir.path().join("work")).unwrap();
        fs::create_dir_all(dir.path().join("extra")).unwrap();
        Self { dir, idmap: None }
    }

    /// The same for containers in a user namespace whose root is this user of the host.
    pub fn mapped(root: u32) -> Self {
        let rig = Self { idmap: Some(mappings(root)), ..Self::new() };
        std::os::unix::fs::chown(rig.path("upper"), Some(root), Some(root)).unwrap();
        for name in ["grep", "wc", "head", "readlink", "chown", "mknod", "umount", "hostname"] {
            std::os::unix::fs::symlink("busybox", rig.path("lower/bin").join(name)).unwrap();
        }
        rig
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn overlay(&self) -> Rootfs {
        Rootfs::Overlay(Overlay {
            lower: vec![self.path("extra"), self.path("lower")],
            upper: Some(self.path("upper")),
            work: Some(self.path("work")),
            volatile: true,
            idmap: self.idmap.clone(),
            label: None,
        })
    }

    /// Creates up to the park.
    pub fn create(&self, spec: &Value, stdio: Stdio) -> Result<Created> {
        self.create_in(spec, stdio, Vec::new())
    }

    pub fn create_in(
        &self,
        spec: &Value,
        stdio: Stdio,
        join: Vec<(NamespaceKind, OwnedFd)>,
    ) -> Result<Created> {
        container::create(self.request(spec, stdio, join))
    }

    pub fn request(&self, spec: &Value, stdio: Stdio, join: Vec<(NamespaceKind, OwnedFd)>) -> CreateRequest {
        let mut spec = spec.clone();
        if spec["linux"]["cgroupsPath"].is_null() {
            spec["linux"]["cgroupsPath"] = json!(unique_group());
        }
        let spec = serde_json::from_value(spec).unwrap();
        let bundle = self.dir.path().to_owned();
        CreateRequest {
            id: "test".into(),
            bundle,
            spec,
            rootfs: self.overlay(),
            join,
            stdio,
            options: Options::default(),
        }
    }

    /// Runs `sh -c script` in a container to its end.
    pub fn sh(&self, change: impl FnOnce(&mut Value), script: &str) -> Outcome {
        let mut spec = spec(&["sh", "-c", script]);
        change(&mut spec);
        self.run(&spec).unwrap()
    }

    pub fn run(&self, spec: &Value) -> Result<Outcome> {
        self.run_in(spec, Vec::new())
    }

    pub fn run_in(&self, spec: &Value, join: Vec<(NamespaceKind, OwnedFd)>) -> Result<Outcome> {
        let (mut read, stdio) = piped();
        let created = self.create_in(spec, stdio, join)?;
        let started = created.start.start();
        let mut out = String::new();
        read.read_to_string(&mut out).unwrap();
        let status = finish(created);
        started?;
        Ok(Outcome { out, status })
    }
}

/// 65536 ids from `root` on.
pub fn mappings(root: u32) -> IdMappings {
    let map = vec![IdMap { container: 0, host: root, size: 65536 }];
    IdMappings { uids: map.clone(), gids: map }
}

/// Gives a spec a user namespace of its own.
pub fn in_user_namespace(spec: &mut Value, root: u32) {
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": root, "size": 65536}]);
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
}

/// Children of this process that ended and that nobody waits for: nothing may leave any. Tests run side by side, so one
/// that is gone in a while belonged to another.
pub fn zombies() -> Vec<String> {
    let mut left = dead_children();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !left.is_empty() && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        let now = dead_children();
        left.retain(|child| now.contains(child));
    }
    left
}

/// Name and pid of each.
fn dead_children() -> Vec<String> {
    let own = std::process::id().to_string();
    let dead = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (name, after) = stat.rsplit_once(") ")?;
        let mut fields = after.split(' ');
        (fields.next() == Some("Z") && fields.next() == Some(&own)).then(|| name.to_owned())
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(dead).collect()
}

/// Copies a program that is to be run. A process of its own writes it: while this one has it open for writing, another
/// test's child can inherit the descriptor, and until that child lets go execve says "text file busy".
pub fn copy_program(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").args([from, to]).status().unwrap().success());
}

/// The request for one more process in a container, with nothing special asked.
pub fn exec_in<'a>(
    created: &'a Created,
    spec: &'a Spec,
    process: &'a Process,
    exec_id: &'a str,
    stdio: Stdio,
) -> ExecRequest<'a> {
    ExecRequest {
        exec_id: Some(exec_id),
        pid: created.pid,
        pidfd: &created.pidfd,
        subject: subject(spec),
        process,
        cgroup: &created.cgroup,
        stdio,
        preserved: Vec::new(),
        no_new_keyring: false,
    }
}

/// A container by its spec, for calls that want to know it.
pub fn subject(spec: &Spec) -> Subject<'_> {
    Subject { id: "test", bundle: Path::new("/"), spec }
}

/// Standard output and error into one pipe.
pub fn piped() -> (std::io::PipeReader, Stdio) {
    let (read, write) = std::io::pipe().unwrap();
    let error = write.try_clone().unwrap();
    (read, Stdio { stdin: None, stdout: Some(write.into()), stderr: Some(error.into()) })
}

/// Reaps the process, removes the group, and makes sure it is gone.
pub fn finish(created: Created) -> i32 {
    let status = process::reap(&created.pidfd).unwrap();
    let path = created.cgroup.path();
    created.cgroup.remove(Duration::from_secs(5)).unwrap();
    assert!(Cgroup::open(&path).is_err(), "{path} is left");
    status
}

/// Ends a container that would not end by itself.
pub fn kill(created: Created) {
    signal::send(created.pidfd.as_fd(), libc::SIGKILL).unwrap();
    finish(created);
}

/// A control group no other test uses.
pub fn unique_group() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("/slipway-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Capabilities containerd gives by default.
pub const USUAL: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// What a kubelet's container looks like as an OCI spec.
pub fn spec(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "hostname": "pod-0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin", "KUBERNETES_SERVICE_HOST=10.0.0.1"],
            "cwd": "/",
            "noNewPrivileges": true,
            "oomScoreAdj": 500,
            "capabilities": {"bounding": USUAL, "effective": USUAL, "permitted": USUAL},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024}]
        },
        "root": {"path": "rootfs"},
        "mounts": mounts(),
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}
            ],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware", "/proc/absent"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/proc/absent"]
        }
    })
}

fn mounts() -> Value {
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
    ])
}

/// Adds a mount to a spec.
pub fn add_mount(spec: &mut Value, destination: &str, source: &Path, options: &[&str]) {
    let mount = json!({"destination": destination, "type": "bind", "source": source, "options": options});
    spec["mounts"].as_array_mut().unwrap().push(mount);
}
