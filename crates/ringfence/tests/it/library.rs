//! What only a user of the library can ask for, on a real kernel, in the cgroup mode of the machine that runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::time::{Duration, Instant};

use crate::support::{self, Guarded, SOON, by_systemd, name, path, skip, sleeper, test_path};
use ringfence::{
    Cgroup, Child, Command, DeviceRule, ErrorKind, Host, JoinOptions, Leftover, Mode, Outcome, Remaining,
    Resources, Sandbox, SandboxConfig, SandboxId, State, Status, Store, null,
};

testbed! {
    drivers: "cgroupfs systemd";
}

/// The paths of a process in all hierarchies that Ringfence found.
fn memberships(pid: u32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    text.lines().map(|line| line.splitn(3, ':').nth(2).unwrap().to_owned()).collect()
}

fn is_inside(pid: u32, sandbox: &Sandbox) -> bool {
    let paths = sandbox.paths();
    let expected = paths.values().collect::<BTreeSet<_>>().len();
    let own = format!("/{}", sandbox.state().cgroup);
    memberships(pid).iter().filter(|path| path.ends_with(&own)).count() == expected
}

#[test]
fn a_spawned_process_is_inside_in_every_hierarchy() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "spawn", Resources::new());
    let child = vm.spawn(&sleeper()).unwrap();
    assert!(is_inside(child.pid(), &vm), "{:?} is not {:?}", memberships(child.pid()), vm.paths());
    assert_eq!(vm.processes().unwrap(), BTreeSet::from([child.pid()]));
    assert_eq!(vm.status().unwrap(), Status::Running);
    child.signal(15).unwrap();
    assert!(!child.wait().unwrap().success());
    assert_eq!(vm.status().unwrap(), Status::Empty);
}

#[test]
fn a_command_of_std_joins_by_the_hook_before_it_is_executed() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "hook", Resources::new());
    let mut command = std::process::Command::new("cat");
    command.arg("/proc/self/cgroup").stdout(std::process::Stdio::piped());
    // SAFETY: the hook is async-signal-safe, as it promises.
    unsafe { command.pre_exec(vm.join_hook().unwrap()) };
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success());
    let own = format!("/{}", vm.state().cgroup);
    let inside = said.lines().filter(|line| line.ends_with(&own)).count();
    assert_eq!(inside, vm.paths().values().collect::<BTreeSet<_>>().len(), "{said}");
}

#[test]
fn after_everything_was_killed_the_next_process_lives() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "again", Resources::new());
    for _ in 0..3 {
        let child = vm.spawn(&sleeper()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(is_inside(child.pid(), &vm), "{:?}", memberships(child.pid()));
        assert_eq!(vm.kill(SOON).unwrap(), BTreeSet::from([child.pid()]));
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
        if by_systemd() {
            // It ended with its last process.
            return;
        }
    }
}

#[test]
fn a_running_process_joins_with_all_its_threads() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "join", Resources::new());
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    vm.join(child.id()).unwrap();
    assert!(is_inside(child.id(), &vm));
    let killed = vm.kill(SOON).unwrap();
    assert_eq!(killed, BTreeSet::from([child.id()]));
    child.wait().unwrap();
    let error = vm.join(child.id()).unwrap_err();
    assert_eq!((error.kind(), error.setting()), (ErrorKind::Kernel, Some("pid")), "{error}");
}

#[test]
fn a_zombie_does_not_join() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "zombie", Resources::new());
    let mut ended = std::process::Command::new("true").spawn().unwrap();
    let stat = format!("/proc/{}/stat", ended.id());
    while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(vm.join(ended.id()).unwrap_err().errno(), Some(libc::ESRCH));
    ended.wait().unwrap();
}

