//! Images: from a reference to layers in overlay form. Knows registries and files, not pods.
//!
//! One pass per layer: network → digest → decompress → digest → unpack; no compressed copy is kept. A layer is stored
//! once by its chain id; it becomes visible by rename, after sync. Names first, content later when removing.

use slipway_runtime::rootfs::Overlay;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Class of a failure; the daemon maps it to a gRPC code in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Invalid,
    NotFound,
    Unauthorized,
    /// The registry could not be reached or answered 5xx: text starts with `RegistryUnavailable` (CRI-IMG-25).
    Unavailable,
    /// Content does not match what was promised (digest, size, diff id, manifest).
    Corrupt,
    Exhausted,
    Cancelled,
    Io,
}

/// `pull 127.0.0.1:5000/app:1: layer sha256:…: digest mismatch …; hint`.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {object}: {cause}")]
pub struct Error {
    pub kind: Kind,
    pub step: String,
    pub object: String,
    pub cause: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where things are and how much may run at once.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of the store, made if absent (under the daemon's `--root`).
    pub root: PathBuf,
    /// hosts.toml directories (containerd's `config_path`), searched per pull; may be empty.
    pub hosts_dirs: Vec<PathBuf>,
    /// Layers downloaded at once per image.
    pub parallel_layers: usize,
}

/// Credentials as the kubelet sends them (IMG-AUTH-14).
#[derive(Clone, Default)]
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
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
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
    /// `sha256:<hex>` of the config JSON (CRI-IMG-04).
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
    pub mountpoint: PathBuf,
    pub used_bytes: u64,
    pub inodes_used: u64,
}

/// The image store. Cheap to clone; all calls may run at once; lists come from memory.
#[derive(Debug, Clone)]
pub struct Store {
    _options: Arc<Options>,
}

impl Store {
    /// Opens the store, sets aside and names what is damaged, removes what an unclean stop left half-made.
    pub fn open(options: Options) -> Result<Self> {
        Ok(Self { _options: Arc::new(options) })
    }

    /// Pulls `reference` (tag, digest, or both: then the digest decides). Single flight per image and per layer.
    /// Dropping the future cancels the pull unless another caller waits for it too.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<Auth>,
        progress: Option<ProgressFn>,
    ) -> Result<Arc<Image>> {
        let _ = (reference, auth, progress);
        todo!()
    }

    /// Imports a `docker save` or OCI-layout archive (tar, or compressed tar), or an OCI layout directory. `name`
    /// replaces the names in the archive, and is needed when there are none.
    pub async fn import(&self, archive: &Path, name: Option<&str>) -> Result<Vec<Arc<Image>>> {
        let _ = (archive, name);
        todo!()
    }

    pub fn list(&self) -> Vec<Arc<Image>> {
        todo!()
    }

    /// By id (with or without `sha256:`), normalised tag or digest reference, or unique id prefix (IMG-REF-05).
    pub fn find(&self, image: &str) -> Option<Arc<Image>> {
        let _ = image;
        todo!()
    }

    /// Removes the image with all its names; unknown is success. Layers in use by containers stay until released.
    pub async fn remove(&self, image: &str) -> Result<()> {
        let _ = image;
        todo!()
    }

    pub fn fs_info(&self) -> Result<FsInfo> {
        todo!()
    }

    /// Makes the writable layer of container `owner` on top of `image` and holds the layers until [`Store::release`].
    pub fn prepare(&self, image: &Image, owner: &str) -> Result<Overlay> {
        let _ = (image, owner);
        todo!()
    }

    /// A read-only view of `image` (to read its /etc/passwd; image volumes later). Holds nothing.
    pub fn view(&self, image: &Image) -> Result<Overlay> {
        let _ = image;
        todo!()
    }

    /// Drops the writable layer of `owner`; missing is success. Deleting happens off the caller's path.
    pub fn release(&self, owner: &str) -> Result<()> {
        let _ = owner;
        todo!()
    }

    /// Bytes and inodes of `owner`'s writable layer.
    pub fn usage(&self, owner: &str) -> Result<(u64, u64)> {
        let _ = owner;
        todo!()
    }

    /// Owners that hold writable layers; the daemon compares them with its records at start.
    pub fn owners(&self) -> Vec<String> {
        todo!()
    }
}
