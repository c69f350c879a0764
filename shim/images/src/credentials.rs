//! The node's own credentials: docker's config.json (containers-auth.json(5) is the same with paths), and its helpers.
//!
//! Read anew for each pull. Nothing of the file's content gets into an error.

use crate::reference::registry_of;
use crate::types::Auth;
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A helper that talks to a cloud needs a moment; one that hangs must not hang a pull for ever.
const HELPER: Duration = Duration::from_secs(30);
/// How docker calls its own registry in this file.
const DOCKER: &str = "https://index.docker.io/v1/";

/// The file, parsed.
pub(crate) struct Credentials {
    path: PathBuf,
    wire: Wire,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Wire {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: String,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// What a helper answers on standard output.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl Credentials {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| Error::io("read credentials", path, e))?;
        // serde's own text would show what it stumbled over.
        let wire = serde_json::from_slice(&text).map_err(|e| {
            let place = format!("line {}, column {}", e.line(), e.column());
            Error::invalid("read credentials", path.display(), format!("{place}: not docker's config.json"))
        })?;
        Ok(Self { path: path.to_owned(), wire })
    }

    /// What there is for `host` (as a reference or hosts.toml names it) and `repository`: the closest path, else a helper.
    pub(crate) fn of(&self, host: &str, repository: &str) -> Result<Option<Auth>> {
        let wanted = format!("{}/{repository}", plain(host));
        let fits = |key: &str| {
            let key = plain(key);
            wanted == key || wanted.strip_prefix(&key).is_some_and(|rest| rest.starts_with('/'))
        };
        let mut entries: Vec<_> = self.wire.auths.iter().filter(|(key, _)| fits(key)).collect();
        entries.sort_by_key(|(key, _)| plain(key).len());
        let helper =
            self.wire.helpers.iter().find(|(key, _)| plain(key) == plain(host)).map(|(_, name)| name);
        if let Some(name) = helper {
            return self.ask(name, host);
        }
        // With a store docker leaves empty entries.
        if let Some((_, entry)) = entries.pop().filter(|(_, entry)| !entry.is_empty()) {
            return Ok(Some(entry.auth()));
        }
        if self.wire.store.is_empty() { Ok(None) } else { self.ask(&self.wire.store, host) }
    }

    /// docker-credential-helpers' protocol: the server on standard input of `get`, JSON on standard output.
    fn ask(&self, name: &str, host: &str) -> Result<Option<Auth>> {
        let program = format!("docker-credential-{name}");
        let failed =
            |why: String| Error::invalid("ask credential helper", format!("{program} for {host}"), why);
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        {
            let why = format!("{name:?} in {} is no name of a helper", self.path.display());
            return Err(Error::invalid("ask credential helper", host, why));
        }
        let child = Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.map_err(|e| failed(format!("{e}: is it in PATH?")))?;
        if let Some(mut stdin) = child.stdin.take() {
            let server = if plain(host) == "docker.io" { DOCKER } else { host };
            // One that needs no input may have gone already: its answer tells.
            let _ = stdin.write_all(server.as_bytes());
        }
        let deadline = Instant::now() + HELPER;
        while child.try_wait().map_err(|e| failed(e.to_string()))?.is_none() {
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("no answer within {} s", HELPER.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            // The helpers' own words for "none".
            let none = said.contains("credentials not found") || said.contains("no credentials");
            return if none { Ok(None) } else { Err(failed(format!("it ended with {}", output.status))) };
        }
        let answer: Answer =
            serde_json::from_str(&said).map_err(|_| failed("it answered no credentials".into()))?;
        Ok(Some(if answer.username == "<token>" {
            Auth { identity_token: answer.secret, ..Auth::default() }
        } else {
            Auth { username: answer.username, password: answer.secret, ..Auth::default() }
        }))
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        [&self.auth, &self.username, &self.identitytoken, &self.registrytoken]
            .iter()
            .all(|text| text.is_empty())
    }

    fn auth(&self) -> Auth {
        Auth {
            username: self.username.clone(),
            password: self.password.clone(),
            auth: self.auth.clone(),
            identity_token: self.identitytoken.clone(),
            registry_token: self.registrytoken.clone(),
            ..Auth::default()
        }
    }
}

/// A key of the file as `host[:port][/path]`; docker's registry has many names.
fn plain(key: &str) -> String {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest).trim_end_matches('/');
    let rest = rest.strip_suffix("/v1").or(rest.strip_suffix("/v2")).unwrap_or(rest);
    let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
    let host = host.to_ascii_lowercase();
    let host = registry_of(&host);
    if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(text: &str) -> Credentials {
        Credentials { path: "/auth.json".into(), wire: serde_json::from_str(text).unwrap() }
    }

    fn user(credentials: &Credentials, host: &str, repository: &str) -> Option<String> {
        credentials.of(host, repository).unwrap().map(|auth| auth.username)
    }

    #[test]
    fn the_closest_entry_counts() {
        let found = credentials(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"username": "hub"},
                "reg.example:5000": {"username": "all"},
                "reg.example:5000/team": {"username": "team"},
                "other.example": {}
            }}"#,
        );
        assert_eq!(user(&found, "docker.io", "library/x").as_deref(), Some("hub"));
        assert_eq!(user(&found, "registry-1.docker.io", "library/x").as_deref(), Some("hub"));
        assert_eq!(user(&found, "REG.example:5000", "x").as_deref(), Some("all"));
        assert_eq!(user(&found, "reg.example:5000", "team/x").as_deref(), Some("team"));
        assert_eq!(user(&found, "reg.example:5000", "teams/x").as_deref(), Some("all"));
        assert_eq!(user(&found, "reg.example", "x"), None, "another port is another registry");
        assert_eq!(user(&found, "other.example", "x"), None);
    }

    #[test]
    fn a_file_that_is_none_is_named_without_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, r#"{"auths": {"a": "geheim"}}"#).unwrap();
        let error = Credentials::read(&file).err().unwrap().to_string();
        assert!(error.contains("line 1") && error.contains("config.json"), "{error}");
        assert!(!error.contains("geheim"), "{error}");
    }

    #[test]
    fn helpers_by_name_only() {
        let found = credentials(r#"{"credHelpers": {"a.example": "../evil", "b.example": "is-not-there"}}"#);
        let error = found.of("a.example", "x").err().unwrap().to_string();
        assert!(error.contains("no name of a helper"), "{error}");
        let error = found.of("b.example", "x").err().unwrap().to_string();
        assert!(error.contains("docker-credential-is-not-there"), "{error}");
        assert!(found.of("c.example", "x").unwrap().is_none());
    }
}
