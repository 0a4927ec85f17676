//! A real QEMU with two vCPUs that spin, an I/O thread and a monitor: only the vCPUs are held to the quota.
//!
//! The guest is firmware of two bytes, so that it is busy at once even where QEMU's interpreter runs under another one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ringfence::Qmp;
use serde_json::Value;
use support::{Sandbox, skip, until, wait};

const QEMU: &str = "qemu-system-x86_64";

/// A ROM whose first and only instruction jumps to itself, on every vCPU that is told to begin.
fn firmware(at: &Path) {
    let mut rom = vec![0; 64 << 10];
    rom[0xFFF0..0xFFF2].copy_from_slice(&[0xEB, 0xFE]);
    fs::write(at, rom).unwrap();
}

struct Machine {
    sandbox: Sandbox,
    socket: PathBuf,
    program: Vec<String>,
}

/// With `vcpus` vCPUs; none where there is no QEMU.
fn machine(name: &str, vcpus: u32) -> Option<Machine> {
    if Command::new(QEMU).arg("--version").output().is_err() {
        skip("there is no QEMU");
        return None;
    }
    let sandbox = Sandbox::named(name);
    let (rom, socket) = (sandbox.scratch.path().join("firmware"), sandbox.scratch.path().join("qmp"));
    firmware(&rom);
    let (smp, bios) = (format!("{vcpus},maxcpus=4"), rom.display().to_string());
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    #[rustfmt::skip]
    let program = [
        QEMU, "-accel", "tcg,thread=multi", "-machine", "q35", "-m", "32", "-smp", &smp, "-nodefaults", "-no-user-config",
        "-display", "none", "-bios", &bios, "-qmp", &monitor, "-object", "iothread,id=io0",
        "-name", "guest,debug-threads=on",
    ];
    Some(Machine { program: program.map(str::to_owned).to_vec(), sandbox, socket })
}

/// Name and part of every thread, as the command tells them.
fn threads(sandbox: &Sandbox) -> Vec<(String, String)> {
    let list = sandbox.json("ps", &["--threads"]);
    let text = |task: &Value, key: &str| task[key].as_str().unwrap_or("-").to_owned();
    list.as_array().unwrap().iter().map(|task| (text(task, "name"), text(task, "part"))).collect()
}

/// Every thread is where it is said to be.
fn told_as_it_is(sandbox: &Sandbox) {
    let list = sandbox.json("ps", &["--threads"]);
    for task in list.as_array().unwrap() {
        let (tid, part) = (&task["tid"], task["part"].as_str().unwrap_or("-"));
        let seen = fs::read_to_string(format!("/proc/{tid}/cgroup")).unwrap_or_default();
        assert!(seen.lines().any(|line| line.ends_with(&format!("/{part}"))), "{task}: {seen}");
    }
}

fn vcpus(threads: &[(String, String)]) -> BTreeSet<&str> {
    threads.iter().filter(|(_, part)| part == "vcpu").map(|(name, _)| name.as_str()).collect()
}

