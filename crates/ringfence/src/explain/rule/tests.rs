use serde_json::{Value as Json, json};

use super::*;
use crate::host::Version::{V1, V2};

/// Levels `/`, `/a`, `/a/b`, …, each with the contents of its files; `-` is a file that is not there.
fn levels<const N: usize>(files: &[[&str; N]]) -> Vec<Contents> {
    let paths = ["/", "/a", "/a/b", "/a/b/c"];
    let contents = |file: &&str| (*file != "-").then(|| file.as_bytes().to_vec());
    let level = |(path, files): (&&str, &[&str; N])| Contents {
        path: (*path).to_owned(),
        files: files.iter().map(contents).collect(),
    };
    paths.iter().zip(files).map(level).collect()
}

fn answer<const N: usize>(key: &str, version: Version, files: &[[&str; N]]) -> Answer {
    decide(&key.parse().unwrap(), version, &levels(files)).unwrap()
}

/// What is effective, what decides it, and what the levels have, as in JSON.
#[track_caller]
fn assert_answer<const N: usize>(key: &str, version: Version, files: &[[&str; N]], expected: [Json; 3]) {
    let Answer { effective, decided_by, own } = answer(key, version, files);
    let found = [json!(effective), json!(decided_by), json!(own)];
    assert_eq!(found, expected, "{key} {version:?} {files:?}");
}

#[test]
fn the_least_limit_decides_and_of_equal_ones_the_nearest() {
    let table: &[(&[[&str; 1]], [Json; 3])] = &[
        (&[["-"], ["max\n"], ["4096\n"]], [json!(4096), json!("/a/b"), json!([null, "max", 4096])]),
        (&[["-"], ["4096\n"], ["max\n"]], [json!(4096), json!("/a"), json!([null, 4096, "max"])]),
        (&[["-"], ["4096\n"], ["8192\n"]], [json!(4096), json!("/a"), json!([null, 4096, 8192])]),
        (&[["-"], ["4096\n"], ["4096\n"]], [json!(4096), json!("/a/b"), json!([null, 4096, 4096])]),
        (&[["-"], ["4096\n"], ["-"]], [json!(4096), json!("/a"), json!([null, 4096, null])]),
        (&[["-"], ["0\n"], ["1\n"]], [json!(0), json!("/a"), json!([null, 0, 1])]),
        (&[["-"], ["max\n"], ["max\n"]], [json!("max"), json!(null), json!([null, "max", "max"])]),
        (&[["-"], ["-"]], [json!("max"), json!(null), json!([null, null])]),
        // The root of a cgroup namespace.
        (&[["4096\n"], ["max\n"]], [json!(4096), json!("/"), json!([4096, "max"])]),
    ];
    for (files, expected) in table {
        for key in ["memory", "memory.high", "memory.swap", "pids", "hugepageLimits.2MB"] {
            assert_answer(key, V2, files, expected.clone());
        }
        assert_answer("pids", V1, files, expected.clone());
    }
}

#[test]
fn the_numbers_that_mean_no_limit_are_max() {
    for (key, version, unlimited) in [
        ("memory", V1, "9223372036854771712\n"),
        ("memory.swap", V1, "9223372036854710272\n"),
        ("hugepageLimits.2MB", V1, "9223372036852678656\n"),
        ("hugepageLimits.1GB", V1, "9223372035781033984\n"),
        // Linux 6.18, of a new cgroup.
        ("hugepageLimits.2MB", V2, "9223372036854771712\n"),
    ] {
        let files = [[unlimited], [unlimited], ["1073741824\n"]];
        assert_answer(key, version, &files, [json!(1 << 30), json!("/a/b"), json!(["max", "max", 1 << 30])]);
        assert_answer(key, version, &files[..2], [json!("max"), json!(null), json!(["max", "max"])]);
    }
}

