//! Counters of pods' interfaces, and what their network namespaces hold, read on request.
//!
//! One throw-away thread enters one namespace after another and reads /proc there: no process of the pod is needed, and
//! nothing is kept open that would hold a namespace after its pod.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::path::PathBuf;

/// One interface, counted by the kernel since it was made (proc_pid_net(5), dev).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// What one namespace holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodStatistics {
    /// All but `lo`, in the kernel's order.
    pub interfaces: Vec<Interface>,
}

impl PodStatistics {
    /// eth0, else the first (CRI-SS-16).
    pub fn main(&self) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.name == "eth0").or(self.interfaces.first())
    }
}

/// Reads the namespaces pinned at these paths, in their order. One that has gone fails alone. Blocks.
pub fn statistics(namespaces: &[PathBuf]) -> Vec<Result<PodStatistics>> {
    let inside = std::thread::scope(|scope| {
        let reader = std::thread::Builder::new()
            .name("net-stats".into())
            .spawn_scoped(scope, || namespaces.iter().map(read).collect::<Vec<_>>());
        reader.map(|reader| reader.join())
    });
    let failed = |why: String| {
        namespaces
            .iter()
            .map(|path| Err(Error::new("read interface counters", path.display().to_string(), &why)))
            .collect()
    };
    match inside {
        Ok(Ok(read)) => read,
        Ok(Err(_)) => failed("the thread panicked".into()),
        Err(error) => failed(error.to_string()),
    }
}

/// On a thread that nobody else uses: it stays in the namespace.
fn read(path: &PathBuf) -> Result<PodStatistics> {
    let fail = |e: std::io::Error| Error::io("read interface counters", path.display().to_string(), &e);
    let netns = File::open(path).map_err(fail)?;
    nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).map_err(|e| fail(e.into()))?;
    let table = fs::read_to_string("/proc/thread-self/net/dev").map_err(fail)?;
    Ok(PodStatistics { interfaces: parse(&table) })
}

/// Two lines of heading, then `name: rx… tx…`: bytes packets errs drop fifo frame compressed multicast, bytes packets
/// errs drop fifo colls carrier compressed.
fn parse(table: &str) -> Vec<Interface> {
    let line = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let n: Vec<u64> = counters.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
        let at = |i: usize| n.get(i).copied().unwrap_or_default();
        Some(Interface {
            name: name.trim().to_owned(),
            rx_bytes: at(0),
            rx_packets: at(1),
            rx_errors: at(2),
            rx_dropped: at(3),
            tx_bytes: at(8),
            tx_packets: at(9),
            tx_errors: at(10),
            tx_dropped: at(11),
        })
    };
    let all = table.lines().skip(2).filter_map(line);
    // Tunnels that the kernel makes in every namespace have carried nothing and are nobody's.
    all.filter(|i| i.name != "lo" && (i.name == "eth0" || !is_fallback_tunnel(i))).collect()
}

fn is_fallback_tunnel(interface: &Interface) -> bool {
    const MADE_BY_THE_KERNEL: [&str; 9] =
        ["tunl0", "sit0", "gre0", "gretap0", "erspan0", "ip6tnl0", "ip6gre0", "ip_vti0", "ip6_vti0"];
    MADE_BY_THE_KERNEL.contains(&interface.name.as_str()) && interface.rx_bytes + interface.tx_bytes == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-SS-16.
    #[test]
    fn the_table_is_read_and_lo_left_out() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo: 5 5 0 0 0 0 0 0 5 5 0 0 0 0 0 0\n  sit0: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n  \
            net1: 9 0 0 0 0 0 0 0 9 0 0 0 0 0 0 0\n  eth0:1 2 3 4 0 0 0 0 11 12 13 14 0 0 0 0\n";
        let statistics = PodStatistics { interfaces: parse(table) };
        let eth0 = statistics.main().unwrap();
        assert_eq!((eth0.rx_bytes, eth0.rx_packets, eth0.rx_errors, eth0.rx_dropped), (1, 2, 3, 4));
        assert_eq!((eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped), (11, 12, 13, 14));
        let names: Vec<_> = statistics.interfaces.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["net1", "eth0"]);
    }

    #[test]
    fn a_namespace_that_has_gone_fails_alone() {
        let read = statistics(&["/no/such/namespace".into(), "/proc/self/ns/net".into()]);
        assert!(read[0].as_ref().is_err_and(|e| e.object == "/no/such/namespace"));
        assert!(read[1].is_ok());
    }
}
