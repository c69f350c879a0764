//! A pod's directory on the host: `<root>/pods/<uid>/{volumes,logs,containers}`.
//!
//! Owns making and removing it, with the tmpfs mounts of memory volumes in it. Never touches anything outside: what a
//! hostPath names is checked or created, never removed.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cri_proto::v1 as cri;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use prost::Message as _;

use super::manifest::{HostPath, HostPathType};
use super::volumes::VolumePlan;

pub(crate) fn of(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

/// Held while a pod is brought up: until its sandbox is listed, nothing else shows that its directory is in use.
pub(crate) type Claim = Flock<fs::File>;

/// Makes the pod's directory and those in it. Fails if it exists: a uid is used once.
pub(crate) fn create(dir: &Path) -> Result<Claim> {
    let parent = dir.parent().context("a pod's directory has a parent")?;
    private().recursive(true).create(parent).with_context(|| format!("create {}", parent.display()))?;
    private().create(dir).with_context(|| format!("create {}", dir.display()))?;
    let claim =
        claim(dir)?.with_context(|| format!("{} was taken for an orphan: try again", dir.display()))?;
    for below in ["volumes", "logs", "containers"] {
        let path = dir.join(below);
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .with_context(|| format!("create {}", path.display()))?;
    }
    Ok(claim)
}

/// None: somebody else holds it, or it is gone.
fn claim(dir: &Path) -> Result<Option<Claim>> {
    let file = match fs::File::open(dir) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("open {}", dir.display())),
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(claim) => Ok(Some(claim)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno).with_context(|| format!("lock {}", dir.display())),
    }
}

/// Directories whose pod seems to be no more (removed by another client than `slipway rm`, or never finished by a `run`
/// that was killed), each claimed. `is_known`: whether a sandbox with this uid exists. The caller asks again with the
/// claims in hand: a pod may have come up between its question and the claim.
pub(crate) fn orphans(root: &Path, is_known: impl Fn(&str) -> bool) -> Result<Vec<(String, Claim)>> {
    let entries = match fs::read_dir(root.join("pods")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", root.join("pods").display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.context("read the directory of pods")?;
        let Ok(uid) = entry.file_name().into_string() else { continue };
        // What `create` has not finished, or others have put there, is left alone.
        if is_known(&uid) || !entry.path().join("containers").is_dir() {
            continue;
        }
        if let Some(claim) = claim(&entry.path())? {
            found.push((uid, claim));
        }
    }
    Ok(found)
}

fn private() -> fs::DirBuilder {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    builder
}

/// The directory of a container's log files, which the runtime expects to be there (CRI-LOG-01).
pub(crate) fn create_log_dir(dir: &Path, container: &str) -> Result<()> {
    let path = dir.join("logs").join(container);
    fs::DirBuilder::new().mode(0o755).create(&path).with_context(|| format!("create {}", path.display()))
}

/// Makes an emptyDir, or checks (and where its type says so makes) a hostPath.
pub(crate) fn prepare(name: &str, plan: &VolumePlan) -> Result<()> {
    match plan {
        VolumePlan::EmptyDir { path, memory, size, group } => {
            empty_dir(path, *memory, *size, *group).with_context(|| format!("volume {name}"))
        }
        VolumePlan::HostPath(host) => {
            host_path(host).with_context(|| format!("volume {name}: hostPath {}", host.path))
        }
    }
}

/// World-writable as in Kubernetes; a fsGroup owns it and passes itself on to what is made inside.
fn empty_dir(path: &Path, memory: bool, size: Option<i64>, group: Option<i64>) -> Result<()> {
    private().create(path).with_context(|| format!("create {}", path.display()))?;
    if memory {
        let size = size.map_or_else(String::new, |size| format!(",size={size}"));
        let options = format!("mode=0777{size}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))
            .with_context(|| format!("mount tmpfs ({options}) on {}", path.display()))?;
    }
    let mut mode = 0o777;
    if let Some(group) = group {
        let group = u32::try_from(group).context("fsGroup")?;
        chown(path, None, Some(group)).with_context(|| format!("chgrp {group} {}", path.display()))?;
        mode |= 0o2000;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("chmod {}", path.display()))
}

fn host_path(host: &HostPath) -> Result<()> {
    let path = Path::new(&host.path);
    let found = match fs::metadata(path) {
        Ok(found) => Some(found.file_type()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).context("look at it"),
    };
    let Some(kind) = found else {
        return match host.r#type {
            // CRI-MNT-03: the runtime answers for it.
            HostPathType::Unchecked => Ok(()),
            HostPathType::DirectoryOrCreate => {
                fs::DirBuilder::new().recursive(true).mode(0o755).create(path).context("create the directory")
            }
            HostPathType::FileOrCreate => {
                let file =
                    fs::File::create_new(path).context("create the file (its directory must exist)")?;
                file.set_permissions(fs::Permissions::from_mode(0o644)).context("chmod")
            }
            wanted => bail!("does not exist; its type is {wanted:?}"),
        };
    };
    let fits = match host.r#type {
        HostPathType::Unchecked => true,
        HostPathType::DirectoryOrCreate | HostPathType::Directory => kind.is_dir(),
        HostPathType::FileOrCreate | HostPathType::File => kind.is_file(),
        HostPathType::Socket => kind.is_socket(),
        HostPathType::CharDevice => kind.is_char_device(),
        HostPathType::BlockDevice => kind.is_block_device(),
    };
    ensure!(fits, "exists, but is no {:?}", host.r#type);
    Ok(())
}

