//! spec, features, plan, version, and the command line itself.

use crate::rig::Rig;
use serde_json::Value;
use std::fs;

#[test]
fn spec_writes_what_create_takes() {
    let rig = Rig::new(&["true"]);
    assert!(rig.fails(1, &["spec"]).contains("exists"));
    fs::remove_file(rig.path("config.json")).unwrap();
    rig.ok(&["spec"]);
    rig.configure(|config| {
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = serde_json::json!(["true"]);
        config["linux"]["cgroupsPath"] = rig.group().into();
    });
    rig.ok(&["run", "c"]);
    rig.finish();
}

#[test]
fn features_are_complete() {
    let rig = Rig::new(&["true"]);
    let features: Value = serde_json::from_str(&rig.ok(&["features"])).unwrap();
    let parsed: oci_spec::runtime::Features = serde_json::from_value(features.clone()).unwrap();
    assert_eq!(parsed.oci_version_max(), "1.3.0");
    let has = |pointer: &str, word: &str| {
        features
            .pointer(pointer)
            .and_then(Value::as_array)
            .is_some_and(|list| list.iter().any(|item| item == word))
    };
    assert!(has("/linux/namespaces", "user") && has("/linux/capabilities", "CAP_CHOWN"));
    assert!(has("/mountOptions", "rro") && has("/linux/seccomp/archs", "SCMP_ARCH_X86_64"));
    assert!(has("/hooks", "startContainer"));
    assert!(has("/linux/seccomp/supportedFlags", "SECCOMP_FILTER_FLAG_LOG"));
    rig.finish();
}

#[test]
fn a_plan_numbers_its_steps_as_a_failed_start_quotes_them() {
    let rig = Rig::new(&["no-such-command"]);
    let plan: Value = serde_json::from_str(&rig.ok(&["plan", "--format", "json", "."])).unwrap();
    let steps = plan["steps"].as_array().unwrap();
    let at = steps.iter().position(|step| step.as_str().unwrap().starts_with("find command")).unwrap();
    let told = format!("step {} of {}: {}", at + 1, steps.len(), steps[at].as_str().unwrap());
    assert!(rig.fails(1, &["create", "c"]).contains(&told), "{told}");
    let human = rig.ok(&["plan"]);
    assert!(human.contains(&format!("{:>4}  find command", at + 1)), "{human}");
    assert!(human.contains("clone3: new"), "{human}");
    rig.finish();
}

#[test]
fn version_and_help() {
    let rig = Rig::new(&["true"]);
    let version = rig.ok(&["--version"]);
    assert!(version.starts_with("slipway-oci ") && version.contains("\nspec: 1.3.0"), "{version}");
    assert_eq!(rig.ok(&["-v"]), version);
    let help = rig.ok(&["--help"]);
    for command in [
        "create",
        "start",
        "state",
        "kill",
        "delete",
        "run",
        "exec",
        "ps",
        "list",
        "pause",
        "resume",
        "update",
        "events",
        "spec",
        "features",
        "plan",
        "checkpoint",
        "restore",
    ] {
        assert!(help.contains(&format!("  {command} ")), "{command}: {help}");
    }
    rig.fails(1, &["no-such-command"]);
    rig.fails(1, &["create"]);
    rig.finish();
}
