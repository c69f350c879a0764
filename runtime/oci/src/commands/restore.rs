use super::{checkpoint, delete};
use crate::bundle::Bundle;
use crate::cli::Global;
use crate::create::{self as making, Made};
use crate::criu::rpc::{CgroupRoot, InheritedFd, Kind, Notification, Options, Request};
use crate::criu::{self, CriuArgs, Externals, Images, Talk};
use crate::foreground::{self, Signals};
use crate::store::{self, Container, Store};
use crate::verified;
use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{self, Subject};
use slipway_runtime::rootfs::{self, Rootfs};
use slipway_runtime::sys::{namespace, process};
use std::fs;
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
        criu::make_points(&plan, &container.record.rootfs)?;
        let root = Root::mount(container)?;
        let mut options = self.criu.options(&container.record.annotations);
        images.tell(&mut options);
        options.evasive_devices = Some(true);
        options.rst_sibling = Some(true);
        options.root = Some(root.path.display().to_string());
        options.lsm_profile.clone_from(&self.lsm_profile);
        options.lsm_mount_context.clone_from(&self.lsm_mount_context);
        options.ext_mnt = Externals::new(&plan).at_restore();
        streams(images, &mut options)?;
        let namespaces = criu::at_restore(&plan, &mut options)?;
        let mut talk = Talk::start(criu::program(global), &namespaces, true)?;
        group.admit(talk.pid())?;
        options.cg_root = cgroup_roots(talk.pid())?;
        let subject = Subject { id: container.id(), bundle: &bundle.directory, spec: &bundle.spec };
        let mut master = None;
        let mut listen = |notification: &Notification, descriptor: Option<OwnedFd>| {
            match (notification.script(), descriptor) {
                ("setup-namespaces", _) => container::during_restore(&subject, notification.pid())?,
                ("orphan-pts-master", Some(terminal)) => {
                    master = making::hand_over(Some(terminal), self.console_socket.as_deref())?;
                }
                _ => {}
            }
            Ok(())
        };
        let answer = talk.ask(&Request::new(Kind::Restore, options), &mut listen)?;
        let Some(restored) = answer.restore else { bail!("criu did not say which process it restored") };
        let pidfd = process::open(restored.pid).context("open the restored process")?;
        Ok((restored.pid, pidfd, master))
    }
}

/// A mount namespace that ends with us, for what criu must find mounted. Called before anything is opened for criu: it
/// can mount nothing in a directory that was reached through another namespace.
fn own_mounts() -> Result<()> {
    namespace::unshare((libc::CLONE_NEWNS | libc::CLONE_FS) as u32)
        .context("make a mount namespace for criu: restore needs root's rights")?;
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", flags).context("keep criu's mounts to ourselves")
}

/// The root filesystem as criu wants it: a mount of its own.
struct Root {
    path: PathBuf,
}

impl Root {
    fn mount(container: &Container) -> Result<Self> {
        let path = container.criu_root()?;
        let tree = rootfs::mount_root(&Rootfs::Directory(container.record.rootfs.clone()), None)?;
        rootfs::attach(&tree, &path)?;
        Ok(Self { path })
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.path);
    }
}

/// Pipes of the dumped process's standard streams: criu connects ours in their place.
fn streams(images: &Images, options: &mut Options) -> Result<()> {
    let path = images.directory().join(checkpoint::DESCRIPTORS);
    let text =
        fs::read(&path).with_context(|| format!("{}: is --image-path a checkpoint?", path.display()))?;
    let names: Vec<String> =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    for (fd, key) in (0..3).zip(names) {
        if key.starts_with("pipe:") {
            options.inherit_fd.push(InheritedFd { key, fd });
        }
    }
    Ok(())
}

/// The groups that criu is in: the container's come to lie there. `hierarchy:controllers:path`, cgroups(7).
fn cgroup_roots(pid: u32) -> Result<Vec<CgroupRoot>> {
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}: criu has ended"))?;
    let root = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some(CgroupRoot { ctrl: Some(fields.next()?.to_owned()), path: fields.next()?.to_owned() })
    };
    Ok(text.lines().filter_map(root).collect())
}