/// Makes the directory `sub` below a volume's `root` where it is missing. A symbolic link that leads out of the volume
/// (an earlier container may have made one) is refused.
pub(crate) fn prepare_sub_path(root: &Path, sub: &str) -> Result<()> {
    let real_root =
        root.canonicalize().with_context(|| format!("subPath {sub}: look at {}", root.display()))?;
    let mut at = real_root.clone();
    for part in Path::new(sub) {
        at.push(part);
        match fs::symlink_metadata(&at) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                fs::DirBuilder::new()
                    .mode(0o755)
                    .create(&at)
                    .with_context(|| format!("subPath: create {}", at.display()))?;
                let mode = fs::metadata(&real_root)
                    .map(|found| found.permissions())
                    .context("subPath: volume mode")?;
                fs::set_permissions(&at, mode).with_context(|| format!("subPath: chmod {}", at.display()))?;
            }
            Err(error) => return Err(error).with_context(|| format!("subPath: look at {}", at.display())),
        }
        at = at.canonicalize().with_context(|| format!("subPath {sub}: resolve {}", at.display()))?;
        ensure!(at.starts_with(&real_root), "subPath {sub} leads out of the volume, to {}", at.display());
    }
    Ok(())
}

/// Keeps the request that made a container, for the restarter: written whole or not at all.
pub(crate) fn save_request(dir: &Path, container: &str, request: &cri::CreateContainerRequest) -> Result<()> {
    let path = request_path(dir, container);
    let temporary = path.with_extension("new");
    fs::write(&temporary, request.encode_to_vec())
        .with_context(|| format!("write {}", temporary.display()))?;
    fs::rename(&temporary, &path).with_context(|| format!("rename to {}", path.display()))
}

