//! The records on disk: small versioned JSON files.

use crate::digest::Digest;
use crate::manifest::parse_config;
use crate::policy::Verification;
use crate::types::Image;
use crate::unpack::tree::{RootAttributes, Usage};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Raised when a reader of the old form would be wrong about the new one.
pub(crate) const VERSION: u32 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) version: u32,
    pub(crate) diff_id: String,
    pub(crate) root: Option<RootAttributes>,
    pub(crate) root_opaque: bool,
    pub(crate) usage: Usage,
    /// What was unpacked, as a digest (see [`super::seal`]); taken after it is on disk.
    #[serde(default)]
    pub(crate) seal: Option<String>,
    /// While set, the files may not have reached the disk: the layer counts only in this boot (see `janitor`).
    pub(crate) unsynced_in_boot: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) version: u32,
    pub(crate) id: String,
    /// Of two records that claim one tag, the higher is right (a tag moved and the process died before the second write).
    pub(crate) generation: u64,
    pub(crate) tags: Vec<String>,
    pub(crate) digests: Vec<String>,
    pub(crate) size: u64,
    pub(crate) config: String,
    /// What a manifest says, never a config: that is the publisher's to write.
    #[serde(default)]
    pub(crate) is_artifact: bool,
    #[serde(default)]
    pub(crate) checkpoint: Option<String>,
    /// Signatures that were good when it was pulled.
    #[serde(default)]
    pub(crate) verified: Vec<Verification>,
    /// Bottom first.
    pub(crate) layers: Vec<LayerRef>,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct LayerRef {
    pub(crate) chain_id: String,
    /// Name in layers/.
    pub(crate) key: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OwnerRecord {
    pub(crate) version: u32,
    pub(crate) image: String,
    /// Keys, bottom first.
    pub(crate) layers: Vec<String>,
}

/// A stored image: its record and what callers see of it.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) record: ImageRecord,
    pub(crate) image: Arc<Image>,
}

impl Stored {
    pub(crate) fn new(record: ImageRecord) -> Result<Self> {
        let config = parse_config(record.config.clone().into_bytes(), &record.id)?;
        let image = Image {
            id: record.id.clone(),
            repo_tags: record.tags.clone(),
            repo_digests: record.digests.clone(),
            size: record.size.max(1),
            config: config.config,
            raw_config: config.raw.into(),
            layers: record.layers.iter().map(|layer| layer.chain_id.clone()).collect(),
            pinned: false,
            is_artifact: record.is_artifact,
            checkpoint: record.checkpoint.clone(),
            verified: record.verified.clone(),
        };
        Ok(Self { record, image: Arc::new(image) })
    }

    /// The same image under other names.
    pub(crate) fn renamed(&self, tags: Vec<String>, digests: Vec<String>, generation: u64) -> Self {
        let record = ImageRecord { tags, digests, generation, ..self.record.clone() };
        let mut image = Image::clone(&self.image);
        image.repo_tags.clone_from(&record.tags);
        image.repo_digests.clone_from(&record.digests);
        Self { record, image: Arc::new(image) }
    }

    /// The same image, with one more signature known of it.
    pub(crate) fn known_by(&self, verified: Vec<Verification>) -> Self {
        let record = ImageRecord { verified, ..self.record.clone() };
        let mut image = Image::clone(&self.image);
        image.verified.clone_from(&record.verified);
        Self { record, image: Arc::new(image) }
    }

    /// The same image, which is this checkpoint, or none.
    pub(crate) fn marked(&self, checkpoint: Option<String>) -> Self {
        let record = ImageRecord { checkpoint, ..self.record.clone() };
        let mut image = Image::clone(&self.image);
        image.checkpoint.clone_from(&record.checkpoint);
        Self { record, image: Arc::new(image) }
    }

    pub(crate) fn hex(&self) -> &str {
        hex_of(&self.record.id)
    }
}

pub(crate) fn hex_of(id: &str) -> &str {
    id.split_once(':').map_or(id, |(_, hex)| hex)
}

/// Name in layers/ of a layer that depends on nothing below it. Short, as paths of overlay mounts should be.
pub(crate) fn shared_key(diff_id: &Digest) -> String {
    diff_id.hex().to_owned()
}

/// Name in layers/ of a layer that was settled over those below. Never equal to a shared one: the lowest layer's chain
/// id is its diff id, but settled over nothing it is of no use higher up.
pub(crate) fn settled_key(chain_id: &Digest) -> String {
    format!("c{}", chain_id.hex())
}

/// Parses a record and refuses versions from the future.
pub(crate) fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if version != VERSION {
        return Err(format!("version {version}, this program knows {VERSION}"));
    }
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

pub(crate) fn to_json<T: Serialize>(record: &T, name: &str) -> Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(|e| Error::invalid("write record", name, e))
}
