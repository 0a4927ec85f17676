//! What a live change leaves behind as the desired state.

use super::{Cpu, Limit, Memory, Network, Pids, Rdma, Resources, most_burst, update};
use crate::Version;
use crate::devices::{DeviceRule, RuleKind};
use crate::interface::{Lines, lifts_cpuset, merged};

impl Resources {
    /// Makes this the desired state after `change`, on a host whose memory controller is of `version`.
    ///
    /// What the change gives, overrides; what it leaves out, stays. Some settings that it leaves out follow those that
    /// it gives, as they do in the kernel or because they could not stay:
    /// - a memory limit without swap, where both were set: no limit lifts swap too; on v1 swap (memory plus swap) is
    ///   raised to the limit if it was lower; on v2, where swap is limited by itself, that part keeps its size;
    /// - shares replace a weight that was set, and a weight shares;
    /// - a quota below a burst that was set lowers the burst to it.
    ///
    /// What was set by the name of a v2 file gives way to the field that is written to that file; of files with a line
    /// for each device, the values that are given alone. What is held against other values (`cpu.max`, `cpu.max.burst`,
    /// `cpu.weight`, `cpu.idle`, `memory.max`) becomes the field.
    ///
    /// Device rules are added behind the present ones; a rule of type `a` among them takes the place of all before it.
    /// Whether the outcome is consistent, such as a swap given alone that is below the limit, [`Resources::validate`]
    /// tells.
    pub fn merge(&mut self, change: &Self, version: Version) {
        // What no file can hold stays where it is, and is refused when it is planned.
        _ = self.take_named_fields();
        let (change, _) = change.with_named_fields();
        self.drop_unified(&change);
        let Self { devices, memory, cpu, pids, block_io, hugepage_limits, network, rdma, unified } = &*change;
        merge_rules(&mut self.devices, devices);
        self.memory.merge(memory, version);
        self.cpu.merge(cpu);
        let Pids { limit } = pids;
        update(&mut self.pids.limit, limit);
        self.block_io.merge(block_io);
        self.hugepage_limits.extend(hugepage_limits);
        let Network { class_id, priorities } = network;
        update(&mut self.network.class_id, class_id);
        self.network.priorities.extend(priorities.clone());
        for (device, Rdma { hca_handles, hca_objects }) in rdma {
            let own = self.rdma.entry(device.clone()).or_default();
            update(&mut own.hca_handles, hca_handles);
            update(&mut own.hca_objects, hca_objects);
        }
        for (file, value) in unified {
            let value = match self.unified.get(file) {
                Some(own) => merged(file, own, value),
                None => value.clone(),
            };
            self.unified.insert(file.clone(), value);
        }
    }

    /// Drops what `unified` says of the v2 files to which fields of the change are written.
    pub fn drop_unified(&mut self, change: &Self) {
        let Self { memory, cpu, pids, block_io, hugepage_limits, rdma, .. } = change;
        for (given, file) in [
            (memory.limit.is_some(), "memory.max"),
            (memory.reservation.is_some(), "memory.low"),
            (memory.swap.is_some() || memory.limit == Some(Limit::Max), "memory.swap.max"),
            (cpu.shares.or(cpu.weight).is_some(), "cpu.weight"),
            (cpu.quota.is_some(), "cpu.max"),
            (cpu.burst.is_some(), "cpu.max.burst"),
            (cpu.idle.is_some(), "cpu.idle"),
            (cpu.cpus.is_some(), "cpuset.cpus"),
            (cpu.mems.is_some(), "cpuset.mems"),
            (pids.limit.is_some(), "pids.max"),
        ] {
            if given {
                self.unified.remove(file);
            }
        }
        for size in hugepage_limits.keys() {
            self.unified.remove(&format!("hugetlb.{size}.max"));
            self.unified.remove(&format!("hugetlb.{size}.rsvd.max"));
        }
        for weights in ["io.weight", "io.bfq.weight"] {
            block_io.weight.iter().for_each(|_| self.drop_line(weights, "default", ""));
            let devices = block_io.weight_device.iter().filter(|(_, weight)| weight.weight.is_some());
            devices.for_each(|(device, _)| self.drop_line(weights, &device.to_string(), ""));
        }
        for throttle in block_io.throttles() {
            let devices = throttle.rates.keys();
            devices.for_each(|device| self.drop_line("io.max", &device.to_string(), throttle.v2_name));
        }
        for (device, Rdma { hca_handles, hca_objects }) in rdma {
            hca_handles.iter().for_each(|_| self.drop_line("rdma.max", device, "hca_handle"));
            hca_objects.iter().for_each(|_| self.drop_line("rdma.max", device, "hca_object"));
        }
    }

