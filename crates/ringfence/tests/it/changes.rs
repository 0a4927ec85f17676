//! Changes of a live sandbox, from every state to every other, on a real kernel: no step fails, and the files say what
//! was asked. What is refused leaves every file as it was.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // clippy.toml frees only #[test] functions.

use crate::support::soak::pairs;
use crate::support::{self, Guarded, MIB, SOON, by_systemd, disks, name, skip};
use ringfence::{
    Cgroup, ChangeOptions, Command, ErrorKind, Host, Limit, Remaining, Resources, Sandbox, SandboxConfig,
    Unsupported, null,
};

testbed! {
    drivers: "cgroupfs systemd";
    soak: "trixie";
}

/// The bandwidth that is in force where this one is asked for: systemd has whole hundredths of a CPU, and no period without
/// a quota.
fn kept((quota, period, burst): (Limit, u64, u64)) -> (Limit, u64, u64) {
    match quota {
        _ if !by_systemd() => (quota, period, burst),
        Limit::Max => (Limit::Max, 100_000, burst),
        Limit::Value(quota) => {
            let per_second = (quota * 1_000_000).div_ceil(period).next_multiple_of(10_000);
            (Limit::Value(per_second * period / 1_000_000), period, burst)
        }
    }
}

#[test]
fn every_bandwidth_follows_every_other() {
    let host = Host::detect().unwrap();
    let _in_force = Guarded::with_a_quota(&host);
    let vm = Guarded::new(&host, "bandwidth", Resources::new());
    let bursts = vm.file("cpu", "cpu.cfs_burst_us", "cpu.max.burst").is_some();
    let states: Vec<(Limit, u64, u64)> = [
        (Limit::Max, 100_000, 0),
        (Limit::Max, 1_000_000, 60_000),
        (Limit::Value(1_000), 1_000, 0),
        (Limit::Value(1_000), 1_000_000, 1_000),
        (Limit::Value(50_000), 100_000, 0),
        (Limit::Value(50_000), 100_000, 50_000),
        (Limit::Value(200_000), 100_000, 60_000),
        (Limit::Value(2_000_000), 1_000_000, 2_000_000),
        (Limit::Value(5_000), 10_000, 2_500),
    ]
    .into_iter()
    .map(|(quota, period, burst)| (quota, period, if bursts { burst } else { 0 }))
    .collect();
    let all = |(quota, period, burst): (Limit, u64, u64)| {
        Resources::new().cpu_quota(quota).cpu_period(period).cpu_burst(burst)
    };
    let now = || {
        let burst =
            vm.file("cpu", "cpu.cfs_burst_us", "cpu.max.burst").map_or(0, |text| text.parse().unwrap());
        let quota = vm.file("cpu", "cpu.cfs_quota_us", "cpu.max").unwrap();
        let (quota, period) = match quota.split_once(' ') {
            Some((quota, period)) => (quota.to_owned(), period.to_owned()),
            None => (quota, vm.file("cpu", "cpu.cfs_period_us", "").unwrap()),
        };
        (quota.parse().map_or(Limit::Max, Limit::Value), period.parse().unwrap(), burst)
    };
    for (from, to) in pairs(&states) {
        vm.change(&all(*from)).unwrap_or_else(|error| panic!("back to {from:?}: {error}"));
        assert_eq!(now(), kept(*from));
        vm.change(&all(*to)).unwrap_or_else(|error| panic!("{from:?} to {to:?}: {error}"));
        assert_eq!(now(), kept(*to), "from {from:?}");
        // One half, or a third of it, alone.
        vm.change(&all(*from)).unwrap();
        vm.change(&Resources::new().cpu_quota(to.0))
            .unwrap_or_else(|error| panic!("{from:?} to the quota of {to:?}: {error}"));
        let left = match to.0 {
            Limit::Value(quota) => from.2.min(quota),
            Limit::Max => from.2,
        };
        assert_eq!(now(), kept((to.0, from.1, left)), "the quota of {to:?}");
        let state = vm.state().resources.cpu;
        assert_eq!((state.quota, state.period, state.burst), (Some(to.0), Some(from.1), Some(left)));
        vm.change(&Resources::new().cpu_period(to.1))
            .unwrap_or_else(|error| panic!("{from:?} to the period of {to:?}: {error}"));
        assert_eq!(now(), kept((to.0, to.1, left)), "the period of {to:?}");
    }
}

