//! What a profile means: for each architecture, ranges of call numbers that share one answer. Pure.

use super::abi::{Abi, X32_BIT};
use super::numbers::Numbers;
use crate::error::Kind;
use crate::{Error, Result};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use std::collections::BTreeMap;

/// SECCOMP_RET_KILL_THREAD: what libseccomp does to calls from an architecture nobody listed.
pub(super) const KILL_THREAD: u32 = 0;
/// SECCOMP_RET_ERRNO | ENOSYS.
const NO_SUCH_CALL: u32 = 0x0005_0000 | libc::ENOSYS as u32;
/// The kernel's MAX_ERRNO: higher values come back as this one.
const MAX_ERRNO: u32 = 4095;
/// The number a tracer sets to skip a call; never a call of x32.
const SKIPPED: u32 = u32::MAX;
const ARGUMENTS: usize = 6;
const STEP: &str = "compile seccomp profile";

/// A test of one argument, in the kernel's terms. Values of narrow architectures are cut to 32 bits already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) index: u8,
    pub(super) op: Op,
    pub(super) value: u64,
    pub(super) narrow: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Equal,
    NotEqual,
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
    /// Bits under the mask equal the value.
    Masked(u64),
}

/// What the filter answers for one call number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// SECCOMP_RET_* with its data.
    Always(u32),
    /// The first list of conditions that all hold decides; otherwise the default action.
    Tests(Vec<(Vec<Condition>, u32)>),
}

/// All numbers from `first` up to the next range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u32,
    pub(super) answer: Answer,
}

/// All calls that come with one audit number: ranges that cover every u32, in order, neighbours differing.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) audit: u32,
    pub(super) ranges: Vec<Range>,
}

/// A whole profile for one machine; the native architecture comes first.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) sections: Vec<Section>,
    pub(super) default: u32,
    pub(super) big_endian: bool,
    pub(super) notify: bool,
}

impl Rules {
    pub(super) fn new(native: Abi, profile: &LinuxSeccomp) -> Result<Self> {
        let default = action(profile.default_action(), profile.default_errno_ret())
            .map_err(|why| invalid("default action", why))?;
        let calls = profile.syscalls().as_deref().unwrap_or_default();
        for call in calls {
            check(call)?;
        }
        let sections = listed(native, profile).into_iter().map(|(audit, abis)| {
            let ranges = ranges(&abis, calls, default, lets_through(profile.default_action()));
            Section { audit, ranges }
        });
        Ok(Self {
            sections: sections.collect(),
            default,
            big_endian: native.big_endian(),
            notify: profile.default_action() == LinuxSeccompAction::ScmpActNotify
                || calls.iter().any(|call| call.action() == LinuxSeccompAction::ScmpActNotify),
        })
    }
}

/// Architectures by audit number, native first; those this machine cannot run are left out.
fn listed(native: Abi, profile: &LinuxSeccomp) -> Vec<(u32, Vec<Abi>)> {
    let mut sections = vec![(native.audit(), vec![native])];
    for arch in profile.architectures().iter().flatten() {
        let Some(abi) = Abi::from_oci(*arch, native).filter(|abi| native.runs(*abi)) else { continue };
        match sections.iter_mut().find(|(audit, _)| *audit == abi.audit()) {
            Some((_, abis)) if abis.contains(&abi) => {}
            Some((_, abis)) => abis.push(abi),
            None => sections.push((abi.audit(), vec![abi])),
        }
    }
    sections
}

/// Default actions after which an unknown call reaches the kernel (or a tracer), which says ENOSYS itself.
fn lets_through(action: LinuxSeccompAction) -> bool {
    use LinuxSeccompAction::{ScmpActAllow, ScmpActLog, ScmpActTrace};
    matches!(action, ScmpActAllow | ScmpActLog | ScmpActTrace)
}

fn ranges(abis: &[Abi], calls: &[LinuxSyscall], default: u32, lets_through: bool) -> Vec<Range> {
    let unknown = if lets_through { default } else { NO_SUCH_CALL };
    let mut ranges = Ranges::default();
    for abi in abis {
        let table = Table::new(*abi, calls, default);
        let base = if *abi == Abi::X32 { X32_BIT } else { 0 };
        ranges.push(base, Answer::Always(default));
        for (number, answer) in table.answers {
            ranges.push(number, answer);
            ranges.push(number + 1, Answer::Always(default));
        }
        // With no name at all there is no "highest", and everything is the default's.
        if let Some(highest) = table.highest {
            ranges.push(highest + 1, Answer::Always(unknown));
        }
        if *abi == Abi::S390x && !lets_through {
            ranges.replace_first(Answer::Always(unknown));
        }
    }
    if abis[0] == Abi::X86_64 && !abis.contains(&Abi::X32) {
        ranges.push(X32_BIT, Answer::Always(KILL_THREAD));
        ranges.push(SKIPPED, Answer::Always(unknown));
    }
    ranges.merged()
}

/// Ranges in the making: pushed in rising order, a later push at the same number replaces.
#[derive(Default)]
struct Ranges(Vec<Range>);

impl Ranges {
    fn push(&mut self, first: u32, answer: Answer) {
        match self.0.last_mut() {
            Some(last) if last.first == first => last.answer = answer,
            _ => self.0.push(Range { first, answer }),
        }
    }

