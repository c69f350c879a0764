//! A host of one's own for every test: a thread with its own network and mount namespace, pods as pinned namespaces,
//! real sockets inside them, and a check that nothing is left.

#![allow(dead_code, reason = "each test file uses its part of the helpers")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use slipway_network::{Builtin, Network, Options, PodNetwork};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The world of one test.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    own_netns: File,
}

/// Runs `test` on a thread that is a host of its own, with a single-threaded executor: whatever is spawned from there
/// (plugins, worker threads) inherits the namespaces.
pub(crate) fn on_own_host<F: Future<Output = ()>>(test: impl FnOnce(Host) -> F + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            sh("ip link set lo up");
            // A new namespace begins with the machine's own setting; these tests say what comes of "off".
            sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
            let own_netns = File::open("/proc/thread-self/ns/net").unwrap();
            let host = Host { dir: tempfile::tempdir().unwrap(), own_netns };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test(host));
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs a shell line in the namespaces of the calling thread; its output.
pub(crate) fn sh(line: &str) -> String {
    let out = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

pub(crate) fn options(dir: &Path) -> Options {
    Options {
        conf_dir: dir.join("net.d"),
        bin_dirs: vec![dir.join("bin"), "/usr/lib/cni".into(), "/opt/cni/bin".into()],
        state_dir: dir.join("state"),
        builtin: Some(Builtin { bridge: "slipway0".into(), pool: "10.88.0.0/16".into() }),
    }
}

/// The request for a pod whose namespace is pinned in `dir`.
pub(crate) fn request(dir: &Path, id: &str) -> PodNetwork {
    PodNetwork {
        id: id.into(),
        name: format!("pod-{id}"),
        namespace: "ns".into(),
        uid: format!("uid-{id}"),
        netns: dir.join(format!("netns-{id}")),
        ports: Vec::new(),
        annotations: Default::default(),
        cgroup_parent: String::new(),
        dns_servers: Vec::new(),
        dns_searches: Vec::new(),
        dns_options: Vec::new(),
    }
}

impl Host {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn options(&self) -> Options {
        options(self.dir.path())
    }

    pub(crate) fn network(&self) -> Network {
        Network::open(self.options()).unwrap()
    }

    /// A pod with a pinned namespace whose loopback is up.
    pub(crate) fn pod(&self, id: &str) -> Pod {
        let path = self.path(&format!("netns-{id}"));
        File::create(&path).unwrap();
        let target = path.clone();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            sh("ip link set lo up");
            let source = Path::new("/proc/thread-self/ns/net");
            mount(Some(source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        })
        .join()
        .unwrap();
        Pod { net: request(self.dir.path(), id) }
    }

    /// A machine outside: 192.0.2.2, connected to the host's 192.0.2.1; it knows no route to any pod.
    pub(crate) fn outside(&self) -> Pod {
        let outside = self.pod("outside");
        sh("ip link add up0 type veth peer name o0");
        // ip(8) names a namespace by a process in it.
        let mut holder = self.enter(&outside.net.netns, || Command::new("sleep").arg("60").spawn().unwrap());
        sh(&format!("ip link set o0 netns {}", holder.id()));
        holder.kill().unwrap();
        holder.wait().unwrap();
        sh("ip addr add 192.0.2.1/24 dev up0 && ip link set up0 up");
        self.enter(&outside.net.netns, || sh("ip addr add 192.0.2.2/24 dev o0 && ip link set o0 up"));
        outside
    }

    /// Runs `work` on a thread inside a namespace.
    pub(crate) fn enter<T: Send>(&self, netns: &Path, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(netns).unwrap();
        on_thread_in(&file, work)
    }

    /// Runs `work` on a thread inside the host's namespace.
    pub(crate) fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_thread_in(&self.own_netns, work)
    }

    /// Waits until no `nft` that a killed daemon had started is still at work in the host's namespace.
    pub(crate) fn wait_for_orphaned_nft(&self) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        let here = |process: &Path| {
            let comm = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
            let netns = std::fs::metadata(process.join("ns/net")).map(|m| m.ino());
            comm.trim() == "nft" && netns.ok() == Some(self.own_netns.metadata().unwrap().ino())
        };
        while std::fs::read_dir("/proc").unwrap().flatten().any(|entry| here(&entry.path())) {
            assert!(std::time::Instant::now() < deadline, "an nft runs for half a minute");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Names of the links of the host, without loopback and the way outside.
    pub(crate) fn links(&self) -> Vec<String> {
        let text = sh("ip -o link show");
        let names = text.lines().filter_map(|l| l.split(": ").nth(1));
        let names = names.map(|n| n.split('@').next().unwrap_or(n).to_owned());
        names.filter(|n| n != "lo" && n != "up0").collect()
    }

    /// Waits until the host has these links and no others: a namespace that lost its last user gives its links back
    /// from the kernel's own worker, some time later.
    pub(crate) fn wait_for_links(&self, expected: &[&str]) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while self.links() != expected {
            assert!(std::time::Instant::now() < deadline, "{:?} instead of {expected:?}", self.links());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Every file under the state directory, but for the address cursor and the bridge's memory.
    pub(crate) fn state_files(&self) -> Vec<String> {
        let text = sh(&format!("find {} -type f", self.path("state").display()));
        let lines = text.lines().filter(|l| !l.ends_with("/last") && !l.ends_with("/bridge.json"));
        lines.map(str::to_owned).collect()
    }

    /// After `close`: no link, no table, no record, no lease.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.links(), Vec::<String>::new());
        assert!(!sh("nft list tables").contains("slipway-"), "{}", sh("nft list ruleset"));
        assert_eq!(self.state_files(), Vec::<String>::new());
    }
}

fn on_thread_in<T: Send>(netns: &File, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A pinned network namespace and the request for it.
pub(crate) struct Pod {
    pub(crate) net: PodNetwork,
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = umount2(&self.net.netns, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(&self.net.netns);
    }
}

/// A TCP server in the namespace that tells each client the address it sees, with a name in front.
pub(crate) fn serve_tcp(host: &Host, netns: Option<&Path>, port: u16, name: &'static str) {
    let bind = || TcpListener::bind(("0.0.0.0", port)).unwrap();
    let listener = match netns {
        Some(path) => host.enter(path, bind),
        None => host.on_host(bind),
    };
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { break };
            let Ok(peer) = client.peer_addr() else { continue };
            let _ = write!(client, "{name} {}", peer.ip());
        }
    });
}

pub(crate) fn serve_udp(host: &Host, netns: &Path, port: u16, name: &'static str) {
    let socket = host.enter(netns, || UdpSocket::bind(("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

/// What the server says to a client in this thread's namespace; the error as text.
pub(crate) fn ask_tcp(to: (IpAddr, u16)) -> Result<String, String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(to), Duration::from_secs(2))
        .map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|e| e.to_string())?;
    Ok(text)
}

pub(crate) fn ask_udp(to: (IpAddr, u16)) -> Result<String, String> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket.connect(SocketAddr::from(to)).map_err(|e| e.to_string())?;
    socket.send(b"?").map_err(|e| e.to_string())?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// TCP segments that were sent again in this thread's namespace (`RetransSegs` of proc_net_snmp).
pub(crate) fn retransmitted() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "RetransSegs");
    found.unwrap().1.parse().unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
