//! Addresses of the pool: which there are, which are leased, to whom.
//!
//! A lease is a file named after the address, made with O_EXCL and holding the pod's id: it survives a restart and no
//! two pods can get one address, whoever asks. Addresses are given in turn, so the last one freed is the last to be
//! used again. Never touches links or rules.

use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// An IPv4 prefix; host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pool {
    base: u32,
    pub(crate) prefix_len: u8,
}

impl Pool {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::new("read built-in network options", format!("pool \"{text}\""), why)
                .hint("write it like 10.88.0.0/16")
        };
        let (address, length) = text.split_once('/').ok_or_else(|| bad("no prefix length"))?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad("not an IPv4 address"))?;
        let prefix_len: u8 = length.parse().map_err(|_| bad("bad prefix length"))?;
        if !(8..=29).contains(&prefix_len) {
            return Err(bad("the prefix length must be 8 to 29"));
        }
        let pool = Self { base: u32::from(address) & mask(prefix_len), prefix_len };
        if pool.base != u32::from(address) {
            return Err(bad(&format!("it has host bits; the network is {pool}")));
        }
        if address.is_loopback()
            || address.is_multicast()
            || address.is_unspecified()
            || address.octets()[0] > 239
        {
            return Err(bad("pods cannot have such addresses"));
        }
        Ok(pool)
    }

    /// The bridge's address.
    pub(crate) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    fn broadcast(self) -> u32 {
        self.base | !mask(self.prefix_len)
    }

    pub(crate) fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix_len) == self.base
    }

    /// True if the two networks share an address.
    pub(crate) fn overlaps(self, other: Ipv4Addr, prefix_len: u8) -> bool {
        let common = mask(self.prefix_len.min(prefix_len));
        self.base & common == u32::from(other) & common
    }
}

fn mask(prefix_len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0)
}

impl std::fmt::Display for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix_len)
    }
}

/// The leases of one bridge; memory is a cache of the directory.
#[derive(Debug)]
pub(crate) struct Leases {
    dir: PathBuf,
    taken: BTreeMap<Ipv4Addr, String>,
    last: u32,
}

impl Leases {
    pub(crate) fn open(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).map_err(|e| fail("make lease directory", &dir, &e))?;
        let mut leases = Self { taken: BTreeMap::new(), last: 0, dir };
        let entries = fs::read_dir(&leases.dir).map_err(|e| fail("list leases", &leases.dir, &e))?;
        for entry in entries.flatten() {
            let Some(address) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            leases.taken.insert(address, fs::read_to_string(entry.path()).unwrap_or_default());
        }
        // A torn or missing cursor only costs the courtesy of not reusing the last address at once.
        let cursor = fs::read_to_string(leases.cursor()).unwrap_or_default();
        leases.last = cursor.trim().parse::<Ipv4Addr>().map_or(0, u32::from);
        Ok(leases)
    }

    fn cursor(&self) -> PathBuf {
        self.dir.join("last")
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    pub(crate) fn count(&self) -> usize {
        self.taken.len()
    }

    pub(crate) fn all(&self) -> Vec<(Ipv4Addr, String)> {
        self.taken.iter().map(|(a, id)| (*a, id.clone())).collect()
    }

    /// The next free address after the last one given.
    pub(crate) fn acquire(&mut self, pool: Pool, id: &str) -> Result<Ipv4Addr> {
        let (first, end) = (u32::from(pool.gateway()) + 1, pool.broadcast());
        let start = if (first..end).contains(&(self.last.wrapping_add(1))) { self.last + 1 } else { first };
        for candidate in (start..end).chain(first..start).map(Ipv4Addr::from) {
            if self.taken.contains_key(&candidate) {
                continue;
            }
            if self.create(candidate, id)? {
                self.taken.insert(candidate, id.to_owned());
                self.last = u32::from(candidate);
                let _ = fs::write(self.cursor(), candidate.to_string());
                return Ok(candidate);
            }
        }
        let all = end - first;
        Err(Error::new("lease an address", format!("pool {pool}"), format!("all {all} addresses are in use"))
            .kind(Kind::Exhausted)
            .hint("remove finished pods or configure a larger pool"))
    }

    /// False if somebody else has it.
    fn create(&self, address: Ipv4Addr, id: &str) -> Result<bool> {
        let path = self.dir.join(address.to_string());
        let mut file = match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(false),
            Err(e) => return Err(fail("lease an address", &path, &e)),
        };
        file.write_all(id.as_bytes()).map(|()| true).map_err(|e| {
            let _ = fs::remove_file(&path);
            fail("lease an address", &path, &e)
        })
    }

    /// Missing is success.
    pub(crate) fn release(&mut self, address: Ipv4Addr) -> Result<()> {
        let path = self.dir.join(address.to_string());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(fail("free an address", &path, &e)),
            _ => {
                self.taken.remove(&address);
                Ok(())
            }
        }
    }
}

pub(crate) fn fail(step: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::io(step, path.display().to_string(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_checked() {
        assert_eq!(Pool::parse("10.88.0.0/16").unwrap().gateway().to_string(), "10.88.0.1");
        for bad in
            ["", "10.0.0.0", "10.0.0.0/30", "10.0.0.0/7", "10.0.0.1/16", "x/16", "127.0.0.0/8", "224.0.0.0/8"]
        {
            assert!(Pool::parse(bad).is_err(), "{bad}");
        }
        let pool = Pool::parse("10.88.0.0/16").unwrap();
        assert!(pool.overlaps([10, 0, 0, 0].into(), 8) && pool.overlaps([10, 88, 7, 0].into(), 24));
        assert!(!pool.overlaps([10, 89, 0, 0].into(), 16));
    }

    #[test]
    fn addresses_go_round_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::parse("10.9.8.0/29").unwrap(); // .2 to .6 for pods
        let open = || Leases::open(dir.path().join("l")).unwrap();
        let mut leases = open();
        let first = leases.acquire(pool, "a").unwrap();
        assert_eq!(first.to_string(), "10.9.8.2");
        leases.release(first).unwrap();
        let mut leases = open();
        let second = leases.acquire(pool, "b").unwrap();
        assert_eq!(second.to_string(), "10.9.8.3", "the address just freed is not used at once");
        let mut leases = open();
        assert_eq!(leases.all(), [(second, "b".to_owned())]);
        let rest: Vec<String> = (0..4).map(|_| leases.acquire(pool, "c").unwrap().to_string()).collect();
        assert_eq!(rest, ["10.9.8.4", "10.9.8.5", "10.9.8.6", "10.9.8.2"]);
        assert!(leases.acquire(pool, "d").unwrap_err().to_string().contains("in use"));
    }

    #[test]
    fn two_owners_of_one_directory_never_share_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::parse("10.9.8.0/24").unwrap();
        let (mut a, mut b) =
            (Leases::open(dir.path().to_owned()).unwrap(), Leases::open(dir.path().to_owned()).unwrap());
        let (x, y) = (a.acquire(pool, "a").unwrap(), b.acquire(pool, "b").unwrap());
        assert_ne!(x, y);
    }
}
