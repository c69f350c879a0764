//! What the error stream says at the end: Kubernetes' `metav1.Status` as JSON from version 4 on, a sentence before.

use crate::Error;
use crate::protocol::Version;
use serde_json::json;

/// How a session ended, for the error stream; `None`: nothing is written.
pub(crate) fn encode(version: Version, outcome: &Result<u8, Error>) -> Option<String> {
    if version.has_status() {
        return Some(status(outcome).to_string());
    }
    // STR-STM-13.
    match outcome {
        Ok(0) => None,
        Ok(code) => Some(terminated(*code)),
        Err(error) => Some(error.to_string()),
    }
}

/// STR-STM-09 to STR-STM-12.
fn status(outcome: &Result<u8, Error>) -> serde_json::Value {
    match outcome {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": terminated(*code),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => json!({
            "metadata": {},
            "status": "Failure",
            "message": error.to_string(),
            "reason": "InternalError",
            "details": {"causes": [{"message": error.to_string()}]},
            "code": 500,
        }),
    }
}

fn terminated(code: u8) -> String {
    format!("command terminated with non-zero exit code: exit status {code}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(protocol: &str, outcome: &Result<u8, Error>) -> Option<String> {
        encode(Version::of(protocol), outcome)
    }

    /// STR-STM-09, STR-STM-10, STR-STM-11, STR-STM-12.
    #[test]
    fn version_4_is_json() {
        let value = |outcome| -> serde_json::Value {
            serde_json::from_str(&said("v4.channel.k8s.io", &outcome).unwrap()).unwrap()
        };
        assert_eq!(value(Ok(0)), json!({"metadata": {}, "status": "Success"}));
        let failed = value(Ok(255));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"], json!([{"reason": "ExitCode", "message": "255"}]));
        let error = value(Err("no such file".into()));
        assert_eq!((error["reason"].clone(), error["code"].clone()), (json!("InternalError"), json!(500)));
        assert!(error["message"].as_str().unwrap().contains("no such file"));
    }

    /// STR-STM-13, STR-TST-12.
    #[test]
    fn older_ones_are_text() {
        for old in ["channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io"] {
            assert_eq!(said(old, &Ok(0)), None);
            assert!(said(old, &Ok(7)).unwrap().contains("exit status 7"));
            assert_eq!(said(old, &Err("broken".into())), Some("broken".into()));
        }
    }
}
