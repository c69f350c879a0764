//! `slipway export`: images as an archive in a file, whole or not at all, or on standard output.

use super::client::{Client, said};
use super::output::Progress;
use anyhow::{Context, Result, bail};
use cri_proto::slipway::ExportRequest;
use std::io::{IsTerminal as _, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(crate) struct ExportArgs {
    /// Names or ids
    #[arg(value_name = "REF", required = true)]
    images: Vec<String>,
    /// Archive to be written, a tar; one that is there is replaced when the new one is whole. -: standard output
    file: PathBuf,
}

pub(crate) async fn export(client: &mut Client, args: &ExportArgs) -> Result<()> {
    let progress = Progress::new();
    progress.step(&format!("exporting {}", args.images.join(", ")));
    if args.file == Path::new("-") {
        let out = std::io::stdout();
        if out.is_terminal() {
            bail!("an archive is nothing for a terminal: name a file, or redirect the output");
        }
        return receive(client, &args.images, &mut out.lock()).await.map(drop);
    }
    if args.file.is_dir() {
        bail!("{} is a directory: name the archive's file", args.file.display());
    }
    let path = std::path::absolute(&args.file).with_context(|| args.file.display().to_string())?;
    let directory = path.parent().with_context(|| format!("{} is no file", path.display()))?;
    let failed = || format!("write {}", path.display());
    let mut file =
        tempfile::Builder::new().prefix(".slipway-export").tempfile_in(directory).with_context(failed)?;
    let bytes = receive(client, &args.images, file.as_file_mut()).await?;
    file.as_file().sync_all().with_context(failed)?;
    file.persist(&path).with_context(failed)?;
    progress.done(&format!("{}: {bytes} bytes", path.display()));
    progress.end();
    Ok(())
}

/// How many bytes came.
async fn receive(client: &mut Client, images: &[String], out: &mut impl Write) -> Result<u64> {
    let step = format!("export {}", images.join(", "));
    let request = ExportRequest { images: images.to_vec() };
    let mut pieces = client.local.export(request).await.map_err(said(&step))?.into_inner();
    let mut bytes = 0;
    while let Some(piece) = pieces.message().await.map_err(said(&step))? {
        out.write_all(&piece.data).context("write the archive")?;
        bytes += piece.data.len() as u64;
    }
    out.flush().context("write the archive")?;
    Ok(bytes)
}