    /// Drops one value of a file with a line for each key.
    fn drop_line(&mut self, file: &str, key: &str, name: &str) {
        let Some(text) = self.unified.get_mut(file) else { return };
        let mut lines = Lines::parse(text);
        lines.remove(key, name);
        if lines.is_empty() {
            self.unified.remove(file);
        } else {
            *text = lines.to_string();
        }
    }
}

impl Memory {
    fn merge(&mut self, change: &Self, version: Version) {
        let Self {
            limit,
            reservation,
            swap,
            kernel,
            kernel_tcp,
            swappiness,
            disable_oom_killer,
            use_hierarchy,
            check_before_update,
        } = change;
        if let (Some(new), None, Some(old), Some(both)) = (*limit, *swap, self.limit, self.swap) {
            self.swap = Some(swap_beside(new, old, both, version));
        }
        update(&mut self.limit, limit);
        update(&mut self.reservation, reservation);
        update(&mut self.swap, swap);
        update(&mut self.kernel, kernel);
        update(&mut self.kernel_tcp, kernel_tcp);
        update(&mut self.swappiness, swappiness);
        update(&mut self.disable_oom_killer, disable_oom_killer);
        update(&mut self.use_hierarchy, use_hierarchy);
        update(&mut self.check_before_update, check_before_update);
    }
}

/// What `both`, memory plus swap beside the limit `old`, becomes when the limit alone becomes `new`.
fn swap_beside(new: Limit, old: Limit, both: Limit, version: Version) -> Limit {
    match (version, new, old, both) {
        (Version::V2, Limit::Value(new), Limit::Value(old), Limit::Value(both)) => new
            .checked_add(both.saturating_sub(old))
            .filter(|both| i64::try_from(*both).is_ok())
            .map_or(Limit::Max, Limit::Value),
        _ => both.max(new),
    }
}

impl Cpu {
    fn merge(&mut self, change: &Self) {
        let Self {
            shares,
            weight,
            quota,
            period,
            burst,
            idle,
            realtime_runtime,
            realtime_period,
            cpus,
            mems,
        } = change;
        if shares.is_some() || weight.is_some() {
            self.shares = *shares;
            self.weight = *weight;
        }
        update(&mut self.quota, quota);
        update(&mut self.period, period);
        update(&mut self.burst, burst);
        if let (Some(Limit::Value(quota)), None, Some(left)) = (*quota, *burst, self.burst) {
            self.burst = Some(left.min(most_burst(quota)));
        }
        update(&mut self.idle, idle);
        update(&mut self.realtime_runtime, realtime_runtime);
        update(&mut self.realtime_period, realtime_period);
        update(&mut self.cpus, cpus);
        update(&mut self.mems, mems);
        self.forget_lifted();
    }
}

impl Cpu {
    /// An empty set lifts what is in force, and is nothing that is wanted afterwards.
    fn forget_lifted(&mut self) {
        for set in [&mut self.cpus, &mut self.mems] {
            *set = set.take().filter(|set| !set.is_empty());
        }
    }
}