#[test]
fn the_least_quota_in_proportion_to_its_period_decides() {
    const UNLIMITED: &str = "max 100000\n";
    let own = |second: &str, third: &str| json!([null, second, third]);
    let table: &[(&[[&str; 1]], [Json; 3])] = &[
        (
            &[["-"], ["200000 100000\n"], ["50000 100000\n"]],
            [json!("50000 100000"), json!("/a/b"), own("200000 100000", "50000 100000")],
        ),
        (
            &[["-"], ["5000 100000\n"], ["4000 10000\n"]],
            [json!("5000 100000"), json!("/a"), own("5000 100000", "4000 10000")],
        ),
        (
            &[["-"], ["50000 100000\n"], ["5000 10000\n"]],
            [json!("5000 10000"), json!("/a/b"), own("50000 100000", "5000 10000")],
        ),
        (
            &[["-"], ["50000 100000\n"], [UNLIMITED]],
            [json!("50000 100000"), json!("/a"), own("50000 100000", "max 100000")],
        ),
        (
            &[["-"], [UNLIMITED], ["max 20000\n"]],
            [json!("max 20000"), json!(null), own("max 100000", "max 20000")],
        ),
        (&[["-"], ["-"]], [json!("max 100000"), json!(null), json!([null, null])]),
    ];
    for (files, expected) in table {
        assert_answer("cpu", V2, files, expected.clone());
    }
    let v1 = [["-1\n", "100000\n"], ["150000\n", "100000\n"], ["-1\n", "50000\n"]];
    let own = json!(["max 100000", "150000 100000", "max 50000"]);
    assert_answer("cpu", V1, &v1, [json!("150000 100000"), json!("/a"), own]);
    let own = json!(["max 100000"]);
    assert_answer("cpu", V1, &v1[..1], [json!("max 100000"), json!(null), own]);
}

#[test]
fn the_level_from_which_on_a_set_is_effective_decides() {
    let table: &[(&[[&str; 1]], [Json; 3])] = &[
        (&[["0-3\n"], ["0-1\n"], ["0\n"]], [json!("0"), json!("/a/b"), json!(["0-3", "0-1", "0"])]),
        (&[["0-3\n"], ["0-1\n"], ["0-1\n"]], [json!("0-1"), json!("/a"), json!(["0-3", "0-1", "0-1"])]),
        (&[["0-3\n"], ["0-3\n"], ["0-3\n"]], [json!("0-3"), json!("/"), json!(["0-3", "0-3", "0-3"])]),
        (&[["0-3\n"], ["1\n"], ["-"]], [json!("1"), json!("/a"), json!(["0-3", "1", null])]),
        (&[["0-3\n"], ["-"], ["-"]], [json!("0-3"), json!("/"), json!(["0-3", null, null])]),
        // The same set in two spellings, and a partition that has what its parent gave away.
        (&[["0-3\n"], ["0,1,2,3\n"]], [json!("0-3"), json!("/"), json!(["0-3", "0-3"])]),
        (&[["0-3\n"], ["0-1\n"], ["2-3\n"]], [json!("2-3"), json!("/a/b"), json!(["0-3", "0-1", "2-3"])]),
        // v1: nobody has written the set of a new cgroup yet.
        (&[["0-3\n"], ["\n"]], [json!(""), json!("/a"), json!(["0-3", ""])]),
    ];
    for (files, expected) in table {
        for key in ["cpuset", "cpu.mems"] {
            assert_answer(key, V1, files, expected.clone());
            assert_answer(key, V2, files, expected.clone());
        }
    }
}

#[test]
fn the_least_throttle_of_each_device_and_kind_decides_on_v2() {
    let files = [
        ["-"],
        ["8:0 rbps=1048576 wbps=max riops=max wiops=max\n8:16 rbps=max wbps=5 riops=7 wiops=max\n"],
        ["8:0 rbps=2097152 wbps=max riops=100 wiops=max\n8:16 rbps=max wbps=5 riops=8 wiops=max\n"],
    ];
    let own = json!([
        null,
        {"8:0": {"rbps": 1048576}, "8:16": {"wbps": 5, "riops": 7}},
        {"8:0": {"rbps": 2097152, "riops": 100}, "8:16": {"wbps": 5, "riops": 8}},
    ]);
    let effective = json!({"8:0": {"rbps": 1048576, "riops": 100}, "8:16": {"wbps": 5, "riops": 7}});
    let decided_by = json!({"8:0": {"rbps": "/a", "riops": "/a/b"}, "8:16": {"wbps": "/a/b", "riops": "/a"}});
    assert_answer("io", V2, &files, [effective, decided_by, own]);

    let own = json!([null, {"8:16": {"riops": 7}}, {"8:0": {"riops": 100}, "8:16": {"riops": 8}}]);
    let effective = json!({"8:0": {"riops": 100}, "8:16": {"riops": 7}});
    let decided_by = json!({"8:0": {"riops": "/a/b"}, "8:16": {"riops": "/a"}});
    assert_answer("blkio.throttle.read_iops_device", V2, &files, [effective, decided_by, own]);
    assert_answer("io", V2, &[["-"], ["\n"]], [json!({}), json!(null), json!([null, {}])]);
}

