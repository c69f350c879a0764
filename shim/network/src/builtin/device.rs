//! The bridge device and the veth pairs on it: made, checked for conflicts, removed. Keeps no state.

use super::link::{Link, Netlink, Route, VethPair};
use super::pool::Pool;
use crate::error::{Error, Result};
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) const IFNAME: &str = crate::cni::IFNAME;
/// Marks a bridge as made by us.
pub(crate) const ALIAS: &str = "slipway built-in network";
const FALLBACK_MTU: u32 = 1500;
const CARRIER_PATIENCE: Duration = Duration::from_millis(100);

/// The bridge device as last seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) mtu: u32,
}

/// All routes, if none of them leads into the pool.
pub(crate) fn routes_without_conflict(host: &mut Netlink, bridge: &str, pool: Pool) -> Result<Vec<Route>> {
    let routes = host.routes().map_err(|e| link_error("list routes", bridge, &e))?;
    let overlap = |r: &&Route| r.prefix_len > 0 && pool.overlaps(r.destination, r.prefix_len);
    let Some(route) = routes.iter().find(overlap) else { return Ok(routes) };
    let device = route.output.and_then(|index| host.link_by_index(index).ok().flatten());
    let device = device.map(|l| l.name).unwrap_or_else(|| "(no device)".into());
    let cause = format!("it overlaps the route {}/{} on {device}", route.destination, route.prefix_len);
    Err(Error::new("make the bridge", format!("{bridge}, pool {pool}"), cause)
        .hint("configure a pool that this host has no route to"))
}

/// Makes the bridge, as wide as the way to the outside; without its address yet.
pub(crate) fn make(host: &mut Netlink, name: &str, pool: Pool) -> Result<Device> {
    let fail = |e: std::io::Error| link_error("make the bridge", name, &e);
    let routes = routes_without_conflict(host, name, pool)?;
    let outgoing = routes.iter().find(|r| r.prefix_len == 0).and_then(|r| r.output);
    let outgoing = outgoing.and_then(|index| host.link_by_index(index).ok().flatten());
    let mtu = outgoing.map(|l| l.mtu).filter(|mtu| (576..=65535).contains(mtu)).unwrap_or(FALLBACK_MTU);
    host.add_bridge(name, mac(pool.gateway()), mtu).map_err(fail)?;
    let made = host.link(name).and_then(|l| l.ok_or(std::io::ErrorKind::NotFound.into()));
    let made = made.and_then(|l| host.set_up(l.index, Some(ALIAS)).map(|()| l));
    made.map(|link| Device { index: link.index, mtu }).map_err(|e| {
        let _ = host.delete_link(name);
        fail(e)
    })
}

/// True if we made this link as a bridge for one of the pools. The kernel takes no alias at a link's birth
/// (`rtnl_newlink_create`): a bridge that is down, has no alias and has our MAC address was left by a kill in between.
pub(crate) fn ours(link: &Link, pools: &[Pool]) -> bool {
    let half_made =
        || link.alias.is_empty() && !link.up && pools.iter().any(|pool| link.mac == mac(pool.gateway()));
    link.bridge && (link.alias == ALIAS || half_made())
}

/// True if there is a bridge of that name and we made it.
pub(crate) fn exists(name: &str, pools: &[Pool]) -> Result<bool> {
    let found = Netlink::open().and_then(|mut host| host.link(name));
    let found = found.map_err(|e| link_error("look for the bridge", name, &e))?;
    Ok(found.is_some_and(|link| ours(&link, pools)))
}

/// Missing, or not ours, is success.
pub(crate) fn remove(name: &str, pools: &[Pool]) -> Result<()> {
    if exists(name, pools)? {
        let removed = Netlink::open().and_then(|mut host| host.delete_link(name));
        removed.map_err(|e| link_error("remove the bridge", name, &e))?;
    }
    Ok(())
}

