//! `slipway config import`: another runtime's configuration as ours.
//!
//! ```text
//!  its files ─ leaves (key, value, line) ─ rules (containerd, crio) ─► Import: our keys, hosts.toml files, credentials,
//!                                                                            and what could not be translated, by name
//! ```
//!
//! A key is translated, or needs nothing here, or is named. What nobody has set (empty, false, zero) is not talked about.

mod containerd;
mod crio;
mod handlers;
mod leaves;
mod mirrors;
mod output;
mod policy;
mod registries;
mod rules;
mod traces;

use super::sources::Origin;
use anyhow::{Context as _, Result};
use leaves::Leaf;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `slipway config import`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum From {
    /// Translate containerd's config.toml (versions 1 to 4) and the files that it imports
    Containerd(Args),
    /// Translate CRI-O's crio.conf and the drop-ins in crio.conf.d beside it
    Crio {
        #[command(flatten)]
        args: Args,
        /// Mirrors in containers-registries.conf(5), such as /etc/containers/registries.conf
        #[arg(long, value_name = "FILE")]
        registries: Option<PathBuf>,
        /// Image policy in containers-policy.json(5), such as /etc/containers/policy.json. Without it: what signature_policy
        /// in FILE names
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The other runtime's configuration file
    file: PathBuf,
    /// Write config.toml, and where needed certs.d/ and auth.json, into this directory instead of printing; nothing that is
    /// there already is replaced
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
}

/// What a translation gathers.
#[derive(Debug, Default)]
pub(super) struct Import {
    /// Ours.
    config: toml::Table,
    /// Registry to its hosts.toml.
    hosts: BTreeMap<String, registries::Hosts>,
    /// Registry to its entry in a docker config.json.
    auths: BTreeMap<String, serde_json::Map<String, serde_json::Value>>,
    left: Vec<Left>,
}

/// A key that could not be translated, and why, and what to do instead.
#[derive(Debug)]
struct Left {
    at: Origin,
    key: String,
    why: String,
}

impl From {
    pub(crate) fn run(&self) -> Result<()> {
        let (args, import) = match self {
            Self::Containerd(args) => (args, containerd::read(&args.file)?),
            Self::Crio { args, registries, policy } => {
                (args, crio::read(&args.file, registries.as_deref(), policy.as_deref())?)
            }
        };
        match &args.into {
            Some(dir) => output::write(&import, &args.file, dir),
            None => output::print(&import, &args.file),
        }
    }
}

impl Import {
    /// Sets one of our keys.
    fn set(&mut self, key: &str, value: toml::Value) {
        let mut table = &mut self.config;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                table.insert(part.to_owned(), value);
                return;
            }
            let inner = table.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            let toml::Value::Table(inner) = inner else { return };
            table = inner;
        }
    }

    /// Adds to one of our keys that is a list; twice is once.
    fn add(&mut self, key: &str, value: &str) {
        let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
        let of = if table.is_empty() {
            Some(&self.config)
        } else {
            self.config.get(table).and_then(|t| t.as_table())
        };
        let mut list = of.and_then(|t| t.get(name)).and_then(|l| l.as_array()).cloned().unwrap_or_default();
        if !list.iter().any(|known| known.as_str() == Some(value)) {
            list.push(value.into());
        }
        self.set(key, toml::Value::Array(list));
    }

    /// Takes from one of our keys that is a list, and stands above all tables; a list of nothing goes.
    fn take(&mut self, key: &str, value: &str) {
        let Some(toml::Value::Array(list)) = self.config.get_mut(key) else { return };
        list.retain(|known| known.as_str() != Some(value));
        if list.is_empty() {
            self.config.remove(key);
        }
    }

    /// Notes that `leaf` has no translation.
    fn leave(&mut self, leaf: &Leaf, why: impl Into<String>) {
        self.left.push(Left { at: leaf.at.clone(), key: leaf.name(), why: why.into() });
    }
}

fn text_of(path: &Path) -> Result<String> {
    let read = std::fs::read_to_string(path);
    read.with_context(|| format!("read {}", path.display()))
}
