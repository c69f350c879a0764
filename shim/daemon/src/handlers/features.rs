//! What an OCI runtime says that it is able to do: its command `features` (runtime-spec, features.md).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// How long that command may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// As far as CRI asks. A runtime without that command (runc before 1.1, crun before 1.9) says nothing, and is taken at its
/// word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Able {
    pub(crate) recursive_read_only_mounts: bool,
    pub(crate) user_namespaces: bool,
}

/// One version of one program, called with some arguments.
type Program = (PathBuf, Vec<String>, Option<(SystemTime, u64)>);

/// Asked once of each version of a program.
#[derive(Debug, Default)]
pub(crate) struct Features {
    known: Mutex<HashMap<Program, Able>>,
}

impl Features {
    pub(super) async fn of(&self, path: &Path, args: &[String]) -> Able {
        let version = std::fs::metadata(path).ok().and_then(|meta| Some((meta.modified().ok()?, meta.len())));
        let program = (path.to_owned(), args.to_vec(), version);
        let find = || self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&program).copied();
        if let Some(able) = find() {
            return able;
        }
        let able = match ask(path, args).await {
            Ok(answer) => parse(&answer),
            Err(why) => {
                tracing::warn!("{} features: {why}: taken for one without any", path.display());
                Able::default()
            }
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Of a program that was replaced.
        known.retain(|(old, ..), _| old != path || version.is_none());
        known.insert(program, able);
        able
    }
}

async fn ask(path: &Path, args: &[String]) -> Result<serde_json::Value, String> {
    let mut command = tokio::process::Command::new(path);
    command.args(args).arg("features").process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let child = command.spawn().map_err(|e| e.to_string())?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(nix::unistd::Pid::from_raw);
    let output = match tokio::time::timeout(PATIENCE, child.wait_with_output()).await {
        Ok(output) => output.map_err(|e| e.to_string())?,
        Err(_) => {
            if let Some(group) = group {
                let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            }
            return Err(format!("no answer within {} s", PATIENCE.as_secs()));
        }
    };
    if !output.status.success() {
        return Err(output.status.to_string());
    }
    serde_json::from_slice(&output.stdout).map_err(|e| format!("its answer is no JSON: {e}"))
}

fn parse(answer: &serde_json::Value) -> Able {
    let lists = |list: &serde_json::Value, word: &str| {
        list.as_array().is_some_and(|list| list.iter().any(|item| item == word))
    };
    let linux = &answer["linux"];
    let mapped = linux["mountExtensions"]["idmap"]["enabled"] == true;
    Able {
        recursive_read_only_mounts: lists(&answer["mountOptions"], "rro"),
        user_namespaces: mapped && lists(&linux["namespaces"], "user"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn features_are_read_where_the_specification_has_them() {
        let all = json!({
            "mountOptions": ["ro", "rro"],
            "linux": {"namespaces": ["mount", "user"], "mountExtensions": {"idmap": {"enabled": true}}},
        });
        assert_eq!(parse(&all), Able { recursive_read_only_mounts: true, user_namespaces: true });
        for less in [
            json!({}),
            json!([1]),
            json!({"linux": {"namespaces": ["user"]}}),
            json!({"mountOptions": "rro"}),
        ] {
            assert_eq!(parse(&less), Able::default(), "{less}");
        }
        // Ours speaks of itself in the same words.
        assert_eq!(parse(&slipway_runtime::features::features("1.3.0")), parse(&all));
    }

    #[tokio::test]
    async fn a_program_is_asked_once_and_again_when_it_was_replaced() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("runtime");
        let script = |answer: &str| {
            let counted = format!("echo x >> {}/calls\n{answer}", dir.path().display());
            crate::testing::script(&path, &counted);
        };
        let calls = || std::fs::read_to_string(dir.path().join("calls")).unwrap_or_default().lines().count();
        let features = Features::default();
        script("echo '{\"mountOptions\":[\"rro\"]}'");
        for _ in 0..2 {
            assert!(features.of(&path, &[]).await.recursive_read_only_mounts);
        }
        assert_eq!(calls(), 1);
        for (answer, count) in [("echo garbage", 2), ("exit 1", 3)] {
            script(answer);
            for _ in 0..2 {
                assert_eq!(features.of(&path, &[]).await, Able::default());
            }
            assert_eq!(calls(), count, "{answer}");
        }
        assert_eq!(features.of(&dir.path().join("absent"), &[]).await, Able::default());
    }
}
