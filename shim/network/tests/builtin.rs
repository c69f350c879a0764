//! The built-in network against the kernel: real namespaces, real links, real traffic.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Host, ask_tcp, ask_udp, ip, on_own_host, serve_tcp, serve_udp, sh};
use slipway_network::{Builtin, Network, PortMapping, Protocol};
use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

fn port(protocol: Protocol, host_port: u16, container_port: u16, host_ip: Option<&str>) -> PortMapping {
    PortMapping { protocol, container_port, host_port, host_ip: host_ip.map(ip) }
}

#[test]
fn pods_reach_each_other_the_host_and_the_outside() {
    on_own_host(async |host: Host| {
        let network = host.network();
        let ready = network.readiness().await;
        assert!(ready.ready, "{ready:?}");
        let outside = host.outside();
        let (a, b) = (host.pod("a"), host.pod("b"));
        let in_a = network.setup(&a.net).await.unwrap();
        let in_b = network.setup(&b.net).await.unwrap();
        assert_eq!((in_a.ips[0], in_b.ips[0]), (ip("10.88.0.2"), ip("10.88.0.3")));
        assert_eq!(in_a.result["ips"][0]["address"], "10.88.0.2/16");
        serve_tcp(&host, Some(&b.net.netns), 80, "b");
        serve_tcp(&host, Some(&outside.net.netns), 80, "outside");
        serve_tcp(&host, None, 8000, "host");
        let from_a = |to: (IpAddr, u16)| host.enter(&a.net.netns, || ask_tcp(to));
        // The very first packet already passes: nothing is sent twice for a bridge port or a neighbour that is not ready.
        assert_eq!(from_a((in_b.ips[0], 80)).unwrap(), "b 10.88.0.2");
        assert_eq!(host.enter(&a.net.netns, common::retransmitted), 0);
        // Host and pod see each other's own addresses: no NAT between them.
        assert_eq!(from_a((ip("10.88.0.1"), 8000)).unwrap(), "host 10.88.0.2");
        assert_eq!(from_a((ip("192.0.2.1"), 8000)).unwrap(), "host 10.88.0.2");
        assert_eq!(host.on_host(|| ask_tcp((in_b.ips[0], 80))).unwrap(), "b 10.88.0.1");
        // The outside sees the host.
        assert_eq!(from_a((ip("192.0.2.2"), 80)).unwrap(), "outside 192.0.2.1");
        network.check(&a.net).await.unwrap();
        network.teardown(&a.net, Some(&a.net.netns)).await.unwrap();
        network.teardown(&b.net, Some(&b.net.netns)).await.unwrap();
        network.teardown(&b.net, None).await.unwrap();
        network.close().await.unwrap();
        host.assert_clean();
    });
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    // CRI-NET-10, CRI-NET-11; with and without bridged frames passing netfilter, where the kernel has that.
    host_ports("0");
    host_ports("1");
}

