//! A sandbox whose overhead is in a cgroup of its own elsewhere, on a real kernel: a process with threads of its own kinds stands
//! in for a VMM, another for its helper.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // clippy.toml frees only #[test] functions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Guarded, MIB, SOON, by_systemd, path, sleeper, test_path};
use ringfence::{
    Cgroup, CgroupPath, ChangeOptions, Child, Command, DeviceRule, ErrorKind, Host, Limit, Overhead, Part,
    Placed, Remaining, Resources, Sandbox, SandboxConfig, State, Status, null,
};

testbed! {
    drivers: "cgroupfs systemd";
}

/// Says to the test binary that it is to stand in for a VMM.
const STAND_IN: &str = "RINGFENCE_TEST_STAND_IN";

/// Not a test: a process with two threads that are called as QEMU calls those of vCPUs, one for I/O, and a main thread.
#[test]
fn stand_in() {
    if std::env::var_os(STAND_IN).is_none() {
        return;
    }
    for name in ["CPU 0/TCG", "CPU 1/TCG", "IO io0"] {
        let sleep = || std::thread::sleep(Duration::from_secs(1000));
        std::thread::Builder::new().name(name.to_owned()).spawn(sleep).unwrap();
    }
    std::thread::sleep(Duration::from_secs(1000));
}

struct Vmm(Child);

impl Vmm {
    fn start(vm: &Sandbox) -> Self {
        let variables = std::env::vars_os().chain([(STAND_IN.into(), "1".into())]);
        let command = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &test_path(module_path!(), "stand_in")]);
        let command = command.env(variables).stdin(null().unwrap()).stdout(null().unwrap());
        let vmm = Self(vm.spawn(&command).unwrap());
        let deadline = Instant::now() + SOON;
        while vmm.threads().values().filter(|name| name.contains('0') || name.contains('1')).count() < 3 {
            assert!(Instant::now() < deadline, "it does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        vmm
    }

    fn pid(&self) -> u32 {
        self.0.pid()
    }

    fn threads(&self) -> BTreeMap<u32, String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().flatten();
        let named = tasks.filter_map(|task| {
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            Some((task.file_name().to_str()?.parse().ok()?, name.trim_end().to_owned()))
        });
        named.collect()
    }

    /// Index and thread of each vCPU.
    fn vcpus(&self) -> Vec<(u32, u32)> {
        let index = |name: &str| name.strip_prefix("CPU ")?.split('/').next()?.parse().ok();
        self.threads().into_iter().filter_map(|(tid, name)| Some((index(&name)?, tid))).collect()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        _ = self.0.signal(9);
        _ = self.0.wait();
    }
}

fn separate(at: &CgroupPath, what: &str) -> SandboxConfig {
    SandboxConfig::new(path(what)).overhead(Overhead::Separate(at.clone()))
}

/// The path of a task in the hierarchy of a controller; without one of that name, in v2.
fn cgroup_of(tid: u32, controller: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{tid}/cgroup")).unwrap();
    let found = |line: &&str| line.split(':').nth(1).unwrap().split(',').any(|name| name == controller);
    let line = text.lines().find(found).or(text.lines().find(|line| line.starts_with("0::")));
    line.unwrap().splitn(3, ':').nth(2).unwrap().to_owned()
}

/// The paths of the sandbox and of its overhead.
fn both(vm: &Sandbox) -> [String; 2] {
    let state = vm.state();
    [state.cgroup, state.apart.unwrap().cgroup].map(|path| format!("/{path}"))
}

/// Whether threads can be told apart outside: in a v1 hierarchy.
fn by_thread(vm: &Guarded) -> bool {
    vm.is_on_v1("cpu")
}

fn notes(placed: &Placed) -> String {
    placed.report.to_string()
}

