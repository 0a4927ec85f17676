//! A sandbox in parts, on a real kernel: a process with threads of its own kinds stands in for a VMM.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // clippy.toml frees only #[test] functions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::{self, Guarded, MIB, SOON, by_systemd, path, test_path};
use ringfence::{
    ChangeOptions, Child, Command, CpuSet, EachThread, Entry, ErrorKind, Host, Limit, Overhead, Part, Pin,
    Remaining, Report, Resources, Sandbox, SandboxConfig, State, Store, TakenCpus, VcpuHints, Vmm as Kind,
    null,
};

testbed! {
    drivers: "cgroupfs systemd";
}

/// Says to the test binary that it is to stand in for a VMM.
const STAND_IN: &str = "RINGFENCE_TEST_STAND_IN";

/// Not a test: a process with two threads that spin, called as QEMU calls those of vCPUs, one that sleeps for I/O, and a main
/// thread that answers in a file how long it slept each time.
#[test]
fn stand_in() {
    let Some(ticks) = std::env::var_os(STAND_IN).map(PathBuf::from) else { return };
    let named = |name: &str, work: fn()| {
        std::thread::Builder::new().name(name.to_owned()).spawn(work).unwrap();
    };
    for vcpu in ["CPU 0/TCG", "CPU 1/TCG"] {
        named(vcpu, || {
            loop {
                std::hint::spin_loop();
            }
        });
    }
    named("IO io0", || {
        loop {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let mut longest = Duration::ZERO;
    loop {
        let before = Instant::now();
        std::thread::sleep(Duration::from_millis(10));
        longest = longest.max(before.elapsed());
        let next = ticks.with_extension("next");
        fs::write(&next, longest.as_millis().to_string()).unwrap();
        fs::rename(&next, &ticks).unwrap();
    }
}

/// A stand-in that runs in a sandbox, born among the vCPUs.
struct Vmm {
    child: Child,
    ticks: PathBuf,
}

impl Vmm {
    fn start(vm: &Sandbox) -> Self {
        let ticks = std::env::temp_dir().join(support::name("ticks"));
        let variables = std::env::vars_os().chain([(STAND_IN.into(), ticks.clone().into())]);
        let command = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &test_path(module_path!(), "stand_in")]);
        let command = command.env(variables).stdin(null().unwrap()).stdout(null().unwrap());
        let vmm = Self { child: vm.spawn(&command).unwrap(), ticks };
        let deadline = Instant::now() + SOON;
        // A thread gives itself its name when it first runs.
        let has_io_thread = |vmm: &Self| vmm.threads().values().any(|name| name == "IO io0");
        while vmm.vcpus().len() < 2 || !has_io_thread(&vmm) || !vmm.ticks.exists() {
            assert!(Instant::now() < deadline, "it does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        vmm
    }

    fn threads(&self) -> BTreeMap<u32, String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.pid())).unwrap().flatten();
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
        _ = self.child.signal(9);
        _ = self.child.wait();
        _ = fs::remove_file(&self.ticks);
    }
}

fn nested(host: &Host, what: &str, resources: Resources, overhead: Resources) -> Guarded {
    let config = SandboxConfig::new(path(what)).resources(resources).overhead(Overhead::Nested);
    Guarded::make(host, &config.overhead_resources(overhead))
}

/// The directory of a part in the hierarchy of a controller, and whether that is of v1.
fn dir(vm: &Guarded, part: Part, controller: &str) -> (PathBuf, bool) {
    let (whole, is_v1) = vm.dir(controller);
    (whole.join(part.to_string()), is_v1)
}

fn file(vm: &Guarded, part: Part, controller: &str, v1: &str, v2: &str) -> Option<String> {
    let (dir, is_v1) = dir(vm, part, controller);
    Some(fs::read_to_string(dir.join(if is_v1 { v1 } else { v2 })).ok()?.trim_end().to_owned())
}

fn quota(vm: &Guarded, part: Part) -> String {
    let found = file(vm, part, "cpu", "cpu.cfs_quota_us", "cpu.max").unwrap();
    let first = found.split(' ').next().unwrap().to_owned();
    if first == "max" { "-1".to_owned() } else { first }
}

