//! Device rules: who may open and make which device nodes. Pure, but for [`apply_v1`] and [`apply_v2`].
//!
//! A list begins with "nothing is allowed"; each rule then allows or forbids kinds of access, and of two rules on the
//! same device the later one wins (OCI runtime-spec, config-linux.md, `linux.resources.devices`).
//!
//! Version 2 runs the rules as they are, as a program; version 1 knows only a default and exceptions from it, so there
//! a list is first reduced to those, and refused if it cannot be (a forbidden device inside an allowed range).
//!
//! On version 1 the present list is read by cgroups-rs (`DevicesController::allowed_devices`). Writing is ours, because
//! it opens the file for each rule (a dozen per container), and so is the reduction: `devices.allow` reads `a` as "all
//! access to all devices", whatever numbers and letters follow it.

use super::check::invalid;
use super::files;
use crate::error::Kind;
use crate::sys::bpf;
use crate::{Error, Result};
use cgroups_rs::fs::DeviceResource;
use cgroups_rs::fs::devices::{DevicePermissions, DeviceType, DevicesController};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use rustix::fs::{Mode, OFlags};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Kinds of access as bits, by the kernel's BPF_DEVCG_ACC_*.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// By the kernel's BPF_DEVCG_DEV_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Block = 1,
    Char = 2,
}

/// One rule; absent parts match anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    allow: bool,
    node: Option<Node>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// Reads the spec's rules.
///
/// # Errors
/// `Invalid` for a negative number other than -1, a letter other than r, w, m, or a kind that is no device.
pub(super) fn rules(list: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    list.iter().map(rule).collect()
}

fn rule(spec: &LinuxDeviceCgroup) -> Result<Rule> {
    let number = |field: &str, value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(n) => match u32::try_from(n).ok().filter(|n| *n <= i32::MAX as u32) {
            Some(n) => Ok(Some(n)),
            None => Err(invalid(field, n, "a device number, or -1 for any")),
        },
    };
    let node = match spec.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(Node::Block),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(Node::Char),
        Some(LinuxDeviceType::P) => {
            return Err(invalid("devices.type", "p", "a FIFO is no device; use a, b or c"));
        }
    };
    let letters = spec.access().as_deref().filter(|a| !a.is_empty()).unwrap_or("rwm");
    let access = letters.chars().try_fold(0, |bits, letter| match letter {
        'r' => Ok(bits | READ),
        'w' => Ok(bits | WRITE),
        'm' => Ok(bits | MKNOD),
        _ => Err(invalid("devices.access", letters, "letters out of r, w, m")),
    })?;
    let (major, minor) = (number("devices.major", spec.major())?, number("devices.minor", spec.minor())?);
    Ok(Rule { allow: spec.allow(), node, major, minor, access })
}

impl Rule {
    fn is_total(&self) -> bool {
        self.node.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }

    fn nodes(&self) -> impl Iterator<Item = Node> {
        [Node::Block, Node::Char].into_iter().filter(|n| self.node.is_none_or(|own| own == *n))
    }
}

/// What version 1 can hold: a default, and exceptions from it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Policy {
    allow: bool,
    exceptions: Vec<Exception>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exception {
    node: Node,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

impl Policy {
    fn of(rules: &[Rule]) -> Result<Self> {
        let mut policy = Self::default();
        for rule in rules {
            if rule.is_total() {
                policy = Self { allow: rule.allow, exceptions: Vec::new() };
                continue;
            }
            for node in rule.nodes() {
                let exception = Exception { node, major: rule.major, minor: rule.minor, access: rule.access };
                if rule.allow == policy.allow {
                    policy.withdraw(exception)?;
                } else {
                    policy.add(exception);
                }
            }
        }
        Ok(policy)
    }

    fn add(&mut self, new: Exception) {
        match self.exceptions.iter_mut().find(|e| e.same_devices(&new)) {
            Some(old) => old.access |= new.access,
            None => self.exceptions.push(new),
        }
    }

    fn withdraw(&mut self, gone: Exception) -> Result<()> {
        for old in self.exceptions.iter_mut().filter(|e| e.access & gone.access != 0 && e.meets(&gone)) {
            if !gone.covers(old) {
                return Err(Error::new(Kind::Unsupported, "set device rules", gone.to_string()).hint(
                    format!(
                        "cgroup version 1 cannot make an exception inside the earlier rule for {old}; \
                     name the devices singly, or use version 2"
                    ),
                ));
            }
            old.access &= !gone.access;
        }
        self.exceptions.retain(|e| e.access != 0);
        Ok(())
    }
}

impl Exception {
    fn same_devices(&self, other: &Self) -> bool {
        self.node == other.node && self.major == other.major && self.minor == other.minor
    }

    /// Every device of `other` is one of ours.
    fn covers(&self, other: &Self) -> bool {
        let within = |own: Option<u32>, other: Option<u32>| own.is_none() || own == other;
        self.node == other.node && within(self.major, other.major) && within(self.minor, other.minor)
    }

    /// Some device of `other` is one of ours.
    fn meets(&self, other: &Self) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.node == other.node && meet(self.major, other.major) && meet(self.minor, other.minor)
    }
}

