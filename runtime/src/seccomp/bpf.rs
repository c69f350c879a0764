//! The assembler: ranges to classic BPF, a binary tree per architecture. Pure.
//!
//! Classic BPF jumps only forwards, so the program is written from its end: every target exists before the jump to
//! it, and distances are known at once. Conditional jumps reach 255 instructions; further targets get a stepping
//! stone beside the jump.

use super::rules::{Answer, Condition, KILL_THREAD, Op, Range, Rules};
use crate::error::Kind;
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// BPF_MAXINSNS (linux/bpf_common.h).
pub(super) const LIMIT: usize = 4096;

/// linux/bpf_common.h: class | size or operation | mode or source.
pub(super) mod op {
    pub(in super::super) const LOAD: u16 = 0x20;
    pub(in super::super) const AND: u16 = 0x54;
    pub(in super::super) const JUMP: u16 = 0x05;
    pub(in super::super) const EQUAL: u16 = 0x15;
    pub(in super::super) const GREATER: u16 = 0x25;
    pub(in super::super) const GREATER_EQUAL: u16 = 0x35;
    pub(in super::super) const RETURN: u16 = 0x06;
}

/// `struct sock_filter`: code, jt, jf, k.
type Word = (u16, u8, u8, u32);

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// An instruction already written, counted from the end of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Label(usize);

/// # Errors
/// `Invalid` if the program would be longer than the kernel takes.
pub(super) fn assemble(rules: &Rules) -> Result<Arc<[Word]>> {
    let mut code = Code { reversed: Vec::new(), returns: HashMap::new(), big_endian: rules.big_endian };
    let mut entry = code.answer(KILL_THREAD);
    for section in rules.sections.iter().rev() {
        let tree = code.tree(&section.ranges, rules.default);
        let start = code.load(NUMBER, tree);
        entry = code.test(op::EQUAL, section.audit, start, entry);
    }
    code.load(ARCHITECTURE, entry);
    code.reversed.reverse();
    match code.reversed.len() {
        0..=LIMIT => Ok(code.reversed.into()),
        length => {
            let object = format!("a program of {length} instructions");
            Err(Error::new(Kind::Invalid, "compile seccomp profile", object).hint(format!(
                "the kernel takes {LIMIT}; use fewer rules with arguments or fewer architectures"
            )))
        }
    }
}

struct Code {
    reversed: Vec<Word>,
    /// The last place that returns a value.
    returns: HashMap<u32, Label>,
    big_endian: bool,
}

impl Code {
    /// Decides by the number in the accumulator.
    fn tree(&mut self, ranges: &[Range], default: u32) -> Label {
        match ranges {
            [] => self.answer(default),
            [only] => self.leaf(&only.answer, default),
            // A single number amid others costs one comparison instead of two.
            [before, one, after] if before.answer == after.answer && one.first + 1 == after.first => {
                let other = self.leaf(&after.answer, default);
                let same = self.leaf(&one.answer, default);
                self.test(op::EQUAL, one.first, same, other)
            }
            _ => {
                let (below, above) = ranges.split_at(ranges.len() / 2);
                let right = self.tree(above, default);
                let left = self.tree(below, default);
                self.test(op::GREATER_EQUAL, above[0].first, right, left)
            }
        }
    }

    fn leaf(&mut self, answer: &Answer, default: u32) -> Label {
        match answer {
            Answer::Always(value) => self.answer(*value),
            Answer::Tests(tests) => {
                let default = self.answer(default);
                tests.iter().rev().fold(default, |next, (conditions, value)| {
                    let value = self.answer(*value);
                    conditions.iter().rev().fold(value, |hit, condition| self.condition(condition, hit, next))
                })
            }
        }
    }

