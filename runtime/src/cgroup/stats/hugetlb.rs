//! Huge pages by size: faulted in, and reserved.

use super::{number, text};
use crate::Result;
use crate::cgroup::check::page_sizes;
use crate::cgroup::files::keyed;
use crate::cgroup::limits::UNLIMITED;

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugetlbStats {
    /// As the control files write it: `2MB`, `1GB`.
    pub page_size: String,
    pub usage: u64,
    /// The most that was ever in use; version 1 only.
    pub max_usage: Option<u64>,
    /// None when unlimited.
    pub limit: Option<u64>,
    /// How often the limit was hit.
    pub failures: u64,
    /// What mappings have reserved, touched or not; None before Linux 5.7.
    pub reserved_usage: Option<u64>,
    pub reserved_limit: Option<u64>,
}

pub(super) fn v1(dir: &str) -> Result<Vec<HugetlbStats>> {
    each(|size| {
        let file = |name: &str| number(dir, &format!("hugetlb.{size}.{name}"));
        let Some(usage) = file("usage_in_bytes")? else { return Ok(None) };
        Ok(Some(HugetlbStats {
            usage,
            max_usage: file("max_usage_in_bytes")?,
            limit: file("limit_in_bytes")?.filter(|n| *n < UNLIMITED),
            failures: file("failcnt")?.unwrap_or(0),
            reserved_usage: file("rsvd.usage_in_bytes")?,
            reserved_limit: file("rsvd.limit_in_bytes")?.filter(|n| *n < UNLIMITED),
            page_size: size,
        }))
    })
}

pub(super) fn v2(dir: &str) -> Result<Vec<HugetlbStats>> {
    each(|size| {
        let file = |name: &str| number(dir, &format!("hugetlb.{size}.{name}"));
        let Some(usage) = file("current")? else { return Ok(None) };
        let events = text(dir, &format!("hugetlb.{size}.events"))?.unwrap_or_default();
        Ok(Some(HugetlbStats {
            usage,
            max_usage: None,
            limit: file("max")?,
            failures: keyed(&events, "max").unwrap_or(0),
            reserved_usage: file("rsvd.current")?,
            reserved_limit: file("rsvd.max")?,
            page_size: size,
        }))
    })
}

fn each(read: impl Fn(String) -> Result<Option<HugetlbStats>>) -> Result<Vec<HugetlbStats>> {
    page_sizes().iter().filter_map(|size| read(size.clone()).transpose()).collect()
}
