use super::criu::{self, CriuArgs};
use super::{Id, delete};
use crate::bundle;
use crate::cli::Global;
use crate::fault::Fault;
use crate::status::Status;
use crate::store::Container;
use crate::verified::Verified;
use anyhow::{Context, Result, bail};
use clap::Args;
use oci_spec::runtime::Spec;
use slipway_criu::rpc::PageServer;
use slipway_criu::{Dump, Images};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

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
        let record = &container.record;
        let spec: Spec = bundle::parse("config.json", &container.config()?)?;
        let plan = criu::plan(record, &spec)?;
        let process = Verified::find(record.pid, record.start_time).ok_or(Fault::NotRunning)?;
        let mut options = self.criu.options(&record.annotations);
        options.leave_running = Some(self.leave_running);
        options.link_remap = Some(self.link_remap);
        options.tcp_skip_in_flight = Some(self.tcp_skip_in_flight);
        options.page_server = self.page_server.as_ref().map(|(address, port)| PageServer {
            address: Some(address.clone()),
            port: Some(i32::from(*port)),
        });
        options.parent_img = parent;
        let dump = Dump {
            program: criu::program(global),
            plan: &plan,
            pid: record.pid,
            rootfs: &record.rootfs,
            cgroup: &record.own_group()?,
            images,
            options,
            pre_dump: self.pre_dump,
        };
        dump.run(&mut || match status_file.take() {
            Some(mut file) => file.write_all(&[0]).context("write to --status-fd"),
            None => Ok(()),
        })?;
        drop(process);
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
