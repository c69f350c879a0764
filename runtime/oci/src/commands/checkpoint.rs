use super::{Id, delete};
use crate::bundle;
use crate::cli::Global;
use crate::criu::rpc::{Features, Kind, Notification, PageServer, Request};
use crate::criu::{self, CriuArgs, Externals, Images, Talk};
use crate::fault::Fault;
use crate::status::Status;
use crate::store::Container;
use crate::verified::Verified;
use anyhow::{Context, Result, bail};
use clap::Args;
use oci_spec::runtime::Spec;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// What the standard streams were, beside the images: a restore connects its own in their place.
pub(super) const DESCRIPTORS: &str = "descriptors.json";

#[derive(Debug, Args)]
pub(crate) struct Checkpoint {
    #[command(flatten)]
    criu: CriuArgs,
    /// Directory of an earlier pre-dump, from --image-path on
    #[arg(long, value_name = "DIR")]
    parent_path: Option<PathBuf>,
    /// Let the container go on afterwards
    #[arg(long)]
    leave_running: bool,
    /// Do without TCP connections that are not established yet
    #[arg(long)]
    tcp_skip_in_flight: bool,
    /// Give deleted files that are open a name again
    #[arg(long)]
    link_remap: bool,
    /// Descriptor that gets a zero byte once lazy pages can be fetched
    #[arg(long, value_name = "FD")]
    status_fd: Option<i32>,
    /// Where memory goes instead of into files
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_server)]
    page_server: Option<(String, u16)>,
    /// Only copy memory, and let the container go on
    #[arg(long)]
    pre_dump: bool,
    #[command(flatten)]
    id: Id,
}

impl Checkpoint {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let status_file = self.status_file()?;
        let container = self.id.lock(global)?;
        match Status::of(&container) {
            Status::Running | Status::Paused => {}
            other => {
                bail!(Fault::State(format!("container cannot be checkpointed in {other} state")))
            }
        }
        let work = self.criu.work_path.as_deref();
        let images = Images::open(&self.criu.image_path, work, "dump.log", true)?;
        self.dump(global, &container, &images, status_file).map_err(|error| {
            images.discard();
            images.explain(error)
        })?;
        if !self.leave_running && !self.pre_dump {
            delete::remove(container, global)?;
        }
        Ok(())
    }

    /// The descriptor of --status-fd, opened again.
    fn status_file(&self) -> Result<Option<File>> {
        let open = |fd: i32| {
            let opened = File::options().write(true).open(format!("/proc/self/fd/{fd}"));
            opened.with_context(|| format!("--status-fd {fd}: not an open descriptor that can be written to"))
        };
        self.status_fd.map(open).transpose()
    }

    fn dump(
        &self,
        global: &Global,
        container: &Container,
        images: &Images,
        mut status_file: Option<File>,
    ) -> Result<()> {
        let parent = self.parent_path.as_ref().map(|path| self.parent(images, path)).transpose()?;
        self.check_features(global)?;
        let record = &container.record;
        let spec: Spec = bundle::parse("config.json", &container.config()?)?;
        let plan = criu::plan(record, &spec)?;
        let process = Verified::find(record.pid, record.start_time).ok_or(Fault::NotRunning)?;
        let mut options = self.criu.options(&record.annotations);
        images.tell(&mut options);
        options.pid = Some(record.pid);
        options.root = Some(record.rootfs.display().to_string());
        options.leave_running = Some(self.leave_running);
        options.link_remap = Some(self.link_remap);
        options.tcp_skip_in_flight = Some(self.tcp_skip_in_flight);
        options.freeze_cgroup = Some(record.own_group()?.main_dir()?);
        options.page_server = self.page_server.as_ref().map(|(address, port)| PageServer {
            address: Some(address.clone()),
            port: Some(i32::from(*port)),
        });
        options.track_mem = parent.is_some().then_some(true);
        options.parent_img = parent;
        criu::at_dump(&plan, &mut options)?;
        if !self.pre_dump {
            let root: OwnedFd =
                File::open(format!("/proc/{}/root", record.pid)).context("open the container's root")?.into();
            options.ext_mnt = Externals::new(&plan).at_dump(&root);
            save_streams(record.pid, images)?;
        }
        let kind = if self.pre_dump { Kind::PreDump } else { Kind::Dump };
        let mut talk = Talk::start(criu::program(global), &[], false)?;
        let mut listen = |notification: &Notification, _: Option<OwnedFd>| {
            if notification.script() == "status-ready"
                && let Some(mut file) = status_file.take()
            {
                file.write_all(&[0]).context("write to --status-fd")?;
            }
            Ok(())
        };
        talk.ask(&Request::new(kind, options), &mut listen)?;
        drop(process);
        Ok(())
    }

    /// Refuses what this criu and this kernel cannot do together; criu itself finds out late.
    fn check_features(&self, global: &Global) -> Result<()> {
        let track = self.pre_dump || self.parent_path.is_some();
        let wanted =
            Features { mem_track: track.then_some(true), lazy_pages: self.criu.lazy_pages.then_some(true) };
        if wanted == Features::default() {
            return Ok(());
        }
        let request =
            Request { kind: Kind::FeatureCheck.into(), features: Some(wanted), ..Request::default() };
        let answer = Talk::start(criu::program(global), &[], false)?.ask(&request, &mut |_, _| Ok(()))?;
        let found = answer.features.unwrap_or_default();
        if track && found.mem_track != Some(true) {
            bail!(
                "--pre-dump and --parent-path: this kernel cannot track changes of memory for criu (CONFIG_MEM_SOFT_DIRTY)"
            );
        }
        if self.criu.lazy_pages && found.lazy_pages != Some(true) {
            bail!("--lazy-pages: this kernel cannot bring memory lazily for criu (userfaultfd)");
        }
        Ok(())
    }

    fn parent(&self, images: &Images, parent: &std::path::Path) -> Result<String> {
        if parent.is_absolute() {
            bail!(Fault::Usage("--parent-path must be relative: it counts from --image-path".to_owned()));
        }
        if !images.directory().join(parent).is_dir() {
            bail!(Fault::Usage(format!(
                "--parent-path {}: no directory below --image-path",
                parent.display()
            )));
        }
        Ok(parent.display().to_string())
    }
}

/// What the standard streams of the container's process are, as the kernel names them.
fn save_streams(pid: i32, images: &Images) -> Result<()> {
    let name = |fd: i32| {
        let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
        link.display().to_string()
    };
    let names: Vec<String> = (0..3).map(name).collect();
    let path = images.directory().join(DESCRIPTORS);
    fs::write(&path, serde_json::to_vec(&names)?).with_context(|| format!("write {}", path.display()))
}

fn parse_server(text: &str) -> Result<(String, u16), String> {
    let (address, port) = text.rsplit_once(':').ok_or("ADDRESS:PORT is asked for")?;
    let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    if address.is_empty() { Err("no address".to_owned()) } else { Ok((address.to_owned(), port)) }
}

#[cfg(test)]
mod tests {
    use super::parse_server;

    #[test]
    fn page_servers() {
        assert_eq!(parse_server("127.0.0.1:9"), Ok(("127.0.0.1".to_owned(), 9)));
        assert_eq!(parse_server("[::1]:9"), Ok(("::1".to_owned(), 9)));
        for bad in ["", "host", ":9", "host:x", "host:70000"] {
            assert!(parse_server(bad).is_err(), "{bad}");
        }
    }
}
