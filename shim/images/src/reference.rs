//! Image references: `[host[:port]/]path[:tag][@digest]` (IMG-REF-*), normalised as Docker does.

use crate::digest::Digest;
use crate::{Error, Result};

const DEFAULT_HOST: &str = "docker.io";

/// A normalised reference: the host is always there; a tag too, unless a digest decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) host: String,
    pub(crate) path: String,
    /// None when a digest was given: then the digest decides and the tag is dropped (IMG-REF-03, CRI-IMG-08).
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<Digest>,
}

/// Names of Docker Hub beside its own: the hosts that serve it, also those of before (Jib's RegistryAliasGroup, and Docker's
/// announcement of IPv6). Only the first is another way to write the name of an image; distribution/reference and containerd
/// know no other one.
const HUB: [&str; 4] =
    ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", "registry.ipv6.docker.com"];

/// `host`, in lower case, or `docker.io` if that is the registry it leads to.
pub(crate) fn registry_of(host: &str) -> &str {
    if HUB.contains(&host) { DEFAULT_HOST } else { host }
}

impl Reference {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::invalid("parse reference", text, why);
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad("64 hex digits are an image id, not a name"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        if !tag.is_none_or(valid_tag) {
            return Err(bad("a tag is 1 to 128 of A-Z a-z 0-9 _ . - and begins with none of . -"));
        }
        let (host, path) = split_host(name);
        if !valid_host(&host) {
            return Err(bad("the host is not a host name with an optional port"));
        }
        if !path.split('/').all(valid_component) {
            return Err(bad(
                "path components are lower-case letters and digits, separated by one . or _, __ or dashes",
            ));
        }
        if host.len() + 1 + path.len() > 255 {
            return Err(bad("host and path together are longer than 255 characters"));
        }
        let tag = if digest.is_some() { None } else { Some(tag.unwrap_or("latest").to_owned()) };
        Ok(Self { host, path, tag, digest })
    }

    /// `host/path` without tag and digest.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// What manifests are asked by: the digest if there is one, else the tag.
    pub(crate) fn selector(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }

    /// `host/path@digest`.
    pub(crate) fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let separator = if self.digest.is_some() { '@' } else { ':' };
        write!(f, "{}{separator}{}", self.name(), self.selector())
    }
}

fn split_tag(text: &str) -> (&str, Option<&str>) {
    let last = text.rfind('/').map_or(0, |slash| slash + 1);
    match text[last..].rfind(':') {
        Some(colon) => (&text[..last + colon], Some(&text[last + colon + 1..])),
        None => (text, None),
    }
}

/// IMG-REF-02: the first component is a host if it looks like one.
fn split_host(name: &str) -> (String, String) {
    if let Some((first, rest)) = name.split_once('/') {
        let is_host = first.contains(['.', ':'])
            || first == "localhost"
            || first.bytes().any(|b| b.is_ascii_uppercase());
        if is_host {
            let host = if first == HUB[0] { DEFAULT_HOST } else { first };
            let library = host == DEFAULT_HOST && !rest.contains('/');
            return (host.to_owned(), if library { format!("library/{rest}") } else { rest.to_owned() });
        }
        return (DEFAULT_HOST.to_owned(), name.to_owned());
    }
    (DEFAULT_HOST.to_owned(), format!("library/{name}"))
}

fn valid_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn valid_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => (address, port.strip_prefix(':').or(Some("x"))),
            None => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    // One way to write each port: names that lead to the same server are to be the same.
    let plain = |port: &str| port.parse::<u16>().is_ok_and(|number| number.to_string() == port);
    if port.is_some_and(|port| !plain(port)) {
        return false;
    }
    if host.starts_with('[') {
        return name.parse::<std::net::Ipv6Addr>().is_ok();
    }
    name.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}

/// `[a-z0-9]+` joined by one of `.`, `_`, `__` or any number of dashes (distribution-spec).
fn valid_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_well = |b: Option<&u8>| b.is_some_and(|b| alphanumeric(*b));
    if !ends_well(bytes.first()) || !ends_well(bytes.last()) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        Reference::parse(text).unwrap().to_string()
    }

    // IMG-REF-01, -02, -03; CRI-IMG-05, -08, -09
    #[test]
    fn normalises() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (given, wanted) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b:c", "docker.io/a/b:c"),
            // Their servers are the Hub's, but names of images they are not: a policy knows better than a name.
            ("registry.hub.docker.com/b", "registry.hub.docker.com/b:latest"),
            ("registry-1.docker.io/library/b", "registry-1.docker.io/library/b:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000/a/b/c:v1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("Host/a", "Host/a:latest"),
            ("reg.example/a__b/c---d/e.f:x_Y.z-1", "reg.example/a__b/c---d/e.f:x_Y.z-1"),
        ] {
            assert_eq!(shown(given), wanted, "{given}");
        }
        assert_eq!(shown(&format!("a:tag@{digest}")), format!("docker.io/library/a@{digest}"));
        assert_eq!(Reference::parse(&format!("a:tag@{digest}")).unwrap().tag, None);
    }

    // IMG-REF-01, -04, -06
    #[test]
    fn refuses() {
        let long = format!("reg.example/{}", "a".repeat(250));
        let id = "0123456789abcdef".repeat(4);
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a:",
            "a:.x",
            "a:-x",
            "a@",
            "a@sha256:12",
            "a b",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "reg.example:99999/a",
            "reg.example:0443/a",
            "reg.example:+443/a",
            "reg.example:/a",
            "[::1/a",
            "[::g]/a",
            "http://reg.example/a",
            "a/../b",
            "reg..example/a",
            "é",
            "a:ü",
            "a\0b",
            "a:x/y@z",
            &long,
            &id,
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Reference::parse(&format!("a:{}", "t".repeat(128))).is_ok());
        assert!(Reference::parse(&format!("a:{}", "t".repeat(129))).is_err());
    }

    /// What is printed parses to the same reference.
    #[test]
    fn printing_is_stable() {
        for text in ["a", "a/b", "x.y/a", "localhost:1/a:b", "h:5/a.b_c--d/e"] {
            let once = Reference::parse(text).unwrap();
            assert_eq!(Reference::parse(&once.to_string()).unwrap(), once);
        }
    }
}
