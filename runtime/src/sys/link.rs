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

/// A device that was moved.
#[derive(Debug)]
pub struct Moved {
    /// As it is called where it is now.
    pub name: String,
    /// Whether it was up where it was before.
    pub was_up: bool,
}

/// Moves the device `name` of the namespace `from` into the namespace `to`, as `new_name` (the kernel fills a `%d` in).
/// Its MTU and hardware address stay with it by themselves, its lasting addresses of global scope are given to it again,
/// and it is brought up if `up`.
///
/// # Errors
/// Of the call that failed; `ENODEV` when there is no such device, `EEXIST` when the name is taken. A device that got
/// only half of the way is moved back.
pub fn transfer(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &str,
    new_name: &str,
    up: bool,
) -> Result<Moved> {
    namespace::on_own_thread("netdev", || {
        let mut here = Links::of(from)?;
        let device = here.find(|link| link.name == name)?;
        let addresses = here.addresses(device.index)?;
        let mut there = Links::of(to)?;
        let before = there.all()?;
        let is_new = |link: &Link| !before.iter().any(|known| known.index == link.index);
        let arrived = here.send(device.index, to, new_name).and_then(|()| {
            let template = new_name.contains("%d");
            let arrived = there.find(|link| if template { is_new(link) } else { link.name == new_name })?;
            there.configure(arrived.index, &addresses, up).map(|()| arrived)
        });
        match arrived {
            Ok(arrived) => Ok(Moved { name: arrived.name, was_up: device.up }),
            Err(error) => {
                // The kernel moves first and renames then: it may be there under its old name. What fails now is not
                // what is to be told.
                if let Ok(stray) =
                    there.find(|link| is_new(link) && (link.name == name || link.name == new_name))
                {
                    let _ = there.send(stray.index, from, name);
                    let _ = here
                        .find(|link| link.name == name)
                        .and_then(|link| here.configure(link.index, &addresses, device.up));
                }
                Err(error)
            }
        }
    })?
}

struct Link {
    index: u32,
    name: String,
    up: bool,
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

    fn all(&mut self) -> Result<Vec<Link>> {
        let answers = self.0.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(named).collect())
    }

    fn find(&mut self, wanted: impl Fn(&Link) -> bool) -> Result<Link> {
        self.all()?.into_iter().find(wanted).ok_or_else(|| Error::from_raw_os_error(libc::ENODEV))
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

    fn configure(&mut self, index: u32, addresses: &[AddressMessage], up: bool) -> Result<()> {
        for address in addresses {
            let mut message = AddressMessage::default();
            message.header = address.header.clone();
            message.header.index = index;
            let kept = |attribute: &&AddressAttribute| {
                use AddressAttribute as A;
                matches!(attribute, A::Address(_) | A::Local(_) | A::Broadcast(_))
            };
            message.attributes = address.attributes.iter().filter(kept).cloned().collect();
            match self.tell(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        if !up {
            return Ok(());
        }
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.tell(RouteNetlinkMessage::SetLink(message), 0)
    }
}

fn named(answer: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    let name = message.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    });
    Some(Link { index: message.header.index, name: name?, up: message.header.flags.contains(LinkFlags::Up) })
}
