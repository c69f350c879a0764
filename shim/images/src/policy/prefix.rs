//! What a rule is for: `*`, `*.example.com`, `registry.example`, `registry.example/team`.

use crate::reference::{Reference, registry_of};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A prefix of repositories' full names, by whole components.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Prefix {
    /// Every image, those without a name too.
    Any,
    /// Registries below a domain.
    Below(String),
    /// A registry, or what is below a path there.
    Path(String),
}

impl Prefix {
    /// How well it fits `repository` (as in [`canonical`]): None, or the higher the closer.
    pub(crate) fn rank(&self, repository: &str) -> Option<(u8, usize)> {
        match self {
            Self::Any => Some((0, 0)),
            Self::Below(domain) => {
                let host = repository.split('/').next().unwrap_or_default();
                let below = host.strip_suffix(domain.as_str())?.ends_with('.');
                below.then_some((1, domain.len()))
            }
            Self::Path(path) => {
                let rest = repository.strip_prefix(path.as_str())?;
                (rest.is_empty() || rest.starts_with('/')).then_some((2, path.len()))
            }
        }
    }

    /// `repository` with `other` in this prefix's place; itself if it is not below it.
    pub(crate) fn replaced(&self, repository: &str, other: &str) -> String {
        match self {
            Self::Path(path) if self.rank(repository).is_some() => {
                format!("{other}{}", &repository[path.len()..])
            }
            _ => repository.to_owned(),
        }
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "prefix {text:?}: {why}; write \"*\", \"*.example.com\", \"registry.example\" or \"registry.example/team\""
            )
        };
        if text == "*" {
            return Ok(Self::Any);
        }
        let (is_domain, name) = match text.strip_prefix("*.") {
            Some(domain) => (true, domain),
            None => (false, text),
        };
        if name.contains('*') {
            return Err(wrong("a star stands at the beginning only"));
        }
        if name.contains("://") {
            return Err(wrong("names of images have no scheme"));
        }
        if name.ends_with('/') {
            return Err(wrong("there is a / at its end"));
        }
        let (host, path) = name.split_once('/').map_or((name, None), |(host, path)| (host, Some(path)));
        if path.is_some_and(|path| path.contains([':', '@'])) {
            return Err(wrong("it is for repositories, not for tags or digests"));
        }
        if path.is_some() && is_domain {
            return Err(wrong("a domain has no path"));
        }
        if !is_domain && !host.contains(['.', ':']) && host != "localhost" {
            return Err(wrong(
                "it begins with no registry (Docker's is docker.io, and its own images are docker.io/library)",
            ));
        }
        // A name below it, as an image's would be: the parser knows what may be written there.
        let below = if is_domain { format!("x.{name}/x") } else { format!("{name}/x") };
        let parsed = Reference::parse(&below).map_err(|error| wrong(&error.cause))?;
        let host = canonical_host(&parsed.host);
        Ok(match path {
            _ if is_domain => Self::Below(host["x.".len()..].to_owned()),
            Some(path) => Self::Path(format!("{host}/{path}")),
            None => Self::Path(host),
        })
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Below(domain) => write!(f, "*.{domain}"),
            Self::Path(path) => f.write_str(path),
        }
    }
}

/// The repository of `reference` as rules see it: a name that leads to the same server is no way around one.
pub(crate) fn canonical(reference: &Reference) -> String {
    let (host, path) = (canonical_host(&reference.host), &reference.path);
    // As reference.rs completes it; the Hub's servers do the same.
    let library = if host == "docker.io" && !path.contains('/') { "library/" } else { "" };
    format!("{host}/{library}{path}")
}

fn canonical_host(host: &str) -> String {
    // As the request's URL will have it: numbers and addresses can be written in many ways.
    let host = match reqwest::Url::parse(&format!("https://{host}/")) {
        Ok(url) => match (url.host_str(), url.port()) {
            (Some(name), Some(port)) => format!("{name}:{port}"),
            (Some(name), None) => name.to_owned(),
            (None, _) => host.to_ascii_lowercase(),
        },
        Err(_) => host.to_ascii_lowercase(),
    };
    registry_of(&host).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_understood_or_told() {
        for (text, shown) in [
            ("*", "*"),
            ("*.example.com", "*.example.com"),
            ("*.Corp", "*.corp"),
            ("*.x.corp:5000", "*.x.corp:5000"),
            ("Registry.Example", "registry.example"),
            ("registry.example:443/a", "registry.example/a"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b"),
            ("localhost", "localhost"),
            ("127.1:5000/a", "127.0.0.1:5000/a"),
            ("[0:0::1]:5000", "[::1]:5000"),
            ("[::1]:5000", "[::1]:5000"),
            ("index.docker.io/library", "docker.io/library"),
            ("registry.hub.docker.com/team", "docker.io/team"),
            ("registry-1.docker.io", "docker.io"),
        ] {
            assert_eq!(text.parse::<Prefix>().map(|p| p.to_string()).as_deref(), Ok(shown), "{text}");
        }
        for bad in [
            "",
            "busybox",
            "library/busybox",
            "reg.example/",
            "reg.example/*",
            "https://reg.example",
            "reg.example/a:1",
            "reg.example/A",
            "*.example/a",
            "**",
            "reg.example/a@sha256:1",
            "reg.example//a",
        ] {
            let error = bad.parse::<Prefix>().expect_err(bad);
            assert!(error.contains(&format!("{bad:?}")) && error.contains("write"), "{error}");
        }
    }

    #[test]
    fn other_names_of_the_same_server_are_no_way_around_a_rule() {
        for (name, wanted) in [
            ("busybox", "docker.io/library/busybox"),
            ("docker.io/busybox", "docker.io/library/busybox"),
            ("docker.io:443/busybox", "docker.io/library/busybox"),
            ("index.docker.io/busybox", "docker.io/library/busybox"),
            ("Index.Docker.IO/busybox", "docker.io/library/busybox"),
            ("index.docker.io:443/a/b", "docker.io/a/b"),
            ("registry-1.docker.io/busybox", "docker.io/library/busybox"),
            ("registry-1.docker.io/library/busybox", "docker.io/library/busybox"),
            ("registry.hub.docker.com/busybox", "docker.io/library/busybox"),
            ("registry.hub.docker.com/library/busybox", "docker.io/library/busybox"),
            ("REGISTRY.hub.docker.com:443/a/b", "docker.io/a/b"),
            ("registry.ipv6.docker.com/a/b", "docker.io/a/b"),
            // Other servers, and other ports of the same.
            ("registry.docker.io.example/a", "registry.docker.io.example/a"),
            ("registry-1.docker.io:5000/a", "registry-1.docker.io:5000/a"),
            ("Reg.Example/a", "reg.example/a"),
            (
                "reg.example:443/a@sha256:0000000000000000000000000000000000000000000000000000000000000000",
                "reg.example/a",
            ),
        ] {
            assert_eq!(canonical(&Reference::parse(name).unwrap()), wanted);
        }
        let prefix: Prefix = "reg.example/team".parse().unwrap();
        assert_eq!(prefix.replaced("reg.example/team/a", "build.example/x"), "build.example/x/a");
        assert_eq!(prefix.replaced("reg.example/teams/a", "build.example/x"), "reg.example/teams/a");
    }
}
