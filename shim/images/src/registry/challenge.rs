//! What `WWW-Authenticate` says (RFC 9110 section 11). Pure.

/// One challenge: its scheme in lower case and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// All challenges of one header value. Values may be quoted and hold commas and escaped quotes (IMG-AUTH-02).
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let word_end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        if word.is_empty() {
            return challenges;
        }
        let after = after.trim_start_matches([' ', '\t']);
        match (after.strip_prefix('='), challenges.last_mut()) {
            (Some(value), Some(challenge)) => {
                let (value, left) = value_of(value.trim_start_matches([' ', '\t']));
                challenge.parameters.push((word.to_ascii_lowercase(), value));
                rest = left;
            }
            (Some(_), None) => return challenges,
            (None, _) => {
                challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                rest = after;
            }
        }
    }
}

fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    // IMG-AUTH-01, -02
    #[test]
    fn quotes_commas_and_several() {
        let header = r#"Bearer realm="https://a/t?x=1,2",service="s \"q\" \\", scope="repository:a:pull,push" , Basic realm=plain"#;
        let found = parse(header);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].scheme, "bearer");
        assert_eq!(found[0].get("realm"), Some("https://a/t?x=1,2"));
        assert_eq!(found[0].get("service"), Some(r#"s "q" \"#));
        assert_eq!(found[0].get("scope"), Some("repository:a:pull,push"));
        assert_eq!(found[1].scheme, "basic");
        assert_eq!(found[1].get("realm"), Some("plain"));
        for odd in ["", ",", "=", "a=", "Bearer", "Bearer realm=\"x", "Bearer =x", "\"", "Bearer realm=\"\\"]
        {
            parse(odd);
        }
    }
}
