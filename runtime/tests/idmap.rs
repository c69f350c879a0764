//! Bind mounts and layers with other owners than on disk.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, in_user_namespace, mappings, spec, zombies};
use serde_json::{Value, json};
use slipway_runtime::error::Kind;
use slipway_runtime::rootfs::{Overlay, Rootfs, mount_root, open_in_root};
use slipway_runtime::sys::namespace;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

const ROOT: u32 = 300_000;

fn bind(spec: &mut Value, source: &Path, options: &[&str], map: Option<(u32, u32, u32)>) {
    let mut mount = json!({"destination": "/data", "type": "bind", "source": source, "options": options});
    if let Some((container, host, size)) = map {
        let map = json!([{"containerID": container, "hostID": host, "size": size}]);
        mount["uidMappings"] = map.clone();
        mount["gidMappings"] = map;
    }
    spec["mounts"].as_array_mut().unwrap().push(mount);
}

fn volume(rig: &Rig) -> std::path::PathBuf {
    let path = rig.path("volume");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("of-root"), "x").unwrap();
    fs::write(path.join("of-33"), "x").unwrap();
    chown(path.join("of-33"), Some(33), Some(34)).unwrap();
    path
}

#[test]
fn the_container_s_own_mapping_is_the_default() {
    let rig = Rig::mapped(ROOT);
    let path = volume(&rig);
    let change = |spec: &mut Value| {
        in_user_namespace(spec, ROOT);
        bind(spec, &path, &["rbind", "idmap"], None);
    };
    let script = "stat -c %u:%g /data/of-root /data/of-33; echo y > /data/new; stat -c %u:%g /data/new";
    let outcome = rig.sh(change, script);
    assert_eq!(outcome.out, "0:0\n33:34\n0:0\n");
    assert_eq!(fs::metadata(path.join("new")).unwrap().uid(), 0, "on disk it is nobody special's");
    let ours = fs::metadata(path.join("of-33")).unwrap();
    assert_eq!((ours.uid(), ours.gid()), (33, 34));
}

#[test]
fn a_mount_may_have_a_mapping_of_its_own() {
    let rig = Rig::mapped(ROOT);
    let path = volume(&rig);
    // What 33 owns on disk belongs to 1000 inside.
    let change = |spec: &mut Value| {
        in_user_namespace(spec, ROOT);
        bind(spec, &path, &["bind"], Some((33, ROOT + 1000, 2)));
    };
    let outcome = rig.sh(change, "stat -c %u:%g /data/of-root /data/of-33");
    assert_eq!(outcome.out, "65534:65534\n1000:1001\n");
    // Without a user namespace of the container's, too.
    let plain = Rig::new();
    let outcome =
        plain.sh(|spec| bind(spec, &path, &["bind"], Some((33, 7, 2))), "stat -c %u:%g /data/of-33");
    assert_eq!(outcome.out, "7:8\n");
    assert_eq!(zombies(), Vec::<String>::new());
}

#[test]
fn what_is_mounted_below_is_mapped_if_asked() {
    let rig = Rig::mapped(ROOT);
    let path = volume(&rig);
    fs::create_dir(path.join("below")).unwrap();
    let other = rig.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), "x").unwrap();
    let ran = namespace::on_own_thread("test", || {
        namespace::unshare((libc::CLONE_NEWNS | libc::CLONE_FS) as u32).unwrap();
        slipway_runtime::sys::mount::make_tree_private().unwrap();
        rustix::mount::mount_bind(&other, path.join("below")).unwrap();
        for (word, owner) in [("ridmap", "0"), ("idmap", "65534")] {
            let change = |spec: &mut Value| {
                in_user_namespace(spec, ROOT);
                bind(spec, &path, &["rbind", word], None);
            };
            let outcome = rig.sh(change, "stat -c %u /data/of-root /data/below/file");
            assert_eq!(outcome.out, format!("0\n{owner}\n"), "{word}");
        }
    });
    ran.unwrap();
}

#[test]
fn what_cannot_be_mapped_is_refused_with_a_hint() {
    let rig = Rig::mapped(ROOT);
    let path = volume(&rig);
    let refused = |change: &dyn Fn(&mut Value), kind: Kind, expected: &str| {
        let mut spec = spec(&["true"]);
        change(&mut spec);
        let error = rig.run(&spec).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    let user = |spec: &mut Value| in_user_namespace(spec, ROOT);
    refused(
        &|spec| {
            user(spec);
            bind(spec, Path::new("/proc/sys"), &["bind", "idmap"], None);
        },
        Kind::Unsupported,
        "cannot be id-mapped",
    );
    refused(&|spec| bind(spec, &path, &["bind", "idmap"], None), Kind::Invalid, "mapped to what?");
    refused(
        &|spec| {
            user(spec);
            bind(spec, &path, &["bind"], Some((0, 1, 0)));
        },
        Kind::Invalid,
        "mounts.uidMappings: 0:1:0 has size 0",
    );
    refused(
        &|spec| {
            user(spec);
            spec["mounts"][1]["options"] = json!(["idmap"]);
        },
        Kind::Invalid,
        "only bind mounts",
    );
    assert_eq!(zombies(), Vec::<String>::new());
}

#[test]
fn many_layers_and_a_single_one_are_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let lower: Vec<_> = (0..300).map(|n| dir.path().join(format!("{}{n}", "layer".repeat(20)))).collect();
    for layer in &lower {
        fs::create_dir(layer).unwrap();
        fs::write(layer.join("same"), "x").unwrap();
    }
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for lower in [lower.clone(), lower[..1].to_vec()] {
        let overlay = Overlay { lower, idmap: Some(mappings(ROOT)), ..Overlay::default() };
        let root = mount_root(&Rootfs::Overlay(overlay), None).unwrap();
        let file: File = open_in_root(&root, Path::new("same")).unwrap();
        assert_eq!(file.metadata().unwrap().uid(), ROOT);
    }
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}
