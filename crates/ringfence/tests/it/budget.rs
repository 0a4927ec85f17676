//! What each operation costs in system calls, beside the least that does the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // clippy.toml frees only #[test] functions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::read_to_string;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::strace::{self, MARK, Told};
use crate::support::{MIB, SOON, name, skip, test_path};
use ringfence::{
    Command, Controller, DeviceRule, Host, Mode, Remaining, Resources, Sandbox, SandboxConfig, Version, null,
};

testbed! {
    // System calls are the same on whatever kernel.
    modes: "host trixie forky";
}

/// In the environment of the test that is traced.
const LIVES: &str = "RINGFENCE_TEST_LIVES";

/// Marks where an operation begins and ends.
fn measured<T>(operation: &str, work: impl FnOnce() -> T) -> T {
    let mark = |what: &str| Path::new(MARK).join(operation).join(what).exists();
    mark("begin");
    let done = work();
    mark("end");
    done
}

fn config(path: &str) -> SandboxConfig {
    let rules = (0..10).map(|minor| format!("b 240:{minor} rw"));
    let rules = rules.map(|rule| DeviceRule::parse(true, &rule, |_| unreachable!()).unwrap());
    let limits = Resources::new().cpu_quota(50_000).memory_limit(256 * MIB).pids_limit(64).devices(rules);
    SandboxConfig::new(path.parse().unwrap()).resources(limits)
}

