//! OCI artifacts: manifests whose content is files and no root file system (OCI image-spec manifest.md, "Guidelines for
//! Artifact Usage"). Each blob becomes a layer with one file, so that store, sharing, verification and mounting are those of
//! images; such an image cannot be run, only mounted.

use crate::digest::Digest;
use crate::manifest::{Config, Descriptor, Manifest, parse_config};
use crate::platform::Platform;
use crate::{Error, Result};
use std::io::{Cursor, Read};
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

const TITLE: &str = "org.opencontainers.image.title";
const RECORD: u64 = 512;

/// The config that an artifact is stored with: it has none of its own that means anything here.
///
/// # Errors
/// Invalid: a blob whose title is no path for a file.
pub(crate) fn config(manifest: &Manifest, object: &str) -> Result<Config> {
    let ids = manifest.layers.iter().map(|layer| Ok(Blob::of(layer)?.identity().to_string()));
    let ids = ids.collect::<Result<Vec<String>>>()?;
    let host = Platform::host();
    let config = serde_json::json!({
        "os": host.os, "architecture": host.architecture, "variant": host.variant,
        "rootfs": {"type": "layers", "diff_ids": ids},
    });
    parse_config(config.to_string().into_bytes(), object)
}

/// A blob as the file that it becomes.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    /// Path below the volume: what the publisher calls it, or its digest.
    path: String,
    digest: Digest,
    size: u64,
}

impl Blob {
    pub(crate) fn of(layer: &Descriptor) -> Result<Self> {
        let digest = layer.digest()?;
        let title = layer.annotations.as_ref().and_then(|all| all.get(TITLE));
        let path = title.cloned().unwrap_or_else(|| digest.hex().to_owned());
        if !is_a_file_below(&path) {
            let why = format!("{TITLE} {path:?} is no relative path of a file");
            return Err(Error::invalid("read artifact", digest, why));
        }
        Ok(Self { path, size: layer.size()?, digest })
    }

    /// What a layer's diff id is for others: of two equal ones one is enough. No archive has it for its own digest.
    pub(crate) fn identity(&self) -> Digest {
        Digest::sha256(format!("slipway artifact file\0{}\0{}", self.digest, self.path).as_bytes())
    }

    /// `content`, of as many bytes as the descriptor says, as a tar archive.
    ///
    /// # Errors
    /// Invalid: larger than an archive can say.
    pub(crate) fn archive<R: Read>(&self, content: R) -> Result<impl Read + use<R>> {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(&self.path).entry_type(EntryType::Regular);
        let numbers =
            entry.mode(0o644).and_then(|e| e.uid(0)).and_then(|e| e.gid(0)).and_then(|e| e.mtime(0));
        let sized = numbers.and_then(|e| e.size(self.size));
        sized.map_err(|e| Error::invalid("read artifact", &self.digest, e))?;
        let padding = self.size.next_multiple_of(RECORD) - self.size;
        let end = std::io::repeat(0).take(padding + 2 * RECORD);
        Ok(Cursor::new(entry.finish_bytes()).chain(content).chain(end))
    }
}

/// Relative, without a component that means something else to a path or to a layer.
fn is_a_file_below(path: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.starts_with(".wh.");
    path.len() < 4096 && !path.contains('\0') && path.split('/').all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(title: &str) -> Result<Blob> {
        let digest = format!("sha256:{}", "1".repeat(64));
        let text = serde_json::json!({"digest": digest, "size": 5, "annotations": {TITLE: title}});
        Blob::of(&serde_json::from_value(text).expect("a descriptor"))
    }

    #[test]
    fn titles_are_files_below_the_volume() {
        assert!(blob("a").is_ok() && blob("models/weights.bin").is_ok());
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".", "x/.wh.y", ".wh..wh..opq", "a\0b"]
        {
            let error = blob(bad).expect_err(bad).to_string();
            assert!(error.contains("title"), "{error}");
        }
    }

    #[test]
    fn the_same_blob_by_another_name_is_another_file() {
        let identity = |title: &str| blob(title).expect("a blob").identity();
        assert_eq!(identity("a"), identity("a"));
        assert_ne!(identity("a"), identity("b"));
    }
}
