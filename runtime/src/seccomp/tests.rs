//! The compiler against a second reading of the profile, by an interpreter of classic BPF.
//!
//! `Reference` evaluates a profile call by call and rule by rule, as slowly and plainly as the module's header
//! describes it; it shares only the tables of numbers with the compiler.

use super::abi::{Abi, X32_BIT};
use super::bpf::{LIMIT, op};
use super::numbers::Numbers;
use super::{Filter, compile, compile_for, default};
use crate::error::Kind;
use oci_spec::runtime::{
    Capability, LinuxSeccomp, LinuxSeccompArg, LinuxSeccompOperator as Operator, LinuxSyscall,
};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL_THREAD: u32 = 0;
const ALL: [Abi; 9] = [
    Abi::X86_64,
    Abi::X86,
    Abi::X32,
    Abi::Aarch64,
    Abi::Arm,
    Abi::Riscv64,
    Abi::S390x,
    Abi::Ppc64le,
    Abi::Loongarch64,
];

/// `struct seccomp_data` without the instruction pointer.
#[derive(Debug, Clone, Copy)]
struct Call {
    audit: u32,
    number: u32,
    args: [u64; 6],
}

/// Runs the program as the kernel would; refuses what the kernel's checker refuses.
fn run(filter: &Filter, big_endian: bool, call: Call) -> u32 {
    let code = &filter.instructions;
    assert!((1..=LIMIT).contains(&code.len()));
    let load = |offset: u32| match offset {
        0 => call.number,
        4 => call.audit,
        16..=63 if offset.is_multiple_of(4) => {
            let arg = call.args[(offset as usize - 16) / 8];
            let first = offset.is_multiple_of(8);
            if first == big_endian { (arg >> 32) as u32 } else { arg as u32 }
        }
        _ => panic!("load from {offset}"),
    };
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let (step, jt, jf, k) = code[at];
        at += 1;
        let yes = match step {
            op::RETURN => return k,
            op::LOAD => {
                accumulator = load(k);
                continue;
            }
            op::AND => {
                accumulator &= k;
                continue;
            }
            op::JUMP => {
                at += k as usize;
                continue;
            }
            op::EQUAL => accumulator == k,
            op::GREATER => accumulator > k,
            op::GREATER_EQUAL => accumulator >= k,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(if yes { jt } else { jf });
    }
}

/// What the module's header says a profile answers.
struct Reference<'a> {
    native: Abi,
    default: u32,
    unknown: u32,
    tables: Vec<Table<'a>>,
}

struct Table<'a> {
    abi: Abi,
    highest: Option<u32>,
    /// In the profile's order.
    rules: HashMap<u32, Vec<Named<'a>>>,
}

/// A rule that names a number, or a multiplexer that reaches one: (significant bits, value) of its first argument.
struct Named<'a> {
    rule: &'a LinuxSyscall,
    through: Option<(u64, u64)>,
}

impl<'a> Reference<'a> {
    fn new(native: Abi, profile: &'a LinuxSeccomp) -> Self {
        let default = profile.default_action().as_u32(profile.default_errno_ret());
        let lets_through = [ALLOW >> 16, 0x7ffc, 0x7ff0].contains(&(default >> 16));
        let mut listed = vec![native];
        listed
            .extend(profile.architectures().iter().flatten().filter_map(|arch| Abi::from_oci(*arch, native)));
        listed.retain(|abi| native.runs(*abi));
        let tables = listed.into_iter().map(|abi| Table::new(abi, profile)).collect();
        Self { native, default, unknown: if lets_through { default } else { ENOSYS }, tables }
    }

    fn answer(&self, call: Call) -> u32 {
        let x32 = call.audit == Abi::X86_64.audit() && call.number >= X32_BIT;
        if x32 && self.native == Abi::X86_64 && call.number == u32::MAX {
            return self.unknown;
        }
        let fits = |table: &&Table| table.abi.audit() == call.audit && (table.abi == Abi::X32) == x32;
        let Some(table) = self.tables.iter().find(fits) else { return KILL_THREAD };
        let above = table.highest.is_some_and(|highest| call.number > highest);
        if above || (table.abi == Abi::S390x && call.number == 0) {
            self.unknown
        } else {
            self.decide(table, call)
        }
    }

