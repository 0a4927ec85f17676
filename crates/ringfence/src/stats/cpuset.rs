//! CPUs and memory nodes: the effective sets of `cpuset`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::file::File;
use crate::host::Controller::Cpuset;
use crate::resources::CpuSet;

/// What the cgroup's tasks may run on, as the kernel has it: what was asked for, less what an ancestor withholds and
/// what is offline.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct CpusetStats {
    /// The CPUs: `cpuset.cpus.effective`; v1: `cpuset.effective_cpus`, empty until CPUs are set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<CpuSet>,
    /// The memory nodes: `cpuset.mems.effective`; v1: `cpuset.effective_mems`, empty until nodes are set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mems: Option<CpuSet>,
    #[serde(skip)]
    spare: Spare,
}

pub(super) const FILES: &[File] = &[
    File::v2(Cpuset, "cpuset.cpus.effective", |stats, contents| cpus(&mut stats.cpuset, contents)),
    File::v2(Cpuset, "cpuset.mems.effective", |stats, contents| mems(&mut stats.cpuset, contents)),
    File::v1(Cpuset, "cpuset.effective_cpus", |stats, contents| cpus(&mut stats.cpuset, contents)),
    File::v1(Cpuset, "cpuset.effective_mems", |stats, contents| mems(&mut stats.cpuset, contents)),
];

impl CpusetStats {
    /// Makes both absent, and keeps their memory for the next sample.
    pub(super) fn clear(&mut self) {
        let Self { cpus, mems, spare } = self;
        spare.cpus = cpus.take().or_else(|| spare.cpus.take());
        spare.mems = mems.take().or_else(|| spare.mems.take());
    }
}

fn cpus(cpuset: &mut CpusetStats, contents: &[u8]) {
    fill(&mut cpuset.cpus, &mut cpuset.spare.cpus, contents);
}

fn mems(cpuset: &mut CpusetStats, contents: &[u8]) {
    fill(&mut cpuset.mems, &mut cpuset.spare.mems, contents);
}

/// A set that cannot be understood is kept for its memory only.
fn fill(set: &mut Option<CpuSet>, spare: &mut Option<CpuSet>, contents: &[u8]) {
    let mut filled = set.take().or_else(|| spare.take()).unwrap_or_default();
    let is_list = std::str::from_utf8(contents).is_ok_and(|list| filled.refill(list));
    *(if is_list { set } else { spare }) = Some(filled);
}

/// Memory of sets that are not there now; nothing that anyone could see.
#[derive(Clone, Default)]
struct Spare {
    cpus: Option<CpuSet>,
    mems: Option<CpuSet>,
}

impl PartialEq for Spare {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Spare {}

impl fmt::Debug for Spare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}
