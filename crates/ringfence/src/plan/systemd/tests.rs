use serde_json::{Value as Json, json};

use super::properties::from_bfq;
use super::*;
use crate::devices::DevicePolicy;
use crate::devices::filter::Override;
use crate::devices::runtime_defaults;
use crate::host::{DeviceNode, Mode};
use crate::plan::{DeviceWant, FileAt, Plan, UNREAD, Want, plan};
use crate::resources::{CpuSet, Resources};
use crate::{CgroupPath, DeviceRule};

const PATH: &str = "rf.slice/cri-vm1.scope";

fn planned(
    host: &Host,
    resources: &Resources,
    change: Option<&Resources>,
    rules: &[&str],
    files: &[(&str, &str)],
) -> Plan {
    let path: CgroupPath = "rf.slice:cri:vm1".parse().unwrap();
    let name = path.for_systemd().unwrap();
    let rules: Vec<_> = rules
        .iter()
        .map(|rule| DeviceRule::parse(true, rule, |path| DeviceNode::at(path)).unwrap())
        .collect();
    let policy = DevicePolicy::with_base(&rules, &runtime_defaults(), &[]).unwrap().0;
    let devices = DeviceWant { before: None, policy: &policy, overriding: Override::Refuse };
    let nothing = Resources::default();
    let (base, changed) = change.map_or((&nothing, resources), |change| (resources, change));
    let want = Want {
        create: change.is_none(),
        unit: Some(UnitWant { name, description: "d" }),
        devices: change.is_none().then_some(devices),
        ..Want::change(PATH, base, changed)
    };
    let read = |file: FileAt<'_>| {
        let known = files.iter().find(|(name, _)| file.path == PATH && *name == file.name);
        Ok(known.map(|(_, content)| (*content).to_owned()))
    };
    plan(host, &want, &read).unwrap()
}

/// Operation, and file or unit.
fn outline(plan: &Plan) -> Vec<String> {
    let json = serde_json::to_value(plan).unwrap();
    let steps = json["steps"].as_array().unwrap().iter();
    let text = |step: &Json| {
        let op = step["op"].as_str().unwrap();
        let path = step["path"].as_str().unwrap().trim_start_matches("/sys/fs/cgroup/");
        match op {
            "write" => format!("{} {}", path.rsplit('/').next().unwrap(), step["value"].as_str().unwrap()),
            "make_dir" | "enable_controllers" => format!("{op} {path}"),
            _ => op.to_owned(),
        }
    };
    steps.map(text).collect()
}

fn properties(plan: &Plan) -> Json {
    let json = serde_json::to_value(plan).unwrap();
    let steps = json["steps"].as_array().unwrap().iter();
    steps.filter_map(|step| step.get("properties")).next().unwrap().clone()
}

