//! Manifests and exactly what becomes of them on the wire.

use std::collections::HashMap;
use std::path::PathBuf;

use cri_proto::v1 as cri;

use super::manifest::{HostPath, HostPathType, Pod, parse};
use super::translate::{Facts, ImageFacts, check, container_config, sandbox_config};
use super::volumes::{VolumePlan, volumes};

fn facts() -> Facts {
    Facts {
        uid: "u-1".into(),
        pod_dir: "/root/pods/u-1".into(),
        manifest_dir: "/manifests".into(),
        host_ip: "192.0.2.7".into(),
        node_name: "node".into(),
        memory_capacity: 8 << 30,
        recursive_read_only: true,
        users: Some(1 << 30),
        masked_extra: vec!["/sys/extra".into()],
        pod_ips: vec!["10.1.2.3".into(), "fd00::3".into()],
    }
}

fn image() -> ImageFacts {
    ImageFacts { id: "sha256:abc".into(), uid: None, username: String::new() }
}

fn pod(spec: &str) -> Pod {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, labels: {{app: a}}, annotations: {{note: n}}}}\nspec:\n{spec}"
    );
    parse(&text).unwrap_or_else(|error| panic!("{error:#}\n{text}")).pods.remove(0)
}

/// A pod with one container `c` of these fields.
fn with_container(fields: &str) -> Pod {
    pod(&format!("  containers:\n  - {{name: c, image: i, {fields}}}\n"))
}

fn config_of(pod: &Pod) -> cri::ContainerConfig {
    container_config(pod, &pod.spec.containers[0], &facts(), Some(&image())).unwrap().config
}

fn security_of(pod: &Pod) -> cri::LinuxContainerSecurityContext {
    config_of(pod).linux.unwrap().security_context.unwrap()
}

fn refused(pod: &Pod) -> String {
    format!("{:#}", check(pod, &facts()).expect_err("must be refused"))
}

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn default_masked() -> Vec<String> {
    strings(&[
        "/proc/asound",
        "/proc/acpi",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
        "/sys/extra",
    ])
}

fn default_read_only() -> Vec<String> {
    strings(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"])
}

fn runtime_default() -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: 0, localhost_ref: String::new() })
}

#[test]
fn golden_the_smallest_pod() {
    let pod = with_container("");
    check(&pod, &facts()).unwrap();
    let namespaces = Some(cri::NamespaceOption {
        network: cri::NamespaceMode::Pod.into(),
        pid: cri::NamespaceMode::Container.into(),
        ipc: cri::NamespaceMode::Pod.into(),
        ..Default::default()
    });
    let sandbox = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: "p".into(),
            uid: "u-1".into(),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: "p".into(),
        log_directory: "/root/pods/u-1/logs".into(),
        dns_config: None,
        port_mappings: vec![],
        labels: map(&[
            ("app", "a"),
            ("io.kubernetes.pod.name", "p"),
            ("io.kubernetes.pod.namespace", "default"),
            ("io.kubernetes.pod.uid", "u-1"),
        ]),
        annotations: map(&[
            ("note", "n"),
            ("io.slipway.restart-policy", "Always"),
            ("io.slipway.termination-grace-period", "30"),
        ]),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: namespaces.clone(),
                seccomp: runtime_default(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        windows: None,
    };
    assert_eq!(sandbox_config(&pod, &facts()).unwrap(), sandbox);

    let container = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 0 }),
        image: Some(cri::ImageSpec {
            image: "sha256:abc".into(),
            user_specified_image: "i".into(),
            ..Default::default()
        }),
        labels: map(&[
            ("io.kubernetes.container.name", "c"),
            ("io.kubernetes.pod.name", "p"),
            ("io.kubernetes.pod.namespace", "default"),
            ("io.kubernetes.pod.uid", "u-1"),
        ]),
        log_path: "c/0.log".into(),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources {
                cpu_shares: 2,
                cpu_period: 100_000,
                oom_score_adj: 1000,
                ..Default::default()
            }),
            security_context: Some(cri::LinuxContainerSecurityContext {
                capabilities: Some(cri::Capability::default()),
                namespace_options: namespaces,
                seccomp: runtime_default(),
                masked_paths: default_masked(),
                readonly_paths: default_read_only(),
                ..Default::default()
            }),
        }),
        ..Default::default()
    };
    assert_eq!(config_of(&pod), container);
}

