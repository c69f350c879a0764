//! Calls of a shim's program: its `start` and `delete` actions (SHIM-CMD-*, SHIM-BOOT-01, SHIM-BOOT-02, SHIM-DEL-02).
//!
//! ```text
//!  keeper ──spawn──▶ ourselves, action "shim" ──exec──▶ BIN … start ──▶ its server, which outlives us
//! ```

use super::answer::Endpoint;
use super::deadline::Deadline;
use super::pod::Pod;
use crate::error::{Error, Result};
use crate::foreign::{MARK, shown, watch};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, Extension};
use protobuf::well_known_types::any::Any;
use protobuf::{Message as _, MessageDyn};
use rustix::fs::Access;
use rustix::io::ioctl_fionbio;
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

/// What a shim without a way to send events calls (SHIM-CMD-09): `--address A publish --topic T --namespace N`.
const PUBLISH: &str = "publish";
/// Of our own binary; the shim's command line follows.
pub(crate) const ACTION: &str = "shim";
/// argv[0] of it.
const NAME: &str = "containerd-shim-slipway-v1";
/// How long `delete` may take (SHIM-DEL-04 says 5 s; a slow disk gets more).
const DELETE: Duration = Duration::from_secs(10);
/// What a shim says that wants its input in the form of containerd 2.3 (pkg/shim, in every such error).
const NEW_FORM: &str = "shim was started through the deprecated API but was built against the new API";
/// containerd's own number (SHIM-CMD-08).
const MAX_SHIM_VERSION: &str = "2";

/// Whether these are the arguments of a shim that publishes an event by our binary. What it tells is known by Wait: it is heard
/// out, and that is all.
pub(crate) fn is_publishing(args: &[OsString]) -> bool {
    args.first().is_some_and(|flag| flag == "--address")
        && args.get(2).is_some_and(|action| action == PUBLISH)
}

/// Returns why the program could not be started.
pub(crate) fn become_shim(args: &[OsString]) -> io::Error {
    let Some((program, args)) = args.split_first() else { return io::ErrorKind::InvalidInput.into() };
    // The keeper blocks some for itself; shims and runtimes hand on what they get, and containers would never hear SIGTERM.
    if let Err(error) = nix::sys::signal::SigSet::empty().thread_set_mask() {
        return error.into();
    }
    Command::new(program).args(args).exec()
}

/// The `start` action for a container whose bundle is there. Blocks.
pub(super) fn start(pod: &Pod, id: &str, options: Option<&Any>, deadline: Deadline) -> Result<Endpoint> {
    let encode = |message: &dyn MessageDyn| {
        message.write_to_bytes_dyn().map_err(|e| failed(pod, "start", &format!("encode its input: {e}")))
    };
    let input = options.map_or(Ok(Vec::new()), |options| encode(options))?;
    let said = match run(pod, id, "start", &input, deadline)? {
        // Shims of containerd 2.3 and later take only its new form; older ones break off at any other than theirs, and later.
        Said::Failure { words, .. } if words.contains(NEW_FORM) => {
            run(pod, id, "start", &encode(&params(pod, id, options))?, deadline)?
        }
        said => said,
    };
    Endpoint::parse(&said.answer(pod, "start")?).map_err(|why| failed(pod, "start", &why))
}

/// What it reads from standard input, as containerd gives it since 2.3 (SHIM-BOOT-02, SHIM-BOOT-06).
fn params(pod: &Pod, id: &str, options: Option<&Any>) -> BootstrapParams {
    let extension = |options: &Any| Extension { value: Some(options.clone()).into(), ..Extension::default() };
    let path = |path: &Path| path.to_string_lossy().into_owned();
    BootstrapParams {
        instance_id: id.into(),
        namespace: pod.namespace().into(),
        containerd_ttrpc_address: path(pod.events()),
        containerd_grpc_address: path(pod.dir()),
        containerd_binary: std::env::current_exe().map(|own| path(&own)).unwrap_or_default(),
        extensions: options.map(extension).into_iter().collect(),
        ..BootstrapParams::default()
    }
}

