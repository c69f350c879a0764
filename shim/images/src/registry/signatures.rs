//! Signatures that a registry has for a digest, as bytes: cosign's tag, and referrers (distribution-spec 1.1) with their
//! fallback tag. Whether they are good is for others to say.

use super::request::Endpoint;
use super::{Fetched, Registry, Worst, accept, read_document};
use crate::digest::Digest;
use crate::manifest::{Descriptor, Document, parse};
use crate::{Error, Kind, Result};
use reqwest::Method;

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Bundles of any version, as their media types begin.
const BUNDLES: &str = "application/vnd.dev.sigstore.bundle";
/// What a statement by cosign about an image is called. Those of other kinds (what is in it, how it was built) are no signatures
/// in this sense, though the same key may be under them.
pub(crate) const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
const PREDICATE_TYPE: &str = "dev.sigstore.bundle.predicateType";
/// A payload has some 250 bytes, and notes.
const MAX_PAYLOAD: u64 = 64 << 10;
/// Certificates and entries of logs are in it.
const MAX_BUNDLE: u64 = 512 << 10;
/// Documents that are fetched from one server to find a digest's signature: anybody who may write to the repository can put more there.
const MOST: usize = 256;

/// What claims to be a signature of a digest.
#[derive(Debug)]
pub(crate) enum Candidate {
    /// cosign's older form: what is signed, and the signature in base64.
    Payload { payload: Vec<u8>, signature: String },
    /// A sigstore bundle, JSON.
    Bundle(Vec<u8>),
    /// Cannot be one, and why.
    Unusable(String),
    /// There are more than this many, and the others are not looked at.
    More(usize),
}

