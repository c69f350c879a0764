//! Limits, figures, and what many lives leave behind.

use crate::rig::{Rig, code, soon};
use containerd_shim_protos::api::{PidsRequest, StatsRequest, UpdateTaskRequest};
use containerd_shim_protos::cgroups::metrics::Metrics as MetricsV1;
use containerd_shim_protos::cgroups_v2::metrics::Metrics as MetricsV2;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use serde_json::json;
use std::fs;
use ttrpc::Code;

#[test]
fn figures_and_limits() {
    // SHIM-TSK-27, SHIM-TSK-28, SHIM-TSK-29; CRI-EXIT-03
    let rig = Rig::new();
    let mut bundle = rig.bundle("c", &["sleep", "1000"]);
    bundle.spec["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 20}});
    let pid = rig.create(&bundle).unwrap();
    rig.start("c", "").unwrap();
    let stats = StatsRequest { id: "c".into(), ..Default::default() };
    let limits = || {
        let any = rig.run(rig.tasks().stats(soon(), &stats)).unwrap().stats.unwrap();
        if any.type_url == "io.containerd.cgroups.v1.Metrics" {
            let metrics = MetricsV1::parse_from_bytes(&any.value).unwrap();
            (metrics.memory.usage.limit, metrics.pids.limit, metrics.pids.current)
        } else {
            assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
            let metrics = MetricsV2::parse_from_bytes(&any.value).unwrap();
            (metrics.memory.usage_limit, metrics.pids.limit, metrics.pids.current)
        }
    };
    assert_eq!(limits(), (64 << 20, 20, 1));
    let update = |resources: &str| {
        let value = Any { value: resources.as_bytes().to_vec(), ..Any::default() };
        let request =
            UpdateTaskRequest { id: "c".into(), resources: Some(value).into(), ..Default::default() };
        rig.run(rig.tasks().update(soon(), &request))
    };
    update(r#"{"memory":{"limit":33554432}}"#).unwrap();
    assert_eq!(limits(), (32 << 20, 20, 1));
    assert_eq!(code(update("rubbish")), Code::INVALID_ARGUMENT);
    let pids = PidsRequest { id: "c".into(), ..Default::default() };
    let pids = rig.run(rig.tasks().pids(soon(), &pids)).unwrap().processes;
    assert_eq!(pids.iter().map(|process| process.pid).collect::<Vec<_>>(), [pid]);
    rig.kill("c", "", 9, true).unwrap();
    rig.wait("c", "").unwrap();
    rig.delete("c", "").unwrap();
    // Out of memory is told from killed.
    let mut bundle = rig.bundle("oom", &["busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M"]);
    bundle.spec["linux"]["resources"] = json!({"memory": {"limit": 15 << 20, "swap": 15 << 20}});
    rig.create(&bundle).unwrap();
    rig.start("oom", "").unwrap();
    let info = rig.wait_task("oom");
    assert_eq!((info.exit_status, info.oom_killed, &*info.oom_level), (137, true, "container"));
    rig.delete("oom", "").unwrap();
}

#[test]
fn many_lives_leave_nothing_behind() {
    let rig = Rig::new();
    let info = rig.info();
    let open = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let mut before = (0, 0);
    for round in 0..40 {
        let id = format!("c{round}");
        let mut bundle = rig.bundle(&id, &["sh", "-c", "echo x; sleep 1000"]);
        bundle.stdout = format!("cri-log://{}", rig.log_path(&id).display());
        rig.create(&bundle).unwrap();
        rig.start(&id, "").unwrap();
        rig.exec(&id, "e", &["true"], "").unwrap();
        rig.start(&id, "e").unwrap();
        rig.wait(&id, "e").unwrap();
        rig.kill(&id, "", 9, true).unwrap();
        rig.wait(&id, "").unwrap();
        rig.delete(&id, "").unwrap();
        if round == 5 {
            // The guardian hears of the last things to forget a little later.
            std::thread::sleep(std::time::Duration::from_millis(300));
            before = (open(info.keeper_pid), open(info.guardian_pid));
        }
    }
    // The count of before may hold what was still about to be closed.
    crate::rig::wait_until("not more open descriptors than before", || {
        open(info.keeper_pid) <= before.0 && open(info.guardian_pid) <= before.1
    });
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", info.keeper_pid)).unwrap();
    assert_eq!(children, "", "processes of the keeper");
}
