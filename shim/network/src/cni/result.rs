//! Results of ADD: decoded in the version they say, converted to 1.x for us and to whatever the next plugin speaks.
//!
//! Pure; knows no processes and no files (CNI-22 to CNI-25).

use super::config::at_least;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// Parses what a plugin printed. A result without cniVersion is of the version it was asked in.
pub(crate) fn parse(stdout: &[u8], asked: &str) -> Result<Option<Value>, String> {
    if stdout.iter().all(u8::is_ascii_whitespace) {
        // CNI-25: no result at all was legal before 0.3.
        return if at_least(asked, "0.3.0") { Err("it printed no result".into()) } else { Ok(None) };
    }
    let mut value: Value = serde_json::from_slice(stdout)
        .map_err(|e| format!("its result is not JSON ({e}): {}", super::plugin::excerpt(stdout)))?;
    let Some(object) = value.as_object_mut() else {
        return Err(format!("its result is not an object: {}", super::plugin::excerpt(stdout)));
    };
    match object.get("cniVersion") {
        None => {
            object.insert("cniVersion".into(), asked.into());
        }
        Some(Value::String(v)) if super::config::rank(v).is_some() => {}
        Some(other) => return Err(format!("its result has the unknown cniVersion {other}")),
    }
    Ok(Some(value))
}

fn version(result: &Value) -> &str {
    result.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0")
}

/// The same result in another version. Fields we do not know pass unchanged within one generation.
pub(crate) fn convert(result: &Value, to: &str) -> Value {
    let from = version(result).to_owned();
    if from == to {
        return result.clone();
    }
    let mut modern = if at_least(&from, "0.3.0") { result.clone() } else { from_ip4_ip6(result) };
    for ip in array_mut(&mut modern, "ips") {
        ip.remove("version");
    }
    let mut converted = if at_least(to, "1.0.0") {
        modern
    } else if at_least(to, "0.3.0") {
        for ip in array_mut(&mut modern, "ips") {
            let v6 = ip.get("address").and_then(Value::as_str).is_some_and(|a| a.contains(':'));
            ip.insert("version".into(), if v6 { "6" } else { "4" }.into());
        }
        modern
    } else {
        to_ip4_ip6(&modern)
    };
    if let Some(object) = converted.as_object_mut() {
        object.insert("cniVersion".into(), to.into());
    }
    converted
}

fn array_mut<'a>(result: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    result.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// 0.1 and 0.2: `{"ip4": {"ip", "gateway", "routes"}, "ip6": …, "dns"}`.
fn from_ip4_ip6(old: &Value) -> Value {
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for part in [old.get("ip4"), old.get("ip6")].into_iter().flatten() {
        let Some(address) = part.get("ip").filter(|a| !a.is_null()) else { continue };
        let mut ip = json!({ "address": address });
        if let Some(gateway) = part.get("gateway").filter(|g| !g.is_null()) {
            ip["gateway"] = gateway.clone();
        }
        ips.push(ip);
        routes.extend(part.get("routes").and_then(Value::as_array).cloned().unwrap_or_default());
    }
    let mut modern = json!({ "cniVersion": "1.0.0", "ips": ips, "routes": routes });
    if let Some(dns) = old.get("dns") {
        modern["dns"] = dns.clone();
    }
    modern
}

fn to_ip4_ip6(modern: &Value) -> Value {
    let mut old = json!({});
    let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    for (key, v6) in [("ip4", false), ("ip6", true)] {
        let mut ips = modern.get("ips").and_then(Value::as_array).into_iter().flatten();
        let Some(ip) = ips.find(|ip| text(ip, "address").contains(':') == v6) else { continue };
        let routes = modern.get("routes").and_then(Value::as_array).into_iter().flatten();
        let routes: Vec<&Value> = routes.filter(|r| text(r, "dst").contains(':') == v6).collect();
        old[key] = json!({ "ip": ip["address"], "routes": routes });
        if let Some(gateway) = ip.get("gateway") {
            old[key]["gateway"] = gateway.clone();
        }
    }
    if let Some(dns) = modern.get("dns") {
        old["dns"] = dns.clone();
    }
    old
}

