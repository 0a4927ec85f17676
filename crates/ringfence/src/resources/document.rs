//! From and to OCI's documents: a `LinuxResources` object, and a whole `config.json`.

use serde::Deserialize;
use serde_json::Value;

use super::{Resources, json, oci};
use crate::terminal::escape_json;
use crate::{Error, ErrorKind, Report, Result};

/// What Ringfence takes from an OCI `config.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecFile {
    /// `linux.cgroupsPath`, as it stands there; `None` also where it is "".
    pub cgroups_path: Option<String>,
    /// `linux.resources`.
    pub resources: Resources,
}

impl Resources {
    /// Reads an OCI `LinuxResources` object. The report has a line for every field that nobody reads.
    ///
    /// What was read is not validated yet: see [`Resources::validate`].
    ///
    /// # Errors
    /// Bad JSON, or a field with a value that OCI does not allow. The error names the field and its value; its message
    /// gives line and column.
    pub fn from_oci_json(text: &str) -> Result<(Self, Report)> {
        let (resources, unread) = json::read(text)?;
        Ok((resources, report(unread)))
    }

    /// The OCI `LinuxResources` object of these resources, as [`Resources::from_oci_json`] reads it. What is absent is
    /// left out, empty sections included; no limit is -1.
    ///
    /// # Errors
    /// None that is known of: all that can be held can be written.
    pub fn to_oci_json(&self) -> Result<String> {
        let json = serde_json::to_string(self).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, "the resources cannot be written as JSON").with_source(error)
        })?;
        Ok(escape_json(&json).into_owned())
    }
}

impl SpecFile {
    /// Reads an OCI `config.json`. The report has a line for every field of `linux.resources` that nobody reads; the
    /// rest of the document is no concern of a cgroup manager.
    ///
    /// # Errors
    /// As [`Resources::from_oci_json`], with the field's name from the document's root (`linux.resources.memory.limit`).
    pub fn from_oci_json(text: &str) -> Result<(Self, Report)> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Config {
            #[serde(deserialize_with = "oci::section")]
            linux: Linux,
        }

        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Linux {
            cgroups_path: Option<String>,
            #[serde(deserialize_with = "oci::section")]
            resources: Resources,
        }

        let (Config { linux }, unread) = json::read(text)?;
        let inside = unread.into_iter().filter_map(|(place, value)| {
            let place = place.within(&["linux", "resources"])?;
            Some((place, value))
        });
        let cgroups_path = linux.cgroups_path.filter(|path| !path.is_empty());
        Ok((Self { cgroups_path, resources: linux.resources }, report(inside)))
    }
}

fn report(unread: impl IntoIterator<Item = json::Unread>) -> Report {
    let mut report = Report::default();
    for (place, value) in unread {
        report_field(&mut report, &place, &value);
    }
    report
}

