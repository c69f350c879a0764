//! Checkpoint and restore: whole where this host's criu works, and where it does not, told and without a trace.
//!
//! SLIPWAY_TEST_CRIU names another criu than that of PATH: Debian 12's does not know the newest kernels.

use crate::rig::{Bundle, Rig, code, kill, log_lines, soon, wait_until};
use containerd_shim_protos::api::{CheckpointTaskRequest, CreateTaskRequest};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use cri_proto::keeper::GenericOptions;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use ttrpc::Code;

const COUNT: &str =
    "i=0; while [ ! -e /tmp/go ]; do i=$((i+1)); echo $i > /tmp/n; sleep 0.02; done; echo over; exit 5";

fn criu() -> String {
    std::env::var("SLIPWAY_TEST_CRIU").unwrap_or_else(|_| "criu".to_owned())
}

fn works() -> bool {
    let check = Command::new(criu()).arg("check").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let works = check.as_ref().is_ok_and(|status| status.success());
    if !works {
        println!(
            "no restore is tried: `{} check` says {check:?} (SLIPWAY_TEST_CRIU names another criu)",
            criu()
        );
    }
    works
}

fn create(rig: &Rig, bundle: &Bundle, checkpoint: &Path) -> ttrpc::Result<u32> {
    create_with(rig, bundle, checkpoint, &criu())
}

pub fn create_with(rig: &Rig, bundle: &Bundle, checkpoint: &Path, criu: &str) -> ttrpc::Result<u32> {
    let body = format!("CriuPath = {criu:?}\n").into_bytes();
    let message = GenericOptions { config_body: body, ..GenericOptions::default() };
    let value = message.write_to_bytes().unwrap();
    let options = Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Any::default() };
    fs::write(bundle.path.join("config.json"), bundle.spec.to_string()).unwrap();
    let request = CreateTaskRequest {
        id: bundle.id.clone(),
        bundle: bundle.path.to_str().unwrap().into(),
        terminal: bundle.spec["process"]["terminal"] == true,
        stdout: bundle.stdout.clone(),
        checkpoint: checkpoint.to_str().unwrap().into(),
        options: Some(options).into(),
        ..Default::default()
    };
    rig.run(rig.tasks().create(soon(), &request)).map(|answer| answer.pid)
}

fn checkpoint(rig: &Rig, id: &str, images: &Path, exit: bool) -> ttrpc::Result<()> {
    let options = CheckpointOptions { exit, ..Default::default() };
    let options = Any {
        type_url: "containerd.runc.v1.CheckpointOptions".into(),
        value: options.write_to_bytes().unwrap(),
        ..Any::default()
    };
    let request = CheckpointTaskRequest {
        id: id.into(),
        path: images.to_str().unwrap().into(),
        options: Some(options).into(),
        ..Default::default()
    };
    rig.run(rig.tasks().checkpoint(soon(), &request)).map(drop)
}

fn counted(bundle: &Bundle) -> u64 {
    fs::read_to_string(bundle.path.join("rootfs/tmp/n")).ok().and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

fn goes_on(bundle: &Bundle) {
    let before = counted(bundle);
    wait_until("it counts on", || counted(bundle) > before + 2);
}

/// A container that counts, with a log.
fn counting(rig: &Rig, id: &str) -> Bundle {
    let mut bundle = rig.bundle(id, &["sh", "-c", COUNT]);
    bundle.stdout = format!("cri-log://{}", rig.log_path(id).display());
    create(rig, &bundle, Path::new("")).unwrap();
    rig.start(id, "").unwrap();
    goes_on(&bundle);
    bundle
}

fn end(rig: &Rig, id: &str) {
    rig.kill(id, "", 9, true).unwrap();
    rig.wait(id, "").unwrap();
    rig.delete(id, "").unwrap();
}

/// An image directory of the test's own.
fn images(rig: &Rig, name: &str) -> PathBuf {
    rig.dir().join(name)
}

#[test]
fn what_cannot_be_checkpointed_or_restored_is_refused() {
    // SHIM-TSK-30
    let rig = Rig::new();
    let bundle = rig.bundle("c", &["sleep", "1000"]);
    assert_eq!(code(create(&rig, &bundle, Path::new("/no/such/place"))), Code::NOT_FOUND);
    assert_eq!(code(create(&rig, &bundle, rig.dir())), Code::INVALID_ARGUMENT);
    assert!(rig.list().is_empty());
    create_with(&rig, &bundle, Path::new(""), "/no/criu").unwrap();
    let to = images(&rig, "images");
    assert_eq!(code(checkpoint(&rig, "c", &to, false)), Code::FAILED_PRECONDITION, "not started");
    assert_eq!(code(checkpoint(&rig, "nobody", &to, false)), Code::NOT_FOUND);
    rig.start("c", "").unwrap();
    assert_eq!(code(checkpoint(&rig, "c", Path::new("here"), false)), Code::INVALID_ARGUMENT);
    let missing = checkpoint(&rig, "c", &to, false).unwrap_err().to_string();
    assert!(missing.contains("/no/criu is not installed"), "{missing}");
    rig.exec("c", "e", &["sleep", "1000"], "").unwrap();
    rig.start("c", "e").unwrap();
    let busy = checkpoint(&rig, "c", &to, false).unwrap_err().to_string();
    assert!(busy.contains("exec session e runs"), "{busy}");
    assert!(!to.exists(), "nothing half-made stays");
    assert_eq!(rig.state("c", "").unwrap(), "RUNNING");
    end(&rig, "c");
}

#[test]
fn a_container_from_a_checkpoint_that_never_starts_can_be_ended() {
    let mut rig = Rig::new();
    let from = images(&rig, "images");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("inventory.img"), "no image").unwrap();
    for id in ["killed", "deleted"] {
        let bundle = rig.bundle(id, &["sleep", "1000"]);
        assert_eq!(create(&rig, &bundle, &from).unwrap(), 0, "no process yet");
        assert_eq!(rig.state(id, "").unwrap(), "CREATED");
        rig.kill_keeper();
        assert_eq!(rig.state(id, "").unwrap(), "CREATED");
        let said = rig.start(id, "").unwrap_err().to_string();
        assert!(said.contains("restore container"), "{said}");
        assert_eq!(rig.state(id, "").unwrap(), "CREATED", "it can be tried again");
    }
    rig.kill("killed", "", 15, false).unwrap();
    assert_eq!(rig.wait("killed", "").unwrap(), 143);
    rig.delete("killed", "").unwrap();
    assert_eq!(rig.delete("deleted", "").unwrap(), 137);
}

