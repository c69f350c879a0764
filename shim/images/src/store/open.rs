//! Opening the store: what an unclean stop left is put right, what cannot be read is set aside by name.

use super::catalog::Catalog;
use super::janitor::{Janitor, Shared};
use super::layout::Layout;
use super::ledger::Ledger;
use super::record::{self, ImageRecord, LayerRecord, OwnerRecord, Stored};
use super::{Inner, to_json};
use crate::types::Options;
use crate::{Error, Kind, Result};
use rustix::fs::{FlockOperation, flock};
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

/// This boot's id (random(4)).
pub(super) fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    std::fs::read_to_string(path)
        .map(|id| id.trim().to_owned())
        .map_err(|e| Error::io("read boot id", path, e))
}

impl Inner {
    /// The store, and whether the machine went down while it was open.
    pub(super) fn open(options: Options) -> Result<(Self, bool)> {
        let layout = Layout::create(&options.root)?;
        let lock = lock(&layout)?;
        for entry in names(&layout.dir("tmp"))? {
            layout.discard(&layout.dir("tmp").join(entry))?;
        }
        let mut ledger = Ledger::default();
        layers(&layout, &mut ledger)?;
        owners(&layout, &mut ledger)?;
        let catalog = images(&layout, &ledger)?;
        let projects = super::project::Projects::of(&layout)?;
        let shared = Arc::new(Shared { layout, ledger: Mutex::new(ledger) });
        let janitor =
            Janitor::start(shared.clone()).map_err(|e| Error::io("start janitor", &options.root, e))?;
        let inner = Self {
            root: options.root,
            registries: RwLock::new(Arc::new(options.registries)),
            policy: RwLock::new(options.policy),
            shared,
            catalog: RwLock::new(Arc::new(catalog)),
            janitor,
            projects,
            writable_limit: AtomicU64::new(0),
            pulls: Default::default(),
            layer_flights: Default::default(),
            diff_locks: Mutex::default(),
            connector: crate::registry::Connector::default(),
            damaged: Mutex::default(),
            fetched: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            _lock: lock.into(),
        };
        inner.collect(&mut inner.shared.ledger());
        inner.janitor.sync();
        let unclean = mark_open(inner.layout())?;
        Ok((inner, unclean))
    }
}

impl Drop for Inner {
    /// A clean stop. (A killed daemon harms no file; only a machine that goes down does.)
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.layout().dir(OPEN));
    }
}

/// There while the store is open: the boot in which it was opened.
const OPEN: &str = "open";

/// Says that the store is open; whether it still said so from an earlier boot.
fn mark_open(layout: &Layout) -> Result<bool> {
    let boot = boot_id()?;
    let was = std::fs::read_to_string(layout.dir(OPEN)).ok();
    layout.write(&layout.dir(OPEN), boot.as_bytes())?;
    Ok(was.is_some_and(|was| was != boot))
}

/// Two processes in one store would delete each other's layers.
fn lock(layout: &Layout) -> Result<File> {
    let path = layout.root.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|e| Error::io("lock store", &path, e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Error::new(Kind::Io, "lock store", path.display(), "another process has this store open"))
        }
        Err(e) => Err(Error::io("lock store", &path, e)),
    }
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::io("read store", directory, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        match name.into_string() {
            Ok(name) => names.push(name),
            Err(name) => tracing::warn!(directory = %directory.display(), ?name, "not ours: left alone"),
        }
    }
    Ok(names)
}

/// Reads the records in `directory`; those that cannot be used are set aside and the rest goes on.
fn records<T: serde::de::DeserializeOwned>(layout: &Layout, directory: &Path) -> Result<Vec<(String, T)>> {
    let mut found = Vec::new();
    for name in names(directory)? {
        let Some(stem) = name.strip_suffix(".json") else { continue };
        let path = directory.join(&name);
        let bytes = std::fs::read(&path).map_err(|e| e.to_string());
        let record = bytes.and_then(|bytes| record::read(&bytes));
        match record {
            Ok(record) => found.push((stem.to_owned(), record)),
            Err(why) => layout.set_aside(&path, &why),
        }
    }
    Ok(found)
}

/// Layers count if record and directory are there, and if they reached the disk or this is still the same boot.
fn layers(layout: &Layout, ledger: &mut Ledger) -> Result<()> {
    let directory = layout.dir("layers");
    let boot = boot_id()?;
    for (key, record) in records::<LayerRecord>(layout, &directory)? {
        let lost = record.unsynced_in_boot.as_ref().is_some_and(|made_in| *made_in != boot);
        if lost || !layout.layer(&key).is_dir() {
            let why =
                if lost { "the machine went down before it was on disk" } else { "its directory is missing" };
            tracing::warn!(layer = key, why, "layer dropped");
            layout.discard(&layout.layer_record(&key))?;
        } else {
            ledger.insert_layer(key, record);
        }
    }
    for name in names(&directory)? {
        if !name.ends_with(".json") && ledger.layer(&name).is_none() {
            layout.discard(&directory.join(name))?;
        }
    }
    Ok(())
}

fn owners(layout: &Layout, ledger: &mut Ledger) -> Result<()> {
    for owner in names(&layout.dir("containers"))? {
        if super::containers::check_owner(&owner).is_err() {
            tracing::warn!(owner, "not ours: left alone");
            continue;
        }
        let path = layout.container(&owner).join("owner.json");
        let record = std::fs::read(&path)
            .map_err(|e| e.to_string())
            .and_then(|bytes| record::read::<OwnerRecord>(&bytes));
        match record {
            Ok(record) => ledger.hold(&owner, record.layers),
            Err(why) => {
                // Still an owner, so that the daemon can release it; what it held is not known any more.
                tracing::warn!(owner, %why, "record of a writable layer cannot be used");
                ledger.hold(&owner, Vec::new());
            }
        }
    }
    Ok(())
}

/// Images whose layers are all there; of two that claim a tag the younger has it.
fn images(layout: &Layout, ledger: &Ledger) -> Result<Catalog> {
    let mut found: Vec<Stored> = Vec::new();
    for (stem, record) in records::<ImageRecord>(layout, &layout.dir("images"))? {
        let path = layout.image(&stem);
        let missing = record.layers.iter().find(|layer| ledger.layer(&layer.key).is_none());
        if let Some(layer) = missing {
            layout.set_aside(&path, &format!("layer {} is missing; pull the image again", layer.key));
            continue;
        }
        let intact = crate::digest::Digest::parse(&record.id)
            .is_ok_and(|id| id.matches(record.config.as_bytes()))
            && record::hex_of(&record.id) == stem;
        match Stored::new(record) {
            Ok(stored) if intact => found.push(stored),
            Ok(_) => layout.set_aside(&path, &"its config does not match its id"),
            Err(why) => layout.set_aside(&path, &why),
        }
    }
    found.sort_by_key(|stored| std::cmp::Reverse(stored.record.generation));
    let mut claimed: HashMap<String, ()> = HashMap::new();
    let mut catalog = Catalog::default();
    for stored in found {
        let record = &stored.record;
        let tags: Vec<String> =
            record.tags.iter().filter(|tag| claimed.insert((*tag).clone(), ()).is_none()).cloned().collect();
        if tags.len() == record.tags.len() {
            catalog.insert(stored);
            continue;
        }
        let renamed = stored.renamed(tags, record.digests.clone(), record.generation);
        layout.write(&layout.image(renamed.hex()), &to_json(&renamed.record, &renamed.record.id)?)?;
        catalog.insert(renamed);
    }
    Ok(catalog)
}
