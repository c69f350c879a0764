//! Any specification either plans or is refused with the field's name, and nothing panics. Pure: any user.
//!
//! Three sources: mutations of a good one, the corpus of the fuzz target (`runtime/fuzz`), and golden plans of a folder.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

#[path = "common/any.rs"]
mod any;
mod common;

use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A specification that uses most of its fields.
fn rich() -> Value {
    let mut spec = common::spec(&["sh", "-c", "true"]);
    spec["process"]["scheduler"] =
        json!({"policy": "SCHED_OTHER", "nice": 3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 4});
    spec["process"]["user"] = json!({"uid": 1, "gid": 2, "umask": 63, "additionalGids": [3, 4]});
    spec["process"]["consoleSize"] = json!({"height": 24, "width": 80});
    spec["process"]["apparmorProfile"] = json!("mine");
    spec["process"]["execCPUAffinity"] = json!({"initial": "0-1", "final": "1"});
    spec["domainname"] = json!("example.org");
    spec["annotations"] = json!({"a": "b"});
    spec["hooks"] = json!({"prestart": [{"path": "/h", "args": ["h"], "env": ["A=b"], "timeout": 3}]});
    spec["linux"]["devices"] = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0}]);
    spec["linux"]["sysctl"] = json!({"net.core.somaxconn": "5", "kernel.shm_rmid_forced": "1"});
    spec["linux"]["rootfsPropagation"] = json!("rslave");
    spec["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0");
    spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": []});
    spec["linux"]["cgroupsPath"] = json!("/a/b");
    spec["linux"]["resources"] = json!({
        "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}],
        "memory": {"limit": 1 << 30, "swap": 1 << 31, "reservation": 1 << 20},
        "cpu": {"shares": 10, "quota": 10000, "period": 100_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 5}, "unified": {"memory.high": "max"}, "hugepageLimits": [{"pageSize": "2MB", "limit": 0}]
    });
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"names": ["read", "clone"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 7, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]}]
    });
    spec
}

/// Pointers to every place of a document.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) => map.iter().for_each(|(key, inner)| {
            let here = format!("{at}/{}", escape(key));
            found.push(here.clone());
            places(inner, &here, found);
        }),
        Value::Array(list) => list.iter().enumerate().for_each(|(index, inner)| {
            let here = format!("{at}/{index}");
            found.push(here.clone());
            places(inner, &here, found);
        }),
        _ => {}
    }
}

/// What people and attackers write into fields.
fn nasty() -> impl Strategy<Value = Value> {
    let words = prop_oneof![
        Just(""),
        Just("/"),
        Just(".."),
        Just("../../etc"),
        Just("a\0b"),
        Just("/proc/self/fd/3"),
        Just("rbind"),
        Just("SCMP_ACT_TRACE"),
        Just("user"),
        Just("time"),
        Just("0-99999999999"),
        Just("remount"),
        Just("idmap"),
        Just("%d"),
        Just("size=0"),
        Just("net.x/y"),
        Just("😀"),
        Just("L3:0=ff"),
        Just("a:b:c"),
        Just("bind"),
    ];
    let numbers = prop_oneof![Just(0), Just(-1), Just(i64::MIN), Just(i64::MAX), Just(1 << 32), any::<i64>()];
    prop_oneof![
        words.prop_map(Value::from),
        numbers.prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        ".{0,70}".prop_map(Value::from),
        Just(Value::Null),
        Just(json!([])),
        Just(json!({})),
        Just(json!([{}])),
        Just(json!(1.5)),
    ]
}

/// A change of the document: the place by its rank, and what goes there; none takes it away.
fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, Option<Value>)>> {
    prop::collection::vec((any::<prop::sample::Index>(), prop::option::weighted(0.85, nasty())), 1..4)
}

fn changed(changes: &[(prop::sample::Index, Option<Value>)]) -> Value {
    let mut spec = rich();
    for (index, value) in changes {
        let mut all = Vec::new();
        places(&spec, "", &mut all);
        if all.is_empty() {
            break;
        }
        let place = index.get(&all);
        let (parent, key) = place.rsplit_once('/').unwrap();
        match (value, spec.pointer_mut(parent).unwrap()) {
            (Some(value), _) => *spec.pointer_mut(place).unwrap() = value.clone(),
            (None, Value::Object(map)) => drop(map.remove(&key.replace("~1", "/").replace("~0", "~"))),
            (None, Value::Array(list)) => drop(list.remove(key.parse().unwrap())),
            _ => {}
        }
    }
    spec
}

#[test]
fn the_one_that_is_changed_plans() {
    any::decide(&serde_json::to_vec(&rich()).unwrap()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_specification_plans_or_is_refused_by_field(changes in changes()) {
        let spec = changed(&changes);
        // What is decided is decided again alike: a plan is a pure function.
        let text = serde_json::to_vec(&spec).unwrap();
        prop_assert_eq!(any::decide(&text), any::decide(&text));
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = any::decide(&bytes);
    }
}

fn files(below: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(below);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{}", folder.display());
    files
}

/// What the fuzzer starts from, and what it found, as an ordinary test.
#[test]
fn the_corpus_of_the_fuzzer() {
    let verdicts: Vec<_> =
        files("fuzz/corpus/spec").iter().map(|file| any::decide(&fs::read(file).unwrap())).collect();
    assert!(verdicts.iter().any(Result::is_ok) && verdicts.iter().any(Result::is_err));
}

/// Each `NAME.json` of the folder has a `NAME.plan`: the printed plan, or the refusal. After a wanted change:
/// `SLIPWAY_GOLDEN=write cargo test -p slipway-runtime --test properties`, and read the difference.
#[test]
fn golden_plans() {
    for file in files("tests/plans").iter().filter(|file| file.extension().is_some_and(|e| e == "json")) {
        let text = match any::decide(&fs::read(file).unwrap()) {
            Ok(steps) => steps.join("\n") + "\n",
            Err(refusal) => format!("refused: {refusal}\n"),
        };
        let golden = file.with_extension("plan");
        if std::env::var("SLIPWAY_GOLDEN").is_ok_and(|v| v == "write") {
            fs::write(&golden, &text).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(text, expected, "{}", golden.display());
    }
}
