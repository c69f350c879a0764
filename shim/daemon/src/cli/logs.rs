//! `slipway logs`, and following what containers write.
//!
//! Owns reading a growing log file through rotation and restarts. The file's format is `logfile`'s.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cri_proto::v1 as cri;

use super::client::{Client, attempt, container_name, is_ready};
use super::logfile::{Joiner, Stream, tail_offset};
use super::translate::RESTART_POLICY;

/// How long a reader at the end of a file sleeps.
const PAUSE: Duration = Duration::from_millis(100);
/// CRI-LOG-17: how often the container's state is asked for while nothing comes.
const RECHECK: Duration = Duration::from_secs(1);
const BLOCK: usize = 64 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A pod, or a container (name or id)
    #[arg(value_name = "POD|CONTAINER")]
    target: String,
    /// Go on with what is written from now on, until the containers have ended
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines of each container
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// Only this container of the pod
    #[arg(short, long)]
    container: Option<String>,
}

pub(crate) async fn run(client: &mut Client, args: &Args) -> Result<()> {
    let found = client.find_containers(&args.target, args.container.as_deref()).await?;
    let newest = newest_by_name(found);
    let several = newest.len() > 1;
    let mut readers = Vec::new();
    for container in newest {
        let prefix = several.then(|| container_name(&container).to_owned());
        let status =
            client.container_status(&container.id).await?.context("the container was removed just now")?;
        let log = Log { path: PathBuf::from(&status.log_path), prefix, tail: args.tail };
        ensure!(!status.log_path.is_empty(), "container {} writes no log", container_name(&container));
        if args.follow {
            let client = client.clone();
            readers.push(tokio::spawn(async move { follow(client, container, log).await }));
        } else {
            log.print()?;
        }
    }
    for reader in readers {
        reader.await.context("a log reader ended by itself")??;
    }
    Ok(())
}

/// Of containers with one name (restarts) only the newest, in the order of creation.
fn newest_by_name(containers: Vec<cri::Container>) -> Vec<cri::Container> {
    let mut newest: Vec<cri::Container> = Vec::new();
    for container in containers {
        match newest.iter_mut().find(|other| container_name(other) == container_name(&container)) {
            Some(other) => *other = container,
            None => newest.push(container),
        }
    }
    newest
}

/// One container's log file and how it is shown.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) path: PathBuf,
    /// Written before each line, for telling containers apart.
    pub(crate) prefix: Option<String>,
    /// Only so many lines of what is there at the beginning.
    pub(crate) tail: Option<usize>,
}

impl Log {
    /// What is in the file now.
    fn print(&self) -> Result<()> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            // Nothing was started yet, so nothing was written.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("open {}", self.path.display())),
        };
        let mut reader = Reader::new(file, self)?;
        while reader.step(self)? {}
        reader.finish(self)
    }

    fn write(&self, stream: Stream, line: &[u8]) -> Result<()> {
        let mut text = Vec::with_capacity(line.len() + 32);
        if let Some(prefix) = &self.prefix {
            text.extend_from_slice(format!("[{prefix}] ").as_bytes());
        }
        text.extend_from_slice(line);
        if self.prefix.is_some() && !line.ends_with(b"\n") {
            text.push(b'\n');
        }
        let written = match stream {
            Stream::Stdout => std::io::stdout().lock().write_all(&text),
            Stream::Stderr => std::io::stderr().lock().write_all(&text),
        };
        written.context("write to standard output")
    }
}

/// An open log file and what was read of its last line.
#[derive(Debug)]
struct Reader {
    file: File,
    rest: Vec<u8>,
    joiner: Joiner,
}

impl Reader {
    fn new(mut file: File, log: &Log) -> Result<Self> {
        if let Some(count) = log.tail {
            let at = tail_offset(&mut file, count).and_then(|at| file.seek(SeekFrom::Start(at)));
            at.with_context(|| format!("read {}", log.path.display()))?;
        }
        Ok(Self { file, rest: Vec::new(), joiner: Joiner::default() })
    }

    /// Reads and prints one block; false at the end of the file.
    fn step(&mut self, log: &Log) -> Result<bool> {
        let before = self.rest.len();
        self.rest.resize(before + BLOCK, 0);
        let read = self
            .file
            .read(&mut self.rest[before..])
            .with_context(|| format!("read {}", log.path.display()))?;
        self.rest.truncate(before + read);
        let mut start = 0;
        while let Some(length) = self.rest[start..].iter().position(|&byte| byte == b'\n') {
            if let Some((stream, line)) = self.joiner.push(&self.rest[start..start + length]) {
                log.write(stream, &line)?;
            }
            start += length + 1;
        }
        self.rest.drain(..start);
        Ok(read > 0)
    }

    fn finish(&mut self, log: &Log) -> Result<()> {
        self.joiner.finish().iter().try_for_each(|(stream, line)| log.write(*stream, line))
    }

