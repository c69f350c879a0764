//! Standard streams: from the client's URIs to descriptors for the process, and what the keeper holds beside it.
//!
//! Opens files and fifos, never reads or writes them.

pub(crate) mod by_name;
mod target;

pub(crate) use target::{LogPath, Stdin, Target, absolute};

use crate::error::{Error, Result};
use crate::logger::Logger;
use crate::logs::{self, Input, Source, Stream};
use crate::records::Streams;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use slipway_runtime::container::Stdio;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

/// Names of the descriptors kept with the guardian, below the process's own prefix.
pub(crate) mod key {
    /// The CRI log file.
    pub(crate) const LOG: &str = "log";
    /// Read ends of the pipes, and the holds, of stdout and stderr.
    pub(crate) const OUT: &str = "out";
    pub(crate) const OUT_HOLD: &str = "out-hold";
    pub(crate) const ERR: &str = "err";
    pub(crate) const ERR_HOLD: &str = "err-hold";
    /// Write end of the pipe behind a terminal.
    pub(crate) const OUT_WRITE: &str = "out-write";
    /// What keeps standard input open until CloseIO.
    pub(crate) const IN: &str = "in";
    /// Read ends of the client's output fifos, so that a client that leaves gives no EPIPE (SHIM-IO-03).
    pub(crate) const OUT_READER: &str = "out-reader";
    pub(crate) const ERR_READER: &str = "err-reader";
    /// For a terminal on fifos: where its output goes and its input comes from.
    pub(crate) const TTY_OUT: &str = "tty-out";
    pub(crate) const TTY_IN: &str = "tty-in";
    pub(crate) const PTY: &str = "pty";
    /// Ends of fifos that a shim opens by name, held until it has.
    pub(crate) const OUT_PLACE: &str = "out-place";
    pub(crate) const ERR_PLACE: &str = "err-place";
    pub(crate) const IN_PLACE: &str = "in-place";
    /// Pidfd of the client's logging program.
    pub(crate) const LOGGER: &str = "logger";
}

/// Descriptors by the names of [`key`].
pub(crate) type Kept = HashMap<&'static str, OwnedFd>;

/// Streams ready for a process.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// For the process itself; nothing where it gets a terminal.
    pub(crate) child: Stdio,
    /// For keeper and guardian.
    pub(crate) kept: Kept,
    /// The log, if it was not there before.
    made_log: Option<(LogPath, OwnedFd)>,
}

impl Opened {
    /// The way back, for a container that is not to be.
    pub(crate) fn undo(&mut self) -> impl FnOnce() + use<> {
        let made = self.made_log.take();
        move || {
            if let Some((path, file)) = made
                && let Err(error) = unmake_log(&path, file.as_fd())
            {
                tracing::warn!(path = %path.path.display(), "take back an empty log: {error}");
            }
        }
    }
}

/// Opens the log; answers what is needed to take it back.
fn keep_log(kept: &mut Kept, path: &LogPath) -> Result<Option<(LogPath, OwnedFd)>> {
    let (file, made) = open_or_make_log(path)?;
    let copy = file.try_clone().map_err(|e| Error::io("open log", path.path.display(), &e))?;
    kept.insert(key::LOG, file.into());
    Ok(made.then(|| (path.clone(), copy.into())))
}

/// True for what is needed until Delete: what keeps a client's output fifo alive, and its logging program.
pub(crate) fn outlives_process(key: &str) -> bool {
    matches!(key, key::OUT_READER | key::ERR_READER | key::LOGGER)
}

/// The descriptors below `prefix` that a former keeper had, taken out of `held`.
pub(crate) fn take_kept(held: &mut HashMap<String, OwnedFd>, prefix: &str) -> Kept {
    let all = [
        key::LOG,
        key::OUT,
        key::OUT_HOLD,
        key::ERR,
        key::ERR_HOLD,
        key::OUT_WRITE,
        key::IN,
        key::OUT_READER,
        key::ERR_READER,
        key::TTY_OUT,
        key::TTY_IN,
        key::PTY,
        key::OUT_PLACE,
        key::ERR_PLACE,
        key::IN_PLACE,
        key::LOGGER,
    ];
    all.into_iter().filter_map(|key| Some((key, held.remove(&format!("{prefix}{key}"))?))).collect()
}