#[test]
fn a_container_goes_on_where_it_was_frozen() {
    // SHIM-TSK-30, SHIM-TSK-01
    let mut rig = Rig::new();
    let bundle = counting(&rig, "c");
    let (twin, whole) = (images(&rig, "twin"), images(&rig, "whole"));
    if !works() {
        // This kernel is too new for this criu, or there is none: the container must not notice.
        let said = checkpoint(&rig, "c", &twin, true).unwrap_err().to_string();
        assert!(said.contains("checkpoint container c: "), "{said}");
        assert!(!twin.exists(), "nothing half-made stays");
        goes_on(&bundle);
        return end(&rig, "c");
    }
    checkpoint(&rig, "c", &twin, false).unwrap();
    assert_eq!(rig.state("c", "").unwrap(), "RUNNING");
    goes_on(&bundle);
    checkpoint(&rig, "c", &whole, true).unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 137, "it ends with the checkpoint");
    assert!(!whole.join("dump.log").exists(), "logs are no part of a checkpoint");
    rig.delete("c", "").unwrap();
    let frozen = counted(&bundle);
    create(&rig, &bundle, &whole).unwrap();
    // A keeper that dies before the start leaves it to the next one.
    rig.kill_keeper();
    let pid = rig.start("c", "").unwrap();
    assert_eq!(rig.state("c", "").unwrap(), "RUNNING");
    wait_until("it counts on", || counted(&bundle) > frozen + 2);
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(groups.contains(&rig.group), "{groups}");
    rig.exec("c", "e", &["true"], "").unwrap();
    rig.start("c", "e").unwrap();
    assert_eq!(rig.wait("c", "e").unwrap(), 0);
    rig.delete("c", "e").unwrap();
    // And one that dies afterwards leaves it running.
    rig.kill_keeper();
    goes_on(&bundle);
    fs::write(bundle.path.join("rootfs/tmp/go"), "").unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 5);
    rig.delete("c", "").unwrap();
    assert_eq!(log_lines(&rig.log_path("c"), "stdout"), ["over"], "its streams were connected again");
}

#[test]
fn streams_by_fifo_and_terminals_come_back() {
    if !works() {
        return;
    }
    let rig = Rig::new();
    let mut by_fifo = rig.bundle("fifo", &["sh", "-c", COUNT]);
    let mut by_tty = rig.bundle("tty", &["sh", "-c", &format!("{COUNT}; stty size")]);
    by_tty.spec["process"]["terminal"] = json!(true);
    for bundle in [&mut by_fifo, &mut by_tty] {
        let (name, images) = (bundle.id.clone(), images(&rig, &format!("{}-images", bundle.id)));
        bundle.stdout = rig.fifo(&format!("{name}-out"));
        for from in [PathBuf::new(), images.clone()] {
            create(&rig, bundle, &from).unwrap();
            let fifo = bundle.stdout.clone();
            let reader = std::thread::spawn(move || fs::read_to_string(fifo).unwrap());
            rig.start(&name, "").unwrap();
            goes_on(bundle);
            if from.as_os_str().is_empty() {
                checkpoint(&rig, &name, &images, true).unwrap();
                assert_eq!(rig.wait(&name, "").unwrap(), 137);
                rig.delete(&name, "").unwrap();
                assert_eq!(reader.join().unwrap(), "");
                continue;
            }
            fs::write(bundle.path.join("rootfs/tmp/go"), "").unwrap();
            assert_eq!(rig.wait(&name, "").unwrap(), 5, "{name}");
            rig.delete(&name, "").unwrap();
            let said = reader.join().unwrap();
            assert!(said.starts_with("over"), "{name}: {said:?}");
        }
    }
}

#[test]
fn a_keeper_killed_in_the_middle_of_a_restore_leaves_nothing_half_made() {
    if !works() {
        return;
    }
    let mut rig = Rig::new();
    let bundle = counting(&rig, "c");
    let from = images(&rig, "images");
    checkpoint(&rig, "c", &from, true).unwrap();
    rig.wait("c", "").unwrap();
    rig.delete("c", "").unwrap();
    // Criu wants the files as they were: one may have been open, and empty, at that moment.
    let file = bundle.path.join("rootfs/tmp/n");
    let then = fs::read(&file).unwrap();
    for moment in 0..8_u64 {
        fs::write(&file, &then).unwrap();
        create(&rig, &bundle, &from).unwrap();
        let keeper = rig.info().keeper_pid;
        std::thread::scope(|scope| {
            // The guardian keeps the connection: the next keeper does the call again.
            let start = scope.spawn(|| rig.start("c", ""));
            std::thread::sleep(std::time::Duration::from_millis(moment * 15));
            kill(keeper, 9);
            let _ = start.join().unwrap();
        });
        rig.reconnect();
        if rig.state("c", "").unwrap() == "CREATED" {
            rig.start("c", "").unwrap();
        }
        goes_on(&bundle);
        end(&rig, "c");
    }
}
