//! CRI-O's crio.conf with its drop-ins.

use super::containerd::{address_part, streaming_files};
use super::handlers::{self, Found};
use super::leaves::{self, Leaf};
use super::registries::Server;
use super::rules::{Fate, Rules, apply, criu, selinux, set_time};
use super::{Import, text_of, traces};
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// Reads `file`, `file`.d/*.conf, `registries`, and `policy` or the one that `file` names.
pub(super) fn read(file: &Path, registries: Option<&Path>, policy: Option<&Path>) -> Result<Import> {
    let mut leaves = leaves::of(file, &text_of(file)?)?;
    let mut drop_ins = file.as_os_str().to_owned();
    drop_ins.push(".d/*.conf");
    for found in leaves::glob(Path::new(&drop_ins))? {
        leaves.extend(leaves::of(&found, &text_of(&found)?)?);
    }
    let mut import = translate(&leaves);
    let named = leaves.iter().rev().find(|leaf| {
        leaf.path.iter().map(String::as_str).eq(["crio", "image", "signature_policy"]) && !leaf.is_nothing()
    });
    if let Some(path) = policy.or_else(|| named.map(|leaf| Path::new(leaf.text()))) {
        super::policy::translate(&mut import, path)?;
    }
    // After the policy: what is blocked is blocked whatever that says.
    if let Some(path) = registries {
        super::mirrors::translate(&mut import, path, &text_of(path)?)?;
    }
    Ok(import)
}

fn translate(leaves: &[Leaf]) -> Import {
    let mut import = Import::default();
    let mut last = BTreeMap::new();
    for (place, leaf) in leaves.iter().enumerate() {
        last.insert(&leaf.path, place);
    }
    for (_, leaf) in leaves.iter().enumerate().filter(|(place, leaf)| last.get(&leaf.path) == Some(place)) {
        let path: Vec<&str> = leaf.path.iter().map(String::as_str).collect();
        apply(&mut import, RULES, leaf, path.strip_prefix(&["crio"]).unwrap_or(&path));
    }
    pairs(&mut import, leaves);
    runtimes(&mut import, leaves);
    import
}

