use super::Id;
use crate::cli::Global;
use crate::fault::Fault;
use crate::status::Status;
use crate::store::Container;
use crate::verified::Verified;
use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};
use slipway_runtime::cgroup::{Cgroup, Stats};
use std::io::Write;
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct Events {
    #[command(flatten)]
    id: Id,
    /// Between statistics, such as 5s or 500ms
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    interval: Duration,
    /// Statistics once, and no more
    #[arg(long)]
    stats: bool,
}

impl Events {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let container = self.id.open(global)?;
        if !Status::of(&container).is_alive() {
            bail!(Fault::State(format!("container with id {} is not running", container.id())));
        }
        let group = container.record.own_group()?;
        if self.stats {
            return print(&container, "stats", Some(data(&group.stats()?)));
        }
        self.follow(&container, &group)
    }

    /// Until the container ends.
    fn follow(&self, container: &Container, group: &Cgroup) -> Result<()> {
        let record = &container.record;
        let mut kills = 0;
        while let Some(process) = Verified::find(record.pid, record.start_time) {
            let stats = group.stats()?;
            if stats.oom_kills > kills {
                print(container, "oom", None)?;
            }
            kills = stats.oom_kills;
            print(container, "stats", Some(data(&stats)))?;
            if process.ended_within(self.interval) {
                break;
            }
        }
        Ok(())
    }
}

/// A reader that has gone away ends us.
fn print(container: &Container, kind: &str, data: Option<Value>) -> Result<()> {
    let mut event = json!({"type": kind, "id": container.id()});
    if let Some(data) = data {
        event["data"] = data;
    }
    writeln!(std::io::stdout(), "{event}")?;
    Ok(())
}

/// In the form of runc's events.
fn data(stats: &Stats) -> Value {
    let swap =
        stats.swap_usage.map(|usage| json!({"usage": usage, "limit": stats.swap_limit.unwrap_or(u64::MAX)}));
    json!({
        "cpu": {
            "usage": {"total": stats.cpu_usage_ns, "kernel": stats.cpu_system_ns, "user": stats.cpu_user_ns},
            "throttling": {
                "periods": stats.cpu_periods,
                "throttledPeriods": stats.cpu_throttled_periods,
                "throttledTime": stats.cpu_throttled_ns
            }
        },
        "memory": {
            "cache": stats.memory_cache,
            "usage": {"limit": stats.memory_limit.unwrap_or(u64::MAX), "usage": stats.memory_usage},
            "swap": swap,
            "raw": {
                "rss": stats.memory_rss,
                "inactive_file": stats.memory_inactive_file,
                "pgfault": stats.page_faults,
                "pgmajfault": stats.major_page_faults
            }
        },
        "pids": {"current": stats.pids_current, "limit": stats.pids_limit}
    })
}

/// A number with `ms`, `s`, `m` or `h`; a bare number is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let milliseconds: u64 = match &text[digits.len()..] {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        unit => return Err(format!("unknown unit {unit:?}: ms, s, m or h")),
    };
    let number: u64 = digits.parse().map_err(|_| "a whole number with ms, s, m or h".to_owned())?;
    let total = number.checked_mul(milliseconds).filter(|total| *total > 0);
    total.map(Duration::from_millis).ok_or_else(|| "must be above zero".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "0s", "s", "-1s", "1d", "18446744073709551615h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