/// The path of a thread in the hierarchy of the cpu controller.
fn cgroup_of(tid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{tid}/cgroup")).unwrap();
    let found = |line: &&str| {
        let names = line.split(':').nth(1).unwrap();
        names.split(',').any(|name| name == "cpu")
    };
    let line = text.lines().find(found).or(text.lines().find(|line| line.starts_with("0::")));
    line.unwrap().splitn(3, ':').nth(2).unwrap().to_owned()
}

#[test]
fn threads_have_limits_of_their_own_in_parts_that_come_and_go_with_them() {
    let host = Host::detect().unwrap();
    let each = |vcpu, iothread| EachThread {
        vcpu: Resources::new().cpu_quota(vcpu),
        iothread: Resources::new().cpu_quota(iothread),
    };
    let limits = Resources::new().cpu_quota(90_000).cpuset_cpus("0".parse().unwrap());
    let config = SandboxConfig::new(path("each")).resources(limits).overhead(Overhead::Nested);
    let vm = Guarded::make(&host, &config.each_thread(each(30_000, 20_000)));
    let vmm = Vmm::start(&vm);
    assert_eq!(vm.state().parts.len(), 2);
    let placed = vm.classify(&VcpuHints::default().names(Kind::Qemu).count(2), SOON).unwrap();
    assert_eq!((placed.vcpus, placed.report.lines().len()), (2, 0), "{placed:?}");
    let parts = [Part::OneVcpu(0), Part::OneVcpu(1), Part::OneIoThread(0)];
    assert_eq!(parts.map(|part| quota(&vm, part)), ["30000", "30000", "20000"]);
    for task in vm.tasks(true).unwrap() {
        let wanted = match task.name.as_str() {
            "CPU 0/TCG" => Part::OneVcpu(0),
            "CPU 1/TCG" => Part::OneVcpu(1),
            "IO io0" => Part::OneIoThread(0),
            _ => Part::Overhead,
        };
        assert_eq!((task.part, cgroup_of(task.tid)), (Some(wanted), task.cgroup.clone()), "{task:?}");
    }

    // By another process that restores it.
    let other = Sandbox::restore(&host, vm.state()).unwrap();
    let options = ChangeOptions { each: each(40_000, 50_000), ..ChangeOptions::default() };
    other.change_with(&Resources::new(), options).unwrap();
    assert_eq!(parts.map(|part| quota(&vm, part)), ["40000", "40000", "50000"]);
    // What is below has its CPUs from what is above, whichever grows or shrinks.
    for cpus in ["0-1", "1", "0"] {
        other.change(&Resources::new().cpuset_cpus(cpus.parse().unwrap())).unwrap();
        let found = file(&vm, Part::OneVcpu(1), "cpuset", "cpuset.effective_cpus", "cpuset.cpus.effective");
        assert!(found.is_none_or(|found| found == cpus), "{cpus}");
    }
    let differences = other.diff().unwrap();
    assert!(differences.is_empty(), "{differences:?}");

    // One that was unplugged.
    let (index, tid) = vmm.vcpus()[1];
    other.place_vcpus(&[(index, tid)]).unwrap();
    let left = [Part::Vcpu, Part::Overhead, Part::OneVcpu(index)];
    assert_eq!(other.state().parts.into_keys().collect::<BTreeSet<_>>(), left.into());
    assert!(!dir(&vm, Part::OneVcpu(1 - index), "cpu").0.exists());
    assert!(!dir(&vm, Part::IoThreads, "cpu").0.exists());
    assert_eq!(cgroup_of(tid), format!("/{}", other.state().parts[&Part::OneVcpu(index)]));
}

#[test]
fn threads_have_limits_of_their_own_where_they_are_told_apart_alone() {
    let host = Host::detect().unwrap();
    let each = EachThread { vcpu: Resources::new().cpu_quota(1000), ..EachThread::default() };
    let memory = EachThread { iothread: Resources::new().memory_limit(MIB), ..EachThread::default() };
    for (overhead, each, setting) in [
        (Overhead::Together, each, "each_vcpu.cpu.quota"),
        (Overhead::Nested, memory, "each_iothread.memory.limit"),
    ] {
        let config = SandboxConfig::new(path("refused")).overhead(overhead).each_thread(each);
        let error = Sandbox::create(&host, &config).map(drop).unwrap_err();
        assert_eq!((error.kind(), error.setting()), (ErrorKind::InvalidInput, Some(setting)), "{error}");
    }
}

