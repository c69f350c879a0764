use super::criu::{self, CriuArgs};
use super::delete;
use crate::bundle::Bundle;
use crate::cli::Global;
use crate::create::{self as making, Made};
use crate::foreground::{self, Signals};
use crate::store::{self, Container, Store};
use crate::verified;
use anyhow::{Context, Result};
use clap::Args;
use slipway_criu::{Images, Restored, Streams, own_mounts};
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{self, Subject};
use slipway_runtime::sys::process;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(crate) struct Restore {
    #[command(flatten)]
    criu: CriuArgs,
    /// Directory with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Return once it runs
    #[arg(short, long)]
    detach: bool,
    /// Unix socket that receives the master side of the terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// File for the pid of the container's process
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Security profile of the restored processes
    #[arg(long, value_name = "TYPE:NAME")]
    lsm_profile: Option<String>,
    /// Security context of the restored mounts
    #[arg(long, value_name = "CONTEXT")]
    lsm_mount_context: Option<String>,
    /// Accepted for runc's sake: the process is waited for by descriptor
    #[arg(long, hide = true)]
    no_subreaper: bool,
    /// Accepted for runc's sake: criu decides how the root is entered
    #[arg(long, hide = true)]
    no_pivot: bool,
    /// Name of the container, unique on this host
    #[arg(value_name = "CONTAINER_ID")]
    id: String,
}

impl Restore {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        store::check_id(&self.id)?;
        let bundle = Bundle::load_for(&self.bundle, &self.id, global)?;
        bundle.ignored.iter().for_each(|what| global.journal.warn(what));
        making::check_terminal(&bundle, self.console_socket.as_deref(), !self.detach)?;
        own_mounts()?;
        let images =
            Images::open(&self.criu.image_path, self.criu.work_path.as_deref(), "restore.log", false)?;
        let record = making::record(&self.id, &bundle)?;
        making::refuse_foreign_group(&record.cgroup)?;
        let container = Store::new(global.root()).create(record, &bundle.config)?;
        let Made { container, pidfd, master } = match self.restore(global, &container, &bundle, &images) {
            Ok((pid, pidfd, master)) => self.settle(container, pid, pidfd, master)?,
            Err(error) => {
                delete::discard(container)?;
                return Err(images.explain(error));
            }
        };
        if self.detach {
            return Ok(ExitCode::SUCCESS);
        }
        let code = foreground::wait(&Signals::catch()?, &pidfd, master.as_ref())?;
        delete::remove(container, global)?;
        Ok(ExitCode::from(code))
    }

    /// Records what runs again and tells who waits for it.
    fn settle(
        &self,
        mut container: Container,
        pid: i32,
        pidfd: OwnedFd,
        master: Option<OwnedFd>,
    ) -> Result<Made> {
        let told = verified::start_time(pid).context("the container's process has ended").and_then(|born| {
            (container.record.pid, container.record.start_time) = (pid, born);
            container.save()?;
            self.pid_file.as_ref().map_or(Ok(()), |path| making::write_pid(path, pid))
        });
        match told {
            Ok(()) => Ok(Made { container, pidfd, master }),
            Err(error) => {
                process::end(&pidfd);
                delete::discard(container)?;
                Err(error)
            }
        }
    }

    fn restore(
        &self,
        global: &Global,
        container: &Container,
        bundle: &Bundle,
        images: &Images,
    ) -> Result<(i32, OwnedFd, Option<OwnedFd>)> {
        let plan = criu::plan(&container.record, &bundle.spec)?;
        let group = Cgroup::create(&plan.cgroup_path, container::resources(&bundle.spec).as_ref())?;
        let mut options = self.criu.options(&container.record.annotations);
        options.lsm_profile.clone_from(&self.lsm_profile);
        options.lsm_mount_context.clone_from(&self.lsm_mount_context);
        let restore = slipway_criu::Restore {
            program: criu::program(global),
            plan: &plan,
            subject: Subject { id: container.id(), bundle: &bundle.directory, spec: &bundle.spec },
            cgroup: &group,
            place: container.criu_root()?,
            images,
            options,
            streams: Streams::Ours,
        };
        let mut master = None;
        let Restored { pid, pidfd } = restore.run(&mut |terminal| {
            master = making::hand_over(Some(terminal), self.console_socket.as_deref())?;
            Ok(())
        })?;
        Ok((pid, pidfd, master))
    }
}
