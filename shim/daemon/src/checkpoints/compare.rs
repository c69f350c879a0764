//! Whether what is asked for can be what was frozen. Memory, rights and mounts of a restored process are the checkpoint's,
//! whatever a request says: one that says something else is refused with the names of what differs, rather than answered by
//! another container than it asked for.

use crate::error::{Error, Result};
use cri_proto::v1;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What of a spec the checkpoint decides: where it is, and how it is said to people.
const SAME: [(&str, &str); 9] = [
    ("/process/user", "user and groups"),
    ("/process/capabilities", "capabilities"),
    ("/process/noNewPrivileges", "no_new_privs"),
    ("/process/apparmorProfile", "AppArmor profile"),
    ("/process/terminal", "tty"),
    ("/root/readonly", "read-only root"),
    ("/linux/seccomp", "seccomp profile"),
    ("/linux/maskedPaths", "masked paths"),
    ("/linux/readonlyPaths", "read-only paths"),
];

/// Options of mounts that mean nothing beside their contraries.
const IDLE: [&str; 3] = ["rbind", "rprivate", "rw"];

/// Takes the process of the frozen container over into the spec that a request has made.
///
/// # Errors
/// InvalidArgument that names what the two do not have in common.
pub(super) fn adopt(made: &mut Value, frozen: &Value) -> Result<()> {
    let mut other: Vec<String> = SAME
        .iter()
        .filter(|(path, _)| plain(made.pointer(path)) != plain(frozen.pointer(path)))
        .map(|(_, name)| (*name).to_owned())
        .collect();
    if namespaces(made) != namespaces(frozen) {
        other.push("namespaces".into());
    }
    if devices(made) != devices(frozen) {
        other.push("devices".into());
    }
    let (ours, theirs) = (mounts(made), mounts(frozen));
    for (destination, mount) in &theirs {
        match ours.get(destination) {
            None => other.push(format!("the mount {destination}, which the request lacks")),
            Some(same) if same == mount => {}
            Some(_) => other.push(format!("the mount {destination}, whose options are others")),
        }
    }
    let more = ours.keys().filter(|destination| !theirs.contains_key(*destination));
    other.extend(more.map(|destination| format!("the mount {destination}, which the checkpoint lacks")));
    if !other.is_empty() {
        return Err(Error::invalid(format!(
            "a restored container is what it was when it was frozen, and the request differs from that in: {}",
            other.join("; ")
        )));
    }
    for key in ["args", "env", "cwd"] {
        made["process"][key] = frozen["process"][key].clone();
    }
    Ok(())
}

/// Lists as sets; what is absent, empty, false or null as nothing.
fn plain(value: Option<&Value>) -> Value {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => Value::Null,
        Some(Value::Array(items)) => {
            let mut items: Vec<Value> = items.iter().map(|item| plain(Some(item))).collect();
            items.sort_by_key(Value::to_string);
            if items.is_empty() { Value::Null } else { items.into() }
        }
        Some(Value::Object(fields)) => {
            let fields = fields.iter().map(|(key, value)| (key.clone(), plain(Some(value))));
            let fields: serde_json::Map<_, _> = fields.filter(|(_, value)| !value.is_null()).collect();
            if fields.is_empty() { Value::Null } else { fields.into() }
        }
        Some(other) => other.clone(),
    }
}

/// Kinds, and whether each was there before the container.
fn namespaces(spec: &Value) -> BTreeMap<String, bool> {
    let all = spec["linux"]["namespaces"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.map(|namespace| (text(&namespace["type"]), !text(&namespace["path"]).is_empty())).collect()
}

fn devices(spec: &Value) -> BTreeMap<String, Value> {
    let all = spec["linux"]["devices"].as_array().into_iter().flatten();
    let one = |device: &Value| {
        let path = device["path"].as_str().unwrap_or_default().to_owned();
        (path, json!([device["type"], device["major"], device["minor"]]))
    };
    all.map(one).collect()
}

/// By destination: kind, and the options that count. Sources are the request's to say.
fn mounts(spec: &Value) -> BTreeMap<String, (String, Vec<String>)> {
    let all = spec["mounts"].as_array().into_iter().flatten();
    let one = |mount: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let options = mount["options"].as_array().into_iter().flatten().map(text);
        let mut options: Vec<String> = options.filter(|option| !IDLE.contains(&option.as_str())).collect();
        options.sort();
        (text(&mount["destination"]), (text(&mount["type"]), options))
    };
    all.map(one).collect()
}

