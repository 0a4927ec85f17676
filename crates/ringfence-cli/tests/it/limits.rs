//! Limits do what they say: the kernel enforces them on what runs inside, from its first instruction on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::Write as _;

use crate::support::{self, Sandbox, by_systemd, hierarchies, hold, is_alive, is_on_v1, mode, skip, until};
use serde_json::Value;

testbed! {
    drivers: "cgroupfs systemd";
}

const MIB: u64 = 1 << 20;
const KILLED: i32 = 128 + 9;

/// An option, and what the kernel's file holds for it: on v1, on v2.
struct Row {
    options: &'static [&'static str],
    v1: &'static [(&'static str, &'static str)],
    v2: &'static [(&'static str, &'static str)],
}

const CREATED: &[Row] = &[
    Row {
        options: &["--memory", "64M", "--memory-swap", "96M"],
        v1: &[("memory.limit_in_bytes", "67108864"), ("memory.memsw.limit_in_bytes", "100663296")],
        v2: &[("memory.max", "67108864"), ("memory.swap.max", "33554432")],
    },
    Row {
        options: &["--memory-reservation", "32M"],
        v1: &[("memory.soft_limit_in_bytes", "33554432")],
        v2: &[("memory.low", "33554432")],
    },
    Row {
        options: &["--cpus", "0.5", "--cpu-burst", "10000"],
        v1: &[("cpu.cfs_quota_us", "50000"), ("cpu.cfs_period_us", "100000"), ("cpu.cfs_burst_us", "10000")],
        v2: &[("cpu.max", "50000 100000"), ("cpu.max.burst", "10000")],
    },
    Row { options: &["--cpu-shares", "512"], v1: &[("cpu.shares", "512")], v2: &[("cpu.weight", "59")] },
    Row { options: &["--cpuset-cpus", "0"], v1: &[("cpuset.cpus", "0")], v2: &[("cpuset.cpus", "0")] },
    Row { options: &["--cpuset-mems", "0"], v1: &[("cpuset.mems", "0")], v2: &[("cpuset.mems", "0")] },
    Row { options: &["--pids", "100"], v1: &[("pids.max", "100")], v2: &[("pids.max", "100")] },
];

const CHANGED: &[Row] = &[
    Row {
        options: &["--memory", "128M", "--memory-swap", "128M"],
        v1: &[("memory.limit_in_bytes", "134217728"), ("memory.memsw.limit_in_bytes", "134217728")],
        v2: &[("memory.max", "134217728"), ("memory.swap.max", "0")],
    },
    Row {
        options: &["--memory-reservation", "48M"],
        v1: &[("memory.soft_limit_in_bytes", "50331648")],
        v2: &[("memory.low", "50331648")],
    },
    Row {
        options: &["--cpus", "0.05"],
        // The burst is lowered with the quota, which it may not exceed.
        v1: &[("cpu.cfs_quota_us", "5000"), ("cpu.cfs_period_us", "100000"), ("cpu.cfs_burst_us", "5000")],
        v2: &[("cpu.max", "5000 100000"), ("cpu.max.burst", "5000")],
    },
    Row { options: &["--cpus", "max"], v1: &[("cpu.cfs_quota_us", "-1")], v2: &[("cpu.max", "max 100000")] },
    Row {
        options: &["--cpu-shares", "262144"],
        v1: &[("cpu.shares", "262144")],
        v2: &[("cpu.weight", "10000")],
    },
    Row { options: &["--cpuset-cpus", "0-1"], v1: &[("cpuset.cpus", "0-1")], v2: &[("cpuset.cpus", "0-1")] },
    Row { options: &["--pids", "max"], v1: &[("pids.max", "max")], v2: &[("pids.max", "max")] },
];

/// Compares the files of some rows; what this kernel lacks is said, not passed over.
fn assert_in_force<'a>(sandbox: &Sandbox, rows: impl IntoIterator<Item = &'a Row>) {
    for row in rows {
        for (v1, v2) in row.v1.iter().zip(row.v2) {
            let controller = v1.0.split('.').next().unwrap();
            let (file, value) = if is_on_v1(controller) { v1 } else { v2 };
            match sandbox.file(file) {
                Some(live) => assert_eq!(live, *value, "{file} after {:?}", row.options),
                None => skip(&format!("no {file} here, for {:?}", row.options)),
            }
        }
    }
}

