//! What a shim's `start` action prints: where its server is, and what that speaks (SHIM-OUT-01 to SHIM-OUT-05, SHIM-OUT-09).

use containerd_shim_protos::bootstrap_api::BootstrapResult;
use protobuf::Message as _;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Where a shim is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Endpoint {
    /// With its scheme, `unix://`.
    pub(super) address: String,
    /// 2 or 3, of the Task service.
    pub(super) version: i32,
}

/// The form of 1.7 and later.
#[derive(Debug, Deserialize)]
struct Json {
    version: i32,
    address: String,
    #[serde(default)]
    protocol: String,
}

impl Endpoint {
    /// Of all three forms: a message, JSON, or the address alone.
    ///
    /// # Errors
    /// Why it is none of them, or of no use, in words.
    pub(super) fn parse(said: &[u8]) -> Result<Self, String> {
        let text = String::from_utf8_lossy(said);
        let text = text.trim();
        if text.is_empty() {
            return Err("it printed no address".into());
        }
        if text.starts_with('{') {
            let json: Json =
                serde_json::from_str(text).map_err(|e| format!("its answer is no address: {e}"))?;
            return Self::of(json.version, &json.address, &json.protocol);
        }
        if text.starts_with('/') || text.starts_with("unix:") {
            return Self::of(2, text, "");
        }
        match BootstrapResult::parse_from_bytes(said) {
            Ok(result) if !result.address.is_empty() => {
                Self::of(result.version, &result.address, &result.protocol)
            }
            _ => {
                let shown: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
                Err(format!("its answer is no address: {shown:?}"))
            }
        }
    }

    /// Of its socket.
    pub(super) fn path(&self) -> &Path {
        Path::new(self.address.strip_prefix("unix://").unwrap_or(&self.address))
    }

    fn of(version: i32, address: &str, protocol: &str) -> Result<Self, String> {
        if !protocol.is_empty() && !protocol.eq_ignore_ascii_case("ttrpc") {
            return Err(format!("it speaks {protocol}, and only ttrpc is spoken here"));
        }
        if version > 3 {
            return Err(format!("it speaks version {version} of the Task service: 2 and 3 are known"));
        }
        let path = address.strip_prefix("unix://").unwrap_or(address);
        if !path.starts_with('/') || path.contains(['\n', '\0']) {
            return Err(format!("its answer {address:?} is not the address of a unix socket"));
        }
        Ok(Self { address: format!("unix://{path}"), version: version.max(2) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_an_address() {
        // SHIM-OUT-01, SHIM-OUT-02, SHIM-OUT-03
        let endpoint = |version| Endpoint { address: "unix:///run/s".into(), version };
        let mut message = BootstrapResult::new();
        (message.version, message.address, message.protocol) = (3, "unix:///run/s".into(), "ttrpc".into());
        let message = message.write_to_bytes().unwrap();
        for (said, version) in [
            (&b"unix:///run/s\n"[..], 2),
            (b" /run/s", 2),
            (br#"{"version":2,"address":"unix:///run/s","protocol":"ttrpc"}"#, 2),
            (br#"{"version":3,"address":"unix:///run/s","protocol":"TTRPC"}"#, 3),
            (br#"{"version":1,"address":"unix:///run/s"}"#, 2),
            (&message, 3),
        ] {
            assert_eq!(Endpoint::parse(said).unwrap(), endpoint(version), "{said:?}");
        }
    }

    #[test]
    fn rubbish_is_shown() {
        // SHIM-OUT-04, SHIM-OUT-05, SHIM-OUT-09
        for (said, named) in [
            (&b""[..], "no address"),
            (b" \n", "no address"),
            (b"usage: kata [-h]", "usage: kata"),
            (b"\xff\xfe\x00", "no address"),
            (b"{\"version\":", "no address"),
            (br#"{"version":4,"address":"unix:///s"}"#, "version 4"),
            (br#"{"version":3,"address":"unix:///s","protocol":"grpc"}"#, "speaks grpc"),
            (br#"{"version":3,"address":"tcp://1.2.3.4:5"}"#, "tcp://1.2.3.4:5"),
            (b"unix://relative", "unix://relative"),
            (b"/run/a\nfatal: no", "/run/a"),
        ] {
            let error = Endpoint::parse(said).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