#[test]
fn a_cgroup_is_opened_by_its_path_alone() {
    let host = Host::detect().unwrap();
    let path = path("open");
    assert_eq!(Cgroup::open(&host, &path).unwrap_err().kind(), ErrorKind::NotFound);
    // A scope of systemd is started around a process.
    let mut holders: Vec<_> = Vec::new();
    holders.resize_with(if by_systemd() { 2 } else { 0 }, || {
        std::process::Command::new("sleep").arg("1000").spawn().unwrap()
    });
    let pids: Vec<_> = holders.iter().map(|holder| holder.id()).collect();
    let (held, other) = pids.split_at(pids.len() / 2);
    let (made, _) = Cgroup::start(&host, &path, &Resources::new().pids_limit(7), held).unwrap();
    let error = Cgroup::start(&host, &path, &Resources::new(), other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    let opened = Cgroup::open(&host, &path).unwrap();
    assert_eq!(opened.paths(), made.paths());
    let file = |cgroup: &Cgroup| {
        let paths = cgroup.paths();
        let dir = paths.get("pids").or(paths.get("unified")).unwrap();
        std::fs::read_to_string(dir.join("pids.max")).unwrap()
    };
    assert_eq!(file(&opened), "7\n");
    opened.change(&Resources::new().pids_limit(9)).unwrap();
    assert_eq!(file(&made), "9\n");
    let count = held.len() as u64;
    assert_eq!(opened.stats_reader().unwrap().sample().unwrap().pids.current, Some(count));
    // One that holds processes and was not made here is not joined in passing.
    let child = made.spawn(&sleeper()).unwrap();
    let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    assert_eq!(opened.join(other.id()).unwrap_err().kind(), ErrorKind::Busy);
    opened.freeze(SOON).unwrap();
    let asked = JoinOptions { foreign: true, ..Default::default() };
    assert_eq!(opened.join_with(other.id(), asked).unwrap_err().kind(), ErrorKind::Busy);
    opened
        .join_with(other.id(), JoinOptions { frozen: true, foreign: true, ..JoinOptions::default() })
        .unwrap();
    assert!(opened.processes().unwrap().contains(&other.id()));
    opened.thaw(SOON).unwrap();
    assert_eq!(opened.destroy(Remaining::Refuse, SOON).unwrap_err().kind(), ErrorKind::Busy);
    let outcome = opened.destroy(Remaining::Kill, SOON).unwrap();
    let all = [child.pid(), other.id()].into_iter().chain(held.iter().copied());
    assert_eq!(outcome.killed, all.collect::<BTreeSet<_>>());
    other.wait().unwrap();
    for holder in &mut holders {
        _ = holder.kill();
        holder.wait().unwrap();
    }
    assert!(made.paths().values().all(|path| !path.exists()));
    child.wait().unwrap();
}

#[test]
fn nothing_is_spawned_or_joined_into_a_frozen_sandbox() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "frozen", Resources::new());
    let child = vm.spawn(&sleeper()).unwrap();
    vm.freeze(SOON).unwrap();
    assert_eq!(vm.status().unwrap(), Status::Frozen);
    let started = Instant::now();
    assert_eq!(vm.spawn(&sleeper()).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(vm.join(std::process::id()).unwrap_err().kind(), ErrorKind::Busy);
    assert!(vm.join_hook().is_err());
    assert!(started.elapsed() < SOON);
    assert!(vm.thaw(SOON).unwrap().is_empty());
    assert_eq!(vm.status().unwrap(), Status::Running);
    // Frozen again, it is killed all the same.
    vm.freeze(SOON).unwrap();
    assert_eq!(vm.kill(SOON).unwrap(), BTreeSet::from([child.pid()]));
    child.wait().unwrap();
}

#[test]
fn thawing_below_a_frozen_ancestor_says_so_and_does_not_wait() {
    let host = Host::detect().unwrap();
    let mut above = name("above");
    let (mut outer_path, mut inner_path) = (format!("/{above}"), format!("/{above}/inner"));
    if by_systemd() {
        above = format!("{}.slice", above.replace('-', "_"));
        (outer_path, inner_path) = (format!("-.slice::{above}"), format!("{above}:rf:inner"));
    }
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let (outer, _) = Cgroup::create(&host, &outer_path.parse().unwrap(), &Resources::new()).unwrap();
    let (inner, _) =
        Cgroup::start(&host, &inner_path.parse().unwrap(), &Resources::new(), &[child.id()]).unwrap();
    outer.freeze(SOON).unwrap();
    let report = inner.thaw(SOON).unwrap();
    assert_eq!(report.lines().len(), 1, "{report}");
    assert!(report.to_string().contains(&above), "{report}");
    assert!(inner.is_frozen().unwrap());
    outer.thaw(SOON).unwrap();
    assert!(!inner.is_frozen().unwrap());
    inner.destroy(Remaining::Kill, SOON).unwrap();
    outer.destroy(Remaining::Refuse, SOON).unwrap();
    child.wait().unwrap();
}

