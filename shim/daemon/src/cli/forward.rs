//! `slipway port-forward`: local listeners whose connections end at ports of a pod.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use cri_proto::v1 as cri;
use slipway_streaming::client::Forwarder;
use tokio::net::TcpListener;

use super::client::{Client, pick_pod, said};
use super::identity;
use super::interrupt::Interrupt;
use super::output::{eprintln_quietly, print};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A pod (name, namespace/name or id)
    pod: String,
    /// LOCAL:REMOTE, or one number for both; without LOCAL any free port
    #[arg(value_name = "[LOCAL:]REMOTE", required = true)]
    ports: Vec<Ports>,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    #[command(flatten)]
    tls: identity::Args,
}

/// One forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    /// 0: any.
    local: u16,
    remote: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (local, remote) = text.split_once(':').unwrap_or((text, text));
        let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no port"));
        let local = if local.is_empty() { 0 } else { number(local)? };
        match number(remote)? {
            0 => Err("the pod's port must be given".into()),
            remote => Ok(Self { local, remote }),
        }
    }
}

/// Until Ctrl-C, or until the daemon ends the session.
pub(crate) async fn run(client: &mut Client, args: &Args) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let sandboxes = client.sandboxes().await?;
    let Some(pod) = pick_pod(&sandboxes, &args.pod)? else {
        bail!("there is no pod {:?}; `slipway pods` lists them", args.pod)
    };
    let request = cri::PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: args.ports.iter().map(|ports| ports.remote.into()).collect(),
    };
    let url = client.runtime.port_forward(request).await.map_err(said("forward ports"))?.into_inner().url;
    let forwarder = Arc::new(Forwarder::open(&url, args.tls.identity().as_ref()).await?);
    for ports in &args.ports {
        let at = (args.bind, ports.local);
        let listener = TcpListener::bind(at).await.with_context(|| format!("listen on {}:{}", at.0, at.1))?;
        let bound = listener.local_addr().context("address of the listener")?;
        print(&format!("Forwarding from {bound} -> {}\n", ports.remote))?;
        tokio::spawn(listen(listener, ports.remote, Arc::clone(&forwarder)));
    }
    tokio::select! {
        () = interrupt.came(1) => Ok(()),
        () = forwarder.gone() => bail!("the connection to the daemon is gone"),
    }
}

async fn listen(listener: TcpListener, port: u16, forwarder: Arc<Forwarder>) {
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => {
                let forwarder = Arc::clone(&forwarder);
                tokio::spawn(async move {
                    if let Err(error) = forwarder.carry(port, tcp).await {
                        eprintln_quietly(&error.to_string());
                    }
                });
            }
            Err(error) => {
                eprintln_quietly(&format!("accept a connection: {error}"));
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        assert_eq!("8080:80".parse(), Ok(Ports { local: 8080, remote: 80 }));
        assert_eq!("80".parse(), Ok(Ports { local: 80, remote: 80 }));
        assert_eq!(":80".parse(), Ok(Ports { local: 0, remote: 80 }));
        for bad in ["", "80:", "80:0", "0", "70000", "a:80", "1:2:3"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad}");
        }
    }
}
