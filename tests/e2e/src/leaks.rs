//! The check every scenario ends with: mounts, processes, cgroups, links, firewall tables, namespaces, addresses.

use std::path::Path;
use std::time::{Duration, Instant};

/// Things that end asynchronously (a keeper that was told to go, a veth of a dying namespace) get this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Everything that still belongs to the node in `dir` with control groups below `cgroup_root`.
pub fn of(dir: &Path, cgroup_root: &str) -> Vec<String> {
    let start = Instant::now();
    loop {
        let found = look(dir, cgroup_root);
        if found.is_empty() || start.elapsed() > PATIENCE {
            clean(dir, cgroup_root);
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn look(dir: &Path, cgroup_root: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mine =
        processes_naming(dir).into_iter().chain(processes_with_environment("SLIPWAY_KEEPER_STATE", dir));
    found.extend(mine.map(|(pid, cmd)| format!("process {pid}: {cmd}")));
    found.extend(mounts_below(dir).into_iter().map(|m| format!("mount {m}")));
    found.extend(cgroups(cgroup_root).into_iter().map(|c| format!("cgroup {c}")));
    found.extend(links().into_iter().map(|l| format!("network link {l}")));
    found.extend(tables().into_iter().map(|t| format!("nft table {t}")));
    for sub in ["state/netns", "state/pods", "state/containers", "root/containers", "root/sandboxes"] {
        found.extend(entries(&dir.join(sub)).into_iter().map(|e| format!("file {sub}/{e}")));
    }
    found
}

/// Ends what a failed test left, by pid and by path, and nothing else.
fn clean(dir: &Path, cgroup_root: &str) {
    if is_slice(cgroup_root) {
        let _ = std::process::Command::new("systemctl").args(["stop", cgroup_root]).status();
    }
    for (pid, _) in
        processes_naming(dir).into_iter().chain(processes_with_environment("SLIPWAY_KEEPER_STATE", dir))
    {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    for mount in mounts_below(dir).iter().rev() {
        let _ = std::process::Command::new("umount").args(["-l", mount]).status();
    }
}

/// Processes whose command line names `dir`; the test itself is not one of them.
pub fn processes_naming(dir: &Path) -> Vec<(i32, String)> {
    let needle = dir.to_string_lossy().into_owned();
    all_processes().into_iter().filter(|(_, cmd)| cmd.contains(&needle)).collect()
}

/// Processes whose environment sets `name` to something below `dir`.
pub fn processes_with_environment(name: &str, dir: &Path) -> Vec<(i32, String)> {
    let needle = format!("{name}={}", dir.display());
    let sets = |pid: i32| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|b| *b == 0).any(|v| v.starts_with(needle.as_bytes()))
    };
    all_processes().into_iter().filter(|(pid, _)| sets(*pid)).collect()
}

/// Direct children of `pid` that run the pause image's command (`sleep infinity`, see hack/images).
pub fn pause_children(pid: i32) -> Vec<i32> {
    let is_pause =
        |p: &i32| std::fs::read_to_string(format!("/proc/{p}/cmdline")).is_ok_and(|c| c.contains("infinity"));
    children(pid).into_iter().filter(is_pause).collect()
}

/// Direct children of `pid`, whichever of its threads made them; zombies too.
pub fn children(pid: i32) -> Vec<i32> {
    let threads = entries(&Path::new("/proc").join(pid.to_string()).join("task"));
    let of = |thread: &String| {
        std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")).unwrap_or_default()
    };
    threads
        .iter()
        .flat_map(|t| of(t).split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn all_processes() -> Vec<(i32, String)> {
    let pids = entries(Path::new("/proc")).into_iter().filter_map(|n| n.parse::<i32>().ok());
    let command = |pid: i32| {
        let raw = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let text = String::from_utf8_lossy(&raw).trim_end_matches('\0').replace('\0', " ");
        (!text.is_empty()).then_some((pid, text))
    };
    pids.filter_map(command).collect()
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let needle = dir.to_string_lossy().into_owned();
    // Field 5 is the mount point (proc_pid_mountinfo(5)).
    table
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .filter(|p| p.starts_with(&needle))
        .map(str::to_owned)
        .collect()
}

fn cgroups(root: &str) -> Vec<String> {
    let base = Path::new("/sys/fs/cgroup");
    let mut hierarchies: Vec<_> = entries(base).into_iter().map(|e| base.join(e)).collect();
    hierarchies.push(base.to_owned());
    let below = |h: std::path::PathBuf| h.join(root.trim_start_matches('/'));
    if is_slice(root) {
        // An empty slice stays with systemd, by design; what is in it must not.
        let slices = hierarchies.into_iter().map(below).flat_map(|slice| {
            let inside = entries(&slice).into_iter().map(move |name| slice.join(name));
            inside.filter(|path| path.is_dir())
        });
        return slices.map(|path| path.display().to_string()).collect();
    }
    // A place that criu's dump had in version 2 carries the whole path in its name, and lies in the root.
    let flat = root.trim_matches('/').replace('/', "-");
    let apart = hierarchies.clone().into_iter().flat_map(|h| {
        let names = entries(&h).into_iter().filter(|n| n.starts_with("slipway-apart-") && n.contains(&flat));
        names.map(|name| h.join(name)).collect::<Vec<_>>()
    });
    let apart: Vec<_> = apart.collect();
    hierarchies
        .into_iter()
        .map(below)
        .chain(apart)
        .filter(|p| p.is_dir())
        .map(|p| p.display().to_string())
        .collect()
}

fn is_slice(cgroup_root: &str) -> bool {
    cgroup_root.ends_with(".slice")
}

/// Links of this thread's network namespace other than `lo`.
fn links() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let names = table.lines().skip(2).filter_map(|l| l.split(':').next()).map(|n| n.trim().to_owned());
    // sit0, tunl0 … are made by the kernel in every new namespace where their drivers are built in.
    names.filter(|n| n != "lo" && !n.ends_with('0') || n == "slipway0").collect()
}

fn tables() -> Vec<String> {
    let output = std::process::Command::new("nft").args(["list", "tables"]).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().filter(|l| l.contains("slipway")).map(str::to_owned).collect()
}

fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}
