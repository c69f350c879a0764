//! Every key there is, from the types' own doc comments: known names, and the reference that people read.

use super::file::{File, Handler};
use schemars::generate::SchemaSettings;
use serde_json::Value;
use std::collections::BTreeMap;

/// Keys that a running daemon takes over at SIGHUP (see [`super::reload`]); all others need a restart.
pub(crate) const LIVE: [&str; 23] = [
    "cdi.spec_dirs",
    "containers.default_ulimits",
    "containers.device_ownership_from_security_context",
    "containers.writable_layer_limit",
    "handlers.*.config_path",
    "handlers.*.config_type",
    "handlers.*.create_timeout",
    "handlers.*.pod_annotations",
    "handlers.*.privileged_without_host_devices",
    "handlers.*.privileged_without_host_devices_all_devices_allowed",
    "handlers.*.runtime_args",
    "handlers.*.runtime_path",
    "handlers.*.runtime_root",
    "handlers.*.sandbox_per_container",
    "handlers.*.shim",
    "images.auth_file",
    "images.hosts_dirs",
    "images.parallel_layers",
    "images.policy",
    "log_level",
    "logs.max_line",
    "pods.default_sysctls",
    "runtime_handlers",
];

/// Stands for a name that is the user's to choose, in the paths of keys and tables.
const ANY: &str = "*";

/// One key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Key {
    /// `network.bridge`; `handlers.*.runtime_path`.
    pub(crate) path: String,
    /// For people: `text`, `list of texts`, `"text" or "json"`.
    pub(crate) kind: String,
    pub(crate) about: String,
    /// As TOML writes it; None where it depends on the host.
    pub(crate) default: Option<String>,
    /// Of a list of tables: the keys in each.
    pub(crate) fields: Vec<Key>,
}

impl Key {
    pub(crate) fn is_live(&self) -> bool {
        LIVE.contains(&self.path.as_str())
    }

    /// Whether a key as somebody wrote it is this one.
    pub(crate) fn fits(&self, written: &str) -> bool {
        fits(&self.path, written)
    }

    /// Of `written` keys those that are this one; without a `*` in it that is itself, written or not.
    pub(crate) fn instances<'a>(&self, written: impl Iterator<Item = &'a String>) -> Vec<String> {
        if self.is_of_many() {
            written.filter(|written| self.fits(written)).cloned().collect()
        } else {
            vec![self.path.clone()]
        }
    }

    /// It is there once for each table of a name that is the user's.
    pub(crate) fn is_of_many(&self) -> bool {
        self.path.split('.').any(|part| part == ANY)
    }

    /// `network` of `network.bridge`; empty for those above all tables.
    pub(crate) fn table(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |(table, _)| table)
    }

    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }
}

/// All keys and what each table is about.
#[derive(Debug)]
pub(crate) struct Keys {
    /// Those above all tables first, as TOML needs them, then table by table.
    pub(crate) keys: Vec<Key>,
    pub(crate) tables: BTreeMap<String, String>,
}