fn one_stats(sandbox: &Sandbox) -> Value {
    let stats = sandbox.json("stats", &[]);
    assert_eq!(stats[0]["id"], sandbox.id.as_str());
    stats[0].clone()
}

#[test]
fn every_option_reaches_the_file_that_the_kernel_has_for_it() {
    let sandbox = Sandbox::named("written");
    sandbox.create(&CREATED.iter().flat_map(|row| row.options).copied().collect::<Vec<_>>());
    assert_in_force(&sandbox, CREATED);
    let stats = one_stats(&sandbox);
    assert_eq!(stats["memory"]["limit"], 64 * MIB);
    assert_eq!(stats["pids"]["limit"], 100);
    assert_eq!(stats["pids"]["current"], sandbox.held());
}

#[test]
fn set_changes_each_limit_of_a_live_sandbox_and_leaves_the_others() {
    let sandbox = Sandbox::named("changed");
    sandbox.create(&CREATED.iter().flat_map(|row| row.options).copied().collect::<Vec<_>>());
    for (done, row) in CHANGED.iter().enumerate() {
        sandbox.does("set", row.options);
        assert_in_force(&sandbox, [row]);
        if let Some(untouched) = CREATED.get(done + 2) {
            assert_in_force(&sandbox, [untouched]);
        }
    }
    let stats = one_stats(&sandbox);
    assert_eq!(stats["memory"]["limit"], 128 * MIB);
    assert_eq!(stats["pids"]["limit"], "max");
}

#[test]
fn all_that_is_set_at_once_is_in_force_at_once() {
    let sandbox = Sandbox::named("changed-at-once");
    sandbox.create(&["--memory", "256M", "--cpus", "1", "--pids", "10"]);
    sandbox
        .does("set", &["--memory", "64M", "--memory-swap", "96M", "--cpus", "0.5", "--cpu-burst", "10000"]);
    assert_in_force(&sandbox, [&CREATED[0], &CREATED[2]]);
    assert_eq!(sandbox.file("pids.max").unwrap(), "10");
    sandbox.does("update", &["--memory", "max", "--pids", "100"]);
    assert_in_force(&sandbox, [&CREATED[2], &CREATED[6]]);
    assert_eq!(one_stats(&sandbox)["memory"]["limit"], "max");
}

#[test]
fn a_sandbox_of_ten_tasks_cannot_fork_an_eleventh() {
    let sandbox = Sandbox::named("forks");
    let done = sandbox.probe("run", &["--pids", "10"], "fork 30").exits(0);
    // Under systemd `run` holds the scope with a process of its own.
    let tasks = 10 - u64::from(by_systemd());
    assert_eq!(done.probed(), [format!("{tasks} {}", rustix::io::Errno::AGAIN.raw_os_error())]);

    sandbox.create(&["--pids", "10"]);
    sandbox.does("set", &["--pids", "20"]);
    let done = sandbox.probe("exec", &[], "fork 30").exits(0);
    let room = 20 - sandbox.held();
    assert_eq!(done.probed(), [format!("{room} {}", rustix::io::Errno::AGAIN.raw_os_error())], "after set");
}

#[test]
fn what_touches_more_memory_than_its_limit_is_killed() {
    let sandbox = Sandbox::named("oom");
    sandbox.create(&["--memory", "64M"]);
    sandbox.probe("exec", &[], "touch 20").exits(0);
    // More than the limit and all of the guests' swap together.
    sandbox.probe("exec", &[], "touch 300").exits(KILLED);
    let stats = one_stats(&sandbox);
    assert!(stats["memory"]["events"]["oom_kill"].as_u64().unwrap() > 0, "{stats}");
    assert!(
        stats["memory"]["peak"].is_null() || stats["memory"]["peak"].as_u64().unwrap() <= 64 * MIB,
        "{stats}"
    );

    sandbox.does("set", &["--memory", "400M"]);
    sandbox.probe("exec", &[], "touch 300").exits(0);
}

