//! What the other rooms see of images: options, credentials, the image itself, progress.

use crate::policy::{Policy, Verification};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What a store is opened with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of the store, made if absent (under the daemon's `--root`).
    pub root: PathBuf,
    pub registries: Registries,
    /// What may be pulled, imported and run; see [`crate::Store::set_policy`].
    pub policy: Policy,
}

/// How registries are asked; may change while the store is open (see [`crate::Store::set_registries`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registries {
    /// hosts.toml directories (containerd's `config_path`), searched per pull; may be empty.
    pub hosts_dirs: Vec<PathBuf>,
    /// Credentials for pulls that bring none, and for mirrors: docker's config.json, read per pull.
    pub auth_file: Option<PathBuf>,
    /// Layers downloaded at once per image; 0 counts as 1.
    pub parallel_layers: usize,
}

/// Credentials as the kubelet sends them (IMG-AUTH-14).
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Auth {
    pub username: String,
    pub password: String,
    pub auth: String,
    pub server_address: String,
    pub identity_token: String,
    pub registry_token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth(…)")
    }
}

/// The part of an image config that creating a container needs (OCI image-spec config.md).
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageConfig {
    pub user: String,
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub working_dir: String,
    pub stop_signal: String,
    pub volumes: Vec<String>,
    pub exposed_ports: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

/// An image in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:<hex>` of the config JSON (CRI-IMG-04); of an artifact, of the one that it is stored with.
    pub id: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    /// Bytes on the wire (compressed) as the manifest says, at least 1.
    pub size: u64,
    pub config: ImageConfig,
    /// The config JSON as stored, for verbose answers.
    pub raw_config: Arc<str>,
    /// Chain ids, bottom first.
    pub layers: Vec<String>,
    pub pinned: bool,
    /// Files to be mounted, and no root file system to run in.
    pub is_artifact: bool,
    /// Files of a checkpoint of the container of this name, and no root file system to run in.
    pub checkpoint: Option<String>,
    /// Signatures that were good when it was pulled.
    pub verified: Vec<Verification>,
}

/// What an import brought.
#[derive(Debug, Clone)]
pub struct Imported {
    pub images: Vec<Arc<Image>>,
    /// What was left out, a sentence each.
    pub skipped: Vec<String>,
}

/// One step of a pull, for progress bars and logs.
#[derive(Debug, Clone)]
pub enum Progress {
    Resolved { reference: String, layers: usize, bytes: u64 },
    Layer { digest: String, done: u64, total: u64 },
    LayerReady { digest: String, cached: bool },
}

/// Receiver of progress; must not block.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// What the disk holds.
#[derive(Debug, Clone)]
pub struct FsInfo {
    /// The store's directory; it exists and can be given to statfs(2) (CRI-IMG-27).
    pub mountpoint: PathBuf,
    /// Bytes of all unpacked layers; writable layers are counted by [`crate::Store::usage`].
    pub used_bytes: u64,
    pub inodes_used: u64,
}
