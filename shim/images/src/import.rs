//! Images from a file: `docker save` (its own form, and the OCI layout inside newer ones), OCI layout as tar or
//! directory, any of the tars compressed. Layers go through the same pipeline as those of a registry, and so do artifacts of
//! OCI layouts that have a name; those without one (signatures, lists of parts) are left out and told.

use crate::artifact::{self, Blob};
use crate::digest::Digest;
use crate::manifest::{
    Descriptor, Document, MAX_CONFIG, MAX_MANIFEST, Manifest, check_depth, choose, no_match, parse,
    parse_config,
};
use crate::pipeline::{Section, Source};
use crate::plan::{Plan, Wanted};
use crate::platform::Platform;
use crate::pull::{Chosen, check_counts, commit};
use crate::reference::Reference;
use crate::store::layout::Temporary;
use crate::store::{Inner, NewImage, Store};
use crate::types::Imported;
use crate::unpack::archive::{Archive, Limits, What, clean};
use crate::unpack::decode::decode_unbuffered;
use crate::{Error, Kind, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) async fn import(store: &Store, archive: &Path, name: Option<&str>) -> Result<Imported> {
    let inner = &store.inner;
    let name = name.map(Reference::parse).transpose()?;
    let is_named = name.is_some();
    let (found, skipped) = {
        let (inner, archive) = (inner.clone(), archive.to_owned());
        let read = tokio::task::spawn_blocking(move || read(&inner, &archive, is_named)).await;
        read.unwrap_or_else(|_| Err(Error::cancelled("import", "task")))?
    };
    let found = named(found, name.as_ref(), archive)?;
    let policy = inner.policy();
    for image in &found {
        inner.counted(crate::policy::importable(&policy, &image.names))?;
    }
    let mut images = Vec::new();
    for image in found {
        let plan = Arc::new(Plan::new(inner, image.layers, None));
        let pinned = plan.ready().await?;
        let new = NewImage {
            id: image.id,
            config: image.config,
            is_artifact: image.is_artifact,
            checkpoint: image.checkpoint,
            size: image.size,
            chain_ids: plan.chain_ids().to_vec(),
            tags: image.names.iter().filter(|n| n.tag.is_some()).map(ToString::to_string).collect(),
            digests: digest_names(&image.names, image.manifest.as_ref()),
            // Nobody signed an archive.
            verified: Vec::new(),
        };
        images.push(commit(inner, new, pinned).await?);
    }
    Ok(Imported { images, skipped })
}

/// `name@digest` for each name, if the archive holds the manifest as the registry had it.
fn digest_names(names: &[Reference], manifest: Option<&Digest>) -> Vec<String> {
    let mut all: Vec<String> =
        names.iter().filter_map(|n| manifest.map(|digest| n.with_digest(digest))).collect();
    all.sort();
    all.dedup();
    all
}

/// An image of the archive.
struct Found {
    id: Digest,
    config: String,
    size: u64,
    layers: Vec<Wanted>,
    names: Vec<Reference>,
    manifest: Option<Digest>,
    checkpoint: Option<String>,
    is_artifact: bool,
}

/// What an archive holds, and what is left out of it, a sentence each.
type Content = (Vec<Found>, Vec<String>);

fn named(mut found: Vec<Found>, name: Option<&Reference>, archive: &Path) -> Result<Vec<Found>> {
    let wrong = |why: &str| Err(Error::invalid("import", archive.display(), why));
    if let Some(name) = name {
        let [only] = found.as_mut_slice() else {
            return wrong("holds several images: import it without a name");
        };
        if name.digest.is_some() {
            return wrong("the name to import under must be a tag");
        }
        only.names = vec![name.clone()];
    }
    if found.iter().any(|image| image.names.is_empty()) {
        return wrong("holds an image without a name: give one");
    }
    Ok(found)
}

/// `is_named`: the caller has a name for what has none.
fn read(inner: &Inner, path: &Path, is_named: bool) -> Result<Content> {
    let bundle = Bundle::open(inner, path)?;
    let docker = match bundle.find("manifest.json") {
        Some(section) => bundle.json::<Vec<DockerImage>>(&section, "manifest.json")?,
        None => Vec::new(),
    };
    let found = match bundle.find("index.json") {
        Some(section) => bundle.oci(&section, &docker)?,
        None => docker.iter().map(|image| bundle.docker(image)).collect::<Result<_>>()?,
    };
    let (found, skipped) = without_companions(found, is_named);
    if found.is_empty() {
        return Err(Error::invalid(
            "import",
            path.display(),
            "no image in it: neither index.json nor manifest.json",
        ));
    }
    Ok((found, skipped))
}

