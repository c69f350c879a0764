//! What /proc tells of a container's processes. Those that end meanwhile count for nothing.

use std::fs;

/// Open descriptors, and how many of them are sockets, of all processes together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptors {
    pub(super) all: u64,
    pub(super) sockets: u64,
}

impl Descriptors {
    pub(super) fn of(pids: &[i32]) -> Self {
        let mut sum = Self::default();
        for entry in
            pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok()).flatten().flatten()
        {
            sum.all += 1;
            let is_socket =
                fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
            sum.sockets += u64::from(is_socket);
        }
        sum
    }
}

/// Soft limit of open files of one process; none: unlimited, or it has ended (proc_pid_limits(5)).
pub(super) fn open_files_limit(pid: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_descriptors_too() {
        let me = std::process::id().cast_signed();
        let before = Descriptors::of(&[me]);
        let held: Vec<_> =
            (0..16).map(|_| std::os::unix::net::UnixDatagram::unbound().expect("socket")).collect();
        let after = Descriptors::of(&[me]);
        // Other tests open and close descriptors beside.
        assert!(after.sockets > before.sockets && after.all >= after.sockets, "{before:?} {after:?}");
        drop(held);
        assert_eq!(Descriptors::of(&[i32::MAX]), Descriptors::default());
        assert!(open_files_limit(std::process::id()).is_some_and(|limit| limit > 3));
    }
}
