//! CPU time: `cpu.stat` and `cpu.stat.local`; on v1 also `cpuacct.usage` and `cpuacct.stat`.

use serde::{Deserialize, Serialize};

use super::file::File;
use super::parse;
use crate::host::Controller::{Cpu, Cpuacct};

/// CPU time and throttling, in microseconds since the cgroup was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct CpuStats {
    /// CPU time used: `usage_usec`; v1: `cpuacct.usage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_us: Option<u64>,
    /// Of it in user mode: `user_usec`; v1: `cpuacct.stat`, in steps of 10 ms. A guest's time counts as user time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_us: Option<u64>,
    /// Of it in the kernel: `system_usec`; v1: `cpuacct.stat`, in steps of 10 ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_us: Option<u64>,
    /// Of the user time what was spent at a nice value above 0: `nice_usec`, since Linux 6.13 and in later 6.12; v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice_us: Option<u64>,
    /// Time for which core scheduling kept a hyperthread beside the cgroup's tasks idle: `core_sched.force_idle_usec`,
    /// since Linux 6.0 and with `CONFIG_SCHED_CORE`; v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_idle_us: Option<u64>,
    /// Time spent runnable and waiting for a CPU: `wait_sum`, while the sysctl `kernel.sched_schedstats` is 1; v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_us: Option<u64>,
    /// Periods of the quota in which something ran: `nr_periods`. On v2 only with the controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub periods: Option<u64>,
    /// Periods in which the quota ran out: `nr_throttled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled: Option<u64>,
    /// Time that was spent throttled by the cgroup's own quota, summed over the CPUs: `throttled_usec`; v1:
    /// `throttled_time`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_us: Option<u64>,
    /// Time for which the cgroup's own tasks were held back by any quota, its own or an ancestor's, summed over the CPUs:
    /// `throttled_usec` of `cpu.stat.local`; v1: `throttled_time`. Since Linux 6.6, and on v2 only with the controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_local_us: Option<u64>,
    /// Periods in which more than the quota was used: `nr_bursts`, since Linux 5.14.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bursts: Option<u64>,
    /// Time used above the quota: `burst_usec`; v1: `burst_time`. Since Linux 5.14.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst_us: Option<u64>,
}

pub(super) const FILES: &[File] = &[
    File::v2(Cpu, "cpu.stat", |stats, contents| stat(&mut stats.cpu, contents)),
    File::v2(Cpu, "cpu.stat.local", |stats, contents| local_stat(&mut stats.cpu, contents)),
    File::v1(Cpuacct, "cpuacct.usage", |stats, contents| {
        stats.cpu.usage_us = parse::value(contents).map(microseconds);
    }),
    File::v1(Cpuacct, "cpuacct.stat", |stats, contents| v1_accounting(&mut stats.cpu, contents)),
    File::v1(Cpu, "cpu.stat", |stats, contents| stat(&mut stats.cpu, contents)),
    File::v1(Cpu, "cpu.stat.local", |stats, contents| local_stat(&mut stats.cpu, contents)),
];

/// `cpu.stat` of both versions: v1 has the counts under the same names, the times in nanoseconds under others.
fn stat(cpu: &mut CpuStats, contents: &[u8]) {
    for (name, value) in parse::flat_keyed(contents) {
        match name {
            b"usage_usec" => cpu.usage_us = Some(value),
            b"user_usec" => cpu.user_us = Some(value),
            b"system_usec" => cpu.system_us = Some(value),
            b"nice_usec" => cpu.nice_us = Some(value),
            b"core_sched.force_idle_usec" => cpu.force_idle_us = Some(value),
            b"wait_sum" => cpu.wait_us = Some(microseconds(value)),
            b"nr_periods" => cpu.periods = Some(value),
            b"nr_throttled" => cpu.throttled = Some(value),
            b"throttled_usec" => cpu.throttled_us = Some(value),
            b"throttled_time" => cpu.throttled_us = Some(microseconds(value)),
            b"nr_bursts" => cpu.bursts = Some(value),
            b"burst_usec" => cpu.burst_us = Some(value),
            b"burst_time" => cpu.burst_us = Some(microseconds(value)),
            _ => {}
        }
    }
}

/// `cpu.stat.local` of both versions.
fn local_stat(cpu: &mut CpuStats, contents: &[u8]) {
    for (name, value) in parse::flat_keyed(contents) {
        match name {
            b"throttled_usec" => cpu.throttled_local_us = Some(value),
            b"throttled_time" => cpu.throttled_local_us = Some(microseconds(value)),
            _ => {}
        }
    }
}

/// `cpuacct.stat`, in ticks of `USER_HZ`: 100 per second on every architecture that Rust has a Linux target for.
fn v1_accounting(cpu: &mut CpuStats, contents: &[u8]) {
    const TICK_US: u64 = 10_000;
    for (name, ticks) in parse::flat_keyed(contents) {
        match name {
            b"user" => cpu.user_us = ticks.checked_mul(TICK_US),
            b"system" => cpu.system_us = ticks.checked_mul(TICK_US),
            _ => {}
        }
    }
}

const fn microseconds(nanoseconds: u64) -> u64 {
    nanoseconds / 1000
}
