//! CPUs, memory nodes, and sizes of pages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::kernel::dir::read_file;
use crate::resources::{CpuSet, HugePageSize};
use crate::{Error, Result};

/// The CPUs that are online.
pub(super) fn online_cpus() -> Result<CpuSet> {
    const FILE: &str = "/sys/devices/system/cpu/online";
    let text =
        read_file(FILE).map_err(|errno| Error::kernel("cannot tell which CPUs are online", FILE, errno))?;
    set(&text, FILE)
}

/// The memory nodes that are online. A kernel without NUMA has no such file, and node 0.
pub(super) fn online_mems() -> Result<CpuSet> {
    const FILE: &str = "/sys/devices/system/node/online";
    set(&read_file(FILE).unwrap_or_else(|_| b"0".to_vec()), FILE)
}

/// How CPUs lie together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Topology {
    /// Memory node → its CPUs; none without NUMA.
    pub(crate) nodes: BTreeMap<u32, CpuSet>,
    /// The CPUs of each core, those of one alone.
    pub(crate) cores: Vec<CpuSet>,
}

impl Topology {
    /// That of these CPUs. What the kernel does not tell, as in many a container, is left out.
    pub(crate) fn read(cpus: &CpuSet) -> Self {
        let list = |file: String| set(&read_file(&file).ok()?, &file).ok();
        let node = |node: u32| Some((node, list(format!("/sys/devices/system/node/node{node}/cpulist"))?));
        let nodes = online_mems().unwrap_or_default().iter().filter_map(node).collect();
        let mut seen = BTreeSet::new();
        let mut cores = Vec::new();
        for cpu in cpus.iter() {
            // `core_cpus_list` is its newer name (Linux 5.1).
            let core = list(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"));
            let Some(core) = core.filter(|_| !seen.contains(&cpu)) else { continue };
            seen.extend(core.iter());
            cores.push(core);
        }
        Self { nodes, cores }
    }
}

fn set(text: &[u8], file: &str) -> Result<CpuSet> {
    String::from_utf8_lossy(text).trim().parse().map_err(|error: Error| error.with_path(file))
}

/// The sizes of huge pages, smallest first.
pub(super) fn huge_page_sizes() -> Vec<HugePageSize> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let mut sizes: Vec<_> = entries.filter_map(|entry| huge_page_size(entry.file_name().to_str()?)).collect();
    sizes.sort_unstable();
    sizes
}

/// `hugepages-2048kB`
fn huge_page_size(directory: &str) -> Option<HugePageSize> {
    let kilobytes = directory.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    HugePageSize::from_kilobytes(kilobytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_huge_pages_are_named_after_their_size() {
        for (directory, name) in [
            ("hugepages-64kB", Some("64KB")),
            ("hugepages-2048kB", Some("2MB")),
            ("hugepages-1048576kB", Some("1GB")),
            ("hugepages-kB", None),
            ("hugepages-99999999999999999999kB", None),
            ("other", None),
        ] {
            let size = huge_page_size(directory).map(|size| size.to_string());
            assert_eq!(size.as_deref(), name, "{directory}");
        }
    }
}