/// Whether a configuration describes the process that was frozen (CRI-CHKP-06).
///
/// # Errors
/// InvalidArgument that names the fields that differ.
pub(super) fn describes(asked: &v1::ContainerConfig, frozen: &v1::ContainerConfig) -> Result<()> {
    let envs = |config: &v1::ContainerConfig| -> BTreeMap<String, Vec<u8>> {
        config.envs.iter().map(|env| (env.key.clone(), env.value.clone())).collect()
    };
    let pairs = [
        ("command", asked.command == frozen.command),
        ("args", asked.args == frozen.args),
        ("working_dir", asked.working_dir == frozen.working_dir),
        ("envs", envs(asked) == envs(frozen)),
        ("stdin", (asked.stdin, asked.stdin_once) == (frozen.stdin, frozen.stdin_once)),
    ];
    let other: Vec<&str> = pairs.iter().filter(|(_, same)| !same).map(|(name, _)| *name).collect();
    if other.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(format!("its process was frozen with another {}", other.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::spec_of;

    fn made(change: impl FnOnce(&mut v1::ContainerConfig, &mut v1::LinuxContainerSecurityContext)) -> Value {
        spec_of(change).expect("spec")
    }

    /// CRI-CHK-05.
    #[test]
    fn the_process_is_the_checkpoint_s_and_limits_are_the_request_s() {
        let frozen = made(|c, _| {
            c.command = vec!["/was".into()];
            c.envs = vec![v1::KeyValue { key: "A".into(), value: "1".into() }];
        });
        let mut asked = made(|c, _| {
            let resources =
                v1::LinuxContainerResources { memory_limit_in_bytes: 1 << 30, ..Default::default() };
            c.linux.get_or_insert_default().resources = Some(resources);
        });
        let limit = asked["linux"]["resources"]["memory"]["limit"].clone();
        adopt(&mut asked, &frozen).expect("the same in all that counts");
        assert_eq!(asked["process"]["args"], frozen["process"]["args"]);
        assert!(asked["process"]["env"].to_string().contains("A=1"));
        assert_eq!(asked["linux"]["resources"]["memory"]["limit"], limit);
    }

    /// CRI-CHK-05, CRI-CHKP-06.
    #[test]
    fn what_a_restore_cannot_change_is_refused_by_name() {
        let frozen = made(|_, _| {});
        let mount = |host: &str| v1::Mount {
            host_path: host.into(),
            container_path: "/x".into(),
            ..Default::default()
        };
        for (word, asked) in [
            ("capabilities", made(|_, s| s.privileged = true)),
            ("no_new_privs", made(|_, s| s.no_new_privs = true)),
            ("read-only root", made(|_, s| s.readonly_rootfs = true)),
            ("tty", made(|c, _| c.tty = true)),
            ("/x, which the checkpoint lacks", made(|c, _| c.mounts = vec![mount("/tmp")])),
            ("namespaces", {
                made(|_, s| {
                    let options =
                        v1::NamespaceOption { ipc: v1::NamespaceMode::Node.into(), ..Default::default() };
                    s.namespace_options = Some(options);
                })
            }),
        ] {
            let error = adopt(&mut asked.clone(), &frozen).expect_err(word);
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
        let with = made(|c, _| c.mounts = vec![mount("/tmp")]);
        let elsewhere = adopt(&mut made(|c, _| c.mounts = vec![mount("/usr")]), &with);
        assert_eq!(elsewhere, Ok(()), "where a mount comes from is the request's to say");
        let read_only = |c: &mut v1::ContainerConfig, _: &mut _| {
            c.mounts = vec![v1::Mount { readonly: true, ..mount("/tmp") }];
        };
        assert!(
            adopt(&mut made(read_only), &with).is_err_and(|e| e.to_string().contains("options are others"))
        );
        assert!(
            adopt(&mut made(|_, _| {}), &with).is_err_and(|e| e.to_string().contains("the request lacks"))
        );
    }

    /// CRI-CHKP-06.
    #[test]
    fn configurations_describe_the_frozen_process() {
        let frozen = v1::ContainerConfig { command: vec!["a".into()], ..Default::default() };
        assert_eq!(describes(&frozen, &frozen), Ok(()));
        let labelled = v1::ContainerConfig { labels: [("a".into(), "b".into())].into(), ..frozen.clone() };
        assert_eq!(describes(&labelled, &frozen), Ok(()));
        let other =
            v1::ContainerConfig { args: vec!["b".into()], working_dir: "/x".into(), ..frozen.clone() };
        assert!(describes(&other, &frozen).is_err_and(|e| e.to_string().contains("args, working_dir")));
    }
}