#[test]
fn the_throttles_of_ancestors_count_for_nothing_on_v1() {
    let files = [
        ["", "8:0 5\n", "", ""],
        ["8:0 1048576\n8:16 7\n", "", "8:0 3\n", ""],
        ["8:0 2097152\n", "", "", "8:16 9\n"],
    ];
    let own = json!([
        {"8:0": {"wbps": 5}},
        {"8:0": {"rbps": 1048576, "riops": 3}, "8:16": {"rbps": 7}},
        {"8:0": {"rbps": 2097152}, "8:16": {"wiops": 9}},
    ]);
    let effective = json!({"8:0": {"rbps": 2097152}, "8:16": {"wiops": 9}});
    let decided_by = json!({"8:0": {"rbps": "/a/b"}, "8:16": {"wiops": "/a/b"}});
    assert_answer("io.max", V1, &files, [effective, decided_by, own]);

    let files = [["8:0 5\n"], [""]];
    let own = json!([{"8:0": {"wbps": 5}}, {}]);
    assert_answer("blkio.throttle.write_bps_device", V1, &files, [json!({}), json!(null), own]);
}

#[test]
fn lines_of_throttles_without_numbers_of_a_device_hide_nothing() {
    let lines = "(unknown) rbps=1\n8:0 rbps=x wbps=2 new=3 riops\nrbps=4\n\n8:16 rbps=18446744073709551616\n";
    let effective = json!({"8:0": {"wbps": 2}});
    let decided_by = json!({"8:0": {"wbps": "/"}});
    assert_answer("io", V2, &[[lines]], [effective.clone(), decided_by, json!([effective])]);
    let lines = "(unknown) 1\n8:0\n8:0 \n8:16 -1\nTotal 5\n";
    assert_answer("blkio.throttle.read_bps_device", V1, &[[lines]], [json!({}), json!(null), json!([{}])]);
}

#[test]
fn a_file_that_cannot_be_understood_is_an_error_that_knows_where() {
    let table: &[(&str, Version, &[[&str; 2]], usize)] = &[
        ("memory", V2, &[["-", "-"], ["max\n", "-"], ["4K\n", "-"]], 0),
        ("memory", V1, &[["1\n", "-"], ["1\n", "-"], ["-1\n", "-"]], 0),
        ("pids", V2, &[["-", "-"], ["-", "-"], ["\n", "-"]], 0),
        ("cpu", V2, &[["-", "-"], ["-", "-"], ["50000\n", "-"]], 0),
        ("cpu", V2, &[["-", "-"], ["-", "-"], ["50000 0\n", "-"]], 0),
        ("cpu", V2, &[["-", "-"], ["-", "-"], ["50000 100000 1\n", "-"]], 0),
        ("cpu", V1, &[["-1\n", "100000\n"], ["-1\n", "100000\n"], ["-2\n", "100000\n"]], 0),
        ("cpu", V1, &[["-1\n", "100000\n"], ["-1\n", "100000\n"], ["-1\n", "0\n"]], 1),
        ("cpu", V1, &[["-1\n", "100000\n"], ["-1\n", "100000\n"], ["-1\n", "-"]], 1),
        ("cpuset", V2, &[["0\n", "-"], ["0\n", "-"], ["0-\n", "-"]], 0),
    ];
    for (key, version, files, file) in table {
        let malformed = decide(&key.parse().unwrap(), *version, &levels(files)).unwrap_err();
        assert_eq!(malformed, Malformed { level: 2, file: *file }, "{key} {files:?}");
    }
}
