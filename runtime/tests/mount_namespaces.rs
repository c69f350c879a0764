//! Containers in a mount namespace that is not their own: the host's, or one that is there already. OCI config-linux.md,
//! "Namespaces": a kind that is not listed is inherited, one with a path is joined.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, exec_in, finish, kill, piped, spec};
use serde_json::{Value, json};
use slipway_runtime::container;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MOUNT: usize = 3;

fn on_the_host(spec: &mut Value) {
    spec["linux"]["namespaces"].as_array_mut().unwrap().remove(MOUNT);
}

fn own(kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap()
}

/// What our own table of mounts shows of a rig's containers; others' mounts come and go.
fn mounts(rig: &Rig) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let name = rig.dir.path().display().to_string();
    table.lines().filter(|line| line.contains(&name)).map(str::to_owned).collect()
}

/// What the tree must show whatever namespace it is in: mounts, masks, read-only paths, and nothing of the host.
const LOOK: &str = "readlink /proc/self/ns/mnt; cat /proc/self/comm; ls -d /dev/pts/ptmx /dev/null /sys/kernel; \
    cat /proc/timer_list; ls /etc /lower 2>&1; touch /proc/sys/kernel/domainname 2>&1; echo kept > /kept; \
    while [ $((up += 1)) -lt 9 ]; do cd ..; done; ls -d etc root; wc -l < /proc/self/mountinfo";

#[test]
fn without_a_namespace_of_its_own_the_container_is_in_ours_and_its_mounts_are_not() {
    let rig = Rig::new();
    for name in ["readlink", "wc"] {
        std::os::unix::fs::symlink("busybox", rig.path("lower/bin").join(name)).unwrap();
    }
    let outcome = rig.sh(on_the_host, LOOK);
    let expected = format!(
        "{}\ncat\n/dev/null\n/dev/pts/ptmx\n/sys/kernel\nls: /lower: No such file or directory\n/etc:\npasswd\n\
         touch: /proc/sys/kernel/domainname: Read-only file system\netc\nroot\n0\n",
        own("mnt").display()
    );
    assert_eq!((outcome.out, outcome.status), (expected, 0));
    assert_eq!(fs::read_to_string(rig.path("upper/kept")).unwrap(), "kept\n");
    assert_eq!(mounts(&rig), Vec::<String>::new());
}

#[test]
fn who_may_change_roots_again_gets_no_further_than_the_container() {
    let rig = Rig::new();
    std::os::unix::fs::symlink("busybox", rig.path("lower/bin/chroot")).unwrap();
    fs::create_dir_all(rig.path("lower/in/bin")).unwrap();
    common::copy_program(&rig.path("lower/bin/busybox"), &rig.path("lower/in/bin/sh"));
    // The classic way out of a chroot(2): a working directory above the root. Here by a descriptor of the outer root.
    let script = "exec 3< /; chroot /in /bin/sh -c 'cd -P /proc/self/fd/3 || exit 9; \
        while [ $((up += 1)) -lt 9 ]; do cd -P ..; done; echo etc/pass* tmp/*'";
    let change = |spec: &mut Value| {
        on_the_host(spec);
        let proc = json!({"destination": "/in/proc", "type": "proc", "source": "proc"});
        spec["mounts"].as_array_mut().unwrap().push(proc);
    };
    let outcome = rig.sh(change, script);
    assert_eq!((outcome.out.as_str(), outcome.status), ("etc/passwd tmp/*\n", 0));
}

#[test]
fn a_process_beside_the_first_one_sees_its_tree() {
    let rig = Rig::new();
    std::os::unix::fs::symlink("busybox", rig.path("lower/bin/readlink")).unwrap();
    let mut json = spec(&["sleep", "1000"]);
    on_the_host(&mut json);
    let created = rig.create(&json, container::Stdio::default()).unwrap();
    created.start.start().unwrap();
    let read: oci_spec::runtime::Spec = serde_json::from_value(json.clone()).unwrap();
    let mut process = read.process().clone().unwrap();
    let script = "readlink /proc/self/ns/mnt; cat /proc/1/comm; ls /etc; pwd; echo beside > /beside";
    process.set_args(Some(vec!["sh".into(), "-c".into(), script.into()]));
    let (mut out, stdio) = piped();
    let session = container::exec(exec_in(&created, &read, &process, "beside", stdio)).unwrap();
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(slipway_runtime::sys::process::reap(&session.pidfd).unwrap(), 0, "{text}");
    session.cgroup.remove(Duration::from_secs(5)).unwrap();
    assert_eq!(text, format!("{}\nsleep\npasswd\n/\n", own("mnt").display()));
    assert_eq!(fs::read_to_string(rig.path("upper/beside")).unwrap(), "beside\n");
    kill(created);
    assert_eq!(mounts(&rig), Vec::<String>::new());
}

#[test]
fn hooks_of_the_start_run_in_the_tree() {
    let rig = Rig::new();
    let mut json = spec(&["cat", "/hooked"]);
    on_the_host(&mut json);
    let script = "cat > /dev/null; ls /etc > /hooked";
    json["hooks"] = json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    fs::create_dir(rig.path("rootfs")).unwrap();
    let (mut out, stdio) = piped();
    let created = rig.create(&json, stdio).unwrap();
    let read: oci_spec::runtime::Spec = serde_json::from_value(json).unwrap();
    container::start(&container::StartRequest {
        subject: common::subject(&read),
        pid: created.pid,
        pidfd: &created.pidfd,
        cgroup: &created.cgroup,
        parked: container::Parked::Pipe(&created.start),
    })
    .unwrap();
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), finish(created)), ("passwd\n", 0));
}

/// Somebody's mount namespace with a mark in it.
struct Elsewhere(Child);

impl Elsewhere {
    fn new(mark: &str) -> Self {
        let script = format!("mount -t tmpfs {mark} /mnt && exec sleep 1000");
        let child = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let table = format!("/proc/{}/mountinfo", child.id());
        while !fs::read_to_string(&table).unwrap_or_default().contains(mark) {
            assert!(Instant::now() < deadline, "no mount namespace after 30 s");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self(child)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_namespace_of_others_is_joined_and_stays_as_it_is() {
    let rig = Rig::new();
    std::os::unix::fs::symlink("busybox", rig.path("lower/bin/readlink")).unwrap();
    let mark = format!("slipway-mark-{}", std::process::id());
    let other = Elsewhere::new(&mark);
    let path = format!("/proc/{}/ns/mnt", other.0.id());
    let table = || fs::read_to_string(format!("/proc/{}/mountinfo", other.0.id())).unwrap();
    let before = table();
    let joined = |spec: &mut Value| spec["linux"]["namespaces"][MOUNT]["path"] = json!(path);
    let outcome = rig.sh(joined, "readlink /proc/self/ns/mnt; ls /mnt 2>&1; ls /etc");
    let expected =
        format!("{}\nls: /mnt: No such file or directory\npasswd\n", fs::read_link(&path).unwrap().display());
    assert_eq!((outcome.out, outcome.status), (expected, 0));
    assert_eq!((table(), mounts(&rig)), (before, Vec::new()));
}