const RULES: &Rules = &[
    ("root", Fate::Cannot("images are not taken over; give --root to slipway serve for another disk")),
    ("runroot", Fate::Needless),
    ("imagestore", Fate::Cannot("images are not taken over")),
    ("storage_driver", Fate::With(storage)),
    ("storage_option", Fate::With(storage_options)),
    ("log_dir", Fate::Needless),
    ("version_file", Fate::Needless),
    ("version_file_persist", Fate::Needless),
    ("clean_shutdown_file", Fate::Needless),
    ("internal_wipe", Fate::Needless),
    ("internal_repair", Fate::Needless),
    ("api/listen", Fate::With(listen)),
    ("api/stream_address", Fate::With(stream_address)),
    ("api/stream_port", Fate::With(stream_port)),
    ("api/stream_idle_timeout", Fate::With(stream_idle)),
    // Put together by `pairs`.
    ("api/stream_enable_tls", Fate::Needless),
    ("api/stream_tls_cert", Fate::Needless),
    ("api/stream_tls_key", Fate::Needless),
    ("api/stream_tls_ca", Fate::Needless),
    ("api/grpc_max_send_msg_size", Fate::Needless),
    ("api/grpc_max_recv_msg_size", Fate::Needless),
    // There is no conmon, no infra container and no helper for namespaces.
    ("runtime/conmon", Fate::Needless),
    ("runtime/conmon_cgroup", Fate::Needless),
    ("runtime/conmon_env", Fate::Needless),
    ("runtime/pinns_path", Fate::Needless),
    ("runtime/namespaces_dir", Fate::Needless),
    ("runtime/drop_infra_ctr", Fate::Needless),
    ("runtime/infra_ctr_cpuset", Fate::Needless),
    ("runtime/container_exits_dir", Fate::Needless),
    ("runtime/container_attach_socket_dir", Fate::Needless),
    ("runtime/ctr_stop_timeout", Fate::Needless),
    ("runtime/irqbalance_config_file", Fate::Needless),
    ("runtime/irqbalance_config_restore_file", Fate::Needless),
    ("runtime/rdt_config_file", Fate::Cannot("there is no Intel RDT here")),
    ("runtime/blockio_config_file", Fate::Cannot("there are no block I/O classes here")),
    ("runtime/cgroup_manager", Fate::Key("cgroup_driver")),
    ("runtime/separate_pull_cgroup", Fate::Cannot("pulls run in the daemon's own group")),
    (
        "runtime/device_ownership_from_security_context",
        Fate::Key("containers.device_ownership_from_security_context"),
    ),
    ("runtime/default_ulimits", Fate::Key("containers.default_ulimits")),
    ("runtime/default_sysctls", Fate::Key("pods.default_sysctls")),
    ("runtime/cdi_spec_dirs", Fate::Key("cdi.spec_dirs")),
    ("runtime/selinux", Fate::Always(selinux)),
    ("runtime/log_level", Fate::With(level)),
    ("runtime/log_size_max", Fate::With(log_size)),
    ("runtime/pids_limit", Fate::With(pids)),
    ("runtime/default_runtime", Fate::With(handler)),
    ("runtime/runtimes/*/runtime_type", Fate::With(runtime_type)),
    // Put together by `runtimes`.
    ("runtime/runtimes/*/runtime_path", Fate::Needless),
    ("runtime/runtimes/*/runtime_root", Fate::Needless),
    ("runtime/runtimes/*/runtime_config_path", Fate::Needless),
    ("runtime/runtimes/*/privileged_without_host_devices", Fate::With(handlers::setting)),
    ("runtime/runtimes/*/container_create_timeout", Fate::With(create_timeout)),
    ("runtime/runtimes/*/monitor_path", Fate::Needless),
    ("runtime/runtimes/*/monitor_cgroup", Fate::Needless),
    ("runtime/runtimes/*/monitor_env", Fate::Needless),
    ("runtime/runtimes/*/monitor_exec_cgroup", Fate::Needless),
    ("runtime/runtimes/*/allowed_annotations", Fate::Cannot("CRI-O's annotations have no effect here")),
    (
        "runtime/seccomp_profile",
        Fate::Cannot("the default profile is built in; pods name others (Localhost)"),
    ),
    (
        "runtime/apparmor_profile",
        Fate::Cannot("the default profile is built in (slipway-default); pods name others (Localhost)"),
    ),
    ("runtime/default_capabilities", Fate::With(capabilities)),
    ("runtime/hooks_dir", Fate::Cannot("write an NRI plugin instead of OCI hooks")),
    ("runtime/default_env", Fate::Cannot("set env in the pods, or by an NRI plugin")),
    ("runtime/default_mounts_file", Fate::Cannot("mount it in the pods, or by an NRI plugin")),
    ("runtime/read_only", Fate::Cannot("set readOnlyRootFilesystem in the pods")),
    ("runtime/timezone", Fate::Cannot("set TZ in the pods")),
    ("runtime/log_to_journald", Fate::Cannot("logs are files, as the kubelet reads them")),
    ("runtime/uid_mappings", Fate::Cannot("use hostUsers: false in the pods")),
    ("runtime/gid_mappings", Fate::Cannot("use hostUsers: false in the pods")),
    ("runtime/enable_criu_support", Fate::Always(criu)),
    ("image/global_auth_file", Fate::Key("images.auth_file")),
    ("image/default_transport", Fate::Needless),
    ("image/pause_image", Fate::Needless),
    ("image/pause_image_auth_file", Fate::Needless),
    ("image/pause_command", Fate::Needless),
    ("image/pull_progress_timeout", Fate::Needless),
    ("image/big_files_temporary_dir", Fate::Needless),
    ("image/auto_reload_registries", Fate::Needless),
    ("image/oci_artifact_mount_support", Fate::Needless),
    // Read by `read`.
    ("image/signature_policy", Fate::Needless),
    (
        "image/signature_policy_dir",
        Fate::Cannot("there are no policies per namespace here: translate each by --policy"),
    ),
    (
        "image/short_name_mode",
        Fate::Cannot("images are named in full; names without a registry are docker.io's"),
    ),
    ("image/insecure_registries", Fate::With(insecure)),
    ("network/network_dir", Fate::Key("cni.conf_dir")),
    ("network/plugin_dirs", Fate::Key("cni.bin_dirs")),
    ("network/plugin_dir", Fate::With(plugin_dir)),
    (
        "network/cni_default_network",
        Fate::Cannot("the first configuration by name is in force: rename it to come first"),
    ),
    // Put together by `pairs`.
    ("metrics/enable_metrics", Fate::Needless),
    ("metrics/metrics_host", Fate::Needless),
    ("metrics/metrics_port", Fate::Needless),
    ("metrics/metrics_collectors", Fate::Needless),
    ("metrics/metrics_socket", Fate::Cannot("metrics are served on an address, not on a socket")),
    ("metrics/metrics_cert", Fate::Cannot("metrics are served without TLS: keep them on loopback")),
    ("metrics/metrics_key", Fate::Needless),
    // Put together by `pairs`.
    ("tracing/enable_tracing", Fate::Needless),
    ("tracing/tracing_endpoint", Fate::Needless),
    ("tracing/tracing_sampling_rate_per_million", Fate::Key("tracing.sampling_rate_per_million")),
    ("stats/**", Fate::Needless),
    // Turned round by `pairs`.
    ("nri/enable_nri", Fate::Needless),
    ("nri/nri_listen", Fate::With(nri_listen)),
    ("nri/nri_plugin_dir", Fate::Key("nri.plugin_path")),
    ("nri/nri_plugin_config_dir", Fate::Key("nri.plugin_config_path")),
    ("nri/nri_plugin_registration_timeout", Fate::With(nri_registration)),
    ("nri/nri_plugin_request_timeout", Fate::With(nri_request)),
    ("nri/nri_disable_connections", Fate::Key("nri.disable_connections")),
];

