//! Network devices of the host that a container is given (config-linux.md, "Network Devices").

use super::{NamespacePlan, invalid};
use crate::Result;
use crate::namespace::NamespaceKind;
use oci_spec::runtime::Linux;

const FIELD: &str = "linux.netDevices";

/// A device and what it is called in the container; there `%d` is a number of the kernel's choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetDevicePlan {
    pub host: String,
    pub name: String,
}

/// In the order of their names.
pub(super) fn plan(linux: &Linux, namespaces: &[NamespacePlan]) -> Result<Vec<NetDevicePlan>> {
    let mut plans: Vec<NetDevicePlan> = Vec::new();
    for (host, device) in linux.net_devices().iter().flatten() {
        let name = device.name().clone().filter(|name| !name.is_empty()).unwrap_or_else(|| host.clone());
        for (name, template) in [(host, false), (&name, true)] {
            if !is_name(name, template) {
                let hint = "at most 15 bytes without blanks, `/` and `:`; inside, one %d for a number";
                return Err(invalid(FIELD, format!("{name:?} is no name of a device")).hint(hint));
            }
        }
        if plans.iter().any(|known| known.name == name && !name.contains('%')) {
            return Err(invalid(FIELD, format!("two devices would be {name} inside")));
        }
        plans.push(NetDevicePlan { host: host.clone(), name });
    }
    if !plans.is_empty() && !namespaces.iter().any(|namespace| namespace.kind == NamespaceKind::Network) {
        let what = "there is no network namespace to move them into: the container has the host's";
        return Err(invalid(FIELD, what));
    }
    plans.sort_by(|one, other| one.host.cmp(&other.host));
    Ok(plans)
}

/// As dev_valid_name() of the kernel (net/core/dev.c) has it.
fn is_name(name: &str, template: bool) -> bool {
    let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace();
    let percent = name.matches('%').count();
    let template = percent == 0 || template && percent == 1 && name.contains("%d");
    !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && !name.contains(bad)
        && template
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::NamespaceSource;
    use serde_json::json;

    fn of(devices: &serde_json::Value, network: bool) -> Result<Vec<NetDevicePlan>> {
        let linux: Linux = serde_json::from_value(json!({"netDevices": devices})).unwrap();
        let network =
            network.then_some(NamespacePlan { kind: NamespaceKind::Network, source: NamespaceSource::New });
        plan(&linux, network.as_slice())
    }

    #[test]
    fn devices_are_called_as_asked_or_as_on_the_host() {
        let plans = of(&json!({"eth1": {"name": "net%d"}, "eth0": {}}), true).unwrap();
        let pairs: Vec<_> = plans.iter().map(|p| (p.host.as_str(), p.name.as_str())).collect();
        assert_eq!(pairs, [("eth0", "eth0"), ("eth1", "net%d")]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_field() {
        let refused = |devices, network| of(&devices, network).unwrap_err().to_string();
        for (name, inside) in
            [("a/b", ""), ("", ""), ("eth0", "sixteen-bytes-it"), ("eth%d", ""), ("eth0", "%s"), ("e", "a b")]
        {
            let sentence = refused(json!({name: {"name": inside}}), true);
            assert!(sentence.contains("linux.netDevices"), "{sentence}");
        }
        assert!(refused(json!({"a": {"name": "x"}, "b": {"name": "x"}}), true).contains("two devices"));
        assert!(refused(json!({"a": {}}), false).contains("network namespace"));
    }
}
