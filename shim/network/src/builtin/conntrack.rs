//! UDP flows that the kernel remembers with a destination that is no longer right.
//!
//! NAT rules are asked for the first packet of a flow only. A client that keeps sending to a host port would go on
//! reaching the pod that had the port before, or the host itself if there was no pod, until it paused for longer than
//! the kernel's patience. So the flows of a UDP host port are forgotten whenever its meaning changes. TCP needs none
//! of this: its connections end with the pod.

use super::link::Netlink;
use super::pool::Pool;
use super::rules::Redirect;
use crate::types;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use slipway_runtime::sys::netlink::Talk;
use std::io::Result;
use std::net::{IpAddr, Ipv4Addr};

/// Forgets the flows to the UDP ports among `redirects`; does nothing if there is none.
pub(crate) fn forget(redirects: &[Redirect], pool: Pool) -> Result<()> {
    let udp: Vec<&Redirect> = redirects.iter().filter(|r| r.protocol == types::Protocol::Udp).collect();
    if udp.is_empty() {
        return Ok(());
    }
    let local = Netlink::open()?.local_addresses()?;
    let mut talk = Talk::open(NETLINK_NETFILTER)?;
    let flows = talk.ask(message(ConntrackMessage::Get(Vec::new())), NLM_F_DUMP)?;
    for flow in flows.iter().filter_map(Flow::read) {
        let ours = local.contains(&flow.to) || pool.contains(flow.answered_by);
        let meant = |r: &&&Redirect| r.host_port == flow.port && r.host_ip.is_none_or(|ip| ip == flow.to);
        if !ours || udp.iter().find(meant).is_none() {
            continue;
        }
        let original = vec![ConntrackAttribute::CtaTupleOrig(flow.original.clone())];
        match talk.ask(message(ConntrackMessage::Delete(original)), NLM_F_ACK) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn message(message: ConntrackMessage) -> NetfilterMessage {
    let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
    NetfilterMessage::new(header, NetfilterMessageInner::Conntrack(message))
}

/// An IPv4 UDP flow.
struct Flow {
    original: Vec<Tuple>,
    to: Ipv4Addr,
    port: u16,
    answered_by: Ipv4Addr,
}

impl Flow {
    fn read(message: &NetfilterMessage) -> Option<Self> {
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = &message.inner else {
            return None;
        };
        let (mut original, mut reply) = (None, None);
        for attribute in attributes {
            match attribute {
                ConntrackAttribute::CtaTupleOrig(tuple) => original = Some(tuple.clone()),
                ConntrackAttribute::CtaTupleReply(tuple) => reply = Some(tuple),
                _ => {}
            }
        }
        let (original, reply) = (original?, reply?);
        let mut protocols = original.iter().filter_map(proto).flatten();
        let is_udp = protocols.any(|p| *p == ProtoTuple::Protocol(Protocol::Udp));
        let port = original.iter().filter_map(proto).flatten().find_map(|p| match p {
            ProtoTuple::DestinationPort(port) => Some(*port),
            _ => None,
        })?;
        let to = original.iter().filter_map(ip).flatten().find_map(|a| match a {
            IPTuple::DestinationAddress(IpAddr::V4(address)) => Some(*address),
            _ => None,
        })?;
        let answered_by = reply.iter().filter_map(ip).flatten().find_map(|a| match a {
            IPTuple::SourceAddress(IpAddr::V4(address)) => Some(*address),
            _ => None,
        })?;
        is_udp.then_some(Self { original, to, port, answered_by })
    }
}

fn proto(tuple: &Tuple) -> Option<&Vec<ProtoTuple>> {
    if let Tuple::Proto(parts) = tuple { Some(parts) } else { None }
}

fn ip(tuple: &Tuple) -> Option<&Vec<IPTuple>> {
    if let Tuple::Ip(parts) = tuple { Some(parts) } else { None }
}
