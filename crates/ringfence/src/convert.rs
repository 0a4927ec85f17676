//! Limits from one form into another.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use crate::error::Result;
use crate::host::{Host, Mode};
use crate::path::SystemdName;
use crate::plan::{self, Action, UnitWant, Want};
use crate::report::Report;
use crate::resources::Resources;
use crate::systemd::property::{Property, tell};
use crate::terminal::Escaped;

/// Limits as properties of a unit of systemd, by the names and in the units that they have on its bus
/// (`org.freedesktop.systemd1`).
///
/// In JSON an object of them, no limit being `"max"`; in text a line for each, no limit being `infinity`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitProperties(Vec<Property>);

impl fmt::Display for UnitProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|property| writeln!(f, "{}", Escaped(&property.to_string())))
    }
}

impl Serialize for UnitProperties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|property| (property.name, &property.value)))
    }
}

impl Resources {
    /// The same limits by the names of cgroup v2's files, as a v2 host would be told them: all in
    /// [`Resources::unified`], with the device rules beside it. The report has what v2 cannot do.
    ///
    /// The host that is thought of has every controller and the cost model's weights (`io.weight`).
    ///
    /// # Errors
    /// A value that no host could take.
    ///
    /// ```
    /// use ringfence::Resources;
    ///
    /// let limits = Resources::new().memory_limit(64 << 20).memory_swap(96 << 20).cpu_shares(1024).memory_swappiness(60);
    /// let (v2, report) = limits.to_v2()?;
    /// assert_eq!(v2.unified["memory.swap.max"], "33554432");
    /// assert_eq!(v2.unified["cpu.weight"], "100");
    /// assert_eq!(report.lines()[0].setting, "memory.swappiness");
    /// # Ok::<(), ringfence::Error>(())
    /// ```
    pub fn to_v2(&self) -> Result<(Self, Report)> {
        const PATH: &str = "converted";
        let mut host = Host::standard(Mode::V2, false);
        host.huge_page_sizes = self.hugepage_limits.keys().copied().collect();
        let nothing = Self::default();
        let want = Want { create: true, ..Want::change(PATH, &nothing, self) };
        let plan = plan::plan(&host, &want, plan::UNREAD)?;
        let unified: BTreeMap<String, String> =
            plan.values(PATH).into_iter().map(|((_, file), value)| (file.to_owned(), value)).collect();
        Ok((Self { devices: self.devices.clone(), unified, ..Self::default() }, plan.report))
    }

