//! What a group is called, and which directory that is.
//!
//! cgroupfs driver: `/kubepods/pod1/c1` is both. systemd driver: `slice:prefix:name` is a scope in its slice, and
//! `slice:prefix:name/below` a group inside it.

use crate::error::Kind;
use crate::unit::ScopeName;
use crate::{Error, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// As [`Name::parse`] takes it.
    pub(super) text: String,
    /// Below the root of each hierarchy; begins with a slash, and has no other at its end.
    pub(super) dir: String,
    /// The unit that this group is.
    pub(super) scope: Option<ScopeName>,
}

impl Name {
    /// # Errors
    /// `Invalid` for what is neither a path nor a unit.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let (head, below) = match text.split_once('/') {
            Some((head, below)) if !head.is_empty() => (head, Some(below)),
            _ => (text, None),
        };
        let Some(scope) = ScopeName::parse(head)? else {
            let dir = path(text)?;
            return Ok(Self { text: dir.clone(), dir, scope: None });
        };
        let below = below.map(|below| path(&format!("/{below}"))).transpose()?;
        let dir = scope.directory();
        Ok(match below {
            Some(below) => Self { text: format!("{head}{below}"), dir: format!("{dir}{below}"), scope: None },
            None => Self { text: head.to_owned(), dir, scope: Some(scope) },
        })
    }

    /// Of a container without one. There is no such directory: the kernel takes no newline in the name of a group.
    pub(super) fn none() -> Self {
        Self { text: String::new(), dir: "/\n".to_owned(), scope: None }
    }

    /// The group `name` inside this one.
    pub(super) fn child(&self, name: &str) -> Self {
        Self { text: format!("{}/{name}", self.text), dir: format!("{}/{name}", self.dir), scope: None }
    }
}

/// The directory above; None at the root.
pub(super) fn parent(dir: &str) -> Option<&str> {
    dir.rfind('/').map(|at| &dir[..at]).filter(|above| !above.is_empty())
}

/// The path with single slashes and none at the end.
fn path(text: &str) -> Result<String> {
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    let plain =
        |part: &&str| *part != "." && *part != ".." && !part.contains(['\n', '\0']) && part.len() <= 255;
    if !text.starts_with('/') || parts.is_empty() || !parts.iter().all(plain) {
        return Err(Error::new(Kind::Invalid, "read control group path", format!("{text:?}")).hint(
            "must be absolute below the hierarchy's root, such as /kubepods/pod1/c1, without . or .., or a scope as \
             system.slice:slipway:c1",
        ));
    }
    Ok(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        assert_eq!(Name::parse("//kubepods/pod1//c/").unwrap().dir, "/kubepods/pod1/c");
        for bad in ["", "/", "a/b", "/a/../b", "/a/./b", "/a\n", "/a\0", "a.slice:b:c/../d"] {
            assert_eq!(Name::parse(bad).unwrap_err().kind(), Kind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn groups_inside_a_scope_are_no_units() {
        let scope = Name::parse("system.slice:slipway:c1").unwrap();
        assert!(scope.dir.ends_with("/system.slice/slipway-c1.scope") && scope.scope.is_some());
        let below = scope.child("exec-1");
        assert_eq!(below, Name::parse("system.slice:slipway:c1/exec-1").unwrap());
        assert_eq!(parent(&below.dir), Some(&*scope.dir));
    }
}
