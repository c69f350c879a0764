//! Who a container runs as: request, image, /etc/passwd and /etc/group of the image (CRI-USR-*).

use crate::error::{Error, Result};
use cri_proto::v1;
use slipway_images::{Image, Store};
use slipway_runtime::rootfs;
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Resolved ids. `groups` has the primary gid too (CRI-USR-10).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

impl Identity {
    pub(crate) fn to_cri(&self) -> v1::LinuxContainerUser {
        v1::LinuxContainerUser {
            uid: self.uid.into(),
            gid: self.gid.into(),
            supplemental_groups: self.groups.iter().map(|g| i64::from(*g)).collect(),
        }
    }
}

/// Larger ids are refused (CRI-USR-06).
const MAX_ID: i64 = 2_147_483_647;
/// A passwd or group file above this is not read: an image must not make the daemon grow.
const MAX_FILE: u64 = 4 << 20;

/// How many images' account files are remembered; an image never changes, and mounting one to look costs a millisecond.
const REMEMBERED: usize = 64;
/// Larger ones are read each time.
const REMEMBERED_SIZE: usize = 64 << 10;

/// /etc/passwd and /etc/group of one image.
#[derive(Debug, Clone)]
struct Files {
    passwd: String,
    group: String,
}

/// Account files of the images used last, by image id.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    known: Mutex<HashMap<String, Arc<Files>>>,
}

impl Accounts {
    /// Looks the user up inside the image. Blocks.
    pub(crate) fn resolve(
        &self,
        images: &Store,
        image: &Image,
        security: &v1::LinuxContainerSecurityContext,
    ) -> Result<Identity> {
        let files = self.files(images, image)?;
        decide(&files.passwd, &files.group, &image.config.user, security)
    }

    fn files(&self, images: &Store, image: &Image) -> Result<Arc<Files>> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = known().get(&image.id) {
            return Ok(Arc::clone(files));
        }
        let files = Arc::new(read_files(images, image)?);
        if files.passwd.len() + files.group.len() <= REMEMBERED_SIZE {
            let mut known = known();
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert(image.id.clone(), Arc::clone(&files));
        }
        Ok(files)
    }
}

fn read_files(images: &Store, image: &Image) -> Result<Files> {
    let root = rootfs::mount_overlay(&images.view(image)?)?;
    let read = |path: &str| -> Result<String> {
        match rootfs::open_in_root(&root, Path::new(path)) {
            Ok(file) => {
                let mut bytes = Vec::new();
                let done = file.take(MAX_FILE).read_to_end(&mut bytes);
                done.map_err(|e| Error::io("read in image", Path::new(path), &e))?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Err(error) if error.kind() == slipway_runtime::error::Kind::NotFound => Ok(String::new()),
            Err(error) => Err(error.into()),
        }
    };
    Ok(Files { passwd: read("/etc/passwd")?, group: read("/etc/group")? })
}

/// A line of /etc/passwd.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, uid, gid) = (fields.next()?, fields.nth(1)?, fields.next()?);
        Some(Account { name, uid: uid.parse().ok()?, gid: gid.parse().ok()? })
    })
}

/// (name, gid, members) of each line of /etc/group.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, Vec<&str>)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, gid) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        Some((name, gid, fields.next().unwrap_or_default().split(',').filter(|m| !m.is_empty()).collect()))
    })
}

/// Pure part: see CRI-USR-01 to CRI-USR-09.
fn decide(
    passwd: &str,
    group: &str,
    image_user: &str,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<Identity> {
    let (user, image_group) = wanted(image_user, security)?;
    let account = find_account(passwd, &user)?;
    let uid = match (&account, user.parse::<i64>()) {
        (Some(account), _) => account.uid,
        (None, Ok(number)) => id("user", number)?,
        (None, Err(_)) => {
            return Err(Error::invalid(format!("user {user:?} is not in the image's /etc/passwd")));
        }
    };
    let gid = match (&security.run_as_group, image_group) {
        (Some(asked), _) => id("run_as_group", asked.value)?,
        (None, Some(named)) => find_group(group, &named)?,
        (None, None) => account.as_ref().map_or(0, |a| a.gid),
    };
    let mut all = vec![gid];
    for asked in &security.supplemental_groups {
        all.push(id("supplemental_groups", *asked)?);
    }
    if security.supplemental_groups_policy() == v1::SupplementalGroupsPolicy::Merge
        && let Some(account) = &account
    {
        all.extend(
            groups(group).filter(|(_, _, members)| members.contains(&account.name)).map(|(_, gid, _)| gid),
        );
    }
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|g| seen.insert(*g));
    Ok(Identity { uid, gid, groups: all })
}

