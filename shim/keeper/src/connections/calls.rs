//! Open requests of a connection, a file each: `<connection>-<stream>` holds the frame as it came.
//!
//! `<connection>-torn` is there while a frame too large for one step is being read or written: who dies then leaves the
//! connection in the middle of it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(super) struct Calls {
    dir: PathBuf,
    connection: u64,
    open: BTreeSet<u32>,
}

impl Calls {
    pub(super) fn new(dir: &Path, connection: u64) -> Self {
        Self { dir: dir.into(), connection, open: BTreeSet::new() }
    }

    pub(super) fn connection(&self) -> u64 {
        self.connection
    }

    /// The frames of a former keeper, in the order in which they came.
    ///
    /// # Errors
    /// If the connection was left in the middle of a frame.
    pub(super) fn load(&mut self) -> io::Result<Vec<Vec<u8>>> {
        if self.torn().exists() {
            return Err(io::Error::other("the former keeper died in the middle of a large message"));
        }
        for (connection, stream) in entries(&self.dir)? {
            if connection == self.connection
                && let Some(stream) = stream
            {
                self.open.insert(stream);
            }
        }
        // A file may be half-written: then the frame is still in the socket, whole.
        let read = |stream: &u32| fs::read(self.file(*stream));
        self.open.iter().map(read).collect()
    }

    /// Writes a request down. One that cannot be is lost if we die before it is answered.
    pub(super) fn begun(&mut self, stream: u32, frame: &[u8]) {
        match fs::write(self.file(stream), frame) {
            Ok(()) => drop(self.open.insert(stream)),
            Err(error) => tracing::warn!(connection = self.connection, stream, "record a request: {error}"),
        }
    }

    /// The answer is with the client.
    pub(super) fn answered(&mut self, stream: u32) {
        if self.open.remove(&stream) {
            let _ = fs::remove_file(self.file(stream));
        }
    }

    /// The connection is over.
    pub(super) fn forget_all(&mut self) {
        for stream in std::mem::take(&mut self.open) {
            let _ = fs::remove_file(self.file(stream));
        }
        self.mend();
    }

    pub(super) fn tear(&self) {
        if let Err(error) = fs::write(self.torn(), "") {
            tracing::warn!(connection = self.connection, "record a large message: {error}");
        }
    }

    pub(super) fn mend(&self) {
        let _ = fs::remove_file(self.torn());
    }

    fn file(&self, stream: u32) -> PathBuf {
        self.dir.join(format!("{}-{stream}", self.connection))
    }

    fn torn(&self) -> PathBuf {
        self.dir.join(format!("{}-torn", self.connection))
    }
}

/// Removes what belongs to none of these connections.
pub(super) fn forget_others(dir: &Path, connections: &[u64]) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(parse);
        if name.is_none_or(|(connection, _)| !connections.contains(&connection)) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Some connection is in the middle of a large message.
pub(super) fn is_any_torn(dir: &Path) -> bool {
    entries(dir).is_ok_and(|all| all.iter().any(|(_, stream)| stream.is_none()))
}

fn entries(dir: &Path) -> io::Result<Vec<(u64, Option<u32>)>> {
    let names = fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| parse(&name)).collect())
}

/// Connection and stream; no stream for `torn`.
fn parse(name: &str) -> Option<(u64, Option<u32>)> {
    let (connection, stream) = name.split_once('-')?;
    let stream = if stream == "torn" { None } else { Some(stream.parse().ok()?) };
    Some((connection.parse().ok()?, stream))
}