#[test]
fn helpers_are_outside_and_of_the_vmm_what_the_kernel_can_tell_apart() {
    let host = Host::detect().unwrap();
    let config = separate(&path("threads-overhead"), "threads");
    let limits = Resources::new().cpu_quota(50_000).cpu_period(100_000).memory_limit(256 * MIB);
    let overhead = Resources::new().cpu_quota(20_000).cpu_period(100_000).memory_limit(64 * MIB);
    let vm = Guarded::make(&host, &config.resources(limits).overhead_resources(overhead));
    let vmm = Vmm::start(&vm);
    let [inside, outside] = both(&vm);
    assert_eq!(cgroup_of(vmm.pid(), "cpu"), inside);

    if by_systemd() {
        assert_eq!(vm.overhead().unwrap().status().unwrap(), Status::Planned);
        let placed = vm.place_vcpus(&vmm.vcpus()).unwrap();
        let why = if by_thread(&vm) { "first process" } else { "domains" };
        assert!(notes(&placed).contains(why), "{placed:?}");
        assert_eq!((placed.vcpus, placed.moved), (2, 0));
    }
    // One that is inside is moved whole; one that is started as a helper is outside from the start.
    let (moved, started) = (vm.spawn(&sleeper()).unwrap(), vm.spawn_in(Part::Overhead, &sleeper()).unwrap());
    let all = || vm.processes().unwrap();
    assert_eq!(all(), BTreeSet::from([vmm.pid(), moved.pid(), started.pid()]));
    let placed = vm.place_vcpus(&vmm.vcpus()).unwrap();
    assert_eq!(placed.vcpus, 2, "{placed:?}");
    for helper in [moved.pid(), started.pid()] {
        for controller in vm.overhead().unwrap().paths().keys() {
            assert_eq!(cgroup_of(helper, controller), outside, "{controller}");
        }
    }
    let vcpus: BTreeSet<u32> = vmm.vcpus().into_iter().map(|(_, tid)| tid).collect();
    let others = vmm.threads().len() - vcpus.len();
    for (tid, name) in vmm.threads() {
        let is_outside = by_thread(&vm) && !vcpus.contains(&tid);
        for controller in ["cpu", "cpuset"] {
            assert_eq!(cgroup_of(tid, controller), if is_outside { &*outside } else { &*inside }, "{name}");
        }
        // What is charged to processes stays with the sandbox.
        for controller in ["memory", "pids", "devices"] {
            assert_eq!(cgroup_of(tid, controller), inside, "{name}");
        }
    }
    if by_thread(&vm) {
        assert_eq!((placed.moved, placed.overhead), (1 + others, 2 + others), "{placed:?}");
        assert!(placed.report.is_empty(), "{placed:?}");
    } else {
        assert_eq!((placed.moved, placed.overhead), (1, 2), "{placed:?}");
        assert!(notes(&placed).contains("domains"), "{placed:?}");
    }
    assert_eq!(vm.place_vcpus(&vmm.vcpus()).unwrap().moved, 0);

    for task in vm.tasks(true).unwrap() {
        let is_vcpu = vcpus.contains(&task.tid);
        let is_outside = task.pid != vmm.pid() || by_thread(&vm) && !is_vcpu;
        if vm.held() == 1 && task.cgroup == inside && task.name == "sleep" {
            continue;
        }
        let part = if is_outside { Some(Part::Overhead) } else { is_vcpu.then_some(Part::Vcpu) };
        assert_eq!((task.part, task.index.is_some()), (part, is_vcpu), "{task:?}");
        assert_eq!(task.cgroup, if is_outside { &*outside } else { &*inside }, "{task:?}");
    }
    // A vCPU that was taken outside, where it can be, is brought back.
    match vm.join_threads(Part::Overhead, &[vmm.vcpus()[0].1]) {
        Ok(()) => assert_eq!(vm.place_vcpus(&vmm.vcpus()).unwrap().moved, 1),
        Err(error) => assert!(!by_thread(&vm) && error.to_string().contains("domains"), "{error}"),
    }
    assert_eq!(vm.diff().unwrap(), []);
    let mut reader = vm.part_stats_reader(Part::Overhead).unwrap();
    let used = reader.sample().unwrap();
    assert_eq!(used.memory.limit, Some(Limit::Value(64 * MIB)));
    assert!(used.memory.current.unwrap() > 0 && used.cpu.usage_us.is_some());

    // Another process takes both over.
    let state: State = serde_json::from_value(serde_json::to_value(vm.state()).unwrap()).unwrap();
    let again = Sandbox::restore(&host, state).unwrap();
    assert_eq!(again.place_vcpus(&vmm.vcpus()).unwrap().moved, 0);
    again.freeze(SOON).unwrap();
    assert_eq!(vm.status().unwrap(), Status::Frozen);
    assert_eq!(vm.overhead().unwrap().status().unwrap(), Status::Frozen);
    vm.thaw(SOON).unwrap();
    let error = again.destroy(Remaining::Refuse, SOON).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert_eq!(all(), BTreeSet::from([vmm.pid(), moved.pid(), started.pid()]));
    let outcome = vm.destroy(Remaining::Kill, SOON).unwrap();
    assert_eq!(outcome.killed, BTreeSet::from([vmm.pid(), moved.pid(), started.pid()]));
    for helper in [moved, started] {
        helper.wait().unwrap();
    }
    assert_eq!(Sandbox::restore(&host, vm.state()).err().map(|error| error.kind()), {
        (!by_systemd()).then_some(ErrorKind::NotFound)
    });
}

