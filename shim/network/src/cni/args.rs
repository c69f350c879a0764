//! What a pod's request means in CNI's terms: CNI_ARGS and the capability arguments. Pure.

use crate::types::PodNetwork;
use serde_json::{Map, Value, json};

/// CNI-RT-05. Values that would forge further arguments are refused.
pub(crate) fn cni_args(pod: &PodNetwork) -> Result<String, String> {
    let pairs = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", pod.namespace.as_str()),
        ("K8S_POD_NAME", pod.name.as_str()),
        ("K8S_POD_INFRA_CONTAINER_ID", pod.id.as_str()),
        ("K8S_POD_UID", pod.uid.as_str()),
    ];
    for (key, value) in pairs {
        if value.contains([';', '=', '\0']) {
            return Err(format!("{key} \"{}\" must not hold ; or =", value.escape_default()));
        }
    }
    Ok(pairs.map(|(k, v)| format!("{k}={v}")).join(";"))
}

/// CNI-RT-06: everything a plugin may ask for; each gets only the keys it declares.
pub(crate) fn capability_args(pod: &PodNetwork) -> Result<Map<String, Value>, String> {
    let mut args = Map::new();
    if !pod.ports.is_empty() {
        let ports: Vec<Value> = pod
            .ports
            .iter()
            .map(|p| {
                json!({
                    "hostPort": p.host_port,
                    "containerPort": p.container_port,
                    "protocol": p.protocol.name(),
                    "hostIP": p.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
                })
            })
            .collect();
        args.insert("portMappings".into(), ports.into());
    }
    if let Some(bandwidth) = bandwidth(pod)? {
        args.insert("bandwidth".into(), bandwidth);
    }
    if !(pod.dns_servers.is_empty() && pod.dns_searches.is_empty() && pod.dns_options.is_empty()) {
        let dns = json!({
            "servers": pod.dns_servers, "searches": pod.dns_searches, "options": pod.dns_options
        });
        args.insert("dns".into(), dns);
    }
    if !pod.cgroup_parent.is_empty() {
        args.insert("cgroupPath".into(), pod.cgroup_parent.clone().into());
    }
    if !pod.annotations.is_empty() {
        args.insert("io.kubernetes.cri.pod-annotations".into(), json!(pod.annotations));
    }
    Ok(args)
}

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// True if the pod asks for a limited bandwidth.
pub(crate) fn wants_bandwidth(pod: &PodNetwork) -> bool {
    pod.annotations.contains_key(INGRESS) || pod.annotations.contains_key(EGRESS)
}

/// CNI-RT-08: bits per second from annotations, 1k to 1P; bad values fail the sandbox.
fn bandwidth(pod: &PodNetwork) -> Result<Option<Value>, String> {
    let mut object = Map::new();
    for (annotation, rate, burst) in
        [(INGRESS, "ingressRate", "ingressBurst"), (EGRESS, "egressRate", "egressBurst")]
    {
        let Some(text) = pod.annotations.get(annotation) else { continue };
        let bits = quantity(text).ok_or_else(|| {
            format!("annotation {annotation}: \"{text}\" is not a quantity such as 10M (bits per second)")
        })?;
        if !(1_000..=1_000_000_000_000_000).contains(&bits) {
            return Err(format!("annotation {annotation}: {text} is outside 1k..1P bits per second"));
        }
        object.insert(rate.into(), bits.into());
        object.insert(burst.into(), u32::MAX.into());
    }
    Ok((!object.is_empty()).then_some(Value::Object(object)))
}

/// A Kubernetes quantity as a whole number, rounded up; None if malformed, negative or past 2^64.
fn quantity(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || fraction.len() > 18 {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (times, divided): (u128, u128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let exponent = exponent.strip_prefix(['e', 'E'])?;
            let (negative, exponent) = match exponent.strip_prefix('-') {
                Some(rest) => (true, rest),
                None => (false, exponent.strip_prefix('+').unwrap_or(exponent)),
            };
            if exponent.is_empty() || !exponent.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            let power = 10u128.checked_pow(exponent.parse().ok()?)?;
            if negative { (1, power) } else { (power, 1) }
        }
    };
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?.checked_mul(divided)?;
    u64::try_from(digits.checked_mul(times)?.div_ceil(scale)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{PortMapping, Protocol};

    pub(crate) fn pod() -> PodNetwork {
        PodNetwork {
            id: "abc".into(),
            name: "web".into(),
            namespace: "prod".into(),
            uid: "u-1".into(),
            netns: "/run/netns/x".into(),
            ports: Vec::new(),
            annotations: Default::default(),
            cgroup_parent: String::new(),
            dns_servers: Vec::new(),
            dns_searches: Vec::new(),
            dns_options: Vec::new(),
        }
    }

    #[test]
    fn arguments_name_the_pod() {
        // CNI-RT-05
        let args = cni_args(&pod()).unwrap();
        assert_eq!(
            args,
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"
        );
        assert!(cni_args(&PodNetwork { name: "a;K8S_POD_UID=b".into(), ..pod() }).is_err());
    }

    #[test]
    fn capabilities_carry_what_the_pod_has() {
        // CNI-RT-06, CNI-RT-08
        assert!(capability_args(&pod()).unwrap().is_empty());
        let mut full = pod();
        full.ports.push(PortMapping {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port: 5353,
            host_ip: Some("127.0.0.1".parse().unwrap()),
        });
        full.annotations.insert(INGRESS.into(), "10M".into());
        full.cgroup_parent = "/kubepods/p".into();
        full.dns_servers.push("8.8.8.8".into());
        let args = Value::Object(capability_args(&full).unwrap());
        assert_eq!(
            args["portMappings"],
            json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}])
        );
        assert_eq!(args["bandwidth"], json!({"ingressRate": 10_000_000, "ingressBurst": u32::MAX}));
        assert_eq!(args["dns"]["servers"][0], "8.8.8.8");
        assert_eq!(args["cgroupPath"], "/kubepods/p");
        assert_eq!(args["io.kubernetes.cri.pod-annotations"][INGRESS], "10M");
        for bad in ["", "fast", "10X", "-1M", "999", "2P", "1e99", "1.2.3", "."] {
            full.annotations.insert(INGRESS.into(), bad.into());
            assert!(capability_args(&full).is_err(), "{bad}");
        }
    }

    #[test]
    fn quantities_read_as_kubernetes_reads_them() {
        for (text, value) in [
            ("1Ki", 1024),
            ("1.5k", 1500),
            ("2e3", 2000),
            ("1500m", 2),
            ("1E", 10u64.pow(18)),
            (".5M", 500_000),
        ] {
            assert_eq!(quantity(text), Some(value), "{text}");
        }
    }
}
