//! Each setting becomes the files of its version, or a line of the report.

use super::*;

/// Creation on v1 fills the cpuset first; these are the writes after that.
fn created_on_v1(change: &Resources) -> Vec<String> {
    let mut all = writes(&created(&v1(), change));
    all.retain(|write| !write.starts_with("cpuset."));
    all
}

#[test]
fn each_setting_becomes_the_files_of_its_version() {
    let new = Resources::new;
    let cases: &[(Resources, &[&str], &[&str])] = &[
        (new(), &[], &[]),
        (new().memory_limit(64 * MIB), &["memory.limit_in_bytes 67108864"], &["memory.max 67108864"]),
        (
            new().memory_limit(64 * MIB).memory_swap(64 * MIB),
            &["memory.limit_in_bytes 67108864", "memory.memsw.limit_in_bytes 67108864"],
            &["memory.max 67108864", "memory.swap.max 0"],
        ),
        (
            new().memory_limit(64 * MIB).memory_swap(96 * MIB),
            &["memory.limit_in_bytes 67108864", "memory.memsw.limit_in_bytes 100663296"],
            &["memory.max 67108864", "memory.swap.max 33554432"],
        ),
        (
            new().memory_limit(Limit::Max),
            &["memory.memsw.limit_in_bytes -1", "memory.limit_in_bytes -1"],
            &["memory.max max", "memory.swap.max max"],
        ),
        (new().memory_reservation(MIB), &["memory.soft_limit_in_bytes 1048576"], &["memory.low 1048576"]),
        (new().memory_limit(MIB + 1), &["memory.limit_in_bytes 1048577"], &["memory.max 1048576"]),
        (new().memory_swappiness(60), &["memory.swappiness 60"], &[]),
        (new().disable_oom_killer(true), &["memory.oom_control 1"], &[]),
        (new().memory_kernel_tcp(MIB), &["memory.kmem.tcp.limit_in_bytes 1048576"], &[]),
        (new().memory_kernel(MIB), &[], &[]),
        (new().cpu_shares(1024), &["cpu.shares 1024"], &["cpu.weight 100"]),
        (new().cpu_shares(2), &["cpu.shares 2"], &["cpu.weight 1"]),
        (new().cpu_weight(100), &["cpu.shares 1024"], &["cpu.weight 100"]),
        (new().cpu_quota(20_000), &["cpu.cfs_quota_us 20000"], &["cpu.max 20000 100000"]),
        (new().cpu_quota(Limit::Max), &["cpu.cfs_quota_us -1"], &["cpu.max max 100000"]),
        (
            new().cpu_quota(20_000).cpu_period(50_000),
            &["cpu.cfs_quota_us 20000", "cpu.cfs_period_us 50000"],
            &["cpu.max 20000 50000"],
        ),
        (
            new().cpu_quota(20_000).cpu_burst(10_000),
            &["cpu.cfs_quota_us 20000", "cpu.cfs_burst_us 10000"],
            &["cpu.max 20000 100000", "cpu.max.burst 10000"],
        ),
        (new().cpu_idle(true), &["cpu.idle 1"], &["cpu.idle 1"]),
        (
            new().cpu_shares(1024).cpu_idle(true),
            &["cpu.shares 1024", "cpu.idle 1"],
            &["cpu.weight 100", "cpu.idle 1"],
        ),
        (new().cpu_realtime_period(1_000_000), &["cpu.rt_period_us 1000000"], &[]),
        (new().cpu_realtime_runtime(1000), &["cpu.rt_runtime_us 1000"], &[]),
        (new().pids_limit(10), &["pids.max 10"], &["pids.max 10"]),
        (new().pids_limit(Limit::Max), &["pids.max max"], &["pids.max max"]),
        (new().cpuset_cpus(set("0-1")), &[], &["cpuset.cpus 0-1"]),
        (new().io_weight(100), &["blkio.weight 100"], &["io.weight 910"]),
        (new().io_device_weight(DISK, 1000), &["blkio.weight_device 8:0 1000"], &["io.weight 8:0 10000"]),
        (new().io_leaf_weight(50), &["blkio.leaf_weight 50"], &[]),
        (new().io_device_leaf_weight(DISK, 50), &["blkio.leaf_weight_device 8:0 50"], &[]),
        (
            new().io_read_bps(DISK, 4096),
            &["blkio.throttle.read_bps_device 8:0 4096"],
            &["io.max 8:0 rbps=4096 wbps=max riops=max wiops=max"],
        ),
        (
            new()
                .io_write_bps(DISK, 5)
                .io_read_iops(DISK, 6)
                .io_write_iops(DISK, Limit::Max)
                .io_read_iops(OTHER, 7),
            &[
                "blkio.throttle.write_bps_device 8:0 5",
                "blkio.throttle.read_iops_device 8:0 6",
                "blkio.throttle.read_iops_device 8:16 7",
                "blkio.throttle.write_iops_device 8:0 0",
            ],
            &[
                "io.max 8:0 rbps=max wbps=5 riops=6 wiops=max",
                "io.max 8:16 rbps=max wbps=max riops=7 wiops=max",
            ],
        ),
        (
            new().hugepage_limit("2MB".parse().unwrap(), 5 * MIB),
            &["hugetlb.2MB.limit_in_bytes 4194304", "hugetlb.2MB.rsvd.limit_in_bytes 4194304"],
            &["hugetlb.2MB.max 4194304", "hugetlb.2MB.rsvd.max 4194304"],
        ),
        (
            new().hugepage_limit("1GB".parse().unwrap(), Limit::Max),
            &["hugetlb.1GB.limit_in_bytes -1", "hugetlb.1GB.rsvd.limit_in_bytes -1"],
            &["hugetlb.1GB.max max", "hugetlb.1GB.rsvd.max max"],
        ),
        (new().network_class_id(0x10_0001), &["net_cls.classid 1048577"], &[]),
        (
            new().network_priority("lo", 5).network_priority("eth0", 0),
            &["net_prio.ifpriomap eth0 0", "net_prio.ifpriomap lo 5"],
            &[],
        ),
        (
            new().rdma("mlx5_1", Rdma { hca_handles: Some(Limit::Value(3)), hca_objects: Some(Limit::Max) }),
            &["rdma.max mlx5_1 hca_handle=3 hca_object=max"],
            &["rdma.max mlx5_1 hca_handle=3 hca_object=max"],
        ),
        (
            new().rdma("mlx5_1", Rdma { hca_handles: None, hca_objects: Some(Limit::Value(0)) }),
            &["rdma.max mlx5_1 hca_object=0"],
            &["rdma.max mlx5_1 hca_object=0"],
        ),
        (new().rdma("mlx5_1", Rdma::default()), &[], &[]),
        // The greatest numbers are no limits to the kernel, and read back so.
        (
            new().rdma("mlx5_1", Rdma { hca_handles: Some(Limit::Value((1 << 31) - 1)), hca_objects: None }),
            &["rdma.max mlx5_1 hca_handle=max"],
            &["rdma.max mlx5_1 hca_handle=max"],
        ),
        (
            new().io_read_bps(DISK, u64::MAX).io_read_iops(DISK, u64::from(u32::MAX)),
            &["blkio.throttle.read_bps_device 8:0 0", "blkio.throttle.read_iops_device 8:0 0"],
            &["io.max 8:0 rbps=max wbps=max riops=max wiops=max"],
        ),
    ];
    for (resources, on_v1, on_v2) in cases {
        assert_eq!(created_on_v1(resources), *on_v1, "{resources:?}");
        assert_eq!(writes(&created(&v2(), resources)), *on_v2, "{resources:?}");
    }
}

