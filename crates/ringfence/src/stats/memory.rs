//! Memory and swap: the files of `memory`.

use serde::{Deserialize, Serialize};

use super::file::File;
use super::{Table, absent, parse};
use crate::host::Controller::Memory;
use crate::resources::Limit;

/// Memory and swap, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Memory in use, page cache included: `memory.current`; v1: `memory.usage_in_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
    /// The most that was ever in use: `memory.peak`, since Linux 5.19; v1: `memory.max_usage_in_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak: Option<u64>,
    /// The cgroup's own limit (an ancestor's can be lower): `memory.max`; v1: `memory.limit_in_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// Above this the cgroup is throttled and reclaimed from: `memory.high`; v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<Limit>,
    /// What reclaim spares as long as it finds other memory: `memory.low`; v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<Limit>,
    /// What reclaim never takes: `memory.min`; v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<Limit>,
    /// Of the memory in use the kernel's own, such as stacks and page tables: `kernel` of `memory.stat`, since Linux
    /// 5.18; v1: `memory.kmem.usage_in_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<u64>,
    /// Swap in use: `memory.swap.current`; v1: `memory.memsw.usage_in_bytes` less the memory in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_current: Option<u64>,
    /// The most swap that was ever in use: `memory.swap.peak`, since Linux 6.5; v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_peak: Option<u64>,
    /// The limit of swap alone: `memory.swap.max`; v1: `memory.memsw.limit_in_bytes` less the memory limit, and
    /// [`Limit::Max`] unless both are finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_limit: Option<Limit>,
    /// Compressed swap in memory: `memory.zswap.current`, since Linux 5.19; v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zswap_current: Option<u64>,
    /// The limit of compressed swap: `memory.zswap.max`, since Linux 5.19; v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zswap_limit: Option<Limit>,
    /// The memory in use less the page cache that nothing used lately: what cannot be reclaimed cheaply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_set: Option<u64>,
    /// What happened in this cgroup and below: `memory.events`.
    #[serde(skip_serializing_if = "absent")]
    pub events: MemoryEvents,
    /// What happened in this cgroup alone: `memory.events.local`, since Linux 5.2; v2 only. `oom_kill` is where the
    /// victim lived; `oom` and `max` are where the limit was.
    #[serde(skip_serializing_if = "absent")]
    pub events_local: MemoryEvents,
    /// What happened to the swap of this cgroup and those below: `memory.swap.events`; v2 only.
    #[serde(skip_serializing_if = "absent")]
    pub swap_events: SwapEvents,
    /// Whether tasks wait for memory now, since the cgroup is at its limit and its OOM killer is off: `under_oom` of
    /// `memory.oom_control`; v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub under_oom: Option<bool>,
    /// `memory.stat`, whole and under the kernel's names. Most are bytes, the others (`pgfault`, `workingset_*`, …)
    /// events.
    #[serde(skip_serializing_if = "absent")]
    pub stat: Table<String, u64>,
}

/// How often something happened to a cgroup's memory since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MemoryEvents {
    /// Reclaimed although below `memory.low`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<u64>,
    /// Throttled and reclaimed for being above `memory.high`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<u64>,
    /// About to go above the limit; v1: `memory.failcnt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// At the limit, and reclaim did not help. Not a kill yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom: Option<u64>,
    /// Processes killed by any OOM killer; v1: from `memory.oom_control`, since Linux 4.13, of this cgroup alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    /// Times that the cgroup was killed as a whole (`memory.oom.group`), since Linux 5.17.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_group_kill: Option<u64>,
    /// Network sockets throttled for the cgroup's memory, since Linux 6.19.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sock_throttled: Option<u64>,
}

/// How often something happened to a cgroup's swap since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SwapEvents {
    /// Above `memory.swap.high`, since Linux 5.8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<u64>,
    /// About to go above the limit, and not swapped out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// Not swapped out: the limit, or no swap left on the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail: Option<u64>,
}

