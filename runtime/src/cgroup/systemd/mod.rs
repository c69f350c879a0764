//! The systemd driver: a container's group is a transient scope, and systemd knows its limits, so that neither a
//! daemon-reload nor `systemctl set-property` undoes them.
//!
//! ```text
//!  slice:prefix:name ──▶ holder process ──StartTransientUnit──▶ scope (Delegate=yes) ──▶ limits as files ──▶ child born in it
//!                                                                 └─ holder leaves once the child is there
//! ```
//!
//! systemd starts no scope without a process and ends one with its last, hence the holder. Everything that systemd has a
//! property for is told to it (`properties`); then the control files are written all the same, because they are exact and
//! know more. Version 2 only: on version 1 systemd manages some of the hierarchies and leaves the others in the air.

mod bus;
mod holder;
mod properties;

pub(super) use holder::Holder;

use super::apply::Change;
use super::layout::Layout;
use crate::error::Kind;
use crate::unit::ScopeName;
use crate::{Error, Result};
use bus::Bus;
use properties::Property;

/// True if systemd is the init of this host (sd_booted(3)).
pub(in crate::cgroup) fn is_running() -> bool {
    std::fs::symlink_metadata("/run/systemd/system").is_ok_and(|m| m.is_dir())
}

/// # Errors
/// `Unsupported` where no systemd runs, or on version 1.
pub(super) fn must_run(layout: &Layout, name: &str) -> Result<()> {
    let unsupported =
        |hint: &str| Err(Error::new(Kind::Unsupported, "use the systemd cgroup driver", name).hint(hint));
    if !is_running() {
        return unsupported(
            "systemd is not the init of this host (there is no /run/systemd/system); use the cgroupfs driver and \
             a path such as /slipway/c1",
        );
    }
    match layout {
        Layout::V2(_) => Ok(()),
        Layout::V1 { .. } => unsupported(
            "on cgroup version 1 use the cgroupfs driver, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
    }
}

/// Starts the scope with the limits of `change`; it lives as long as the holder, or anybody else in it, does.
///
/// # Errors
/// `Exists` if a unit of that name is active.
pub(super) fn start(scope: &ScopeName, change: &Change) -> Result<Holder> {
    let mut bus = Bus::connect()?;
    let holder = Holder::new()?;
    let mut properties = properties::of_scope(scope, holder.pid());
    properties.extend(properties::of_limits(&change.limits, bus.version()?));
    if let Some(rules) = &change.devices {
        properties.extend(properties::of_devices(rules));
    }
    let started = match bus.start(&scope.unit, &properties) {
        // A scope of that name failed once and nobody asked why: it is in nobody's way.
        Err(error) if error.kind() == Kind::Exists => {
            bus.reset_failed(&scope.unit)?;
            bus.start(&scope.unit, &properties)
        }
        other => other,
    };
    started.map(|()| holder)
}

/// What was set before [`update`], to be put back.
#[derive(Debug)]
pub(super) struct Former {
    unit: String,
    properties: Vec<Property>,
}

impl Former {
    pub(super) fn restore(self) -> Result<()> {
        Bus::connect()?.set(&self.unit, &self.properties)
    }
}

/// Tells systemd of new limits. A scope that systemd has forgotten (its last process left) is no error.
pub(super) fn update(unit: &str, change: &Change) -> Result<Option<Former>> {
    let mut bus = Bus::connect()?;
    let mut properties = properties::of_limits(&change.limits, bus.version()?);
    if let Some(rules) = &change.devices {
        properties.extend(properties::of_devices(rules));
    }
    if properties.is_empty() {
        return Ok(None);
    }
    let names: Vec<&str> = properties.iter().map(|p| p.0).collect();
    let former = match bus.get(unit, &names) {
        Ok(former) => former,
        Err(error) if error.kind() == Kind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    bus.set(unit, &properties)?;
    Ok(Some(Former { unit: unit.to_owned(), properties: properties::replacing(former) }))
}

/// Ends a unit that holds nobody any more; systemd then removes its group. Missing is success.
pub(super) fn stop(unit: &str) -> Result<()> {
    let bus = Bus::connect()?;
    let stopped = bus.stop(unit);
    let reset = bus.reset_failed(unit);
    stopped.and(reset)
}
