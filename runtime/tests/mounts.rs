//! Propagation and recursive attributes, seen from both sides.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, add_mount, finish, piped, spec};
use serde_json::{Value, json};
use slipway_runtime::sys::namespace;
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;

/// A mount namespace of the test's own with a shared tmpfs at `volume` of the rig, and a second tmpfs below it at `sub`.
fn with_volume(test: impl FnOnce(&Rig, &Path) + Send) {
    let ran = namespace::on_own_thread("test", || {
        namespace::unshare((libc::CLONE_NEWNS | libc::CLONE_FS) as u32).unwrap();
        let private =
            rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        let rig = Rig::new();
        let volume = rig.path("volume");
        mount_tmpfs(&volume);
        rustix::mount::mount_change(&volume, rustix::mount::MountPropagationFlags::SHARED).unwrap();
        mount_tmpfs(&volume.join("sub"));
        test(&rig, &volume);
        rustix::mount::unmount(&volume, rustix::mount::UnmountFlags::DETACH).unwrap();
    });
    ran.unwrap();
}

fn mount_tmpfs(path: &Path) {
    fs::create_dir_all(path).unwrap();
    rustix::mount::mount("tmpfs", path, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
}

fn with_admin(mut spec: Value) -> Value {
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
    }
    spec
}

#[test]
fn bidirectional_mounts_reach_the_host() {
    with_volume(|rig, volume| {
        let mut spec = with_admin(spec(&[
            "sh",
            "-c",
            "mount -t tmpfs none /data/made && touch /data/made/inside; ls /data",
        ]));
        spec["linux"]["rootfsPropagation"] = json!("rshared");
        fs::create_dir(volume.join("made")).unwrap();
        add_mount(&mut spec, "/data", volume, &["rbind", "rshared"]);
        let outcome = rig.run(&spec).unwrap();
        assert_eq!(outcome.out, "made\nsub\n");
        assert!(volume.join("made/inside").exists());
    });
}

#[test]
fn private_mounts_stay_inside() {
    with_volume(|rig, volume| {
        let mut spec = with_admin(spec(&[
            "sh",
            "-c",
            "mount -t tmpfs none /data/made && touch /data/made/inside && echo ok",
        ]));
        fs::create_dir(volume.join("made")).unwrap();
        add_mount(&mut spec, "/data", volume, &["rbind", "rprivate"]);
        assert_eq!(rig.run(&spec).unwrap().out, "ok\n");
        assert!(!volume.join("made/inside").exists());
    });
}

#[test]
fn later_mounts_of_the_host_reach_slaves_and_not_private_copies() {
    with_volume(|rig, volume| {
        let script = "touch /slave/ready; while [ ! -e /slave/late/file ]; do sleep 0.02; done; ls /private/late; echo seen; mount -t tmpfs none /slave/late";
        let mut spec = with_admin(spec(&["sh", "-c", script]));
        spec["linux"]["rootfsPropagation"] = json!("rslave");
        fs::create_dir(volume.join("late")).unwrap();
        add_mount(&mut spec, "/slave", volume, &["rbind", "rslave"]);
        add_mount(&mut spec, "/private", volume, &["rbind"]);
        let (mut read, stdio) = piped();
        let created = rig.create(&spec, stdio).unwrap();
        created.start.start().unwrap();
        while !volume.join("ready").exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        mount_tmpfs(&volume.join("late"));
        fs::write(volume.join("late/file"), "").unwrap();
        let mut out = String::new();
        read.read_to_string(&mut out).unwrap();
        assert_eq!(finish(created), 0);
        assert_eq!(out, "seen\n");
        assert!(volume.join("late/file").exists(), "the container's own mount does not come back");
    });
}

#[test]
fn recursive_read_only_covers_what_lies_below() {
    with_volume(|rig, volume| {
        let mut spec = spec(&[
            "sh",
            "-c",
            "(touch /rro/sub/x || touch /rro/x) 2>&1 | wc -l; touch /ro/sub/x && echo below; touch /ro/x 2>/dev/null || echo top",
        ]);
        symlink("busybox", rig.path("lower/bin/wc")).unwrap();
        add_mount(&mut spec, "/rro", volume, &["rbind", "rro"]);
        add_mount(&mut spec, "/ro", volume, &["rbind", "ro"]);
        assert_eq!(rig.run(&spec).unwrap().out, "2\nbelow\ntop\n");
    });
}

#[test]
fn a_plain_bind_leaves_out_what_lies_below() {
    with_volume(|rig, volume| {
        fs::write(volume.join("sub/hidden"), "").unwrap();
        let mut spec = spec(&["ls", "/data/sub"]);
        add_mount(&mut spec, "/data", volume, &["bind"]);
        assert_eq!(rig.run(&spec).unwrap().out, "");
    });
}

#[test]
fn nothing_of_a_container_shows_in_the_host_s_mount_table() {
    with_volume(|rig, volume| {
        let table = || fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let before = table();
        let mut spec = spec(&["sleep", "1000"]);
        add_mount(&mut spec, "/data", volume, &["rbind"]);
        let created = rig.create(&spec, slipway_runtime::container::Stdio::default()).unwrap();
        created.start.start().unwrap();
        assert_eq!(table(), before);
        common::kill(created);
        assert_eq!(table(), before);
    });
}

#[test]
fn an_overlay_takes_many_layers_with_long_names() {
    let rig = Rig::new();
    let base = rig.path(&"d".repeat(200));
    let mut lower: Vec<_> = (0..100).map(|n| base.join(format!("{}{n}", "e".repeat(100)))).collect();
    for (number, layer) in lower.iter().enumerate() {
        fs::create_dir_all(layer).unwrap();
        fs::write(layer.join(format!("file{number}")), "").unwrap();
        fs::write(layer.join("same"), number.to_string()).unwrap();
    }
    lower.push(rig.path("lower"));
    let overlay = slipway_runtime::rootfs::Overlay { lower, ..Default::default() };
    let mounted = slipway_runtime::rootfs::mount_overlay(&overlay).unwrap();
    let read = |name: &str| {
        let mut text = String::new();
        slipway_runtime::rootfs::open_in_root(&mounted, Path::new(name))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    };
    assert_eq!(read("/same"), "0");
    assert_eq!(read("file99"), "");
    assert!(read("etc/passwd").starts_with("root:"));
}

#[test]
fn opening_in_a_root_never_leaves_it() {
    let rig = Rig::new();
    symlink("/etc/passwd", rig.path("lower/link")).unwrap();
    symlink("../../../../../../../../etc/passwd", rig.path("lower/up")).unwrap();
    symlink("/proc/self/exe", rig.path("lower/magic")).unwrap();
    let root = fs::File::open(rig.path("lower")).unwrap();
    for name in ["link", "up", "/up", "../../etc/passwd"] {
        let mut text = String::new();
        let mut file = slipway_runtime::rootfs::open_in_root(&root, Path::new(name)).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert!(text.contains("web:x:33"), "{name} left the root: {text}");
    }
    assert!(slipway_runtime::rootfs::open_in_root(&root, Path::new("magic")).is_err());
    let error = slipway_runtime::rootfs::open_in_root(&root, Path::new("etc")).unwrap_err();
    assert_eq!(error.kind(), slipway_runtime::error::Kind::Invalid);
}
