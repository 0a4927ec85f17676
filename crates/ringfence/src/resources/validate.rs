//! Values that no host could take.

use std::fmt;
use std::ops::RangeInclusive;

use super::{Cpu, CpuSet, Limit, Memory, Pids, Resources};
use crate::{Error, Result};

/// The longest quota that the kernel can reckon with (`max_bw_runtime_us`, 44 bits, since Linux 5.7).
const LONGEST_QUOTA_US: u64 = (1 << 44) - 1;

/// `PIDS_MAX` of the pids controller is one more: what no system can have it calls `max`, and refuses as a number.
const MOST_PIDS: u64 = 1 << 22;

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
            && burst > quota
        {
            return Err(Error::invalid("cpu.burst", burst, format!("is at most the quota, {quota} µs")));
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
        not_empty("cpu.cpus", self.cpus.as_ref())?;
        not_empty("cpu.mems", self.mems.as_ref())
    }
}

impl Pids {
    fn validate(&self) -> Result<()> {
        within("pids.limit", number(self.limit), 0..=MOST_PIDS)
    }
}

fn number(limit: Option<Limit>) -> Option<u64> {
    match limit {
        Some(Limit::Value(value)) => Some(value),
        Some(Limit::Max) | None => None,
    }
}

fn within<T: PartialOrd + fmt::Display>(
    setting: &'static str,
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

fn not_empty(setting: &'static str, set: Option<&CpuSet>) -> Result<()> {
    match set {
        Some(set) if set.is_empty() => {
            Err(Error::invalid(setting, set, "takes at least one number, such as 0-3"))
        }
        _ => Ok(()),
    }
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
    if key.starts_with("cgroup.") {
        return refused("the files cgroup.* are the manager's own: they set no resource");
    }
    let refused = |why| Err(Error::invalid(format!("unified.{key}"), value, why));
    if value.trim().is_empty() {
        return refused("takes a value: the kernel has no use for an empty one");
    }
    let mut lines: Vec<&str> = value.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.len() > 1 {
        let (all, keyed) = (lines.len(), lines.iter().all(|line| line.trim().contains(' ')));
        lines.sort_unstable_by_key(|line| line.split_whitespace().next());
        lines.dedup_by_key(|line| line.split_whitespace().next());
        if !keyed || lines.len() < all {
            return refused("several lines are for files with a line for each device, each with its device");
        }
    }
    if value.contains('\0') {
        return refused("a value has no NUL in it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
            new().pids_limit(0),
            new().pids_limit(4_194_304),
            new().pids_limit(Limit::Max),
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
            (new().cpu_quota(5_000).cpu_burst(5_001), r#"cpu.burst = "5001": is at most the quota, 5000 µs"#),
            (idle, r#"cpu.idle = "2": takes 0 to 1"#),
            (new().cpu_realtime_period(0), r#"cpu.realtimePeriod = "0": takes 1 to"#),
            (new().cpu_realtime_runtime(-2), r#"cpu.realtimeRuntime = "-2": takes -1 to"#),
            (
                new().cpu_realtime_runtime(11).cpu_realtime_period(10),
                r#"cpu.realtimeRuntime = "11": is at most the real-time period, 10 µs"#,
            ),
            (new().cpuset_cpus(CpuSet::new()), r#"cpu.cpus = "": takes at least one number"#),
            (new().cpuset_mems(CpuSet::new()), r#"cpu.mems = "": takes at least one number"#),
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
            &long,
        ] {
            let error = new().unified(key, "1").validate().expect_err(key);
            assert_eq!((error.setting(), error.value()), (Some("unified"), Some(key)));
        }
    }
}
