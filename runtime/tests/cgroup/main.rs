//! Control groups against the kernel, as root; the same tests run on version 1 (hybrid) and version 2.

mod devices;
mod life;
mod limits;
mod oom;
mod stats;
mod systemd;

use oci_spec::runtime::{LinuxResources, LinuxResourcesBuilder};
use slipway_runtime::cgroup::{Cgroup, Join};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// A group of its own for one test; the end checks that nothing of it is left in any hierarchy.
struct Scope(String);

impl Scope {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(format!("/slipway-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    fn path(&self) -> String {
        format!("{}/leaf", self.0)
    }

    fn end(self) {
        Cgroup::remove_if_empty(&self.0).expect("remove the parent");
        let left = directories(&self.0);
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// A test that failed must not leave its groups to the next one.
impl Drop for Scope {
    fn drop(&mut self) {
        if let Ok(group) = Cgroup::open(&self.0) {
            let _ = group.kill_all();
            let _ = group.remove(PATIENCE);
        }
    }
}

fn directories(path: &str) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let cgroups =
        mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).filter(|f| f[2].starts_with("cgroup"));
    cgroups.map(|f| format!("{}{path}", f[1])).filter(|d| Path::new(d).is_dir()).collect()
}

fn v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A shell that waits for a line before it runs `script`; it is in the group before that. Joining from outside by
/// cgroup.procs is the slow way, and good enough here; the launcher's own way is tested with the launcher.
fn spawn_in(group: &Cgroup, script: &str) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh");
    match group.join().expect("join") {
        Join::CloneInto(dir) => {
            let procs = format!("/proc/self/fd/{}/cgroup.procs", dir.as_raw_fd());
            std::fs::write(procs, child.id().to_string()).expect("join version 2");
        }
        Join::WriteTasks(files) => {
            for file in files {
                let mut file = std::fs::File::from(file);
                file.write_all(child.id().to_string().as_bytes()).expect("join version 1");
            }
        }
    }
    child.stdin.take().expect("stdin").write_all(b"go\n").expect("go");
    child
}

fn resources(set: impl FnOnce(LinuxResourcesBuilder) -> LinuxResourcesBuilder) -> LinuxResources {
    set(LinuxResourcesBuilder::default()).build().expect("resources")
}

/// All lines the child writes until it ends.
fn lines(child: &mut Child) -> Vec<String> {
    let lines = BufReader::new(child.stdout.take().expect("stdout")).lines().map_while(Result::ok).collect();
    child.wait().expect("wait");
    lines
}

/// The first line the child writes; it goes on running.
fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("stdout")).read_line(&mut line).expect("a line");
    line.trim_end().to_owned()
}

/// Ends everything in the group and removes it.
fn finish(group: Cgroup, children: &mut [Child]) {
    group.kill_all().expect("kill");
    for child in children {
        child.wait().expect("wait");
    }
    group.remove(PATIENCE).expect("remove");
}

/// The text of control file `file` of the group, in whichever hierarchy has it.
fn control(group: &Cgroup, file: &str) -> Option<String> {
    let dirs = directories(&group.path());
    dirs.iter().find_map(|dir| Some(std::fs::read_to_string(format!("{dir}/{file}")).ok()?.trim().to_owned()))
}

/// True if this host offers the controller on either version.
fn has(controller: &str) -> bool {
    let v1 = std::fs::read_to_string("/proc/self/cgroup").expect("own groups");
    let v1 = v1.lines().any(|l| l.split(':').nth(1).is_some_and(|c| c.split(',').any(|c| c == controller)));
    let lists = ["/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/unified/cgroup.controllers"];
    let v2 = lists.iter().filter_map(|f| std::fs::read_to_string(f).ok());
    v1 || v2
        .flat_map(|l| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .any(|c| c == controller)
}
