//! How long a request may go on, and whether anybody still waits for it.

use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::metadata::MetadataMap;

/// The deadline that the client has set: gRPC's header `grpc-timeout`, up to 8 digits and a unit.
pub(crate) fn asked(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value.checked_mul(3600)?),
        "M" => Duration::from_secs(value.checked_mul(60)?),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// What ends the work of one request before its time.
#[derive(Debug, Clone)]
pub(super) struct Limit {
    what: &'static str,
    patience: Option<Duration>,
    begun: Instant,
    gone: Arc<AtomicBool>,
}

/// Held by the caller: work goes on when it is dropped, but finds out.
#[derive(Debug)]
pub(super) struct Caller(Arc<AtomicBool>);

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Limit {
    /// `patience`: none is as long as it takes.
    pub(super) fn new(what: &'static str, patience: Option<Duration>) -> (Self, Caller) {
        let gone = Arc::new(AtomicBool::new(false));
        (Self { what, patience, begun: Instant::now(), gone: Arc::clone(&gone) }, Caller(gone))
    }

    /// Between two steps: whether to go on.
    ///
    /// # Errors
    /// DeadlineExceeded, Cancelled.
    pub(super) fn check(&self) -> Result<()> {
        if self.patience.is_some_and(|patience| self.begun.elapsed() >= patience) {
            let text = format!(
                "{}: it was not done in the {:?} that were given",
                self.what,
                self.patience.unwrap_or_default()
            );
            return Err(Error::new(Code::DeadlineExceeded, text));
        }
        if self.gone.load(Ordering::Relaxed) {
            return Err(Error::new(Code::Cancelled, format!("{}: the client has gone", self.what)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-CHKP-01.
    #[test]
    fn deadlines_of_clients() {
        let of = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().expect("ascii"));
            asked(&metadata)
        };
        assert_eq!(of("10S"), Some(Duration::from_secs(10)));
        assert_eq!(of("119999m"), Some(Duration::from_millis(119_999)));
        assert_eq!(of("2M"), Some(Duration::from_secs(120)));
        for bad in ["", "S", "10", "10x", "-1S"] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
        assert_eq!(asked(&MetadataMap::new()), None);
    }

    #[test]
    fn work_finds_out_that_nobody_waits() {
        let (limit, caller) = Limit::new("test", Some(Duration::from_secs(3600)));
        assert_eq!(limit.check(), Ok(()));
        drop(caller);
        assert!(limit.check().is_err_and(|e| e.code() == Code::Cancelled));
        let (limit, _caller) = Limit::new("test", Some(Duration::ZERO));
        assert!(limit.check().is_err_and(|e| e.code() == Code::DeadlineExceeded));
    }
}
