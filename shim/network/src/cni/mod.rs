//! CNI as the reference library does it: the five operations over a list of plugins.
//!
//! ```text
//!  conf_dir ──config──▶ NetworkList ──ADD──▶ plugin 1 ──prevResult──▶ plugin 2 … ──▶ final result
//!                                   ◀──DEL── in reverse, with the list and the result of the ADD
//! ```
//! Owns how plugins are called; never decides whether (that is `network`), never keeps records (that is `record`).

pub(crate) mod args;
pub(crate) mod config;
pub(crate) mod plugin;
pub(crate) mod result;

use crate::error::{Error, Result};
use config::{NetworkList, Object, at_least, field};
use plugin::{AttachmentEnv, Call, Command, Failure};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// The one interface a pod has.
pub(crate) const IFNAME: &str = "eth0";

const UNKNOWN_CONTAINER: u64 = 3;
pub(crate) const TRY_AGAIN: u64 = 11;

/// Everything that must be the same in ADD, CHECK and DEL of one pod (CNI-12, CNI-26 to CNI-28). This is the cached
/// form: it is written before the ADD and completed with the result after it.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct CniAttachment {
    pub(crate) list: NetworkList,
    pub(crate) ifname: String,
    pub(crate) cni_args: String,
    pub(crate) capability_args: Map<String, Value>,
    /// The final result of ADD in the version of the list; none while ADD is under way or failed.
    pub(crate) result: Option<Value>,
}

/// One container, as the operations see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) container_id: &'a str,
    /// None when the namespace is gone.
    pub(crate) netns: Option<&'a Path>,
}

/// Why an operation over the list failed.
#[derive(Debug)]
pub(crate) struct OpError {
    pub(crate) error: Error,
    pub(crate) failure: Failure,
}

/// How plugins are found and how long they may take.
#[derive(Debug)]
pub(crate) struct Cni {
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// For one whole operation over the list.
    pub(crate) timeout: Duration,
}

impl Cni {
    /// CNI-10. The result, in the version of the list; none if no plugin gave one (legal before 0.3).
    pub(crate) async fn add(&self, a: &CniAttachment, target: Target<'_>) -> Result<Option<Value>, OpError> {
        let netns = netns_text(target);
        let call = self.call(Command::Add, Some(env(a, target, &netns)));
        let mut previous: Option<Value> = None;
        for plugin in &a.list.plugins {
            let out = self.one(&a.list, plugin, previous.as_ref(), Some(a), &[], &call).await?;
            let result = result::parse(&out, &a.list.cni_version)
                .map_err(|text| op_error(&a.list, plugin, Command::Add, said(text)))?;
            previous = result.map(|r| result::convert(&r, &a.list.cni_version)).or(previous);
        }
        Ok(previous)
    }

    /// CNI-11, CNI-12. Repeatable; stops at the first plugin that fails.
    pub(crate) async fn del(&self, a: &CniAttachment, target: Target<'_>) -> Result<(), OpError> {
        let netns = netns_text(target);
        let call = self.call(Command::Del, Some(env(a, target, &netns)));
        // Before 0.4 DEL had no prevResult.
        let previous = a.result.as_ref().filter(|_| at_least(&a.list.cni_version, "0.4.0"));
        for plugin in a.list.plugins.iter().rev() {
            let mut tries = 0;
            loop {
                let Err(e) = self.one(&a.list, plugin, previous, Some(a), &[], &call).await else { break };
                if e.failure.code == Some(UNKNOWN_CONTAINER) {
                    break; // CNI-21: nothing to do is success
                }
                if target.netns.is_none()
                    && e.failure.text.to_lowercase().contains("no such file or directory")
                {
                    break; // CNI-RT-12: it missed the namespace, which is gone
                }
                let pause = Duration::from_secs(1);
                if e.failure.code == Some(TRY_AGAIN) && tries < 3 && Instant::now() + pause < call.deadline {
                    tries += 1;
                    tokio::time::sleep(pause).await;
                    continue;
                }
                return Err(e);
            }
        }
        Ok(())
    }

