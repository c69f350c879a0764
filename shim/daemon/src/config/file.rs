//! The file as written: every key, what it means and what it is when nobody writes it.
//!
//! The doc comments here are the reference (see [`super::keys`]): `slipway config reference` and `slipway config default`
//! print them. A key without a fixed default is an `Option`; its comment says what happens then.

use super::policy::Rule;
use super::values::{Bytes, Categories, Collector, Level, Mode, PerMillion, Sysctl, Time, Ulimit};
use crate::cgroups::{Cgroups, Driver};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Everything that can be written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct File {
    /// "cgroupfs" or "systemd"; must be the same as the kubelet's cgroupDriver. Without it: systemd where systemd manages
    /// cgroup version 2, else cgroupfs.
    pub(crate) cgroup_driver: Option<Driver>,
    /// Parent of the control groups of pods that bring no cgroup_parent of their own: an absolute path, or with systemd a
    /// slice. Without it: "/slipway", "slipway.slice".
    pub(crate) cgroup_root: Option<String>,
    /// What the daemon logs: "error", "warn", "info", "debug", "trace", or tracing's filter syntax, such as
    /// "info,slipway_images=debug". The flag --log-level comes first.
    pub(crate) log_level: Level,
    /// How it logs, to standard error: "text" for people, "json" for programs (an object per line).
    pub(crate) log_format: LogFormat,
    /// Names of runtime classes' handlers that this node answers to beside "" and "slipway", such as "runc": all mean
    /// Slipway itself.
    pub(crate) runtime_handlers: Vec<String>,
    /// Handlers of runtime classes with settings of their own, a table for each by its name. With runtime_path its containers
    /// are run by that OCI runtime (runc, crun, youki, runsc) under Slipway's keeper, with shim its pods by that containerd shim
    /// (kata's, runsc's); without either by Slipway itself.
    pub(crate) handlers: BTreeMap<String, Handler>,
    /// The socket for the kubelet, crictl and slipway's own commands; --address says where it is.
    pub(crate) socket: Socket,
    /// The parent of all containers.
    pub(crate) keeper: Keeper,
    /// Networks by CNI plugins.
    pub(crate) cni: Cni,
    /// The network of nodes without CNI configuration.
    pub(crate) network: Network,
    /// Images and registries.
    pub(crate) images: Images,
    /// What pods get that do not ask for something else.
    pub(crate) pods: Pods,
    /// What containers get that do not ask for something else.
    pub(crate) containers: Containers,
    /// SELinux labels of containers and their files.
    pub(crate) selinux: Selinux,
    /// Logs of containers.
    pub(crate) logs: Logs,
    /// Exec, attach and port-forward.
    pub(crate) streaming: Streaming,
    /// Checkpoints of containers and pods, by CRIU.
    pub(crate) checkpoints: Checkpoints,
    /// Devices by the Container Device Interface.
    pub(crate) cdi: Cdi,
    /// Plugins of the Node Resource Interface; the keys are containerd's.
    pub(crate) nri: crate::nri::Keys,
    /// Metrics for Prometheus.
    pub(crate) metrics: Metrics,
    /// Traces by OpenTelemetry: a span for each request, below the kubelet's own where it has one, and for each of its steps.
    pub(crate) tracing: Tracing,
}

