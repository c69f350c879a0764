//! Steps of the child that change the process: descriptors, namespaces, credentials, limits, filter, execve.

use super::child::{Child, Fd, exit, forgive, open_host, write_all};
use super::raw::{Raw, call, ptr, word};
use super::step::{CapabilityMasks, MemoryPolicy, Schedule, Step, StringTable};
use std::ffi::{CStr, CString};

const LAST_CAPABILITY: usize = 63;
const SIGNALS: usize = 64;
/// SECCOMP_FILTER_FLAG_NEW_LISTENER, linux/seccomp.h.
const FLAG_NEW_LISTENER: u32 = 1 << 3;

impl Child<'_> {
    pub(super) fn process_step(&mut self, step: &Step) -> Raw<()> {
        match step {
            Step::CloseForeign => close_all_but(self.script.keep),
            Step::CloseAll => close_all_but(self.script.stay),
            Step::ResetSignals => reset_signals(),
            Step::NewSession => call(libc::SYS_setsid, [0; 6]).map(drop),
            Step::WriteProc { path, value, forgive: errno } => {
                forgive(write_file(path, value.to_bytes()), *errno)
            }
            Step::JoinNamespace { from, kind } => set_ns(self.descriptor(*from)?, *kind),
            Step::JoinProcess { pidfd, kinds } => set_ns(self.descriptor(*pidfd)?, *kinds),
            Step::SetHostName(name) => set_name(libc::SYS_sethostname, name),
            Step::SetDomainName(name) => set_name(libc::SYS_setdomainname, name),
            Step::NewCgroupNamespace => {
                call(libc::SYS_unshare, [libc::CLONE_NEWCGROUP as usize, 0, 0, 0, 0, 0]).map(drop)
            }
            Step::StandardStreams { uid } => self.standard_streams(*uid),
            Step::ControlTerminal => {
                call(libc::SYS_ioctl, [0, libc::TIOCSCTTY as usize, 0, 0, 0, 0]).map(drop)
            }
            Step::ResourceLimit { resource, soft, hard } => set_limit(*resource, *soft, *hard),
            Step::EnterCgroup => self.enter_cgroup(),
            Step::Schedule(schedule) => set_schedule(schedule),
            Step::IoPriority(word) => set_io_priority(*word),
            Step::Affinity(cpus) => set_affinity(cpus),
            Step::MemoryPolicy(policy) => set_memory_policy(policy),
            Step::Personality(word) => call(libc::SYS_personality, [*word as usize, 0, 0, 0, 0, 0]).map(drop),
            Step::FileModeMask(mask) => call(libc::SYS_umask, [*mask as usize, 0, 0, 0, 0, 0]).map(drop),
            Step::BoundingSet(mask) => drop_bounding(*mask),
            Step::Credentials { uid, gid, groups } => set_credentials(*uid, *gid, groups),
            Step::Capabilities { masks, extra } => set_capabilities(masks, *extra),
            Step::NoNewPrivileges => prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop),
            Step::ChangeDirectory(path) => self.change_directory(path),
            Step::VerifyDirectory(path) => self.verify_directory(path),
            Step::FindCommand { candidates } => self.find_command(candidates),
            Step::UnblockSignals => unblock_signals(),
            Step::Seccomp => self.install_filter(),
            Step::Execute { argv, env } => self.execute(argv, env),
            Step::ExecuteDescriptor { from, argv } => execute_descriptor(self.descriptor(*from)?, argv),
            // The dispatcher in `child` sends only the steps above here.
            _ => Err(libc::ENOSYS),
        }
    }

    fn standard_streams(&self, uid: u32) -> Raw<()> {
        for (target, &given) in self.script.stdio.iter().enumerate() {
            let from = self.terminal.unwrap_or(given);
            let own = is_null(from).then(open_null).flatten();
            let from = own.as_ref().map_or(from, |null| null.0);
            give_to(from, uid);
            call(libc::SYS_dup3, [word(from), target, 0, 0, 0, 0])?;
        }
        Ok(())
    }

    fn enter_cgroup(&self) -> Raw<()> {
        for &tasks in self.script.tasks {
            write_all(tasks, b"0")?;
        }
        Ok(())
    }

    /// As root first, since the user may be kept out of a parent directory; a refusal is not final.
    fn change_directory(&mut self, path: &CStr) -> Raw<()> {
        self.in_directory = match call(libc::SYS_chdir, [ptr(path), 0, 0, 0, 0, 0]) {
            Ok(_) => true,
            Err(libc::EACCES | libc::EPERM) => false,
            Err(errno) => return Err(errno),
        };
        Ok(())
    }

    /// A working directory outside the root (reached through a leaked descriptor) shows as "(unreachable)".
    fn verify_directory(&mut self, path: &CStr) -> Raw<()> {
        if !self.in_directory {
            call(libc::SYS_chdir, [ptr(path), 0, 0, 0, 0, 0])?;
        }
        let mut buffer = [0u8; libc::PATH_MAX as usize];
        call(libc::SYS_getcwd, [buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0, 0])?;
        if buffer.first() == Some(&b'/') { Ok(()) } else { Err(libc::ENOENT) }
    }

    /// The first candidate that is a file the final user may execute. EACCES is told before ENOENT: a command that is
    /// there but not executable is the likelier mistake.
    fn find_command(&mut self, candidates: &[CString]) -> Raw<()> {
        let mut answer = libc::ENOENT;
        for path in candidates {
            match may_execute(path, self.script.own_binary) {
                Ok(()) => {
                    self.command = ptr(path);
                    return Ok(());
                }
                Err(libc::ENOENT | libc::ENOTDIR) => {}
                Err(errno) => answer = errno,
            }
        }
        Err(answer)
    }

    fn install_filter(&self) -> Raw<()> {
        let program = libc::sock_fprog {
            len: self.script.filter.len() as u16,
            filter: self.script.filter.as_ptr().cast_mut(),
        };
        const SET_MODE_FILTER: usize = 1;
        let flags = self.script.filter_flags;
        if flags & FLAG_NEW_LISTENER != 0 {
            return self.install_with_listener(&program, flags);
        }
        call(libc::SYS_seccomp, [SET_MODE_FILTER, flags as usize, &raw const program as usize, 0, 0, 0])
            .map(drop)
    }

    fn execute(&self, argv: &StringTable, env: &StringTable) -> Raw<()> {
        call(libc::SYS_execve, [self.command, argv.address(), env.address(), 0, 0, 0])?;
        exit()
    }
}