const FULL: &str = r#"
  restartPolicy: OnFailure
  hostname: h
  hostPID: true
  hostIPC: true
  runtimeClassName: rc
  terminationGracePeriodSeconds: 5
  dnsPolicy: None
  dnsConfig: {nameservers: [192.0.2.53], searches: [a.example], options: [{name: ndots, value: "2"}, {name: edns0}]}
  securityContext:
    runAsUser: 1000
    runAsGroup: 1001
    fsGroup: 2000
    supplementalGroups: [3000]
    supplementalGroupsPolicy: Strict
    sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "0"}]
    seccompProfile: {type: Localhost, localhostProfile: p.json}
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: ram, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
  - {name: host, hostPath: {path: /srv/data, type: DirectoryOrCreate}}
  containers:
  - name: c
    image: registry.example/i:1
    command: [run, "$(GREETING)", "$$(NOT)"]
    args: ["--name=$(NAME)"]
    workingDir: /work
    stdin: true
    tty: true
    env:
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: GREETING, value: "hello $(NAME) $(LATER)"}
    - {name: LATER, value: x}
    - {name: IP, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: status.podIP}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    ports: [{containerPort: 80, hostPort: 8080, hostIP: 127.0.0.1, name: web}, {containerPort: 53, protocol: UDP, hostPort: 5353}, {containerPort: 9}]
    resources: {requests: {cpu: 250m, memory: 1Gi}, limits: {cpu: 1500m, memory: 2Gi, hugepages-2Mi: 4Mi}}
    volumeMounts:
    - {name: disk, mountPath: /disk, subPath: a/b}
    - {name: ram, mountPath: /ram, mountPropagation: HostToContainer}
    - {name: host, mountPath: /host, readOnly: true, recursiveReadOnly: IfPossible}
    securityContext:
      runAsUser: 42
      runAsNonRoot: true
      capabilities: {add: [NET_ADMIN], drop: [ALL]}
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      procMount: Unmasked
      appArmorProfile: {type: Localhost, localhostProfile: aa}
"#;

#[test]
fn golden_a_full_pods_sandbox() {
    let sandbox = sandbox_config(&pod(FULL), &facts()).unwrap();
    assert_eq!(sandbox.hostname, "h");
    assert_eq!(sandbox.annotations["io.slipway.restart-policy"], "OnFailure");
    assert_eq!(sandbox.annotations["io.slipway.termination-grace-period"], "5");
    let dns = cri::DnsConfig {
        servers: strings(&["192.0.2.53"]),
        searches: strings(&["a.example"]),
        options: strings(&["ndots:2", "edns0"]),
    };
    assert_eq!(sandbox.dns_config, Some(dns));
    let ports = [
        cri::PortMapping { protocol: 0, container_port: 80, host_port: 8080, host_ip: "127.0.0.1".into() },
        cri::PortMapping { protocol: 1, container_port: 53, host_port: 5353, host_ip: String::new() },
    ];
    assert_eq!(sandbox.port_mappings, ports);
    let linux = sandbox.linux.unwrap();
    assert_eq!(linux.sysctls, map(&[("net.ipv4.ip_unprivileged_port_start", "0")]));
    let security = cri::LinuxSandboxSecurityContext {
        namespace_options: Some(cri::NamespaceOption {
            network: cri::NamespaceMode::Pod.into(),
            pid: cri::NamespaceMode::Node.into(),
            ipc: cri::NamespaceMode::Node.into(),
            ..Default::default()
        }),
        run_as_user: Some(cri::Int64Value { value: 1000 }),
        run_as_group: Some(cri::Int64Value { value: 1001 }),
        supplemental_groups: vec![3000, 2000],
        supplemental_groups_policy: cri::SupplementalGroupsPolicy::Strict.into(),
        seccomp: runtime_default(),
        ..Default::default()
    };
    assert_eq!(linux.security_context, Some(security));
}

