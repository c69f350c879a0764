//! Plugins that we start ourselves: executables `NN-name` of one directory (NRI-02, NRI-03, NRI-40).

use crate::error::{Error, Kind, Result};
use crate::link;
use command_fds::{CommandFdExt, FdMapping};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// Where a launched plugin finds its connection.
const SOCKET: i32 = 3;

/// One that is to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Installed {
    pub(crate) path: PathBuf,
    pub(crate) index: String,
    pub(crate) name: String,
}

/// All of `dir`, by name. What is no plugin is named in the log and left alone.
pub(crate) fn discover(dir: &Path) -> Vec<Installed> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::error!("NRI plugin directory {}: {error}", dir.display());
            }
            return Vec::new();
        }
    };
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).filter(is_program).collect();
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        match installed(&path) {
            Ok(plugin) => found.push(plugin),
            Err(why) => tracing::error!("NRI plugin {} is not started: {why}", path.display()),
        }
    }
    found
}

fn installed(path: &Path) -> Result<Installed, String> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let (index, name) = file.split_once('-').ok_or("its name is not NN-name")?;
    link::check(index, name)?;
    if starts_with(path, b"\0asm") {
        return Err("it is WebAssembly, which is not supported: install a native build of it".into());
    }
    Ok(Installed { path: path.to_owned(), index: index.into(), name: name.into() })
}

fn starts_with(path: &Path, magic: &[u8]) -> bool {
    use std::io::Read;
    let mut head = vec![0; magic.len()];
    std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut head)).is_ok() && head == magic
}

/// The configuration of a launched plugin; empty when there is none.
///
/// # Errors
/// A file that is there and cannot be read: a plugin must not run without what was written for it.
pub(crate) fn config(dir: &Path, plugin: &Installed) -> Result<String> {
    for file in [format!("{}-{}.conf", plugin.index, plugin.name), format!("{}.conf", plugin.name)] {
        let path = dir.join(file);
        match std::fs::read_to_string(&path) {
            Ok(text) => return Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("read", &path, error)),
        }
    }
    Ok(String::new())
}

/// Starts it with a connection as descriptor 3, and answers our end. What it prints goes where ours goes.
///
/// # Errors
/// Io.
pub(crate) fn start(plugin: &Installed) -> Result<(UnixStream, Child)> {
    let failed =
        |e: &dyn std::fmt::Display| Error::new(Kind::Io, format!("start {}: {e}", plugin.path.display()));
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|e| failed(&e))?;
    ours.set_nonblocking(true).map_err(|e| failed(&e))?;
    let ours = UnixStream::from_std(ours).map_err(|e| failed(&e))?;
    let mut command = Command::new(&plugin.path);
    command
        .env_clear()
        .env("NRI_PLUGIN_NAME", &plugin.name)
        .env("NRI_PLUGIN_IDX", &plugin.index)
        .env("NRI_PLUGIN_SOCKET", SOCKET.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let mapping = FdMapping { parent_fd: OwnedFd::from(theirs), child_fd: SOCKET };
    command.fd_mappings(vec![mapping]).map_err(|e| failed(&e))?;
    let child = command.spawn().map_err(|e| failed(&e))?;
    Ok((ours, child))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(dir: &Path, name: &str, content: &[u8], mode: u32) {
        std::fs::write(dir.join(name), content).expect("write");
        std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(mode)).expect("mode");
    }

    /// NRI-02, NRI-11, NRI-40.
    #[test]
    fn programs_by_name_and_nothing_else() {
        let dir = tempfile::tempdir().expect("dir");
        program(dir.path(), "10-b", b"#!/bin/sh", 0o755);
        program(dir.path(), "00-a-long.name", b"#!/bin/sh", 0o755);
        program(dir.path(), "20-no-program", b"text", 0o644);
        program(dir.path(), "README", b"#!/bin/sh", 0o755);
        program(dir.path(), "30-web", b"\0asm\x01\0\0\0", 0o755);
        std::fs::create_dir(dir.path().join("40-dir")).expect("dir");
        let found: Vec<_> = discover(dir.path()).into_iter().map(|p| (p.index, p.name)).collect();
        assert_eq!(found, [("00".into(), "a-long.name".into()), ("10".into(), "b".into())]);
        assert!(installed(&dir.path().join("30-web")).is_err_and(|why| why.contains("WebAssembly")));
        assert!(discover(&dir.path().join("absent")).is_empty());
    }

    /// NRI-02.
    #[test]
    fn the_own_file_comes_before_the_common_one() {
        let dir = tempfile::tempdir().expect("dir");
        let plugin = Installed { path: "/x".into(), index: "10".into(), name: "b".into() };
        assert_eq!(config(dir.path(), &plugin), Ok(String::new()));
        std::fs::write(dir.path().join("b.conf"), "common").expect("write");
        assert_eq!(config(dir.path(), &plugin), Ok("common".into()));
        std::fs::write(dir.path().join("10-b.conf"), "own").expect("write");
        assert_eq!(config(dir.path(), &plugin), Ok("own".into()));
    }
}
