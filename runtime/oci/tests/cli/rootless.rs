//! An ordinary user: no capability, no control group of its own, a user namespace for what it makes.

use crate::rig::{Rig, output};
use serde_json::{Value, json};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::{fs, path::Path};

/// Nobody has this one.
const USER: u32 = 54321;

struct User {
    rig: Rig,
    program: std::path::PathBuf,
}

impl User {
    /// A bundle of the user's, as `slipway-oci spec --rootless` begins it, that runs `args`.
    fn new(args: &[&str]) -> Self {
        let rig = Rig::new(args);
        let program = rig.path("slipway-oci");
        fs::copy(env!("CARGO_BIN_EXE_slipway-oci"), &program).unwrap();
        fs::set_permissions(rig.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        for place in ["", "rootfs"] {
            chown(rig.path(place), Some(USER), Some(USER)).unwrap();
        }
        fs::remove_file(rig.path("config.json")).unwrap();
        let user = Self { rig, program };
        assert!(user.run(&["spec", "--rootless"]).status.success());
        user.configure(|config| {
            config["process"]["args"] = json!(args);
            config["process"]["terminal"] = json!(false);
        });
        user
    }

    fn configure(&self, change: impl FnOnce(&mut Value)) {
        self.rig.configure(change);
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.rig.path("state")).args(words).current_dir(self.rig.path(""));
        // std gives up root's supplementary groups with the uid.
        command.uid(USER).gid(USER).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        output(&mut self.command(words))
    }

    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn a_container_of_an_ordinary_user_from_its_creation_to_its_end() {
    let user = User::new(&["sleep", "1000"]);
    user.ok(&["create", "c"]);
    user.ok(&["start", "c"]);
    let state: Value = serde_json::from_str(&user.ok(&["state", "c"])).unwrap();
    assert_eq!((&state["status"], &state["owner"]), (&json!("running"), &json!(format!("#{USER}"))));
    let pid = state["pid"].as_i64().unwrap();
    // What the kernel says of it: this user outside, root inside, and nobody else in the map.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains(&format!("Uid:\t{USER}\t{USER}\t{USER}\t{USER}")), "{status}");
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", &USER.to_string(), "1"]);
    assert_eq!(fs::read_link(format!("/proc/{pid}/root")).unwrap(), Path::new("/"));
    // Sessions by the user itself, and by root.
    let seen = user.ok(&["exec", "c", "sh", "-c", "id -u; cat /proc/1/cmdline; echo; ls /"]);
    assert!(seen.starts_with("0\nsleep\u{0}1000\u{0}\nbin\n"), "{seen:?}");
    assert_eq!(user.rig.ok(&["exec", "c", "id", "-u"]), "0\n");
    user.ok(&["kill", "c", "KILL"]);
    user.rig.await_status("c", "stopped");
    user.ok(&["delete", "c"]);
    user.rig.finish();
}

#[test]
fn run_answers_with_the_exit_code_of_an_ordinary_users_container() {
    let user = User::new(&["sh", "-c", "echo $(id -u) > /tmp/new; cat /tmp/new; exit 7"]);
    chown(user.rig.path("rootfs/tmp"), Some(USER), Some(USER)).unwrap();
    user.configure(|config| config["root"]["readonly"] = json!(false));
    let ran = user.run(&["run", "c"]);
    assert_eq!((ran.status.code(), &*ran.stdout), (Some(7), &b"0\n"[..]), "{ran:?}");
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(user.rig.path("rootfs/tmp/new")).unwrap());
    assert_eq!(owner, USER, "what root inside wrote is the user's outside");
    user.rig.finish();
}

#[test]
fn what_an_ordinary_user_cannot_have_is_said() {
    let user = User::new(&["sleep", "1000"]);
    user.ok(&["create", "c"]);
    for words in
        [&["pause", "c"][..], &["events", "--stats", "c"], &["update", "--memory", "10M", "c"], &["ps", "c"]]
    {
        let said = user.fails(words);
        assert!(said.contains("has no control group") && said.contains("delegated"), "{words:?}: {said}");
    }
    user.ok(&["delete", "--force", "c"]);
    // A limit needs a group; the refusal names the field, and leaves nothing.
    user.configure(|config| config["linux"]["resources"] = json!({"memory": {"limit": 10_000_000}}));
    let said = user.fails(&["run", "c"]);
    assert!(said.contains("leave out linux.resources"), "{said}");
    let said = user.fails(&["--rootless", "false", "run", "c"]);
    assert!(said.contains("make control group"), "{said}");
    user.configure(|config| {
        config["linux"]["resources"] = json!({});
        config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    });
    let said = user.fails(&["run", "c"]);
    assert!(said.contains("map 0:0:1") && said.contains("may map its own user"), "{said}");
    user.configure(|config| {
        let linux = config["linux"].as_object_mut().unwrap();
        linux.remove("uidMappings");
        linux.remove("gidMappings");
        let kept = |n: &Value| n["type"] != "user";
        let left: Vec<Value> =
            linux["namespaces"].as_array().unwrap().iter().filter(|n| kept(n)).cloned().collect();
        linux["namespaces"] = json!(left);
    });
    let said = user.fails(&["run", "c"]);
    assert!(said.contains("a container needs a user namespace"), "{said}");
    user.rig.finish();
}