#[test]
fn a_state_restores_in_another_place_and_changes_limits_and_devices() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(
        &host,
        "restore",
        Resources::new().memory_limit(64 << 20).memory_swap(64 << 20).cpu_shares(512),
    );
    let text = serde_json::to_string(&vm.state()).unwrap();
    let state: State = serde_json::from_str(&text).unwrap();
    assert_eq!(state, vm.state());
    let other = Sandbox::restore(&Host::detect().unwrap(), state).unwrap();
    other.change(&Resources::new().memory_limit(128 << 20)).unwrap();
    let kmsg = DeviceRule::path("/dev/kmsg").unwrap();
    let opens = |vm: &Sandbox| {
        let opened = vm.spawn(&Command::new("head").args(["-c", "0", "/dev/kmsg"]).stderr(null().unwrap()));
        opened.unwrap().wait().unwrap().success()
    };
    assert!(!opens(&other));
    other.change(&Resources::new().device(kmsg.clone())).unwrap();
    assert!(opens(&other));
    assert!(other.devices().check_rule(&kmsg).allowed);
    other.change(&Resources::new().device(DeviceRule { allow: false, ..kmsg })).unwrap();
    assert!(!opens(&other));
    let wanted = other.state().resources;
    assert_eq!(wanted.memory.limit, Some(ringfence::Limit::Value(128 << 20)));
    assert_eq!(wanted.cpu.shares, Some(512));
}

#[test]
fn a_state_of_a_newer_version_is_refused() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "newer", Resources::new());
    let error = Sandbox::restore(&host, State { version: 999, ..vm.state() }).unwrap_err();
    assert_eq!((error.kind(), error.value()), (ErrorKind::State, Some("999")));
}

#[test]
fn a_change_that_fails_in_the_middle_leaves_everything_as_it_was() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "undo", Resources::new().pids_limit(50).cpu_shares(300));
    let before = vm.state();
    // No machine has all of these CPUs; the planner cannot know, and cpusets come before most else.
    let change = Resources::new().pids_limit(60).cpu_shares(400).cpuset_mems("4000".parse().unwrap());
    let error = vm.change(&change).unwrap_err();
    assert_eq!((error.kind(), error.setting()), (ErrorKind::Kernel, Some("cpu.mems")), "{error}");
    // The last of several steps: everything before it is taken back.
    let change = Resources::new().pids_limit(60).cpu_shares(400).unified("pids.nosuch", "1");
    if host.mode == Mode::V2 {
        let error = vm.change(&change).unwrap_err();
        assert_eq!(error.setting(), Some("unified.pids.nosuch"), "{error}");
    }
    assert_eq!(vm.state(), before);
    let paths = vm.paths();
    let read = |controller: &str, file: &str| {
        let dir = paths.get(controller).or(paths.get("unified")).unwrap();
        std::fs::read_to_string(dir.join(file)).unwrap()
    };
    assert_eq!(read("pids", "pids.max"), "50\n");
    let (file, value) = if host.mode == Mode::V2 { ("cpu.weight", "39\n") } else { ("cpu.shares", "300\n") };
    assert_eq!(read("cpu", file), value);
}

#[test]
fn five_hundred_processes_that_go_on_forking_are_killed_and_their_sandbox_is_removed() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "storm", Resources::new().pids_limit(1000));
    let storm = "while :; do (sleep 100 & sleep 100) & done 2>/dev/null";
    let child = vm.spawn(&Command::new("sh").args(["-c", storm]).stderr(null().unwrap())).unwrap();
    // An emulated machine that is busy makes some 25 a second.
    let started = Instant::now();
    while vm.processes().unwrap().len() < 500 && started.elapsed() < 8 * SOON {
        std::thread::sleep(Duration::from_millis(50));
    }
    let paths = vm.paths();
    let outcome = vm.destroy(Remaining::Kill, SOON).unwrap();
    assert!(outcome.killed.len() >= 500, "{}", outcome.killed.len());
    assert!(paths.values().all(|path| !path.exists()));
    child.wait().unwrap();
}

#[test]
fn a_sandbox_is_shared_by_threads_and_each_change_is_whole() {
    fn is_shared<T: Send + Sync>(_: &T) {}
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "threads", Resources::new().pids_limit(100));
    is_shared::<Sandbox>(&vm);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let vm = &vm;
            scope.spawn(move || {
                for round in 0..25 {
                    vm.change(&Resources::new().pids_limit(100 + thread * 25 + round)).unwrap();
                }
            });
        }
    });
    let paths = vm.paths();
    let dir = paths.get("pids").or(paths.get("unified")).unwrap();
    let file = std::fs::read_to_string(dir.join("pids.max")).unwrap();
    assert_eq!(vm.state().resources.pids.limit.unwrap().to_string(), file.trim());
}