/// One line per field: `blockIO.weight`, not all of `blockIO`. What is null or empty asks for nothing.
fn report_field(report: &mut Report, place: &json::Place, value: &Value) {
    match value {
        Value::Null => {}
        Value::Array(items) if items.is_empty() => {}
        Value::Object(fields) => {
            for (key, value) in fields {
                report_field(report, &place.field(key), value);
            }
        }
        value => report.add(place.to_string(), value, "not a field of OCI's LinuxResources"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::resources::{BlockIo, DeviceWeight, HugePageSize, Network, Rdma};
    use crate::{CpuSet, DeviceNumber, Limit};

    fn read(text: &str) -> Resources {
        let (resources, report) =
            Resources::from_oci_json(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(report.is_empty(), "{text}: {report}");
        resources
    }

    fn lines(report: &Report) -> Vec<(&str, &str)> {
        report.lines().iter().map(|line| (line.setting.as_ref(), line.value.as_str())).collect()
    }

    /// Every field of `LinuxResources`, and those that are ours alone.
    pub(in crate::resources) const WHOLE: &str = r#"{
        "memory": {
            "limit": 1073741824, "reservation": 536870912, "swap": 2147483648, "kernel": -1, "kernelTCP": 4096,
            "swappiness": 0, "disableOOMKiller": false, "useHierarchy": true, "checkBeforeUpdate": true
        },
        "cpu": {
            "shares": 1024, "quota": 50000, "period": 100000, "burst": 0, "idle": 0, "weight": 100,
            "realtimeRuntime": 950000, "realtimePeriod": 1000000, "cpus": "0-3,8", "mems": "0"
        },
        "pids": { "limit": 100 },
        "blockIO": {
            "weight": 500, "leafWeight": 10,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 100, "leafWeight": 20}, {"major": 8, "minor": 16, "weight": 7}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}, {"major": 254, "minor": 0, "rate": 0}],
            "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 18446744073709551615}],
            "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 3}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 4}]
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": 18446744073709551615}],
        "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 500}, {"name": "lo", "priority": 0}]},
        "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 4294967295}, "rxe3": {"hcaObjects": 0}},
        "unified": { "memory.high": "max", "io.max": "8:0 rbps=1" }
    }"#;

    const DISK: DeviceNumber = DeviceNumber { major: 8, minor: 0 };

    #[test]
    fn every_field_is_read() {
        let resources = read(WHOLE);
        let expected = Resources::new()
            .memory_limit(1 << 30)
            .memory_reservation(512 << 20)
            .memory_swap(2 << 30)
            .memory_kernel(Limit::Max)
            .memory_kernel_tcp(4096)
            .memory_swappiness(0)
            .disable_oom_killer(false)
            .memory_use_hierarchy(true)
            .memory_check_before_update(true)
            .cpu_shares(1024)
            .cpu_quota(50_000)
            .cpu_period(100_000)
            .cpu_burst(0)
            .cpu_idle(false)
            .cpu_weight(100)
            .cpu_realtime_runtime(950_000)
            .cpu_realtime_period(1_000_000)
            .cpuset_cpus("0-3,8".parse().unwrap())
            .cpuset_mems("0".parse().unwrap())
            .pids_limit(100)
            .io_weight(500)
            .io_leaf_weight(10)
            .io_device_weight(DISK, 100)
            .io_device_leaf_weight(DISK, 20)
            .io_device_weight(DeviceNumber { major: 8, minor: 16 }, 7)
            .io_read_bps(DISK, 1)
            .io_read_bps(DeviceNumber { major: 254, minor: 0 }, Limit::Max)
            .io_write_bps(DISK, u64::MAX)
            .io_read_iops(DISK, 3)
            .io_write_iops(DISK, 4)
            .hugepage_limit("2MB".parse().unwrap(), 0)
            .hugepage_limit("1GB".parse().unwrap(), Limit::Max)
            .network_class_id(1_048_577)
            .network_priority("eth0", 500)
            .network_priority("lo", 0)
            .rdma("mlx5_1", Rdma { hca_handles: Some(Limit::Value(3)), hca_objects: Some(Limit::Max) })
            .rdma("rxe3", Rdma { hca_handles: None, hca_objects: Some(Limit::Value(0)) })
            .unified("memory.high", "max")
            .unified("io.max", "8:0 rbps=1");
        assert_eq!(resources, expected);
        let weight = resources.validate().unwrap_err();
        assert_eq!(weight.setting(), Some("blockIO.weightDevice.8:16.weight"));
        let written: Value = serde_json::from_str(&resources.to_oci_json().unwrap()).unwrap();
        assert_eq!(written, serde_json::from_str::<Value>(WHOLE).unwrap());
    }

    #[test]
    fn absent_null_zero_and_empty_ask_for_nothing() {
        for text in [
            "{}",
            "null",
            r#"{"memory": {}, "cpu": {}, "pids": {}, "devices": [], "unified": {}}"#,
            r#"{"memory": null, "cpu": null, "pids": null, "devices": null, "unified": null}"#,
            r#"{"memory": {"limit": 0, "reservation": 0, "swap": 0, "kernel": 0, "kernelTCP": 0}}"#,
            r#"{"memory": {"limit": null, "swappiness": null, "disableOOMKiller": null, "checkBeforeUpdate": null}}"#,
            r#"{"cpu": {"shares": 0, "quota": 0, "period": 0, "realtimePeriod": 0, "cpus": "", "mems": ""}}"#,
            r#"{"cpu": {"shares": null, "quota": null, "burst": null, "idle": null, "cpus": null, "mems": null}}"#,
            r#"{"memory": {"swappiness": 18446744073709551615}}"#,
            r#"{"pids": {"limit": null}, "blockIO": null, "hugepageLimits": [], "rdma": {}}"#,
        ] {
            let resources = read(text);
            assert!(resources.is_empty(), "{text}: {resources:?}");
            assert_eq!(resources.to_oci_json().unwrap(), "{}");
        }
    }

    #[test]
    fn minus_one_is_no_limit_and_no_pids_are_one() {
        let resources =
            read(r#"{"memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}}"#);
        assert_eq!(
            resources,
            Resources::new()
                .memory_limit(Limit::Max)
                .memory_swap(Limit::Max)
                .cpu_quota(Limit::Max)
                .pids_limit(Limit::Max)
        );
        assert_eq!(read(r#"{"pids": {"limit": 0}}"#), Resources::new().pids_limit(1));
    }

    #[test]
    fn of_two_objects_for_one_device_the_later_counts() {
        let resources = read(
            r#"{"blockIO": {
                "weightDevice": [{"major": 8, "minor": 0, "weight": 50}, {"major": 8, "minor": 0, "leafWeight": 20}],
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}, {"major": 8, "minor": 0, "rate": 2}]
            }}"#,
        );
        let expected =
            Resources::new().io_device_weight(DISK, 50).io_device_leaf_weight(DISK, 20).io_read_bps(DISK, 2);
        assert_eq!(resources, expected);
    }

    #[test]
    fn a_field_that_nobody_reads_is_reported_with_its_value() {
        let text = r#"{
            "blockIO": {"weight": 500, "leafWeigth": 3, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1, "x": 2}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4096, "y": []}],
            "network": {"classId": 1048577},
            "rdma": {"mlx5_1": {"hcaHandle": 3}},
            "memory": {"limit": 4096, "limits": "x"},
            "cpu": {"Shares": 2},
            "pids": {"limit": 3, "soft": true},
            "colour": {"of": {}}
        }"#;
        let (resources, report) = Resources::from_oci_json(text).unwrap();
        let read = Resources::new().memory_limit(4096).pids_limit(3).io_weight(500).io_read_bps(DISK, 1);
        let read = read.hugepage_limit("2MB".parse().unwrap(), 4096).rdma("mlx5_1", Rdma::default());
        assert_eq!(resources, read);
        assert_eq!(
            lines(&report),
            [
                ("blockIO.leafWeigth", "3"),
                ("blockIO.throttleReadBpsDevice[0].x", "2"),
                ("network.classId", "1048577"),
                ("rdma.mlx5_1.hcaHandle", "3"),
                ("memory.limits", r#""x""#),
                ("cpu.Shares", "2"),
                ("pids.soft", "true"),
            ]
        );
        assert_eq!(report.lines()[0].why, "not a field of OCI's LinuxResources");
    }

    #[test]
    fn a_value_that_a_field_cannot_take_is_refused_with_field_value_line_and_column() {
        for (text, sentence) in [
            (
                "{\n \"memory\": {\n  \"limit\": -5, \"swap\": 1}}",
                r#"memory.limit = "-5": invalid value: integer `-5`, expected -1 for no limit, or a whole number from 0 to 9223372036854775807 at line 3 column 13"#,
            ),
            (
                r#"{"memory": {"limit": "64M"}}"#,
                r#"memory.limit = "64M": invalid type: string "64M", expected -1"#,
            ),
            (
                r#"{"memory": {"limit": 9223372036854775808}}"#,
                r#"memory.limit = "9223372036854775808": invalid"#,
            ),
            (r#"{"memory": {"limit": -9223372036854775809}}"#, "memory.limit = "),
            (
                r#"{"memory": {"limit": 1.5}}"#,
                r#"memory.limit = "1.5": invalid type: floating point `1.5`, expected -1"#,
            ),
            (r#"{"memory": {"limit": true}}"#, r#"memory.limit = "true": "#),
            (r#"{"memory": {"limit": {}}}"#, "memory.limit: invalid type: map"),
            (r#"{"memory": {"limit": [1, 2]}}"#, "memory.limit: invalid type: sequence"),
            (
                r#"{"memory": {"swappiness": -1}}"#,
                r#"memory.swappiness = "-1": invalid value: integer `-1`, expected a"#,
            ),
            (r#"{"memory": {"disableOOMKiller": 1}}"#, r#"memory.disableOOMKiller = "1": "#),
            (r#"{"memory": {"limit": 1, "limit": 2}}"#, "memory.limit"),
            (r#"{"memory": []}"#, "memory: invalid type: sequence, expected an object"),
            (r#"{"memory": [1]}"#, "memory: invalid type: sequence, expected an object"),
            (r#"{"memory": 7, "cpu": {}}"#, r#"memory = "7": invalid type: integer `7`, expected an object"#),
            (
                r#"{"cpu": {"shares": -2}}"#,
                r#"cpu.shares = "-2": invalid value: integer `-2`, expected a whole"#,
            ),
            (r#"{"cpu": {"shares": 18446744073709551616}}"#, "cpu.shares = "),
            (r#"{"cpu": {"quota": -2}}"#, r#"cpu.quota = "-2": "#),
            (r#"{"cpu": {"idle": "yes"}}"#, r#"cpu.idle = "yes": "#),
            (
                r#"{"cpu": {"cpus": "3-1"}}"#,
                r#"cpu.cpus = "3-1": a range begins with its lowest number at line 1"#,
            ),
            (r#"{"cpu": {"mems": 0}}"#, r#"cpu.mems = "0": invalid type: integer `0`, expected a list"#),
            (r#"{"pids": {"limit": -7}}"#, r#"pids.limit = "-7": "#),
            (r#"{"unified": {"memory.high": 5}}"#, r#"unified.memory.high = "5": invalid type: integer `5`"#),
            (r#"{"unified": []}"#, "unified: invalid type: sequence, expected a map"),
            (
                r#"{"unified": {"memory.high": "5", "memory.high": "6"}}"#,
                "unified: duplicate field `memory.high` at line 1",
            ),
            (
                r#"{"devices": [{"allow": true, "type": "c", "mayor": 1}]}"#,
                r#"devices[0].mayor = "1": unknown field `mayor`, expected one of `allow`"#,
            ),
            (r#"{"devices": {}}"#, "devices: invalid type: map, expected a sequence"),
            (r#"{"devices": [{"allow": true}, 7]}"#, r#"devices[1] = "7": invalid type: integer `7`"#),
            (r#"{"devices": [{"allow": "x"}, {"allow": true}]}"#, r#"devices[0].allow = "x": invalid type"#),
            (
                r#"{"blockIO": {"throttleReadBpsDevice": [[8, 0, 1]]}}"#,
                "blockIO.throttleReadBpsDevice[0]: invalid type: sequence",
            ),
            (
                r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0}]}}"#,
                "blockIO.throttleReadBpsDevice[0]: missing field `rate`",
            ),
            (
                r#"{"blockIO": {"throttleReadIOPSDevice": [{"major": 8, "minor": -1, "rate": 5}]}}"#,
                r#"blockIO.throttleReadIOPSDevice[0].minor = "-1": invalid value: integer `-1`, expected u32"#,
            ),
            (r#"{"blockIO": {"weight": -1}}"#, r#"blockIO.weight = "-1": "#),
            (
                r#"{"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}"#,
                r#"hugepageLimits[0].pageSize = "3MB": takes a size such as 2MB or 1GB at line 1"#,
            ),
            (
                r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": -2}]}"#,
                r#"hugepageLimits[0].limit = "-2": "#,
            ),
            (r#"{"network": {"classID": 4294967296}}"#, r#"network.classID = "4294967296": "#),
            (r#"{"rdma": {"x": [1, 2]}}"#, "rdma.x: invalid type: sequence, expected an object"),
            (r#"{"rdma": {"x": {}, "x": {}}}"#, "rdma: duplicate field `x`"),
            (r#"{"rdma": {"x": {"hcaHandles": 4294967296}}}"#, r#"rdma.x.hcaHandles = "4294967296": "#),
            ("[]", "invalid type: sequence, expected an object at line 1"),
            ("7", r#""7": invalid type: integer `7`, expected an object"#),
            ("", "EOF while parsing a value at line 1 column 0"),
            ("{\"cpu\": {\"shares\": 2,\n}}", "cpu: trailing comma at line 2 column 1"),
            (r#"{"cpu": {"shares": 2"#, "cpu.shares: EOF while parsing an object at line 1 column 20"),
            ("{} {}", "trailing characters at line 1 column 4"),
        ] {
            let error = Resources::from_oci_json(text).expect_err(text);
            assert!(error.to_string().starts_with(sentence), "{text}\n{error}\n{sentence}");
            assert!(error.message().contains(" at line "), "{error}");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_whole_configuration_gives_its_path_and_resources_only() {
        let text = r#"{
            "ociVersion": "1.2.0", "process": {"args": ["sh"], "unknown": 1}, "hostname": "x",
            "linux": {
                "cgroupsPath": "kubepods.slice:cri:a", "namespaces": [{"type": "pid"}],
                "resources": {"memory": {"limit": 4096}, "blockIo": {"weight": 10}}, "maskedPaths": ["/proc/kcore"]
            }
        }"#;
        let (spec, report) = SpecFile::from_oci_json(text).unwrap();
        assert_eq!(spec.cgroups_path.as_deref(), Some("kubepods.slice:cri:a"));
        assert_eq!(spec.resources, Resources::new().memory_limit(4096));
        assert_eq!(lines(&report), [("blockIo.weight", "10")]);

        for text in ["{}", r#"{"linux": null}"#, r#"{"linux": {"cgroupsPath": "", "resources": null}}"#] {
            let (spec, report) = SpecFile::from_oci_json(text).unwrap();
            assert_eq!(spec, SpecFile::default(), "{text}");
            assert!(report.is_empty());
        }
        let error =
            SpecFile::from_oci_json(r#"{"linux": {"resources": {"cpu": {"period": "1s"}}}}"#).unwrap_err();
        assert_eq!(error.setting(), Some("linux.resources.cpu.period"));
        assert_eq!(error.value(), Some("1s"));
    }

    fn limit(least: u64) -> impl Strategy<Value = Option<Limit>> {
        proptest::option::of(prop_oneof![
            Just(Limit::Max),
            (least..=i64::MAX.cast_unsigned()).prop_map(Limit::Value),
            (least..1_000_000).prop_map(Limit::Value),
        ])
    }

    fn set() -> impl Strategy<Value = Option<CpuSet>> {
        let numbers = proptest::collection::vec(0..=CpuSet::LAST, 1..9);
        proptest::option::of(numbers.prop_map(|numbers| CpuSet::from_numbers(numbers).unwrap()))
    }

    fn throttle() -> impl Strategy<Value = BTreeMap<DeviceNumber, Limit>> {
        let rate = prop_oneof![Just(Limit::Max), (1..=u64::MAX).prop_map(Limit::Value)];
        proptest::collection::btree_map(device(), rate, 0..3)
    }

    fn device() -> impl Strategy<Value = DeviceNumber> {
        any::<(u32, u32)>().prop_map(|(major, minor)| DeviceNumber { major, minor })
    }

    prop_compose! {
        fn block_io()(
            (weight, leaf_weight) in (proptest::option::of(1u64..), proptest::option::of(1u64..)),
            weights in proptest::collection::btree_map(device(), (proptest::option::of(1u64..), proptest::option::of(1u64..)), 0..3),
            (read_bps, write_bps, read_iops, write_iops) in (throttle(), throttle(), throttle(), throttle()),
        ) -> BlockIo {
            let weights = weights.into_iter().map(|(device, (weight, leaf_weight))| (device, DeviceWeight { weight, leaf_weight }));
            BlockIo {
                weight, leaf_weight, weight_device: weights.collect(), throttle_read_bps_device: read_bps,
                throttle_write_bps_device: write_bps, throttle_read_iops_device: read_iops, throttle_write_iops_device: write_iops,
            }
        }
    }

    fn huge_pages() -> impl Strategy<Value = BTreeMap<HugePageSize, Limit>> {
        let size = (0u32..=42).prop_map(|shift| HugePageSize::from_kilobytes(1u64 << shift).unwrap());
        let limit = prop_oneof![Just(Limit::Max), (0..u64::MAX).prop_map(Limit::Value)];
        proptest::collection::btree_map(size, limit, 0..3)
    }

    fn rdma() -> impl Strategy<Value = BTreeMap<String, Rdma>> {
        let limit = || {
            proptest::option::of(prop_oneof![
                Just(Limit::Max),
                (0..u64::from(u32::MAX)).prop_map(Limit::Value)
            ])
        };
        let limits =
            (limit(), limit()).prop_map(|(hca_handles, hca_objects)| Rdma { hca_handles, hca_objects });
        proptest::collection::btree_map(".*", limits, 0..3)
    }

    prop_compose! {
        fn resources()(
            (limit, reservation, swap, kernel, kernel_tcp) in (limit(1), limit(1), limit(1), limit(1), limit(1)),
            (swappiness, disable_oom_killer, use_hierarchy, check_before_update) in (proptest::option::of(0..u64::MAX), any::<Option<bool>>(), any::<Option<bool>>(), any::<Option<bool>>()),
            (shares, period, realtime_period) in (proptest::option::of(1u64..), proptest::option::of(1u64..), proptest::option::of(1u64..)),
            (weight, burst, idle, realtime_runtime) in any::<(Option<u64>, Option<u64>, Option<i64>, Option<i64>)>(),
            (quota, pids, cpus, mems) in (limit(1), limit(1), set(), set()),
            (block_io, hugepage_limits, rdma) in (block_io(), huge_pages(), rdma()),
            (class_id, priorities) in (any::<Option<u32>>(), proptest::collection::btree_map(".*", any::<u32>(), 0..3)),
            unified in proptest::collection::btree_map(".*", ".*", 0..3),
        ) -> Resources {
            let network = Network { class_id, priorities };
            let mut resources = Resources { block_io, hugepage_limits, network, rdma, unified, ..Resources::new() };
            resources.memory = super::super::Memory {
                limit, reservation, swap, kernel, kernel_tcp, swappiness, disable_oom_killer, use_hierarchy, check_before_update,
            };
            resources.cpu = super::super::Cpu {
                shares, weight, quota, period, burst, idle, realtime_runtime, realtime_period, cpus, mems,
            };
            resources.pids.limit = pids;
            resources
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(resources in resources()) {
            let (read, report) = Resources::from_oci_json(&resources.to_oci_json().unwrap()).unwrap();
            prop_assert!(report.is_empty());
            prop_assert_eq!(read, resources);
        }

        #[test]
        fn no_text_makes_the_reader_panic(cut in 0..WHOLE.len(), insert in "[-0-9{}\\[\\],:\"ael\\\\]{0,4}|.{0,3}", skip in 0usize..9) {
            let tail = WHOLE.get(cut + skip..).unwrap_or_default();
            let text = format!("{}{insert}{tail}", &WHOLE[..cut]);
            if let Ok((resources, _)) = Resources::from_oci_json(&text) {
                let _ = resources.validate();
            }
            let _ = SpecFile::from_oci_json(&format!(r#"{{"linux": {{"resources": {text}}}}}"#));
            prop_assert!(Resources::from_oci_json(&WHOLE[..cut]).is_err());
        }
    }
}
