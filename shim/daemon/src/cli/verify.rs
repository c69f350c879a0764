//! `slipway verify`: is what the image store holds what was unpacked.

use std::process::ExitCode;

use anyhow::Result;
use cri_proto::slipway::{LayerVerdict, VerifiedLayer, VerifyRequest};
use serde::Serialize;

use super::client::{Client, said};
use super::output::{Output, Progress, list};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only layers of these images
    #[arg(value_name = "REF")]
    images: Vec<String>,
    /// Pull damaged layers again
    #[arg(long)]
    repair: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    layer: String,
    verdict: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    why: String,
    images: Vec<String>,
}

/// Fails if something is damaged at the end.
pub(crate) async fn run(client: &mut Client, args: &Args, output: Output) -> Result<ExitCode> {
    let progress = Progress::new();
    progress.step("verifying layers");
    let request = VerifyRequest { images: args.images.clone(), repair: args.repair };
    let answer = client.local.verify(request).await.map_err(said("verify images"))?.into_inner();
    progress.end();
    let bad = |layer: &VerifiedLayer| {
        matches!(layer.verdict(), LayerVerdict::VerdictDamaged | LayerVerdict::VerdictBroken)
    };
    let damaged = answer.layers.iter().any(bad);
    let rows: Vec<Row> = answer.layers.into_iter().map(row).collect();
    list(output, &rows, &["LAYER", "STATE", "IMAGES"], |row| {
        let state =
            if row.why.is_empty() { row.verdict.to_owned() } else { format!("{}: {}", row.verdict, row.why) };
        let hex = row.layer.trim_start_matches("sha256:");
        vec![hex.chars().take(12).collect(), state, row.images.join(" ")]
    })?;
    Ok(if damaged { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn row(layer: VerifiedLayer) -> Row {
    let verdict = match layer.verdict() {
        LayerVerdict::VerdictIntact => "intact",
        LayerVerdict::VerdictUnknown => "not known yet",
        LayerVerdict::VerdictDamaged => "damaged",
        LayerVerdict::VerdictRepaired => "pulled again",
        LayerVerdict::VerdictBroken => "damaged, and stays so",
    };
    Row { layer: layer.diff_id, verdict, why: layer.why, images: layer.images }
}
