//! Statistics of containers that only their pod's shim sees (in a virtual machine): asked all at once, not for long, and not
//! again soon where there was no answer. Nobody's statistics wait for a shim that hangs (DESIGN 1.C).

use super::ContainerRecord;
use crate::daemon::Daemon;
use slipway_runtime::cgroup::{Cgroup, Stats};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long all shims together may take.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long a pod whose shim gave no answer is left in peace.
const REST: Duration = Duration::from_secs(15);

/// What shims said last.
#[derive(Debug, Default)]
pub(crate) struct Told {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By container; with the time of the sample.
    samples: HashMap<String, (i64, Stats)>,
    /// Pods that gave no answer, and when they may be asked again.
    resting: HashMap<String, Instant>,
}

impl Told {
    /// Its last sample, and when that was taken.
    pub(super) fn last(&self, container: &str) -> Option<(i64, Stats)> {
        self.lock().samples.get(container).cloned()
    }

    pub(super) fn forget(&self, container: &str) {
        self.lock().samples.remove(container);
    }

    fn is_resting(&self, pod: &str, now: Instant) -> bool {
        let mut known = self.lock();
        known.resting.retain(|_, until| *until > now);
        known.resting.contains_key(pod)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It is in a control group of this host.
fn is_here(record: &ContainerRecord) -> bool {
    Cgroup::open(&record.cgroup).is_ok_and(|group| group.pids().is_ok_and(|pids| !pids.is_empty()))
}

impl Daemon {
    /// Only its shim can say what it uses.
    pub(super) fn is_elsewhere(&self, record: &ContainerRecord) -> bool {
        let by_shim = self.pods.get(&record.pod_id).is_ok_and(|pod| pod.record().settings.shim.is_some());
        by_shim && record.is_running() && !is_here(record)
    }

    /// Asks the shims of those of these containers that are elsewhere.
    pub(crate) async fn ask_shims(self: &Arc<Self>, records: impl IntoIterator<Item = Arc<ContainerRecord>>) {
        let now = Instant::now();
        let mut asked = JoinSet::new();
        let mut silent = HashSet::new();
        for record in records.into_iter().filter(|record| self.is_elsewhere(record)) {
            if self.told.is_resting(&record.pod_id, now) {
                continue;
            }
            silent.insert((record.pod_id.clone(), record.id.clone()));
            let daemon = Arc::clone(self);
            asked.spawn(async move {
                let stats = daemon.keeper.stats(&record.id, PATIENCE).await;
                (record, stats)
            });
        }
        let answers = async {
            while let Some(Ok((record, stats))) = asked.join_next().await {
                match stats {
                    Ok(stats) => {
                        silent.remove(&(record.pod_id.clone(), record.id.clone()));
                        if let Some(stats) = stats {
                            self.told.lock().samples.insert(record.id.clone(), (crate::clock::now(), stats));
                        }
                    }
                    // It has ended meanwhile: no fault of its shim.
                    Err(_) if !self.is_elsewhere(&record) => {
                        silent.remove(&(record.pod_id.clone(), record.id.clone()));
                    }
                    Err(error) => tracing::warn!(container = record.label(), "stats: {error}"),
                }
            }
        };
        let _ = tokio::time::timeout(PATIENCE, answers).await;
        let mut known = self.told.lock();
        for (pod, container) in silent {
            tracing::warn!(pod, container, "stats: its shim gives none: not asked for {} s", REST.as_secs());
            known.resting.insert(pod, now + REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_rests_for_a_while() {
        let told = Told::default();
        let now = Instant::now();
        assert!(!told.is_resting("p", now));
        told.lock().resting.insert("p".into(), now + REST);
        assert!(told.is_resting("p", now) && !told.is_resting("q", now));
        assert!(!told.is_resting("p", now + REST));
        assert!(told.lock().resting.is_empty(), "nothing is kept of it");
        told.lock().samples.insert("c".into(), (7, Stats::default()));
        assert_eq!(told.last("c").map(|(at, _)| at), Some(7));
        told.forget("c");
        assert!(told.last("c").is_none());
    }
}