#[test]
fn every_weight_and_idleness_follows_every_other() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "weight", Resources::new());
    if vm.file("cpu", "cpu.idle", "cpu.idle").is_none() {
        return skip("this kernel has no cpu.idle");
    }
    let weight = |weight: u64| match (vm.is_on_v1("cpu"), weight) {
        (true, 1) => "2".to_owned(),
        (true, 100) => "1024".to_owned(),
        (true, 10_000) => "262144".to_owned(),
        (_, weight) => weight.to_string(),
    };
    let now = || {
        let idle = vm.file("cpu", "cpu.idle", "cpu.idle").unwrap();
        (vm.file("cpu", "cpu.shares", "cpu.weight").unwrap(), idle == "1")
    };
    let states: Vec<(u64, bool)> =
        [1, 100, 10_000].into_iter().flat_map(|weight| [(weight, false), (weight, true)]).collect();
    let all = |(weight, idle): (u64, bool)| Resources::new().cpu_weight(weight).cpu_idle(idle);
    for (from, to) in pairs(&states) {
        vm.change(&all(*from)).unwrap_or_else(|error| panic!("back to {from:?}: {error}"));
        vm.change(&all(*to)).unwrap_or_else(|error| panic!("{from:?} to {to:?}: {error}"));
        let (held, idle) = now();
        assert_eq!(idle, to.1, "{from:?} to {to:?}");
        // While it is idle, the kernel shows another weight or the old one.
        assert!(idle || held == weight(to.0), "{from:?} to {to:?}: {held}");
        vm.change(&Resources::new().cpu_idle(false)).unwrap();
        assert_eq!(now(), (weight(to.0), false), "{from:?} to {to:?}, then not idle");
    }
}

#[test]
fn every_limit_of_memory_follows_every_other() {
    use Limit::{Max, Value};
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "memory", Resources::new());
    let v1 = vm.is_on_v1("memory");
    let swap = vm.file("memory", "memory.memsw.limit_in_bytes", "memory.swap.max").is_some();
    let now = || {
        let limit = vm.number("memory", "memory.limit_in_bytes", "memory.max");
        let swap = swap.then(|| vm.number("memory", "memory.memsw.limit_in_bytes", "memory.swap.max"));
        (limit, swap)
    };
    let states = [
        (Max, Max),
        (Value(64 * MIB), Max),
        (Value(64 * MIB), Value(64 * MIB)),
        (Value(64 * MIB), Value(96 * MIB)),
        (Value(128 * MIB), Value(128 * MIB)),
        (Value(200 * MIB), Value(300 * MIB)),
        (Value(64 * MIB + 1), Value(96 * MIB + 5000)),
        (Value(i64::MAX.cast_unsigned()), Value(i64::MAX.cast_unsigned())),
    ];
    let page = |limit: Limit| match limit {
        Value(bytes) if bytes < i64::MAX.cast_unsigned() - 65_536 => Value(bytes - bytes % 4096),
        _ => Max,
    };
    // What the file of swap holds for memory plus swap.
    let held = |limit: Limit, both: Limit| match (limit, both) {
        (Value(limit), Value(both)) if !v1 => page(Value(both - limit)),
        (_, both) => page(both),
    };
    for (&from, &to) in pairs(&states) {
        let all = |(limit, both): (Limit, Limit)| Resources::new().memory_limit(limit).memory_swap(both);
        vm.change(&all(from)).unwrap_or_else(|error| panic!("back to {from:?}: {error}"));
        vm.change(&all(to)).unwrap_or_else(|error| panic!("{from:?} to {to:?}: {error}"));
        assert_eq!(now(), (page(to.0), swap.then(|| held(to.0, to.1))), "{from:?} to {to:?}");
        if to.0 == Value(i64::MAX.cast_unsigned()) {
            // No memory plus swap can be said that leaves any swap beside it.
            continue;
        }
        vm.change(&all(from)).unwrap();
        vm.change(&Resources::new().memory_limit(to.0))
            .unwrap_or_else(|error| panic!("{from:?} to the limit of {to:?}: {error}"));
        let state = vm.state().resources;
        state.validate().unwrap();
        let (limit, both) = (state.memory.limit.unwrap(), state.memory.swap.unwrap());
        assert_eq!(limit, to.0);
        assert_eq!(now(), (page(limit), swap.then(|| held(limit, both))), "{from:?} to {:?} alone", to.0);
        // Swap alone.
        vm.change(&all(from)).unwrap();
        let changed = vm.change(&Resources::new().memory_swap(to.1));
        if to.1 < from.0 {
            let error = changed.unwrap_err();
            assert_eq!((error.kind(), error.setting()), (ErrorKind::InvalidInput, Some("memory.swap")));
            assert_eq!(now(), (page(from.0), swap.then(|| held(from.0, from.1))));
            assert_eq!(vm.state().resources.memory.swap, Some(from.1));
        } else {
            changed.unwrap_or_else(|error| panic!("{from:?} to the swap of {to:?}: {error}"));
            assert_eq!(now(), (page(from.0), swap.then(|| held(from.0, to.1))), "{from:?}, swap {:?}", to.1);
        }
    }
}

