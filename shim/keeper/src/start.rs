//! The `start` action, and what it starts: from containerd's call to a serving keeper (SHIM-OUT-*, SHIM-SOCK-*).

use crate::guardian::Guardian;
use crate::layout::{GROUPING_VARIABLE, Layout};
use crate::prepare::{self, NOFILE_VARIABLE};
use containerd_shim::Flags;
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::error::Error;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A client's bootstrap message is never longer (SHIM-BOOT-05).
const STDIN_LIMIT: u64 = 10 * 1024 * 1024;
/// How long a new keeper may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// argv[0] of what we start.
const NAME: &str = "containerd-shim-slipway-v1";

/// The group's keeper: found or started. Returns what goes to standard output.
pub(crate) fn start(flags: &Flags) -> Result<String, Box<dyn Error>> {
    // Options have no meaning for us yet, but a client may wait until they are taken.
    io::stdin().take(STDIN_LIMIT).read_to_end(&mut Vec::new())?;
    let layout = layout(flags)?;
    layout.make()?;
    let socket = layout.socket()?;
    let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(layout.lock())?;
    flock(&lock, FlockOperation::LockExclusive)?;
    if !answers(&socket) {
        spawn(flags, &layout, &socket)?;
    }
    let address = format!("unix://{}", socket.display());
    greet(&address, &flags.id)?;
    Ok(serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc"}).to_string())
}

/// Where the keeper of this call lives. One for each client and namespace, or one for each sandbox.
pub(crate) fn layout(flags: &Flags) -> Result<Layout, Box<dyn Error>> {
    if flags.namespace.is_empty() {
        return Err("-namespace must not be empty".into());
    }
    let group = if per_pod() { group_of_bundle().unwrap_or_else(|| flags.id.clone()) } else { "node".into() };
    Ok(Layout::of(&Layout::state_from_env(), &flags.address, &flags.namespace, &group))
}

/// Each pod has a keeper of its own; the environment is the same in all of our processes.
pub(crate) fn per_pod() -> bool {
    std::env::var(GROUPING_VARIABLE).is_ok_and(|grouping| grouping == "pod")
}

/// SHIM-GRP-01; the working directory is the bundle (SHIM-CMD-06).
fn group_of_bundle() -> Option<String> {
    let spec = prepare::load_spec(Path::new(".")).ok()?;
    let annotations = spec.annotations().clone().unwrap_or_default();
    annotations
        .get("io.containerd.runc.v2.group")
        .or_else(|| annotations.get("io.kubernetes.cri.sandbox-id"))
        .cloned()
}

fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// Makes the listener here, so that the address answers connects at once (SHIM-SOCK-04), and starts a guardian on it.
fn spawn(flags: &Flags, layout: &Layout, socket: &Path) -> Result<(), Box<dyn Error>> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(layout.log())?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME).args(["-namespace", &flags.namespace, "-address", &flags.address, "-id", &flags.id]);
    if flags.debug {
        command.arg("-debug");
    }
    command
        .arg("guardian")
        .arg(layout.root())
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(log.try_clone()?)
        .stderr(log);
    command.spawn()?;
    Ok(())
}

/// Tells the keeper that a client is on its way, which also shows that it serves.
fn greet(address: &str, id: &str) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let end = Instant::now() + PATIENCE;
        let client = ttrpc::r#async::Client::connect(address).await?;
        let client = containerd_shim_protos::shim_async::TaskClient::new(client);
        let request = containerd_shim_protos::api::ConnectRequest { id: id.into(), ..Default::default() };
        let context = ttrpc::context::with_duration(end.saturating_duration_since(Instant::now()));
        client.connect(context, &request).await?;
        Ok(())
    })
}

/// The guardian process; its standard input is the listener.
pub(crate) fn guardian(flags: &Flags, root: &Path) -> Result<(), Box<dyn Error>> {
    close_inherited()?;
    rustix::process::setsid()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let listener = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME).args(["-namespace", &flags.namespace, "-address", &flags.address, "-id", &flags.id]);
    if flags.debug {
        command.arg("-debug");
    }
    command.arg("serve").arg(root);
    let limits = getrlimit(Resource::Nofile);
    let text = |value: Option<u64>| value.unwrap_or(u64::MAX).to_string();
    command.env(NOFILE_VARIABLE, format!("{}:{}", text(limits.current), text(limits.maximum)));
    // Descriptors are what we live on.
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits })?;
    Guardian::new(command, listener)?.run()?;
    Ok(())
}

/// Whatever the client forgot to close on exec must not live as long as we do (SHIM-OUT-08).
fn close_inherited() -> io::Result<()> {
    let numbers: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        // The directory's own descriptor is closed already; nothing else here has opened any yet.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

/// Prints to standard output, which containerd reads to its end.
pub(crate) fn print(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}
