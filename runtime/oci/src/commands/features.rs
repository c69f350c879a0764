use crate::bundle::SPEC_VERSION;
use anyhow::Result;
use clap::Args;

/// Print what this runtime can do, as the runtime specification's features.md has it
#[derive(Debug, Args)]
pub(crate) struct Features {}

impl Features {
    pub(super) fn run(self) -> Result<()> {
        println!("{}", serde_json::to_string_pretty(&slipway_runtime::features::features(SPEC_VERSION))?);
        Ok(())
    }
}
