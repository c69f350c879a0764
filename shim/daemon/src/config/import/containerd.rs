//! containerd's config.toml, versions 1 to 4.

use super::handlers::{self, Found};
use super::leaves::{self, Leaf};
use super::registries::{Server, Tls, place_tls};
use super::rules::{Fate, Rules, apply, criu, selinux, set_time};
use super::{Import, text_of, traces};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::path::Path;

/// Reads `file` and what it imports.
pub(super) fn read(file: &Path) -> Result<Import> {
    let mut leaves = Vec::new();
    gather(file, &mut leaves, 0)?;
    Ok(translate(&leaves))
}

/// Files that a file imports come after it and win (containerd-config.toml(5)).
fn gather(file: &Path, all: &mut Vec<Leaf>, depth: usize) -> Result<()> {
    if depth > 8 {
        bail!("{}: imports go round in a circle", file.display());
    }
    let own = leaves::of(file, &text_of(file)?)?;
    let imports: Vec<String> = own
        .iter()
        .filter(|leaf| leaf.path == ["imports"])
        .flat_map(|leaf| leaf.value.as_array().cloned().unwrap_or_default())
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect();
    all.extend(own);
    for pattern in imports {
        let pattern = file.parent().unwrap_or(Path::new("/")).join(pattern);
        for found in leaves::glob(&pattern)? {
            gather(&found, all, depth + 1)?;
        }
    }
    Ok(())
}

/// Plugins of CRI under all their names, and how the rules call them.
const CRI: [&str; 4] =
    ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "cri"];

fn translate(leaves: &[Leaf]) -> Import {
    let mut import = Import::default();
    // A later file's value replaces an earlier one's.
    let mut last = BTreeMap::new();
    for (place, leaf) in leaves.iter().enumerate() {
        last.insert(&leaf.path, place);
    }
    for (_, leaf) in leaves.iter().enumerate().filter(|(place, leaf)| last.get(&leaf.path) == Some(place)) {
        let mut path: Vec<&str> = leaf.path.iter().map(String::as_str).collect();
        if let ["plugins", plugin, ..] = path.as_slice() {
            let short = if CRI.contains(plugin) { "cri" } else { plugin };
            path.splice(..2, [short]);
        }
        apply(&mut import, RULES, leaf, &path);
    }
    tls(&mut import, leaves);
    streaming_tls(&mut import, leaves);
    runtimes(&mut import, leaves);
    traces::sampling(&mut import, leaves);
    import
}

