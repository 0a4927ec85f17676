//! Values that no host could take.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

use super::file_value::expected;
use super::{BlockIo, Cpu, Limit, Memory, Pids, Rdma, Resources};
use crate::interface::{is_core_limit, is_keyed, lifts_cpuset};
use crate::{Error, Result};

/// The longest quota that the kernel can reckon with (`max_bw_runtime_us`, 44 bits, since Linux 5.7).
pub(super) const LONGEST_QUOTA_US: u64 = (1 << 44) - 1;

/// The longest burst beside a quota, in microseconds: the quota itself, and no more than both together can be.
pub(crate) fn most_burst(quota: u64) -> u64 {
    quota.min(LONGEST_QUOTA_US.saturating_sub(quota))
}

/// `PIDS_MAX` of the pids controller is one more: what no system can have it calls `max`, and refuses as a number.
pub(super) const MOST_PIDS: u64 = 1 << 22;

/// `IFNAMSIZ` less the NUL.
const LONGEST_INTERFACE: usize = 15;

/// `IB_DEVICE_NAME_MAX` less the NUL.
const LONGEST_RDMA_DEVICE: usize = 63;

impl Resources {
    /// Checks every value that is given against what some host could take: ranges, and settings that contradict each
    /// other. What one host can or cannot do is the planner's concern, and what the value meets on the live cgroup too
    /// (swap without a limit is fine in a change, if there is a limit already). Device rules are sound by construction.
    ///
    /// # Errors
    /// The first value that is out of its range: the error names the setting in OCI's words, the value, and the range.
    pub fn validate(&self) -> Result<()> {
        self.memory.validate()?;
        self.cpu.validate()?;
        self.pids.validate()?;
        self.block_io.validate()?;
        for (size, limit) in &self.hugepage_limits {
            let setting = format!("hugepageLimits.{size}");
            within(setting, number(Some(*limit)), 0..=i64::MAX.cast_unsigned())?;
        }
        self.network
            .priorities
            .keys()
            .try_for_each(|interface| name("network.priorities", interface, LONGEST_INTERFACE))?;
        self.rdma.iter().try_for_each(|(device, limits)| limits.validate(device))?;
        self.unified.iter().try_for_each(|(key, value)| unified_file(key, value))
    }
}

impl Memory {
    fn validate(&self) -> Result<()> {
        for (setting, limit) in [
            ("memory.limit", self.limit),
            ("memory.reservation", self.reservation),
            ("memory.swap", self.swap),
            ("memory.kernel", self.kernel),
            ("memory.kernelTCP", self.kernel_tcp),
        ] {
            size(setting, limit)?;
        }
        if let (Some(limit), Some(swap)) = (self.limit, self.swap)
            && swap < limit
        {
            let allowed = format!("is memory plus swap: it cannot be less than the memory limit, {limit}");
            return Err(Error::invalid("memory.swap", swap, allowed));
        }
        within("memory.swappiness", self.swappiness, 0..=100)
    }
}

impl Cpu {
    fn validate(&self) -> Result<()> {
        within("cpu.shares", self.shares, 2..=262_144)?;
        within("cpu.weight", self.weight, 1..=10_000)?;
        within("cpu.period", self.period, 1_000..=1_000_000)?;
        within("cpu.quota", number(self.quota), 1_000..=LONGEST_QUOTA_US)?;
        within("cpu.burst", self.burst, 0..=LONGEST_QUOTA_US)?;
        if let (Some(quota), Some(burst)) = (number(self.quota), self.burst)
            && burst > most_burst(quota)
        {
            let allowed = format!("is at most {} µs beside this quota, {quota} µs", most_burst(quota));
            return Err(Error::invalid("cpu.burst", burst, allowed));
        }
        within("cpu.idle", self.idle, 0..=1)?;
        within("cpu.realtimePeriod", self.realtime_period, 1..=LONGEST_QUOTA_US)?;
        within("cpu.realtimeRuntime", self.realtime_runtime, -1..=LONGEST_QUOTA_US.cast_signed())?;
        if let (Some(runtime), Some(period)) = (self.realtime_runtime, self.realtime_period)
            && u64::try_from(runtime).is_ok_and(|runtime| runtime > period)
        {
            let allowed = format!("is at most the real-time period, {period} µs");
            return Err(Error::invalid("cpu.realtimeRuntime", runtime, allowed));
        }
        Ok(())
    }
}

impl Pids {
    fn validate(&self) -> Result<()> {
        within("pids.limit", number(self.limit), 0..=MOST_PIDS)
    }
}

