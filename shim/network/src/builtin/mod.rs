//! The built-in network: a bridge with a pool, for a node that nobody has given a CNI configuration.
//!
//! ```text
//!  pod netns            host netns (that of the calling thread)
//!  eth0 ◀──veth pair──▶ veth<address> ──▶ bridge (first address of the pool) ──masquerade──▶ outside
//!                                          ▲ hostPorts: dnat in table slipway-<bridge>
//! ```
//! Owns: the bridge it made (its alias says so), the veth pairs on it, the leases, its nftables table. Never touches
//! what CNI or an administrator made. IPv4 only; bandwidth annotations are refused. `ip_forward` is switched on when
//! it is off, noted in `bridge.json`, and not switched off again, because others may have come to need it.
//! All calls here block; the caller keeps them off the executor.

mod conntrack;
mod device;
mod link;
mod pool;
mod ports;
mod rules;
mod table;

use crate::error::{Error, Result};
use crate::types::{Attachment, Builtin, PodNetwork, PortMapping};
use device::{ALIAS, Device, IFNAME, link_error, mac, mac_text, set_sysctl, veth_name};
use link::Netlink;
use pool::{Leases, Pool};
use ports::Claims;
use rules::Redirect;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use table::Table;

/// What one pod has on a bridge; enough to take it back.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Lease {
    pub(crate) bridge: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) ports: Vec<PortMapping>,
}

/// One bridge of ours, existing or still to be made.
#[derive(Debug)]
pub(crate) struct Bridge {
    name: String,
    dir: PathBuf,
    state: Mutex<State>,
    /// Held by the one that makes the device.
    making: Mutex<()>,
    table: Table,
}

#[derive(Debug)]
struct State {
    /// As configured now; none: the bridge is only still there for pods made under a former configuration.
    wanted: Option<Pool>,
    /// What the leases were given from.
    pool: Pool,
    leases: Leases,
    claims: Claims,
    device: Option<Device>,
}

impl State {
    /// Those that a device of ours may have been made for.
    fn pools(&self) -> Vec<Pool> {
        std::iter::once(self.pool).chain(self.wanted).collect()
    }
}

/// `bridge.json`: what outlives a restart besides leases.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Saved {
    version: u32,
    pool: String,
    /// True if it was we who switched ip_forward on.
    enabled_ip_forward: bool,
}

const TEMPORARY: &str = ".bridge.json";

impl Builtin {
    /// Whether there can be such a bridge; makes nothing.
    pub fn check(&self) -> Result<()> {
        check_bridge_name(&self.bridge)?;
        Pool::parse(&self.pool).map(drop)
    }
}

impl Bridge {
    /// The bridge the options ask for; nothing is made yet.
    pub(crate) fn open(options: &Builtin, state_dir: &Path) -> Result<Self> {
        options.check()?;
        let wanted = Pool::parse(&options.pool)?;
        Self::load(&options.bridge, Some(wanted), &dir(state_dir).join(&options.bridge))
    }

