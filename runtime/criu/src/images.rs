//! The directories that criu works in: made when missing, and after a failure rid of what it made there but its log.

use crate::rpc::Options;
use anyhow::{Context, Result, anyhow};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// How many of the log's errors are quoted, the last ones.
const QUOTED: usize = 8;
/// More than any log that says something; of a longer one the end is read.
const LONGEST: u64 = 4 << 20;

/// Open directories of one checkpoint or restore.
#[derive(Debug)]
pub struct Images {
    images: PathBuf,
    handle: File,
    work: Option<(PathBuf, File)>,
    log: &'static str,
    /// What was there before us.
    before: BTreeSet<OsString>,
    made: bool,
}

impl Images {
    /// Opens both directories; `write` makes what is missing.
    pub fn open(images: &Path, work: Option<&Path>, log: &'static str, write: bool) -> Result<Self> {
        let made = write && make(images)?;
        let handle = File::open(images).with_context(|| format!("images in {}", images.display()))?;
        let work = match work {
            Some(path) => {
                make(path)?;
                Some((
                    path.to_owned(),
                    File::open(path).with_context(|| format!("work directory {}", path.display()))?,
                ))
            }
            None => None,
        };
        let images = fs::canonicalize(images).with_context(|| format!("images in {}", images.display()))?;
        let before = names(&images);
        Ok(Self { images, handle, work, log, before, made })
    }

    pub fn directory(&self) -> &Path {
        &self.images
    }

    /// Names them to criu.
    pub(crate) fn tell(&self, options: &mut Options) {
        options.images_dir_fd = self.handle.as_raw_fd();
        options.work_dir_fd = self.work.as_ref().map(|(_, handle)| handle.as_raw_fd());
        options.log_file = Some(self.log.to_owned());
    }

    /// Removes what has come into the image directory since it was opened, and the directory if it was made then; but not
    /// the log.
    pub fn discard(&self) {
        for name in names(&self.images).difference(&self.before).filter(|name| *name != self.log) {
            let path = self.images.join(name);
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
        if self.made {
            // Stays while the log is there.
            let _ = fs::remove_dir(&self.images);
        }
    }

    /// The error with what criu's log says of it.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let path = self.work.as_ref().map_or(&self.images, |(work, _)| work).join(self.log);
        let Ok(text) = read_end(&path) else { return error };
        let lines = errors(&text);
        if lines.is_empty() {
            return anyhow!("{error:#}; see {}", path.display());
        }
        anyhow!("{error:#}; {} says:\n{}", path.display(), lines.join("\n"))
    }
}

/// True if it was not there.
fn make(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map(|()| true).with_context(|| format!("make {}", path.display()))
}

fn names(path: &Path) -> BTreeSet<OsString> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
}

fn read_end(path: &Path) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LONGEST)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The lines that tell errors, numbered as in the log.
fn errors(log: &str) -> Vec<String> {
    let lines = log.lines().enumerate().filter(|(_, line)| line.contains("Error"));
    let mut found: Vec<String> = lines.map(|(at, line)| format!("{}: {}", at + 1, line.trim())).collect();
    found.split_off(found.len().saturating_sub(QUOTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_quoted_with_their_lines() {
        let log =
            "(00.1) fine\n(00.2) Error (criu/x.c:1): no\n(00.3) fine\n(00.4) Error (criu/y.c:2): worse\n";
        assert_eq!(errors(log), ["2: (00.2) Error (criu/x.c:1): no", "4: (00.4) Error (criu/y.c:2): worse"]);
        let many = "Error\n".repeat(20);
        assert_eq!(errors(&many).len(), QUOTED);
        assert!(errors(&many)[0].starts_with("13: "));
    }

    #[test]
    fn what_came_is_discarded_and_what_was_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let images = Images::open(&path, None, "dump.log", true).unwrap();
        fs::write(path.join("core-1.img"), "x").unwrap();
        images.discard();
        assert!(!path.exists(), "made by us");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("mine"), "x").unwrap();
        let images = Images::open(&path, None, "dump.log", true).unwrap();
        for name in ["core-1.img", "dump.log"] {
            fs::write(path.join(name), "Error here\n").unwrap();
        }
        images.discard();
        let said = images.explain(anyhow!("no")).to_string();
        assert!(said.starts_with("no; ") && said.ends_with("1: Error here"), "{said}");
        assert_eq!(names(&path).into_iter().collect::<Vec<_>>(), ["dump.log", "mine"]);
    }
}