#[test]
fn sandboxes_come_and_go_in_many_threads_and_none_is_left() {
    let host = Host::detect().unwrap();
    let paths: BTreeSet<_> = std::thread::scope(|scope| {
        let work = |thread: usize| {
            let host = &host;
            scope.spawn(move || {
                let mut paths = BTreeSet::new();
                for _ in 0..10 {
                    let vm = Guarded::new(host, &format!("many-{thread}"), Resources::new().pids_limit(20));
                    paths.extend(vm.paths().into_values());
                    let child = vm.spawn(&Command::new("true")).unwrap();
                    assert!(child.wait().unwrap().success());
                    vm.destroy(Remaining::Refuse, SOON).unwrap();
                }
                paths
            })
        };
        let threads: Vec<_> = (0..4).map(work).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(paths.len() >= 40);
    assert!(paths.iter().all(|path| !path.exists()));
}

#[test]
fn no_descriptor_of_ours_is_inherited() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "descriptors", Resources::new());
    let (reader, writer) = std::io::pipe().unwrap();
    let listing = Command::new("ls").args(["-l", "/proc/self/fd"]).stdin(null().unwrap()).stdout(writer);
    let child = vm.spawn(&listing).unwrap();
    drop(listing);
    let mut said = String::new();
    std::io::BufReader::new(reader).read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success());
    // The three and what this process was itself born with, but nothing that Ringfence opened.
    assert!(said.contains("0 -> /dev/null") && !said.contains("cgroup") && !said.contains("bpf"), "{said}");
}

#[test]
fn a_plan_names_the_files_that_are_written_then() {
    let host = Host::detect().unwrap();
    let config = SandboxConfig::new(path("plan")).resources(Resources::new().pids_limit(42));
    let planned = Sandbox::plan(&host, &config).unwrap().to_string();
    if by_systemd() {
        return skip("systemd is told properties");
    }
    let line = planned.lines().find(|line| line.contains("pids.max")).unwrap();
    let (path, value) = line.split_whitespace().nth(1).zip(line.split(" <- ").nth(1)).unwrap();
    let vm = Guarded::make(&host, &config);
    assert_eq!(std::fs::read_to_string(path).unwrap().trim(), value);
    drop(vm);
    assert!(!std::path::Path::new(path).exists());
}

/// Says to a test that it is to be the program that another test starts; by itself it does nothing.
const PROGRAM: &str = "RF_PROGRAM";

/// Starts one of the tests below as a program of its own.
fn helper(test: &str) -> Vec<String> {
    let own = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    let mark = format!("{PROGRAM}=1");
    ["env", &mark, &own, "--exact", "--test-threads=1", &test_path(module_path!(), test)]
        .map(str::to_owned)
        .to_vec()
}

#[test]
fn program_whose_first_thread_ends() {
    if std::env::var_os(PROGRAM).is_none() {
        return;
    }
    // SAFETY: the child goes on as a program with one thread; nothing that it uses was locked by another one.
    if unsafe { libc::fork() } == 0 {
        std::thread::spawn(|| std::thread::sleep(SOON * 10));
        // SAFETY: ends this thread, the first of its process, and it alone.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    std::process::exit(0);
}

/// A process inside whose first thread has ended while another lives on.
fn start_without_first_thread(vm: &Guarded) -> u32 {
    let words = helper("program_whose_first_thread_ends");
    let child = vm.spawn(&Command::new(&words[0]).args(&words[1..]).stdout(null().unwrap())).unwrap();
    child.wait().unwrap();
    let pid = *vm.processes().unwrap().first().unwrap();
    let has_ended = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().starts_with('Z')
    };
    let started = Instant::now();
    while !has_ended() && started.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(has_ended());
    pid
}

