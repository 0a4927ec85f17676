//! What a sample costs and has in it, on a real kernel, in the cgroup mode of the machine that runs it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{self, Guarded, MIB, SOON, name, path};
use ringfence::stats::Stats;
use ringfence::{
    Cgroup, Command, Controller, CpuSet, Host, Limit, Mode, Remaining, Resources, Sandbox, SandboxConfig,
    null,
};

testbed! {
    drivers: "cgroupfs systemd";
}

/// A sandbox with limits, and two processes in it: one burns CPU time, one sleeps.
fn busy(host: &Host, what: &str, resources: Resources) -> Guarded {
    let vm = Guarded::planned(host, &SandboxConfig::new(path(what)).resources(resources));
    let script = "sleep 1000 & while :; do :; done";
    vm.spawn(&Command::new("sh").args(["-c", script]).stdin(null().unwrap())).unwrap();
    vm
}

/// The files of a cgroup that this process has open.
fn open_files(vm: &Sandbox) -> Vec<PathBuf> {
    let dirs: Vec<_> = vm.paths().into_values().map(|dir| dir.canonicalize().unwrap()).collect();
    let links =
        fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    let mut files: Vec<_> = links.filter(|link| dirs.iter().any(|dir| link.parent() == Some(dir))).collect();
    files.sort();
    files
}

/// How many reads this thread has made. Reading that is one more, which the next call sees.
fn reads_of_this_thread() -> u64 {
    let mut text = [0; 1024];
    let length = fs::File::open("/proc/thread-self/io").unwrap().read(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text[..length]);
    text.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap().parse().unwrap()
}

fn has(host: &Host, controller: Controller) -> bool {
    let found = host.hierarchy_of(controller).is_some();
    if !found {
        eprintln!("SKIPPED in part: there is no controller {controller} here");
    }
    found
}

#[test]
fn a_sample_is_one_read_per_file_and_allocates_nothing() {
    let host = Host::detect().unwrap();
    let mut resources = Resources::new().pids_limit(50).memory_limit(64 * MIB);
    if has(&host, Controller::Cpuset) {
        resources = resources.cpuset_cpus("0".parse().unwrap()).cpuset_mems("0".parse().unwrap());
    }
    let vm = busy(&host, "cost", resources);
    let before = open_files(&vm);
    let mut reader = vm.stats_reader().unwrap();
    let files = open_files(&vm);
    assert!(before.is_empty() && files.len() > 10, "{files:?}");
    assert!(files.windows(2).all(|pair| pair[0] != pair[1]), "a file is open twice: {files:?}");

    let first = reader.sample().unwrap().clone();
    let before = reads_of_this_thread();
    reader.sample().unwrap();
    assert_eq!(reads_of_this_thread() - before - 1, files.len() as u64, "{files:?}");
    // A device that the processes use for the first time is a new row; a sample that allocates does so in every round.
    let allocations = [(); 3].map(|()| {
        crate::allocations::count(|| {
            for _ in 0..10 {
                reader.sample().unwrap();
            }
        })
    });
    assert!(allocations.contains(&0), "{allocations:?}");

    let mut last = first.clone();
    // On a busy machine it may be a while until it runs again.
    for _ in 0..200 {
        std::thread::sleep(Duration::from_millis(100));
        last = reader.sample().unwrap().clone();
        if last.cpu.usage_us > first.cpu.usage_us {
            break;
        }
    }
    assert!(last.at_us > first.at_us && last.cpu.usage_us > first.cpu.usage_us, "{first:?} {last:?}");
    let read_again: Stats = serde_json::from_str(&serde_json::to_string(&last).unwrap()).unwrap();
    assert_eq!(read_again, last);
}

#[test]
fn a_sample_has_what_the_sandbox_was_given_and_uses() {
    let host = Host::detect().unwrap();
    let one: CpuSet = "0".parse().unwrap();
    let mut resources = Resources::new().pids_limit(50).memory_limit(64 * MIB).cpu_quota(20_000);
    let cpuset = has(&host, Controller::Cpuset);
    if cpuset {
        resources = resources.cpuset_cpus(one.clone()).cpuset_mems(one.clone());
    }
    let vm = busy(&host, "values", resources);
    let mut reader = vm.stats_reader().unwrap();
    let deadline = Instant::now() + SOON;
    let stats = loop {
        let stats = reader.sample().unwrap().clone();
        if (stats.pids.current == Some(2) && stats.cpu.throttled_us > Some(0)) || Instant::now() > deadline {
            break stats;
        }
        std::thread::sleep(Duration::from_millis(50));
    };

    assert_eq!((stats.pids.current, stats.pids.limit), (Some(2), Some(Limit::Value(50))));
    let memory = &stats.memory;
    assert_eq!(memory.limit, Some(Limit::Value(64 * MIB)));
    assert!(memory.current > Some(0) && memory.working_set <= memory.current, "{memory:?}");
    // v2 has it in memory.stat since Linux 5.18.
    let counts_kernel = vm.file("memory", "memory.kmem.usage_in_bytes", "memory.stat").unwrap();
    if vm.is_on_v1("memory") || counts_kernel.lines().any(|line| line.starts_with("kernel ")) {
        assert!(memory.kernel > Some(0) && memory.kernel < memory.current, "{memory:?}");
    } else {
        assert_eq!(memory.kernel, None);
    }
    assert_eq!(memory.events.oom_kill, Some(0));
    let v2 = host.hierarchy_of(Controller::Memory).unwrap().0 == host.unified().map_or(usize::MAX, |it| it.0);
    assert_eq!((memory.low, memory.min), v2.then_some((Limit::Value(0), Limit::Value(0))).unzip());
    assert_eq!((memory.high, memory.under_oom), (v2.then_some(Limit::Max), (!v2).then_some(false)));
    let cpu = &stats.cpu;
    assert!(cpu.throttled > Some(0) && cpu.throttled_us > Some(0), "{cpu:?}");
    assert!(cpu.throttled_local_us.is_none_or(|us| us > 0), "{cpu:?}");
    let given = cpuset.then_some(one);
    assert_eq!((&stats.cpuset.cpus, &stats.cpuset.mems), (&given, &given));
}

#[test]
fn cpu_time_is_counted_where_the_v2_tree_has_no_cpu_controller() {
    if support::by_systemd() {
        return support::skip("about a directory of the test's own");
    }
    let host = Host::detect().unwrap();
    let Some((_, unified)) = host.unified() else {
        eprintln!("SKIPPED: there is no v2 tree");
        return;
    };
    // A directory that is given no controller for what is below it.
    let root = unified.root.join(name("delegated"));
    let inner = root.join("inner");
    fs::create_dir_all(&inner).unwrap();
    let sampled = std::panic::catch_unwind(|| sample_below(&inner));
    _ = fs::remove_dir(&inner);
    fs::remove_dir(&root).unwrap();
    let stats = sampled.unwrap();
    assert!(stats.cpu.usage_us > Some(0) && stats.cpu.periods.is_none(), "{stats:?}");
}

fn sample_below(root: &Path) -> Stats {
    let host = Host::detect_at(root).unwrap();
    assert_eq!((host.mode, host.hierarchy_of(Controller::Cpu)), (Mode::V2, None));
    let (cgroup, _) = Cgroup::create(&host, &"/a".parse().unwrap(), &Resources::new()).unwrap();
    cgroup.spawn(&Command::new("true")).unwrap().wait().unwrap();
    let stats = cgroup.stats_reader().unwrap().sample().unwrap().clone();
    cgroup.destroy(Remaining::Kill, SOON).unwrap();
    stats
}
