//! Which servers to ask for a registry host: containerd's hosts.toml directories (IMG-HOST-*), read for each pull.
//!
//! Reads files and decides; opens no connection.

use crate::{Error, Result};
use reqwest::Url;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One server to ask, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Host {
    /// Up to and with `/v2` (unless override_path).
    pub(crate) base: Url,
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    pub(crate) tls: Tls,
    /// Sent with each request to this host.
    pub(crate) headers: Vec<(String, String)>,
    /// The registry itself, not a mirror: only it gets the credentials (IMG-AUTH-11).
    pub(crate) is_upstream: bool,
    pub(crate) dial_timeout: Option<Duration>,
    /// `ns=` for servers that are not the registry's own (IMG-HOST-07).
    pub(crate) namespace: Option<String>,
}

/// TLS settings of one host; files are named here and read when connecting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) ca: Vec<PathBuf>,
    /// Certificate and key; the key may be in the certificate's file.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(crate) skip_verify: bool,
}

impl Tls {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// For people; empty where nothing is special.
    pub(crate) fn in_words(&self) -> Vec<String> {
        let ca = self.ca.iter().map(|path| format!("certificate authority {}", path.display()));
        let client = self.client.iter().map(|(cert, _)| format!("client certificate {}", cert.display()));
        let skip = self.skip_verify.then(|| "the server's certificate is not verified".to_owned());
        ca.chain(client).chain(skip).collect()
    }
}

/// The servers for `registry` (a reference's host), from the first of `dirs` that knows it.
pub(crate) fn hosts_for(registry: &str, dirs: &[PathBuf]) -> Result<Vec<Host>> {
    match candidates(registry, dirs).into_iter().find(|dir| dir.is_dir()) {
        Some(dir) => from_directory(registry, &dir),
        None => upstream(registry, &Wire::default(), Path::new("/")),
    }
}

/// Where a registry's directory may be, in the order in which they are looked for.
pub(crate) fn candidates(registry: &str, dirs: &[PathBuf]) -> Vec<PathBuf> {
    let names = directory_names(registry);
    dirs.iter().flat_map(|dir| names.iter().map(|name| dir.join(name))).collect()
}

/// IMG-HOST-01.
fn directory_names(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()) {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    names
}

fn from_directory(registry: &str, dir: &Path) -> Result<Vec<Host>> {
    let file = dir.join("hosts.toml");
    match std::fs::read_to_string(&file) {
        Ok(text) => {
            parse(registry, &text, dir).map_err(|why| Error::invalid("read hosts.toml", file.display(), why))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => upstream(registry, &certificates(dir)?, dir),
        Err(e) => Err(Error::io("read hosts.toml", &file, e)),
    }
}

/// IMG-HOST-11: the older form of the directory, certificates only.
fn certificates(dir: &Path) -> Result<Wire> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("read certificates", dir, e))?;
    let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    let mut wire = Wire::default();
    let mut pairs = Vec::new();
    for name in &names {
        if name.ends_with(".crt") {
            wire.ca.get_or_insert_with(|| Strings::Many(Vec::new())).push(name.clone());
        } else if let Some(stem) = name.strip_suffix(".cert") {
            let key = format!("{stem}.key");
            if !names.contains(&key) {
                return Err(Error::invalid(
                    "read certificates",
                    dir.join(name).display(),
                    format!("{key} is missing"),
                ));
            }
            pairs.push(StringOrPair::Pair(vec![name.clone(), key]));
        }
    }
    wire.client = (!pairs.is_empty()).then_some(Client::Many(pairs));
    Ok(wire)
}

#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum Strings {
    One(String),
    Many(Vec<String>),
}

impl Strings {
    fn push(&mut self, value: String) {
        if let Self::Many(list) = self {
            list.push(value);
        }
    }

    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(list) => list,
        }
    }
}

#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum Client {
    One(String),
    Many(Vec<StringOrPair>),
}

#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum StringOrPair {
    Text(String),
    Pair(Vec<String>),
}

/// The fields of the root and of each `[host."URL"]` (IMG-HOST-02). Unknown ones are left alone: newer containerd
/// writes more.
#[derive(Deserialize, Clone, Default)]
#[serde(default)]
struct Wire {
    server: Option<String>,
    capabilities: Option<Vec<String>>,
    ca: Option<Strings>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    header: Option<BTreeMap<String, Strings>>,
    override_path: Option<bool>,
    dial_timeout: Option<String>,
    host: Option<toml::Table>,
}