type Outcome = Result<(), String>;

/// Pairs of keys that mean one of ours together.
fn pairs(import: &mut Import, leaves: &[Leaf]) {
    let find = |table: &str, key: &str| {
        let hit = |leaf: &&Leaf| leaf.path.iter().map(String::as_str).eq(["crio", table, key]);
        leaves.iter().rev().find(hit)
    };
    if find("metrics", "enable_metrics").is_some_and(|leaf| leaf.value.as_bool() == Some(true)) {
        let host = find("metrics", "metrics_host").map_or("127.0.0.1", Leaf::text).to_owned();
        let port = find("metrics", "metrics_port").and_then(|leaf| leaf.value.as_integer()).unwrap_or(9090);
        import.set("metrics.address", format!("{host}:{port}").into());
    }
    if find("tracing", "enable_tracing").is_some_and(|leaf| leaf.value.as_bool() == Some(true)) {
        match find("tracing", "tracing_endpoint") {
            None => import.set("tracing.endpoint", "127.0.0.1:4317".into()),
            Some(leaf) => {
                if let Err(why) = traces::collector(import, leaf, &[]) {
                    import.leave(leaf, why);
                }
            }
        }
    }
    if find("nri", "enable_nri").is_some_and(|leaf| leaf.value.as_bool() == Some(false)) {
        import.set("nri.disable", true.into());
    }
    let file = |key| find("api", key).filter(|leaf| !leaf.is_nothing());
    let enabled = find("api", "stream_enable_tls").filter(|leaf| leaf.value.as_bool() == Some(true));
    if let Some(enabled) = enabled {
        let served = streaming_files(import, enabled, file("stream_tls_cert"), file("stream_tls_key"));
        if let Some(authority) = file("stream_tls_ca").filter(|_| served) {
            import.set("streaming.tls_client_ca", authority.value.clone());
        }
    }
}

fn storage(_: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    if leaf.text().starts_with("overlay") { Ok(()) } else { Err("layers are always overlayfs here".into()) }
}

/// `overlay.size=10G`, by containers-storage.conf(5): powers of 1024.
fn storage_options(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    let options = leaf.value.as_array().cloned().unwrap_or_default();
    for option in options.iter().filter_map(toml::Value::as_str) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        if name.strip_prefix("overlay2.").or(name.strip_prefix("overlay.")) != Some("size") {
            return Err(format!("{option}: layers are always overlayfs here, mounted as Slipway does it"));
        }
        let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit =
            match value[digits.len()..].to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
                "" => "",
                "k" => "Ki",
                "m" => "Mi",
                "g" => "Gi",
                "t" => "Ti",
                _ => return Err(format!("{option}: it is no size")),
            };
        import.set("containers.writable_layer_limit", format!("{digits}{unit}").into());
    }
    Ok(())
}

fn listen(_: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    match leaf.text() {
        "/var/run/crio/crio.sock" | "/run/crio/crio.sock" => Ok(()),
        _ => Err("give --address to slipway serve, and the kubelet the same socket".into()),
    }
}

fn stream_address(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    address_part(import, Some(leaf.text()), None)
}

fn stream_port(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    address_part(import, None, Some(leaf.text()))
}