#[test]
fn golden_a_full_pods_container() {
    let pod = pod(FULL);
    check(&pod, &facts()).unwrap();
    let plan = container_config(&pod, &pod.spec.containers[0], &facts(), Some(&image())).unwrap();
    assert_eq!(plan.sub_paths, [(PathBuf::from("/root/pods/u-1/volumes/disk"), "a/b".to_owned())]);
    let config = plan.config;
    assert_eq!(config.command, ["run", "hello p $(LATER)", "$(NOT)"]);
    assert_eq!(config.args, ["--name=p"]);
    assert_eq!(config.working_dir, "/work");
    assert!(config.stdin && config.tty && !config.stdin_once);
    let env: Vec<_> =
        config.envs.iter().map(|e| format!("{}={}", e.key, String::from_utf8_lossy(&e.value))).collect();
    assert_eq!(env, ["NAME=p", "GREETING=hello p $(LATER)", "LATER=x", "IP=10.1.2.3", "APP=a"]);
    let mount = |target: &str, source: &str| cri::Mount {
        container_path: target.into(),
        host_path: source.into(),
        ..Default::default()
    };
    let mounts = [
        mount("/disk", "/root/pods/u-1/volumes/disk/a/b"),
        cri::Mount {
            propagation: cri::MountPropagation::PropagationHostToContainer.into(),
            ..mount("/ram", "/root/pods/u-1/volumes/ram")
        },
        cri::Mount { readonly: true, recursive_read_only: true, ..mount("/host", "/srv/data") },
    ];
    assert_eq!(config.mounts, mounts);
    let linux = config.linux.unwrap();
    let resources = cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 150_000,
        cpu_shares: 256,
        memory_limit_in_bytes: 2 << 30,
        memory_swap_limit_in_bytes: 2 << 30,
        hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
        oom_score_adj: 875,
        ..Default::default()
    };
    assert_eq!(linux.resources, Some(resources));
    let security = cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: strings(&["NET_ADMIN"]),
            drop_capabilities: strings(&["ALL"]),
            ..Default::default()
        }),
        namespace_options: Some(cri::NamespaceOption {
            network: cri::NamespaceMode::Pod.into(),
            pid: cri::NamespaceMode::Node.into(),
            ipc: cri::NamespaceMode::Node.into(),
            ..Default::default()
        }),
        run_as_user: Some(cri::Int64Value { value: 42 }),
        run_as_group: Some(cri::Int64Value { value: 1001 }),
        readonly_rootfs: true,
        supplemental_groups: vec![3000, 2000],
        supplemental_groups_policy: cri::SupplementalGroupsPolicy::Strict.into(),
        no_new_privs: true,
        seccomp: Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::Localhost.into(),
            localhost_ref: "/manifests/p.json".into(),
        }),
        apparmor: Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::Localhost.into(),
            localhost_ref: "aa".into(),
        }),
        ..Default::default()
    };
    assert_eq!(linux.security_context, Some(security));
}

#[test]
fn golden_volumes() {
    let found = volumes(&pod(FULL), &facts()).unwrap();
    let directory = |name: &str| PathBuf::from("/root/pods/u-1/volumes").join(name);
    let wanted = [
        (
            "disk",
            VolumePlan::EmptyDir { path: directory("disk"), memory: false, size: None, group: Some(2000) },
        ),
        (
            "host",
            VolumePlan::HostPath(HostPath {
                path: "/srv/data".into(),
                r#type: HostPathType::DirectoryOrCreate,
            }),
        ),
        (
            "ram",
            VolumePlan::EmptyDir {
                path: directory("ram"),
                memory: true,
                size: Some(16 << 20),
                group: Some(2000),
            },
        ),
    ];
    assert_eq!(found, wanted.into_iter().map(|(name, plan)| (name.to_owned(), plan)).collect());
}

