//! From a stream of tar to a layer in overlay form.
//!
//! Layers are unpacked at the same time, so each is unpacked *alone*: it never looks at the layers below. Three things
//! do depend on them, and are settled when those are there ([`settle`]), before the layer becomes visible:
//!
//! 1. A parent directory that has no entry of its own in this layer. overlayfs would show our 0755 root:root instead of
//!    what lies below, so mode, owner, xattrs and times are copied up (IMG-UNP-07). If it is a symlink below, what lies
//!    in it moves to where the link leads, as extracting one layer over the other would do (IMG-UNP-04).
//! 2. A hard link to a file of a lower layer: the file is copied up, then linked (IMG-UNP-10).
//! 3. `/` itself: overlayfs shows the topmost layer's root. The store remembers what each layer says about it and puts
//!    the right one on top; the same for an opaque mark on `/`, which overlayfs does not look at.
//!
//! A layer without 1 and 2 does not depend on anything: it is stored by its diff id and shared by all images that have
//! it. The others are stored by chain id. A bound hole: an entry `a/b` whose `a` is a symlink below *and* has an entry
//! as directory here replaces the link, as the image-spec says.

pub(crate) mod archive;
pub(crate) mod attributes;
pub(crate) mod decode;
pub(crate) mod settle;
pub(crate) mod tree;

#[cfg(test)]
mod tests;

use crate::Result;
pub(crate) use archive::Limits;
use std::io::Read;
use std::path::Path;
pub(crate) use tree::Tree;

/// What names and marks in a tree stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A layer: overlayfs' marks on disk, `.wh.` names in the archive. Marks that the archive itself has are not taken.
    Layer,
    /// Nothing stands for something else: all is kept as it is.
    Plain,
}

/// Unpacks the uncompressed tar `stream` into the empty directory `path` and reads the stream to its end.
pub(crate) fn unpack(stream: impl Read, path: &Path, limits: Limits, form: Form) -> Result<Tree> {
    let mut archive = archive::Archive::new(stream, limits);
    let mut tree = Tree::new(path, form)?;
    while let Some(entry) = archive.next()? {
        tree.add(&entry, &mut archive)?;
    }
    archive.drain()?;
    tree.finish()?;
    Ok(tree)
}
