//! Checkpoints: running containers as files, and containers made of those files (CRI-CHK-*, CRI-CHKP-*).
//!
//! ```text
//!  pause all ─► each: criu's images, writable layer, volumes, log ─► resume all ─► archive ─► renamed to its place
//!                                                                                     │
//!  StartContainer restores ◄─ CREATED ◄─ layer, volumes, log ◄─ compared ◄─ unpacked ◄┘  or from an image
//! ```
//!
//! CRIU is the keeper's to run; here are the rules, the archive and what must not be left behind. Everything half-made lies
//! below `<root>/checkpoints`: `dump-<id>/` while one is taken, with the [`intent`] that says what a killed daemon's
//! successor has to undo, and `<container id>/` from CreateContainer until the start has restored.

mod archive;
mod capture;
mod compare;
mod container;
mod contents;
mod criu;
mod intent;
mod limit;
mod pod;
mod restore;

pub(crate) use intent::recover;
pub(crate) use limit::asked as deadline;
pub(crate) use restore::Source;

use crate::error::{Error, Result};
use crate::pods::PodRecord;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use tonic::Code;

/// Where everything half-made lies; made if absent, root's alone.
fn home(root: &Path) -> Result<PathBuf> {
    let dir = root.join("checkpoints");
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.map_err(|e| Error::io("make directory", &dir, &e))?;
    Ok(dir)
}

fn make(dir: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().mode(0o700).create(dir);
    made.map_err(|e| Error::io("make directory", dir, &e))
}

/// What a container that waits for its restore still needs; missing is success.
pub(crate) fn forget(root: &Path, container: &str) -> Result<()> {
    crate::containers::remove_tree(&root.join("checkpoints").join(container))
}

/// The sentence for pods that criu cannot bring back, or whose containers are not ours to freeze.
fn check_pod(pod: &PodRecord) -> Result<()> {
    if let Some(path) = pod.settings.program() {
        let (pod, name, path) = (pod.label(), &pod.handler, path.display());
        return Err(Error::new(
            Code::Unimplemented,
            format!(
                "pod {pod} runs by {path} (runtime_handler {name:?}): only Slipway's own containers can be frozen and restored"
            ),
        ));
    }
    if pod.user().is_some() {
        return Err(Error::state(format!(
            "pod {} has a user namespace of its own (hostUsers: false), which checkpoints cannot hold",
            pod.label()
        )));
    }
    Ok(())
}