    fn decide(&self, table: &Table, call: Call) -> u32 {
        let mut first_match = None;
        for Named { rule, through } in table.rules.get(&call.number).into_iter().flatten() {
            let action = rule.action().as_u32(rule.errno_ret());
            let args = rule.args().as_deref().unwrap_or_default();
            let hit = match through {
                _ if action == self.default => false,
                Some((significant, value)) => call.args[0] & significant == *value,
                None if args.is_empty() => return action,
                None => matches(table.abi, args, call),
            };
            first_match = first_match.or(hit.then_some(action));
        }
        first_match.unwrap_or(self.default)
    }
}

impl<'a> Table<'a> {
    fn new(abi: Abi, profile: &'a LinuxSeccomp) -> Self {
        let mut rules: HashMap<u32, Vec<Named>> = HashMap::new();
        for rule in profile.syscalls().iter().flatten() {
            for name in rule.names() {
                if let Some(number) = numbered(abi, name) {
                    rules.entry(number).or_default().push(Named { rule, through: None });
                }
                if let Some((by, sub)) = abi.multiplexed(name) {
                    let width = if abi.narrow() { u64::from(u32::MAX) } else { u64::MAX };
                    let significant = if by == "ipc" { 0xffff } else { width };
                    let through = Some((significant, u64::from(sub)));
                    rules.entry(numbered(abi, by).unwrap()).or_default().push(Named { rule, through });
                }
            }
        }
        Self { abi, highest: rules.keys().copied().max(), rules }
    }
}

fn matches(abi: Abi, args: &[LinuxSeccompArg], call: Call) -> bool {
    let width = if abi.narrow() { u64::from(u32::MAX) } else { u64::MAX };
    let holds = |arg: &LinuxSeccompArg| {
        let (have, want) = (call.args[arg.index()] & width, arg.value() & width);
        match arg.op() {
            Operator::ScmpCmpNe => have != want,
            Operator::ScmpCmpLt => have < want,
            Operator::ScmpCmpLe => have <= want,
            Operator::ScmpCmpEq => have == want,
            Operator::ScmpCmpGe => have >= want,
            Operator::ScmpCmpGt => have > want,
            Operator::ScmpCmpMaskedEq => have & want == arg.value_two().unwrap_or(0) & width,
        }
    };
    let indexes: HashSet<_> = args.iter().map(LinuxSeccompArg::index).collect();
    if indexes.len() < args.len() { args.iter().any(holds) } else { args.iter().all(holds) }
}

fn parse(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

/// [`Numbers`] for a test that asks often.
fn numbered(abi: Abi, name: &str) -> Option<u32> {
    static ALL_NUMBERS: OnceLock<Vec<(Abi, Numbers)>> = OnceLock::new();
    let all = ALL_NUMBERS.get_or_init(|| ALL.map(|abi| (abi, Numbers::of(abi))).into());
    all.iter().find(|(known, _)| *known == abi).and_then(|(_, numbers)| numbers.get(name))
}

fn call(abi: Abi, name: &str, args: [u64; 6]) -> Call {
    Call { audit: abi.audit(), number: numbered(abi, name).unwrap(), args }
}

fn first(value: u64) -> [u64; 6] {
    [value, 0, 0, 0, 0, 0]
}

fn answer(native: Abi, profile: &LinuxSeccomp, call: Call) -> u32 {
    run(&compile_for(native, profile).unwrap(), native.big_endian(), call)
}

/// xorshift64*: enough chance for tests, the same on every machine.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % limit
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize].clone()
    }
}

/// Every number of every architecture, and the numbers around the edges.
fn all_numbers(abi: Abi) -> impl Iterator<Item = u32> {
    let base = if abi == Abi::X32 { X32_BIT } else { 0 };
    (base..base + 620).chain([0xf_0000, 0xf_0001, 0xf_0005, X32_BIT - 1, X32_BIT, u32::MAX - 1, u32::MAX])
}

