//! A keeper of its own for each test: temporary state, own control groups, and a check that nothing is left.

use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest, StartRequest, StateRequest,
    WaitRequest,
};
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::TaskClient;
use cri_proto::keeper::keeper_ttrpc::KeeperClient;
use cri_proto::keeper::{InfoRequest, InfoResponse, ListRequest, TaskInfo, WaitTaskRequest};
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use ttrpc::context::{Context, with_duration};

pub const BINARY: &str = env!("CARGO_BIN_EXE_containerd-shim-slipway-v1");
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Long enough for a loaded machine, short enough to end a test that hangs.
pub fn soon() -> Context {
    with_duration(Duration::from_secs(120))
}

pub struct Rig {
    dir: tempfile::TempDir,
    /// What its `start` action is of, and new keepers.
    pub binary: PathBuf,
    pub group: String,
    address: String,
    pub guardian: i32,
    runtime: tokio::runtime::Runtime,
    tasks: TaskClient,
    sandboxes: SandboxClient,
    keeper: KeeperClient,
}

impl Rig {
    pub fn new() -> Self {
        Self::with_events("")
    }

    /// A keeper whose events go to this socket.
    pub fn with_events(socket: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("slk").tempdir().unwrap();
        Self::assemble(dir, BINARY.into(), socket)
    }

    /// A keeper of a program that is installed for it alone, and can be replaced.
    pub fn installed(socket: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("slk").tempdir().unwrap();
        let binary = dir.path().join("containerd-shim-slipway-v1");
        copy_binary(&binary);
        Self::assemble(dir, binary, socket)
    }