impl BlockIo {
    fn validate(&self) -> Result<()> {
        const WEIGHTS: RangeInclusive<u64> = 10..=1000;
        within("blockIO.weight", self.weight, WEIGHTS)?;
        within("blockIO.leafWeight", self.leaf_weight, WEIGHTS)?;
        for (device, weights) in &self.weight_device {
            within(format!("blockIO.weightDevice.{device}.weight"), weights.weight, WEIGHTS)?;
            within(format!("blockIO.weightDevice.{device}.leafWeight"), weights.leaf_weight, WEIGHTS)?;
        }
        for throttle in self.throttles() {
            // The kernel takes a longer number of requests for its lowest 32 bits (v1) or for no limit (v2).
            let most = if throttle.counts_requests() { u32::MAX.into() } else { u64::MAX };
            for (device, rate) in throttle.rates {
                within(format!("{}.{device}", throttle.setting), number(Some(*rate)), 1..=most)?;
            }
        }
        Ok(())
    }
}

impl Rdma {
    fn validate(&self, device: &str) -> Result<()> {
        name("rdma", device, LONGEST_RDMA_DEVICE)?;
        for (setting, limit) in [("hcaHandles", self.hca_handles), ("hcaObjects", self.hca_objects)] {
            within(format!("rdma.{device}.{setting}"), number(limit), 0..=i32::MAX as u64)?;
        }
        Ok(())
    }
}

/// The name of a network interface or an RDMA device: it becomes a word of a line.
fn name(setting: &'static str, text: &str, longest: usize) -> Result<()> {
    let sound = |c: char| !c.is_whitespace() && !c.is_control() && c != '/';
    if text.is_empty() || text.len() > longest || !text.chars().all(sound) {
        let allowed = format!("a name has 1 to {longest} bytes, without blanks and /");
        return Err(Error::invalid(setting, text, allowed));
    }
    Ok(())
}

fn number(limit: Option<Limit>) -> Option<u64> {
    match limit {
        Some(Limit::Value(value)) => Some(value),
        Some(Limit::Max) | None => None,
    }
}

fn within<T: PartialOrd + fmt::Display>(
    setting: impl Into<Cow<'static, str>>,
    value: Option<T>,
    allowed: RangeInclusive<T>,
) -> Result<()> {
    match value {
        Some(value) if !allowed.contains(&value) => {
            Err(Error::invalid(setting, value, format!("takes {} to {}", allowed.start(), allowed.end())))
        }
        _ => Ok(()),
    }
}

/// OCI's sizes are signed, with -1 for no limit: none is above `i64::MAX`.
fn size(setting: &'static str, limit: Option<Limit>) -> Result<()> {
    within(setting, number(limit), 0..=i64::MAX.cast_unsigned())
}

