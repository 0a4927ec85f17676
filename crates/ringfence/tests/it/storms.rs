//! Processes and threads that come and go as fast as they can, while they are placed, joined and killed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::soak::is_soak;
use crate::support::standing::where_it_stands;
use crate::support::{Guarded, SOON, name, path, sleeper, test_path};
use ringfence::{
    Command, ErrorKind, Host, Overhead, Part, Placed, Remaining, Resources, Result, Sandbox, SandboxConfig,
    VcpuHints, Vmm, null,
};
use rustix::process::{WaitOptions, wait};

testbed! {
    drivers: "cgroupfs systemd";
    soak: "host trixie plain-v1";
}

/// One storm at a time: where the machine is emulated, another that never pauses leaves it no time to grow.
static STORMS: Mutex<()> = Mutex::new(());

/// Say to the test binary what it is to stand in for.
const THREADS: &str = "RINGFENCE_TEST_THREADS";
const STORM: &str = "RINGFENCE_TEST_STORM";

fn named(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// Not a test: a VMM with two vCPUs that sleep, and two threads that make others, of the name that is given, one after the
/// other: the first without a pause.
#[test]
fn stand_in_with_threads() {
    let Ok(short_lived) = std::env::var(THREADS) else { return };
    for vcpu in ["CPU 0/TCG", "CPU 1/TCG"] {
        named(vcpu, || thread::sleep(Duration::from_secs(1000))).unwrap();
    }
    let makers = [Duration::ZERO, Duration::from_millis(1)].map(|pause| {
        let short_lived = short_lived.clone();
        named("maker", move || {
            loop {
                named(&short_lived, thread::yield_now).unwrap().join().unwrap();
                thread::sleep(pause);
            }
        })
    });
    for maker in makers {
        maker.unwrap().join().unwrap();
    }
}

/// Not a test: a process that makes threads, and processes that become others, and becomes itself anew while at it. What it
/// makes lives for a moment, or for good once there is a file `stay`.
#[test]
fn stand_in_that_storms() {
    let Some(dir) = std::env::var_os(STORM).map(PathBuf::from) else { return };
    for _ in 0..10 {
        for _ in 0..4 {
            _ = named("short", thread::yield_now);
        }
        let script = if dir.join("stay").exists() {
            "setsid sleep 1000 & exec setsid sh -c 'sleep 1000 & exec sleep 1000'"
        } else {
            "(exec sleep 0.1) & exec sh -c 'exec sleep 0.1'"
        };
        _ = std::process::Command::new("sh").args(["-c", script]).spawn();
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
    }
    // Not from the first of its threads, which ends of it.
    let error =
        std::process::Command::new(std::env::current_exe().unwrap()).args(std::env::args_os().skip(1)).exec();
    panic!("{error}");
}

/// The test binary, standing in for something.
fn stand_in(test: &str, variable: &str, value: &str) -> Command {
    let variables = std::env::vars_os().chain([(variable.into(), value.into())]);
    let command =
        Command::new(std::env::current_exe().unwrap()).args(["--exact", &test_path(module_path!(), test)]);
    command.env(variables).stdin(null().unwrap()).stdout(null().unwrap()).stderr(null().unwrap())
}

/// Threads and their names.
fn threads(pid: u32) -> BTreeMap<u32, String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let named = tasks.filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        Some((task.file_name().to_str()?.parse().ok()?, name.trim_end().to_owned()))
    });
    named.collect()
}

/// Where a process or thread is in each hierarchy, by its controllers; nothing if it has ended.
fn places(id: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap_or_default();
    let place = |line: &str| {
        let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else { panic!("{line}") };
        (controllers.to_owned(), path.to_owned())
    };
    text.lines().map(place).collect()
}

/// A number of `/proc/PID/stat`, from the state on; none if it has ended.
fn stat(pid: u32, field: usize) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ")?.1.split(' ').nth(field)?.parse().ok()
}

/// Whether it is about to end (`PF_EXITING`): the hierarchies of v1 show it in their root then.
fn is_ending(pid: u32) -> bool {
    stat(pid, 6).is_none_or(|flags| flags & 4 != 0)
}

