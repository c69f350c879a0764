//! Host ports of the built-in network: who has which, and what stands in the rules for them.
//!
//! A claim is checked against all others before any rule is written, so a refusal can name the owner.

use super::rules::Redirect;
use crate::error::{Error, Kind, Result};
use crate::types::PortMapping;
use std::net::{IpAddr, Ipv4Addr};

#[derive(Debug)]
struct Claim {
    owner: String,
    label: String,
    redirect: Redirect,
}

#[derive(Debug, Default)]
pub(crate) struct Claims(Vec<Claim>);

impl Claims {
    /// Takes all ports or none. A port that the same pod lists twice with equal meaning counts once.
    pub(crate) fn claim(&mut self, owner: &str, label: &str, wanted: Vec<Redirect>) -> Result<Vec<Redirect>> {
        let mut accepted: Vec<Redirect> = Vec::new();
        for redirect in wanted {
            if accepted.contains(&redirect) {
                continue;
            }
            let of_others = self.0.iter().map(|c| (&c.redirect, c.label.as_str()));
            let of_ours = accepted.iter().map(|r| (r, label));
            if let Some((_, holder)) = of_others.chain(of_ours).find(|(taken, _)| collide(taken, &redirect)) {
                let port = describe(&redirect);
                return Err(Error::new("claim host port", port, format!("already taken by pod {holder}"))
                    .kind(Kind::Taken)
                    .hint("use another hostPort or hostIP, or remove that pod"));
            }
            accepted.push(redirect);
        }
        let claims = accepted.iter().map(|r| Claim {
            owner: owner.to_owned(),
            label: label.to_owned(),
            redirect: r.clone(),
        });
        self.0.extend(claims);
        Ok(accepted)
    }

    /// Takes back all of one pod; what they were.
    pub(crate) fn release(&mut self, owner: &str) -> Vec<Redirect> {
        let (gone, kept) =
            std::mem::take(&mut self.0).into_iter().partition::<Vec<_>, _>(|c| c.owner == owner);
        self.0 = kept;
        gone.into_iter().map(|c| c.redirect).collect()
    }

    pub(crate) fn redirects(&self) -> Vec<Redirect> {
        self.0.iter().map(|c| c.redirect.clone()).collect()
    }
}

/// Same protocol and port, and one of them on every address or both on the same.
fn collide(a: &Redirect, b: &Redirect) -> bool {
    a.protocol == b.protocol
        && a.host_port == b.host_port
        && (a.host_ip.is_none() || b.host_ip.is_none() || a.host_ip == b.host_ip)
}

fn describe(r: &Redirect) -> String {
    let ip = r.host_ip.map(|ip| ip.to_string()).unwrap_or_else(|| "*".into());
    format!("{}/{ip}:{}", r.protocol.name(), r.host_port)
}

/// What a pod's ports mean here: IPv4 only, an unspecified hostIP is every address.
pub(crate) fn redirects(ports: &[PortMapping], pod_ip: Ipv4Addr) -> Result<Vec<Redirect>> {
    let one = |port: &PortMapping| {
        let host_ip = match port.host_ip {
            None => None,
            Some(ip) if ip.is_unspecified() => None,
            Some(IpAddr::V4(ip)) => Some(ip),
            Some(IpAddr::V6(ip)) => match ip.to_ipv4_mapped() {
                Some(ip) => Some(ip),
                None => {
                    let object = format!("hostPort {} on {ip}", port.host_port);
                    return Err(Error::new("claim host port", object, "the built-in network is IPv4 only")
                        .kind(Kind::Invalid)
                        .hint("use an IPv4 hostIP, or a CNI configuration with IPv6"));
                }
            },
        };
        Ok(Redirect {
            protocol: port.protocol,
            host_port: port.host_port,
            host_ip,
            pod_ip,
            container_port: port.container_port,
        })
    };
    ports.iter().filter(|p| p.host_port != 0).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Protocol;

    fn port(host_port: u16, host_ip: Option<&str>) -> PortMapping {
        PortMapping {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_port,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        }
    }

    #[test]
    fn a_taken_port_names_its_owner_and_nothing_is_kept() {
        let mut claims = Claims::default();
        let want = |ports: &[PortMapping]| redirects(ports, [10, 0, 0, 2].into()).unwrap();
        claims.claim("1", "ns/first", want(&[port(80, Some("127.0.0.1")), port(81, None)])).unwrap();
        claims.claim("2", "ns/other-ip", want(&[port(80, Some("10.1.1.1"))])).unwrap();
        for (bad, holder) in [
            (port(80, None), "ns/first"),
            (port(80, Some("10.1.1.1")), "ns/other-ip"),
            (port(81, Some("::")), "ns/first"),
        ] {
            let error = claims.claim("3", "ns/third", want(&[port(90, None), bad])).unwrap_err();
            let e = error.to_string();
            assert!(error.kind == Kind::Taken && e.contains(holder) && e.contains("tcp/"), "{e}");
        }
        claims.claim("4", "ns/fourth", want(&[port(90, None), port(90, None)])).unwrap();
        assert_eq!(claims.release("4").len(), 1);
        assert_eq!(claims.release("4").len(), 0);
        assert_eq!(claims.redirects().len(), 3);
        assert!(redirects(&[port(1, Some("fe80::1"))], [10, 0, 0, 2].into()).is_err());
    }
}
