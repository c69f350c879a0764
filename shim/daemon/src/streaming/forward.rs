//! Connections to ports of a pod, made inside its network namespace.

use crate::daemon::{Pod, blocking};
use crate::error::{Error, Result};
use crate::pods::PodPhase;
use slipway_streaming::Duplex;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use tokio::net::{TcpSocket, TcpStream};

/// Carries one connection. An error is a connection that was not made.
pub(super) async fn run(pod: &Pod, port: u16, connection: Duplex) -> Result<()> {
    let record = pod.record();
    if record.phase != PodPhase::Ready {
        return Err(Error::state(format!("pod {} is not ready", record.label())));
    }
    let stopped = pod.wait_until(|record| record.phase != PodPhase::Ready);
    let carried = async {
        connection.join(connect(record.netns.clone(), port).await?).await;
        Ok(())
    };
    tokio::select! {
        carried = carried => carried,
        // Our sockets would keep the pod's namespace alive (STR-PF-18).
        _ = stopped => Ok(()),
    }
}

/// To localhost in the namespace, or on the host for a pod without one: IPv4 first, then IPv6 (STR-PF-11, STR-PF-12).
async fn connect(netns: Option<PathBuf>, port: u16) -> Result<TcpStream> {
    let make = || [TcpSocket::new_v4(), TcpSocket::new_v6()];
    // A socket stays in the namespace it was made in; connecting needs no thread there.
    let sockets = match netns {
        Some(netns) => blocking(move || slipway_runtime::sandbox::inside_netns(&netns, make)).await?,
        None => make(),
    };
    let targets: [SocketAddr; 2] = [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()];
    let mut failures = Vec::new();
    for (socket, target) in sockets.into_iter().zip(targets) {
        match dial(socket, target).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failures.push(format!("connect to {target} in the pod: {error}")),
        }
    }
    Err(Error::state(failures.join("; ")))
}

async fn dial(socket: io::Result<TcpSocket>, target: SocketAddr) -> io::Result<TcpStream> {
    socket?.connect(target).await
}
