//! Which AppArmor profile a container gets (CRI-SEC-06 to CRI-SEC-09b).

use crate::apparmor::{DEFAULT, Host};
use crate::error::{Error, Result};
use cri_proto::v1;
use cri_proto::v1::security_profile::ProfileType;

/// What a request says: nothing, or a type with the name of a profile.
type Asked = Option<(ProfileType, String)>;

/// The name for `process.apparmorProfile`.
///
/// # Errors
/// InvalidArgument for contradictions and profiles that are not loaded, FailedPrecondition for what this host lacks.
pub(super) fn profile(security: &v1::LinuxContainerSecurityContext) -> Result<Option<String>> {
    let asked = asked(security)?;
    if asked.as_ref().is_some_and(|(kind, _)| *kind == ProfileType::Unconfined) {
        return Ok(None);
    }
    decide(asked, security.privileged, &Host::probe())
}

/// Type and name; the older field counts only where the newer is absent (CRI-SEC-07).
fn asked(security: &v1::LinuxContainerSecurityContext) -> Result<Asked> {
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
            _ => Ok(Some((kind, name.to_owned()))),
        };
    }
    // Deprecated; kubelets before 1.30 know nothing else.
    match profile_string(security) {
        "" => Ok(None),
        "unconfined" => Ok(Some((ProfileType::Unconfined, String::new()))),
        "runtime/default" => Ok(Some((ProfileType::RuntimeDefault, String::new()))),
        other => match other.strip_prefix("localhost/").filter(|name| !name.is_empty()) {
            Some(name) => Ok(Some((ProfileType::Localhost, name.to_owned()))),
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

fn decide(asked: Asked, privileged: bool, host: &Host) -> Result<Option<String>> {
    let default = || Some(DEFAULT.to_owned());
    match asked {
        None if privileged || !host.has_default() => Ok(None),
        None => Ok(default()),
        Some((ProfileType::Unconfined, _)) => Ok(None),
        // A privileged container has no default one; one that was named it keeps.
        Some((ProfileType::RuntimeDefault, _)) if privileged => Ok(None),
        Some((_, name)) if !host.enabled => Err(Error::state(format!(
            "AppArmor profile {} was asked for, but this host has no AppArmor: leave appArmorProfile out, or boot with apparmor=1",
            if name.is_empty() { "RuntimeDefault" } else { &name }
        ))),
        Some((ProfileType::RuntimeDefault, _)) if !host.has_default() => Err(Error::state(
            "AppArmor profile RuntimeDefault was asked for, but this host has no apparmor_parser to load it: install the package \
             apparmor",
        )),
        Some((ProfileType::RuntimeDefault, _)) => Ok(default()),
        Some((ProfileType::Localhost, name)) if host.has(&name) == Some(false) => Err(Error::invalid(
            format!("AppArmor profile {name:?} is not loaded on this node: load it with apparmor_parser -r"),
        )),
        Some((ProfileType::Localhost, name)) => Ok(Some(name)),
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
            Ok(Some((ProfileType::Localhost, "a".into())))
        );
        assert_eq!(asked(&old("localhost/b")), Ok(Some((ProfileType::Localhost, "b".into()))));
        assert_eq!(asked(&old("runtime/default")), Ok(Some((ProfileType::RuntimeDefault, String::new()))));
        assert_eq!(asked(&old("")), Ok(None));
        let both = v1::LinuxContainerSecurityContext {
            apparmor: of(ProfileType::Unconfined, "").apparmor,
            ..old("localhost/b")
        };
        assert_eq!(asked(&both), Ok(Some((ProfileType::Unconfined, String::new()))));
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
        let loaded = Some("a (enforce)\nb c (complain)\n".into());
        let bare = Host { enabled: true, profiles: loaded, parser: None };
        let with = Host { parser: Some("/sbin/apparmor_parser".into()), ..bare.clone() };
        let named = |name: &str| Some((ProfileType::Localhost, name.to_owned()));
        let default = || Some((ProfileType::RuntimeDefault, String::new()));
        let unconfined = || Some((ProfileType::Unconfined, String::new()));
        assert_eq!(decide(unconfined(), false, &with), Ok(None));
        assert!(decide(default(), false, &without).is_err() && decide(named("a"), false, &without).is_err());
        assert_eq!(decide(default(), true, &without), Ok(None));
        assert!(decide(named("a"), true, &without).is_err(), "one that was named stays");
        assert_eq!(decide(named("b c"), false, &with), Ok(Some("b c".into())));
        assert!(decide(named("b"), false, &with).is_err_and(|e| e.to_string().contains("not loaded")));
        for asked in [None, default()] {
            assert_eq!(decide(asked.clone(), false, &with), Ok(Some(DEFAULT.into())));
            assert_eq!(decide(asked, true, &with), Ok(None));
        }
        assert_eq!(decide(None, false, &without), Ok(None));
        assert_eq!(decide(None, false, &bare), Ok(None));
        assert!(
            decide(default(), false, &bare)
                .is_err_and(|e| e.to_string().contains("install the package apparmor"))
        );
    }
}
