//! What people see: tables, JSON, ages, sizes, progress. Owns form, not content.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Form of what commands print on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON value.
    Json,
}

/// A list as a table (with this head) or as one JSON array.
pub(crate) fn list<T: Serialize>(
    output: Output,
    items: &[T],
    head: &[&str],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<()> {
    match output {
        Output::Json => json(&items),
        Output::Table => print(&table(head, &items.iter().map(row).collect::<Vec<_>>())),
    }
}

pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    print(&(serde_json::to_string_pretty(value).context("encode JSON")? + "\n"))
}

/// Not `print!`, which panics when the reader has gone.
pub(crate) fn print(text: &str) -> Result<()> {
    std::io::stdout().lock().write_all(text.as_bytes()).context("write to standard output")
}

/// Columns as wide as their widest cell, two blanks between.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |row: &[String], column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
    let width =
        |column: usize| rows.iter().map(|row| cells(row, column)).max().unwrap_or(0).max(head[column].len());
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: Vec<&str>| {
        let padded: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let body = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(head.to_vec())).chain(body).collect()
}

/// Nanoseconds since the epoch (CRI-GEN-13) as "5m", "3h", "12d".
pub(crate) fn age(created_at: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let then = Duration::from_nanos(u64::try_from(created_at).unwrap_or(0));
    let seconds = now.saturating_sub(then).as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Nanoseconds since the epoch as RFC 3339 has them, to the second.
pub(crate) fn clock(nanoseconds: i64) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(nanoseconds.into());
    let at = at.ok().and_then(|at| at.replace_nanosecond(0).ok());
    at.and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok()).unwrap_or_default()
}

/// Bytes as "1.5 MiB".
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Ids are long; their first characters do.
pub(crate) fn short(id: &str) -> String {
    id.strip_prefix("sha256:").unwrap_or(id).chars().take(13).collect()
}

/// What is being done right now, on standard error: one moving line on a terminal, plain lines elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar }
    }

    /// A step has begun.
    pub(crate) fn step(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => eprintln_quietly(text),
        }
    }

    /// A step has ended; its line stays.
    pub(crate) fn done(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln_quietly(text),
        }
    }

    /// How far a transfer is; only on a terminal.
    pub(crate) fn bytes(&self, what: &str, done: u64, total: u64) {
        let Some(bar) = &self.bar else { return };
        if total == 0 {
            bar.set_message(what.to_owned());
            return;
        }
        bar.set_style(bytes_style());
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(what.to_owned());
    }

    /// The moving line goes away.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Back from a transfer to steps.
    pub(crate) fn transfer_ended(&self) {
        if let Some(bar) = &self.bar {
            bar.set_style(ProgressStyle::default_spinner());
            bar.unset_length();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

fn bytes_style() -> ProgressStyle {
    let style = ProgressStyle::with_template(
        "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec}",
    );
    style.unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Not `eprintln!`, which panics when standard error has gone.
pub(crate) fn eprintln_quietly(text: &str) {
    // Nobody is left to tell when this fails.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = [
            vec!["a".to_owned(), "long cell".to_owned(), "x".to_owned()],
            vec!["bbbb".to_owned(), "c".to_owned(), String::new()],
        ];
        assert_eq!(table(&["ID", "NAME", "N"], &rows), "ID    NAME       N\na     long cell  x\nbbbb  c\n");
    }

    #[test]
    fn sizes_and_ids() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(3 << 40), "3.0 TiB");
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789abc");
    }
}
