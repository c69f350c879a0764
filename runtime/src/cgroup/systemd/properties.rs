//! What limits are called as properties of a scope (systemd.resource-control(5), org.freedesktop.systemd1(5)). Pure, but
//! for names of device drivers.
//!
//! It is derived from the control files that will be written, so that fields of the spec and keys of `unified` come out the
//! same. A file that has no property is left to the file: systemd does not touch it.

use crate::cgroup::devices::{self, Rule};
use crate::cgroup::limits::Limit;
use crate::unit::ScopeName;
use std::collections::BTreeMap;
use zbus::zvariant::Value;

/// Name and value, as `a(sv)` holds them.
pub(super) type Property = (&'static str, Value<'static>);

/// systemd's word for no limit.
const INFINITY: u64 = u64::MAX;
/// The kernel's default period of cpu.max, in microseconds.
const PERIOD_US: u64 = 100_000;
/// From here on a weight of 0 means idle.
const KNOWS_IDLE: u32 = 252;
/// From here on scopes have an OOMPolicy.
const KNOWS_OOM_POLICY: u32 = 253;

/// What every scope of ours is. `Delegate` makes the group ours: systemd never touches what is below it.
pub(super) fn of_scope(scope: &ScopeName, holder: i32) -> Vec<Property> {
    vec![
        ("Description", format!("slipway container {}", scope.unit.trim_end_matches(".scope")).into()),
        ("Slice", scope.slice.clone().into()),
        ("PIDs", vec![holder.unsigned_abs()].into()),
        ("Delegate", true.into()),
        ("DefaultDependencies", false.into()),
        ("CPUAccounting", true.into()),
        ("MemoryAccounting", true.into()),
        ("IOAccounting", true.into()),
        ("TasksAccounting", true.into()),
        // Without this a scope that failed would stay on the list.
        ("CollectMode", "inactive-or-failed".to_owned().into()),
    ]
}

/// The limits that systemd knows, in the order in which they are written.
pub(super) fn of_limits(limits: &[Limit], version: u32) -> Vec<Property> {
    let mut properties: Vec<Property> = Vec::new();
    for limit in limits {
        for new in of_limit(&limit.file, &limit.value, version) {
            match properties.iter_mut().find(|(name, _)| *name == new.0 && !is_by_device(name)) {
                Some(old) => old.1 = new.1,
                None => properties.push(new),
            }
        }
    }
    properties
}

fn is_by_device(name: &str) -> bool {
    name.starts_with("IO") && name != "IOWeight"
}

fn of_limit(file: &str, value: &str, version: u32) -> Vec<Property> {
    let one = |name: &'static str| number(value).map(|n| (name, Value::from(n))).into_iter().collect();
    match file {
        "memory.max" => one("MemoryMax"),
        "memory.high" => one("MemoryHigh"),
        "memory.low" => one("MemoryLow"),
        "memory.min" => one("MemoryMin"),
        "memory.swap.max" => one("MemorySwapMax"),
        "pids.max" => one("TasksMax"),
        "cpu.weight" => one("CPUWeight"),
        "cpu.idle" if value == "1" && version >= KNOWS_IDLE => vec![("CPUWeight", 0u64.into())],
        "cpu.max" => cpu_max(value),
        "cpuset.cpus" => mask(value).map(|mask| ("AllowedCPUs", mask.into())).into_iter().collect(),
        "cpuset.mems" => mask(value).map(|mask| ("AllowedMemoryNodes", mask.into())).into_iter().collect(),
        "memory.oom.group" if version >= KNOWS_OOM_POLICY => {
            let policy = if value == "1" { "kill" } else { "continue" };
            vec![("OOMPolicy", policy.to_owned().into())]
        }
        "io.weight" => io_weight(value),
        "io.max" => io_max(value),
        _ => Vec::new(),
    }
}

fn number(value: &str) -> Option<u64> {
    if value == "max" { Some(INFINITY) } else { value.parse().ok() }
}

