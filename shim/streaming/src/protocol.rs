//! Names of the protocols, and which of a client's is taken.

/// Header of SPDY's clients: their protocols, by preference (STR-UPG-02).
pub(crate) const VERSIONS: &str = "x-stream-protocol-version";
/// Header of the refusal that names ours (STR-UPG-05).
pub(crate) const ACCEPTED: &str = "x-accepted-stream-protocol-versions";

/// Port-forward over SPDY (STR-UPG-09).
pub(crate) const FORWARD: &str = "portforward.k8s.io";
/// The same SPDY inside WebSocket messages (STR-WHO-02).
pub(crate) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What exec and attach speak on SPDY (STR-UPG-08).
pub(crate) const SPDY_COMMAND: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// On WebSocket (STR-WS-01); the empty one is a client that names none (STR-WS-05).
pub(crate) const SOCKET_COMMAND: [&str; 6] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];
/// STR-PFW-03, STR-PFW-04.
pub(crate) const SOCKET_FORWARD: [&str; 4] = [TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];

/// What the version of exec's and attach's protocol decides (STR-STM-08).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version(u8);

impl Version {
    pub(crate) fn of(protocol: &str) -> Self {
        Self(match protocol.split('.').next() {
            Some("v5") => 5,
            Some("v4") => 4,
            Some("v3") => 3,
            Some("v2") => 2,
            _ => 1,
        })
    }

    /// SPDY has a resize stream.
    pub(crate) fn resizes(self) -> bool {
        self.0 >= 3
    }

    /// The error stream carries a JSON status.
    pub(crate) fn has_status(self) -> bool {
        self.0 >= 4
    }

    /// WebSocket clients can end a stream (STR-WS-10).
    pub(crate) fn closes(self) -> bool {
        self.0 >= 5
    }
}

/// The first of the client's that is one of ours (STR-UPG-04).
pub(crate) fn choose(theirs: &[String], ours: &[&'static str]) -> Option<&'static str> {
    theirs.iter().find_map(|wanted| ours.iter().find(|known| **known == wanted.as_str()).copied())
}

/// All values of a header that may be repeated and may hold lists (STR-UPG-02).
pub(crate) fn listed<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let text = values.into_iter().map(String::from_utf8_lossy);
    let names =
        text.flat_map(|value| value.split(',').map(|name| name.trim().to_owned()).collect::<Vec<_>>());
    names.filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// STR-UPG-02, STR-UPG-04, STR-UPG-08.
    #[test]
    fn the_clients_preference_decides() {
        let values: [&[u8]; 2] = [b"v5.channel.k8s.io, v3.channel.k8s.io", b"v4.channel.k8s.io,"];
        let theirs = listed(values);
        assert_eq!(theirs, ["v5.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io"]);
        assert_eq!(choose(&theirs, &SPDY_COMMAND), Some("v3.channel.k8s.io"));
        assert_eq!(choose(&theirs, &SOCKET_COMMAND), Some("v5.channel.k8s.io"), "STR-WHO-09");
        assert_eq!(choose(&theirs, &[FORWARD]), None);
    }

    /// STR-STM-08, STR-WS-10.
    #[test]
    fn versions() {
        let of = |name| {
            let version = Version::of(name);
            (version.resizes(), version.has_status(), version.closes())
        };
        assert_eq!(of("v5.channel.k8s.io"), (true, true, true));
        assert_eq!(of("v4.base64.channel.k8s.io"), (true, true, false));
        assert_eq!(of("v3.channel.k8s.io"), (true, false, false));
        for old in ["v2.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io", ""] {
            assert_eq!(of(old), (false, false, false), "{old}");
        }
    }
}