/// Makes the veth pair, addresses the pod's end, connects ours.
pub(crate) fn connect_pod(
    bridge: Device,
    pool: Pool,
    address: Ipv4Addr,
    netns: &File,
    hairpin: bool,
) -> Result<()> {
    let veth = veth_name(address);
    let fail = |step: &str, e: std::io::Error| link_error(step, &veth, &e);
    let mut host = Netlink::open().map_err(|e| fail("open netlink", e))?;
    let pair = VethPair {
        host_name: &veth,
        pod_name: IFNAME,
        pod_mac: mac(address),
        mtu: bridge.mtu,
        pod_netns: netns.as_fd(),
    };
    host.add_veth(&pair).map_err(|e| fail("make veth pair into the pod", e))?;
    in_netns(netns, || {
        let mut inside = Netlink::open().map_err(|e| fail("open netlink in the pod", e))?;
        let addressed = inside.link(IFNAME).and_then(|found| {
            let eth0 = found.ok_or(std::io::ErrorKind::NotFound)?;
            inside.add_address(eth0.index, address, pool.prefix_len)?;
            inside.set_up(eth0.index, None)?;
            inside.add_default_route(eth0.index, pool.gateway()).map(|()| eth0.index)
        });
        let eth0 = addressed.map_err(|e| fail("give the pod's eth0 its address and route", e))?;
        host.connect(&veth, bridge.index, hairpin).map_err(|e| fail("connect the pod to the bridge", e))?;
        let port = host.link(&veth).and_then(|l| l.ok_or(std::io::ErrorKind::NotFound.into()));
        let port = port.map_err(|e| fail("look for the pod's bridge port", e))?.index;
        wait_running(&mut inside, eth0).map_err(|e| fail("wait for the pod's eth0", e))?;
        wait_running(&mut host, port).map_err(|e| fail("wait for the pod's bridge port", e))?;
        // The first port brings the bridge its own carrier.
        wait_running(&mut host, bridge.index).map_err(|e| fail("wait for the bridge", e))
    })
}

/// Waits until frames pass. The kernel notes a new carrier at leisure, and drops what is sent before: a lost first
/// packet costs the application a second. From Linux 6.8 on the question itself makes the kernel catch up.
fn wait_running(netlink: &mut Netlink, link: u32) -> std::io::Result<()> {
    let start = Instant::now();
    while !netlink.link_by_index(link)?.ok_or(std::io::ErrorKind::NotFound)?.running {
        if start.elapsed() > CARRIER_PATIENCE {
            // Not fatal: everything is in place, only the kernel is late.
            tracing::debug!(link, "not running yet");
            break;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

pub(crate) const VETH: &str = "veth";

/// Leases are unique, so names are.
pub(crate) fn veth_name(address: Ipv4Addr) -> String {
    format!("{VETH}{:08x}", u32::from(address))
}

/// Made from the address: when an address is used again, what others remember of its neighbour is still true.
pub(crate) fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Runs `work` on a throw-away thread that has entered the namespace.
fn in_netns<T: Send>(netns: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let fail = |e: std::io::Error| Error::io("enter the pod's network namespace", "thread", &e);
    std::thread::scope(|scope| {
        let inside = std::thread::Builder::new().spawn_scoped(scope, || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).map_err(|e| fail(e.into()))?;
            work()
        });
        let inside = inside.map_err(fail)?;
        inside.join().unwrap_or_else(|_| Err(fail(std::io::Error::other("the thread panicked"))))
    })
}

/// True if it had to be changed.
pub(crate) fn set_sysctl(name: &str, value: &str) -> Result<bool> {
    let path = Path::new("/proc/sys").join(name);
    let object = name.replace('/', ".");
    let now = fs::read_to_string(&path).map_err(|e| Error::new("read sysctl", &object, e))?;
    if now.trim() == value {
        return Ok(false);
    }
    fs::write(&path, value).map(|()| true).map_err(|e| {
        Error::new("set sysctl", &object, e)
            .hint(format!("set {object}={value} yourself if /proc/sys is read-only"))
    })
}

pub(crate) fn link_error(step: &str, object: &str, e: &std::io::Error) -> Error {
    let error = Error::io(step, object, e);
    match e.raw_os_error().map(nix::errno::Errno::from_raw) {
        Some(nix::errno::Errno::EPERM) => error.hint("the daemon needs CAP_NET_ADMIN"),
        Some(nix::errno::Errno::EOPNOTSUPP) => error.hint("this kernel lacks the modules bridge or veth"),
        Some(nix::errno::Errno::EEXIST) => {
            error.hint("the namespace may have an eth0 already, or a link was left over")
        }
        _ => error,
    }
}
