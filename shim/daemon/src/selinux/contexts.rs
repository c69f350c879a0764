//! Which labels the host's policy has for containers: `contexts/lxc_contexts` of the policy that /etc/selinux/config names
//! (lxc_contexts(5)).

use super::Label;
use std::fs;
use std::path::Path;

/// Defaults for a container's processes and files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contexts {
    /// Of the policy, as the configuration calls it: `targeted`.
    pub(crate) policy: String,
    pub(crate) process: Label,
    pub(crate) file: Label,
}

impl Contexts {
    /// Of the policy configured below `etc` (/etc/selinux); container-selinux's own types where there is no such file.
    pub(crate) fn read(etc: &Path) -> Self {
        let config = fs::read_to_string(etc.join("config")).unwrap_or_default();
        let policy = value(&config, "SELINUXTYPE").unwrap_or("targeted").to_owned();
        let file = etc.join(&policy).join("contexts/lxc_contexts");
        Self::parse(policy, &fs::read_to_string(file).unwrap_or_default())
    }

    fn parse(policy: String, text: &str) -> Self {
        let usual = |role: &str, kind: &str| Label {
            user: "system_u".into(),
            role: role.into(),
            kind: kind.into(),
            level: Some("s0".into()),
        };
        let named = |key| value(text, key).and_then(Label::parse);
        Self {
            policy,
            process: named("process").unwrap_or_else(|| usual("system_r", "container_t")),
            file: named("file").unwrap_or_else(|| usual("object_r", "container_file_t")),
        }
    }
}

/// `key = "value"`, the last one, with or without quotes; lines that begin with `#` or `;` say nothing.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let pairs = lines.filter_map(|line| line.split_once('='));
    let mut values =
        pairs.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().trim_matches('"'));
    values.rfind(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-SEC-10.
    #[test]
    fn the_policy_s_own_labels_come_first() {
        let dir = tempfile::tempdir().expect("dir");
        let usual = Contexts::read(dir.path());
        assert_eq!(usual.process.to_string(), "system_u:system_r:container_t:s0");
        assert_eq!(usual.file.to_string(), "system_u:object_r:container_file_t:s0");
        assert_eq!(usual.policy, "targeted");
        fs::write(dir.path().join("config"), "# SELINUXTYPE=x\nSELINUX=enforcing\nSELINUXTYPE=mls\n")
            .expect("write");
        fs::create_dir_all(dir.path().join("mls/contexts")).expect("make");
        let text = "; old\nprocess = \"system_u:system_r:svirt_lxc_net_t:s0\"\nro_file=\"a:b:c:s0\"\nfile=\"nonsense\"\n";
        fs::write(dir.path().join("mls/contexts/lxc_contexts"), text).expect("write");
        let own = Contexts::read(dir.path());
        assert_eq!((own.policy.as_str(), own.process.kind.as_str()), ("mls", "svirt_lxc_net_t"));
        assert_eq!(own.file, usual.file, "what cannot be read is as usual");
    }
}
