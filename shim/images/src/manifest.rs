//! Manifests, indexes and image configs: what they say and when they are refused. Pure; knows no network.

use crate::digest::Digest;
use crate::platform::Platform;
use crate::types::ImageConfig;
use crate::{Error, Kind, Result};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;

/// A manifest or index above this is refused unread (IMG-RES-08).
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Configs carry history and labels, but not more than this.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
/// overlayfs takes 500 lower layers (IMG-OVL-05); one is ours.
const MAX_LAYERS: usize = 499;

/// IMG-MT-01.
pub(crate) const ACCEPT: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, */*";

/// What configs of images are called; old builders were careless.
const IMAGE_CONFIGS: [&str; 5] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/json",
    "application/octet-stream",
    "",
];
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// OCI image-spec descriptor.md.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: i64,
    #[serde(default)]
    pub(crate) artifact_type: String,
    #[serde(default)]
    pub(crate) platform: Option<Box<Platform>>,
    #[serde(default)]
    pub(crate) urls: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub(crate) fn digest(&self) -> Result<Digest> {
        Digest::parse(&self.digest)
    }

    pub(crate) fn size(&self) -> Result<u64> {
        u64::try_from(self.size)
            .map_err(|_| Error::corrupt("read descriptor", &self.digest, "size is negative"))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    fs_layers: Option<IgnoredAny>,
    annotations: Option<BTreeMap<String, String>>,
}

/// A parsed document.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Box<Manifest>),
}

#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    /// Name of the container whose checkpoint the files are, and no root file system.
    pub(crate) checkpoint: Option<String>,
}

/// What CRI-O's and containerd's documents tell people to write; the second is for all engines.
const CHECKPOINT_OF: [&str; 2] =
    ["io.kubernetes.cri-o.annotations.checkpoint.name", "org.criu.checkpoint.container.name"];

impl Manifest {
    /// Files without a root file system (see [`crate::artifact`]): what says so is that the config is none of an image.
    pub(crate) fn is_artifact(&self) -> bool {
        !IMAGE_CONFIGS.contains(&self.config.media_type.as_str())
    }

    /// Bytes on the wire (CRI-IMG-30).
    pub(crate) fn total_size(&self) -> Result<u64> {
        let mut total = self.config.size()?;
        for layer in &self.layers {
            total = total.saturating_add(layer.size()?);
        }
        Ok(total)
    }
}

/// Parses a manifest or index. `content_type` is what the registry called it, without parameters; may be empty.
pub(crate) fn parse(bytes: &[u8], content_type: &str, object: &str) -> Result<Document> {
    let bad = |why: String| Error::corrupt("read manifest", object, why);
    let wire: Wire = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
    if wire.schema_version == Some(1) || wire.fs_layers.is_some() {
        return Err(Error::invalid(
            "read manifest",
            object,
            "Docker schema 1 is no longer supported; push the image anew",
        ));
    }
    if let Some(inner) = wire.media_type.as_deref().filter(|inner| !inner.is_empty())
        && content_type.starts_with("application/vnd.")
        && inner != content_type
    {
        return Err(bad(format!("mediaType is {inner} but the registry said {content_type}")));
    }
    match (wire.manifests, wire.config, wire.layers) {
        (Some(manifests), None, None) => Ok(Document::Index(manifests)),
        (None, Some(config), Some(layers)) => {
            let annotations = wire.annotations.unwrap_or_default();
            manifest(config, layers, annotations, object).map(Box::new).map(Document::Manifest)
        }
        (Some(_), _, _) => Err(bad("has both manifests and layers or config".to_owned())),
        (None, _, _) => {
            Err(bad("is neither a manifest (config, layers) nor an index (manifests)".to_owned()))
        }
    }
}

fn manifest(
    config: Descriptor,
    layers: Vec<Descriptor>,
    mut annotations: BTreeMap<String, String>,
    object: &str,
) -> Result<Manifest> {
    let layers: Vec<_> = layers.into_iter().filter(|layer| layer.media_type != EMPTY).collect();
    check_depth(layers.len(), object)?;
    for descriptor in layers.iter().chain([&config]) {
        descriptor.digest()?;
        descriptor.size()?;
    }
    let checkpoint = CHECKPOINT_OF.iter().find_map(|key| annotations.remove(*key));
    Ok(Manifest { config, layers, checkpoint })
}

/// Refuses an image of `layers` layers that no container could ever be made of, before one of them is fetched.
pub(crate) fn check_depth(layers: usize, object: impl std::fmt::Display) -> Result<()> {
    if layers <= MAX_LAYERS {
        return Ok(());
    }
    let why = format!(
        "it has {layers} layers, and the kernel's overlayfs takes {MAX_LAYERS} at most: build it anew with fewer"
    );
    Err(Error::invalid("read manifest", object, why))
}

/// The best entry for `host`: the highest variant, the first among equals (IMG-MT-09). Entries without a platform
/// come back as the second list, to be asked for their config (IMG-MT-11), if none matched.
pub(crate) fn choose<'a>(
    entries: &'a [Descriptor],
    host: &Platform,
) -> (Option<&'a Descriptor>, Vec<&'a Descriptor>) {
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in entries.iter().filter(|entry| is_known(&entry.media_type)) {
        let rank = entry.platform.as_ref().and_then(|platform| host.rank(platform));
        if let Some(rank) = rank
            && best.is_none_or(|(so_far, _)| rank > so_far)
        {
            best = Some((rank, entry));
        }
    }
    let silent = |entry: &&Descriptor| entry.platform.is_none() && is_known(&entry.media_type);
    (best.map(|(_, entry)| entry), entries.iter().filter(silent).collect())
}

/// IMG-MT-08: others in an index are skipped.
fn is_known(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/vnd.docker.distribution.manifest.v2+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
            | "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.oci.image.index.v1+json"
    )
}

pub(crate) fn no_match(object: &str, host: &Platform, entries: &[Descriptor]) -> Error {
    let offered: Vec<String> =
        entries.iter().filter_map(|e| e.platform.as_ref()).map(ToString::to_string).collect();
    let why = format!("no match for platform in manifest: want {host}, offered: {}", offered.join(", "));
    Error::new(Kind::NotFound, "choose platform", object, why)
}

/// A config that can be run: its bytes, what they say, and the layers they promise.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) raw: String,
    pub(crate) platform: Platform,
    pub(crate) config: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct WireConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    config: Option<WireRun>,
    #[serde(default)]
    rootfs: Option<WireRootfs>,
}

#[derive(Deserialize)]
struct WireRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// Go writes null for empty lists and maps: everything is optional.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct WireRun {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
}

/// Parses an image config (OCI image-spec config.md; Docker's differs in nothing we read).
pub(crate) fn parse_config(bytes: Vec<u8>, object: &str) -> Result<Config> {
    let raw = String::from_utf8(bytes).map_err(|_| Error::corrupt("read config", object, "is not UTF-8"))?;
    let wire: WireConfig =
        serde_json::from_str(&raw).map_err(|e| Error::corrupt("read config", object, e))?;
    let Some(diff_ids) = wire.rootfs.and_then(|rootfs| rootfs.diff_ids) else {
        return Err(Error::invalid(
            "read config",
            object,
            "is not a container image config: it has no rootfs.diff_ids",
        ));
    };
    let diff_ids = diff_ids.iter().map(|text| Digest::parse(text)).collect::<Result<_>>()?;
    let run = wire.config.unwrap_or_default();
    let config = ImageConfig {
        user: run.user.unwrap_or_default(),
        env: run.env.unwrap_or_default(),
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        working_dir: run.working_dir.unwrap_or_default(),
        stop_signal: run.stop_signal.unwrap_or_default(),
        volumes: run.volumes.unwrap_or_default().into_keys().collect(),
        exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
        labels: run.labels.unwrap_or_default(),
    };
    let platform =
        Platform { os: wire.os, architecture: wire.architecture, variant: wire.variant.unwrap_or_default() };
    Ok(Config { raw, platform, config, diff_ids })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{}","size":3}}"#, "0".repeat(64))
    }

    // IMG-RES-09, -10, -12
    #[test]
    fn refuses_confusing_documents() {
        let d = descriptor("x");
        let parse = |text: &str| parse(text.as_bytes(), OCI, "test");
        assert!(matches!(parse(&format!(r#"{{"config":{d},"layers":[{d}]}}"#)), Ok(Document::Manifest(_))));
        assert!(matches!(parse(r#"{"manifests":[]}"#), Ok(Document::Index(_))));
        assert!(parse(&format!(r#"{{"manifests":[],"layers":[{d}]}}"#)).is_err());
        assert!(parse(&format!(r#"{{"manifests":[],"config":{d}}}"#)).is_err());
        assert!(
            parse(&format!(
                r#"{{"mediaType":"application/vnd.oci.image.index.v1+json","config":{d},"layers":[]}}"#
            ))
            .is_err()
        );
        assert!(parse(r#"{"schemaVersion":1,"fsLayers":[]}"#).is_err());
        assert!(parse("{}").is_err());
        assert!(parse("[").is_err());
        let artifact = |config: &str| {
            let document = parse(&format!(r#"{{"config":{},"layers":[{d}]}}"#, descriptor(config)));
            let Ok(Document::Manifest(manifest)) = document else { panic!("{document:?}") };
            manifest.is_artifact()
        };
        assert!(artifact(EMPTY) && artifact("application/vnd.cncf.helm.config.v1+json"));
        assert!(!artifact("") && !artifact("application/vnd.docker.container.image.v1+json"));
        let negative = d.replace(":3}", ":-3}");
        assert!(parse(&format!(r#"{{"config":{d},"layers":[{negative}]}}"#)).is_err());
    }

    // IMG-MT-08, -09, -10, -11
    #[test]
    fn chooses() {
        let entry = |media: &str, platform: &str| {
            let text = descriptor(media).replace(r#""size":3"#, &format!(r#""size":3{platform}"#));
            serde_json::from_str::<Descriptor>(&text).unwrap()
        };
        let on = |architecture: &str, variant: &str| {
            format!(r#","platform":{{"os":"linux","architecture":"{architecture}","variant":"{variant}"}}"#)
        };
        let host = Platform { os: "linux".into(), architecture: "arm".into(), variant: "v7".into() };
        let entries = [
            entry(OCI, r#","platform":{"os":"unknown","architecture":"unknown"}"#),
            entry("application/x-surprise", &on("arm", "v7")),
            entry(OCI, &on("arm", "v6")),
            entry(OCI, &on("arm", "v7")),
            entry(OCI, &on("arm", "v7")),
            entry(OCI, ""),
        ];
        let (best, silent) = choose(&entries, &host);
        assert!(std::ptr::eq(best.unwrap(), &entries[3]));
        assert_eq!(silent.len(), 1);
        assert!(choose(&entries[..2], &host).0.is_none());
    }

    #[test]
    fn config_with_nulls() {
        let text = r#"{"os":"linux","architecture":"amd64","config":{"Env":null,"Cmd":["/x"],"Volumes":{"/v":{}},"Labels":null},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let config = parse_config(text.into(), "test").unwrap();
        assert_eq!(config.config.cmd, ["/x"]);
        assert_eq!(config.config.volumes, ["/v"]);
        assert!(config.config.env.is_empty());
        assert!(parse_config(b"{}".to_vec(), "test").is_err());
    }
}