#[test]
fn swap_beside_a_limit_that_is_not_ours_is_refused_and_what_is_recorded_can_be_compared() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "not-ours", Resources::new());
    let (dir, is_v1) = vm.dir("memory");
    let file = dir.join(if is_v1 { "memory.limit_in_bytes" } else { "memory.max" });
    std::fs::write(file, "256M").unwrap();
    let error = vm.change(&Resources::new().memory_swap(512 * MIB)).unwrap_err();
    assert_eq!((error.kind(), error.setting()), (ErrorKind::InvalidInput, Some("memory.swap")));
    assert_eq!(vm.diff().unwrap(), []);
    vm.change(&Resources::new().memory_limit(256 * MIB).memory_swap(512 * MIB)).unwrap();
    assert_eq!(vm.diff().unwrap(), []);
}

#[test]
fn what_is_in_force_is_what_is_recorded_whatever_it_was_called() {
    let host = Host::detect().unwrap();
    if host.mode != ringfence::Mode::V2 {
        return skip("unified settings need cgroup v2");
    }
    let new = Resources::new;
    let states = [
        new().cpu_quota(50_000).unified("cpu.max.burst", "50000"),
        new().unified("cpu.max", "20000 50000"),
        new().cpu_quota(20_000),
        new().unified("cpu.max", "max"),
        new().cpu_period(20_000),
        new().unified("cpu.weight", "70"),
        new().cpu_shares(2),
        new().memory_limit(200 * MIB).memory_swap(300 * MIB).unified("memory.max", "250M"),
        new().unified("memory.max", "100M").unified("memory.swap.max", "10M"),
        new().memory_limit(Limit::Max),
    ];
    for (first, second) in pairs(&states) {
        let vm = Guarded::new(&host, "names", first.clone());
        assert_eq!(vm.diff().unwrap(), [], "{first:?}");
        vm.change(second).unwrap_or_else(|error| panic!("{first:?} then {second:?}: {error}"));
        assert_eq!(vm.diff().unwrap(), [], "{first:?} then {second:?}");
    }
}