#[test]
fn a_process_whose_first_thread_has_ended_is_found_drained_and_killed() {
    let host = Host::detect().unwrap();
    let parent = name("leaderless");
    let at = |what: &str| {
        let path = match by_systemd() {
            true => format!("{}.slice:rf:{what}", parent.replace('-', "_")),
            false => format!("/{parent}/{what}"),
        };
        // With systemd it is the only process, as it is without.
        Guarded::planned(&host, &SandboxConfig::new(path.parse().unwrap()))
    };
    let vm = at("first");
    let pid = start_without_first_thread(&vm);
    assert!(ringfence::ProcessIdentity::of(pid).is_some(), "its other thread lives on");

    // Joining moves the living threads; the ended one stays where it was.
    let second = at("second");
    second.join(pid).unwrap();
    assert_eq!(vm.processes().unwrap(), BTreeSet::new());
    assert_eq!(second.processes().unwrap(), BTreeSet::from([pid]));
    assert_eq!(second.destroy(Remaining::Refuse, SOON).unwrap_err().kind(), ErrorKind::Busy);
    vm.destroy(Remaining::Refuse, SOON).unwrap();

    let paths = second.paths();
    let started = Instant::now();
    let outcome = second.destroy(Remaining::Drain, SOON).unwrap();
    assert!(started.elapsed() < SOON / 2);
    assert_eq!(outcome.moved, BTreeSet::from([pid]));

    let third = at("third");
    third.join(pid).unwrap();
    assert_eq!(third.destroy(Remaining::Kill, SOON).unwrap().killed, BTreeSet::from([pid]));
    if by_systemd() {
        support::stop(&format!("{}.slice", parent.replace('-', "_")));
    }
    for path in paths.values().collect::<BTreeSet<_>>() {
        _ = std::fs::remove_dir(path.with_file_name("drained"));
        let removed = std::fs::remove_dir(path.parent().unwrap());
        assert!(removed.is_ok() || !path.parent().unwrap().exists(), "{removed:?}");
    }
}

#[test]
fn who_is_drained_into_a_leaf_after_it_was_found_empty_lives_on() {
    let host = Host::detect().unwrap();
    if by_systemd() || host.unified().is_none() {
        return skip("there is no leaf: the drained have a scope, or go to the parent");
    }
    let store = Store::new(tempfile::tempdir().unwrap().path());
    let (first, second) = ("first".parse().unwrap(), "second".parse().unwrap());
    let parent = name("drained-late");
    let at = |id: &SandboxId| {
        let path = format!("/{parent}/{id}").parse().unwrap();
        Guarded::planned(&host, &SandboxConfig::new(path))
    };
    let drain = |id| {
        let vm = at(id);
        let child = vm.spawn(&sleeper()).unwrap();
        vm.destroy(Remaining::Drain, SOON).unwrap();
        child
    };
    let ended = drain(&first);
    ended.signal(9).unwrap();
    ended.wait().unwrap();
    let is_ours = |leftover: &Leftover| leftover.path == format!("{parent}/drained");
    let leftovers = || store.leftovers(&host).unwrap().into_iter().find(is_ours);
    let leaf = leftovers().unwrap();

    let late = drain(&second);
    assert_eq!(leftovers(), None);
    assert_eq!(leaf.remove(&host, Remaining::Kill, SOON).unwrap(), Outcome::default());
    let place = format!("/{parent}/drained");
    assert!(memberships(late.pid()).contains(&place), "{:?}", memberships(late.pid()));

    late.signal(9).unwrap();
    late.wait().unwrap();
    leaf.remove(&host, Remaining::Refuse, SOON).unwrap();
    assert_eq!(leftovers(), None);
    // The parent was made on the way, and goes with what was last in it.
    let parent = Cgroup::open(&host, &format!("/{parent}").parse().unwrap());
    assert_eq!(parent.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn what_froze_itself_below_the_sandbox_is_killed_too() {
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "frozen-below", Resources::new());
    let child = vm.spawn(&sleeper()).unwrap();
    for path in vm.paths().values().collect::<BTreeSet<_>>() {
        let below = path.join("below");
        std::fs::create_dir(&below).unwrap();
        for file in ["cpuset.cpus", "cpuset.mems", "cpus", "mems"] {
            if path.join("tasks").exists() && path.join(file).exists() {
                std::fs::write(below.join(file), std::fs::read(path.join(file)).unwrap()).unwrap();
            }
        }
        std::fs::write(below.join("cgroup.procs"), child.pid().to_string()).unwrap();
        for (file, value) in [("freezer.state", "FROZEN"), ("cgroup.freeze", "1")] {
            if below.join(file).exists() {
                std::fs::write(below.join(file), value).unwrap();
            }
        }
    }
    let outcome = vm.destroy(Remaining::Kill, SOON).unwrap();
    assert_eq!(outcome.killed, BTreeSet::from([child.pid()]));
    child.wait().unwrap();
}

/// From now on this thread's system calls of these numbers fail so, as in a container with a seccomp filter.
fn refuse_calls(refused: &[(libc::c_long, i32)]) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut filter = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for (number, errno) in refused {
        let mut jump =
            statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, u32::try_from(*number).unwrap());
        jump.jf = 1;
        filter.push(jump);
        filter.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()));
    }
    filter.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: u16::try_from(filter.len()).unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter outlive the call, which copies them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

