//! Device rules, asked of the kernel by opening and making device nodes.

use super::*;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType};
use slipway_runtime::error::Kind;

/// `c 1:3 rwm` and the like; `*` for any number.
fn rule(allow: bool, text: &str) -> LinuxDeviceCgroup {
    let (kind, rest) = text.split_once(' ').expect("kind");
    let (numbers, access) = rest.split_once(' ').expect("access");
    let (major, minor) = numbers.split_once(':').expect("numbers");
    let kind = match kind {
        "c" => LinuxDeviceType::C,
        "b" => LinuxDeviceType::B,
        _ => LinuxDeviceType::A,
    };
    let number = |n: &str| n.parse().unwrap_or(-1i64);
    let rule = LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind).access(access);
    rule.major(number(major)).minor(number(minor)).build().expect("rule")
}

fn create(scope: &Scope, rules: &[(bool, &str)]) -> slipway_runtime::Result<Cgroup> {
    let rules = rules.iter().map(|(allow, text)| rule(*allow, text)).collect::<Vec<_>>();
    Cgroup::create(&scope.path(), Some(&resources(|r| r.devices(rules))))
}

/// What a shell in the group may do (`true`, because dash gives up when a redirection of `:` fails): read null, write null, read zero, make a node of zero's numbers.
fn able(group: &Cgroup) -> String {
    let dir = tempfile::tempdir().expect("tempdir");
    let node = dir.path().join("node").display().to_string();
    let script = format!(
        "head -c1 /dev/null && printf n; true >/dev/null && printf N; head -c1 /dev/zero | tr '\\0' z; \
         mknod {node} c 1 5 && printf m; echo"
    );
    lines(&mut spawn_in(group, &script)).concat()
}

/// CRI-DEV-02.
#[test]
fn devices_are_denied_and_allowed() {
    let scope = Scope::new();
    let deny = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build().expect("rule");
    let null = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(LinuxDeviceType::C)
        .major(1)
        .minor(3)
        .access("rwm");
    let rules = vec![deny, null.build().expect("rule")];
    let group = Cgroup::create(&scope.path(), Some(&resources(|r| r.devices(rules)))).expect("create");
    let script = "head -c1 /dev/null && echo null-ok; head -c1 /dev/zero >/dev/null 2>&1 || echo zero-denied";
    let mut child = spawn_in(&group, script);
    let lines: Vec<_> =
        BufReader::new(child.stdout.take().expect("stdout")).lines().map_while(Result::ok).collect();
    child.wait().expect("wait");
    assert_eq!(lines, ["null-ok", "zero-denied"]);
    group.remove(PATIENCE).expect("remove");
    scope.end();
}

/// Kinds of access are told apart, and "any kind of device" with some access is not all access.
#[test]
fn access_is_told_apart() {
    for (rules, want) in [
        (&[(false, "a *:* rwm")][..], ""),
        (&[(false, "a *:* rwm"), (true, "a *:* m")], "m"),
        (&[(false, "a *:* rwm"), (true, "c 1:3 r"), (true, "c 1:5 m")], "nm"),
        (&[(false, "a *:* rwm"), (true, "c 1:3 r"), (true, "c 1:3 w"), (true, "c 1:* r")], "nNz"),
        (&[(true, "a *:* rwm"), (false, "c 1:5 r")], "nNm"),
        (&[(true, "a *:* rwm")], "nNzm"),
        (&[(true, "a *:* rwm"), (false, "a *:* rwm"), (true, "c *:* rwm")], "nNzm"),
    ] {
        let scope = Scope::new();
        let group = create(&scope, rules).expect("create");
        assert_eq!(able(&group), want, "{rules:?}");
        group.remove(PATIENCE).expect("remove");
        scope.end();
    }
}

/// Version 1 cannot hold a forbidden device inside an allowed range, and must not pretend to.
#[test]
fn a_hole_in_a_range_is_kept_or_refused() {
    let scope = Scope::new();
    let made = create(&scope, &[(false, "a *:* rwm"), (true, "c *:* rwm"), (false, "c 1:5 r")]);
    if v2() {
        let group = made.expect("create");
        assert_eq!(able(&group), "nNm");
        group.remove(PATIENCE).expect("remove");
    } else {
        assert_eq!(made.expect_err("refused").kind(), Kind::Unsupported);
        assert!(directories(&scope.0).is_empty());
    }
    scope.end();
}

/// Rules of a live group can be widened and narrowed.
#[test]
fn rules_are_updated() {
    let scope = Scope::new();
    let group = create(&scope, &[(false, "a *:* rwm"), (true, "c 1:3 rwm")]).expect("create");
    assert_eq!(able(&group), "nN");
    let update = |rules: &[(bool, &str)]| {
        let rules = rules.iter().map(|(allow, text)| rule(*allow, text)).collect::<Vec<_>>();
        group.update(&resources(|r| r.devices(rules)))
    };
    update(&[(false, "a *:* rwm"), (true, "c 1:3 rw"), (true, "c 1:5 rm")]).expect("widen");
    assert_eq!(able(&group), "nNzm");
    update(&[(false, "a *:* rwm"), (true, "c 1:3 r")]).expect("narrow");
    assert_eq!(able(&group), "n");
    update(&[(true, "a *:* rwm")]).expect("everything");
    assert_eq!(able(&group), "nNzm");
    update(&[(false, "a *:* rwm")]).expect("nothing");
    assert_eq!(able(&group), "");
    group.remove(PATIENCE).expect("remove");
    scope.end();
}

#[test]
fn rules_that_cannot_be_meant_are_invalid() {
    let scope = Scope::new();
    for text in ["c -3:1 r", "c 1:3 x", "b 1:99999999999 r"] {
        let error = create(&scope, &[(false, "a *:* rwm"), (true, text)]).expect_err(text);
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(directories(&scope.0).is_empty());
    }
    scope.end();
}
