//! Streams of processes that a shim makes: it opens them by name, and the other ends are the keeper's or the client's.

use super::target::{Stdin, Target};
use super::{Kept, Opened, input_fifo, keep_log, key, open_fifo, output_fifo};
use crate::error::{Error, Result};
use crate::logs;
use crate::records::Streams;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use std::path::Path;

const NOWHERE: &str = "/dev/null";

/// Streams of a container that is logged: fifos in `dir`. The ends that are held until the shim has opened its own are among
/// the kept ones, see [`is_placeholder`].
///
/// # Errors
/// `Unimplemented` for streams that are not logged.
pub(crate) fn logged(streams: &Streams, dir: &Path) -> Result<(Opened, Streams)> {
    let Target::Log { path, stdin, .. } = Target::parse(&streams.stdout)? else {
        return Err(Error::unimplemented(format!(
            "standard stream {}: a shim's containers can only be logged (cri-log:)",
            streams.stdout
        )));
    };
    let (mut opened, mut names) =
        (Opened::default(), Streams { terminal: streams.terminal, ..Streams::default() });
    let kept = &mut opened.kept;
    if let Some(path) = path {
        opened.made_log = keep_log(kept, &path)?;
    }
    names.stdout = output(dir, "out", [key::OUT, key::OUT_HOLD, key::OUT_PLACE], kept)?;
    if !streams.terminal {
        names.stderr = output(dir, "err", [key::ERR, key::ERR_HOLD, key::ERR_PLACE], kept)?;
    }
    if stdin != Stdin::None {
        let path = fifo(dir, "in")?;
        kept.insert(key::IN_PLACE, open_fifo(&path, OFlags::RDONLY)?);
        kept.insert(key::IN, open_fifo(&path, OFlags::WRONLY)?);
        names.stdin = path.to_string_lossy().into_owned();
    }
    Ok((opened, names))
}

/// Opens again what of a container's streams a keeper and its guardian took with them: what the shim copied meanwhile waits in
/// the fifos. Missing is success.
pub(crate) fn reopen(streams: &Streams, dir: &Path, kept: &mut Kept) {
    let mut put = |key, opened: Result<OwnedFd>| match opened {
        Ok(fd) => drop(kept.entry(key).or_insert(fd)),
        Err(error) => tracing::debug!("{error}"),
    };
    for (name, read, hold) in [("out", key::OUT, key::OUT_HOLD), ("err", key::ERR, key::ERR_HOLD)] {
        put(read, open_fifo(&dir.join(name), OFlags::RDONLY));
        put(hold, logs::hold().map_err(|e| Error::io("make", "log buffer", &e)));
    }
    if let Ok(Target::Log { path: Some(path), .. }) = Target::parse(&streams.stdout) {
        put(key::LOG, super::open_log(&path).map(Into::into));
    }
    put(key::IN, open_fifo(&dir.join("in"), OFlags::WRONLY));
}

/// Streams of a session, and their names for a shim.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) kept: Kept,
    pub(crate) names: Streams,
    /// The shim's ends, to be held until it has opened them itself: else a client might see the end before the beginning.
    pub(crate) places: Vec<OwnedFd>,
}