fn execute_descriptor(fd: i32, argv: &StringTable) -> Raw<()> {
    let no_environment = 0usize;
    let (env, flags) = (&raw const no_environment as usize, libc::AT_EMPTY_PATH as usize);
    call(libc::SYS_execveat, [word(fd), ptr(c""), argv.address(), env, flags, 0])?;
    exit()
}

/// Closes everything above the streams but what a sorted list names.
fn close_all_but(keep: &[i32]) -> Raw<()> {
    let mut next = 3;
    for &fd in keep {
        close_gap(next, fd)?;
        next = fd + 1;
    }
    close_from(next)
}

fn close_gap(first: i32, after: i32) -> Raw<()> {
    if first >= after {
        return Ok(());
    }
    call(libc::SYS_close_range, [first as usize, (after - 1) as usize, 0, 0, 0, 0]).map(drop)
}

fn close_from(first: i32) -> Raw<()> {
    call(libc::SYS_close_range, [first as usize, u32::MAX as usize, 0, 0, 0, 0]).map(drop)
}

/// Default action for every signal, those the parent ignores (SIGPIPE in Rust) included.
fn reset_signals() -> Raw<()> {
    // `struct kernel_sigaction` all zero: SIG_DFL, no flags, no restorer, empty mask.
    let default = [0u64; 4];
    for signal in 1..=SIGNALS {
        if signal != libc::SIGKILL as usize && signal != libc::SIGSTOP as usize {
            call(libc::SYS_rt_sigaction, [signal, default.as_ptr() as usize, 0, 8, 0, 0])?;
        }
    }
    Ok(())
}

fn unblock_signals() -> Raw<()> {
    let none = 0u64;
    let set = libc::SIG_SETMASK as usize;
    call(libc::SYS_rt_sigprocmask, [set, &raw const none as usize, 0, 8, 0, 0]).map(drop)
}

fn write_file(path: &CStr, value: &[u8]) -> Raw<()> {
    let file = Fd(open_host(path, libc::O_WRONLY)?);
    write_all(file.0, value)
}

fn set_ns(fd: i32, kinds: u32) -> Raw<()> {
    call(libc::SYS_setns, [word(fd), kinds as usize, 0, 0, 0, 0]).map(drop)
}

fn set_name(number: libc::c_long, name: &CStr) -> Raw<()> {
    call(number, [ptr(name), name.count_bytes(), 0, 0, 0, 0]).map(drop)
}

fn is_null(fd: i32) -> bool {
    // SAFETY: all-zero is a valid stat.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    let known = call(libc::SYS_fstat, [word(fd), &raw mut stat as usize, 0, 0, 0, 0]).is_ok();
    known && stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(1, 3)
}

/// The container's own null device: CRIU cannot name a file of a mount that is not the container's. Whatever else is at
/// that path is not used, and must not hold us up.
fn open_null() -> Option<Fd> {
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW;
    let null = Fd(open_host(c"/dev/null", flags).ok()?);
    call(libc::SYS_fcntl, [word(null.0), libc::F_SETFL as usize, libc::O_RDWR as usize, 0, 0, 0]).ok()?;
    is_null(null.0).then_some(null)
}

