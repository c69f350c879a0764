//! `$(NAME)` in env values, commands and arguments, as Kubernetes writes it. Not a shell.

use std::collections::HashMap;

/// Replaces `$(NAME)` by its value where it is known and leaves it as it is where not; `$$` is a plain `$`.
pub(crate) fn expand(text: &str, known: &HashMap<&str, &str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match known.get(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::expand;
    use std::collections::HashMap;

    #[test]
    fn references_escapes_and_what_only_looks_like_one() {
        let known = HashMap::from([("A", "1"), ("B_C", "two $(A)"), ("EMPTY", "")]);
        for (text, wanted) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B_C)", "two $(A)"),
            ("[$(EMPTY)]", "[]"),
            ("$(NOT)", "$(NOT)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A ${A} $", "$A ${A} $"),
            ("$(A", "$(A"),
            ("\u{e4}$(A)\u{f6}", "\u{e4}1\u{f6}"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &known), wanted, "{text}");
        }
    }
}