    fn assemble(dir: tempfile::TempDir, binary: PathBuf, socket: &str) -> Self {
        let group = format!("slipway-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let start = shim_command(&binary, dir.path(), "node", "start").env("TTRPC_ADDRESS", socket).output();
        let output = start.unwrap();
        let address = address_of(&output);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(ttrpc::r#async::Client::connect(&address)).unwrap();
        let mut rig = Self {
            dir,
            binary,
            group,
            address,
            guardian: 0,
            runtime,
            tasks: TaskClient::new(client.clone()),
            sandboxes: SandboxClient::new(client.clone()),
            keeper: KeeperClient::new(client),
        };
        rig.guardian = rig.info().guardian_pid;
        rig
    }

    /// A new connection, as a client makes after its keeper was killed.
    pub fn reconnect(&mut self) {
        let client = self.runtime.block_on(ttrpc::r#async::Client::connect(&self.address)).unwrap();
        self.tasks = TaskClient::new(client.clone());
        self.sandboxes = SandboxClient::new(client.clone());
        self.keeper = KeeperClient::new(client);
    }

    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime.spawn(work)
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn tasks(&self) -> &TaskClient {
        &self.tasks
    }

    pub fn sandboxes(&self) -> &SandboxClient {
        &self.sandboxes
    }

    pub fn keeper(&self) -> &KeeperClient {
        &self.keeper
    }

    pub fn info(&self) -> InfoResponse {
        self.run(self.keeper.info(soon(), &InfoRequest::new())).unwrap()
    }

    pub fn list(&self) -> Vec<TaskInfo> {
        self.run(self.keeper.list(soon(), &ListRequest::new())).unwrap().tasks
    }

    /// Kills the keeper and returns once its successor answers.
    pub fn kill_keeper(&mut self) {
        let pid = self.info().keeper_pid;
        kill(pid, 9);
        // The listener never closes: this connect is answered by the next keeper.
        self.reconnect();
        assert_ne!(self.info().keeper_pid, pid);
    }

    pub fn shim(&self, id: &str, action: &str) -> Output {
        shim_command(&self.binary, self.dir.path(), id, action).output().unwrap()
    }

    pub fn bundle(&self, id: &str, args: &[&str]) -> Bundle {
        let path = self.dir.path().join("bundles").join(id);
        let bin = path.join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        for dir in ["proc", "dev", "sys", "tmp"] {
            fs::create_dir_all(path.join("rootfs").join(dir)).unwrap();
        }
        fs::copy(busybox(), bin.join("busybox")).unwrap();
        fs::set_permissions(bin.join("busybox"), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["sh", "sleep", "true", "cat", "echo", "kill", "head", "tr", "seq", "id", "stty", "grep"]
        {
            let _ = std::os::unix::fs::symlink("busybox", bin.join(name));
        }
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            ],
            "linux": {
                "cgroupsPath": format!("/{}/{id}", self.group),
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            },
        });
        Bundle { id: id.into(), path, spec, stdout: "cri-log:".into() }
    }

    pub fn create(&self, bundle: &Bundle) -> ttrpc::Result<u32> {
        fs::write(bundle.path.join("config.json"), bundle.spec.to_string()).unwrap();
        let request = CreateTaskRequest {
            id: bundle.id.clone(),
            bundle: bundle.path.to_str().unwrap().into(),
            terminal: bundle.spec["process"]["terminal"] == true,
            stdout: bundle.stdout.clone(),
            ..Default::default()
        };
        self.run(self.tasks.create(soon(), &request)).map(|answer| answer.pid)
    }

    pub fn start(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let request = StartRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.run(self.tasks.start(soon(), &request)).map(|answer| answer.pid)
    }

    pub fn wait(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let request = WaitRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.run(self.tasks.wait(soon(), &request)).map(|answer| answer.exit_status)
    }

    pub fn wait_task(&self, id: &str) -> TaskInfo {
        let request = WaitTaskRequest { id: id.into(), ..Default::default() };
        self.run(self.keeper.wait_task(soon(), &request)).unwrap()
    }

    pub fn kill(&self, id: &str, exec_id: &str, signal: u32, all: bool) -> ttrpc::Result<()> {
        let request =
            KillRequest { id: id.into(), exec_id: exec_id.into(), signal, all, ..Default::default() };
        self.run(self.tasks.kill(soon(), &request)).map(drop)
    }

    pub fn delete(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let request = DeleteRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.run(self.tasks.delete(soon(), &request)).map(|answer| answer.exit_status)
    }

    pub fn state(&self, id: &str, exec_id: &str) -> ttrpc::Result<String> {
        let request = StateRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.run(self.tasks.state(soon(), &request))
            .map(|answer| format!("{:?}", answer.status.enum_value_or_default()))
    }

    pub fn exec(&self, id: &str, exec_id: &str, args: &[&str], stdout: &str) -> ttrpc::Result<()> {
        let process = json!({"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/"});
        self.exec_process(id, exec_id, &process, "", stdout, "")
    }

    pub fn exec_process(
        &self,
        id: &str,
        exec_id: &str,
        process: &Value,
        stdin: &str,
        stdout: &str,
        stderr: &str,
    ) -> ttrpc::Result<()> {
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: process.to_string().into_bytes(),
            ..Any::default()
        };
        let request = ExecProcessRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            terminal: process["terminal"] == true,
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
            spec: Some(spec).into(),
            ..Default::default()
        };
        self.run(self.tasks.exec(soon(), &request)).map(drop)
    }

    pub fn fifo(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        path.to_str().unwrap().into()
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("{id}.log"))
    }

    /// Everything this test's containers could have left in the control group file systems.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut roots: Vec<_> = fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_dir())
            .collect();
        roots.push("/sys/fs/cgroup".into());
        roots.into_iter().map(|root| root.join(&self.group)).filter(|path| path.exists()).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let left: Vec<_> = self.list().into_iter().map(|task| task.id).collect();
            assert_eq!(left, Vec::<String>::new(), "tasks are left");
            for parent in self.cgroups() {
                // The parent is the test's; that it can be removed shows that it is empty.
                fs::remove_dir(&parent)
                    .unwrap_or_else(|error| panic!("{} is not empty: {error}", parent.display()));
            }
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let dir = self.dir.path().to_str().unwrap();
            assert!(!mounts.contains(dir), "mounts are left below {dir}");
            let root = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
            for state in root.filter(|path| path.join("tasks").is_dir()) {
                for kind in ["tasks", "execs", "sandboxes"] {
                    let left: Vec<_> = fs::read_dir(state.join(kind)).unwrap().collect();
                    assert!(left.is_empty(), "records are left: {left:?}");
                }
            }
        }
        end_keeper(self);
    }
}