/// As version 1 writes it: `c 1:3 rw`.
impl std::fmt::Display for Exception {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let node = if self.node == Node::Char { 'c' } else { 'b' };
        write!(f, "{node} {}:{} {}", number(self.major), number(self.minor), letters(self.access))
    }
}

fn letters(access: u8) -> String {
    let known = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
    known.iter().filter(|(bit, _)| access & bit != 0).map(|(_, letter)| letter).collect()
}

/// Devices that a list allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Allowed {
    pub(super) is_char: bool,
    /// None: any.
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    /// Letters out of r, w, m.
    pub(super) access: String,
}

/// The rules as "nothing but these"; None if they cannot be said so, or allow everything.
pub(super) fn allowed(rules: &[Rule]) -> Option<Vec<Allowed>> {
    let policy = Policy::of(rules).ok().filter(|policy| !policy.allow)?;
    let allowed = |e: &Exception| Allowed {
        is_char: e.node == Node::Char,
        major: e.major,
        minor: e.minor,
        access: letters(e.access),
    };
    Some(policy.exceptions.iter().map(allowed).collect())
}

/// Brings the version 1 devices group `dir` to `rules`. A group that is only narrowed or widened by exceptions is
/// changed by the difference, so that its processes never see a moment of "nothing is allowed".
pub(super) fn apply_v1(dir: &str, rules: &[Rule]) -> Result<()> {
    let policy = Policy::of(rules)?;
    let present = present_v1(dir)?;
    let (gone, new) = match (&present, policy.allow) {
        (Some(old), false) => (beyond(old, &policy.exceptions), beyond(&policy.exceptions, old)),
        _ => (Vec::new(), policy.exceptions.clone()),
    };
    let with = if policy.allow { "devices.allow" } else { "devices.deny" };
    let against = if policy.allow { "devices.deny" } else { "devices.allow" };
    if policy.allow || present.is_none() {
        write_v1(dir, with, ["a".to_owned()])?;
    }
    write_v1(dir, against, new.iter().map(ToString::to_string))?;
    write_v1(dir, with, gone.iter().map(ToString::to_string))
}

/// What brings a new group to `rules`: files, and what is written to them.
pub(super) fn writes_v1(rules: &[Rule]) -> Result<Vec<(&'static str, String)>> {
    let policy = Policy::of(rules)?;
    let (with, against) =
        if policy.allow { ("devices.allow", "devices.deny") } else { ("devices.deny", "devices.allow") };
    let exceptions = policy.exceptions.iter().map(|exception| (against, exception.to_string()));
    Ok(std::iter::once((with, "a".to_owned())).chain(exceptions).collect())
}

/// Writes line after line into one file, opened once: a list has a dozen, and each container gets one.
fn write_v1(dir: &str, file: &str, lines: impl IntoIterator<Item = String>) -> Result<()> {
    let path = format!("{dir}/{file}");
    let mut opened = None;
    for line in lines {
        let mut write = || -> io::Result<()> {
            let target = match &mut opened {
                Some(target) => target,
                None => opened.insert(OpenOptions::new().write(true).open(&path)?),
            };
            target.write_all(line.as_bytes())
        };
        write().map_err(|e| {
            let hint = match e.raw_os_error() {
                Some(libc::EPERM) => "the parent group does not allow these devices itself",
                Some(libc::EINVAL) => "groups below this one keep it from changing its default",
                _ => "see devices.list of this group and of its parent",
            };
            Error::sys(super::explain::write(&line, &path), "device rule", e).hint(hint)
        })?;
    }
    Ok(())
}

/// What `these` have that `those` have not.
fn beyond(these: &[Exception], those: &[Exception]) -> Vec<Exception> {
    let rest = |e: &Exception| {
        let there = those.iter().find(|t| t.same_devices(e)).map_or(0, |t| t.access);
        Exception { access: e.access & !there, ..*e }
    };
    these.iter().map(rest).filter(|e| e.access != 0).collect()
}