/// Artifacts without a name come with the images: they are left out, unless there is nothing else. A name of the caller's is for
/// the image.
fn without_companions(found: Vec<Found>, is_named: bool) -> Content {
    let has_images = found.iter().any(|one| !one.is_artifact);
    let is_companion = |one: &Found| one.is_artifact && has_images && (is_named || one.names.is_empty());
    let (left, kept): (Vec<_>, Vec<_>) = found.into_iter().partition(is_companion);
    let told = |one: Found| {
        let digest = one.manifest.map(|digest| digest.to_string()).unwrap_or_default();
        let names: Vec<_> = one.names.iter().map(ToString::to_string).collect();
        let why = if names.is_empty() {
            "an artifact without a name"
        } else {
            "an artifact beside the image that was named"
        };
        format!("{digest} {}: {why}", names.join(" "))
    };
    (kept, left.into_iter().map(told).collect())
}

/// An entry of manifest.json (`docker save`).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl DockerImage {
    fn names(&self) -> Result<Vec<Reference>> {
        self.repo_tags.iter().flatten().map(|tag| Reference::parse(tag)).collect()
    }
}

/// Files by name.
struct Bundle {
    path: PathBuf,
    content: Files,
}

enum Files {
    Directory,
    Tar(HashMap<String, Section>),
}

impl Bundle {
    fn open(inner: &Inner, path: &Path) -> Result<Self> {
        let failed = |e| Error::io("import", path, e);
        if std::fs::metadata(path).map_err(failed)?.is_dir() {
            return Ok(Self { path: path.to_owned(), content: Files::Directory });
        }
        let file = File::open(path).map_err(failed)?;
        let file = Arc::new(plain(inner, file, path)?);
        Ok(Self { path: path.to_owned(), content: Files::Tar(index(&file, path)?) })
    }

    fn wrong(&self, why: impl std::fmt::Display) -> Error {
        Error::corrupt("import", self.path.display(), why)
    }

    fn find(&self, name: &str) -> Option<Section> {
        match &self.content {
            Files::Tar(entries) => entries.get(name).cloned(),
            Files::Directory => {
                let file = File::open(self.path.join(name)).ok()?;
                let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
                Some(Section { file: Arc::new(file), offset: 0, length: metadata.len() })
            }
        }
    }

    fn get(&self, name: &str) -> Result<Section> {
        self.find(name).ok_or_else(|| self.wrong(format!("{name} is missing")))
    }

    fn bytes(&self, section: &Section, name: &str, limit: u64) -> Result<Vec<u8>> {
        if section.length > limit {
            return Err(self.wrong(format!("{name} is longer than {limit} bytes")));
        }
        let mut bytes = Vec::new();
        section.reader().read_to_end(&mut bytes).map_err(|e| Error::io("import", &self.path, e))?;
        Ok(bytes)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, section: &Section, name: &str) -> Result<T> {
        let bytes = self.bytes(section, name, MAX_MANIFEST)?;
        serde_json::from_slice(&bytes).map_err(|e| self.wrong(format!("{name}: {e}")))
    }

    fn blob(&self, digest: &Digest) -> Result<Section> {
        let (algorithm, hex) = digest.as_str().split_at(6);
        self.get(&format!("blobs/{algorithm}/{}", &hex[1..]))
    }

    fn verified(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        let digest = descriptor.digest()?;
        let bytes = self.bytes(&self.blob(&digest)?, digest.as_str(), limit)?;
        if digest.matches(&bytes) { Ok(bytes) } else { Err(self.wrong(format!("{digest}: digest mismatch"))) }
    }