#[test]
fn what_v2_does_not_have_is_in_the_report_and_an_error_in_strict_mode() {
    let nothing = Resources::new()
        .memory_kernel(Limit::Max)
        .memory_kernel_tcp(Limit::Max)
        .disable_oom_killer(false)
        .cpu_realtime_runtime(0)
        .cpu_realtime_period(1_000_000)
        .network_class_id(0);
    assert!(created(&v2(), &nothing).report.is_empty(), "what is so anyway");
    let cases = [
        (Resources::new().memory_swappiness(60), "memory.swappiness"),
        (Resources::new().disable_oom_killer(true), "memory.disableOOMKiller"),
        (Resources::new().memory_kernel(MIB), "memory.kernel"),
        (Resources::new().memory_kernel_tcp(MIB), "memory.kernelTCP"),
        (Resources::new().cpu_realtime_runtime(1), "cpu.realtimeRuntime"),
        (Resources::new().cpu_realtime_period(1), "cpu.realtimePeriod"),
        (Resources::new().io_leaf_weight(10), "blockIO.leafWeight"),
        (Resources::new().io_device_leaf_weight(DISK, 10), "blockIO.weightDevice.8:0.leafWeight"),
        (Resources::new().network_class_id(1), "network.classID"),
        (Resources::new().network_priority("lo", 1), "network.priorities.lo"),
        (Resources::new().hugepage_limit("64KB".parse().unwrap(), 0), "hugepageLimits.64KB"),
    ];
    for (resources, setting) in cases {
        let lines = created(&v2(), &resources).report.lines().to_vec();
        assert_eq!(lines.iter().map(|line| line.setting.as_ref()).collect::<Vec<_>>(), [setting]);
        let nothing = Resources::default();
        let strict = Want { unsupported: Unsupported::Refuse, ..want(&nothing, &resources, true) };
        let error = plan(&v2(), &strict, UNREAD).unwrap_err();
        assert_eq!((error.kind(), error.setting()), (ErrorKind::Unsupported, Some(setting)));
    }
}

