//! Where the control groups of pods and containers go, by driver (CRI-CG-01 to CRI-CG-03). Pure.
//!
//! A pod's group is always a directory below the hierarchy's root, so that it can be read; a container's is what the spec's
//! `cgroupsPath` says: a directory in it, or a scope that systemd makes.

use crate::error::{Error, Result};
use anyhow::bail;
use cri_proto::v1;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_runtime::unit::slice_directory;

/// Who makes groups; must be the same as the kubelet's `cgroupDriver` (CRI-CG-06), which asks by RuntimeConfig.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Driver {
    Cgroupfs,
    Systemd,
}

/// Decided once, at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cgroups {
    driver: Driver,
    /// Parent of the groups of pods that bring none: a directory, or a slice without its suffix.
    root: String,
}

/// A pod's own group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodGroup {
    /// Below the hierarchy's root.
    pub(crate) path: String,
    /// Ours to remove; a kubelet's is the kubelet's (CRI-CG-04).
    pub(crate) own: bool,
}

impl Cgroups {
    /// `systemd`: whether this host's systemd manages version 2 groups, which is when a kubelet expects it to.
    pub(crate) fn decide(driver: Option<Driver>, root: Option<&str>, systemd: bool) -> anyhow::Result<Self> {
        let driver = driver.unwrap_or(if systemd { Driver::Systemd } else { Driver::Cgroupfs });
        match driver {
            Driver::Systemd if !systemd => bail!(
                "cgroup_driver = \"systemd\": this host does not run systemd on cgroup version 2; \
                 set cgroup_driver = \"cgroupfs\", and cgroupDriver: cgroupfs for the kubelet"
            ),
            Driver::Systemd => {
                let root = root.unwrap_or("slipway.slice");
                let Some(stem) = root.strip_suffix(".slice").filter(|_| slice_directory(root).is_ok()) else {
                    bail!(
                        "cgroup_root = {root:?}: with cgroup_driver \"systemd\" it is a slice, such as slipway.slice"
                    );
                };
                Ok(Self { driver, root: stem.to_owned() })
            }
            Driver::Cgroupfs => {
                let root = root.unwrap_or("/slipway");
                if !root.starts_with('/') || root.split('/').any(|p| p == "..") {
                    bail!(
                        "cgroup_root = {root:?}: give an absolute path below the hierarchy's root, without '..'"
                    );
                }
                Ok(Self { driver, root: root.trim_end_matches('/').to_owned() })
            }
        }
    }

    /// RuntimeConfig's answer (CRI-RCF-01).
    pub(crate) fn driver(&self) -> v1::CgroupDriver {
        match self.driver {
            Driver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
            Driver::Systemd => v1::CgroupDriver::Systemd,
        }
    }

    /// The group of pod `id`, whose request says `asked` (`linux.cgroup_parent`; "" for none).
    ///
    /// # Errors
    /// `InvalidArgument` for a parent of the other driver's form.
    pub(crate) fn pod(&self, asked: &str, id: &str) -> Result<PodGroup> {
        let refused = |why: &str| Err(Error::invalid(format!("linux.cgroup_parent {asked:?}: {why}")));
        let leaf = asked.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        match self.driver {
            Driver::Systemd if asked.is_empty() => {
                let path = slice_directory(&format!("{}-{id}.slice", self.root))?;
                Ok(PodGroup { path, own: true })
            }
            // Only the last part counts: where a slice is follows from its name.
            Driver::Systemd => match slice_directory(leaf) {
                Ok(path) => Ok(PodGroup { path, own: false }),
                Err(_) => refused(
                    "is not a slice such as kubepods-pod1.slice, and this runtime's cgroup_driver is systemd; \
                     the kubelet's cgroupDriver must be the same",
                ),
            },
            Driver::Cgroupfs if asked.is_empty() => {
                Ok(PodGroup { path: format!("{}/{id}", self.root), own: true })
            }
            Driver::Cgroupfs if !asked.contains('/') && leaf.ends_with(".slice") => refused(
                "is a systemd slice, and this runtime's cgroup_driver is cgroupfs; \
                 the kubelet's cgroupDriver must be the same",
            ),
            Driver::Cgroupfs if asked.split('/').any(|part| part == "..") => refused("must not contain '..'"),
            Driver::Cgroupfs => Ok(PodGroup { path: format!("/{}", asked.trim_matches('/')), own: false }),
        }
    }