#[test]
fn a_limit_of_huge_pages_refuses_the_page() {
    const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    const BUS_ERROR: i32 = 128 + 7;
    let pool = |file: &str| fs::read_to_string(format!("{POOL}/{file}")).ok()?.trim().parse::<u64>().ok();
    let testbed = crate::support::soak::in_testbed();
    if testbed {
        fs::write(format!("{POOL}/nr_hugepages"), "16").unwrap();
    }
    let sandbox = Sandbox::named("huge");
    let file = sandbox.scratch.path().join("resources.json");
    let limits = |mib: u64| serde_json::json!({"hugepageLimits": [{"pageSize": "2MB", "limit": mib * MIB}]});
    fs::write(&file, limits(4).to_string()).unwrap();
    let options = ["--resources", file.to_str().unwrap()];
    sandbox.create(&options);
    for (v1, v2) in [
        ("hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"),
        ("hugetlb.2MB.rsvd.limit_in_bytes", "hugetlb.2MB.rsvd.max"),
    ] {
        let name = if is_on_v1("hugetlb") { v1 } else { v2 };
        assert_eq!(sandbox.file(name).as_deref(), Some("4194304"), "{name}");
    }
    if pool("free_hugepages").is_none_or(|free| free < 8) {
        return skip("this machine has no huge pages to give");
    }
    // Where it is reserved, mmap itself is refused; where not, the page.
    let refused = rustix::io::Errno::NOMEM.raw_os_error().to_string();
    assert_eq!(sandbox.probe("exec", &[], "huge 4 reserved").exits(0).probed(), ["0"]);
    assert_eq!(sandbox.probe("exec", &[], "huge 8 reserved").exits(0).probed(), [refused.as_str()]);
    sandbox.probe("exec", &[], "huge 8 unreserved").exits(BUS_ERROR);
    let huge = one_stats(&sandbox)["hugetlb"]["2MB"].clone();
    assert_eq!(huge["limit"], 4 * MIB);
    assert_eq!(huge["reserved_limit"], 4 * MIB);
    assert!(huge["refused"].as_u64().unwrap() > 0, "{huge}");

    fs::write(&file, limits(8).to_string()).unwrap();
    sandbox.does("set", &options);
    assert_eq!(sandbox.probe("exec", &[], "huge 8 reserved").exits(0).probed(), ["0"]);
    sandbox.does("rm", &["--kill"]);
    if testbed {
        fs::write(format!("{POOL}/nr_hugepages"), "0").unwrap();
    }
}

#[test]
fn memory_and_swap_of_the_same_size_leave_no_swap_to_use() {
    if fs::read_to_string("/proc/swaps").unwrap().lines().count() < 2 {
        return skip("this machine has no swap");
    }
    let sandbox = Sandbox::named("swap");
    if is_on_v1("memory")
        && !hierarchies().iter().any(|one| one.point.join("memory.memsw.limit_in_bytes").exists())
    {
        return skip("swap accounting is off in this kernel");
    }
    // 90 MiB would fit into the limit and the swap together.
    sandbox.create(&["--memory", "64M", "--memory-swap", "64M"]);
    sandbox.probe("exec", &[], "touch 90").exits(KILLED);
    let stats = one_stats(&sandbox);
    assert_eq!(stats["memory"]["swap_current"].as_u64().unwrap(), 0, "{stats}");
    sandbox.does("set", &["--memory-swap", "128M"]);
    // Where the disk is slow, the kernel may give up reclaiming before pages are written out, and kill all the same.
    let swapped = (0..5).any(|_| sandbox.probe("exec", &[], "touch 90").code == 0);
    assert!(swapped, "no swap can be used with memory+swap above memory");
}

#[test]
fn a_fifth_of_a_cpu_is_no_more_than_that() {
    let sandbox = Sandbox::named("cpu");
    sandbox.create(&["--cpus", "0.2"]);
    let done = sandbox.probe("exec", &[], "burn 1000").exits(0);
    let percent: u64 = done.probed()[0].parse().unwrap();
    assert!(percent < 35, "{percent} % of one CPU");
    let cpu = one_stats(&sandbox)["cpu"].clone();
    assert!(cpu["throttled"].as_u64().unwrap() > 0 && cpu["throttled_us"].as_u64().unwrap() > 0, "{cpu}");
    assert!(cpu["usage_us"].as_u64().unwrap() > 50_000, "{cpu}");
    assert!(cpu["periods"].as_u64() >= cpu["throttled"].as_u64(), "{cpu}");

    sandbox.does("set", &["--cpus", "max"]);
    // The period in which the program ended may have been counted after the sample above.
    let throttled = || one_stats(&sandbox)["cpu"]["throttled"].as_u64();
    let before = throttled();
    let done = sandbox.probe("exec", &[], "burn 500").exits(0);
    assert_eq!(throttled(), before, "throttled without a quota: {:?}", done.probed());
}

