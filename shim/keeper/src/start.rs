//! The `start` action, and what it starts: from containerd's call to a serving keeper (SHIM-OUT-*, SHIM-SOCK-*).

use crate::binary::{self, NAME};
use crate::bootstrap::Bootstrap;
use crate::guardian::{Guardian, Launch};
use crate::layout::{GROUPING_VARIABLE, Layout};
use crate::options::{Grouping, Options};
use crate::prepare::{self, NOFILE_VARIABLE};
use containerd_shim::Flags;
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CoreSchedulingScope, create_core_scheduling_cookie};
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::error::Kind;
use std::error::Error;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a new keeper may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// The action of a guardian that was another program until now.
pub(crate) const RENEWED: &str = "renewed";
/// The action of a guardian that a living keeper starts.
pub(crate) const ADOPT: &str = "adopt";
/// Set by a client that wants no two pods to share a processor core at the same time (SHIM-CMD-10).
const SCHED_CORE: &str = "SCHED_CORE";
/// The group's keeper: found or started. Returns what goes to standard output.
pub(crate) fn start(flags: &Flags) -> Result<Vec<u8>, Box<dyn Error>> {
    let bootstrap = Bootstrap::read(flags)?;
    let options = Options::parse(bootstrap.options.as_ref())?;
    let grouping = if grouping() == Grouping::Pod { Grouping::Pod } else { options.grouping };
    let layout = layout(flags, grouping)?;
    layout.make()?;
    let socket = layout.socket()?;
    let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(layout.lock())?;
    flock(&lock, FlockOperation::LockExclusive)?;
    if !bootstrap.events.is_empty() {
        replace(&layout.events_address(), &bootstrap.events)?;
    }
    let address = format!("unix://{}", socket.display());
    let end = Instant::now() + PATIENCE;
    loop {
        if !answers(&socket) {
            let debug = bootstrap.debug;
            spawn(&Plan { flags, debug, options: &options, grouping, layout: &layout, socket: &socket })?;
        }
        match greet(&address, &flags.id) {
            Ok(()) => break,
            // It was about to end when we found it.
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(error),
        }
    }
    if !bootstrap.events.is_empty() {
        // The bundle is our working directory (SHIM-CMD-06). containerd 1.6 finds us by this file after its restart.
        replace(Path::new("address"), &address)?;
    }
    Ok(bootstrap.answer(&address)?)
}

/// Writes a small file so that it is never seen half-written.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

/// Where the keeper of this call lives. One for each client and namespace, or one for each sandbox.
fn layout(flags: &Flags, grouping: Grouping) -> Result<Layout, Box<dyn Error>> {
    if flags.namespace.is_empty() {
        return Err("-namespace must not be empty".into());
    }
    let group = match grouping {
        Grouping::Pod => group_of_bundle().unwrap_or_else(|| flags.id.clone()),
        Grouping::Node => "node".into(),
    };
    Ok(Layout::of(&Layout::state_from_env(), &flags.address, &flags.namespace, &group))
}

/// Where the keeper of a bundle made earlier lives. The bundle says so itself, whatever the settings are today; it is
/// `<parent of the working directory>/<id>` (SHIM-DEL-01b).
pub(crate) fn layout_of_bundle(flags: &Flags) -> Result<Layout, Box<dyn Error>> {
    let bundle = Path::new("..").join(&flags.id);
    let read = |name: &str| std::fs::read_to_string(bundle.join(name)).ok();
    let bootstrap =
        read("bootstrap.json").and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    let address =
        bootstrap.and_then(|json| Some(json["address"].as_str()?.to_owned())).or_else(|| read("address"));
    let socket = address.as_deref().and_then(|address| address.trim().strip_prefix("unix://"));
    match socket.map(Path::new).filter(|path| path.ends_with("sock")).and_then(Path::parent) {
        Some(root) if root.is_absolute() => Ok(Layout::at(root)),
        _ => layout(flags, grouping()),
    }
}

/// As the environment says; it is the same in all of our processes. A domain of cores is a keeper's, with all its containers:
/// who wants one for each pod gets a keeper for each pod.
pub(crate) fn grouping() -> Grouping {
    match std::env::var(GROUPING_VARIABLE).as_deref() {
        Ok("pod") => Grouping::Pod,
        _ if wants_own_cores() => Grouping::Pod,
        _ => Grouping::Node,
    }
}

fn wants_own_cores() -> bool {
    std::env::var_os(SCHED_CORE).is_some_and(|value| !value.is_empty())
}

