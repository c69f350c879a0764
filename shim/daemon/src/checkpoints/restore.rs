//! Containers made of checkpoints: CreateContainer with an archive or an image that holds one (CRI-CHK-05), RestorePod.

use super::archive::{CONFIG, IMAGES, LAYER, LOG, OURS, SPEC};
use super::contents::Contents;
use super::{check_pod, compare, criu, home};
use crate::containers::{ContainerRecord, remove_tree};
use crate::daemon::{Daemon, blocking};
use crate::error::{Error, Result};
use crate::pods::PodRecord;
use crate::rollback::Rollback;
use cri_proto::v1;
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use serde_json::Value;
use slipway_images::Image;
use slipway_runtime::rootfs;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// No link is followed, and nothing outside is reached.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// Where a checkpoint is.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A file of the host's.
    Archive(PathBuf),
    /// An image whose files are an unpacked archive.
    Image(Arc<Image>),
    /// An archive of a pod's checkpoint: the request describes what was frozen, and must be right about it. Every archive
    /// holds what the pod's containers share, and the first one brings it back.
    OfPod { archive: PathBuf, first: bool },
}

/// A container that is being made of one.
#[derive(Debug)]
pub(crate) struct Thawing {
    contents: Contents,
    /// What it was made of at first.
    pub(crate) image: Arc<Image>,
}

impl Thawing {
    /// See [`compare::adopt`].
    pub(crate) fn adopt(&self, spec: &mut Value) -> Result<()> {
        compare::adopt(spec, &self.contents.spec)
    }

    /// The directory of CRIU's images.
    pub(crate) fn images(&self) -> PathBuf {
        self.contents.images()
    }
}

impl Daemon {
    /// What an image field names, where it is no image to run.
    pub(crate) fn checkpoint_named(&self, image: &str) -> Option<Source> {
        if image.starts_with('/') {
            return Some(Source::Archive(image.into()));
        }
        self.images.find(image).filter(|image| image.checkpoint.is_some()).map(Source::Image)
    }

    /// Unpacks the checkpoint for the container `id`, and finds the image that this had.
    pub(crate) async fn thaw(
        self: &Arc<Self>,
        id: &str,
        source: &Source,
        config: &v1::ContainerConfig,
        pod: &PodRecord,
        rollback: &mut Rollback,
    ) -> Result<Thawing> {
        check_pod(pod)?;
        criu::usable(&self.config.file.checkpoints).await?;
        if let Source::Image(image) = source {
            self.may_restore(image)?;
            self.images.admit(image, config.image.as_ref().map_or("", |asked| &asked.image))?;
        }
        let dir = home(&self.config.root)?.join(id);
        let undo = dir.clone();
        rollback.push("frozen container", blocking(move || remove_tree(&undo)));
        let (daemon, from) = (Arc::clone(self), source.clone());
        let contents = blocking(move || {
            super::make(&dir)?;
            match &from {
                Source::Archive(path) | Source::OfPod { archive: path, .. } => unpack(path, &dir)?,
                Source::Image(image) => daemon.copy_files(image, &dir)?,
            }
            let contents = Contents::read(dir)?;
            if let Source::OfPod { first: false, .. } = from {
                contents.leave_shared()?;
            }
            Ok::<_, Error>(contents)
        });
        let contents = contents.await.map_err(|e| e.of(source))?;
        let image = self.image_of(&contents).await?;
        if let Source::OfPod { .. } = source {
            let ours = contents.ours.as_ref();
            let ours = ours.ok_or_else(|| Error::invalid("no slipway has made this checkpoint"))?;
            compare::describes(config, &ours.container)?;
            let named = config.image.as_ref().map(|i| i.image.as_str()).unwrap_or_default();
            if self.images.find(named).is_none_or(|found| found.id != image.id) {
                return Err(Error::invalid(format!(
                    "it was frozen with another image than {named:?}: {}",
                    image.id
                )));
            }
        }
        Ok(Thawing { contents, image })
    }

    /// Whoever may name an image in a pod decides by it what its processes may do: that is the node's to allow.
    fn may_restore(&self, image: &Image) -> Result<()> {
        if self.config.file.checkpoints.restore_images {
            return Ok(());
        }
        let name = image.repo_tags.first().or(image.repo_digests.first()).unwrap_or(&image.id);
        Err(Error::state(format!(
            "image {name} is a checkpoint of container {:?}: restored processes have the rights that they were frozen with, \
             whatever their pod allows; checkpoints.restore_images = true lets this node restore from images",
            image.checkpoint.as_deref().unwrap_or_default()
        )))
    }

