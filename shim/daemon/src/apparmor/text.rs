//! The text of the default profile (AA-01 to AA-04, AA-06; apparmor.d(5)).

use super::DEFAULT;
use std::fmt::Write;
use std::path::Path;

/// What the text depends on.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// `abi/3.0`, `tunables/global` and `abstractions/base` of the host's policy.
    abi: bool,
    tunables: bool,
    base: bool,
    /// The profile that confines this process.
    own: Option<String>,
}

impl Facts {
    pub(super) fn probe() -> Self {
        let there = |file: &str| Path::new("/etc/apparmor.d").join(file).exists();
        let label = ["/proc/self/attr/apparmor/current", "/proc/self/attr/current"]
            .into_iter()
            .find_map(|file| std::fs::read_to_string(file).ok())
            .unwrap_or_default();
        Self {
            abi: there("abi/3.0"),
            tunables: there("tunables/global"),
            base: there("abstractions/base"),
            own: own(&label),
        }
    }
}

/// "name (mode)"; none if nothing confines.
fn own(label: &str) -> Option<String> {
    let label = label.trim_end_matches(['\n', '\0']);
    let name = label.rsplit_once(" (").map_or(label, |(name, _)| name);
    (!name.is_empty() && name != "unconfined").then(|| name.to_owned())
}

/// Everything is allowed that the kernel's other walls let through, but for what follows `deny`: a deny beats an allow.
const RULES: &str = "
  network,
  capability,
  file,
  umount,

  # Who may end a container: what no profile confines, other runtimes on the same node, and itself.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
";

const DENIED: &str = "
  deny mount,

  # Nothing in /proc may be written but what belongs to a process, and the limits of shared memory.
  deny /proc/[^0-9s]*{,/**} w,
  deny /proc/s[^y]*{,/**} w,
  deny /proc/sy[^s]*{,/**} w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,
  deny /proc/sys/[^k]*{,/**} w,
  deny /proc/sys/k[^e]*{,/**} w,
  deny /proc/sys/kernel/[^s]*{,/**} w,
  deny /proc/sys/kernel/s[^h]*{,/**} w,
  deny /proc/sys/kernel/sh[^m]*{,/**} w,

  # Nor in /sys but for control groups; some of it may not be read either.
  deny /sys/[^f]*{,/**} wkl,
  deny /sys/f[^s]*{,/**} wkl,
  deny /sys/fs/[^c]*{,/**} wkl,
  deny /sys/fs/c[^g]*{,/**} wkl,
  deny /sys/fs/cg[^r]*{,/**} wkl,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
";

pub(super) fn profile(facts: &Facts) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    if facts.abi {
        let _ = writeln!(text, "abi <abi/3.0>,");
    }
    if facts.tunables {
        let _ = writeln!(text, "include <tunables/global>");
    }
    let _ = writeln!(text, "profile {DEFAULT} flags=(attach_disconnected,mediate_deleted) {{");
    if facts.base {
        let _ = writeln!(text, "  include <abstractions/base>");
    }
    text.push_str(RULES);
    if let Some(own) = &facts.own {
        let _ = writeln!(text, "  signal (receive) peer=\"{own}\",");
    }
    let _ = writeln!(text, "  signal (send, receive) peer={DEFAULT},");
    let _ = writeln!(text, "  ptrace (trace, read, tracedby, readby) peer={DEFAULT},");
    text.push_str(DENIED);
    text.push_str("}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AA-04, AA-06.
    #[test]
    fn what_the_host_lacks_is_not_included_and_its_own_profile_may_signal() {
        let bare = profile(&Facts::default());
        assert!(!bare.contains("include") && !bare.contains("abi <"), "{bare}");
        let full = profile(&Facts {
            abi: true,
            tunables: true,
            base: true,
            own: own("/usr/sbin/slipway (enforce)\n"),
        });
        assert!(
            full.starts_with("abi <abi/3.0>,\ninclude <tunables/global>\nprofile slipway-default "),
            "{full}"
        );
        assert!(full.contains("include <abstractions/base>\n"), "{full}");
        assert!(full.contains("signal (receive) peer=\"/usr/sbin/slipway\",\n"), "{full}");
        assert_eq!(own("unconfined\n"), None);
        assert_eq!(own(""), None);
    }
}