/// Lets threads come and go while they are placed again and again, each time from among the vCPUs.
fn placed_all_the_while(short_lived: &str, place: impl Fn(&Sandbox, &[(u32, u32)]) -> Result<Placed>) {
    const ROUNDS: usize = 300;
    let _alone = STORMS.lock().unwrap_or_else(PoisonError::into_inner);
    let host = Host::detect().unwrap();
    let config = SandboxConfig::new(path("threads")).overhead(Overhead::Nested);
    let vm = Guarded::make(&host, &config);
    let vmm = vm.spawn(&stand_in("stand_in_with_threads", THREADS, short_lived)).unwrap();
    let begun = Instant::now();
    let (vcpus, makers) = loop {
        let all = threads(vmm.pid());
        let with = |name: &str| -> Vec<u32> {
            all.iter().filter(|(_, called)| *called == name).map(|(tid, _)| *tid).collect()
        };
        if let ([first], [second], [one, other]) =
            (&with("CPU 0/TCG")[..], &with("CPU 1/TCG")[..], &with("maker")[..])
        {
            // What a maker has just made is called as it is.
            thread::sleep(Duration::from_millis(100));
            if [one, other].iter().all(|tid| threads(vmm.pid()).contains_key(tid)) {
                break ([(0, *first), (1, *second)], [*one, *other]);
            }
        }
        assert!(begun.elapsed() < SOON, "it does not come up: {all:?}");
        thread::sleep(Duration::from_millis(10));
    };
    let by_part = Part::FIRST.map(|part| vm.state().parts[&part].clone());
    let is_in = |tid: u32, part: &str| places(tid).into_values().any(|path| path == format!("/{part}"));
    let (mut rounds, mut refused, begun) = (0, 0, Instant::now());
    // Under emulation, moving threads takes its time.
    while rounds < 3
        || rounds < ROUNDS && begun.elapsed() < Duration::from_secs(if is_soak() { 120 } else { 3 })
    {
        rounds += 1;
        vm.join_threads(Part::Vcpu, &makers).unwrap();
        match place(&vm, &vcpus) {
            Ok(placed) => assert!(placed.vcpus >= 2 && placed.moved >= 2, "{placed:?}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
                assert!(error.message().contains("faster than they can be placed"), "{error}");
                refused += 1;
                continue;
            }
        }
        for (tid, name) in threads(vmm.pid()) {
            let vcpu = vcpus.iter().any(|(_, vcpu)| *vcpu == tid);
            // A thread that is called as a vCPU's is one while it lives.
            let wrong = &by_part[usize::from(vcpu)];
            assert!(name == short_lived || !is_in(tid, wrong), "round {rounds}: {name} is in {wrong}");
            assert!(!vcpu || is_in(tid, &by_part[0]), "round {rounds}: {name}");
        }
    }
    println!("{rounds} rounds, {refused} times not placed");
    assert!(refused < rounds);
    vm.kill(SOON).unwrap();
    vmm.wait().unwrap();
}

#[test]
fn threads_that_come_and_go_while_others_are_placed_are_in_the_wrong_part_no_more() {
    placed_all_the_while("worker", |vm, vcpus| vm.place_vcpus(vcpus));
}

#[test]
fn vcpus_that_end_while_they_are_placed_are_no_mistake() {
    let hints = VcpuHints::default().names(Vmm::Qemu);
    placed_all_the_while("CPU 2/TCG", |vm, _| vm.classify(&hints, SOON));
}

#[test]
fn a_vmm_that_ends_before_its_threads_are_placed_is_not_found() {
    let host = Host::detect().unwrap();
    let vm = Guarded::make(&host, &SandboxConfig::new(path("ends")).overhead(Overhead::Nested));
    let hints = VcpuHints::default().names(Vmm::Qemu).count(2);
    assert_eq!(vm.classify(&hints, SOON).unwrap_err().kind(), ErrorKind::NotFound);
    let vmm = vm.spawn(&stand_in("stand_in_with_threads", THREADS, "worker")).unwrap();
    let found = vm.find_vcpus(&hints, SOON).unwrap();
    vmm.signal(9).unwrap();
    vmm.wait().unwrap();
    let error = vm.place(&found).unwrap_err();
    assert_eq!((error.kind(), error.value()), (ErrorKind::NotFound, Some(vmm.pid().to_string().as_str())));
}

/// A storm of processes, outside at first. They are known by a variable that they all inherit.
struct Storm {
    mark: String,
    leader: std::process::Child,
    dir: tempfile::TempDir,
}