/// Spawns a process while these system calls fail so, and sees that it is inside.
fn spawns_without(refused: &'static [(libc::c_long, i32)]) {
    let spawn = || {
        refuse_calls(refused);
        let host = Host::detect().unwrap();
        let vm = Guarded::new(&host, "refused-calls", Resources::new());
        let child = vm.spawn(&sleeper()).unwrap();
        assert!(is_inside(child.pid(), &vm), "{:?}", memberships(child.pid()));
        vm.kill(SOON).unwrap();
        child.wait().unwrap();
    };
    std::thread::spawn(spawn).join().unwrap();
}

#[test]
fn where_clone3_is_forbidden_the_child_joins_by_itself() {
    spawns_without(&[(libc::SYS_clone3, libc::ENOSYS)]);
    if by_systemd() {
        // Older C libraries take it for final.
        return skip("the connection to systemd has a thread, which is not to be had either");
    }
    spawns_without(&[(libc::SYS_clone3, libc::EPERM)]);
}

#[test]
fn where_clone3_and_pidfd_open_are_forbidden_clone_gives_the_pidfd() {
    spawns_without(&[(libc::SYS_clone3, libc::ENOSYS), (libc::SYS_pidfd_open, libc::ENOSYS)]);
}

#[test]
fn processes_are_killed_and_signalled_where_pidfds_are_forbidden() {
    let forbidden = [libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal];
    for (call, errno) in forbidden.into_iter().zip([libc::EPERM, libc::ENOSYS]) {
        let kill = move || {
            let host = Host::detect().unwrap();
            let vm = Guarded::new(&host, "by-number", Resources::new());
            let children = [vm.spawn(&sleeper()).unwrap(), vm.spawn(&sleeper()).unwrap()];
            let pids: BTreeSet<u32> = children.iter().map(Child::pid).collect();
            refuse_calls(&[(call, errno)]);
            let signalled = vm.signal(libc::SIGCONT).unwrap();
            assert!(signalled.is_superset(&pids), "{signalled:?} {pids:?}");
            assert_eq!(vm.kill(SOON).unwrap(), pids);
            children.iter().for_each(|child| _ = child.wait().unwrap());
        };
        std::thread::spawn(kill).join().unwrap();
    }
}

#[test]
fn where_no_pidfd_can_be_had_nothing_is_started() {
    if by_systemd() {
        return skip("the connection to systemd has a thread, which is not to be had either");
    }
    let spawn = || {
        let calls = [libc::SYS_clone3, libc::SYS_clone, libc::SYS_pidfd_open];
        refuse_calls(&calls.map(|call| (call, libc::ENOSYS)));
        let host = Host::detect().unwrap();
        let vm = Guarded::planned(&host, &SandboxConfig::new(path("pidfd")));
        assert_eq!(vm.spawn(&sleeper()).unwrap_err().errno(), Some(libc::ENOSYS));
        // One that has not joined yet would come a moment later.
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(vm.processes().unwrap(), BTreeSet::new());
    };
    std::thread::spawn(spawn).join().unwrap();
}

#[test]
fn program_that_spawns_without_standard_descriptors() {
    if std::env::var_os(PROGRAM).is_none() {
        return;
    }
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "closed", Resources::new());
    let command = Command::new("/dev/null/nowhere").stdin(null().unwrap()).stdout(null().unwrap());
    // SAFETY: nothing below uses these descriptors.
    (0..3).for_each(|fd| assert_eq!(unsafe { libc::close(fd) }, 0));
    let refused = vm.spawn(&command).is_err();
    drop(vm);
    std::process::exit(if refused { 0 } else { 1 });
}

#[test]
fn a_caller_without_standard_descriptors_is_told_that_exec_failed() {
    let words = helper("program_that_spawns_without_standard_descriptors");
    let status = std::process::Command::new(&words[0]).args(&words[1..]).status().unwrap();
    assert_eq!(status.code(), Some(0));
}