    /// Tests one argument of 64 bits, high half first; narrow ones have a low half only.
    fn condition(&mut self, condition: &Condition, hit: Label, miss: Label) -> Label {
        let (high, low) = ((condition.value >> 32) as u32, condition.value as u32);
        let (greater, hit, miss) = match condition.op {
            Op::Masked(mask) => return self.masked(condition, mask, hit, miss),
            Op::Equal | Op::NotEqual => {
                let (hit, miss) = if condition.op == Op::Equal { (hit, miss) } else { (miss, hit) };
                let start = self.test(op::EQUAL, low, hit, miss);
                let start = self.load_low(condition.index, start);
                if condition.narrow {
                    return start;
                }
                let start = self.test(op::EQUAL, high, start, miss);
                return self.load_high(condition.index, start);
            }
            Op::Greater => (op::GREATER, hit, miss),
            Op::GreaterEqual => (op::GREATER_EQUAL, hit, miss),
            Op::Less => (op::GREATER_EQUAL, miss, hit),
            Op::LessEqual => (op::GREATER, miss, hit),
        };
        let start = self.test(greater, low, hit, miss);
        let start = self.load_low(condition.index, start);
        if condition.narrow {
            return start;
        }
        let start = self.test(op::EQUAL, high, start, miss);
        let start = self.test(op::GREATER, high, hit, start);
        self.load_high(condition.index, start)
    }

    fn masked(&mut self, condition: &Condition, mask: u64, hit: Label, miss: Label) -> Label {
        let start = self.test(op::EQUAL, condition.value as u32, hit, miss);
        let start = self.push(op::AND, mask as u32, start);
        let start = self.load_low(condition.index, start);
        let (mask, value) = ((mask >> 32) as u32, (condition.value >> 32) as u32);
        if condition.narrow || (mask == 0 && value == 0) {
            return start;
        }
        let start = self.test(op::EQUAL, value, start, miss);
        let start = self.push(op::AND, mask, start);
        self.load_high(condition.index, start)
    }

    fn load_low(&mut self, index: u8, next: Label) -> Label {
        let half = if self.big_endian { 4 } else { 0 };
        self.load(ARGUMENTS + 8 * u32::from(index) + half, next)
    }

    fn load_high(&mut self, index: u8, next: Label) -> Label {
        let half = if self.big_endian { 0 } else { 4 };
        self.load(ARGUMENTS + 8 * u32::from(index) + half, next)
    }

    fn load(&mut self, offset: u32, next: Label) -> Label {
        self.push(op::LOAD, offset, next)
    }

    /// A place that returns `value`, near enough to be jumped to.
    fn answer(&mut self, value: u32) -> Label {
        if let Some(label) = self.returns.get(&value).filter(|label| self.distance(**label) < 200) {
            return *label;
        }
        let label = self.emit(op::RETURN, 0, 0, value);
        self.returns.insert(value, label);
        label
    }

    /// `if accumulator <op> value goto yes else goto no`.
    fn test(&mut self, code: u16, value: u32, mut yes: Label, mut no: Label) -> Label {
        if yes == no {
            return yes;
        }
        // A stone pushes the other target one away, hence 254.
        if self.distance(no) > 254 {
            no = self.stone(no);
        }
        if self.distance(yes) > 255 {
            yes = self.stone(yes);
        }
        let (yes, no) = (self.distance(yes), self.distance(no));
        self.emit(code, yes as u8, no as u8, value)
    }

    /// An unconditional jump reaches everywhere; a copy of a return is as short and one step less.
    fn stone(&mut self, target: Label) -> Label {
        let (code, _, _, k) = self.reversed[target.0];
        if code == op::RETURN {
            return self.emit(op::RETURN, 0, 0, k);
        }
        let distance = self.distance(target);
        self.emit(op::JUMP, 0, 0, distance as u32)
    }

    /// An instruction that goes on at `next`.
    fn push(&mut self, code: u16, k: u32, next: Label) -> Label {
        if self.distance(next) > 0 {
            self.stone(next);
        }
        self.emit(code, 0, 0, k)
    }

    /// How many instructions one written now would skip to reach `label`.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - 1 - label.0
    }

    fn emit(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push((code, jt, jf, k));
        Label(self.reversed.len() - 1)
    }
}
