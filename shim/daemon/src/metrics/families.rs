//! The table of all metrics: names and labels of cAdvisor, whose users' dashboards must go on working.

use cri_proto::v1;
use cri_proto::v1::MetricType::{self, Counter, Gauge};

/// Labels that every metric has, in this order; the family's own follow.
pub(super) const COMMON: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// One metric's description.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    help: &'static str,
    pub(super) kind: MetricType,
    /// Beside [`COMMON`].
    pub(super) labels: &'static [&'static str],
}

const fn family(
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
) -> Family {
    Family { name, help, kind, labels }
}

pub(super) static CPU_USER: Family =
    family("container_cpu_user_seconds_total", "User CPU time consumed", Counter, &[]);
pub(super) static CPU_SYSTEM: Family =
    family("container_cpu_system_seconds_total", "System CPU time consumed", Counter, &[]);
pub(super) static CPU_USAGE: Family =
    family("container_cpu_usage_seconds_total", "CPU time consumed", Counter, &["cpu"]);
pub(super) static CPU_PERIODS: Family =
    family("container_cpu_cfs_periods_total", "Elapsed periods of the CPU quota", Counter, &[]);
pub(super) static CPU_THROTTLED_PERIODS: Family = family(
    "container_cpu_cfs_throttled_periods_total",
    "Periods in which the CPU quota was used up",
    Counter,
    &[],
);
pub(super) static CPU_THROTTLED: Family = family(
    "container_cpu_cfs_throttled_seconds_total",
    "Time for which the container was held back by its CPU quota",
    Counter,
    &[],
);
pub(super) static CPU_BURST_PERIODS: Family = family(
    "container_cpu_cfs_burst_periods_total",
    "Periods in which more than the CPU quota was used",
    Counter,
    &[],
);
pub(super) static CPU_BURST: Family =
    family("container_cpu_cfs_burst_seconds_total", "CPU time used above the quota", Counter, &[]);
pub(super) static MEMORY_CACHE: Family = family("container_memory_cache", "Page cache, in bytes", Gauge, &[]);
pub(super) static MEMORY_RSS: Family =
    family("container_memory_rss", "Anonymous memory, in bytes", Gauge, &[]);
pub(super) static MEMORY_KERNEL: Family = family(
    "container_memory_kernel_usage",
    "Memory that the kernel holds for the container (page tables, stacks, slab), in bytes",
    Gauge,
    &[],
);
pub(super) static MEMORY_MAPPED: Family =
    family("container_memory_mapped_file", "Mapped files, in bytes", Gauge, &[]);
pub(super) static MEMORY_SWAP: Family = family("container_memory_swap", "Swap in use, in bytes", Gauge, &[]);
pub(super) static MEMORY_FAILCNT: Family =
    family("container_memory_failcnt", "How often the memory limit was hit", Counter, &[]);
pub(super) static MEMORY_USAGE: Family =
    family("container_memory_usage_bytes", "Memory in use, page cache included, in bytes", Gauge, &[]);
pub(super) static MEMORY_MAX_USAGE: Family =
    family("container_memory_max_usage_bytes", "The most memory that was ever in use, in bytes", Gauge, &[]);
pub(super) static MEMORY_WORKING_SET: Family = family(
    "container_memory_working_set_bytes",
    "Memory in use less the inactive page cache, in bytes",
    Gauge,
    &[],
);
pub(super) static MEMORY_ACTIVE_FILE: Family =
    family("container_memory_total_active_file_bytes", "Active page cache, in bytes", Gauge, &[]);
pub(super) static MEMORY_INACTIVE_FILE: Family =
    family("container_memory_total_inactive_file_bytes", "Inactive page cache, in bytes", Gauge, &[]);
pub(super) static MEMORY_FAILURES: Family =
    family("container_memory_failures_total", "Page faults", Counter, &["failure_type", "scope"]);
pub(super) static MEMORY_EVENTS_HIGH: Family = family(
    "container_memory_events_high_total",
    "How often processes were slowed because memory.high was passed",
    Counter,
    &[],
);
pub(super) static MEMORY_EVENTS_MAX: Family =
    family("container_memory_events_max_total", "How often memory.max was about to be passed", Counter, &[]);
pub(super) static MEMORY_DIRTY: Family =
    family("container_memory_file_dirty_bytes", "Page cache that must yet be written, in bytes", Gauge, &[]);
pub(super) static MEMORY_WRITEBACK: Family =
    family("container_memory_file_writeback_bytes", "Page cache that is being written, in bytes", Gauge, &[]);
pub(super) static OOM_EVENTS: Family =
    family("container_oom_events_total", "Processes that the OOM killer ended", Counter, &[]);