#[test]
fn each_limit_lies_where_it_counts_and_changes_there() {
    let host = Host::detect().unwrap();
    let limits = Resources::new()
        .memory_limit(64 * MIB)
        .pids_limit(40)
        .cpu_shares(512)
        .cpu_quota(60_000)
        .cpu_period(100_000)
        .cpuset_cpus("0".parse().unwrap());
    let overhead = Resources::new().cpu_quota(20_000).cpu_period(100_000);
    let vm = nested(&host, "limits", limits, overhead);
    assert_eq!((quota(&vm, Part::Vcpu), quota(&vm, Part::Overhead)), ("60000".into(), "20000".into()));
    let whole = vm.file("cpu", "cpu.cfs_quota_us", "cpu.max").unwrap();
    assert!(whole == "-1" || whole.starts_with("max"), "{whole}");
    assert_eq!(vm.number("memory", "memory.limit_in_bytes", "memory.max"), Limit::Value(64 * MIB));
    assert_eq!(vm.number("pids", "pids.max", "pids.max"), Limit::Value(40));
    assert_eq!(file(&vm, Part::Vcpu, "cpuset", "cpuset.cpus", "cpuset.cpus").unwrap(), "0");
    let others = file(&vm, Part::Overhead, "cpuset", "cpuset.cpus", "cpuset.cpus.effective").unwrap();
    assert_ne!(others, "0");
    // A burst comes with each quota.
    if let Some(burst) = file(&vm, Part::Vcpu, "cpu", "cpu.cfs_burst_us", "cpu.max.burst") {
        assert_eq!(burst, "60000");
    }
    assert_eq!(vm.diff().unwrap(), []);

    let options = || ChangeOptions { overhead: Resources::new().cpu_quota(Limit::Max), ..Default::default() };
    let mut change = Resources::new().cpu_quota(70_000).memory_limit(80 * MIB);
    let with_mems = change.clone().cpuset_mems("0".parse().unwrap());
    if takes_mems_above_cpus(&vm) {
        change = with_mems;
    } else {
        let before = vm.files();
        let error = vm.change_with(&with_mems, options()).unwrap_err();
        assert!(error.message().contains("before Linux 5.17"), "{error}");
        assert_eq!(vm.files(), before);
    }
    vm.change_with(&change, options()).unwrap();
    assert_eq!((quota(&vm, Part::Vcpu), quota(&vm, Part::Overhead)), ("70000".into(), "-1".into()));
    assert_eq!(vm.number("memory", "memory.limit_in_bytes", "memory.max"), Limit::Value(80 * MIB));
    assert_eq!(vm.diff().unwrap(), []);

    // What the kernel refuses of a part leaves everything as it was.
    let refused = Resources::new().memory_limit(90 * MIB).cpuset_cpus("0,4000".parse().unwrap());
    vm.change_with(&refused, options()).unwrap_err();
    assert_eq!(vm.number("memory", "memory.limit_in_bytes", "memory.max"), Limit::Value(80 * MIB));
    assert_eq!(vm.diff().unwrap(), []);

    // And is seen when somebody else changes it.
    let (part, is_v1) = dir(&vm, Part::Vcpu, "cpu");
    let (name, value) = if is_v1 { ("cpu.cfs_quota_us", "80000") } else { ("cpu.max", "80000 100000") };
    fs::write(part.join(name), value).unwrap();
    let found: Vec<_> = vm.diff().unwrap().into_iter().map(|difference| difference.key).collect();
    assert_eq!(found, [format!("vcpu/{name}")]);
}

/// Whether the whole can be given memory nodes: v2 before Linux 5.17 refuses that (EBUSY) while a part has CPUs and the
/// whole has none of its own.
fn takes_mems_above_cpus(vm: &Guarded) -> bool {
    let written = fs::write(vm.dir("cpuset").0.join("cpuset.mems"), "0");
    !written.is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
}

