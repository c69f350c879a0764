//! Compiled profiles in the real kernel. A filter binds the thread that installs it, so each probe runs on a thread of
//! its own; where the answer is death, in a child process.

#![allow(clippy::unwrap_used)]

use oci_spec::runtime::{Capability, LinuxSeccomp};
use serde_json::{Value, json};
use slipway_runtime::seccomp::{Filter, compile, default_profile};
use slipway_runtime::sys::seccomp::install_filter;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc;

fn filter(profile: Value) -> Filter {
    compile(&serde_json::from_value::<LinuxSeccomp>(profile).unwrap()).unwrap()
}

fn rule(names: &[&str], action: &str) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": names, "action": action}]})
}

/// A call by number: its answer, or its errno negated.
fn call(number: i64, args: [u64; 3]) -> i64 {
    // SAFETY: the tests make only calls that touch no memory, or whose pointers are null.
    let answer = unsafe { libc::syscall(number, args[0], args[1], args[2], 0, 0, 0) };
    if answer == -1 { -i64::from(io::Error::last_os_error().raw_os_error().unwrap()) } else { answer }
}

/// What calls by number answer on a thread under `filter`.
fn under(filter: &Filter, calls: &[(i64, [u64; 3])]) -> Vec<i64> {
    std::thread::scope(|scope| {
        let probe = || {
            assert!(install_filter(&filter.program(), filter.flags).unwrap().is_none());
            calls.iter().map(|(number, args)| call(*number, *args)).collect()
        };
        scope.spawn(probe).join().unwrap()
    })
}

/// How a child ends that runs `probe` under `filter`: its exit code, or the signal that killed it negated.
fn ends(filter: &Filter, probe: fn()) -> i32 {
    let program = filter.program();
    // SAFETY: the child calls nothing that allocates or locks: seccomp(2), one raw call and _exit(2).
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let code = match install_filter(&program, filter.flags) {
            Ok(_) => {
                probe();
                0
            }
            Err(_) => 99,
        };
        // SAFETY: ends the child at once, without exit handlers of the parent's threads.
        unsafe { libc::_exit(code) }
    }
    assert!(pid > 0);
    let mut status = 0;
    // SAFETY: `status` outlives the call, and `pid` is our own unreaped child.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    if libc::WIFSIGNALED(status) { -libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

fn get_parent() {
    call(libc::SYS_getppid, [0; 3]);
}

const EPERM: i64 = -(libc::EPERM as i64);
const ENOSYS: i64 = -(libc::ENOSYS as i64);
const EAFNOSUPPORT: i64 = -(libc::EAFNOSUPPORT as i64);

#[test]
fn the_default_profile_in_force() {
    let filter = compile(&default_profile(&HashSet::new())).unwrap();
    let answers = under(
        &filter,
        &[
            (libc::SYS_unshare, [libc::CLONE_NEWNS as u64, 0, 0]), // SEC-01
            (libc::SYS_mount, [0; 3]),
            (libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0]), // SEC-08
            (libc::SYS_clone3, [0; 3]),
            (libc::SYS_socket, [libc::AF_ALG as u64, 5, 0]), // SEC-09
            (libc::SYS_socket, [libc::AF_VSOCK as u64, 1, 0]),
            (libc::SYS_socket, [0x7fff, 1, 0]),
            (libc::SYS_personality, [0x0040_0000, 0, 0]), // SEC-10
            (500, [0; 3]),                                // SEC-11
            (libc::SYS_io_uring_setup, [0; 3]),           // SEC-12
        ],
    );
    let expected = [EPERM, EPERM, EPERM, ENOSYS, EPERM, EPERM, EAFNOSUPPORT, EPERM, ENOSYS, EPERM];
    assert_eq!(answers, expected);
    let answers = under(&filter, &[(libc::SYS_getpid, [0; 3]), (libc::SYS_personality, [0xffff_ffff, 0, 0])]);
    assert_eq!(answers, [i64::from(std::process::id()), 0]);
}

#[test]
fn capabilities_reach_the_kernel() {
    let filter =
        compile(&default_profile(&HashSet::from([Capability::SysAdmin, Capability::SysChroot]))).unwrap();
    // Each is refused by the kernel for its null or absurd arguments, not by the filter.
    let answers = under(
        &filter,
        &[(libc::SYS_clone3, [0; 3]), (libc::SYS_unshare, [1, 0, 0]), (libc::SYS_chroot, [0; 3])],
    );
    assert_eq!(answers, [-i64::from(libc::EINVAL), -i64::from(libc::EINVAL), -i64::from(libc::EFAULT)]);
}

#[test]
fn every_action_does_what_it_says() {
    for (action, end) in [
        ("SCMP_ACT_KILL", -libc::SIGSYS),
        ("SCMP_ACT_KILL_THREAD", -libc::SIGSYS),
        ("SCMP_ACT_KILL_PROCESS", -libc::SIGSYS),
        ("SCMP_ACT_TRAP", -libc::SIGSYS),
        ("SCMP_ACT_LOG", 0),
        ("SCMP_ACT_ERRNO", 0),
    ] {
        assert_eq!(ends(&filter(rule(&["getppid"], action)), get_parent), end, "{action}");
    }
    let mut errno = rule(&["getppid"], "SCMP_ACT_ERRNO");
    let get_parent = [(libc::SYS_getppid, [0; 3])];
    assert_eq!(under(&filter(errno.clone()), &get_parent), [EPERM]);
    errno["syscalls"][0]["errnoRet"] = json!(77);
    assert_eq!(under(&filter(errno), &get_parent), [-77]);
    // Without a tracer the kernel answers ENOSYS.
    assert_eq!(under(&filter(rule(&["getppid"], "SCMP_ACT_TRACE")), &get_parent), [ENOSYS]);
    let log = under(&filter(rule(&["getppid"], "SCMP_ACT_LOG")), &get_parent);
    assert!(log[0] >= 0);
}