/// The exceptions of a group whose default is "deny"; None if its default is "allow" (its exceptions are not shown).
fn present_v1(dir: &str) -> Result<Option<Vec<Exception>>> {
    let controller = DevicesController::new(PathBuf::from(dir), PathBuf::new());
    let listed = controller.allowed_devices().map_err(|e| files::from_crate("read device rules", dir, &e))?;
    let bit = |letter: &DevicePermissions| match letter {
        DevicePermissions::Read => READ,
        DevicePermissions::Write => WRITE,
        DevicePermissions::MkNod => MKNOD,
    };
    let exception = |device: &DeviceResource| {
        let node = match device.devtype {
            DeviceType::All => return None,
            DeviceType::Char => Node::Char,
            DeviceType::Block => Node::Block,
        };
        let (major, minor) = (u32::try_from(device.major).ok(), u32::try_from(device.minor).ok());
        Some(Exception { node, major, minor, access: device.access.iter().map(bit).sum() })
    };
    Ok(listed.iter().map(exception).collect())
}

/// Attaches the program for `rules` to the version 2 group `dir`, in place of what an earlier call attached.
pub(super) fn apply_v2(dir: &str, rules: &[Rule]) -> Result<()> {
    let failed = |step: &str, e: std::io::Error| {
        let unknown = matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL));
        let error = Error::sys(step, dir, e);
        if unknown {
            error
                .with_kind(Kind::Unsupported)
                .hint("device rules on version 2 need a kernel with CONFIG_CGROUP_BPF")
        } else {
            error.hint("loading device programs needs root (CAP_BPF and CAP_NET_ADMIN)")
        }
    };
    let group = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::sys("open control group", dir, e))?;
    let program = bpf::load_device_program(&program(rules)).map_err(|e| failed("load device program", e))?;
    let old = bpf::device_programs(group.as_fd()).map_err(|e| failed("list device programs", e))?;
    // All attached programs must agree: with one there, replacing is atomic; else the new one comes before the old go.
    let replace = (old.len() == 1).then(|| old[0].as_fd());
    bpf::attach_device_program(group.as_fd(), program.as_fd(), replace)
        .map_err(|e| failed("attach device program", e))?;
    for old in old.iter().filter(|_| replace.is_none()) {
        bpf::detach_device_program(group.as_fd(), old.as_fd())
            .map_err(|e| failed("detach device program", e))?;
    }
    Ok(())
}

/// True if the rules amount to "everything": version 2 then needs no program.
pub(super) fn allows_everything(rules: &[Rule]) -> bool {
    rules.iter().rposition(Rule::is_total).is_some_and(|last| rules[last..].iter().all(|r| r.allow))
}

