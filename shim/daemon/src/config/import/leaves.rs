//! Any TOML file as a list of its values, each with its key and line.

use super::super::sources::Origin;
use anyhow::{Context as _, Result};
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// One value.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    /// Parts of the key: `plugins`, `io.containerd.grpc.v1.cri`, `enable_selinux`.
    pub(super) path: Vec<String>,
    pub(super) value: toml::Value,
    pub(super) at: Origin,
}

impl Leaf {
    /// The key as TOML writes it.
    pub(super) fn name(&self) -> String {
        let bare = |part: &str| part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        let parts = self.path.iter().map(|part| if bare(part) { part.clone() } else { format!("{part:?}") });
        parts.collect::<Vec<_>>().join(".")
    }

    pub(super) fn text(&self) -> &str {
        self.value.as_str().unwrap_or_default()
    }

    /// The same values that nobody wrote: what a dumped default configuration is full of.
    pub(super) fn is_nothing(&self) -> bool {
        match &self.value {
            toml::Value::String(text) => text.is_empty() || text == "0s",
            toml::Value::Boolean(set) => !set,
            toml::Value::Integer(number) => *number == 0,
            toml::Value::Array(list) => list.is_empty(),
            toml::Value::Table(table) => table.is_empty(),
            _ => false,
        }
    }
}

/// All values of `text`, in its order.
pub(super) fn of(path: &Path, text: &str) -> Result<Vec<Leaf>> {
    let broken = |error: toml::de::Error| {
        let line = line_of(text, error.span().map_or(0, |span| span.start));
        anyhow::anyhow!("{}:{line}: {}", path.display(), error.message())
    };
    let table: toml::Table = toml::from_str(text).map_err(broken)?;
    let spans = DeTable::parse(text).map_err(broken)?;
    let mut leaves = Vec::new();
    walk(path, text, &mut Vec::new(), &table, spans.get_ref(), &mut leaves);
    leaves.sort_by_key(|leaf| leaf.at.line);
    Ok(leaves)
}

fn walk(
    path: &Path,
    text: &str,
    above: &mut Vec<String>,
    table: &toml::Table,
    spans: &DeTable<'_>,
    leaves: &mut Vec<Leaf>,
) {
    for (name, spanned) in spans {
        let key = name.get_ref().as_ref();
        let Some(value) = table.get(key) else { continue };
        above.push(key.to_owned());
        match (value, spanned.get_ref()) {
            (toml::Value::Table(inner), DeValue::Table(spans)) => {
                walk(path, text, above, inner, spans, leaves);
            }
            (value, _) => {
                let at = Origin { file: path.to_owned(), line: line_of(text, spanned.span().start) };
                leaves.push(Leaf { path: above.clone(), value: value.clone(), at });
            }
        }
        above.pop();
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

/// Files of a directory whose names match `prefix*suffix`, by name.
pub(super) fn glob(pattern: &Path) -> Result<Vec<std::path::PathBuf>> {
    let name = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((prefix, suffix)) = name.split_once('*') else { return Ok(vec![pattern.to_owned()]) };
    let dir = pattern.parent().unwrap_or(Path::new("."));
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("read {}", dir.display())),
    };
    let mut found: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let rest = name.strip_prefix(prefix);
            rest.is_some_and(|rest| rest.ends_with(suffix)) && path.is_file()
        })
        .collect();
    found.sort();
    Ok(found)
}