#[test]
fn on_v2_everything_that_has_a_property_is_in_the_starting_call_and_the_rest_is_written_behind_it() {
    let want = Resources::new()
        .memory_limit(64 << 20)
        .memory_swap(64 << 20)
        .memory_reservation(32 << 20)
        .cpu_weight(200)
        .cpu_quota(50_000)
        .cpu_burst(20_000)
        .pids_limit(10)
        .cpuset_cpus("0-1".parse().unwrap())
        .hugepage_limit("2MB".parse().unwrap(), 4 << 20)
        .io_read_bps("8:0".parse().unwrap(), 1 << 20)
        .io_write_iops("8:16".parse().unwrap(), 100)
        .unified("memory.high", "60M");
    let plan = planned(&Host::standard(Mode::V2, true), &want, None, &[], &[]);
    assert_eq!(
        outline(&plan),
        [
            "start_unit",
            "enable_controllers cgroup.subtree_control",
            "enable_controllers rf.slice/cgroup.subtree_control",
            "device_filter",
            "cpu.max.burst 20000",
            "hugetlb.2MB.max 4194304",
            "hugetlb.2MB.rsvd.max 4194304",
        ]
    );
    assert_eq!(
        properties(&plan),
        json!({
            "Description": "d", "Slice": "rf.slice", "Delegate": true, "DefaultDependencies": false,
            "CollectMode": "inactive-or-failed", "CPUAccounting": true, "MemoryAccounting": true,
            "TasksAccounting": true, "IOAccounting": true,
            "MemoryMax": 64 << 20, "MemorySwapMax": 0, "MemoryLow": 32 << 20, "MemoryHigh": 60 << 20,
            "CPUWeight": 200, "CPUQuotaPerSecUSec": 500_000, "CPUQuotaPeriodUSec": 100_000, "TasksMax": 10,
            "AllowedCPUs": "0-1",
            "IOReadBandwidthMax": {"/dev/block/8:0": 1 << 20, "/dev/block/8:16": "max"},
            "IOWriteBandwidthMax": {"/dev/block/8:0": "max", "/dev/block/8:16": "max"},
            "IOReadIOPSMax": {"/dev/block/8:0": "max", "/dev/block/8:16": "max"},
            "IOWriteIOPSMax": {"/dev/block/8:0": "max", "/dev/block/8:16": 100},
        })
    );
    assert!(plan.report.is_empty(), "{plan}");
    // hugetlb alone: systemd enables what it knows.
    let enabled: Vec<_> = plan
        .steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::EnableControllers { required, .. } => Some(required.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(enabled, [[Controller::Hugetlb], [Controller::Hugetlb]]);
}

#[test]
fn the_number_of_tasks_is_never_left_to_the_managers_default() {
    let plan = planned(&Host::standard(Mode::V2, true), &Resources::new(), None, &[], &[]);
    assert_eq!(properties(&plan)["TasksMax"], "max");
}

#[test]
fn on_v1_the_cgroups_that_systemd_does_not_make_are_made_and_filled_before_the_unit_starts() {
    let want = Resources::new()
        .memory_limit(64 << 20)
        .memory_swap(96 << 20)
        .cpu_shares(512)
        .cpu_quota(50_000)
        .cpu_period(100_000)
        .pids_limit(10)
        .cpuset_cpus("0".parse().unwrap())
        .memory_swappiness(10)
        .io_read_bps("8:0".parse().unwrap(), 1 << 20)
        .io_read_iops("8:0".parse().unwrap(), 7);
    let plan = planned(&Host::standard(Mode::V1, true), &want, None, &["b 253:* rw"], &[]);
    let outline = outline(&plan);
    let start = outline.iter().position(|step| step == "start_unit").unwrap();
    let (before, after) = outline.split_at(start);
    let made: Vec<_> = before.iter().filter_map(|step| step.strip_prefix("make_dir ")).collect();
    for own in ["cpuset", "freezer", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc"] {
        assert!(made.contains(&format!("{own}/{PATH}").as_str()), "{own}: {made:?}");
    }
    assert!(!made.iter().any(|dir| dir.starts_with("memory") || dir.starts_with("systemd")), "{made:?}");
    assert!(
        before.contains(&"cpuset.cpus 0".to_owned()) && before.contains(&"cpuset.mems 0".to_owned()),
        "{before:?}"
    );
    assert_eq!(
        after,
        [
            "start_unit",
            "memory.memsw.limit_in_bytes 100663296",
            "memory.swappiness 10",
            "blkio.throttle.read_iops_device 8:0 7",
        ]
    );
    let properties = properties(&plan);
    assert_eq!(properties["DevicePolicy"], "strict");
    let devices = &properties["DeviceAllow"];
    assert_eq!((&devices["/dev/char/1:3"], &devices["char-136"]), (&json!("rwm"), &json!("rwm")));
    assert_eq!(devices["block-253"], "rw");
    for (name, value) in [
        ("MemoryMax", json!(64 << 20)),
        ("CPUShares", json!(512)),
        ("CPUQuotaPerSecUSec", json!(500_000)),
        ("TasksMax", json!(10)),
        ("IOReadBandwidthMax", json!({"/dev/block/8:0": 1 << 20})),
    ] {
        assert_eq!(properties[name], value, "{name}");
    }
    assert!(properties.get("AllowedCPUs").is_none() && properties.get("CPUWeight").is_none());
}

#[test]
fn a_policy_that_systemd_has_no_words_for_is_written_and_reported() {
    let host = Host::standard(Mode::V1, true);
    for (rule, expressible) in [("c *:5 r", false), ("c 77:* r", true), ("c *:* m", true), ("c 77:1 r", true)]
    {
        let plan = planned(&host, &Resources::new(), None, &[rule], &[]);
        let reported = plan.report.unsupported().any(|line| line.setting == "devices");
        let written = outline(&plan).iter().any(|step| step.starts_with("devices."));
        assert_eq!((reported, written), (!expressible, !expressible), "{rule}: {plan}");
        assert_eq!(properties(&plan)["DevicePolicy"], "strict", "{rule}");
    }
}

#[test]
fn a_change_is_one_call_with_the_files_on_the_side_where_the_kernel_takes_them() {
    let host = Host::standard(Mode::V2, true);
    let files = [
        ("cpu.max", "90000 100000"),
        ("cpu.max.burst", "80000"),
        ("memory.max", "max"),
        ("cpu.idle", "0"),
        ("cpu.weight", "100"),
        ("memory.current", "0"),
        ("cgroup.controllers", "cpu memory"),
        ("pids.max", "max"),
    ];
    let base = Resources::new().cpu_quota(90_000).cpu_burst(80_000);
    let lower = Resources::new().cpu_quota(20_000).memory_limit(1 << 20);
    let plan = planned(&host, &base, Some(&lower), &[], &files);
    assert_eq!(outline(&plan), ["cpu.max.burst 20000", "set_properties"]);
    let expected =
        json!({"MemoryMax": 1 << 20, "CPUQuotaPerSecUSec": 200_000, "CPUQuotaPeriodUSec": 100_000});
    assert_eq!(properties(&plan), expected);
    let Action::SetProperties { told, .. } = &plan.steps[1].action else { panic!("{plan}") };
    let mut back = Vec::new();
    told.iter().for_each(|told| tell(&mut back, told.back.clone()));
    assert_eq!(
        back,
        [
            Property::number("MemoryMax", INFINITY),
            Property::number("CPUQuotaPerSecUSec", 900_000),
            Property::number("CPUQuotaPeriodUSec", 100_000),
        ]
    );
    let higher = Resources::new().cpu_quota(200_000).cpu_burst(150_000);
    let plan = planned(&host, &base, Some(&higher), &[], &files);
    assert_eq!(outline(&plan), ["set_properties", "cpu.max.burst 150000"]);
    // Nothing to tell: nothing is said.
    let plan = planned(&host, &base, Some(&Resources::new().cpu_burst(1000)), &[], &files);
    assert_eq!(outline(&plan), ["cpu.max.burst 1000"]);
}

#[test]
fn idleness_is_a_weight_of_0_and_the_next_weight_ends_it() {
    let host = Host::standard(Mode::V2, true);
    let files = |idle| [("cpu.idle", idle), ("cpu.weight", "50"), ("cgroup.controllers", "cpu")];
    let base = Resources::new().cpu_weight(50);
    let plan = planned(&host, &base, Some(&Resources::new().cpu_idle(true)), &[], &files("0"));
    assert_eq!(properties(&plan), json!({"CPUWeight": 0}));
    let plan = planned(
        &host,
        &base.clone().cpu_idle(true),
        Some(&Resources::new().cpu_idle(false)),
        &[],
        &files("1"),
    );
    assert_eq!(properties(&plan), json!({"CPUWeight": 50}));
}

#[test]
fn a_quota_becomes_whole_hundredths_of_a_cpu_and_never_less() {
    for ((quota, period), (each, kept)) in [
        ((50_000, 100_000), (500_000, (Limit::Value(50_000), 100_000))),
        ((33_333, 100_000), (340_000, (Limit::Value(34_000), 100_000))),
        ((16_999, 33_333), (510_000, (Limit::Value(16_999), 33_333))),
        ((1_000, 1_000_000), (10_000, (Limit::Value(10_000), 1_000_000))),
        ((1_000, 1_000), (1_000_000, (Limit::Value(1_000), 1_000))),
    ] {
        let bandwidth = Bandwidth { quota: Limit::Value(quota), period };
        assert_eq!(
            (bandwidth.per_second(), bandwidth.kept()),
            (each, Bandwidth { quota: kept.0, period: kept.1 })
        );
    }
    let all = Bandwidth { quota: Limit::Max, period: 50_000 };
    assert_eq!((all.per_second(), all.kept()), (INFINITY, Bandwidth { quota: Limit::Max, period: 100_000 }));
    for quota in (1_000..20_000).step_by(7) {
        let bandwidth = Bandwidth { quota: Limit::Value(quota), period: 10_000 };
        assert!(bandwidth.kept().quota >= Limit::Value(quota), "{quota}");
        assert_eq!(bandwidth.kept().kept(), bandwidth.kept(), "{quota}: settled");
    }
    let plan = planned(&Host::standard(Mode::V2, true), &Resources::new().cpu_quota(33_333), None, &[], &[]);
    let line = plan.report.unsupported().next().unwrap();
    assert_eq!((line.setting.as_ref(), line.value.as_str()), ("cpu.quota", "33333 100000"));
    assert!(line.why.contains("34000 100000"), "{}", line.why);
}

#[test]
fn a_weight_of_bfq_is_the_one_that_systemd_makes_of_ours() {
    // As systemd scales: 1 to 100 as it is, the rest of 10000 into the rest of 1000.
    let to_bfq = |weight: u64| if weight <= 100 { weight } else { 100 + (weight - 100) * 900 / 9900 };
    for weight in 1..=1000 {
        assert_eq!(to_bfq(from_bfq(weight)), weight);
    }
}

#[test]
fn a_slice_carries_limits_and_is_not_delegated() {
    let path: CgroupPath = "-.slice::a-b.slice".parse().unwrap();
    let name = path.for_systemd().unwrap();
    let (nothing, want) = (Resources::default(), Resources::new().memory_limit(1 << 20));
    let unit = Some(UnitWant { name, description: "d" });
    let want = Want { create: true, unit, ..Want::change("a.slice/a-b.slice", &nothing, &want) };
    let plan = plan(&Host::standard(Mode::V2, true), &want, UNREAD).unwrap();
    let properties = properties(&plan);
    assert_eq!(properties["MemoryMax"], 1 << 20);
    assert!(properties.get("Delegate").is_none() && properties.get("Slice").is_none());
}

#[test]
fn of_a_user_on_v1_nothing_is_believed() {
    let mut host = Host::standard(Mode::V1, true);
    host.rootless = true;
    let plan = planned(&host, &Resources::new().memory_limit(1 << 20).pids_limit(5), None, &[], &[]);
    assert_eq!(outline(&plan), ["start_unit"]);
    assert!(properties(&plan).get("MemoryMax").is_none());
    let reported: Vec<_> = plan.report.unsupported().map(|line| line.setting.to_string()).collect();
    for setting in ["memory.limit", "pids.limit", "devices"] {
        assert!(reported.contains(&setting.to_owned()), "{setting}: {reported:?}");
    }
}

#[test]
fn no_task_is_told_as_one_and_written_behind_it() {
    let host = Host::standard(Mode::V2, true);
    let none = Resources::new().unified("pids.max", "0");
    let created = planned(&host, &none, None, &[], &[]);
    assert_eq!(properties(&created)["TasksMax"], 1);
    assert_eq!(outline(&created).last().unwrap(), "pids.max 0");
    let [line] = created.report.lines() else { panic!("{created}") };
    assert_eq!((&*line.setting, &*line.value, line.note), ("unified.pids.max", "0", true));

    let changed = planned(&host, &Resources::new(), Some(&none), &[], &[("pids.max", "7")]);
    assert_eq!(outline(&changed), ["set_properties", "pids.max 0"]);
    assert_eq!(properties(&changed), json!({"TasksMax": 1}));
    // Every other change of a property makes systemd write what it was told.
    let files = [("pids.max", "0"), ("memory.max", "max"), ("memory.swap.max", "max")];
    let other = planned(&host, &none, Some(&Resources::new().memory_limit(1 << 30)), &[], &files);
    assert_eq!(outline(&other), ["pids.max 0", "set_properties", "pids.max 0"]);
    // What takes it back is a value that systemd takes, with the file behind it.
    let lifted = planned(&host, &none, Some(&Resources::new().pids_limit(5)), &[], &files);
    assert_eq!(outline(&lifted), ["pids.max 0", "set_properties"]);
    let Action::SetProperties { told, .. } = &lifted.steps[1].action else { panic!("{lifted}") };
    assert_eq!(told[0].back, [Property::number("TasksMax", 1)]);
}

#[test]
fn a_limit_of_no_memory_is_told_as_one_byte_which_is_no_page() {
    for (file, property) in [("memory.high", "MemoryHigh"), ("memory.max", "MemoryMax")] {
        assert_eq!(
            properties_of(&Host::standard(Mode::V2, true), Version::V2, file, "0").unwrap(),
            [Property::number(property, 1)]
        );
    }
    assert_eq!(
        properties_of(&Host::standard(Mode::V2, true), Version::V2, "memory.low", "0").unwrap(),
        [Property::number("MemoryLow", 0)]
    );
}

#[test]
fn limits_of_cgroup_v2_itself_are_written_to_the_files() {
    let want = Resources::new().unified("cgroup.max.descendants", "9");
    let plan = planned(&Host::standard(Mode::V2, true), &want, None, &[], &[]);
    assert_eq!(outline(&plan).last().unwrap(), "cgroup.max.descendants 9");
}

#[test]
fn a_lifted_cpuset_is_told_as_all_of_the_machine() {
    let host = Host::standard(Mode::V2, true);
    let one = Resources::new().cpuset_cpus("0".parse().unwrap());
    let lifted =
        [Resources::new().cpuset_cpus(CpuSet::new()), Resources::new().unified("cpuset.cpus", "max")];
    for lifted in lifted {
        let plan = planned(&host, &one, Some(&lifted), &[], &[("cpuset.cpus", "0")]);
        assert_eq!(
            (outline(&plan), properties(&plan)),
            (vec!["set_properties".to_owned()], json!({"AllowedCPUs": "0-1"}))
        );
        assert!(plan.report.is_empty(), "{plan}");
        let Action::SetProperties { told, .. } = &plan.steps[0].action else { panic!("{plan}") };
        assert_eq!(told[0].back, [Property::new("AllowedCPUs", Value::Set("0".parse().unwrap()))]);
        let Action::Write { value, .. } = &told[0].step.action else { panic!("{plan}") };
        assert_eq!(value, "0-1", "what the file reads afterwards");
    }
    // What takes a set back where there was none.
    let plan = planned(&host, &Resources::new(), Some(&one), &[], &[("cpuset.cpus", "")]);
    let Action::SetProperties { told, .. } = &plan.steps[0].action else { panic!("{plan}") };
    assert_eq!(told[0].back, [Property::new("AllowedCPUs", Value::Set("0-1".parse().unwrap()))]);
}
