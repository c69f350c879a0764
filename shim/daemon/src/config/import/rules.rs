//! Tables of what becomes of a foreign key.

use super::Import;
use super::leaves::Leaf;

/// What becomes of a key.
#[derive(Clone, Copy)]
pub(super) enum Fate {
    /// Ours with the same values.
    Key(&'static str),
    /// Needs a look at the value; an error says why it cannot be translated. Gets what `*` stood for.
    With(fn(&mut Import, &Leaf, &[&str]) -> Result<(), String>),
    /// The same, where false, 0 and nothing say something, too.
    Always(fn(&mut Import, &Leaf, &[&str]) -> Result<(), String>),
    /// Nothing to translate: it is so here anyway, or it is about something that does not exist here.
    Needless,
    /// No translation, and what to do instead.
    Cannot(&'static str),
}

/// Key by key, parts divided by `/`; `*` is any one part, a last `**` the rest. The first that fits counts.
pub(super) type Rules = [(&'static str, Fate)];

/// Translates `leaf`, whose path (maybe shortened) is `path`.
pub(super) fn apply(import: &mut Import, rules: &Rules, leaf: &Leaf, path: &[&str]) {
    let hit = rules.iter().find_map(|(pattern, fate)| Some((fate, matches(pattern, path)?)));
    let outcome = match hit {
        Some((Fate::Needless, _)) => return,
        Some((Fate::Always(translate), stars)) => translate(import, leaf, &stars),
        _ if leaf.is_nothing() => return,
        Some((Fate::Key(key), _)) => {
            import.set(key, leaf.value.clone());
            Ok(())
        }
        Some((Fate::With(translate), stars)) => translate(import, leaf, &stars),
        Some((Fate::Cannot(why), _)) => Err((*why).to_owned()),
        None => Err("there is no such setting here".to_owned()),
    };
    if let Err(why) = outcome {
        import.leave(leaf, why);
    }
}

/// What the stars of `pattern` stand for in `path`, if it fits.
fn matches<'a>(pattern: &str, path: &[&'a str]) -> Option<Vec<&'a str>> {
    let mut stars = Vec::new();
    let mut rest = path.iter();
    for part in pattern.split('/') {
        if part == "**" {
            return Some(stars);
        }
        let have = rest.next()?;
        if part == "*" {
            stars.push(*have);
        } else if part != *have {
            return None;
        }
    }
    rest.next().is_none().then_some(stars)
}

/// "Checkpoints, please": to both runtimes that means restoring from images, too, which ours wants to be asked for.
pub(super) fn criu(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Result<(), String> {
    let wanted = leaf.value.as_bool().ok_or("is no boolean")?;
    import.set(if wanted { "checkpoints.restore_images" } else { "checkpoints.enabled" }, wanted.into());
    Ok(())
}

/// Said outright, it is meant; what neither has written is left to the node.
pub(super) fn selinux(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Result<(), String> {
    let wanted = leaf.value.as_bool().ok_or("is no boolean")?;
    import.set("selinux.labels", if wanted { "on" } else { "off" }.into());
    Ok(())
}

/// A time as Go writes it ("4h0m0s"), in seconds.
pub(super) fn go_seconds(text: &str) -> Option<f64> {
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).filter(|n| *n > 0)?;
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        let unit_end =
            rest.get(digits..)?.find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| digits + n);
        total += number
            * match rest.get(digits..unit_end)? {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = rest.get(unit_end..)?;
    }
    Some(total)
}

/// Sets one of our keys that is a length of time.
pub(super) fn set_time(import: &mut Import, key: &str, text: &str) -> Result<(), String> {
    let seconds = go_seconds(text).filter(|s| *s > 0.0).ok_or_else(|| format!("{text:?} is no time"))?;
    let milliseconds = (seconds * 1000.0).round().max(1.0);
    let text = if milliseconds % 1000.0 == 0.0 {
        format!("{}s", milliseconds / 1000.0)
    } else {
        format!("{milliseconds}ms")
    };
    import.set(key, text.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert_eq!(matches("a/*/c", &["a", "b.x", "c"]), Some(vec!["b.x"]));
        assert_eq!(matches("a/**", &["a", "b", "c"]), Some(vec![]));
        assert_eq!(matches("a/*", &["a"]), None);
        assert_eq!(matches("a", &["a", "b"]), None);
    }

    #[test]
    fn times() {
        assert_eq!(go_seconds("4h0m0s"), Some(14400.0));
        assert_eq!(go_seconds("1m30s"), Some(90.0));
        assert_eq!(go_seconds("250ms"), Some(0.25));
        for bad in ["5", "s", "5x", "é"] {
            assert_eq!(go_seconds(bad), None, "{bad}");
        }
    }
}
