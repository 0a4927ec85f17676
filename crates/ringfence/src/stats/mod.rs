//! Statistics: what a cgroup uses, typed.
//!
//! An absent value (`None`, and a missing key in JSON) is one that this kernel, this cgroup version or this cgroup does
//! not have; it is never 0 instead. Sizes are in bytes, times in microseconds, and no limit is [`Limit::Max`](crate::Limit::Max), in
//! JSON `"max"`.
//!
//! Each controller's file here declares its type and, in a table, the kernel files that fill it on v1 and on v2. The
//! contents are parsed by pure functions; only [`StatsReader`] touches the kernel.
//!
//! Each file costs a system call per sample. Not read, for that reason, is what is one number for each CPU or memory
//! node (`cpuacct.usage_percpu`, `memory.numa_stat`, `hugetlb.SIZE.numa_stat`); the local events of pids, hugetlb and
//! misc; `memory.swap.high`; of v1 what v2 does not have either (`memory.soft_limit_in_bytes`, `memory.kmem.tcp.*`, the
//! highest usage with swap, the time and queue counters of BFQ) and counters of the cgroup alone where there are
//! recursive ones; and the controller `dmem`.

mod cpu;
mod cpuset;
mod file;
mod hugetlb;
mod io;
mod memory;
mod misc;
pub(crate) mod parse;
mod pids;
mod pressure;
mod rdma;
mod reader;
mod table;

#[cfg(test)]
mod fixtures;

use serde::{Deserialize, Serialize};

pub use cpu::CpuStats;
pub use cpuset::CpusetStats;
pub use hugetlb::HugetlbStats;
pub use io::{IoLatency, IoStats};
pub use memory::{MemoryEvents, MemoryStats, SwapEvents};
pub use misc::MiscStats;
pub use pids::{PidsEvents, PidsStats};
pub use pressure::{Pressure, PressureStats, Stalled};
pub use rdma::RdmaStats;
pub(crate) use reader::Source;
pub use reader::StatsReader;
pub use table::Table;

use crate::devices::DeviceNumber;
use crate::host::Version;
use file::File;

/// One sample of a cgroup's statistics. Its JSON is that of the command's `stats`, without `id` and `parts`; a key that
/// is not known is passed over when it is read, so that samples of a later version can be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// When the sample was taken: microseconds of wall-clock time since 1970-01-01 00:00 UTC, so that samples of
    /// several machines can be laid side by side. A step of the clock shows in it.
    pub at_us: u64,
    /// CPU time and throttling.
    #[serde(default, skip_serializing_if = "absent")]
    pub cpu: CpuStats,
    /// CPUs and memory nodes.
    #[serde(default, skip_serializing_if = "absent")]
    pub cpuset: CpusetStats,
    /// Memory and swap.
    #[serde(default, skip_serializing_if = "absent")]
    pub memory: MemoryStats,
    /// Block devices.
    #[serde(default, skip_serializing_if = "absent")]
    pub io: Table<DeviceNumber, IoStats>,
    /// Number of tasks.
    #[serde(default, skip_serializing_if = "absent")]
    pub pids: PidsStats,
    /// Huge pages, by page size as the kernel's files have it (`2MB`).
    #[serde(default, skip_serializing_if = "absent")]
    pub hugetlb: Table<String, HugetlbStats>,
    /// RDMA resources, by device (`mlx5_0`).
    #[serde(default, skip_serializing_if = "absent")]
    pub rdma: Table<String, RdmaStats>,
    /// Scalar resources, by name (`sev_es`).
    #[serde(default, skip_serializing_if = "absent")]
    pub misc: Table<String, MiscStats>,
    /// Time lost waiting (v2 only).
    #[serde(default, skip_serializing_if = "absent")]
    pub pressure: PressureStats,
}

/// Every kernel file that is read. Within one controller the order matters where a value is made of several files.
const FILES: [&[File]; 9] = [
    cpu::FILES,
    cpuset::FILES,
    memory::FILES,
    io::FILES,
    pids::FILES,
    hugetlb::FILES,
    rdma::FILES,
    misc::FILES,
    pressure::FILES,
];

fn files() -> impl Iterator<Item = &'static File> {
    FILES.into_iter().flatten()
}

/// The names of the files of one version, `*` in the place of a key.
#[cfg(fuzzing)]
pub(crate) fn file_names(version: Version) -> impl Iterator<Item = &'static str> {
    files().filter(move |file| file.version == version).map(|file| file.name)
}

impl Stats {
    /// Takes in the contents of one kernel file, as found in a snapshot of some machine; false if the file is none that
    /// statistics are made of. What cannot be understood is left out.
    ///
    /// Where a value is made of two files their order matters: `memory.current` before `memory.stat` for the working
    /// set; on v1 `memory.usage_in_bytes` and `memory.limit_in_bytes` before those of `memory.memsw`, `blkio.throttle`
    /// before `blkio.bfq`, and `hugetlb.SIZE.failcnt` before `hugetlb.SIZE.rsvd.failcnt`.
    pub fn record(&mut self, version: Version, file: &str, contents: &[u8]) -> bool {
        let found = files()
            .filter(|known| known.version == version)
            .find_map(|known| known.key_in(file).map(|key| (known, key)));
        if let Some((known, key)) = found {
            known.take.call(self, key, contents);
        }
        found.is_some()
    }

    /// Makes everything absent, and keeps the memory of the tables.
    pub(crate) fn clear(&mut self) {
        let Self { at_us, cpu, cpuset, memory, io, pids, hugetlb, rdma, misc, pressure } = self;
        *at_us = 0;
        *cpu = CpuStats::default();
        cpuset.clear();
        memory.clear();
        io.clear();
        *pids = PidsStats::default();
        hugetlb.clear();
        rdma.clear();
        misc.clear();
        *pressure = PressureStats::default();
    }
}

/// Whether a part has nothing to say, and so is left out of the JSON.
fn absent<T: Default + PartialEq>(part: &T) -> bool {
    *part == T::default()
}
