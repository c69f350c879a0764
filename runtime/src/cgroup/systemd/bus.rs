//! Calls to systemd's manager over D-Bus (org.freedesktop.systemd1(5)), each waited for to its end.
//!
//! By the bus and not by systemd's own socket (/run/systemd/private): there systemd names itself as the sender of its answers by
//! a name that is no unique name of a bus, at which zbus 5.19 panics. One connection serves one operation: nothing has to
//! survive a restart of either side, and a process that makes no scopes has no thread for it.

use super::properties::Property;
use crate::error::Kind;
use crate::{Error, Result};
use std::time::{Duration, Instant};
use zbus::blocking::{Connection, connection::Builder};
use zbus::zvariant::{OwnedObjectPath, OwnedValue};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// systemd answers in milliseconds unless it is reloading, or the host is starved.
const PATIENCE: Duration = Duration::from_secs(30);

const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
/// A job that is over, or a unit that was forgotten.
const GONE: [&str; 3] =
    [NO_SUCH_UNIT, "org.freedesktop.DBus.Error.UnknownObject", "org.freedesktop.systemd1.NoSuchJob"];

pub(super) struct Bus {
    connection: Connection,
    version: Option<u32>,
}

impl Bus {
    pub(super) fn connect() -> Result<Self> {
        let mut last = None;
        for address in addresses() {
            let built = Builder::address(&*address).and_then(|b| b.method_timeout(PATIENCE).build());
            match built {
                Ok(connection) => return Ok(Self { connection, version: None }),
                Err(error) => last = Some((address, error)),
            }
        }
        let (address, error) =
            last.unwrap_or_else(|| ("no address".into(), zbus::Error::Address("none".into())));
        Err(Error::new(Kind::Unsupported, "talk to systemd", format!("{address}: {error}")).hint(
            "the systemd driver needs the D-Bus bus that systemd is on (Debian: package dbus); use the cgroupfs driver where there is none",
        ))
    }

    /// The major version, such as 252.
    pub(super) fn version(&mut self) -> Result<u32> {
        if let Some(version) = self.version {
            return Ok(version);
        }
        let text: String = self
            .property(MANAGER, MANAGER_INTERFACE, "Version")
            .and_then(|value| Ok(value.try_into()?))
            .map_err(|e| failed("ask for systemd's version", "Version", &e))?;
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        let version = digits.parse().unwrap_or(0);
        self.version = Some(version);
        Ok(version)
    }

    /// StartTransientUnit; returns when it is active.
    pub(super) fn start(&self, unit: &str, properties: &[Property]) -> Result<()> {
        let none: [(&str, &[Property]); 0] = [];
        let step = "start scope";
        let job: OwnedObjectPath = self
            .call(MANAGER, MANAGER_INTERFACE, "StartTransientUnit", &(unit, "replace", properties, &none[..]))
            .map_err(|e| failed(step, unit, &e))?;
        self.finish(&job).map_err(|e| failed(step, unit, &e))?;
        let state: String = self.unit_property(unit, "org.freedesktop.systemd1.Unit", "ActiveState")?;
        if state == "active" {
            return Ok(());
        }
        Err(Error::new(Kind::Kernel, step, format!("{unit} is {state}"))
            .hint("see journalctl -u with this name, or systemctl status"))
    }

    /// StopUnit; returns when it is over. Missing is success.
    pub(super) fn stop(&self, unit: &str) -> Result<()> {
        let job: Result<OwnedObjectPath, _> =
            self.call(MANAGER, MANAGER_INTERFACE, "StopUnit", &(unit, "replace"));
        let ended = job.and_then(|job| self.finish(&job));
        forgive_gone(ended).map_err(|e| failed("stop unit", unit, &e))
    }

    /// Missing is success, and so is one that has not failed.
    pub(super) fn reset_failed(&self, unit: &str) -> Result<()> {
        let done = self.call(MANAGER, MANAGER_INTERFACE, "ResetFailedUnit", &(unit,));
        forgive_gone(done).map_err(|e| failed("forget failed unit", unit, &e))
    }

    /// SetUnitProperties until the next boot.
    pub(super) fn set(&self, unit: &str, properties: &[Property]) -> Result<()> {
        self.call(MANAGER, MANAGER_INTERFACE, "SetUnitProperties", &(unit, true, properties))
            .map_err(|e| failed("set properties of unit", unit, &e))
    }

