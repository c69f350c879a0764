//! Reading: the configuration file, the drop-ins beside it, which line says what, and what is wrong with which line.

use super::file::File;
use super::keys::Keys;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub(crate) const DEFAULT_FILE: &str = "/etc/slipway/config.toml";
/// Beside the configuration file.
const DROP_INS: &str = "config.d";
/// More than anybody writes by hand.
const MAX_FILE: u64 = 1 << 20;

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) file: PathBuf,
    pub(crate) line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// What all files together say.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) file: File,
    /// Key to the line that it comes from.
    pub(crate) origins: BTreeMap<String, Origin>,
    /// In the order in which they were read.
    pub(crate) files: Vec<PathBuf>,
}

/// Everything that is wrong, a line each.
#[derive(Debug)]
pub(crate) struct Faults(Vec<Fault>);

#[derive(Debug)]
struct Fault {
    at: Origin,
    what: String,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.0.iter().map(|fault| format!("{}: {}", fault.at, fault.what));
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
    }
}

impl std::error::Error for Faults {}

impl Sources {
    /// Reads `named`, or the default file if there is one, and the drop-ins beside it.
    ///
    /// # Errors
    /// A file that cannot be read; [`Faults`] for what is wrong in them, all of it.
    pub(crate) fn read(named: Option<&Path>) -> Result<Self> {
        let main = named.unwrap_or(Path::new(DEFAULT_FILE));
        let mut texts = Vec::new();
        if named.is_some() || main.symlink_metadata().is_ok() {
            texts.push((main.to_owned(), text_of(main)?));
        }
        for path in drop_ins(main)? {
            let text = text_of(&path)?;
            texts.push((path, text));
        }
        Ok(Self::of(texts)?)
    }

    fn of(texts: Vec<(PathBuf, String)>) -> Result<Self, Faults> {
        let keys = Keys::all();
        let mut sources = Self::default();
        let mut merged = toml::Table::new();
        let mut faults = Vec::new();
        for (path, text) in texts {
            match Document::read(&path, &text, &keys) {
                Ok(document) => {
                    merge(&mut merged, document.table);
                    sources.origins.extend(document.origins);
                }
                Err(mut found) => faults.append(&mut found),
            }
            sources.files.push(path);
        }
        if !faults.is_empty() {
            return Err(Faults(faults));
        }
        sources.file = File::deserialize(merged).map_err(|error| {
            // Each file was read as a whole already: one after the other they say nothing else.
            let at = Origin { file: sources.files.last().cloned().unwrap_or_default(), line: 1 };
            Faults(vec![Fault { at, what: error.to_string() }])
        })?;
        Ok(sources)
    }

    /// Puts the line of `key` before an error about its value.
    pub(crate) fn blame<T>(&self, key: &str, outcome: Result<T>) -> Result<T> {
        match self.origins.get(key) {
            Some(origin) => outcome.with_context(|| origin.to_string()),
            None => outcome,
        }
    }
}

