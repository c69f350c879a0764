//! SELinux labels of pods and containers: what they mean here. Who asks for what is decided in [`decide`], the kernel is asked in
//! the runtime's room `lsm`.
//!
//! ```text
//!  policy (contexts) + two categories of the pod's own (levels) + SELinuxOptions ── decide ──► Labels, kept in the records
//! ```

mod contexts;
mod decide;
mod label;
mod levels;

pub(crate) use contexts::Contexts;
pub(crate) use decide::shared;
pub(crate) use label::Label;

use crate::config;
use crate::error::{Error, Result};
use crate::pods::PodRecord;
use cri_proto::v1::{self, SeLinuxOption};
use levels::Levels;
use serde::{Deserialize, Serialize};
use slipway_runtime::lsm;
use std::path::Path;

/// What to do where a policy does not know containers.
pub(crate) const REMEDY: &str =
    "install the package container-selinux (or a policy of your own with that type) and restart slipway";

/// The domain of containers that are not kept apart from the host.
const FREE: &str = "spc_t";

/// Of a pod or a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Labels {
    /// Of its processes; empty: that of the daemon.
    pub(crate) process: String,
    /// Of its files.
    pub(crate) file: String,
}

/// What this host has of SELinux.
#[derive(Debug, Clone)]
pub(crate) enum Policy {
    /// No SELinux.
    Absent,
    /// The loaded policy does not know containers.
    Lacking { contexts: Contexts, why: String },
    /// `free`: the label of what is not kept apart; none: the policy has none either.
    Known { contexts: Contexts, free: Option<String> },
}

impl Policy {
    /// Asks the kernel.
    pub(crate) fn probe() -> Self {
        if lsm::selinux_enforces().is_none() {
            return Self::Absent;
        }
        let contexts = Contexts::read(Path::new("/etc/selinux"));
        let known = [&contexts.process, &contexts.file].map(|label| lsm::check_context(&label.to_string()));
        match known.into_iter().collect::<slipway_runtime::Result<Vec<()>>>() {
            Err(error) => Self::Lacking { contexts, why: error.to_string() },
            Ok(_) => {
                let free = Label { kind: FREE.into(), ..contexts.process.at("s0") }.to_string();
                Self::Known { free: lsm::check_context(&free).is_ok().then_some(free), contexts }
            }
        }
    }
}

/// The node's labels.
#[derive(Debug)]
pub(crate) struct Selinux {
    policy: Policy,
    labels: config::Labels,
    range: u32,
    levels: Levels,
}

impl Selinux {
    /// As the configuration wants it. Reads files and asks the kernel once.
    pub(crate) fn new(keys: &config::Selinux) -> Self {
        let selinux = Self {
            policy: Policy::probe(),
            labels: keys.labels,
            range: keys.category_range.count(),
            levels: Levels::default(),
        };
        match (&selinux.policy, keys.labels) {
            (Policy::Absent, config::Labels::On) => {
                tracing::warn!(
                    "selinux.labels is on, but this node has no SELinux: containers have no labels"
                );
            }
            (Policy::Lacking { why, .. }, config::Labels::Auto) => {
                tracing::warn!(
                    "SELinux is on, but containers run in this daemon's own domain: {why}: {REMEDY}"
                );
            }
            (Policy::Lacking { .. } | Policy::Known { .. }, config::Labels::Off) => {
                tracing::warn!(
                    "SELinux is on, but containers run in this daemon's own domain: selinux.labels is off"
                );
            }
            _ => {}
        }
        selinux
    }

    /// The labels of a new pod, with categories of its own until [`Selinux::free`]; none where there are no labels. Blocks for
    /// a moment.
    ///
    /// # Errors
    /// InvalidArgument for what the policy does not know, FailedPrecondition where it knows no containers.
    pub(crate) fn pod(&self, id: &str, asked: Option<&SeLinuxOption>) -> Result<Option<Labels>> {
        let Some(contexts) = self.contexts(asked)? else { return Ok(None) };
        let level = match asked.map(|asked| asked.level.as_str()).filter(|level| !level.is_empty()) {
            Some(level) => {
                self.levels.take(id, level);
                level.to_owned()
            }
            None => self.levels.choose(id, self.range)?,
        };
        let labels = decide::pod(contexts, &level, asked);
        check(&labels, asked).inspect_err(|_| self.free(id))?;
        Ok(Some(labels))
    }

