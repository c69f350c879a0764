//! containers-policy.json(5) as rules of `images.policy`.
//!
//! What cannot be translated refuses its images here and is named: nothing is let in that was kept out.

use super::{Import, Left, text_of};
use crate::config::sources::Origin;
use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};
use slipway_images::Prefix;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Deserialize)]
struct File {
    default: Vec<Value>,
    /// Only docker's are registries; archives and daemons are no place that pulls come from.
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Value>>>,
}

/// What a list of requirements becomes.
enum Fate {
    Accept,
    Reject,
    Signed(toml::Table),
}

/// Reads `path` into `import`.
///
/// # Errors
/// A file that cannot be read, or is no such policy.
pub(super) fn translate(import: &mut Import, path: &Path) -> Result<()> {
    let text = text_of(path)?;
    let file: File = serde_json::from_str(&text)
        .with_context(|| format!("{}: it is no containers-policy.json(5)", path.display()))?;
    let mut scopes = file.transports.get("docker").cloned().unwrap_or_default();
    let everything = scopes.remove("").unwrap_or(file.default);
    let mut rules = Vec::new();
    for (scope, requirements) in [("*".to_owned(), everything)].into_iter().chain(scopes) {
        let line = text.lines().position(|line| line.contains(&format!("\"{scope}\"")));
        let at = Origin { file: path.to_owned(), line: line.map_or(1, |line| line + 1) };
        let mut leave =
            |why: String| import.left.push(Left { at: at.clone(), key: format!("policy of {scope}"), why });
        if let Err(why) = scope.parse::<Prefix>() {
            leave(why);
            continue;
        }
        let fate = requirements_of(&requirements, &scope, &mut leave).unwrap_or_else(|why| {
            leave(format!("{why}; its images are refused here until you decide"));
            Fate::Reject
        });
        let mut rule = toml::Table::new();
        rule.insert("prefix".into(), scope.clone().into());
        match fate {
            // So it is without any rule.
            Fate::Accept if scope == "*" => continue,
            Fate::Accept => rule.insert("rule".into(), "accept".into()),
            Fate::Reject => rule.insert("rule".into(), "reject".into()),
            Fate::Signed(more) => {
                rule.extend(more);
                rule.insert("rule".into(), "signed".into())
            }
        };
        rules.push(toml::Value::Table(rule));
    }
    if !rules.is_empty() {
        import.set("images.policy", toml::Value::Array(rules));
    }
    Ok(())
}

/// Nothing below `prefix` may be used, whatever rules there are already.
pub(super) fn reject(import: &mut Import, prefix: &Prefix) {
    let prefix = prefix.to_string();
    let known = import.config.get("images").and_then(|images| images.get("policy"));
    let mut rules = known.and_then(toml::Value::as_array).cloned().unwrap_or_default();
    let below = format!("{prefix}/");
    rules.retain(|rule| {
        let other = rule.get("prefix").and_then(toml::Value::as_str).unwrap_or_default();
        other != prefix && !other.starts_with(&below)
    });
    let mut rule = toml::Table::new();
    rule.insert("prefix".into(), prefix.into());
    rule.insert("rule".into(), "reject".into());
    rules.push(toml::Value::Table(rule));
    import.set("images.policy", toml::Value::Array(rules));
}

/// All of `requirements` must be met.
fn requirements_of(
    requirements: &[Value],
    scope: &str,
    leave: &mut impl FnMut(String),
) -> Result<Fate, String> {
    let kind = |one: &Value| one["type"].as_str().unwrap_or_default().to_owned();
    if requirements.iter().any(|one| kind(one) == "reject") {
        return Ok(Fate::Reject);
    }
    let more: Vec<_> = requirements.iter().filter(|one| kind(one) != "insecureAcceptAnything").collect();
    match more.as_slice() {
        [] if requirements.is_empty() => Err("it has no requirement".into()),
        [] => Ok(Fate::Accept),
        [one] if kind(one) == "sigstoreSigned" => signed(one, scope, leave).map(Fate::Signed),
        [one] => Err(format!("requirements of type {:?} are not known here", kind(one))),
        _ => Err("several signatures at once cannot be asked for here".into()),
    }
}

