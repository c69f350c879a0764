//! The nftables rules of one bridge, in one table of our own, written through the `nft` program.
//!
//! ```text
//!  table ip slipway-<bridge>
//!    guard        prerouting, raw: nobody on the bridge reaches the host's loopback (route_localnet is on)
//!    prerouting   to a local address: jump hostports
//!    output       to a local address: jump hostports
//!    hostports    dnat by the maps `exact` (hostIP given) and `any`
//!    postrouting  masquerade pool → outside; and what was redirected to a pod from a pod or from 127.0.0.0/8,
//!                 so that the answer comes back through the host
//! ```
//! The text is a pure function of the bridge and the claims; a pod's ports are elements of the two maps, so that one
//! pod costs one small transaction whatever the number of pods. No rule looks at traffic between pods or between
//! host and pod, and no other table is ever touched: where the host's own forward policy is drop, that policy wins
//! (an accept in our table could not overrule it) and [`foreign_forward_drop`] names it.

use super::pool::Pool;
use crate::error::{Error, Result};
use crate::types::Protocol;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// One host port of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Redirect {
    pub(crate) protocol: Protocol,
    pub(crate) host_port: u16,
    /// None: every local address.
    pub(crate) host_ip: Option<Ipv4Addr>,
    pub(crate) pod_ip: Ipv4Addr,
    pub(crate) container_port: u16,
}

pub(crate) fn table(bridge: &str) -> String {
    format!("slipway-{bridge}")
}

/// The whole table, replacing whatever it was, in one transaction.
pub(crate) fn full(bridge: &str, pool: Pool, redirects: &[Redirect]) -> String {
    let table = table(bridge);
    let mut text = format!(
        r#"add table ip {table}
delete table ip {table}
table ip {table} {{
  map any {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map exact {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  chain guard {{
    type filter hook prerouting priority -300; policy accept;
    iifname "{bridge}" ip daddr 127.0.0.0/8 drop
  }}
  chain hostports {{
    dnat ip to ip daddr . meta l4proto . th dport map @exact
    dnat ip to meta l4proto . th dport map @any
  }}
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
    ip daddr 127.0.0.0/8 return
    fib daddr type local jump hostports
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    fib daddr type local jump hostports
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {pool} ip daddr != {pool} ip daddr != 224.0.0.0/4 oifname != "{bridge}" masquerade
    oifname "{bridge}" ip saddr {{ {pool}, 127.0.0.0/8 }} ct status dnat masquerade
  }}
}}
"#
    );
    text.push_str(&add(bridge, redirects));
    text
}

/// Adds elements; fails as a whole if one of them is there already.
pub(crate) fn add(bridge: &str, redirects: &[Redirect]) -> String {
    let mut text = String::new();
    for r in redirects {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "create element ip {} {} {{ {} : {} . {} }}",
            table(bridge),
            r.map(),
            r.key(),
            r.pod_ip,
            r.container_port
        );
    }
    text
}

pub(crate) fn remove(bridge: &str, redirects: &[Redirect]) -> String {
    let mut text = String::new();
    for r in redirects {
        let _ = writeln!(text, "delete element ip {} {} {{ {} }}", table(bridge), r.map(), r.key());
    }
    text
}

/// Removes the table, there or not.
pub(crate) fn drop_table(bridge: &str) -> String {
    let table = table(bridge);
    format!("add table ip {table}\ndelete table ip {table}\n")
}

impl Redirect {
    fn map(&self) -> &'static str {
        if self.host_ip.is_some() { "exact" } else { "any" }
    }

    fn key(&self) -> String {
        let port = format!("{} . {}", self.protocol.name(), self.host_port);
        self.host_ip.map_or(port.clone(), |ip| format!("{ip} . {port}"))
    }
}

/// Where the program is, if it is installed.
pub(crate) fn program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join("nft"))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            Error::new("find the program nft", "PATH and /usr/sbin", "not installed").hint(
                "install the package nftables (the built-in network masquerades with it) or put a CNI configuration \
                 in place",
            )
        })
}

/// Runs one transaction.
pub(crate) fn apply(text: &str) -> Result<()> {
    run(&["-f", "-"], text).map(|_| ())
}

pub(crate) fn table_exists(bridge: &str) -> bool {
    run(&["list", "chain", "ip", &table(bridge), "hostports"], "").is_ok()
}

/// Chains of others, hooked at forward with policy drop: pods behind the bridge cannot reach the outside through
/// them unless they have a rule for it. Best effort: what nft cannot list (legacy iptables) is not seen.
pub(crate) fn foreign_forward_drop() -> Vec<String> {
    let Ok(text) = run(&["-j", "list", "chains"], "") else { return Vec::new() };
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(&text) else { return Vec::new() };
    let chains = value["nftables"].as_array().into_iter().flatten().map(|entry| &entry["chain"]);
    let dropping = chains.filter(|c| {
        c["hook"] == "forward" && c["policy"] == "drop" && (c["family"] == "ip" || c["family"] == "inet")
    });
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    dropping.map(|c| format!("{} {} {}", text(&c["family"]), text(&c["table"]), text(&c["name"]))).collect()
}

fn run(arguments: &[&str], input: &str) -> Result<Vec<u8>> {
    let program = program()?;
    let fail = |cause: String| Error::new("change nftables rules", program.display().to_string(), cause);
    let mut child = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| fail(e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // nft reads everything before it prints anything, so this cannot block for ever.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| fail(e.to_string()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = crate::cni::plugin::excerpt(&output.stderr);
    let error = fail(format!("{}: {said}", output.status));
    Err(if said.contains("Operation not supported") || said.contains("Protocol not supported") {
        error
            .hint("this kernel lacks nf_tables with NAT (modules nf_tables, nft_nat, nft_masq, nft_fib_ipv4)")
    } else if said.contains("not permitted") {
        error.hint("the daemon needs CAP_NET_ADMIN")
    } else {
        error
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_name_map_key_and_pod() {
        let mut r = Redirect {
            protocol: Protocol::Udp,
            host_port: 53,
            host_ip: None,
            pod_ip: [10, 88, 0, 2].into(),
            container_port: 5353,
        };
        assert_eq!(
            add("b", std::slice::from_ref(&r)),
            "create element ip slipway-b any { udp . 53 : 10.88.0.2 . 5353 }\n"
        );
        r.host_ip = Some([127, 0, 0, 1].into());
        assert_eq!(
            remove("b", std::slice::from_ref(&r)),
            "delete element ip slipway-b exact { 127.0.0.1 . udp . 53 }\n"
        );
        let pool = Pool::parse("10.88.0.0/16").unwrap();
        assert!(full("b", pool, &[r]).ends_with("exact { 127.0.0.1 . udp . 53 : 10.88.0.2 . 5353 }\n"));
    }
}
