//! Which network configuration is in force, read from the configuration directory whenever somebody asks.
//!
//! There is no watcher that could die: a fingerprint of the directory (names, inodes, times, sizes) costs one
//! `readdir` and a `stat` per file, and only a changed fingerprint makes us parse again. A directory that vanishes
//! and comes back is just another change (CNI-RT-03, containerd#11209). Never writes.

use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Values are kept as the text they were written in, so numbers pass to the plugin digit for digit (CNI-08).
pub(crate) type Object = BTreeMap<String, Box<RawValue>>;

/// Configurations larger than this are refused; the largest known ones are some KB.
const FILE_LIMIT: u64 = 1 << 20;
/// A file changed less than this ago is read again each time: its time stamp may not tell two writes apart.
const SETTLED: Duration = Duration::from_secs(1);

/// One network: a parsed list, valid by construction (named, versioned, at least one plugin, each with a type).
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct NetworkList {
    pub(crate) name: String,
    /// The negotiated version: the highest that the file and we know (CNI-02).
    pub(crate) cni_version: String,
    #[serde(default)]
    pub(crate) disable_check: bool,
    #[serde(default)]
    pub(crate) disable_gc: bool,
    pub(crate) plugins: Vec<Object>,
    /// Where it was read from, for messages.
    pub(crate) file: PathBuf,
}

/// What one look at the directory found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// First valid file in byte order (CNI-RT-01).
    pub(crate) list: Option<Arc<NetworkList>>,
    /// True if there is any configuration file, valid or not: then the built-in network stays away.
    pub(crate) any_file: bool,
    /// Files that were passed over, each with its reason (CNI-RT-02).
    pub(crate) skipped: Vec<String>,
    /// Why the directory itself could not be read, if it exists.
    pub(crate) unreadable: Option<String>,
}

/// The directory, with the last look remembered.
#[derive(Debug)]
pub(crate) struct ConfDir {
    dir: PathBuf,
    last: Mutex<Option<(Fingerprint, Arc<Found>)>>,
}

#[derive(Debug, PartialEq, Eq, Default)]
struct Fingerprint {
    files: Vec<(PathBuf, u64, u64, i64, i64, i64, i64)>,
    newest: Option<SystemTime>,
}

impl ConfDir {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, last: Mutex::new(None) }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The configuration in force now.
    pub(crate) fn look(&self) -> Arc<Found> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let names = last.as_ref().and_then(|(_, f)| f.list.as_ref()).map(|l| l.name.clone());
        let now = fingerprint(&self.dir, names.as_deref());
        if let Some((seen, found)) = last.as_ref()
            && *seen == now
            && seen.newest.is_none_or(|t| t.elapsed().is_ok_and(|age| age > SETTLED))
        {
            return found.clone();
        }
        let found = Arc::new(read(&self.dir));
        if last.as_ref().is_none_or(|(_, before)| before.skipped != found.skipped) {
            for file in &found.skipped {
                tracing::warn!(file, "CNI configuration file skipped");
            }
        }
        // The fingerprint covers the plugin directory of the network that is now in force.
        let name = found.list.as_ref().map(|l| l.name.clone());
        *last = Some((fingerprint(&self.dir, name.as_deref()), found.clone()));
        found
    }
}

fn fingerprint(dir: &Path, network: Option<&str>) -> Fingerprint {
    let mut print = Fingerprint::default();
    for dir in [Some(dir.to_owned()), network.map(|n| dir.join(n))].into_iter().flatten() {
        for path in files(&dir, &["conf", "conflist", "json"]).unwrap_or_default() {
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
            print.newest = print.newest.max(meta.modified().ok());
            print.files.push((path, meta.ino(), meta.size(), times.0, times.1, times.2, times.3));
        }
    }
    print
}

/// Files of `dir` with one of the extensions, in byte order of their names; a missing directory has none.
fn files(dir: &Path, extensions: &[&str]) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e)))
        .filter(|path| !path.is_dir())
        .collect();
    found.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    Ok(found)
}

fn read(dir: &Path) -> Found {
    let mut found = Found::default();
    let candidates = match files(dir, &["conf", "conflist", "json"]) {
        Ok(candidates) => candidates,
        Err(e) => {
            // A directory that is there but cannot be read may well hold a configuration.
            found.any_file = true;
            found.unreadable = Some(format!("{}: {e}", dir.display()));
            return found;
        }
    };
    found.any_file = !candidates.is_empty();
    for file in candidates {
        match load(&file) {
            Ok(list) => {
                found.list = Some(Arc::new(list));
                break;
            }
            Err(why) => found.skipped.push(format!("{}: {why}", file.display())),
        }
    }
    found
}

