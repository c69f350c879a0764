//! What the daemon may do, and what stands between it and its containers: capabilities, seccomp, AppArmor.

use super::Finding;
use crate::apparmor::Host as AppArmor;
use slipway_runtime::host::Host;
use std::fs;

/// Number and name (linux/capability.h) of what no pod can do without.
const NEEDED: [(u32, &str); 12] = [
    (0, "CHOWN"),
    (1, "DAC_OVERRIDE"),
    (3, "FOWNER"),
    (5, "KILL"),
    (6, "SETGID"),
    (7, "SETUID"),
    (8, "SETPCAP"),
    (12, "NET_ADMIN"),
    (18, "SYS_CHROOT"),
    (19, "SYS_PTRACE"),
    (21, "SYS_ADMIN"),
    (27, "MKNOD"),
];
const SYS_RESOURCE: u32 = 24;

pub(super) fn check() -> Vec<Finding> {
    let host = Host::current();
    let mut found = vec![capabilities(host.capabilities), seccomp()];
    found.push(match host.apparmor {
        true => apparmor(&own_label(), &AppArmor::probe()),
        false => Finding::ok("AppArmor", "off"),
    });
    found
}

fn capabilities(have: u64) -> Finding {
    let has = |number: u32| have & (1 << number) != 0;
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(number, _)| !has(*number)).map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        let found = format!("missing: {}", missing.join(" "));
        return Finding::failure("capabilities", found, "run as root, outside of containers");
    }
    if !has(SYS_RESOURCE) {
        return Finding::warning(
            "capabilities",
            "no SYS_RESOURCE: rlimits above our own and negative oom_score_adj are refused",
            "run with CAP_SYS_RESOURCE",
        );
    }
    Finding::ok("capabilities", "all that are needed")
}

fn seccomp() -> Finding {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.is_empty() {
        let remedy = "use a kernel with CONFIG_SECCOMP_FILTER; until then only Unconfined pods run";
        return Finding::failure("seccomp", "the kernel has no filters", remedy);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if status.lines().any(|line| line.starts_with("Seccomp:") && line.ends_with('2')) {
        return Finding::warning(
            "seccomp",
            "this process is itself under a filter, and so will be all containers",
            "run outside of containers",
        );
    }
    Finding::ok("seccomp", actions.trim().to_owned())
}

/// The profile that confines this process ("unconfined": none).
fn own_label() -> String {
    let read = |file: &str| fs::read_to_string(file).ok();
    let label = read("/proc/self/attr/apparmor/current").or_else(|| read("/proc/self/attr/current"));
    label.unwrap_or_default().trim().to_owned()
}

/// A confined runtime's signals are refused by its containers' profiles, and pods hang in Terminating (runc#4281).
fn apparmor(label: &str, host: &AppArmor) -> Finding {
    let attached = |line: &&str| line.contains("slipway") && !line.starts_with("slipway-");
    let profile = match label.split(' ').next().unwrap_or_default() {
        "" | "unconfined" => host
            .profiles
            .as_deref()
            .unwrap_or_default()
            .lines()
            .find(attached)
            .and_then(|line| line.split(' ').next()),
        own => Some(own),
    };
    match profile {
        None if !host.has_default() => Finding::warning(
            "AppArmor",
            "on, but containers get no default profile: there is no apparmor_parser to load it",
            "install the package apparmor",
        ),
        None => Finding::ok("AppArmor", "on, and does not confine us"),
        Some(profile) => Finding::warning(
            "AppArmor",
            format!(
                "profile {profile} confines the runtime: containers refuse its signals unless their profile allows them"
            ),
            format!(
                "unload it (aa-disable), or put `signal (receive) peer={profile},` into the containers' profiles"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let finding = capabilities(!(1 << 21));
        assert_eq!((finding.verdict, finding.found.as_str()), (Verdict::Failure, "missing: SYS_ADMIN"));
        assert_eq!(capabilities(!(1 << 24)).verdict, Verdict::Warning);
    }

    #[test]
    fn a_confined_runtime_is_told_the_signal_rule() {
        let host = |profiles: &str, parser: Option<&str>| AppArmor {
            enabled: true,
            profiles: Some(profiles.into()),
            parser: parser.map(Into::into),
        };
        let parser = Some("/sbin/apparmor_parser");
        let confined = apparmor("/usr/sbin/slipway (enforce)", &host("", parser));
        assert!(confined.remedy.contains("peer=/usr/sbin/slipway"), "{}", confined.remedy);
        let attached =
            apparmor("unconfined", &host("docker-default (enforce)\n/usr/bin/slipway (enforce)\n", parser));
        assert!(attached.found.contains("/usr/bin/slipway"), "{}", attached.found);
        assert_eq!(apparmor("unconfined", &host("docker-default (enforce)\n", parser)).verdict, Verdict::Ok);
        let without = apparmor("unconfined", &host("docker-default (enforce)\n", None));
        assert!(without.verdict == Verdict::Warning && without.remedy.contains("apparmor"), "{without:?}");
    }
}