impl Keys {
    pub(crate) fn all() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
        let schema = settings.into_generator().into_root_schema_for::<File>();
        let mut keys = Self { keys: Vec::new(), tables: BTreeMap::new() };
        keys.walk("", schema.as_value(), &flat_defaults());
        keys.keys.sort_by(|a, b| (a.table(), &a.path).cmp(&(b.table(), &b.path)));
        keys
    }

    fn walk(&mut self, above: &str, schema: &Value, defaults: &BTreeMap<String, toml::Value>) {
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
            let about = schema["description"].as_str().unwrap_or_default();
            let about = about.split_whitespace().collect::<Vec<_>>().join(" ");
            if schema["properties"].is_object() {
                self.tables.insert(path.clone(), about);
                self.walk(&path, schema, defaults);
            } else if schema["additionalProperties"]["properties"].is_object() {
                // Tables of any name.
                let each = format!("{path}.{ANY}");
                self.tables.insert(path, about.clone());
                self.tables.insert(each.clone(), about);
                self.walk(&each, &schema["additionalProperties"], defaults);
            } else {
                let default = defaults.get(&path).map(toml::Value::to_string);
                let fields = fields(&path, schema);
                self.keys.push(Key { kind: kind(schema), path, about, default, fields });
            }
        }
    }

    pub(crate) fn find(&self, path: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.fits(path))
    }

    pub(crate) fn is_table(&self, path: &str) -> bool {
        self.tables.keys().any(|table| fits(table, path))
    }

    /// The key or table that somebody who wrote `path` most likely meant.
    pub(crate) fn nearest(&self, path: &str) -> Option<&str> {
        let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
        let likeness = |known: &str| {
            // Right name in the wrong table counts almost as much as a slip of the finger.
            let whole = strsim::normalized_damerau_levenshtein(known, path);
            whole.max(0.95 * strsim::normalized_damerau_levenshtein(&last(known), &last(path)))
        };
        let known =
            self.keys.iter().map(|key| key.path.as_str()).chain(self.tables.keys().map(String::as_str));
        let best = known.map(|known| (likeness(known), known)).max_by(|a, b| a.0.total_cmp(&b.0));
        best.filter(|(likeness, _)| *likeness >= 0.6).map(|(_, known)| known)
    }
}

/// The keys of each table in a list of them.
fn fields(above: &str, schema: &Value) -> Vec<Key> {
    let inner = schema["items"]["properties"].as_object();
    let mut keys = Keys { keys: Vec::new(), tables: BTreeMap::new() };
    if inner.is_some() {
        keys.walk(above, &schema["items"], &BTreeMap::new());
    }
    keys.keys
}

fn fits(pattern: &str, written: &str) -> bool {
    let (mut pattern, mut written) = (pattern.split('.'), written.split('.'));
    loop {
        match (pattern.next(), written.next()) {
            (None, None) => return true,
            (Some(one), Some(other)) if one == ANY || one == other => {}
            _ => return false,
        }
    }
}

/// Leaves of a file's values by their paths.
pub(crate) fn flat(file: &File) -> BTreeMap<String, toml::Value> {
    let mut leaves = BTreeMap::new();
    // Every field of ours has a form in TOML: there is nothing to fail.
    if let Ok(toml::Value::Table(table)) = toml::Value::try_from(file) {
        flatten("", &table, &mut leaves);
    }
    leaves
}

fn flat_defaults() -> BTreeMap<String, toml::Value> {
    let handlers = [(ANY.to_owned(), Handler::default())].into();
    flat(&File { handlers, ..File::default() })
}

fn flatten(above: &str, table: &toml::Table, leaves: &mut BTreeMap<String, toml::Value>) {
    for (name, value) in table {
        let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        match value {
            toml::Value::Table(inner) => flatten(&path, inner, leaves),
            leaf => {
                leaves.insert(path, leaf.clone());
            }
        }
    }
}

/// A schema's type for people.
fn kind(schema: &Value) -> String {
    let choices = |list: &Vec<Value>| {
        let texts = list.iter().filter_map(Value::as_str).map(|text| format!("\"{text}\""));
        texts.collect::<Vec<_>>().join(" or ")
    };
    if let Some(list) = schema["enum"].as_array() {
        return choices(list);
    }
    // An optional enum.
    if let Some(one) = schema["anyOf"].as_array().and_then(|list| list.first()) {
        return kind(one);
    }
    let kinds = match &schema["type"] {
        Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    };
    match kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null") {
        Some("boolean") => "true or false".into(),
        Some("integer") => "number".into(),
        Some("number") => "number with a point".into(),
        Some("array") => format!("list of {}s", kind(&schema["items"])),
        Some("object") => "table".into(),
        _ => "text".into(),
    }
}