#[test]
fn arguments_are_compared_in_full_width() {
    let deny = |op: &str, value: u64| {
        filter(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
            "names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77,
            "args": [{"index": 1, "value": value, "valueTwo": 0x8_0000_0000u64, "op": format!("SCMP_CMP_{op}")}]}]}))
    };
    let big = 0x8_0000_0001;
    for (op, value, hits) in [
        ("EQ", big, [false, true, false]),
        ("NE", big, [true, false, true]),
        ("LT", big, [true, false, false]),
        ("LE", big, [true, true, false]),
        ("GT", big, [false, false, true]),
        ("GE", big, [false, true, true]),
        ("MASKED_EQ", 0xf_0000_0000, [false, true, true]),
    ] {
        let calls = [1, big, big + 1].map(|arg| (libc::SYS_getppid, [0, arg, 0]));
        let hit = under(&deny(op, value), &calls).into_iter().map(|answer| answer == -77);
        assert_eq!(hit.collect::<Vec<_>>(), hits, "{op}");
    }
}

#[test]
fn a_long_program_is_taken() {
    let rules: Vec<Value> = (0..700)
        .map(|value| {
            json!({"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 100 + value,
                   "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]})
        })
        .collect();
    let filter = filter(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
    assert!(filter.instructions.len() > 2700);
    let calls = [0, 1, 254, 256, 699].map(|value| (libc::SYS_getppid, [value, 0, 0]));
    assert_eq!(under(&filter, &calls), [-100, -101, -354, -356, -799]);
    assert!(under(&filter, &[(libc::SYS_getppid, [700, 0, 0])])[0] >= 0);
}

#[test]
fn flags_are_taken() {
    let mut profile = rule(&["getppid"], "SCMP_ACT_ERRNO");
    profile["flags"] = json!([
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
    ]);
    assert_eq!(under(&filter(profile), &[(libc::SYS_getppid, [0; 3])]), [EPERM]);
}

#[test]
fn a_malformed_program_is_refused() {
    let endless = [libc::sock_filter { code: 0x05, jt: 0, jf: 0, k: 7 }];
    assert_eq!(install_filter(&endless, 0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    assert_eq!(install_filter(&[], 0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    let tsync = filter(rule(&["getppid"], "SCMP_ACT_ERRNO"));
    assert_eq!(install_filter(&tsync.program(), 1).unwrap_err().raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn a_listener_answers_for_the_kernel() {
    let mut profile = rule(&["getppid"], "SCMP_ACT_NOTIFY");
    profile["flags"] = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
    let filter = filter(profile);
    assert!(filter.notify);
    let (send, receive) = mpsc::channel::<OwnedFd>();
    let asking = std::thread::spawn(move || {
        let listener = install_filter(&filter.program(), filter.flags).unwrap();
        send.send(listener.unwrap()).unwrap();
        call(libc::SYS_getppid, [11, 22, 33])
    });
    let (number, args) = answer_one(&receive.recv().unwrap(), -77);
    assert_eq!((i64::from(number), &args[..3]), (libc::SYS_getppid, &[11, 22, 33][..]));
    assert_eq!(asking.join().unwrap(), -77);
}

/// Takes one notification and answers it with `error` (a negated errno).
fn answer_one(listener: &OwnedFd, error: i32) -> (i32, [u64; 6]) {
    const RECEIVE: libc::c_ulong = 0xc050_2100;
    const SEND: libc::c_ulong = 0xc018_2101;
    // SAFETY: plain numbers, for which all zeros is a value; the kernel wants it zeroed.
    let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the listener is open and `asked` is the structure this request writes.
    assert_eq!(unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut asked) }, 0);
    let answer = libc::seccomp_notif_resp { id: asked.id, val: 0, error, flags: 0 };
    // SAFETY: as above, for the structure this request reads.
    assert_eq!(unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw const answer) }, 0);
    (asked.data.nr, asked.data.args)
}

#[cfg(target_arch = "x86_64")]
mod other_abis {
    use super::*;

    const X32_GETPPID: i64 = 0x4000_0000 | libc::SYS_getppid;

    /// getppid(2) as a 32-bit program calls it.
    fn old_get_parent() -> i64 {
        let answer: i32;
        // SAFETY: number 64 of the 32-bit table takes no arguments; the kernel may clear r8 to r11.
        unsafe {
            std::arch::asm!("int 0x80", inlateout("eax") 64 => answer,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        i64::from(answer)
    }

    fn listing(architectures: &[&str]) -> Filter {
        let mut profile = rule(&["getppid"], "SCMP_ACT_ERRNO");
        profile["syscalls"][0]["errnoRet"] = json!(77);
        profile["architectures"] = json!(architectures);
        filter(profile)
    }

    #[test]
    fn an_unlisted_architecture_is_death() {
        let native = listing(&["SCMP_ARCH_X86_64"]);
        let probes: [fn(); 2] = [|| _ = old_get_parent(), || _ = call(X32_GETPPID, [0; 3])];
        assert_eq!(probes.map(|probe| ends(&native, probe)), [-libc::SIGSYS; 2]);
    }

    #[test]
    fn listed_architectures_have_their_own_numbers() {
        let all = listing(&["SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
        assert_eq!(under(&all, &[(libc::SYS_getppid, [0; 3]), (X32_GETPPID, [0; 3])]), [-77, -77]);
        let old = std::thread::scope(|scope| {
            let probe = || {
                install_filter(&all.program(), all.flags).unwrap();
                old_get_parent()
            };
            scope.spawn(probe).join().unwrap()
        });
        assert_eq!(old, -77);
    }
}