/// Whether the names can be opened at all; what lies behind them is not looked at.
pub(crate) fn check(streams: &Streams) -> Result<()> {
    [&streams.stdin, &streams.stdout, &streams.stderr]
        .into_iter()
        .try_for_each(|name| Target::parse(name).map(drop))
}

/// Opens all streams; `owner` may open its own streams again by /proc/self/fd. Never blocks on a missing peer.
pub(crate) fn open(streams: &Streams, owner: (u32, u32), logger: Logger<'_>) -> Result<Opened> {
    let mut opened = Opened::default();
    if streams.terminal {
        open_terminal(streams, logger, &mut opened)?
    } else {
        open_plain(streams, owner, logger, &mut opened)?
    }
    Ok(opened)
}

fn open_plain(streams: &Streams, owner: (u32, u32), logger: Logger<'_>, opened: &mut Opened) -> Result<()> {
    let kept = &mut opened.kept;
    let output = Target::parse(&streams.stdout)?;
    match &output {
        Target::Log { path, stdin, .. } => {
            if let Some(path) = path {
                opened.made_log = keep_log(kept, path)?;
            }
            opened.child.stdout = Some(logged_pipe(kept, key::OUT, key::OUT_HOLD, owner)?);
            opened.child.stderr = Some(logged_pipe(kept, key::ERR, key::ERR_HOLD, owner)?);
            if *stdin != Stdin::None {
                let (read, write) = pipe(owner)?;
                opened.child.stdin = Some(read);
                kept.insert(key::IN, write);
            }
        }
        Target::File(path) => {
            let file = open_file(path)?;
            opened.child.stderr = Some(file.try_clone().map_err(|e| Error::io("open", path.display(), &e))?);
            opened.child.stdout = Some(file);
        }
        Target::Program(command) => {
            let ((out, out_write), (err, err_write)) = (pipe(owner)?, pipe(owner)?);
            kept.insert(key::LOGGER, logger.start(command, out, err)?);
            (opened.child.stdout, opened.child.stderr) = (Some(out_write), Some(err_write));
        }
        Target::Fifo(path) | Target::Pipe(path) => {
            opened.child.stdout = Some(output_fifo(path, key::OUT_READER, kept, owner)?);
        }
        Target::Null => {}
    }
    if matches!(output, Target::Fifo(_) | Target::Pipe(_) | Target::Null)
        && let Target::Fifo(path) | Target::Pipe(path) = Target::parse(&streams.stderr)?
    {
        opened.child.stderr = Some(output_fifo(&path, key::ERR_READER, kept, owner)?);
    }
    if opened.child.stdin.is_none()
        && let Target::Fifo(path) | Target::Pipe(path) = Target::parse(&streams.stdin)?
    {
        let (read, write) = input_fifo(&path, owner)?;
        set_blocking(&read, &path)?;
        opened.child.stdin = Some(read);
        kept.insert(key::IN, write);
    }
    Ok(())
}

