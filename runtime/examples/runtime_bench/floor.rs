//! The floor: what the kernel itself takes for a container's life, by a bare program that does nothing else.
//!
//! clone3 into new namespaces, a bind of the root filesystem, the usual mounts, devices, masks and read-only paths,
//! pivot_root, the version 1 control groups with three limits, credentials, the seccomp filter, execve, wait, rmdir.

use slipway_runtime::host::{CgroupLayout, Host};
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Everything that does not change from life to life.
pub struct Floor {
    root: CString,
    filter: Vec<libc::sock_filter>,
    groups: Vec<PathBuf>,
    limits: Vec<(PathBuf, &'static str)>,
    tasks: &'static str,
    network: bool,
}

/// The fourteen that containers usually have.
const USUAL_CAPABILITIES: u64 = 0xa804_25fb;
const MASKED: [&CStr; 6] =
    [c"/proc/acpi", c"/proc/kcore", c"/proc/keys", c"/proc/timer_list", c"/proc/scsi", c"/sys/firmware"];
const READ_ONLY: [&CStr; 5] = [c"/proc/bus", c"/proc/fs", c"/proc/irq", c"/proc/sys", c"/proc/sysrq-trigger"];
const NODES: [(&CStr, u32, u32); 6] = [
    (c"dev/null", 1, 3),
    (c"dev/zero", 1, 5),
    (c"dev/full", 1, 7),
    (c"dev/random", 1, 8),
    (c"dev/urandom", 1, 9),
    (c"dev/tty", 5, 0),
];
const LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"dev/fd"),
    (c"/proc/self/fd/0", c"dev/stdin"),
    (c"/proc/self/fd/1", c"dev/stdout"),
    (c"/proc/self/fd/2", c"dev/stderr"),
    (c"pts/ptmx", c"dev/ptmx"),
];

impl Floor {
    pub fn new(root: &Path, filter: Vec<libc::sock_filter>, network: bool) -> Self {
        let host = Host::current();
        let name = format!("slipway-floor-{}", std::process::id());
        let groups: Vec<PathBuf> = match host.cgroups {
            CgroupLayout::V1 => host.hierarchies.iter().map(|h| h.path.join(&name)).collect(),
            CgroupLayout::V2 => vec![Path::new("/sys/fs/cgroup").join(&name)],
        };
        let wanted = [
            ("memory.limit_in_bytes", "268435456"),
            ("cpu.shares", "512"),
            ("cpu.cfs_quota_us", "50000"),
            ("pids.max", "100"),
            ("memory.max", "268435456"),
            ("cpu.max", "50000 100000"),
        ];
        let hierarchy = |file: &str| {
            let controller = file.split('.').next().unwrap_or_default().to_owned();
            groups.iter().find(move |g| {
                let above = g.parent().and_then(Path::file_name).and_then(|n| n.to_str()).unwrap_or_default();
                host.cgroups == CgroupLayout::V2 || above.split(',').any(|c| c == controller)
            })
        };
        let version_1 = host.cgroups == CgroupLayout::V1;
        let fits = |file: &str| file == "pids.max" || version_1 != file.ends_with(".max");
        let limits = wanted.into_iter().filter(|(file, _)| fits(file));
        let limits = limits.filter_map(|(file, value)| Some((hierarchy(file)?.join(file), value))).collect();
        let tasks = if version_1 { "tasks" } else { "cgroup.procs" };
        Self { root: text(root), filter, groups, limits, tasks, network }
    }

