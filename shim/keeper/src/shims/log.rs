//! A shim's own log: a fifo in its bundle, copied to ours (SHIM-LOG-01, SHIM-LOG-02).

use crate::error::{Error, Result};
use crate::readiness::{self, Held};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use rustix::io::Errno;
use std::path::Path;
use std::sync::Arc;
use tokio::io::Interest;

/// Its longest line, in bytes.
const LINE: usize = 4096;

/// Makes the fifo and opens it for both, so that the shim never finds nobody there.
pub(super) fn make(bundle: &Path) -> Result<OwnedFd> {
    let path = &bundle.join("log");
    let fail = |e: Errno| Error::io("make fifo", path.display(), &e.into());
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).map_err(fail)?;
    open(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).map_err(fail)
}

/// Copies what comes until the task is dropped; inside the runtime.
pub(super) fn copy(fifo: OwnedFd, pod: &str) -> std::io::Result<tokio::task::AbortHandle> {
    let (fifo, pod) = (readiness::watch(Held(Arc::new(fifo)), Interest::READABLE)?, pod.to_owned());
    let task = tokio::spawn(async move {
        let (mut buffer, mut rest) = ([0; LINE], Vec::new());
        loop {
            let Ok(mut ready) = fifo.readable().await else { return };
            match rustix::io::read(&fifo, &mut buffer) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    rest.extend_from_slice(&buffer[..count]);
                    tell(&mut rest, &pod);
                }
            }
        }
    });
    Ok(task.abort_handle())
}

fn tell(rest: &mut Vec<u8>, pod: &str) {
    while let Some(end) = memchr::memchr(b'\n', rest).or((rest.len() >= LINE).then_some(LINE - 1)) {
        let line: Vec<u8> = rest.drain(..=end).collect();
        let line: String = String::from_utf8_lossy(&line).chars().filter(|c| !c.is_control()).collect();
        // As logrus writes it, which nearly all use.
        if ["level=info", "level=debug", "level=trace"].iter().any(|level| line.contains(level)) {
            tracing::debug!(pod, "its shim: {line}");
        } else if !line.trim().is_empty() {
            tracing::info!(pod, "its shim: {line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_are_told() {
        let mut rest = b"one\ntwo\nthr".to_vec();
        tell(&mut rest, "p");
        assert_eq!(rest, b"thr");
        rest.extend(std::iter::repeat_n(b'x', LINE));
        tell(&mut rest, "p");
        assert!(rest.len() < LINE, "one without end is cut");
    }
}
