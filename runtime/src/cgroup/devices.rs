//! Device rules: lines for version 1, a small eBPF program for version 2. Pure.
//!
//! Rules are in the order of the spec and the last one that matches decides (OCI config-linux.md, "Allowed Device List").

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// `(file, line)` for version 1: `devices.deny` `a *:* rwm`, `devices.allow` `c 1:3 rwm`, ….
pub(crate) fn v1_lines(rules: &[LinuxDeviceCgroup]) -> Vec<(&'static str, String)> {
    let line = |rule: &LinuxDeviceCgroup| {
        let file = if rule.allow() { "devices.allow" } else { "devices.deny" };
        let number = |n: Option<i64>| n.filter(|n| *n >= 0).map_or("*".to_owned(), |n| n.to_string());
        let numbers = format!("{}:{}", number(rule.major()), number(rule.minor()));
        let access = rule.access().as_deref().filter(|a| !a.is_empty()).unwrap_or("rwm");
        match kind(rule) {
            Some(kind) => (file, format!("{} {numbers} {access}", kind.letter)),
            None => (file, format!("a {numbers} {access}")),
        }
    };
    rules.iter().map(line).collect()
}

/// A device type that a rule can name.
struct DeviceKind {
    letter: char,
    /// BPF_DEVCG_DEV_BLOCK or BPF_DEVCG_DEV_CHAR (linux/bpf.h).
    bpf: i32,
}

/// None: every type.
fn kind(rule: &LinuxDeviceCgroup) -> Option<DeviceKind> {
    match rule.typ()? {
        LinuxDeviceType::B => Some(DeviceKind { letter: 'b', bpf: 1 }),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(DeviceKind { letter: 'c', bpf: 2 }),
        _ => None,
    }
}

/// One eBPF instruction, `struct bpf_insn` packed into 8 bytes (little or big endian as the host is).
pub(crate) type Instruction = [u8; 8];

const R0: u8 = 0;
/// Context, then scratch.
const R1: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const LOAD_WORD: u8 = 0x61;
const MOVE_IMMEDIATE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND_IMMEDIATE: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_NOT_EQUAL_IMMEDIATE: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    let o = offset.to_ne_bytes();
    let i = immediate.to_ne_bytes();
    [code, dst | (src << 4), o[0], o[1], i[0], i[1], i[2], i[3]]
}

/// The BPF_PROG_TYPE_CGROUP_DEVICE program for `rules`: returns 1 for allowed, 0 for denied; no rule matches: denied.
pub(crate) fn program(rules: &[LinuxDeviceCgroup]) -> Vec<Instruction> {
    // struct bpf_cgroup_dev_ctx { u32 access_type /* access << 16 | type */, major, minor }
    let mut program = vec![
        instruction(LOAD_WORD, TYPE, R1, 0, 0),
        instruction(MOVE_REGISTER, ACCESS, TYPE, 0, 0),
        instruction(AND_IMMEDIATE, TYPE, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, R1, 4, 0),
        instruction(LOAD_WORD, MINOR, R1, 8, 0),
    ];
    // The last match wins, so ask the last rule first.
    for rule in rules.iter().rev() {
        program.extend(block(rule));
    }
    program.extend(answer(false));
    program
}

fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE_IMMEDIATE, R0, 0, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]
}

