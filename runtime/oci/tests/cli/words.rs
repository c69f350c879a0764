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
fn a_plan_holds_what_a_failed_preparation_and_a_failed_limit_quote() {
    let rig = Rig::new(&["true"]);
    let plan = || -> Value { serde_json::from_str(&rig.ok(&["plan", "--format", "json", "."])).unwrap() };
    let lines = |plan: &Value, part: &str| -> Vec<String> {
        plan[part].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
    };
    rig.configure(|config| {
        config["mounts"].as_array_mut().unwrap().push(serde_json::json!(
            {"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]}
        ));
    });
    let prepared = lines(&plan(), "prepare");
    let at = prepared.iter().position(|line| line.contains("/no/such/source")).unwrap();
    let said = rig.fails(1, &["create", "c"]);
    assert!(said.contains(&format!("prepare {} ({} of {})", prepared[at], at + 1, prepared.len())), "{said}");
    rig.configure(|config| {
        config["mounts"].as_array_mut().unwrap().pop();
        config["linux"]["resources"] =
            serde_json::json!({"pids": {"limit": 5}, "blockIO": {"throttleReadBpsDevice": [{"major": 4000, "minor": 1, "rate": 5}]}, "devices": [{"allow": false, "access": "rwm"}]});
    });
    let groups = lines(&plan(), "groups");
    let written =
        |value: &str| groups.iter().find(|line| line.starts_with(&format!("write {value} to "))).unwrap();
    assert!(written("5").ends_with("/pids.max"), "{groups:?}");
    let human = rig.ok(&["plan"]);
    assert!(groups.iter().all(|line| human.contains(line)), "{human}");
    let said = rig.fails(1, &["create", "c"]);
    assert!(said.contains(written("4000:1 5")), "{said}");
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

/// `slipway-oci features | head -1` is a habit, and no failure.
#[test]
fn who_stops_reading_an_answer_does_not_break_the_command() {
    let rig = Rig::new(&["true"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ran =
        rig.command(&["features"]).stdout(writer).stderr(std::process::Stdio::piped()).output().unwrap();
    assert!(ran.status.success() && ran.stderr.is_empty(), "{ran:?}");
    rig.finish();
}
