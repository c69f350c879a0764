//! Seccomp, masked and read-only paths (CRI-SEC-*).

use super::{Inputs, capabilities};
use crate::error::{Error, Result};
use cri_proto::v1;
use cri_proto::v1::security_profile::ProfileType;
use nix::fcntl::OFlag;
use oci_spec::runtime::{Capability, LinuxSeccomp};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::str::FromStr;

pub(super) fn apply(linux: &mut Value, inputs: &Inputs<'_>) -> Result<()> {
    let security = inputs.security();
    if security.privileged {
        return Ok(());
    }
    if let Some(profile) = seccomp(&security)? {
        linux["seccomp"] =
            serde_json::to_value(profile).map_err(|e| Error::internal(format!("seccomp: {e}")))?;
    }
    // Exactly as given; the kubelet sends the default lists itself (CRI-SEC-12).
    linux["maskedPaths"] = json!(security.masked_paths);
    linux["readonlyPaths"] = json!(security.readonly_paths);
    Ok(())
}

/// Presence, not content, decides: RuntimeDefault is an empty message (CRI-SEC-01 to 05).
fn seccomp(security: &v1::LinuxContainerSecurityContext) -> Result<Option<LinuxSeccomp>> {
    let Some(profile) = &security.seccomp else { return Ok(None) };
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => {
            let (names, _) = capabilities::sets(security)?;
            // The names were made canonical above; oci-spec knows them without their prefix.
            let known = names.iter().filter_map(|n| Capability::from_str(n.trim_start_matches("CAP_")).ok());
            Ok(Some(slipway_runtime::seccomp::default_profile(&known.collect::<HashSet<_>>())))
        }
        ProfileType::Localhost => {
            let path = profile.localhost_ref.trim_start_matches("localhost/");
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            let text = profile_text(Path::new(&path)).map_err(|e| {
                Error::invalid(format!("seccomp profile {path}: {e}: put the file on the node"))
            })?;
            let parsed = serde_json::from_slice(&text);
            parsed.map(Some).map_err(|e| Error::invalid(format!("seccomp profile {path} is not valid: {e}")))
        }
    }
}

/// The largest profile that is read, in bytes; those in use have some ten thousand.
const LARGEST_PROFILE: u64 = 4 << 20;

/// A device or a fifo in its place would have no end.
fn profile_text(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let mut text = Vec::new();
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    if file.take(LARGEST_PROFILE + 1).read_to_end(&mut text)? as u64 > LARGEST_PROFILE {
        return Err(std::io::Error::other(format!("it is longer than {LARGEST_PROFILE} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use crate::spec::tests::spec_of;
    use cri_proto::v1;

    /// CRI-SEC-01, CRI-SEC-02, CRI-SEC-03, CRI-SEC-04, CRI-SEC-12.
    #[test]
    fn presence_of_the_message_decides() {
        assert!(spec_of(|_, _| {}).expect("spec")["linux"].get("seccomp").is_none());
        let default = spec_of(|_, s| s.seccomp = Some(v1::SecurityProfile::default())).expect("spec");
        assert_eq!(default["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        let privileged = spec_of(|_, s| {
            s.seccomp = Some(v1::SecurityProfile::default());
            s.privileged = true;
        });
        assert!(privileged.expect("spec")["linux"].get("seccomp").is_none());
        let absent = spec_of(|_, s| {
            s.seccomp = Some(v1::SecurityProfile {
                profile_type: v1::security_profile::ProfileType::Localhost.into(),
                localhost_ref: "/no/such/profile.json".into(),
            });
        });
        assert!(absent.is_err_and(|e| e.to_string().contains("/no/such/profile.json")));
        let masked = spec_of(|_, s| s.masked_paths = vec!["/proc/kcore".into()]).expect("spec");
        assert_eq!(masked["linux"]["maskedPaths"], serde_json::json!(["/proc/kcore"]));
    }
}
