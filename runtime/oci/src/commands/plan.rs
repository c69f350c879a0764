use super::list::Format;
use crate::bundle::Bundle;
use crate::cli::Global;
use crate::output::{say, say_line};
use anyhow::Result;
use clap::Args;
use slipway_runtime::container::{self, CreateRequest, Options, Stdio};
use slipway_runtime::program::{Explanation, Parking};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Directory with config.json
    #[arg(value_name = "BUNDLE", default_value = ".")]
    bundle: PathBuf,
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Name that the container would have
    #[arg(long, value_name = "CONTAINER_ID", default_value = "container")]
    id: String,
}

impl Plan {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let bundle = Bundle::load_for(&self.bundle, &self.id, global)?;
        let rootfs = bundle.root()?;
        let request = CreateRequest {
            id: self.id,
            bundle: bundle.directory,
            spec: bundle.spec,
            rootfs,
            join: Vec::new(),
            stdio: Stdio::default(),
            options: Options { in_order: true, ..Options::default() },
        };
        let plan = container::explain(&request, Parking::CommandFound)?;
        match self.format {
            Format::Json => say_line(&serde_json::to_string_pretty(&plan)?),
            Format::Table => say(&human(&plan)),
        }
    }
}

/// The steps of the child are numbered as a failed start numbers them.
fn human(plan: &Explanation) -> String {
    let groups = plan.groups.iter().map(|line| format!("      {line}\n"));
    let prepare = plan.prepare.iter().map(|line| format!("      prepare {line}\n"));
    let clone = std::iter::once(format!("      {}\n", plan.clone));
    let steps = plan.steps.iter().enumerate().map(|(index, line)| format!("{:>4}  {line}\n", index + 1));
    groups.chain(prepare).chain(clone).chain(steps).collect()
}
