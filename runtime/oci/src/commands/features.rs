use crate::bundle::SPEC_VERSION;
use crate::output::say_line;
use anyhow::Result;
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Features {}

impl Features {
    pub(super) fn run(self) -> Result<()> {
        say_line(&serde_json::to_string_pretty(&slipway_runtime::features::features(SPEC_VERSION))?)
    }
}
