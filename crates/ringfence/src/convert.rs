//! Limits from one form into another.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::host::{Host, Mode};
use crate::plan::{self, Observed, Want};
use crate::report::Report;
use crate::resources::Resources;

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
        let plan = plan::plan(&host, &want, &Observed::default())?;
        let unified: BTreeMap<String, String> =
            plan.values(PATH).into_iter().map(|((_, file), value)| (file.to_owned(), value)).collect();
        Ok((Self { devices: self.devices.clone(), unified, ..Self::default() }, plan.report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceNumber, DeviceRule, Limit};

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