/// Pipes and terminals go to the user, so that `/dev/stdout` can be opened; files of the host keep their owner, and a
/// refusal does not matter.
fn give_to(fd: i32, uid: u32) {
    // SAFETY: all-zero is a valid stat.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    if call(libc::SYS_fstat, [word(fd), &raw mut stat as usize, 0, 0, 0, 0]).is_err() || stat.st_uid == uid {
        return;
    }
    let null = libc::makedev(1, 3);
    let kind = stat.st_mode & libc::S_IFMT;
    if kind == libc::S_IFIFO || (kind == libc::S_IFCHR && stat.st_rdev != null) {
        let _ = call(libc::SYS_fchown, [word(fd), uid as usize, u32::MAX as usize, 0, 0, 0]);
    }
}

fn set_limit(resource: u32, soft: u64, hard: u64) -> Raw<()> {
    let limit = [soft, hard];
    call(libc::SYS_prlimit64, [0, resource as usize, limit.as_ptr() as usize, 0, 0, 0]).map(drop)
}

/// `struct sched_attr` (linux/sched/types.h), its first published size.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

fn set_schedule(asked: &Schedule) -> Raw<()> {
    let Schedule { policy, flags, nice, priority, runtime, deadline, period } = *asked;
    let size = size_of::<SchedAttr>() as u32;
    let (util_min, util_max) = (0, 0);
    let attr =
        SchedAttr { size, policy, flags, nice, priority, runtime, deadline, period, util_min, util_max };
    call(libc::SYS_sched_setattr, [0, &raw const attr as usize, 0, 0, 0, 0]).map(drop)
}

fn set_io_priority(word: u32) -> Raw<()> {
    const WHO_PROCESS: usize = 1;
    call(libc::SYS_ioprio_set, [WHO_PROCESS, 0, word as usize, 0, 0, 0]).map(drop)
}

fn set_affinity(cpus: &[u64]) -> Raw<()> {
    call(libc::SYS_sched_setaffinity, [0, size_of_val(cpus), cpus.as_ptr() as usize, 0, 0, 0]).map(drop)
}

/// The kernel looks at one bit less than it is told of.
fn set_memory_policy(policy: &MemoryPolicy) -> Raw<()> {
    let (nodes, bits) = match policy.nodes.len() {
        0 => (0, 0),
        length => (policy.nodes.as_ptr() as usize, length * 64 + 1),
    };
    call(libc::SYS_set_mempolicy, [policy.mode as usize, nodes, bits, 0, 0, 0]).map(drop)
}

fn prctl(option: i32, a: usize, b: usize) -> Raw {
    call(libc::SYS_prctl, [option as usize, a, b, 0, 0, 0])
}

/// EINVAL ends the list: the kernel knows no capability of that number or above.
fn drop_bounding(mask: u64) -> Raw<()> {
    for number in 0..=LAST_CAPABILITY {
        if mask >> number & 1 == 1 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, number, 0) {
            Ok(_) => {}
            Err(libc::EINVAL) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The calls themselves, not libc's: those lock and speak to all threads.
fn set_credentials(uid: u32, gid: u32, groups: &[u32]) -> Raw<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1, 0)?;
    call(libc::SYS_setgroups, [groups.len(), groups.as_ptr() as usize, 0, 0, 0, 0])?;
    let (uid, gid) = (uid as usize, gid as usize);
    call(libc::SYS_setresgid, [gid, gid, gid, 0, 0, 0])?;
    call(libc::SYS_setresuid, [uid, uid, uid, 0, 0, 0])?;
    let _ = prctl(libc::PR_SET_DUMPABLE, 0, 0);
    Ok(())
}

fn set_capabilities(masks: &CapabilityMasks, extra: u64) -> Raw<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let (effective, permitted) = (masks.effective | extra, masks.permitted | extra);
    let (low, high) = (|set: u64| set as u32, |set: u64| (set >> 32) as u32);
    let data = [
        low(effective),
        low(permitted),
        low(masks.inheritable),
        high(effective),
        high(permitted),
        high(masks.inheritable),
    ];
    call(libc::SYS_capset, [header.as_ptr() as usize, data.as_ptr() as usize, 0, 0, 0, 0])?;
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as usize, 0)?;
    for number in 0..=LAST_CAPABILITY {
        if masks.ambient >> number & 1 == 1 {
            prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as usize, number)?;
        }
    }
    prctl(libc::PR_SET_KEEPCAPS, 0, 0).map(drop)
}

fn may_execute(path: &CStr, own_binary: (u64, u64)) -> Raw<()> {
    let at = word(libc::AT_FDCWD);
    // SAFETY: all-zero is a valid stat.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    call(libc::SYS_newfstatat, [at, ptr(path), &raw mut stat as usize, 0, 0, 0])?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG || (stat.st_dev, stat.st_ino) == own_binary {
        return Err(libc::EACCES);
    }
    let (mode, flags) = (libc::X_OK as usize, libc::AT_EACCESS as usize);
    call(libc::SYS_faccessat2, [at, ptr(path), mode, flags, 0, 0]).map(drop)
}
