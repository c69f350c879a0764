use super::{Id, create};
use crate::bundle;
use crate::cli::Global;
use crate::create as making;
use crate::fault::{self, Fault};
use crate::foreground::{self, Signals};
use crate::status::Status;
use crate::store::Container;
use crate::verified::Verified;
use anyhow::{Context, Result, bail};
use clap::Args;
use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{self, ExecRequest, Subject};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// JSON file that describes the whole process
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Return once it runs
    #[arg(short, long)]
    detach: bool,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// NAME=VALUE, several times
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// UID[:GID]
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Additional groups
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// Capability to add, several times
    #[arg(short, long, value_name = "CAP")]
    cap: Vec<String>,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// Forbid new privileges
    #[arg(long)]
    no_new_privs: bool,
    /// Group below the container's own, such as /sub
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    /// Pass on this many descriptors from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// File for the process's pid
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Unix socket that receives the master side of the terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Unix socket that receives the process's pidfd
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// Also into a paused container: the process runs once that is resumed
    #[arg(long)]
    ignore_paused: bool,
    /// Name of the container, then command and arguments
    #[arg(
        value_name = "CONTAINER_ID [COMMAND [ARG]...]",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
}

/// runc's code for an exec that failed by itself, so that it is not taken for the command's.
const FAILED: u8 = 255;