/// `memory.stat` comes after what is in use, and v1's `memsw` files after those without swap: the difference of each
/// pair is taken.
pub(super) const FILES: &[File] = &[
    File::v2(Memory, "memory.current", |stats, contents| stats.memory.current = parse::value(contents)),
    File::v2(Memory, "memory.peak", |stats, contents| stats.memory.peak = parse::value(contents)),
    File::v2(Memory, "memory.max", |stats, contents| stats.memory.limit = parse::limit(contents)),
    File::v2(Memory, "memory.high", |stats, contents| stats.memory.high = parse::limit(contents)),
    File::v2(Memory, "memory.low", |stats, contents| stats.memory.low = parse::limit(contents)),
    File::v2(Memory, "memory.min", |stats, contents| stats.memory.min = parse::limit(contents)),
    File::v2(Memory, "memory.swap.current", |stats, contents| {
        stats.memory.swap_current = parse::value(contents)
    }),
    File::v2(Memory, "memory.swap.peak", |stats, contents| stats.memory.swap_peak = parse::value(contents)),
    File::v2(Memory, "memory.swap.max", |stats, contents| stats.memory.swap_limit = parse::limit(contents)),
    File::v2(Memory, "memory.swap.events", |stats, contents| {
        stats.memory.swap_events = swap_events(contents);
    }),
    File::v2(Memory, "memory.zswap.current", |stats, contents| {
        stats.memory.zswap_current = parse::value(contents)
    }),
    File::v2(Memory, "memory.zswap.max", |stats, contents| stats.memory.zswap_limit = parse::limit(contents)),
    File::v2(Memory, "memory.events", |stats, contents| stats.memory.events = events(contents)),
    File::v2(Memory, "memory.events.local", |stats, contents| stats.memory.events_local = events(contents)),
    File::v2(Memory, "memory.stat", |stats, contents| {
        stats.memory.take_stat(contents, "inactive_file");
        stats.memory.kernel = stats.memory.stat.get("kernel").copied();
    }),
    File::v1(Memory, "memory.usage_in_bytes", |stats, contents| {
        stats.memory.current = parse::value(contents)
    }),
    File::v1(Memory, "memory.max_usage_in_bytes", |stats, contents| {
        stats.memory.peak = parse::value(contents)
    }),
    File::v1(Memory, "memory.limit_in_bytes", |stats, contents| {
        stats.memory.limit = parse::bytes_limit(contents)
    }),
    File::v1(Memory, "memory.kmem.usage_in_bytes", |stats, contents| {
        stats.memory.kernel = parse::value(contents)
    }),
    File::v1(Memory, "memory.memsw.usage_in_bytes", |stats, contents| {
        stats.memory.swap_current = difference(parse::value(contents), stats.memory.current);
    }),
    File::v1(Memory, "memory.memsw.limit_in_bytes", |stats, contents| {
        stats.memory.swap_limit = v1_swap_limit(parse::bytes_limit(contents), stats.memory.limit);
    }),
    File::v1(Memory, "memory.failcnt", |stats, contents| stats.memory.events.max = parse::value(contents)),
    File::v1(Memory, "memory.oom_control", |stats, contents| {
        stats.memory.events.oom_kill = parse::value_of(contents, "oom_kill");
        stats.memory.under_oom = parse::value_of(contents, "under_oom").map(|under_oom| under_oom != 0);
    }),
    File::v1(Memory, "memory.stat", |stats, contents| {
        stats.memory.take_stat(contents, "total_inactive_file")
    }),
];

impl MemoryStats {
    pub(super) fn clear(&mut self) {
        let mut stat = std::mem::take(&mut self.stat);
        stat.clear();
        *self = Self { stat, ..Self::default() };
    }

    /// `inactive_file` is the name of the inactive page cache of the cgroup and those below it.
    fn take_stat(&mut self, contents: &[u8], inactive_file: &str) {
        self.stat.fill(contents);
        self.working_set = difference(self.current, self.stat.get(inactive_file).copied());
    }
}

fn events(contents: &[u8]) -> MemoryEvents {
    let mut events = MemoryEvents::default();
    for (name, count) in parse::flat_keyed(contents) {
        match name {
            b"low" => events.low = Some(count),
            b"high" => events.high = Some(count),
            b"max" => events.max = Some(count),
            b"oom" => events.oom = Some(count),
            b"oom_kill" => events.oom_kill = Some(count),
            b"oom_group_kill" => events.oom_group_kill = Some(count),
            b"sock_throttled" => events.sock_throttled = Some(count),
            _ => {}
        }
    }
    events
}

fn swap_events(contents: &[u8]) -> SwapEvents {
    let mut events = SwapEvents::default();
    for (name, count) in parse::flat_keyed(contents) {
        match name {
            b"high" => events.high = Some(count),
            b"max" => events.max = Some(count),
            b"fail" => events.fail = Some(count),
            _ => {}
        }
    }
    events
}

/// The two were not read at the same instant: what would be negative is 0.
fn difference(from: Option<u64>, less: Option<u64>) -> Option<u64> {
    Some(from?.saturating_sub(less?))
}

/// What swap has left of v1's common limit of memory and swap.
fn v1_swap_limit(together: Option<Limit>, memory: Option<Limit>) -> Option<Limit> {
    Some(match (together?, memory?) {
        (Limit::Value(together), Limit::Value(memory)) => Limit::Value(together.saturating_sub(memory)),
        _ => Limit::Max,
    })
}
