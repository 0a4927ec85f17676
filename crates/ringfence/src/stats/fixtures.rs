//! Contents of real kernels' files, and what becomes of them.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Stats, files};
use crate::devices::DeviceNumber;
use crate::host::Version::{self, V1, V2};
use crate::resources::Limit;

fn recorded(version: Version, files: &[(&str, &str)]) -> Stats {
    let mut stats = Stats::default();
    for (file, contents) in files {
        assert!(stats.record(version, file, contents.as_bytes()), "{file} is not known");
    }
    stats
}

/// The JSON without what is tested by itself: `at_us` and the long `memory.stat`.
fn json_of(stats: &Stats) -> Value {
    let mut json = serde_json::to_value(stats).unwrap();
    json.as_object_mut().unwrap().remove("at_us").expect("always there");
    if let Some(memory) = json.get_mut("memory") {
        memory.as_object_mut().unwrap().remove("stat");
    }
    json
}

#[test]
fn v2_on_linux_6_12_with_all_controllers() {
    let stats = recorded(
        V2,
        &[
            (
                "cpu.stat",
                "usage_usec 5973469\nuser_usec 1238559\nsystem_usec 4734909\nnice_usec 0\nnr_periods 301\n\
                 nr_throttled 299\nthrottled_usec 31913893\nnr_bursts 0\nburst_usec 0\n",
            ),
            ("memory.current", "487424\n"),
            ("memory.peak", "41943040\n"),
            ("memory.max", "41943040\n"),
            ("memory.swap.current", "0\n"),
            ("memory.swap.max", "max\n"),
            ("memory.events", "low 0\nhigh 0\nmax 477\noom 2\noom_kill 1\noom_group_kill 0\n"),
            ("memory.events.local", "low 0\nhigh 0\nmax 477\noom 2\noom_kill 0\noom_group_kill 0\n"),
            (
                "memory.stat",
                "anon 0\nfile 114688\nkernel 258048\ninactive_anon 0\nactive_anon 0\ninactive_file 8192\n\
                 active_file 106496\nunevictable 0\nslab 258416\npgscan 23969\npgfault 18449\n",
            ),
            ("io.stat", "254:0 rbytes=12374016 wbytes=84041728 rios=56 wios=184 dbytes=0 dios=0\n"),
            ("pids.current", "0\n"),
            ("pids.peak", "4\n"),
            ("pids.max", "50\n"),
            ("pids.events", "max 0\n"),
            ("rdma.current", ""),
            ("misc.current", ""),
            ("hugetlb.2MB.current", "0\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 0\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
            ("hugetlb.2MB.rsvd.max", "max\n"),
            (
                "cpu.pressure",
                "some avg10=57.09 avg60=22.94 avg300=5.69 total=17682451\n\
                 full avg10=54.95 avg60=22.28 avg300=5.54 total=17208931\n",
            ),
        ],
    );
    assert_eq!(
        json_of(&stats),
        json!({
            "cpu": {
                "usage_us": 5973469, "user_us": 1238559, "system_us": 4734909,
                "periods": 301, "throttled": 299, "throttled_us": 31913893, "bursts": 0, "burst_us": 0
            },
            "memory": {
                "current": 487424, "peak": 41943040, "limit": 41943040, "swap_current": 0, "swap_limit": "max",
                "working_set": 479232,
                "events": {"low": 0, "high": 0, "max": 477, "oom": 2, "oom_kill": 1, "oom_group_kill": 0},
                "events_local": {"low": 0, "high": 0, "max": 477, "oom": 2, "oom_kill": 0, "oom_group_kill": 0}
            },
            "io": {"254:0": {
                "read_bytes": 12374016, "write_bytes": 84041728, "reads": 56, "writes": 184,
                "discard_bytes": 0, "discards": 0
            }},
            "pids": {"current": 0, "peak": 4, "limit": 50, "events": {"max": 0}},
            "hugetlb": {"2MB": {"current": 0, "limit": "max", "refused": 0, "reserved": 0, "reserved_limit": "max"}},
            "pressure": {"cpu": {
                "some": {"avg10": 57.09, "avg60": 22.94, "avg300": 5.69, "total_us": 17682451},
                "full": {"avg10": 54.95, "avg60": 22.28, "avg300": 5.54, "total_us": 17208931}
            }}
        })
    );
    let names: Vec<_> = stats.memory.stat.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), 11);
    assert!(names.is_sorted());
    assert_eq!(stats.memory.stat.get("slab"), Some(&258416));
}

