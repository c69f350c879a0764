//! Names: `vendor/class` is a kind, `vendor/class=device` a device (CDI-04).

use std::fmt;

/// `vendor/class`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    vendor: String,
    pub(super) class: String,
}

/// `vendor/class=device`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Qualified {
    pub(super) kind: Kind,
    pub(super) device: String,
}

impl Kind {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (vendor, class) = text.split_once('/').ok_or("want vendor/class")?;
        check("vendor", vendor, true, "_-.")?;
        check("class", class, true, "_-.")?;
        Ok(Self { vendor: vendor.into(), class: class.into() })
    }
}

impl Qualified {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (kind, device) = text.split_once('=').ok_or("want vendor/class=name")?;
        check_device(device)?;
        Ok(Self { kind: Kind::parse(kind)?, device: device.into() })
    }
}

pub(super) fn check_device(name: &str) -> Result<(), String> {
    check("device", name, false, "_-.:")
}

fn check(what: &str, text: &str, first_is_letter: bool, inner: &str) -> Result<(), String> {
    let first = |c: char| if first_is_letter { c.is_ascii_alphabetic() } else { c.is_ascii_alphanumeric() };
    let fits = text.starts_with(first)
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || inner.contains(c));
    if fits {
        Ok(())
    } else {
        Err(format!(
            "{what} {text:?} must be of letters, digits and {inner}, and begin and end with one of the first two"
        ))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vendor, self.class)
    }
}

impl fmt::Display for Qualified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}
