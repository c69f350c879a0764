//! Links, addresses and routes by rtnetlink.
//!
//! A socket belongs to the network namespace of the thread that opened it. Knows nothing of pods, pools or rules.

use super::socket::Talk;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, State,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// A socket of the calling thread's network namespace.
#[derive(Debug)]
pub(crate) struct Netlink(Talk);

/// What we want to know of a link.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) bridge: bool,
    pub(crate) alias: String,
    /// Empty where the kind of link has none.
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    /// Operational state "up": the peer is up too and the carrier is there.
    pub(crate) running: bool,
    /// Index of the bridge it is a port of.
    pub(crate) controller: Option<u32>,
}

/// An IPv4 route to a network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    pub(crate) destination: Ipv4Addr,
    pub(crate) prefix_len: u8,
    pub(crate) output: Option<u32>,
}

/// Both ends of a veth pair that is to be made.
#[derive(Debug)]
pub(crate) struct VethPair<'a> {
    pub(crate) host_name: &'a str,
    pub(crate) pod_name: &'a str,
    pub(crate) pod_mac: [u8; 6],
    pub(crate) mtu: u32,
    /// The namespace the pod's end is born in.
    pub(crate) pod_netns: BorrowedFd<'a>,
}

impl Netlink {
    pub(crate) fn open() -> Result<Self> {
        Talk::open(NETLINK_ROUTE).map(Self)
    }

    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        self.get_link(message)
    }

    pub(crate) fn link_by_index(&mut self, index: u32) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.get_link(message)
    }

    fn get_link(&mut self, message: LinkMessage) -> Result<Option<Link>> {
        match self.ask(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(to_link)),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All links of this namespace.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>> {
        let answers = self.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(to_link).collect())
    }

    pub(crate) fn add_bridge(&mut self, name: &str, mac: [u8; 6], mtu: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        self.tell(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Both ends are down; the pod's end is in its namespace.
    pub(crate) fn add_veth(&mut self, pair: &VethPair<'_>) -> Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(pair.pod_name.into()),
            LinkAttribute::Address(pair.pod_mac.to_vec()),
            LinkAttribute::Mtu(pair.mtu),
            LinkAttribute::NetNsFd(pair.pod_netns.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(pair.host_name.into()),
            LinkAttribute::Mtu(pair.mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.tell(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Labels a link and brings it up.
    pub(crate) fn set_up(&mut self, link: u32, alias: Option<&str>) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.extend(alias.map(|a| LinkAttribute::IfAlias(a.into())));
        self.tell(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Makes a link a port of a bridge and brings it up. A hairpin port gets its own frames back.
    pub(crate) fn connect(&mut self, name: &str, bridge: u32, hairpin: bool) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::Controller(bridge)];
        self.tell(RouteNetlinkMessage::SetLink(message), 0)?;
        if !hairpin {
            return Ok(());
        }
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
            ]),
        ];
        self.tell(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// False if there was none of that name.
    pub(crate) fn delete_link(&mut self, name: &str) -> Result<bool> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        match self.tell(RouteNetlinkMessage::DelLink(message), 0) {
            Ok(()) => Ok(true),
            Err(e) if is_missing(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// An address that is there already is success.
    pub(crate) fn add_address(&mut self, link: u32, address: Ipv4Addr, prefix_len: u8) -> Result<()> {
        let host_bits = u32::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix_len;
        message.header.scope = AddressScope::Universe;
        message.header.index = link;
        message.attributes = vec![
            AddressAttribute::Local(IpAddr::V4(address)),
            AddressAttribute::Address(IpAddr::V4(address)),
            AddressAttribute::Broadcast(Ipv4Addr::from(u32::from(address) | host_bits)),
        ];
        match self.tell(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    pub(crate) fn add_default_route(&mut self, link: u32, gateway: Ipv4Addr) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes =
            vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(link)];
        self.tell(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// IPv4 addresses of this host.
    pub(crate) fn local_addresses(&mut self) -> Result<Vec<Ipv4Addr>> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        let answers = self.ask(RouteNetlinkMessage::GetAddress(message), NLM_F_DUMP)?;
        let attributes = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => Some(message.attributes),
            _ => None,
        });
        let local = attributes.flatten().filter_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(address),
            _ => None,
        });
        Ok(local.collect())
    }

    /// IPv4 unicast and local routes of all tables.
    pub(crate) fn routes(&mut self) -> Result<Vec<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let answers = self.ask(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(to_route).collect())
    }

    fn tell(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.0.ask(message, flags | NLM_F_ACK).map(|_| ())
    }

    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>> {
        self.0.ask(message, flags)
    }
}

/// ENODEV, or ENOENT.
fn is_missing(e: &Error) -> bool {
    e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32)
}

fn to_link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Address(mac) => link.mac = mac,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::OperState(state) => link.running = state == State::Up,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::LinkInfo(infos) => link.bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge)),
            _ => {}
        }
    }
    Some(link)
}

fn to_route(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    if !matches!(message.header.kind, RouteType::Unicast | RouteType::Local) {
        return None;
    }
    let mut route = Route {
        destination: Ipv4Addr::UNSPECIFIED,
        prefix_len: message.header.destination_prefix_length,
        output: None,
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(destination)) => route.destination = destination,
            RouteAttribute::Oif(index) => route.output = Some(index),
            _ => {}
        }
    }
    Some(route)
}
