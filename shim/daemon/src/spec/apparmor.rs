//! Which AppArmor profile a container gets (CRI-SEC-06 to CRI-SEC-09b).

use crate::error::{Error, Result};
use cri_proto::v1;
use cri_proto::v1::security_profile::ProfileType;

/// The host's side: whether its kernel has AppArmor, and the text of its list of loaded profiles if it can be read.
#[derive(Debug, Default)]
struct Host {
    enabled: bool,
    profiles: Option<String>,
}

/// The name for `process.apparmorProfile`.
///
/// # Errors
/// InvalidArgument for contradictions and profiles that are not loaded, FailedPrecondition for what this host lacks.
pub(super) fn profile(security: &v1::LinuxContainerSecurityContext) -> Result<Option<String>> {
    let asked = asked(security)?;
    if asked == (ProfileType::Unconfined, String::new()) {
        return Ok(None);
    }
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled");
    let profiles = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").ok();
    decide(
        asked,
        security.privileged,
        &Host { enabled: enabled.is_ok_and(|v| v.starts_with(b"Y")), profiles },
    )
}

/// Type and name; the older field counts only where the newer is absent (CRI-SEC-07).
fn asked(security: &v1::LinuxContainerSecurityContext) -> Result<(ProfileType, String)> {
    if let Some(profile) = &security.apparmor {
        let (kind, name) = (profile.profile_type(), profile.localhost_ref.trim_start_matches("localhost/"));
        return match (kind, name.is_empty()) {
            (ProfileType::Localhost, true) => {
                Err(Error::invalid("apparmor: type Localhost needs the name of a profile in localhost_ref"))
            }
            (ProfileType::RuntimeDefault | ProfileType::Unconfined, false) => {
                let kind = kind.as_str_name();
                Err(Error::invalid(format!("apparmor: localhost_ref {name:?} is set with type {kind}")))
            }
            _ => Ok((kind, name.to_owned())),
        };
    }
    // Deprecated; kubelets before 1.30 know nothing else.
    match profile_string(security) {
        "" | "unconfined" => Ok((ProfileType::Unconfined, String::new())),
        "runtime/default" => Ok((ProfileType::RuntimeDefault, String::new())),
        other => match other.strip_prefix("localhost/").filter(|name| !name.is_empty()) {
            Some(name) => Ok((ProfileType::Localhost, name.to_owned())),
            None => Err(Error::invalid(format!(
                "apparmor_profile {other:?} is not runtime/default, unconfined or localhost/<name>"
            ))),
        },
    }
}

#[allow(deprecated)]
fn profile_string(security: &v1::LinuxContainerSecurityContext) -> &str {
    &security.apparmor_profile
}

fn decide((kind, name): (ProfileType, String), privileged: bool, host: &Host) -> Result<Option<String>> {
    match kind {
        ProfileType::Unconfined => Ok(None),
        // A privileged container has no default one; one that was named it keeps.
        ProfileType::RuntimeDefault if privileged => Ok(None),
        _ if !host.enabled => Err(Error::state(format!(
            "AppArmor profile {} was asked for, but this host has no AppArmor: leave appArmorProfile out, or boot with apparmor=1",
            if name.is_empty() { "RuntimeDefault" } else { &name }
        ))),
        ProfileType::RuntimeDefault => Err(Error::state(
            "AppArmor profile RuntimeDefault was asked for: there is none of our own yet; name one that is loaded (type Localhost)",
        )),
        ProfileType::Localhost => {
            let is = |line: &str| line.rsplit_once(" (").is_some_and(|(loaded, _)| loaded == name);
            if host.profiles.as_ref().is_some_and(|all| !all.lines().any(is)) {
                return Err(Error::invalid(format!(
                    "AppArmor profile {name:?} is not loaded on this node: load it with apparmor_parser -r"
                )));
            }
            Ok(Some(name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: ProfileType, name: &str) -> v1::LinuxContainerSecurityContext {
        let profile = v1::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() };
        v1::LinuxContainerSecurityContext { apparmor: Some(profile), ..Default::default() }
    }

    #[allow(deprecated)]
    fn old(profile: &str) -> v1::LinuxContainerSecurityContext {
        v1::LinuxContainerSecurityContext { apparmor_profile: profile.into(), ..Default::default() }
    }

    /// CRI-SEC-07, CRI-SEC-08, CRI-SEC-09b.
    #[test]
    fn the_newer_field_wins_and_contradictions_are_refused() {
        assert_eq!(
            asked(&of(ProfileType::Localhost, "localhost/a")),
            Ok((ProfileType::Localhost, "a".into()))
        );
        assert_eq!(asked(&old("localhost/b")), Ok((ProfileType::Localhost, "b".into())));
        assert_eq!(asked(&old("runtime/default")), Ok((ProfileType::RuntimeDefault, String::new())));
        assert_eq!(asked(&old("")), Ok((ProfileType::Unconfined, String::new())));
        let both = v1::LinuxContainerSecurityContext {
            apparmor: of(ProfileType::Unconfined, "").apparmor,
            ..old("localhost/b")
        };
        assert_eq!(asked(&both), Ok((ProfileType::Unconfined, String::new())));
        for bad in [
            of(ProfileType::Localhost, ""),
            of(ProfileType::RuntimeDefault, "a"),
            of(ProfileType::Unconfined, "a"),
            old("localhost/"),
            old("odd"),
        ] {
            assert!(asked(&bad).is_err(), "{bad:?}");
        }
    }

    /// CRI-SEC-06, CRI-SEC-09.
    #[test]
    fn a_profile_is_never_ignored_silently() {
        let without = Host::default();
        let with = Host { enabled: true, profiles: Some("a (enforce)\nb c (complain)\n".into()) };
        let named = |name: &str| (ProfileType::Localhost, name.to_owned());
        let default = || (ProfileType::RuntimeDefault, String::new());
        assert_eq!(decide((ProfileType::Unconfined, String::new()), false, &without), Ok(None));
        assert!(decide(default(), false, &without).is_err() && decide(named("a"), false, &without).is_err());
        assert_eq!(decide(default(), true, &without), Ok(None));
        assert!(decide(named("a"), true, &without).is_err(), "one that was named stays");
        assert_eq!(decide(named("b c"), false, &with), Ok(Some("b c".into())));
        assert!(decide(named("b"), false, &with).is_err_and(|e| e.to_string().contains("not loaded")));
    }
}
