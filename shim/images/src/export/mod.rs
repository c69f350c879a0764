//! Images as an archive: an OCI layout with `manifest.json` of `docker save` beside it, as containerd writes them.
//!
//! The store keeps layers unpacked and nothing compressed, so they are packed anew ([`crate::pack`]): the same files in plain tars,
//! whose digests are not those of the registry's blobs. The image's config gets the new diff ids, and so image and manifest have
//! other digests than what was pulled, the same at each export. A layer is packed twice, for its digest (which names it) and for
//! its bytes: that takes no space.

mod artifact;
mod files;

use crate::digest::{Digest, Hasher};
use crate::manifest::parse_config;
use crate::pack::holes::Holes;
use crate::pack::tree::Source;
use crate::reference::Reference;
use crate::store::record::Stored;
use crate::store::{Inner, Store};
use crate::{Error, Kind, Result};
use artifact::Artifact;
use files::Files;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Arc;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// What the publisher called it is not kept.
const ARTIFACT: &str = "application/vnd.unknown.artifact.v1";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const FILE: &str = "application/octet-stream";
const TITLE: &str = "org.opencontainers.image.title";

impl Store {
    /// Writes `images` (by name or id) to `out` as one archive. Blocks, for as long as `out` does.
    ///
    /// # Errors
    /// `NotFound` before the first byte; `Cancelled` if `out` takes no more; `Corrupt` for a layer that changes meanwhile. What was
    /// written by then is no archive.
    pub fn export(&self, images: &[String], out: &mut dyn Write) -> Result<()> {
        let wanted = wanted(&self.inner, images)?;
        // No removal takes their layers away under our hands.
        let keys =
            wanted.iter().flat_map(|(stored, _)| &stored.record.layers).map(|layer| layer.key.as_str());
        let _pinned = self.inner.pin_layers(keys)?;
        Export::new(&self.inner).run(&wanted, out)
    }
}

/// Each image once, with the names that it was asked by; by an id, with all that it has.
fn wanted(inner: &Inner, images: &[String]) -> Result<Vec<(Stored, BTreeSet<String>)>> {
    let catalog = inner.catalog();
    let mut found: BTreeMap<String, (Stored, BTreeSet<String>)> = BTreeMap::new();
    for name in images {
        let stored = catalog.find(name).ok_or_else(|| {
            Error::new(Kind::NotFound, "export image", name, "it is not in the store: pull it first")
        })?;
        let (_, names) =
            found.entry(stored.record.id.clone()).or_insert_with(|| (stored.clone(), BTreeSet::new()));
        let tag = Reference::parse(name).ok().map(|reference| reference.to_string());
        match tag.filter(|tag| stored.record.tags.contains(tag)) {
            Some(tag) => {
                names.insert(tag);
            }
            None => names.extend(stored.record.tags.iter().cloned()),
        }
    }
    Ok(found.into_values().collect())
}

/// A layer that was packed once.
struct Measured {
    digest: Digest,
    size: u64,
    holes: Holes,
}

/// What the archive holds beside layers, and which layers.
struct Export<'a> {
    inner: &'a Inner,
    /// By key.
    layers: BTreeMap<String, Measured>,
    /// Of artifacts: by key, what the file is called.
    titles: BTreeMap<String, String>,
    small: BTreeMap<Digest, Vec<u8>>,
    entries: Vec<Value>,
    docker: Vec<Value>,
}

impl<'a> Export<'a> {
    fn new(inner: &'a Inner) -> Self {
        Self {
            inner,
            layers: BTreeMap::new(),
            titles: BTreeMap::new(),
            small: BTreeMap::new(),
            entries: Vec::new(),
            docker: Vec::new(),
        }
    }