/// User (name or number) and, from the image only, a group.
fn wanted(image: &str, security: &v1::LinuxContainerSecurityContext) -> Result<(String, Option<String>)> {
    if let Some(uid) = &security.run_as_user {
        return Ok((id("run_as_user", uid.value)?.to_string(), None));
    }
    if !security.run_as_username.is_empty() {
        return Ok((security.run_as_username.clone(), None));
    }
    let (user, group) = image.split_once(':').map_or((image, None), |(u, g)| (u, Some(g)));
    let user = if user.is_empty() { "0" } else { user };
    Ok((user.to_owned(), group.filter(|g| !g.is_empty()).map(str::to_owned)))
}

fn find_account<'a>(passwd: &'a str, user: &str) -> Result<Option<Account<'a>>> {
    if let Some(named) = accounts(passwd).find(|a| a.name == user) {
        return Ok(Some(named));
    }
    Ok(user.parse::<u32>().ok().and_then(|uid| accounts(passwd).find(|a| a.uid == uid)))
}

fn find_group(group: &str, wanted: &str) -> Result<u32> {
    if let Some((_, gid, _)) = groups(group).find(|(name, ..)| *name == wanted) {
        return Ok(gid);
    }
    let number = wanted.parse::<i64>();
    number.map_or_else(
        |_| Err(Error::invalid(format!("group {wanted:?} is not in the image's /etc/group"))),
        |n| id("group", n),
    )
}

fn id(what: &str, value: i64) -> Result<u32> {
    if (0..=MAX_ID).contains(&value) {
        // Checked just above.
        return Ok(value as u32);
    }
    Err(Error::invalid(format!("{what} {value} is not between 0 and {MAX_ID}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nextra:x:5000:app,other\nshared:x:5001:app\n";

    fn security(
        change: impl FnOnce(&mut v1::LinuxContainerSecurityContext),
    ) -> v1::LinuxContainerSecurityContext {
        let mut security = v1::LinuxContainerSecurityContext::default();
        change(&mut security);
        security
    }

    /// CRI-USR-01, CRI-USR-03, CRI-USR-04, CRI-USR-05, CRI-USR-08.
    #[test]
    fn forms_of_user() {
        let who = |image: &str| {
            let i = decide(PASSWD, GROUP, image, &Default::default()).expect("valid");
            (i.uid, i.gid, i.groups)
        };
        assert_eq!(who(""), (0, 0, vec![0]));
        assert_eq!(who("app"), (1000, 1001, vec![1001, 5000, 5001]));
        assert_eq!(who("1000"), (1000, 1001, vec![1001, 5000, 5001]));
        assert_eq!(who("app:shared"), (1000, 5001, vec![5001, 5000]));
        assert_eq!(who("4242"), (4242, 0, vec![0]));
        assert_eq!(who("4242:7"), (4242, 7, vec![7]));
    }

    /// CRI-USR-02, CRI-USR-06, CRI-USR-09.
    #[test]
    fn requests_win_and_bad_ones_are_refused() {
        let strict = security(|s| {
            s.run_as_user = Some(v1::Int64Value { value: 1000 });
            s.run_as_group = Some(v1::Int64Value { value: 9 });
            s.supplemental_groups = vec![10];
            s.supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict.into();
        });
        let identity = decide(PASSWD, GROUP, "root", &strict).expect("valid");
        assert_eq!((identity.uid, identity.gid, identity.groups), (1000, 9, vec![9, 10]));
        let nobody = security(|s| s.run_as_username = "ghost".into());
        assert!(decide(PASSWD, GROUP, "", &nobody).is_err_and(|e| e.to_string().contains("ghost")));
        let huge = security(|s| s.run_as_user = Some(v1::Int64Value { value: 1 << 31 }));
        assert!(decide(PASSWD, GROUP, "", &huge).is_err());
        assert!(decide(PASSWD, GROUP, "app:ghosts", &Default::default()).is_err());
    }
}