const RULES: &Rules = &[
    // About the daemon.
    ("version", Fate::Needless),
    ("imports", Fate::Needless),
    ("root", Fate::With(root)),
    ("state", Fate::With(state)),
    ("temp", Fate::Needless),
    ("plugin_dir", Fate::Needless),
    ("oom_score", Fate::Cannot("set OOMScoreAdjust= in the systemd unit")),
    ("disabled_plugins", Fate::With(disabled)),
    ("required_plugins", Fate::Needless),
    ("debug/level", Fate::With(level)),
    ("debug/format", Fate::With(format)),
    ("grpc/address", Fate::With(address)),
    ("io.containerd.server.v1.grpc/address", Fate::With(address)),
    ("grpc/gid", Fate::With(gid)),
    ("io.containerd.server.v1.grpc/gid", Fate::With(gid)),
    ("grpc/uid", Fate::Cannot("the socket is root's; give it a group by socket.group")),
    ("grpc/max_recv_message_size", Fate::Needless),
    ("grpc/max_send_message_size", Fate::Needless),
    ("io.containerd.server.v1.grpc/max_recv_message_size", Fate::Needless),
    ("io.containerd.server.v1.grpc/max_send_message_size", Fate::Needless),
    ("io.containerd.server.v1.grpc-tcp/address", Fate::Cannot("CRI is served on a unix socket only")),
    ("io.containerd.server.v1.grpc-tcp/**", Fate::Needless),
    ("io.containerd.server.v1.ttrpc/**", Fate::Needless),
    ("ttrpc/**", Fate::Needless),
    ("metrics/address", Fate::Key("metrics.address")),
    ("io.containerd.server.v1.metrics/address", Fate::Key("metrics.address")),
    ("metrics/grpc_histogram", Fate::Needless),
    ("io.containerd.metrics.v1.grpc-prometheus/**", Fate::Needless),
    ("io.containerd.tracing.processor.v1.otlp/endpoint", Fate::With(traces::collector)),
    ("io.containerd.tracing.processor.v1.otlp/protocol", Fate::With(traces::protocol)),
    // Images.
    ("cri/registry/config_path", Fate::With(config_path)),
    ("cri/registry/mirrors/*/endpoint", Fate::With(mirror)),
    ("cri/registry/configs/*/auth/*", Fate::With(auth)),
    // Gathered by `tls`.
    ("cri/registry/configs/*/tls/*", Fate::Needless),
    ("cri/registry/auths/**", Fate::Cannot("give registry.configs.HOST.auth, or images.auth_file")),
    ("cri/registry/headers/**", Fate::Cannot("write them into hosts.toml, [host.URL.header]")),
    ("cri/max_concurrent_downloads", Fate::Key("images.parallel_layers")),
    ("cri/image_pull_progress_timeout", Fate::Needless),
    ("cri/containerd/snapshotter", Fate::With(snapshotter)),
    ("cri/snapshotter", Fate::With(snapshotter)),
    ("cri/disable_snapshot_annotations", Fate::Needless),
    ("cri/containerd/disable_snapshot_annotations", Fate::Needless),
    // No compressed copy is kept at all.
    ("cri/discard_unpacked_layers", Fate::Needless),
    ("cri/containerd/discard_unpacked_layers", Fate::Needless),
    ("cri/image_decryption/key_model", Fate::Needless),
    ("cri/image_pull_with_sync_fs", Fate::Needless),
    ("cri/concurrent_layer_fetch_buffer", Fate::Needless),
    ("cri/use_local_image_pull", Fate::Needless),
    ("cri/stats_collect_period", Fate::Needless),
    // There is no pause container.
    ("cri/sandbox_image", Fate::Needless),
    ("cri/pinned_images/sandbox", Fate::Needless),
    // Runtime.
    ("cri/systemd_cgroup", Fate::With(systemd)),
    ("cri/max_container_log_line_size", Fate::With(log_line)),
    (
        "cri/device_ownership_from_security_context",
        Fate::Key("containers.device_ownership_from_security_context"),
    ),
    ("cri/cdi_spec_dirs", Fate::Key("cdi.spec_dirs")),
    ("cri/enable_cdi", Fate::Needless),
    ("cri/enable_selinux", Fate::Always(selinux)),
    ("cri/selinux_category_range", Fate::Key("selinux.category_range")),
    ("cri/tolerate_missing_hugetlb_controller", Fate::Needless),
    ("cri/disable_hugetlb_controller", Fate::Needless),
    ("cri/ignore_deprecation_warnings", Fate::Needless),
    ("cri/enable_unprivileged_ports", Fate::With(low_ports)),
    ("cri/enable_unprivileged_icmp", Fate::With(ping)),
    ("cri/enable_criu", Fate::Always(criu)),
    ("cri/drain_exec_sync_io_timeout", Fate::Needless),
    ("cri/disable_cgroup", Fate::Cannot("containers always have a control group")),
    ("cri/restrict_oom_score_adj", Fate::Cannot("run the daemon as root")),
    (
        "cri/disable_apparmor",
        Fate::Cannot("profiles are used where the host has AppArmor and a pod asks for one"),
    ),
    ("cri/unset_seccomp_profile", Fate::Cannot("use the kubelet's seccompDefault")),
    // Handlers.
    ("cri/containerd/default_runtime_name", Fate::With(handler_name)),
    ("cri/containerd/default_runtime/**", Fate::Needless),
    ("cri/containerd/untrusted_workload_runtime/**", Fate::Needless),
    ("cri/containerd/runtimes/*/runtime_type", Fate::With(handler)),
    ("cri/containerd/runtimes/*/options/SystemdCgroup", Fate::With(systemd)),
    // Put together by `runtimes`.
    ("cri/containerd/runtimes/*/options/BinaryName", Fate::Needless),
    ("cri/containerd/runtimes/*/options/Root", Fate::Needless),
    ("cri/containerd/runtimes/*/options/ConfigPath", Fate::With(for_shims)),
    ("cri/containerd/runtimes/*/options/TypeUrl", Fate::With(for_shims)),
    ("cri/containerd/runtimes/*/pod_annotations", Fate::With(for_shims)),
    (
        "cri/containerd/runtimes/*/container_annotations",
        Fate::Cannot("a shim sees annotations of pods only (pod_annotations of [handlers.NAME])"),
    ),
    ("cri/containerd/runtimes/*/runtime_path", Fate::With(for_shims)),
    ("cri/containerd/runtimes/*/privileged_without_host_devices", Fate::With(handlers::setting)),
    (
        "cri/containerd/runtimes/*/privileged_without_host_devices_all_devices_allowed",
        Fate::With(handlers::setting),
    ),
    ("cri/containerd/runtimes/*/sandboxer", Fate::Needless),
    ("cri/containerd/runtimes/*/snapshotter", Fate::With(snapshotter)),
    ("cri/containerd/runtimes/*/cni_conf_dir", Fate::Cannot("all handlers share cni.conf_dir")),
    // Networks.
    ("cri/cni/conf_dir", Fate::Key("cni.conf_dir")),
    ("cri/cni/bin_dir", Fate::With(bin_dir)),
    ("cri/cni/bin_dirs", Fate::Key("cni.bin_dirs")),
    ("cri/cni/max_conf_num", Fate::With(max_conf)),
    ("cri/cni/use_internal_loopback", Fate::Needless),
    ("cri/cni/setup_serially", Fate::Needless),
    ("cri/cni/conf_template", Fate::Cannot("write the CNI configuration itself into cni.conf_dir")),
    // Streams.
    ("cri/disable_tcp_service", Fate::Needless),
    ("cri/stream_server_address", Fate::With(stream_address)),
    ("cri/stream_server_port", Fate::With(stream_port)),
    ("cri/stream_idle_timeout", Fate::With(stream_idle)),
    // Put together by `streaming_tls`.
    ("cri/enable_tls_streaming", Fate::Needless),
    ("cri/x509_key_pair_streaming/tls_cert_file", Fate::Needless),
    ("cri/x509_key_pair_streaming/tls_key_file", Fate::Needless),
    // NRI.
    ("io.containerd.nri.v1.nri/disable", Fate::Key("nri.disable")),
    ("io.containerd.nri.v1.nri/disable_connections", Fate::Key("nri.disable_connections")),
    ("io.containerd.nri.v1.nri/socket_path", Fate::Key("nri.socket_path")),
    ("io.containerd.nri.v1.nri/plugin_path", Fate::Key("nri.plugin_path")),
    ("io.containerd.nri.v1.nri/plugin_config_path", Fate::Key("nri.plugin_config_path")),
    ("io.containerd.nri.v1.nri/plugin_registration_timeout", Fate::With(nri_registration)),
    ("io.containerd.nri.v1.nri/plugin_request_timeout", Fate::With(nri_request)),
    ("io.containerd.nri.v1.nri/default_validator/*", Fate::With(validator)),
    // containerd's own insides: its store, its collector, its other snapshotters and clients.
    ("cgroup/path", Fate::Cannot("set Slice= in the systemd unit")),
    ("timeouts/**", Fate::Needless),
    ("stream_processors/**", Fate::Needless),
    ("proxy_plugins/**", Fate::Cannot("there are no other snapshotters here")),
    ("io.containerd.gc.v1.scheduler/**", Fate::Needless),
    ("io.containerd.internal.v1.opt/**", Fate::Needless),
    ("io.containerd.internal.v1.restart/**", Fate::Needless),
    // Gathered by `traces::sampling`.
    ("io.containerd.internal.v1.tracing/**", Fate::Needless),
    ("io.containerd.metadata.v1.bolt/**", Fate::Needless),
    ("io.containerd.monitor.container.v1.restart/**", Fate::Needless),
    ("io.containerd.monitor.v1.cgroups/**", Fate::Needless),
    ("io.containerd.monitor.task.v1.cgroups/**", Fate::Needless),
    ("io.containerd.runtime.v1.linux/**", Fate::Needless),
    ("io.containerd.runtime.v2.task/**", Fate::Needless),
    ("io.containerd.service.v1.diff-service/**", Fate::Needless),
    (
        "io.containerd.service.v1.tasks-service/**",
        Fate::Cannot("there are no RDT and block I/O classes here"),
    ),
    ("io.containerd.server.v1.debug/**", Fate::Needless),
    ("io.containerd.shim.v1.manager/**", Fate::Needless),
    ("io.containerd.image-verifier.v1.bindir/**", Fate::Needless),
    ("io.containerd.mount-handler.v1.erofs/**", Fate::Needless),
    ("io.containerd.differ.v1.erofs/**", Fate::Needless),
    ("io.containerd.snapshotter.v1.overlayfs/root_path", Fate::Cannot("all images are below --root")),
    ("io.containerd.snapshotter.v1.overlayfs/**", Fate::Needless),
    ("io.containerd.snapshotter.v1.native/**", Fate::Needless),
    ("io.containerd.snapshotter.v1.blockfile/**", Fate::Needless),
    ("io.containerd.snapshotter.v1.btrfs/**", Fate::Needless),
    ("io.containerd.snapshotter.v1.devmapper/**", Fate::Needless),
    ("io.containerd.snapshotter.v1.zfs/**", Fate::Needless),
    ("io.containerd.snapshotter.v1.erofs/**", Fate::Needless),
    ("io.containerd.transfer.v1.local/**", Fate::Needless),
    ("io.containerd.tracing.processor.v1.otlp/**", Fate::Needless),
];

