//! The values of one object, each with the labels that its family has.

use super::families::Family;
use crate::containers::ContainerRecord;
use crate::pods::PodRecord;
use cri_proto::v1;

/// Values of [`super::families::COMMON`], in its order.
#[derive(Debug)]
pub(super) struct Labels([String; 6]);

impl Labels {
    /// As cAdvisor has them: `id` is the control group, `name` the container's id.
    pub(super) fn of_container(pod: &PodRecord, container: &ContainerRecord) -> Self {
        let meta = pod.metadata();
        let image = container.config.image.as_ref().map(|i| i.user_specified_image.clone());
        Self([
            container.metadata().name,
            container.cgroup.clone(),
            image.filter(|i| !i.is_empty()).unwrap_or_else(|| container.image_name.clone()),
            container.id.clone(),
            meta.namespace,
            meta.name,
        ])
    }

    /// What belongs to no container of the pod; its image is empty, as a pod has none.
    pub(super) fn of_pod(pod: &PodRecord) -> Self {
        let meta = pod.metadata();
        Self([
            String::new(),
            pod.cgroup_parent.clone(),
            String::new(),
            pod.id.clone(),
            meta.namespace,
            meta.name,
        ])
    }
}

#[derive(Debug)]
pub(super) struct Sheet {
    labels: Labels,
    at: i64,
    metrics: Vec<v1::Metric>,
}

impl Sheet {
    pub(super) fn new(labels: Labels) -> Self {
        Self { labels, at: crate::clock::now(), metrics: Vec::new() }
    }

    pub(super) fn put(&mut self, family: &Family, value: u64) {
        self.put_with(family, &[], value);
    }

    /// `extra`: values of the family's own labels, in its order (CRI-MET-02).
    pub(super) fn put_with(&mut self, family: &Family, extra: &[&str], value: u64) {
        debug_assert_eq!(extra.len(), family.labels.len(), "{}", family.name);
        let own = extra.iter().map(|&value| value.to_owned());
        self.metrics.push(v1::Metric {
            name: family.name.into(),
            timestamp: self.at,
            metric_type: family.kind.into(),
            label_values: self.labels.0.iter().cloned().chain(own).collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }

    /// Nanoseconds, told in whole seconds.
    pub(super) fn put_seconds(&mut self, family: &Family, extra: &[&str], nanoseconds: u64) {
        self.put_with(family, extra, nanoseconds / 1_000_000_000);
    }

    pub(super) fn at_seconds(&self) -> u64 {
        seconds(self.at)
    }

    pub(super) fn metrics(self) -> Vec<v1::Metric> {
        self.metrics
    }
}

/// Nanoseconds since the epoch, told in seconds.
pub(super) fn seconds(at: i64) -> u64 {
    u64::try_from(at / 1_000_000_000).unwrap_or_default()
}
