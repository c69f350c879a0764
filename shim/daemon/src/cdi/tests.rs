use super::*;
use serde_json::{Value, json};
use std::fs;

const GPU: &str = r#"
cdiVersion: "0.5.0"
kind: "acme.com/gpu"
containerEdits:
  env: ["ACME=1"]
devices:
  - name: "0"
    containerEdits:
      deviceNodes: [{path: /dev/acme0, hostPath: /dev/null, permissions: rw}]
      mounts: [{hostPath: /etc, containerPath: /opt/acme/etc, options: [ro, nosuid]}]
  - name: all
    containerEdits:
      env: ["ACME=all"]
      hooks: [{hookName: createContainer, path: /bin/true, args: ["true", x]}]
"#;

fn config(names: &[&str], annotation: Option<&str>) -> v1::ContainerConfig {
    let devices = names.iter().map(|&name| v1::CdiDevice { name: name.into() });
    v1::ContainerConfig {
        cdi_devices: devices.collect(),
        annotations: annotation.map(|a| (format!("{ANNOTATION}x"), a.into())).into_iter().collect(),
        ..Default::default()
    }
}

fn dirs() -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().expect("dir");
    let dirs: Vec<_> = ["etc", "run"].iter().map(|d| dir.path().join(d)).collect();
    dirs.iter().for_each(|d| fs::create_dir(d).expect("make"));
    (dir, dirs)
}

fn applied(edits: &[Edits], uid: u32) -> Value {
    let mut spec = json!({
        "process": {"env": ["PATH=/bin", "ACME=0"], "user": {"uid": uid, "gid": uid}},
        "mounts": [{"destination": "/proc"}, {"destination": "/a/b/c"}],
        "linux": {"resources": {"devices": [{"allow": false, "access": "rwm"}]}},
    });
    apply(&mut spec, edits).expect("apply");
    spec
}

/// CDI-01, CDI-06, CDI-07, CDI-08, CDI-09, CDI-10, CDI-11, CDI-15, CRI-DEV-04, CRI-DEV-05.
#[test]
fn devices_change_the_spec() {
    let (_guard, dirs) = dirs();
    fs::write(dirs[0].join("acme.yaml"), GPU).expect("write");
    let asked = config(&["acme.com/gpu=0"], Some("acme.com/gpu=all,acme.com/gpu=0"));
    let edits = edits(&asked, &dirs).expect("found");
    assert_eq!(edits.len(), 3, "the file's own once, and each device once");
    let spec = applied(&edits, 7);
    assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "ACME=all"]));
    let device = &spec["linux"]["devices"][0];
    assert_eq!(
        (&device["path"], &device["type"], &device["major"], &device["minor"]),
        (&json!("/dev/acme0"), &json!("c"), &json!(1), &json!(3))
    );
    assert_eq!((&device["uid"], &device["gid"]), (&json!(7), &json!(7)));
    assert_eq!(
        spec["linux"]["resources"]["devices"][1],
        json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"})
    );
    let targets: Vec<_> =
        spec["mounts"].as_array().expect("list").iter().map(|m| &m["destination"]).collect();
    assert_eq!(targets, ["/proc", "/a/b/c", "/opt/acme/etc"]);
    assert_eq!(spec["mounts"][2]["options"], json!(["rbind", "ro", "nosuid"]));
    assert_eq!(spec["hooks"]["createContainer"], json!([{"path": "/bin/true", "args": ["true", "x"]}]));
    assert!(applied(&edits, 0)["linux"]["devices"][0].get("uid").is_none());
}

/// CDI-01, CDI-03, CDI-05, CDI-14.
#[test]
fn later_directories_win_and_bad_files_harm_nobody() {
    let (_guard, dirs) = dirs();
    fs::write(dirs[0].join("acme.yaml"), GPU).expect("write");
    fs::write(dirs[0].join("broken.json"), "{").expect("write");
    let json = r#"{"cdiVersion": "1.0.0", "kind": "acme.com/gpu", "devices": [{"name": "0", "containerEdits": {"env": ["RUN=1"]}}]}"#;
    fs::write(dirs[1].join("acme.json"), json).expect("write");
    let one = config(&["acme.com/gpu=0"], None);
    let found = edits(&one, &dirs).expect("found");
    assert_eq!(applied(&found, 0)["process"]["env"], json!(["PATH=/bin", "ACME=0", "RUN=1"]));
    let error = edits(&config(&["acme.com/gpu=9"], None), &dirs).expect_err("unknown").to_string();
    assert!(error.contains("acme.com/gpu=9") && error.contains("broken.json"), "{error}");
    fs::write(dirs[1].join("zz.json"), json).expect("write");
    let error = edits(&one, &dirs).expect_err("two files").to_string();
    assert!(error.contains("acme.json") && error.contains("zz.json"), "{error}");
    fs::remove_file(dirs[1].join("zz.json")).expect("remove");
    assert!(edits(&one, &dirs).is_ok(), "read again each time");
    assert_eq!(edits(&config(&[], None), &[PathBuf::from("/absent")]), Ok(Vec::new()));
}

/// CDI-02, CDI-03, CDI-04, CDI-13.
#[test]
fn what_a_file_must_be() {
    let parse = |text: &str| File::parse(Path::new("x.yaml"), text).map(drop);
    assert_eq!(parse(GPU), Ok(()));
    for (from, to, word) in [
        ("kind: \"acme.com/gpu\"", "kind: acme", "vendor/class"),
        ("0.5.0", "9.9.9", "9.9.9"),
        ("0.5.0", "0.4.0", "0.5.0"),
        ("env: [\"ACME=1\"]", "env: [ACME]", "NAME=value"),
        ("createContainer", "later", "later"),
        ("name: all", "name: \"0\"", "twice"),
        ("name: all", "name: a/b", "a/b"),
        ("permissions: rw", "permissions: rx", "rx"),
        ("hostPath: /dev/null", "hostpath: /dev/null", "hostpath"),
    ] {
        let error = parse(&GPU.replacen(from, to, 1)).expect_err(to);
        assert!(error.contains(word), "{to}: {error}");
    }
    assert!(parse("cdiVersion: \"0.5.0\"\nkind: a.b/c\ndevices: []\n").is_err_and(|e| e.contains("empty")));
    for bad in ["gpu", "acme.com/gpu", "acme.com/gpu=", "-a/b=c", "a/b=c."] {
        assert!(edits(&config(&[bad], None), &[]).is_err(), "{bad}");
    }
}

/// CDI-08.
#[test]
fn a_node_of_another_type_is_refused() {
    let (_guard, dirs) = dirs();
    fs::write(dirs[0].join("acme.yaml"), GPU.replace("permissions: rw", "type: b")).expect("write");
    let edits = edits(&config(&["acme.com/gpu=0"], None), &dirs).expect("found");
    let error = apply(&mut json!({}), &edits).expect_err("a block device it is not");
    assert!(error.to_string().contains("/dev/null"), "{error}");
}