impl Resources {
    /// The desired state of a new cgroup, which has no cpuset that could be lifted.
    pub(crate) fn without_lifted_cpusets(mut self) -> Self {
        self.unified.retain(|file, value| !lifts_cpuset(file, value));
        self.cpu.forget_lifted();
        self
    }
}

fn merge_rules(rules: &mut Vec<DeviceRule>, change: &[DeviceRule]) {
    for rule in change {
        if rule.kind == RuleKind::All {
            rules.clear();
        }
        rules.push(rule.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CpuSet, DeviceNumber};

    fn merged(have: Resources, change: Resources, version: Version) -> Resources {
        let mut merged = have;
        merged.merge(&change, version);
        merged
    }

    #[test]
    fn a_change_overrides_what_it_gives_and_leaves_the_rest() {
        let have = Resources::new()
            .memory_limit(1 << 30)
            .cpu_quota(50_000)
            .cpu_period(100_000)
            .cpuset_cpus("0-3".parse().unwrap())
            .unified("memory.high", "1000")
            .unified("memory.low", "10");
        let change = Resources::new()
            .cpu_quota(Limit::Max)
            .pids_limit(7)
            .memory_swappiness(1)
            .unified("memory.high", "max");
        for version in [Version::V1, Version::V2] {
            assert_eq!(
                merged(have.clone(), change.clone(), version),
                Resources::new()
                    .memory_limit(1 << 30)
                    .memory_swappiness(1)
                    .cpu_quota(Limit::Max)
                    .cpu_period(100_000)
                    .cpuset_cpus("0-3".parse().unwrap())
                    .pids_limit(7)
                    .unified("memory.high", "max")
                    .unified("memory.low", "10")
            );
            assert_eq!(
                merged(have.clone(), Resources::new(), version),
                have,
                "an empty change changes nothing"
            );
            assert_eq!(merged(Resources::new(), change.clone(), version), change);
        }
    }

    #[test]
    fn of_a_lifted_cpuset_nothing_is_wanted_afterwards() {
        let have = Resources::new().cpuset_cpus("0-3".parse().unwrap()).cpuset_mems("0".parse().unwrap());
        for lift in [
            Resources::new().cpuset_cpus(CpuSet::new()),
            Resources::new().unified("cpuset.cpus", ""),
            Resources::new().unified("cpuset.cpus", "max"),
        ] {
            let left = Resources::new().cpuset_mems("0".parse().unwrap());
            assert_eq!(merged(have.clone(), lift.clone(), Version::V2), left);
            let named = Resources::new().unified("cpuset.cpus", "0-3");
            assert_eq!(merged(named, lift.clone(), Version::V2), Resources::new());
            assert_eq!(lift.without_lifted_cpusets(), Resources::new());
        }
    }

    #[test]
    fn swap_follows_a_memory_limit_that_is_changed_alone() {
        use Limit::{Max, Value};
        let top = i64::MAX.cast_unsigned();
        for (limit, swap, new, v1, v2) in [
            (Value(100), Value(300), Value(200), Value(300), Value(400)),
            (Value(100), Value(300), Value(400), Value(400), Value(600)),
            (Value(100), Value(300), Value(50), Value(300), Value(250)),
            (Value(100), Value(100), Value(200), Value(200), Value(200)),
            (Value(100), Value(300), Max, Max, Max),
            (Value(100), Max, Value(200), Max, Max),
            (Max, Max, Value(200), Max, Max),
            (Value(100), Value(101), Value(top), Value(top), Max),
        ] {
            for (version, swap_after) in [(Version::V1, v1), (Version::V2, v2)] {
                let have = Resources::new().memory_limit(limit).memory_swap(swap);
                let after = merged(have, Resources::new().memory_limit(new), version);
                assert_eq!(
                    after,
                    Resources::new().memory_limit(new).memory_swap(swap_after),
                    "{version:?}: {limit}, {swap}, then {new}"
                );
                after.validate().unwrap();
            }
        }
    }

    #[test]
    fn swap_that_is_given_or_was_never_set_follows_nothing() {
        for version in [Version::V1, Version::V2] {
            let both = Resources::new().memory_limit(100).memory_swap(300);
            let change = Resources::new().memory_limit(200).memory_swap(250);
            assert_eq!(merged(both.clone(), change.clone(), version), change);
            let limit = Resources::new().memory_limit(100);
            let change = Resources::new().memory_limit(Limit::Max);
            assert_eq!(merged(limit, change.clone(), version), change);
            let too_low = merged(both, Resources::new().memory_swap(50), version);
            assert_eq!(too_low.validate().unwrap_err().setting(), Some("memory.swap"));
        }
    }

    #[test]
    fn a_field_takes_the_place_of_the_file_that_it_is_written_to() {
        let have = Resources::new().unified("memory.max", "4096").unified("pids.max", "50");
        let limit = Resources::new().memory_limit(8192);
        let after = merged(have.clone(), limit, Version::V2);
        assert_eq!(after, Resources::new().memory_limit(8192).unified("pids.max", "50"));
        let both = Resources::new().memory_limit(8192).unified("memory.max", "5000");
        assert_eq!(merged(have, both, Version::V2).memory.limit, Some(Limit::Value(5000)));
        let have = Resources::new().memory_limit(100).unified("memory.swap.max", "50");
        let lifted = Resources::new().memory_limit(Limit::Max);
        assert_eq!(merged(have, lifted.clone(), Version::V2), lifted, "it lifts swap too");
    }

    #[test]
    fn a_quota_a_period_and_a_burst_are_what_is_in_force_whatever_they_were_called() {
        let new = Resources::new;
        let cpu = |quota: u64, period: u64| new().cpu_quota(quota).cpu_period(period);
        for (have, change, after) in [
            (
                new().cpu_quota(50_000).unified("cpu.max.burst", "50000"),
                new().cpu_quota(20_000),
                new().cpu_quota(20_000).cpu_burst(20_000),
            ),
            (
                new().cpu_quota(50_000).cpu_burst(50_000),
                new().unified("cpu.max", "20000 100000"),
                cpu(20_000, 100_000).cpu_burst(20_000),
            ),
            (new().unified("cpu.max", "50000 50000"), new().cpu_quota(20_000), cpu(20_000, 50_000)),
            (new().unified("cpu.max", "50000 100000"), new().cpu_period(20_000), cpu(50_000, 20_000)),
            (
                new().unified("cpu.max", "20000 50000"),
                new().unified("cpu.max", "max"),
                new().cpu_quota(Limit::Max).cpu_period(50_000),
            ),
        ] {
            assert_eq!(merged(have, change, Version::V2), after);
        }
    }

    #[test]
    fn of_files_with_a_line_for_each_device_single_values_are_merged() {
        let disk = DeviceNumber { major: 8, minor: 0 };
        let other = DeviceNumber { major: 8, minor: 16 };
        let rdma = |handles: Option<u64>, objects: Option<u64>| Rdma {
            hca_handles: handles.map(Limit::Value),
            hca_objects: objects.map(Limit::Value),
        };
        let have = Resources::new()
            .io_read_bps(disk, 1)
            .io_read_bps(other, 2)
            .io_device_weight(disk, 100)
            .hugepage_limit("2MB".parse().unwrap(), 0)
            .network_priority("lo", 1)
            .rdma("a", rdma(Some(1), Some(2)));
        let change = Resources::new()
            .io_read_bps(disk, 5)
            .io_write_bps(disk, 6)
            .io_device_leaf_weight(disk, 50)
            .hugepage_limit("1GB".parse().unwrap(), 0)
            .network_priority("eth0", 2)
            .network_class_id(9)
            .rdma("a", rdma(None, Some(3)));
        let expected = Resources::new()
            .io_read_bps(disk, 5)
            .io_read_bps(other, 2)
            .io_write_bps(disk, 6)
            .io_device_weight(disk, 100)
            .io_device_leaf_weight(disk, 50)
            .hugepage_limit("2MB".parse().unwrap(), 0)
            .hugepage_limit("1GB".parse().unwrap(), 0)
            .network_priority("lo", 1)
            .network_priority("eth0", 2)
            .network_class_id(9)
            .rdma("a", rdma(Some(1), Some(3)));
        assert_eq!(merged(have, change, Version::V2), expected);

        let have = Resources::new()
            .unified("io.max", "8:0 rbps=1 wbps=2\n8:16 rbps=3")
            .unified("io.weight", "100\n8:0 5")
            .unified("io.bfq.weight", "8:0 5")
            .unified("hugetlb.2MB.max", "0")
            .unified("hugetlb.2MB.rsvd.max", "0")
            .unified("rdma.max", "a hca_handle=1 hca_object=2")
            .unified("misc.max", "sev 1");
        let change = Resources::new()
            .io_read_bps(disk, 9)
            .io_weight(10)
            .io_device_weight(disk, 20)
            .hugepage_limit("2MB".parse().unwrap(), 0)
            .rdma("a", rdma(Some(7), None))
            .unified("io.max", "8:16 wbps=4")
            .unified("misc.max", "sev_es 2");
        let expected = change
            .clone()
            .unified("io.max", "8:0 wbps=2\n8:16 rbps=3 wbps=4")
            .unified("rdma.max", "a hca_object=2")
            .unified("misc.max", "sev 1\nsev_es 2");
        assert_eq!(merged(have, change, Version::V2), expected);
    }

    #[test]
    fn shares_and_weight_replace_each_other() {
        let shares = Resources::new().cpu_shares(512);
        let weight = Resources::new().cpu_weight(50);
        let both = Resources::new().cpu_shares(1024).cpu_weight(100);
        for (have, change) in [(&shares, &weight), (&weight, &shares), (&both, &shares), (&shares, &both)] {
            assert_eq!(merged(have.clone(), change.clone(), Version::V2), *change);
        }
        assert_eq!(merged(both.clone(), Resources::new(), Version::V2), both);
    }

    #[test]
    fn a_burst_that_is_left_over_is_lowered_with_the_quota() {
        let have = Resources::new().cpu_quota(50_000).cpu_burst(40_000);
        for (quota, burst) in
            [(Limit::Value(20_000), 20_000), (Limit::Value(45_000), 40_000), (Limit::Max, 40_000)]
        {
            let after = merged(have.clone(), Resources::new().cpu_quota(quota), Version::V2);
            assert_eq!(after, Resources::new().cpu_quota(quota).cpu_burst(burst));
        }
        let asked = merged(have, Resources::new().cpu_quota(20_000).cpu_burst(30_000), Version::V2);
        assert_eq!(asked.validate().unwrap_err().setting(), Some("cpu.burst"));
    }

    #[test]
    fn device_rules_are_added_and_a_rule_of_type_a_drops_those_before_it() {
        let rule = |text: &str| DeviceRule::parse(true, text, |_| unreachable!()).unwrap();
        let (all, null, disk) = (&DeviceRule::deny_all(), &rule("c 1:3 rwm"), &rule("b 8:0 r"));
        for (change, after) in [
            (vec![], vec![all, null]),
            (vec![disk], vec![all, null, disk]),
            (vec![all], vec![all]),
            (vec![disk, all, null], vec![all, null]),
            (vec![null], vec![all, null, null]),
        ] {
            let mut rules = vec![all.clone(), null.clone()];
            merge_rules(&mut rules, &change.into_iter().cloned().collect::<Vec<_>>());
            assert_eq!(rules.iter().collect::<Vec<_>>(), after);
        }
    }
}
