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
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use slipway_runtime::sys::process::memory_file;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long one transaction may take; hundreds of ports take milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

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
    run_program(&program()?, arguments, input, PATIENCE)
}

/// Feeds a program and listens to it through files in memory, so that nothing but its end is waited for.
fn run_program(program: &Path, arguments: &[&str], input: &str, patience: Duration) -> Result<Vec<u8>> {
    let fail = |cause: String| Error::new("change nftables rules", program.display().to_string(), cause);
    let io = |e: std::io::Error| Error::io("change nftables rules", program.display().to_string(), &e);
    let memory = |content: &str| memory_file("slipway-nft", content.as_bytes()).map(File::from).map_err(io);
    let (feed, mut out, mut err) = (memory(input)?, memory("")?, memory("")?);
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::from(feed))
        .stdout(Stdio::from(out.try_clone().map_err(io)?))
        .stderr(Stdio::from(err.try_clone().map_err(io)?))
        .process_group(0)
        .spawn()
        .map_err(io)?;
    if !ends_within(&child, patience) {
        // Not waited for yet: its number, and its group's, are nobody else's.
        if let Some(group) = pid(&child) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = child.wait();
        let error = fail(format!("it did not finish within {} s and was killed", patience.as_secs_f32()));
        return Err(error.hint("is another program holding the nftables lock, or the machine out of memory?"));
    }
    let status = child.wait().map_err(io)?;
    let read = |file: &mut File| -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    if status.success() {
        return read(&mut out).map_err(io);
    }
    let said = crate::cni::plugin::excerpt(&read(&mut err).map_err(io)?);
    let error = fail(format!("{status}: {said}"));
    Err(if said.contains("Operation not supported") || said.contains("Protocol not supported") {
        error
            .hint("this kernel lacks nf_tables with NAT (modules nf_tables, nft_nat, nft_masq, nft_fib_ipv4)")
    } else if said.contains("not permitted") {
        error.hint("the daemon needs CAP_NET_ADMIN")
    } else {
        error
    })
}

fn pid(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// False when the time is over first; the child is not waited for in either case.
fn ends_within(child: &Child, patience: Duration) -> bool {
    let Some(Ok(pidfd)) = pid(child).map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { return false };
    let end = Instant::now() + patience;
    loop {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], left.as_ref()) {
            Ok(ended) => return ended > 0,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
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

    /// A program whose child holds its streams open, too.
    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let (script, pid) = (dir.path().join("nft"), dir.path().join("pid"));
        let text = format!("sleep 600 &\necho $! > {0}.new; mv {0}.new {0}\nwait\n", pid.display());
        std::fs::write(&script, text).unwrap();
        let file = script.display().to_string();
        let started = Instant::now();
        // Longer than any shell takes to start, shorter than it sleeps.
        let error = run_program(Path::new("/bin/sh"), &[&file], "x", Duration::from_secs(5)).unwrap_err();
        assert!(error.to_string().contains("did not finish within 5 s and was killed"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(300));
        let child = std::fs::read_to_string(pid).unwrap();
        let stat = std::path::PathBuf::from(format!("/proc/{}/cmdline", child.trim()));
        let gone = || std::fs::read(&stat).map_or(true, |line| line.is_empty());
        while !gone() && started.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(gone(), "its child lives");
    }

    #[test]
    fn what_it_reads_and_says_passes_whole() {
        let input = "rule\n".repeat(100_000);
        let said = run_program(Path::new("/bin/cat"), &[], &input, Duration::from_secs(60)).unwrap();
        assert!(said == input.as_bytes());
        let error =
            run_program(Path::new("/bin/sh"), &["-c", "echo no >&2; exit 3"], "", PATIENCE).unwrap_err();
        assert!(error.to_string().contains("exit status: 3: no"), "{error}");
    }
}