fn host_ports(bridged_frames_pass_netfilter: &'static str) {
    on_own_host(async |host: Host| {
        let switch = std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
        if switch.exists() {
            std::fs::write(switch, bridged_frames_pass_netfilter).unwrap();
        }
        let network = host.network();
        let outside = host.outside();
        let (mut a, b) = (host.pod("a"), host.pod("b"));
        a.net.ports = vec![
            port(Protocol::Tcp, 8080, 80, None),
            port(Protocol::Udp, 5353, 53, None),
            port(Protocol::Tcp, 9090, 80, Some("127.0.0.1")),
            port(Protocol::Tcp, 9191, 80, Some("192.0.2.1")),
            port(Protocol::Tcp, 9292, 80, Some("0.0.0.0")),
        ];
        network.setup(&a.net).await.unwrap();
        network.setup(&b.net).await.unwrap();
        serve_tcp(&host, Some(&a.net.netns), 80, "a");
        serve_udp(&host, &a.net.netns, 53, "a");
        let from = |netns: &std::path::Path, to: (&str, u16)| host.enter(netns, || ask_tcp((ip(to.0), to.1)));
        let out = outside.net.netns.as_path();
        assert_eq!(from(out, ("192.0.2.1", 8080)).unwrap(), "a 192.0.2.2", "the client's address is kept");
        assert_eq!(from(out, ("192.0.2.1", 9191)).unwrap(), "a 192.0.2.2");
        assert_eq!(from(out, ("192.0.2.1", 9292)).unwrap(), "a 192.0.2.2");
        assert!(from(out, ("192.0.2.1", 9090)).is_err(), "hostIP 127.0.0.1 is not for the outside");
        assert_eq!(host.enter(out, || ask_udp((ip("192.0.2.1"), 5353))).unwrap(), "a 192.0.2.2");
        let on_host = |to: (&str, u16)| host.on_host(|| ask_tcp((ip(to.0), to.1)));
        assert_eq!(on_host(("127.0.0.1", 8080)).unwrap(), "a 10.88.0.1");
        assert_eq!(on_host(("127.0.0.1", 9090)).unwrap(), "a 10.88.0.1");
        assert_eq!(on_host(("192.0.2.1", 8080)).unwrap(), "a 192.0.2.1");
        assert!(on_host(("127.0.0.1", 9191)).is_err(), "hostIP 192.0.2.1 is not for loopback");
        assert_eq!(host.on_host(|| ask_udp((ip("127.0.0.1"), 5353))).unwrap(), "a 10.88.0.1");
        // From another pod, and from the pod itself, by the host's address.
        assert_eq!(from(&b.net.netns, ("192.0.2.1", 8080)).unwrap(), "a 10.88.0.1");
        assert_eq!(from(&a.net.netns, ("192.0.2.1", 8080)).unwrap(), "a 10.88.0.1");
        // And neither is told by ICMP that a pod would be the better gateway to the host.
        for pod in [&a, &b] {
            let counters = host.enter(&pod.net.netns, || sh("cat /proc/thread-self/net/snmp"));
            let icmp: Vec<Vec<&str>> = counters
                .lines()
                .filter(|l| l.starts_with("Icmp: "))
                .map(|l| l.split(' ').collect())
                .collect();
            let at = icmp[0].iter().position(|name| *name == "InRedirects").unwrap();
            assert_eq!(icmp[1][at], "0", "redirects received");
        }
        // A port that is taken names its owner, and the refused pod leaves nothing.
        let mut c = host.pod("c");
        c.net.ports = vec![port(Protocol::Tcp, 8080, 80, Some("127.0.0.1"))];
        let refused = network.setup(&c.net).await.unwrap_err().to_string();
        assert!(refused.contains("8080") && refused.contains("ns/pod-a"), "{refused}");
        assert_eq!(host.links().len(), 3, "{:?}", host.links());
        // After a restart everything still stands, and the claim too.
        drop(network);
        let network = host.network();
        network.collect(&["a".into(), "b".into()]).await.unwrap();
        assert!(network.setup(&c.net).await.is_err());
        assert_eq!(from(out, ("192.0.2.1", 8080)).unwrap(), "a 192.0.2.2");
        network.teardown(&a.net, Some(&a.net.netns)).await.unwrap();
        assert!(from(out, ("192.0.2.1", 8080)).is_err());
        let again = network.setup(&c.net).await.unwrap();
        assert_ne!(again.ips[0], ip("10.88.0.2"), "the address just freed is not used again at once");
        network.teardown(&c.net, None).await.unwrap();
        network.teardown(&b.net, None).await.unwrap();
        network.close().await.unwrap();
        host.assert_clean();
    });
}

