//! Making a container again from files.

use crate::images::Images;
use crate::mounts::{Externals, make_points};
use crate::namespaces::{self, Names};
use crate::rpc::{CgroupRoot, Kind, Notification, Options, Request};
use crate::streams::{self, Streams};
use crate::talk::Talk;
use anyhow::{Context, Result, bail};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{self, Subject};
use slipway_runtime::plan::Plan;
use slipway_runtime::rootfs;
use slipway_runtime::sys::{namespace, process};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A container that is to be made again, by a thread that has called [`own_mounts`].
#[derive(Debug)]
pub struct Restore<'a> {
    /// Criu itself.
    pub program: &'a Path,
    pub plan: &'a Plan,
    pub subject: Subject<'a>,
    /// The container's control group: made, and empty.
    pub cgroup: &'a Cgroup,
    /// An empty directory: the root filesystem is mounted there meanwhile. It is removed afterwards.
    pub place: PathBuf,
    pub images: &'a Images,
    /// As [`crate::Wishes::options`] has them, with what is asked of a restore alone.
    pub options: Options,
    pub streams: Streams,
}

/// The first process of a restored container: a child of ours.
#[derive(Debug)]
pub struct Restored {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

impl Restore<'_> {
    /// Restores; `terminal` gets the master side where the container has one.
    pub fn run(mut self, terminal: &mut dyn FnMut(OwnedFd) -> Result<()>) -> Result<Restored> {
        let root = Root::mount(self.plan, std::mem::take(&mut self.place))?;
        make_points(self.plan, &root.path)?;
        let options = &mut self.options;
        self.images.tell(options);
        options.evasive_devices = Some(true);
        options.rst_sibling = Some(true);
        options.root = Some(root.path.display().to_string());
        options.ext_mnt = Externals::new(self.plan).at_restore();
        streams::connect(self.images, options)?;
        let namespaces = namespaces::at_restore(self.plan, options)?;
        let mut talk = Talk::start(self.program, &namespaces, self.streams)?;
        self.cgroup.admit(talk.pid())?;
        options.cg_root = cgroup_roots(talk.pid())?;
        let subject = &self.subject;
        let names = Names::of(self.plan)?;
        let put_back = || names.as_ref().map_or(Ok(()), Names::put_back);
        let mut listen = |notification: &Notification, descriptor: Option<OwnedFd>| {
            match (notification.script(), descriptor) {
                ("setup-namespaces", _) => container::during_restore(subject, notification.pid())?,
                ("orphan-pts-master", Some(master)) => terminal(master)?,
                // Before anything that was frozen goes on.
                ("post-setup-namespaces", _) => put_back()?,
                _ => {}
            }
            Ok(())
        };
        let answer = talk.ask(&Request::new(Kind::Restore, self.options), &mut listen);
        // It may also have failed in between.
        let answer = answer.map_err(|error| match put_back() {
            Ok(()) => error,
            Err(more) => error.context(format!("{more:#}")),
        })?;
        let Some(restored) = answer.restore else { bail!("criu did not say which process it restored") };
        let pidfd = process::open(restored.pid).context("open the restored process")?;
        Ok(Restored { pid: restored.pid, pidfd })
    }
}

/// Gives this thread a mount namespace that ends with it, for what criu must find mounted. To be called before anything is
/// opened for criu: it can mount nothing in a directory that was reached through another namespace.
pub fn own_mounts() -> Result<()> {
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
    fn mount(plan: &Plan, path: PathBuf) -> Result<Self> {
        let tree = rootfs::mount_root(&plan.rootfs, None)?;
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

/// The groups that criu is in: the container's come to lie there. `hierarchy:controllers:path`, cgroups(7).
fn cgroup_roots(pid: u32) -> Result<Vec<CgroupRoot>> {
    let path = Path::new("/proc").join(pid.to_string()).join("cgroup");
    let text =
        fs::read_to_string(&path).with_context(|| format!("read {}: criu has ended", path.display()))?;
    let root = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some(CgroupRoot { ctrl: Some(fields.next()?.to_owned()), path: fields.next()?.to_owned() })
    };
    Ok(text.lines().filter_map(root).collect())
}