#[test]
fn default_profile_on_every_call_of_every_architecture() {
    let none = HashSet::new();
    let admin = HashSet::from([Capability::SysAdmin, Capability::SysTime, Capability::SysPtrace]);
    for native in ALL.into_iter().filter(|abi| *abi != Abi::X32) {
        for capabilities in [&none, &admin] {
            let profile = default::profile(Some(native), capabilities);
            let filter = compile_for(native, &profile).unwrap();
            let reference = Reference::new(native, &profile);
            for abi in ALL.into_iter().filter(|abi| native.runs(*abi)) {
                let tested = ["clone", "socket", "personality"].map(|name| numbered(abi, name));
                for number in all_numbers(abi) {
                    let values: &[u64] = if tested.contains(&Some(number)) {
                        &[0, 1, 8, 38, 39, 40, 41, 0x1_0000_0000, 0x1000_0000, 0xffff_ffff, u64::MAX]
                    } else {
                        &[1]
                    };
                    for value in values.iter().copied() {
                        let call = Call { audit: abi.audit(), number, args: [value, value, 0, 0, 0, 0] };
                        let (is, should) = (run(&filter, native.big_endian(), call), reference.answer(call));
                        assert_eq!(is, should, "{native:?} {capabilities:?} {call:x?}");
                    }
                }
            }
        }
    }
}

#[test]
fn default_profile_says_what_its_authors_say() {
    let profile = default::profile(Some(Abi::X86_64), &HashSet::new());
    for abi in [Abi::X86_64, Abi::X86, Abi::X32] {
        let ask = |name: &str, args| answer(Abi::X86_64, &profile, call(abi, name, args));
        for name in ["read", "openat", "execve", "futex", "clock_gettime", "ptrace", "seccomp", "statmount"] {
            assert_eq!(ask(name, first(0)), ALLOW, "{abi:?} {name}"); // SEC-02
        }
        for name in
            ["mount", "setns", "unshare", "bpf", "reboot", "chroot", "init_module", "kexec_load", "keyctl"]
        {
            assert_eq!(ask(name, first(0)), EPERM, "{abi:?} {name}"); // SEC-01
        }
        assert_eq!(ask("io_uring_setup", first(0)), EPERM); // SEC-12
        assert_eq!(ask("clone3", first(0)), ENOSYS); // SEC-08
        assert_eq!(ask("clone", first(libc::CLONE_VM as u64)), ALLOW);
        for namespace in [libc::CLONE_NEWNS, libc::CLONE_NEWUSER, libc::CLONE_NEWNET, libc::CLONE_NEWCGROUP] {
            assert_eq!(ask("clone", first(namespace as u64 | 17)), EPERM);
        }
        for (family, expected) in
            [(1, ALLOW), (37, ALLOW), (38, EPERM), (39, ALLOW), (40, EPERM), (41, ALLOW)]
        {
            assert_eq!(ask("socket", first(family)), expected, "family {family}"); // SEC-09
        }
        for value in [0, 8, 0x20000, 0x20008, 0xffff_ffff] {
            assert_eq!(ask("personality", first(value)), ALLOW); // SEC-10
        }
        for value in [1, 0x40000, 0x0040_0000] {
            assert_eq!(ask("personality", first(value)), EPERM);
        }
    }
    let later = Call { audit: Abi::X86_64.audit(), number: 500, args: [0; 6] };
    assert_eq!(answer(Abi::X86_64, &profile, later), ENOSYS); // SEC-11
    let foreign = Call { audit: Abi::Aarch64.audit(), number: 0, args: [0; 6] };
    assert_eq!(answer(Abi::X86_64, &profile, foreign), KILL_THREAD);
}