/// The saved request; None when this container is not to be restarted.
pub(crate) fn load_request(dir: &Path, container: &str) -> Result<Option<cri::CreateContainerRequest>> {
    let path = request_path(dir, container);
    match fs::read(&path) {
        Ok(bytes) => {
            let request = cri::CreateContainerRequest::decode(bytes.as_slice());
            Ok(Some(request.with_context(|| format!("{} is damaged", path.display()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// No container of this pod is restarted from now on: it is about to be removed. None there is fine.
pub(crate) fn forget_requests(dir: &Path) -> Result<()> {
    let requests = dir.join("containers");
    let entries = match fs::read_dir(&requests) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("read {}", requests.display())),
    };
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", requests.display()))?.path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn request_path(dir: &Path, container: &str) -> PathBuf {
    dir.join("containers").join(format!("{container}.request"))
}

/// Removes the pod's directory with everything in it, memory volumes unmounted first. None there is fine.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    let volumes = match fs::read_dir(dir.join("volumes")) {
        Ok(entries) => {
            entries.collect::<Result<Vec<_>, _>>().with_context(|| format!("read {}", dir.display()))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", dir.display())),
    };
    for volume in volumes {
        let path = volume.path();
        // Lazily: a container's leftover in it must not hold up the removal. EINVAL: nothing is mounted there.
        match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(errno) => return Err(errno).with_context(|| format!("unmount {}", path.display())),
        }
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn empty(path: &Path, memory: bool, size: Option<i64>, group: Option<i64>) -> VolumePlan {
        VolumePlan::EmptyDir { path: path.to_owned(), memory, size, group }
    }

    #[test]
    fn a_pods_directory_comes_and_goes_with_its_mounts() {
        let root = tempfile::tempdir().unwrap();
        let dir = of(root.path(), "u-1");
        let _claim = create(&dir).unwrap();
        assert!(create(&dir).is_err(), "a uid is used once");
        let (disk, memory) = (dir.join("volumes/disk"), dir.join("volumes/memory"));
        prepare("disk", &empty(&disk, false, None, Some(4321))).unwrap();
        prepare("memory", &empty(&memory, true, Some(1 << 20), None)).unwrap();
        let found = fs::metadata(&disk).unwrap();
        assert_eq!((found.mode() & 0o7777, found.gid()), (0o2777, 4321));
        assert_eq!(fs::metadata(&memory).unwrap().mode() & 0o7777, 0o777);
        let limit = nix::sys::statvfs::statvfs(&memory).unwrap();
        assert_eq!(limit.blocks() * limit.fragment_size(), 1 << 20);
        fs::write(memory.join("full"), vec![1; 2 << 20]).expect_err("the size limit holds");
        fs::write(disk.join("file"), "x").unwrap();

        remove(&dir).unwrap();
        remove(&dir).unwrap();
        assert!(!dir.exists());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*dir.to_string_lossy()), "nothing stays mounted");
    }

    #[test]
    fn host_paths_are_what_their_type_says() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str, r#type| {
            let path = root.path().join(name).display().to_string();
            VolumePlan::HostPath(HostPath { path, r#type })
        };
        prepare("v", &at("a/b", HostPathType::DirectoryOrCreate)).unwrap();
        prepare("v", &at("a/f", HostPathType::FileOrCreate)).unwrap();
        prepare("v", &at("a/b", HostPathType::Directory)).unwrap();
        prepare("v", &at("none", HostPathType::Unchecked)).unwrap();
        let error = |plan| format!("{:#}", prepare("v", &plan).unwrap_err());
        assert!(error(at("a/b", HostPathType::File)).contains("is no File"));
        assert!(error(at("a/f", HostPathType::Socket)).contains("is no Socket"));
        assert!(error(at("none", HostPathType::Directory)).contains("does not exist"));
        let null =
            VolumePlan::HostPath(HostPath { path: "/dev/null".into(), r#type: HostPathType::CharDevice });
        prepare("v", &null).unwrap();
        assert!(!root.path().join("none").exists(), "a check makes nothing");
    }

    #[test]
    fn a_sub_path_is_made_inside_and_never_leads_out() {
        let root = tempfile::tempdir().unwrap();
        let (volume, outside) = (root.path().join("volume"), root.path().join("outside"));
        fs::create_dir(&volume).unwrap();
        fs::create_dir(&outside).unwrap();
        prepare_sub_path(&volume, "a/b").unwrap();
        prepare_sub_path(&volume, "a/b").unwrap();
        assert!(volume.join("a/b").is_dir());
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        let error = format!("{:#}", prepare_sub_path(&volume, "link/x").unwrap_err());
        assert!(error.contains("leads out"), "{error}");
        assert!(!outside.join("x").exists(), "nothing was made outside");
    }

    #[test]
    fn an_orphan_is_what_nobody_knows_and_nobody_holds() {
        let root = tempfile::tempdir().unwrap();
        let uids = |found: Vec<(String, Claim)>| found.into_iter().map(|(uid, _)| uid).collect::<Vec<_>>();
        assert!(orphans(root.path(), |_| false).unwrap().is_empty());
        let [known, held, gone] = ["known", "held", "gone"].map(|uid| of(root.path(), uid));
        drop(create(&known).unwrap());
        let claim = create(&held).unwrap();
        drop(create(&gone).unwrap());
        fs::create_dir(of(root.path(), "not-ours")).unwrap();
        let is_known = |uid: &str| uid == "known";
        let first = orphans(root.path(), is_known).unwrap();
        assert!(orphans(root.path(), is_known).unwrap().is_empty(), "claimed by the first");
        assert_eq!(uids(first), ["gone"]);
        drop(claim);
        let mut both = uids(orphans(root.path(), is_known).unwrap());
        both.sort();
        assert_eq!(both, ["gone", "held"]);
    }

    #[test]
    fn a_saved_request_comes_back_and_a_damaged_one_is_named() {
        let root = tempfile::tempdir().unwrap();
        let dir = of(root.path(), "u");
        create(&dir).unwrap();
        let request = cri::CreateContainerRequest { pod_sandbox_id: "s".into(), ..Default::default() };
        assert_eq!(load_request(&dir, "main").unwrap(), None);
        save_request(&dir, "main", &request).unwrap();
        assert_eq!(load_request(&dir, "main").unwrap(), Some(request));
        fs::write(dir.join("containers/main.request"), [0xff; 9]).unwrap();
        assert!(format!("{:#}", load_request(&dir, "main").unwrap_err()).contains("main.request is damaged"));
        forget_requests(&dir).unwrap();
        assert_eq!(load_request(&dir, "main").unwrap(), None);
        forget_requests(&of(root.path(), "none")).unwrap();
    }
}
