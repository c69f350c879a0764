//! What must hold for any specification's text: it is read and planned, or refused with a field's name, and never more.
//! Shared by the property test, the replay of the corpus and the fuzz target.

#![allow(unreachable_pub, reason = "shared by tests and the fuzz target")]

use slipway_runtime::host::{CgroupLayout, Hierarchy, Host};

use slipway_runtime::plan::{Facts, Plan};
use slipway_runtime::program::{Parking, Program};
use slipway_runtime::rootfs::Rootfs;
use slipway_runtime::{seccomp, spec};
use std::path::{Path, PathBuf};

/// The steps, or the refusal.
pub type Verdict = Result<Vec<String>, String>;

/// An invented host: the verdict is the same everywhere.
fn host(cgroups: CgroupLayout) -> Host {
    let hierarchies = match cgroups {
        CgroupLayout::V1 => {
            vec![Hierarchy { name: "memory".into(), path: PathBuf::from("/sys/fs/cgroup/memory") }]
        }
        CgroupLayout::V2 => Vec::new(),
    };
    Host {
        cgroups,
        hierarchies,
        capabilities: (1 << 41) - 1,
        known_capabilities: (1 << 41) - 1,
        setgroups_denied: false,
        makes_groups: true,
        rights_gained: false,
        resctrl: None,
        apparmor: true,
        selinux: true,
    }
}

/// Reads and plans for both kinds of host.
///
/// # Panics
/// When the runtime does, and when a refusal names no field.
pub fn decide(text: &[u8]) -> Verdict {
    let read: oci_spec::runtime::Spec = spec::parse("config.json", text).map_err(|error| named(&error))?;
    if let Some(profile) = read.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) {
        seccomp::compile(profile).map_err(|error| named(&error))?;
    }
    let rootfs = Rootfs::Directory(PathBuf::from("/rootfs"));
    let mut steps = Vec::new();
    for layout in [CgroupLayout::V1, CgroupLayout::V2] {
        let host = host(layout);
        let bundle = Path::new("/bundle");
        let facts = Facts { host: &host, bundle, rootfs: &rootfs, given: &[], home: None };
        let plan = Plan::new("any", &read, &facts).map_err(|error| named(&error))?;
        let program = Program::create(&plan, Parking::CommandOpen).map_err(|error| named(&error))?;
        steps.extend(program.explain());
        assert_eq!(program.sentences().len(), program.steps.len(), "a sentence for each step");
    }
    Ok(steps)
}

/// Every refusal says where: a field of the specification, or the JSON itself.
fn named(error: &slipway_runtime::Error) -> String {
    const FIELDS: [&str; 12] = [
        "ociVersion",
        "root",
        "process",
        "mounts",
        "hostname",
        "domainname",
        "hooks",
        "annotations",
        "linux",
        "config.json",
        "seccomp",
        "sysctl",
    ];
    let sentence = error.to_string();
    assert!(FIELDS.iter().any(|field| sentence.contains(field)), "no field is named: {sentence}");
    sentence
}
