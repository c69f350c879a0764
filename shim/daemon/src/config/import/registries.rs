//! Mirrors of others as our hosts.toml files (containerd's own form), and credentials as docker's config.json.

use super::Import;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// One registry's file.
#[derive(Debug, Default, Clone)]
pub(super) struct Hosts {
    /// Where the registry really is, if elsewhere.
    pub(super) server: Option<Server>,
    /// Asked first, in this order.
    pub(super) mirrors: Vec<Server>,
}

/// One server.
#[derive(Debug, Default, Clone)]
pub(super) struct Server {
    pub(super) url: String,
    /// The path in the URL is the whole of it: nothing is put before or behind.
    pub(super) whole_path: bool,
    /// Asked only for content, not for what a tag stands for.
    pub(super) digests_only: bool,
    pub(super) tls: Tls,
}

/// TLS of one server.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Tls {
    pub(super) skip_verify: bool,
    pub(super) ca: Option<String>,
    pub(super) cert: Option<String>,
    pub(super) key: Option<String>,
}

impl Server {
    /// `host`, `host/path` or a URL.
    pub(super) fn new(location: &str) -> Self {
        let url = if location.contains("://") { location.to_owned() } else { format!("https://{location}") };
        Self { url, ..Self::default() }
    }

    /// `host/path`, where repositories are below `path` (containers-registries.conf).
    pub(super) fn below(location: &str) -> Self {
        match location.split_once('/') {
            None => Self::new(location),
            Some((host, path)) => {
                Self { url: format!("https://{host}/v2/{path}"), whole_path: true, ..Self::default() }
            }
        }
    }

    /// `host[:port]` of the URL.
    fn host(&self) -> &str {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        rest.split('/').next().unwrap_or_default()
    }

    fn lines(&self) -> String {
        let mut lines = String::new();
        if self.whole_path {
            lines += "override_path = true\n";
        }
        if self.digests_only {
            lines += "capabilities = [\"pull\"]\n";
        }
        let tls = &self.tls;
        if tls.skip_verify {
            lines += "skip_verify = true\n";
        }
        if let Some(ca) = &tls.ca {
            lines += &format!("ca = {ca:?}\n");
        }
        if let Some(cert) = &tls.cert {
            lines += &format!("client = [[{cert:?}, {:?}]]\n", tls.key.as_deref().unwrap_or_default());
        }
        lines
    }
}

impl Hosts {
    /// The file.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if let Some(server) = &self.server {
            text += &format!("server = {:?}\n{}", server.url, server.lines());
        }
        for mirror in &self.mirrors {
            text += &format!("\n[host.{:?}]\n{}", mirror.url, mirror.lines());
        }
        text
    }
}

/// TLS settings by server, as containerd's old form has them, put where the servers are named.
pub(super) fn place_tls(import: &mut Import, tls: &BTreeMap<String, Tls>) {
    for (host, tls) in tls {
        let mut placed = false;
        for hosts in import.hosts.values_mut() {
            for mirror in hosts.mirrors.iter_mut().filter(|mirror| mirror.host() == host) {
                mirror.tls = tls.clone();
                placed = true;
            }
        }
        // The registry itself.
        if !placed || import.hosts.contains_key(host) {
            let hosts = import.hosts.entry(host.clone()).or_default();
            hosts.server.get_or_insert_with(|| Server::new(host)).tls = tls.clone();
        }
    }
}

/// Name of a registry's directory (IMG-HOST-01).
pub(super) fn directory(registry: &str) -> String {
    match registry.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => format!("{host}_{port}_"),
        _ if registry == "*" => "_default".to_owned(),
        _ => registry.to_owned(),
    }
}

impl Import {
    /// Credentials of all registries in the form of docker's config.json.
    pub(super) fn auth_file(&self) -> Option<String> {
        if self.auths.is_empty() {
            return None;
        }
        let auths: Map<String, Value> =
            self.auths.iter().map(|(host, entry)| (host.clone(), docker(entry))).collect();
        // A map of texts: there is nothing that JSON could not hold.
        Some(serde_json::to_string_pretty(&json!({"auths": auths})).unwrap_or_default() + "\n")
    }
}

/// `username` and `password` as docker keeps them: base64 of both.
fn docker(entry: &Map<String, Value>) -> Value {
    let text = |key: &str| entry.get(key).and_then(Value::as_str);
    let mut out = Map::new();
    if let (Some(user), Some(password)) = (text("username"), text("password")) {
        out.insert("auth".into(), STANDARD.encode(format!("{user}:{password}")).into());
    }
    for (theirs, dockers) in [("auth", "auth"), ("identitytoken", "identitytoken")] {
        if let Some(value) = text(theirs) {
            out.insert(dockers.into(), value.into());
        }
    }
    Value::Object(out)
}
