//! The five capability sets (CRI-CAP-*).

use crate::error::{Error, Result};
use cri_proto::v1;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// containerd's and runc's default list.
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// All that Linux 6.x has, in bit order (linux/capability.h). "ALL" means those of them that the host has.
const KNOWN: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

pub(super) fn build(security: &v1::LinuxContainerSecurityContext) -> Result<Value> {
    let (main, ambient) = sets(security)?;
    let inheritable: Vec<_> = ambient.iter().collect();
    Ok(json!({
        "bounding": main, "effective": main, "permitted": main,
        // Empty but for ambient ones: the fix of CVE-2022-24769 (CRI-CAP-05).
        "inheritable": inheritable, "ambient": ambient,
    }))
}

/// The final sets: (bounding = effective = permitted, ambient).
pub(super) fn sets(
    security: &v1::LinuxContainerSecurityContext,
) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    if security.privileged {
        return Ok((all(), BTreeSet::new()));
    }
    let asked = security.capabilities.clone().unwrap_or_default();
    let names = |list: &[String]| list.iter().map(|n| canonical(n)).collect::<Result<Vec<_>>>();
    let (add, drop) = (names(&asked.add_capabilities)?, names(&asked.drop_capabilities)?);
    let ambient = names(&asked.add_ambient_capabilities)?;
    let mut main: BTreeSet<String> = DEFAULT.map(str::to_owned).into();
    // ALL first, then single names; drop wins (CRI-CAP-03).
    if add.iter().any(|n| n == "ALL") {
        main = all();
    }
    if drop.iter().any(|n| n == "ALL") {
        main.clear();
    }
    main.extend(add.iter().filter(|n| *n != "ALL").cloned());
    main.extend(ambient.iter().cloned());
    let mut ambient: BTreeSet<String> = ambient.into_iter().collect();
    for name in drop.iter().filter(|n| *n != "ALL") {
        main.remove(name);
        ambient.remove(name);
    }
    Ok((main, ambient))
}

fn all() -> BTreeSet<String> {
    KNOWN.map(str::to_owned).into()
}

/// With prefix, upper case (CRI-CAP-02).
fn canonical(name: &str) -> Result<String> {
    let upper = name.to_ascii_uppercase();
    if upper == "ALL" {
        return Ok(upper);
    }
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    if KNOWN.contains(&full.as_str()) {
        return Ok(full);
    }
    Err(Error::invalid(format!("capability {name:?} is unknown")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets_of(
        add: &[&str],
        drop: &[&str],
        ambient: &[&str],
    ) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
        let list = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        sets(&v1::LinuxContainerSecurityContext {
            capabilities: Some(v1::Capability {
                add_capabilities: list(add),
                drop_capabilities: list(drop),
                add_ambient_capabilities: list(ambient),
            }),
            ..Default::default()
        })
    }

    /// CRI-CAP-01, CRI-CAP-02, CRI-CAP-03, CRI-CAP-04, CRI-CAP-05, CRI-CAP-06.
    #[test]
    fn add_drop_all_and_ambient() {
        let main = |add: &[&str], drop: &[&str]| sets_of(add, drop, &[]).expect("valid").0;
        assert_eq!(main(&[], &[]).len(), 14);
        assert_eq!(main(&["all"], &[]).len(), KNOWN.len());
        assert!(main(&[], &["ALL"]).is_empty());
        assert_eq!(main(&["net_admin"], &["ALL"]), BTreeSet::from(["CAP_NET_ADMIN".to_owned()]));
        assert!(!main(&["CAP_CHOWN"], &["chown"]).contains("CAP_CHOWN"), "drop wins");
        assert!(!main(&["ALL"], &["SYS_ADMIN"]).contains("CAP_SYS_ADMIN"));
        let (main, ambient) = sets_of(&[], &["ALL"], &["NET_BIND_SERVICE"]).expect("valid");
        assert_eq!(main, ambient);
        assert!(sets_of(&["FLY"], &[], &[]).is_err_and(|e| e.to_string().contains("FLY")));
    }
}
