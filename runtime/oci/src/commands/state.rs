use super::Id;
use crate::bundle::SPEC_VERSION;
use crate::cli::Global;
use crate::output::say_line;
use crate::status::Status;
use crate::store::Container;
use anyhow::Result;
use clap::Args;
use serde_json::{Map, Value, json};

#[derive(Debug, Args)]
pub(crate) struct State {
    #[command(flatten)]
    id: Id,
}

impl State {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let container = self.id.open(global)?;
        say_line(&serde_json::to_string_pretty(&state(&container))?)
    }
}

/// OCI runtime specification, "State", with runc's additions.
pub(super) fn state(container: &Container) -> Value {
    let record = &container.record;
    let status = Status::of(container);
    let mut state = Map::new();
    let mut put = |key: &str, value: Value| state.insert(key.to_owned(), value);
    put("ociVersion", json!(SPEC_VERSION));
    put("id", json!(record.id));
    put("pid", json!(if status.is_alive() { record.pid } else { 0 }));
    put("status", json!(status));
    put("bundle", json!(record.bundle));
    put("rootfs", json!(record.rootfs));
    put("created", json!(record.created));
    if !record.annotations.is_empty() {
        put("annotations", json!(record.annotations));
    }
    put("owner", json!(owner(record.owner)));
    Value::Object(state)
}

/// The name of a uid where the host has one.
pub(super) fn owner(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().find(|line| line.split(':').nth(2).and_then(|f| f.parse().ok()) == Some(uid));
    line.and_then(|line| line.split(':').next()).map_or_else(|| format!("#{uid}"), str::to_owned)
}
