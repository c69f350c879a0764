//! Where a keeper's files are.
//!
//! ```text
//!  <state>/<group>/          0700; group = hash of client address, namespace and grouping
//!      sock  lock  log  events-address  events/  calls/
//!      tasks/<id>.json  execs/<id>:<exec id>.json  sandboxes/<id>.json  sandboxes/<id>/  foreign/<id>/
//!      shims.sock  shims/<sandbox>/<id>/
//! ```

use sha2::{Digest as _, Sha256};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Names the directory of all keepers; see keeper.proto.
pub(crate) const STATE_VARIABLE: &str = "SLIPWAY_KEEPER_STATE";
/// `node` (default): one keeper per client and namespace. `pod`: one per sandbox (SHIM-GRP-01).
pub(crate) const GROUPING_VARIABLE: &str = "SLIPWAY_KEEPER_GROUPING";
const STATE_DEFAULT: &str = "/run/slipway/keeper";
/// sockaddr_un(7): 108 bytes with the final zero.
const SOCKET_PATH: usize = 107;

/// The directory of one keeper.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The keeper of `group` for this client and namespace.
    pub(crate) fn of(state: &Path, client: &str, namespace: &str, group: &str) -> Self {
        let mut hash = Sha256::new();
        for part in [client, namespace, group] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let name = hex::encode(&hash.finalize()[..8]);
        Self { root: state.join(name) }
    }

    /// A keeper's directory that is known already.
    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The state directory the environment names.
    pub(crate) fn state_from_env() -> PathBuf {
        std::env::var_os(STATE_VARIABLE)
            .filter(|v| !v.is_empty())
            .map_or_else(|| STATE_DEFAULT.into(), PathBuf::from)
    }

    /// Makes the directories, root-only.
    pub(crate) fn make(&self) -> io::Result<()> {
        for dir in [self.root.clone(), self.tasks(), self.execs(), self.sandboxes()] {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        Ok(())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Path of the socket.
    ///
    /// # Errors
    /// `InvalidInput` if it does not fit into a socket address.
    pub(crate) fn socket(&self) -> io::Result<PathBuf> {
        let path = self.root.join("sock");
        if path.as_os_str().len() > SOCKET_PATH {
            let text = format!(
                "socket path {} is longer than {SOCKET_PATH} bytes; use a shorter {STATE_VARIABLE}",
                path.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(path)
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// Holds the address that events go to; absent when the client wants none.
    pub(crate) fn events_address(&self) -> PathBuf {
        self.root.join("events-address")
    }

    /// Events that the client has not taken yet.
    pub(crate) fn events(&self) -> PathBuf {
        self.root.join("events")
    }

    pub(crate) fn tasks(&self) -> PathBuf {
        self.root.join("tasks")
    }

    pub(crate) fn execs(&self) -> PathBuf {
        self.root.join("execs")
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    /// Where a sandbox's own files are; absent where the client keeps them.
    pub(crate) fn sandbox_files(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }

    /// Where containers of foreign runtimes have what such a runtime needs.
    pub(crate) fn foreign(&self) -> PathBuf {
        self.root.join("foreign")
    }

    /// Where pods of other shims are, a directory for each.
    pub(crate) fn shims(&self) -> PathBuf {
        self.root.join("shims")
    }

    /// The socket that such shims publish to.
    pub(crate) fn shim_events(&self) -> PathBuf {
        self.root.join("shims.sock")
    }

    /// Where the root filesystem of a container that is being restored is mounted, in a namespace of its own.
    pub(crate) fn restored_root(&self, id: &str) -> PathBuf {
        self.root.join(format!("restore-{id}"))
    }

    /// There is a record of a task or sandbox of this id.
    pub(crate) fn knows(&self, id: &str) -> bool {
        let name = format!("{id}.json");
        self.tasks().join(&name).exists() || self.sandboxes().join(&name).exists()
    }
}

/// Ids become file, key and cgroup names: letters, digits, and `.`, `_`, `-` between them, at most 76 (SHIM-BUN-02).
pub(crate) fn is_valid_id(id: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    id.len() <= 76 && id.chars().all(inner) && edge(id.chars().next()) && edge(id.chars().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_do_not_share_directories() {
        // SHIM-SOCK-02
        let of = |client, namespace, group| Layout::of(Path::new("/s"), client, namespace, group).root;
        assert_eq!(of("a", "b", "c"), of("a", "b", "c"));
        assert_ne!(of("a", "b", "c"), of("ab", "", "c"));
        assert_eq!(of("a", "b", "c").as_os_str().len(), "/s/".len() + 16);
        assert!(Layout::at("/".repeat(200)).socket().is_err());
    }

    #[test]
    fn ids() {
        for good in ["a", "A-b_c.d9", &"x".repeat(76)] {
            assert!(is_valid_id(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-a", "a-", "a:b", "a b", "é", &"x".repeat(77)] {
            assert!(!is_valid_id(bad), "{bad}");
        }
    }
}
