//! A real QEMU with two vCPUs that spin, an I/O thread and a monitor: only the vCPUs are held to the quota.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::machine::{Machine, Monitor, threads_of};
use crate::support::{PATIENCE, Sandbox, is_alive, mode, send, skip, until, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

testbed! {
    drivers: "cgroupfs systemd";
}

/// Name and part of every thread of a machine, by thread ID, as the command tells them.
fn threads(sandbox: &Sandbox, pid: u32) -> BTreeMap<u64, (String, String)> {
    let list = sandbox.json("ps", &["--threads"]);
    let ours = list.as_array().unwrap().iter().filter(|task| task["pid"] == pid);
    let text = |task: &Value, key: &str| task[key].as_str().unwrap_or("-").to_owned();
    ours.map(|task| (task["tid"].as_u64().unwrap(), (text(task, "name"), text(task, "part")))).collect()
}

fn vcpus(threads: &BTreeMap<u64, (String, String)>) -> BTreeSet<&str> {
    threads.values().filter(|(_, part)| part == "vcpu").map(|(name, _)| name.as_str()).collect()
}

/// Every thread of a machine is listed, and is where it is said to be, in the hierarchies in which threads are told apart;
/// in the others it is in the whole.
#[track_caller]
fn told_as_it_is(sandbox: &Sandbox, pid: u32) {
    let as_told = || {
        let (told, seen) = (threads(sandbox, pid), threads_of(pid));
        if told.keys().ne(seen.keys()) {
            return Err(format!("{told:?} but {seen:?}"));
        }
        for (tid, places) in &seen {
            for (controllers, path) in places {
                let (name, part) = &told[tid];
                let whole = sandbox.cgroup();
                let by_thread = match controllers.as_str() {
                    "" => mode() == "v2",
                    _ => controllers.split(',').any(|name| ["cpu", "cpuacct", "cpuset"].contains(&name)),
                };
                let expected = if by_thread { format!("{whole}/{part}") } else { whole };
                if *path != expected {
                    return Err(format!("{name} is in {path} of {controllers:?}, not in {expected}"));
                }
            }
        }
        Ok(())
    };
    // Others of its threads may come and go.
    let looks: Vec<_> = (0..5).map(|_| as_told()).take_while(Result::is_err).collect();
    assert!(looks.len() < 5, "{looks:?}");
}

/// The machine of a sandbox in which nothing else runs, once its vCPUs are found.
#[track_caller]
fn sorted(sandbox: &Sandbox, names: &[&str]) -> u32 {
    sandbox.wait_until_populated();
    let is_sorted = || {
        let pid = *sandbox.processes().first()?;
        (vcpus(&threads(sandbox, pid)) == names.iter().copied().collect()).then_some(pid)
    };
    // Another emulator below takes its time.
    let deadline = Instant::now() + 2 * PATIENCE;
    loop {
        match is_sorted() {
            Some(pid) => return pid,
            None if Instant::now() > deadline => panic!("{}", sandbox.json("ps", &["--threads"])),
            None => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// What a part has used between two samples.
fn grew(before: &Value, after: &Value, part: &str, key: &str) -> u64 {
    let value = |sample: &Value| sample["parts"][part]["cpu"][key].as_u64().unwrap_or_default();
    value(after) - value(before)
}

#[test]
fn only_the_vcpus_of_a_virtual_machine_are_held_to_its_quota() {
    let Some(machine) = Machine::that_spins("spins") else { return };
    let sandbox = &machine.sandbox;
    let socket = machine.socket.display().to_string();
    let options =
        ["--profile", "qemu", "--cpus", "0.5", "--memory", "256M", "--qmp", &socket, "--vcpus", "2"];
    let running = sandbox.start(&options, &machine.words());
    let pid = sorted(sandbox, &["CPU 0/TCG", "CPU 1/TCG"]);
    told_as_it_is(sandbox, pid);
    let found = threads(sandbox, pid);
    assert!(found.values().any(|thread| *thread == ("IO io0".into(), "overhead".into())), "{found:?}");
    assert!(found.values().all(|(_, part)| part == "vcpu" || part == "overhead"), "{found:?}");

    // The guest fills its memory, and that is the sandbox's.
    let sample = || sandbox.json("stats", &[])[0].clone();
    let memory = || sample()["memory"]["current"].as_u64().unwrap();
    let before = memory();
    let mut monitor = Monitor::connect(&machine.socket);
    monitor.add_disks();
    monitor.ask("cont", json!({}));
    until("its memory is charged", || memory() > before + (14 << 20));

    // Half a CPU is not exceeded.
    let (before, started) = (sample(), Instant::now());
    let (answer, copy) = (monitor.round_trip(7), monitor.copying(1));
    std::thread::sleep(Duration::from_secs(2).saturating_sub(started.elapsed()));
    let (after, elapsed) = (sample(), started.elapsed());
    let share = grew(&before, &after, "vcpu", "usage_us") as f64 / elapsed.as_micros() as f64;
    eprintln!("of 0.5 CPUs the vCPUs had {share:.2}; an answer took {answer:?}, a copy {copy:?}");
    assert!(share < 0.75, "{share}: {before} {after}");
    assert_eq!(grew(&before, &after, "overhead", "throttled"), 0, "{after}");

    // Even a busy machine has a twentieth of a CPU for them, so that they are stopped nearly all the time.
    sandbox.does("set", &["--cpus", "0.05"]);
    let before = sample();
    until("throttled", || grew(&before, &sample(), "vcpu", "throttled") > 3);
    let (answer, copy) = (monitor.round_trip(7), monitor.copying(1));
    let after = sample();
    let [throttled, stopped] = ["vcpu", "overhead"].map(|part| grew(&before, &after, part, "throttled"));
    assert_eq!(stopped, 0, "{after}");

    // The same where the monitor has no more than the vCPUs.
    sandbox.does("attach", &["--thread", "--part", "vcpu", &pid.to_string()]);
    let slow = monitor.round_trip(5);
    eprintln!(
        "of 0.05 CPUs: the vCPUs were stopped {throttled} times, the others {stopped} times; a copy took {copy:?}, \
         an answer {answer:?}, with the vCPUs' quota {slow:?}"
    );
    assert!(answer < slow);
    drop(monitor);

    // All is put right again, by the monitor and by their names.
    let again = sandbox.json("classify", &[]);
    assert_eq!((&again["vcpus"], &again["moved"]), (&2.into(), &1.into()), "{again}");
    let by_name = sandbox.json("classify", &["--vmm", "qemu", "--vcpus", "2"]);
    assert_eq!((&by_name["vcpus"], &by_name["moved"]), (&2.into(), &0.into()), "{by_name}");
    told_as_it_is(sandbox, pid);
    sandbox.does("freeze", &[]);
    sandbox.does("thaw", &[]);
    assert_eq!(sandbox.json("diff", &[]), json!([]));

    // It crashes.
    assert!(send(pid, Signal::KILL));
    wait(running, "run".to_owned()).exits(137);
    sandbox.is_gone();
    let error = sandbox.attempt_json("classify", &[]).exits(3).error();
    assert_eq!(error["kind"], "not_found", "{error}");
}

#[test]
fn vcpus_that_come_and_go_are_sorted_when_it_is_asked_for_until_the_machine_crashes() {
    let Some(machine) = Machine::that_lets_go("later") else { return };
    let sandbox = &machine.sandbox;
    sandbox.create(&["--overhead", "nested", "--cpus", "0.5", "--overhead-cpus", "0.9"]);
    let mut qemu = Command::new(&machine.program[0]).args(&machine.program[1..]).spawn().unwrap();
    let pid = qemu.id();
    let socket = machine.socket.display().to_string();
    sandbox.does("attach", &[&pid.to_string()]);
    let found = threads(sandbox, pid);
    assert!(found.values().all(|(_, part)| part == "overhead"), "{found:?}");
    let error = sandbox.attempt_json("classify", &["--timeout", "1"]).exits(2).error();
    assert!(error["message"].as_str().unwrap().contains("qmp"), "{error}");
    // It is just starting, and is waited for.
    let placed = sandbox.json("classify", &["--qmp", &socket, "--vcpus", "1", "--timeout", "50"]);
    assert_eq!((&placed["vcpus"], &placed["moved"]), (&1.into(), &1.into()), "{placed}");
    told_as_it_is(sandbox, pid);
    let error =
        sandbox.attempt_json("classify", &["--vmm", "firecracker", "--timeout", "1"]).exits(1).error();
    assert!(error["message"].as_str().unwrap().contains("CPU 0/TCG"), "{error}");

    // A processor is plugged in. Its thread begins with the one that made it.
    let mut monitor = Monitor::connect(&machine.socket);
    monitor.ask("cont", json!({}));
    let place =
        json!({"driver": "qemu64-x86_64-cpu", "id": "second", "socket-id": 1, "core-id": 0, "thread-id": 0});
    monitor.ask("device_add", place);
    let both = BTreeSet::from(["CPU 0/TCG", "CPU 1/TCG"]);
    let by_name = ["--vmm", "CPU {}/TCG", "--vcpus", "2"];
    let placed = sandbox.json("classify", &by_name);
    assert_eq!((&placed["vcpus"], &placed["moved"]), (&2.into(), &1.into()), "{placed}");
    assert_eq!(vcpus(&threads(sandbox, pid)), both);
    told_as_it_is(sandbox, pid);
    // A thread that is taken elsewhere is brought back.
    let list = sandbox.json("ps", &["--threads"]);
    let thread = |name: &str| list.as_array().unwrap().iter().find(|task| task["name"] == name).unwrap();
    let second = thread("CPU 1/TCG");
    assert_eq!((&second["part"], &second["index"]), (&"vcpu".into(), &1.into()), "{second}");
    sandbox.does("attach", &["--thread", "--part", "overhead", &second["tid"].to_string()]);
    assert_eq!(vcpus(&threads(sandbox, pid)), BTreeSet::from(["CPU 0/TCG"]));
    assert_eq!(sandbox.json("classify", &by_name)["moved"], 1);

    // And taken out again, which ends its thread.
    monitor.ask("device_del", json!({"id": "second"}));
    monitor.wait_for("DEVICE_DELETED");
    drop(monitor);
    until("its thread has ended", || threads(sandbox, pid).values().all(|(name, _)| name != "CPU 1/TCG"));
    let placed = sandbox.json("classify", &["--qmp", &socket]);
    assert_eq!((&placed["vcpus"], &placed["moved"]), (&1.into(), &0.into()), "{placed}");
    told_as_it_is(sandbox, pid);

    // It crashes while more of them are waited for.
    let waiting = sandbox.command("classify", &["--vmm", "qemu", "--vcpus", "3", "--timeout", "50"]);
    let waiting = in_the_background(waiting);
    std::thread::sleep(Duration::from_millis(500));
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    let done = wait(waiting, "classify".to_owned()).exits(3);
    assert!(done.stderr.contains("nothing runs inside"), "{done:?}");
    let error = sandbox.attempt_json("classify", &["--vmm", "qemu"]).exits(3).error();
    assert!(error["message"].as_str().unwrap().contains("nothing runs inside"), "{error}");
    assert!(!is_alive(pid));
    sandbox.does("rm", &[]);
    sandbox.is_gone();
}

fn in_the_background(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_sandbox_without_parts_has_nothing_to_sort() {
    let sandbox = Sandbox::named("whole");
    sandbox.create(&[]);
    let error = sandbox.attempt_json("classify", &["--vmm", "qemu"]).exits(2).error();
    assert_eq!((&error["setting"], &error["value"]), (&"overhead".into(), &"together".into()), "{error}");
    sandbox.does("rm", &[]);
}

#[test]
fn each_thread_has_limits_and_a_cpu_of_its_own_while_there_are_as_many() {
    let cpus = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    if !cpus.starts_with("0-") {
        return skip("one CPU is not enough, or they have other numbers");
    }
    let Some(machine) = Machine::that_spins("pinned") else { return };
    let (sandbox, monitor) = (&machine.sandbox, machine.socket.display().to_string());
    let options =
        ["--profile", "qemu", "--cpuset-cpus", "0-1", "--qmp", &monitor, "--vcpus", "2", "--pin=exclusive"];
    let each = ["--cpus", "1.5", "--cpus-per-vcpu", "0.5", "--cpus-per-iothread", "0.25"];
    let running = sandbox.start(&[&options[..], &each].concat(), &machine.words());
    // Index of a vCPU → the CPU to which it is pinned, as it is told and as it is.
    let pins = || {
        let list = sandbox.json("ps", &["--threads"]);
        let pinned = list.as_array().unwrap().iter().filter(|task| task["pinned"].is_number());
        let told = pinned.map(|task| (task["index"].clone(), task["pinned"].clone(), task["tid"].clone()));
        told.collect::<Vec<_>>()
    };
    until("both are pinned", || sandbox.attempt("ps", &[]).code == 0 && pins().len() == 2);
    for (index, cpu, tid) in pins() {
        assert_eq!(index, cpu);
        let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap();
        assert!(status.contains(&format!("Cpus_allowed_list:\t{cpu}\n")), "{status}");
    }
    let list = sandbox.json("ps", &["--threads"]);
    let parts: BTreeSet<_> =
        list.as_array().unwrap().iter().map(|task| task["part"].as_str().unwrap()).collect();
    assert_eq!(parts, ["iothread/0", "overhead", "vcpu/0", "vcpu/1"].into());
    let quota = |part: &str| {
        let files = ["cpu.max", "cpu.cfs_quota_us"].map(|file| sandbox.dir("cpu").join(part).join(file));
        let text = files.iter().find_map(|file| fs::read_to_string(file).ok()).unwrap();
        text.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!((quota("vcpu/1"), quota("iothread/0")), ("50000".to_owned(), "25000".to_owned()));
    sandbox.does("set", &["--cpus-per-vcpu", "0.4"]);
    assert_eq!(quota("vcpu/0"), "40000");
    let shown = sandbox.json("show", &[]);
    let both = json!({"0": 0, "1": 1});
    assert_eq!((&shown["pin"], &shown["pinned"]), (&"exclusive".into(), &both), "{shown}");
    let told = sandbox.does("show", &[]).stdout;
    assert!(told.contains("exclusive: vCPU 0 on CPU 0, vCPU 1 on CPU 1\n"), "{told}");
    let told = sandbox.does("ps", &["--threads"]).stdout;
    assert!(told.contains("vcpu/1 on CPU 1"), "{told}");

    let fewer = sandbox.json("set", &["--cpuset-cpus", "1"]);
    let line = fewer["report"].as_array().unwrap().iter().find(|line| line["setting"] == "pin").unwrap();
    assert!(line["why"].as_str().unwrap().contains("vCPUs 2, free CPUs 1 of 1"), "{line}");
    assert!(pins().is_empty());
    sandbox.does("set", &["--cpuset-cpus", "0-1", "--pin"]);
    assert_eq!((pins().len(), &sandbox.json("show", &[])["pin"]), (2, &"matching".into()));
    assert_eq!(sandbox.json("classify", &[])["pinned"], both);
    sandbox.does("set", &["--pin=none"]);
    assert!(pins().is_empty());
    send(running.id(), Signal::TERM);
    wait(running, "run".to_owned());
    sandbox.is_gone();
}
