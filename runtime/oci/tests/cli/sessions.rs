//! exec: beside the first process, with its own user, directory, environment, descriptors.

use crate::rig::{Rig, output, until};
use serde_json::json;
use std::fs;
use std::os::fd::AsRawFd;

fn running() -> Rig {
    let rig = Rig::new(&["sleep", "1000"]);
    rig.ok(&["run", "-d", "c"]);
    rig
}

fn end(rig: Rig) {
    rig.ok(&["delete", "--force", "c"]);
    rig.finish();
}

#[test]
fn flags_of_exec_reach_the_process() {
    let rig = running();
    assert_eq!(rig.ok(&["exec", "c", "sh", "-c", "pwd; id -u; echo $0 $1", "-x", "--y"]), "/\n0\n-x --y\n");
    assert_eq!(rig.ok(&["exec", "--cwd", "/tmp", "c", "pwd"]), "/tmp\n");
    assert_eq!(
        rig.ok(&["exec", "--user", "7:8", "--additional-gids", "9", "c", "sh", "-c", "id -u; id -G"]),
        "7\n8 9\n"
    );
    assert_eq!(rig.ok(&["exec", "-e", "A=1", "--env", "B=2", "c", "sh", "-c", "echo $A$B"]), "12\n");
    assert_eq!(
        rig.ok(&["exec", "-e", "PATH=/bin:/x", "c", "sh", "-c", "env | grep -c PATH= ; echo $PATH"]),
        "1\n/bin:/x\n"
    );
    assert_eq!(rig.fails(3, &["exec", "c", "sh", "-c", "exit 3"]), "");
    let before = rig.ok(&["exec", "c", "sh", "-c", "grep CapBnd /proc/self/status || cat /proc/self/status"]);
    let after = rig.ok(&["exec", "--cap", "CAP_NET_RAW", "c", "sh", "-c", "cat /proc/self/status"]);
    let bound = |text: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix("CapBnd:")).unwrap().trim().to_owned();
        u64::from_str_radix(&line, 16).unwrap()
    };
    assert_eq!(bound(&after), bound(&before) | 1 << 13);
    end(rig);
}

#[test]
fn a_process_file_says_it_all() {
    let rig = running();
    let process = json!({"user": {"uid": 5, "gid": 6}, "args": ["sh", "-c", "id -u; pwd"], "env": ["PATH=/bin"], "cwd": "/tmp"});
    fs::write(rig.path("process.json"), process.to_string()).unwrap();
    assert_eq!(rig.ok(&["exec", "--process", "process.json", "c"]), "5\n/tmp\n");
    rig.ok(&["exec", "--process", "process.json", "--detach", "--pid-file", "exec.pid", "c"]);
    let pid: i32 = fs::read_to_string(rig.path("exec.pid")).unwrap().parse().unwrap();
    until("it has ended", || !std::path::Path::new(&format!("/proc/{pid}/cwd")).exists());
    end(rig);
}

#[test]
fn failures_are_255_and_in_the_words_engines_look_for() {
    let rig = running();
    assert!(rig.fails(255, &["exec", "c", "no-such"]).contains("executable file not found in $PATH"));
    assert!(rig.fails(255, &["exec", "c", "/no/such"]).contains("no such file or directory"));
    assert!(rig.fails(255, &["exec", "nobody", "true"]).contains("container does not exist"));
    assert!(rig.fails(255, &["exec", "--detach", "--tty", "c", "true"]).contains("console socket"));
    assert!(rig.fails(255, &["exec", "c"]).contains("process args cannot be empty"));
    rig.ok(&["kill", "c", "KILL"]);
    rig.await_status("c", "stopped");
    assert!(rig.fails(255, &["exec", "c", "true"]).contains("cannot exec in a stopped container"));
    end(rig);
}

#[test]
fn a_session_is_in_the_container_s_own_group() {
    let rig = running();
    rig.ok(&["exec", "-d", "c", "sleep", "999"]);
    let pids: Vec<i32> = serde_json::from_str(&rig.ok(&["ps", "-f", "json", "c"])).unwrap();
    assert_eq!(pids.len(), 2);
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", pids[1])).unwrap();
    assert!(groups.lines().any(|line| line.ends_with(rig.group())), "{groups}");
    end(rig);
}

#[test]
fn a_session_may_join_a_group_below() {
    let rig = running();
    assert!(rig.fails(255, &["exec", "--cgroup", "nowhere", "c", "true"]).contains("nowhere"));
    assert!(rig.fails(255, &["exec", "--cgroup", "../up", "c", "true"]).contains("must stay below"));
    assert!(rig.fails(255, &["exec", "--cgroup", "cpu:/sub", "c", "true"]).contains("one path"));
    let below = format!("{}/below", rig.group());
    slipway_runtime::cgroup::Cgroup::create(&below, None).unwrap();
    rig.ok(&["exec", "--cgroup", "/", "c", "true"]);
    assert!(rig.ok(&["exec", "--cgroup", "/below", "c", "cat", "/proc/self/cgroup"]).contains("/below"));
    end(rig);
}

/// Gives a command this file as descriptor 3, without close-on-exec, by way of a shell.
fn with_descriptor_3(rig: &Rig, file: &str, words: &str) -> std::process::Output {
    let mut command = std::process::Command::new("sh");
    let binary = env!("CARGO_BIN_EXE_slipway-oci");
    let line = format!("exec 3<{file} 9</dev/null; exec {binary} --root state {words}");
    output(command.args(["-c", &line]).current_dir(rig.path("")).stdin(std::process::Stdio::null()))
}

#[test]
fn descriptors_are_passed_on_only_when_asked_for() {
    let rig = Rig::new(&["sh", "-c", "ls /proc/self/fd; cat <&3"]);
    fs::write(rig.path("data"), "passed").unwrap();
    let _open = fs::File::open("/dev/null").unwrap().as_raw_fd();
    let got = with_descriptor_3(&rig, "data", "run --preserve-fds 1 c");
    assert_eq!(
        String::from_utf8_lossy(&got.stdout).split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3", "4", "passed"]
    );
    let got = with_descriptor_3(&rig, "data", "run c");
    assert!(!got.status.success(), "{got:?}");
    assert!(!String::from_utf8_lossy(&got.stdout).contains("passed"));
    // A range with holes: what is open in it goes on, nothing else does.
    let got = with_descriptor_3(&rig, "data", "run --preserve-fds 7 c");
    let seen = String::from_utf8_lossy(&got.stdout).into_owned();
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3", "4", "9", "passed"]);
    rig.configure(|config| {
        config["process"]["args"] = json!(["sh", "-c", "echo $LISTEN_FDS $LISTEN_PID $$; cat <&3"])
    });
    let got = output(
        std::process::Command::new("sh")
            .args([
                "-c",
                &format!("exec 3<data; exec {} --root state run c", env!("CARGO_BIN_EXE_slipway-oci")),
            ])
            .env("LISTEN_FDS", "1")
            .current_dir(rig.path(""))
            .stdin(std::process::Stdio::null()),
    );
    assert_eq!(String::from_utf8_lossy(&got.stdout), "1 1 1\npassed");
    rig.finish();
}