fn parse(registry: &str, text: &str, dir: &Path) -> Result<Vec<Host>, String> {
    let wire: Wire = toml::from_str(text).map_err(|e| e.to_string())?;
    let mut hosts = Vec::new();
    for (url, table) in wire.host.clone().unwrap_or_default() {
        let fields: Wire = table.try_into().map_err(|e| format!("host {url:?}: {e}"))?;
        hosts.push(host(registry, &url, &fields, dir).map_err(|e| format!("host {url:?}: {e}"))?);
    }
    hosts.extend(upstream(registry, &wire, dir).map_err(|e| e.cause)?);
    Ok(hosts)
}

/// The last server to ask: `server`, or the registry itself (IMG-HOST-04, -08, -09).
fn upstream(registry: &str, wire: &Wire, dir: &Path) -> Result<Vec<Host>> {
    let wrong = |why: String| Error::invalid("read hosts.toml", registry, why);
    let server = wire.server.clone().unwrap_or_else(|| default_server(registry).to_owned());
    let first = host(registry, &server, wire, dir).map_err(wrong)?;
    if has_scheme(&server) || !is_loopback(&first.base) || first.base.port_or_known_default() == Some(443) {
        return Ok(vec![first]);
    }
    let mut plain = first.clone();
    plain.base.set_scheme("http").map_err(|()| wrong(format!("{server}: cannot be asked by http")))?;
    plain.tls = Tls::default();
    Ok(if first.tls.is_default() { vec![plain] } else { vec![first, plain] })
}

fn default_server(registry: &str) -> &str {
    if registry == "docker.io" { "registry-1.docker.io" } else { registry }
}

fn has_scheme(server: &str) -> bool {
    server.contains("://")
}

fn host(registry: &str, server: &str, wire: &Wire, dir: &Path) -> Result<Host, String> {
    let text = if has_scheme(server) { server.to_owned() } else { format!("https://{server}") };
    let mut base = Url::parse(&text).map_err(|e| format!("{server}: {e}"))?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err(format!("{server}: want an http or https URL"));
    }
    if wire.override_path != Some(true) {
        let path = base.path().trim_end_matches('/').to_owned();
        if !path.split('/').any(|part| part == "v2") {
            base.set_path(&format!("{path}/v2"));
        }
    }
    let can = |what: &str| wire.capabilities.as_ref().is_none_or(|list| list.iter().any(|c| c == what));
    let own = Url::parse(&format!("https://{}", default_server(registry))).ok();
    let is_own = own.is_some_and(|own| own.host_str() == base.host_str() && same_port(registry, &base));
    Ok(Host {
        pull: can("pull"),
        resolve: can("resolve"),
        tls: tls(wire, dir)?,
        headers: headers(wire),
        is_upstream: is_own,
        dial_timeout: wire.dial_timeout.as_deref().map(duration).transpose()?,
        namespace: (!is_own).then(|| registry.to_owned()),
        base,
    })
}

fn same_port(registry: &str, base: &Url) -> bool {
    match registry.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()) {
        Some(port) => base.port_or_known_default() == Some(port),
        None => base.port().is_none(),
    }
}

fn tls(wire: &Wire, dir: &Path) -> Result<Tls, String> {
    let path = |text: &String| dir.join(text);
    let ca = wire.ca.clone().map(Strings::into_vec).unwrap_or_default().iter().map(path).collect();
    let client = match &wire.client {
        None => Vec::new(),
        Some(Client::One(text)) => vec![(path(text), None)],
        Some(Client::Many(list)) => {
            let pair = |entry: &StringOrPair| match entry {
                StringOrPair::Text(text) => Ok((path(text), None)),
                StringOrPair::Pair(pair) => match pair.as_slice() {
                    [cert] => Ok((path(cert), None)),
                    [cert, key] if key.is_empty() => Ok((path(cert), None)),
                    [cert, key] => Ok((path(cert), Some(path(key)))),
                    _ => Err("client: a pair is [certificate, key]".to_owned()),
                },
            };
            list.iter().map(pair).collect::<Result<_, _>>()?
        }
    };
    Ok(Tls { ca, client, skip_verify: wire.skip_verify == Some(true) })
}

fn headers(wire: &Wire) -> Vec<(String, String)> {
    let table = wire.header.clone().unwrap_or_default();
    table
        .into_iter()
        .flat_map(|(name, values)| values.into_vec().into_iter().map(move |v| (name.clone(), v)))
        .collect()
}

