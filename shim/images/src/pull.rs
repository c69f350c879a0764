//! From a reference to a stored image.

use crate::artifact::{self, Blob};
use crate::digest::Digest;
use crate::manifest::{self, Config, Document, MAX_CONFIG, Manifest, choose, no_match, parse, parse_config};
use crate::pipeline::Source;
use crate::plan::{Plan, Wanted};
use crate::platform::Platform;
use crate::policy::{self, Verification};
use crate::reference::Reference;
use crate::registry::{Fetched, Registry};
use crate::store::{Inner, NewImage, Store};
use crate::types::{Auth, Image, Progress, ProgressFn};
use crate::{Error, Kind, Result};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

pub(crate) type Pulled = Arc<Image>;

/// Indexes in indexes (IMG-MT-13).
const MAX_NESTING: usize = 4;

/// Equal pulls at the same time are one; equal means also by the same credentials, as who may not pull must not get.
pub(crate) async fn pull(
    store: &Store,
    reference: &str,
    auth: Option<Auth>,
    progress: Option<ProgressFn>,
) -> Result<Arc<Image>> {
    let inner = &store.inner;
    let reference = Reference::parse(reference)?;
    let name = reference.to_string();
    let key = (name.clone(), auth.clone());
    let work = || {
        let inner = inner.clone();
        async move { run(&inner, &reference, auth.as_ref(), progress).await }
    };
    let seat = inner.pulls.board(&key, work);
    match seat.wait().await {
        Some(Ok(image)) => Ok(image),
        // Which image it was: callers see many.
        Some(Err(error)) => Err(Error { object: format!("pull {name}: {}", error.object), ..error }),
        None => Err(Error::cancelled("pull", name)),
    }
}

async fn run(
    inner: &Arc<Inner>,
    reference: &Reference,
    auth: Option<&Auth>,
    progress: Option<ProgressFn>,
) -> Result<Pulled> {
    inner.counted(policy::before_pull(&inner.policy(), reference))?;
    let registry = Arc::new(open(inner, reference, auth).await?);
    let resolved = registry.resolve(reference).await?;
    let tags: Vec<String> = reference.tag.iter().map(|_| reference.to_string()).collect();
    let digest_name = reference.with_digest(&resolved.digest);
    let (policy, known) = (inner.policy(), inner.verified(&digest_name));
    let checked = policy::at_pull(&policy, &registry, reference, &resolved.digest, &known).await;
    let verified = inner.counted(checked)?;
    if let Some(image) = already_here(inner, &digest_name, &tags, verified.as_ref()).await? {
        return Ok(image);
    }
    let document = match resolved.document {
        Some(document) => document,
        None => registry.manifest(&resolved.digest).await?,
    };
    let chosen = select(&registry, resolved.digest, document, 0).await?;
    let chosen = chosen.ok_or_else(|| no_match(&reference.to_string(), &Platform::host(), &[]))?;
    let layers = wanted(&registry, &chosen, reference)?;
    if let Some(receiver) = &progress {
        let bytes = layers.iter().map(|layer| layer.size).sum();
        receiver(Progress::Resolved { reference: reference.to_string(), layers: layers.len(), bytes });
    }
    let plan = Arc::new(Plan::new(inner, layers, progress));
    let pinned = plan.ready().await?;
    let new = NewImage {
        id: chosen.id()?,
        is_artifact: chosen.manifest.is_artifact(),
        checkpoint: chosen.manifest.checkpoint.clone(),
        size: chosen.manifest.total_size()?.saturating_add(chosen.size),
        config: chosen.config.raw,
        chain_ids: plan.chain_ids().to_vec(),
        tags,
        digests: vec![digest_name],
        verified: verified.into_iter().collect(),
    };
    commit(inner, new, pinned).await
}

async fn open(inner: &Arc<Inner>, reference: &Reference, auth: Option<&Auth>) -> Result<Registry> {
    let (inner, reference, auth) = (inner.clone(), reference.clone(), auth.cloned());
    let opened = tokio::task::spawn_blocking(move || {
        Registry::open(&reference, auth.as_ref(), &inner.registries(), &inner.connector)
    });
    opened.await.unwrap_or_else(|_| Err(Error::cancelled("pull", "task")))
}

pub(crate) async fn commit(
    inner: &Arc<Inner>,
    new: NewImage,
    pinned: crate::plan::Stacked,
) -> Result<Arc<Image>> {
    let inner = inner.clone();
    let committed = tokio::task::spawn_blocking(move || inner.commit_image(new, &pinned)).await;
    committed.unwrap_or_else(|_| Err(Error::cancelled("store image", "task")))
}

impl Inner {
    /// What is known of signatures of this very manifest.
    fn verified(&self, digest_name: &str) -> Vec<Verification> {
        let catalog = self.catalog();
        let named =
            |stored: &&crate::store::record::Stored| stored.record.digests.iter().any(|d| d == digest_name);
        catalog.images().find(named).map(|stored| stored.record.verified.clone()).unwrap_or_default()
    }
}