#[test]
fn a_helper_beyond_the_memory_of_the_overhead_is_killed_and_the_vmm_lives() {
    let host = Host::detect().unwrap();
    let overhead = Resources::new().memory_limit(16 * MIB).memory_swap(Limit::Value(16 * MIB));
    let config = separate(&path("memory-overhead"), "memory").overhead_resources(overhead);
    let vm = Guarded::make(&host, &config.resources(Resources::new().memory_limit(256 * MIB)));
    let vmm = Vmm::start(&vm);
    let script = "x=$(head -c 40M /dev/zero | tr '\\0' x); sleep 1000";
    let greedy = Command::new("sh").args(["-c", script]).stdin(null().unwrap()).stdout(null().unwrap());
    let greedy = vm.spawn_in(Part::Overhead, &greedy).unwrap();
    assert!(!greedy.wait().unwrap().success());
    assert!(vm.processes().unwrap().contains(&vmm.pid()));
    assert!(Path::new(&format!("/proc/{}", vmm.pid())).exists());
}

#[test]
fn what_is_changed_of_one_of_both_is_changed_with_the_other_or_not_at_all() {
    let host = Host::detect().unwrap();
    let overhead = Resources::new().memory_limit(32 * MIB);
    let config = separate(&path("change-overhead"), "change").overhead_resources(overhead);
    let vm = Guarded::make(&host, &config.resources(Resources::new().memory_limit(64 * MIB)));
    let apart = vm.overhead().unwrap();
    let helper = vm.spawn_in(Part::Overhead, &sleeper()).unwrap();
    let memory = |dirs: BTreeMap<String, std::path::PathBuf>| {
        let (dir, name) = match dirs.get("memory") {
            Some(dir) => (dir, "memory.limit_in_bytes"),
            None => (&dirs["unified"], "memory.max"),
        };
        fs::read_to_string(dir.join(name)).unwrap().trim_end().parse::<u64>().unwrap() / MIB
    };
    let memories = || (memory(vm.paths()), memory(apart.paths()));
    assert_eq!(memories(), (64, 32));
    let options = |overhead| ChangeOptions { overhead, ..Default::default() };
    let given = options(Resources::new().memory_limit(40 * MIB).cpu_quota(50_000));
    let plan = vm.plan_change(&Resources::new().memory_limit(80 * MIB), given.clone()).unwrap().to_string();
    assert!(
        both(&vm).iter().all(|path| plan.contains(path.trim_start_matches('/')) || by_systemd()),
        "{plan}"
    );
    vm.change_with(&Resources::new().memory_limit(80 * MIB), given).unwrap();
    assert_eq!(memories(), (80, 40));
    let refused = options(Resources::new().memory_limit(44 * MIB).cpuset_cpus("0,4000".parse().unwrap()));
    let error = vm.change_with(&Resources::new().memory_limit(90 * MIB), refused).unwrap_err();
    assert!(error.to_string().contains("separate overhead"), "{error}");
    assert_eq!(memories(), (80, 40));
    assert_eq!(vm.state().apart.unwrap().resources.memory.limit, Some(Limit::Value(40 * MIB)));

    // Devices are of both.
    let rule = DeviceRule::parse(true, "c 10:200 rwm", |_| unreachable!()).unwrap();
    vm.claim_devices("tap", std::slice::from_ref(&rule)).unwrap();
    assert_eq!(vm.devices(), apart.devices());
    assert_eq!((apart.claims(), vm.diff().unwrap()), (vm.claims(), vec![]));
    vm.release_devices("tap").unwrap();
    assert_eq!((apart.claims(), vm.diff().unwrap()), (BTreeMap::new(), vec![]));
    let own = options(Resources { devices: vec![rule], ..Resources::default() });
    assert_eq!(vm.change_with(&Resources::new(), own).unwrap_err().setting(), Some("overhead.devices"));
    vm.kill(SOON).unwrap();
    helper.wait().unwrap();
}