type Outcome = Result<(), String>;

fn root(_: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    usual(
        leaf,
        "/var/lib/containerd",
        "images are not taken over; give --root to slipway serve for another disk",
    )
}

fn state(_: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    usual(leaf, "/run/containerd", "give --state to slipway serve")
}

fn address(_: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    usual(
        leaf,
        "/run/containerd/containerd.sock",
        "give --address to slipway serve, and the kubelet the same socket",
    )
}

/// What is as containerd has it by default means nothing.
fn usual(leaf: &Leaf, default: &str, otherwise: &str) -> Outcome {
    if leaf.text() == default { Ok(()) } else { Err(otherwise.to_owned()) }
}

fn disabled(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    let list = leaf.value.as_array().cloned().unwrap_or_default();
    let mut unknown = Vec::new();
    for plugin in list.iter().filter_map(toml::Value::as_str) {
        match plugin {
            "io.containerd.nri.v1.nri" => import.set("nri.disable", true.into()),
            "cri" | "io.containerd.grpc.v1.cri" => unknown.push(format!("{plugin} is what Slipway is for")),
            // Snapshotters that a node does without, and the like.
            _ => {}
        }
    }
    if unknown.is_empty() { Ok(()) } else { Err(unknown.join(", ")) }
}

fn level(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    let level = match leaf.text() {
        "warning" => "warn",
        "fatal" | "panic" => "error",
        other => other,
    };
    level.parse::<super::super::Level>()?;
    import.set("log_level", level.into());
    Ok(())
}

