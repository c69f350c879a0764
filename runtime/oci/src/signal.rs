//! Signals by name or number, as kill(1) takes them.

use anyhow::{Result, bail};

/// Names in the order of their numbers, from 1 (signal(7), x86 and ARM).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const ALIASES: [(&str, &str); 4] = [("IOT", "ABRT"), ("CLD", "CHLD"), ("POLL", "IO"), ("UNUSED", "SYS")];
const FIRST_REAL_TIME: i32 = 34;
const LAST: i32 = 64;

/// `9`, `KILL`, `SIGKILL`, `sigkill`, `RTMIN+3`, `RTMAX-1`.
pub(crate) fn parse(text: &str) -> Result<i32> {
    let number = match text.parse::<i32>() {
        Ok(number) => Some(number).filter(|n| (1..=LAST).contains(n)),
        Err(_) => named(&text.to_ascii_uppercase()),
    };
    let Some(number) = number else {
        bail!("unknown signal {text:?}: give a name such as TERM, or 1 to {LAST}")
    };
    Ok(number)
}

fn named(text: &str) -> Option<i32> {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, real)| real);
    if let Some(at) = NAMES.iter().position(|known| *known == name) {
        return i32::try_from(at + 1).ok();
    }
    let real_time = |base: i32, rest: &str, sign: char| match rest {
        "" => Some(base),
        rest => rest
            .strip_prefix(sign)?
            .parse::<u8>()
            .ok()
            .map(|by| if sign == '+' { i32::from(by) } else { -i32::from(by) } + base),
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => real_time(FIRST_REAL_TIME, rest, '+'),
        (_, Some(rest)) => real_time(LAST, rest, '-'),
        _ => None,
    };
    number.filter(|n| (FIRST_REAL_TIME..=LAST).contains(n))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn takes_names_and_numbers() {
        for (text, number) in
            [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("poll", 29)]
        {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["0", "65", "-1", "NOSUCH", "", "SIG", "RTMIN-1", "RTMIN+31", "RTMAX+1", "RTMINx"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
