use super::*;

fn spec() -> Value {
    json!({
        "process": {"args": ["/bin/a"], "env": ["A=1", "B=2"], "oomScoreAdj": 0,
                    "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 1}},
        "mounts": [{"destination": "/proc"}, {"destination": "/data/x"}],
        "annotations": {"own": "1", "gone": "2"},
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "network", "path": "/n"}],
            "devices": [{"path": "/dev/own"}],
            "resources": {"cpu": {"shares": 2}, "devices": [{"allow": false, "access": "rwm"}]},
        }
    })
}

fn adjusted(change: impl FnOnce(&mut nri::ContainerAdjustment)) -> Value {
    let (mut spec, mut adjust) = (spec(), nri::ContainerAdjustment::new());
    change(&mut adjust);
    apply(&mut spec, &adjust, &[]).expect("adjusted");
    spec
}

/// NRI-21, NRI-22.
#[test]
fn process_and_annotations() {
    let variable =
        |key: &str, value: &str| nri::KeyValue { key: key.into(), value: value.into(), ..Default::default() };
    let spec = adjusted(|a| {
        a.annotations = HashMap::from([("-gone".into(), String::new()), ("new".into(), "3".into())]);
        a.env = vec![variable("-A", ""), variable("A", "one"), variable("-B", ""), variable("C", "3")];
        a.args = vec!["/bin/b".into(), "c".into()];
        a.rlimits.push(nri::POSIXRlimit {
            type_: "RLIMIT_NOFILE".into(),
            hard: 5,
            soft: 4,
            ..Default::default()
        });
        a.hooks.mut_or_insert_default().poststop.push(nri::Hook { path: "/h".into(), ..Default::default() });
    });
    assert_eq!(spec["annotations"], json!({"own": "1", "new": "3"}));
    assert_eq!(spec["process"]["env"], json!(["A=one", "C=3"]));
    assert_eq!(spec["process"]["args"], json!(["/bin/b", "c"]));
    assert_eq!(spec["process"]["rlimits"], json!([{"type": "RLIMIT_NOFILE", "hard": 5, "soft": 4}]));
    assert_eq!(spec["hooks"], json!({"poststop": [{"path": "/h"}]}));
}

/// NRI-21, NRI-25: sorted afterwards.
#[test]
fn mounts_replace_and_are_sorted() {
    let mount = |destination: &str, options: &[&str]| nri::Mount {
        destination: destination.into(),
        type_: "bind".into(),
        source: "/s".into(),
        options: options.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let spec = adjusted(|a| {
        a.mounts = vec![mount("/a/b/c", &["rshared"]), mount("-/proc", &[]), mount("/data/x/", &["ro"])]
    });
    let order: Vec<_> =
        spec["mounts"].as_array().expect("list").iter().map(|m| m["destination"].clone()).collect();
    assert_eq!(order, ["/data/x", "/a/b/c"]);
    assert_eq!(spec["mounts"][0]["options"], json!(["ro"]));
    assert_eq!(spec["linux"]["rootfsPropagation"], "rshared");
}

/// NRI-21.
#[test]
fn linux_fields() {
    let int = |value| nri::OptionalInt { value, ..Default::default() };
    let spec = adjusted(|a| {
        let linux = a.linux.mut_or_insert_default();
        linux.devices.push(nri::LinuxDevice { path: "-/dev/own".into(), ..Default::default() });
        linux.devices.push(nri::LinuxDevice {
            path: "/dev/new".into(),
            type_: "c".into(),
            major: 1,
            minor: 3,
            ..Default::default()
        });
        linux.namespaces.push(nri::LinuxNamespace { type_: "-network".into(), ..Default::default() });
        linux.sysctl.insert("net.x".into(), "1".into());
        linux.oom_score_adj = Some(int(7)).into();
        linux.cgroups_path = "/other".into();
        linux.io_priority = Some(nri::LinuxIOPriority::new()).into();
        linux.scheduler = Some(nri::LinuxScheduler {
            policy: nri::LinuxSchedulerPolicy::SCHED_BATCH.into(),
            nice: 5,
            ..Default::default()
        })
        .into();
        linux.memory_policy = Some(nri::LinuxMemoryPolicy {
            mode: nri::MpolMode::MPOL_BIND.into(),
            nodes: "0".into(),
            ..Default::default()
        })
        .into();
        linux.rdt.mut_or_insert_default().clos_id =
            Some(nri::OptionalString { value: "gold".into(), ..Default::default() }).into();
        linux.seccomp_policy.mut_or_insert_default().default_action = "SCMP_ACT_ALLOW".into();
        linux.resources.mut_or_insert_default().cpu.mut_or_insert_default().cpus = "0".into();
    });
    let linux = &spec["linux"];
    assert_eq!(linux["devices"], json!([{"path": "/dev/new", "type": "c", "major": 1, "minor": 3}]));
    assert_eq!(linux["resources"]["devices"][1]["access"], "rw");
    assert_eq!(linux["namespaces"], json!([{"type": "mount"}]));
    assert_eq!(linux["sysctl"], json!({"net.x": "1"}));
    assert_eq!(linux["cgroupsPath"], "/other");
    assert_eq!(linux["resources"]["cpu"], json!({"shares": 2, "cpus": "0"}));
    assert_eq!(linux["memoryPolicy"], json!({"mode": "MPOL_BIND", "nodes": "0", "flags": []}));
    assert_eq!(linux["intelRdt"], json!({"closID": "gold"}));
    assert_eq!(linux["seccomp"]["defaultAction"], "SCMP_ACT_ALLOW");
    assert_eq!(spec["process"]["oomScoreAdj"], 7);
    assert_eq!(spec["process"]["scheduler"]["policy"], "SCHED_BATCH");
    assert!(spec["process"].get("ioPriority").is_none(), "NONE takes it away");
}

#[test]
fn nothing_asked_changes_nothing() {
    let mut unchanged = spec();
    let over = apply(&mut unchanged, &nri::ContainerAdjustment::new(), &[]).expect("nothing");
    assert_eq!((unchanged, over), (spec(), json!({})));
}