    /// One whole life of /bin/true.
    pub fn life(&self) -> io::Result<()> {
        for group in &self.groups {
            fs::create_dir(group)?;
            inherit_cpuset(group);
        }
        for (file, value) in &self.limits {
            fs::write(file, value)?;
        }
        let open = |group: &PathBuf| File::options().write(true).open(group.join(self.tasks));
        let tasks = self.groups.iter().map(open).collect::<io::Result<Vec<_>>>()?;
        let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        if self.network {
            flags |= libc::CLONE_NEWNET;
        }
        // SAFETY: no CLONE_VM: the child goes on with a copy of our memory; we are a program of one thread.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) } as i32;
        if pid == 0 {
            let failed = self.child(&tasks);
            eprintln!("floor: {} at {failed}", io::Error::last_os_error());
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(1) }
        }
        drop(tasks);
        let mut status = 0;
        // SAFETY: waits for our own child; the status is ours.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        for group in &self.groups {
            fs::remove_dir(group)?;
        }
        if status == 0 {
            Ok(())
        } else {
            Err(io::Error::other(format!("the floor's child ended with {status}")))
        }
    }

    /// Returns only when something failed, with its name.
    fn child(&self, tasks: &[File]) -> &'static str {
        let usual = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        // SAFETY: plain words, changing only this child.
        unsafe { libc::setsid() };
        // SAFETY: as above; the name has five bytes.
        unsafe { libc::sethostname(c"pod-0".as_ptr(), 5) };
        let private = mount(c"", c"/", c"", libc::MS_REC | libc::MS_PRIVATE, c"")
            && mount(&self.root, &self.root, c"", libc::MS_BIND | libc::MS_REC, c"")
            && directory(&self.root);
        if !private {
            return "the root filesystem";
        }
        let mounted = mount(c"proc", c"proc", c"proc", usual, c"")
            && mount(
                c"tmpfs",
                c"dev",
                c"tmpfs",
                libc::MS_NOSUID | libc::MS_STRICTATIME,
                c"mode=755,size=65536k",
            )
            && [c"dev/pts", c"dev/mqueue", c"dev/shm"].into_iter().all(make_directory)
            && mount(
                c"devpts",
                c"dev/pts",
                c"devpts",
                libc::MS_NOSUID | libc::MS_NOEXEC,
                c"newinstance,ptmxmode=0666,mode=0620,gid=5",
            )
            && mount(c"mqueue", c"dev/mqueue", c"mqueue", usual, c"")
            && mount(c"shm", c"dev/shm", c"tmpfs", usual, c"mode=1777,size=65536k")
            && mount(c"sysfs", c"sys", c"sysfs", usual | libc::MS_RDONLY, c"");
        if !mounted {
            return "mounts";
        }
        devices();
        // SAFETY: two C strings.
        let pivoted = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) } == 0;
        // SAFETY: a C string and a flag.
        if !pivoted || unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) } != 0 || !directory(c"/") {
            return "pivot_root";
        }
        for path in READ_ONLY {
            mount(path, path, c"", libc::MS_BIND | libc::MS_REC, c"");
            mount(c"", path, c"", libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | usual, c"");
        }
        for path in MASKED {
            if !mount(c"/dev/null", path, c"", libc::MS_BIND, c"") {
                mount(c"tmpfs", path, c"tmpfs", libc::MS_RDONLY, c"nr_inodes=1");
            }
        }
        for mut file in tasks {
            if file.write_all(b"0").is_err() {
                return "control groups";
            }
        }
        self.execute()
    }

    fn execute(&self) -> &'static str {
        for capability in 0..41 {
            if USUAL_CAPABILITIES >> capability & 1 == 0 {
                // SAFETY: plain words.
                unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
            }
        }
        let program =
            libc::sock_fprog { len: self.filter.len() as u16, filter: self.filter.as_ptr().cast_mut() };
        let arguments = [c"/bin/true".as_ptr(), std::ptr::null()];
        let nothing = [std::ptr::null()];
        // SAFETY: plain words; the filter and both tables live across the calls.
        unsafe {
            libc::unshare(libc::CLONE_NEWCGROUP);
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            if libc::syscall(libc::SYS_seccomp, 1, 0, &raw const program) != 0 {
                return "seccomp";
            }
            libc::execve(arguments[0], arguments.as_ptr(), nothing.as_ptr());
        }
        "execve"
    }
}

fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong, data: &CStr) -> bool {
    // SAFETY: all strings live across the call.
    unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) == 0 }
}

fn directory(path: &CStr) -> bool {
    // SAFETY: a C string.
    unsafe { libc::chdir(path.as_ptr()) == 0 }
}

fn make_directory(path: &CStr) -> bool {
    // SAFETY: a C string.
    unsafe { libc::mkdir(path.as_ptr(), 0o755) == 0 }
}

fn devices() {
    for (path, major, minor) in NODES {
        // SAFETY: a C string and plain words.
        unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(major, minor)) };
    }
    for (target, path) in LINKS {
        // SAFETY: two C strings.
        unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) };
    }
}

/// A version 1 cpuset takes nobody until it has cpus and memory nodes.
fn inherit_cpuset(group: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = group.parent().map(|above| fs::read(above.join(file))).transpose() {
            let _ = fs::write(group.join(file), value.unwrap_or_default());
        }
    }
}

fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}