pub(super) static PRESSURE_CPU_WAITING: Family = family(
    "container_pressure_cpu_waiting_seconds_total",
    "Time in which some task waited for CPU",
    Counter,
    &[],
);
pub(super) static PRESSURE_CPU_STALLED: Family = family(
    "container_pressure_cpu_stalled_seconds_total",
    "Time in which all tasks waited for CPU",
    Counter,
    &[],
);
pub(super) static PRESSURE_MEMORY_WAITING: Family = family(
    "container_pressure_memory_waiting_seconds_total",
    "Time in which some task waited for memory",
    Counter,
    &[],
);
pub(super) static PRESSURE_MEMORY_STALLED: Family = family(
    "container_pressure_memory_stalled_seconds_total",
    "Time in which all tasks waited for memory",
    Counter,
    &[],
);
pub(super) static PRESSURE_IO_WAITING: Family = family(
    "container_pressure_io_waiting_seconds_total",
    "Time in which some task waited for I/O",
    Counter,
    &[],
);
pub(super) static PRESSURE_IO_STALLED: Family = family(
    "container_pressure_io_stalled_seconds_total",
    "Time in which all tasks waited for I/O",
    Counter,
    &[],
);
pub(super) static HUGETLB_USAGE: Family =
    family("container_hugetlb_usage_bytes", "Huge pages in use, in bytes", Gauge, &["pagesize"]);
pub(super) static HUGETLB_MAX_USAGE: Family = family(
    "container_hugetlb_max_usage_bytes",
    "The most huge pages that were ever in use, in bytes",
    Gauge,
    &["pagesize"],
);
pub(super) static NETWORK_RECEIVE_BYTES: Family =
    family("container_network_receive_bytes_total", "Bytes received", Counter, &["interface"]);
pub(super) static NETWORK_RECEIVE_PACKETS: Family =
    family("container_network_receive_packets_total", "Packets received", Counter, &["interface"]);
pub(super) static NETWORK_RECEIVE_DROPPED: Family = family(
    "container_network_receive_packets_dropped_total",
    "Packets dropped while receiving",
    Counter,
    &["interface"],
);
pub(super) static NETWORK_RECEIVE_ERRORS: Family =
    family("container_network_receive_errors_total", "Errors while receiving", Counter, &["interface"]);
pub(super) static NETWORK_TRANSMIT_BYTES: Family =
    family("container_network_transmit_bytes_total", "Bytes sent", Counter, &["interface"]);
pub(super) static NETWORK_TRANSMIT_PACKETS: Family =
    family("container_network_transmit_packets_total", "Packets sent", Counter, &["interface"]);
pub(super) static NETWORK_TRANSMIT_DROPPED: Family = family(
    "container_network_transmit_packets_dropped_total",
    "Packets dropped while sending",
    Counter,
    &["interface"],
);
pub(super) static NETWORK_TRANSMIT_ERRORS: Family =
    family("container_network_transmit_errors_total", "Errors while sending", Counter, &["interface"]);
pub(super) static FS_INODES_FREE: Family = family(
    "container_fs_inodes_free",
    "Free inodes of the file system of the writable layer",
    Gauge,
    &["device"],
);
pub(super) static FS_INODES_TOTAL: Family = family(
    "container_fs_inodes_total",
    "Inodes of the file system of the writable layer",
    Gauge,
    &["device"],
);
pub(super) static FS_LIMIT: Family = family(
    "container_fs_limit_bytes",
    "Size of the file system of the writable layer, in bytes",
    Gauge,
    &["device"],
);
pub(super) static FS_USAGE: Family =
    family("container_fs_usage_bytes", "Size of the writable layer, in bytes", Gauge, &["device"]);
pub(super) static FS_READS_BYTES: Family =
    family("container_fs_reads_bytes_total", "Bytes read from block devices", Counter, &["device"]);
pub(super) static FS_READS: Family =
    family("container_fs_reads_total", "Reads from block devices", Counter, &["device"]);
pub(super) static FS_WRITES_BYTES: Family =
    family("container_fs_writes_bytes_total", "Bytes written to block devices", Counter, &["device"]);
pub(super) static FS_WRITES: Family =
    family("container_fs_writes_total", "Writes to block devices", Counter, &["device"]);
pub(super) static BLKIO_USAGE: Family = family(
    "container_blkio_device_usage_total",
    "Bytes moved from and to block devices",
    Counter,
    &["device", "major", "minor", "operation"],
);
pub(super) static PROCESSES: Family = family("container_processes", "Processes", Gauge, &[]);
pub(super) static FILE_DESCRIPTORS: Family =
    family("container_file_descriptors", "Open file descriptors of all processes", Gauge, &[]);
pub(super) static SOCKETS: Family = family("container_sockets", "Open sockets of all processes", Gauge, &[]);
pub(super) static THREADS: Family = family("container_threads", "Threads", Gauge, &[]);
pub(super) static THREADS_MAX: Family =
    family("container_threads_max", "The most threads allowed; 0: no limit", Gauge, &[]);
pub(super) static ULIMITS_SOFT: Family =
    family("container_ulimits_soft", "Soft limits of the first process", Gauge, &["ulimit"]);
pub(super) static LAST_SEEN: Family =
    family("container_last_seen", "When the container was seen last, in seconds since the epoch", Gauge, &[]);
