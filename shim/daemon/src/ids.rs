//! Object ids: 64 lower-case hex digits fit every known consumer (CRI-RUN-05).

use crate::error::{Error, Result};

/// A new random id.
pub(crate) fn new() -> Result<String> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(|e| Error::internal(format!("random id: {e}")))?;
    Ok(hex::encode(bytes))
}
