//! A security context of SELinux as text: `user:role:type:level`, the level absent in policies without MLS.

use std::fmt;

/// One context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) user: String,
    pub(crate) role: String,
    /// The type; of a process its domain.
    pub(crate) kind: String,
    /// Sensitivity and categories: `s0:c1,c2`; a range for some processes.
    pub(crate) level: Option<String>,
}

impl Label {
    /// None for what has no user, role and type.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let (user, role, kind) = (parts.next()?, parts.next()?, parts.next()?);
        let level = parts.next();
        let whole = [&user, &role, &kind].into_iter().chain(&level).all(|part| !part.is_empty());
        whole.then_some(Self { user, role, kind, level })
    }

    /// The same at another level; a policy without levels keeps none.
    pub(crate) fn at(&self, level: &str) -> Self {
        Self { level: self.level.is_some().then(|| level.to_owned()), ..self.clone() }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        self.level.iter().try_for_each(|level| write!(f, ":{level}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_read_and_written() {
        for text in ["system_u:system_r:container_t:s0:c1,c2", "u:r:t", "u:r:t:s0-s0:c0.c1023"] {
            assert_eq!(Label::parse(text).map(|label| label.to_string()).as_deref(), Some(text));
        }
        let label = Label::parse("u:r:t:s0").expect("a label");
        assert_eq!(label.at("s0:c1,c2").to_string(), "u:r:t:s0:c1,c2");
        assert_eq!(Label::parse("u:r:t").expect("a label").at("s0:c1").to_string(), "u:r:t");
        for bad in ["", "u:r", "u::t", "u:r:t:"] {
            assert_eq!(Label::parse(bad), None, "{bad}");
        }
    }
}
