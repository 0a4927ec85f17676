//! Block devices: `io.stat`; on v1 the recursive counters of `blkio`.

use serde::{Deserialize, Serialize};

use super::file::File;
use super::{Table, absent, parse};
use crate::devices::DeviceNumber;
use crate::host::Controller::Io;
use crate::resources::Limit;

/// What was read from, written to and discarded on one device since the cgroup was made.
///
/// What is only there "with debug counters" the kernel prints while its parameter `blk_cgroup.blkcg_debug_stats` is Y.
///
/// v1 counts a device only while BFQ schedules it, or once the cgroup has a throttle; else the device is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct IoStats {
    /// Bytes read: `rbytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    /// Bytes written: `wbytes`. Buffered writes count where the pages were made dirty (v1: nowhere).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_bytes: Option<u64>,
    /// Read requests: `rios`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reads: Option<u64>,
    /// Write requests: `wios`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writes: Option<u64>,
    /// Bytes discarded: `dbytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard_bytes: Option<u64>,
    /// Discard requests: `dios`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discards: Option<u64>,
    /// Device time used as the cost model estimates it: `cost.usage`, where `io.cost` is on; v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usage_us: Option<u64>,
    /// Time that requests waited for the cost model to let them pass: `cost.wait`, with debug counters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_wait_us: Option<u64>,
    /// Time that the cgroup was in debt, for requests that could not wait (swapping out): `cost.indebt`, with debug
    /// counters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_indebt_us: Option<u64>,
    /// Time that tasks were held up to pay that debt: `cost.indelay`, with debug counters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_indelay_us: Option<u64>,
    /// Above 0 while tasks are held up on their way to user space, by `io.cost` or `io.latency`: `use_delay`, with debug
    /// counters, and absent while it is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_delay: Option<u64>,
    /// What they are held up for: `delay_nsec`, as `use_delay`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_us: Option<u64>,
    /// What `io.latency` sees, with debug counters.
    #[serde(skip_serializing_if = "absent")]
    pub latency: IoLatency,
}

/// What `io.latency` sees of a cgroup's requests to one device.
///
/// The kernel measures a disk that spins by the average, and any other by how many requests missed the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct IoLatency {
    /// How many requests may be under way at once, lowered to protect others: `depth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<Limit>,
    /// The average latency: `avg_lat`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average_us: Option<u64>,
    /// The time that the average is of: `win`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_us: Option<u64>,
    /// Requests in this window that took longer than the target: `missed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
    /// Requests in this window: `total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

/// On v1 two policies count, each what it sees: BFQ the devices that it schedules, throttling the cgroups that have a
/// throttle, and it says 0 of all others (seen on Linux 6.1). Of a device that both know, BFQ's counts stay.
pub(super) const FILES: &[File] = &[
    File::v2(Io, "io.stat", |stats, contents| stat(&mut stats.io, contents)),
    File::v1(Io, "blkio.throttle.io_service_bytes_recursive", |stats, contents| {
        v1_bytes(&mut stats.io, contents)
    }),
    File::v1(Io, "blkio.throttle.io_serviced_recursive", |stats, contents| {
        v1_requests(&mut stats.io, contents)
    }),
    File::v1(Io, "blkio.bfq.io_service_bytes_recursive", |stats, contents| v1_bytes(&mut stats.io, contents)),
    File::v1(Io, "blkio.bfq.io_serviced_recursive", |stats, contents| v1_requests(&mut stats.io, contents)),
];

impl IoStats {
    /// Whether nothing was counted of what v1 counts.
    fn is_zero(&self) -> bool {
        [self.read_bytes, self.write_bytes, self.reads, self.writes, self.discard_bytes, self.discards]
            .into_iter()
            .flatten()
            .all(|count| count == 0)
    }
}

type Devices = Table<DeviceNumber, IoStats>;

/// Lines of `MAJOR:MINOR rbytes=N …`. The numbers right before a counter are its device: some kernels print those of a
/// device without counters too, with no newline after them (5.15). A path of a multipath NVMe device, which has no
/// numbers, is `(unknown)`, on v1 too (6.8), and is left out: the device above it is listed.
fn stat(devices: &mut Devices, contents: &[u8]) {
    for line in parse::lines(contents) {
        let mut device = None;
        for word in line.split_ascii_whitespace() {
            let Some((name, text)) = word.split_once('=') else {
                device = DeviceNumber::parse(word);
                continue;
            };
            if let Some(device) = device {
                value(devices, device, name, text);
            }
        }
    }
}

fn value(devices: &mut Devices, device: DeviceNumber, name: &str, text: &str) {
    if let ("depth", Some(depth)) = (name, parse::number_or_max(text)) {
        devices.update(&device, |io| io.latency.depth = Some(depth));
        return;
    }
    let Some(count) = parse::number(text) else { return };
    let set: fn(&mut IoStats, u64) = match name {
        "rbytes" => |io, bytes| io.read_bytes = Some(bytes),
        "wbytes" => |io, bytes| io.write_bytes = Some(bytes),
        "rios" => |io, requests| io.reads = Some(requests),
        "wios" => |io, requests| io.writes = Some(requests),
        "dbytes" => |io, bytes| io.discard_bytes = Some(bytes),
        "dios" => |io, requests| io.discards = Some(requests),
        "cost.usage" => |io, us| io.cost_usage_us = Some(us),
        "cost.wait" => |io, us| io.cost_wait_us = Some(us),
        "cost.indebt" => |io, us| io.cost_indebt_us = Some(us),
        "cost.indelay" => |io, us| io.cost_indelay_us = Some(us),
        "use_delay" => |io, level| io.use_delay = Some(level),
        "delay_nsec" => |io, ns| io.delay_us = Some(ns / 1000),
        "avg_lat" => |io, us| io.latency.average_us = Some(us),
        "win" => |io, ms| io.latency.window_us = ms.checked_mul(1000),
        "missed" => |io, requests| io.latency.missed = Some(requests),
        "total" => |io, requests| io.latency.total = Some(requests),
        _ => return,
    };
    devices.update(&device, |io| set(io, count));
}

fn v1_bytes(devices: &mut Devices, contents: &[u8]) {
    for (device, operation, bytes) in v1_counts(contents) {
        match operation {
            "Read" => devices.update(&device, |io| io.read_bytes = Some(bytes)),
            "Write" => devices.update(&device, |io| io.write_bytes = Some(bytes)),
            "Discard" => devices.update(&device, |io| io.discard_bytes = Some(bytes)),
            _ => {}
        }
    }
}

fn v1_requests(devices: &mut Devices, contents: &[u8]) {
    for (device, operation, requests) in v1_counts(contents) {
        match operation {
            "Read" => devices.update(&device, |io| io.reads = Some(requests)),
            "Write" => devices.update(&device, |io| io.writes = Some(requests)),
            "Discard" => devices.update(&device, |io| io.discards = Some(requests)),
            _ => {}
        }
    }
    // 0 everywhere can mean "not counted", and v2 does not list such a device either.
    devices.retain(|io| !io.is_zero());
}

/// Lines of `MAJOR:MINOR OPERATION N`; the last line, `Total N`, is none.
fn v1_counts(contents: &[u8]) -> impl Iterator<Item = (DeviceNumber, &str, u64)> {
    parse::lines(contents).filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        Some((DeviceNumber::parse(words.next()?)?, words.next()?, parse::number(words.next()?)?))
    })
}