/// The rules as a program on `struct bpf_cgroup_dev_ctx` (access << 16 | node, major, minor): it collects the granted
/// kinds of access in r0, rule by rule, and answers 1 if they hold all that was asked for.
fn program(rules: &[Rule]) -> Vec<u64> {
    const LOAD_WORD: u8 = 0x61;
    const MOV: u8 = 0xb7;
    const MOV_REG: u8 = 0xbf;
    const AND: u8 = 0x57;
    const AND_REG: u8 = 0x5f;
    const OR: u8 = 0x47;
    const SHIFT_RIGHT: u8 = 0x77;
    const JUMP_UNLESS: u8 = 0x55;
    const JUMP_IF_REG: u8 = 0x1d;
    const EXIT: u8 = 0x95;
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOV_REG, 3, 2, 0, 0),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
        instruction(MOV, 0, 0, 0, 0),
    ];
    for rule in rules {
        let tests = [(2, rule.node.map(|n| n as u32)), (4, rule.major), (5, rule.minor)];
        let tests: Vec<(u8, u32)> =
            tests.into_iter().filter_map(|(register, want)| Some((register, want?))).collect();
        for (at, (register, want)) in tests.iter().enumerate() {
            // Past the tests that follow, and past the one instruction that acts.
            let past = (tests.len() - at) as i16;
            code.push(instruction(JUMP_UNLESS, *register, 0, past, *want as i32));
        }
        let (act, bits) = if rule.allow { (OR, rule.access) } else { (AND, !rule.access & ALL) };
        code.push(instruction(act, 0, 0, 0, bits.into()));
    }
    code.extend([
        instruction(AND_REG, 0, 3, 0, 0),
        instruction(JUMP_IF_REG, 0, 3, 2, 0),
        instruction(MOV, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(MOV, 0, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    code
}

/// One `struct bpf_insn`: opcode, two registers, offset, immediate.
fn instruction(opcode: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    u64::from_ne_bytes([opcode, registers, o0, o1, i0, i1, i2, i3])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        let mut parts = text.split(' ');
        let mut next = || parts.next().unwrap();
        let (allow, node) = (next() == "allow", next());
        let (major, minor) = next().split_once(':').unwrap();
        let letters = next();
        let bit = |(letter, bit): (char, u8)| if letters.contains(letter) { bit } else { 0 };
        Rule {
            allow,
            node: [("b", Node::Block), ("c", Node::Char)]
                .into_iter()
                .find(|(n, _)| *n == node)
                .map(|(_, n)| n),
            major: major.parse().ok(),
            minor: minor.parse().ok(),
            access: [('r', READ), ('w', WRITE), ('m', MKNOD)].map(bit).iter().sum(),
        }
    }

    fn policy(texts: &[&str]) -> Result<(bool, Vec<String>)> {
        let policy = Policy::of(&texts.iter().map(|t| rule(t)).collect::<Vec<_>>())?;
        Ok((policy.allow, policy.exceptions.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn a_list_is_reduced_to_a_default_and_exceptions() {
        let (allow, exceptions) = policy(&[
            "deny a *:* rwm",
            "allow c *:* m",
            "allow c 1:3 r",
            "allow c 1:3 w",
            "allow b 8:0 rw",
            "deny b *:* w",
        ])
        .unwrap();
        assert!(!allow);
        assert_eq!(exceptions, ["c *:* m", "c 1:3 rw", "b 8:0 r"]);
        assert_eq!(
            policy(&["allow c 1:3 r", "allow a *:* rwm", "deny c 5:1 w"]).unwrap(),
            (true, vec!["c 5:1 w".into()])
        );
    }

    #[test]
    fn all_kinds_with_some_access_are_not_all_access() {
        // `a *:* m` written as it is would allow everything.
        assert_eq!(policy(&["allow a *:* m"]).unwrap(), (false, vec!["b *:* m".into(), "c *:* m".into()]));
    }

    #[test]
    fn an_exception_inside_a_range_is_refused_on_version_1() {
        let error = policy(&["deny a *:* rwm", "allow c *:* rw", "deny c 1:3 w"]).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("c 1:3 w") && error.to_string().contains("c *:* rw"), "{error}");
        assert!(policy(&["deny a *:* rwm", "allow c *:* m", "deny c 1:3 w"]).is_ok(), "nothing to take away");
    }

    #[test]
    fn everything_is_recognised() {
        let all = |texts: &[&str]| allows_everything(&texts.iter().map(|t| rule(t)).collect::<Vec<_>>());
        assert!(all(&["deny a *:* rwm", "allow a *:* rwm", "allow c 1:3 r"]));
        assert!(!all(&["allow a *:* rwm", "deny c 1:3 r"]));
        assert!(!all(&["allow c *:* rwm"]) && !all(&[]));
    }

    /// A tiny interpreter of the six instructions used, to check programs without a kernel.
    fn run(code: &[u64], node: Node, major: u64, minor: u64, access: u8) -> bool {
        let context = [u64::from(access) << 16 | node as u64, major, minor];
        let (mut r, mut at) = ([0u64; 6], 0);
        loop {
            let [opcode, registers, o0, o1, i0, i1, i2, i3] = code[at].to_ne_bytes();
            let (to, from) = (usize::from(registers & 15), usize::from(registers >> 4));
            let (offset, value) = (i16::from_ne_bytes([o0, o1]), i32::from_ne_bytes([i0, i1, i2, i3]) as u64);
            at += 1;
            match opcode {
                0x61 => r[to] = context[offset as usize / 4],
                0xb7 => r[to] = value,
                0xbf => r[to] = r[from],
                0x57 => r[to] &= value,
                0x5f => r[to] &= r[from],
                0x47 => r[to] |= value,
                0x77 => r[to] >>= value,
                0x55 if r[to] != value => at += offset as usize,
                0x1d if r[to] == r[from] => at += offset as usize,
                0x55 | 0x1d => {}
                0x95 => return r[0] == 1,
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_lets_the_later_rule_win() {
        let texts = ["deny a *:* rwm", "allow c *:* rw", "deny c 1:3 w", "allow b 8:* m", "allow c 1:3 m"];
        let code = program(&texts.map(rule));
        assert!(run(&code, Node::Char, 1, 5, READ | WRITE));
        assert!(run(&code, Node::Char, 1, 3, READ | MKNOD));
        assert!(!run(&code, Node::Char, 1, 3, READ | WRITE));
        assert!(!run(&code, Node::Char, 1, 5, MKNOD));
        assert!(run(&code, Node::Block, 8, 1, MKNOD) && !run(&code, Node::Block, 9, 1, MKNOD));
        assert!(!run(&program(&[]), Node::Char, 1, 3, READ), "no rule, no access");
    }
}