#[test]
fn host_network_and_shared_processes() {
    let pod = pod(
        "  hostNetwork: true\n  shareProcessNamespace: true\n  containers:\n  - {name: c, image: i, ports: [{containerPort: 80, hostPort: 80}], env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]}\n",
    );
    let sandbox = sandbox_config(&pod, &facts()).unwrap();
    // CRI-NET-02
    assert_eq!(sandbox.hostname, "");
    assert!(sandbox.port_mappings.is_empty());
    let options = security_of(&pod).namespace_options.unwrap();
    assert_eq!(options.network, i32::from(cri::NamespaceMode::Node));
    assert_eq!(options.pid, i32::from(cri::NamespaceMode::Pod));
    assert_eq!(config_of(&pod).envs[0].value, b"192.0.2.7");
}

/// CRI-UNS-07: the kubelet gives the pod's mapping to sandbox, containers and volumes.
#[test]
fn users_of_its_own() {
    let pod = pod(
        "  hostUsers: false\n  containers:\n  - {name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}\n  volumes: [{name: v, emptyDir: {}}]\n",
    );
    let map = cri::IdMapping { container_id: 0, host_id: 1 << 30, length: 65536 };
    let user = security_of(&pod).namespace_options.unwrap().userns_options.unwrap();
    assert_eq!((user.mode(), &user.uids, &user.gids), (cri::NamespaceMode::Pod, &vec![map], &vec![map]));
    let sandbox = sandbox_config(&pod, &facts()).unwrap().linux.unwrap().security_context.unwrap();
    assert_eq!(sandbox.namespace_options.unwrap().userns_options, Some(user));
    let mount = config_of(&pod).mounts[0].clone();
    assert_eq!((mount.uid_mappings, mount.gid_mappings), (vec![map], vec![map]));
    let cannot = Facts { users: None, ..facts() };
    assert!(check(&pod, &cannot).unwrap_err().to_string().contains("hostUsers"));
}

#[test]
fn privileged_and_unprivileged() {
    let pod = with_container("securityContext: {privileged: true}, volumeMounts: []");
    let security = security_of(&pod);
    assert!(security.privileged && security.seccomp.is_none() && !security.no_new_privs);
    // CRI-RUN-20
    assert!(sandbox_config(&pod, &facts()).unwrap().linux.unwrap().security_context.unwrap().privileged);
    let own = with_container("securityContext: {seccompProfile: {type: Unconfined}}");
    let profile = security_of(&own).seccomp.unwrap();
    assert_eq!(profile.profile_type, i32::from(cri::security_profile::ProfileType::Unconfined));
}

#[test]
fn resources_by_the_kubelets_rules() {
    let resources = |fields: &str| {
        config_of(&with_container(&format!("resources: {{{fields}}}"))).linux.unwrap().resources.unwrap()
    };
    let limits_only = resources("limits: {cpu: 500m, memory: 64Mi}");
    assert_eq!(
        (limits_only.cpu_shares, limits_only.cpu_quota, limits_only.oom_score_adj),
        (512, 50_000, -997)
    );
    let tiny = resources("requests: {cpu: 1m}, limits: {cpu: 5m}");
    assert_eq!((tiny.cpu_shares, tiny.cpu_quota, tiny.oom_score_adj), (2, 1000, 999));
    let request = resources("requests: {cpu: 2, memory: 16Gi}");
    assert_eq!((request.cpu_shares, request.cpu_quota, request.memory_limit_in_bytes), (2048, 0, 0));
    assert_eq!(request.oom_score_adj, 3, "asks for more than there is");
}