    /// Gives number 0 alone another answer; kernels map unknown multiplexed calls of s390x to it.
    fn replace_first(&mut self, answer: Answer) {
        let old = self.0.first().map(|range| range.answer.clone());
        if let (Some(old), true) = (old, self.0.get(1).is_none_or(|range| range.first > 1)) {
            self.0.insert(1, Range { first: 1, answer: old });
        }
        self.0[0].answer = answer;
    }

    fn merged(mut self) -> Vec<Range> {
        self.0.dedup_by(|later, earlier| later.answer == earlier.answer);
        self.0
    }
}

/// The profile's rules for one architecture, by number.
struct Table {
    abi: Abi,
    numbers: Numbers,
    answers: BTreeMap<u32, Answer>,
    highest: Option<u32>,
}

impl Table {
    fn new(abi: Abi, calls: &[LinuxSyscall], default: u32) -> Self {
        let mut table = Self { abi, numbers: Numbers::of(abi), answers: BTreeMap::new(), highest: None };
        for call in calls {
            // Checked before: the action can be expressed.
            let Ok(action) = action(call.action(), call.errno_ret()) else { continue };
            for name in call.names() {
                table.add_name(name, call.args().as_deref().unwrap_or_default(), action, default);
            }
        }
        table
    }

    fn add_name(&mut self, name: &str, args: &[LinuxSeccompArg], action: u32, default: u32) {
        let number = self.numbers.get(name);
        let multiplexed = self
            .abi
            .multiplexed(name)
            .and_then(|(by, sub)| Some((self.numbers.get(by)?, first_is(by, sub, self.abi))));
        self.highest = self.highest.max(number).max(multiplexed.as_ref().map(|(number, _)| *number));
        if action == default {
            return;
        }
        if let Some(number) = number {
            for conditions in alternatives(args, self.abi.narrow()) {
                self.add(number, conditions, action);
            }
        }
        if let Some((number, condition)) = multiplexed {
            self.add(number, vec![condition], action);
        }
    }

    fn add(&mut self, number: u32, conditions: Vec<Condition>, action: u32) {
        let answer = self.answers.entry(number).or_insert_with(|| Answer::Tests(Vec::new()));
        match answer {
            Answer::Always(_) => {}
            Answer::Tests(_) if conditions.is_empty() => *answer = Answer::Always(action),
            Answer::Tests(tests) => tests.push((conditions, action)),
        }
    }
}

/// The conditions of a rule; each alone where an argument is tested twice.
fn alternatives(args: &[LinuxSeccompArg], narrow: bool) -> Vec<Vec<Condition>> {
    let conditions: Vec<_> = args.iter().map(|arg| condition(arg, narrow)).collect();
    let twice = (0..args.len()).any(|at| args[..at].iter().any(|arg| arg.index() == args[at].index()));
    if twice { conditions.into_iter().map(|condition| vec![condition]).collect() } else { vec![conditions] }
}

fn condition(arg: &LinuxSeccompArg, narrow: bool) -> Condition {
    let cut = |value: u64| if narrow { value & u64::from(u32::MAX) } else { value };
    let (op, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (Op::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (Op::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (Op::LessEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (Op::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (Op::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (Op::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (Op::Masked(cut(arg.value())), arg.value_two().unwrap_or_default())
        }
    };
    // Checked before: the index is below six.
    Condition { index: arg.index() as u8, op, value: cut(value), narrow }
}

/// The version in the high half of ipc's number must not get around a rule.
fn first_is(by: &str, sub: u32, abi: Abi) -> Condition {
    let op = if by == "ipc" { Op::Masked(0xffff) } else { Op::Equal };
    Condition { index: 0, op, value: u64::from(sub), narrow: abi.narrow() }
}

fn check(call: &LinuxSyscall) -> Result<()> {
    let names = call.names().join(",");
    if call.names().is_empty() || call.names().iter().any(String::is_empty) {
        return Err(invalid(format!("rule for [{names}]"), "names no call"));
    }
    action(call.action(), call.errno_ret()).map_err(|why| invalid(format!("rule for [{names}]"), why))?;
    match call.args().iter().flatten().find(|arg| arg.index() >= ARGUMENTS) {
        Some(arg) => {
            Err(invalid(format!("rule for [{names}]"), format!("argument index {} is above 5", arg.index())))
        }
        None => Ok(()),
    }
}

/// SECCOMP_RET_* with its data; the sentence says what is wrong.
fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, String> {
    use LinuxSeccompAction::{ScmpActErrno, ScmpActTrace};
    match (action, errno) {
        (ScmpActErrno, Some(errno)) if errno > MAX_ERRNO => {
            Err(format!("errno {errno} is above {MAX_ERRNO}"))
        }
        (ScmpActTrace, Some(data)) if data > 0xffff => Err(format!("trace value {data} is above 65535")),
        (ScmpActErrno | ScmpActTrace, _) | (_, None) => Ok(action.as_u32(errno)),
        (_, Some(errno)) => Err(format!("{action} takes no errno, {errno} given")),
    }
}

fn invalid(object: impl Into<String>, why: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, STEP, object).hint(why)
}