fn signed(one: &Value, scope: &str, leave: &mut impl FnMut(String)) -> Result<toml::Table, String> {
    let empty = Map::new();
    let members = one.as_object().unwrap_or(&empty);
    let mut keys: Vec<toml::Value> = Vec::new();
    for (name, value) in members {
        let list = || value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        let texts = || list().iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
        match name.as_str() {
            "type" | "signedIdentity" => {}
            "keyPath" | "keyPaths" => keys.extend(texts().into_iter().map(Into::into)),
            "keyData" | "keyDatas" => {
                for text in texts() {
                    let pem = STANDARD.decode(&text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
                    keys.push(pem.ok_or_else(|| format!("{name} is not base64 of PEM"))?.into());
                }
            }
            "fulcio" | "pki" => {
                return Err(format!("{name}: certificates are not looked at here, only keys"));
            }
            _ if name.starts_with("rekor") => {
                return Err(format!("{name}: transparency logs are not looked at here"));
            }
            _ => return Err(format!("{name} is not known here")),
        }
    }
    if keys.is_empty() {
        return Err("it names no key".into());
    }
    let mut table = toml::Table::new();
    table.insert("keys".into(), toml::Value::Array(keys));
    let identity = &one["signedIdentity"];
    let text = |key: &str| identity[key].as_str().unwrap_or_default().to_owned();
    match identity["type"].as_str() {
        Some("matchRepository") => {}
        None | Some("matchRepoDigestOrExact" | "matchExact") => leave(
            "signedIdentity: a signature is good for all tags of its repository here (matchRepository)"
                .into(),
        ),
        Some("remapIdentity") if text("prefix") == scope => {
            table.insert("signed_as".into(), text("signedPrefix").into());
        }
        // The scope is a repository: it and no other has another name.
        Some("exactRepository") if scope.contains('/') => {
            leave(format!(
                "signedIdentity: repositories below {scope} are signed as those below {} here",
                text("dockerRepository")
            ));
            table.insert("signed_as".into(), text("dockerRepository").into());
        }
        Some(other) => return Err(format!("signedIdentity {other:?} cannot be said here of {scope}")),
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(policy: &str) -> (Import, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("policy.json");
        std::fs::write(&path, policy).expect("policy");
        let mut import = Import::default();
        translate(&mut import, &path).expect("translated");
        (import, dir)
    }

    /// As Debian and Fedora ship it.
    #[test]
    fn a_policy_that_accepts_all_is_none() {
        let (import, _dir) = translated(
            r#"{"default": [{"type": "insecureAcceptAnything"}],
                "transports": {"docker-daemon": {"": [{"type": "insecureAcceptAnything"}]}}}"#,
        );
        assert!(import.config.is_empty() && import.left.is_empty(), "{import:?}");
    }

    #[test]
    fn rules_are_translated_and_what_is_not_is_refused_and_named() {
        let inline = STANDARD.encode("-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n");
        let policy = serde_json::json!({
            "default": [{"type": "reject"}],
            "transports": {"docker": {
                "docker.io/library": [{"type": "insecureAcceptAnything"}],
                "reg.example/one": [{"type": "sigstoreSigned", "keyPath": "/keys/one.pub", "signedIdentity": {"type": "matchRepository"}}],
                "reg.example/two": [{"type": "sigstoreSigned", "keyData": inline, "keyPaths": ["/a", "/b"],
                    "signedIdentity": {"type": "remapIdentity", "prefix": "reg.example/two", "signedPrefix": "build.example/two"}}],
                "*.exact.example": [{"type": "sigstoreSigned", "keyPath": "/keys/exact.pub"}],
                "gpg.example": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}],
                "log.example": [{"type": "sigstoreSigned", "keyPath": "/k", "rekorPublicKeyPath": "/r"}],
                "people.example": [{"type": "sigstoreSigned", "fulcio": {"oidcIssuer": "x"}}],
                "reg.example/one:tag": [{"type": "reject"}],
            }},
        });
        let (import, _dir) = translated(&policy.to_string());
        let file: crate::config::File = import.config.clone().try_into().expect("ours");
        let rules = crate::config::policy::rules(&file.images.policy).expect("in order");
        let shown: Vec<_> =
            file.images.policy.iter().map(|rule| (rule.prefix.to_string(), rule.rule)).collect();
        use crate::config::policy::Kind::{Accept, Reject, Signed};
        let wanted = [
            ("*", Reject),
            ("*.exact.example", Signed),
            ("docker.io/library", Accept),
            ("gpg.example", Reject),
            ("log.example", Reject),
            ("people.example", Reject),
            ("reg.example/one", Signed),
            ("reg.example/two", Signed),
        ];
        assert_eq!(shown, wanted.map(|(prefix, kind)| (prefix.to_owned(), kind)));
        assert_eq!(rules.len(), wanted.len());
        let two = &file.images.policy[7];
        assert_eq!(two.signed_as.as_deref(), Some("build.example/two"));
        assert!(two.keys.len() == 3 && two.keys[0].starts_with("-----BEGIN"), "{two:?}");
        let left: Vec<_> = import.left.iter().map(|left| (left.key.as_str(), left.why.as_str())).collect();
        for (key, word) in [
            ("policy of *.exact.example", "all tags"),
            ("policy of gpg.example", "signedBy"),
            ("policy of log.example", "rekorPublicKeyPath"),
            ("policy of people.example", "fulcio"),
            ("policy of reg.example/one:tag", "not for tags"),
        ] {
            assert!(left.iter().any(|(k, why)| *k == key && why.contains(word)), "{key}: {left:?}");
        }
        assert_eq!(left.len(), 5);
    }
}