/// Streams of a session: its client's fifos, or pipes, which have names below /proc.
///
/// # Errors
/// `Unimplemented` for all others.
pub(crate) fn session(streams: &Streams) -> Result<Session> {
    let mut places = Vec::new();
    let (mut kept, mut names) = (Kept::new(), Streams { terminal: streams.terminal, ..Streams::default() });
    let outputs = [
        (&streams.stdout, key::OUT_READER, &mut names.stdout),
        (&streams.stderr, key::ERR_READER, &mut names.stderr),
    ];
    for (stream, reader, name) in outputs {
        match Target::parse(stream)? {
            Target::Null => {}
            Target::Fifo(path) | Target::Pipe(path) => {
                places.push(output_fifo(&path, reader, &mut kept, (0, 0))?);
                *name = path.to_string_lossy().into_owned();
            }
            _ => {
                return Err(Error::unimplemented(format!(
                    "standard stream {stream}: a shim's sessions have fifos or pipes"
                )));
            }
        }
    }
    if let Target::Fifo(path) | Target::Pipe(path) = Target::parse(&streams.stdin)? {
        let (read, write) = input_fifo(&path, (0, 0))?;
        places.push(read);
        kept.insert(key::IN, write);
        names.stdin = path.to_string_lossy().into_owned();
    }
    // runc's shim takes all outputs or none.
    if [&names.stdin, &names.stdout, &names.stderr].iter().any(|name| !name.is_empty()) {
        let wanted = [Some(&mut names.stdout), (!names.terminal).then_some(&mut names.stderr)];
        for name in wanted.into_iter().flatten().filter(|name| name.is_empty()) {
            *name = NOWHERE.into();
        }
    }
    Ok(Session { kept, names, places })
}

/// True for what only holds a fifo open for its shim.
pub(crate) fn is_placeholder(key: &str) -> bool {
    matches!(key, key::OUT_PLACE | key::ERR_PLACE | key::IN_PLACE)
}

fn output(dir: &Path, name: &str, keys: [&'static str; 3], kept: &mut Kept) -> Result<String> {
    let path = fifo(dir, name)?;
    let [read, hold, place] = keys;
    kept.insert(read, open_fifo(&path, OFlags::RDONLY)?);
    kept.insert(hold, logs::hold().map_err(|e| Error::io("make", "log buffer", &e))?);
    kept.insert(place, open_fifo(&path, OFlags::WRONLY)?);
    Ok(path.to_string_lossy().into_owned())
}

fn fifo(dir: &Path, name: &str) -> Result<std::path::PathBuf> {
    let path = dir.join(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .map_err(|e| Error::io("make fifo", path.display(), &e.into()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    #[test]
    fn a_shim_finds_fifos_that_nobody_leaves() {
        // SHIM-IO-03, SHIM-IO-04b
        let dir = tempfile::tempdir().unwrap();
        let streams = Streams { stdout: "cri-log:?stdin=1".into(), ..Streams::default() };
        let (mut opened, names) = logged(&streams, dir.path()).unwrap();
        let mut reader = File::from(opened.kept.remove(key::OUT).unwrap());
        let mut text = String::new();
        assert_eq!(reader.read_to_string(&mut text).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        let mut shim = File::from(open_fifo(Path::new(&names.stdout), OFlags::WRONLY).unwrap());
        opened.kept.retain(|key, _| !is_placeholder(key));
        shim.write_all(b"said").unwrap();
        drop(shim);
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "said", "and then the end");
        assert!(!names.stdin.is_empty() && !names.stderr.is_empty());

        let other = tempfile::tempdir().unwrap();
        let terminal = Streams { terminal: true, stdout: "cri-log:".into(), ..Streams::default() };
        let (_, names) = logged(&terminal, other.path()).unwrap();
        assert_eq!((names.stdin.as_str(), names.stderr.as_str(), names.terminal), ("", "", true));
        let error = logged(&Streams { stdout: "file:///x".into(), ..Streams::default() }, other.path());
        assert_eq!(error.unwrap_err().code(), ttrpc::Code::UNIMPLEMENTED);
    }

    #[test]
    fn a_session_has_its_client_s_own_pipes() {
        let (read, write) = super::super::pipe((0, 0)).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&write);
        let streams =
            Streams { stdout: format!("pipe://{}/{number}", std::process::id()), ..Streams::default() };
        let Session { kept, names, places } = session(&streams).unwrap();
        assert_eq!(names.stdout, format!("/proc/{}/fd/{number}", std::process::id()));
        assert_eq!((names.stdin.as_str(), names.stderr.as_str()), ("", NOWHERE));
        assert_eq!(session(&Streams::default()).unwrap().names, Streams::default());
        assert_eq!(kept.keys().collect::<Vec<_>>(), [&key::OUT_READER]);
        drop((write, places));
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "", "we keep no end that would hide the end");
    }
}
