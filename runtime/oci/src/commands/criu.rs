//! What `checkpoint` and `restore` share: their options.

use crate::cli::Global;
use crate::record::Record;
use anyhow::Result;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use oci_spec::runtime::Spec;
use slipway_criu::rpc::{CgroupMode, Options};
use slipway_criu::{CONFIG_ANNOTATION, Wishes, config_file};
use slipway_runtime::container;
use slipway_runtime::plan::Plan;
use slipway_runtime::rootfs::Rootfs;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Options of `checkpoint` and `restore` alike.
#[derive(Debug, Args)]
pub(super) struct CriuArgs {
    /// Directory of the images
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub(super) image_path: PathBuf,
    /// Directory of the log and of other working files [default: that of the images]
    #[arg(long, value_name = "DIR")]
    pub(super) work_path: Option<PathBuf>,
    /// Allow open TCP connections
    #[arg(long)]
    tcp_established: bool,
    /// Allow unix sockets that are connected to the outside
    #[arg(long)]
    ext_unix_sk: bool,
    /// Allow processes whose session or terminal belongs to the outside
    #[arg(long)]
    shell_job: bool,
    /// Keep file locks
    #[arg(long)]
    file_locks: bool,
    /// What is kept of control groups [default: soft]
    #[arg(long, value_name = "MODE", value_parser = PossibleValuesParser::new(CgroupMode::WORDS).try_map(mode))]
    manage_cgroups_mode: Option<CgroupMode>,
    /// Make this namespace, but leave it empty (a network is never filled)
    #[arg(long, value_name = "NAMESPACE", value_parser = ["network"])]
    empty_ns: Vec<String>,
    /// Drop from the images what newer ones have
    #[arg(long)]
    auto_dedup: bool,
    /// Bring memory only when it is touched
    #[arg(long)]
    lazy_pages: bool,
}

fn mode(word: String) -> Result<CgroupMode, String> {
    CgroupMode::from_word(&word).ok_or(word)
}

impl CriuArgs {
    /// What both directions say alike.
    pub(super) fn options(&self, annotations: &BTreeMap<String, String>) -> Options {
        let wishes = Wishes {
            tcp_established: self.tcp_established,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            auto_dedup: self.auto_dedup,
            lazy_pages: self.lazy_pages,
            cgroups: self.manage_cgroups_mode,
        };
        wishes.options(config_file(annotations.get(CONFIG_ANNOTATION).map(String::as_str)))
    }
}

/// What the container is, as it was decided at its creation.
pub(super) fn plan(record: &Record, spec: &Spec) -> Result<Plan> {
    let rootfs = Rootfs::Directory(record.rootfs.clone());
    Ok(container::decide(&record.id, &record.bundle, &rootfs, spec)?)
}

/// The program, as the command line names it or PATH has it.
pub(super) fn program(global: &Global) -> &Path {
    global.criu.as_deref().unwrap_or(Path::new("criu"))
}