    /// CNI-28. Silent success where CHECK does not exist: before 0.4, with disableCheck, without a result.
    pub(crate) async fn check(&self, a: &CniAttachment, target: Target<'_>) -> Result<(), OpError> {
        if a.list.disable_check || !at_least(&a.list.cni_version, "0.4.0") || a.result.is_none() {
            return Ok(());
        }
        let netns = netns_text(target);
        let call = self.call(Command::Check, Some(env(a, target, &netns)));
        for plugin in &a.list.plugins {
            self.one(&a.list, plugin, a.result.as_ref(), Some(a), &[], &call).await?;
        }
        Ok(())
    }

    /// CNI-18, CNI-RT-20: can the plugins ADD now? Configurations before 1.1 cannot be asked (CNI-04).
    pub(crate) async fn status(&self, list: &NetworkList, patience: Duration) -> Result<(), OpError> {
        if !at_least(&list.cni_version, "1.1.0") {
            for plugin in &list.plugins {
                let kind = kind(plugin);
                plugin::find(&kind, &self.bin_dirs)
                    .map_err(|f| op_error(list, plugin, Command::Status, f))?;
            }
            return Ok(());
        }
        let mut call = self.call(Command::Status, None);
        call.deadline = call.deadline.min(Instant::now() + patience);
        for plugin in &list.plugins {
            self.one(list, plugin, None, None, &[], &call).await?;
        }
        Ok(())
    }

    /// CNI-15, CNI-16: tells every plugin which attachments are alive; goes on after errors (CNI-13) and returns them.
    pub(crate) async fn gc(&self, list: &NetworkList, valid: &[(String, String)]) -> Vec<Error> {
        if list.disable_gc || !at_least(&list.cni_version, "1.1.0") {
            return Vec::new();
        }
        let alive: Vec<Value> = valid
            .iter()
            .map(|(id, ifname)| serde_json::json!({"containerID": id, "ifname": ifname}))
            .collect();
        let alive = Value::Array(alive);
        let extra = [("cni.dev/valid-attachments", &alive), ("cni.dev/attachments", &alive)];
        let mut errors = Vec::new();
        for plugin in &list.plugins {
            let call = self.call(Command::Gc, None);
            if let Err(e) = self.one(list, plugin, None, None, &extra, &call).await {
                errors.push(e.error);
            }
        }
        errors
    }

    fn call<'a>(&'a self, command: Command, attachment: Option<AttachmentEnv<'a>>) -> Call<'a> {
        Call { command, attachment, bin_dirs: &self.bin_dirs, deadline: Instant::now() + self.timeout }
    }

    /// One plugin of the list.
    async fn one(
        &self,
        list: &NetworkList,
        plugin: &Object,
        previous: Option<&Value>,
        attachment: Option<&CniAttachment>,
        extra: &[(&str, &Value)],
        call: &Call<'_>,
    ) -> Result<Vec<u8>, OpError> {
        let capability_args = attachment.map(|a| &a.capability_args);
        let config = request(list, plugin, previous, capability_args, extra)
            .map_err(|e| op_error(list, plugin, call.command, said(format!("its configuration: {e}"))))?;
        plugin::run(&kind(plugin), &config, call).await.map_err(|f| op_error(list, plugin, call.command, f))
    }
}

fn env<'a>(a: &'a CniAttachment, target: Target<'a>, netns: &'a str) -> AttachmentEnv<'a> {
    AttachmentEnv { container_id: target.container_id, netns, ifname: &a.ifname, args: &a.cni_args }
}

