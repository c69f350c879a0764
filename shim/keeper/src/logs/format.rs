//! Bytes to CRI log lines: `<RFC3339 time> <stream> <F|P> <content>\n` (CRI-LOG-03). Pure.

use std::io::Write as _;

/// What [`cut`] took from its input.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) struct Cut {
    /// Bytes of input that are now in the output.
    pub(crate) consumed: usize,
    /// Log lines written, partial ones included.
    pub(crate) lines: u64,
}

/// Appends the complete lines at the head of `input` to `out`, each behind `head` (time and stream name with a trailing
/// blank), and says how much it took. A line longer than `max_line` bytes is cut into pieces tagged P (CRI-LOG-05, 06);
/// 0 means never. A rest without newline is left alone, or written as P with `flush` (CRI-LOG-07).
pub(crate) fn cut(input: &[u8], head: &[u8], max_line: usize, flush: bool, out: &mut Vec<u8>) -> Cut {
    let mut at = 0;
    let mut lines = 0;
    while at < input.len() {
        let rest = &input[at..];
        // A line of exactly the limit may still be followed by "\r\n", and is one F line then (CRI-LOG-06b, 08).
        let window = if max_line == 0 { rest } else { &rest[..rest.len().min(max_line + 2)] };
        let (content, tag, taken) = match memchr::memchr(b'\n', window) {
            Some(end) => {
                let line = &rest[..end];
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                if max_line == 0 || line.len() <= max_line {
                    (line, b'F', end + 1)
                } else {
                    (&rest[..max_line], b'P', max_line)
                }
            }
            None if max_line > 0 && window.len() > max_line => (&rest[..max_line], b'P', max_line),
            None if flush => (rest, b'P', rest.len()),
            None => break,
        };
        out.extend_from_slice(head);
        out.extend_from_slice(&[tag, b' ']);
        out.extend_from_slice(content);
        out.push(b'\n');
        at += taken;
        lines += 1;
    }
    Cut { consumed: at, lines }
}

/// Appends `2026-11-23T21:05:09.000000001Z` for nanoseconds since the epoch (RFC 3339, always UTC, nine digits).
pub(crate) fn push_time(out: &mut Vec<u8>, nanos: i64) {
    const DAY: i64 = 86_400;
    let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z");
}

/// Days since 1970-01-01 to a date of the proleptic Gregorian calendar: years begin in March, so that the leap day is
/// their last, and repeat every 400.
fn civil(days: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097;
    let days = days + 719_468;
    let era = days.div_euclid(ERA);
    let day_of_era = days.rem_euclid(ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(input: &str, max: usize, flush: bool) -> (usize, String) {
        let mut out = Vec::new();
        let cut = cut(input.as_bytes(), b"T stdout ", max, flush, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count() as u64, cut.lines);
        (cut.consumed, text)
    }

    #[test]
    fn whole_lines_are_taken_and_the_rest_waits() {
        // CRI-LOG-03, CRI-LOG-04, CRI-LOG-09
        assert_eq!(run("a\n\nb", 10, false), (3, "T stdout F a\nT stdout F \n".into()));
        assert_eq!(run("", 10, true), (0, String::new()));
    }

    #[test]
    fn the_rest_is_partial_when_flushed() {
        // CRI-LOG-07
        assert_eq!(run("a\nb", 10, true), (3, "T stdout F a\nT stdout P b\n".into()));
    }

    #[test]
    fn the_limit_is_inclusive() {
        // CRI-LOG-06, CRI-LOG-06b
        assert_eq!(run("abcd\n", 4, false), (5, "T stdout F abcd\n".into()));
        assert_eq!(run("abcde\n", 4, false), (6, "T stdout P abcd\nT stdout F e\n".into()));
        assert_eq!(run("abcdefgh\n", 4, false), (9, "T stdout P abcd\nT stdout F efgh\n".into()));
        assert_eq!(run("abcd", 4, false), (0, String::new()));
        assert_eq!(run("abcde", 4, false), (4, "T stdout P abcd\n".into()));
        assert_eq!(run("abcdefghij\n", 0, false), (11, "T stdout F abcdefghij\n".into()));
    }

    #[test]
    fn carriage_returns_before_the_newline_go() {
        // CRI-LOG-08
        assert_eq!(run("ab\r\n", 4, false), (4, "T stdout F ab\n".into()));
        assert_eq!(run("abcd\r\n", 4, false), (6, "T stdout F abcd\n".into()));
        assert_eq!(run("abcd\rx\n", 4, false).1, "T stdout P abcd\nT stdout F \rx\n");
        assert_eq!(run("abcd\r", 4, true).1, "T stdout P abcd\nT stdout P \r\n");
    }

    #[test]
    fn nothing_is_lost_however_the_input_is_sliced() {
        let text = "one\ntwo two two\n\nthree-is-a-long-line-of-many-pieces\n\r\na\r\nlast";
        let whole = run(text, 5, true).1;
        for step in 1..text.len() {
            let (mut pending, mut out) = (Vec::new(), Vec::new());
            for piece in text.as_bytes().chunks(step) {
                pending.extend_from_slice(piece);
                let taken = cut(&pending, b"T stdout ", 5, false, &mut out).consumed;
                pending.drain(..taken);
            }
            cut(&pending, b"T stdout ", 5, true, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), whole, "step {step}");
        }
    }

    #[test]
    fn times() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_795_467_909_120_000_000, "2026-11-23T21:05:09.120000000Z"),
            (4_107_542_399_999_999_999, "2100-02-28T23:59:59.999999999Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
        ] {
            let mut out = Vec::new();
            push_time(&mut out, nanos);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