fn stream_idle(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    let seconds = super::rules::go_seconds(leaf.text()).ok_or("it is no time")?;
    import.set("streaming.idle_timeout", (seconds.clamp(0.0, 1e9) as i64).into());
    Ok(())
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

fn log_size(_: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    match leaf.value.as_integer() {
        Some(..=0) => Ok(()),
        _ => Err("the kubelet rotates logs: set its containerLogMaxSize".into()),
    }
}

fn pids(_: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    match leaf.value.as_integer() {
        Some(..=0) => Ok(()),
        _ => Err("set the kubelet's podPidsLimit".into()),
    }
}

/// The ones that containers have without asking, as CRI-O has had them since 1.18.
fn capabilities(_: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    const OURS: [&str; 9] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "KILL",
    ];
    let list = leaf.value.as_array().cloned().unwrap_or_default();
    let more: Vec<_> = list.iter().filter_map(toml::Value::as_str).filter(|c| !OURS.contains(c)).collect();
    if more.is_empty() && list.len() == OURS.len() {
        return Err(
            "containers have containerd's list here, which is longer: drop in the pods what they do not need"
                .into(),
        );
    }
    Err("containers have containerd's list here: add and drop capabilities in the pods".into())
}

fn handler(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    import.add("runtime_handlers", leaf.text());
    Ok(())
}

/// Seconds.
fn create_timeout(import: &mut Import, leaf: &Leaf, stars: &[&str]) -> Outcome {
    let seconds =
        leaf.value.as_integer().filter(|seconds| *seconds > 0).ok_or("it is no number of seconds")?;
    let name = stars.first().copied().unwrap_or_default();
    import.set(&format!("handlers.{name}.create_timeout"), format!("{seconds}s").into());
    Ok(())
}

fn runtime_type(import: &mut Import, leaf: &Leaf, stars: &[&str]) -> Outcome {
    match leaf.text() {
        "oci" => {
            import.add("runtime_handlers", stars.first().copied().unwrap_or_default());
            Ok(())
        }
        // Put together by `runtimes`.
        "vm" => Ok(()),
        other => Err(format!(
            "{other} is another kind of sandbox: pods of this runtime class need a node that has it"
        )),
    }
}

