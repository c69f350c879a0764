//! UpdateContainerResources: all-or-nothing; zero means "leave as is" (CRI-UPD-*).

use super::Phase;
use crate::daemon::{Container, Daemon};
use crate::error::{Error, Result};
use crate::nri;
use crate::spec::resources;
use cri_proto::nri::Event;
use cri_proto::v1;
use std::sync::Arc;

impl Daemon {
    /// Changes the limits of a created or running container.
    pub(crate) async fn update_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        asked: &v1::LinuxContainerResources,
    ) -> Result<()> {
        let _gate = container.gate.lock().await;
        let record = container.record();
        let label = record.label();
        if !matches!(record.phase, Phase::Created | Phase::Running { .. }) {
            return Err(Error::state(format!("update container {label}: it has ended")));
        }
        let own = self
            .ask_to_update(&record, asked)
            .await
            .map_err(|e| e.of(format_args!("update container {label}")))?;
        let in_force = record.config.linux.as_ref().and_then(|l| l.resources.clone()).unwrap_or_default();
        let merged = merge(in_force, asked);
        let mut over = record.nri.clone();
        nri::take_out(&mut over, &resources::build(asked)?);
        if let Some(own) = &own {
            nri::put_over(&mut over, &nri::overlay(own)?);
        }
        self.write_limits(container, &merged, &over)
            .await
            .map_err(|e| e.of(format_args!("update container {label}")))?;
        // It may have ended meanwhile: that must not be overwritten.
        container.note(&self.records, |r| {
            r.config.linux.get_or_insert_default().resources = Some(merged);
            r.nri = over;
        });
        self.tell_plugins(Event::POST_UPDATE_CONTAINER, container).await;
        Ok(())
    }

    /// What a client asked for, and over it what plugins have set.
    pub(crate) async fn write_limits(
        &self,
        container: &Container,
        asked: &v1::LinuxContainerResources,
        over: &serde_json::Value,
    ) -> Result<()> {
        let mut limits = resources::build(asked)?;
        nri::put_over(&mut limits, over);
        let encoded =
            serde_json::to_vec(&limits).map_err(|e| Error::internal(format!("encode resources: {e}")))?;
        self.keeper.update(&container.id, encoded).await
    }
}

/// What is set in `asked` replaces what is in force.
fn merge(
    mut in_force: v1::LinuxContainerResources,
    asked: &v1::LinuxContainerResources,
) -> v1::LinuxContainerResources {
    let number = |old: &mut i64, new: i64| {
        if new != 0 {
            *old = new;
        }
    };
    number(&mut in_force.cpu_period, asked.cpu_period);
    number(&mut in_force.cpu_quota, asked.cpu_quota);
    number(&mut in_force.cpu_shares, asked.cpu_shares);
    number(&mut in_force.memory_limit_in_bytes, asked.memory_limit_in_bytes);
    number(&mut in_force.memory_swap_limit_in_bytes, asked.memory_swap_limit_in_bytes);
    number(&mut in_force.oom_score_adj, asked.oom_score_adj);
    for (old, new) in
        [(&mut in_force.cpuset_cpus, &asked.cpuset_cpus), (&mut in_force.cpuset_mems, &asked.cpuset_mems)]
    {
        if !new.is_empty() {
            old.clone_from(new);
        }
    }
    if !asked.hugepage_limits.is_empty() {
        in_force.hugepage_limits.clone_from(&asked.hugepage_limits);
    }
    in_force.unified.extend(asked.unified.clone());
    in_force
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-UPD-03, CRI-KUB-06.
    #[test]
    fn zero_leaves_as_is() {
        let before =
            v1::LinuxContainerResources { memory_limit_in_bytes: 5, cpu_shares: 7, ..Default::default() };
        let asked =
            v1::LinuxContainerResources { cpuset_cpus: "0".into(), cpu_shares: 9, ..Default::default() };
        let after = merge(before, &asked);
        assert_eq!((after.memory_limit_in_bytes, after.cpu_shares, after.cpuset_cpus.as_str()), (5, 9, "0"));
    }
}