#[test]
fn the_first_packet_of_every_pod_passes() {
    on_own_host(async |host: Host| {
        let network = host.network();
        serve_tcp(&host, None, 8000, "host");
        let mut worst = Duration::ZERO;
        for n in 0..20 {
            let pod = host.pod(&format!("p{n}"));
            network.setup(&pod.net).await.unwrap();
            let start = Instant::now();
            // A lost first frame would be repeated after a second.
            host.enter(&pod.net.netns, || ask_tcp((ip("10.88.0.1"), 8000))).unwrap();
            worst = worst.max(start.elapsed());
            network.teardown(&pod.net, None).await.unwrap();
        }
        println!("first connection of a new pod: at worst {worst:?}");
        assert!(worst < Duration::from_millis(900), "{worst:?}");
        network.close().await.unwrap();
        host.assert_clean();
    });
}

#[test]
fn a_udp_client_that_never_pauses_follows_the_port() {
    on_own_host(async |host: Host| {
        let network = host.network();
        let outside = host.outside();
        let client = host.enter(&outside.net.netns, || UdpSocket::bind("0.0.0.0:4000").unwrap());
        client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        client.connect("192.0.2.1:5353").unwrap();
        let ask = || {
            let _ = client.send(b"?"); // an ICMP error of the time before may still be reported here
            let mut buffer = [0; 64];
            let length = client.recv(&mut buffer).map_err(|e| e.to_string())?;
            Ok::<_, String>(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        assert!(ask().is_err(), "nobody serves the port yet");
        for name in ["first", "second"] {
            let mut pod = host.pod(name);
            pod.net.ports = vec![port(Protocol::Udp, 5353, 53, None)];
            network.setup(&pod.net).await.unwrap();
            serve_udp(&host, &pod.net.netns, 53, name);
            // Each question keeps an old path alive that nobody cleared: asking again would never help then.
            let deadline = Instant::now() + Duration::from_secs(20);
            while ask() != Ok(format!("{name} 192.0.2.2")) {
                assert!(
                    Instant::now() < deadline,
                    "no answer of {name}: {}",
                    sh("cat /proc/net/nf_conntrack || true")
                );
            }
            network.teardown(&pod.net, None).await.unwrap();
        }
        network.close().await.unwrap();
        host.assert_clean();
    });
}

#[test]
fn the_hosts_loopback_stays_closed_to_pods() {
    on_own_host(async |host: Host| {
        let network = host.network();
        let mut a = host.pod("a");
        a.net.ports = vec![port(Protocol::Tcp, 8080, 80, None)];
        network.setup(&a.net).await.unwrap();
        assert_eq!(sh("cat /proc/sys/net/ipv4/conf/slipway0/route_localnet").trim(), "1");
        let secret = host.on_host(|| UdpSocket::bind("127.0.0.1:7777").unwrap());
        secret.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        host.enter(&a.net.netns, || {
            sh("ip route del local 127.0.0.0/8 dev lo table local && \
                ip route del local 127.0.0.1 dev lo table local && \
                ip route add 127.0.0.1 via 10.88.0.1")
        });
        let reached = || {
            let from_pod = host.enter(&a.net.netns, || UdpSocket::bind("10.88.0.2:0").unwrap());
            from_pod.send_to(b"!", "127.0.0.1:7777").unwrap();
            secret.recv(&mut [0; 8]).is_ok()
        };
        assert!(!reached());
        // The same packet arrives without our guard: the attack is a real one.
        sh("nft flush chain ip slipway-slipway0 guard");
        assert!(reached());
        network.teardown(&a.net, None).await.unwrap();
        network.close().await.unwrap();
        host.assert_clean();
    });
}

#[test]
fn fifty_pods_at_once_get_fifty_addresses() {
    on_own_host(async |host: Host| {
        let network = std::sync::Arc::new(host.network());
        let mut pods: Vec<_> = (0..50).map(|n| host.pod(&format!("p{n}"))).collect();
        for (n, pod) in pods.iter_mut().enumerate().filter(|(n, _)| n % 5 == 0) {
            pod.net.ports = vec![port(Protocol::Tcp, 20_000 + u16::try_from(n).unwrap(), 80, None)];
        }
        let mut running = tokio::task::JoinSet::new();
        for pod in &pods {
            let (network, pod) = (network.clone(), pod.net.clone());
            running.spawn(async move { network.setup(&pod).await.unwrap().ips[0] });
        }
        let ips: BTreeSet<IpAddr> = running.join_all().await.into_iter().collect();
        assert_eq!(ips.len(), 50);
        let first = ips.iter().next().copied().unwrap();
        for pod in pods.iter().step_by(7) {
            let seen = host.enter(&pod.net.netns, || sh("ip -4 -o addr show eth0"));
            assert!(seen.contains("/16"), "{seen}");
        }
        assert!(ips.contains(&ip("10.88.0.2")) && first == ip("10.88.0.2"));
        for pod in &pods {
            let (network, pod) = (network.clone(), pod.net.clone());
            running_teardown(&network, &pod).await;
        }
        network.close().await.unwrap();
        host.assert_clean();
    });
}

async fn running_teardown(network: &Network, pod: &slipway_network::PodNetwork) {
    network.teardown(pod, Some(&pod.netns)).await.unwrap();
}

#[test]
fn medians_of_setup_and_teardown() {
    on_own_host(async |host: Host| {
        let network = host.network();
        let warm = host.pod("warm");
        network.setup(&warm.net).await.unwrap();
        let mut figures = Vec::new();
        for (label, with_port) in [("plain", false), ("one hostPort", true)] {
            let (mut up, mut down) = (Vec::new(), Vec::new());
            // Namespaces are made before and removed after: the kernel holds its one network lock for both.
            let mut pods: Vec<_> = (0..15).map(|n| host.pod(&format!("m{n}"))).collect();
            tokio::time::sleep(Duration::from_millis(200)).await;
            for pod in &mut pods {
                if with_port {
                    pod.net.ports = vec![port(Protocol::Tcp, 8080, 80, None)];
                }
                let start = Instant::now();
                network.setup(&pod.net).await.unwrap();
                up.push(start.elapsed());
                let start = Instant::now();
                network.teardown(&pod.net, Some(&pod.net.netns)).await.unwrap();
                down.push(start.elapsed());
                // The links are deleted behind our back; the next measurement should not wait for that.
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
            up.sort();
            down.sort();
            println!(
                "built-in network, {label}: setup median {:?} (best {:?}), teardown median {:?} (best {:?})",
                up[7], up[0], down[7], down[0]
            );
            figures.push((up[0], down[0]));
        }
        // The best of fifteen, far above the target: a busy machine does not fail this, a slept second does.
        assert!(figures.iter().all(|(up, down)| *up.max(down) < Duration::from_millis(900)), "{figures:?}");
        network.teardown(&warm.net, None).await.unwrap();
        network.close().await.unwrap();
        host.assert_clean();
    });
}

#[test]
fn conflicts_are_named_before_anything_is_made() {
    on_own_host(async |host: Host| {
        sh("ip link add other type bridge && ip addr add 10.88.7.1/24 dev other && ip link set other up");
        let network = host.network();
        let ready = network.readiness().await;
        assert!(!ready.ready && ready.message.contains("10.88.7.0/24"), "{ready:?}");
        let pod = host.pod("a");
        let refused = network.setup(&pod.net).await.unwrap_err().to_string();
        assert!(refused.contains("10.88.7.0/24 on other") && refused.contains("hint: "), "{refused}");
        sh("ip link del other && ip link add slipway0 type bridge");
        let refused = network.setup(&pod.net).await.unwrap_err().to_string();
        assert!(refused.contains("not ours"), "{refused}");
        network.close().await.unwrap();
        assert_eq!(host.links(), ["slipway0"], "a foreign bridge is left alone");
        sh("ip link del slipway0");
        let mut limited = host.pod("b");
        limited.net.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "1M".into());
        let refused = network.setup(&limited.net).await.unwrap_err().to_string();
        assert!(refused.contains("bandwidth"), "{refused}");
        // A namespace that has an eth0 already: everything is undone.
        let taken = host.pod("c");
        host.enter(&taken.net.netns, || sh("ip link add eth0 type bridge"));
        let refused = network.setup(&taken.net).await.unwrap_err().to_string();
        assert!(refused.contains("eth0"), "{refused}");
        network.close().await.unwrap();
        host.assert_clean();
    });
}

#[test]
fn what_a_crash_leaves_is_collected() {
    on_own_host(async |host: Host| {
        let network = host.network();
        let (mut a, b) = (host.pod("a"), host.pod("b"));
        a.net.ports = vec![port(Protocol::Tcp, 8080, 80, None)];
        network.setup(&a.net).await.unwrap();
        network.setup(&b.net).await.unwrap();
        drop(network);
        // Between the lease and the intent: a lease of nobody. Pod a's namespace vanished with its pod.
        std::fs::write(host.path("state/builtin/slipway0/leases/10.88.0.9"), "ghost").unwrap();
        std::fs::write(host.path("state/pods/.half.3"), "{").unwrap();
        drop(a);
        sh("nft flush ruleset");
        let network = host.network();
        network.collect(&["b".into()]).await.unwrap();
        assert_eq!(host.links().len(), 2, "bridge and b's link: {:?}", host.links());
        assert_eq!(host.state_files().len(), 2, "record and lease of b: {:?}", host.state_files());
        let rules = sh("nft list ruleset");
        assert!(rules.contains("masquerade") && !rules.contains("8080"), "{rules}");
        // A damaged record is set aside; its address is found by the lease.
        std::fs::write(host.path("state/pods/b.json"), "{\"version\":1").unwrap();
        network.teardown(&b.net, Some(&b.net.netns)).await.unwrap();
        network.close().await.unwrap();
        assert_eq!(host.state_files(), [host.path("state/damaged/b.json").display().to_string()]);
        std::fs::remove_file(host.path("state/damaged/b.json")).unwrap();
        host.assert_clean();
    });
}

#[test]
fn a_setup_nobody_waits_for_is_taken_back() {
    on_own_host(async |host: Host| {
        let network = host.network();
        let pod = host.pod("a");
        for patience in [0, 1, 2, 5, 10, 20] {
            let _ = tokio::time::timeout(Duration::from_millis(patience), async {
                network.setup(&pod.net).await.unwrap();
                // Arrived in time: then it is ours to take back.
                network.teardown(&pod.net, None).await.unwrap();
            })
            .await;
            // Waits for the pod's turn, so the abandoned work is over after it.
            network.teardown(&pod.net, None).await.unwrap();
        }
        network.close().await.unwrap();
        host.assert_clean();
    });
}

#[test]
fn rules_flushed_by_a_firewall_come_back_with_the_next_port() {
    on_own_host(async |host: Host| {
        let network = host.network();
        let (mut a, mut b) = (host.pod("a"), host.pod("b"));
        a.net.ports = vec![port(Protocol::Tcp, 8080, 80, None)];
        b.net.ports = vec![port(Protocol::Tcp, 8081, 80, None)];
        network.setup(&a.net).await.unwrap();
        sh("nft flush ruleset");
        assert!(network.check(&a.net).await.unwrap_err().to_string().contains("nftables"));
        network.setup(&b.net).await.unwrap();
        let rules = sh("nft list ruleset");
        assert!(rules.contains("8080") && rules.contains("8081") && rules.contains("masquerade"), "{rules}");
        sh("nft flush ruleset");
        network.teardown(&a.net, None).await.unwrap();
        let rules = sh("nft list ruleset");
        assert!(!rules.contains("8080") && rules.contains("8081"), "{rules}");
        network.teardown(&b.net, None).await.unwrap();
        network.close().await.unwrap();
        host.assert_clean();
    });
}

#[test]
fn a_new_pool_waits_for_the_pods_of_the_old_one() {
    on_own_host(async |host: Host| {
        let network = host.network();
        let (a, b) = (host.pod("a"), host.pod("b"));
        network.setup(&a.net).await.unwrap();
        drop(network);
        let with = |bridge: &str, pool: &str| {
            let builtin = Some(Builtin { bridge: bridge.into(), pool: pool.into() });
            Network::open(slipway_network::Options { builtin, ..host.options() }).unwrap()
        };
        let network = with("slipway0", "10.99.0.0/16");
        let refused = network.setup(&b.net).await.unwrap_err().to_string();
        assert!(refused.contains("10.88.0.0/16") && !network.readiness().await.ready, "{refused}");
        drop(network);
        // Under another name both live side by side, and the former one goes with its last pod.
        let network = with("slipway1", "10.99.0.0/16");
        network.collect(&["a".into()]).await.unwrap();
        assert_eq!(network.setup(&b.net).await.unwrap().ips[0], ip("10.99.0.2"));
        network.teardown(&a.net, Some(&a.net.netns)).await.unwrap();
        assert!(!host.links().contains(&"slipway0".to_owned()), "{:?}", host.links());
        network.teardown(&b.net, Some(&b.net.netns)).await.unwrap();
        network.close().await.unwrap();
        drop(network);
        let network = with("slipway1", "10.77.0.0/16");
        assert_eq!(network.setup(&a.net).await.unwrap().ips[0], ip("10.77.0.2"));
        network.teardown(&a.net, None).await.unwrap();
        network.close().await.unwrap();
        host.assert_clean();
    });
}

#[test]
fn a_forward_policy_of_drop_is_named() {
    on_own_host(async |host: Host| {
        sh(
            "nft 'add table ip fw; add chain ip fw wall { type filter hook forward priority 0; policy drop; }'",
        );
        let network = host.network();
        let pod = host.pod("a");
        network.setup(&pod.net).await.unwrap();
        let ready = network.readiness().await;
        assert!(ready.ready && ready.message.contains("ip fw wall"), "{ready:?}");
        network.teardown(&pod.net, None).await.unwrap();
        network.close().await.unwrap();
        assert!(sh("nft list tables").contains("table ip fw"), "other tables are left alone");
        host.assert_clean();
    });
}

#[test]
fn a_full_disk_stops_new_pods_but_never_a_teardown() {
    on_own_host(async |host: Host| {
        std::fs::create_dir_all(host.path("state")).unwrap();
        sh(&format!("mount -t tmpfs -o size=256k none {}", host.path("state").display()));
        let network = host.network();
        let (mut a, b) = (host.pod("a"), host.pod("b"));
        a.net.ports = vec![port(Protocol::Tcp, 8080, 80, None)];
        network.setup(&a.net).await.unwrap();
        sh(&format!("cat /dev/zero > {} 2>/dev/null || true", host.path("state/filler").display()));
        let e = network.setup(&b.net).await.unwrap_err().to_string();
        assert!(e.contains("No space left"), "{e}");
        assert_eq!(host.links().len(), 2, "only the bridge and pod a's link: {:?}", host.links());
        network.teardown(&a.net, None).await.unwrap();
        network.close().await.unwrap();
        std::fs::remove_file(host.path("state/filler")).unwrap();
        host.assert_clean();
        sh(&format!("umount {}", host.path("state").display()));
    });
}

#[test]
fn without_ip_forward_and_rules_no_half_a_bridge_stays() {
    on_own_host(async |host: Host| {
        let network = host.network();
        let pod = host.pod("a");
        // /proc/sys as a container would see it.
        sh("mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys");
        let e = network.setup(&pod.net).await.unwrap_err().to_string();
        assert!(e.contains("net.ipv4.ip_forward") && e.contains("hint"), "{e}");
        assert_eq!(host.links(), Vec::<String>::new());
        sh("umount /proc/sys");
        network.setup(&pod.net).await.unwrap();
        network.teardown(&pod.net, None).await.unwrap();
        network.close().await.unwrap();
        host.assert_clean();
    });
}

/// A kill can meet the daemon between the birth of the bridge and its alias, which the kernel takes only afterwards.
#[test]
fn a_bridge_without_its_alias_is_known_by_its_address() {
    on_own_host(async |host: Host| {
        let half_made = "ip link add slipway0 address 0a:58:0a:58:00:01 type bridge";
        sh(half_made);
        host.network().close().await.unwrap();
        host.assert_clean();

        sh(half_made);
        let (network, pod) = (host.network(), host.pod("a"));
        network.setup(&pod.net).await.unwrap();
        network.teardown(&pod.net, None).await.unwrap();
        network.close().await.unwrap();
        host.assert_clean();

        // In use, or of another address: somebody else's.
        for foreign in ["ip link set slipway0 up", "ip link set slipway0 address 0a:58:0a:58:00:02"] {
            sh(&format!("{half_made} && {foreign}"));
            let network = host.network();
            let refused = network.setup(&pod.net).await.unwrap_err().to_string();
            assert!(refused.contains("not ours"), "{refused}");
            network.close().await.unwrap();
            assert_eq!(host.links(), ["slipway0"]);
            sh("ip link del slipway0");
        }
    });
}

/// The daemon is killed at many different moments of setups and teardowns; the next one finds everything.
#[test]
fn killed_at_any_moment_nothing_is_lost() {
    const CHILD: &str = "SLIPWAY_TEST_STATE";
    if std::env::var_os(CHILD).is_some() {
        // We are the daemon to be killed: a child of this very test, in its namespaces.
        return churn_for_ever(std::path::Path::new(&std::env::var_os(CHILD).unwrap()));
    }
    on_own_host(async |host: Host| {
        let pods: Vec<_> = ["a", "b"].into_iter().map(|id| host.pod(id)).collect();
        let mut left_something = false;
        // More rounds than needed where the machine is so busy that the daemon had no turn before its end.
        for delay in (0..60).step_by(4).chain((60..1000).step_by(20)) {
            if delay >= 60 && left_something {
                break;
            }
            let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "killed_at_any_moment_nothing_is_lost", "--nocapture"])
                .env(CHILD, host.dir.path())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let started = host.path("started");
            while !started.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_millis(delay)).await;
            assert!(daemon.try_wait().unwrap().is_none(), "it was at work until then");
            daemon.kill().unwrap();
            daemon.wait().unwrap();
            left_something |= !host.state_files().is_empty();
            std::fs::remove_file(started).unwrap();
            host.wait_for_orphaned_nft();
            let network = host.network();
            network.collect(&[]).await.unwrap();
            for pod in &pods {
                let inside = host.enter(&pod.net.netns, || sh("ip -o link show"));
                assert!(!inside.contains("eth0"), "after {delay} ms: {inside}");
            }
            network.close().await.unwrap();
            host.assert_clean();
        }
        assert!(left_something, "none of the kills met it in the middle");
    });
}

fn churn_for_ever(dir: &std::path::Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let network = std::sync::Arc::new(Network::open(common::options(dir)).unwrap());
        std::fs::write(dir.join("started"), "").unwrap();
        let churn = |id: &'static str, host_port: u16| {
            let (network, mut pod) = (network.clone(), common::request(dir, id));
            pod.ports = vec![port(Protocol::Tcp, host_port, 80, None)];
            tokio::spawn(async move {
                loop {
                    network.setup(&pod).await.unwrap();
                    network.teardown(&pod, Some(&pod.netns)).await.unwrap();
                }
            })
        };
        let ended = tokio::join!(churn("a", 8080), churn("b", 8081));
        panic!("only a kill ends this: {ended:?}");
    });
}
