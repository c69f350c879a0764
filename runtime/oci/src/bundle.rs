//! A bundle: the directory with `config.json` and the root filesystem.

use crate::cli::Global;
use crate::fault::Fault;
use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;
use slipway_runtime::plan::capability_names;
use slipway_runtime::rootfs::Rootfs;
use slipway_runtime::spec::{self, LARGEST};
use slipway_runtime::unit::ScopeName;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The version of the runtime specification that this runtime follows.
pub(crate) const SPEC_VERSION: &str = "1.3.0";

/// A configuration that could be read, with its bytes.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Absolute.
    pub(crate) directory: PathBuf,
    pub(crate) config: Vec<u8>,
    pub(crate) spec: Spec,
    /// What was left out of the configuration, a sentence each: warnings.
    pub(crate) ignored: Vec<String>,
}

impl Bundle {
    /// # Errors
    /// Names the field that cannot be read.
    pub(crate) fn load(directory: &Path) -> Result<Self> {
        let directory =
            fs::canonicalize(directory).with_context(|| format!("bundle {}", directory.display()))?;
        let config = read(&directory.join("config.json"))?;
        let (spec, ignored) = tolerant::<Spec>("config.json", &config, "/process/capabilities")?;
        check_version(spec.version())?;
        Ok(Self { directory, config, spec, ignored })
    }

    /// The same for a container that is to be made, with its control group as the global flags want it.
    pub(crate) fn load_for(directory: &Path, id: &str, global: &Global) -> Result<Self> {
        let mut bundle = Self::load(directory)?;
        if global.systemd_cgroup {
            bundle.under_systemd(id)?;
        }
        Ok(bundle)
    }

    /// `--systemd-cgroup`: the group is a scope, by default one of the usual slice, as with runc.
    fn under_systemd(&mut self, id: &str) -> Result<()> {
        let mut linux = self.spec.linux().clone().unwrap_or_default();
        let asked = linux.cgroups_path().as_ref().map(|path| path.display().to_string());
        match asked.as_deref().unwrap_or_default() {
            "" => {
                linux.set_cgroups_path(Some(format!(":slipway:{id}").into()));
            }
            path if ScopeName::parse(path)?.is_some() => return Ok(()),
            path => bail!(Fault::Usage(format!(
                "config.json: linux.cgroupsPath: expected slice:prefix:name with --systemd-cgroup, got {path:?} instead; \
                 leave the flag out for a path, or the path for a scope of system.slice"
            ))),
        }
        self.spec.set_linux(Some(linux));
        Ok(())
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
    Ok(spec::parse(name, bytes)?)
}

/// As [`parse`]; tells, too, which capabilities were left out because nobody knows them here: a runtime "SHOULD NOT fail"
/// for them (config.md, `process.capabilities`).
pub(crate) fn tolerant<T: DeserializeOwned>(
    name: &str,
    bytes: &[u8],
    capabilities: &str,
) -> Result<(T, Vec<String>)> {
    let value = parse(name, bytes)?;
    let json: Value = serde_json::from_slice(bytes)?;
    let known = capability_names();
    let is_known = |word: &str| known.iter().any(|known| known == word || known[4..] == *word);
    let sets = json.pointer(capabilities).and_then(Value::as_object);
    let named = sets.into_iter().flatten().flat_map(|(set, list)| {
        let words = list.as_array().into_iter().flatten().filter_map(Value::as_str);
        words.map(move |word| (set, word))
    });
    // One sentence each, however many sets it is in.
    let mut ignored: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (set, word) in named.filter(|(_, word)| !is_known(&word.to_ascii_uppercase())) {
        ignored.entry(word).or_default().insert(set);
    }
    let sentence = |(word, sets): (&str, BTreeSet<&str>)| {
        let sets: Vec<&str> = sets.into_iter().collect();
        format!("{name}: process.capabilities: {word} is not known here ({})", sets.join(", "))
    };
    Ok((value, ignored.into_iter().map(sentence).collect()))
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
    fn unknown_capabilities_are_left_out_and_other_faults_are_not() {
        let read = |capability: &str, uid: &str| {
            let text = format!(
                r#"{{"cwd": "/", "user": {{"uid": {uid}, "gid": 0}}, "capabilities": {{"bounding": ["CAP_KILL", "{capability}"]}}}}"#
            );
            tolerant::<Process>("process", text.as_bytes(), "/capabilities")
        };
        let (process, ignored) = read("CAP_TEST", "0").unwrap();
        assert_eq!(process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap().len(), 1);
        assert_eq!(ignored, ["process: process.capabilities: CAP_TEST is not known here (bounding)"]);
        assert!(read("CAP_CHOWN", "0").unwrap().1.is_empty());
        assert!(read("CAP_TEST", "-1").unwrap_err().to_string().contains("user.uid"));
    }
}
