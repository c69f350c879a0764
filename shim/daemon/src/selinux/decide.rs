//! Which label a pod and each of its containers get: the policy's defaults, overridden by what they ask for. Pure.

use super::{Contexts, Label, Labels};
use cri_proto::v1::{NamespaceMode, NamespaceOption, SeLinuxOption};

/// Whether nothing is asked for.
pub(super) fn is_empty(options: &SeLinuxOption) -> bool {
    *options == SeLinuxOption::default()
}

/// Of the whole pod, at its own level.
pub(super) fn pod(contexts: &Contexts, level: &str, asked: Option<&SeLinuxOption>) -> Labels {
    override_by(contexts.process.at(level), contexts.file.at(level), asked)
}

/// Of a container: the pod's, with what it asks for itself (CRI-SEC-11). One that is not kept apart from the host has `free` for
/// its processes; its files stay apart.
pub(super) fn container(pod: &Labels, asked: Option<&SeLinuxOption>, free: Option<&str>) -> Option<Labels> {
    let labels = override_by(Label::parse(&pod.process)?, Label::parse(&pod.file)?, asked);
    Some(match free {
        Some(free) => Labels { process: free.to_owned(), ..labels },
        None => labels,
    })
}

/// Role and type are of processes; user and level of files, too (go-selinux, InitLabels).
fn override_by(mut process: Label, mut file: Label, asked: Option<&SeLinuxOption>) -> Labels {
    if let Some(asked) = asked {
        for (wanted, targets) in [
            (&asked.user, vec![&mut process.user, &mut file.user]),
            (&asked.role, vec![&mut process.role]),
            (&asked.r#type, vec![&mut process.kind]),
        ] {
            if !wanted.is_empty() {
                targets.into_iter().for_each(|target| target.clone_from(wanted));
            }
        }
        if !asked.level.is_empty() {
            process.level = Some(asked.level.clone());
            file.level = Some(asked.level.clone());
        }
    }
    Labels { process: process.to_string(), file: file.to_string() }
}

/// Whether a container is kept apart from the host: privileged ones never, those in the host's PID or IPC namespace unless they
/// say what they want to be (as with CRI-O).
pub(super) fn is_apart(
    privileged: bool,
    namespaces: &NamespaceOption,
    asked: Option<&SeLinuxOption>,
) -> bool {
    let host = namespaces.pid() == NamespaceMode::Node || namespaces.ipc() == NamespaceMode::Node;
    !privileged && (!host || asked.is_some_and(|asked| !is_empty(asked)))
}

/// What sets a container's own level apart from its pod's; none if they are the same.
pub(super) fn own_level(pod: &Labels, labels: &Labels) -> Option<String> {
    let level = |text: &str| Label::parse(text).and_then(|label| label.level);
    level(&labels.file).filter(|own| Some(own) != level(&pod.file).as_ref())
}

/// The same for all containers, whatever their categories: without any.
pub(crate) fn shared(file: &str) -> String {
    Label::parse(file).map_or_else(|| file.to_owned(), |label| label.at("s0").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts() -> Contexts {
        Contexts::read(std::path::Path::new("/nonexistent"))
    }

    fn asking(change: impl FnOnce(&mut SeLinuxOption)) -> SeLinuxOption {
        let mut options = SeLinuxOption::default();
        change(&mut options);
        options
    }

    /// CRI-SEC-10, CRI-SEC-11.
    #[test]
    fn defaults_are_overridden_by_the_pod_and_then_by_the_container() {
        let level = "s0:c1,c2";
        let usual = pod(&contexts(), level, None);
        assert_eq!(usual.process, "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(usual.file, "system_u:object_r:container_file_t:s0:c1,c2");
        assert_eq!(container(&usual, None, None), Some(usual.clone()));
        let typed = pod(&contexts(), level, Some(&asking(|o| o.r#type = "web_t".into())));
        assert_eq!(typed.process, "system_u:system_r:web_t:s0:c1,c2");
        assert_eq!(typed.file, usual.file, "a type is of processes");
        let own = asking(|o| (o.level, o.user) = ("s0:c5,c6".into(), "user_u".into()));
        let own = container(&typed, Some(&own), None).expect("labels");
        assert_eq!(own.process, "user_u:system_r:web_t:s0:c5,c6");
        assert_eq!(own.file, "user_u:object_r:container_file_t:s0:c5,c6");
        assert_eq!(own_level(&typed, &own).as_deref(), Some("s0:c5,c6"));
        assert_eq!(own_level(&typed, &typed), None);
        assert_eq!(shared(&own.file), "user_u:object_r:container_file_t:s0");
    }

    /// CRI-CAP-08, CRI-SEC-10.
    #[test]
    fn what_shares_the_host_s_processes_is_not_kept_apart() {
        let of = |pid: NamespaceMode, ipc: NamespaceMode| NamespaceOption {
            pid: pid.into(),
            ipc: ipc.into(),
            ..Default::default()
        };
        let own = of(NamespaceMode::Container, NamespaceMode::Pod);
        assert!(is_apart(false, &own, None) && !is_apart(true, &own, None));
        let typed = asking(|o| o.r#type = "web_t".into());
        for host in
            [of(NamespaceMode::Node, NamespaceMode::Pod), of(NamespaceMode::Container, NamespaceMode::Node)]
        {
            assert!(
                !is_apart(false, &host, None) && !is_apart(false, &host, Some(&SeLinuxOption::default()))
            );
            assert!(is_apart(false, &host, Some(&typed)) && !is_apart(true, &host, Some(&typed)));
        }
        let usual = pod(&contexts(), "s0:c1,c2", None);
        let free = container(&usual, Some(&typed), Some("u:r:spc_t:s0")).expect("labels");
        assert_eq!((free.process.as_str(), free.file), ("u:r:spc_t:s0", usual.file));
    }
}