#[test]
fn a_cpuset_confines_what_runs_inside() {
    const SHOW: &str = "grep Cpus_allowed_list /proc/self/status";
    let sandbox = Sandbox::named("cpuset");
    let wait_and_show = format!("read _; exec {SHOW}");
    let mut child = sandbox.start(&["--cpuset-cpus", "0", "--keep"], &["sh", "-c", &wait_and_show]);
    sandbox.wait_until_populated();
    sandbox.does("set", &["--cpuset-cpus", "1"]);
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let moved = support::wait(child, "run".to_owned()).exits(0);
    assert_eq!(moved.stdout.split_whitespace().last(), Some("1"), "a running process follows");

    sandbox.does("set", &["--cpuset-cpus", "0"]);
    let done = sandbox.does("exec", &["--", "sh", "-c", SHOW]);
    assert_eq!(done.stdout.split_whitespace().last(), Some("0"));
}

#[test]
fn the_limits_are_in_force_before_the_first_instruction() {
    let sandbox = Sandbox::named("first");
    let files = CREATED.iter().filter(|row| !row.options.contains(&"--memory")).flat_map(|row| {
        let controller = row.v1[0].0.split('.').next().unwrap();
        let expected = if is_on_v1(controller) { row.v1[0] } else { row.v2[0] };
        let below = sandbox.cgroup();
        let place =
            support::hierarchy_of(controller).point.join(below.trim_start_matches('/')).join(expected.0);
        Some((place.display().to_string(), expected.1))
    });
    let (files, values): (Vec<_>, Vec<_>) = files.unzip();
    let options: Vec<_> = CREATED.iter().flat_map(|row| row.options).copied().collect();
    // Reading comes first, so that nothing but the shell itself has run before.
    let script = format!(
        "(: < /dev/kmsg) 2>/dev/null && echo open || echo refused\ncat {}\ncat /proc/self/cgroup",
        files.join(" ")
    );
    let done = sandbox.run(&options, &["sh", "-c", &script]).exits(0);
    let mut lines = done.stdout.lines();
    assert_eq!(lines.next(), Some("refused"), "a device that is in no list");
    for (file, value) in files.iter().zip(values) {
        assert_eq!(lines.next(), Some(value), "{file}");
    }
    let places: Vec<_> = lines.collect();
    for hierarchy in hierarchies() {
        let place = places.iter().find(|line| {
            let [_, controllers, _] = line.splitn(3, ':').collect::<Vec<_>>()[..] else { return false };
            if hierarchy.is_v2 {
                return controllers.is_empty();
            }
            controllers.split(',').any(|name| hierarchy.controllers.iter().any(|own| own == name))
        });
        let place = place.unwrap_or_else(|| panic!("{hierarchy:?} in {places:?}"));
        assert!(place.ends_with(&format!(":{}", sandbox.cgroup())), "{place}");
    }
}

#[test]
fn unified_settings_are_written_on_v2_and_refused_where_there_is_only_v1() {
    let sandbox = Sandbox::named("unified");
    let options = ["--unified", "memory.high=33554432", "--unified", "pids.max=7", "--pids", "10"];
    if mode() == "v2" {
        sandbox.create(&options);
        assert_eq!(sandbox.file("memory.high").unwrap(), "33554432");
        assert_eq!(
            sandbox.file("pids.max").unwrap(),
            "7",
            "the caller's own file wins over what was derived"
        );
    } else {
        let error = sandbox.attempt_json("create", &options).exits(1).error();
        assert_eq!(error["kind"], "unsupported");
        assert!(error["setting"].as_str().unwrap().contains("memory.high"), "{error}");
        sandbox.is_gone();
    }
}