#[test]
fn a_missing_controller_or_capability_is_reported_for_each_setting() {
    let mut host = v2();
    for hierarchy in &mut host.hierarchies {
        hierarchy.controllers.clear();
    }
    let everything = Resources::new()
        .memory_limit(MIB)
        .memory_swap(MIB)
        .memory_reservation(MIB)
        .cpu_shares(2)
        .cpu_quota(1000)
        .cpu_period(1000)
        .cpuset_cpus(set("0"))
        .cpuset_mems(set("0"))
        .pids_limit(1)
        .io_weight(10)
        .io_read_bps(DISK, 1)
        .hugepage_limit("2MB".parse().unwrap(), 0)
        .network_class_id(1)
        .network_priority("lo", 1)
        .rdma("x", Rdma { hca_handles: Some(Limit::Value(1)), hca_objects: Some(Limit::Value(2)) });
    let planned = created(&host, &everything);
    assert_eq!(writes(&planned), [""; 0]);
    let settings: Vec<_> = planned.report.lines().iter().map(|line| line.setting.as_ref()).collect();
    let expected = [
        "cpu.cpus",
        "cpu.mems",
        "memory.limit",
        "memory.reservation",
        "memory.swap",
        "cpu.period",
        "cpu.quota",
        "cpu.shares",
        "pids.limit",
        "blockIO.throttleReadBpsDevice",
        "blockIO.weight",
        "hugepageLimits.2MB",
        "network.classID",
        "network.priorities.lo",
        "rdma.x.hcaHandles",
        "rdma.x.hcaObjects",
    ];
    assert_eq!(settings, expected);

    let mut host = v1();
    host.capabilities = Default::default();
    let planned =
        created(&host, &Resources::new().memory_limit(MIB).memory_swap(MIB).cpu_quota(1000).cpu_idle(true));
    let settings: Vec<_> = planned.report.lines().iter().map(|line| line.setting.as_ref()).collect();
    assert_eq!(settings, ["memory.swap", "cpu.idle", "cpu.quota"]);

    let weights = Resources::new().io_weight(10).io_device_weight(DISK, 10).io_device_leaf_weight(DISK, 10);
    for mut host in [v1(), v2()] {
        host.capabilities.io_weight = false;
        let lines = created(&host, &weights).report.lines().to_vec();
        let expected =
            ["blockIO.weight", "blockIO.weightDevice.8:0.weight", "blockIO.weightDevice.8:0.leafWeight"];
        assert_eq!(lines.iter().map(|line| line.setting.as_ref()).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn bfq_weights_come_first_where_the_kernel_has_them() {
    let weights = Resources::new().io_weight(500).io_device_weight(DISK, 100);
    let (mut on_v1, mut on_v2) = (v1(), v2());
    on_v1.capabilities.bfq_weight = true;
    on_v2.capabilities.bfq_weight = true;
    let expected = ["blkio.bfq.weight 500", "blkio.bfq.weight_device 8:0 100"];
    assert_eq!(writes(&created(&on_v1, &weights))[2..], expected);
    assert_eq!(writes(&created(&on_v2, &weights)), ["io.bfq.weight 500", "io.bfq.weight 8:0 100"]);
}

#[test]
fn a_quota_brings_a_burst_of_its_size_unless_the_caller_says_something_about_bursts() {
    for (host, quota, burst) in
        [(v1(), "cpu.cfs_quota_us", "cpu.cfs_burst_us"), (v2(), "cpu.max", "cpu.max.burst")]
    {
        let new = Resources::new;
        let planned = |base: Resources, change: &Resources, now: Option<[&str; 2]>| {
            let Some(now) = now else {
                let want = Want { burst_by_default: true, ..want(&base, change, true) };
                let mut all = writes(&plan(&host, &want, UNREAD).unwrap());
                all.retain(|write| write.starts_with(burst));
                return all;
            };
            let want = Want { burst_by_default: true, ..want(&base, change, false) };
            let now = [(quota, now[0]), (burst, now[1]), ("cpu.cfs_period_us", "100000")];
            let mut all = writes(&plan(&host, &want, &holding(&now)).unwrap());
            all.retain(|write| write.starts_with(burst));
            all
        };
        let value = |us: u64| vec![format!("{burst} {us}")];
        let none: Vec<String> = Vec::new();
        assert_eq!(planned(new(), &new().cpu_quota(150_000), None), value(150_000));
        assert_eq!(planned(new(), &new().cpu_quota(150_000).cpu_burst(0), None), value(0));
        assert_eq!(planned(new(), &new().cpu_quota(150_000).cpu_burst(7), None), value(7));
        assert_eq!(planned(new(), &new().cpu_quota(Limit::Max), None), none);
        assert_eq!(planned(new(), &new().cpu_period(50_000), None), none);
        // The kernel reckons with 44 bits for both together.
        let half = (1 << 43) - 1;
        assert_eq!(planned(new(), &new().cpu_quota(half + 10), None), value(half - 9));
        let held = [if quota == "cpu.max" { "150000 100000" } else { "150000" }, "150000"];
        let base = new().cpu_quota(150_000);
        assert_eq!(planned(base.clone(), &new().cpu_quota(200_000), Some(held)), value(200_000));
        assert_eq!(planned(base.clone(), &new().cpu_quota(20_000), Some(held)), value(20_000));
        assert_eq!(planned(base.clone(), &new().cpu_quota(Limit::Max), Some(held)), value(0));
        assert_eq!(planned(base.clone(), &new().cpu_period(50_000), Some(held)), none);
        assert_eq!(planned(base.clone(), &new().cpu_burst(0), Some(held)), value(0));
        // What the caller set stays, up to the quota.
        let base = base.cpu_burst(30_000);
        let held = [held[0], "30000"];
        assert_eq!(planned(base.clone(), &new().cpu_quota(200_000), Some(held)), none);
        assert_eq!(planned(base.clone(), &new().cpu_quota(20_000), Some(held)), value(20_000));
        let mut old = host.clone();
        old.capabilities.cpu_burst = false;
        let (nothing, quota) = (new(), new().cpu_quota(5_000));
        let want = Want { burst_by_default: true, ..want(&nothing, &quota, true) };
        let planned = plan(&old, &want, UNREAD).unwrap();
        assert!(planned.report.is_empty(), "nobody asked for it: {planned}");
    }
}

#[test]
fn a_unified_value_that_the_kernel_refuses_is_refused_under_both_drivers() {
    for (file, value, expected) in [
        ("cpu.weight", "0", "takes 1 to 10000"),
        ("memory.high", "-1", "takes bytes"),
        ("memory.max", "-1", "takes bytes"),
        ("memory.oom.group", "invalid", "takes 0 or 1"),
        ("memory.oom.group", "2", "takes 0 or 1"),
        ("pids.max", "-1", "takes 0 to 4194304, or max"),
        ("pids.max", "64K", "takes 0 to 4194304, or max"),
        ("io.weight", "0", "takes 1 to 10000"),
        ("io.max", "8:0 rbps=0", "takes MAJOR:MINOR"),
        ("cpu.max", "5 100000", "takes a quota"),
        ("cgroup.max.depth", "-1", "takes 0 to 2147483647, or max"),
    ] {
        let change = Resources::new().unified(file, value);
        for systemd in [false, true] {
            let host = Host::standard(Mode::V2, systemd);
            let (nothing, path) =
                (Resources::default(), "rf.slice:p:x".parse::<crate::CgroupPath>().unwrap());
            let unit = systemd.then(|| UnitWant { name: path.for_systemd().unwrap(), description: "d" });
            let error = plan(&host, &Want { unit, ..want(&nothing, &change, true) }, UNREAD).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            let setting = format!("unified.{file}");
            assert_eq!((error.setting(), error.value()), (Some(setting.as_str()), Some(value)));
            assert!(error.message().starts_with(expected), "{error}");
        }
    }
}

#[test]
fn limits_of_cgroup_v2_itself_are_written_without_a_controller() {
    let change = Resources::new()
        .unified("cgroup.max.depth", "3")
        .unified("cgroup.max.descendants", "max")
        .pids_limit(5);
    for mode in [Mode::V2, Mode::Hybrid] {
        let plan = created(&Host::standard(mode, false), &change);
        let written = writes(&plan);
        assert!(
            written.ends_with(&["cgroup.max.depth 3".to_owned(), "cgroup.max.descendants max".to_owned()])
        );
        assert!(plan.report.is_empty(), "{plan}");
    }
    let error = plan(&v1(), &want(&Resources::default(), &change, true), UNREAD).unwrap_err();
    assert_eq!((error.kind(), error.setting()), (ErrorKind::Unsupported, Some("unified.cgroup.max.depth")));
    let error = Resources::new().unified("cgroup.max.events", "1").validate().unwrap_err();
    assert!(error.message().contains("cgroup.max.descendants"), "{error}");
}

#[test]
fn a_lifted_cpuset_of_v2_follows_its_parent() {
    let fields = Resources::new().cpuset_cpus(CpuSet::new()).cpuset_mems(CpuSet::new());
    let now = [("cpuset.cpus", "0-1"), ("cpuset.mems", "0")];
    for lifted in [
        fields.clone(),
        Resources::new().unified("cpuset.cpus", "").unified("cpuset.mems", "max\n"),
        Resources::new()
            .cpuset_cpus(set("1"))
            .cpuset_mems(set("0"))
            .unified("cpuset.cpus", "max")
            .unified("cpuset.mems", ""),
    ] {
        let planned = try_changed(&v2(), &Resources::default(), &lifted, &now).unwrap();
        assert_eq!(writes(&planned), ["cpuset.cpus \n", "cpuset.mems \n"]);
        assert_eq!(planned.steps[0].undo, Undo::write("cpuset.cpus", vec!["0-1".to_owned()]));
        assert!(planned.report.is_empty(), "{planned}");
        let json = serde_json::to_value(&planned).unwrap();
        assert_eq!(json["steps"][0]["value"], "");
        // It follows already, or its controller was never enabled; and a new one has nothing to lift.
        assert_eq!(changed(&v2(), &lifted, &[("cpuset.cpus", ""), ("cpuset.mems", "")]), [] as [&str; 0]);
        assert_eq!(changed(&v2(), &lifted, &[]), [] as [&str; 0]);
        let created = created(&v2(), &lifted);
        assert!(writes(&created).is_empty() && !created.to_string().contains("+cpuset"), "{created}");
    }
    let one = Resources::new().cpuset_cpus(set("0"));
    let planned = try_changed(&v2(), &Resources::default(), &one, &[("cpuset.cpus", "")]).unwrap();
    assert_eq!(planned.steps[0].undo, Undo::write("cpuset.cpus", vec!["\n".to_owned()]));
}

#[test]
fn a_lifted_cpuset_of_v1_has_what_its_parent_has() {
    let lifted = Resources::new().cpuset_cpus(CpuSet::new()).cpuset_mems(CpuSet::new());
    let files = [
        ("ringfence/a", "cpuset.cpus", "0"),
        ("ringfence/a", "cpuset.mems", "0"),
        ("ringfence", "cpuset.cpus", "0-3"),
        ("ringfence", "cpuset.mems", ""),
        ("", "cpuset.cpus", "0-7"),
        ("", "cpuset.mems", "0-1"),
    ];
    let nothing = Resources::default();
    let planned = plan(&v1(), &want(&nothing, &lifted, false), &tree(&files)).unwrap();
    assert_eq!(writes(&planned), ["cpuset.cpus 0-3", "cpuset.mems 0-1"]);
    assert_eq!(planned.steps[0].undo, Undo::write("cpuset.cpus", vec!["0".to_owned()]));
    // A new one is filled as if nothing was said.
    assert_eq!(writes(&created(&v1(), &lifted)), writes(&created(&v1(), &nothing)));
}

#[test]
fn parts_of_v1_have_the_lifted_set_of_what_is_above_them() {
    let lifted = Resources::new().cpuset_cpus(CpuSet::new()).cpuset_mems(CpuSet::new());
    let files = ["ringfence/a", "ringfence/a/vcpu", "ringfence/a/vcpu/0"]
        .map(|path| {
            [
                (path, "cpuset.cpus", if path == "ringfence/a" { "0-3" } else { "0" }),
                (path, "cpuset.mems", "0"),
            ]
        })
        .concat();
    let files =
        [files, vec![("ringfence", "cpuset.cpus", "0-3"), ("ringfence", "cpuset.mems", "0-1")]].concat();
    let part =
        |path: &str| PartWant { path: path.to_owned(), base: Resources::default(), change: lifted.clone() };
    let parts = [part("ringfence/a/vcpu"), part("ringfence/a/vcpu/0")];
    let (nothing, whole) = (Resources::default(), Resources::new().cpuset_mems(CpuSet::new()));
    let planned =
        plan(&v1(), &Want { parts: &parts, ..want(&nothing, &whole, false) }, &tree(&files)).unwrap();
    let last = |path: &str, name: &str| {
        let written = planned.steps.iter().rev().find_map(|step| match &step.action {
            Action::Write { dir, file, value } if &*dir.path == path && file == name => Some(value.clone()),
            _ => None,
        });
        written.unwrap_or_else(|| panic!("no {path}/{name} in {planned}"))
    };
    for path in ["ringfence/a/vcpu", "ringfence/a/vcpu/0"] {
        assert_eq!(
            (last(path, "cpuset.cpus"), last(path, "cpuset.mems")),
            ("0-3".to_owned(), "0-1".to_owned())
        );
    }
    assert_eq!(last("ringfence/a", "cpuset.mems"), "0-1");
}

#[test]
fn unified_wins_over_what_was_derived_and_comes_last_in_order() {
    let change = Resources::new()
        .memory_limit(MIB)
        .pids_limit(7)
        .unified("pids.max", "9")
        .unified("memory.high", "4096")
        .unified("cpu.weight", "50");
    assert_eq!(
        writes(&created(&v2(), &change)),
        ["memory.max 1048576", "cpu.weight 50", "memory.high 4096", "pids.max 9"]
    );
    // Of a file with a line for each device, what was derived for others stays, and comes before.
    let change = Resources::new().io_read_bps(DISK, 1).io_read_bps(OTHER, 2).io_weight(10);
    let change = change.unified("io.max", "8:16 rbps=3\n8:32 wiops=4").unified("io.weight", "8:0 200");
    let expected = [
        "io.weight 1",
        "io.max 8:0 rbps=1 wbps=max riops=max wiops=max",
        "io.max 8:16 rbps=2 wbps=max riops=max wiops=max",
        "io.max 8:16 rbps=3",
        "io.max 8:32 wiops=4",
        "io.weight 8:0 200",
    ];
    assert_eq!(writes(&created(&v2(), &change)), expected);
    // Everything that has no field of its own in OCI.
    let change = [
        ("memory.min", "4096"),
        ("memory.oom.group", "1"),
        ("memory.zswap.max", "0"),
        ("io.latency", "8:0 target=5000"),
        ("misc.max", "sev 5"),
        ("hugetlb.2MB.rsvd.max", "max"),
    ];
    let wanted = change.iter().fold(Resources::new(), |all, (file, value)| all.unified(*file, *value));
    let mut expected = change.map(|(file, value)| format!("{file} {value}"));
    expected.sort();
    assert_eq!(writes(&created(&v2(), &wanted)), expected);
}

#[test]
fn everything_that_a_missing_controller_would_do_is_reported() {
    let mut host = v1();
    for hierarchy in &mut host.hierarchies {
        hierarchy.controllers.clear();
    }
    let asked = Resources::new()
        .memory_swappiness(1)
        .memory_kernel_tcp(MIB)
        .disable_oom_killer(true)
        .cpu_burst(1)
        .cpu_idle(true)
        .cpu_realtime_period(1)
        .cpu_realtime_runtime(1);
    assert_eq!(created(&host, &asked).report.lines().len(), 7);
}

#[test]
fn unified_is_refused_where_there_is_no_v2_and_for_controllers_that_are_not_there() {
    let refused = |host: &Host, key: &str| {
        let change = Resources::new().unified(key, "1");
        plan(host, &want(&Resources::default(), &change, true), UNREAD).unwrap_err()
    };
    assert!(refused(&v1(), "memory.high").to_string().contains("v1"));
    let error = refused(&v2(), "nosuch.high");
    assert_eq!(error.setting(), Some("unified.nosuch.high"));
    let hybrid = Host::standard(Mode::Hybrid, false);
    assert_eq!(refused(&hybrid, "memory.high").kind(), ErrorKind::Unsupported);
}

#[test]
fn on_hybrid_each_controller_is_where_it_is_mounted_and_every_hierarchy_gets_the_directory() {
    let host = Host::standard(Mode::Hybrid, false);
    let planned = created(&host, &Resources::new().memory_limit(MIB).pids_limit(3));
    let made = |step: &&Step| matches!(&step.action, Action::MakeDir { ancestor: false, .. });
    assert_eq!(planned.steps.iter().filter(made).count(), host.hierarchies.len());
    let mut written = writes(&planned);
    written.retain(|write| !write.starts_with("cpuset."));
    assert_eq!(written, ["memory.limit_in_bytes 1048576", "pids.max 3"]);
}