fn format(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    import.set("log_format", leaf.text().into());
    Ok(())
}

fn gid(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    import.set("socket.group", leaf.value.to_string().into());
    import.set("socket.mode", "0660".into());
    Ok(())
}

/// Directories divided by colons.
fn config_path(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    for dir in leaf.text().split(':').filter(|dir| !dir.is_empty()) {
        import.add("images.hosts_dirs", dir);
    }
    Ok(())
}

fn mirror(import: &mut Import, leaf: &Leaf, stars: &[&str]) -> Outcome {
    let registry = stars.first().copied().unwrap_or_default();
    let endpoints = leaf.value.as_array().cloned().unwrap_or_default();
    let hosts = import.hosts.entry(registry.to_owned()).or_default();
    hosts.mirrors = endpoints.iter().filter_map(toml::Value::as_str).map(Server::new).collect();
    Ok(())
}

fn auth(import: &mut Import, leaf: &Leaf, stars: &[&str]) -> Outcome {
    let [host, key] = stars else { return Err("names no registry".into()) };
    let entry = import.auths.entry((*host).to_owned()).or_default();
    entry.insert((*key).to_owned(), leaf.text().into());
    Ok(())
}

/// `[...registry.configs.HOST.tls]`: for whichever mirror or registry is at HOST, so all of it is read first.
fn tls(import: &mut Import, leaves: &[Leaf]) {
    let mut by_host: BTreeMap<String, Tls> = BTreeMap::new();
    for leaf in leaves.iter().filter(|leaf| !leaf.is_nothing()) {
        let path: Vec<&str> = leaf.path.iter().map(String::as_str).collect();
        let [_, _, "registry", "configs", host, "tls", key] = path.as_slice() else { continue };
        let tls = by_host.entry((*host).to_owned()).or_default();
        let text = Some(leaf.text().to_owned());
        match *key {
            "insecure_skip_verify" => tls.skip_verify = true,
            "ca_file" => tls.ca = text,
            "cert_file" => tls.cert = text,
            "key_file" => tls.key = text,
            _ => import.leave(leaf, "there is no such setting here"),
        }
    }
    place_tls(import, &by_host);
}