impl Storm {
    /// Under emulation one may come to a halt before it is one: that is told, and another takes its place.
    fn start() -> Self {
        for _ in 0..6 {
            let (storm, mut seen) = (Self::begin(), BTreeSet::new());
            let is_one = || {
                seen.extend(storm.processes());
                seen.len() > 10
            };
            if Self::becomes(SOON / 2, is_one) {
                return storm;
            }
            eprintln!("it does not storm:\n{}", where_it_stands(storm.leader.id()));
        }
        panic!("it does not storm");
    }

    fn begin() -> Self {
        let dir = tempfile::Builder::new().prefix(&name("storm")).tempdir().unwrap();
        let mark = format!("{STORM}={}", dir.path().display());
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &test_path(module_path!(), "stand_in_that_storms")]).env(STORM, dir.path());
        let null = std::process::Stdio::null;
        let leader = command.stdin(null()).stdout(null()).stderr(null()).spawn().unwrap();
        Self { mark, leader, dir }
    }

    /// All that are alive, with the times at which they started.
    fn processes(&self) -> BTreeMap<u32, u64> {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let ours = pids.filter_map(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let is_ours =
                environment.split(|byte| *byte == 0).any(|variable| variable == self.mark.as_bytes());
            Some((pid, stat(pid, 19).filter(|_| is_ours)?))
        });
        ours.collect()
    }

    #[track_caller]
    fn until(&self, what: &str, is_so: impl FnMut() -> bool) {
        assert!(Self::becomes(SOON, is_so), "still not: {what}: {:?}", self.processes());
    }

    /// Whether something is so in time.
    fn becomes(within: Duration, mut is_so: impl FnMut() -> bool) -> bool {
        let begun = Instant::now();
        while !is_so() {
            if begun.elapsed() >= within {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        _ = self.leader.kill();
        _ = self.leader.wait();
        for pid in self.processes().into_keys() {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

#[test]
fn no_process_of_a_storm_escapes_when_it_is_joined_and_killed() {
    let _alone = STORMS.lock().unwrap_or_else(PoisonError::into_inner);
    let host = Host::detect().unwrap();
    let config = SandboxConfig::new(path("storm"))
        .resources(Resources::new().pids_limit(100))
        .overhead(Overhead::Nested);
    let vm = Guarded::make(&host, &config);
    let reference = vm.spawn_in(vm.default_part(), &sleeper()).unwrap();
    let inside = places(reference.pid());
    let mut storm = Storm::start();
    let leader = storm.leader.id();
    assert_ne!(places(leader), inside);
    vm.join(leader).unwrap();

    // What comes of those that it made before is outside, and ends; what it makes now is inside.
    let misplaced = |pid: &u32| {
        // Twice: while the first thread of a process ends of another's exec, v1 shows the process in its root.
        let is_outside = || Some(places(*pid)).filter(|place| *place != inside && !is_ending(*pid));
        is_outside().and_then(|_| is_outside()).map(|place| (*pid, place))
    };
    let outside = || storm.processes().keys().filter_map(misplaced).collect::<BTreeMap<_, _>>();
    let mut clear = Instant::now();
    storm.until("none is outside", || {
        if !outside().is_empty() {
            clear = Instant::now();
        }
        clear.elapsed() > Duration::from_millis(300)
    });
    let (mut seen, begun) = (BTreeSet::new(), Instant::now());
    while seen.len() < 20 && begun.elapsed() < SOON {
        seen.extend(storm.processes());
        assert_eq!(outside(), BTreeMap::new());
    }
    assert!(seen.len() >= 20, "{seen:?}");

    // From now on they stay, until no more fit in.
    fs::write(storm.dir.path().join("stay"), "").unwrap();
    storm.until("they are many", || vm.processes().unwrap().len() >= 40);
    let paths = vm.paths();
    let outcome = vm.destroy(Remaining::Kill, SOON).unwrap();
    for _ in 0..5 {
        assert_eq!(storm.processes(), BTreeMap::new());
        thread::sleep(Duration::from_millis(10));
    }
    assert!(outcome.killed.len() >= 20 && outcome.killed.contains(&leader), "{outcome:?}");
    assert!(paths.values().all(|path| !Path::new(path).exists()), "{paths:?}");
    storm.leader.wait().unwrap();
    reference.wait().unwrap();
    println!("{} seen inside, {} killed", seen.len(), outcome.killed.len());
}