#[test]
fn capabilities_open_their_calls_and_no_others() {
    let opened: &[(Capability, &[&str])] = &[
        (Capability::DacReadSearch, &["open_by_handle_at"]), // SEC-03
        (Capability::SysBoot, &["reboot"]),
        (Capability::SysChroot, &["chroot"]),
        (Capability::SysModule, &["delete_module", "init_module", "finit_module"]),
        (Capability::SysPacct, &["acct"]),
        (Capability::SysPtrace, &["kcmp", "pidfd_getfd", "process_madvise"]), // SEC-04
        (Capability::SysRawio, &["iopl", "ioperm"]),                          // SEC-05
        (Capability::SysTime, &["settimeofday", "clock_settime"]),
        (Capability::SysTtyConfig, &["vhangup"]),
        (Capability::Syslog, &["syslog"]),
        (Capability::Bpf, &["bpf"]),
        (Capability::Perfmon, &["perf_event_open"]),
        (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]), // SEC-06
        (
            Capability::SysAdmin, // SEC-07
            &[
                "bpf",
                "clone3",
                "fanotify_init",
                "fsconfig",
                "fsmount",
                "fsopen",
                "fspick",
                "lookup_dcookie",
                "mount",
                "mount_setattr",
                "move_mount",
                "open_tree",
                "perf_event_open",
                "quotactl",
                "quotactl_fd",
                "setdomainname",
                "sethostname",
                "setns",
                "syslog",
                "umount2",
                "unshare",
            ],
        ),
    ];
    let allowed = |capabilities: &HashSet<Capability>| -> HashSet<u32> {
        let filter = compile_for(Abi::X86_64, &default::profile(Some(Abi::X86_64), capabilities)).unwrap();
        let call = |number| Call { audit: Abi::X86_64.audit(), number, args: [0; 6] };
        (0..470).filter(|number| run(&filter, false, call(*number)) == ALLOW).collect()
    };
    let base = allowed(&HashSet::new());
    for (capability, names) in opened {
        let with = allowed(&HashSet::from([*capability]));
        let expected: HashSet<u32> = names.iter().map(|name| numbered(Abi::X86_64, name).unwrap()).collect();
        assert!(base.is_subset(&with));
        assert_eq!(with.difference(&base).copied().collect::<HashSet<_>>(), expected, "{capability:?}");
    }
    let namespaces = first(libc::CLONE_NEWNS as u64);
    let admin = default::profile(Some(Abi::X86_64), &HashSet::from([Capability::SysAdmin]));
    assert_eq!(answer(Abi::X86_64, &admin, call(Abi::X86_64, "clone", namespaces)), ALLOW);
    let s390x = default::profile(Some(Abi::S390x), &HashSet::new());
    assert_eq!(answer(Abi::S390x, &s390x, call(Abi::S390x, "clone", namespaces)), ALLOW);
    let second = [0, libc::CLONE_NEWNS as u64, 0, 0, 0, 0];
    assert_eq!(answer(Abi::S390x, &s390x, call(Abi::S390x, "clone", second)), EPERM);
}

#[test]
fn the_default_profile_is_small() {
    for native in [Abi::X86_64, Abi::Aarch64] {
        let filter = compile_for(native, &default::profile(Some(native), &HashSet::new())).unwrap();
        println!("{native:?}: {} instructions", filter.instructions.len());
        assert!(filter.instructions.len() < 600);
        assert_eq!((filter.flags, filter.notify), (0, false));
    }
}

#[test]
fn random_profiles_match_the_reference() {
    let mut chance = Chance(0x5eed_0001);
    for round in 0..150 {
        let native = chance.of(&[Abi::X86_64, Abi::X86_64, Abi::Aarch64, Abi::S390x, Abi::X86, Abi::Riscv64]);
        let profile = random_profile(&mut chance);
        let filter = compile_for(native, &profile).unwrap();
        let reference = Reference::new(native, &profile);
        for _ in 0..400 {
            let abi = chance.of(&ALL);
            let name = chance.of(&NAMES);
            let any = all_numbers(abi).nth(chance.below(627) as usize).unwrap();
            let number = numbered(abi, name).filter(|_| chance.below(3) > 0).unwrap_or(any);
            let mut args = [0; 6];
            args.fill_with(|| chance.of(&VALUES));
            let call = Call { audit: abi.audit(), number, args };
            let (is, should) = (run(&filter, native.big_endian(), call), reference.answer(call));
            assert_eq!(
                is,
                should,
                "round {round} {native:?} {call:x?}\n{}",
                serde_json::to_string(&profile).unwrap()
            );
        }
    }
}

