//! A bundle: the directory with `config.json` and the root filesystem.

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;
use slipway_runtime::rootfs::Rootfs;
use std::fs;
use std::path::{Path, PathBuf};

/// The version of the runtime specification that this runtime follows.
pub(crate) const SPEC_VERSION: &str = "1.3.0";

/// Larger than any configuration meant.
const LARGEST: u64 = 16 << 20;

/// A configuration that could be read, with its bytes.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Absolute.
    pub(crate) directory: PathBuf,
    pub(crate) config: Vec<u8>,
    pub(crate) spec: Spec,
}

impl Bundle {
    /// # Errors
    /// Names the field that cannot be read.
    pub(crate) fn load(directory: &Path) -> Result<Self> {
        let directory =
            fs::canonicalize(directory).with_context(|| format!("bundle {}", directory.display()))?;
        let config = read(&directory.join("config.json"))?;
        let spec: Spec = parse("config.json", &config)?;
        check_version(spec.version())?;
        Ok(Self { directory, config, spec })
    }

    /// Where the root filesystem is: `root.path`, from the bundle on.
    pub(crate) fn rootfs(&self) -> Result<PathBuf> {
        let Some(root) = self.spec.root() else { bail!("config.json: root: missing") };
        let path = self.directory.join(root.path());
        fs::canonicalize(&path).with_context(|| format!("config.json: root.path: {}", path.display()))
    }

    pub(crate) fn root(&self) -> Result<Rootfs> {
        Ok(Rootfs::Directory(self.rootfs()?))
    }

    pub(crate) fn process(&self) -> Result<&Process> {
        self.spec.process().as_ref().context("config.json: process: missing")
    }
}

/// The first argument of a process, for messages.
pub(crate) fn command(process: &Process) -> &str {
    process.args().as_ref().and_then(|args| args.first()).map_or("", String::as_str)
}

/// A JSON file of a user, not larger than anybody would mean.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let size = fs::metadata(path).with_context(|| format!("read {}", path.display()))?.len();
    if size > LARGEST {
        bail!("{} has {size} bytes: more than {LARGEST} cannot be meant", path.display());
    }
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// Parses JSON; an error says where: `config.json: process.user.uid: invalid type …`.
pub(crate) fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let (path, inner) = (error.path().to_string(), error.into_inner());
        anyhow::anyhow!("{name}: {path}: {inner}")
    })?;
    json.end().with_context(|| format!("{name}: something follows the JSON value"))?;
    Ok(value)
}

/// Semantic versioning: all of 1.x that we know of, and later ones, which may not take away (semver.org).
fn check_version(version: &str) -> Result<()> {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<Option<u32>> = core.split('.').map(|part| part.parse().ok()).collect();
    match parts[..] {
        [Some(1), Some(_), Some(_)] => Ok(()),
        [Some(major), Some(_), Some(_)] => {
            bail!(
                "config.json: ociVersion: {version}: this runtime follows {SPEC_VERSION}, not major version {major}"
            )
        }
        _ => bail!("config.json: ociVersion: {version:?} is not a semantic version"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for good in ["1.0.0", "1.0.2-dev", "1.3.0", "1.2.1+dev"] {
            assert!(check_version(good).is_ok(), "{good}");
        }
        for bad in ["", "1", "1.0", "2.0.0", "0.9.0", "one.two.three", "1.0.0.0"] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        let text = br#"{"ociVersion": "1.0.0", "process": {"cwd": "/", "user": {"uid": -1, "gid": 0}}}"#;
        let error = parse::<Spec>("config.json", text).unwrap_err().to_string();
        assert!(error.starts_with("config.json: process.user.uid:"), "{error}");
    }
}
