//! Time namespaces: how far their clocks are from the host's (time_namespaces(7)).

use super::{NamespacePlan, NamespaceSource, invalid};
use crate::Result;
use crate::namespace::NamespaceKind;
use oci_spec::runtime::Linux;

/// The text for /proc/<pid>/timens_offsets; empty without offsets.
pub(super) fn offsets(linux: &Linux, namespaces: &[NamespacePlan]) -> Result<String> {
    const FIELD: &str = "linux.timeOffsets";
    let Some(asked) = linux.time_offsets().as_ref().filter(|asked| !asked.is_empty()) else {
        return Ok(String::new());
    };
    let new = |n: &NamespacePlan| n.kind == NamespaceKind::Time && n.source == NamespaceSource::New;
    if !namespaces.iter().any(new) {
        return Err(invalid(FIELD, "only a new time namespace can have offsets")
            .hint("add {\"type\": \"time\"} without a path to linux.namespaces"));
    }
    let mut lines = Vec::new();
    for (clock, offset) in asked {
        if clock != "monotonic" && clock != "boottime" {
            return Err(invalid(FIELD, format!("{clock} is neither monotonic nor boottime")));
        }
        let (secs, nanosecs) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        if nanosecs >= 1_000_000_000 {
            return Err(invalid(FIELD, format!("{clock}: {nanosecs} nanoseconds are a second or more")));
        }
        lines.push(format!("{clock} {secs} {nanosecs}\n"));
    }
    lines.sort();
    Ok(lines.concat())
}