#[test]
fn either_both_are_made_or_neither() {
    let host = Host::detect().unwrap();
    let taken = Guarded::new(&host, "taken", Resources::new());
    let config = separate(&taken.state().path, "neither");
    let at = config.clone();
    let error = Sandbox::create(&host, &config).map(drop).unwrap_err();
    assert_eq!((error.kind(), error.setting()), (ErrorKind::AlreadyExists, Some("overhead")), "{error}");
    let plan = Sandbox::plan(&host, &at).unwrap().to_string();
    assert!(plan.contains("taken") && plan.contains("neither"), "{plan}");
    if by_systemd() {
        return;
    }
    // Nothing is left of the first.
    for dir in host.hierarchies.iter().map(|hierarchy| hierarchy.root.join("ringfence")) {
        let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let own = format!("rf-{}-", std::process::id());
        let left: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
        assert!(!left.iter().any(|name| name.starts_with(&own) && name.ends_with("neither")), "{left:?}");
    }
}

#[test]
fn a_path_within_the_other_s_and_limits_that_have_no_place_are_refused() {
    let host = Host::detect().unwrap();
    let refused = |config: SandboxConfig, setting: &str, value: &str| {
        let error = Sandbox::create(&host, &config).map(drop).unwrap_err();
        assert_eq!((error.kind(), error.setting()), (ErrorKind::InvalidInput, Some(setting)), "{error}");
        assert_eq!(error.value(), Some(value), "{error}");
        assert_eq!(Sandbox::plan(&host, &config).map(drop).unwrap_err().to_string(), error.to_string());
    };
    let at = |path: &str| {
        SandboxConfig::new("/rf-a/b".parse().unwrap()).overhead(Overhead::Separate(path.parse().unwrap()))
    };
    for path in ["/rf-a/b", "/rf-a/b/overhead", "/rf-a"] {
        refused(at(path), "overhead", &format!("separate={path}"));
    }
    let memory = Resources::new().memory_limit(MIB);
    let config = |overhead| {
        SandboxConfig::new("/rf-a/b".parse().unwrap()).overhead(overhead).overhead_resources(memory.clone())
    };
    refused(config(Overhead::Together), "overhead.memory.limit", &MIB.to_string());
    refused(config(Overhead::Nested), "overhead.memory.limit", &MIB.to_string());
    let slice: CgroupPath = "rf.slice::rf-sub.slice".parse().unwrap();
    refused(
        SandboxConfig::new("/rf-a/b".parse().unwrap()).overhead(Overhead::Separate(slice.clone())),
        "overhead",
        &format!("separate={slice}"),
    );
}