/// Handlers that name the OCI runtime which CRI-O is to call.
fn runtimes(import: &mut Import, leaves: &[Leaf]) {
    let (mut found, mut default) = (BTreeMap::<&str, Found<'_>>::new(), "");
    let mut vms = Vec::new();
    for leaf in leaves {
        let path: Vec<&str> = leaf.path.iter().map(String::as_str).collect();
        match path.strip_prefix(&["crio", "runtime"]).unwrap_or_default() {
            ["default_runtime"] => default = leaf.text(),
            [
                "runtimes",
                name,
                key @ ("runtime_type" | "runtime_path" | "runtime_root" | "runtime_config_path"),
            ] => {
                // "" is "oci".
                let handler = found.entry(name).or_insert_with(|| Found { is_oci: true, ..Found::default() });
                match *key {
                    "runtime_type" => {
                        handler.is_oci = matches!(leaf.text(), "" | "oci");
                        vms.extend((leaf.text() == "vm").then_some((*name, leaf)));
                    }
                    "runtime_path" => handler.binary = Some(leaf),
                    "runtime_config_path" => handler.for_shim.push(("config_path", leaf)),
                    _ => handler.root = Some(leaf),
                }
            }
            _ => {}
        }
    }
    for (name, kind) in vms {
        let Some(handler) = found.get_mut(name) else { continue };
        match handler.binary.filter(|leaf| !leaf.is_nothing()) {
            // It names the shim's program.
            Some(binary) => handler.shim = Some(binary),
            None => {
                import.leave(kind, "it names no runtime_path: give the shim's as shim of [handlers.NAME]")
            }
        }
    }
    handlers::settle(import, &found, default);
}

fn insecure(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    for registry in leaf.value.as_array().cloned().unwrap_or_default().iter().filter_map(toml::Value::as_str)
    {
        let server = import.hosts.entry(registry.to_owned()).or_default();
        server.server.get_or_insert_with(|| Server::new(registry)).tls.skip_verify = true;
    }
    Ok(())
}

fn plugin_dir(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    import.add("cni.bin_dirs", leaf.text());
    Ok(())
}

fn nri_listen(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    import.set("nri.socket_path", leaf.value.clone());
    Ok(())
}

fn nri_registration(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    set_time(import, "nri.plugin_registration_timeout", leaf.text())
}

fn nri_request(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    set_time(import, "nri.plugin_request_timeout", leaf.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"[crio]
storage_driver = "overlay"
storage_option = ["overlay.size=10G"]
[crio.api]
listen = "/var/run/crio/crio.sock"
stream_port = "10010"
stream_enable_tls = true
stream_tls_cert = "/tls/crt"
stream_tls_key = "/tls/key"
stream_tls_ca = ""
[crio.runtime]
default_ulimits = ["nofile=1024:2048"]
default_sysctls = ["net.ipv4.ping_group_range=0 2147483647"]
conmon = "/usr/libexec/crio/conmon"
cgroup_manager = "systemd"
log_level = "warning"
pids_limit = 1024
enable_criu_support = true
selinux = true
log_size_max = -1
hooks_dir = ["/usr/share/containers/oci/hooks.d"]
default_runtime = "crun"
[crio.runtime.runtimes.crun]
runtime_path = "/usr/libexec/crio/crun"
allowed_annotations = ["io.kubernetes.cri-o.Devices"]
[crio.runtime.runtimes.runsc]
runtime_type = "oci"
runtime_path = "/usr/local/bin/runsc"
runtime_root = "/run/runsc"
container_create_timeout = 120
[crio.runtime.runtimes.kata]
runtime_type = "vm"
runtime_path = "/usr/bin/containerd-shim-kata-v2"
runtime_root = "/run/vc"
runtime_config_path = "/etc/kata-containers/configuration.toml"
[crio.image]
global_auth_file = "/etc/crio/auth.json"
pause_image = "registry.k8s.io/pause:3.10"
insecure_registries = ["old.example:5000"]
[crio.network]
network_dir = "/etc/cni/net.d/"
plugin_dirs = ["/opt/cni/bin", "/usr/libexec/cni"]
[crio.metrics]
enable_metrics = true
metrics_port = 9537
[crio.tracing]
enable_tracing = true
tracing_endpoint = "127.0.0.1:4317"
[crio.nri]
enable_nri = false
"#;

    #[test]
    fn a_real_configuration() {
        let import = translate(&leaves::of(Path::new("/crio.conf"), CONFIG).expect("TOML"));
        let file: crate::config::File = import.config.clone().try_into().expect("ours");
        let wanted: crate::config::File = toml::from_str(
            r#"cgroup_driver = "systemd"
log_level = "warn"
runtime_handlers = ["crun"]
[checkpoints]
restore_images = true
[handlers.runsc]
runtime_path = "/usr/local/bin/runsc"
runtime_root = "/run/runsc"
create_timeout = "120s"
sandbox_per_container = true
[handlers.kata]
shim = "/usr/bin/containerd-shim-kata-v2"
config_path = "/etc/kata-containers/configuration.toml"
[images]
auth_file = "/etc/crio/auth.json"
[containers]
default_ulimits = ["nofile=1024:2048"]
writable_layer_limit = "10Gi"
[selinux]
labels = "on"
[pods]
default_sysctls = ["net.ipv4.ping_group_range=0 2147483647"]
[cni]
conf_dir = "/etc/cni/net.d/"
bin_dirs = ["/opt/cni/bin", "/usr/libexec/cni"]
[streaming]
address = "127.0.0.1:10010"
tls_certificate = "/tls/crt"
tls_key = "/tls/key"
[metrics]
address = "127.0.0.1:9537"
[tracing]
endpoint = "127.0.0.1:4317"
[nri]
disable = true
"#,
        )
        .expect("ours");
        assert_eq!(file, wanted);
        assert!(import.hosts["old.example:5000"].text().contains("skip_verify = true"));
        let left: Vec<_> = import.left.iter().map(|left| left.key.as_str()).collect();
        assert_eq!(
            left,
            [
                "crio.runtime.pids_limit",
                "crio.runtime.hooks_dir",
                "crio.runtime.runtimes.crun.allowed_annotations"
            ]
        );
    }

    #[test]
    fn no_checkpoints_stay_no_checkpoints() {
        let text = "[crio.runtime]\nenable_criu_support = false\n";
        let import = translate(&leaves::of(Path::new("/crio.conf"), text).expect("TOML"));
        let file: crate::config::File = import.config.try_into().expect("ours");
        assert!(!file.checkpoints.enabled && !file.checkpoints.restore_images);
    }

    #[test]
    fn streaming_over_tls_is_translated_whole_or_named() {
        let read = |keys: &str| {
            let text = format!("[crio.api]\nstream_enable_tls = true\nstream_tls_ca = \"/ca\"\n{keys}");
            translate(&leaves::of(Path::new("/crio.conf"), &text).expect("TOML"))
        };
        let whole = read("stream_tls_cert = \"/crt\"\nstream_tls_key = \"/key\"\n");
        assert_eq!(whole.config["streaming"]["tls_client_ca"].as_str(), Some("/ca"));
        assert!(whole.left.is_empty(), "{:?}", whole.left);
        let half = read("stream_tls_cert = \"/crt\"\n");
        assert!(half.config.get("streaming").is_none(), "{:?}", half.config);
        assert_eq!(
            half.left.iter().map(|left| left.key.as_str()).collect::<Vec<_>>(),
            ["crio.api.stream_enable_tls"]
        );
    }
}
