//! What `create` and `run` share: from a bundle to a parked child and a record of it.

use crate::bundle::{self, Bundle};
use crate::cli::Global;
use crate::fault::{self, Fault};
use crate::record::{self, Record};
use crate::store::{self, Container, Store};
use crate::{console, verified};
use anyhow::{Context, Result, bail};
use clap::Args;
use oci_spec::runtime::Spec;
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{self, CreateRequest, Created, Options, Stdio};
use slipway_runtime::plan;
use slipway_runtime::sys::{process, signal, socket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How long an undo waits for a dead process to leave its group.
const PATIENCE: Duration = Duration::from_secs(5);

/// Options of `create` and `run`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Directory with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Unix socket that receives the master side of the terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Unix socket that receives the pidfd of the container's process
    #[arg(long, value_name = "SOCKET")]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// File for the pid of the container's process
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Enter the root without pivot_root, for hosts whose root is an initramfs
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Let the container keep the caller's session keyring
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Pass on this many descriptors from 3 on (LISTEN_FDS counts as well)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Name of the container, unique on this host
    #[arg(value_name = "CONTAINER_ID")]
    pub(crate) id: String,
}

/// A created container with what only its maker holds.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) container: Container,
    pub(crate) pidfd: OwnedFd,
    /// The terminal's master, when nobody got it by a console socket.
    pub(crate) master: Option<OwnedFd>,
}

/// Makes the container up to the point where it waits for its start. On error nothing is left.
pub(crate) fn create(global: &Global, args: &CreateArgs, stays: bool) -> Result<Made> {
    store::check_id(&args.id)?;
    let bundle = Bundle::load_for(&args.bundle, &args.id, global)?;
    bundle.ignored.iter().for_each(|what| global.journal.warn(what));
    check_terminal(&bundle, args.console_socket.as_deref(), stays)?;
    let store = Store::new(global.root());
    let record = Record { no_new_keyring: args.no_new_keyring, ..record(&args.id, &bundle)? };
    // Under its own name first: that is what engines look for.
    store.must_not_have(&args.id)?;
    refuse_foreign_group(&record.cgroup)?;
    let container = store.create(record, &bundle.config)?;
    match launch(global, &container, &bundle, args) {
        Ok(created) => finish(container, created, &bundle, args),
        Err(error) => {
            let _ = container.remove();
            Err(error)
        }
    }
}

/// Whoever detaches cannot keep a terminal, and a console socket without a terminal would wait for ever.
pub(crate) fn check_terminal(bundle: &Bundle, console_socket: Option<&Path>, stays: bool) -> Result<()> {
    let terminal = bundle.process()?.terminal().unwrap_or(false);
    let refuse = |text: &str| bail!(Fault::Usage(text.to_owned()));
    match (terminal, console_socket) {
        (true, None) if !stays => {
            refuse("cannot allocate tty if slipway-oci will detach without setting console socket")
        }
        (false, Some(_)) => refuse("cannot use console socket if process.terminal is not set in config.json"),
        (true, Some(_)) if stays => refuse("cannot use console socket if slipway-oci will not detach"),
        _ => Ok(()),
    }
}

/// The intent: everything that tells what will be made, before it is made.
pub(crate) fn record(id: &str, bundle: &Bundle) -> Result<Record> {
    Ok(Record {
        version: record::VERSION,
        id: id.to_owned(),
        bundle: bundle.directory.clone(),
        rootfs: bundle.rootfs()?,
        created: OffsetDateTime::now_utc().format(&Rfc3339).context("format the time")?,
        owner: rustix::process::geteuid().as_raw(),
        cgroup: plan::cgroup_path(id, bundle.spec.linux().as_ref())?,
        pid: 0,
        start_time: 0,
        attended: container::is_attended(&bundle.spec),
        no_new_keyring: false,
        annotations: bundle.spec.annotations().clone().unwrap_or_default().into_iter().collect(),
    })
}

/// A group with processes is somebody else's: it must not get into our record, from which `delete --force` would kill.
pub(crate) fn refuse_foreign_group(path: &str) -> Result<()> {
    match Cgroup::open(path).and_then(|group| group.pids()) {
        Ok(pids) if !pids.is_empty() => {
            bail!(Fault::State(format!("control group {path} is in use: it holds processes {pids:?}")))
        }
        _ => Ok(()),
    }
}

