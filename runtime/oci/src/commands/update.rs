use super::Id;
use crate::bundle;
use crate::cli::Global;
use crate::fault::Fault;
use crate::status::Status;
use anyhow::{Context, Result, bail};
use clap::Args;
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};
use std::io::Read;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Update {
    #[command(flatten)]
    id: Id,
    /// JSON file with `linux.resources`, `-` for standard input; other limits given are then not looked at
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Weight of block IO, 10 to 1000
    #[arg(long, value_name = "N")]
    blkio_weight: Option<u16>,
    /// CPU CFS period in microseconds
    #[arg(long, value_name = "US")]
    cpu_period: Option<u64>,
    /// CPU CFS quota in microseconds for each period; -1 for none
    #[arg(long, value_name = "US", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// CPU CFS burst in microseconds
    #[arg(long, value_name = "US")]
    cpu_burst: Option<u64>,
    /// CPU shares, relative
    #[arg(long, value_name = "N")]
    cpu_share: Option<u64>,
    /// CPU real-time period in microseconds
    #[arg(long, value_name = "US")]
    cpu_rt_period: Option<u64>,
    /// CPU real-time runtime in microseconds
    #[arg(long, value_name = "US", allow_negative_numbers = true)]
    cpu_rt_runtime: Option<i64>,
    /// CPUs to use, such as 0-2,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// 1: run only when nobody else wants the CPU
    #[arg(long, value_name = "0|1")]
    cpu_idle: Option<i64>,
    /// Memory limit: bytes, or with k, m, g; -1 for none
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_size)]
    memory: Option<i64>,
    /// Memory reservation
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_size)]
    memory_reservation: Option<i64>,
    /// Memory and swap together; -1 for no limit on swap
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_size)]
    memory_swap: Option<i64>,
    /// Accepted for runc's sake: kernels no longer have this limit
    #[arg(long, value_name = "SIZE", hide = true, allow_hyphen_values = true)]
    kernel_memory: Option<String>,
    #[arg(long, value_name = "SIZE", hide = true, allow_hyphen_values = true)]
    kernel_memory_tcp: Option<String>,
    /// Number of processes and threads; -1 for no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
}

impl Update {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let resources = self.resources()?;
        let container = self.id.lock(global)?;
        if !Status::of(&container).is_alive() {
            bail!(Fault::NotRunning);
        }
        Ok(container.record.own_group()?.update(&resources)?)
    }

    fn resources(&self) -> Result<LinuxResources> {
        match &self.resources {
            Some(path) if path.as_os_str() == "-" => {
                let mut bytes = Vec::new();
                std::io::stdin().lock().read_to_end(&mut bytes).context("read standard input")?;
                bundle::parse("standard input", &bytes)
            }
            Some(path) => bundle::parse(&path.display().to_string(), &bundle::read(path)?),
            None => bundle::parse("the limits", &serde_json::to_vec(&self.flags())?),
        }
    }

    /// The flags as `linux.resources`.
    fn flags(&self) -> Value {
        let present = |pairs: Vec<(&str, Option<Value>)>| {
            let given = pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
            Value::Object(given.collect())
        };
        json!({
            "blockIO": present(vec![("weight", self.blkio_weight.map(Value::from))]),
            "cpu": present(vec![
                ("shares", self.cpu_share.map(Value::from)),
                ("quota", self.cpu_quota.map(Value::from)),
                ("burst", self.cpu_burst.map(Value::from)),
                ("period", self.cpu_period.map(Value::from)),
                ("realtimeRuntime", self.cpu_rt_runtime.map(Value::from)),
                ("realtimePeriod", self.cpu_rt_period.map(Value::from)),
                ("cpus", self.cpuset_cpus.clone().map(Value::from)),
                ("mems", self.cpuset_mems.clone().map(Value::from)),
                ("idle", self.cpu_idle.map(Value::from)),
            ]),
            "memory": present(vec![
                ("limit", self.memory.map(Value::from)),
                ("reservation", self.memory_reservation.map(Value::from)),
                ("swap", self.memory_swap.map(Value::from)),
            ]),
            "pids": self.pids_limit.map(|limit| json!({"limit": limit})),
        })
    }
}

/// Bytes, or a number with k, m, g, t (powers of 1024, `b` or `ib` after it or not), as docker's and runc's flags take it.
fn parse_size(text: &str) -> Result<i64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: i64 = match &lower[digits.len()..] {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        unit => return Err(format!("unknown unit {unit:?}: bytes, or k, m, g, t")),
    };
    let number: i64 = digits.parse().map_err(|_| "not a number of bytes".to_owned())?;
    number.checked_mul(factor).filter(|n| *n >= -1).ok_or_else(|| "out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("-1", -1), ("512", 512), ("64k", 65_536), ("1MiB", 1 << 20), ("2G", 2 << 30)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "-2", "1x", "9223372036854775807k"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
