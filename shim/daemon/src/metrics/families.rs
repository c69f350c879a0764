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

/// A static for each row, and [`ALL`] of them in this order.
macro_rules! families {
    ($($row:ident: $kind:ident $name:literal [$($label:literal)*] $help:literal)*) => {
        $(pub(super) static $row: Family =
            Family { name: $name, help: $help, kind: $kind, labels: &[$($label),*] };)*
        static ALL: &[&Family] = &[$(&$row),*];
    };
}

families! {
    CPU_USER: Counter "container_cpu_user_seconds_total" []
        "User CPU time consumed"
    CPU_SYSTEM: Counter "container_cpu_system_seconds_total" []
        "System CPU time consumed"
    CPU_USAGE: Counter "container_cpu_usage_seconds_total" ["cpu"]
        "CPU time consumed"
    CPU_PERIODS: Counter "container_cpu_cfs_periods_total" []
        "Elapsed periods of the CPU quota"
    CPU_THROTTLED_PERIODS: Counter "container_cpu_cfs_throttled_periods_total" []
        "Periods in which the CPU quota was used up"
    CPU_THROTTLED: Counter "container_cpu_cfs_throttled_seconds_total" []
        "Time for which the container was held back by its CPU quota"
    CPU_BURST_PERIODS: Counter "container_cpu_cfs_burst_periods_total" []
        "Periods in which more than the CPU quota was used"
    CPU_BURST: Counter "container_cpu_cfs_burst_seconds_total" []
        "CPU time used above the quota"
    MEMORY_CACHE: Gauge "container_memory_cache" []
        "Page cache, in bytes"
    MEMORY_RSS: Gauge "container_memory_rss" []
        "Anonymous memory, in bytes"
    MEMORY_KERNEL: Gauge "container_memory_kernel_usage" []
        "Memory that the kernel holds for the container (page tables, stacks, slab), in bytes"
    MEMORY_MAPPED: Gauge "container_memory_mapped_file" []
        "Mapped files, in bytes"
    MEMORY_SWAP: Gauge "container_memory_swap" []
        "Swap in use, in bytes"
    MEMORY_FAILCNT: Counter "container_memory_failcnt" []
        "How often the memory limit was hit"
    MEMORY_USAGE: Gauge "container_memory_usage_bytes" []
        "Memory in use, page cache included, in bytes"
    MEMORY_MAX_USAGE: Gauge "container_memory_max_usage_bytes" []
        "The most memory that was ever in use, in bytes"
    MEMORY_WORKING_SET: Gauge "container_memory_working_set_bytes" []
        "Memory in use less the inactive page cache, in bytes"
    MEMORY_ACTIVE_FILE: Gauge "container_memory_total_active_file_bytes" []
        "Active page cache, in bytes"
    MEMORY_INACTIVE_FILE: Gauge "container_memory_total_inactive_file_bytes" []
        "Inactive page cache, in bytes"
    MEMORY_FAILURES: Counter "container_memory_failures_total" ["failure_type" "scope"]
        "Page faults"
    MEMORY_EVENTS_HIGH: Counter "container_memory_events_high_total" []
        "How often processes were slowed because memory.high was passed"
    MEMORY_EVENTS_MAX: Counter "container_memory_events_max_total" []
        "How often memory.max was about to be passed"
    MEMORY_DIRTY: Gauge "container_memory_file_dirty_bytes" []
        "Page cache that must yet be written, in bytes"
    MEMORY_WRITEBACK: Gauge "container_memory_file_writeback_bytes" []
        "Page cache that is being written, in bytes"
    OOM_EVENTS: Counter "container_oom_events_total" []
        "Processes that the OOM killer ended"
    PRESSURE_CPU_WAITING: Counter "container_pressure_cpu_waiting_seconds_total" []
        "Time in which some task waited for CPU"
    PRESSURE_CPU_STALLED: Counter "container_pressure_cpu_stalled_seconds_total" []
        "Time in which all tasks waited for CPU"
    PRESSURE_MEMORY_WAITING: Counter "container_pressure_memory_waiting_seconds_total" []
        "Time in which some task waited for memory"
    PRESSURE_MEMORY_STALLED: Counter "container_pressure_memory_stalled_seconds_total" []
        "Time in which all tasks waited for memory"
    PRESSURE_IO_WAITING: Counter "container_pressure_io_waiting_seconds_total" []
        "Time in which some task waited for I/O"
    PRESSURE_IO_STALLED: Counter "container_pressure_io_stalled_seconds_total" []
        "Time in which all tasks waited for I/O"
    HUGETLB_USAGE: Gauge "container_hugetlb_usage_bytes" ["pagesize"]
        "Huge pages in use, in bytes"
    HUGETLB_MAX_USAGE: Gauge "container_hugetlb_max_usage_bytes" ["pagesize"]
        "The most huge pages that were ever in use, in bytes"
    NETWORK_RECEIVE_BYTES: Counter "container_network_receive_bytes_total" ["interface"]
        "Bytes received"
    NETWORK_RECEIVE_PACKETS: Counter "container_network_receive_packets_total" ["interface"]
        "Packets received"
    NETWORK_RECEIVE_DROPPED: Counter "container_network_receive_packets_dropped_total" ["interface"]
        "Packets dropped while receiving"
    NETWORK_RECEIVE_ERRORS: Counter "container_network_receive_errors_total" ["interface"]
        "Errors while receiving"
    NETWORK_TRANSMIT_BYTES: Counter "container_network_transmit_bytes_total" ["interface"]
        "Bytes sent"
    NETWORK_TRANSMIT_PACKETS: Counter "container_network_transmit_packets_total" ["interface"]
        "Packets sent"
    NETWORK_TRANSMIT_DROPPED: Counter "container_network_transmit_packets_dropped_total" ["interface"]
        "Packets dropped while sending"
    NETWORK_TRANSMIT_ERRORS: Counter "container_network_transmit_errors_total" ["interface"]
        "Errors while sending"
    FS_INODES_FREE: Gauge "container_fs_inodes_free" ["device"]
        "Free inodes of the file system of the writable layer"
    FS_INODES_TOTAL: Gauge "container_fs_inodes_total" ["device"]
        "Inodes of the file system of the writable layer"
    FS_LIMIT: Gauge "container_fs_limit_bytes" ["device"]
        "Size of the file system of the writable layer, in bytes"
    FS_USAGE: Gauge "container_fs_usage_bytes" ["device"]
        "Size of the writable layer, in bytes"
    FS_READS_BYTES: Counter "container_fs_reads_bytes_total" ["device"]
        "Bytes read from block devices"
    FS_READS: Counter "container_fs_reads_total" ["device"]
        "Reads from block devices"
    FS_WRITES_BYTES: Counter "container_fs_writes_bytes_total" ["device"]
        "Bytes written to block devices"
    FS_WRITES: Counter "container_fs_writes_total" ["device"]
        "Writes to block devices"
    BLKIO_USAGE: Counter "container_blkio_device_usage_total" ["device" "major" "minor" "operation"]
        "Bytes moved from and to block devices"
    PROCESSES: Gauge "container_processes" []
        "Processes"
    FILE_DESCRIPTORS: Gauge "container_file_descriptors" []
        "Open file descriptors of all processes"
    SOCKETS: Gauge "container_sockets" []
        "Open sockets of all processes"
    THREADS: Gauge "container_threads" []
        "Threads"
    THREADS_MAX: Gauge "container_threads_max" []
        "The most threads allowed; 0: no limit"
    ULIMITS_SOFT: Gauge "container_ulimits_soft" ["ulimit"]
        "Soft limits of the first process"
    LAST_SEEN: Gauge "container_last_seen" []
        "When the container was seen last, in seconds since the epoch"
    CREATION_TIME: Gauge "container_creation_time_seconds" []
        "When the container was created, in seconds since the epoch"
    START_TIME: Gauge "container_start_time_seconds" []
        "When the container was started, in seconds since the epoch"
    SPEC_CPU_PERIOD: Gauge "container_spec_cpu_period" []
        "Period of the CPU quota, in microseconds"
    SPEC_CPU_QUOTA: Gauge "container_spec_cpu_quota" []
        "CPU quota in a period, in microseconds; absent: none"
    SPEC_CPU_SHARES: Gauge "container_spec_cpu_shares" []
        "CPU shares"
    SPEC_MEMORY_LIMIT: Gauge "container_spec_memory_limit_bytes" []
        "Memory limit, in bytes; 0: none"
    SPEC_MEMORY_RESERVATION: Gauge "container_spec_memory_reservation_limit_bytes" []
        "Memory that is spared as long as others have some to give (memory.low), in bytes"
    SPEC_MEMORY_SWAP_LIMIT: Gauge "container_spec_memory_swap_limit_bytes" []
        "Limit of memory and swap together, in bytes; 0: none"
}

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
