//! Security contexts of pod and container to CRI, with the kubelet's defaults. Pure, part of `translate`.

use anyhow::{Context, Result, bail, ensure};
use cri_proto::v1 as cri;

use super::manifest::{Container, Pod, ProcMount, Profile, ProfileKind};
use super::translate::{Facts, ImageFacts, groups_policy};
use super::users;

/// What the kubelet masks in every container with the default procMount.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The sandbox's part: namespaces, sysctls, and what the pod as a whole is allowed.
pub(crate) fn sandbox(pod: &Pod, facts: &Facts) -> cri::LinuxPodSandboxConfig {
    let context = &pod.spec.security_context;
    let id = |value: Option<i64>| value.map(|value| cri::Int64Value { value });
    // CRI-CC-15: a group alone is an error there; it is the containers that use it.
    let run_as_group = context.run_as_user.and(context.run_as_group);
    let containers = pod.spec.init_containers.iter().chain(&pod.spec.containers);
    cri::LinuxPodSandboxConfig {
        security_context: Some(cri::LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces(pod, facts)),
            run_as_user: id(context.run_as_user),
            run_as_group: id(run_as_group),
            supplemental_groups: groups(pod),
            supplemental_groups_policy: groups_policy(context.supplemental_groups_policy),
            // CRI-RUN-20.
            privileged: containers.into_iter().any(|container| container.security_context.privileged),
            seccomp: Some(runtime_default()),
            ..Default::default()
        }),
        sysctls: context.sysctls.iter().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
        ..Default::default()
    }
}

fn namespaces(pod: &Pod, facts: &Facts) -> cri::NamespaceOption {
    use cri::NamespaceMode::{Container, Node, Pod};
    let spec = &pod.spec;
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (true, _) => Node,
        (false, true) => Pod,
        (false, false) => Container,
    };
    cri::NamespaceOption {
        network: if spec.host_network { Node } else { Pod }.into(),
        pid: pid.into(),
        ipc: if spec.host_ipc { Node } else { Pod }.into(),
        userns_options: facts.users_of(pod).map(users::options),
        ..Default::default()
    }
}

/// fsGroup is one of the supplementary groups.
fn groups(pod: &Pod) -> Vec<i64> {
    let context = &pod.spec.security_context;
    let mut groups = context.supplemental_groups.clone();
    groups.extend(context.fs_group.filter(|group| !context.supplemental_groups.contains(group)));
    groups
}

fn runtime_default() -> cri::SecurityProfile {
    cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::RuntimeDefault.into(),
        ..Default::default()
    }
}

pub(crate) fn container(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    image: Option<&ImageFacts>,
) -> Result<cri::LinuxContainerSecurityContext> {
    let (own, pods) = (&container.security_context, &pod.spec.security_context);
    let no_new_privs = own.allow_privilege_escalation == Some(false);
    ensure!(
        !(own.privileged && no_new_privs),
        "privileged: true contradicts allowPrivilegeEscalation: false"
    );
    let user = user(pod, container, image)?;
    let seccomp = match own.seccomp_profile.as_ref().or(pods.seccomp_profile.as_ref()) {
        Some(profile) => Some(security_profile(profile, "seccompProfile", |name| seccomp_path(name, facts))?),
        None if own.privileged => None,
        None => Some(runtime_default()),
    };
    let apparmor = own.app_armor_profile.as_ref().or(pods.app_armor_profile.as_ref());
    let apparmor =
        apparmor.map(|profile| security_profile(profile, "appArmorProfile", |name| Ok(name.to_owned())));
    let (masked_paths, readonly_paths) = match own.proc_mount {
        ProcMount::Unmasked => (Vec::new(), Vec::new()),
        ProcMount::Default => (
            MASKED.iter().map(|path| (*path).to_owned()).chain(facts.masked_extra.iter().cloned()).collect(),
            READ_ONLY.iter().map(|path| (*path).to_owned()).collect(),
        ),
    };
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: own.capabilities.add.clone(),
            drop_capabilities: own.capabilities.drop.clone(),
            ..Default::default()
        }),
        privileged: own.privileged,
        namespace_options: Some(namespaces(pod, facts)),
        run_as_user: user.id.map(|value| cri::Int64Value { value }),
        run_as_username: user.name,
        run_as_group: own.run_as_group.or(pods.run_as_group).map(|value| cri::Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem,
        supplemental_groups: groups(pod),
        supplemental_groups_policy: groups_policy(pods.supplemental_groups_policy),
        no_new_privs,
        seccomp,
        apparmor: apparmor.transpose()?,
        masked_paths,
        readonly_paths,
        ..Default::default()
    })
}

struct User {
    id: Option<i64>,
    name: String,
}

/// The manifest's user. Without one the image's stays in force, checked against runAsNonRoot; it is spelled out only
/// where the manifest gives a group, since CRI takes no group alone (CRI-CC-15).
fn user(pod: &Pod, container: &Container, image: Option<&ImageFacts>) -> Result<User> {
    let (own, pods) = (&container.security_context, &pod.spec.security_context);
    let wanted = own.run_as_user.or(pods.run_as_user);
    let group = own.run_as_group.or(pods.run_as_group);
    for id in [wanted, group].into_iter().flatten().chain(groups(pod)) {
        ensure!((0..=i64::from(i32::MAX)).contains(&id), "user or group id {id} is out of range");
    }
    let must_not_be_root = own.run_as_non_root.or(pods.run_as_non_root) == Some(true);
    let root = "runAsNonRoot: the container would run as root: set runAsUser or use another image";
    if let Some(id) = wanted {
        ensure!(!(must_not_be_root && id == 0), root);
        return Ok(User { id: Some(id), name: String::new() });
    }
    let Some(image) = image else { return Ok(User { id: None, name: String::new() }) };
    if must_not_be_root {
        let name = &image.username;
        ensure!(
            name.is_empty(),
            "runAsNonRoot: the image's user {name:?} is a name, which says nothing of its id: set runAsUser"
        );
        ensure!(image.uid.unwrap_or(0) != 0, root);
    }
    Ok(match group {
        None => User { id: None, name: String::new() },
        Some(_) if image.username.is_empty() => {
            User { id: Some(image.uid.unwrap_or(0)), name: String::new() }
        }
        Some(_) => User { id: None, name: image.username.clone() },
    })
}

fn security_profile(
    profile: &Profile,
    field: &str,
    locate: impl FnOnce(&str) -> Result<String>,
) -> Result<cri::SecurityProfile> {
    use cri::security_profile::ProfileType;
    let kind = match profile.r#type {
        ProfileKind::RuntimeDefault => ProfileType::RuntimeDefault,
        ProfileKind::Unconfined => ProfileType::Unconfined,
        ProfileKind::Localhost => ProfileType::Localhost,
    };
    let name = profile.localhost_profile.as_deref();
    let localhost_ref = match (kind, name) {
        (ProfileType::Localhost, name) => locate(
            name.filter(|name| !name.is_empty())
                .with_context(|| format!("{field}: Localhost needs localhostProfile"))?,
        )?,
        (_, Some(_)) => bail!("{field}: localhostProfile is only for type Localhost"),
        (_, None) => String::new(),
    };
    Ok(cri::SecurityProfile { profile_type: kind.into(), localhost_ref })
}

/// There is no kubelet's profile directory here: a relative name is beside the manifest.
fn seccomp_path(name: &str, facts: &Facts) -> Result<String> {
    let path = facts.manifest_dir.join(name);
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("seccompProfile: {} is not UTF-8", path.display()))
}