/// `config.d/*.toml` beside the configuration file, by name. Hidden files are an editor's.
fn drop_ins(main: &Path) -> Result<Vec<PathBuf>> {
    let dir = main.parent().unwrap_or(Path::new("")).join(DROP_INS);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("read {}", dir.display())),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", dir.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with('.') && name.ends_with(".toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn text_of(path: &Path) -> Result<String> {
    let read = || {
        let meta = std::fs::metadata(path)?;
        // A pipe would hold up the daemon for ever, and a running one at its reload.
        if !meta.is_file() {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        if meta.len() > MAX_FILE {
            return Err(std::io::Error::other(format!("it is longer than {MAX_FILE} bytes")));
        }
        std::fs::read_to_string(path)
    };
    read().with_context(|| format!("read configuration {}", path.display()))
}

/// A later file's values over an earlier one's.
fn merge(under: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// One file, read and without a fault.
struct Document {
    table: toml::Table,
    origins: BTreeMap<String, Origin>,
}

/// A walk through one file.
struct Walk<'a> {
    path: &'a Path,
    text: &'a str,
    keys: &'a Keys,
    faults: Vec<Fault>,
    /// Where each key's value lies, in bytes.
    values: BTreeMap<String, std::ops::Range<usize>>,
}

impl Document {
    fn read(path: &Path, text: &str, keys: &Keys) -> Result<Self, Vec<Fault>> {
        let mut walk = Walk { path, text, keys, faults: Vec::new(), values: BTreeMap::new() };
        let parsed = DeTable::parse(text).map_err(|error| vec![walk.fault(&error)])?;
        walk.table("", parsed.get_ref());
        // Types and values: serde knows them, and stops at the first.
        if let Err(error) = toml::from_str::<File>(text) {
            let fault = walk.fault(&error);
            walk.faults.push(fault);
        }
        if !walk.faults.is_empty() {
            return Err(walk.faults);
        }
        let table = toml::from_str(text).map_err(|error| vec![walk.fault(&error)])?;
        let origins = walk.values.iter().map(|(key, span)| (key.clone(), walk.at(span.start)));
        Ok(Self { table, origins: origins.collect() })
    }
}

impl Walk<'_> {
    fn table(&mut self, above: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let key = name.get_ref().as_ref();
            let path = if above.is_empty() { key.to_owned() } else { format!("{above}.{key}") };
            self.entry(&path, name, value);
        }
    }

    fn entry(&mut self, path: &str, name: &Spanned<std::borrow::Cow<'_, str>>, value: &Spanned<DeValue<'_>>) {
        match value.get_ref() {
            DeValue::Table(inner) if self.keys.is_table(path) => self.table(path, inner),
            _ if self.keys.find(path).is_some() || self.keys.is_table(path) => {
                self.values.insert(path.to_owned(), value.span());
            }
            _ => {
                let hint = match self.keys.nearest(path) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => "slipway config default prints all there are".to_owned(),
                };
                let what = format!("unknown key {path:?}: {hint}");
                self.faults.push(Fault { at: self.at(name.span().start), what });
            }
        }
    }

    fn at(&self, offset: usize) -> Origin {
        let before = self.text.as_bytes().iter().take(offset);
        Origin { file: self.path.to_owned(), line: 1 + before.filter(|b| **b == b'\n').count() }
    }

    /// toml's and serde's errors know a place in the text, not the key.
    fn fault(&self, error: &toml::de::Error) -> Fault {
        let span = error.span().unwrap_or(0..0);
        let hit = self.values.iter().find(|(_, value)| value.start <= span.start && span.end <= value.end);
        let key = hit.map(|(key, _)| format!("{key}: ")).unwrap_or_default();
        let message = error.message().trim().replace('\n', "; ");
        Fault { at: self.at(span.start), what: format!("{key}{message}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(texts: &[(&str, &str)]) -> Result<Sources, Faults> {
        Sources::of(texts.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect())
    }

    #[test]
    fn everything_that_is_wrong_is_told_with_its_line_and_the_nearest_key() {
        let text = "cgroup_root = \"/x\"\nlog_level = \"info\"\n[network]\nbrigde = \"br0\"\n[cny]\nconf_dir = \"/x\"\n[images]\nparallel_layers = \"3\"\n";
        let error = sources(&[("/c.toml", text)]).expect_err("faults").to_string();
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(lines[0], "/c.toml:4: unknown key \"network.brigde\": did you mean \"network.bridge\"?");
        assert_eq!(lines[1], "/c.toml:5: unknown key \"cny\": did you mean \"cni\"?");
        assert!(lines[2].starts_with("/c.toml:8: images.parallel_layers: invalid type: string"), "{error}");
    }

    #[test]
    fn wrong_values_name_key_and_line() {
        for (text, wanted) in [
            ("\nlog_level = \"inof\"", "/c.toml:2: log_level: \"inof\" is no log level"),
            ("[socket]\nmode = \"0666\"", "/c.toml:2: socket.mode: \"0666\" gives the socket to everybody"),
            ("[images]\nparallel_layers = 0", "/c.toml:2: images.parallel_layers: "),
            (
                "[nri]\nplugin_request_timeout = \"5\"",
                "/c.toml:2: nri.plugin_request_timeout: \"5\" has no unit",
            ),
            ("cgroup_driver = \"cgroupv2\"", "/c.toml:1: cgroup_driver: unknown variant"),
            ("network = 3", "/c.toml:1: network: invalid type"),
            ("[streaming]\naddress = \"localhost\"", "/c.toml:2: streaming.address: invalid socket address"),
            ("a = [", "/c.toml:1: "),
            ("cgroup_root = \"a\"\ncgroup_root = \"b\"", "/c.toml:2: duplicate key"),
        ] {
            let error = sources(&[("/c.toml", text)]).expect_err(text).to_string();
            assert!(error.starts_with(wanted), "{text:?}: {error}");
        }
    }

    #[test]
    fn later_files_win_key_by_key() {
        let one = "[cni]\nconf_dir = \"/one\"\nbin_dirs = [\"/a\", \"/b\"]\n";
        let two = "log_level = \"debug\"\n\n[cni]\nbin_dirs = [\"/c\"]\n";
        let sources = sources(&[("/1.toml", one), ("/2.toml", two)]).expect("read");
        assert_eq!(sources.file.cni.conf_dir, Path::new("/one"));
        assert_eq!(sources.file.cni.bin_dirs, [PathBuf::from("/c")]);
        let origin = |key: &str| sources.origins[key].to_string();
        assert_eq!(
            (origin("cni.conf_dir"), origin("cni.bin_dirs")),
            ("/1.toml:2".into(), "/2.toml:4".into())
        );
    }

    #[test]
    fn drop_ins_by_name_and_nothing_else() {
        let dir = tempfile::tempdir().expect("dir");
        let main = dir.path().join("config.toml");
        let drop = dir.path().join("config.d");
        std::fs::create_dir(&drop).expect("config.d");
        std::fs::write(&main, "[logs]\nmax_line = 1\n").expect("write");
        for (name, text) in [
            ("20-b.toml", "[logs]\nmax_line = 20\n"),
            ("10-a.toml", "[logs]\nmax_line = 10\n"),
            (".30.toml", "nonsense"),
            ("40.toml.bak", "nonsense"),
        ] {
            std::fs::write(drop.join(name), text).expect("write");
        }
        let sources = Sources::read(Some(&main)).expect("read");
        assert_eq!(sources.file.logs.max_line, 20);
        assert_eq!(sources.files, [main.clone(), drop.join("10-a.toml"), drop.join("20-b.toml")]);
        assert!(Sources::read(Some(&dir.path().join("absent/c.toml"))).is_err(), "a named file must exist");
        std::fs::create_dir(drop.join("50.toml")).expect("a directory");
        let error = format!("{:#}", Sources::read(Some(&main)).expect_err("a directory"));
        assert!(error.contains("50.toml") && error.contains("regular file"), "{error}");
    }
}
