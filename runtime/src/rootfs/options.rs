//! An overlay as the options of mount(8) say it.

use super::Overlay;
use crate::error::Kind;
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
        let mut overlay = Self::default();
        for (key, value) in options {
            match (key.as_str(), value.as_deref().unwrap_or_default()) {
                ("lowerdir", value) => overlay.lower.extend(split_layers(value)),
                ("lowerdir+", value) => overlay.lower.push(value.into()),
                ("upperdir", value) => overlay.upper = Some(value.into()),
                ("workdir", value) => overlay.work = Some(value.into()),
                ("volatile", "") => overlay.volatile = true,
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
        Ok(overlay)
    }
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
        assert!(Overlay::from_options(&[upper("lowerdir"), upper("upperdir")]).is_err());
        assert!(Overlay::from_options(&[upper("nfs_export")]).is_err());
    }
}
