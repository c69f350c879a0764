//! Root filesystems as snapshotters give them: an overlay of any length, other file systems, several mounts.

use crate::rig::{Bundle, Rig, address_of, code, kill_both, log_lines, soon};
use containerd_shim_protos::api::{CreateTaskRequest, Mount};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use ttrpc::Code;

fn create(rig: &Rig, bundle: &Bundle, rootfs: Vec<Mount>) -> ttrpc::Result<u32> {
    fs::write(bundle.path.join("config.json"), bundle.spec.to_string()).unwrap();
    let request = CreateTaskRequest {
        id: bundle.id.clone(),
        bundle: bundle.path.to_str().unwrap().into(),
        rootfs,
        stdout: format!("cri-log://{}", rig.log_path(&bundle.id).display()),
        ..Default::default()
    };
    rig.run(rig.tasks().create(soon(), &request)).map(|answer| answer.pid)
}

fn mount(kind: &str, source: &Path, target: &str, options: &[&str]) -> Mount {
    Mount {
        type_: kind.into(),
        source: source.to_str().unwrap().into(),
        target: target.into(),
        options: options.iter().map(|&option| option.into()).collect(),
        ..Default::default()
    }
}

/// Moves what the rig has put into the root elsewhere, as a snapshot.
fn snapshot(bundle: &Bundle) -> PathBuf {
    let base = bundle.path.join("base");
    fs::rename(bundle.path.join("rootfs"), &base).unwrap();
    base
}

/// Mounts below a directory, on the host.
/// (A shared mount whose source lies beside it passes what is mounted on it on to that.)
fn mounts(below: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.split(' ').nth(4).unwrap().starts_with(below.to_str().unwrap())).count()
}

fn end(rig: &Rig, id: &str) {
    rig.kill(id, "", 9, true).unwrap();
    rig.wait(id, "").unwrap();
    rig.delete(id, "").unwrap();
}

#[test]
fn a_root_of_many_layers_with_long_names() {
    // SHIM-MNT-02, SHIM-MNT-01: the options are three times as long as the page that mount(2) takes.
    let rig = Rig::new();
    let bundle = rig.bundle("c", &["sh", "-c", "cat /layers/* | grep -c layer; cat /top; echo new > /top"]);
    let base = rig.dir().join("l".repeat(80));
    let layers: Vec<PathBuf> =
        (0..120).map(|number| base.join(format!("{number}-{}", "x".repeat(20)))).collect();
    for (number, layer) in layers.iter().enumerate() {
        fs::create_dir_all(layer.join("layers")).unwrap();
        fs::write(layer.join(format!("layers/{number}")), "layer\n").unwrap();
        fs::write(layer.join("top"), format!("{number}\n")).unwrap();
    }
    let (upper, work) = (rig.dir().join("upper"), rig.dir().join("work"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let lower: Vec<_> = layers.iter().map(|layer| layer.to_str().unwrap().to_owned()).collect();
    let lower = format!("lowerdir={}:{}", lower.join(":"), bundle.path.join("rootfs").display());
    assert!(lower.len() > 3 * 4096, "{}", lower.len());
    let options = vec![lower, format!("upperdir={}", upper.display()), format!("workdir={}", work.display())];
    let mount = Mount { type_: "overlay".into(), source: "overlay".into(), options, ..Default::default() };
    create(&rig, &bundle, vec![mount]).unwrap();
    rig.start("c", "").unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 0);
    rig.delete("c", "").unwrap();
    assert_eq!(log_lines(&rig.log_path("c"), "stdout"), ["120", "0"]);
    assert_eq!(fs::read_to_string(upper.join("top")).unwrap(), "new\n");
}

/// A root, a file system below it, and an overlay in what is mounted by then.
fn three(bundle: &Bundle) -> Vec<Mount> {
    let base = snapshot(bundle);
    fs::create_dir(base.join("data")).unwrap();
    for layer in ["upper", "lower"] {
        fs::create_dir(bundle.path.join(layer)).unwrap();
        fs::write(bundle.path.join(layer).join(layer), layer).unwrap();
    }
    let lower =
        format!("lowerdir={}:{}", bundle.path.join("upper").display(), bundle.path.join("lower").display());
    vec![
        mount("bind", &base, "", &["rbind", "rw"]),
        mount("tmpfs", Path::new("tmpfs"), "/tmp", &["nosuid", "size=64k"]),
        mount("overlay", Path::new("overlay"), "data", &[&lower]),
    ]
}

#[test]
fn several_mounts_one_on_the_other() {
    // SHIM-TSK-01, SHIM-TSK-19, SHIM-MNT-01, SHIM-MNT-04
    let mut rig = Rig::new();
    let script = "echo /data/*; head -c 1000000 /dev/zero > /tmp/x; [ -s /tmp/x ] && echo written; : > /here; sleep 1000";
    let bundle = rig.bundle("c", &["sh", "-c", script]);
    let rootfs = three(&bundle);
    create(&rig, &bundle, rootfs).unwrap();
    assert_eq!(mounts(&bundle.path.join("rootfs")), 3, "where the client sees them");
    rig.start("c", "").unwrap();
    crate::rig::wait_until("its words", || log_lines(&rig.log_path("c"), "stdout").len() == 2);
    assert_eq!(log_lines(&rig.log_path("c"), "stdout"), ["/data/lower /data/upper", "written"]);
    crate::rig::wait_until("a file in the snapshot", || bundle.path.join("base/here").exists());
    assert_eq!(fs::metadata(bundle.path.join("rootfs/tmp/x")).unwrap().len(), 64 << 10);
    // The next keeper knows that they are its own to undo.
    rig.kill_keeper();
    end(&rig, "c");
    assert_eq!(mounts(&bundle.path), 0);
    assert!(fs::read_dir(bundle.path.join("rootfs")).unwrap().next().is_none());
    fs::remove_dir(bundle.path.join("rootfs")).unwrap();
}

#[test]
fn a_mount_that_fails_takes_the_former_ones_with_it() {
    // SHIM-MNT-03
    let rig = Rig::new();
    let bundle = rig.bundle("c", &["true"]);
    let good = three(&bundle);
    for (last, words, expected) in [
        (mount("nosuchfs", Path::new("/x"), "/tmp", &[]), "no such file system", Code::UNIMPLEMENTED),
        (mount("tmpfs", Path::new("tmpfs"), "/not/there", &[]), "not/there in", Code::NOT_FOUND),
        (mount("tmpfs", Path::new("tmpfs"), "/tmp", &["colour=red"]), "option", Code::INVALID_ARGUMENT),
        (mount("bind", Path::new("/not/there"), "/tmp", &["bind"]), "/not/there", Code::NOT_FOUND),
        (mount("erofs", Path::new("/x"), "/tmp", &["ro", "loop"]), "loop", Code::UNIMPLEMENTED),
    ] {
        let mut all = good.clone();
        all.push(last);
        let refused = create(&rig, &bundle, all);
        let said = format!("{refused:?}");
        assert!(said.contains("mount 4 of 4") && said.contains(words), "{said}");
        assert_eq!(code(refused), expected);
        assert_eq!(mounts(&bundle.path), 0, "{said}");
    }
    assert_eq!(
        code(create(&rig, &bundle, good[1..].to_vec())),
        Code::INVALID_ARGUMENT,
        "no root to begin with"
    );
    // What fails later takes them along, too.
    let mut bad = rig.bundle("bad", &["true"]);
    let rootfs = three(&bad);
    bad.spec["process"]["cwd"] = "relative".into();
    assert_eq!(code(create(&rig, &bad, rootfs)), Code::INVALID_ARGUMENT);
    assert_eq!(mounts(&bad.path), 0);
    assert!(rig.list().is_empty());
    create(&rig, &bundle, good).unwrap();
    rig.start("c", "").unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 0);
    rig.delete("c", "").unwrap();
}