    fn run(mut self, wanted: &[(Stored, BTreeSet<String>)], out: &mut dyn Write) -> Result<()> {
        for (stored, names) in wanted {
            self.image(stored, names)?;
        }
        let mut files = Files::new(out);
        files.put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut written = BTreeSet::new();
        let mut layers: Vec<_> = std::mem::take(&mut self.layers).into_iter().collect();
        // Keys differ between stores, digests do not.
        layers.sort_by(|(_, one), (_, other)| one.digest.cmp(&other.digest));
        for (key, mut measured) in layers {
            if written.insert(measured.digest.clone()) {
                let (digest, size) = (measured.digest.clone(), measured.size);
                files
                    .stream(&blob(&digest), size, |out| self.pack(&key, &mut measured.holes, &digest, out))?;
            }
        }
        for (digest, bytes) in &self.small {
            if written.insert(digest.clone()) {
                files.put(&blob(digest), bytes)?;
            }
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.entries});
        files.put("index.json", index.to_string().as_bytes())?;
        if !self.docker.is_empty() {
            files.put("manifest.json", Value::Array(self.docker).to_string().as_bytes())?;
        }
        files.end()
    }

    fn image(&mut self, stored: &Stored, names: &BTreeSet<String>) -> Result<()> {
        let record = &stored.record;
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in &record.layers {
            let (digest, size) = self.measure(&layer.key, record.is_artifact)?;
            let mut descriptor = json!({"mediaType": LAYER, "digest": digest.as_str(), "size": size});
            if let Some(title) = self.titles.get(&layer.key) {
                descriptor["mediaType"] = FILE.into();
                descriptor["annotations"] = json!({TITLE: title});
            }
            diff_ids.push(digest);
            layers.push(descriptor);
        }
        let config = parse_config(record.config.clone().into_bytes(), &record.id)?;
        let mut manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers});
        if record.is_artifact {
            manifest["artifactType"] = ARTIFACT.into();
            manifest["config"] = self.small(EMPTY, b"{}".to_vec());
        } else {
            let mut text: Value = serde_json::from_str(&record.config)
                .map_err(|e| Error::corrupt("export image", &record.id, e))?;
            text["rootfs"]["diff_ids"] = diff_ids.iter().map(Digest::as_str).collect();
            manifest["config"] = self.small(CONFIG, text.to_string().into_bytes());
            let path = |digest: &Value| digest.as_str().unwrap_or_default().replace(':', "/");
            self.docker.push(json!({
                "Config": format!("blobs/{}", path(&manifest["config"]["digest"])),
                "RepoTags": names,
                "Layers": diff_ids.iter().map(blob).collect::<Vec<_>>(),
            }));
        }
        let mut entry = self.small(MANIFEST, manifest.to_string().into_bytes());
        if !record.is_artifact {
            entry["platform"] =
                json!({"os": config.platform.os, "architecture": config.platform.architecture});
            if !config.platform.variant.is_empty() {
                entry["platform"]["variant"] = config.platform.variant.into();
            }
        }
        if names.is_empty() {
            self.entries.push(entry.clone());
        }
        for name in names {
            let tag = name.rsplit_once(':').map_or("", |(_, tag)| tag);
            entry["annotations"] =
                json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
            self.entries.push(entry.clone());
        }
        Ok(())
    }

    /// The descriptor of a document, which is kept to be written.
    fn small(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::sha256(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest.as_str(), "size": bytes.len()});
        self.small.insert(digest, bytes);
        descriptor
    }

    fn measure(&mut self, key: &str, is_artifact: bool) -> Result<(Digest, u64)> {
        if let Some(known) = self.layers.get(key) {
            return Ok((known.digest.clone(), known.size));
        }
        if is_artifact {
            self.titles.insert(key.to_owned(), self.artifact(key)?.title()?);
        }
        let mut sink = Summing { hasher: Hasher::sha256(), size: 0, out: &mut io::sink() };
        let mut holes = Holes::default();
        self.write(key, &mut holes, &mut sink)?;
        let (digest, size) = (sink.hasher.finish(), sink.size);
        self.layers.insert(key.to_owned(), Measured { digest: digest.clone(), size, holes });
        Ok((digest, size))
    }

    /// The second time.
    fn pack(&self, key: &str, holes: &mut Holes, digest: &Digest, out: &mut dyn Write) -> Result<()> {
        let mut sink = Summing { hasher: Hasher::sha256(), size: 0, out };
        self.write(key, holes, &mut sink)?;
        if sink.hasher.finish() == *digest {
            return Ok(());
        }
        let why = "a file of it changed meanwhile: slipway images verify tells more";
        Err(Error::corrupt("export layer", key, why))
    }

    fn write(&self, key: &str, holes: &mut Holes, out: &mut dyn Write) -> Result<()> {
        if let Some(title) = self.titles.get(key) {
            return self.artifact(key)?.content(title, out);
        }
        let record = self.inner.layer_record(key)?;
        let source = Source::layer(&self.inner.layout().layer(key), record.root, record.root_opaque)?;
        source.pack(holes, out).map(drop)
    }

    fn artifact(&self, key: &str) -> Result<Artifact> {
        Artifact::open(&self.inner.layout().layer(key))
    }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/{}", digest.as_str().replace(':', "/"))
}

/// Hashes and counts what goes through.
struct Summing<'a> {
    hasher: Hasher,
    size: u64,
    out: &'a mut dyn Write,
}

impl Write for Summing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A failed write of the archive: whoever takes it is gone, or has no room.
fn unwritten(error: io::Error) -> Error {
    crate::pack::failed("archive", error)
}

/// For [`Arc`]s of the store, as its other rooms have them.
impl Inner {
    fn pin_layers<'k>(
        self: &Arc<Self>,
        keys: impl Iterator<Item = &'k str>,
    ) -> Result<Vec<crate::store::layers::Pinned>> {
        keys.map(|key| self.pin_layer(key)).collect()
    }
}
