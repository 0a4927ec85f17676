//! Resources in code: one method per setting, each returning the resources for the next.

use std::sync::LazyLock;

use super::{CpuSet, HugePageSize, Limit, Rdma, Resources};
use crate::devices::{DeviceNumber, DeviceRule};

impl Resources {
    /// Nothing is asked for: every setting is left alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self == Self::nothing()
    }

    /// What asks for nothing, to borrow.
    pub(crate) fn nothing() -> &'static Self {
        static NOTHING: LazyLock<Resources> = LazyLock::new(Resources::default);
        &NOTHING
    }

    /// Sets [`Memory::limit`](super::Memory::limit), in bytes.
    #[must_use]
    pub fn memory_limit(mut self, limit: impl Into<Limit>) -> Self {
        self.memory.limit = Some(limit.into());
        self
    }

    /// Sets [`Memory::reservation`](super::Memory::reservation), in bytes.
    #[must_use]
    pub fn memory_reservation(mut self, limit: impl Into<Limit>) -> Self {
        self.memory.reservation = Some(limit.into());
        self
    }

    /// Sets [`Memory::swap`](super::Memory::swap): memory plus swap, in bytes.
    #[must_use]
    pub fn memory_swap(mut self, limit: impl Into<Limit>) -> Self {
        self.memory.swap = Some(limit.into());
        self
    }

    /// Sets [`Memory::kernel`](super::Memory::kernel), in bytes.
    #[must_use]
    pub fn memory_kernel(mut self, limit: impl Into<Limit>) -> Self {
        self.memory.kernel = Some(limit.into());
        self
    }

    /// Sets [`Memory::kernel_tcp`](super::Memory::kernel_tcp), in bytes.
    #[must_use]
    pub fn memory_kernel_tcp(mut self, limit: impl Into<Limit>) -> Self {
        self.memory.kernel_tcp = Some(limit.into());
        self
    }

    /// Sets [`Memory::swappiness`](super::Memory::swappiness), 0 to 100.
    #[must_use]
    pub fn memory_swappiness(mut self, swappiness: u64) -> Self {
        self.memory.swappiness = Some(swappiness);
        self
    }

    /// Sets [`Memory::disable_oom_killer`](super::Memory::disable_oom_killer).
    #[must_use]
    pub fn disable_oom_killer(mut self, disable: bool) -> Self {
        self.memory.disable_oom_killer = Some(disable);
        self
    }

    /// Sets [`Memory::use_hierarchy`](super::Memory::use_hierarchy).
    #[must_use]
    pub fn memory_use_hierarchy(mut self, hierarchy: bool) -> Self {
        self.memory.use_hierarchy = Some(hierarchy);
        self
    }

    /// Sets [`Memory::check_before_update`](super::Memory::check_before_update).
    #[must_use]
    pub fn memory_check_before_update(mut self, check: bool) -> Self {
        self.memory.check_before_update = Some(check);
        self
    }

    /// Sets [`Cpu::shares`](super::Cpu::shares), 2 to 262144.
    #[must_use]
    pub fn cpu_shares(mut self, shares: u64) -> Self {
        self.cpu.shares = Some(shares);
        self
    }

    /// Sets [`Cpu::weight`](super::Cpu::weight), 1 to 10000.
    #[must_use]
    pub fn cpu_weight(mut self, weight: u64) -> Self {
        self.cpu.weight = Some(weight);
        self
    }

    /// Sets [`Cpu::quota`](super::Cpu::quota), in microseconds per period.
    #[must_use]
    pub fn cpu_quota(mut self, us: impl Into<Limit>) -> Self {
        self.cpu.quota = Some(us.into());
        self
    }

    /// Sets [`Cpu::period`](super::Cpu::period), in microseconds.
    #[must_use]
    pub fn cpu_period(mut self, us: u64) -> Self {
        self.cpu.period = Some(us);
        self
    }

    /// Sets [`Cpu::burst`](super::Cpu::burst), in microseconds.
    #[must_use]
    pub fn cpu_burst(mut self, us: u64) -> Self {
        self.cpu.burst = Some(us);
        self
    }

    /// Sets [`Cpu::idle`](super::Cpu::idle).
    #[must_use]
    pub fn cpu_idle(mut self, idle: bool) -> Self {
        self.cpu.idle = Some(idle.into());
        self
    }

    /// Sets [`Cpu::realtime_runtime`](super::Cpu::realtime_runtime), in microseconds per real-time period; -1 for no limit.
    #[must_use]
    pub fn cpu_realtime_runtime(mut self, us: i64) -> Self {
        self.cpu.realtime_runtime = Some(us);
        self
    }

    /// Sets [`Cpu::realtime_period`](super::Cpu::realtime_period), in microseconds.
    #[must_use]
    pub fn cpu_realtime_period(mut self, us: u64) -> Self {
        self.cpu.realtime_period = Some(us);
        self
    }

    /// Sets [`Cpu::cpus`](super::Cpu::cpus).
    #[must_use]
    pub fn cpuset_cpus(mut self, cpus: CpuSet) -> Self {
        self.cpu.cpus = Some(cpus);
        self
    }

    /// Sets [`Cpu::mems`](super::Cpu::mems).
    #[must_use]
    pub fn cpuset_mems(mut self, mems: CpuSet) -> Self {
        self.cpu.mems = Some(mems);
        self
    }

    /// Sets [`Pids::limit`](super::Pids::limit), a number of tasks.
    #[must_use]
    pub fn pids_limit(mut self, limit: impl Into<Limit>) -> Self {
        self.pids.limit = Some(limit.into());
        self
    }

    /// Sets [`BlockIo::weight`](super::BlockIo::weight), 10 to 1000.
    #[must_use]
    pub fn io_weight(mut self, weight: u64) -> Self {
        self.block_io.weight = Some(weight);
        self
    }

    /// Sets [`BlockIo::leaf_weight`](super::BlockIo::leaf_weight), 10 to 1000.
    #[must_use]
    pub fn io_leaf_weight(mut self, weight: u64) -> Self {
        self.block_io.leaf_weight = Some(weight);
        self
    }

    /// Sets the weight of one device in [`BlockIo::weight_device`](super::BlockIo::weight_device), 10 to 1000.
    #[must_use]
    pub fn io_device_weight(mut self, device: DeviceNumber, weight: u64) -> Self {
        self.block_io.weight_device.entry(device).or_default().weight = Some(weight);
        self
    }

    /// Sets the leaf weight of one device in [`BlockIo::weight_device`](super::BlockIo::weight_device), 10 to 1000.
    #[must_use]
    pub fn io_device_leaf_weight(mut self, device: DeviceNumber, weight: u64) -> Self {
        self.block_io.weight_device.entry(device).or_default().leaf_weight = Some(weight);
        self
    }

    /// Throttles reading from a device, in bytes per second:
    /// [`BlockIo::throttle_read_bps_device`](super::BlockIo::throttle_read_bps_device).
    #[must_use]
    pub fn io_read_bps(mut self, device: DeviceNumber, rate: impl Into<Limit>) -> Self {
        self.block_io.throttle_read_bps_device.insert(device, rate.into());
        self
    }

    /// Throttles writing to a device, in bytes per second:
    /// [`BlockIo::throttle_write_bps_device`](super::BlockIo::throttle_write_bps_device).
    #[must_use]
    pub fn io_write_bps(mut self, device: DeviceNumber, rate: impl Into<Limit>) -> Self {
        self.block_io.throttle_write_bps_device.insert(device, rate.into());
        self
    }

    /// Throttles reading from a device, in requests per second:
    /// [`BlockIo::throttle_read_iops_device`](super::BlockIo::throttle_read_iops_device).
    #[must_use]
    pub fn io_read_iops(mut self, device: DeviceNumber, rate: impl Into<Limit>) -> Self {
        self.block_io.throttle_read_iops_device.insert(device, rate.into());
        self
    }

    /// Throttles writing to a device, in requests per second:
    /// [`BlockIo::throttle_write_iops_device`](super::BlockIo::throttle_write_iops_device).
    #[must_use]
    pub fn io_write_iops(mut self, device: DeviceNumber, rate: impl Into<Limit>) -> Self {
        self.block_io.throttle_write_iops_device.insert(device, rate.into());
        self
    }

    /// Limits huge pages of one size, in bytes: [`Resources::hugepage_limits`].
    #[must_use]
    pub fn hugepage_limit(mut self, size: HugePageSize, limit: impl Into<Limit>) -> Self {
        self.hugepage_limits.insert(size, limit.into());
        self
    }

    /// Sets [`Network::class_id`](super::Network::class_id).
    #[must_use]
    pub fn network_class_id(mut self, class: u32) -> Self {
        self.network.class_id = Some(class);
        self
    }

    /// Sets the priority of packets on one interface: [`Network::priorities`](super::Network::priorities).
    #[must_use]
    pub fn network_priority(mut self, interface: impl Into<String>, priority: u32) -> Self {
        self.network.priorities.insert(interface.into(), priority);
        self
    }

    /// Limits what may be had of one RDMA device: [`Resources::rdma`].
    #[must_use]
    pub fn rdma(mut self, device: impl Into<String>, limits: Rdma) -> Self {
        self.rdma.insert(device.into(), limits);
        self
    }

    /// Adds a device rule behind those that are there.
    #[must_use]
    pub fn device(mut self, rule: DeviceRule) -> Self {
        self.devices.push(rule);
        self
    }

    /// Adds device rules, in order, behind those that are there.
    #[must_use]
    pub fn devices(mut self, rules: impl IntoIterator<Item = DeviceRule>) -> Self {
        self.devices.extend(rules);
        self
    }

    /// Sets the cgroup v2 file `key`, such as `memory.high`, to `value`.
    #[must_use]
    pub fn unified(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.unified.insert(key.into(), value.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_is_asked_for_and_the_rest_is_left_alone() {
        assert!(Resources::new().is_empty());
        let built = Resources::new()
            .memory_limit(64 << 20)
            .memory_swap(Limit::Max)
            .cpu_quota(50_000)
            .cpu_idle(true)
            .cpuset_cpus("0-3".parse().unwrap())
            .pids_limit(10)
            .unified("memory.high", "max");
        let (read, report) = Resources::from_oci_json(
            r#"{ "memory": {"limit": 67108864, "swap": -1}, "cpu": {"quota": 50000, "idle": 1, "cpus": "0-3"},
                 "pids": {"limit": 10}, "unified": {"memory.high": "max"} }"#,
        )
        .unwrap();
        assert_eq!(built, read);
        assert!(report.is_empty() && !built.is_empty());
    }
}