    /// The same limits as properties of a unit of systemd on a v2 host. The report has what v2 cannot do, and what systemd has
    /// no property for: device rules, and the files that are written in the unit's cgroup instead.
    ///
    /// # Errors
    /// A value that no host could take.
    ///
    /// ```
    /// use ringfence::Resources;
    ///
    /// let (unit, report) = Resources::new().memory_limit(64 << 20).cpu_quota(50_000).cpu_burst(1000).to_systemd()?;
    /// assert_eq!(unit.to_string(), "MemoryMax=67108864\nCPUQuotaPerSecUSec=500000\nCPUQuotaPeriodUSec=100000\n");
    /// assert_eq!(report.lines()[0].setting, "cpu.burst");
    /// # Ok::<(), ringfence::Error>(())
    /// ```
    pub fn to_systemd(&self) -> Result<(UnitProperties, Report)> {
        const PATH: &str = "system.slice/converted.scope";
        let mut host = Host::standard(Mode::V2, true);
        host.huge_page_sizes = self.hugepage_limits.keys().copied().collect();
        let (nothing, name) = (Self::default(), SystemdName::new("system.slice", "", "converted")?);
        let unit = Some(UnitWant { name: &name, description: "" });
        let want = Want { create: true, unit, ..Want::change(PATH, &nothing, self) };
        let plan = plan::plan(&host, &want, plan::UNREAD)?;
        let (mut properties, mut report) = (Vec::new(), Report::default());
        for step in plan.steps() {
            match &step.action {
                Action::StartUnit { told, .. } => {
                    told.iter().for_each(|told| tell(&mut properties, told.properties.iter().cloned()));
                }
                Action::Write { file, value, .. } => {
                    let why =
                        format!("systemd has no property for it: {file} is written in the unit's cgroup");
                    report.add(step.setting.clone().unwrap_or_default(), value.trim_end(), why);
                }
                _ => {}
            }
        }
        for rule in &self.devices {
            let why = "systemd's own rules refuse more on cgroup v2 than these say: Ringfence attaches a filter of its own";
            report.add("devices", rule, why);
        }
        report.append(plan.report);
        Ok((UnitProperties(properties), report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceNumber, DeviceRule, Limit};

    #[test]
    fn what_systemd_has_a_property_for_becomes_one_and_the_rest_is_told() {
        let disk = DeviceNumber { major: 8, minor: 0 };
        let limits = Resources::new()
            .memory_limit(64 << 20)
            .memory_swap(Limit::Max)
            .cpu_quota(50_000)
            .cpu_shares(2)
            .cpuset_cpus("0-3".parse().unwrap())
            .pids_limit(7)
            .io_read_bps(disk, 4096)
            .memory_swappiness(60)
            .hugepage_limit("2MB".parse().unwrap(), 2 << 20)
            .unified("memory.high", "max")
            .device(DeviceRule::parse(true, "c 1:3 rwm", |_| unreachable!()).unwrap());
        let (unit, report) = limits.to_systemd().unwrap();
        let expected = serde_json::json!({
            "MemoryMax": 64 << 20, "MemorySwapMax": "max", "CPUQuotaPerSecUSec": 500_000, "CPUQuotaPeriodUSec": 100_000,
            "CPUWeight": 1, "AllowedCPUs": "0-3", "TasksMax": 7, "IOReadBandwidthMax": {"/dev/block/8:0": 4096},
            "IOReadIOPSMax": {"/dev/block/8:0": "max"}, "IOWriteBandwidthMax": {"/dev/block/8:0": "max"},
            "IOWriteIOPSMax": {"/dev/block/8:0": "max"}, "MemoryHigh": "max",
        });
        assert_eq!(serde_json::to_value(&unit).unwrap(), expected);
        let lost: Vec<&str> = report.unsupported().map(|line| line.setting.as_ref()).collect();
        assert_eq!(lost, ["hugepageLimits.2MB", "hugepageLimits.2MB", "devices", "memory.swappiness"]);
        assert!(Resources::new().cpu_shares(1).to_systemd().is_err());
    }

    #[test]
    fn what_was_converted_means_the_same_to_a_v2_host() {
        let disk = DeviceNumber { major: 8, minor: 0 };
        let limits = Resources::new()
            .memory_limit(64 << 20)
            .memory_swap(Limit::Max)
            .cpu_quota(50_000)
            .cpu_burst(20_000)
            .cpu_shares(2)
            .cpuset_cpus("0-3".parse().unwrap())
            .pids_limit(7)
            .io_weight(100)
            .io_read_bps(disk, 4096)
            .io_write_iops(disk, 10)
            .hugepage_limit("64KB".parse().unwrap(), 65_536)
            .unified("memory.high", "max")
            .device(DeviceRule::parse(true, "c 1:3 rwm", |_| unreachable!()).unwrap());
        let (v2, report) = limits.to_v2().unwrap();
        assert!(report.is_empty(), "{report}");
        let expected = [
            ("cpu.max", "50000 100000"),
            ("cpu.max.burst", "20000"),
            ("cpu.weight", "1"),
            ("cpuset.cpus", "0-3"),
            ("hugetlb.64KB.max", "65536"),
            ("hugetlb.64KB.rsvd.max", "65536"),
            ("io.max", "8:0 rbps=4096 riops=max wbps=max wiops=10"),
            ("io.weight", "default 910"),
            ("memory.high", "max"),
            ("memory.max", "67108864"),
            ("memory.swap.max", "max"),
            ("pids.max", "7"),
        ];
        let found: Vec<_> = v2.unified.iter().map(|(file, value)| (file.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
        assert_eq!(v2.devices, limits.devices);
        assert_eq!(v2.to_v2().unwrap(), (v2, Report::default()), "it is its own conversion");
    }
}