/// A life in which each operation is marked with `temperature`. Cold: with a host of its own, from the state alone.
fn live(temperature: &str, host: impl Fn() -> Host) {
    let what = |operation: &str| format!("{operation} {temperature}");
    let path = format!("/{}", name("budget"));
    let config = config(&path);
    let sleeper = Command::new("/bin/sleep").args(["1000"]).stdin(null().unwrap()).stdout(null().unwrap());
    let mut waiting = Process::new("/bin/sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
    let pid = waiting.id();

    let (_host, (made, _)) = measured(&what("create"), || {
        let host = host();
        let made = Sandbox::create(&host, &config).unwrap();
        (host, made)
    });
    let is_cold = temperature == "cold";
    let vm = |operation: &str, work: &dyn Fn(&Sandbox)| {
        let state = made.state();
        // What was opened is closed behind the operation.
        drop(measured(&what(operation), || {
            let restored = is_cold.then(|| Sandbox::restore(&host(), state).unwrap());
            work(restored.as_ref().unwrap_or(&made));
            restored
        }));
    };
    vm("join", &|vm| vm.join(pid).unwrap());
    let child = std::cell::Cell::new(None);
    vm("spawn", &|vm| child.set(Some(vm.spawn(&sleeper).unwrap())));
    vm("change", &|vm| drop(vm.change(&Resources::new().pids_limit(65)).unwrap()));
    let rule = DeviceRule::parse(true, "b 240:99 rw", |_| unreachable!()).unwrap();
    vm("devices", &|vm| drop(vm.change(&Resources::new().device(rule.clone())).unwrap()));
    let mut reader = measured(&what("open stats"), || made.stats_reader().unwrap());
    measured(&what("sample"), || drop(reader.sample().unwrap().clone()));
    drop(reader);
    let child = child.take().unwrap();
    child.signal(9).unwrap();
    child.wait().unwrap();
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    // Linux 7.2 (6.12 does not) counts a process as inside for a moment after it was waited for. Looking whether a populated
    // cgroup has processes takes more calls.
    let deadline = Instant::now() + SOON;
    let paths = made.paths();
    let events = paths.get("unified").map(|directory| directory.join("cgroup.events"));
    while events.as_ref().is_some_and(|file| read_to_string(file).unwrap().contains("populated 1")) {
        assert!(Instant::now() < deadline, "still populated");
        sleep(Duration::from_millis(1));
    }
    vm("destroy", &|vm| drop(vm.destroy(Remaining::Refuse, SOON).unwrap()));
}

/// Traced by the others.
#[test]
fn lives() {
    if std::env::var_os(LIVES).is_none() {
        return;
    }
    let host = Host::detect().unwrap();
    live("unmeasured", || host.clone());
    live("warm", || host.clone());
    live("cold", || Host::detect().unwrap());
}

/// The calls of each operation, up to exec in the child, without the look at a descriptor that Rust takes before it closes
/// one, where debug assertions are on.
fn traced() -> BTreeMap<String, Vec<String>> {
    let mut program = Process::new(std::env::current_exe().unwrap());
    program.args(["--exact", &test_path(module_path!(), "lives"), "--test-threads=1"]).env(LIVES, "1");
    let text = strace::trace(&program).unwrap().expect("strace");
    let mut operations: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = None;
    for told in strace::told(&text) {
        match (told, &current) {
            (Told::Mark(mark), _) => {
                let (operation, what) = mark.split_once('/').unwrap();
                current = what.starts_with("begin").then(|| operation.to_owned());
            }
            (Told::Call(call), Some(operation)) if !call.contains("F_GETFD") => {
                operations.entry(operation.clone()).or_default().push(call.to_owned());
            }
            _ => {}
        }
    }
    operations
}

/// What an operation cannot do without, call by call, and why.
#[derive(Default)]
struct Minimum(Vec<String>);

impl Minimum {
    fn calls(mut self, times: usize, call: &str, why: &str) -> Self {
        self.0.extend((0..times).map(|_| format!("{call}: {why}")));
        self
    }

    fn call(self, call: &str, why: &str) -> Self {
        self.calls(1, call, why)
    }

    /// One read(2) of a small file is all of it.
    fn read(self, file: &str, why: &str) -> Self {
        self.call(&format!("open {file}"), why).call("pread", why).call("close", why)
    }

    fn write(self, file: &str, why: &str) -> Self {
        self.call(&format!("open {file}"), why).call("write", why).call("close", why)
    }

    /// Holds what was traced against it.
    fn allows(&self, operation: &str, traced: &[String]) {
        let least = self.0.len();
        println!("{operation}: {} system calls, {least} at the least", traced.len());
        if traced.len() * 100 <= least * 115 {
            return;
        }
        for line in 0..least.max(traced.len()) {
            let of = |side: &[String]| side.get(line).cloned().unwrap_or_default();
            println!("{:70.70} | {:.110}", of(&self.0), of(traced));
        }
        panic!("{operation} takes {} system calls, and {least} at the least", traced.len());
    }
}

/// What the minimum depends on.
struct Machine {
    host: Host,
    v1: usize,
    is_v2_alone: bool,
    /// What is allowed beside what was asked for: the runtime's defaults and the profile's.
    rules: usize,
}

impl Machine {
    fn new() -> Self {
        let host = Host::detect().unwrap();
        let v1 = host.hierarchies.iter().filter(|hierarchy| hierarchy.version == Version::V1).count();
        let rules =
            Sandbox::intent(&host, &config("/ringfence-budget")).unwrap().devices.exceptions().count();
        Self { v1, is_v2_alone: host.mode == Mode::V2, rules, host }
    }

    fn all(&self) -> usize {
        self.host.hierarchies.len()
    }

    fn is_on_v1(&self, controller: Controller) -> bool {
        self.host.hierarchy_of(controller).is_some_and(|(_, hierarchy)| hierarchy.version == Version::V1)
    }

    fn detect(&self, minimum: Minimum) -> Minimum {
        let mut minimum = minimum
            .call("open mountinfo", "which hierarchies there are")
            .calls(2, "pread", "a line may be longer than a page, so that only the end is the end")
            .call("close", "mountinfo")
            .call("stat ns/user", "rootless")
            .call("geteuid", "rootless")
            .call("open hugepages", "sizes of huge pages")
            .calls(2, "getdents", "sizes of huge pages")
            .call("close", "hugepages")
            .calls(self.all(), "statfs", "whether a hierarchy is read-only")
            .call("stat /run/systemd/system", "whether systemd is process 1");
        for (controller, files) in
            [(Controller::Cpu, 4), (Controller::Memory, 1), (Controller::Io, 2), (Controller::Hugetlb, 1)]
        {
            if self.is_on_v1(controller) {
                minimum = minimum
                    .call(&format!("open {controller}"), "the root of a v1 hierarchy")
                    .calls(files, "access", "capabilities are probed")
                    .call("close", "the root of a v1 hierarchy");
            }
        }
        if let Some((_, unified)) = self.host.unified() {
            let has = |controller| unified.controllers.contains(&controller);
            let asked = [
                (Controller::Memory, 2),
                (Controller::Cpu, 3),
                (Controller::Io, 2),
                (Controller::Hugetlb, 1),
            ];
            let asked = asked.iter().filter(|(controller, _)| has(*controller)).map(|(_, files)| files);
            minimum = minimum
                .call("open", "the root of the v2 hierarchy")
                .read("cgroup.controllers", "the controllers of v2")
                .call("access cgroup.events", "whether the root is the machine's")
                .read("cgroup.subtree_control", "of which controllers a child has the files")
                .call("open .", "a child")
                .calls(2, "getdents", "a child")
                .call("close", "a child")
                .call("open", "a child")
                .read("cgroup.controllers", "which it has")
                .calls(1 + asked.sum::<usize>(), "access", "capabilities are probed")
                .call("access cgroup.procs", "the child was there all the while")
                .call("close", "a child")
                .call("close", "the root of the v2 hierarchy");
        }
        minimum
            .call("open /proc/pressure/cpu", "pressure: the file is there where it is switched off, too")
            .call("close", "pressure")
            .call("clone3", "whether it knows CLONE_INTO_CGROUP")
            .call("bpf load", "whether it is permitted")
            .call("close", "the program")
            .call("bpf attach", "whether it knows BPF_F_REPLACE")
            .calls(8, "stat /dev/…", "the nodes that profiles name")
            .read("/proc/devices", "the device mapper's major number")
            .read("cpu/online", "CPUs")
            .read("node/online", "memory nodes")
            .read("/proc/1/cgroup", "where systemd keeps its units")
            .call("stat ns/cgroup", "whether this is a cgroup namespace")
    }

    /// Before the first operation on a sandbox of which the state alone is known.
    fn restore(&self, minimum: Minimum) -> Minimum {
        self.detect(minimum)
            .calls(self.all(), "open", "the root of each hierarchy, beneath which everything is opened")
            .calls(self.all(), "open", "the directory in each: what comes to this path later is another")
            .calls(self.all(), "getxattr", "whether it was made by the same creation")
            .call("access", "whether it is there still")
    }

    fn create(&self, mut minimum: Minimum) -> Minimum {
        if !self.is_v2_alone && self.is_on_v1(Controller::Cpuset) {
            minimum = minimum
                .read("cpuset.cpus", "a new cpuset of v1 is empty, and nothing can join it")
                .read("cpuset.mems", "the same");
        }
        if self.is_v2_alone {
            minimum =
                minimum.read("cgroup.subtree_control", "a write would take the kernel through all cgroups");
        }
        minimum = minimum
            .calls(self.all(), "mkdir", "in each hierarchy: what is inside is counted, frozen, found in each")
            .calls(self.all(), "open", "the directory in each: what comes to this path later is another")
            .call("getrandom", "the identity of this creation")
            .calls(self.all(), "setxattr", "the mark on each, by which its removal knows it")
            .calls(self.all(), "fstat", "nobody else has made one inside before it was marked");
        if self.is_on_v1(Controller::Cpuset) {
            minimum = minimum.write("cpuset.cpus", "the parent's").write("cpuset.mems", "the parent's");
        }
        minimum = if self.is_on_v1(Controller::Devices) {
            minimum
                .write("devices.deny", "the parent's list is reset")
                .call("open devices.allow", "the rules")
                .calls(self.rules, "write", "the kernel takes one rule from one write")
                .call("close", "devices.allow")
                .read("devices.list", "the kernel drops in silence what it does not take")
        } else {
            minimum
                .call("bpf load", "the device program")
                .call("bpf info", "its number, by which another process finds it again")
                .call("bpf query", "a program above that would no longer be asked")
                .call("bpf attach", "the device program")
        };
        minimum = minimum.write("memory limit", "memory").write("quota", "cpu").write("pids.max", "pids");
        if !self.is_on_v1(Controller::Memory) {
            minimum = minimum.write("memory.oom.group", "a VM whose helper alone is killed is half a VM");
        }
        if self.host.capabilities.cpu_burst {
            minimum = minimum.write("burst", "a quota brings a burst with it, else vCPUs stop all at once");
        }
        minimum
    }

    fn not_frozen(&self, minimum: Minimum) -> Minimum {
        if self.is_on_v1(Controller::Freezer) {
            return minimum.read("freezer.state", "what joins a frozen cgroup stops there: refused");
        }
        minimum
            .read("cgroup.events", "what joins a frozen cgroup stops there: refused")
            .read("cgroup.freeze", "the same while it is only about to be frozen")
    }

    fn join(&self, minimum: Minimum) -> Minimum {
        let minimum = self.not_frozen(minimum);
        let mut minimum = minimum
            .read("/proc/PID/status", "whether it is the first process of a container, which depends on it")
            .read("/proc/PID/stat", "the kernel takes a zombie without moving anything")
            .read("/proc/PID/cgroup", "where it goes back to if one hierarchy refuses it");
        for _ in 0..self.all() {
            minimum = minimum.write("cgroup.procs", "each hierarchy");
        }
        minimum
    }

    fn spawn(&self, minimum: Minimum) -> Minimum {
        let minimum = self
            .not_frozen(minimum)
            .call("rt_sigaction", "while SIGCHLD is ignored, the status of the child would be lost")
            .calls(
                self.v1,
                "open cgroup.procs",
                "before the fork, behind which nothing may fail for want of memory",
            )
            .call("pipe2", "through which the child says what failed");
        let unified = usize::from(self.all() > self.v1);
        minimum
            .calls(
                unified,
                "mmap",
                "in which the child says that it ran: cgroup.kill of old may kill it unseen",
            )
            .call("rt_sigprocmask", "no handler of the embedder runs in the child")
            .call("clone3", "into the v2 cgroup, with a pidfd")
            .call("rt_sigprocmask", "the parent's signals again")
            .call("close", "the child's end of the pipe")
            .calls(self.v1, "write 0", "the child joins each v1 hierarchy")
            .calls(2, "dup2", "standard input and output, as was asked for")
            .call("rt_sigaction", "Rust ignores SIGPIPE, the program must not")
            .call("rt_sigprocmask", "the program's signals")
            .call("execve", "the program")
            .call(
                "ppoll",
                "with a deadline: in a cgroup that is frozen meanwhile the child never comes to exec",
            )
            .call("read", "what failed, or the end")
            .call("close", "the pipe")
            .calls(unified, "munmap", "where the child said that it ran")
            .calls(self.v1, "close", "cgroup.procs")
    }

    fn change(&self, minimum: Minimum) -> Minimum {
        minimum
            .call("open pids.max", "to read and to write")
            .call("pread", "the old value: it is put back where a later step fails")
            .call("write", "the new value")
            .call("pread", "a limit on what runs is read back")
            .call("close", "pids.max")
    }

    fn devices(&self, minimum: Minimum) -> Minimum {
        if self.is_on_v1(Controller::Devices) {
            return minimum
                .call("open devices.list", "from what is in force follow the fewest writes")
                .call("pread", "the same")
                .write("devices.allow", "the rule")
                .call("pread devices.list", "the kernel drops in silence what it does not take")
                .call("close", "devices.list");
        }
        minimum
            .call("bpf load", "the new program")
            .call("bpf info", "its number, by which another process finds it again")
            .call("bpf query", "whether ours is still there: another manager may have replaced it")
            .call("bpf attach", "in the place of the old one")
            .call("close", "the old program")
    }

    fn destroy(&self, mut minimum: Minimum) -> Minimum {
        for _ in 0..self.v1 {
            minimum = minimum
                .read("cgroup.procs", "nothing is removed where a process is in any hierarchy")
                .call("fstat", "nor where one may be in a cgroup below");
        }
        if self.all() > self.v1 {
            minimum = minimum.read("cgroup.events", "the same, here and below");
        }
        minimum = minimum.call("fstat", "which cgroup it was that counted:");
        minimum = if self.is_on_v1(Controller::Memory) {
            let minimum =
                minimum.read("memory.oom_control", "OOM kills: nobody can know of them behind the removal");
            let minimum = minimum.read("memory.failcnt", "the limit was reached");
            if self.host.capabilities.swap {
                minimum.read("memory.memsw.failcnt", "the same")
            } else {
                minimum
            }
        } else {
            minimum.read("memory.events", "OOM kills: nobody can know of them behind the removal")
        };
        minimum
            .read("pids.events", "forks that were refused")
            .calls(self.all(), "fstat", "whether other sandboxes are nested inside")
            .calls(2 * self.all(), "stat", "whether the name still leads to the directory that was opened")
            .calls(self.all(), "rmdir", "each hierarchy")
    }
}

#[test]
fn every_operation_keeps_within_its_budget_of_system_calls() {
    if std::fs::metadata("/usr/bin/strace").is_err() {
        return skip("there is no strace");
    }
    let machine = Machine::new();
    if machine.host.rootless || !machine.host.capabilities.bpf_devices && machine.is_v2_alone {
        return skip("this process may not manage devices");
    }
    let traced = traced();
    let allows = |operation: &str, minimum: Minimum| minimum.allows(operation, &traced[operation]);
    type Of = fn(&Machine, Minimum) -> Minimum;
    let operations: [(&str, Of); 6] = [
        ("create", Machine::create),
        ("join", Machine::join),
        ("spawn", Machine::spawn),
        ("change", Machine::change),
        ("devices", Machine::devices),
        ("destroy", Machine::destroy),
    ];
    for (operation, of) in operations {
        allows(&format!("{operation} warm"), of(&machine, Minimum::default()));
        let before = match operation {
            "create" => machine.detect(Minimum::default()).calls(
                machine.all(),
                "open",
                "the root of each hierarchy, beneath which everything is opened",
            ),
            _ => machine.restore(Minimum::default()),
        };
        allows(&format!("{operation} cold"), of(&machine, before));
    }
    // As many files as there are, each opened once and read once for each sample.
    let opened = &traced["open stats warm"];
    let files = opened.iter().filter(|call| call.starts_with("openat2(")).count();
    let listed = Minimum::default()
        .call("open .", "which sizes of huge pages and interfaces have files")
        .calls(2, "getdents", "the same")
        .call("close", "the same");
    allows("open stats warm", listed.calls(files, "open", "each file that there may be"));
    let sample = &traced["sample warm"];
    // strace prints a call that another thread's call interrupts as `pread64(9,  <unfinished ...>`, strace 7.2 without the comma.
    let descriptors: BTreeSet<_> = sample.iter().map(|call| call.split([',', ' ']).next().unwrap()).collect();
    assert!(descriptors.iter().all(|call| call.starts_with("pread64(")), "{sample:?}");
    allows("sample warm", Minimum::default().calls(descriptors.len(), "pread", "each file"));
}