fn open_terminal(streams: &Streams, logger: Logger<'_>, opened: &mut Opened) -> Result<()> {
    let kept = &mut opened.kept;
    match Target::parse(&streams.stdout)? {
        Target::Log { path, .. } => {
            if let Some(path) = path {
                opened.made_log = keep_log(kept, &path)?;
            }
            let (read, write) = pipe((0, 0))?;
            set_flags(&write, OFlags::NONBLOCK, "terminal")?;
            kept.insert(key::OUT, read);
            kept.insert(key::OUT_WRITE, write);
            kept.insert(key::OUT_HOLD, logs::hold().map_err(|e| Error::io("make", "log buffer", &e))?);
        }
        Target::Fifo(path) | Target::Pipe(path) => {
            let writer = output_fifo(&path, key::OUT_READER, kept, (0, 0))?;
            set_flags(&writer, OFlags::NONBLOCK, path.display())?;
            kept.insert(key::TTY_OUT, writer);
        }
        Target::File(path) => drop(kept.insert(key::TTY_OUT, open_file(&path)?)),
        Target::Program(command) => {
            let ((out, out_write), (err, _)) = (pipe((0, 0))?, pipe((0, 0))?);
            kept.insert(key::LOGGER, logger.start(&command, out, err)?);
            kept.insert(key::TTY_OUT, out_write);
        }
        Target::Null => {}
    }
    if let Target::Fifo(path) | Target::Pipe(path) = Target::parse(&streams.stdin)? {
        let (read, write) = input_fifo(&path, (0, 0))?;
        kept.insert(key::TTY_IN, read);
        kept.insert(key::IN, write);
    }
    Ok(())
}

/// Opens the client's ends of the pipes of an attach: one to read from, or to write to. Never waits for the client.
pub(crate) fn open_client(name: &str, mode: OFlags) -> Result<Option<OwnedFd>> {
    match Target::parse(name)? {
        Target::Null => Ok(None),
        Target::Fifo(path) | Target::Pipe(path) => open_fifo(&path, mode).map(Some),
        _ => Err(Error::invalid(format!("standard stream {name}: an attached client has fifos or pipes"))),
    }
}

/// How what is in a log path's own part is resolved: nothing there is ever followed.
const OWN: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::BENEATH);

impl LogPath {
    /// The directory that is the client's, opened, and the path below it.
    fn anchor(&self) -> rustix::io::Result<(OwnedFd, PathBuf)> {
        let names: Vec<_> = self.path.iter().collect();
        let (base, own) = names.split_at(names.len().saturating_sub(self.own).max(1));
        let path_only = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = rustix::fs::open(base.iter().collect::<PathBuf>(), path_only, Mode::empty())?;
        Ok((base, own.iter().collect()))
    }
}

/// Opens a CRI log file (CRI-LOG-11); its directory is the client's.
pub(crate) fn open_log(log: &LogPath) -> Result<File> {
    open_or_make_log(log).map(|(file, _)| file)
}

/// The same; true if it was not there before.
fn open_or_make_log(log: &LogPath) -> Result<(File, bool)> {
    let shown = log.path.display();
    let fail = |error: Errno| {
        let text = format!("open log {shown}: {error}");
        match error {
            Errno::NOENT => Error::not_found(format!("{text}; its directory must exist")),
            Errno::LOOP | Errno::XDEV => Error::invalid(format!(
                "{text}; a symbolic link in the last {} parts of the path is not followed: a container may have planted it",
                log.own
            )),
            _ => Error::io("open log", log.path.display(), &error.into()),
        }
    };
    let (base, own) = log.anchor().map_err(fail)?;
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
    let open = |flags| rustix::fs::openat2(&base, &own, flags, mode, OWN);
    let (file, made) = match open(flags | OFlags::EXCL) {
        Err(Errno::EXIST) => (open(flags).map_err(fail)?, false),
        made => (made.map_err(fail)?, true),
    };
    let kind = rustix::fs::fstat(&file).map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
    // Somebody's terminal or /dev/null is no log, and a client could not rotate it.
    if kind != Ok(rustix::fs::FileType::RegularFile) {
        return Err(Error::invalid(format!("open log {shown}: it exists and is no regular file")));
    }
    Ok((File::from(file), made))
}

/// Takes back a log that was made for a container that is not to be, if it is the file under its name still, and empty.
fn unmake_log(log: &LogPath, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let ours = rustix::fs::fstat(file)?;
    let (base, own) = log.anchor()?;
    let (Some(parent), Some(name)) = (own.parent(), own.file_name()) else { return Ok(()) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::openat2(&base, parent, flags, Mode::empty(), OWN)?;
    let there = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if ours.st_size == 0 && (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino) {
        rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
    }
    Ok(())
}

fn open_file(path: &Path) -> Result<OwnedFd> {
    let fail = |e: io::Error| Error::io("open", path.display(), &e);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(fail)?;
    }
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)).map_err(|e| fail(e.into()))
}