    /// The present values of a scope's properties.
    ///
    /// # Errors
    /// `NotFound` if systemd has no such unit.
    pub(super) fn get(&self, unit: &str, names: &[&'static str]) -> Result<Vec<Property>> {
        let path = self.path_of(unit)?;
        let mut found: Vec<Property> = Vec::new();
        for name in names.iter().copied() {
            if found.iter().any(|(known, _)| *known == name) {
                continue;
            }
            let value = self
                .property(&path, "org.freedesktop.systemd1.Scope", name)
                .map_err(|e| failed("read property of unit", &format!("{unit} {name}"), &e))?;
            found.push((name, value.into()));
        }
        Ok(found)
    }

    fn unit_property<T: TryFrom<OwnedValue, Error = zbus::zvariant::Error>>(
        &self,
        unit: &str,
        interface: &str,
        name: &str,
    ) -> Result<T> {
        let path = self.path_of(unit)?;
        let value = self.property(&path, interface, name).and_then(|value| Ok(value.try_into()?));
        value.map_err(|e| failed("read property of unit", &format!("{unit} {name}"), &e))
    }

    fn path_of(&self, unit: &str) -> Result<OwnedObjectPath> {
        self.call(MANAGER, MANAGER_INTERFACE, "GetUnit", &(unit,)).map_err(|e| failed("find unit", unit, &e))
    }

    fn property(&self, path: &str, interface: &str, name: &str) -> zbus::Result<OwnedValue> {
        self.call(path, PROPERTIES, "Get", &(interface, name))
    }

    fn call<T>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        arguments: &(impl serde::Serialize + zbus::zvariant::DynamicType),
    ) -> zbus::Result<T>
    where
        T: for<'d> zbus::zvariant::DynamicDeserialize<'d>,
    {
        let answer = self.connection.call_method(Some(SYSTEMD), path, Some(interface), method, arguments)?;
        answer.body().deserialize()
    }

    /// Waits until a job is over: systemd then forgets it.
    fn finish(&self, job: &OwnedObjectPath) -> zbus::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(500);
        loop {
            match self.property(job, "org.freedesktop.systemd1.Job", "State") {
                Ok(_) if Instant::now() > deadline => {
                    return Err(zbus::Error::Failure(format!("job {job} is not done after {PATIENCE:?}")));
                }
                Ok(_) => std::thread::sleep(pause),
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

/// The buses that systemd may be on: the system's, or the user's.
fn addresses() -> Vec<String> {
    if rustix::process::geteuid().is_root() {
        return vec!["unix:path=/run/dbus/system_bus_socket".into()];
    }
    let run = std::env::var("XDG_RUNTIME_DIR")
        .unwrap_or_else(|_| format!("/run/user/{}", rustix::process::geteuid().as_raw()));
    let named = std::env::var("DBUS_SESSION_BUS_ADDRESS").ok();
    named.into_iter().chain([format!("unix:path={run}/bus")]).collect()
}

fn name_of(error: &zbus::Error) -> Option<&str> {
    match error {
        zbus::Error::MethodError(name, ..) => Some(name.as_str()),
        zbus::Error::FDO(error) => match &**error {
            zbus::fdo::Error::UnknownObject(_) => Some("org.freedesktop.DBus.Error.UnknownObject"),
            _ => None,
        },
        _ => None,
    }
}

fn is_gone(error: &zbus::Error) -> bool {
    name_of(error).is_some_and(|name| GONE.contains(&name))
}

fn forgive_gone(result: zbus::Result<()>) -> zbus::Result<()> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}

/// systemd's sentence, with our class of it.
fn failed(step: &str, object: &str, error: &zbus::Error) -> Error {
    let (kind, hint) = match name_of(error) {
        Some(UNIT_EXISTS) => {
            (Kind::Exists, "another container has this name, or a former one was not removed")
        }
        Some(NO_SUCH_UNIT) => (Kind::NotFound, "systemd does not know it (any more)"),
        Some(
            "org.freedesktop.DBus.Error.AccessDenied"
            | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
        ) => (
            Kind::Kernel,
            "only root may manage the system's units; as a user, log in with a session of systemd --user",
        ),
        Some("org.freedesktop.DBus.Error.InvalidArgs") => {
            (Kind::Invalid, "systemd does not take these values")
        }
        _ => (Kind::Kernel, "see systemd's journal"),
    };
    Error::new(kind, step, format!("{object}: {error}")).hint(hint)
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("version", &self.version).finish_non_exhaustive()
    }
}
