//! Stop signals: CRI's enum, an image's text, the kernel's numbers.

use crate::error::{Error, Result};
use cri_proto::v1;
use nix::sys::signal::Signal;
use std::str::FromStr;

/// The number to send and what status shows: the config's signal, else the image's, else SIGTERM (CRI-CC-18).
///
/// # Errors
/// InvalidArgument for a signal that this architecture does not have.
pub(crate) fn effective(config: i32, image: &str) -> Result<(u32, i32)> {
    if let Some(named) = v1::Signal::try_from(config).ok().filter(|s| *s != v1::Signal::RuntimeDefault) {
        let name = named.as_str_name().trim_start_matches("SIGNAL_");
        return Ok((number(name)?, config));
    }
    if config != 0 {
        return Err(Error::invalid(format!("stop_signal {config} is not a signal")));
    }
    if image.is_empty() {
        return Ok((Signal::SIGTERM as u32, 0));
    }
    let number = number(image)?;
    let name = if image.starts_with("SIG") { image.to_owned() } else { format!("SIG{image}") };
    let shown = v1::Signal::from_str_name(&format!("SIGNAL_{name}")).map_or(0, Into::into);
    Ok((number, shown))
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, `SIGRTMINPLUS3`.
fn number(text: &str) -> Result<u32> {
    let unknown = || Error::invalid(format!("stop signal {text:?} is not known here"));
    if let Ok(number) = text.parse::<u32>() {
        return (1..=64).contains(&number).then_some(number).ok_or_else(unknown);
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    // glibc keeps the first real-time signals for itself: SIGRTMIN is 34 for programs, as in containerd and runc.
    for (prefix, base, sign) in
        [("SIGRTMINPLUS", 34i32, 1), ("SIGRTMIN+", 34, 1), ("SIGRTMAXMINUS", 64, -1), ("SIGRTMAX-", 64, -1)]
    {
        if let Some(offset) = name.strip_prefix(prefix).and_then(|o| o.parse::<i32>().ok()) {
            let number = offset.checked_mul(sign).and_then(|offset| base.checked_add(offset));
            return number
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| (34..=64).contains(n))
                .ok_or_else(unknown);
        }
    }
    match name.as_str() {
        "SIGRTMIN" => Ok(34),
        "SIGRTMAX" => Ok(64),
        "SIGCLD" => Ok(Signal::SIGCHLD as u32),
        "SIGPOLL" => Ok(Signal::SIGIO as u32),
        "SIGIOT" => Ok(Signal::SIGABRT as u32),
        other => Signal::from_str(other).map(|s| s as u32).map_err(|_| unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-CC-18.
    #[test]
    fn config_before_image_before_term() {
        assert_eq!(effective(0, ""), Ok((15, 0)));
        assert_eq!(effective(0, "SIGQUIT"), Ok((3, v1::Signal::Sigquit.into())));
        assert_eq!(effective(v1::Signal::Sigusr1.into(), "SIGQUIT"), Ok((10, v1::Signal::Sigusr1.into())));
        assert_eq!(effective(0, "37").map(|s| s.0), Ok(37));
        assert_eq!(number("SIGRTMIN+3"), Ok(37));
        assert!(number("SIGRTMIN+2147483647").is_err() && number("SIGRTMAX--2147483648").is_err());
        assert!(effective(0, "SIGNOPE").is_err() && effective(0, "99").is_err());
    }
}