/// systemd holds a quota per second, and in whole hundredths of a cpu: it is rounded up, so that what the file then says
/// is never above what the unit allows.
fn cpu_max(value: &str) -> Vec<Property> {
    const STEP_US: u64 = 10_000;
    let (quota, period) = value.split_once(' ').unwrap_or((value, ""));
    let period = period.parse().ok().filter(|p| *p > 0).unwrap_or(PERIOD_US);
    let Some(quota) = number(quota) else { return Vec::new() };
    let per_second = match quota {
        INFINITY => INFINITY,
        quota => {
            let exact = u128::from(quota) * 1_000_000 / u128::from(period);
            u64::try_from(exact).map_or(INFINITY, |us| us.next_multiple_of(STEP_US))
        }
    };
    vec![("CPUQuotaPerSecUSec", per_second.into()), ("CPUQuotaPeriodUSec", period.into())]
}

/// `0-3,7` as bytes of bits, the lowest first.
fn mask(list: &str) -> Option<Vec<u8>> {
    let mut mask: Vec<u8> = Vec::new();
    for part in list.trim().split(',') {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high): (usize, usize) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
        mask.resize(mask.len().max(high / 8 + 1), 0);
        (low..=high).for_each(|bit| mask[bit / 8] |= 1 << (bit % 8));
    }
    Some(mask)
}

/// `default 100`, `8:0 100`.
fn io_weight(value: &str) -> Vec<Property> {
    match value.split_once(' ').map(|(of, weight)| (of, weight.parse::<u64>())) {
        Some(("default", Ok(weight))) => vec![("IOWeight", weight.into())],
        Some((device, Ok(weight))) => vec![("IODeviceWeight", vec![(node("block", device), weight)].into())],
        _ => Vec::new(),
    }
}

/// `8:0 rbps=1 wiops=max`
fn io_max(value: &str) -> Vec<Property> {
    let Some((device, settings)) = value.split_once(' ') else { return Vec::new() };
    let one = |setting: &str| {
        let (key, value) = setting.split_once('=')?;
        let name = match key {
            "rbps" => "IOReadBandwidthMax",
            "wbps" => "IOWriteBandwidthMax",
            "riops" => "IOReadIOPSMax",
            "wiops" => "IOWriteIOPSMax",
            _ => return None,
        };
        Some((name, vec![(node("block", device), number(value)?)].into()))
    };
    settings.split(' ').filter_map(one).collect()
}

fn node(kind: &str, device: &str) -> String {
    format!("/dev/{kind}/{device}")
}

/// Device rules as far as they can be said; else systemd restricts nothing, and our own program (which is there in any
/// case) does.
pub(super) fn of_devices(rules: &[Rule]) -> Vec<Property> {
    let empty = || ("DeviceAllow", Value::from(Vec::<(String, String)>::new()));
    match device_list(rules) {
        // A list that is set is added to what is there; an empty one clears.
        Some(list) => {
            vec![("DevicePolicy", "strict".to_owned().into()), empty(), ("DeviceAllow", list.into())]
        }
        None => vec![("DevicePolicy", "auto".to_owned().into()), empty()],
    }
}

fn device_list(rules: &[Rule]) -> Option<Vec<(String, String)>> {
    let drivers = std::fs::read_to_string("/proc/devices").unwrap_or_default();
    let mut list: BTreeMap<String, String> = BTreeMap::new();
    for allowed in devices::allowed(rules)? {
        let kind = if allowed.is_char { "char" } else { "block" };
        let name = match (allowed.major, allowed.minor) {
            (Some(major), Some(minor)) => node(kind, &format!("{major}:{minor}")),
            (Some(major), None) => format!("{kind}-{}", driver(&drivers, allowed.is_char, major)?),
            (None, None) => format!("{kind}-*"),
            (None, Some(_)) => return None,
        };
        list.insert(name, allowed.access);
    }
    Some(list.into_iter().collect())
}

/// The driver's name of a major number in /proc/devices, which is how systemd speaks of all its minors.
fn driver(table: &str, is_char: bool, major: u32) -> Option<&str> {
    let (chars, blocks) = table.split_once("Block devices:")?;
    let part = if is_char { chars } else { blocks };
    let name = |line: &'_ str| -> Option<(u32, usize)> {
        let number = line.split_whitespace().next()?;
        Some((number.parse().ok()?, line.find(number)? + number.len()))
    };
    let mut found = part.lines().filter_map(|line| {
        let (number, end) = name(line)?;
        (number == major).then(|| line[end..].trim())
    });
    let driver = found.next()?;
    // Several drivers share a major (4: tty and ttyS): one name would not say all.
    found.next().is_none().then_some(driver)
}

