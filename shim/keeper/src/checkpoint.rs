//! Checkpoints as containerd asks for them: its options, and a container's image directories for CRIU (SHIM-TSK-30).

use crate::error::{Error, Result};
use crate::options::Options;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use serde::{Deserialize, Serialize};
use slipway_criu::Wishes;
use slipway_criu::rpc::CgroupMode;
use slipway_runtime::error::Kind;
use std::path::PathBuf;

/// runc's message, and what containerd 1.x's ctr sends to runtimes that are not called runc: the same fields.
const KNOWN: [&str; 2] = ["containerd.runc.v1.CheckpointOptions", "containerd.linux.runc.CheckpointOptions"];
/// In every directory of images that CRIU has finished.
const INVENTORY: &str = "inventory.img";

/// A checkpoint that is to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Where the images go.
    pub(crate) images: PathBuf,
    /// Where CRIU's log goes; the bundle unless said.
    pub(crate) work: Option<PathBuf>,
    /// The container ends with it.
    pub(crate) exit: bool,
    pub(crate) wishes: Wishes,
}

/// What a container is restored from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Frozen {
    pub(crate) images: PathBuf,
    /// As for [`Checkpoint`].
    #[serde(default)]
    pub(crate) work: Option<PathBuf>,
}

impl Checkpoint {
    /// # Errors
    /// `InvalidArgument` for options of other types, damaged ones, and paths and modes that cannot be meant.
    pub(crate) fn parse(path: &str, any: Option<&Any>) -> Result<Self> {
        let options = match any.filter(|any| !any.type_url.is_empty()) {
            None => CheckpointOptions::default(),
            Some(any) if KNOWN.contains(&any.type_url.rsplit('/').next().unwrap_or_default()) => {
                CheckpointOptions::parse_from_bytes(&any.value)
                    .map_err(|error| Error::invalid(format!("checkpoint: {}: {error}", any.type_url)))?
            }
            Some(any) => {
                return Err(Error::invalid(format!(
                    "checkpoint: options of type {:?} are not known; use {}",
                    any.type_url, KNOWN[0]
                )));
            }
        };
        let images = if path.is_empty() { options.image_path.as_str() } else { path };
        let mode = |word: &str| match word {
            "" => Ok(None),
            word => CgroupMode::from_word(word).map(Some).ok_or_else(|| {
                Error::invalid(format!(
                    "checkpoint: cgroups_mode {word:?} is none of {:?}",
                    CgroupMode::WORDS
                ))
            }),
        };
        Ok(Self {
            images: absolute(images)?.ok_or_else(|| Error::invalid("checkpoint: no directory is named"))?,
            work: absolute(&options.work_path)?,
            exit: options.exit,
            wishes: Wishes {
                tcp_established: options.open_tcp,
                ext_unix_sk: options.external_unix_sockets,
                shell_job: options.terminal,
                file_locks: options.file_locks,
                cgroups: mode(&options.cgroups_mode)?,
                ..Wishes::default()
            },
        })
    }
}

impl Frozen {
    /// # Errors
    /// `NotFound` for a path that is no directory, `InvalidArgument` for one that holds no checkpoint.
    pub(crate) fn find(path: &str, options: &Options) -> Result<Self> {
        let images = absolute(path)?.unwrap_or_default();
        if !images.is_dir() {
            return Err(Error::not_found(format!("checkpoint {}: no such directory", images.display())));
        }
        if !images.join(INVENTORY).is_file() {
            return Err(Error::invalid(format!(
                "checkpoint {}: it has no {INVENTORY}, so it is no finished checkpoint",
                images.display()
            )));
        }
        Ok(Self { images, work: absolute(&options.criu_work_path)? })
    }
}

fn absolute(path: &str) -> Result<Option<PathBuf>> {
    match path {
        "" => Ok(None),
        path if path.starts_with('/') => Ok(Some(path.into())),
        path => Err(Error::invalid(format!("checkpoint: the path {path:?} is not absolute"))),
    }
}

/// CRIU's failure as ours.
pub(crate) fn failed(step: &str, id: &str, error: &anyhow::Error) -> Error {
    let text = format!("{step} container {id}: {error:#}");
    if let Some(error) = error.downcast_ref::<slipway_runtime::Error>() {
        return match error.kind() {
            Kind::Invalid => Error::invalid(text),
            Kind::NotFound => Error::not_found(text),
            Kind::Exists => Error::exists(text),
            Kind::State => Error::state(text),
            Kind::Unsupported => Error::unimplemented(text),
            Kind::Exhausted | Kind::Kernel => Error::internal(text),
        };
    }
    match error.downcast_ref::<slipway_criu::NotInstalled>() {
        Some(_) => Error::state(text),
        None => Error::internal(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ttrpc::Code;

    fn any(name: &str, options: &CheckpointOptions) -> Any {
        Any { type_url: name.into(), value: options.write_to_bytes().unwrap(), ..Any::default() }
    }

    #[test]
    fn options_of_both_names_are_understood() {
        let options = CheckpointOptions {
            exit: true,
            open_tcp: true,
            cgroups_mode: "full".into(),
            work_path: "/w".into(),
            image_path: "/ignored".into(),
            ..Default::default()
        };
        for name in KNOWN {
            let parsed = Checkpoint::parse("/i", Some(&any(name, &options))).unwrap();
            assert_eq!((parsed.images, parsed.work), ("/i".into(), Some("/w".into())));
            assert!(parsed.exit && parsed.wishes.tcp_established && !parsed.wishes.file_locks);
            assert_eq!(parsed.wishes.cgroups, Some(CgroupMode::Full));
        }
        assert!(!Checkpoint::parse("/i", None).unwrap().exit);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let known = |options| any(KNOWN[0], &options);
        for (path, options, named) in [
            ("", known(CheckpointOptions::default()), "no directory"),
            ("here", known(CheckpointOptions::default()), "not absolute"),
            ("/i", known(CheckpointOptions { work_path: "w".into(), ..Default::default() }), "not absolute"),
            (
                "/i",
                known(CheckpointOptions { cgroups_mode: "x".into(), ..Default::default() }),
                "cgroups_mode",
            ),
            ("/i", any("example.com/My.Options", &CheckpointOptions::default()), "My.Options"),
            ("/i", Any { type_url: KNOWN[0].into(), value: vec![0xff; 3], ..Any::default() }, KNOWN[0]),
        ] {
            let error = Checkpoint::parse(path, Some(&options)).unwrap_err();
            assert_eq!(error.code(), Code::INVALID_ARGUMENT);
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn only_finished_checkpoints_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let code = |path: &str| Frozen::find(path, &Options::default()).unwrap_err().code();
        assert_eq!(code("/no/such/place"), Code::NOT_FOUND);
        assert_eq!(code("relative"), Code::INVALID_ARGUMENT);
        assert_eq!(code(path), Code::INVALID_ARGUMENT);
        std::fs::write(dir.path().join(INVENTORY), "").unwrap();
        assert_eq!(Frozen::find(path, &Options::default()).unwrap().images, dir.path());
    }
}