fn netns_text(target: Target<'_>) -> String {
    target.netns.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The loader made sure that there is one.
fn kind(plugin: &Object) -> String {
    field(plugin, "type").ok().flatten().unwrap_or_default()
}

fn said(text: String) -> Failure {
    Failure { code: None, text, timed_out: false, missing: false }
}

fn op_error(list: &NetworkList, plugin: &Object, command: Command, failure: Failure) -> OpError {
    let object = format!("plugin {} of CNI network {}", kind(plugin), list.name);
    let mut error = Error::new(format!("CNI {}", command.name()), object, &failure.text);
    if failure.timed_out {
        error = error.hint("see the plugin's own log; what it left is taken back with DEL");
    }
    OpError { error, failure }
}

/// CNI-08, CNI-09: the plugin's object with our keys.
fn request(
    list: &NetworkList,
    plugin: &Object,
    previous: Option<&Value>,
    capability_args: Option<&Map<String, Value>>,
    extra: &[(&str, &Value)],
) -> serde_json::Result<Vec<u8>> {
    let mut object = plugin.clone();
    let mut set = |key: &str, value: Box<RawValue>| object.insert(key.to_owned(), value);
    set("cniVersion", to_raw_value(&list.cni_version)?);
    set("name", to_raw_value(&list.name)?);
    if let Some(previous) = previous {
        set("prevResult", to_raw_value(previous)?);
    }
    for (key, value) in extra {
        set(key, to_raw_value(value)?);
    }
    let declared = object.remove("capabilities");
    let declared: Map<String, Value> =
        declared.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    let wanted = |key: &String| declared.get(key) == Some(&Value::Bool(true));
    let runtime: Map<String, Value> = capability_args
        .into_iter()
        .flatten()
        .filter(|(key, _)| wanted(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if !runtime.is_empty() {
        object.insert("runtimeConfig".into(), to_raw_value(&runtime)?);
    }
    serde_json::to_vec(&object)
}

/// Attachments of other runtimes to the same network, found in the cache that the reference library keeps. GC must
/// name them too, else it would free the addresses of their live pods (CNI-16).
pub(crate) fn foreign_attachments(cache: &Path, network: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(cache).into_iter().flatten().flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        let Ok(value) = serde_json::from_str::<Value>(&text) else { continue };
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        if let (Some(id), Some(ifname)) = (text("containerId"), text("ifName"))
            && text("networkName").as_deref() == Some(network)
        {
            found.push((id, ifname));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> NetworkList {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.conflist");
        std::fs::write(&file, text).unwrap();
        config::load(&file).unwrap()
    }

    #[test]
    fn a_request_is_the_plugins_object_with_our_keys() {
        // CNI-08, CNI-09
        let list = list(
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[
            {"type":"a","cniVersion":"0.1.0","big":123456789012345678901234567890,"f":1.10,"x":{"y":[1e2]},
             "capabilities":{"portMappings":true,"dns":false,"mac":true}}]}"#,
        );
        let mut caps = Map::new();
        caps.insert("portMappings".into(), serde_json::json!([{"hostPort": 1}]));
        caps.insert("dns".into(), serde_json::json!({}));
        let bytes = request(&list, &list.plugins[0], None, Some(&caps), &[]).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("\"big\":123456789012345678901234567890"), "{text}");
        assert!(text.contains("\"f\":1.10") && text.contains("[1e2]"), "{text}");
        assert!(!text.contains("capabilities") && !text.contains("prevResult"), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["cniVersion"], "1.0.0");
        assert_eq!(value["runtimeConfig"], serde_json::json!({"portMappings": [{"hostPort": 1}]}));
        let none = request(&list, &list.plugins[0], None, Some(&Map::new()), &[]).unwrap();
        assert!(!String::from_utf8(none).unwrap().contains("runtimeConfig"));
    }

    #[test]
    fn other_runtimes_attachments_are_found_in_the_reference_cache() {
        // CNI-16
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("n-c1-eth0", r#"{"kind":"cniCacheV1","containerId":"c1","ifName":"eth0","networkName":"n"}"#);
        write("m-c2-eth0", r#"{"kind":"cniCacheV1","containerId":"c2","ifName":"eth0","networkName":"m"}"#);
        write("junk", "{");
        assert_eq!(foreign_attachments(dir.path(), "n"), [("c1".to_owned(), "eth0".to_owned())]);
        assert!(foreign_attachments(Path::new("/nonexistent"), "n").is_empty());
    }
}