/// The CPUs on which a thread may run.
fn allowed(tid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    line.trim().to_owned()
}

#[test]
fn cpus_that_nothing_had_before_are_given_to_vcpus_that_run() {
    let host = Host::detect().unwrap();
    let vm = nested(&host, "cpus", Resources::new().pids_limit(50), Resources::new());
    let vmm = Vmm::start(&vm);
    vm.place_vcpus(&vmm.vcpus()).unwrap();
    vm.change(&Resources::new().cpuset_cpus("1".parse().unwrap())).unwrap();
    for (_, tid) in vmm.vcpus() {
        assert_eq!(allowed(tid), "1");
    }
    assert_ne!(allowed(vmm.child.pid()), "1");
    assert_eq!(vm.diff().unwrap(), []);
}

#[test]
fn threads_are_told_apart_and_only_the_vcpus_are_held_to_their_quota() {
    let host = Host::detect().unwrap();
    let vm =
        nested(&host, "threads", Resources::new().cpu_quota(20_000).cpu_period(100_000), Resources::new());
    let vmm = Vmm::start(&vm);
    // From its first instant it is among the vCPUs, which are limited.
    let part = |part: Part| format!("/{}", vm.state().parts[&part]);
    assert_eq!(cgroup_of(vmm.child.pid()), part(Part::Vcpu));

    let placed = vm.place_vcpus(&vmm.vcpus()).unwrap();
    assert_eq!(placed.vcpus, 2, "{placed:?}");
    let vcpus: BTreeSet<u32> = vmm.vcpus().into_iter().map(|(_, tid)| tid).collect();
    for (tid, name) in vmm.threads() {
        let wanted = if vcpus.contains(&tid) { Part::Vcpu } else { Part::Overhead };
        assert_eq!(cgroup_of(tid), part(wanted), "{tid} {name}");
    }
    for task in vm.tasks(true).unwrap().iter().filter(|task| task.pid == vmm.child.pid()) {
        let wanted = if vcpus.contains(&task.tid) { Part::Vcpu } else { Part::Overhead };
        assert_eq!((task.part, &task.cgroup), (Some(wanted), &part(wanted)), "{task:?}");
        assert_eq!(task.index, vmm.vcpus().iter().find(|(_, tid)| *tid == task.tid).map(|(index, _)| *index));
    }
    // What is where it belongs stays there.
    assert_eq!(vm.place_vcpus(&vmm.vcpus()).unwrap().moved, 0);
    assert_eq!(vm.processes().unwrap(), BTreeSet::from([vmm.child.pid()]));

    let mut readers = Part::FIRST.map(|part| vm.part_stats_reader(part).unwrap());
    let mut sample = || {
        let [vcpu, overhead] = &mut readers;
        (vcpu.sample().unwrap().cpu, overhead.sample().unwrap().cpu)
    };
    let (started, (vcpu_before, overhead_before)) = (Instant::now(), sample());
    std::thread::sleep(Duration::from_secs(3));
    let (vcpu, overhead) = sample();
    let elapsed = u64::try_from(started.elapsed().as_micros()).unwrap();
    let used = vcpu.usage_us.unwrap() - vcpu_before.usage_us.unwrap();
    // A fifth of a CPU, with the burst of one period and the kernel's slack.
    assert!(used < elapsed * 2 / 5, "{used} of {elapsed}");
    assert!(vcpu.throttled.unwrap() > vcpu_before.throttled.unwrap(), "{vcpu:?}");
    assert_eq!(overhead.throttled.unwrap_or_default(), overhead_before.throttled.unwrap_or_default());

    // One that is hot-plugged is found when it is looked for again.
    vm.join_threads(Part::Overhead, &[vmm.vcpus()[0].1]).unwrap();
    // To the kernel, 0 is the caller.
    let own = fs::read_to_string("/proc/thread-self/cgroup").unwrap();
    assert_eq!(vm.join_threads(Part::Overhead, &[0]).unwrap_err().errno(), Some(libc::ESRCH));
    assert_eq!(fs::read_to_string("/proc/thread-self/cgroup").unwrap(), own);
    assert_eq!(vm.place_vcpus(&vmm.vcpus()).unwrap().moved, 1);
    // One that is elsewhere is not this sandbox's.
    let error = vm.place_vcpus(&[(0, std::process::id())]).unwrap_err();
    assert_eq!((error.kind(), error.setting()), (ErrorKind::InvalidInput, Some("tid")), "{error}");
}

