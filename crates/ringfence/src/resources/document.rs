//! From and to OCI's documents: a `LinuxResources` object, and a whole `config.json`.

use serde::Deserialize;
use serde_json::Value;

use super::{Resources, json, oci};
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
        serde_json::to_string(self).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, "the resources cannot be written as JSON").with_source(error)
        })
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
        value => report.add(place.to_string(), value, why_unread(place)),
    }
}

fn why_unread(place: &json::Place) -> &'static str {
    match place.first_key() {
        Some("blockIO" | "hugepageLimits" | "network" | "rdma") => "this build does not apply it",
        _ => "not a field of OCI's LinuxResources",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{CpuSet, Limit};

    fn read(text: &str) -> Resources {
        let (resources, report) =
            Resources::from_oci_json(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(report.is_empty(), "{text}: {report}");
        resources
    }

    fn lines(report: &Report) -> Vec<(&str, &str)> {
        report.lines().iter().map(|line| (line.setting.as_ref(), line.value.as_str())).collect()
    }

    const WHOLE: &str = r#"{
        "memory": {
            "limit": 1073741824, "reservation": 536870912, "swap": 2147483648, "kernel": -1, "kernelTCP": 4096,
            "swappiness": 0, "disableOOMKiller": false, "useHierarchy": true, "checkBeforeUpdate": true
        },
        "cpu": {
            "shares": 1024, "quota": 50000, "period": 100000, "burst": 0, "idle": 0, "weight": 100,
            "realtimeRuntime": 950000, "realtimePeriod": 1000000, "cpus": "0-3,8", "mems": "0"
        },
        "pids": { "limit": 100 },
        "unified": { "memory.high": "max", "io.max": "8:0 rbps=1" }
    }"#;

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
            .unified("memory.high", "max")
            .unified("io.max", "8:0 rbps=1");
        assert_eq!(resources, expected);
        resources.validate().unwrap();
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
    fn a_field_that_nobody_reads_is_reported_with_its_value() {
        let text = r#"{
            "blockIO": {"weight": 500, "leafWeight": null, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}],
            "network": {"classID": 1048577},
            "rdma": {"mlx5_1": {"hcaHandles": 3}},
            "memory": {"limit": 4096, "limits": "x"},
            "cpu": {"Shares": 2},
            "pids": {"limit": 3, "soft": true},
            "colour": {"of": {}}
        }"#;
        let (resources, report) = Resources::from_oci_json(text).unwrap();
        assert_eq!(resources, Resources::new().memory_limit(4096).pids_limit(3));
        assert_eq!(
            lines(&report),
            [
                ("blockIO.throttleReadBpsDevice", r#"[{"major":8,"minor":0,"rate":1}]"#),
                ("blockIO.weight", "500"),
                ("hugepageLimits", r#"[{"limit":4096,"pageSize":"2MB"}]"#),
                ("network.classID", "1048577"),
                ("rdma.mlx5_1.hcaHandles", "3"),
                ("memory.limits", r#""x""#),
                ("cpu.Shares", "2"),
                ("pids.soft", "true"),
            ]
        );
        assert_eq!(report.lines()[0].why, "this build does not apply it");
        assert_eq!(report.lines()[5].why, "not a field of OCI's LinuxResources");
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
                "resources": {"memory": {"limit": 4096}, "blockIO": {"weight": 10}}, "maskedPaths": ["/proc/kcore"]
            }
        }"#;
        let (spec, report) = SpecFile::from_oci_json(text).unwrap();
        assert_eq!(spec.cgroups_path.as_deref(), Some("kubepods.slice:cri:a"));
        assert_eq!(spec.resources, Resources::new().memory_limit(4096));
        assert_eq!(lines(&report), [("blockIO.weight", "10")]);
        assert_eq!(report.lines()[0].why, "this build does not apply it");

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

    prop_compose! {
        fn resources()(
            (limit, reservation, swap, kernel, kernel_tcp) in (limit(1), limit(1), limit(1), limit(1), limit(1)),
            (swappiness, disable_oom_killer, use_hierarchy, check_before_update) in any::<(Option<u64>, Option<bool>, Option<bool>, Option<bool>)>(),
            (shares, period, realtime_period) in (proptest::option::of(1u64..), proptest::option::of(1u64..), proptest::option::of(1u64..)),
            (weight, burst, idle, realtime_runtime) in any::<(Option<u64>, Option<u64>, Option<i64>, Option<i64>)>(),
            (quota, pids, cpus, mems) in (limit(1), limit(1), set(), set()),
            unified in proptest::collection::btree_map(".*", ".*", 0..3),
        ) -> Resources {
            let mut resources = Resources { unified, ..Resources::new() };
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