    /// The image that the frozen container ran on, pulled where it is missing.
    async fn image_of(&self, contents: &Contents) -> Result<Arc<Image>> {
        let (id, name) = (&contents.config.rootfs_image_ref, &contents.config.rootfs_image_name);
        let find = || self.images.find(if id.is_empty() { name } else { id });
        let image = match find() {
            Some(image) => image,
            None if name.is_empty() => {
                return Err(Error::not_found(format!(
                    "image {id} of the frozen container is not in the store: pull it first"
                )));
            }
            None => {
                let pulled = self.images.pull(name, None, None).await;
                pulled.map_err(|e| Error::from(e).of("the image of the frozen container"))?;
                find().ok_or_else(|| {
                    Error::state(format!(
                        "image {name} is now another one than the frozen container's, which was {id}"
                    ))
                })?
            }
        };
        if image.is_artifact || image.checkpoint.is_some() {
            return Err(Error::invalid(format!(
                "image {name:?} of the frozen container is none that can run"
            )));
        }
        self.images.admit(&image, name)?;
        Ok(image)
    }

    /// The files of a checkpoint that is an image. Blocks.
    fn copy_files(&self, image: &Image, into: &Path) -> Result<()> {
        let view = rootfs::mount_overlay(&self.images.view(image)?)?;
        let known = [CONFIG, SPEC, OURS, LAYER, LOG];
        let is_wanted = |name: &String| known.contains(&name.as_str()) || name.starts_with("volume-");
        for name in names(&view, ".")?.into_iter().filter(is_wanted) {
            copy(&view, &name, into)?;
        }
        super::make(&into.join(IMAGES))?;
        for name in names(&view, IMAGES)? {
            copy(&view, &format!("{IMAGES}/{name}"), into)?;
        }
        Ok(())
    }

    /// Gives a container that has its layer and volumes already what was in them, and its log.
    pub(crate) async fn fill(
        self: &Arc<Self>,
        thawing: &Arc<Thawing>,
        record: &ContainerRecord,
        volumes: &[(PathBuf, PathBuf)],
        rollback: &mut Rollback,
    ) -> Result<()> {
        let (daemon, thawing, id) = (Arc::clone(self), Arc::clone(thawing), record.id.clone());
        let targets: Vec<PathBuf> = volumes.iter().map(|(_, target)| target.clone()).collect();
        let log = PathBuf::from(&record.log_path);
        let own = own_parts(record);
        let written = blocking(move || {
            if let Some(layer) = thawing.contents.layer()? {
                daemon.images.restore_layer(&id, layer)?;
            }
            for (number, target) in targets.iter().enumerate() {
                if let Some(content) = thawing.contents.volume(target)? {
                    daemon.images.restore_volume(&id, number, content)?;
                }
            }
            match thawing.contents.log()? {
                Some(text) if !log.as_os_str().is_empty() => put_log(&log, own, text),
                _ => Ok(false),
            }
        });
        if written.await? {
            let log = record.log_path.clone();
            rollback.push(
                "log",
                blocking(move || {
                    std::fs::remove_file(&log).map_err(|e| Error::io("remove", log.as_ref(), &e))
                }),
            );
        }
        Ok(())
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Archive(path) | Self::OfPod { archive: path, .. } => {
                write!(f, "checkpoint {}", path.display())
            }
            Self::Image(image) => write!(f, "checkpoint image {}", image.id),
        }
    }
}

fn unpack(archive: &Path, into: &Path) -> Result<()> {
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(archive);
    let file = opened.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::not_found("there is no such file"),
        _ => Error::io("open", archive, &e),
    })?;
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(Error::invalid("it is no plain file"));
    }
    // A damaged one is the client's, not a loss of data of ours.
    slipway_images::unpack_archive(file, into).map_err(|e| match e.kind {
        slipway_images::Kind::Corrupt => Error::invalid(e.to_string()),
        _ => e.into(),
    })
}