    /// The same of a container in `pod`, for `id`.
    ///
    /// # Errors
    /// InvalidArgument for what the policy does not know.
    pub(crate) fn container(
        &self,
        id: &str,
        pod: &PodRecord,
        security: &v1::LinuxContainerSecurityContext,
    ) -> Result<Option<Labels>> {
        let own = security.selinux_options.as_ref();
        let Some(of_pod) = &pod.selinux else {
            return match (self.contexts(own)?, own.filter(|own| !decide::is_empty(own))) {
                (Some(_), Some(_)) => Err(Error::state(
                    "SELinux options were asked for, but the pod is of a time before this node had labels: make it anew",
                )),
                _ => Ok(None),
            };
        };
        let in_pod = pod.security();
        let any = own.filter(|own| !decide::is_empty(own)).or(in_pod.selinux_options.as_ref());
        let namespaces = security.namespace_options.clone().unwrap_or_else(|| pod.namespaces());
        let free = match &self.policy {
            // Where the policy has no such domain: the daemon's, as with go-selinux.
            Policy::Known { free, .. } => free.as_deref().unwrap_or_default(),
            _ => "",
        };
        let free = (!decide::is_apart(security.privileged, &namespaces, any)).then_some(free);
        let labels = decide::container(of_pod, own, free);
        let labels =
            labels.ok_or_else(|| Error::internal(format!("the pod's SELinux labels {of_pod:?} are none")))?;
        if own.is_some() {
            check(&labels, own)?;
        }
        if let Some(level) = decide::own_level(of_pod, &labels) {
            self.levels.take(id, &level);
        }
        Ok(Some(labels))
    }

    /// For a pod or container of a former life of this daemon.
    pub(crate) fn known(&self, id: &str, labels: Option<&Labels>) {
        if let Some(level) = labels.and_then(|labels| Label::parse(&labels.file)?.level) {
            self.levels.take(id, &level);
        }
    }

    /// Gives the categories back; unknown is fine.
    pub(crate) fn free(&self, id: &str) {
        self.levels.free(id);
    }

    /// None: no labels.
    fn contexts(&self, asked: Option<&SeLinuxOption>) -> Result<Option<&Contexts>> {
        let asked = asked.filter(|asked| !decide::is_empty(asked));
        match (&self.policy, self.labels) {
            (Policy::Known { contexts, .. }, config::Labels::Auto | config::Labels::On) => Ok(Some(contexts)),
            (Policy::Lacking { why, .. }, config::Labels::On) => {
                Err(Error::state(format!("selinux.labels is on, but {why}: {REMEDY}")))
            }
            (Policy::Lacking { why, .. }, config::Labels::Auto) if asked.is_some() => {
                Err(Error::state(format!("SELinux options were asked for, but {why}: {REMEDY}")))
            }
            // Pods with options run on such nodes everywhere: they are told apart in the log only (CRI-SEC-10).
            _ => {
                if let Some(asked) = asked {
                    tracing::warn!(
                        ?asked,
                        "SELinux options without effect: this node has no SELinux, or selinux.labels is off"
                    );
                }
                Ok(None)
            }
        }
    }
}

/// Whether the policy allows such labels at all.
fn check(labels: &Labels, asked: Option<&SeLinuxOption>) -> Result<()> {
    for label in [&labels.process, &labels.file].into_iter().filter(|label| !label.is_empty()) {
        lsm::check_context(label).map_err(|e| match asked {
            Some(asked) if !decide::is_empty(asked) => Error::invalid(format!("selinux_options: {e}")),
            _ => Error::state(format!("{e}: see selinux.category_range and lxc_contexts of the policy")),
        })?;
    }
    Ok(())
}

/// What a pod of this node would get, for `slipway explain`: categories are an example.
///
/// # Errors
/// As [`Selinux::pod`].
pub(crate) fn example(
    keys: &config::Selinux,
    pod: &mut PodRecord,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<Option<Labels>> {
    let selinux =
        Selinux { policy: Policy::probe(), labels: keys.labels, range: 2, levels: Levels::default() };
    pod.selinux = selinux.pod("POD", pod.security().selinux_options.as_ref())?;
    selinux.container("CONTAINER", pod, security)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(policy: Policy, labels: config::Labels) -> Selinux {
        Selinux { policy, labels, range: 1024, levels: Levels::default() }
    }

    fn contexts() -> Contexts {
        Contexts::read(Path::new("/nonexistent"))
    }

    /// CRI-TST-15: where there is no SELinux options are not refused, where it lacks containers they never vanish.
    #[test]
    fn options_have_no_effect_without_selinux_and_are_refused_without_a_policy() {
        let asked = SeLinuxOption { level: "s0:c1,c2".into(), ..Default::default() };
        use config::Labels::{Auto, Off, On};
        for labels in [Auto, On, Off] {
            let none = node(Policy::Absent, labels);
            assert_eq!(none.pod("p", Some(&asked)), Ok(None));
        }
        let lacking = || Policy::Lacking { contexts: contexts(), why: "no container_t".into() };
        assert_eq!(node(lacking(), Auto).pod("p", None), Ok(None));
        assert_eq!(node(lacking(), Auto).pod("p", Some(&SeLinuxOption::default())), Ok(None));
        assert_eq!(node(lacking(), Off).pod("p", Some(&asked)), Ok(None));
        for refused in [node(lacking(), Auto).pod("p", Some(&asked)), node(lacking(), On).pod("p", None)] {
            let error = refused.expect_err("refused");
            assert!(error.to_string().contains("container-selinux"), "{error}");
        }
        let off = node(Policy::Known { contexts: contexts(), free: None }, Off);
        assert_eq!(off.pod("p", Some(&asked)), Ok(None));
    }
}
