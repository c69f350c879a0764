//! The container's own table of mounts in the order of its specification (`Options::in_order`), as readers of
//! /proc/self/mountinfo take it; OCI config.md, "Mounts": "The runtime MUST mount entries in the listed order".

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, add_mount, finish, in_user_namespace, piped, spec};
use serde_json::{Value, json};
use slipway_runtime::container::{self, Stdio};
use std::fs::{self, File};
use std::io::Read;

/// Binds and file systems of the container's own by turns.
fn mixed(rig: &Rig) -> Value {
    let mut spec = spec(&["cat", "/proc/self/mountinfo"]);
    fs::create_dir_all(rig.path("data/below")).unwrap();
    add_mount(&mut spec, "/mnt/first", &rig.path("data"), &["bind", "unbindable"]);
    let tmpfs =
        json!({"destination": "/mnt/second", "type": "tmpfs", "source": "tmpfs", "options": ["runbindable"]});
    spec["mounts"].as_array_mut().unwrap().push(tmpfs);
    add_mount(&mut spec, "/mnt/third", &rig.path("data/below"), &["rbind", "rshared", "ro"]);
    let tmpfs =
        json!({"destination": "/mnt/fourth", "type": "tmpfs", "source": "tmpfs", "options": ["private"]});
    spec["mounts"].as_array_mut().unwrap().push(tmpfs);
    spec
}

fn run(rig: &Rig, spec: &Value) -> String {
    let (mut out, stdio) = piped();
    let mut request = rig.request(spec, stdio, Vec::new());
    request.options.in_order = true;
    let created = container::create(request).unwrap();
    created.start.start().unwrap();
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(finish(created), 0, "{text}");
    text
}

/// Mount points and optional fields.
fn table(text: &str) -> Vec<(&str, &str)> {
    text.lines()
        .map(|line| {
            let (left, _) = line.split_once(" - ").unwrap();
            let mut fields = left.splitn(7, ' ').skip(4);
            let point = fields.next().unwrap();
            (point, fields.nth(1).unwrap_or_default())
        })
        .collect()
}

fn check(rig: &Rig, spec: &Value, text: &str) {
    let table = table(text);
    let wanted: Vec<String> = spec["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| mount["destination"].as_str().unwrap().to_owned())
        .collect();
    let seen: Vec<&str> =
        table.iter().map(|(point, _)| *point).filter(|point| wanted.iter().any(|w| w == point)).collect();
    assert_eq!(seen, wanted, "{text}");
    let word = |point: &str| table.iter().find(|(p, _)| *p == point).unwrap().1;
    assert_eq!(word("/mnt/first"), "unbindable");
    assert_eq!(word("/mnt/second"), "unbindable");
    assert!(word("/mnt/third").starts_with("shared:"), "{text}");
    assert_eq!(word("/mnt/fourth"), "");
    let own = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!own.contains(&*rig.dir.path().to_string_lossy()), "{own}");
}

#[test]
fn mounts_are_listed_as_the_specification_lists_them() {
    let rig = Rig::new();
    let spec = mixed(&rig);
    let text = run(&rig, &spec);
    check(&rig, &spec, &text);
    assert!(
        text.contains("/proc/sys ro") || text.contains(" /proc/sys ro,"),
        "what comes later is there: {text}"
    );
}

#[test]
fn in_a_user_namespace_too() {
    let rig = Rig::mapped(300_000);
    let mut spec = mixed(&rig);
    in_user_namespace(&mut spec, 300_000);
    let text = run(&rig, &spec);
    check(&rig, &spec, &text);
}

#[test]
fn a_terminal_is_of_the_tree_that_stays() {
    let rig = Rig::new();
    let mut spec = spec(&["sh", "-c", "tty; echo told > /dev/console; ls -l /proc/self/fd/0"]);
    spec["process"]["terminal"] = json!(true);
    let mut request = rig.request(&spec, Stdio::default(), Vec::new());
    request.options.in_order = true;
    let mut created = container::create(request).unwrap();
    created.start.start().unwrap();
    let mut text = String::new();
    // A terminal whose last user is gone answers EIO.
    let _ = File::from(created.pty.take().unwrap()).read_to_string(&mut text);
    assert_eq!(finish(created), 0, "{text}");
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert_eq!(lines[..2], ["/dev/pts/0", "told"], "{text}");
    assert!(lines[2].ends_with("-> /dev/pts/0"), "{text}");
}