#[test]
fn run_as_non_root_looks_at_the_image() {
    let pod = with_container("securityContext: {runAsNonRoot: true}");
    let with = |uid, username: &str| {
        let image = ImageFacts { id: "x".into(), uid, username: username.into() };
        container_config(&pod, &pod.spec.containers[0], &facts(), Some(&image)).map(|plan| plan.config)
    };
    assert!(with(Some(7), "").is_ok());
    for (uid, username, word) in [(None, "", "root"), (Some(0), "", "root"), (None, "www", "\"www\"")] {
        let error = format!("{:#}", with(uid, username).unwrap_err());
        assert!(error.contains("runAsNonRoot") && error.contains(word), "{error}");
    }
    let group = with_container("securityContext: {runAsGroup: 5}");
    // CRI-CC-15: a group never goes alone.
    assert_eq!(security_of(&group).run_as_user, Some(cri::Int64Value { value: 0 }));
    check(&group, &facts()).unwrap();
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_made() {
    let volume = "  volumes: [{name: v, emptyDir: {}}]\n";
    for (spec, word) in [
        ("  containers: []\n".to_owned(), "at least one container"),
        ("  containers: [{name: A, image: i}]\n".to_owned(), "container name \"A\""),
        ("  containers: [{name: ../a, image: i}]\n".to_owned(), "container name"),
        ("  containers: [{name: a, image: i}, {name: a, image: i}]\n".to_owned(), "two containers"),
        ("  dnsPolicy: None\n  containers: [{name: a, image: i}]\n".to_owned(), "nameservers"),
        ("  volumes: [{name: v}]\n  containers: [{name: a, image: i}]\n".to_owned(), "exactly one of"),
        ("  volumes: [{name: v, hostPath: {path: a}}]\n  containers: [{name: a, image: i}]\n".to_owned(), "absolute"),
        ("  volumes: [{name: v, hostPath: {path: /a/../b}}]\n  containers: [{name: a, image: i}]\n".to_owned(), "'..'"),
        (format!("{volume}  containers: [{{name: a, image: i, volumeMounts: [{{name: w, mountPath: /a}}]}}]\n"), "names no volume"),
        (format!("{volume}  containers: [{{name: a, image: i, volumeMounts: [{{name: v, mountPath: a}}]}}]\n"), "absolute"),
        (format!("{volume}  containers: [{{name: a, image: i, volumeMounts: [{{name: v, mountPath: /a, subPath: ../b}}]}}]\n"), "subPath"),
        (format!("{volume}  containers: [{{name: a, image: i, volumeMounts: [{{name: v, mountPath: /a}}, {{name: v, mountPath: /a/}}]}}]\n"), "two volumeMounts"),
        (format!("{volume}  containers: [{{name: a, image: i, volumeMounts: [{{name: v, mountPath: /a, recursiveReadOnly: Enabled}}]}}]\n"), "readOnly"),
        (format!("{volume}  containers: [{{name: a, image: i, volumeMounts: [{{name: v, mountPath: /a, mountPropagation: Bidirectional}}]}}]\n"), "privileged"),
        ("  containers: [{name: a, image: i, ports: [{containerPort: 1, hostPort: 9}, {containerPort: 2, hostPort: 9}]}]\n".to_owned(), "twice"),
        ("  containers: [{name: a, image: i, ports: [{containerPort: 1, hostPort: 9, hostIP: x}]}]\n".to_owned(), "not an address"),
        ("  containers: [{name: a, image: i, resources: {requests: {cpu: 2}, limits: {cpu: 1}}}]\n".to_owned(), "above the limit"),
        ("  containers: [{name: a, image: i, securityContext: {runAsUser: -1}}]\n".to_owned(), "out of range"),
        ("  containers: [{name: a, image: i, securityContext: {runAsUser: 0, runAsNonRoot: true}}]\n".to_owned(), "root"),
        ("  containers: [{name: a, image: i, securityContext: {privileged: true, allowPrivilegeEscalation: false}}]\n".to_owned(), "contradicts"),
        ("  containers: [{name: a, image: i, securityContext: {seccompProfile: {type: Localhost}}}]\n".to_owned(), "localhostProfile"),
        ("  containers: [{name: a, image: i, env: [{name: X, valueFrom: {fieldRef: {fieldPath: spec.x}}}]}]\n".to_owned(), "spec.x"),
        ("  containers: [{name: a, image: i, env: [{name: X=, value: y}]}]\n".to_owned(), "env name"),
    ] {
        let error = refused(&pod(&spec));
        assert!(error.contains(word), "{spec}{error}");
    }
}
