//! What a container has written, out of the store and into it again: checkpoints hold it as layers.

use super::Store;
use super::containers::check_owner;
use super::layers::visible;
use crate::pack::holes::Holes;
use crate::pack::tree::Source;
use crate::pack::unpack_tree;
use crate::unpack::settle::{Stack, settle};
use crate::unpack::tree::remove_tree;
use crate::unpack::{Form, Limits, decode, unpack};
use crate::{Error, Kind, Result};
use rustix::fs::CWD;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

impl Store {
    /// Writes the writable layer of `owner` to `out`, as an OCI layer. Nothing should change it meanwhile. Blocks.
    ///
    /// # Errors
    /// `NotFound` without such a layer, `Invalid` for what no layer can express, `Exhausted` on a full disk.
    pub fn pack_layer<W: Write>(&self, owner: &str, out: W) -> Result<W> {
        pack(&self.existing(owner, Path::new("upper"))?, Form::Layer, out)
    }

    /// The same for a volume of the image, in plain form: its number in what [`Store::volumes`] answered.
    ///
    /// # Errors
    /// As [`Store::pack_layer`].
    pub fn pack_volume<W: Write>(&self, owner: &str, number: usize, out: W) -> Result<W> {
        pack(&self.existing(owner, &volume(number))?, Form::Plain, out)
    }

    /// Fills the fresh writable layer of `owner` from `tar`, over the layers below it. Blocks.
    ///
    /// # Errors
    /// `NotFound` without such a layer, `Corrupt` for what is no honest layer, `Exhausted` on a full disk.
    pub fn restore_layer(&self, owner: &str, tar: impl Read + Send) -> Result<()> {
        let upper = self.existing(owner, Path::new("upper"))?;
        let plain = decode::decode_unbuffered(tar).map_err(|e| Error::corrupt("decompress", owner, e))?;
        let mut tree = unpack(plain, &upper, Limits::default(), Form::Layer)?;
        if tree.root_opaque {
            return Err(Error::corrupt("unpack", "/", "a writable layer cannot hide all of its image"));
        }
        let keys = {
            let ledger = self.inner.shared.ledger();
            let keys = ledger.held(owner).unwrap_or_default();
            visible(&ledger, &keys.iter().map(String::as_str).collect::<Vec<_>>())?.keys
        };
        let layers = self.inner.open_layers(&keys)?;
        settle(&mut tree, &Stack { layers: layers.iter().map(AsFd::as_fd).collect() })
    }

    /// Puts what `tar` holds in the place of a volume's content. Blocks.
    ///
    /// # Errors
    /// As [`Store::restore_layer`].
    pub fn restore_volume(&self, owner: &str, number: usize, tar: impl Read + Send) -> Result<()> {
        let path = self.existing(owner, &volume(number))?;
        remove_tree(CWD, path.as_os_str()).map_err(|e| Error::io("empty volume", &path, e))?;
        super::volumes::make(&path)?;
        unpack_tree(tar, &path, Form::Plain)
    }

    fn existing(&self, owner: &str, what: &Path) -> Result<PathBuf> {
        check_owner(owner)?;
        let path = self.inner.layout().container(owner).join(what);
        if path.is_dir() {
            return Ok(path);
        }
        Err(Error::new(Kind::NotFound, "find writable layer", owner, "there is none"))
    }
}

fn pack<W: Write>(directory: &Path, form: Form, out: W) -> Result<W> {
    Source::open(directory, form)?.pack(&mut Holes::default(), out)
}

fn volume(number: usize) -> PathBuf {
    Path::new("volumes").join(number.to_string())
}