    /// `linux.cgroupsPath` of container `id` in the pod's group.
    pub(crate) fn container(&self, pod: &str, id: &str) -> String {
        match self.driver {
            Driver::Cgroupfs => format!("{}/{id}", pod.trim_end_matches('/')),
            Driver::Systemd => format!("{}:slipway:{id}", pod.rsplit('/').next().unwrap_or_default()),
        }
    }

    /// The parent of our own pods' groups, if it can be removed when the last of them has gone. A slice cannot: to stop it
    /// would stop what another request starts in it meanwhile; an empty one costs nothing.
    pub(crate) fn removable_root(&self) -> Option<String> {
        (self.driver == Driver::Cgroupfs).then(|| self.root.clone())
    }

    /// For people: driver and parent.
    pub(crate) fn describe(&self) -> (Driver, String) {
        match self.driver {
            Driver::Cgroupfs => (Driver::Cgroupfs, self.root.clone()),
            Driver::Systemd => (Driver::Systemd, format!("{}.slice", self.root)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(driver: Driver, root: Option<&str>) -> Cgroups {
        Cgroups::decide(Some(driver), root, true).expect("decide")
    }

    // CRI-RCF-01, CRI-CG-06
    #[test]
    fn the_driver_is_what_a_kubelet_expects() {
        let of = |systemd| Cgroups::decide(None, None, systemd).expect("decide").driver();
        assert_eq!((of(true), of(false)), (v1::CgroupDriver::Systemd, v1::CgroupDriver::Cgroupfs));
        let error = Cgroups::decide(Some(Driver::Systemd), None, false).expect_err("no systemd").to_string();
        assert!(error.contains("cgroup_driver = \"cgroupfs\""), "{error}");
        for (driver, root) in
            [(Driver::Systemd, "/slipway"), (Driver::Cgroupfs, "slipway"), (Driver::Cgroupfs, "/a/../b")]
        {
            assert!(Cgroups::decide(Some(driver), Some(root), true).is_err(), "{driver:?} {root}");
        }
    }

    // CRI-CG-01, CRI-CG-02, CRI-CG-03
    #[test]
    fn parents_of_both_forms() {
        let systemd = decide(Driver::Systemd, None);
        let own = systemd.pod("", "abc").expect("own");
        assert_eq!(own, PodGroup { path: "/slipway.slice/slipway-abc.slice".into(), own: true });
        assert_eq!(systemd.container(&own.path, "c1"), "slipway-abc.slice:slipway:c1");
        let kubelet = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice";
        for asked in [kubelet, "kubepods-burstable-pod1.slice"] {
            assert_eq!(
                systemd.pod(asked, "abc").expect("kubelet's"),
                PodGroup { path: kubelet.into(), own: false }
            );
        }
        assert_eq!(systemd.container(kubelet, "c1"), "kubepods-burstable-pod1.slice:slipway:c1");
        let error = systemd.pod("/kubepods/pod1", "abc").expect_err("a path").to_string();
        assert!(error.contains("/kubepods/pod1") && error.contains("cgroupDriver"), "{error}");

        let cgroupfs = decide(Driver::Cgroupfs, Some("/x/"));
        assert_eq!(cgroupfs.pod("", "abc").expect("own"), PodGroup { path: "/x/abc".into(), own: true });
        let asked = cgroupfs.pod("/kubepods/pod1/", "abc").expect("kubelet's");
        assert_eq!(asked, PodGroup { path: "/kubepods/pod1".into(), own: false });
        assert_eq!(cgroupfs.container(&asked.path, "c1"), "/kubepods/pod1/c1");
        assert!(
            cgroupfs.pod("kubepods-pod1.slice", "abc").is_err() && cgroupfs.pod("/a/../b", "abc").is_err()
        );
    }
}