/// Ends guardian and keeper by their pids; after a failed test the containers too.
fn end_keeper(rig: &Rig) {
    let keeper = rig.run(rig.keeper.info(soon(), &InfoRequest::new())).map_or(0, |info| info.keeper_pid);
    if std::thread::panicking() {
        for log in fs::read_dir(rig.dir.path()).into_iter().flatten().flatten() {
            if let Ok(text) = fs::read_to_string(log.path().join("log")) {
                eprintln!("--- keeper's log\n{text}---");
            }
        }
        for procs in rig.cgroups().iter().flat_map(|parent| walk(parent)) {
            for pid in
                fs::read_to_string(procs).unwrap_or_default().lines().filter_map(|line| line.parse().ok())
            {
                kill(pid, 9);
            }
        }
        kill_both(rig.guardian, keeper);
        // Other shims that it started.
        let dir = rig.dir.path().as_os_str().as_encoded_bytes();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if let Some(pid) = pid.filter(|_| command.windows(dir.len()).any(|part| part == dir)) {
                kill(pid, 9);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
        for parent in rig.cgroups() {
            for procs in walk(&parent) {
                let _ = fs::remove_dir(procs.parent().unwrap());
            }
        }
    } else if rig.guardian != 0 && Path::new(&format!("/proc/{}", rig.guardian)).exists() {
        kill(rig.guardian, 15);
        wait_until("the end of guardian and keeper", || {
            [rig.guardian, keeper].iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        });
    }
}

/// cgroup.procs of a group and all below, deepest first.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .flat_map(|entry| walk(&entry.path()))
        .collect();
    all.push(dir.join("cgroup.procs"));
    all
}

pub struct Bundle {
    pub id: String,
    pub path: PathBuf,
    pub spec: Value,
    pub stdout: String,
}

/// By another process: while this one has a file open for writing, a child that another thread is about to make has it too,
/// and nobody can execute it (ETXTBSY).
pub fn copy_binary(to: &Path) {
    assert!(Command::new("cp").arg(BINARY).arg(to).status().unwrap().success());
}

/// Runs an action as containerd does.
pub fn shim(state: &Path, id: &str, action: &str) -> Output {
    shim_command(Path::new(BINARY), state, id, action).output().unwrap()
}

fn shim_command(binary: &Path, state: &Path, id: &str, action: &str) -> Command {
    let mut command = Command::new(binary);
    command
        .args(["-namespace", "test", "-address", "/nowhere.sock", "-id", id, action])
        .env("SLIPWAY_KEEPER_STATE", state)
        .env_remove("TTRPC_ADDRESS")
        .env("MAX_SHIM_VERSION", "2")
        .current_dir(state)
        .stdin(Stdio::null());
    command
}

pub fn address_of(output: &Output) -> String {
    assert!(output.status.success(), "start: {output:?}");
    assert!(output.stderr.is_empty(), "containerd reads stderr as the answer (SHIM-OUT-06): {output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["version"], &answer["protocol"]), (&json!(3), &json!("ttrpc")));
    answer["address"].as_str().unwrap().to_owned()
}

pub fn kill(pid: i32, signal: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid)
        && let Some(signal) = rustix::process::Signal::from_named_raw(signal)
    {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Each would start the other anew: the guardian is held while the keeper dies.
pub fn kill_both(guardian: i32, keeper: i32) {
    for (pid, signal) in [(guardian, 19), (keeper, 9), (guardian, 9)] {
        kill(pid, signal);
    }
    wait_until("the end of keeper and guardian", || {
        [guardian, keeper].iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
}

pub fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> ttrpc::Code {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        other => panic!("no status: {other:?}"),
    }
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Contents of the F and P lines of one stream; pieces joined as readers do (CRI-LOG-05).
pub fn log_lines(path: &Path, stream: &str) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), String::new());
    for entry in fs::read_to_string(path).unwrap().lines() {
        let parts: Vec<_> = entry.splitn(4, ' ').collect();
        assert!(
            parts.len() == 4 && parts[0].ends_with('Z') && "FP".contains(parts[2]),
            "torn line {entry:?}"
        );
        if parts[1] == stream {
            line.push_str(parts[3]);
            if parts[2] == "F" {
                lines.push(std::mem::take(&mut line));
            }
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

fn busybox() -> PathBuf {
    ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .expect("busybox is needed: apt-get install busybox-static")
}
