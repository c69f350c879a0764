//! The default profile: the calls containerd and Docker allow a container, as our own table.
//!
//! Everything else answers EPERM. Capabilities open further calls (SEC-02 to SEC-08): a call that the kernel would
//! refuse without the capability is not worth exposing without it.

use super::abi::Abi;
use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompOperator,
    LinuxSyscall,
};
use std::collections::HashSet;

/// Allowed to everyone, by topic.
const ALWAYS: &str = "
    read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek _llseek readahead
    open openat openat2 creat close close_range dup dup2 dup3 fcntl fcntl64 flock ioctl
    stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx statfs statfs64 fstatfs fstatfs64
    access faccessat faccessat2 chmod fchmod fchmodat fchmodat2 umask
    chown chown32 fchown fchown32 fchownat lchown lchown32
    utime utimes futimesat utimensat utimensat_time64
    link linkat symlink symlinkat unlink unlinkat rename renameat renameat2 readlink readlinkat
    mkdir mkdirat rmdir mknod mknodat chdir fchdir getcwd getdents getdents64 name_to_handle_at
    truncate truncate64 ftruncate ftruncate64 fallocate copy_file_range sendfile sendfile64 splice tee vmsplice
    sync syncfs fsync fdatasync sync_file_range fadvise64 fadvise64_64 cachestat
    getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat
    listxattr llistxattr flistxattr listxattrat removexattr lremovexattr fremovexattr removexattrat
    statmount listmount
    inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark

    pipe pipe2 select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2
    eventfd eventfd2 signalfd signalfd4
    io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64

    accept accept4 bind connect listen shutdown socketpair socketcall getsockname getpeername getsockopt setsockopt
    send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64

    brk mmap mmap2 munmap mremap mprotect msync madvise mincore remap_file_pages map_shadow_stack mseal membarrier
    mlock mlock2 mlockall munlock munlockall memfd_create memfd_secret pkey_alloc pkey_free pkey_mprotect
    ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
    mq_open mq_unlink mq_getsetattr mq_notify
    mq_timedsend mq_timedsend_time64 mq_timedreceive mq_timedreceive_time64

    fork vfork execve execveat exit exit_group wait4 waitid waitpid restart_syscall
    getpid getppid gettid getpgid getpgrp setpgid getsid setsid pidfd_open pidfd_send_signal process_mrelease
    process_vm_readv process_vm_writev ptrace
    kill tkill tgkill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn
    futex futex_time64 futex_wait futex_wake futex_waitv futex_requeue
    get_robust_list set_robust_list get_thread_area set_thread_area set_tid_address rseq prctl seccomp uretprobe
    getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getgroups getgroups32
    getresuid getresuid32 getresgid getresgid32
    setuid setuid32 setgid setgid32 setreuid setreuid32 setregid setregid32 setresuid setresuid32
    setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32 setgroups setgroups32 capget capset
    landlock_create_ruleset landlock_add_rule landlock_restrict_self
    lsm_get_self_attr lsm_set_self_attr lsm_list_modules

    sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam
    sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min
    sched_rr_get_interval sched_rr_get_interval_time64
    getpriority setpriority ioprio_get ioprio_set getrlimit ugetrlimit setrlimit prlimit64 getrusage getcpu
    time times gettimeofday adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64
    clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 nanosleep alarm getitimer setitimer
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
    uname sysinfo getrandom
";

/// Allowed because the kernel asks for the capability anyway.
const BY_CAPABILITY: &[(Capability, &str)] = &[
    (Capability::DacReadSearch, "open_by_handle_at"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module init_module finit_module"),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise"),
    (Capability::SysRawio, "iopl ioperm"),
    (Capability::SysTime, "settimeofday stime clock_settime clock_settime64"),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::SysNice, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (Capability::Syslog, "syslog"),
    (Capability::Bpf, "bpf"),
    (Capability::Perfmon, "perf_event_open"),
];

/// PER_LINUX, PER_LINUX32, both with UNAME26, and "what is it now?" (SEC-10).
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}: what makes a namespace.
const NAMESPACES: u64 = 0x7e02_0000;