/// All that we start from now on shares cores with nobody else (PR_SCHED_CORE, prctl(2)).
fn own_cores() -> Result<(), Box<dyn Error>> {
    let us = rustix::process::getpid();
    match create_core_scheduling_cookie(us, CoreSchedulingScope::ThreadGroup) {
        // Nothing shares a core on this machine.
        Ok(()) | Err(Errno::NODEV) => Ok(()),
        Err(Errno::INVAL) => Err(format!(
            "{SCHED_CORE} is set, but this kernel has no core scheduling (CONFIG_SCHED_CORE); unset it in containerd's configuration"
        )
        .into()),
        Err(error) => Err(format!("{SCHED_CORE}: make a core scheduling domain: {error}").into()),
    }
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

/// A keeper that is to be started.
struct Plan<'a> {
    flags: &'a Flags,
    debug: bool,
    options: &'a Options,
    grouping: Grouping,
    layout: &'a Layout,
    socket: &'a Path,
}

/// Makes the listener here, so that the address answers connects at once (SHIM-SOCK-04), and starts a guardian on it.
fn spawn(plan: &Plan<'_>) -> Result<(), Box<dyn Error>> {
    match std::fs::remove_file(plan.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    if !plan.options.shim_cgroup.is_empty() {
        enter(&plan.options.shim_cgroup)?;
    }
    if wants_own_cores() {
        own_cores()?;
    }
    let listener = UnixListener::bind(plan.socket)?;
    std::fs::set_permissions(plan.socket, Permissions::from_mode(0o600))?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(plan.layout.log())?;
    let mut command = command(Path::new(binary::OURS), plan.flags, plan.debug);
    command
        .arg("guardian")
        .arg(plan.layout.root())
        .current_dir("/")
        .env(binary::VARIABLE, binary::started())
        .env(GROUPING_VARIABLE, if plan.grouping == Grouping::Pod { "pod" } else { "node" })
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(log.try_clone()?)
        .stderr(log);
    command.spawn()?;
    Ok(())
}

/// A program of ours, with the same flags.
fn command(program: &Path, flags: &Flags, debug: bool) -> Command {
    let mut command = Command::new(program);
    command.arg0(NAME).args(["-namespace", &flags.namespace, "-address", &flags.address, "-id", &flags.id]);
    if debug {
        command.arg("-debug");
    }
    command
}

/// Guardian and keeper are born where we are (SHIM-PROC-04).
fn enter(cgroup: &str) -> Result<(), Box<dyn Error>> {
    let group = match Cgroup::open(cgroup) {
        Err(error) if error.kind() == Kind::NotFound => Cgroup::create(cgroup, None)?,
        found => found?,
    };
    Ok(group.enter()?)
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

/// What a guardian's standard input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The listener: it starts a keeper.
    Start,
    /// The socket of a keeper whose guardian died.
    Keeper,
    /// The state of the program that this process was until now.
    Former,
}

/// What a guardian starts.
#[derive(Debug)]
struct Family {
    flags: Flags,
    root: PathBuf,
    /// Value of [`NOFILE_VARIABLE`].
    nofile: Option<OsString>,
}

impl Family {
    fn command(&self, program: &Path, action: &str) -> Command {
        let mut command = command(program, &self.flags, self.flags.debug);
        command.arg(action).arg(&self.root);
        if let Some(nofile) = &self.nofile {
            command.env(NOFILE_VARIABLE, nofile);
        }
        command
    }
}

impl Launch for Family {
    fn keeper(&self, program: &Path) -> Command {
        self.command(program, "serve")
    }

    fn renewed(&self, program: &Path) -> Command {
        self.command(program, RENEWED)
    }
}

/// The guardian process.
pub(crate) fn guardian(flags: Flags, root: PathBuf, origin: Origin) -> Result<(), Box<dyn Error>> {
    let mut family = Family { flags, root, nofile: std::env::var_os(NOFILE_VARIABLE) };
    if origin != Origin::Former {
        close_inherited()?;
        rustix::process::setsid()?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    }
    let input = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    // Limits are the ones that the first guardian has set.
    let guardian = match origin {
        Origin::Keeper => Guardian::adopt(Box::new(family), input)?,
        Origin::Former => Guardian::renewed(Box::new(family), input)?,
        Origin::Start => {
            let limits = getrlimit(Resource::Nofile);
            let text = |value: Option<u64>| value.unwrap_or(u64::MAX).to_string();
            family.nofile = Some(format!("{}:{}", text(limits.current), text(limits.maximum)).into());
            // Descriptors are what we live on.
            setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits })?;
            Guardian::new(Box::new(family), input)?
        }
    };
    Ok(guardian.run()?)
}

/// Starts a guardian for a living keeper; standard output and error are the keeper's, which is the log. It is the keeper's own
/// program, which serves; `path` is where later keepers come from.
pub(crate) fn another_guardian(
    flags: &Flags,
    root: &Path,
    path: &Path,
    socket: OwnedFd,
) -> io::Result<Child> {
    let mut command = command(Path::new(binary::OURS), flags, flags.debug);
    command.arg(ADOPT).arg(root).env(binary::VARIABLE, path);
    command.current_dir("/").stdin(Stdio::from(socket)).spawn()
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