/// Reads one file; the error says what is wrong with it.
pub(crate) fn load(file: &Path) -> Result<NetworkList, String> {
    let object = read_object(file)?;
    let is_list = object.contains_key("plugins") || file.extension().is_some_and(|e| e == "conflist");
    let name: String = field(&object, "name")?.ok_or("no \"name\"")?;
    check_name("network name", &name)?;
    let cni_version = negotiate(field(&object, "cniVersion")?, field(&object, "cniVersions")?)?;
    let mut list = NetworkList {
        name,
        cni_version,
        disable_check: flag(&object, "disableCheck")?,
        disable_gc: flag(&object, "disableGC")?,
        plugins: Vec::new(),
        file: file.to_owned(),
    };
    if is_list {
        list.plugins = field(&object, "plugins")?.unwrap_or_default();
        if !flag(&object, "loadOnlyInlinedPlugins")? {
            list.plugins.extend(separate_plugins(file, &list.name)?);
        }
    } else {
        list.plugins.push(object);
    }
    if list.plugins.is_empty() {
        return Err("the list has no plugins".into());
    }
    for (at, plugin) in list.plugins.iter().enumerate() {
        let kind: Option<String> = field(plugin, "type").map_err(|e| format!("plugin {at}: {e}"))?;
        match kind.as_deref() {
            None | Some("") => return Err(format!("plugin {at} has no \"type\"")),
            Some(kind) if kind.contains('/') => {
                return Err(format!("plugin {at}: type \"{kind}\" must not hold a path separator"));
            }
            Some(_) => {}
        }
    }
    Ok(list)
}

/// CNI-03: plugin files in a directory named after the network, beside the list.
fn separate_plugins(list: &Path, network: &str) -> Result<Vec<Object>, String> {
    let Some(dir) = list.parent().map(|p| p.join(network)) else { return Ok(Vec::new()) };
    let paths = files(&dir, &["conf"]).map_err(|e| format!("{}: {e}", dir.display()))?;
    paths.iter().map(|p| read_object(p).map_err(|e| format!("{}: {e}", p.display()))).collect()
}

fn read_object(file: &Path) -> Result<Object, String> {
    let meta = std::fs::metadata(file).map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err("not a regular file".into());
    }
    if meta.len() > FILE_LIMIT {
        return Err(format!("{} bytes: larger than any CNI configuration ({FILE_LIMIT})", meta.len()));
    }
    let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
    serde_json::from_str(&text).map_err(|e| e.to_string())
}

pub(crate) fn field<T: serde::de::DeserializeOwned>(object: &Object, key: &str) -> Result<Option<T>, String> {
    match object.get(key) {
        None => Ok(None),
        Some(raw) => serde_json::from_str(raw.get()).map_err(|e| format!("\"{key}\": {e}")),
    }
}

/// `disableCheck` and its kin may be written as a string too.
fn flag(object: &Object, key: &str) -> Result<bool, String> {
    match field::<serde_json::Value>(object, key)? {
        None | Some(serde_json::Value::Null) => Ok(false),
        Some(serde_json::Value::Bool(b)) => Ok(b),
        Some(serde_json::Value::String(s)) if s.eq_ignore_ascii_case("true") => Ok(true),
        Some(serde_json::Value::String(s)) if s.is_empty() || s.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("\"{key}\": {other} is neither true nor false")),
    }
}

/// CNI-06: starts alphanumeric, then `[A-Za-z0-9_.-]`.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), String> {
    let ok = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if ok {
        Ok(())
    } else {
        Err(format!(
            "{what} \"{name}\" must start with a letter or digit and hold only letters, digits, _ . -"
        ))
    }
}

/// The versions we speak, oldest first.
pub(crate) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Place of a version in [`VERSIONS`]; versions compare by it.
pub(crate) fn rank(version: &str) -> Option<usize> {
    VERSIONS.iter().position(|v| *v == version)
}

pub(crate) fn at_least(version: &str, floor: &str) -> bool {
    rank(version) >= rank(floor)
}

