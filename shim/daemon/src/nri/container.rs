//! A container as NRI's message: what the record says, and what its OCI spec says (NRI-33, NRI-34).

use super::resources::from_spec;
use crate::containers::{ContainerRecord, Phase};
use cri_proto::{nri, v1};
use protobuf::{Enum, MessageField};
use serde_json::Value;
use std::collections::HashMap;

/// `spec` may be null: then only the record speaks.
pub(crate) fn container(record: &ContainerRecord, spec: &Value) -> nri::Container {
    let mut annotations = map(&spec["annotations"]);
    annotations.extend(record.config.annotations.clone());
    let process = &spec["process"];
    let mut message = nri::Container {
        id: record.id.clone(),
        pod_sandbox_id: record.pod_id.clone(),
        name: record.metadata().name,
        labels: record.config.labels.clone(),
        annotations,
        args: strings(&process["args"]),
        env: strings(&process["env"]),
        mounts: each(&spec["mounts"], mount),
        hooks: hooks(&spec["hooks"]),
        linux: Some(linux(record, spec)).into(),
        rlimits: each(&process["rlimits"], rlimit),
        created_at: record.created_at,
        CDI_devices: record.config.cdi_devices.iter().map(cdi_device).collect(),
        user: user(&process["user"]),
        image: Some(nri::Image {
            name: record.image_name.clone(),
            digest: record
                .image_ref
                .rsplit_once('@')
                .map(|(_, digest)| digest.to_owned())
                .unwrap_or_default(),
            config_digest: record.image_id.clone(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    life(&mut message, &record.phase);
    message
}

fn life(message: &mut nri::Container, phase: &Phase) {
    use nri::ContainerState as State;
    let state = match phase {
        Phase::Creating | Phase::Created => State::CONTAINER_CREATED,
        Phase::Running { started_at, pid } => {
            (message.started_at, message.pid) = (*started_at, *pid);
            State::CONTAINER_RUNNING
        }
        Phase::Exited { started_at, finished_at, exit_code, reason, message: why } => {
            (message.started_at, message.finished_at, message.exit_code) =
                (*started_at, *finished_at, *exit_code);
            message.status_reason.clone_from(reason);
            message.status_message.clone_from(why);
            State::CONTAINER_STOPPED
        }
    };
    message.state = state.into();
}

fn linux(record: &ContainerRecord, spec: &Value) -> nri::LinuxContainer {
    let (linux, process) = (&spec["linux"], &spec["process"]);
    let profile = record.config.linux.as_ref().and_then(|l| l.security_context.as_ref()?.seccomp.as_ref());
    nri::LinuxContainer {
        namespaces: each(&linux["namespaces"], namespace),
        devices: each(&linux["devices"], device),
        resources: Some(from_spec(&linux["resources"])).into(),
        oom_score_adj: process["oomScoreAdj"].as_i64().map(int).into(),
        cgroups_path: text(&linux["cgroupsPath"]),
        io_priority: io_priority(&process["ioPriority"]),
        seccomp_profile: profile.map(security_profile).into(),
        seccomp_policy: seccomp(&linux["seccomp"]),
        sysctl: map(&linux["sysctl"]),
        net_devices: net_devices(&linux["netDevices"]),
        scheduler: scheduler(&process["scheduler"]),
        rdt: rdt(&linux["intelRdt"]),
        ..Default::default()
    }
}

fn namespace(value: &Value) -> nri::LinuxNamespace {
    nri::LinuxNamespace { type_: text(&value["type"]), path: text(&value["path"]), ..Default::default() }
}

fn device(value: &Value) -> nri::LinuxDevice {
    let id = |key: &str| {
        let value = value[key].as_u64().and_then(|v| u32::try_from(v).ok());
        value.map(|value| nri::OptionalUInt32 { value, ..Default::default() }).into()
    };
    let mode = value["fileMode"].as_u64().and_then(|v| u32::try_from(v).ok());
    nri::LinuxDevice {
        path: text(&value["path"]),
        type_: text(&value["type"]),
        major: value["major"].as_i64().unwrap_or_default(),
        minor: value["minor"].as_i64().unwrap_or_default(),
        file_mode: mode.map(|value| nri::OptionalFileMode { value, ..Default::default() }).into(),
        uid: id("uid"),
        gid: id("gid"),
        ..Default::default()
    }
}

fn mount(value: &Value) -> nri::Mount {
    nri::Mount {
        destination: text(&value["destination"]),
        type_: text(&value["type"]),
        source: text(&value["source"]),
        options: strings(&value["options"]),
        ..Default::default()
    }
}

fn rlimit(value: &Value) -> nri::POSIXRlimit {
    nri::POSIXRlimit {
        type_: text(&value["type"]),
        hard: value["hard"].as_u64().unwrap_or_default(),
        soft: value["soft"].as_u64().unwrap_or_default(),
        ..Default::default()
    }
}

fn cdi_device(device: &v1::CdiDevice) -> nri::CDIDevice {
    nri::CDIDevice { name: device.name.clone(), ..Default::default() }
}

fn user(value: &Value) -> MessageField<nri::User> {
    let id = |value: &Value| value.as_u64().and_then(|v| u32::try_from(v).ok()).unwrap_or_default();
    let user = value.is_object().then(|| nri::User {
        uid: id(&value["uid"]),
        gid: id(&value["gid"]),
        additional_gids: each(&value["additionalGids"], id),
        ..Default::default()
    });
    user.into()
}

fn hooks(value: &Value) -> MessageField<nri::Hooks> {
    let kind = |key: &str| each(&value[key], hook);
    let hooks = value.is_object().then(|| nri::Hooks {
        prestart: kind("prestart"),
        create_runtime: kind("createRuntime"),
        create_container: kind("createContainer"),
        start_container: kind("startContainer"),
        poststart: kind("poststart"),
        poststop: kind("poststop"),
        ..Default::default()
    });
    hooks.into()
}

fn hook(value: &Value) -> nri::Hook {
    nri::Hook {
        path: text(&value["path"]),
        args: strings(&value["args"]),
        env: strings(&value["env"]),
        timeout: value["timeout"].as_i64().map(int).into(),
        ..Default::default()
    }
}

fn security_profile(profile: &v1::SecurityProfile) -> nri::SecurityProfile {
    use nri::security_profile::ProfileType;
    // The numbers are CRI's.
    let kind = ProfileType::from_i32(profile.profile_type).unwrap_or(ProfileType::RUNTIME_DEFAULT);
    nri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: profile.localhost_ref.clone(),
        ..Default::default()
    }
}

fn seccomp(value: &Value) -> MessageField<nri::LinuxSeccomp> {
    let number = |value: &Value| {
        let number = value.as_u64().and_then(|v| u32::try_from(v).ok());
        MessageField::from(number.map(|value| nri::OptionalUInt32 { value, ..Default::default() }))
    };
    let arg = |value: &Value| nri::LinuxSeccompArg {
        index: value["index"].as_u64().and_then(|v| u32::try_from(v).ok()).unwrap_or_default(),
        value: value["value"].as_u64().unwrap_or_default(),
        value_two: value["valueTwo"].as_u64().unwrap_or_default(),
        op: text(&value["op"]),
        ..Default::default()
    };
    let rule = |value: &Value| nri::LinuxSyscall {
        names: strings(&value["names"]),
        action: text(&value["action"]),
        errno_ret: number(&value["errnoRet"]),
        args: each(&value["args"], arg),
        ..Default::default()
    };
    let policy = value.is_object().then(|| nri::LinuxSeccomp {
        default_action: text(&value["defaultAction"]),
        default_errno: number(&value["defaultErrnoRet"]),
        architectures: strings(&value["architectures"]),
        flags: strings(&value["flags"]),
        listener_path: text(&value["listenerPath"]),
        listener_metadata: text(&value["listenerMetadata"]),
        syscalls: each(&value["syscalls"], rule),
        ..Default::default()
    });
    policy.into()
}

fn io_priority(value: &Value) -> MessageField<nri::LinuxIOPriority> {
    let class = value["class"].as_str().and_then(nri::IOPrioClass::from_str);
    let priority = class.map(|class| nri::LinuxIOPriority {
        class: class.into(),
        priority: value["priority"].as_i64().and_then(|v| i32::try_from(v).ok()).unwrap_or_default(),
        ..Default::default()
    });
    priority.into()
}

fn scheduler(value: &Value) -> MessageField<nri::LinuxScheduler> {
    let number = |key: &str| value[key].as_i64().and_then(|v| i32::try_from(v).ok()).unwrap_or_default();
    let policy = value["policy"].as_str().and_then(nri::LinuxSchedulerPolicy::from_str);
    let flags = strings(&value["flags"]);
    let scheduler = policy.map(|policy| nri::LinuxScheduler {
        policy: policy.into(),
        nice: number("nice"),
        priority: number("priority"),
        flags: flags.iter().filter_map(|f| nri::LinuxSchedulerFlag::from_str(f)).map(Into::into).collect(),
        runtime: value["runtime"].as_u64().unwrap_or_default(),
        deadline: value["deadline"].as_u64().unwrap_or_default(),
        period: value["period"].as_u64().unwrap_or_default(),
        ..Default::default()
    });
    scheduler.into()
}

fn rdt(value: &Value) -> MessageField<nri::LinuxRdt> {
    let string = |value: &Value| {
        MessageField::from(
            value.as_str().map(|v| nri::OptionalString { value: v.into(), ..Default::default() }),
        )
    };
    let rdt = value.is_object().then(|| nri::LinuxRdt {
        clos_id: string(&value["closID"]),
        schemata: value["schemata"]
            .is_array()
            .then(|| nri::OptionalRepeatedString { value: strings(&value["schemata"]), ..Default::default() })
            .into(),
        enable_monitoring: value["enableMonitoring"]
            .as_bool()
            .map(|value| nri::OptionalBool { value, ..Default::default() })
            .into(),
        ..Default::default()
    });
    rdt.into()
}

fn net_devices(value: &Value) -> HashMap<String, nri::LinuxNetDevice> {
    let all = value.as_object().into_iter().flatten();
    let device = |v: &Value| nri::LinuxNetDevice { name: text(&v["name"]), ..Default::default() };
    all.map(|(host, v)| (host.clone(), device(v))).collect()
}

fn int(value: i64) -> nri::OptionalInt {
    nri::OptionalInt { value, ..Default::default() }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn strings(value: &Value) -> Vec<String> {
    each(value, text)
}

fn map(value: &Value) -> HashMap<String, String> {
    value.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), text(v))).collect()
}

pub(super) fn each<T>(value: &Value, one: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().into_iter().flatten().map(one).collect()
}
