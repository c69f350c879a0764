//! Who takes part: each makes, starts, awaits and removes the same container of the same bundle.

use crate::floor::Floor;
use serde_json::{Value, json};
use slipway_runtime::container::{self, CreateRequest, Created, Options, Stdio};
use slipway_runtime::rootfs::Rootfs;
use slipway_runtime::sys::process;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long one life and its parts took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Life {
    pub create: Duration,
    pub start: Duration,
    pub wait: Duration,
    pub delete: Duration,
    pub whole: Duration,
}

/// One bundle on the disk: configuration and root filesystem.
pub struct Bundle {
    pub dir: PathBuf,
    pub config: Value,
}

impl Bundle {
    /// `rootfs` is shared by all bundles.
    pub fn new(dir: PathBuf, config: &Value) -> Self {
        fs::create_dir_all(&dir).unwrap();
        let bundle = Self { dir, config: config.clone() };
        bundle.write();
        bundle
    }

    pub fn write(&self) {
        fs::write(self.dir.join("config.json"), self.config.to_string()).unwrap();
    }

    pub fn rootfs(&self) -> PathBuf {
        PathBuf::from(self.config["root"]["path"].as_str().unwrap())
    }
}

pub enum Peer {
    Floor(Box<Floor>),
    InProcess,
    Program { name: String, path: PathBuf, state: PathBuf },
}

impl Peer {
    pub fn name(&self) -> &str {
        match self {
            Self::Floor(_) => "floor",
            Self::InProcess => "in process",
            Self::Program { name, .. } => name,
        }
    }

    pub fn is_program(&self) -> bool {
        matches!(self, Self::Program { .. })
    }

    /// One life of the bundle's container; an error if its command did not end with 0.
    pub fn life(&self, bundle: &Bundle) -> io::Result<Life> {
        match self {
            Self::Floor(floor) => {
                let begun = Instant::now();
                floor.life()?;
                Ok(Life { whole: begun.elapsed(), ..Life::default() })
            }
            Self::InProcess => in_process(bundle),
            Self::Program { .. } => self.by_commands(bundle),
        }
    }

    fn by_commands(&self, bundle: &Bundle) -> io::Result<Life> {
        let pid_file = bundle.dir.join("pid");
        let dir = bundle.dir.to_str().unwrap();
        let mut watch = Watch::new();
        let mut life = Life::default();
        self.call(&["create", "--bundle", dir, "--pid-file", pid_file.to_str().unwrap(), "bench"])?;
        life.create = watch.lap();
        let pid: i32 = fs::read_to_string(&pid_file)?.trim().parse().map_err(io::Error::other)?;
        let started = self.call(&["start", "bench"]);
        life.start = watch.lap();
        let status = if started.is_ok() { reap(pid) } else { Ok(-1) };
        life.wait = watch.lap();
        self.call(&["delete", "--force", "bench"])?;
        life.delete = watch.lap();
        life.whole = watch.total();
        started?;
        match status? {
            0 => Ok(life),
            other => Err(io::Error::other(format!("/bin/true ended with {other}"))),
        }
    }

    /// The program's own `run`.
    pub fn run(&self, bundle: &Bundle) -> io::Result<Duration> {
        let begun = Instant::now();
        self.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), "bench"])?;
        Ok(begun.elapsed())
    }

    /// The words of a call, for whoever wants to start it in another way.
    pub fn words(&self, words: &[&str]) -> Vec<String> {
        let Self::Program { path, state, .. } = self else { return Vec::new() };
        let own = [path.to_str().unwrap(), "--root", state.to_str().unwrap()];
        own.iter().chain(words).map(|word| (*word).to_owned()).collect()
    }

    fn call(&self, words: &[&str]) -> io::Result<()> {
        let words = self.words(words);
        // Files, not pipes: the container keeps what it inherits.
        let log = self.log();
        let file = fs::File::create(&log)?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(std::process::Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let status = command.status()?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read_to_string(log).unwrap_or_default();
        Err(io::Error::other(format!("{}: {status}: {}", words.join(" "), said.trim())))
    }

    fn log(&self) -> PathBuf {
        let Self::Program { state, .. } = self else { return PathBuf::from("/dev/null") };
        state.with_extension("log")
    }
}

fn in_process(bundle: &Bundle) -> io::Result<Life> {
    let spec = serde_json::from_value(bundle.config.clone()).map_err(io::Error::other)?;
    let request = CreateRequest {
        id: "bench".to_owned(),
        bundle: bundle.dir.clone(),
        spec,
        rootfs: Rootfs::Directory(bundle.rootfs()),
        join: Vec::new(),
        stdio: Stdio::default(),
        options: Options::default(),
    };
    let mut watch = Watch::new();
    let Created { pidfd, cgroup, start, .. } = container::create(request).map_err(io::Error::other)?;
    let create = watch.lap();
    let started = start.start();
    let start = watch.lap();
    let status = process::reap(&pidfd)?;
    let wait = watch.lap();
    cgroup.remove(Duration::from_secs(5)).map_err(io::Error::other)?;
    let delete = watch.lap();
    started.map_err(io::Error::other)?;
    match status {
        0 => Ok(Life { create, start, wait, delete, whole: watch.total() }),
        other => Err(io::Error::other(format!("/bin/true ended with {other}"))),
    }
}

/// Waits for a child we inherited, and for whatever else was left to us on the way.
fn reap(pid: i32) -> io::Result<i32> {
    loop {
        let mut status = 0;
        // SAFETY: the status is ours.
        match unsafe { libc::waitpid(-1, &raw mut status, 0) } {
            -1 => return Err(io::Error::last_os_error()),
            ended if ended == pid => return Ok(status),
            _ => {}
        }
    }
}

struct Watch {
    begun: Instant,
    last: Instant,
}

impl Watch {
    fn new() -> Self {
        let now = Instant::now();
        Self { begun: now, last: now }
    }

    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.last, now)
    }

    fn total(&self) -> Duration {
        self.last - self.begun
    }
}

/// The configuration that all run: six namespaces, the default profile, three limits, /bin/true.
pub fn config(rootfs: &Path, network: bool) -> Value {
    let mut spec = crate::common::spec(&["/bin/true"]);
    let capabilities = serde_json::from_value(json!(crate::common::USUAL)).unwrap();
    let profile = slipway_runtime::seccomp::default_profile(&capabilities);
    spec["linux"]["seccomp"] = serde_json::to_value(profile).unwrap();
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "cgroup"}));
    namespaces.retain(|namespace| network || namespace["type"] != "network");
    spec["linux"]["cgroupsPath"] = json!(format!("/slipway-bench-{}", std::process::id()));
    spec["linux"]["resources"] = json!({
        "memory": {"limit": 268_435_456}, "cpu": {"shares": 512, "quota": 50_000, "period": 100_000}, "pids": {"limit": 100}
    });
    spec["root"] = json!({"path": rootfs, "readonly": false});
    // The oldest form that all of them read: crun before 1.9 refuses a newer one.
    spec["ociVersion"] = json!("1.0.2");
    spec["process"]["terminal"] = json!(false);
    // crun and runc refuse the group tree of a hybrid host in some versions; nobody's time depends on it.
    spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    if !network {
        // sysfs belongs to whoever owns the network namespace.
        for mount in spec["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/sys" {
                *mount = json!({"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"]});
            }
        }
    }
    spec
}