#[test]
fn what_is_left_of_one_of_both_is_removed() {
    if by_systemd() {
        return;
    }
    let host = Host::detect().unwrap();
    for gone in 0..2 {
        let vm = Guarded::make(&host, &separate(&path("left-overhead"), "left"));
        let state = vm.state();
        let paths = [&state.path, &state.apart.as_ref().unwrap().path];
        Cgroup::open(&host, paths[gone]).unwrap().destroy(Remaining::Refuse, SOON).unwrap();
        let again = Sandbox::restore(&host, state.clone()).unwrap();
        assert_eq!(again.status().unwrap(), [Status::Gone, Status::Empty][gone]);
        if gone == 0 {
            assert_eq!(again.spawn(&sleeper()).map(drop).unwrap_err().kind(), ErrorKind::NotFound);
        }
        assert!(!again.destroy(Remaining::Refuse, SOON).unwrap().removed.is_empty());
        let error = Sandbox::restore(&host, state.clone()).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}

#[test]
fn drained_processes_live_on_outside_of_both() {
    let host = Host::detect().unwrap();
    let vm = Guarded::make(&host, &separate(&path("drain-overhead"), "drain"));
    let (vmm, helper) = (Vmm::start(&vm), vm.spawn_in(Part::Overhead, &sleeper()).unwrap());
    vm.place_vcpus(&vmm.vcpus()).unwrap();
    let paths = both(&vm);
    let outcome = vm.destroy(Remaining::Drain, SOON).unwrap();
    assert!(outcome.moved.is_superset(&BTreeSet::from([vmm.pid(), helper.pid()])), "{outcome:?}");
    for tid in vmm.threads().into_keys().chain([helper.pid()]) {
        let text = fs::read_to_string(format!("/proc/{tid}/cgroup")).unwrap();
        assert!(!text.lines().any(|line| paths.iter().any(|path| line.ends_with(path))), "{text}");
    }
    helper.signal(9).unwrap();
    helper.wait().unwrap();
}

#[test]
fn helpers_that_end_and_come_again_find_the_overhead_with_the_threads_of_the_vmm() {
    let host = Host::detect().unwrap();
    let vm = Guarded::make(&host, &separate(&path("again-overhead"), "again"));
    let vmm = Vmm::start(&vm);
    for round in 0..3 {
        let helper = vm.spawn_in(Part::Overhead, &sleeper()).unwrap();
        assert_eq!(cgroup_of(helper.pid(), "memory"), both(&vm)[1], "{round}");
        let placed = vm.place_vcpus(&vmm.vcpus()).unwrap();
        assert_eq!(placed.report.is_empty(), by_thread(&vm), "{placed:?}");
        for (tid, name) in vmm.threads() {
            let is_outside = by_thread(&vm) && !name.starts_with("CPU");
            assert_eq!(cgroup_of(tid, "cpu"), both(&vm)[usize::from(is_outside)], "{round} {name}");
        }
        helper.signal(9).unwrap();
        helper.wait().unwrap();
        if by_systemd() {
            let deadline = Instant::now() + SOON;
            while vm.overhead().unwrap().status().unwrap() != Status::Planned {
                assert!(Instant::now() < deadline, "its scope does not end");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        assert!(vm.processes().unwrap().contains(&vmm.pid()));
    }
    let paths = both(&vm);
    vm.destroy(Remaining::Kill, SOON).unwrap();
    for hierarchy in &host.hierarchies {
        for path in &paths {
            assert!(!hierarchy.root.join(path.trim_start_matches('/')).exists(), "{path}");
        }
    }
}