#[test]
fn memory_is_charged_to_the_whole_and_everything_is_killed_and_removed_with_it() {
    let host = Host::detect().unwrap();
    let vm = nested(&host, "whole", Resources::new().memory_limit(256 * MIB), Resources::new());
    let vmm = Vmm::start(&vm);
    vm.place_vcpus(&vmm.vcpus()).unwrap();
    let mut reader = vm.stats_reader().unwrap();
    assert!(reader.sample().unwrap().memory.current.unwrap() > 0);
    vm.freeze(SOON).unwrap();
    let ticks = fs::read_to_string(&vmm.ticks).unwrap();
    vm.thaw(SOON).unwrap();
    assert!(!ticks.is_empty());
    // Another process of this test takes it over.
    let state: State = serde_json::from_value(serde_json::to_value(vm.state()).unwrap()).unwrap();
    let again = Sandbox::restore(&host, state).unwrap();
    assert_eq!(again.place_vcpus(&vmm.vcpus()).unwrap().moved, 0);
    let outcome = vm.destroy(Remaining::Kill, SOON).unwrap();
    assert_eq!(outcome.killed, BTreeSet::from([vmm.child.pid()]));
}

#[test]
fn a_command_and_a_process_go_where_they_are_told_to() {
    let host = Host::detect().unwrap();
    let vm = nested(&host, "told", Resources::new(), Resources::new());
    let part = |part: Part| format!("/{}", vm.state().parts[&part]);
    for to in Part::FIRST {
        let child = vm.spawn_in(to, &support::sleeper()).unwrap();
        assert_eq!(cgroup_of(child.pid()), part(to));
        let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        vm.join_part(to, &[other.id()]).unwrap();
        assert_eq!(cgroup_of(other.id()), part(to));
        for child in [child.pid(), other.id()] {
            assert!(vm.processes().unwrap().contains(&child));
        }
        vm.kill(SOON).unwrap();
        child.wait().unwrap();
        other.wait().unwrap();
        if by_systemd() {
            return;
        }
    }
    // Of which nothing is said goes to the overhead, and stays its own limits' way.
    let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    vm.join(other.id()).unwrap();
    assert_eq!(cgroup_of(other.id()), part(Part::Overhead));
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_sandbox_without_parts_says_so() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "plain", Resources::new());
    let invalid = |error: ringfence::Error| {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    };
    invalid(vm.place_vcpus(&[]).unwrap_err());
    invalid(vm.spawn_in(Part::Vcpu, &support::sleeper()).unwrap_err());
    invalid(vm.join_part(Part::Overhead, &[std::process::id()]).unwrap_err());
    invalid(vm.part_stats_reader(Part::Vcpu).map(drop).unwrap_err());
    let options = ChangeOptions { overhead: Resources::new().cpu_quota(50_000), ..Default::default() };
    invalid(vm.change_with(&Resources::new(), options).unwrap_err());
    let memory = SandboxConfig::new(path("memory")).overhead(Overhead::Nested);
    let memory = memory.overhead_resources(Resources::new().memory_limit(MIB));
    invalid(Sandbox::create(&host, &memory).map(drop).unwrap_err());
}

/// Two CPUs of this machine, and each of them; none where it has but one.
fn two_cpus(host: &Host) -> Option<(CpuSet, [String; 2])> {
    let numbers: Vec<u32> = host.cpus.iter().take(2).collect();
    let [first, second] = numbers[..] else {
        support::skip("one CPU is not enough");
        return None;
    };
    Some((CpuSet::from_numbers(numbers).unwrap(), [first.to_string(), second.to_string()]))
}

fn pinned(host: &Host, what: &str, pin: Pin, cpus: &CpuSet) -> Guarded {
    let resources = Resources::new().cpuset_cpus(cpus.clone());
    Guarded::make(
        host,
        &SandboxConfig::new(path(what)).resources(resources).overhead(Overhead::Nested).pin(pin),
    )
}

