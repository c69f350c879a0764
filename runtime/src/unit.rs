//! Names of systemd units, as `linux.cgroupsPath` gives them for the systemd driver: `slice:prefix:name`. Pure.
//!
//! `system.slice:slipway:c1` is the scope `slipway-c1.scope` in `system.slice`; dashes nest slices, so that
//! `kubepods-burstable.slice` is a directory inside that of `kubepods.slice` (systemd.slice(5)).

use crate::error::Kind;
use crate::{Error, Result};

/// A container's scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeName {
    pub slice: String,
    /// With its `.scope`.
    pub unit: String,
}

impl ScopeName {
    /// None if `path` is a plain path of the cgroupfs driver: it starts with a slash, or has not two colons.
    ///
    /// # Errors
    /// `Invalid` for names that systemd does not take.
    pub fn parse(path: &str) -> Result<Option<Self>> {
        let parts: Vec<&str> = path.split(':').collect();
        let [slice, prefix, name] = parts[..] else { return Ok(None) };
        if path.starts_with('/') {
            return Ok(None);
        }
        let slice = if slice.is_empty() { default_slice() } else { slice };
        slice_directory(slice)?;
        let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        if name.is_empty() || name.ends_with(".slice") || !is_unit_name(&unit) {
            return Err(invalid(
                path,
                "a scope is named by letters, digits and . _ - \\ @, at most 255 bytes",
            ));
        }
        Ok(Some(Self { slice: slice.to_owned(), unit }))
    }

    /// Where the scope's control group is: below that of its slice.
    pub fn directory(&self) -> String {
        // The slice was checked in `parse`.
        let slice = slice_directory(&self.slice).unwrap_or_default();
        format!("{}{slice}/{}", manager_directory(), self.unit)
    }
}

/// `/a.slice/a-b.slice` of `a-b.slice`; empty for the root slice `-.slice`.
///
/// # Errors
/// `Invalid` if it is not the name of a slice.
pub fn slice_directory(slice: &str) -> Result<String> {
    if slice == "-.slice" {
        return Ok(String::new());
    }
    let stem = slice.strip_suffix(".slice").unwrap_or_default();
    if stem.split('-').any(str::is_empty) || !is_unit_name(slice) {
        return Err(invalid(
            slice,
            "a slice is named like kubepods-burstable.slice, with parts between dashes",
        ));
    }
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    Ok(ends.map(|end| format!("/{}.slice", &stem[..end])).collect())
}

/// Where units go that name no slice (systemd.scope(5)).
fn default_slice() -> &'static str {
    if rustix::process::geteuid().is_root() { "system.slice" } else { "user.slice" }
}

/// The group of the service manager that answers us: the system's, or the user's own.
fn manager_directory() -> String {
    match rustix::process::geteuid() {
        root if root.is_root() => String::new(),
        user => {
            let user = user.as_raw();
            format!("/user.slice/user-{user}.slice/user@{user}.service")
        }
    }
}

/// systemd's VALID_CHARS, and its limit.
fn is_unit_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b":_.\\-@".contains(&b);
    !name.is_empty() && name.len() <= 255 && name.bytes().all(fits)
}

fn invalid(name: &str, why: &str) -> Error {
    Error::new(Kind::Invalid, "read linux.cgroupsPath", format!("{name:?}")).hint(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    // CRI-CG-01, CRI-CG-02, CRI-CG-03
    #[test]
    fn scopes_are_found_below_their_slices() {
        let scope = ScopeName::parse("kubepods-burstable-pod1.slice:cri-containerd:abc").unwrap().unwrap();
        assert_eq!(scope.unit, "cri-containerd-abc.scope");
        let slice = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice";
        assert!(scope.directory().ends_with(&format!("{slice}/cri-containerd-abc.scope")));
        assert_eq!(ScopeName::parse("-.slice::abc").unwrap().unwrap().unit, "abc.scope");
        assert_eq!(ScopeName::parse("/a:b:c").unwrap(), None);
        assert_eq!(ScopeName::parse("a/b").unwrap(), None);
        for bad in [
            "a:b:c",
            "a.slice:b:",
            "a--b.slice:b:c",
            "-a.slice:b:c",
            "a.slice:b:c/d",
            "a.slice:b:c.slice",
            "../a.slice:b:c",
        ] {
            assert_eq!(ScopeName::parse(bad).unwrap_err().kind(), Kind::Invalid, "{bad}");
        }
    }

    #[test]
    fn dashes_nest_slices() {
        assert_eq!(slice_directory("a.slice").unwrap(), "/a.slice");
        assert_eq!(slice_directory("a-b-c.slice").unwrap(), "/a.slice/a-b.slice/a-b-c.slice");
        assert_eq!(slice_directory("-.slice").unwrap(), "");
        for bad in ["", ".slice", "a", "a-.slice", "a/b.slice", "-a.slice"] {
            assert!(slice_directory(bad).is_err(), "{bad:?}");
        }
    }
}