/// Go's duration text, as far as a dial timeout needs it: `500ms`, `30s`, `1m`, `1m30s`.
fn duration(text: &str) -> Result<Duration, String> {
    let mut total = 0f64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let number: f64 =
            rest[..digits].parse().map_err(|_| format!("dial_timeout {text:?}: want e.g. 5s"))?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| digits + n);
        total += number
            * match &rest[digits..unit_end] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                unit => return Err(format!("dial_timeout {text:?}: unknown unit {unit:?}")),
            };
        rest = &rest[unit_end..];
    }
    Duration::try_from_secs_f64(total).map_err(|e| e.to_string())
}

/// 127.0.0.0/8, ::1, localhost: where plain HTTP is allowed.
pub(crate) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(hosts: &[Host]) -> Vec<&str> {
        hosts.iter().map(|h| h.base.as_str()).collect()
    }

    // IMG-HOST-08
    #[test]
    fn without_files() {
        let get = |registry: &str| hosts_for(registry, &[]).unwrap();
        assert_eq!(urls(&get("docker.io")), ["https://registry-1.docker.io/v2"]);
        assert_eq!(urls(&get("reg.example:5000")), ["https://reg.example:5000/v2"]);
        for loopback in ["127.0.0.1:5000", "127.1.2.3:5000", "localhost:5000", "[::1]:5000"] {
            let hosts = get(loopback);
            assert_eq!(urls(&hosts), [format!("http://{loopback}/v2")]);
            assert!(hosts[0].is_upstream && hosts[0].namespace.is_none());
        }
    }

    // IMG-HOST-01 to -07, -09, -10, -12, -13
    #[test]
    fn from_files() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("reg.example_5000_");
        std::fs::create_dir(&own).unwrap();
        let write = |text: &str| std::fs::write(own.join("hosts.toml"), text).unwrap();
        let get = || hosts_for("reg.example:5000", &[dir.path().to_owned()]);
        write(
            r#"
            server = "https://reg.example:5000"
            [host."https://z-mirror.example"]
            capabilities = ["pull"]
            ca = "ca.pem"
            dial_timeout = "1m30s"
            [host."https://z-mirror.example".header]
            x-a = ["1", "2"]
            [host."http://a-mirror.example:8080/some/path/v2"]
            client = [["c.pem", "k.pem"]]
            skip_verify = true
            [host."https://b.example/prefix"]
            override_path = true
            "#,
        );
        let hosts = get().unwrap();
        assert_eq!(
            urls(&hosts),
            [
                "https://z-mirror.example/v2",
                "http://a-mirror.example:8080/some/path/v2",
                "https://b.example/prefix",
                "https://reg.example:5000/v2"
            ]
        );
        assert!(hosts[0].pull && !hosts[0].resolve && hosts[1].resolve);
        assert_eq!(hosts[0].tls.ca, [own.join("ca.pem")]);
        assert_eq!(hosts[0].headers.len(), 2);
        assert_eq!(hosts[0].dial_timeout, Some(Duration::from_secs(90)));
        assert_eq!(hosts[0].namespace.as_deref(), Some("reg.example:5000"));
        assert_eq!(hosts[1].tls.client, [(own.join("c.pem"), Some(own.join("k.pem")))]);
        assert!(hosts[1].tls.skip_verify);
        let upstream: Vec<_> = hosts.iter().map(|h| h.is_upstream).collect();
        assert_eq!(upstream, [false, false, false, true]);
        assert!(hosts[3].namespace.is_none());

        write("server = 3");
        let error = get().unwrap_err().to_string();
        assert!(error.contains("hosts.toml"), "{error}");

        std::fs::remove_file(own.join("hosts.toml")).unwrap();
        std::fs::write(own.join("a.crt"), "").unwrap();
        assert_eq!(get().unwrap()[0].tls.ca, [own.join("a.crt")]);
        std::fs::write(own.join("c.cert"), "").unwrap();
        assert!(get().is_err());
    }

    // IMG-HOST-09
    #[test]
    fn loopback_with_tls_settings_asks_https_first() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("localhost:5000")).unwrap();
        std::fs::write(dir.path().join("localhost:5000/hosts.toml"), "skip_verify = true").unwrap();
        let hosts = hosts_for("localhost:5000", &[dir.path().to_owned()]).unwrap();
        assert_eq!(urls(&hosts), ["https://localhost:5000/v2", "http://localhost:5000/v2"]);
    }
}
