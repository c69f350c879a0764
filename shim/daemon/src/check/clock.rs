//! The clock: certificates and image dates depend on it.

use super::Finding;
use std::path::Path;
use std::time::SystemTime;

pub(super) fn check() -> Vec<Finding> {
    let built = std::env::current_exe().and_then(std::fs::metadata).and_then(|m| m.modified());
    vec![judge(SystemTime::now(), built.ok(), timesync())]
}

/// What systemd-timesyncd says, where it runs.
fn timesync() -> Option<bool> {
    let dir = Path::new("/run/systemd/timesync");
    dir.is_dir().then(|| dir.join("synchronized").exists())
}

fn judge(now: SystemTime, built: Option<SystemTime>, synchronized: Option<bool>) -> Finding {
    let sync = "start a time service (systemd-timesyncd, chrony)";
    if built.is_some_and(|built| built > now) {
        return Finding::failure(
            "clock",
            "it is earlier than the installation of this program: certificates will seem not yet valid",
            sync,
        );
    }
    match synchronized {
        Some(false) => Finding::warning("clock", "not synchronized yet", sync),
        Some(true) => Finding::ok("clock", "synchronized"),
        None => Finding::ok("clock", "plausible"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_clock_before_the_installation_fails() {
        let now = SystemTime::now();
        assert_eq!(judge(now, Some(now + Duration::from_secs(60)), None).verdict, Verdict::Failure);
        assert_eq!(judge(now, Some(now - Duration::from_secs(60)), Some(false)).verdict, Verdict::Warning);
        assert_eq!(judge(now, None, None).verdict, Verdict::Ok);
    }
}