#[test]
fn a_cpuset_is_lifted_by_max_by_nothing_and_by_name() {
    for overhead in ["together", "nested"] {
        let sandbox = Sandbox::named("lift");
        sandbox.create(&["--overhead", overhead, "--pids", "10"]);
        let effective = || sandbox.json("explain", &["cpuset.cpus"])["effective"].clone();
        let all = effective();
        let mut lifts = vec![["--cpuset-cpus", "max"], ["--cpuset-cpus", ""]];
        if mode() == "v2" {
            lifts.extend([["--unified", "cpuset.cpus="], ["--unified", "cpuset.cpus=max"]]);
        }
        for lift in lifts {
            sandbox.does("set", &["--cpuset-cpus", "0"]);
            assert_eq!(effective(), "0");
            sandbox.does("set", &lift);
            assert_eq!(effective(), all, "{overhead} {lift:?}");
            let shown = sandbox.json("show", &[]);
            assert_eq!(shown["resources"]["cpu"]["cpus"], Value::Null, "{shown}");
            assert_eq!(sandbox.json("diff", &[]), serde_json::json!([]));
        }
        sandbox.does("rm", &["--kill"]);
    }
}

#[test]
fn memory_limit_below_a_page_is_an_error_and_not_no_memory() {
    let sandbox = Sandbox::named("no-page");
    for host in ["v1", "hybrid", "v2"] {
        let error = sandbox.attempt_json("plan", &["--host", host, "--memory", "4095"]).exits(2).error();
        assert_eq!((&error["setting"], &error["value"]), (&"memory.limit".into(), &"4095".into()), "{error}");
        assert!(error["message"].as_str().unwrap().contains("one page, 4096 bytes"), "{error}");
    }
    sandbox.attempt("create", &["--memory", "1"]).exits(2);
    assert!(sandbox.directories().is_empty());
}

#[test]
fn partition_that_the_kernel_makes_invalid_is_an_error() {
    if mode() != "v2" {
        return skip("partitions are of cgroup v2");
    }
    let sandbox = Sandbox::named("partition");
    let options = ["--cpuset-cpus", "0", "--unified", "cpuset.cpus.partition=isolated"];
    for overhead in ["together", "nested"] {
        let options = [&options[..], hold(), &["--overhead", overhead]].concat();
        let error = sandbox.attempt_json("create", &options).exits(1).error();
        // The default parent is no partition.
        assert_eq!(error["setting"], "unified.cpuset.cpus.partition", "{error}");
        // Linux 5.10 refuses the word at once.
        let is_refused = error["errno"] == 22;
        assert!(is_refused || error["message"].as_str().unwrap().contains("invalid"), "{error}");
        sandbox.is_gone();
    }
}

#[test]
fn vm_of_which_one_process_is_killed_for_memory_goes_as_a_whole() {
    if is_on_v1("memory") {
        return skip("cgroup v1 kills one process at a time");
    }
    for (profile, stays) in [("qemu", false), ("none", true)] {
        let sandbox = Sandbox::named("oom-group");
        let options = ["--profile", profile, "--memory", "64M", "--memory-swap", "64M"];
        let vmm = sandbox.detached(&options, "exec sleep 1000");
        sandbox.probe("exec", &[], "touch 300").exits(KILLED);
        if stays {
            assert!(is_alive(vmm), "{profile}");
        } else {
            until("the VMM is killed with its helper", || !is_alive(vmm));
        }
        sandbox.does("rm", &["--kill"]);
    }
}

/// The settings of which a change reports something, with the words.
#[track_caller]
fn told(sandbox: &Sandbox, options: &[&str]) -> Vec<(String, String)> {
    let changed = sandbox.json("set", options);
    let lines = changed["report"].as_array().cloned().unwrap_or_default();
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    lines.iter().map(|line| (text(line, "setting"), text(line, "why"))).collect()
}