#[test]
fn a_limit_below_what_is_in_use_is_refused_and_everything_is_as_it_was() {
    let host = Host::detect().unwrap();
    let resources = Resources::new().memory_limit(200 * MIB).memory_swap(200 * MIB).pids_limit(50);
    let vm = Guarded::new(&host, "below", resources.clone());
    let child = vm.holding(40);
    let (files, state) = (vm.files(), vm.state());
    let swap = vm.file("memory", "memory.memsw.limit_in_bytes", "memory.swap.max").is_some();
    if vm.is_on_v1("memory") && !swap {
        return skip("without swap accounting v1 may swap out what is too much");
    }
    // The steps before and after it are undone, or never done.
    let lower = Resources::new().memory_limit(8 * MIB).memory_swap(8 * MIB).cpuset_cpus("0".parse().unwrap());
    let error = vm.change(&lower.pids_limit(60).memory_reservation(MIB)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(error.setting().unwrap().starts_with("memory."), "{error}");
    // The usage that is meant is above the limit that was asked for, and v1 knows the peak.
    let numbers: Vec<u64> = error.message().split(' ').filter_map(|word| word.parse().ok()).collect();
    assert_eq!(numbers.len(), if vm.is_on_v1("memory") { 2 } else { 1 }, "{error}");
    assert!(numbers.iter().all(|number| *number > 8 * MIB), "{error}");
    assert_eq!(vm.files(), files);
    assert_eq!(serde_json::to_value(vm.state()).unwrap(), serde_json::to_value(state).unwrap());
    if vm.is_on_v1("memory") {
        let mut checked = Resources::new().memory_limit(4096);
        checked.memory.check_before_update = Some(true);
        assert_eq!(vm.change(&checked).unwrap_err().kind(), ErrorKind::Busy);
    } else {
        // Also by the file's own name.
        let unified = Resources::new().unified("memory.max", "8M");
        let error = vm.change(&unified).unwrap_err();
        assert_eq!((error.kind(), error.setting()), (ErrorKind::Busy, Some("unified.memory.max")), "{error}");
        assert!(vm.processes().unwrap().contains(&child.pid()));
    }
    assert_eq!(vm.processes().unwrap(), [child.pid()].into(), "nothing was killed");
    vm.kill(SOON).unwrap();
    child.wait().unwrap();
}

#[test]
fn unified_files_that_bound_each_other_are_written_in_an_order_that_the_kernel_takes() {
    let host = Host::detect().unwrap();
    if host.mode != ringfence::Mode::V2 {
        return skip("unified settings need cgroup v2");
    }
    let vm = Guarded::new(&host, "unified", Resources::new());
    let file = |name: &str| vm.file("unified", name, name);
    let burst = |value: &str| file("cpu.max.burst").is_none_or(|found| found == value);
    let set = |pairs: &[(&str, &str)]| {
        let change = pairs.iter().fold(Resources::new(), |change, (key, value)| change.unified(*key, *value));
        let report = vm.change(&change).unwrap_or_else(|error| panic!("{pairs:?}: {error}"));
        for (key, value) in pairs {
            match file(key) {
                Some(found) => assert_eq!(found, *value, "{pairs:?}"),
                // `cpu.max.burst` is of Linux 5.14, `cpu.idle` of 5.15; the report has them by OCI's names.
                // Not idle is what a kernel without the file has.
                None if (*key, *value) == ("cpu.idle", "0") => {}
                None => {
                    let setting = key.replace("max.burst", "burst");
                    assert!(report.lines().iter().any(|line| line.setting == setting), "{pairs:?}: {report}");
                }
            }
        }
    };
    set(&[("cpu.max", "50000 100000"), ("cpu.max.burst", "40000")]);
    set(&[("cpu.max", "10000 100000"), ("cpu.max.burst", "5000")]);
    set(&[("cpu.max", "90000 200000"), ("cpu.max.burst", "80000")]);
    set(&[("cpu.max", "20000 100000")]);
    assert!(burst("20000"), "it goes down with the quota");
    set(&[("cpu.weight", "50")]);
    let report = vm.change(&Resources::new().unified("cpu.weight", "70").unified("cpu.idle", "1")).unwrap();
    match file("cpu.idle") {
        Some(found) => assert_eq!(found, "1"),
        None => assert!(report.lines().iter().any(|line| line.setting == "cpu.idle"), "{report}"),
    }
    set(&[("cpu.idle", "0"), ("cpu.weight", "80")]);
    // Over OCI's fields, which stay in force beside it.
    vm.change(&Resources::new().cpu_quota(60_000).cpu_burst(30_000).unified("cpu.max", "max 50000")).unwrap();
    let max = if by_systemd() { "max 100000" } else { "max 50000" };
    assert_eq!(file("cpu.max").as_deref(), Some(max));
    assert!(burst("30000"));
    for (key, value) in [("cpu.max", "x"), ("cpu.max", "1 2 3"), ("cpu.max.burst", "-1"), ("cpu.idle", "2")] {
        let error = vm.change(&Resources::new().unified(key, value)).unwrap_err();
        assert_eq!(error.setting(), Some(format!("unified.{key}").as_str()), "{error}");
    }
}

#[test]
fn lines_for_devices_are_written_one_by_one_and_taken_back_all() {
    let host = Host::detect().unwrap();
    if host.mode != ringfence::Mode::V2 {
        return skip("unified settings need cgroup v2");
    }
    let disks = disks();
    let [one, other, ..] = disks.as_slice() else { return skip("this machine has fewer than two disks") };
    let vm = Guarded::new(&host, "lines", Resources::new());
    let file = || vm.file("unified", "io.max", "io.max").unwrap();
    let limit = |number: u64| format!("{one} rbps={number} wbps=max riops=max wiops=max");
    let both = format!("{}\n{other} wiops=5", limit(4096));
    let nothing = Resources::new();
    for before in ["".to_owned(), limit(8192)] {
        if !before.is_empty() {
            vm.change(&nothing.clone().unified("io.max", before.as_str())).unwrap();
        }
        // The last step is refused: there is no such file.
        let change = nothing.clone().unified("io.max", both.as_str()).unified("memory.nosuch", "1");
        let error = vm.change(&change).unwrap_err();
        assert_eq!(error.setting(), Some("unified.memory.nosuch"), "{error}");
        assert!(!error.to_string().contains("undone"), "{error}");
        assert_eq!(file(), before);
    }
    vm.change(&nothing.clone().unified("io.max", both.as_str())).unwrap();
    assert!(
        file().contains(&limit(4096))
            && file().contains(&format!("{other} rbps=max wbps=max riops=max wiops=5"))
    );
    let error = vm.change(&nothing.unified("pids.max", "5\n6")).unwrap_err();
    assert_eq!((error.kind(), error.setting()), (ErrorKind::InvalidInput, Some("unified.pids.max")));
}

#[test]
fn no_task_is_one_task_and_strict_refuses_before_anything_is_written() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "strict", Resources::new().pids_limit(9));
    vm.change(&Resources::new().pids_limit(0)).unwrap();
    assert_eq!(vm.file("pids", "pids.max", "pids.max").unwrap(), "1");
    let files = vm.files();
    let mut change = Resources::new().pids_limit(5).cpu_shares(77);
    change.memory.use_hierarchy = Some(false);
    let strict = ChangeOptions { unsupported: Unsupported::Refuse, ..ChangeOptions::default() };
    let error = vm.change_with(&change, strict).unwrap_err();
    assert_eq!((error.kind(), error.setting()), (ErrorKind::Unsupported, Some("memory.useHierarchy")));
    assert_eq!(vm.files(), files);
    let path = support::path("strict");
    let config = SandboxConfig::new(path.clone()).resources(change).unsupported(Unsupported::Refuse);
    assert_eq!(Sandbox::create(&host, &config).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(Cgroup::open(&host, &path).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_cpuset_that_the_parent_does_not_have_is_refused_and_undone() {
    if by_systemd() {
        return skip("about directories in directories");
    }
    let host = Host::detect().unwrap();
    if host.cpus.len() < 2 {
        return skip("this machine has one CPU");
    }
    let base = name("parent");
    let all = host.cpus.to_string();
    let first = host.cpus.iter().next().unwrap();
    let last = host.cpus.iter().last().unwrap();
    let set = |number: u32| Resources::new().cpuset_cpus(number.to_string().parse().unwrap());
    // The parent is narrowed; levels are missing between it and the new cgroup.
    let parent = Cgroup::create(&host, &format!("/{base}").parse().unwrap(), &set(first)).unwrap().0;
    let middle = Cgroup::create(&host, &format!("/{base}/m").parse().unwrap(), &set(first)).unwrap().0;
    let file = |cgroup: &Cgroup, file: &str| {
        let paths = cgroup.paths();
        let dir = paths.get("cpuset").or(paths.get("unified")).unwrap();
        std::fs::read_to_string(dir.join(file)).unwrap().trim_end().to_owned()
    };
    let path = format!("/{base}/m/x/y/vm");
    let outcome = std::panic::catch_unwind(|| {
        let (vm, _) = Cgroup::create(&host, &path.parse().unwrap(), &Resources::new()).unwrap();
        for above in [&parent, &middle] {
            assert_eq!(file(above, "cpuset.cpus"), first.to_string(), "what is above stays as it was");
        }
        if vm.paths().contains_key("cpuset") {
            assert_eq!(file(&vm, "cpuset.cpus"), first.to_string());
            assert_ne!(file(&vm, "cpuset.mems"), "");
        }
        vm.change(&set(first)).unwrap();
        for asked in [last.to_string(), "4095".to_owned()] {
            let asked = Resources::new().cpuset_cpus(asked.parse().unwrap()).pids_limit(3);
            let before = file(&vm, "cpuset.cpus");
            let error = vm.change(&asked).unwrap_err();
            assert_eq!((error.kind(), error.setting()), (ErrorKind::Kernel, Some("cpu.cpus")), "{error}");
            assert_eq!(file(&vm, "cpuset.cpus"), before);
        }
        if host.mode == ringfence::Mode::V2 {
            let error = vm.change(&Resources::new().unified("cpuset.cpus", last.to_string())).unwrap_err();
            assert_eq!(error.setting(), Some("unified.cpuset.cpus"), "{error}");
            // More than the parent has is no harm: it runs within what was asked.
            vm.change(&Resources::new().cpuset_cpus(all.parse().unwrap())).unwrap();
            vm.change(&set(first)).unwrap();
        }
        vm.destroy(Remaining::Kill, SOON).unwrap();
        let narrow = Cgroup::create(&host, &format!("/{base}/m/n").parse().unwrap(), &set(last)).unwrap_err();
        assert_eq!(narrow.setting(), Some("cpu.cpus"), "{narrow}");
        assert!(Cgroup::open(&host, &format!("/{base}/m/n").parse().unwrap()).is_err(), "it is undone");
    });
    for level in ["/m/x/y/vm", "/m/x/y", "/m/x", "/m", ""] {
        if let Ok(cgroup) = Cgroup::open(&host, &format!("/{base}{level}").parse().unwrap()) {
            _ = cgroup.destroy(Remaining::Kill, SOON);
        }
    }
    outcome.unwrap();
}

#[test]
fn a_controller_that_nothing_needed_before_is_enabled_for_a_change() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "later", Resources::new());
    let child = vm.spawn(&Command::new("sleep").args(["1000"]).stdin(null().unwrap())).unwrap();
    let first = host.cpus.iter().next().unwrap().to_string();
    vm.change(&Resources::new().cpuset_cpus(first.parse().unwrap())).unwrap();
    assert_eq!(vm.file("cpuset", "cpuset.cpus", "cpuset.cpus").unwrap(), first);
    vm.kill(SOON).unwrap();
    child.wait().unwrap();
}