/// Checks the name of a file `<controller>.<file>`, which becomes a file name in the cgroup's directory, and its value.
fn unified_file(key: &str, value: &str) -> Result<()> {
    let sound_part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    let refused = |why| Err(Error::invalid("unified", key, why));
    if !key.contains('.') || !key.split('.').all(sound_part) {
        return refused("a key is the name of one file, CONTROLLER.FILE, such as memory.high");
    }
    if key.len() > 255 {
        return refused("a file name has at most 255 bytes");
    }
    if key.starts_with("cgroup.") && !is_core_limit(key) {
        return refused(
            "of the files cgroup.*, which are the manager's own, takes cgroup.max.descendants and cgroup.max.depth",
        );
    }
    if key == "memory.reclaim" || key.ends_with(".pressure") {
        return refused("this file sets no resource, and does not tell what it was given");
    }
    let refused = |why| Err(Error::invalid(format!("unified.{key}"), value, why));
    if lifts_cpuset(key, value) {
        return Ok(());
    }
    if value.trim().is_empty() {
        return refused("takes a value: cpuset.cpus and cpuset.mems alone can be empty, which lifts them");
    }
    let mut keys: Vec<_> = value.lines().filter_map(|line| line.split_whitespace().next()).collect();
    if keys.len() > 1 {
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        if !is_keyed(key) || keys.len() < all {
            return refused("several lines are for files with a line for each device, each with its device");
        }
    }
    if value.contains('\0') {
        return refused("a value has no NUL in it");
    }
    match expected(key, value) {
        Some(expected) => Err(Error::invalid(format!("unified.{key}"), value, expected)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceNumber;
    use crate::resources::CpuSet;

    const DISK: DeviceNumber = DeviceNumber { major: 8, minor: 0 };

    fn new() -> Resources {
        Resources::new()
    }

    #[test]
    fn values_at_the_edges_of_their_ranges_are_accepted() {
        for sound in [
            new(),
            new().memory_limit(0).memory_reservation(i64::MAX.cast_unsigned()),
            new().memory_limit(Limit::Max).memory_swap(Limit::Max),
            new().memory_limit(100).memory_swap(100),
            new().memory_limit(100).memory_swap(Limit::Max),
            new().memory_swap(100),
            new().memory_limit(100).memory_reservation(200),
            new().memory_swappiness(0),
            new().memory_swappiness(100),
            new().cpu_shares(2),
            new().cpu_shares(262_144).cpu_weight(1),
            new().cpu_weight(10_000),
            new().cpu_period(1_000),
            new().cpu_period(1_000_000),
            new().cpu_quota(1_000),
            new().cpu_quota(17_592_186_044_415),
            new().cpu_quota(Limit::Max).cpu_burst(17_592_186_044_415),
            new().cpu_quota(1_000).cpu_burst(1_000),
            new().cpu_burst(0),
            new().cpu_idle(false),
            new().cpu_realtime_runtime(-1).cpu_realtime_period(1),
            new().cpu_realtime_runtime(950_000).cpu_realtime_period(950_000),
            new().cpuset_cpus("0".parse().unwrap()),
            new().cpuset_cpus(CpuSet::new()).cpuset_mems(CpuSet::new()),
            new().unified("cpuset.cpus", "").unified("cpuset.mems", "max"),
            new().pids_limit(0),
            new().pids_limit(4_194_304),
            new().pids_limit(Limit::Max),
            new().cpu_quota(8_796_093_022_207).cpu_burst(8_796_093_022_207),
            new().io_weight(10).io_device_weight(DISK, 1000).io_leaf_weight(10),
            new()
                .io_read_bps(DISK, u64::MAX)
                .io_write_iops(DISK, u64::from(u32::MAX))
                .io_read_iops(DISK, Limit::Max),
            new()
                .hugepage_limit("1GB".parse().unwrap(), 0)
                .network_class_id(u32::MAX)
                .network_priority("eth0", 0),
            new().rdma("mlx5_0", Rdma { hca_handles: Some(Limit::Value(0)), hca_objects: Some(Limit::Max) }),
            new().unified("io.max", "8:0 rbps=5\n8:16 wbps=5"),
            new()
                .unified("memory.high", "max")
                .unified("hugetlb.2MB.rsvd.max", "0")
                .unified("io.max", "8:0 rbps=1\n"),
        ] {
            sound.validate().unwrap_or_else(|error| panic!("{sound:?}: {error}"));
        }
    }

    #[test]
    fn values_outside_their_ranges_are_refused_with_setting_value_and_range() {
        let over = 1 << 63;
        let top = 1 << 44;
        let mut idle = new();
        idle.cpu.idle = Some(2);
        for (unsound, sentence) in [
            (
                new().memory_limit(over),
                r#"memory.limit = "9223372036854775808": takes 0 to 9223372036854775807"#,
            ),
            (
                new().memory_kernel_tcp(over),
                r#"memory.kernelTCP = "9223372036854775808": takes 0 to 92233720"#,
            ),
            (
                new().memory_limit(100).memory_swap(99),
                r#"memory.swap = "99": is memory plus swap: it cannot be less than the memory limit, 100"#,
            ),
            (new().memory_limit(Limit::Max).memory_swap(99), r#"memory.swap = "99": is memory plus swap"#),
            (new().memory_swappiness(101), r#"memory.swappiness = "101": takes 0 to 100"#),
            (new().cpu_shares(1), r#"cpu.shares = "1": takes 2 to 262144"#),
            (new().cpu_shares(262_145), r#"cpu.shares = "262145": takes 2 to 262144"#),
            (new().cpu_weight(0), r#"cpu.weight = "0": takes 1 to 10000"#),
            (new().cpu_weight(10_001), r#"cpu.weight = "10001": takes 1 to 10000"#),
            (new().cpu_period(999), r#"cpu.period = "999": takes 1000 to 1000000"#),
            (new().cpu_period(1_000_001), r#"cpu.period = "1000001": takes 1000 to 1000000"#),
            (new().cpu_quota(999), r#"cpu.quota = "999": takes 1000 to 17592186044415"#),
            (new().cpu_quota(top), r#"cpu.quota = "17592186044416": takes 1000 to 17592186044415"#),
            (new().cpu_burst(top), r#"cpu.burst = "17592186044416": takes 0 to 17592186044415"#),
            (
                new().cpu_quota(5_000).cpu_burst(5_001),
                r#"cpu.burst = "5001": is at most 5000 µs beside this quota, 5000 µs"#,
            ),
            (
                new().cpu_quota(top - 1).cpu_burst(1),
                r#"cpu.burst = "1": is at most 0 µs beside this quota, 17592186044415 µs"#,
            ),
            (new().io_weight(9), r#"blockIO.weight = "9": takes 10 to 1000"#),
            (new().io_leaf_weight(1001), r#"blockIO.leafWeight = "1001": takes 10 to 1000"#),
            (new().io_device_weight(DISK, 5), r#"blockIO.weightDevice.8:0.weight = "5": takes 10 to 1000"#),
            (new().io_device_leaf_weight(DISK, 5), r#"blockIO.weightDevice.8:0.leafWeight = "5": takes 10"#),
            (
                new().io_read_iops(DISK, 1 << 32),
                r#"blockIO.throttleReadIOPSDevice.8:0 = "4294967296": takes 1 to 4294967295"#,
            ),
            (
                new().io_write_bps(DISK, 0),
                r#"blockIO.throttleWriteBpsDevice.8:0 = "0": takes 1 to 18446744073709551615"#,
            ),
            (
                new().hugepage_limit("2MB".parse().unwrap(), over),
                r#"hugepageLimits.2MB = "9223372036854775808": takes 0 to 9223372036854775807"#,
            ),
            (
                new().network_priority("a/b", 1),
                r#"network.priorities = "a/b": a name has 1 to 15 bytes, without blanks and /"#,
            ),
            (
                new().network_priority("sixteen-letters-", 1),
                r#"network.priorities = "sixteen-letters-": a name"#,
            ),
            (new().rdma("", Rdma::default()), r#"rdma = "": a name has 1 to 63 bytes"#),
            (new().rdma("a b", Rdma::default()), r#"rdma = "a b": a name has 1 to 63 bytes"#),
            (new().rdma("a\nb", Rdma::default()), r#"rdma = "a\nb": a name has 1 to 63 bytes"#),
            (
                new().rdma("a", Rdma { hca_handles: Some(Limit::Value(1 << 31)), ..Rdma::default() }),
                r#"rdma.a.hcaHandles = "2147483648": takes 0 to 2147483647"#,
            ),
            (new().unified("memory.high", "1\n2"), "unified.memory.high"),
            (new().unified("io.max", "8:0 rbps=5\n8:0 wbps=5"), "unified.io.max"),
            (idle, r#"cpu.idle = "2": takes 0 to 1"#),
            (new().cpu_realtime_period(0), r#"cpu.realtimePeriod = "0": takes 1 to"#),
            (new().cpu_realtime_runtime(-2), r#"cpu.realtimeRuntime = "-2": takes -1 to"#),
            (
                new().cpu_realtime_runtime(11).cpu_realtime_period(10),
                r#"cpu.realtimeRuntime = "11": is at most the real-time period, 10 µs"#,
            ),
            (new().pids_limit(4_194_305), r#"pids.limit = "4194305": takes 0 to 4194304"#),
            (new().unified("memory.high", ""), r#"unified.memory.high = "": takes a value"#),
            (new().unified("memory.high", " \n"), r#"unified.memory.high = " \n": takes a value"#),
            (new().unified("memory.high", "1\0"), r#"unified.memory.high = "1\0": a value has no NUL"#),
        ] {
            let error = unsound.validate().expect_err(sentence);
            assert!(error.to_string().starts_with(sentence), "{error}");
            assert_eq!(error.kind(), crate::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_unified_key_is_the_name_of_one_interface_file() {
        let long = format!("memory.{}", "x".repeat(249));
        for key in [
            "",
            "memory",
            ".high",
            "memory.",
            "memory..high",
            "..",
            "../memory.high",
            "a/memory.high",
            "memory.high/",
            "memory.high\n",
            "memory.hi gh",
            "memory.h\0",
            "mémoire.max",
            "cgroup.procs",
            "cgroup.subtree_control",
            "memory.reclaim",
            "io.pressure",
            &long,
        ] {
            let error = new().unified(key, "1").validate().expect_err(key);
            assert_eq!((error.setting(), error.value()), (Some("unified"), Some(key)));
        }
    }
}