const NAMES: [&str; 20] = [
    "read",
    "write",
    "ioctl",
    "clone",
    "clone3",
    "socket",
    "connect",
    "send",
    "accept4",
    "semop",
    "shmget",
    "socketcall",
    "ipc",
    "personality",
    "execve",
    "set_tls",
    "newfstatat",
    "fstatat64",
    "mseal",
    "no_such_call",
];
const VALUES: [u64; 14] = [
    0,
    1,
    2,
    3,
    21,
    0x1_0001,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0001,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_0000_0000,
    u64::MAX,
];

fn random_profile(chance: &mut Chance) -> LinuxSeccomp {
    let operators = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    let actions = ["KILL", "KILL_PROCESS", "TRAP", "ERRNO", "TRACE", "LOG", "ALLOW"];
    let architectures =
        ["NATIVE", "X86_64", "X86", "X32", "AARCH64", "ARM", "MIPS"].map(|arch| format!("SCMP_ARCH_{arch}"));
    let rules: Vec<Value> = (0..chance.below(60))
        .map(|_| {
            let names: Vec<&str> = (0..=chance.below(3)).map(|_| chance.of(&NAMES)).collect();
            let args: Vec<Value> = (0..chance.below(4))
                .map(|_| {
                    json!({"index": chance.below(6), "value": chance.of(&VALUES), "valueTwo": chance.of(&VALUES),
                           "op": format!("SCMP_CMP_{}", chance.of(&operators))})
                })
                .collect();
            let mut rule = json!({"names": names, "action": format!("SCMP_ACT_{}", chance.of(&actions)), "args": args});
            if rule["action"] == "SCMP_ACT_ERRNO" && chance.below(2) == 0 {
                rule["errnoRet"] = json!(chance.below(4096));
            }
            rule
        })
        .collect();
    let listed: Vec<String> = architectures.into_iter().filter(|_| chance.below(2) == 0).collect();
    parse(json!({"defaultAction": format!("SCMP_ACT_{}", chance.of(&actions)), "architectures": listed,
                 "syscalls": rules}))
}