/// One handler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Handler {
    /// The OCI runtime's program, an absolute path, such as "/usr/sbin/runc". Without it, and without shim: Slipway itself.
    pub(crate) runtime_path: Option<PathBuf>,
    /// Where that runtime, or runc behind its shim, keeps its state (its option --root). Without it: runtimes/NAME below the
    /// daemon's --state.
    pub(crate) runtime_root: Option<PathBuf>,
    /// Arguments before each of its commands, such as "--debug", or "--platform=systrap" of runsc. --systemd-cgroup is given
    /// by itself where cgroup_driver is systemd.
    pub(crate) runtime_args: Vec<String>,
    /// A containerd shim's program (shim v2 over ttrpc), an absolute path, such as "/usr/bin/containerd-shim-kata-v2": it runs
    /// the pods of this handler, one process for each. Not together with runtime_path.
    pub(crate) shim: Option<PathBuf>,
    /// The configuration file of that shim's runtime, an absolute path (containerd's ConfigPath, CRI-O's runtime_config_path).
    /// Without it: the runtime's own default.
    pub(crate) config_path: Option<PathBuf>,
    /// The type that the shim knows its options by (containerd's TypeUrl), such as "io.containerd.runsc.v1.options". Without it:
    /// none.
    pub(crate) config_type: Option<String>,
    /// Annotations of pods that the shim is to see, by name, or with "*" at the end by what a name begins with, such as
    /// "io.katacontainers.*". They change how a pod is run: whoever may make pods may set them.
    pub(crate) pod_annotations: Vec<String>,
    /// How long it may take to make a container, or a shim's pod; then it is killed, and the request fails.
    pub(crate) create_timeout: Time,
    /// Each container is announced to the runtime as a sandbox of its own (annotation io.kubernetes.cri.container-type): for
    /// runsc and others that look for a pause container otherwise. Pods of one container are what such a runtime can do.
    pub(crate) sandbox_per_container: bool,
    /// Privileged containers get the usual devices instead of all of the host's, as with containerd's option of this name.
    pub(crate) privileged_without_host_devices: bool,
    /// With that: they may make and use any device all the same.
    pub(crate) privileged_without_host_devices_all_devices_allowed: bool,
}

impl Default for Handler {
    fn default() -> Self {
        Self {
            runtime_path: None,
            runtime_root: None,
            runtime_args: Vec::new(),
            shim: None,
            config_path: None,
            config_type: None,
            pod_annotations: Vec::new(),
            create_timeout: seconds(60),
            sandbox_per_container: false,
            privileged_without_host_devices: false,
            privileged_without_host_devices_all_devices_allowed: false,
        }
    }
}

impl Handler {
    /// The program that runs its containers, if that is not Slipway.
    pub(crate) fn program(&self) -> Option<&Path> {
        self.runtime_path.as_deref().or(self.shim.as_deref())
    }
}

