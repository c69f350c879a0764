//! DESIGN section 2 as a test: a room imports only rooms below it.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// Each folder and the workspace crates that it may name. Nothing else.
const CRATES: &[(&str, &[&str])] = &[
    ("runtime/src", &[]),
    ("runtime/criu/src", &["slipway_runtime"]),
    ("runtime/oci/src", &["slipway_runtime", "slipway_criu"]),
    ("cri-proto/src", &[]),
    ("shim/images/src", &["slipway_runtime", "slipway_tls"]),
    ("shim/network/src", &["slipway_runtime"]),
    ("shim/nri/src", &["cri_proto"]),
    ("shim/streaming/src", &["slipway_tls"]),
    ("shim/tls/src", &[]),
    ("shim/keeper/src", &["slipway_runtime", "slipway_criu", "cri_proto"]),
    (
        "shim/daemon/src",
        &[
            "slipway_runtime",
            "slipway_images",
            "slipway_network",
            "slipway_nri",
            "slipway_streaming",
            "cri_proto",
        ],
    ),
    ("tests/e2e/src", &["cri_proto"]),
];

/// Rooms of the runtime and the sibling rooms that each may name (`crate::error` is everybody's).
const RUNTIME: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("host", &["lsm", "sys"]),
    ("seccomp", &["sys"]),
    ("lsm", &[]),
    ("cgroup", &["sys", "host"]),
    ("rootfs", &["sys", "host"]),
    ("plan", &["host", "rootfs", "seccomp", "sys"]),
    ("program", &["plan", "host", "rootfs", "sys"]),
    ("launch", &["program", "plan", "cgroup", "rootfs", "seccomp", "host", "sys"]),
    ("sandbox", &["launch", "program", "plan", "host", "sys"]),
    ("hooks", &["launch", "program", "plan", "cgroup", "seccomp", "sys"]),
    ("container", &["hooks", "launch", "program", "plan", "cgroup", "rootfs", "seccomp", "host", "sys"]),
];

const OURS: &[&str] = &[
    "slipway_runtime",
    "slipway_criu",
    "slipway_oci",
    "slipway_images",
    "slipway_network",
    "slipway_nri",
    "slipway_streaming",
    "slipway_tls",
    "slipway_keeper",
    "slipway_daemon",
    "cri_proto",
];

#[test]
fn rooms_import_only_rooms_below_them() -> Result<()> {
    let top = e2e::node::repository();
    for (room, allowed) in CRATES {
        for (file, text) in sources(&top.join(room))? {
            for name in OURS.iter().filter(|n| !allowed.contains(n)) {
                let named = text.lines().any(|l| code(l).contains(&format!("{name}::")));
                ensure!(!named, "{} names {name}; {room} may name only {allowed:?}", file.display());
            }
        }
    }
    Ok(())
}

#[test]
fn runtime_rooms_import_only_rooms_below_them() -> Result<()> {
    let top = e2e::node::repository().join("runtime/src");
    for (room, allowed) in RUNTIME {
        for (file, text) in sources(&top.join(room))? {
            for (other, _) in RUNTIME.iter().filter(|(o, _)| o != room && !allowed.contains(o)) {
                let named = text.lines().any(|l| code(l).contains(&format!("crate::{other}::")));
                ensure!(!named, "{} names crate::{other}; {room} may name only {allowed:?}", file.display());
            }
        }
    }
    Ok(())
}

/// `unsafe` stays in the runtime's room for system calls.
#[test]
fn unsafe_lives_in_sys_only() -> Result<()> {
    let top = e2e::node::repository();
    for (room, _) in CRATES {
        for (file, text) in sources(&top.join(room))? {
            let inside = file.starts_with(top.join("runtime/src/sys"));
            let word =
                |l: &str| code(l).split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe");
            ensure!(inside || !text.lines().any(word), "{} has unsafe code", file.display());
        }
    }
    Ok(())
}

/// A line without its comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// The Rust files below `dir`, recursively; a room that does not exist has none.
fn sources(dir: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(found) };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            found.push((path, text));
        }
    }
    Ok(found)
}
