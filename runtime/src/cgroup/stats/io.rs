//! Block device traffic, by device.

use super::text;
use crate::Result;
use std::collections::BTreeMap;

/// What the group did with one block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoStats {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub discard_bytes: u64,
    pub read_ops: u64,
    pub write_ops: u64,
    pub discard_ops: u64,
}

pub(super) fn v2(dir: &str) -> Result<Vec<IoStats>> {
    Ok(text(dir, "io.stat")?.map(|text| parse_v2(&text)).unwrap_or_default())
}

/// The figures of throttling, which are counted whatever the scheduler; BFQ counts in files of its own, beside them.
pub(super) fn v1(dir: &str) -> Result<Vec<IoStats>> {
    let bytes = text(dir, "blkio.throttle.io_service_bytes_recursive")?.unwrap_or_default();
    let ops = text(dir, "blkio.throttle.io_serviced_recursive")?.unwrap_or_default();
    Ok(parse_v1(&bytes, &ops))
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn parse_v2(text: &str) -> Vec<IoStats> {
    text.lines().filter_map(line_v2).collect()
}

fn line_v2(line: &str) -> Option<IoStats> {
    let mut words = line.split(' ');
    let (major, minor) = device(words.next()?)?;
    let mut stats = IoStats { major, minor, ..IoStats::default() };
    let mut any = false;
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let slot = match key {
            "rbytes" => &mut stats.read_bytes,
            "wbytes" => &mut stats.write_bytes,
            "dbytes" => &mut stats.discard_bytes,
            "rios" => &mut stats.read_ops,
            "wios" => &mut stats.write_ops,
            "dios" => &mut stats.discard_ops,
            // Others belong to io.cost and io.latency.
            _ => continue,
        };
        *slot = value.parse().unwrap_or(0);
        any = true;
    }
    // Kernels write the bare number for a device that was not used.
    any.then_some(stats)
}

/// `8:0 Read 4096`, one line for each kind, and `Total 4096` at the end.
fn parse_v1(bytes: &str, ops: &str) -> Vec<IoStats> {
    let mut devices: BTreeMap<(u32, u32), IoStats> = BTreeMap::new();
    let lines = bytes.lines().map(|line| (line, true)).chain(ops.lines().map(|line| (line, false)));
    for (line, in_bytes) in lines {
        let mut words = line.split(' ');
        let (Some((major, minor)), Some(kind), Some(value)) =
            (words.next().and_then(device), words.next(), words.next().and_then(|v| v.parse().ok()))
        else {
            continue;
        };
        let stats = devices.entry((major, minor)).or_insert(IoStats { major, minor, ..IoStats::default() });
        let slot = match (kind, in_bytes) {
            ("Read", true) => &mut stats.read_bytes,
            ("Write", true) => &mut stats.write_bytes,
            ("Discard", true) => &mut stats.discard_bytes,
            ("Read", false) => &mut stats.read_ops,
            ("Write", false) => &mut stats.write_ops,
            ("Discard", false) => &mut stats.discard_ops,
            _ => continue,
        };
        *slot = value;
    }
    devices.into_values().collect()
}

fn device(number: &str) -> Option<(u32, u32)> {
    let (major, minor) = number.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_the_same_on_both_versions() {
        let expected = IoStats {
            major: 8,
            minor: 16,
            read_bytes: 1,
            write_bytes: 2,
            discard_bytes: 5,
            read_ops: 3,
            write_ops: 4,
            discard_ops: 6,
        };
        let v2 = "8:0\n8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=7\n";
        assert_eq!(parse_v2(v2), [expected]);
        let bytes = "8:16 Read 1\n8:16 Write 2\n8:16 Sync 9\n8:16 Discard 5\n8:16 Total 8\nTotal 8\n";
        let ops = "8:16 Read 3\n8:16 Write 4\n8:16 Discard 6\n8:16 Total 13\nTotal 13\n";
        assert_eq!(parse_v1(bytes, ops), [expected]);
    }
}
