//! containerd's command line: flags with one dash, the action behind them (SHIM-CMD-01, SHIM-CMD-02, SHIM-CMD-05).

use containerd_shim::Flags;
use std::ffi::OsString;

/// A flag of shims that the crate's parser does not know. Its value is where a debugging server would listen; there is none.
const DEBUG_SOCKET: &str = "debug-socket";

/// # Errors
/// Unknown flags, and flags without their value.
pub(crate) fn parse(args: &[OsString]) -> Result<Flags, containerd_shim::Error> {
    let (mut known, mut rest) = (Vec::new(), args.iter());
    while let Some(arg) = rest.next() {
        let name = arg.to_str().and_then(|arg| arg.strip_prefix('-')).unwrap_or_default();
        match name.strip_prefix('-').unwrap_or(name).strip_prefix(DEBUG_SOCKET) {
            Some("") => drop(rest.next()),
            Some(value) if value.starts_with('=') => {}
            _ => known.push(arg),
        }
    }
    containerd_shim::parse(&known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &str) -> Result<Flags, containerd_shim::Error> {
        parse(&words.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn sockets_may_be_named() {
        // SHIM-CMD-05
        for words in [
            "-namespace n -socket /s -debug-socket /d -id i start",
            "-namespace=n -socket=/s -debug-socket=/d -id=i start",
            "--namespace n --debug-socket /d --socket /s --id i start",
        ] {
            let flags = of(words).unwrap();
            let seen = (&*flags.namespace, &*flags.socket, &*flags.id, &*flags.action, flags.debug);
            assert_eq!(seen, ("n", "/s", "i", "start", false), "{words}");
        }
        assert!(of("-debug -debug-socket /d start").unwrap().debug);
        for words in ["-debug-sockets /d start", "-unknown start"] {
            assert!(of(words).is_err(), "{words}");
        }
    }
}
