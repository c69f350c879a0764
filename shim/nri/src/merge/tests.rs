use super::*;
use cri_proto::nri::{
    Container, ContainerAdjustment, CreateContainerResponse, Hook, KeyValue, LinuxContainerUpdate, Mount,
    OptionalInt64,
};

fn update(id: &str, limit: i64, ignore_failure: bool) -> ContainerUpdate {
    let mut resources = LinuxResources::new();
    resources.memory.mut_or_insert_default().limit =
        Some(OptionalInt64 { value: limit, ..Default::default() }).into();
    let linux = LinuxContainerUpdate { resources: Some(resources).into(), ..Default::default() };
    ContainerUpdate {
        container_id: id.into(),
        linux: Some(linux).into(),
        ignore_failure,
        ..Default::default()
    }
}

fn answer(change: impl FnOnce(&mut ContainerAdjustment)) -> CreateContainerResponse {
    let mut adjust = ContainerAdjustment::new();
    change(&mut adjust);
    CreateContainerResponse { adjust: Some(adjust).into(), ..Default::default() }
}

fn creation() -> Creation {
    let mut container =
        Container { id: "c".into(), env: vec!["A=own".into(), "B=own".into()], ..Default::default() };
    container.mounts.push(Mount { destination: "/own".into(), ..Default::default() });
    container.annotations.insert("own".into(), "1".into());
    Creation::of(container)
}

fn env(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: value.into(), ..Default::default() }
}

/// NRI-18: the next plugin sees what the former changed, without markers.
#[test]
fn the_next_plugin_sees_the_changes() {
    let mut creation = creation();
    let first = answer(|a| {
        a.env = vec![env("A", "plugin"), env("-B", ""), env("C", "new")];
        a.mounts.push(Mount { destination: "-/own".into(), ..Default::default() });
        a.mounts.push(Mount { destination: "/new".into(), ..Default::default() });
        a.annotations.insert("-own".into(), String::new());
        a.annotations.insert("new".into(), "2".into());
        a.args = vec!["other".into()];
    });
    creation.take(&first, "00-a").expect("no conflict");
    assert_eq!(creation.container.env, ["A=plugin", "C=new"]);
    assert_eq!(creation.container.mounts.iter().map(|m| &*m.destination).collect::<Vec<_>>(), ["/new"]);
    assert_eq!(creation.container.annotations.keys().collect::<Vec<_>>(), ["new"]);
    assert_eq!(creation.container.args, ["other"]);
    let kept: Vec<_> = creation.adjust.mounts.iter().map(|m| &*m.destination).collect();
    assert_eq!(kept, ["-/own", "/new"], "a removal stays for the spec");
}

/// NRI-23.
#[test]
fn two_plugins_may_not_set_the_same() {
    let mut first = creation();
    first.take(&answer(|a| a.env = vec![env("A", "1")]), "00-a").expect("first");
    let error = first.take(&answer(|a| a.env = vec![env("A", "2")]), "10-b").expect_err("conflict");
    assert_eq!(error.kind, Kind::Conflict);
    let text = error.to_string();
    assert!(text.contains("00-a") && text.contains("10-b") && text.contains("\"A\""), "{text}");

    let mut removed = creation();
    removed.take(&answer(|a| a.env = vec![env("A", "1")]), "00-a").expect("first");
    let second = answer(|a| a.env = vec![env("-A", ""), env("A", "2")]);
    removed.take(&second, "10-b").expect("removed first");
    assert_eq!(removed.container.env, ["B=own", "A=2"]);
    let kept: Vec<_> = removed.adjust.env.iter().map(|e| (&*e.key, &*e.value)).collect();
    assert_eq!(kept, [("-A", ""), ("A", "2")]);
}

/// NRI-24.
#[test]
fn arguments_are_overridden_only_with_the_marker() {
    let mut creation = creation();
    creation.take(&answer(|a| a.args = vec!["one".into()]), "00-a").expect("first");
    let without = creation.take(&answer(|a| a.args = vec!["two".into()]), "10-b");
    assert!(without.is_err_and(|e| e.kind == Kind::Conflict));
    let marked = answer(|a| a.args = vec![String::new(), "two".into()]);
    creation.take(&marked, "10-b").expect("marked");
    assert_eq!(creation.adjust.args, ["two"]);
}

/// Hooks of all plugins run; validators read who added them.
#[test]
fn hooks_add_up() {
    let mut creation = creation();
    for plugin in ["00-a", "10-b"] {
        let hook = Hook { path: format!("/{plugin}"), ..Default::default() };
        let asked = answer(|a| a.hooks.mut_or_insert_default().prestart.push(hook));
        creation.take(&asked, plugin).expect("hooks never contradict");
    }
    assert_eq!(creation.adjust.hooks.prestart.len(), 2);
    assert_eq!(creation.updates.owners.owner("c", cri_proto::nri::Field::OciHooks), Some("00-a,10-b"));
}

/// NRI-28, NRI-29.
#[test]
fn updates_are_one_per_container() {
    let mut updates = Updates::default();
    updates.take(&[update("x", 1, false), update("y", 2, true)], "00-a").expect("first");
    updates.take(&[update("y", 3, true)], "10-b").expect("ignored");
    let error = updates.take(&[update("x", 3, false)], "10-b").expect_err("conflict");
    assert!(error.to_string().contains("MemLimit"), "{error}");
    let (own, others, _) = updates.split("x");
    assert_eq!(own.and_then(|r| Some(r.memory.limit.as_ref()?.value)), Some(1));
    assert_eq!(others.len(), 1);
    assert_eq!(others[0].linux.resources.memory.limit.value, 2);
}

#[test]
fn what_is_being_created_is_not_updated() {
    let mut creation = creation();
    let asked = CreateContainerResponse { update: vec![update("c", 1, true)], ..Default::default() };
    assert!(creation.take(&asked, "00-a").is_err_and(|e| e.to_string().contains("being created")));
}