#[test]
fn v1_on_linux_6_1_after_throttling_swapping_and_an_oom_kill() {
    let stats = recorded(
        V1,
        &[
            (
                "cpu.stat",
                "nr_periods 413\nnr_throttled 411\nthrottled_time 56973235509\nnr_bursts 2\nburst_time 1500999\n",
            ),
            ("cpuacct.usage", "8176250240\n"),
            ("cpuacct.stat", "user 188\nsystem 629\n"),
            ("pids.current", "0\n"),
            ("pids.max", "max\n"),
            ("memory.usage_in_bytes", "434176\n"),
            ("memory.max_usage_in_bytes", "41943040\n"),
            ("memory.limit_in_bytes", "41943040\n"),
            ("memory.memsw.usage_in_bytes", "647168\n"),
            ("memory.memsw.limit_in_bytes", "62914560\n"),
            ("memory.failcnt", "11054\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            (
                "memory.stat",
                "cache 106496\nswap 212992\ninactive_file 0\ntotal_cache 106496\ntotal_inactive_file 6496\n",
            ),
            (
                "blkio.throttle.io_service_bytes_recursive",
                "(unknown) Read 4096\n(unknown) Total 4096\n254:32 Read 0\n254:32 Write 0\n254:32 Total 0\n\
                 254:0 Read 5242880\n254:0 Write 0\n254:0 Sync 5242880\n254:0 Async 0\n254:0 Discard 0\n\
                 254:0 Total 5242880\nTotal 5242880\n",
            ),
            (
                "blkio.throttle.io_serviced_recursive",
                "254:32 Read 0\n254:32 Write 0\n254:32 Sync 0\n254:32 Async 0\n254:32 Discard 0\n254:32 Total 0\n\
                 254:0 Read 5\n254:0 Write 0\n254:0 Sync 5\n254:0 Async 0\n254:0 Discard 0\n254:0 Total 5\nTotal 5\n",
            ),
            ("hugetlb.1GB.usage_in_bytes", "0\n"),
            ("hugetlb.1GB.limit_in_bytes", "9223372035781033984\n"),
            ("hugetlb.2MB.limit_in_bytes", "9223372036852678656\n"),
            ("hugetlb.2MB.rsvd.limit_in_bytes", "4194304\n"),
        ],
    );
    assert_eq!(
        json_of(&stats),
        json!({
            "cpu": {
                "usage_us": 8176250, "user_us": 1880000, "system_us": 6290000,
                "periods": 413, "throttled": 411, "throttled_us": 56973235, "bursts": 2, "burst_us": 1500
            },
            "memory": {
                "current": 434176, "peak": 41943040, "limit": 41943040,
                "swap_current": 212992, "swap_limit": 20971520, "working_set": 427680,
                "events": {"max": 11054, "oom_kill": 1}
            },
            "io": {"254:0": {
                "read_bytes": 5242880, "write_bytes": 0, "reads": 5, "writes": 0, "discard_bytes": 0, "discards": 0
            }},
            "pids": {"current": 0, "limit": "max"},
            "hugetlb": {"1GB": {"current": 0, "limit": "max"}, "2MB": {"limit": "max", "reserved_limit": 4194304}}
        })
    );
}