impl Exec {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        let code = self.execute(global);
        code.map_err(|error| Fault::Code(FAILED, format!("exec failed: {}", fault::sentence(&error))).into())
    }

    fn execute(self, global: &Global) -> Result<ExitCode> {
        create::protect_exec()?;
        let (id, command) = self.words.split_first().context("no container named")?;
        let container = Id { id: id.clone() }.open(global)?;
        let target = self.target(&container)?;
        let spec: Spec = bundle::parse("config.json", &container.config()?)?;
        let process = self.process(global, &spec, command)?;
        let terminal = process.terminal().unwrap_or(false);
        self.check_terminal(terminal)?;
        let group = self.group(&container)?;
        let signals = if self.detach { None } else { Some(Signals::catch()?) };
        let request = ExecRequest {
            exec_id: None,
            pid: container.record.pid,
            pidfd: target.pidfd(),
            subject: Subject { id: container.id(), bundle: &container.record.bundle, spec: &spec },
            process: &process,
            cgroup: &group,
            stdio: making::own_streams()?,
            preserved: making::preserved(&global.inherited, self.preserve_fds),
            no_new_keyring: container.record.no_new_keyring,
        };
        let session =
            container::exec(request).map_err(|error| fault::launch(error, bundle::command(&process)))?;
        let master = making::hand_over(session.pty, self.console_socket.as_deref())?;
        if let Some(path) = &self.pidfd_socket {
            crate::console::send(path, &session.pidfd)?;
        }
        if let Some(path) = &self.pid_file {
            making::write_pid(path, session.pid)?;
        }
        match signals {
            None => Ok(ExitCode::SUCCESS),
            Some(signals) => Ok(ExitCode::from(foreground::wait(&signals, &session.pidfd, master.as_ref())?)),
        }
    }

    /// The container's group, or the one below it that was asked for and must be there.
    fn group(&self, container: &Container) -> Result<Cgroup> {
        let own = &container.record.cgroup;
        let Some(asked) = &self.cgroup else { return container.record.group() };
        if asked.contains(':') {
            bail!(Fault::Usage(format!(
                "--cgroup {asked}: one path for all controllers: a session is in one group, as on version 2"
            )));
        }
        if asked.split('/').any(|part| part == "..") {
            bail!(Fault::Usage(format!("--cgroup {asked}: must stay below the container's own group")));
        }
        let group = Cgroup::open(&format!("{own}/{}", asked.trim_matches('/')));
        group.with_context(|| format!("--cgroup {asked}"))
    }

    fn target(&self, container: &Container) -> Result<Verified> {
        match Status::of(container) {
            Status::Stopped | Status::Creating => {
                bail!(Fault::State("cannot exec in a stopped container".to_owned()))
            }
            Status::Paused if !self.ignore_paused => {
                bail!(Fault::State(
                    "cannot exec in a paused container (use --ignore-paused to override)".to_owned()
                ))
            }
            _ => {}
        }
        let record = &container.record;
        Verified::find(record.pid, record.start_time).ok_or_else(|| Fault::NotRunning.into())
    }

    fn check_terminal(&self, terminal: bool) -> Result<()> {
        let refuse = |text: &str| bail!(Fault::Usage(text.to_owned()));
        match (terminal, &self.console_socket) {
            (true, None) if self.detach => {
                refuse("cannot allocate tty if slipway-oci will detach without setting console socket")
            }
            (false, Some(_)) => refuse("cannot use console socket if no terminal is asked for"),
            _ => Ok(()),
        }
    }

    /// The process as its file has it, or the container's own with the words and flags of the command line.
    fn process(&self, global: &Global, spec: &Spec, command: &[String]) -> Result<Process> {
        if let Some(path) = &self.process {
            let name = path.display().to_string();
            let (mut process, ignored) =
                bundle::tolerant::<Process>(&name, &bundle::read(path)?, "/capabilities")?;
            ignored.iter().for_each(|what| global.journal.warn(what));
            if self.tty {
                process.set_terminal(Some(true));
            }
            return Ok(process);
        }
        if command.is_empty() {
            bail!(Fault::Usage("process args cannot be empty: name a command or give --process".to_owned()));
        }
        let own = spec.process().as_ref().context("config.json: process: missing")?;
        let mut process = serde_json::to_value(own)?;
        process["args"] = json!(command);
        process["terminal"] = json!(self.tty);
        self.change(&mut process)?;
        bundle::parse("the process", &serde_json::to_vec(&process)?)
    }

    fn change(&self, process: &mut Value) -> Result<()> {
        if let Some(cwd) = &self.cwd {
            process["cwd"] = json!(cwd);
        }
        replace_env(&mut process["env"], &self.env);
        if let Some(user) = &self.user {
            let (uid, gid) = parse_user(user)?;
            process["user"]["uid"] = json!(uid);
            if let Some(gid) = gid {
                process["user"]["gid"] = json!(gid);
            }
        }
        append(&mut process["user"]["additionalGids"], &self.additional_gids);
        for set in ["bounding", "effective", "permitted"] {
            append(&mut process["capabilities"][set], &self.cap);
        }
        if let Some(profile) = &self.apparmor {
            process["apparmorProfile"] = json!(profile);
        }
        if let Some(label) = &self.process_label {
            process["selinuxLabel"] = json!(label);
        }
        if self.no_new_privs {
            process["noNewPrivileges"] = json!(true);
        }
        Ok(())
    }
}

/// Sets variables; of one name the last word counts.
fn replace_env(list: &mut Value, more: &[String]) {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    if let Some(list) = list.as_array_mut() {
        list.retain(|old| !more.iter().any(|new| old.as_str().is_some_and(|old| name(old) == name(new))));
    }
    append(list, more);
}

/// Adds to a list that may not be there yet; nothing to add changes nothing.
fn append<T: serde::Serialize>(list: &mut Value, more: &[T]) {
    if more.is_empty() {
        return;
    }
    let mut all = list.as_array().cloned().unwrap_or_default();
    all.extend(more.iter().map(|item| json!(item)));
    *list = Value::Array(all);
}

fn parse_user(text: &str) -> Result<(u32, Option<u32>)> {
    let (uid, gid) = text.split_once(':').map_or((text, None), |(uid, gid)| (uid, Some(gid)));
    let number =
        |part: &str| part.parse::<u32>().with_context(|| format!("--user {text}: UID[:GID], both numbers"));
    Ok((number(uid)?, gid.map(number).transpose()?))
}