/// Conditions that each jump behind the block when they fail, then the answer.
fn block(rule: &LinuxDeviceCgroup) -> Vec<Instruction> {
    let mut conditions: Vec<Instruction> = Vec::new();
    if let Some(kind) = kind(rule) {
        conditions.push(instruction(JUMP_NOT_EQUAL_IMMEDIATE, TYPE, 0, 0, kind.bpf));
    }
    let access = access_bits(rule.access().as_deref().unwrap_or("rwm"));
    if access != 7 {
        // All that is asked for must be among what the rule names.
        conditions.push(instruction(MOVE_REGISTER, R1, ACCESS, 0, 0));
        conditions.push(instruction(AND_IMMEDIATE, R1, 0, 0, access));
        conditions.push(instruction(JUMP_NOT_EQUAL_REGISTER, R1, ACCESS, 0, 0));
    }
    for (register, number) in [(MAJOR, rule.major()), (MINOR, rule.minor())] {
        if let Some(number) = number.and_then(|n| i32::try_from(n).ok()).filter(|n| *n >= 0) {
            conditions.push(instruction(JUMP_NOT_EQUAL_IMMEDIATE, register, 0, 0, number));
        }
    }
    let end = conditions.len() + 2;
    for (index, condition) in conditions.iter_mut().enumerate() {
        if matches!(condition[0], JUMP_NOT_EQUAL_IMMEDIATE | JUMP_NOT_EQUAL_REGISTER) {
            // At most eight instructions lie ahead: the offset always fits.
            let offset = (end - index - 1) as i16;
            condition[2..4].copy_from_slice(&offset.to_ne_bytes());
        }
    }
    conditions.extend(answer(rule.allow()));
    conditions
}

/// BPF_DEVCG_ACC_MKNOD 1, READ 2, WRITE 4.
fn access_bits(access: &str) -> i32 {
    let bit = |c: char| match c {
        'm' => 1,
        'r' => 2,
        'w' => 4,
        _ => 0,
    };
    let bits = access.chars().fold(0, |bits, c| bits | bit(c));
    if bits == 0 { 7 } else { bits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    fn rules() -> Vec<LinuxDeviceCgroup> {
        let all = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build();
        let null = LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::C).major(1).minor(3);
        vec![all.expect("rule"), null.access("rw").build().expect("rule")]
    }

    /// CRI-DEV-02.
    #[test]
    fn version_1_lines_keep_the_order() {
        let lines = v1_lines(&rules());
        assert_eq!(lines[0], ("devices.deny", "a *:* rwm".to_owned()));
        assert_eq!(lines[1], ("devices.allow", "c 1:3 rw".to_owned()));
    }

    /// A tiny interpreter of the instructions used above.
    fn run(program: &[Instruction], kind: u64, access: u64, major: u64, minor: u64) -> u64 {
        let mut registers = [0u64; 6];
        let mut at = 0;
        loop {
            let [code, registers_byte, o0, o1, i0, i1, i2, i3] = program[at];
            let (dst, src) = (usize::from(registers_byte & 15), usize::from(registers_byte >> 4));
            let offset = i16::from_ne_bytes([o0, o1]);
            let immediate = i64::from(i32::from_ne_bytes([i0, i1, i2, i3])) as u64;
            at += 1;
            let jump = match code {
                LOAD_WORD => {
                    registers[dst] = [access << 16 | kind, major, minor][usize::from(offset as u16) / 4];
                    false
                }
                MOVE_IMMEDIATE => {
                    registers[dst] = immediate;
                    false
                }
                MOVE_REGISTER => {
                    registers[dst] = registers[src];
                    false
                }
                AND_IMMEDIATE => {
                    registers[dst] &= immediate;
                    false
                }
                SHIFT_RIGHT => {
                    registers[dst] >>= immediate;
                    false
                }
                JUMP_NOT_EQUAL_IMMEDIATE => registers[dst] != immediate,
                JUMP_NOT_EQUAL_REGISTER => registers[dst] != registers[src],
                EXIT => return registers[0],
                other => panic!("unknown instruction {other:#x}"),
            };
            if jump {
                at = at.checked_add_signed(isize::from(offset)).expect("jump");
            }
        }
    }

    #[test]
    fn the_last_matching_rule_decides() {
        let program = program(&rules());
        assert_eq!(run(&program, 2, 2, 1, 3), 1, "read /dev/null");
        assert_eq!(run(&program, 2, 6, 1, 3), 1, "read and write /dev/null");
        assert_eq!(run(&program, 2, 1, 1, 3), 0, "mknod is not among rw");
        assert_eq!(run(&program, 1, 2, 1, 3), 0, "a block device");
        assert_eq!(run(&program, 2, 2, 1, 5), 0, "another minor");
    }
}
