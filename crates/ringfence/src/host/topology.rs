//! CPUs, memory nodes, and sizes of pages.

use std::fs;

use super::detect::read_file;
use crate::resources::CpuSet;
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

fn set(text: &[u8], file: &str) -> Result<CpuSet> {
    String::from_utf8_lossy(text).trim().parse().map_err(|error: Error| error.with_path(file))
}

/// The sizes of huge pages, smallest first, as the files of the hugetlb controller have them.
pub(super) fn huge_page_sizes() -> Vec<String> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let mut sizes: Vec<u64> = entries.filter_map(|entry| kilobytes(entry.file_name().to_str()?)).collect();
    sizes.sort_unstable();
    sizes.into_iter().map(huge_page_name).collect()
}

/// `hugepages-2048kB`
fn kilobytes(directory: &str) -> Option<u64> {
    directory.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()
}

/// `2MB`: the largest unit that the kernel's `mem_fmt` would take.
fn huge_page_name(kilobytes: u64) -> String {
    match kilobytes {
        0x10_0000.. => format!("{}GB", kilobytes >> 20),
        0x400.. => format!("{}MB", kilobytes >> 10),
        _ => format!("{kilobytes}KB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_named_as_the_controller_names_its_files() {
        for (directory, name) in [
            ("hugepages-64kB", Some("64KB")),
            ("hugepages-2048kB", Some("2MB")),
            ("hugepages-32768kB", Some("32MB")),
            ("hugepages-1048576kB", Some("1GB")),
            ("hugepages-16777216kB", Some("16GB")),
            ("hugepages-kB", None),
            ("hugepages-99999999999999999999kB", None),
            ("other", None),
        ] {
            assert_eq!(kilobytes(directory).map(huge_page_name).as_deref(), name, "{directory}");
        }
    }
}