impl Registry {
    /// Hands all that claims to be a signature of `digest` to `judge` until that makes something of it.
    ///
    /// A mirror that has none proves nothing: not all of them carry signatures over.
    ///
    /// # Errors
    /// If nothing came of it and the registry itself, or one of its mirrors where it may not be asked, could not tell all that
    /// it has.
    pub(crate) async fn signatures<T>(
        &self,
        digest: &Digest,
        judge: impl FnMut(Candidate) -> Option<T>,
    ) -> Result<Option<T>> {
        let mut worst = Worst::default();
        let (mut all_answered, mut upstream_answered) = (true, false);
        let mut search = Search { left: MOST, judge };
        for endpoint in self.order(|endpoint| endpoint.resolve) {
            search.left = MOST;
            match self.signatures_at(endpoint, digest, &mut search).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => upstream_answered |= endpoint.is_upstream,
                Err(error) => {
                    all_answered = false;
                    worst.add(error, endpoint.is_upstream);
                }
            }
        }
        if all_answered || upstream_answered { Ok(None) } else { Err(worst.into_error(digest)) }
    }

    async fn signatures_at<T>(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        search: &mut Search<impl FnMut(Candidate) -> Option<T>>,
    ) -> Result<Option<T>> {
        let tag = digest.as_str().replace(':', "-");
        if let Some(manifest) = self.tagged(endpoint, &format!("{tag}.sig")).await? {
            match usable(layers(&manifest, &tag))? {
                Err(why) => search.broken(why),
                Ok(layers) => {
                    for layer in layers {
                        if search.is_over() {
                            return Ok(None);
                        }
                        if let Some(found) = (search.judge)(self.payload(&layer).await?) {
                            return Ok(Some(found));
                        }
                    }
                }
            }
        }
        let listed = match self.referrers(endpoint, digest).await? {
            Some(listed) => Some(listed),
            None => self.tagged(endpoint, &tag).await?,
        };
        let Some(listed) = listed else { return Ok(None) };
        let Document::Index(entries) = parse(&listed.bytes, &listed.content_type, &tag)? else {
            return Ok(None);
        };
        for entry in entries.iter().filter(|entry| may_be_bundle(entry)) {
            if search.is_over() {
                return Ok(None);
            }
            let layers = match usable(self.attached(entry).await)? {
                Ok(layers) => layers,
                Err(why) => {
                    search.broken(why);
                    continue;
                }
            };
            for layer in layers {
                if search.is_over() {
                    return Ok(None);
                }
                if let Some(found) = (search.judge)(self.bundle(&layer).await?) {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// What the manifest that refers to an image holds.
    async fn attached(&self, entry: &Descriptor) -> Result<Vec<Descriptor>> {
        let manifest = self.manifest(&entry.digest()?).await?;
        layers(&manifest, &entry.digest)
    }

    /// A manifest by its tag at one server; None: there is none.
    async fn tagged(&self, endpoint: &Endpoint, tag: &str) -> Result<Option<Fetched>> {
        let url = endpoint.url(&self.repository, "manifests", tag);
        match endpoint.send(&Method::GET, &url, &accept(), &[]).await {
            Ok(answer) => read_document(answer).await.map(Some),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The index of what refers to `digest`; None where the server has no such interface.
    async fn referrers(&self, endpoint: &Endpoint, digest: &Digest) -> Result<Option<Fetched>> {
        let mut url = endpoint.url(&self.repository, "referrers", digest.as_str());
        url.query_pairs_mut().append_pair("artifactType", BUNDLE);
        match endpoint.send(&Method::GET, &url, &accept(), &[]).await {
            Ok(answer) => read_document(answer).await.map(Some),
            // What servers say to a path that they do not know.
            Err(error) if matches!(error.kind, Kind::NotFound | Kind::Invalid) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn payload(&self, layer: &Descriptor) -> Result<Candidate> {
        let unusable = |why: &str| Ok(Candidate::Unusable(why.to_owned()));
        if layer.media_type != SIMPLE_SIGNING {
            return unusable("it has a media type that cosign's signatures do not have");
        }
        let signature = layer.annotations.as_ref().and_then(|all| all.get(SIGNATURE)).cloned();
        let Some(signature) = signature else { return unusable("its descriptor has no signature") };
        Ok(match self.piece(layer, MAX_PAYLOAD).await? {
            Ok(payload) => Candidate::Payload { payload, signature },
            Err(why) => Candidate::Unusable(why),
        })
    }

    async fn bundle(&self, layer: &Descriptor) -> Result<Candidate> {
        if !layer.media_type.starts_with(BUNDLES) {
            return Ok(Candidate::Unusable("its manifest holds no sigstore bundle".to_owned()));
        }
        Ok(match self.piece(layer, MAX_BUNDLE).await? {
            Ok(bytes) => Candidate::Bundle(bytes),
            Err(why) => Candidate::Unusable(why),
        })
    }

    /// A blob, if it is not too long to be looked at and is what its descriptor says.
    async fn piece(&self, layer: &Descriptor, most: u64) -> Result<Result<Vec<u8>, String>> {
        let read = async {
            let size = layer.size()?;
            if size > most {
                let why = format!("is of {size} bytes; at most {most} are read");
                return Err(Error::corrupt("read signatures", &layer.digest, why));
            }
            self.small_blob(&layer.digest()?, size).await
        };
        usable(read.await)
    }
}

/// Looks through what a repository has for one digest.
struct Search<J> {
    /// Documents that may still be fetched from the server that is asked.
    left: usize,
    judge: J,
}

impl<J, T> Search<J>
where
    J: FnMut(Candidate) -> Option<T>,
{
    /// Counts one document; whether it is one too many, which the judge is told.
    fn is_over(&mut self) -> bool {
        let Some(left) = self.left.checked_sub(1) else {
            (self.judge)(Candidate::More(MOST));
            return true;
        };
        self.left = left;
        false
    }

    fn broken(&mut self, why: String) {
        (self.judge)(Candidate::Unusable(why));
    }
}

/// Tells what is wrong with one document, beside which another may be good, from what keeps all from being read.
fn usable<T>(read: Result<T>) -> Result<Result<T, String>> {
    match read {
        Ok(read) => Ok(Ok(read)),
        Err(error) if matches!(error.kind, Kind::Corrupt | Kind::NotFound | Kind::Invalid) => {
            Ok(Err(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

fn layers(manifest: &Fetched, object: &str) -> Result<Vec<Descriptor>> {
    match parse(&manifest.bytes, &manifest.content_type, object)? {
        Document::Manifest(manifest) => Ok(manifest.layers),
        Document::Index(_) => {
            Err(Error::corrupt("read signatures", object, "is an index where a manifest was wanted"))
        }
    }
}

/// Not all that refers to an image is a signature, and publishers tell.
fn may_be_bundle(entry: &Descriptor) -> bool {
    let stated = entry.annotations.as_ref().and_then(|all| all.get(PREDICATE_TYPE));
    entry.artifact_type.starts_with(BUNDLES) && stated.is_none_or(|kind| kind == PREDICATE)
}
