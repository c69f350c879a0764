//! What a new reading of the files means for a running daemon.

use super::file::File;
use super::keys::{Keys, flat};
use std::fmt;

/// Keys that differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// In force from now on.
    pub(crate) applied: Vec<String>,
    /// In force after a restart.
    pub(crate) later: Vec<String>,
}

impl Changes {
    /// `started`: what the daemon was started with; `last`: what was read last.
    pub(crate) fn between(started: &File, last: &File, new: &File) -> Self {
        let (started, last, new) = (flat(started), flat(last), flat(new));
        let mut changes = Self::default();
        for key in Keys::all().keys {
            let mut instances = key.instances(started.keys().chain(last.keys()).chain(new.keys()));
            instances.sort();
            instances.dedup();
            for path in instances {
                let is_new = |old: &std::collections::BTreeMap<_, _>| old.get(&path) != new.get(&path);
                if key.is_live() && is_new(&last) {
                    changes.applied.push(path);
                } else if !key.is_live() && is_new(&started) {
                    changes.later.push(path);
                }
            }
        }
        changes
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |keys: &[String]| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
        write!(f, "applied: {}; needs a restart: {}", list(&self.applied), list(&self.later))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_keys_are_applied_and_others_told_until_the_restart() {
        let file = |text: &str| toml::from_str::<File>(text).expect("a file");
        let started = file("");
        let first = file("[network]\nbridge = \"br7\"\n[logs]\nmax_line = 5\n");
        let changes = Changes::between(&started, &started, &first);
        assert_eq!(changes.applied, ["logs.max_line"]);
        assert_eq!(changes.later, ["network.bridge"]);
        assert_eq!(changes.to_string(), "applied: logs.max_line; needs a restart: network.bridge");
        let again = Changes::between(&started, &first, &first);
        assert_eq!(again.to_string(), "applied: nothing; needs a restart: network.bridge");
        let handler = file("[handlers.runc]\nruntime_path = \"/r\"\ncreate_timeout = \"5s\"\n");
        let changes = Changes::between(
            &handler,
            &handler,
            &file("[handlers.runc]\nruntime_path = \"/x\"\ncreate_timeout = \"5s\"\n"),
        );
        assert_eq!(changes.applied, ["handlers.runc.runtime_path"]);
        let back = Changes::between(&started, &first, &started);
        assert_eq!(back.to_string(), "applied: logs.max_line; needs a restart: nothing");
    }
}
