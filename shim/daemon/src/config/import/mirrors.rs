//! containers-registries.conf(5) as hosts.toml directories and image policy.

use super::Import;
use super::registries::Server;
use crate::config::sources::Origin;
use anyhow::{Context as _, Result};
use serde::Deserialize;
use slipway_images::Prefix;
use std::path::Path;

/// containers-registries.conf(5), version 2.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Registries {
    unqualified_search_registries: Vec<String>,
    registry: Vec<Registry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Registry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    #[serde(rename = "mirror-by-digest-only")]
    by_digest_only: bool,
    mirror: Vec<Mirror>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Mirror {
    location: String,
    insecure: bool,
    #[serde(rename = "pull-from-mirror")]
    from_mirror: String,
}

/// Reads `text` of `path` into `import`: mirrors as hosts.toml, what is blocked as rules of `images.policy`.
///
/// # Errors
/// Text that is no such file.
pub(super) fn translate(import: &mut Import, path: &Path, text: &str) -> Result<()> {
    let file: Registries = toml::from_str(text).with_context(|| format!("{}", path.display()))?;
    let mut leave = |key: String, why: &str| {
        let line = text.lines().position(|line| line.contains(key.rsplit(' ').next().unwrap_or_default()));
        let at = Origin { file: path.to_owned(), line: line.map_or(1, |line| line + 1) };
        import.left.push(super::Left { at, key, why: why.to_owned() });
    };
    if file.unqualified_search_registries.iter().any(|registry| registry != "docker.io") {
        let why = "images are named in full; names without a registry are docker.io's";
        leave("unqualified-search-registries".to_owned(), why);
    }
    let (mut hosts, mut blocked) = (Vec::new(), Vec::new());
    for registry in file.registry {
        let prefix =
            if registry.prefix.is_empty() { registry.location.clone() } else { registry.prefix.clone() };
        let key = format!("registry {prefix}");
        if registry.blocked {
            match prefix.parse::<Prefix>() {
                Ok(prefix) => blocked.push(prefix),
                Err(why) => leave(key, &why),
            }
            continue;
        }
        if prefix.contains('/') || prefix.starts_with('*') {
            leave(key, "mirrors are per registry here, not per path or domain");
            continue;
        }
        hosts.push((prefix, registry));
    }
    for prefix in blocked {
        super::policy::reject(import, &prefix);
    }
    for (prefix, registry) in hosts {
        let entry = import.hosts.entry(prefix.clone()).or_default();
        if registry.insecure || (!registry.location.is_empty() && registry.location != prefix) {
            let location = if registry.location.is_empty() { &prefix } else { &registry.location };
            let mut server = Server::below(location);
            server.tls.skip_verify = registry.insecure;
            entry.server = Some(server);
        }
        for mirror in registry.mirror {
            let mut server = Server::below(&mirror.location);
            server.tls.skip_verify = mirror.insecure;
            server.digests_only = registry.by_digest_only || mirror.from_mirror == "digest-only";
            entry.mirrors.push(server);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_become_hosts_and_blocks_become_rules() {
        let text = r#"unqualified-search-registries = ["registry.fedoraproject.org", "docker.io"]
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "mirror.example:5000/hub"
pull-from-mirror = "digest-only"
[[registry]]
location = "bad.example"
blocked = true
[[registry]]
prefix = "quay.example/team"
location = "internal.example/team"
"#;
        let mut import = Import::default();
        import.set(
            "images.policy",
            toml::toml! { policy = [{ prefix = "bad.example/team", rule = "accept" }] }["policy"].clone(),
        );
        translate(&mut import, Path::new("/registries.conf"), text).expect("TOML");
        let hosts = import.hosts["docker.io"].text();
        assert_eq!(
            hosts,
            "\n[host.\"https://mirror.example:5000/v2/hub\"]\noverride_path = true\ncapabilities = [\"pull\"]\n"
        );
        let left: Vec<_> = import.left.iter().map(|left| (left.at.line, left.key.as_str())).collect();
        assert_eq!(left, [(1, "unqualified-search-registries"), (12, "registry quay.example/team")]);
        let file: crate::config::File = import.config.try_into().expect("ours");
        let rules: Vec<_> =
            file.images.policy.iter().map(|rule| (rule.prefix.to_string(), rule.rule)).collect();
        assert_eq!(rules, [("bad.example".to_owned(), crate::config::policy::Kind::Reject)]);
    }
}
