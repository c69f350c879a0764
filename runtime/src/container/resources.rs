//! The limits of a container's group: what the spec asks for, and the devices that every container may use.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, Spec};

/// Devices whose nodes a container has (config-linux.md, "Default Devices"), with the console and pseudo-terminals: of no
/// use if rules forbid them, and so allowed after all rules by every runtime.
const USABLE: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// `linux.resources`, as it is brought into force. Without device rules there are none.
pub fn resources(spec: &Spec) -> Option<LinuxResources> {
    let mut resources = spec.linux().as_ref()?.resources().clone()?;
    if let Some(rules) = resources.devices().as_ref().filter(|rules| !rules.is_empty()) {
        resources.set_devices(Some(rules.iter().cloned().chain(usual()).collect()));
    }
    Some(resources)
}

/// Nodes may be made of any kind: what can be done with them is another question.
fn usual() -> impl Iterator<Item = LinuxDeviceCgroup> {
    let makeable = [LinuxDeviceType::C, LinuxDeviceType::B].map(|kind| allow(kind, None, None, "m"));
    let usable = USABLE.map(|(major, minor)| allow(LinuxDeviceType::C, Some(major), minor, "rwm"));
    makeable.into_iter().chain(usable)
}

fn allow(kind: LinuxDeviceType, major: Option<i64>, minor: Option<i64>, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true);
    rule.set_typ(Some(kind));
    rule.set_major(major);
    rule.set_minor(minor);
    rule.set_access(Some(access.to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_usual_devices_follow_the_rules_that_are_there() {
        let rules = |value: serde_json::Value| {
            let spec = json!({"ociVersion": "1.0.0", "linux": {"resources": value}});
            let spec: Spec = serde_json::from_value(spec).unwrap();
            resources(&spec).unwrap().devices().as_ref().map_or(0, Vec::len)
        };
        assert_eq!(rules(json!({})), 0);
        assert_eq!(rules(json!({"devices": []})), 0);
        assert_eq!(rules(json!({"devices": [{"allow": false, "access": "rwm"}]})), 12);
    }
}