/// Former values as they must be set to replace what is there: lists are cleared first.
pub(super) fn replacing(former: Vec<Property>) -> Vec<Property> {
    let clear = |name: &'static str| -> Option<Property> {
        match name {
            "DeviceAllow" => Some((name, Vec::<(String, String)>::new().into())),
            name if is_by_device(name) => Some((name, Vec::<(String, u64)>::new().into())),
            _ => None,
        }
    };
    former.into_iter().flat_map(|(name, value)| clear(name).into_iter().chain([(name, value)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(files: &[(&'static str, &str)]) -> Vec<Limit> {
        let limit = |(file, value): &(&'static str, &str)| Limit {
            controller: "x".into(),
            file: (*file).into(),
            value: (*value).to_owned(),
            optional: false,
        };
        files.iter().map(limit).collect()
    }

    fn number_of(properties: &[Property], name: &str) -> Option<u64> {
        properties.iter().find(|p| p.0 == name).and_then(|p| u64::try_from(&p.1).ok())
    }

    // CRI-RES-04, CRI-RES-06, CRI-RES-11, CRI-RES-12
    #[test]
    fn limits_have_their_names() {
        let all = limits(&[
            ("memory.max", "1048576"),
            ("memory.swap.max", "max"),
            ("cpu.weight", "100"),
            ("cpu.max", "15000 100000"),
            ("pids.max", "7"),
            ("memory.high", "5"),
            ("memory.high", "6"),
            ("hugetlb.2MB.max", "0"),
            ("io.max", "8:0 rbps=9 wiops=max"),
            ("io.max", "8:16 rbps=7"),
            ("memory.oom.group", "1"),
        ]);
        let properties = of_limits(&all, 252);
        let names: Vec<&str> = properties.iter().map(|p| p.0).collect();
        let known = [
            "MemoryMax",
            "MemorySwapMax",
            "CPUWeight",
            "CPUQuotaPerSecUSec",
            "CPUQuotaPeriodUSec",
            "TasksMax",
            "MemoryHigh",
        ];
        let by_device = ["IOReadBandwidthMax", "IOWriteIOPSMax", "IOReadBandwidthMax"];
        assert_eq!(names, [&known[..], &by_device[..]].concat());
        assert_eq!(number_of(&properties, "MemorySwapMax"), Some(u64::MAX));
        assert_eq!(number_of(&properties, "CPUQuotaPerSecUSec"), Some(150_000));
        assert_eq!(number_of(&properties, "MemoryHigh"), Some(6), "the last word counts");
        assert!(of_limits(&all, 253).iter().any(|p| p.0 == "OOMPolicy"));
    }

    #[test]
    fn quotas_are_rounded_up_to_what_systemd_can_hold() {
        let quota = |value: &str| {
            let properties = cpu_max(value);
            ["CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec"].map(|name| number_of(&properties, name).unwrap())
        };
        assert_eq!(quota("1234 100000"), [20_000, 100_000]);
        assert_eq!(quota("max 50000"), [u64::MAX, 50_000]);
        assert_eq!(quota("50000"), [500_000, 100_000]);
    }

    #[test]
    fn cpus_are_bits() {
        assert_eq!(mask("0-3,9"), Some(vec![0b1111, 0b10]));
        assert_eq!(mask("x"), None);
    }

    #[test]
    fn drivers_with_a_major_of_their_own_have_a_name() {
        let table = "Character devices:\n  1 mem\n  4 tty\n  4 ttyS\n136 pts\n\nBlock devices:\n  8 sd\n";
        assert_eq!(driver(table, true, 136), Some("pts"));
        assert_eq!(driver(table, false, 8), Some("sd"));
        assert_eq!((driver(table, true, 4), driver(table, true, 8)), (None, None));
    }
}