#[test]
fn what_a_kernel_does_not_have_is_absent_and_not_0() {
    let table: [(Version, &str, &str, Value); 8] = [
        // Linux 5.10: no bursts, no memory.peak.
        (
            V2,
            "cpu.stat",
            "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 1\nnr_throttled 0\nthrottled_usec 0\n",
            json!({"cpu": {"usage_us": 9, "user_us": 5, "system_us": 4, "periods": 1, "throttled": 0, "throttled_us": 0}}),
        ),
        (
            V1,
            "cpu.stat",
            "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n",
            json!({"cpu": {"periods": 0, "throttled": 0, "throttled_us": 0}}),
        ),
        // Linux 6.18, a cgroup without the cpu controller.
        (
            V2,
            "cpu.stat",
            "usage_usec 229699995\nuser_usec 158692858\nsystem_usec 71007137\nnice_usec 0\n",
            json!({"cpu": {"usage_us": 229699995, "user_us": 158692858, "system_us": 71007137}}),
        ),
        // Linux 4.12: oom_control without a count.
        (V1, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", json!({})),
        // Linux 5.10: no oom_group_kill.
        (
            V2,
            "memory.events",
            "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n",
            json!({"memory": {"events": {"low": 0, "high": 0, "max": 0, "oom": 0, "oom_kill": 0}}}),
        ),
        // Linux 5.10: the CPU's pressure has no "full".
        (
            V2,
            "cpu.pressure",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
            json!({"pressure": {"cpu": {"some": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total_us": 0}}}}),
        ),
        // Linux 6.1, a device without a throttle: nothing was counted.
        (
            V1,
            "blkio.throttle.io_serviced_recursive",
            "254:0 Read 0\n254:0 Write 0\n254:0 Total 0\nTotal 0\n",
            json!({}),
        ),
        // The working set is not made of one of its two parts.
        (V2, "memory.stat", "inactive_file 8192\n", json!({"memory": {}})),
    ];
    for (version, file, contents, expected) in table {
        assert_eq!(json_of(&recorded(version, &[(file, contents)])), expected, "{file}");
    }
}

#[test]
fn v1_swap_is_what_memsw_has_beyond_memory() {
    const NONE: &str = "9223372036854771712\n";
    let table = [
        ("104857600\n", "157286400\n", Some(Limit::Value(52428800))),
        ("104857600\n", "104857600\n", Some(Limit::Value(0))),
        ("104857600\n", NONE, Some(Limit::Max)),
        (NONE, NONE, Some(Limit::Max)),
        ("?\n", NONE, None),
        ("104857600\n", "?\n", None),
    ];
    for (memory, memsw, expected) in table {
        let stats =
            recorded(V1, &[("memory.limit_in_bytes", memory), ("memory.memsw.limit_in_bytes", memsw)]);
        assert_eq!(stats.memory.swap_limit, expected, "{memory} {memsw}");
    }

    // Read a moment later, usage can be below what it was.
    let stats =
        recorded(V1, &[("memory.usage_in_bytes", "8192\n"), ("memory.memsw.usage_in_bytes", "4096\n")]);
    assert_eq!(stats.memory.swap_current, Some(0));
}

#[test]
fn the_working_set_is_never_negative() {
    let stats = recorded(V2, &[("memory.current", "4096\n"), ("memory.stat", "inactive_file 8192\n")]);
    assert_eq!(stats.memory.working_set, Some(0));
}

#[test]
fn the_numbers_before_a_counter_are_its_device() {
    // Linux 5.15 prints devices without counters, and no newline after them; 6.8 paths of multipath NVMe devices. The
    // device 8:16 has io.cost on.
    let stats = recorded(
        V2,
        &[(
            "io.stat",
            "(unknown) rbytes=8 wbytes=8\n\
             7:1 7:0 254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n\
             8:16 rbytes=9 cost.vrate=100.00 cost.usage=77 cost.wait=1\n\
             8:32 \n4294967296:0 rbytes=1\nnone rbytes=1\n8:48 rbytes=x wbytes=4\n",
        )],
    );
    assert_eq!(
        json_of(&stats)["io"],
        json!({
            "8:16": {"read_bytes": 9, "cost_usage_us": 77},
            "8:48": {"write_bytes": 4},
            "254:0": {
                "read_bytes": 1, "write_bytes": 2, "reads": 3, "writes": 4, "discard_bytes": 5, "discards": 6
            }
        })
    );
    let devices: Vec<_> = stats.io.iter().map(|(device, _)| device.to_string()).collect();
    assert_eq!(devices, ["8:16", "8:48", "254:0"], "by number, not by text");
    assert!(stats.io.get(&DeviceNumber { major: 7, minor: 0 }).is_none());
}

#[test]
fn what_bfq_counts_is_not_replaced_by_a_throttle_that_is_not_there() {
    let mut stats = Stats::default();
    let contents = |read: u64| format!("8:0 Read {read}\n8:0 Write 0\n8:0 Total {read}\nTotal {read}\n");
    // In the order in which a reader has them.
    for file in files().filter(|file| file.version == V1 && file.name.starts_with("blkio.")) {
        let read = if file.name.contains("bfq") { 4096 } else { 0 };
        assert!(stats.record(V1, file.name, contents(read).as_bytes()));
    }
    assert_eq!(stats.io.get(&DeviceNumber { major: 8, minor: 0 }).unwrap().read_bytes, Some(4096));
}

#[test]
fn resources_with_names_of_their_own_are_listed_under_them() {
    // From the kernel's documentation of cgroup v2.
    let stats = recorded(
        V2,
        &[
            ("rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\nocrdma1 hca_handle=1 hca_object=0\n"),
            ("rdma.max", "mlx4_0 hca_handle=2 hca_object=2000\nocrdma1 hca_handle=3 hca_object=max\n"),
            ("misc.current", "sev 3\nsev_es 0\n"),
            ("misc.peak", "sev 10\nsev_es 0\n"),
            ("misc.max", "sev max\nsev_es 4\n"),
            ("misc.events", "sev.max 2\nsev_es.max 0\n"),
        ],
    );
    assert_eq!(
        json_of(&stats),
        json!({
            "rdma": {
                "mlx4_0": {"handles": 2, "handles_limit": 2, "objects": 2000, "objects_limit": 2000},
                "ocrdma1": {"handles": 1, "handles_limit": 3, "objects": 0, "objects_limit": "max"}
            },
            "misc": {
                "sev": {"current": 3, "peak": 10, "limit": "max", "refused": 2},
                "sev_es": {"current": 0, "peak": 0, "limit": 4, "refused": 0}
            }
        })
    );
}

#[test]
fn a_file_that_statistics_are_not_made_of_is_not_taken() {
    let table = [
        (V2, "memory.usage_in_bytes"),
        (V1, "memory.current"),
        (V2, "cpu.max"),
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

/// What parsers look at, in any order, and bytes that they do not expect.
fn kernel_words() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        proptest::sample::select(vec![
            " ",
            "\n",
            "=",
            ":",
            ".",
            "\0",
            "max",
            "some",
            "full",
            "avg10=",
            "total=",
            "rbytes=",
            "8:0",
            "Read",
            "Total",
            "hca_handle=",
            "inactive_file",
            "total_inactive_file",
            "user",
            "usage_usec",
            "throttled_time",
            "oom_kill",
            "18446744073709551615",
            "18446744073709551616",
            "-1",
            "1e999",
            "nan",
            "inf",
            "\u{e9}",
        ])
        .prop_map(|word| word.as_bytes().to_vec()),
        any::<u64>().prop_map(|number| number.to_string().into_bytes()),
        proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn no_contents_make_a_parser_panic(
        contents in prop_oneof![kernel_words(), proptest::collection::vec(any::<u8>(), 0..300)],
    ) {
        let mut stats = Stats::default();
        for file in files() {
            stats.record(file.version, &file.name.replace('*', "2MB"), &contents);
        }
        serde_json::to_string(&stats).expect("there is JSON for every sample");
    }

    #[test]
    fn rubbish_between_lines_hides_none_of_them(rubbish in "[^\n]{0,20}") {
        prop_assume!(!rubbish.trim_start().starts_with("user_usec") && !rubbish.trim_start().starts_with("system_usec"));
        let contents = format!("user_usec 1\n{rubbish}\nsystem_usec 2\n");
        let stats = recorded(V2, &[("cpu.stat", contents.as_str())]);
        prop_assert_eq!((stats.cpu.user_us, stats.cpu.system_us), (Some(1), Some(2)));
    }
}
