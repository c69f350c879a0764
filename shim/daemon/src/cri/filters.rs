//! List filters: all given conditions must hold; an absent filter lists everything (CRI-GEN-10).

use crate::containers::ContainerRecord;
use crate::pods::{PodPhase, PodRecord};
use cri_proto::v1;
use std::collections::HashMap;

fn labels_match(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

pub(super) fn pod(filter: Option<&v1::PodSandboxFilter>, pod: &PodRecord) -> bool {
    if pod.phase == PodPhase::Creating {
        return false;
    }
    filter.is_none_or(|f| {
        pod.id.starts_with(&f.id)
            && f.state.as_ref().is_none_or(|s| s.state() == pod.state())
            && labels_match(&f.label_selector, &pod.config.labels)
    })
}

pub(super) fn container(filter: Option<&v1::ContainerFilter>, container: &ContainerRecord) -> bool {
    filter.is_none_or(|f| {
        container.id.starts_with(&f.id)
            && container.pod_id.starts_with(&f.pod_sandbox_id)
            && f.state.as_ref().is_none_or(|s| s.state() == container.state())
            && labels_match(&f.label_selector, &container.config.labels)
    })
}

pub(super) fn pod_stats(filter: Option<&v1::PodSandboxStatsFilter>, pod: &PodRecord) -> bool {
    filter.is_none_or(|f| pod.id.starts_with(&f.id) && labels_match(&f.label_selector, &pod.config.labels))
}

pub(super) fn stats(filter: Option<&v1::ContainerStatsFilter>, container: &ContainerRecord) -> bool {
    filter.is_none_or(|f| {
        container.id.starts_with(&f.id)
            && container.pod_id.starts_with(&f.pod_sandbox_id)
            && labels_match(&f.label_selector, &container.config.labels)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests;

    /// CRI-GEN-10.
    #[test]
    fn conditions_are_combined_by_and() {
        let mut record = tests::pod();
        record.phase = PodPhase::Ready;
        record.config.labels = HashMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]);
        let filter = |id: &str, label: &str| v1::PodSandboxFilter {
            id: id.into(),
            label_selector: HashMap::from([("a".into(), label.into())]),
            ..Default::default()
        };
        assert!(pod(None, &record) && pod(Some(&Default::default()), &record));
        assert!(pod(Some(&filter("ppp", "1")), &record));
        assert!(!pod(Some(&filter("ppp", "2")), &record) && !pod(Some(&filter("x", "1")), &record));
    }
}
