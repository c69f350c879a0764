//! Pressure stall information: how long processes waited for a resource (kernel Documentation/accounting/psi.rst).

use super::text;
use crate::Result;

/// CRI-SS-11. Absent where the kernel has no CONFIG_PSI, and on version 1 unless the group is in the unified hierarchy, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// At least one process waited.
    pub some: Stalled,
    /// All processes that had work waited at once. For cpu since Linux 5.13.
    pub full: Stalled,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stalled {
    /// Shares of the last 10, 60 and 300 seconds, in hundredths of a percent: 12.34 % is 1234.
    pub avg10: u64,
    pub avg60: u64,
    pub avg300: u64,
    /// Since the group was made. The file gives microseconds.
    pub total_ns: u64,
}

pub(super) fn read(dir: &str, file: &str) -> Result<Option<Pressure>> {
    Ok(text(dir, file)?.map(|text| parse(&text)))
}

fn parse(text: &str) -> Pressure {
    let line = |kind: &str| {
        let words = text.lines().find_map(|line| line.strip_prefix(kind)).unwrap_or_default();
        let value = |key: &str| words.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let share = |key| value(key).and_then(hundredths).unwrap_or(0);
        let total = value("total").and_then(|us| us.parse::<u64>().ok()).unwrap_or(0);
        Stalled {
            avg10: share("avg10"),
            avg60: share("avg60"),
            avg300: share("avg300"),
            total_ns: total.saturating_mul(1000),
        }
    };
    Pressure { some: line("some "), full: line("full ") }
}

/// `12.34` as 1234: the kernel always writes two decimals.
fn hundredths(number: &str) -> Option<u64> {
    let (whole, part) = number.split_once('.')?;
    Some(whole.parse::<u64>().ok()? * 100 + part.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    // CRI-SS-11
    #[test]
    fn pressure_is_read_in_its_units() {
        let text = "some avg10=1.50 avg60=0.07 avg300=100.00 total=2501\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n";
        let some = Stalled { avg10: 150, avg60: 7, avg300: 10_000, total_ns: 2_501_000 };
        let full = Stalled { total_ns: 9000, ..Stalled::default() };
        assert_eq!(parse(text), Pressure { some, full });
        // cpu.pressure before Linux 5.13
        assert_eq!(parse("some avg10=0.00 avg60=0.00 avg300=0.00 total=3\n").full, Stalled::default());
    }
}