/// TLS of the streaming server, where it is on. Without files containerd makes a certificate at each start.
fn streaming_tls(import: &mut Import, leaves: &[Leaf]) {
    let find = |wanted: &[&str]| {
        let of_cri = |leaf: &&Leaf| match leaf.path.as_slice() {
            [plugins, plugin, rest @ ..] => {
                plugins == "plugins" && CRI.contains(&plugin.as_str()) && rest == wanted
            }
            _ => false,
        };
        leaves.iter().rev().find(of_cri).filter(|leaf| !leaf.is_nothing())
    };
    let Some(enabled) = find(&["enable_tls_streaming"]) else { return };
    let file = |key| find(&["x509_key_pair_streaming", key]);
    streaming_files(import, enabled, file("tls_cert_file"), file("tls_key_file"));
}

/// The server's certificate and key, of either runtime; `enabled` is what turned TLS on.
pub(super) fn streaming_files(
    import: &mut Import,
    enabled: &Leaf,
    certificate: Option<&Leaf>,
    key: Option<&Leaf>,
) -> bool {
    let (Some(certificate), Some(key)) = (certificate, key) else {
        import.leave(
            enabled,
            "make a certificate, and name it and its key by streaming.tls_certificate and streaming.tls_key",
        );
        return false;
    };
    import.set("streaming.tls_certificate", certificate.value.clone());
    import.set("streaming.tls_key", key.value.clone());
    true
}

fn snapshotter(_: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    usual(leaf, "overlayfs", "layers are always overlayfs here")
}

fn systemd(import: &mut Import, _: &Leaf, _: &[&str]) -> Outcome {
    import.set("cgroup_driver", "systemd".into());
    Ok(())
}

/// containerd: 0 or less cuts nothing; so do we at 0.
fn log_line(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    let size = leaf.value.as_integer().ok_or("it is no number")?;
    import.set("logs.max_line", size.max(0).into());
    Ok(())
}

fn handler_name(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    import.add("runtime_handlers", leaf.text());
    Ok(())
}

const RUNC: [&str; 3] = ["io.containerd.runc.v2", "io.containerd.runc.v1", "io.containerd.runtime.v1.linux"];
const OURS: &str = "io.containerd.slipway.v1";

