//! Reading a specification's JSON: where it is wrong, and what other runtimes take that its types do not.
//!
//! What is right at once costs nothing more than its reading. Only text that fails is looked at again, for words of the
//! specification that the types miss (SCHED_FLAG_*), and for capabilities that nobody knows, which runc leaves out too: a
//! right that does not exist cannot be missed.

use crate::error::Kind;
use crate::{Error, Result, plan};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Larger than any configuration meant, in bytes.
pub const LARGEST: u64 = 16 << 20;

/// Reads a `Spec` or a `Process`; `name` is the file or field it comes from.
///
/// # Errors
/// `Invalid`, with the field: `config.json: process.user.uid: invalid type …`.
pub fn parse<T: DeserializeOwned>(name: &str, text: &[u8]) -> Result<T> {
    let strict = strict(name, text);
    let Err(error) = strict else { return strict };
    let Ok(mut value) = serde_json::from_slice::<Value>(text) else { return Err(error) };
    if !lenient(&mut value) {
        return Err(error);
    }
    serde_path_to_error::deserialize(value)
        .map_err(|error| invalid(name, &error.path().to_string(), error.inner()))
}

fn strict<T: DeserializeOwned>(name: &str, text: &[u8]) -> Result<T> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| invalid(name, &error.path().to_string(), error.inner()))?;
    json.end().map_err(|_| Error::new(Kind::Invalid, name, "something follows the JSON value"))?;
    Ok(value)
}

fn invalid(name: &str, path: &str, why: &serde_json::Error) -> Error {
    Error::new(Kind::Invalid, name, format!("{path}: {why}"))
}

/// True if something was changed.
fn lenient(value: &mut Value) -> bool {
    let whole = value.get("process").is_some();
    let process = if whole { &mut value["process"] } else { value };
    let flags = process.pointer_mut("/scheduler/flags").is_some_and(scheduler_flags);
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    let known = plan::capability_names();
    let rights = sets.into_iter().flat_map(|sets| sets.values_mut()).fold(false, |changed, set| {
        let Some(set) = set.as_array_mut() else { return changed };
        let before = set.len();
        // What is no text stays, to be refused.
        set.retain(|name| name.as_str().is_none_or(|name| is_known(&known, name)));
        changed || set.len() != before
    });
    flags || rights
}

fn is_known(known: &[String], name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let long = if name.starts_with("CAP_") { name } else { format!("CAP_{name}") };
    known.contains(&long)
}

/// The specification's words (config.md, "scheduler") for those of its Rust types.
fn scheduler_flags(flags: &mut Value) -> bool {
    const WORDS: [(&str, &str); 2] = [
        ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
        ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
    ];
    let mut changed = false;
    for flag in flags.as_array_mut().into_iter().flatten() {
        if let Some((_, word)) = WORDS.iter().find(|(word, _)| flag.as_str() == Some(word)) {
            *flag = Value::from(*word);
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxSchedulerFlag, Process, Spec};

    fn process(more: &str) -> String {
        format!(r#"{{"cwd": "/", "user": {{"uid": 0, "gid": 0}}, {more}}}"#)
    }

    #[test]
    fn a_wrong_field_is_named() {
        let error = |text: &str| parse::<Spec>("config.json", text.as_bytes()).unwrap_err().to_string();
        let wrong = r#"{"ociVersion": "1.0.0", "process": {"cwd": "/", "user": {"uid": -1, "gid": 0}}}"#;
        assert!(error(wrong).starts_with("config.json: process.user.uid:"), "{}", error(wrong));
        let more = r#"{"ociVersion": "1.0.0"} {}"#;
        assert!(error(more).contains("follows"), "{}", error(more));
        assert!(error("{").contains("config.json"));
    }

    #[test]
    fn words_of_the_specification_are_known_by_their_names() {
        let text = process(
            r#""scheduler": {"policy": "SCHED_OTHER",
                "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_RECLAIM"]}"#,
        );
        let process: Process = parse("process.json", text.as_bytes()).unwrap();
        let flags = process.scheduler().as_ref().unwrap().flags().clone().unwrap();
        use LinuxSchedulerFlag as F;
        assert_eq!(flags, [F::SchedResetOnFork, F::SchedFlagDLOverrun, F::SchedFlagReclaim]);
    }

    #[test]
    fn capabilities_nobody_knows_are_left_out_and_what_is_none_refused() {
        let text = process(r#""capabilities": {"bounding": ["CAP_CHOWN", "CAP_OF_TOMORROW", "KILL"]}"#);
        let read: Process = parse("process.json", text.as_bytes()).unwrap();
        let bounding = read.capabilities().as_ref().unwrap().bounding().clone().unwrap();
        assert_eq!(bounding.len(), 2);
        let text = process(r#""capabilities": {"bounding": [7, "CAP_OF_TOMORROW"]}"#);
        let error = parse::<Process>("process.json", text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("capabilities.bounding"), "{error}");
    }
}