/// 500 conditions on one call push the rest far beyond the 255 instructions a conditional jump reaches.
#[test]
fn jumps_reach_over_long_programs() {
    let mut rules: Vec<Value> = (0..500)
        .map(|value| {
            json!({"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2 + value,
                   "args": [{"index": 1, "value": 1000 + value, "op": "SCMP_CMP_EQ"}]})
        })
        .collect();
    rules.push(json!({"names": ["read", "close", "mseal"], "action": "SCMP_ACT_KILL_PROCESS"}));
    let profile = parse(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
    let filter = compile_for(Abi::X86_64, &profile).unwrap();
    assert!(filter.instructions.len() > 2000);
    for (at, &(code, jt, jf, k)) in filter.instructions.iter().enumerate() {
        let reach = if code == op::JUMP { k as usize } else { usize::from(jt.max(jf)) };
        assert!(code == op::RETURN || at + 1 + reach < filter.instructions.len());
    }
    let reference = Reference::new(Abi::X86_64, &profile);
    for number in 0..470 {
        for value in [0, 999, 1000, 1001, 1255, 1256, 1499, 1500, 0x1_0000_03e8] {
            let call = Call { audit: Abi::X86_64.audit(), number, args: [0, value, 0, 0, 0, 0] };
            assert_eq!(run(&filter, false, call), reference.answer(call), "{call:x?}");
        }
    }
}

#[test]
fn what_the_kernel_cannot_hold_is_refused() {
    let rules: Vec<Value> = (0..2000)
        .map(|value| {
            json!({"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
                   "args": [{"index": 1, "value": value, "op": "SCMP_CMP_EQ"}]})
        })
        .collect();
    let error = compile(&parse(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("the kernel takes 4096"), "{error}");
}

#[test]
fn bad_profiles_are_refused_by_name() {
    let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    let cases = [
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}), "takes no errno"),
        (json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}), "above 4095"),
        (rule(json!({"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1})), "takes no errno"),
        (rule(json!({"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 65536})), "above 65535"),
        (rule(json!({"names": [], "action": "SCMP_ACT_KILL"})), "names no call"),
        (rule(json!({"names": ["read", ""], "action": "SCMP_ACT_KILL"})), "names no call"),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_KILL",
                        "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
            "argument index 6",
        ),
    ];
    for (profile, sentence) in cases {
        let error = compile(&parse(profile)).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains(sentence), "{error}");
    }
}

#[test]
fn flags_are_those_the_kernel_takes() {
    let with = |action: &str| {
        compile(&parse(json!({"defaultAction": "SCMP_ACT_ALLOW",
            "flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                      "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            "syscalls": [{"names": ["mkdir"], "action": action}]})))
        .unwrap()
    };
    let plain = with("SCMP_ACT_KILL");
    assert_eq!((plain.flags, plain.notify), (0b000110, false));
    let notify = with("SCMP_ACT_NOTIFY");
    assert_eq!((notify.flags, notify.notify), (0b101110, true));
}

#[test]
fn unknown_calls_follow_the_default_action() {
    let number = numbered(Abi::X86_64, "openat").unwrap() + 1;
    let call = Call { audit: Abi::X86_64.audit(), number, args: [0; 6] };
    for (action, expected) in [
        ("SCMP_ACT_ERRNO", ENOSYS),
        ("SCMP_ACT_KILL_PROCESS", ENOSYS),
        ("SCMP_ACT_TRAP", ENOSYS),
        ("SCMP_ACT_LOG", 0x7ffc_0000),
        ("SCMP_ACT_TRACE", 0x7ff0_0001),
    ] {
        let profile = json!({"defaultAction": action, "syscalls": [{"names": ["read", "openat"], "action": "SCMP_ACT_ALLOW"}]});
        assert_eq!(answer(Abi::X86_64, &parse(profile), call), expected, "{action}");
    }
    let nothing = parse(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 7}));
    assert_eq!(answer(Abi::X86_64, &nothing, call), 0x0005_0007);
}

#[test]
fn compiled_profiles_are_found_again() {
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdirat"], "action": "SCMP_ACT_TRAP"}]});
    let one = compile(&parse(profile.clone())).unwrap();
    let two = compile(&parse(profile)).unwrap();
    assert!(std::ptr::eq(one.instructions.as_ptr(), two.instructions.as_ptr()));
}

#[test]
fn additions_of_docker_are_ignored() {
    // SEC-14
    let profile = parse(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "",
                      "includes": {"caps": ["CAP_SYS_ADMIN"], "minKernel": "4.8"}, "excludes": {}}]}));
    assert_eq!(answer(Abi::X86_64, &profile, call(Abi::X86_64, "mount", [0; 6])), ALLOW);
    assert_eq!(answer(Abi::X86_64, &profile, call(Abi::X86, "mount", [0; 6])), KILL_THREAD);
}

#[test]
fn every_named_architecture_can_be_compiled_for() {
    for name in super::known_architectures() {
        let arch = serde_json::from_value(serde_json::json!(name)).unwrap();
        assert!(super::abi::Abi::from_oci(arch, super::abi::Abi::X86_64).is_some(), "{name}");
    }
}

/// Against the crate's own search, from the first call to the last.
#[test]
fn all_calls_are_known_by_their_names() {
    use syscalls::x86_64;
    for call in (0..600).filter_map(x86_64::Sysno::new) {
        assert_eq!(numbered(Abi::X86_64, call.name()), u32::try_from(call.id()).ok(), "{call}");
    }
    let last = x86_64::Sysno::last();
    assert_eq!(numbered(Abi::X86_64, last.name()), u32::try_from(last.id()).ok());
    assert_eq!(numbered(Abi::X32, "read"), Some(X32_BIT));
    assert_eq!(numbered(Abi::X32, "ioctl"), Some(X32_BIT | 514));
    assert_eq!(numbered(Abi::X32, "preadv2"), Some(X32_BIT | 546));
    assert_eq!(numbered(Abi::X32, "uselib"), None);
    assert_eq!(numbered(Abi::Arm, "set_tls"), Some(0x0f_0005));
    assert_eq!(numbered(Abi::S390x, "setup"), Some(0));
    for abi in [Abi::Aarch64, Abi::Riscv64, Abi::Loongarch64] {
        assert_eq!((numbered(abi, "newfstatat"), numbered(abi, "fstatat")), (Some(79), None));
    }
    assert_eq!(numbered(Abi::X86, "no_such_call"), None);
}
