//! ContainerStats from the container's control group and its writable layer, read on request (CRI-SS-*).
//!
//! The files of the kernel are read directly, not through the keeper: they are the truth (DESIGN 1C), and a list over a
//! thousand containers must not wait for one connection.

use super::ContainerRecord;
use crate::daemon::{Container, Daemon, blocking};
use crate::error::Result;
use crate::usage;
use cri_proto::v1;
use slipway_runtime::cgroup::{Cgroup, Stats};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A writable layer is walked at most this often.
const WALK_EVERY: Duration = Duration::from_secs(10);
/// Two cpu samples closer than this give no useful rate: the former one stays the base.
const SAMPLE_EVERY_NS: i64 = 200_000_000;

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: i64,
    usage: u64,
    /// The rate computed last, in nanocores.
    rate: Option<u64>,
}

#[derive(Debug, Default)]
struct Known {
    cpu: Option<Sample>,
    layer: Option<(Instant, i64, u64, u64)>,
}

/// Former samples, for rates (CRI-SS-05) and to spare walks.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    known: Mutex<HashMap<String, Known>>,
}

impl Rates {
    pub(crate) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Nanocores since the sample before; none at the first.
    pub(crate) fn rate(&self, id: &str, at: i64, usage: u64) -> Option<u64> {
        let mut known = self.lock();
        let slot = &mut known.entry(id.to_owned()).or_default().cpu;
        let Some(before) = *slot else {
            *slot = Some(Sample { at, usage, rate: None });
            return None;
        };
        let elapsed = at - before.at;
        if elapsed < SAMPLE_EVERY_NS {
            return before.rate;
        }
        let used = u128::from(usage.saturating_sub(before.usage)) * 1_000_000_000;
        let rate = u64::try_from(used / u128::from(elapsed.unsigned_abs())).ok();
        *slot = Some(Sample { at, usage, rate });
        rate
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Daemon {
    /// Statistics of one container; a stopped one has its writable layer only (CRI-SS-13).
    pub(crate) async fn container_stats(
        self: &Arc<Self>,
        container: &Container,
    ) -> Result<v1::ContainerStats> {
        self.ask_shims([container.record()]).await;
        self.container_stats_as_told(container).await
    }

    /// The same for one whose shim has been asked.
    pub(crate) async fn container_stats_as_told(
        self: &Arc<Self>,
        container: &Container,
    ) -> Result<v1::ContainerStats> {
        let (daemon, record) = (Arc::clone(self), container.record());
        blocking(move || Ok::<_, crate::error::Error>(daemon.read_stats(&record))).await
    }

    pub(crate) fn read_stats(&self, record: &ContainerRecord) -> v1::ContainerStats {
        let mut stats = v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: record.id.clone(),
                metadata: record.config.metadata.clone(),
                labels: record.config.labels.clone(),
                annotations: record.config.annotations.clone(),
            }),
            writable_layer: self.writable_layer_usage(&record.id),
            ..Default::default()
        };
        if let (true, Some((at, group))) = (record.is_running(), self.measured(record)) {
            let rate = self.rates.rate(&record.id, at, group.cpu_usage_ns.unwrap_or(0));
            stats.cpu = Some(usage::cpu(at, &group, rate));
            stats.memory = Some(usage::memory(at, &group));
            stats.swap = Some(usage::swap(at, &group));
            stats.io = usage::io(at, &group);
        }
        stats
    }

    /// From its control group; where it is in none of this host, what its shim said last ([`Daemon::ask_shims`]).
    fn measured(&self, record: &ContainerRecord) -> Option<(i64, Stats)> {
        if self.is_elsewhere(record) {
            return self.told.last(&record.id);
        }
        let stats = Cgroup::open(&record.cgroup).and_then(|group| group.stats()).ok()?;
        Some((crate::clock::now(), stats))
    }

    pub(crate) fn writable_layer_usage(&self, id: &str) -> Option<v1::FilesystemUsage> {
        let cached =
            self.rates.lock().get(id).and_then(|k| k.layer).filter(|(at, ..)| at.elapsed() < WALK_EVERY);
        let (_, at, bytes, inodes) = match cached {
            Some(known) => known,
            None => {
                let (bytes, inodes) = self.images.usage(id).ok()?;
                let fresh = (Instant::now(), crate::clock::now(), bytes, inodes);
                self.rates.lock().entry(id.to_owned()).or_default().layer = Some(fresh);
                fresh
            }
        };
        Some(v1::FilesystemUsage {
            timestamp: at,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.config.root.display().to_string() }),
            used_bytes: usage::value(bytes),
            inodes_used: usage::value(inodes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-SS-05.
    #[test]
    fn a_rate_needs_two_samples() {
        let rates = Rates::default();
        assert_eq!(rates.rate("a", 1_000_000_000, 0), None);
        assert_eq!(rates.rate("a", 1_000_000_100, 50), None, "too soon");
        assert_eq!(rates.rate("a", 2_000_000_000, 500_000_000), Some(500_000_000));
        rates.forget("a");
        assert_eq!(rates.rate("a", 3_000_000_000, 0), None);
    }
}
