//! The names of standard streams (SHIM-IO-01): what a client's text asks for. Opens nothing.

use crate::error::{Error, Result};
use crate::logger;
use std::path::PathBuf;

/// Longest content of a log line where the client says nothing (CRI-LOG-06).
const MAX_LINE: usize = 16_384;

/// Where one stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// /dev/null.
    Null,
    Fifo(PathBuf),
    /// A pipe that the client holds open: `pipe://<pid>/<fd>`, so that a session needs no file.
    Pipe(PathBuf),
    /// Appended to, both streams in one file (SHIM-IO-08).
    File(PathBuf),
    /// A program that reads both streams (SHIM-IO-05).
    Program(logger::Command),
    /// A CRI log for both streams; no path discards. `stdin`: the process gets a pipe that stays open.
    Log {
        path: Option<LogPath>,
        max_line: usize,
        stdin: Stdin,
    },
}

/// Standard input of a container whose output is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdin {
    /// /dev/null, or a terminal that nobody types at.
    None,
    /// Open for whoever attaches, for as long as the container runs.
    Open,
    /// Closed when the first client that attached to it is done (STR-ATT-05).
    Once,
}

/// Where a log file is, and how much of its path may not lead elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogPath {
    pub(crate) path: PathBuf,
    /// Trailing components that must be what they say: a container that can write to the log directory may have planted
    /// a symbolic link there. At least 1, the file itself.
    pub(crate) own: usize,
}

impl Target {
    /// Reads a stream's name (SHIM-IO-01, SHIM-IO-02).
    ///
    /// # Errors
    /// `Unimplemented` for schemes that are not ours, `InvalidArgument` for relative paths and unknown parameters.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        if name.is_empty() {
            return Ok(Self::Null);
        }
        match name.split_once(':') {
            Some(("cri-log", rest)) => Self::parse_log(name, rest),
            Some(("pipe", rest)) => parse_pipe(name, rest).map(Self::Pipe),
            Some(("file", rest)) => absolute(name, rest.strip_prefix("//").unwrap_or(rest)).map(Self::File),
            Some((scheme @ ("binary" | "binary-v2"), rest)) => {
                logger::Command::parse(name, rest, scheme == "binary-v2").map(Self::Program)
            }
            Some((scheme, rest)) if rest.starts_with("//") && !scheme.contains('/') => {
                Err(Error::unimplemented(format!(
                    "standard stream {name}: scheme {scheme} is not supported; use a fifo, file:, binary: or cri-log:"
                )))
            }
            _ => absolute(name, name).map(Self::Fifo),
        }
    }

    fn parse_log(name: &str, rest: &str) -> Result<Self> {
        // The last one: a file may have a question mark in its name.
        let (path, query) = rest.rsplit_once('?').unwrap_or((rest, ""));
        let path = path.strip_prefix("//").unwrap_or(path);
        let path = if path.is_empty() { None } else { Some(absolute(name, path)?) };
        let (mut max_line, mut stdin, mut own) = (MAX_LINE, Stdin::None, 1);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("max_line", value)) => {
                    max_line = value.parse().map_err(|_| {
                        Error::invalid(format!("standard stream {name}: bad max_line {value}"))
                    })?;
                }
                Some(("stdin", "1")) => stdin = Stdin::Open,
                Some(("stdin", "once")) => stdin = Stdin::Once,
                Some(("own", value)) => {
                    own = value.parse().ok().filter(|own| *own > 0).ok_or_else(|| {
                        Error::invalid(format!("standard stream {name}: own={value}: a number from 1 on"))
                    })?;
                }
                _ => return Err(Error::invalid(format!("standard stream {name}: unknown parameter {pair}"))),
            }
        }
        Ok(Self::Log { path: path.map(|path| LogPath { path, own }), max_line, stdin })
    }
}

/// `//<pid>/<fd>` to the file by which the kernel opens that descriptor's pipe once more.
fn parse_pipe(name: &str, rest: &str) -> Result<PathBuf> {
    let number = |text: &str| text.parse::<u32>().ok();
    let pair = rest.strip_prefix("//").and_then(|rest| rest.split_once('/'));
    match pair.and_then(|(pid, fd)| Some((number(pid)?, number(fd)?))) {
        Some((pid, fd)) => Ok(format!("/proc/{pid}/fd/{fd}").into()),
        None => Err(Error::invalid(format!("standard stream {name}: want pipe://<pid>/<fd>"))),
    }
}

pub(crate) fn absolute(name: &str, path: &str) -> Result<PathBuf> {
    if path.starts_with('/') {
        Ok(path.into())
    } else {
        Err(Error::invalid(format!("standard stream {name}: the path is not absolute")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        // SHIM-IO-01, SHIM-IO-02
        let (no, open, once) = (Stdin::None, Stdin::Open, Stdin::Once);
        let log = |path: Option<(&str, usize)>, max_line, stdin| Target::Log {
            path: path.map(|(path, own)| LogPath { path: path.into(), own }),
            max_line,
            stdin,
        };
        for (name, target) in [
            ("", Target::Null),
            ("/run/a b:c", Target::Fifo("/run/a b:c".into())),
            ("file:///var/x", Target::File("/var/x".into())),
            ("cri-log:", log(None, MAX_LINE, no)),
            ("cri-log:///l/0.log", log(Some(("/l/0.log", 1)), MAX_LINE, no)),
            ("cri-log:///l/0.log?max_line=0&stdin=1", log(Some(("/l/0.log", 1)), 0, open)),
            ("cri-log:?stdin=once", log(None, MAX_LINE, once)),
            ("cri-log:///l/who?.log?own=2", log(Some(("/l/who?.log", 2)), MAX_LINE, no)),
            ("pipe://12/34", Target::Pipe("/proc/12/fd/34".into())),
        ] {
            assert_eq!(Target::parse(name).unwrap(), target, "{name}");
        }
        for (name, code) in [
            ("fd:///3", ttrpc::Code::UNIMPLEMENTED),
            ("binary://logger", ttrpc::Code::INVALID_ARGUMENT),
            ("relative", ttrpc::Code::INVALID_ARGUMENT),
            ("cri-log://l", ttrpc::Code::INVALID_ARGUMENT),
            ("cri-log:///l?max_line=x", ttrpc::Code::INVALID_ARGUMENT),
            ("cri-log:///l?stdin=twice", ttrpc::Code::INVALID_ARGUMENT),
            ("cri-log:///l?colour=red", ttrpc::Code::INVALID_ARGUMENT),
            ("cri-log:///l?own=0", ttrpc::Code::INVALID_ARGUMENT),
            ("pipe://1/../2", ttrpc::Code::INVALID_ARGUMENT),
            ("pipe://self/3", ttrpc::Code::INVALID_ARGUMENT),
        ] {
            assert_eq!(Target::parse(name).unwrap_err().code(), code, "{name}");
        }
    }
}