fn names(view: &OwnedFd, directory: &str) -> Result<Vec<String>> {
    let fail =
        |e: Errno| Error::invalid(format!("the image has no directory {directory} of a checkpoint: {e}"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat2(view, directory, flags, Mode::empty(), INSIDE).map_err(fail)?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&fd).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn copy(view: &OwnedFd, name: &str, into: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat2(view.as_fd(), name, flags, Mode::empty(), INSIDE);
    let mut from: File = opened.map_err(|e| Error::invalid(format!("{name}: {e}")))?.into();
    if !from.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(Error::invalid(format!("{name} is no plain file")));
    }
    let to = into.join(name);
    let mut file = File::create_new(&to).map_err(|e| Error::io("write", &to, &e))?;
    io::copy(&mut from, &mut file).map(drop).map_err(|e| Error::io("write", &to, &e))
}

/// How many parts of the log's path belong to the pod, where a container may have planted links.
fn own_parts(record: &ContainerRecord) -> usize {
    Path::new(&record.config.log_path)
        .components()
        .filter(|c| matches!(c, std::path::Component::Normal(_)))
        .count()
        + 1
}

/// The log of a running container for reading; None if there is none. No planted link is followed, no fifo waited for.
pub(super) fn open_log(record: &ContainerRecord) -> Result<Option<File>> {
    let log = Path::new(&record.log_path);
    let base = log.ancestors().nth(own_parts(record)).unwrap_or(Path::new("/"));
    let below = log.strip_prefix(base).unwrap_or(log);
    let fail = |e: io::Error| Error::io("read the log", log, &e);
    let base = File::open(base).map_err(fail)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: File = match openat2(&base, below, flags, Mode::empty(), INSIDE) {
        Ok(fd) => fd.into(),
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(fail(e.into())),
    };
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(Error::invalid(format!("the log {} is no plain file", log.display())));
    }
    Ok(Some(file))
}

/// Begins the log with what the frozen container had written; one that is there already stays as it is. True if it was made.
fn put_log(log: &Path, own: usize, mut text: File) -> Result<bool> {
    let base = log.ancestors().nth(own).unwrap_or(Path::new("/"));
    let below = log.strip_prefix(base).unwrap_or(log);
    let fail = |e: io::Error| Error::io("restore the log", log, &e);
    let base = File::open(base).map_err(fail)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    // As the keeper makes it.
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
    let mut file: File = match openat2(&base, below, flags, mode, INSIDE) {
        Ok(fd) => fd.into(),
        Err(Errno::EXIST) => return Ok(false),
        Err(e) => return Err(fail(e.into())),
    };
    if let Err(error) = io::copy(&mut text, &mut file) {
        // A part of it would be taken for the whole the next time.
        let _ = std::fs::remove_file(log);
        return Err(fail(error));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-CHK-05, CRI-LOG-01: a log is begun where it belongs, and nowhere else.
    #[test]
    fn logs_are_made_inside_only() {
        let dir = tempfile::tempdir().expect("dir");
        let text = || {
            let path = dir.path().join("text");
            std::fs::write(&path, "line\n").expect("write");
            File::open(path).expect("open")
        };
        std::fs::create_dir_all(dir.path().join("pod/main")).expect("mkdir");
        let log = dir.path().join("pod/main/0.log");
        assert_eq!(put_log(&log, 3, text()), Ok(true));
        assert_eq!(std::fs::read_to_string(&log).expect("read"), "line\n");
        std::fs::write(&log, "mine").expect("write");
        assert_eq!(put_log(&log, 3, text()), Ok(false));
        assert_eq!(std::fs::read_to_string(&log).expect("read"), "mine");
        std::os::unix::fs::symlink(dir.path(), dir.path().join("pod/out")).expect("link");
        assert!(put_log(&dir.path().join("pod/out/0.log"), 3, text()).is_err());
        assert!(!dir.path().join("0.log").exists());
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let into = dir.path().join("into");
        std::fs::create_dir(&into).expect("mkdir");
        let refused = |path: &Path| unpack(path, &into).expect_err("refused").code();
        assert_eq!(refused(Path::new("/no/such/file")), tonic::Code::NotFound);
        assert_eq!(refused(dir.path()), tonic::Code::InvalidArgument);
        std::fs::write(dir.path().join("text"), "no archive at all".repeat(100)).expect("write");
        assert_eq!(refused(&dir.path().join("text")), tonic::Code::InvalidArgument);
    }
}