pub(super) static CREATION_TIME: Family = family(
    "container_creation_time_seconds",
    "When the container was created, in seconds since the epoch",
    Gauge,
    &[],
);
pub(super) static START_TIME: Family = family(
    "container_start_time_seconds",
    "When the container was started, in seconds since the epoch",
    Gauge,
    &[],
);
pub(super) static SPEC_CPU_PERIOD: Family =
    family("container_spec_cpu_period", "Period of the CPU quota, in microseconds", Gauge, &[]);
pub(super) static SPEC_CPU_QUOTA: Family =
    family("container_spec_cpu_quota", "CPU quota in a period, in microseconds; absent: none", Gauge, &[]);
pub(super) static SPEC_CPU_SHARES: Family = family("container_spec_cpu_shares", "CPU shares", Gauge, &[]);
pub(super) static SPEC_MEMORY_LIMIT: Family =
    family("container_spec_memory_limit_bytes", "Memory limit, in bytes; 0: none", Gauge, &[]);
pub(super) static SPEC_MEMORY_RESERVATION: Family = family(
    "container_spec_memory_reservation_limit_bytes",
    "Memory that is spared as long as others have some to give (memory.low), in bytes",
    Gauge,
    &[],
);
pub(super) static SPEC_MEMORY_SWAP_LIMIT: Family = family(
    "container_spec_memory_swap_limit_bytes",
    "Limit of memory and swap together, in bytes; 0: none",
    Gauge,
    &[],
);

static ALL: [&Family; 65] = [
    &CPU_USER,
    &CPU_SYSTEM,
    &CPU_USAGE,
    &CPU_PERIODS,
    &CPU_THROTTLED_PERIODS,
    &CPU_THROTTLED,
    &CPU_BURST_PERIODS,
    &CPU_BURST,
    &MEMORY_CACHE,
    &MEMORY_RSS,
    &MEMORY_KERNEL,
    &MEMORY_MAPPED,
    &MEMORY_SWAP,
    &MEMORY_FAILCNT,
    &MEMORY_USAGE,
    &MEMORY_MAX_USAGE,
    &MEMORY_WORKING_SET,
    &MEMORY_ACTIVE_FILE,
    &MEMORY_INACTIVE_FILE,
    &MEMORY_FAILURES,
    &MEMORY_EVENTS_HIGH,
    &MEMORY_EVENTS_MAX,
    &MEMORY_DIRTY,
    &MEMORY_WRITEBACK,
    &OOM_EVENTS,
    &PRESSURE_CPU_WAITING,
    &PRESSURE_CPU_STALLED,
    &PRESSURE_MEMORY_WAITING,
    &PRESSURE_MEMORY_STALLED,
    &PRESSURE_IO_WAITING,
    &PRESSURE_IO_STALLED,
    &HUGETLB_USAGE,
    &HUGETLB_MAX_USAGE,
    &NETWORK_RECEIVE_BYTES,
    &NETWORK_RECEIVE_PACKETS,
    &NETWORK_RECEIVE_DROPPED,
    &NETWORK_RECEIVE_ERRORS,
    &NETWORK_TRANSMIT_BYTES,
    &NETWORK_TRANSMIT_PACKETS,
    &NETWORK_TRANSMIT_DROPPED,
    &NETWORK_TRANSMIT_ERRORS,
    &FS_INODES_FREE,
    &FS_INODES_TOTAL,
    &FS_LIMIT,
    &FS_USAGE,
    &FS_READS_BYTES,
    &FS_READS,
    &FS_WRITES_BYTES,
    &FS_WRITES,
    &BLKIO_USAGE,
    &PROCESSES,
    &FILE_DESCRIPTORS,
    &SOCKETS,
    &THREADS,
    &THREADS_MAX,
    &ULIMITS_SOFT,
    &LAST_SEEN,
    &CREATION_TIME,
    &START_TIME,
    &SPEC_CPU_PERIOD,
    &SPEC_CPU_QUOTA,
    &SPEC_CPU_SHARES,
    &SPEC_MEMORY_LIMIT,
    &SPEC_MEMORY_RESERVATION,
    &SPEC_MEMORY_SWAP_LIMIT,
];

/// The same for the life of the process (CRI-MET-01).
pub(crate) fn descriptors() -> Vec<v1::MetricDescriptor> {
    let one = |family: &&Family| v1::MetricDescriptor {
        name: family.name.into(),
        help: family.help.into(),
        label_keys: COMMON.iter().chain(family.labels).map(|&key| key.to_owned()).collect(),
    };
    ALL.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// CRI-MET-01, CRI-MET-03.
    #[test]
    fn each_is_described_once_and_in_words() {
        let names: BTreeSet<_> = ALL.iter().map(|f| f.name).collect();
        assert_eq!(names.len(), ALL.len());
        for descriptor in descriptors() {
            assert!(descriptor.name.starts_with("container_") && !descriptor.help.is_empty());
            let keys: BTreeSet<_> = descriptor.label_keys.iter().collect();
            assert!(keys.len() == descriptor.label_keys.len() && keys.len() >= COMMON.len());
        }
    }
}
