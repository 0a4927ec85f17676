//! The planner is pure: every row of the tables of settings is tested here, for any host, without a kernel.

mod delegation;
mod settings;

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::*;
use crate::devices::DeviceNumber;
use crate::resources::{CpuSet, Limit, Rdma};
use crate::{Mode, Resources};

const MIB: u64 = 1 << 20;
const DISK: DeviceNumber = DeviceNumber { major: 8, minor: 0 };
const OTHER: DeviceNumber = DeviceNumber { major: 8, minor: 16 };

fn want<'a>(base: &'a Resources, change: &'a Resources, create: bool) -> Want<'a> {
    Want { create, ..Want::change("ringfence/a", base, change) }
}

/// The writes to files of the cgroup itself: `file value`.
fn writes(plan: &Plan) -> Vec<String> {
    let own = |step: &Step| match &step.action {
        Action::Write { dir, file, value } if &*dir.path == "ringfence/a" => Some(format!("{file} {value}")),
        _ => None,
    };
    plan.steps.iter().filter_map(own).collect()
}

fn created(host: &Host, change: &Resources) -> Plan {
    plan(host, &want(&Resources::default(), change, true), UNREAD).unwrap()
}

/// A change of a cgroup whose files hold this now.
fn try_changed(
    host: &Host,
    base: &Resources,
    change: &Resources,
    now: &[(&'static str, &str)],
) -> Result<Plan> {
    let want = want(base, change, false);
    plan(host, &want, &holding(now))
}

/// All controllers are.
const ENABLED: (&str, &str) = ("cgroup.controllers", "cpuset cpu io memory hugetlb pids rdma misc");

/// A cgroup with these files and no others.
fn holding<'a>(now: &'a [(&'static str, &str)]) -> impl Fn(FileAt<'_>) -> Result<Option<String>> + 'a {
    |file| {
        let known = now.iter().chain([&ENABLED]).find(|(name, _)| *name == file.name);
        Ok(known.map(|(_, content)| (*content).to_owned()))
    }
}

/// A hierarchy with these files: path, name and content.
fn tree<'a>(files: &'a [(&str, &str, &str)]) -> impl Fn(FileAt<'_>) -> Result<Option<String>> + 'a {
    |file| {
        let known = files.iter().find(|(path, name, _)| *path == file.path && *name == file.name);
        Ok(known.map(|(.., content)| (*content).to_owned()))
    }
}

fn changed(host: &Host, change: &Resources, now: &[(&'static str, &str)]) -> Vec<String> {
    writes(&try_changed(host, &Resources::default(), change, now).unwrap())
}

fn v1() -> Host {
    Host::standard(Mode::V1, false)
}

fn v2() -> Host {
    Host::standard(Mode::V2, false)
}

fn set(text: &str) -> CpuSet {
    text.parse().unwrap()
}

#[test]
fn a_throttle_leaves_the_others_of_its_device_as_they_are() {
    let now =
        [("io.max", "8:16 rbps=1 wbps=max riops=max wiops=max\n8:0 rbps=max wbps=77 riops=max wiops=3")];
    let change = Resources::new().io_read_bps(DISK, 9).io_write_iops(DISK, Limit::Max);
    assert_eq!(changed(&v2(), &change, &now), ["io.max 8:0 rbps=9 wbps=77 riops=max wiops=max"]);
    let planned = try_changed(&v2(), &Resources::default(), &change, &now).unwrap();
    let back = "8:0 riops=max rbps=max wbps=77 wiops=3";
    let Undo::Write(undo) = &planned.steps[0].undo else { panic!("{planned}") };
    assert_eq!(undo.len(), 1);
    let sorted = |line: &str| line.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(sorted(&undo[0].1), sorted(back));
}

#[test]
fn v1_keeps_the_limit_of_memory_below_that_of_memory_and_swap_at_every_step() {
    const NONE: &str = "9223372036854771712";
    let limits = |limit, swap| [("memory.limit_in_bytes", limit), ("memory.memsw.limit_in_bytes", swap)];
    let grow = Resources::new().memory_limit(200000).memory_swap(300000);
    assert_eq!(
        changed(&v1(), &grow, &limits("100000", "100000")),
        ["memory.memsw.limit_in_bytes 300000", "memory.limit_in_bytes 200000"]
    );
    assert_eq!(
        changed(&v1(), &grow, &limits("400000", "400000")),
        ["memory.limit_in_bytes 200000", "memory.memsw.limit_in_bytes 300000"]
    );
    assert_eq!(
        changed(&v1(), &grow, &limits(NONE, NONE)),
        ["memory.limit_in_bytes 200000", "memory.memsw.limit_in_bytes 300000"]
    );
    // Above the present memory+swap, without one given: raised with it.
    assert_eq!(
        changed(&v1(), &Resources::new().memory_limit(500000), &limits("100000", "300000")),
        ["memory.memsw.limit_in_bytes 500000", "memory.limit_in_bytes 500000"]
    );
    assert_eq!(
        changed(&v1(), &Resources::new().memory_limit(200000), &limits("100000", "300000")),
        ["memory.limit_in_bytes 200000"]
    );
    assert_eq!(
        changed(&v1(), &Resources::new().memory_limit(Limit::Max), &limits("100000", "300000")),
        ["memory.memsw.limit_in_bytes -1", "memory.limit_in_bytes -1"]
    );
    assert_eq!(
        changed(&v1(), &Resources::new().memory_swap(400000), &limits("100000", "300000")),
        ["memory.memsw.limit_in_bytes 400000"]
    );
}

#[test]
fn swap_without_a_limit_of_memory_is_an_error_in_both_versions() {
    for host in [v1(), v2()] {
        let swap = Resources::new().memory_swap(MIB);
        let error = plan(&host, &want(&Resources::default(), &swap, true), UNREAD).unwrap_err();
        assert_eq!(
            (error.kind(), error.setting()),
            (ErrorKind::InvalidInput, Some("memory.swap")),
            "{error}"
        );
    }
}

#[test]
fn v2_refuses_a_limit_below_what_is_in_use_unless_forced() {
    let now = [("memory.max", "max"), ("memory.swap.max", "max"), ("memory.current", "5000000")];
    let nothing = Resources::default();
    let lower = Resources::new().memory_limit(4 * MIB);
    let error = try_changed(&v2(), &nothing, &lower, &now).unwrap_err();
    assert_eq!((error.kind(), error.setting()), (ErrorKind::Busy, Some("memory.limit")));
    assert!(error.to_string().contains("5000000"), "{error}");
    assert_eq!(changed(&v2(), &Resources::new().memory_limit(5 * MIB), &now), ["memory.max 5242880"]);
    let mut forced = want(&nothing, &lower, false);
    forced.force = true;
    let used = [("memory.current", "5000000")];
    assert_eq!(writes(&plan(&v2(), &forced, &holding(&used)).unwrap()), ["memory.max 4194304"]);
}

#[test]
fn v1_refuses_before_writing_where_the_caller_wants_that() {
    let now = [("memory.limit_in_bytes", "9000000"), ("memory.usage_in_bytes", "5000000")];
    let mut lower = Resources::new().memory_limit(4 * MIB);
    lower.memory.check_before_update = Some(true);
    let error = try_changed(&v1(), &Resources::default(), &lower, &now).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
}

#[test]
fn on_v2_a_lone_half_of_the_bandwidth_keeps_the_other() {
    let now = [("cpu.max", "20000 50000"), ("cpu.max.burst", "0")];
    assert_eq!(changed(&v2(), &Resources::new().cpu_quota(30_000), &now), ["cpu.max 30000 50000"]);
    assert_eq!(changed(&v2(), &Resources::new().cpu_period(40_000), &now), ["cpu.max 20000 40000"]);
    assert_eq!(changed(&v2(), &Resources::new().cpu_quota(Limit::Max), &now), ["cpu.max max 50000"]);
}

#[test]
fn the_burst_never_exceeds_the_quota_at_any_step() {
    for (host, quota, burst) in
        [(v1(), "cpu.cfs_quota_us", "cpu.cfs_burst_us"), (v2(), "cpu.max", "cpu.max.burst")]
    {
        let v1 = quota == "cpu.cfs_quota_us";
        let value = |us: u64| if v1 { format!("{quota} {us}") } else { format!("{quota} {us} 100000") };
        let text = if v1 { "20000" } else { "20000 100000" };
        let now = [(quota, text), (burst, "15000"), ("cpu.cfs_period_us", "100000")];
        let new = Resources::new;
        // A burst that was left over goes down with the quota, before it.
        assert_eq!(changed(&host, &new().cpu_quota(10_000), &now), [format!("{burst} 10000"), value(10_000)]);
        assert_eq!(changed(&host, &new().cpu_quota(30_000), &now), [value(30_000)]);
        // Raising: the quota first.
        assert_eq!(
            changed(&host, &new().cpu_quota(30_000).cpu_burst(25_000), &now),
            [value(30_000), format!("{burst} 25000")]
        );
        // Lowering: the burst first.
        assert_eq!(
            changed(&host, &new().cpu_quota(10_000).cpu_burst(5_000), &now),
            [format!("{burst} 5000"), value(10_000)]
        );
        let error = try_changed(&host, &Resources::default(), &new().cpu_burst(20_001), &now).unwrap_err();
        assert_eq!(error.setting(), Some("cpu.burst"));
    }
}

#[test]
fn an_idle_cgroup_takes_its_weight_when_it_is_idle_no_more() {
    for (host, file, was, value) in
        [(v1(), "cpu.shares", "512", "cpu.shares 2048"), (v2(), "cpu.weight", "50", "cpu.weight 170")]
    {
        let new = Resources::new;
        let weight = |value: &str| value.split_once(' ').unwrap().0.to_owned();
        let idle = [(file, was), ("cpu.idle", "1")];
        let busy = [(file, was), ("cpu.idle", "0")];
        let names = |all: Vec<String>| all.iter().map(|write| weight(write)).collect::<Vec<_>>();
        assert_eq!(names(changed(&host, &new().cpu_shares(2048).cpu_idle(true), &busy)), [file, "cpu.idle"]);
        assert_eq!(names(changed(&host, &new().cpu_shares(2048).cpu_idle(false), &idle)), ["cpu.idle", file]);
        // What was wanted before comes back, since the kernel forgets it.
        let base = new().cpu_shares(2048);
        let back = writes(&try_changed(&host, &base, &new().cpu_idle(false), &idle).unwrap());
        assert_eq!(back.len(), 2, "{back:?}");
        assert!(back[1].starts_with(&weight(value)), "{back:?}");
        // A weight alone cannot be written: reported.
        let planned = try_changed(&host, &Resources::default(), &new().cpu_shares(2048), &idle).unwrap();
        assert_eq!((writes(&planned).len(), planned.report.lines().len()), (0, 1));
        // Undoing idle = 1 brings the weight back that idle = 0 resets.
        let planned = try_changed(&host, &Resources::default(), &new().cpu_idle(true), &busy).unwrap();
        let undo = Undo::Write(vec![("cpu.idle".into(), "0".into()), (file.into(), was.into())]);
        assert_eq!(planned.steps[0].undo, undo);
    }
}

#[test]
fn a_change_is_undone_by_what_the_files_hold_now() {
    let now = [("pids.max", "max"), ("cpuset.cpus", ""), ("memory.max", "1048576")];
    let change = Resources::new().pids_limit(5).cpuset_cpus(set("0")).memory_limit(2 * MIB);
    let planned = try_changed(&v2(), &Resources::default(), &change, &now).unwrap();
    let undo: Vec<_> = planned.steps.iter().map(|step| step.undo.clone()).collect();
    let write = |file: &'static str, value: &str| Undo::Write(vec![(file.into(), value.to_owned())]);
    assert_eq!(undo, [write("cpuset.cpus", "\n"), write("memory.max", "1048576"), write("pids.max", "max")]);
}

#[test]
fn a_new_v1_cpuset_is_filled_top_down_before_anything_can_join() {
    let planned = created(&v1(), &Resources::new().cpuset_cpus(set("1")));
    let fill = |step: &Step| match &step.action {
        Action::Write { dir, file, value } if file.starts_with("cpuset.") => {
            Some(format!("{}/{file} {value}", dir.path))
        }
        _ => None,
    };
    let expected = [
        "ringfence/cpuset.cpus 0-1",
        "ringfence/a/cpuset.cpus 1",
        "ringfence/cpuset.mems 0",
        "ringfence/a/cpuset.mems 0",
    ];
    assert_eq!(planned.steps.iter().filter_map(fill).collect::<Vec<_>>(), expected);
}

#[test]
fn what_an_existing_parent_holds_is_inherited_and_where_it_is_empty_it_is_filled() {
    let host = v1();
    let (nothing, change) = (Resources::default(), Resources::default());
    let want = want(&nothing, &change, true);
    let filled = |parent: &str| {
        let files = [
            ("ringfence", "cpuset.cpus", parent),
            ("ringfence", "cpuset.mems", "0"),
            ("", "cpuset.cpus", "0-1"),
            ("", "cpuset.mems", "0"),
        ];
        let planned = plan(&host, &want, &tree(&files)).unwrap();
        let cpus = |step: &Step| match &step.action {
            Action::Write { dir, file, value } if file == "cpuset.cpus" => {
                Some(format!("{} {value}", dir.path))
            }
            _ => None,
        };
        planned.steps.iter().filter_map(cpus).collect::<Vec<_>>()
    };
    assert_eq!(filled("1"), ["ringfence/a 1"]);
    assert_eq!(filled(""), ["ringfence 0-1", "ringfence/a 0-1"]);
}

#[test]
fn a_cpuset_above_the_nearest_full_one_is_never_written() {
    let host = v1();
    let (nothing, change) = (Resources::default(), Resources::default());
    let want = Want { path: "pods/pod/made/a", ..want(&nothing, &change, true) };
    let files = [("pods/pod", "cpuset.cpus", "1"), ("pods/pod", "cpuset.mems", "0")];
    let planned = plan(&host, &want, &tree(&files)).unwrap();
    let filled = |step: &Step| match &step.action {
        Action::Write { dir, file, value } if file.starts_with("cpuset.") => {
            Some(format!("{}/{file} {value}", dir.path))
        }
        _ => None,
    };
    let expected = [
        "pods/pod/made/cpuset.cpus 1",
        "pods/pod/made/a/cpuset.cpus 1",
        "pods/pod/made/cpuset.mems 0",
        "pods/pod/made/a/cpuset.mems 0",
    ];
    assert_eq!(planned.steps.iter().filter_map(filled).collect::<Vec<_>>(), expected);
}

#[test]
fn v2_enables_what_is_limited_and_what_statistics_need_and_nothing_else() {
    let nothing = Resources::default();
    let change = Resources::new().pids_limit(5).cpuset_cpus(set("0"));
    let mut want = want(&nothing, &change, true);
    want.statistics = &[Controller::Cpu, Controller::Pids];
    let planned = plan(&v2(), &want, UNREAD).unwrap();
    let told: Vec<_> = planned
        .steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::EnableControllers { dir, required, wanted, .. } => {
                Some((dir.path.clone(), required.clone(), wanted.clone()))
            }
            Action::MakeDir { dir, .. } => Some((dir.path.clone(), Vec::new(), Vec::new())),
            _ => None,
        })
        .collect();
    let (required, wanted) = (vec![Controller::Cpuset, Controller::Pids], vec![Controller::Cpu]);
    let expected = [
        ("".into(), required.clone(), wanted.clone()),
        ("ringfence".into(), Vec::new(), Vec::new()),
        ("ringfence".into(), required, wanted),
        ("ringfence/a".into(), Vec::new(), Vec::new()),
    ];
    assert_eq!(told, expected);
}

#[test]
fn real_time_never_exceeds_its_period_at_any_step() {
    let mut host = v1();
    host.capabilities.cpu_rt = true;
    let now = [("cpu.rt_period_us", "1000000"), ("cpu.rt_runtime_us", "900000")];
    let less = Resources::new().cpu_realtime_period(1000).cpu_realtime_runtime(500);
    assert_eq!(changed(&host, &less, &now), ["cpu.rt_runtime_us 500", "cpu.rt_period_us 1000"]);
    let more = Resources::new().cpu_realtime_period(2_000_000).cpu_realtime_runtime(1_500_000);
    assert_eq!(changed(&host, &more, &now), ["cpu.rt_period_us 2000000", "cpu.rt_runtime_us 1500000"]);
}

#[test]
fn v2_takes_cpus_from_a_part_before_they_are_taken_from_the_part_above() {
    let nothing = Resources::default();
    let cpus = |now: &str, next: &str| {
        let change = Resources::new().cpuset_cpus(set(next));
        let part = |path: &str| PartWant {
            path: format!("ringfence/a/{path}"),
            base: Resources::default(),
            change: change.clone(),
        };
        let parts = [part("vcpu"), part("vcpu/0")];
        let want = Want { parts: &parts, ..want(&nothing, &nothing, false) };
        let planned = plan(&v2(), &want, &holding(&[("cpuset.cpus", now)])).unwrap();
        let written = |step: &Step| match &step.action {
            Action::Write { dir, value, .. } => {
                let is_verified = if step.verify == Verify::Accepted { "" } else { " verified" };
                Some(format!("{} {value}{is_verified}", dir.name()))
            }
            _ => None,
        };
        planned.steps.iter().filter_map(written).collect::<Vec<_>>()
    };
    assert_eq!(cpus("0-1", "1"), ["0 1 verified", "vcpu 1 verified"]);
    assert_eq!(cpus("1", "0-1"), ["vcpu 0-1 verified", "0 0-1 verified"]);
    assert_eq!(cpus("0", "1"), ["vcpu 0,1", "0 1 verified", "vcpu 1 verified"]);
    assert_eq!(cpus("", "1"), ["vcpu 1 verified", "0 1 verified"]);
}

#[test]
fn a_plan_reads_only_what_ordering_and_undo_require() {
    let nothing = Resources::default();
    let needed = |host: &Host, change: &Resources, create: bool| -> Vec<_> {
        let asked = RefCell::new(BTreeSet::new());
        let read = |file: FileAt<'_>| {
            let is_new = asked.borrow_mut().insert(format!("{}/{}", file.path, file.name));
            assert!(is_new, "{file:?} is read twice");
            Ok(Some(String::new()))
        };
        plan(host, &want(&nothing, change, create), &read).unwrap();
        asked.take().into_iter().collect()
    };
    let own = |files: &[&str]| files.iter().map(|file| format!("ringfence/a/{file}")).collect::<Vec<_>>();
    let pids = Resources::new().pids_limit(5);
    assert_eq!(needed(&v2(), &pids, true), [""; 0]);
    // How many run is told, where the limit is lowered.
    assert_eq!(needed(&v2(), &pids, false), own(&["pids.current", "pids.max"]));
    assert_eq!(needed(&v1(), &pids, false), own(&["pids.current", "pids.max"]));
    assert_eq!(needed(&v2(), &nothing, false), [""; 0]);
    let quota = Resources::new().cpu_quota(5000);
    assert_eq!(needed(&v2(), &quota, false), own(&["cpu.max", "cpu.max.burst"]));
    let v1_quota = ["cpu.cfs_burst_us", "cpu.cfs_period_us", "cpu.cfs_quota_us"];
    assert_eq!(needed(&v1(), &quota, false), own(&v1_quota));
    let io = Resources::new().io_read_bps(DeviceNumber { major: 8, minor: 0 }, 4096);
    assert_eq!(needed(&v2(), &io, false), own(&["io.max"]));
    assert_eq!(needed(&v1(), &io, false), own(&["blkio.throttle.read_bps_device"]));
    // The ancestors' cpusets for a new cgroup on v1, up to the first that is not empty.
    let above = ["/cpuset.cpus", "/cpuset.mems", "ringfence/cpuset.cpus", "ringfence/cpuset.mems"];
    assert_eq!(needed(&v1(), &pids, true), above);
}

#[test]
fn what_cannot_be_read_is_the_error_whatever_else_is_wrong() {
    let broken = |file: FileAt<'_>| Err(Error::new(ErrorKind::Kernel, file.name.to_owned()));
    let (nothing, change) = (Resources::default(), Resources::new().pids_limit(5).memory_swap(1 << 20));
    let error = plan(&v1(), &want(&nothing, &change, false), &broken).unwrap_err();
    assert_eq!(error.to_string(), "memory.memsw.limit_in_bytes");
}