    /// The images of index.json; those for other platforms are left out as long as one is for ours.
    fn oci(&self, section: &Section, docker: &[DockerImage]) -> Result<Vec<Found>> {
        let bytes = self.bytes(section, "index.json", MAX_MANIFEST)?;
        let Document::Index(entries) = parse(&bytes, "", "index.json")? else {
            return Err(self.wrong("index.json is no index"));
        };
        let mut found: Vec<Found> = Vec::new();
        for entry in &entries {
            if entry.platform.as_ref().is_some_and(|platform| Platform::host().rank(platform).is_none()) {
                continue;
            }
            let Some(chosen) = self.select(entry, 0)? else { continue };
            let mut image = self.oci_image(&chosen, entry.digest()?)?;
            image.names = oci_names(entry.annotations.as_ref())?;
            if image.names.is_empty() {
                let same = docker.iter().find(|d| d.config.contains(image.id.hex()));
                image.names = same.map(DockerImage::names).transpose()?.unwrap_or_default();
            }
            // One image under several names is several entries.
            match found.iter_mut().find(|other| other.id == image.id) {
                Some(other) => other.names.append(&mut image.names),
                None => found.push(image),
            }
        }
        if found.is_empty() {
            return Err(no_match(&self.path.display().to_string(), &Platform::host(), &entries));
        }
        Ok(found)
    }

    fn select(&self, entry: &Descriptor, depth: usize) -> Result<Option<Chosen>> {
        let bytes = self.verified(entry, MAX_MANIFEST)?;
        match parse(&bytes, &entry.media_type, &entry.digest)? {
            // In an index they are what comes with an image.
            Document::Manifest(manifest) if manifest.is_artifact() && depth > 0 => Ok(None),
            Document::Manifest(manifest) if manifest.is_artifact() => {
                let config = artifact::config(&manifest, &entry.digest)?;
                Ok(Some(Chosen { manifest: *manifest, config, size: bytes.len() as u64 }))
            }
            Document::Manifest(manifest) => {
                let config =
                    parse_config(self.verified(&manifest.config, MAX_CONFIG)?, &manifest.config.digest)?;
                let fits = Platform::host().rank(&config.platform).is_some();
                Ok(fits.then_some(Chosen { manifest: *manifest, config, size: bytes.len() as u64 }))
            }
            Document::Index(_) if depth == 4 => Err(self.wrong("indexes nested too deep")),
            Document::Index(entries) => {
                let (best, silent) = choose(&entries, &Platform::host());
                for entry in best.map_or(silent, |best| vec![best]) {
                    if let Some(chosen) = self.select(entry, depth + 1)? {
                        return Ok(Some(chosen));
                    }
                }
                Ok(None)
            }
        }
    }

    fn oci_image(&self, chosen: &Chosen, manifest: Digest) -> Result<Found> {
        check_counts(chosen, manifest.as_str())?;
        let is_artifact = chosen.manifest.is_artifact();
        let layer = |(descriptor, diff_id): (&Descriptor, &Digest)| {
            let digest = descriptor.digest()?;
            let section = self.blob(&digest)?;
            if section.length != descriptor.size()? {
                return Err(self.wrong(format!(
                    "{digest} is {} bytes, the manifest says {}",
                    section.length, descriptor.size
                )));
            }
            Ok(Wanted {
                diff_id: diff_id.clone(),
                name: digest.to_string(),
                size: section.length,
                source: Source::File(
                    section,
                    Some(digest),
                    is_artifact.then(|| Blob::of(descriptor)).transpose()?,
                ),
            })
        };
        let Manifest { layers, checkpoint, .. } = &chosen.manifest;
        Ok(Found {
            id: chosen.id()?,
            is_artifact,
            config: chosen.config.raw.clone(),
            size: chosen.manifest.total_size()?.saturating_add(chosen.size),
            layers: layers.iter().zip(&chosen.config.diff_ids).map(layer).collect::<Result<_>>()?,
            names: Vec::new(),
            manifest: Some(manifest),
            checkpoint: checkpoint.clone(),
        })
    }

