//! Every system call of every operation fails in every plausible way, and the command is killed at each: what was to be
//! changed is changed or as it was, never half, and what is left can be removed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod calls;
mod operations;
mod tracer;
mod world;

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Mutex;

use crate::support::soak::{in_testbed, is_soak};
use crate::support::{self, by_systemd, mode};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use operations::{OPERATIONS, Operation, Tally, Trial};

testbed! {
    // v1 is tried on the host: under emulation a fault takes a second.
    modes: "host trixie";
    gate: "host trixie";
    soak: "host trixie";
}

/// A process that looks like a virtual machine: started by the other tests.
#[test]
fn machine() {
    if std::env::var_os(world::MACHINE).is_none() {
        return;
    }
    for name in world::VCPUS {
        std::thread::Builder::new().name(name.to_owned()).spawn(std::thread::park).unwrap();
    }
    loop {
        std::thread::park();
    }
}

/// A few of the calls of an operation, where there is no time for all; under emulation each takes a second.
fn few(trial: Trial) -> Tally {
    trial.sample(match (is_soak(), in_testbed()) {
        (false, true) => 1,
        (true, true) | (false, false) => 6,
        (true, false) => 40,
    })
}

/// Tries the operations, two at a time.
fn try_all(one: fn(Trial) -> Tally) {
    if by_systemd() {
        return support::skip("systemd does the work, and is no process of ours");
    }
    let only = std::env::var("RINGFENCE_FAULTS").unwrap_or_default();
    // Others in the same parent come and go: this one keeps it, with all that is enabled in it.
    let keeper = support::Sandbox::named("keeper");
    let limits = ["--memory", "64M", "--cpus", "0.5", "--pids", "10", "--cpuset-cpus=0"];
    keeper.create(&world::possible(&limits).collect::<Vec<_>>());
    let queue =
        Mutex::new(OPERATIONS.iter().filter(|one| one.name.contains(&only)).rev().collect::<Vec<_>>());
    let tallies: Mutex<Vec<(&Operation, Tally)>> = Mutex::default();
    let cpus = std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (cpu, queue, tallies) = (worker % cpus, &queue, &tallies);
            scope.spawn(move || {
                // Who traces and who is traced take turns: on one CPU that is several times as fast.
                let mut own = CpuSet::new();
                own.set(cpu).unwrap();
                sched_setaffinity(Pid::from_raw(0), &own).unwrap();
                loop {
                    let Some(operation) = queue.lock().unwrap().pop() else { return };
                    let tally = one(Trial::of(operation));
                    let mut done = String::new();
                    row(&mut done, operation.name, &tally);
                    tell(&done);
                    tallies.lock().unwrap().push((operation, tally));
                }
            });
        }
    });
    let mut tallies = tallies.into_inner().unwrap();
    tallies.sort_by_key(|(operation, _)| OPERATIONS.iter().position(|known| known.name == operation.name));
    let mut table = format!(
        "\n{:<16} {:<7} {:>6} {:>7} {:>6} {:>9} {:>10}\n",
        "operation", "mode", "calls", "faults", "kills", "reported", "violations"
    );
    let mut all = Tally::default();
    for (operation, tally) in &tallies {
        all.add(tally);
        row(&mut table, operation.name, tally);
    }
    row(&mut table, "all", &all);
    tell(&table);
    keeper.does("rm", &[]);
    if crate::support::soak::in_testbed() {
        // Nobody else is here.
        assert_eq!(support::directories_named("ringfence"), [] as [std::path::PathBuf; 0]);
    }
    assert!(all.violations.is_empty(), "{} violations: {}", all.violations.len(), all.violations.concat());
}

/// Past the capture of output.
fn tell(text: &str) {
    _ = std::io::stderr().write_all(text.as_bytes());
}

fn row(table: &mut String, name: &str, tally: &Tally) {
    let Tally { calls, faults, kills, reported, violations } = tally;
    _ = writeln!(
        table,
        "{name:<16} {:<7} {calls:>6} {faults:>7} {kills:>6} {reported:>9} {:>10}",
        mode(),
        violations.len()
    );
}

#[test]
fn whatever_call_fails_or_is_the_last_one_nothing_is_left_half_done() {
    try_all(few);
}

/// `make faults`.
#[test]
#[ignore = "takes minutes: every system call, not a sample"]
fn every_call_of_every_operation_fails_and_is_the_last_one() {
    try_all(Trial::whole);
}