/// CNI-02. A configuration without any version is of the first one.
fn negotiate(one: Option<String>, many: Option<Vec<String>>) -> Result<String, String> {
    let mut offered = many.unwrap_or_default();
    offered.extend(one.filter(|v| !v.is_empty()));
    if offered.is_empty() {
        return Ok(VERSIONS[0].into());
    }
    offered.iter().filter(|v| rank(v).is_some()).max_by_key(|v| rank(v)).cloned().ok_or_else(|| {
        format!("cniVersion {} is not supported (known: {})", offered.join(", "), VERSIONS.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn first_valid_file_in_byte_order_wins_and_others_are_named() {
        // CNI-RT-01, CNI-RT-02
        let dir = tempfile::tempdir().unwrap();
        let conf = ConfDir::new(dir.path().join("net.d"));
        let net = conf.dir().to_owned();
        assert!(!conf.look().any_file, "a missing directory holds nothing");
        write(&net, "10-a.conflist", "{ not json");
        write(&net, "20-b.conflist", r#"{"cniVersion":"1.0.0","name":"b","plugins":[]}"#);
        write(&net, "30-c.conf", r#"{"cniVersion":"0.3.1","name":"c","type":"bridge"}"#);
        write(&net, "Z.conflist", r#"{"cniVersion":"1.0.0","name":"z","plugins":[{"type":"ptp"}]}"#);
        write(&net, "00-readme.txt", "nothing");
        let found = conf.look();
        let list = found.list.clone().unwrap();
        assert_eq!((list.name.as_str(), list.plugins.len()), ("c", 1));
        assert_eq!(found.skipped.len(), 2);
        assert!(found.skipped[0].contains("10-a.conflist: ") && found.skipped[0].contains("line 1"));
        assert!(found.skipped[1].contains("no plugins"));
        // CNI-RT-03: the directory goes and comes back.
        std::fs::remove_dir_all(&net).unwrap();
        assert!(conf.look().list.is_none() && !conf.look().any_file);
        write(&net, "1.conflist", r#"{"cniVersion":"1.0.0","name":"d","plugins":[{"type":"ptp"}]}"#);
        assert_eq!(conf.look().list.clone().unwrap().name, "d");
        // A rewrite of equal size within the same tick is seen.
        write(&net, "1.conflist", r#"{"cniVersion":"1.0.0","name":"e","plugins":[{"type":"ptp"}]}"#);
        assert_eq!(conf.look().list.clone().unwrap().name, "e");
    }

    #[test]
    fn versions_are_negotiated() {
        // CNI-02
        let v = |one: Option<&str>, many: Option<&[&str]>| {
            negotiate(one.map(Into::into), many.map(|m| m.iter().map(|s| (*s).to_owned()).collect()))
        };
        assert_eq!(v(None, None).unwrap(), "0.1.0");
        assert_eq!(v(Some("0.4.0"), None).unwrap(), "0.4.0");
        assert_eq!(v(Some("0.4.0"), Some(&["0.3.1", "1.1.0", "9.0.0"])).unwrap(), "1.1.0");
        assert_eq!(v(Some("1.0.0"), Some(&["9.0.0"])).unwrap(), "1.0.0");
        assert!(v(Some("9.0.0"), None).unwrap_err().contains("9.0.0"));
    }

    #[test]
    fn plugins_beside_the_list_are_taken_unless_forbidden() {
        // CNI-03
        let dir = tempfile::tempdir().unwrap();
        let list = write(dir.path(), "a.conflist", r#"{"cniVersion":"1.1.0","name":"n"}"#);
        assert!(load(&list).unwrap_err().contains("no plugins"));
        write(&dir.path().join("n"), "2.conf", r#"{"type":"two"}"#);
        write(&dir.path().join("n"), "1.conf", r#"{"type":"one"}"#);
        let types = |l: &NetworkList| -> Vec<String> {
            l.plugins.iter().map(|p| field(p, "type").unwrap().unwrap()).collect()
        };
        assert_eq!(types(&load(&list).unwrap()), ["one", "two"]);
        let only =
            r#"{"cniVersion":"1.1.0","name":"n","loadOnlyInlinedPlugins":true,"plugins":[{"type":"x"}]}"#;
        assert_eq!(types(&load(&write(dir.path(), "b.conflist", only)).unwrap()), ["x"]);
    }

    #[test]
    fn names_and_types_that_could_escape_are_refused() {
        // CNI-06, CNI-30
        let dir = tempfile::tempdir().unwrap();
        for bad in [
            r#"{"name":"../x","plugins":[{"type":"a"}]}"#,
            r#"{"name":"","plugins":[{"type":"a"}]}"#,
            r#"{"plugins":[{"type":"a"}]}"#,
            r#"{"name":"n","plugins":[{"type":"../a"}]}"#,
            r#"{"name":"n","plugins":[{}]}"#,
            r#"{"name":"n","plugins":[{"type":1}]}"#,
            r#"{"name":"n","plugins":{}}"#,
            r#"{"name":"n","disableGC":3,"plugins":[{"type":"a"}]}"#,
            "[]",
            "",
        ] {
            assert!(load(&write(dir.path(), "x.conflist", bad)).is_err(), "{bad}");
        }
    }
}
