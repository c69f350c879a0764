//! An overlay as the options of mount(8) say it.

use super::Overlay;
use crate::error::Kind;
use crate::idmap::{IdMap, IdMappings};
use crate::{Error, Result};
use std::path::PathBuf;

impl Overlay {
    /// From key and value of each option (kernel Documentation/filesystems/overlayfs.rst).
    ///
    /// # Errors
    /// `Unsupported` for an option that would change what the overlay means, `Invalid` for a combination that means
    /// nothing.
    pub fn from_options(options: &[(String, Option<String>)]) -> Result<Self> {
        let refuse = |kind, what: String| Error::new(kind, "mount the overlay", what);
        let (mut overlay, mut user) = (Self::default(), IdMappings::default());
        for (key, value) in options {
            match (key.as_str(), value.as_deref().unwrap_or_default()) {
                ("lowerdir", value) => overlay.lower.extend(split_layers(value)),
                ("lowerdir+", value) => overlay.lower.push(value.into()),
                ("upperdir", value) => overlay.upper = Some(value.into()),
                ("workdir", value) => overlay.work = Some(value.into()),
                ("volatile", "") => overlay.volatile = true,
                // Quoted, as the commas of its categories would end it in mount(2).
                ("context", label) => overlay.label = Some(label.trim_matches('"').to_owned()),
                // containerd's own words, for its mount helper: layers are shown through the container's maps.
                ("uidmap", value) => user.uids = id_maps(key, value)?,
                ("gidmap", value) => user.gids = id_maps(key, value)?,
                // Defaults of the kernel or of the mount itself.
                ("rw" | "ro" | "index" | "xino" | "redirect_dir" | "metacopy", _) => {}
                (key, _) => {
                    return Err(refuse(
                        Kind::Unsupported,
                        format!("overlay option {key:?} is not supported"),
                    ));
                }
            }
        }
        if overlay.lower.is_empty() {
            return Err(refuse(Kind::Invalid, "overlay without lowerdir".into()));
        }
        if overlay.upper.is_some() != overlay.work.is_some() {
            let what = "overlay needs both upperdir and workdir, or neither";
            return Err(refuse(Kind::Invalid, what.into()));
        }
        if user != IdMappings::default() {
            user.check("overlay", "uidmap", "gidmap")?;
            overlay.idmap = Some(user);
        }
        Ok(overlay)
    }
}

/// `container:host:size`, with commas between several.
fn id_maps(key: &str, value: &str) -> Result<Vec<IdMap>> {
    let line = |text: &str| {
        let mut numbers = text.split(':').map(str::parse);
        match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(container)), Some(Ok(host)), Some(Ok(size)), None) => {
                Some(IdMap { container, host, size })
            }
            _ => None,
        }
    };
    let all: Option<Vec<_>> = value.split(',').map(line).collect();
    let what = || format!("overlay option {key}={value:?} is not container:host:size");
    all.ok_or_else(|| Error::new(Kind::Invalid, "mount the overlay", what()))
}

/// `a:b` with `\` before what is to be taken as it is.
fn split_layers(value: &str) -> Vec<PathBuf> {
    let (mut layers, mut layer, mut chars) = (Vec::new(), String::new(), value.chars());
    while let Some(char) = chars.next() {
        match char {
            '\\' => layer.extend(chars.next()),
            ':' => layers.push(std::mem::take(&mut layer).into()),
            _ => layer.push(char),
        }
    }
    layers.push(layer.into());
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_split_at_colons_that_are_not_escaped() {
        let options = [("lowerdir".to_owned(), Some(r"/a\:b:/c\\d".to_owned()))];
        let overlay = Overlay::from_options(&options).unwrap();
        assert_eq!(overlay.lower, [PathBuf::from("/a:b"), PathBuf::from(r"/c\d")]);
        let upper = |key: &str| (key.to_owned(), Some("/u".to_owned()));
        let label = ("context".to_owned(), Some(r#""u:r:t:s0:c1,c2""#.to_owned()));
        let labelled = Overlay::from_options(&[upper("lowerdir"), label]).unwrap();
        assert_eq!(labelled.label.as_deref(), Some("u:r:t:s0:c1,c2"));
        assert!(Overlay::from_options(&[upper("lowerdir"), upper("upperdir")]).is_err());
        assert!(Overlay::from_options(&[upper("nfs_export")]).is_err());
    }
}
