//! Kernel version, namespaces.

use super::Finding;
use std::path::Path;

/// close_range(2), openat2(2), clone3(2) with `CLONE_INTO_CGROUP`: without them nothing starts.
const OLDEST: (u32, u32) = (5, 10);
/// mount_setattr(2): recursive read-only mounts, identity-mapped mounts.
const MOUNT_SETATTR: (u32, u32) = (5, 12);
/// Identity-mapped layers below an overlay: pods in user namespaces.
const IDMAPPED_OVERLAY: (u32, u32) = (5, 19);

pub(super) fn check() -> Vec<Finding> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![version(release.trim()), namespaces()]
}

fn version(release: &str) -> Finding {
    let subject = "kernel";
    let newer = "install a newer kernel";
    let Some(version) = parse(release) else {
        return Finding::warning(
            subject,
            format!("release {release:?} is not a version"),
            "check that it is 5.10 or newer",
        );
    };
    let found = format!("Linux {release}");
    if version < OLDEST {
        Finding::failure(subject, format!("{found} lacks clone3, openat2 or close_range"), newer)
    } else if version < MOUNT_SETATTR {
        Finding::warning(
            subject,
            format!("{found}: no recursive read-only mounts, no user namespaces"),
            newer,
        )
    } else if version < IDMAPPED_OVERLAY {
        Finding::warning(subject, format!("{found}: no user namespaces for pods"), newer)
    } else {
        Finding::ok(subject, found)
    }
}

/// Major and minor of `6.1.0-18-amd64`.
fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn namespaces() -> Finding {
    // File in /proc/self/ns and the kernel's option for it.
    let all = [
        ("mnt", "CONFIG_NAMESPACES"),
        ("pid", "CONFIG_PID_NS"),
        ("net", "CONFIG_NET_NS"),
        ("ipc", "CONFIG_IPC_NS"),
        ("uts", "CONFIG_UTS_NS"),
        ("cgroup", "CONFIG_CGROUPS"),
        ("user", "CONFIG_USER_NS"),
    ];
    let missing: Vec<&str> = all
        .iter()
        .filter(|(file, _)| !Path::new("/proc/self/ns").join(file).exists())
        .map(|(_, option)| *option)
        .collect();
    match missing.as_slice() {
        [] => Finding::ok("namespaces", all.map(|(file, _)| file).join(" ")),
        ["CONFIG_USER_NS"] => Finding::warning(
            "namespaces",
            "no user namespaces",
            "use a kernel with CONFIG_USER_NS for pods with hostUsers: false",
        ),
        _ => Finding::failure(
            "namespaces",
            format!("missing: {}", missing.join(" ")),
            "use a kernel with these options",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        let verdict = |release| version(release).verdict;
        assert_eq!(verdict("4.19.0-27-amd64"), Verdict::Failure);
        assert_eq!(verdict("5.10.0"), Verdict::Warning);
        assert_eq!(verdict("5.15.0-91-generic"), Verdict::Warning);
        assert_eq!(verdict("5.19"), Verdict::Ok);
        assert_eq!(verdict("6.18.5"), Verdict::Ok);
        assert_eq!(verdict("next"), Verdict::Warning);
    }
}