#[test]
fn delete_finds_them_without_a_keeper() {
    // SHIM-DEL-01
    let mut rig = Rig::new();
    let bundle = rig.bundle("c", &["sleep", "1000"]);
    let rootfs = three(&bundle);
    create(&rig, &bundle, rootfs).unwrap();
    rig.start("c", "").unwrap();
    let keeper = rig.info().keeper_pid;
    kill_both(rig.guardian, keeper);
    assert_eq!(mounts(&bundle.path.join("rootfs")), 3);
    let output = Command::new(crate::rig::BINARY)
        .args(["-namespace", "test", "-address", "/nowhere.sock", "-id", "c", "delete"])
        .env("SLIPWAY_KEEPER_STATE", rig.dir())
        .current_dir(&bundle.path)
        .output()
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(mounts(&bundle.path), 0);
    address_of(&rig.shim("node", "start"));
    rig.reconnect();
    rig.guardian = rig.info().guardian_pid;
}

/// A loop device with an ext4 of its own; taken away in the end.
struct Disk(String);

impl Disk {
    /// None where the tools or the kernel have none.
    fn new(at: &Path, contents: &Path) -> Option<Self> {
        fs::File::create(at).unwrap().set_len(16 << 20).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-d"]).arg(contents).arg(at).status();
        if !made.is_ok_and(|status| status.success()) {
            return None;
        }
        let device = Command::new("losetup").args(["-f", "--show"]).arg(at).output().ok()?;
        let name = String::from_utf8(device.stdout).unwrap().trim().to_owned();
        device.status.success().then_some(Self(name))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn a_block_device() {
    // SHIM-TSK-01: as the devmapper snapshotter has it.
    let rig = Rig::new();
    let mut bundle = rig.bundle(
        "c",
        &["sh", "-c", "while read -r _ _ _ _ at _; do echo $at; done < /proc/self/mountinfo; : > /x"],
    );
    let base = snapshot(&bundle);
    let Some(disk) = Disk::new(&rig.dir().join("disk"), &base) else {
        println!("skipped: mkfs.ext4 or a loop device is not to be had here");
        return;
    };
    let root = mount("ext4", Path::new(&disk.0), "", &["ro", "noatime"]);
    create(&rig, &bundle, vec![root.clone()]).unwrap();
    rig.start("c", "").unwrap();
    assert_ne!(rig.wait("c", "").unwrap(), 0, "it is read-only");
    rig.delete("c", "").unwrap();
    assert_eq!(log_lines(&rig.log_path("c"), "stdout")[0], "/");
    assert_eq!(mounts(&bundle.path), 0);
    bundle.spec["process"]["args"] = serde_json::json!(["sh", "-c", "test -s /bin/busybox && : > /x"]);
    // The kernel lets go of the dead container's copy of the mount a moment later; until then it is a read-only one.
    let writable = Mount { options: vec!["rw".into()], ..root };
    crate::rig::wait_until("the device to be free", || create(&rig, &bundle, vec![writable.clone()]).is_ok());
    rig.start("c", "").unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 0);
    rig.delete("c", "").unwrap();
}
