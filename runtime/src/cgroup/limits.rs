//! What `linux.resources` means as values for control files, on either version. Pure: reads and writes nothing.
//!
//! Zero-valued fields mean "leave as is" (CRI-UPD-03). Fields that this version of control groups cannot express are
//! refused, not dropped; the two that the spec itself has retired (`memory.kernel`, `memory.useHierarchy`) are passed
//! over, as every runtime does.

use crate::error::Kind;
use crate::{Error, Result};
use oci_spec::runtime::LinuxResources;
use std::borrow::Cow;
use std::fmt::Display;

/// Version 1 writes its largest multiple of a page for "unlimited" (CRI-SS-09); nothing real comes near.
pub(super) const UNLIMITED: u64 = 1 << 62;

/// One value for one control file. A list of them is in the order in which they must be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) controller: Cow<'static, str>,
    pub(super) file: Cow<'static, str>,
    pub(super) value: String,
    /// Its absence is no error: a part of the controller that kernels may lack, such as swap (CRI-RES-09).
    pub(super) optional: bool,
}

/// What a group has now, as far as the order or the meaning of new values depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Now {
    /// memory.limit_in_bytes and memory.memsw.limit_in_bytes (version 1); None when unlimited or absent.
    pub(super) memory: Option<u64>,
    pub(super) memsw: Option<u64>,
    /// The quota of cpu.max, `max` or microseconds (version 2).
    pub(super) quota: Option<String>,
}

/// Collects limits.
#[derive(Debug, Default)]
pub(super) struct Limits(pub(super) Vec<Limit>);

// Numbers and strings alike are handed over to be written out.
#[allow(clippy::needless_pass_by_value)]
impl Limits {
    pub(super) fn must(
        &mut self,
        controller: &'static str,
        file: impl Into<Cow<'static, str>>,
        value: impl Display,
    ) {
        let value = value.to_string();
        self.0.push(Limit { controller: controller.into(), file: file.into(), value, optional: false });
    }

    pub(super) fn may(
        &mut self,
        controller: &'static str,
        file: impl Into<Cow<'static, str>>,
        value: impl Display,
    ) {
        let value = value.to_string();
        self.0.push(Limit { controller: controller.into(), file: file.into(), value, optional: true });
    }

    /// The fields that are written the same way on both versions.
    pub(super) fn common(&mut self, r: &LinuxResources) {
        if let Some(cpu) = r.cpu() {
            for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
                if let Some(list) = list.as_deref().filter(|l| !l.trim().is_empty()) {
                    self.must("cpuset", file, list);
                }
            }
        }
        // CRI-RES-17: only a limit above 0 counts.
        if let Some(limit) = r.pids().as_ref().and_then(|p| set(p.limit())) {
            self.must("pids", "pids.max", or_max(limit));
        }
        for (device, rdma) in r.rdma().iter().flatten() {
            for (key, value) in [("hca_handle", rdma.hca_handles()), ("hca_object", rdma.hca_objects())] {
                if let Some(value) = value {
                    self.must("rdma", "rdma.max", format!("{device} {key}={value}"));
                }
            }
        }
    }
}

/// A field that was set at all.
pub(super) fn set(value: i64) -> Option<i64> {
    (value != 0).then_some(value)
}

/// Version 2's word for no limit.
pub(super) fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// The refusal of a field that this version has no file for.
pub(super) fn unsupported(field: &str, version: u8, hint: &str) -> Error {
    Error::new(Kind::Unsupported, format!("set limit on cgroup version {version}"), field).hint(hint)
}

/// True if a huge page limit was asked for, zero included: kubelet sends zero for "none of these" (CRI-RES-13).
pub(super) fn wants_hugetlb(r: &LinuxResources) -> bool {
    r.hugepage_limits().as_ref().is_some_and(|l| !l.is_empty())
}

/// Huge page limits as version 2 writes them; also used on hybrid hosts, where hugetlb often lives on that mount.
pub(super) fn hugetlb_v2(out: &mut Limits, r: &LinuxResources) {
    for limit in r.hugepage_limits().iter().flatten() {
        out.must("hugetlb", format!("hugetlb.{}.max", limit.page_size()), or_max(limit.limit()));
        // Reservations, too, or a process could reserve all pages at mmap and be killed only at the fault.
        out.may("hugetlb", format!("hugetlb.{}.rsvd.max", limit.page_size()), or_max(limit.limit()));
    }
}

/// Refused on a live group and on version 2 alike where the files do not exist.
pub(super) fn no_unified(r: &LinuxResources) -> Result<()> {
    match r.unified().as_ref().and_then(|u| u.keys().next()) {
        Some(key) => Err(super::check::invalid(
            "unified",
            key,
            "is for cgroup version 2, and the controllers of this host are on version 1",
        )),
        None => Ok(()),
    }
}