    /// Docker's own form: nothing has a digest but the unpacked layers, and those are checked.
    fn docker(&self, image: &DockerImage) -> Result<Found> {
        let section = self.get(&image.config)?;
        let bytes = self.bytes(&section, &image.config, MAX_CONFIG)?;
        let id = Digest::sha256(&bytes);
        let config = parse_config(bytes, &image.config)?;
        let paths = image.layers.as_deref().unwrap_or_default();
        check_depth(paths.len(), self.path.display())?;
        if paths.len() != config.diff_ids.len() {
            let why = format!("{} layers, but {} diff ids in the config", paths.len(), config.diff_ids.len());
            return Err(self.wrong(why));
        }
        if Platform::host().rank(&config.platform).is_none() {
            let why = format!("is for {}, this machine is {}", config.platform, Platform::host());
            return Err(Error::new(Kind::NotFound, "import", self.path.display(), why));
        }
        let mut size = section.length;
        let mut layers = Vec::new();
        for (path, diff_id) in paths.iter().zip(&config.diff_ids) {
            let section = self.get(path)?;
            size = size.saturating_add(section.length);
            layers.push(Wanted {
                diff_id: diff_id.clone(),
                name: path.clone(),
                size: section.length,
                source: Source::File(section, None, None),
            });
        }
        Ok(Found {
            id,
            config: config.raw,
            size,
            layers,
            names: image.names()?,
            manifest: None,
            checkpoint: None,
            is_artifact: false,
        })
    }
}

/// The full name is in containerd's annotation; OCI's own may hold a full name or only a tag, which names nothing.
fn oci_names(annotations: Option<&BTreeMap<String, String>>) -> Result<Vec<Reference>> {
    let get = |key: &str| annotations.and_then(|annotations| annotations.get(key));
    let full = get("io.containerd.image.name")
        .or_else(|| get("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':'])));
    full.map(|name| Reference::parse(name)).transpose().map(|name| name.into_iter().collect())
}

/// `file` itself, or its content decompressed into a nameless file of the store: blobs are read by position.
fn plain(inner: &Inner, file: File, path: &Path) -> Result<File> {
    use std::os::unix::fs::FileExt;
    let failed = |e| Error::io("import", path, e);
    let mut magic = [0; 4];
    let count = file.read_at(&mut magic, 0).map_err(failed)?;
    let is_plain = count < 4
        || !matches!(magic, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18]);
    if is_plain {
        return Ok(file);
    }
    let temporary = Temporary::name(inner.layout());
    let mut target =
        File::options().read(true).write(true).create_new(true).open(temporary.path()).map_err(failed)?;
    std::fs::remove_file(temporary.path()).map_err(failed)?;
    let limit = Limits::default().stream;
    let mut decoded = decode_unbuffered(file).map_err(failed)?.take(limit);
    std::io::copy(&mut decoded, &mut target).map_err(|e| match e.kind() {
        std::io::ErrorKind::StorageFull => Error::io("import", path, e),
        _ => Error::corrupt("import", path.display(), e),
    })?;
    Ok(target)
}

/// Where each file of the tar lies; links are followed inside it (older `docker save` links equal layers).
fn index(file: &Arc<File>, path: &Path) -> Result<HashMap<String, Section>> {
    let failed = |e| Error::io("import", path, e);
    let length = file.metadata().map_err(failed)?.len();
    let whole = Section { file: file.clone(), offset: 0, length };
    let mut archive = Archive::new(whole.reader(), Limits::default());
    let mut entries: HashMap<String, Section> = HashMap::new();
    let mut links: Vec<(String, String)> = Vec::new();
    let text = |path: &[Vec<u8>]| String::from_utf8_lossy(&path.join(&b"/"[..])).into_owned();
    while let Some(entry) = archive.next()? {
        let name = text(&entry.path);
        match &entry.what {
            What::File { sparse: None } => {
                let section = Section { file: file.clone(), offset: archive.position(), length: entry.size };
                entries.insert(name, section);
            }
            What::Link(target) => links.push((name, text(target))),
            What::Symlink(target) => {
                let parent = entry.path.split_last().map(|(_, parent)| parent).unwrap_or_default();
                let joined = [&parent.join(&b"/"[..])[..], b"/", target].concat();
                links.push((name, text(&clean(&joined, &Limits::default())?)));
            }
            _ => {}
        }
    }
    // Links to links: as many rounds as links at most.
    for _ in 0..links.len() {
        let known: Vec<_> = links
            .iter()
            .filter_map(|(name, target)| Some((name.clone(), entries.get(target)?.clone())))
            .collect();
        let before = entries.len();
        entries.extend(known);
        if entries.len() == before {
            break;
        }
    }
    Ok(entries)
}