/// Takes what the log engine needs out of the kept descriptors (the guardian has copies); a terminal is copied.
pub(crate) fn take_log_inputs(kept: &mut Kept) -> io::Result<Vec<Input>> {
    let pty = kept.get(key::PTY).map(OwnedFd::try_clone).transpose()?;
    let mut terminal = pty.zip(kept.remove(key::OUT_WRITE));
    let mut inputs = Vec::new();
    for (stream, pipe, hold) in
        [(Stream::Stdout, key::OUT, key::OUT_HOLD), (Stream::Stderr, key::ERR, key::ERR_HOLD)]
    {
        let (Some(pipe), Some(hold)) = (kept.remove(pipe), kept.remove(hold)) else { continue };
        let source = match terminal.take() {
            Some((master, write)) => Source::Terminal { master, read: pipe, write },
            None => Source::Pipe(pipe),
        };
        inputs.push(Input { stream, source, hold });
    }
    Ok(inputs)
}

/// The kept descriptors as the guardian wants them: full keys below `prefix`.
pub(crate) fn keep_all(
    guardian: &crate::guardian::client::Guardian,
    prefix: &str,
    kept: &Kept,
    more: &[(&str, BorrowedFd<'_>)],
) -> io::Result<()> {
    let named = kept.iter().map(|(key, fd)| (*key, fd.as_fd())).chain(more.iter().copied());
    let full: Vec<(String, BorrowedFd<'_>)> = named.map(|(key, fd)| (format!("{prefix}{key}"), fd)).collect();
    let items: Vec<_> = full.iter().map(|(key, fd)| (key.as_str(), *fd)).collect();
    guardian.keep(&items)
}

fn pipe(owner: (u32, u32)) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::io("make", "pipe", &e.into()))?;
    give(&read, owner, "pipe")?;
    Ok((read, write))
}

fn logged_pipe(
    kept: &mut Kept,
    name: &'static str,
    hold: &'static str,
    owner: (u32, u32),
) -> Result<OwnedFd> {
    let (read, write) = pipe(owner)?;
    kept.insert(name, read);
    kept.insert(hold, logs::hold().map_err(|e| Error::io("make", "log buffer", &e))?);
    Ok(write)
}

/// The write end for the process, and a read end kept so that neither open nor write needs the client.
fn output_fifo(path: &Path, reader: &'static str, kept: &mut Kept, owner: (u32, u32)) -> Result<OwnedFd> {
    kept.insert(reader, open_fifo(path, OFlags::RDONLY)?);
    let writer = open_fifo(path, OFlags::WRONLY)?;
    give(&writer, owner, path.display())?;
    set_blocking(&writer, path)?;
    Ok(writer)
}

/// The read end for the process and a write end that keeps it from seeing the end (SHIM-IO-04c).
fn input_fifo(path: &Path, owner: (u32, u32)) -> Result<(OwnedFd, OwnedFd)> {
    let read = open_fifo(path, OFlags::RDONLY)?;
    give(&read, owner, path.display())?;
    Ok((read, open_fifo(path, OFlags::WRONLY)?))
}

/// By whatever name the client has for it: links are followed, as by any shim. What is no fifo is not opened at all.
fn open_fifo(path: &Path, mode: OFlags) -> Result<OwnedFd> {
    let fail = |error: Errno| {
        let text = format!("open fifo {}: {error}", path.display());
        if error == Errno::NOENT { Error::not_found(text) } else { Error::invalid(text) }
    };
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
    let kind = rustix::fs::fstat(&found).map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
    if kind != Ok(rustix::fs::FileType::Fifo) {
        return Err(Error::invalid(format!("standard stream {} is not a fifo", path.display())));
    }
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    rustix::fs::open(again, mode | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).map_err(fail)
}

/// The process may open /dev/stdout again, which asks for the owner of pipe or fifo.
fn give(fd: &OwnedFd, (uid, gid): (u32, u32), object: impl std::fmt::Display) -> Result<()> {
    if (uid, gid) == (0, 0) {
        return Ok(());
    }
    rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(|e| Error::io("change owner of", object, &e.into()))
}

fn set_blocking(fd: &OwnedFd, path: &Path) -> Result<()> {
    set_flags(fd, OFlags::empty(), path.display())
}

fn set_flags(fd: &OwnedFd, flags: OFlags, object: impl std::fmt::Display) -> Result<()> {
    rustix::fs::fcntl_setfl(fd, flags).map_err(|e| Error::io("set flags of", object, &e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    const NOBODY: Logger<'_> = Logger { id: "c", namespace: "n" };

    #[test]
    fn fifos_need_no_peer_and_keep_what_was_written() {
        // SHIM-IO-03, SHIM-IO-04b
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        // A client may know it by another name, such as one below /var/run.
        let name = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &name).unwrap();
        let streams = Streams { stdout: name.to_str().unwrap().into(), ..Streams::default() };
        let mut opened = open(&streams, (0, 0), NOBODY).unwrap();
        let mut writer = File::from(opened.child.stdout.take().unwrap());
        writer.write_all(b"early").unwrap();
        drop(writer);
        let late = rustix::fs::open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        drop(opened);
        let mut text = String::new();
        File::from(late).read_to_string(&mut text).unwrap();
        assert_eq!(text, "early");
    }

    #[test]
    fn what_is_no_fifo_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "").unwrap();
        for name in [path.to_str().unwrap(), "/nonexistent/fifo", "/dev/null"] {
            assert!(open(&Streams { stdout: name.into(), ..Streams::default() }, (0, 0), NOBODY).is_err());
        }
    }

    #[test]
    fn a_clients_pipe_needs_no_file() {
        let (read, write) = pipe((0, 0)).unwrap();
        let name =
            |fd: &OwnedFd| format!("pipe://{}/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(fd));
        let streams = Streams { stdout: name(&write), stderr: name(&write), ..Streams::default() };
        let mut opened = open(&streams, (0, 0), NOBODY).unwrap();
        drop(write);
        for end in [opened.child.stdout.take(), opened.child.stderr.take()] {
            File::from(end.unwrap()).write_all(b"x").unwrap();
        }
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "xx", "both came, and then the end");
        let null = OwnedFd::from(File::open("/dev/null").unwrap());
        assert!(open(&Streams { stdout: name(&null), ..Streams::default() }, (0, 0), NOBODY).is_err());
    }

    /// A log directory that a container can write to leads nowhere else.
    #[test]
    fn planted_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let log = |path: &str, own| LogPath { path: at(path), own };
        for sub in ["pods/p/c", "elsewhere/c"] {
            std::fs::create_dir_all(at(sub)).unwrap();
        }
        let link = |to: &str, from: &str| std::os::unix::fs::symlink(at(to), at(from)).unwrap();
        link("victim", "pods/p/c/0.log");
        link("elsewhere/c", "pods/p/planted");
        link("pods", "by-admin");
        for (path, own) in [("pods/p/c/0.log", 1), ("pods/p/c/0.log", 3), ("pods/p/planted/0.log", 3)] {
            let error = open_log(&log(path, own)).unwrap_err();
            assert!(error.to_string().contains("planted"), "{path}: {error}");
        }
        assert!(!at("victim").exists() && !at("elsewhere/c/0.log").exists());
        assert!(open_log(&log("pods/p/c", 2)).is_err(), "a directory is no log");
        assert!(
            open_log(&log("by-admin/p/c/1.log", 3)).is_ok(),
            "above its own part the path is the client's"
        );
        assert!(at("pods/p/c/1.log").is_file());
        let error = open_log(&log("pods/p/absent/0.log", 3)).unwrap_err();
        assert!(error.to_string().contains("must exist"), "{error}");
    }
}
