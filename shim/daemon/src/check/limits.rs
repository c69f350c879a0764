//! Limits of this process and of the kernel that a full node runs into.

use super::Finding;
use nix::sys::resource::{Resource, getrlimit};

/// Kernel setting, least value for a node of 110 pods, what a lower one breaks.
const SYSCTLS: [(&str, u64, &str); 4] = [
    ("kernel.pid_max", 65_536, "a full node runs out of process ids"),
    ("fs.inotify.max_user_instances", 256, "kubelet and pods share root's inotify instances"),
    ("user.max_user_namespaces", 1_024, "pods with hostUsers: false are refused"),
    ("user.max_net_namespaces", 1_024, "every pod needs a network namespace"),
];

/// The daemon and the keeper hold about ten descriptors per container.
const DESCRIPTORS: u64 = 65_536;

pub(super) fn check() -> Vec<Finding> {
    let mut found = vec![descriptors()];
    found.extend(SYSCTLS.iter().map(|(name, least, why)| {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        let value = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
        sysctl(name, *least, why, value)
    }));
    found
}

fn descriptors() -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard < DESCRIPTORS => Finding::warning(
            "open files",
            format!("at most {hard}"),
            format!("LimitNOFILE={DESCRIPTORS} or more in the service's unit"),
        ),
        Ok((_, hard)) => Finding::ok("open files", format!("at most {hard}")),
        Err(errno) => Finding::warning("open files", format!("getrlimit: {errno}"), "run as root"),
    }
}

fn sysctl(name: &str, least: u64, why: &str, value: Option<u64>) -> Finding {
    match value {
        None => Finding::warning(name, "cannot be read", format!("without it {why}")),
        Some(value) if value < least => {
            Finding::warning(name, format!("{value}: {why}"), format!("sysctl -w {name}={least}"))
        }
        Some(value) => Finding::ok(name, value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_low_setting_comes_with_the_command_that_raises_it() {
        let low = sysctl("kernel.pid_max", 65_536, "why", Some(32_768));
        assert_eq!(low.verdict, Verdict::Warning);
        assert_eq!(low.remedy, "sysctl -w kernel.pid_max=65536");
        assert_eq!(sysctl("kernel.pid_max", 65_536, "why", Some(65_536)).verdict, Verdict::Ok);
    }
}
