//! Time as CRI counts it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch (CRI-GEN-13).
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