/// The `delete` action, which ends and forgets a container whose shim is dead. Blocks.
pub(super) fn delete(pod: &Pod, id: &str) -> Result<DeleteResponse> {
    let said = run(pod, id, "delete", &[], Deadline::after(DELETE))?.answer(pod, "delete")?;
    DeleteResponse::parse_from_bytes(&said)
        .map_err(|_| failed(pod, "delete", "its answer is no DeleteResponse"))
}

/// How a call ended that was over in time.
enum Said {
    /// What it printed.
    Answer(Vec<u8>),
    Failure {
        status: ExitStatus,
        words: String,
    },
}

impl Said {
    fn answer(self, pod: &Pod, action: &str) -> Result<Vec<u8>> {
        match self {
            Self::Answer(said) => Ok(said),
            Self::Failure { status, words } if words.is_empty() => {
                Err(failed(pod, action, &format!("{status}: and not a word why")))
            }
            Self::Failure { status, words } => Err(failed(pod, action, &format!("{status}: {words}"))),
        }
    }
}

fn run(pod: &Pod, id: &str, action: &'static str, input: &[u8], deadline: Deadline) -> Result<Said> {
    let path = &pod.shim().path;
    let fail = |e: io::Error| Error::io("run", path.display(), &e);
    rustix::fs::access(path, Access::EXEC_OK).map_err(|e| cannot_run(path, &e.into()))?;
    let bundle = pod.bundle(id);
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
    ioctl_fionbio(&read, true).map_err(|e| fail(e.into()))?;
    // Files have no end that its server could keep open.
    let (told, complaints) = (bundle.join(".input"), bundle.join(".complaints"));
    fs::write(&told, input).map_err(fail)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME).arg(ACTION).arg(path);
    command.args(["-namespace", pod.namespace()]).arg("-address").arg(pod.dir());
    command.arg("-publish-binary").arg(std::env::current_exe().map_err(fail)?).args(["-id", id]);
    if action == "delete" {
        command.arg("-bundle").arg(&bundle);
    }
    command.arg(action).current_dir(&bundle).process_group(0);
    command.env(MARK, pod.dir()).env("TTRPC_ADDRESS", pod.events()).env("GRPC_ADDRESS", pod.dir());
    command
        .env("NAMESPACE", pod.namespace())
        .env("MAX_SHIM_VERSION", MAX_SHIM_VERSION)
        .env("GOMAXPROCS", "2")
        .env_remove("NOTIFY_SOCKET");
    command.stdin(File::open(&told).map_err(fail)?).stdout(write);
    command.stderr(Stdio::from(File::create(&complaints).map_err(fail)?));
    tracing::debug!("{command:?}");
    let mut child = command.spawn().map_err(|e| cannot_run(path, &e))?;
    // Our copies of the streams.
    drop(command);
    let watched = watch(&mut child, Some(read), deadline.left(deadline.whole()));
    let complained = fs::read(&complaints).unwrap_or_default();
    for file in [told, complaints] {
        let _ = fs::remove_file(file);
    }
    match watched.map_err(fail)? {
        (Some(status), said) if status.success() => Ok(Said::Answer(said)),
        (Some(status), said) => {
            let words =
                [shown(&String::from_utf8_lossy(&complained)), shown(&String::from_utf8_lossy(&said))];
            let words: Vec<_> = words.into_iter().filter(|words| !words.is_empty()).collect();
            Ok(Said::Failure { status, words: words.join("; ") })
        }
        (None, _) => {
            let limit = deadline.whole().as_secs();
            Err(failed(
                pod,
                action,
                &format!("no end within {limit} s; it was killed with all that it had started"),
            ))
        }
    }
}

/// `<binary> <action>: <why>`.
pub(super) fn failed(pod: &Pod, action: &str, why: &str) -> Error {
    Error::internal(format!("{} {action}: {why}", pod.shim().path.display()))
}

fn cannot_run(path: &Path, error: &io::Error) -> Error {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Error::state(format!(
            "run {path}: {error}; hint: install it, or correct the handler's shim in the configuration"
        )),
        _ => Error::io("run", path, error),
    }
}