/// Handlers of runc's shim that name the program which that is to call.
fn runtimes(import: &mut Import, leaves: &[Leaf]) {
    let (mut found, mut default) = (BTreeMap::<&str, Found<'_>>::new(), "runc");
    for leaf in leaves {
        let path: Vec<&str> = leaf.path.iter().map(String::as_str).collect();
        let Some(at) = path.iter().position(|part| *part == "containerd") else { continue };
        match path[at + 1..] {
            ["default_runtime_name"] => default = leaf.text(),
            ["runtimes", name, "runtime_type"] => {
                let handler = found.entry(name).or_default();
                handler.is_oci = RUNC.contains(&leaf.text());
                handler.is_ours = leaf.text() == OURS;
                handler.shim =
                    Some(leaf).filter(|_| !handler.is_oci && !handler.is_ours && !leaf.is_nothing());
            }
            ["runtimes", name, "runtime_path"] => found.entry(name).or_default().shim_path = Some(leaf),
            ["runtimes", name, "options", "ConfigPath"] => {
                found.entry(name).or_default().for_shim.push(("config_path", leaf));
            }
            ["runtimes", name, "options", "TypeUrl"] => {
                found.entry(name).or_default().for_shim.push(("config_type", leaf));
            }
            ["runtimes", name, "pod_annotations"] => {
                found.entry(name).or_default().for_shim.push(("pod_annotations", leaf));
            }
            ["runtimes", name, "options", "BinaryName"] => found.entry(name).or_default().binary = Some(leaf),
            ["runtimes", name, "options", "Root"] => found.entry(name).or_default().root = Some(leaf),
            _ => {}
        }
    }
    for (name, handler) in &found {
        let unused = handler.shim_path.into_iter().chain(handler.for_shim.iter().map(|(_, leaf)| *leaf));
        for leaf in unused.filter(|leaf| handler.shim.is_none() && !leaf.is_nothing()) {
            import
                .leave(leaf, format!("it is for a shim of another kind, and {name} is run without one here"));
        }
    }
    handlers::settle(import, &found, default);
}

/// Put together by `runtimes`.
fn for_shims(_: &mut Import, _: &Leaf, _: &[&str]) -> Outcome {
    Ok(())
}

/// Runtimes that do what ours does; shims of other kinds are put together by `runtimes`.
fn handler(import: &mut Import, leaf: &Leaf, stars: &[&str]) -> Outcome {
    match leaf.text() {
        kind if RUNC.contains(&kind) || kind == OURS => {
            import.add("runtime_handlers", stars.first().copied().unwrap_or_default());
            Ok(())
        }
        _ => Ok(()),
    }
}

fn low_ports(import: &mut Import, _: &Leaf, _: &[&str]) -> Outcome {
    import.add("pods.default_sysctls", "net.ipv4.ip_unprivileged_port_start=0");
    Ok(())
}

fn ping(import: &mut Import, _: &Leaf, _: &[&str]) -> Outcome {
    import.add("pods.default_sysctls", "net.ipv4.ping_group_range=0 2147483647");
    Ok(())
}

fn bin_dir(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    import.add("cni.bin_dirs", leaf.text());
    Ok(())
}

fn max_conf(_: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    match leaf.value.as_integer() {
        Some(1) => Ok(()),
        _ => Err(
            "one network configuration is in force, the first by name: chain plugins in it, or use multus"
                .into(),
        ),
    }
}

fn stream_address(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    address_part(import, Some(leaf.text()), None)
}

fn stream_port(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    address_part(import, None, Some(leaf.text()))
}

/// `streaming.address` from its two halves.
pub(super) fn address_part(import: &mut Import, host: Option<&str>, port: Option<&str>) -> Outcome {
    let known = import.config.get("streaming").and_then(|t| t.get("address")).and_then(|a| a.as_str());
    let known = known.unwrap_or("127.0.0.1:0").to_owned();
    let (known_host, known_port) = known.rsplit_once(':').unwrap_or(("127.0.0.1", "0"));
    let host = host.map_or(known_host.to_owned(), |host| {
        if host.contains(':') { format!("[{host}]") } else { host.into() }
    });
    let address = format!("{host}:{}", port.unwrap_or(known_port));
    let parsed: std::net::SocketAddr =
        address.parse().map_err(|_| format!("{address} is no address and port"))?;
    if !parsed.ip().is_loopback() {
        return Err(format!(
            "{address} is not on loopback: set streaming.address where that is meant, best with streaming.tls_client_ca"
        ));
    }
    import.set("streaming.address", address.into());
    Ok(())
}

fn stream_idle(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    let seconds = super::rules::go_seconds(leaf.text()).ok_or("it is no time")?;
    // A time of years is no use to anybody: the cast only has to stay whole.
    import.set("streaming.idle_timeout", (seconds.clamp(0.0, 1e9) as i64).into());
    Ok(())
}

fn nri_registration(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    set_time(import, "nri.plugin_registration_timeout", leaf.text())
}

fn nri_request(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    set_time(import, "nri.plugin_request_timeout", leaf.text())
}

fn validator(import: &mut Import, leaf: &Leaf, stars: &[&str]) -> Outcome {
    let key = format!("nri.default_validator.{}", stars.first().copied().unwrap_or_default());
    if super::super::keys::Keys::all().find(&key).is_none() {
        return Err("there is no such setting here".into());
    }
    import.set(&key, leaf.value.clone());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"version = 2
root = "/var/lib/containerd"
[debug]
level = "debug"
[grpc]
gid = 998
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.k8s.io/pause:3.9"
enable_selinux = true
selinux_category_range = 512
max_concurrent_downloads = 5
max_container_log_line_size = -1
enable_unprivileged_ports = true
stream_server_port = "10010"
enable_tls_streaming = true
stream_idle_timeout = "1h30m0s"
unset_seccomp_profile = ""
device_ownership_from_security_context = true
[plugins."io.containerd.grpc.v1.cri".x509_key_pair_streaming]
tls_cert_file = "/tls/crt"
tls_key_file = "/tls/key"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/libexec/cni"
conf_dir = "/etc/cni/net.d"
max_conf_num = 2
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
snapshotter = "stargz"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
runtime_type = "io.containerd.kata.v2"
privileged_without_host_devices = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
runtime_type = "io.containerd.runc.v2"
privileged_without_host_devices = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
BinaryName = "/usr/bin/nvidia-container-runtime"
Root = "/run/nvidia"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.lost]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.lost.options]
BinaryName = "no-such-runtime"
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://mirror.example:5000", "https://registry-1.docker.io"]
[plugins."io.containerd.grpc.v1.cri".registry.configs."mirror.example:5000".tls]
ca_file = "/etc/ssl/mirror.pem"
[plugins."io.containerd.grpc.v1.cri".registry.configs."mirror.example:5000".auth]
username = "me"
password = "geheim"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.vm]
runtime_type = "io.containerd.kata.v2"
runtime_path = "/opt/kata/bin/containerd-shim-kata-v2"
pod_annotations = ["io.katacontainers.*"]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.vm.options]
ConfigPath = "/opt/kata/configuration.toml"
[plugins."io.containerd.nri.v1.nri"]
disable = true
plugin_request_timeout = "1.5s"
"#;

    fn import(text: &str) -> Import {
        translate(&leaves::of(Path::new("/c.toml"), text).expect("TOML"))
    }

    #[test]
    fn a_real_configuration() {
        let import = import(CONFIG);
        let file: super::super::super::File = import.config.clone().try_into().expect("ours");
        let wanted: super::super::super::File = toml::from_str(
            r#"cgroup_driver = "systemd"
log_level = "debug"
runtime_handlers = ["runc", "lost"]
[handlers.nvidia]
runtime_path = "/usr/bin/nvidia-container-runtime"
runtime_root = "/run/nvidia"
privileged_without_host_devices = true
[handlers.vm]
shim = "/opt/kata/bin/containerd-shim-kata-v2"
config_path = "/opt/kata/configuration.toml"
pod_annotations = ["io.katacontainers.*"]
[selinux]
labels = "on"
category_range = 512
[socket]
group = "998"
mode = "0660"
[images]
parallel_layers = 5
[pods]
default_sysctls = ["net.ipv4.ip_unprivileged_port_start=0"]
[containers]
device_ownership_from_security_context = true
[logs]
max_line = 0
[cni]
bin_dirs = ["/usr/libexec/cni"]
[streaming]
address = "127.0.0.1:10010"
idle_timeout = 5400
tls_certificate = "/tls/crt"
tls_key = "/tls/key"
[nri]
disable = true
plugin_request_timeout = "1500ms"
"#,
        )
        .expect("ours");
        assert_eq!(file, wanted);
        let hosts = import.hosts["docker.io"].text();
        assert!(
            hosts.contains("[host.\"https://mirror.example:5000\"]\nca = \"/etc/ssl/mirror.pem\""),
            "{hosts}"
        );
        let auth = import.auth_file().expect("credentials");
        assert!(auth.contains("bWU6Z2VoZWlt") && auth.contains("mirror.example:5000"), "{auth}");
        let left: Vec<_> = import
            .left
            .iter()
            .map(|left| (left.at.line, left.key.rsplit('.').next().unwrap_or("")))
            .collect();
        assert_eq!(
            left,
            [(25, "max_conf_num"), (28, "snapshotter"), (34, "runtime_type"), (45, "BinaryName")],
            "{:?}",
            import.left
        );
    }

    #[test]
    fn no_selinux_stays_no_selinux() {
        let import = import("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nenable_selinux = false\n");
        assert_eq!(import.config["selinux"]["labels"].as_str(), Some("off"));
    }

    #[test]
    fn nothing_that_nobody_set_is_talked_about() {
        let import = import("version = 3\nimports = []\nnever_heard_of = false\n[plugins.x]\nalso = \"\"\n");
        assert!(import.config.is_empty() && import.left.is_empty(), "{import:?}");
    }
}
