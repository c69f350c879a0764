//! `slipway pull` and `slipway import`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use cri_proto::slipway::ImportRequest;
use serde::Serialize;

use super::client::{Client, said};
use super::output::{Output, Progress, json, print};

#[derive(Debug, clap::Args)]
pub(crate) struct PullArgs {
    /// Reference: HOST/NAME[:TAG][@DIGEST]
    #[arg(value_name = "REF")]
    image: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ImportArgs {
    /// Archive (plain, gzip or zstd), or a directory in OCI layout
    archive: PathBuf,
    /// Name for an image that has none in the archive
    #[arg(long, value_name = "REF")]
    name: Option<String>,
}

#[derive(Debug, Serialize)]
struct Stored {
    id: String,
    names: Vec<String>,
}

pub(crate) async fn pull(client: &mut Client, args: &PullArgs, output: Output) -> Result<()> {
    let progress = Progress::new();
    let id = super::pull::pull(client, &args.image, &progress).await?;
    progress.end();
    show(&[Stored { id, names: vec![args.image.clone()] }], output)
}

pub(crate) async fn import(client: &mut Client, args: &ImportArgs, output: Output) -> Result<()> {
    let path = args.archive.canonicalize().with_context(|| format!("read {}", args.archive.display()))?;
    let text = path.to_str().with_context(|| format!("path {} is not UTF-8", path.display()))?;
    let progress = Progress::new();
    progress.step(&format!("importing {text}"));
    let request = ImportRequest { path: text.to_owned(), name: args.name.clone().unwrap_or_default() };
    let answer = client.local.import(request).await.map_err(said(&format!("import {text}")))?.into_inner();
    progress.end();
    let stored: Vec<_> =
        answer.images.into_iter().map(|image| Stored { id: image.id, names: image.names }).collect();
    show(&stored, output)
}

fn show(stored: &[Stored], output: Output) -> Result<()> {
    if output == Output::Json {
        return json(&stored);
    }
    stored.iter().try_for_each(|image| print(&format!("{} {}\n", image.id, image.names.join(" "))))
}