/// The profile for containers of a machine of this architecture; without a table it names no architecture.
pub(super) fn profile(native: Option<Abi>, capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    let mut rules = vec![allow(ALWAYS)];
    rules.extend(sockets());
    rules.extend(
        PERSONALITIES.map(|value| allow_if("personality", 0, LinuxSeccompOperator::ScmpCmpEq, value)),
    );
    rules.extend(native.and_then(of_architecture).map(allow));
    let opened = BY_CAPABILITY.iter().filter(|(capability, _)| capabilities.contains(capability));
    rules.extend(opened.map(|(_, names)| allow(names)));
    if !capabilities.contains(&Capability::SysAdmin) {
        rules.extend(threads_only(native));
    }
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno);
    profile.set_architectures(native.map(architectures));
    profile.set_syscalls(Some(rules));
    profile
}

/// All address families but AF_ALG (38) and AF_VSOCK (40), as three rules of one condition (SEC-09).
fn sockets() -> [LinuxSyscall; 3] {
    let alg = libc::AF_ALG as u64;
    let vsock = libc::AF_VSOCK as u64;
    [
        allow_if("socket", 0, LinuxSeccompOperator::ScmpCmpLt, alg),
        allow_if("socket", 0, LinuxSeccompOperator::ScmpCmpEq, alg + 1),
        allow_if("socket", 0, LinuxSeccompOperator::ScmpCmpGt, vsock),
    ]
}

/// clone(2) without namespaces; its flags are the second argument on s390x. The flags of clone3(2) lie in memory a
/// filter cannot read, so that it answers ENOSYS and the C library takes clone (SEC-08).
fn threads_only(native: Option<Abi>) -> [LinuxSyscall; 2] {
    let flags = if native == Some(Abi::S390x) { 1 } else { 0 };
    let mut clone3 = allow("clone3");
    clone3.set_action(LinuxSeccompAction::ScmpActErrno);
    clone3.set_errno_ret(Some(libc::ENOSYS as u32));
    [allow_if("clone", flags, LinuxSeccompOperator::ScmpCmpMaskedEq, NAMESPACES), clone3]
}

fn of_architecture(native: Abi) -> Option<&'static str> {
    match native {
        Abi::X86_64 | Abi::X32 => Some("arch_prctl modify_ldt"),
        Abi::X86 => Some("modify_ldt"),
        Abi::Aarch64 | Abi::Arm => {
            Some("arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls")
        }
        Abi::Riscv64 => Some("riscv_flush_icache riscv_hwprobe"),
        Abi::S390x => Some("s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
        Abi::Ppc64le => Some("sync_file_range2 swapcontext"),
        Abi::Loongarch64 => None,
    }
}

fn architectures(native: Abi) -> Vec<Arch> {
    match native {
        Abi::X86_64 | Abi::X32 => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        Abi::X86 => vec![Arch::ScmpArchX86],
        Abi::Aarch64 => vec![Arch::ScmpArchArm, Arch::ScmpArchAarch64],
        Abi::Arm => vec![Arch::ScmpArchArm],
        Abi::Riscv64 => vec![Arch::ScmpArchRiscv64],
        Abi::S390x => vec![Arch::ScmpArchS390, Arch::ScmpArchS390x],
        Abi::Ppc64le => vec![Arch::ScmpArchPpc64le],
        Abi::Loongarch64 => vec![Arch::ScmpArchLoongarch64],
    }
}

fn allow(names: &str) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.split_ascii_whitespace().map(str::to_owned).collect());
    rule.set_action(LinuxSeccompAction::ScmpActAllow);
    rule
}

/// For a masked comparison `value` is the mask, and the masked bits must be zero.
fn allow_if(name: &str, index: usize, op: LinuxSeccompOperator, value: u64) -> LinuxSyscall {
    let arg = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    let arg = if op == LinuxSeccompOperator::ScmpCmpMaskedEq { arg.value_two(0u64) } else { arg };
    let mut rule = allow(name);
    // Cannot fail: every field of the builder has a default.
    rule.set_args(Some(vec![arg.build().expect("all fields have defaults")]));
    rule
}