#[test]
fn burst_that_is_lowered_with_the_quota_is_told_and_comes_back_with_it() {
    let sandbox = Sandbox::named("burst");
    sandbox.create(&["--profile", "none", "--cpus", "0.5", "--cpu-burst", "40000"]);
    let file = if is_on_v1("cpu") { "cpu.cfs_burst_us" } else { "cpu.max.burst" };
    if sandbox.file(file).is_none() {
        return skip("this kernel knows no bursts");
    }
    for (cpus, burst, is_lowered) in
        [("0.2", "20000", true), ("0.3", "30000", true), ("0.6", "40000", false), ("0.5", "40000", false)]
    {
        let told = told(&sandbox, &["--cpus", cpus]);
        assert_eq!(told.iter().any(|(setting, _)| setting == "cpu.burst"), is_lowered, "{cpus}: {told:?}");
        assert_eq!(sandbox.file(file).as_deref(), Some(burst), "{cpus}");
        assert_eq!(sandbox.json("diff", &[]), serde_json::json!([]), "{cpus}");
    }
    sandbox.does("set", &["--cpus", "0.2"]);
    // What is asked for anew is what comes back.
    sandbox.does("set", &["--cpu-burst", "5000"]);
    sandbox.does("set", &["--cpus", "0.9"]);
    assert_eq!(sandbox.file(file).as_deref(), Some("5000"));
}

#[test]
fn change_tells_of_what_stays_for_now_and_of_nothing_else() {
    let sandbox = Sandbox::named("for-now");
    let sleep = "sleep 1000 & sleep 1000 & wait";
    sandbox
        .detached(&["--profile", "none", "--pids", "50", "--memory", "64M", "--memory-swap", "128M"], sleep);
    until("all of it runs", || sandbox.processes().len() + 1 >= 3);
    let told_of = |options: &[&str], wanted: &str| {
        let told = told(&sandbox, options);
        told.into_iter().find(|(setting, _)| setting == wanted).map(|(_, why)| why)
    };
    assert_eq!(told_of(&["--pids", "20"], "pids.limit"), None, "that many do not run");
    let why = told_of(&["--pids", "1"], "pids.limit").expect("more run");
    assert!(why.contains("tasks run"), "{why}");
    assert_eq!(told_of(&["--memory-swap", "96M"], "memory.swap"), None, "nothing is in swap");
}

#[test]
fn errors_name_what_was_given() {
    let sandbox = Sandbox::named("given");
    let separate = if by_systemd() { "separate=ringfence.slice:ringfence:other" } else { "separate=/other" };
    for (options, setting, value, expected) in [
        (
            &["--overhead", "nested", "--overhead-memory", "64M"][..],
            "overhead.memory.limit",
            "67108864",
            "separate",
        ),
        (
            &["--overhead", "together", "--overhead-memory", "64M"],
            "overhead.memory.limit",
            "67108864",
            "separate",
        ),
        (&["--overhead", "together", "--overhead-cpus", "0.5"], "overhead.cpu.quota", "50000", "nested"),
        (&["--overhead", "together", "--cpus-per-vcpu", "0.5"], "each_vcpu.cpu.quota", "50000", "nested"),
        (&["--overhead", separate, "--pin"], "pin", "matching", "beside a separate one"),
        (&["--overhead", "together", "--pin"], "pin", "matching", "together"),
    ] {
        let options = [&["--host", "v2"], options].concat();
        let error = sandbox.attempt_json("plan", &options).exits(2).error();
        let says = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        assert_eq!(
            (says("setting").as_str(), says("value").as_str()),
            (setting, value),
            "{options:?}: {error}"
        );
        assert!(says("message").contains(expected), "{options:?}: {error}");
    }
}

#[test]
fn freezer_whose_directory_is_gone_is_said_to_be_gone() {
    if !is_on_v1("freezer") {
        return skip("the freezer of cgroup v2 is no controller of its own");
    }
    if by_systemd() {
        return skip("a scope is held by a process, which is in the directory");
    }
    let sandbox = Sandbox::named("no-freezer");
    sandbox.create(&["--profile", "none"]);
    fs::remove_dir(sandbox.dir("freezer")).unwrap();
    for verb in ["freeze", "thaw"] {
        let done = sandbox.attempt(verb, &[]);
        assert_ne!(done.code, 0, "{verb}");
        assert!(done.stderr.contains("missing") && done.stderr.contains("repair"), "{verb}: {}", done.stderr);
    }
    sandbox.does("repair", &[]);
    sandbox.does("freeze", &[]);
    sandbox.does("thaw", &[]);
}