    /// Bridges of former configurations that still have leases.
    pub(crate) fn former(state_dir: &Path, current: Option<&str>) -> Vec<Self> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir(state_dir)).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if Some(name.as_str()) == current || check_bridge_name(&name).is_err() {
                continue;
            }
            match Self::load(&name, None, &entry.path()) {
                Ok(bridge) => found.push(bridge),
                Err(e) => tracing::warn!(error = %e, "state of a former built-in bridge passed over"),
            }
        }
        found
    }

    fn load(name: &str, wanted: Option<Pool>, dir: &Path) -> Result<Self> {
        let saved =
            fs::read(dir.join("bridge.json")).ok().and_then(|t| serde_json::from_slice::<Saved>(&t).ok());
        let _ = fs::remove_file(dir.join(TEMPORARY)); // half-written by a crash, never renamed
        let saved_pool = saved.and_then(|s| Pool::parse(&s.pool).ok());
        let pool = saved_pool.or(wanted).ok_or_else(|| {
            Error::new("read built-in network state", dir.display().to_string(), "no readable bridge.json")
        })?;
        let leases = Leases::open(dir.join("leases"))?;
        let state = State { wanted, pool, leases, claims: Claims::default(), device: None };
        Ok(Self {
            name: name.into(),
            dir: dir.into(),
            state: Mutex::new(state),
            making: Mutex::default(),
            table: Table::new(name),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a pod of an earlier run of the daemon into account.
    pub(crate) fn adopt(&self, id: &str, label: &str, lease: &Lease) {
        let claimed = ports::redirects(&lease.ports, lease.address)
            .and_then(|wanted| self.state().claims.claim(id, label, wanted));
        if let Err(e) = claimed {
            tracing::warn!(pod = label, error = %e, "host ports of a recorded pod passed over");
        }
    }

    /// Gives the pod its address. `record` is called with the intent before anything in the kernel changes.
    pub(crate) fn setup(
        &self,
        pod: &PodNetwork,
        record: impl FnOnce(&Lease) -> Result<()>,
    ) -> Result<Attachment> {
        if crate::cni::args::wants_bandwidth(pod) {
            return Err(Error::new(
                "read annotations",
                pod.label(),
                "the built-in network cannot limit bandwidth",
            )
            .hint("remove the kubernetes.io/*-bandwidth annotations, or use CNI with the bandwidth plugin"));
        }
        let netns = File::open(&pod.netns)
            .map_err(|e| Error::io("open network namespace", pod.netns.display().to_string(), &e))?;
        let device = self.ensure()?;
        let address = {
            let mut state = self.state();
            let pool = state.pool;
            state.leases.acquire(pool, &pod.id)?
        };
        let lease = Lease { bridge: self.name.clone(), address, ports: pod.ports.clone() };
        let done = self.attach(pod, &lease, device, &netns, record);
        if let Err(e) = done {
            return Err(match self.unplug(&pod.id).and_then(|()| self.reap(address)) {
                Ok(()) => e,
                Err(second) => e.and_also(&second),
            });
        }
        Ok(self.attachment(pod, address))
    }

    fn attach(
        &self,
        pod: &PodNetwork,
        lease: &Lease,
        device: Device,
        netns: &File,
        record: impl FnOnce(&Lease) -> Result<()>,
    ) -> Result<()> {
        let wanted = ports::redirects(&lease.ports, lease.address)?;
        let redirects = self.state().claims.claim(&pod.id, &pod.label(), wanted)?;
        record(lease)?;
        if redirects.is_empty() {
            return self.plug(lease.address, device, netns, false);
        }
        // A rules transaction waits for the kernel for milliseconds: the links are made meanwhile.
        std::thread::scope(|scope| {
            let rules = scope.spawn(|| self.publish(&redirects));
            let plugged = self.plug(lease.address, device, netns, true);
            let panicked = |_| Err(Error::new("change nftables rules", &self.name, "the thread panicked"));
            let published = rules.join().unwrap_or_else(panicked);
            plugged.and(published)
        })
    }

    /// A pod with host ports may reach itself through them; where bridged frames pass netfilter
    /// (bridge-nf-call-iptables) that takes a hairpin port.
    fn plug(&self, address: Ipv4Addr, device: Device, netns: &File, hairpin: bool) -> Result<()> {
        let pool = self.state().pool;
        device::connect_pod(device, pool, address, netns, hairpin)
    }

    fn publish(&self, redirects: &[Redirect]) -> Result<()> {
        // A connection from 127.0.0.1 may leave by the bridge; chain guard keeps the other direction shut.
        set_sysctl(&format!("net/ipv4/conf/{}/route_localnet", self.name), "1")?;
        self.table.publish(redirects, || self.wanted_rules())?;
        self.forget_flows(redirects);
        Ok(())
    }

    fn wanted_rules(&self) -> table::Wanted {
        let state = self.state();
        (state.pool, state.claims.redirects())
    }

    /// Not fatal: a client that never pauses may be led astray, everybody else is not.
    fn forget_flows(&self, redirects: &[Redirect]) {
        let pool = self.state().pool;
        if let Err(error) = conntrack::forget(redirects, pool) {
            tracing::warn!(bridge = self.name, %error, "old UDP flows to a host port were not forgotten");
        }
    }

    fn attachment(&self, pod: &PodNetwork, address: Ipv4Addr) -> Attachment {
        let pool = self.state().pool;
        let result = serde_json::json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": self.name},
                {"name": veth_name(address)},
                {"name": IFNAME, "mac": mac_text(mac(address)), "sandbox": pod.netns},
            ],
            "ips": [{
                "address": format!("{address}/{}", pool.prefix_len), "gateway": pool.gateway(), "interface": 2,
            }],
            "routes": [{"dst": "0.0.0.0/0", "gw": pool.gateway()}],
            "dns": {},
        });
        Attachment { ips: vec![IpAddr::V4(address)], result }
    }

    /// Takes the pod off the network: its host ports are free at once. The address stays leased until [`Self::reap`]
    /// has deleted the links, which makes the kernel wait for many milliseconds. Repeatable.
    pub(crate) fn unplug(&self, id: &str) -> Result<()> {
        let redirects = self.state().claims.release(id);
        self.table.withdraw(&redirects, || self.wanted_rules())?;
        self.forget_flows(&redirects);
        Ok(())
    }

    /// Deletes the links of an unplugged address and frees it.
    pub(crate) fn reap(&self, address: Ipv4Addr) -> Result<()> {
        let veth = veth_name(address);
        Netlink::open()
            .and_then(|mut host| host.delete_link(&veth))
            .map_err(|e| link_error("delete the pod's link", &veth, &e))?;
        self.state().leases.release(address)
    }

    /// CHECK for the built-in network: the link, its place on the bridge, the rules.
    pub(crate) fn check(&self, address: Ipv4Addr) -> Result<()> {
        let veth = veth_name(address);
        let bad = |cause: &str| Err(Error::new("check pod network", &veth, cause));
        let mut host = Netlink::open().map_err(|e| link_error("open netlink", &veth, &e))?;
        let find = |host: &mut Netlink, name: &str| {
            host.link(name).map_err(|e| link_error("look for a link", name, &e))
        };
        let Some(bridge) = find(&mut host, &self.name)? else { return bad("the bridge is gone") };
        match find(&mut host, &veth)? {
            None => bad("the link is gone"),
            Some(link) if link.controller != Some(bridge.index) => bad("it is not connected to the bridge"),
            Some(link) if !(link.up && bridge.up) => bad("it or the bridge is down"),
            Some(_) if !self.table.exists() => bad("the nftables table is gone"),
            Some(_) => Ok(()),
        }
    }

    /// Makes sure that bridge, sysctl and rules are there; one netlink question when they are.
    fn ensure(&self) -> Result<Device> {
        let mut host = Netlink::open().map_err(|e| link_error("open netlink", &self.name, &e))?;
        if let Some(device) = self.device_in_place(&mut host)? {
            return Ok(device);
        }
        let _turn = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = self.device_in_place(&mut host)? {
            return Ok(device); // somebody else made it meanwhile
        }
        let (new_pool, pool) = {
            let mut state = self.state();
            (self.adopt_pool(&mut state)?, state.pool)
        };
        let device = match self.find(&mut host)? {
            Some(link) if !device::ours(&link, &self.state().pools()) => {
                let cause = "a link of this name exists and is not ours";
                return Err(Error::new("make the bridge", &self.name, cause)
                    .hint("choose another bridge name for the built-in network, or delete that link"));
            }
            Some(link) => Device { index: link.index, mtu: link.mtu },
            None => device::make(&mut host, &self.name, pool)?,
        };
        let completed = self.complete(&mut host, device, pool, new_pool);
        let mut state = self.state();
        if completed.is_ok() {
            state.device = Some(device);
        } else if state.leases.is_empty() {
            // Half a bridge helps nobody; one with pods on it is left for the next attempt.
            let _ = device::remove(&self.name, &state.pools());
        }
        completed.map(|()| device)
    }

    fn find(&self, host: &mut Netlink) -> Result<Option<link::Link>> {
        host.link(&self.name).map_err(|e| link_error("look for the bridge", &self.name, &e))
    }

    /// The device, if it is the one we completed and it is still up and for the pool that is wanted.
    fn device_in_place(&self, host: &mut Netlink) -> Result<Option<Device>> {
        let (device, current) = {
            let state = self.state();
            (state.device, state.wanted == Some(state.pool))
        };
        let Some(device) = device.filter(|_| current) else { return Ok(None) };
        let found = self.find(host)?;
        Ok(found.filter(|link| link.index == device.index && link.up).map(|_| device))
    }

    /// What a bridge device needs besides itself. Repeatable.
    fn complete(&self, host: &mut Netlink, device: Device, pool: Pool, new_pool: bool) -> Result<()> {
        host.add_address(device.index, pool.gateway(), pool.prefix_len)
            .and_then(|()| host.set_up(device.index, Some(ALIAS)))
            .map_err(|e| link_error("give the bridge its address", &self.name, &e))?;
        self.enable_forwarding(pool)?;
        self.table.ensure(!new_pool, || self.wanted_rules())
    }

    /// A new pool takes effect once no lease of the old one is left; true if it just did.
    fn adopt_pool(&self, state: &mut State) -> Result<bool> {
        match state.wanted {
            Some(wanted) if wanted == state.pool => Ok(false),
            Some(wanted) if state.leases.is_empty() => {
                device::remove(&self.name, &state.pools())?;
                state.device = None;
                state.pool = wanted;
                Ok(true)
            }
            _ => self.pool_in_use(state),
        }
    }

    fn pool_in_use(&self, state: &State) -> Result<bool> {
        let cause = format!("{} pods still use its former pool {}", state.leases.count(), state.pool);
        Err(Error::new("make the bridge", &self.name, cause)
            .hint("remove those pods, or configure another bridge name with the new pool"))
    }

    fn enable_forwarding(&self, pool: Pool) -> Result<()> {
        let path = self.dir.join("bridge.json");
        let before = fs::read(&path).ok().and_then(|t| serde_json::from_slice::<Saved>(&t).ok());
        let changed = set_sysctl("net/ipv4/ip_forward", "1")?;
        if changed {
            tracing::info!(bridge = %self.name, "net.ipv4.ip_forward was 0 and is now 1, for pods to reach the outside");
        }
        let enabled_ip_forward = changed || before.is_some_and(|s| s.enabled_ip_forward);
        let saved = Saved { version: 1, pool: pool.to_string(), enabled_ip_forward };
        let bytes = serde_json::to_vec(&saved).unwrap_or_default();
        let temporary = self.dir.join(TEMPORARY);
        fs::write(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|e| pool::fail("write built-in network state", &path, &e))
    }

    /// What would stop a pod now; else a note for people (empty if there is nothing to say).
    pub(crate) fn readiness(&self) -> Result<String> {
        rules::program()?;
        let (made, in_use) = {
            let state = self.state();
            (state.device.is_some(), !state.leases.is_empty())
        };
        if made {
            return self.table.look_after(in_use, || self.wanted_rules());
        }
        self.would_conflict().map(|()| String::new())
    }

    /// The conflicts that making the bridge would meet.
    fn would_conflict(&self) -> Result<()> {
        let state = self.state();
        let pool = match state.wanted {
            Some(wanted) if wanted == state.pool || state.leases.is_empty() => wanted,
            _ => return self.pool_in_use(&state).map(|_| ()),
        };
        drop(state);
        let fail = |e: std::io::Error| link_error("look for conflicts", &self.name, &e);
        let mut host = Netlink::open().map_err(fail)?;
        if host.link(&self.name).map_err(fail)?.is_some() {
            return Ok(()); // ours from an earlier run, or setup will say whose
        }
        device::routes_without_conflict(&mut host, &self.name, pool).map(|_| ())
    }

    /// Frees leases and links of nobody: `owned` are the addresses of recorded pods. Rewrites the rules if there is
    /// anything to have rules for.
    pub(crate) fn collect(&self, owned: &[Ipv4Addr]) -> Result<()> {
        let orphans = self.state().leases.all().into_iter().filter(|(address, _)| !owned.contains(address));
        for (address, id) in orphans {
            tracing::info!(bridge = %self.name, %address, pod = id, "address of nobody freed");
            self.state().claims.release(&id);
            self.reap(address)?;
        }
        let mut host = Netlink::open().map_err(|e| link_error("open netlink", &self.name, &e))?;
        let Some(bridge) = self.find(&mut host)?.filter(|l| device::ours(l, &self.state().pools())) else {
            return Ok(());
        };
        let links = host.links().map_err(|e| link_error("list links", &self.name, &e))?;
        let names: Vec<String> = owned.iter().map(|a| veth_name(*a)).collect();
        for stray in
            links.iter().filter(|l| l.controller == Some(bridge.index) && l.name.starts_with(device::VETH))
        {
            if !names.contains(&stray.name) {
                host.delete_link(&stray.name)
                    .map_err(|e| link_error("delete a stray link", &stray.name, &e))?;
            }
        }
        self.table.ensure(false, || self.wanted_rules())
    }

    /// Removes device, rules and directory if nobody has a lease; false if somebody has.
    pub(crate) fn close(&self) -> Result<bool> {
        let mut state = self.state();
        if !state.leases.is_empty() {
            return Ok(false);
        }
        state.device = None;
        let (former, pools) = (state.wanted.is_none(), state.pools());
        drop(state);
        // The device goes last: while it is there, a crash in between is found by the next close.
        if device::exists(&self.name, &pools)? || self.table.written() {
            self.table.remove()?;
            device::remove(&self.name, &pools)?;
        }
        if former {
            match fs::remove_dir_all(&self.dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(pool::fail("remove former built-in state", &self.dir, &e));
                }
                _ => {}
            }
        }
        Ok(true)
    }

    /// Address of the pod, if it has a lease here (for pods whose record was lost).
    pub(crate) fn address_of(&self, id: &str) -> Option<Ipv4Addr> {
        self.state().leases.all().into_iter().find(|(_, owner)| owner == id).map(|(address, _)| address)
    }
}

fn dir(state_dir: &Path) -> PathBuf {
    state_dir.join("builtin")
}

fn check_bridge_name(name: &str) -> Result<()> {
    let ok = (1..=15).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if ok {
        return Ok(());
    }
    Err(Error::new("read built-in network options", format!("bridge \"{name}\""), "not a name for a link")
        .hint("1 to 15 letters, digits, _ - . and a letter or digit first"))
}