/// How the daemon logs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Socket {
    /// Permissions of the socket, octal; nothing for others can be given. Whoever can connect can become root on this node.
    pub(crate) mode: Mode,
    /// Name or number of the group that owns the socket; "0660" as mode lets its members in. Without it: root's.
    pub(crate) group: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Keeper {
    /// The keeper's program. Without it: containerd-shim-slipway-v1 beside this program, then in PATH.
    pub(crate) path: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Cni {
    /// Directory of network configurations; the first by name counts, for new pods from the moment it is there.
    pub(crate) conf_dir: PathBuf,
    /// Directories in which plugins are looked for, in this order.
    pub(crate) bin_dirs: Vec<PathBuf>,
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Network {
    /// Whether pods get addresses from a bridge of our own while there is no CNI configuration; false: then the node's
    /// network is not ready.
    pub(crate) builtin: bool,
    /// Name of that bridge.
    pub(crate) bridge: String,
    /// Addresses for its pods, IPv4 in CIDR notation.
    pub(crate) pool: String,
}

impl Default for Network {
    fn default() -> Self {
        Self { builtin: true, bridge: "slipway0".into(), pool: "10.88.0.0/16".into() }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Images {
    /// Directories of mirrors and certificates, HOST/hosts.toml as for containerd's config_path; the first that knows a
    /// registry counts. What lies in them is read for each pull.
    pub(crate) hosts_dirs: Vec<PathBuf>,
    /// Credentials for pulls that bring none of their own, and for mirrors: a docker config.json with "auths", "credHelpers",
    /// "credsStore", read for each pull. Without it: none.
    pub(crate) auth_file: Option<PathBuf>,
    /// Layers that are fetched at once for one image, at least 1.
    #[schemars(range(min = 1))]
    pub(crate) parallel_layers: std::num::NonZeroUsize,
    /// Which images may be pulled, imported and run; the rule with the longest prefix counts, and what no rule is for is
    /// accepted. Signatures are cosign's, made by a key (cosign sign --key); neither certificates nor transparency logs are
    /// looked at. Imported images have none. An image that came before its rule must be pulled again. The keys are read at
    /// the start and at SIGHUP; a rule whose key cannot be read at the start refuses its images.
    pub(crate) policy: Vec<Rule>,
}

impl Default for Images {
    fn default() -> Self {
        const LAYERS: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN.saturating_add(2);
        Self {
            hosts_dirs: vec!["/etc/slipway/certs.d".into()],
            auth_file: None,
            parallel_layers: LAYERS,
            policy: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Pods {
    /// Kernel settings for the namespaces that a pod has of its own, "NAME=VALUE" each; what the pod itself asks for comes
    /// first. containerd 2 has "net.ipv4.ip_unprivileged_port_start=0" and "net.ipv4.ping_group_range=0 2147483647" by itself.
    pub(crate) default_sysctls: Vec<Sysctl>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Containers {
    /// Limits of getrlimit(2), "NAME=SOFT:HARD" each, such as "nofile=1024:524288". Others are those of the keeper.
    pub(crate) default_ulimits: Vec<Ulimit>,
    /// Devices that a container asks for belong to the user and group of its security context (run_as_user, run_as_group)
    /// inside, where those are set; false: to whom they belong on the host.
    pub(crate) device_ownership_from_security_context: bool,
    /// What a container may write into its root file system and the `VOLUME`s of its image together, such as "10Gi"; beyond it
    /// writes fail with EDQUOT. A project quota of the file system of --root, which has to have them (XFS or ext4 with its features
    /// quota and project, mounted with prjquota); elsewhere nothing is limited, and the log says so. It stops what grows, not who
    /// means harm: the kernel lets the host's root, which a container without a user namespace runs as, take its files out of a
    /// project (ioctl_fssetxattr(2)). For containers made from then on. Without it: no limit of their own.
    pub(crate) writable_layer_limit: Option<Bytes>,
}

impl Containers {
    /// In bytes; 0 for none.
    pub(crate) fn layer_limit(&self) -> u64 {
        self.writable_layer_limit.as_ref().map_or(0, Bytes::count)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Selinux {
    /// "auto": containers are labelled where the kernel has SELinux on and its policy knows containers, as it does on Fedora, RHEL
    /// and their like with the package container-selinux. "on": pods are refused where SELinux is on and the policy does not.
    /// "off": never, and what pods ask for has no effect, as with containerd and CRI-O unless they are told otherwise; a node with
    /// SELinux has it to keep containers apart, so that is not the default here. On a node without SELinux all are the same.
    pub(crate) labels: Labels,
    /// A pod gets a pair of categories that no other pod of the node has, out of this many: 2 to 1024. What the node's policy
    /// has less of must be said here.
    pub(crate) category_range: Categories,
}

/// Whether containers get SELinux labels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Labels {
    #[default]
    Auto,
    On,
    Off,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Logs {
    /// Bytes of one line of a container's log before it is cut into partial ones; 0 never cuts (CRI-LOG-06).
    pub(crate) max_line: usize,
}

impl Default for Logs {
    fn default() -> Self {
        Self { max_line: 16384 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Streaming {
    /// Where they are served; port 0 is any free one. The token in the URL is the only credential: stay on loopback.
    pub(crate) address: SocketAddr,
    /// Seconds after which a session in which nothing moves is cut; 0: never.
    pub(crate) idle_timeout: u64,
    /// PEM file of the server's certificate, and of what is between it and its authority: the URLs are https then. Read for
    /// each connection, so a renewed one counts at once. Without it: plain HTTP.
    pub(crate) tls_certificate: Option<PathBuf>,
    /// PEM file of that certificate's key.
    pub(crate) tls_key: Option<PathBuf>,
    /// PEM file of authorities: clients must show a certificate of one of them. crictl and slipway can (--tls-cert,
    /// --tls-key), the kubelet cannot: no kubectl exec, attach and port-forward then. Without it: the token is enough.
    pub(crate) tls_client_ca: Option<PathBuf>,
}

impl Default for Streaming {
    /// Loopback and any port (STR-URL-03, STR-URL-11); four hours (STR-IDLE-01).
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            idle_timeout: 4 * 3600,
            tls_certificate: None,
            tls_key: None,
            tls_client_ca: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Checkpoints {
    /// Whether containers and pods can be checkpointed and restored; false: such calls answer Unimplemented.
    pub(crate) enabled: bool,
    /// CRIU's program, for containers made from then on. Without it: criu in PATH.
    pub(crate) criu: Option<PathBuf>,
    /// Whether a container may be restored from an image that holds a checkpoint. Restored processes have the rights that they
    /// were frozen with, whatever their pod allows: with true, whoever may name an image in a pod can become root on this node.
    pub(crate) restore_images: bool,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { enabled: true, criu: None, restore_images: false }
    }
}

impl Checkpoints {
    pub(crate) fn program(&self) -> &Path {
        self.criu.as_deref().unwrap_or(Path::new("criu"))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Cdi {
    /// Directories of device files; of the same device the later one's counts.
    pub(crate) spec_dirs: Vec<PathBuf>,
}

impl Default for Cdi {
    fn default() -> Self {
        Self { spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()] }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Metrics {
    /// Where Prometheus finds /metrics, such as "127.0.0.1:9479". Without it: nowhere. There is no authentication: a loopback
    /// address, or one that only the scraper reaches.
    pub(crate) address: Option<SocketAddr>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tracing {
    /// Collector that takes OTLP over gRPC, such as "127.0.0.1:4317"; without TLS: one on this node. Without it: no traces.
    pub(crate) endpoint: Option<Collector>,
    /// Of requests that come without a trace of the client's, how many in a million are traced; those with one follow it.
    pub(crate) sampling_rate_per_million: PerMillion,
}

impl File {
    /// What the file leaves to the host, decided. Keys stay unset that have no value at all then.
    pub(crate) fn settle(&mut self, cgroups: &Cgroups, keeper: Option<&Path>, state: &Path) {
        let (driver, root) = cgroups.describe();
        self.cgroup_driver = Some(driver);
        self.cgroup_root = Some(root);
        if self.keeper.path.is_none() {
            self.keeper.path = keeper.map(Path::to_owned);
        }
        self.nri.settle(state);
    }
}

impl Images {
    /// For the image store.
    pub(crate) fn registries(&self) -> slipway_images::Registries {
        slipway_images::Registries {
            hosts_dirs: self.hosts_dirs.clone(),
            auth_file: self.auth_file.clone(),
            parallel_layers: self.parallel_layers.get(),
        }
    }
}

impl Streaming {
    pub(crate) fn idle(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.idle_timeout)
    }

    /// The files of TLS; none: plain HTTP.
    pub(crate) fn tls(&self) -> anyhow::Result<Option<slipway_streaming::Tls>> {
        match (&self.tls_certificate, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let (certificate, key) = (certificate.clone(), key.clone());
                Ok(Some(slipway_streaming::Tls { certificate, key, client_ca: self.tls_client_ca.clone() }))
            }
            (None, None) if self.tls_client_ca.is_none() => Ok(None),
            (None, None) => {
                anyhow::bail!("streaming.tls_client_ca needs streaming.tls_certificate and streaming.tls_key")
            }
            _ => anyhow::bail!(
                "streaming.tls_certificate and streaming.tls_key go together: one of them is missing"
            ),
        }
    }
}

/// For keys whose default is a time.
pub(crate) fn seconds(seconds: u64) -> Time {
    Time::of_milliseconds(seconds * 1000)
}
