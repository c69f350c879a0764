//! SELinux: whether containers are kept apart by labels.

use super::Finding;
use crate::config::{Labels, Selinux};
use crate::selinux::{Policy, REMEDY};

pub(super) fn check(keys: &Selinux) -> Finding {
    judge(&Policy::probe(), slipway_runtime::lsm::selinux_enforces().unwrap_or_default(), keys.labels)
}

fn judge(policy: &Policy, enforces: bool, labels: Labels) -> Finding {
    const SUBJECT: &str = "SELinux";
    let mode = if enforces { "enforcing" } else { "permissive" };
    match (policy, labels) {
        (Policy::Absent, Labels::On) => {
            let remedy = "boot with SELinux, or leave selinux.labels out";
            Finding::warning(SUBJECT, "off, though selinux.labels is on", remedy)
        }
        (Policy::Absent, _) => Finding::ok(SUBJECT, "off"),
        (Policy::Lacking { contexts, why }, _) => {
            let found = format!("{mode}, policy {}: {why}", contexts.policy);
            match labels {
                Labels::On => Finding::failure(SUBJECT, found, REMEDY),
                _ => Finding::warning(
                    SUBJECT,
                    format!("{found}; containers run in the daemon's domain"),
                    REMEDY,
                ),
            }
        }
        (Policy::Known { contexts, .. }, Labels::Off) => {
            let found = format!(
                "{mode}, policy {}, but selinux.labels is off: containers run in the daemon's domain",
                contexts.policy
            );
            Finding::warning(SUBJECT, found, "leave selinux.labels out")
        }
        (Policy::Known { contexts, free }, _) => {
            let (policy, kind) = (&contexts.policy, &contexts.process.kind);
            match free {
                Some(_) => Finding::ok(SUBJECT, format!("{mode}, policy {policy}, containers are {kind}")),
                None => Finding::warning(
                    SUBJECT,
                    format!(
                        "{mode}, policy {policy} has no spc_t: privileged containers run in the daemon's domain"
                    ),
                    REMEDY,
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::selinux::Contexts;

    #[test]
    fn a_policy_without_containers_is_told_its_package() {
        let contexts = Contexts::read(std::path::Path::new("/nonexistent"));
        let lacking = Policy::Lacking { contexts: contexts.clone(), why: "no such type".into() };
        for (labels, verdict) in [(Labels::Auto, Verdict::Warning), (Labels::On, Verdict::Failure)] {
            let finding = judge(&lacking, true, labels);
            assert!(
                finding.verdict == verdict && finding.remedy.contains("container-selinux"),
                "{finding:?}"
            );
            assert!(finding.found.starts_with("enforcing, policy targeted: no such type"), "{finding:?}");
        }
        let known = Policy::Known { contexts, free: Some("u:r:spc_t:s0".into()) };
        assert_eq!(
            judge(&known, false, Labels::Auto).found,
            "permissive, policy targeted, containers are container_t"
        );
        assert_eq!(judge(&known, true, Labels::Off).verdict, Verdict::Warning);
        assert_eq!(judge(&Policy::Absent, false, Labels::Auto).verdict, Verdict::Ok);
        assert_eq!(judge(&Policy::Absent, false, Labels::On).verdict, Verdict::Warning);
    }
}