fn launch(global: &Global, container: &Container, bundle: &Bundle, args: &CreateArgs) -> Result<Created> {
    let path = container.start_socket();
    let listener = socket::listen_at(&path).with_context(|| format!("listen on {}", path.display()))?;
    let request = CreateRequest {
        id: container.id().to_owned(),
        bundle: bundle.directory.clone(),
        spec: with_listen_fds(bundle.spec.clone()),
        rootfs: bundle.root()?,
        join: Vec::new(),
        stdio: own_streams()?,
        options: Options {
            clocked: false,
            listener: Some(listener),
            preserved: preserved(&global.inherited, args.preserve_fds),
            no_group: global.tolerates_missing_groups(),
            no_pivot: args.no_pivot,
            in_order: true,
            no_new_keyring: args.no_new_keyring,
        },
    };
    container::create(request)
        .map_err(|error| fault::launch(error, bundle.process().map_or("", bundle::command)))
}

/// Records what was made and hands out what others wait for; undoes all of it if that fails.
fn finish(mut container: Container, created: Created, bundle: &Bundle, args: &CreateArgs) -> Result<Made> {
    let Created { pid, pidfd, cgroup, pty, start, .. } = created;
    let settle = || -> Result<Option<OwnedFd>> {
        container.record.pid = pid;
        container.record.start_time =
            verified::start_time(pid).context("the container's process has ended")?;
        container.record.cgroup = cgroup.path();
        container.save_steps(&start.steps)?;
        container.save()?;
        let master = hand_over(pty, args.console_socket.as_deref())?;
        if let Some(path) = &args.pidfd_socket {
            console::send(path, &pidfd)?;
        }
        if let Some(path) = &args.pid_file {
            write_pid(path, pid)?;
        }
        Ok(master)
    };
    match settle() {
        Ok(master) => Ok(Made { container, pidfd, master }),
        Err(error) => {
            let _ = signal::send(pidfd.as_fd(), libc::SIGKILL);
            let _ = process::reap(&pidfd);
            let _ = cgroup.remove(PATIENCE);
            let _ = container.remove();
            Err(error.context(format!("bundle {}", bundle.directory.display())))
        }
    }
}

/// Sends a terminal's master to the console socket; without one it stays ours.
pub(crate) fn hand_over(pty: Option<OwnedFd>, console_socket: Option<&Path>) -> Result<Option<OwnedFd>> {
    if let (Some(master), Some(path)) = (&pty, console_socket) {
        console::send(path, master)?;
        return Ok(None);
    }
    Ok(pty)
}

/// The pid and nothing else, whole or not at all: engines wait for this file to appear.
pub(crate) fn write_pid(path: &Path, pid: i32) -> Result<()> {
    record::replace(path, pid.to_string().as_bytes())
}

/// Our own standard streams for the container's process.
pub(crate) fn own_streams() -> Result<Stdio> {
    let copy =
        |fd: std::os::fd::BorrowedFd<'_>| process::above_streams(fd).context("pass on a standard stream");
    Ok(Stdio {
        stdin: Some(copy(rustix::stdio::stdin())?),
        stdout: Some(copy(rustix::stdio::stdout())?),
        stderr: Some(copy(rustix::stdio::stderr())?),
    })
}

/// sd_listen_fds(3): how many descriptors our caller gave us for somebody.
fn listen_fds() -> u32 {
    std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Of the descriptors that our caller left open for us, those within the first `asked` from 3 on. What of the range is
/// not open is left out, as crun does.
pub(crate) fn preserved(inherited: &[i32], asked: u32) -> Vec<i32> {
    let end = i64::from(asked.saturating_add(listen_fds())) + 3;
    inherited.iter().copied().filter(|fd| i64::from(*fd) < end).collect()
}

/// The container's first process is pid 1 to itself, which is what LISTEN_PID must say.
fn with_listen_fds(mut spec: Spec) -> Spec {
    let count = listen_fds();
    if count == 0 {
        return spec;
    }
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()]);
        process.set_env(Some(env));
    }
    spec
}