/// Where each vCPU may run.
fn vcpus_allowed(vmm: &Vmm) -> Vec<String> {
    let vcpus: BTreeMap<u32, u32> = vmm.vcpus().into_iter().collect();
    vcpus.into_values().map(allowed).collect()
}

fn why(report: &Report) -> String {
    let lines: Vec<_> = report.lines().iter().filter(|line| line.setting == "pin").collect();
    let [line] = lines[..] else { panic!("{report}") };
    line.why.to_string()
}

#[test]
fn vcpus_are_pinned_while_the_counts_match_and_free_again_when_they_no_longer_do() {
    let host = Host::detect().unwrap();
    let Some((both, [first, second])) = two_cpus(&host) else { return };
    let vm = pinned(&host, "pinned", Pin::Matching, &both);
    let vmm = Vmm::start(&vm);
    let nobody = TakenCpus::new();
    // Nothing to pin before they are found.
    assert!(vm.pin_vcpus(&nobody).unwrap().is_empty());
    assert_eq!(vcpus_allowed(&vmm), [both.to_string(), both.to_string()]);
    vm.place_vcpus(&vmm.vcpus()).unwrap();
    let mut taken = TakenCpus::new();
    taken.add("other", Pin::Exclusive, both.clone());
    assert!(why(&vm.pin_vcpus(&taken).unwrap()).contains("other has"));
    let others = allowed(vmm.child.pid());
    let pin = || {
        assert!(vm.pin_vcpus(&nobody).unwrap().is_empty());
        assert_eq!(vcpus_allowed(&vmm), [first.clone(), second.clone()]);
        assert_eq!(vm.pinned_cpus().unwrap(), both);
    };
    pin();
    assert_eq!(allowed(vmm.child.pid()), others);
    for task in vm.tasks(true).unwrap() {
        let expected = task.index.map(|index| if index == 0 { &first } else { &second });
        assert_eq!(task.pinned.map(|cpu| cpu.to_string()).as_ref(), expected, "{task:?}");
    }
    // What is placed again, or changed in another way, stays where it is.
    assert_eq!(vm.place_vcpus(&vmm.vcpus()).unwrap().moved, 0);
    vm.change(&Resources::new().cpu_quota(Limit::Max).cpuset_cpus(both.clone())).unwrap();
    assert_eq!(vcpus_allowed(&vmm), [first.clone(), second.clone()]);

    // Other CPUs.
    vm.change(&Resources::new().cpuset_cpus(second.parse().unwrap())).unwrap();
    assert_eq!(vcpus_allowed(&vmm), [second.clone(), second.clone()]);
    assert!(vm.state().pinned.is_empty());
    assert!(why(&vm.pin_vcpus(&nobody).unwrap()).contains("vCPUs 2, CPUs 1"));
    assert_eq!(why(&vm.state().report), why(&vm.pin_vcpus(&nobody).unwrap()));
    vm.change(&Resources::new().cpuset_cpus(both.clone())).unwrap();
    assert_eq!(vcpus_allowed(&vmm), [both.to_string(), both.to_string()]);
    pin();
    assert!(vm.state().report.lines().iter().all(|line| line.setting != "pin"));
    // Somebody else's hands are seen, and undone.
    let hands = |list: &str, tid: u32| {
        let done = std::process::Command::new("taskset").args(["-pc", list, &tid.to_string()]).output();
        assert!(done.unwrap().status.success());
    };
    hands(&second, vmm.vcpus().into_iter().min().unwrap().1);
    assert!(vm.tasks(true).unwrap().iter().all(|task| task.index != Some(0) || task.pinned.is_none()));
    pin();

    // One vCPU less, which becomes another thread among others.
    let one = vmm.vcpus().into_iter().min().unwrap();
    vm.place_vcpus(&[one]).unwrap();
    assert_eq!((vm.pinned_cpus().unwrap(), vcpus_allowed(&vmm)[1].clone()), (CpuSet::new(), others));
    assert_eq!(vcpus_allowed(&vmm)[0], both.to_string());
    vm.place_vcpus(&vmm.vcpus()).unwrap();
    pin();
    vm.set_pin(None).unwrap();
    assert!(vm.pin_vcpus(&nobody).unwrap().is_empty());
    assert_eq!(vcpus_allowed(&vmm), [both.to_string(), both.to_string()]);

    // One that has ended is no longer pinned, and no error.
    vm.set_pin(Some(Pin::Matching)).unwrap();
    pin();
    drop(vmm);
    assert!(vm.pinned_cpus().unwrap().is_empty());
    assert!(vm.pin_vcpus(&nobody).unwrap().is_empty());
    assert!(vm.state().pinned.is_empty());
}