#[test]
fn only_the_vcpus_of_a_virtual_machine_are_held_to_its_quota() {
    let Some(Machine { sandbox, socket, program }) = machine("spins", 2) else { return };
    let monitor = socket.display().to_string();
    let options =
        ["--profile", "qemu", "--cpus", "0.5", "--memory", "256M", "--qmp", &monitor, "--vcpus", "2"];
    let words: Vec<_> = program.iter().map(String::as_str).collect();
    let running = sandbox.start(&options, &words);
    let is_sorted = || vcpus(&threads(&sandbox)) == BTreeSet::from(["CPU 0/TCG", "CPU 1/TCG"]);
    // Another emulator below takes its time.
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline && (sandbox.attempt("ps", &[]).code != 0 || !is_sorted()) {
        std::thread::sleep(Duration::from_millis(100));
    }
    until("the vCPUs are found", || sandbox.attempt("ps", &[]).code == 0 && is_sorted());
    told_as_it_is(&sandbox);
    let found = threads(&sandbox);
    assert_eq!(vcpus(&found), BTreeSet::from(["CPU 0/TCG", "CPU 1/TCG"]), "{found:?}");
    assert!(found.contains(&("IO io0".to_owned(), "overhead".to_owned())), "{found:?}");
    assert!(found.iter().all(|(_, part)| part == "vcpu" || part == "overhead"), "{found:?}");

    // The first vCPU spins from its first instruction on, and even a busy machine has a tenth of a CPU for it. The monitor answers all the while.
    sandbox.does("set", &["--cpus", "0.1"]);
    let parts = || sandbox.json("stats", &[])[0].clone();
    let (before, started) = (parts(), Instant::now());
    let mut monitor = Qmp::connect(&socket, Duration::from_secs(20)).unwrap();
    let mut longest = Duration::ZERO;
    let was_throttled =
        || parts()["parts"]["vcpu"]["cpu"]["throttled"] != before["parts"]["vcpu"]["cpu"]["throttled"];
    let enough = |elapsed: Duration| elapsed > Duration::from_secs(3) && was_throttled();
    while !enough(started.elapsed()) && started.elapsed() < Duration::from_secs(60) {
        let asked = Instant::now();
        assert_eq!(monitor.vcpus().unwrap().len(), 2);
        longest = longest.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    let (after, elapsed) = (parts(), started.elapsed());
    let grew = |part: &str, key: &str| {
        let value = |sample: &Value| sample["parts"][part]["cpu"][key].as_u64().unwrap_or_default();
        value(&after) - value(&before)
    };
    let share = grew("vcpu", "usage_us") as f64 / elapsed.as_micros() as f64;
    assert!(share < 0.25, "the vCPUs had {share} CPUs: {after}");
    assert!(grew("vcpu", "throttled") > 0, "{after}");
    assert_eq!(grew("overhead", "throttled"), 0, "{after}");
    eprintln!(
        "vCPUs: {share:.2} CPUs, throttled {} times; overhead: throttled {} times; the monitor took {longest:?} at most",
        grew("vcpu", "throttled"),
        grew("overhead", "throttled"),
    );
    drop(monitor);
    // What the guest has touched is the sandbox's.
    assert!(after["memory"]["current"].as_u64() > Some(1 << 20), "{after}");

    // Once more, nothing moves; and by their names they are the same.
    let again = sandbox.json("classify", &[]);
    assert_eq!((&again["vcpus"], &again["moved"]), (&2.into(), &0.into()), "{again}");
    let by_name = sandbox.json("classify", &["--vmm", "qemu", "--vcpus", "2"]);
    assert_eq!((&by_name["vcpus"], &by_name["moved"]), (&2.into(), &0.into()), "{by_name}");
    sandbox.does("freeze", &[]);
    sandbox.does("thaw", &[]);
    assert_eq!(sandbox.json("diff", &[]), serde_json::json!([]));

    support::send(running.id(), rustix::process::Signal::TERM);
    wait(running, "run".to_owned());
    sandbox.is_gone();
}

#[test]
fn a_machine_that_is_joined_later_is_sorted_when_it_is_asked_for() {
    let Some(Machine { sandbox, socket, program }) = machine("later", 1) else { return };
    let mut qemu = Command::new(&program[0]).args(&program[1..]).spawn().unwrap();
    let pid = qemu.id().to_string();
    sandbox.create(&["--overhead", "nested", "--cpus", "0.5", "--overhead-cpus", "0.5"]);
    sandbox.does("attach", &[&pid]);
    let found = threads(&sandbox);
    assert!(found.iter().all(|(_, part)| part == "overhead"), "{found:?}");
    let error = sandbox.attempt_json("classify", &["--timeout", "1"]).exits(2).error();
    assert!(error["message"].as_str().unwrap().contains("qmp"), "{error}");
    let error =
        sandbox.attempt_json("classify", &["--vmm", "firecracker", "--timeout", "1"]).exits(1).error();
    assert!(error["message"].as_str().unwrap().contains("CPU 0/TCG"), "{error}");
    let monitor = socket.display().to_string();
    let placed = sandbox.json("classify", &["--qmp", &monitor, "--timeout", "50"]);
    assert_eq!((&placed["vcpus"], &placed["moved"]), (&1.into(), &1.into()), "{placed}");

    // A thread that is taken elsewhere is brought back.
    let list = sandbox.json("ps", &["--threads"]);
    let vcpu = list.as_array().unwrap().iter().find(|task| task["part"] == "vcpu").unwrap();
    assert_eq!((&vcpu["name"], &vcpu["index"]), (&"CPU 0/TCG".into(), &0.into()), "{vcpu}");
    sandbox.does("attach", &["--thread", "--part", "overhead", &vcpu["tid"].to_string()]);
    assert!(vcpus(&threads(&sandbox)).is_empty());
    assert_eq!(sandbox.json("classify", &["--vmm", "CPU {}/TCG"])["moved"], 1);
    sandbox.does("rm", &["--kill"]);
    qemu.wait().unwrap();
    sandbox.is_gone();
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
fn each_vcpu_has_a_cpu_of_its_own_while_there_are_as_many() {
    let cpus = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    if !cpus.starts_with("0-") {
        return skip("one CPU is not enough, or they have other numbers");
    }
    let Some(Machine { sandbox, socket, program }) = machine("pinned", 2) else { return };
    let monitor = socket.display().to_string();
    let options =
        ["--profile", "qemu", "--cpuset-cpus", "0-1", "--qmp", &monitor, "--vcpus", "2", "--pin=exclusive"];
    let words: Vec<_> = program.iter().map(String::as_str).collect();
    let running = sandbox.start(&options, &words);
    // Index of a vCPU → the CPU to which it is pinned, as it is told and as it is.
    let pins = || {
        let list = sandbox.json("ps", &["--threads"]);
        let pinned = list.as_array().unwrap().iter().filter(|task| task["pinned"].is_number());
        let told = pinned.map(|task| (task["index"].clone(), task["pinned"].clone(), task["tid"].clone()));
        told.collect::<Vec<_>>()
    };
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline && (sandbox.attempt("ps", &[]).code != 0 || pins().len() < 2) {
        std::thread::sleep(Duration::from_millis(100));
    }
    for (index, cpu, tid) in pins() {
        assert_eq!(index, cpu);
        let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap();
        assert!(status.contains(&format!("Cpus_allowed_list:\t{cpu}\n")), "{status}");
    }
    let shown = sandbox.json("show", &[]);
    let both = serde_json::json!({"0": 0, "1": 1});
    assert_eq!((&shown["pin"], &shown["pinned"]), (&"exclusive".into(), &both), "{shown}");
    let told = sandbox.does("show", &[]).stdout;
    assert!(told.contains("exclusive: vCPU 0 on CPU 0, vCPU 1 on CPU 1\n"), "{told}");
    let told = sandbox.does("ps", &["--threads"]).stdout;
    assert!(told.contains("vcpu 1 on CPU 1"), "{told}");

    let fewer = sandbox.json("set", &["--cpuset-cpus", "1"]);
    let line = fewer["report"].as_array().unwrap().iter().find(|line| line["setting"] == "pin").unwrap();
    assert!(line["why"].as_str().unwrap().contains("vCPUs 2, free CPUs 1 of 1"), "{line}");
    assert!(pins().is_empty());
    sandbox.does("set", &["--cpuset-cpus", "0-1", "--pin"]);
    assert_eq!((pins().len(), &sandbox.json("show", &[])["pin"]), (2, &"matching".into()));
    assert_eq!(sandbox.json("classify", &[])["pinned"], both);
    sandbox.does("set", &["--pin=none"]);
    assert!(pins().is_empty());
    support::send(running.id(), rustix::process::Signal::TERM);
    wait(running, "run".to_owned());
    sandbox.is_gone();
}