/// The pod's addresses in a 1.x result: those of `ifname` inside a sandbox, IPv4 first (CNI-24, CNI-RT-10).
/// An address that names no interface is taken to be of `ifname`.
pub(crate) fn addresses(result: &Value, ifname: &str) -> Result<Vec<IpAddr>, String> {
    let interfaces = result.get("interfaces").and_then(Value::as_array);
    let ours = |ip: &Value| match ip.get("interface").filter(|i| !i.is_null()) {
        None => true,
        Some(index) => {
            let index = index.as_u64().and_then(|i| usize::try_from(i).ok());
            let interface = index.and_then(|i| interfaces.and_then(|all| all.get(i)));
            interface.is_some_and(|i| {
                i["name"] == ifname && i.get("sandbox").and_then(Value::as_str).is_some_and(|s| !s.is_empty())
            })
        }
    };
    let mut found = Vec::new();
    for ip in result.get("ips").and_then(Value::as_array).into_iter().flatten().filter(|ip| ours(ip)) {
        let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
        let address = text.split('/').next().unwrap_or_default();
        found.push(
            address.parse().map_err(|_| format!("its result holds the bad address {:?}", ip["address"]))?,
        );
    }
    found.sort_by_key(IpAddr::is_ipv6);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_results_become_modern_and_go_back() {
        // CNI-22
        let old = json!({
            "cniVersion": "0.2.0",
            "ip6": {"ip": "fd00::5/64"},
            "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "dns": {"nameservers": ["1.2.3.4"]}
        });
        let modern = convert(&old, "1.0.0");
        assert_eq!(modern["ips"][0], json!({"address": "10.1.0.5/16", "gateway": "10.1.0.1"}));
        assert_eq!(modern["routes"][0]["dst"], "0.0.0.0/0");
        assert_eq!(addresses(&modern, "eth0").unwrap()[1].to_string(), "fd00::5");
        let back = convert(&modern, "0.2.0");
        assert_eq!(back["ip4"], old["ip4"]);
        assert_eq!(back["ip6"]["ip"], "fd00::5/64");
        assert_eq!(convert(&modern, "0.4.0")["ips"][1]["version"], "6");
        let middle =
            json!({"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.2/8"}], "x": 1});
        assert_eq!(
            convert(&middle, "1.1.0"),
            json!({"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/8"}], "x": 1})
        );
    }

    #[test]
    fn only_addresses_of_the_interface_inside_the_pod_count() {
        // CNI-24
        let result = json!({
            "interfaces": [{"name": "eth0"}, {"name": "eth0", "sandbox": "/n"}, {"name": "net1", "sandbox": "/n"}],
            "ips": [
                {"address": "fd00::9/64", "interface": 1}, {"address": "10.0.0.1/24", "interface": 0},
                {"address": "10.0.0.9/24", "interface": 1}, {"address": "10.9.9.9/24", "interface": 2},
                {"address": "10.7.7.7/24", "interface": 17}
            ]
        });
        let ips: Vec<String> = addresses(&result, "eth0").unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.0.0.9", "fd00::9"]);
        assert!(addresses(&json!({"ips": [{"address": "nonsense"}]}), "eth0").is_err());
    }

    #[test]
    fn what_plugins_print_is_not_trusted() {
        for bad in ["{", "[]", "7", r#"{"cniVersion":"7.0.0"}"#, r#"{"cniVersion":1}"#] {
            assert!(parse(bad.as_bytes(), "1.0.0").is_err(), "{bad}");
        }
        assert!(parse(b" \n", "1.0.0").is_err());
        assert!(parse(b"", "0.2.0").unwrap().is_none());
        assert_eq!(parse(b"{}", "0.4.0").unwrap().unwrap()["cniVersion"], "0.4.0");
    }
}