/// A sandbox in a store, with a VMM whose vCPUs are found.
fn kept(host: &Host, store: &Store, what: &str, both: &CpuSet) -> (Entry, Guarded, Vmm) {
    let vm = pinned(host, what, Pin::Exclusive, both);
    let entry = store.lock(&what.parse().unwrap(), SOON).unwrap();
    let vmm = Vmm::start(&vm);
    vm.place_vcpus(&vmm.vcpus()).unwrap();
    entry.save(&vm.state()).unwrap();
    (entry, vm, vmm)
}

#[test]
fn of_two_sandboxes_at_once_one_gets_the_cpus_exclusively_until_it_is_gone() {
    let host = Host::detect().unwrap();
    let Some((both, each)) = two_cpus(&host) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::new(scratch.path().join("state"));
    let mut sandboxes = ["one", "two"].map(|what| kept(&host, &store, what, &both));
    let reports: Vec<Report> = std::thread::scope(|scope| {
        let pin = |(entry, vm, _): &(Entry, Guarded, Vmm)| entry.pin_vcpus(&host, vm, SOON).unwrap();
        let started: Vec<_> = sandboxes.iter().map(|sandbox| scope.spawn(move || pin(sandbox))).collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    if !reports[0].is_empty() {
        sandboxes.reverse();
    }
    let [(first_entry, first, first_vmm), (second_entry, second, second_vmm)] = sandboxes;
    assert_eq!(vcpus_allowed(&first_vmm), each);
    assert_eq!(vcpus_allowed(&second_vmm), [both.to_string(), both.to_string()]);
    let line = why(reports.iter().find(|report| !report.is_empty()).expect("one of them has got none"));
    let expected = format!("vCPUs 2, free CPUs 0 of {both}; {} has {both}", first_entry.id());
    assert!(line.contains(&expected), "{line}");
    assert_eq!(second.state().pinned, BTreeMap::new());

    // Its VMM dies, and nobody says so.
    drop(first_vmm);
    assert!(second_entry.pin_vcpus(&host, &second, SOON).unwrap().is_empty());
    assert_eq!(vcpus_allowed(&second_vmm), each);
    assert_eq!(second_entry.load().unwrap().unwrap().pinned, second.state().pinned);
    let first_vmm = Vmm::start(&first);
    first.place_vcpus(&first_vmm.vcpus()).unwrap();
    assert_eq!(vcpus_allowed(&first_vmm), [both.to_string(), both.to_string()]);
    assert!(why(&first_entry.pin_vcpus(&host, &first, SOON).unwrap()).contains("free CPUs 0"));

    // The other is removed.
    second.destroy(Remaining::Kill, SOON).unwrap();
    second_entry.remove().unwrap();
    assert!(first_entry.pin_vcpus(&host, &first, SOON).unwrap().is_empty());
    assert_eq!(vcpus_allowed(&first_vmm), each);
    drop(second_vmm);
    drop(first_vmm);
    first_entry.remove().unwrap();
}

#[test]
fn a_sandbox_whose_vcpus_are_not_told_apart_cannot_have_them_pinned() {
    let host = Host::detect().unwrap();
    let config = SandboxConfig::new(path("unpinned")).pin(Pin::Exclusive);
    let error = Sandbox::create(&host, &config).map(drop).unwrap_err();
    assert_eq!((error.kind(), error.setting()), (ErrorKind::InvalidInput, Some("pin")), "{error}");
    let vm = Guarded::new(&host, "unpinned", Resources::new());
    assert_eq!(vm.set_pin(Some(Pin::Matching)).unwrap_err().kind(), ErrorKind::InvalidInput);
}
