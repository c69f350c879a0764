//! Freezing a container into files.

use crate::images::Images;
use crate::mounts::Externals;
use crate::namespaces;
use crate::rpc::{Features, Kind, Notification, Options, Request};
use crate::streams::{self, Streams};
use crate::talk::Talk;
use anyhow::{Context, Result, bail};
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::plan::Plan;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A container that is to be frozen. Its process must be held by the caller meanwhile, so that its number stays its own.
#[derive(Debug)]
pub struct Dump<'a> {
    /// Criu itself.
    pub program: &'a Path,
    /// As decided when it was made.
    pub plan: &'a Plan,
    pub pid: i32,
    /// Its root filesystem on the host.
    pub rootfs: &'a Path,
    pub cgroup: &'a Cgroup,
    pub images: &'a Images,
    /// As [`crate::Wishes::options`] has them, with what is asked of a dump alone.
    pub options: Options,
    /// Only copy memory.
    pub pre_dump: bool,
}

impl Dump<'_> {
    /// Dumps; `ready` is called once lazy pages can be fetched. What failed is explained by [`Images::explain`], what is
    /// half-made removed by [`Images::discard`].
    pub fn run(mut self, ready: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.check_features()?;
        let options = &mut self.options;
        self.images.tell(options);
        options.pid = Some(self.pid);
        options.root = Some(self.rootfs.display().to_string());
        options.freeze_cgroup = Some(self.cgroup.main_dir()?);
        options.track_mem = options.parent_img.is_some().then_some(true);
        namespaces::at_dump(self.plan, options)?;
        if !self.pre_dump {
            let root: OwnedFd =
                File::open(format!("/proc/{}/root", self.pid)).context("open the container's root")?.into();
            options.ext_mnt = Externals::new(self.plan).at_dump(&root);
            streams::note(self.pid, self.images, options)?;
        }
        // On a hybrid host criu would take all groups of version 2 for the container's.
        let _apart = self.cgroup.set_apart()?;
        let kind = if self.pre_dump { Kind::PreDump } else { Kind::Dump };
        let mut talk = Talk::start(self.program, &[], Streams::None)?;
        let mut listen = |notification: &Notification, _: Option<OwnedFd>| {
            if notification.script() == "status-ready" { ready() } else { Ok(()) }
        };
        talk.ask(&Request::new(kind, self.options), &mut listen).map(drop)
    }

    /// Refuses what this criu and this kernel cannot do together; criu itself finds out late.
    fn check_features(&self) -> Result<()> {
        let track = self.pre_dump || self.options.parent_img.is_some();
        let lazy = self.options.lazy_pages == Some(true);
        let wanted = Features { mem_track: track.then_some(true), lazy_pages: lazy.then_some(true) };
        if wanted == Features::default() {
            return Ok(());
        }
        let request =
            Request { kind: Kind::FeatureCheck.into(), features: Some(wanted), ..Request::default() };
        let answer = Talk::start(self.program, &[], Streams::None)?.ask(&request, &mut |_, _| Ok(()))?;
        let found = answer.features.unwrap_or_default();
        if track && found.mem_track != Some(true) {
            bail!(
                "--pre-dump and --parent-path: this kernel cannot track changes of memory for criu (CONFIG_MEM_SOFT_DIRTY)"
            );
        }
        if lazy && found.lazy_pages != Some(true) {
            bail!("--lazy-pages: this kernel cannot bring memory lazily for criu (userfaultfd)");
        }
        Ok(())
    }
}
