//! `run --detach` of a VMM whose vCPU threads are late or never there: it returns at once, and a helper looks for them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Sandbox, finish, is_alive, until};

testbed! {
    drivers: "cgroupfs systemd";
}

/// A sandbox with parts, in which a thread `vcpu0` is the virtual CPU.
const PARTS: &[&str] = &["--overhead", "nested", "--vmm", "vcpu{}", "--vcpus", "1"];
/// Longer than a detached start takes on a busy machine, shorter than the search for threads.
const AT_ONCE: Duration = Duration::from_secs(15);
/// A VMM that names its vCPU thread only when the file `go` is there.
const LATE: &str =
    "while ! test -e \"$GO\"; do sleep 0.1; done; printf vcpu0 > /proc/$$/comm; while :; do sleep 1; done";

/// The PIDs of the helpers that search in this sandbox.
fn helpers(sandbox: &Sandbox) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_helper = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        words.contains(&b"place-vcpus".as_slice()) && words.contains(&sandbox.id.as_bytes()) && is_alive(*pid)
    };
    pids.filter(is_helper).collect()
}

fn part_of(sandbox: &Sandbox, name: &str) -> Option<String> {
    let list = sandbox.attempt_json("ps", &["--threads"]);
    let list: Value = serde_json::from_str(&list.stdout).ok()?;
    let task = list.as_array()?.iter().find(|task| task["name"] == name)?.clone();
    Some(task["part"].as_str()?.to_owned())
}

#[test]
fn detached_run_without_vcpu_threads_returns_at_once() {
    let sandbox = Sandbox::named("no-vcpus");
    let started = Instant::now();
    let first = sandbox.detached(PARTS, "sleep 1000");
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    assert!(is_alive(first));
    // Before it executes the command, it has the name of its parent.
    until("the helper runs", || helpers(&sandbox).len() == 1);
    let helper = helpers(&sandbox)[0];
    until("the helper has its own session", || {
        let stat = fs::read_to_string(format!("/proc/{helper}/stat")).unwrap();
        let after_name: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        after_name[3] == helper.to_string()
    });
    // A moment after that.
    let leads =
        |name: &str, to: &str| fs::read_link(format!("/proc/{helper}/{name}")).unwrap() == Path::new(to);
    until("it holds nothing of its starter's", || {
        ["fd/0", "fd/1", "fd/2"].iter().all(|stream| leads(stream, "/dev/null")) && leads("cwd", "/")
    });

    // It holds no lock, so that others work meanwhile; a sandbox of the same name made anew is none of its business.
    let started = Instant::now();
    sandbox.does("set", &["--pids", "50"]);
    sandbox.does("rm", &["--kill"]);
    sandbox.is_gone();
    let second = sandbox.detached(&[PARTS, &["--wait-vcpus", "0"]].concat(), "sleep 1000");
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    until("the helper ends with its sandbox", || helpers(&sandbox).is_empty());
    assert!(is_alive(second) && !is_alive(first));
    assert_eq!(sandbox.json("show", &[])["holder"]["pid"], second);
    sandbox.does("rm", &["--kill"]);
}

#[test]
fn helper_of_a_detached_run_places_threads_that_are_late() {
    let sandbox = Sandbox::named("late");
    let go = sandbox.scratch.path().join("go");
    let script = format!("GO={}; {LATE}", go.display());
    sandbox.detached(PARTS, &script);
    until("the helper runs", || helpers(&sandbox).len() == 1);
    fs::write(&go, "").unwrap();
    until("the helper is done", || helpers(&sandbox).is_empty());
    assert_eq!(part_of(&sandbox, "vcpu0").as_deref(), Some("vcpu"));
    sandbox.does("rm", &["--kill"]);
}

#[test]
fn wait_vcpus_waits_and_reports_what_was_found() {
    let sandbox = Sandbox::named("waited");
    let run = |time: &str, script: &str| {
        let mut command = sandbox.ringfence(&["-o", "json", "run", &sandbox.id]);
        command.args(PARTS).args(["--detach", "--wait-vcpus", time, "--", "sh", "-c", script]);
        let started = Instant::now();
        let done = finish(command).exits(0).json();
        (done, started.elapsed())
    };
    let (done, took) = run("2.5", "exec sleep 1000");
    assert!(took >= Duration::from_millis(2500) && took < AT_ONCE, "{took:?}");
    let report = done["report"].as_array().unwrap();
    let line = report.iter().find(|line| line["setting"] == "wait-vcpus").unwrap_or_else(|| panic!("{done}"));
    let why = line["why"].as_str().unwrap();
    assert!(why.contains("within 2.") && why.contains("0 vCPU threads") && why.contains("sleep"), "{why}");
    assert!(done.get("vcpus").is_none() && helpers(&sandbox).is_empty(), "{done}");
    sandbox.does("rm", &["--kill"]);

    let (done, _) = run("30", "printf vcpu0 > /proc/$$/comm; while :; do sleep 1; done");
    assert_eq!(done["vcpus"], 1, "{done}");
    assert_eq!(part_of(&sandbox, "vcpu0").as_deref(), Some("vcpu"));
    sandbox.does("rm", &["--kill"]);

    let script = "printf vcpu0 > /proc/$$/comm; while :; do sleep 1; done";
    let done =
        sandbox.run(&[PARTS, &["--detach", "--wait-vcpus", "30"]].concat(), &["sh", "-c", script]).exits(0);
    assert!(done.stderr.contains("1 threads of vCPUs"), "{}", done.stderr);
    sandbox.does("rm", &["--kill"]);

    let refused = sandbox.run(&["--detach", "--wait-vcpus", "1"], &["sleep", "1000"]).exits(2);
    assert!(refused.stderr.contains("--overhead nested"), "{}", refused.stderr);
    sandbox.is_gone();
}

#[test]
fn foreground_run_says_once_what_it_waits_for() {
    for quiet in [false, true] {
        let sandbox = Sandbox::named("foreground");
        let mut command = sandbox.ringfence(if quiet { &["--quiet"] } else { &[] });
        command.args(["run", &sandbox.id]).args(PARTS).args(["--", "sleep", "3"]);
        let done = finish(command).exits(0);
        let said = done.stderr.matches("waiting up to 30 s for the vCPU threads").count();
        assert_eq!(said, usize::from(!quiet), "{}", done.stderr);
    }
}