    /// After rotation the path names another file; after a truncation this one is shorter than what was read.
    fn reopen_if_rotated(&mut self, path: &Path) -> Result<bool> {
        let own = self.file.metadata().context("stat the open log file")?;
        if own.len() < self.file.stream_position().context("seek")? {
            self.file.seek(SeekFrom::Start(0)).context("seek")?;
            return Ok(true);
        }
        let Ok(named) = std::fs::metadata(path) else { return Ok(false) };
        if (named.dev(), named.ino()) == (own.dev(), own.ino()) {
            return Ok(false);
        }
        match File::open(path) {
            Ok(file) => {
                self.file = file;
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }
}

/// The end of a log file as text, both streams.
pub(crate) fn last_lines(path: &Path, count: usize) -> Result<String> {
    let context = || format!("read {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let at = tail_offset(&mut file, count).with_context(context)?;
    file.seek(SeekFrom::Start(at)).with_context(context)?;
    let mut bytes = Vec::new();
    file.take(BLOCK as u64).read_to_end(&mut bytes).with_context(context)?;
    let mut joiner = Joiner::default();
    let lines = bytes.split(|&byte| byte == b'\n').filter_map(|line| joiner.push(line));
    let mut text: Vec<u8> = lines.flat_map(|(_, line)| line).collect();
    text.extend(joiner.finish().into_iter().flat_map(|(_, line)| line));
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Prints a container's log as it grows. Returns when the container has ended and all of its log is printed; where the
/// pod's restart policy brings up a successor, goes on with that one.
pub(crate) async fn follow(mut client: Client, mut container: cri::Container, mut log: Log) -> Result<()> {
    loop {
        follow_one(&mut client, &container.id, &log).await?;
        let Some(next) = successor(&mut client, &container).await? else { return Ok(()) };
        let status = client.container_status(&next.id).await?;
        container = next;
        let Some(status) = status else { continue };
        log = Log { path: PathBuf::from(status.log_path), tail: None, ..log };
    }
}

async fn follow_one(client: &mut Client, id: &str, log: &Log) -> Result<()> {
    let mut reader: Option<Reader> = None;
    let mut asked = Instant::now();
    let mut ended = has_ended(client, id).await;
    loop {
        if reader.is_none() {
            reader = match File::open(&log.path) {
                Ok(file) => Some(Reader::new(file, log)?),
                Err(_) => None,
            };
        }
        if let Some(reader) = &mut reader {
            while reader.step(log)? {
                tokio::task::yield_now().await;
            }
            if reader.reopen_if_rotated(&log.path)? {
                continue;
            }
        }
        // All that was written before the end was seen has been read by now (CRI-LOG-15).
        if ended {
            return reader.map_or(Ok(()), |mut reader| reader.finish(log));
        }
        if asked.elapsed() >= RECHECK {
            ended = has_ended(client, id).await;
            asked = Instant::now();
            if ended {
                continue;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A daemon that does not answer says nothing about the container.
async fn has_ended(client: &mut Client, id: &str) -> bool {
    match client.container_status(id).await {
        Ok(Some(status)) => status.state == i32::from(cri::ContainerState::ContainerExited),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Waits for the next attempt of an ended container; None when there will be none.
async fn successor(client: &mut Client, ended: &cri::Container) -> Result<Option<cri::Container>> {
    loop {
        let Ok(sandboxes) = client.sandboxes().await else {
            tokio::time::sleep(RECHECK).await;
            continue;
        };
        let pod = sandboxes.iter().find(|sandbox| sandbox.id == ended.pod_sandbox_id && is_ready(sandbox));
        let Some(policy) = pod.and_then(|pod| pod.annotations.get(RESTART_POLICY)) else { return Ok(None) };
        let mut siblings = client.containers(Some(&ended.pod_sandbox_id)).await?;
        siblings.retain(|sibling| container_name(sibling) == container_name(ended));
        if let Some(next) = siblings.iter().find(|sibling| attempt(sibling) > attempt(ended)) {
            return Ok(Some(next.clone()));
        }
        if policy != "Always" {
            match client.container_status(&ended.id).await {
                Ok(Some(status)) if status.exit_code == 0 => return Ok(None),
                _ => {}
            }
        }
        tokio::time::sleep(RECHECK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_goes_on_after_rotation_and_truncation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = Log { path: path.clone(), prefix: None, tail: None };
        std::fs::write(&path, "t stdout F old\nt stdout P half").unwrap();
        let mut reader = Reader::new(File::open(&path).unwrap(), &log).unwrap();
        while reader.step(&log).unwrap() {}
        assert_eq!(reader.rest, b"t stdout P half", "an unfinished line waits");
        assert!(!reader.reopen_if_rotated(&path).unwrap());

        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        assert!(!reader.reopen_if_rotated(&path).unwrap(), "the new file is not there yet");
        std::fs::write(&path, "t stdout F new\n").unwrap();
        assert!(reader.reopen_if_rotated(&path).unwrap());
        while reader.step(&log).unwrap() {}
        std::fs::write(&path, "").unwrap();
        assert!(reader.reopen_if_rotated(&path).unwrap(), "truncated");
    }

    #[test]
    fn of_restarted_containers_the_newest_counts() {
        let container = |name: &str, attempt| cri::Container {
            id: format!("{name}{attempt}"),
            metadata: Some(cri::ContainerMetadata { name: name.into(), attempt }),
            ..Default::default()
        };
        let newest = newest_by_name(vec![container("a", 0), container("b", 0), container("a", 1)]);
        assert_eq!(newest.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["a1", "b0"]);
    }
}