/// The image, if this very manifest was pulled before: then only the names may be new.
async fn already_here(
    inner: &Arc<Inner>,
    digest_name: &str,
    tags: &[String],
    verified: Option<&Verification>,
) -> Result<Option<Arc<Image>>> {
    let catalog = inner.catalog();
    let Some(stored) = catalog.images().find(|stored| stored.record.digests.iter().any(|d| d == digest_name))
    else {
        return Ok(None);
    };
    if stored.record.layers.iter().any(|layer| inner.is_damaged(&layer.key)) {
        return Ok(None);
    }
    let is_known = verified.is_none_or(|one| stored.record.verified.contains(one));
    if is_known && tags.iter().all(|tag| stored.record.tags.contains(tag)) {
        return Ok(Some(stored.image.clone()));
    }
    let (inner, id, tags) = (inner.clone(), stored.record.id.clone(), tags.to_vec());
    let verified = verified.cloned();
    let named = tokio::task::spawn_blocking(move || inner.add_tags(&id, &tags, verified.as_ref())).await;
    named.unwrap_or_else(|_| Err(Error::cancelled("name image", digest_name)))
}

/// What this machine is going to run.
pub(crate) struct Chosen {
    pub(crate) manifest: Manifest,
    pub(crate) config: Config,
    /// Bytes of the manifest itself.
    pub(crate) size: u64,
}

impl Chosen {
    /// An artifact has no config of its own, or an empty one that all of them share: that which we made names it.
    pub(crate) fn id(&self) -> Result<Digest> {
        if self.manifest.is_artifact() {
            return Ok(Digest::sha256(self.config.raw.as_bytes()));
        }
        self.manifest.config.digest()
    }
}

type Selecting<'a> = Pin<Box<dyn Future<Output = Result<Option<Chosen>>> + Send + 'a>>;

/// Follows indexes down to the manifest for this platform; None if there is none.
fn select(registry: &Registry, digest: Digest, document: Fetched, depth: usize) -> Selecting<'_> {
    Box::pin(async move {
        let object = digest.to_string();
        match parse(&document.bytes, &document.content_type, &object)? {
            // In an index they are what comes with an image: signatures, lists of its parts.
            Document::Manifest(manifest) if manifest.is_artifact() && depth > 0 => Ok(None),
            Document::Manifest(manifest) if manifest.is_artifact() => {
                let config = artifact::config(&manifest, &object)?;
                Ok(Some(Chosen { manifest: *manifest, config, size: document.bytes.len() as u64 }))
            }
            Document::Manifest(manifest) => {
                let size = manifest.config.size()?;
                if size > MAX_CONFIG {
                    return Err(Error::corrupt(
                        "fetch config",
                        object,
                        format!("longer than {MAX_CONFIG} bytes"),
                    ));
                }
                let config_digest = manifest.config.digest()?;
                let bytes = registry.small_blob(&config_digest, size).await?;
                let config = parse_config(bytes, config_digest.as_str())?;
                let fits = Platform::host().rank(&config.platform).is_some();
                Ok(fits.then_some(Chosen { manifest: *manifest, config, size: document.bytes.len() as u64 }))
            }
            Document::Index(_) if depth == MAX_NESTING => Err(Error::corrupt(
                "read index",
                object,
                format!("indexes nested more than {MAX_NESTING} deep"),
            )),
            Document::Index(entries) => {
                let host = Platform::host();
                let (best, silent) = choose(&entries, &host);
                // IMG-MT-11: entries that do not say their platform are asked, if none that does will do.
                let candidates = best.map_or(silent, |best| vec![best]);
                for entry in candidates {
                    let digest = entry.digest()?;
                    if entry.size()? > manifest::MAX_MANIFEST {
                        return Err(Error::corrupt(
                            "read index",
                            object,
                            "an entry is longer than manifests may be",
                        ));
                    }
                    let document = registry.manifest(&digest).await?;
                    if let Some(chosen) = select(registry, digest, document, depth + 1).await? {
                        return Ok(Some(chosen));
                    }
                }
                Err(no_match(&object, &host, &entries))
            }
        }
    })
}

fn wanted(registry: &Arc<Registry>, chosen: &Chosen, reference: &Reference) -> Result<Vec<Wanted>> {
    check_counts(chosen, &reference.to_string())?;
    let layers = chosen.manifest.layers.iter().zip(&chosen.config.diff_ids);
    let layer = |(descriptor, diff_id): (&manifest::Descriptor, &Digest)| {
        Ok(Wanted {
            diff_id: diff_id.clone(),
            name: descriptor.digest.clone(),
            size: descriptor.size()?,
            source: Source::Registry(
                registry.clone(),
                Box::new(descriptor.clone()),
                chosen.manifest.is_artifact().then(|| Blob::of(descriptor)).transpose()?,
            ),
        })
    };
    layers.map(layer).collect()
}

/// IMG-MT-14.
pub(crate) fn check_counts(chosen: &Chosen, object: &str) -> Result<()> {
    let (layers, diff_ids) = (chosen.manifest.layers.len(), chosen.config.diff_ids.len());
    if layers == diff_ids {
        return Ok(());
    }
    let why = format!("the manifest has {layers} layers, its config {diff_ids} diff ids");
    Err(Error::new(Kind::Corrupt, "read manifest", object, why))
}
