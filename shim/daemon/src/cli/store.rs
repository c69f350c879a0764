//! `slipway pull`, `slipway import` and `slipway rmi`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use cri_proto::slipway::ImportRequest;
use cri_proto::v1 as cri;
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

#[derive(Debug, clap::Args)]
pub(crate) struct RemoveArgs {
    /// Names or ids
    #[arg(value_name = "REF", required = true)]
    images: Vec<String>,
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
    for skipped in &answer.skipped {
        eprintln!("left out: {skipped}");
    }
    let stored: Vec<_> =
        answer.images.into_iter().map(|image| Stored { id: image.id, names: image.names }).collect();
    show(&stored, output)
}

/// All are looked for before the first is removed: a mistyped name removes nothing.
pub(crate) async fn remove(client: &mut Client, args: &RemoveArgs, output: Output) -> Result<()> {
    let spec = |name: &String| Some(cri::ImageSpec { image: name.clone(), ..Default::default() });
    let mut found = Vec::new();
    for name in &args.images {
        let request = cri::ImageStatusRequest { image: spec(name), verbose: false };
        let status = client.images.image_status(request).await.map_err(said(&format!("find {name}")))?;
        let image = status.into_inner().image.with_context(|| format!("there is no image {name:?}"))?;
        found.push(Stored { id: image.id, names: image.repo_tags });
    }
    for image in &found {
        let request = cri::RemoveImageRequest { image: spec(&image.id) };
        client.images.remove_image(request).await.map_err(said(&format!("remove {}", image.id)))?;
    }
    show(&found, output)
}

fn show(stored: &[Stored], output: Output) -> Result<()> {
    if output == Output::Json {
        return json(&stored);
    }
    stored.iter().try_for_each(|image| print(&format!("{} {}\n", image.id, image.names.join(" "))))
}
