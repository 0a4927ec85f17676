//! Contents of real kernels' files, and what becomes of them. Each says which kernel it is of, as far as that is told, and
//! where it was found; "read" means read there while these tests were written.

mod cpu;
mod hugetlb;
mod io;
mod json;
mod memory;
mod named;
mod pressure;
mod rubbish;
mod whole;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Stats, files};
use crate::host::Version::{self, V1, V2};

fn recorded(version: Version, files: &[(&str, &str)]) -> Stats {
    let mut stats = Stats::default();
    for (file, contents) in files {
        assert!(stats.record(version, file, contents.as_bytes()), "{file} is not known");
    }
    stats
}

/// The JSON without `at_us`, which is 0. Whatever is looked at also comes back from it.
fn json_of(stats: &Stats) -> Value {
    let mut json = serde_json::to_value(stats).unwrap();
    assert_eq!(&Stats::deserialize(&json).unwrap(), stats);
    json.as_object_mut().unwrap().remove("at_us").expect("always there");
    json
}

/// One file, and the statistics that it alone makes.
type Fixture = (Version, &'static str, &'static str, Value);

fn check<const N: usize>(fixtures: [Fixture; N]) {
    for (version, file, contents, expected) in fixtures {
        assert_eq!(json_of(&recorded(version, &[(file, contents)])), expected, "{file}: {contents}");
    }
}

#[test]
fn a_file_that_statistics_are_not_made_of_is_not_taken() {
    let table = [
        (V2, "memory.usage_in_bytes"),
        (V1, "memory.current"),
        (V2, "cpu.max"),
        (V2, "cpuset.effective_cpus"),
        (V2, "hugetlb.max"),
        (V2, "hugetlb..max"),
        (V2, "hugetlb.2MB.numa_stat"),
        (V2, ""),
    ];
    for (version, file) in table {
        let mut stats = Stats::default();
        assert!(!stats.record(version, file, b"1\n"), "{file}");
        assert_eq!(stats, Stats::default());
    }
}