/// `docs/configuration.md`.
pub(crate) fn reference() -> String {
    let keys = Keys::all();
    let mut text = include_str!("reference.md").to_owned();
    let mut table = None;
    for key in &keys.keys {
        if table != Some(key.table()) {
            table = Some(key.table());
            if !key.table().is_empty() {
                let about = keys.tables.get(key.table()).map_or("", String::as_str);
                text += &format!("\n## [{}]\n\n{about}\n", key.table().replace(ANY, "NAME"));
            }
            text += "\n| key | what | default | SIGHUP |\n|---|---|---|---|\n";
        }
        let default = key.default.as_ref().map_or("–".into(), |value| format!("`{value}`"));
        let live = if key.is_live() { "applied" } else { "restart" };
        let about = key.about.replace('|', "\\|");
        text += &format!("| `{}` ({}) | {about} | {default} | {live} |\n", key.name(), key.kind);
    }
    for key in keys.keys.iter().filter(|key| !key.fields.is_empty()) {
        text += &format!("\n## [[{}]]\n\n| key | what |\n|---|---|\n", key.path);
        for field in &key.fields {
            let about = field.about.replace('|', "\\|");
            text += &format!("| `{}` ({}) | {about} |\n", field.name(), field.kind);
        }
    }
    text
}

/// A file that says in full what is the case without one.
pub(crate) fn default_file() -> String {
    let keys = Keys::all();
    let mut text =
        "# Slipway's configuration: every key with its default. All of them may be left out.\n".to_owned();
    let mut table = "";
    for key in &keys.keys {
        if table != key.table() {
            table = key.table();
            let about = keys.tables.get(table).map_or("", String::as_str);
            // A table of no certain name is an example.
            let mark = if key.is_of_many() { "#" } else { "" };
            text += &format!("\n{}{mark}[{}]\n", wrapped(about), table.replace(ANY, "NAME"));
        }
        text += "\n";
        text += &wrapped(&key.about);
        match &key.default {
            Some(value) if key.is_of_many() => text += &format!("#{} = {value}\n", key.name()),
            Some(value) => text += &format!("{} = {value}\n", key.name()),
            None => text += &format!("#{} =\n", key.name()),
        }
    }
    text
}

/// A comment of lines that fit a terminal.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut line = String::from("#");
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if line.len() + 1 + word.len() > 100 {
            lines += &line;
            lines.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line += word;
    }
    if line.len() > 1 {
        lines += &line;
        lines.push('\n');
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `slipway config reference > docs/configuration.md` after a change of a key.
    #[test]
    fn the_reference_is_what_the_code_says() {
        let written = include_str!("../../../../docs/configuration.md");
        assert!(
            written == reference(),
            "docs/configuration.md is not what the types say: slipway config reference > docs/configuration.md"
        );
    }

    #[test]
    fn every_key_says_what_it_is_and_live_ones_exist() {
        let keys = Keys::all();
        assert!(keys.keys.len() > 30, "{}", keys.keys.len());
        for key in &keys.keys {
            assert!(key.about.len() > 10, "{} has no doc comment", key.path);
        }
        for live in LIVE {
            assert!(keys.find(live).is_some(), "{live}");
        }
        for (table, about) in &keys.tables {
            assert!(about.len() > 10, "[{table}] has no doc comment");
        }
    }

    #[test]
    fn the_default_file_is_the_default() {
        let file: File = toml::from_str(&default_file()).expect("parses");
        assert_eq!(file, File::default());
    }

    #[test]
    fn near_misses_find_their_key() {
        let keys = Keys::all();
        for (written, meant) in [
            ("network.brigde", "network.bridge"),
            ("bridge", "network.bridge"),
            ("cgroup_drivr", "cgroup_driver"),
            ("netwrok", "network"),
            ("cni.bin_dir", "cni.bin_dirs"),
            ("handlers.runc.runtime_pat", "handlers.*.runtime_path"),
        ] {
            assert_eq!(keys.nearest(written), Some(meant), "{written}");
        }
        assert_eq!(keys.nearest("completely_elsewhere"), None);
    }
}
