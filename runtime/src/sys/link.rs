//! One network device moved from a network namespace to another, with what it is configured with.

use super::namespace;
use super::netlink::Talk;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Moves the device `name` of the namespace `from` into the namespace `to`, as `new_name` (the kernel fills a `%d` in).
/// Its MTU and hardware address stay with it by themselves, its lasting addresses of global scope are given to it again,
/// and it is up in the end. Answers the name it has there.
///
/// # Errors
/// Of the call that failed; `ENODEV` when there is no such device, `EEXIST` when the name is taken. A device that was
/// moved and could not be configured is moved back.
pub fn transfer(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &str, new_name: &str) -> Result<String> {
    namespace::on_own_thread("netdev", || {
        let mut here = Links::of(from)?;
        let (index, _) = here.find(name)?;
        let addresses = here.addresses(index)?;
        let mut there = Links::of(to)?;
        let before = there.all()?;
        here.send(index, to, new_name)?;
        let arrived = there.all()?.into_iter().find(|link| {
            if new_name.contains("%d") {
                !before.iter().any(|known| known.0 == link.0)
            } else {
                link.1 == new_name
            }
        });
        let (index, arrived) = arrived.ok_or_else(|| Error::from_raw_os_error(libc::ENODEV))?;
        there.configure(index, addresses).map_err(|error| {
            // The first error is the one to tell.
            let _ = there.send(index, from, name);
            error
        })?;
        Ok(arrived)
    })?
}

/// A socket of one namespace. Lives on a throw-away thread.
struct Links(Talk);

impl Links {
    fn of(namespace: BorrowedFd<'_>) -> Result<Self> {
        namespace::join(namespace, libc::CLONE_NEWNET as u32)?;
        Talk::open(NETLINK_ROUTE).map(Self)
    }

    fn tell(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.0.ask(message, NLM_F_ACK | flags).map(drop)
    }

    /// Index and name of each link.
    fn all(&mut self) -> Result<Vec<(u32, String)>> {
        let answers = self.0.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(named).collect())
    }

    fn find(&mut self, name: &str) -> Result<(u32, String)> {
        let mut links = self.all()?.into_iter();
        links.find(|link| link.1 == name).ok_or_else(|| Error::from_raw_os_error(libc::ENODEV))
    }

    /// Lasting addresses that mean something elsewhere too.
    fn addresses(&mut self, index: u32) -> Result<Vec<AddressMessage>> {
        let answers = self.0.ask(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        let messages = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => Some(message),
            _ => None,
        });
        let lasting = |m: &AddressMessage| {
            m.header.index == index
                && m.header.scope == AddressScope::Universe
                && m.header.flags.contains(AddressHeaderFlags::Permanent)
        };
        Ok(messages.filter(lasting).collect())
    }

    fn send(&mut self, index: u32, to: BorrowedFd<'_>, name: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes =
            vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::NetNsFd(to.as_fd().as_raw_fd())];
        self.tell(RouteNetlinkMessage::SetLink(message), 0)
    }

    fn configure(&mut self, index: u32, addresses: Vec<AddressMessage>) -> Result<()> {
        for address in addresses {
            let mut message = AddressMessage::default();
            message.header = address.header;
            message.header.index = index;
            let kept = |attribute: &AddressAttribute| {
                use AddressAttribute as A;
                matches!(attribute, A::Address(_) | A::Local(_) | A::Broadcast(_))
            };
            message.attributes = address.attributes.into_iter().filter(kept).collect();
            match self.tell(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.tell(RouteNetlinkMessage::SetLink(message), 0)
    }
}

fn named(answer: RouteNetlinkMessage) -> Option<(u32, String)> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    let name = message.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    });
    Some((message.header.index, name?))
}
