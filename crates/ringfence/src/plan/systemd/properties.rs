//! Which properties a file's value is to systemd.

use crate::host::{Host, Version};
use crate::interface::{Lines, size};
use crate::resources::{CpuSet, Limit};
use crate::systemd::property::{INFINITY, Property, Value, tell};

/// The properties for a file that is to hold a value.
pub(crate) fn properties_of(host: &Host, version: Version, file: &str, value: &str) -> Option<Vec<Property>> {
    let value = value.trim();
    let told = |name| Some(vec![Property::number(name, number(value)?)]);
    // systemd refuses 0 for these. One byte is no page, as 0 is; of tasks, the file is written too.
    let from_one = |name| Some(vec![Property::number(name, number(value)?.max(1))]);
    match (version, file) {
        (_, "pids.max") => from_one("TasksMax"),
        (Version::V1, "memory.limit_in_bytes") | (Version::V2, "memory.max") => from_one("MemoryMax"),
        (Version::V1, "cpu.shares") => told("CPUShares"),
        (Version::V1, "blkio.throttle.read_bps_device") => v1_throttle("IOReadBandwidthMax", value),
        (Version::V1, "blkio.throttle.write_bps_device") => v1_throttle("IOWriteBandwidthMax", value),
        (Version::V1, _) => None,
        (_, "memory.low") => told("MemoryLow"),
        (_, "memory.min") => told("MemoryMin"),
        (_, "memory.high") => from_one("MemoryHigh"),
        (_, "memory.swap.max") => told("MemorySwapMax"),
        (_, "memory.zswap.max") => told("MemoryZSwapMax"),
        (_, "cpu.weight") => told("CPUWeight"),
        (_, "cpu.weight.nice") => Some(vec![Property::number("CPUWeight", weight_of_nice(value)?)]),
        // 0 is its word for idle, which the next weight undoes.
        (_, "cpu.idle") => Some(vec![Property::number("CPUWeight", if value == "1" { 0 } else { 100 })]),
        (_, "cpu.max") => Some(Bandwidth::parse(value)?.properties()),
        (_, "cpuset.cpus") => set("AllowedCPUs", value, &host.cpus),
        (_, "cpuset.mems") => set("AllowedMemoryNodes", value, &host.mems),
        (_, "io.max") => v2_throttles(value),
        (_, "io.weight") => weights(value, |weight| weight),
        (_, "io.bfq.weight") => weights(value, from_bfq),
        _ => None,
    }
}

/// A number, with the kernel's suffixes (`60M`).
pub(super) fn number(text: &str) -> Option<u64> {
    match size(text, 1)? {
        Limit::Max => Some(INFINITY),
        Limit::Value(number) => Some(number),
    }
}

/// systemd leaves the file as it is where it is told an empty set: all of the machine lifts it.
fn set(name: &'static str, value: &str, machine: &CpuSet) -> Option<Vec<Property>> {
    let set: CpuSet = value.parse().ok()?;
    let set = if set.is_empty() { machine.clone() } else { set };
    Some(vec![Property::new(name, Value::Set(set))])
}

/// As systemd names a disk that may have no node.
fn disk(number: &str) -> String {
    format!("/dev/block/{number}")
}

fn v1_throttle(name: &'static str, value: &str) -> Option<Vec<Property>> {
    let (device, rate) = value.split_once(' ')?;
    let rate = match number(rate)? {
        0 => INFINITY,
        rate => rate,
    };
    Some(vec![Property::new(name, Value::PerDevice(vec![(disk(device), rate)]))])
}

fn v2_throttles(line: &str) -> Option<Vec<Property>> {
    let mut properties = Vec::new();
    for (device, name, rate) in Lines::parse(line).iter() {
        let name = match name {
            "rbps" => "IOReadBandwidthMax",
            "wbps" => "IOWriteBandwidthMax",
            "riops" => "IOReadIOPSMax",
            "wiops" => "IOWriteIOPSMax",
            _ => return None,
        };
        tell(&mut properties, [Property::new(name, Value::PerDevice(vec![(disk(device), number(rate)?)]))]);
    }
    Some(properties)
}

fn weights(line: &str, convert: fn(u64) -> u64) -> Option<Vec<Property>> {
    let mut properties = Vec::new();
    for (device, _, weight) in Lines::parse(line).iter() {
        let weight = if weight == "default" { 100 } else { convert(number(weight)?) };
        let property = match device {
            "default" => Property::number("IOWeight", weight),
            _ => Property::new("IODeviceWeight", Value::PerDevice(vec![(disk(device), weight)])),
        };
        tell(&mut properties, [property]);
    }
    Some(properties)
}

/// The weight that the kernel makes of a nice value (`sched_prio_to_weight`).
fn weight_of_nice(nice: &str) -> Option<u64> {
    const LOADS: [u64; 40] = [
        88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916, 9548, 7620, 6100, 4904, 3906,
        3121, 2501, 1991, 1586, 1277, 1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110, 87, 70, 56, 45,
        36, 29, 23, 18, 15,
    ];
    let position = nice.parse::<i32>().ok()?.checked_add(20)?;
    let load = LOADS.get(usize::try_from(position).ok()?)?;
    Some((load * 100 + 512) / 1024)
}

/// The weight (1 to 10000) that systemd turns into this one of BFQ's (1 to 1000).
pub(super) fn from_bfq(weight: u64) -> u64 {
    if weight <= 100 { weight } else { 100 + (weight.min(1000) - 100) * 11 }
}

/// CPU time, as systemd has it: a quota for each second, and a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bandwidth {
    pub(super) quota: Limit,
    pub(super) period: u64,
}

/// In µs. systemd truncates to it at a reload.
const GRAIN: u64 = 10_000;

/// In µs: the kernel's default, and systemd's.
pub(super) const PERIOD: u64 = 100_000;

impl Bandwidth {
    /// As in `cpu.max`.
    pub(super) fn parse(value: &str) -> Option<Self> {
        let mut words = value.split_whitespace();
        let quota = match number(words.next()?)? {
            INFINITY => Limit::Max,
            quota => Limit::Value(quota),
        };
        Some(Self { quota, period: words.next().map_or(Some(PERIOD), |word| word.parse().ok())? })
    }

    /// µs of CPU time for each second, never less than asked for.
    pub(super) fn per_second(self) -> u64 {
        match self.quota {
            Limit::Max => INFINITY,
            Limit::Value(quota) => {
                let each = (u128::from(quota) * 1_000_000).div_ceil(u128::from(self.period.max(1)));
                u64::try_from(each.div_ceil(GRAIN.into()) * u128::from(GRAIN)).unwrap_or(INFINITY)
            }
        }
    }

    /// What systemd makes of it. Without a quota it forgets the period.
    pub(super) fn kept(self) -> Self {
        match self.per_second() {
            INFINITY => Self { quota: Limit::Max, period: PERIOD },
            each => {
                let quota = u128::from(each) * u128::from(self.period) / 1_000_000;
                let quota = Limit::Value(u64::try_from(quota).unwrap_or(u64::MAX).max(1000));
                Self { quota, period: self.period }
            }
        }
    }

    pub(super) fn properties(self) -> Vec<Property> {
        vec![
            Property::number("CPUQuotaPerSecUSec", self.per_second()),
            Property::number("CPUQuotaPeriodUSec", self.period),
        ]
    }
}
