//! Block devices: `io.stat`; on v1 the recursive counters of `blkio`.

use serde::Serialize;

use super::file::File;
use super::{Table, parse};
use crate::devices::DeviceNumber;
use crate::host::Controller::Io;

/// What was read from, written to and discarded on one device since the cgroup was made.
///
/// v1 counts a device only while BFQ schedules it, or once the cgroup has a throttle; else the device is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
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
    fn is_zero(&self) -> bool {
        let Self { read_bytes, write_bytes, reads, writes, discard_bytes, discards, cost_usage_us } = self;
        [read_bytes, write_bytes, reads, writes, discard_bytes, discards, cost_usage_us]
            .into_iter()
            .flatten()
            .all(|&count| count == 0)
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
            let (Some(device), Some(count)) = (device, parse::number(text)) else { continue };
            let field: fn(&mut IoStats) -> &mut Option<u64> = match name {
                "rbytes" => |io| &mut io.read_bytes,
                "wbytes" => |io| &mut io.write_bytes,
                "rios" => |io| &mut io.reads,
                "wios" => |io| &mut io.writes,
                "dbytes" => |io| &mut io.discard_bytes,
                "dios" => |io| &mut io.discards,
                "cost.usage" => |io| &mut io.cost_usage_us,
                _ => continue,
            };
            devices.update(&device, |io| *field(io) = Some(count));
        }
    }
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
