//! Several commands at once: on one sandbox they take turns, below one parent they do not get in each other's way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::Read as _;
use std::process::{Command, Stdio};

use crate::support::{Sandbox, finish, hold, is_on_v1, send, wait};
use rustix::process::Signal;

testbed! {
    drivers: "cgroupfs systemd";
}

/// Of a command that was killed.
const KILLED: i32 = 128 + 9;

#[test]
fn commands_at_once_on_one_sandbox_take_turns() {
    let sandbox = Sandbox::named("turns");
    sandbox.create(&[]);
    let children: Vec<_> = (1..=16)
        .map(|number| {
            let (memory, pids) = (format!("{}M", 64 + number), (100 + number).to_string());
            // An emulated machine under load is slow.
            let options = ["--memory", &memory, "--pids", &pids, "--timeout", "50"];
            let mut set = sandbox.command("set", &options);
            set.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        wait(child, "set".to_owned()).exits(0);
    }
    // Whoever was last: both of its values, in the kernel and in the record.
    let recorded = sandbox.json("show", &[])["resources"].clone();
    let memory = recorded["memory"]["limit"].as_u64().unwrap();
    let pids = recorded["pids"]["limit"].as_u64().unwrap();
    assert_eq!(memory / (1 << 20) - 64, pids - 100);
    let file = if is_on_v1("memory") { "memory.limit_in_bytes" } else { "memory.max" };
    assert_eq!(sandbox.file(file).unwrap(), memory.to_string());
    assert_eq!(sandbox.file("pids.max").unwrap(), pids.to_string());
}

#[test]
fn a_lock_is_waited_for_until_the_timeout_and_goes_with_a_holder_that_is_killed() {
    let sandbox = Sandbox::named("locked");
    sandbox.create(&["--pids", "10"]);
    let file = sandbox.state_dir().join(format!("{}.lock", sandbox.id));
    // It has the lock, its child has not.
    let mut holder = Command::new("flock");
    holder.arg("--close").arg(&file).args(["sh", "-c", "echo held; exec sleep 1000"]);
    let mut holder = holder.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 5];
    holder.stdout.take().unwrap().read_exact(&mut said).unwrap();
    for (verb, args) in [("set", &["--pids", "20"][..]), ("freeze", &[]), ("rm", &["--kill"])] {
        let options = [args, &["--timeout", "0.1"]].concat();
        let error = sandbox.attempt_json(verb, &options).exits(5).error();
        assert_eq!(
            (&error["kind"], &error["value"]),
            (&"locked".into(), &sandbox.id.as_str().into()),
            "{error}"
        );
    }
    // Whoever only looks does not wait, and gc leaves it alone.
    assert_eq!(sandbox.json("show", &["--timeout", "0"])["resources"]["pids"]["limit"], 10);
    assert_eq!(
        finish(sandbox.ringfence(&["-o", "json", "gc", "--apply"])).exits(0).json(),
        serde_json::json!([])
    );

    let options = ["--pids", "20", "--timeout", "50"];
    let waiting =
        sandbox.command("set", &options).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let sleeper = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", holder.id())).unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    wait(waiting, "set".to_owned()).exits(0);
    assert_eq!(sandbox.file("pids.max").unwrap(), "20");
    for pid in sleeper.split_whitespace() {
        send(pid.parse().unwrap(), Signal::KILL);
    }
}

#[test]
fn devices_that_are_allowed_at_once_are_all_allowed() {
    let sandbox = Sandbox::named("device-turns");
    sandbox.create(&["--profile", "none"]);
    let rules: Vec<_> = (200..208).map(|minor| format!("c 10:{minor} rw")).collect();
    let start = |rule: &String| {
        let mut allow = sandbox.command("devices allow", &[rule, "--timeout", "50"]);
        allow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for child in rules.iter().map(start).collect::<Vec<_>>() {
        wait(child, "devices allow".to_owned()).exits(0);
    }
    let list = sandbox.json("devices ls", &[])["exceptions"].clone();
    let minors =
        list.as_array().unwrap().iter().filter(|one| one["major"] == 10).map(|one| one["minor"].as_u64());
    assert_eq!(minors.collect::<Vec<_>>(), (200..208).map(Some).collect::<Vec<_>>());
    if is_on_v1("devices") {
        let live = sandbox.file("devices.list").unwrap();
        assert!(rules.iter().all(|rule| live.lines().any(|line| line == rule)), "{live}");
    }
}

#[test]
fn a_sandbox_can_be_removed_under_its_command() {
    let sandbox = Sandbox::named("removed-under");
    let child = sandbox.start(&[], &["sleep", "1000"]);
    sandbox.wait_until_populated();
    sandbox.does("rm", &["--kill"]);
    wait(child, "run".to_owned()).exits(KILLED);
    sandbox.is_gone();
}

#[test]
fn of_many_that_create_the_same_sandbox_one_wins() {
    let sandbox = Sandbox::named("race");
    let children: Vec<_> = (0..6)
        .map(|_| {
            let mut create = sandbox.command("create", &[hold(), &["--pids", "10"]].concat());
            create.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut codes: Vec<_> = children.into_iter().map(|child| wait(child, "create".to_owned()).code).collect();
    codes.sort();
    assert_eq!(codes, [0, 5, 5, 5, 5, 5]);
    assert_eq!(sandbox.file("pids.max").unwrap(), "10");
}

#[test]
fn many_sandboxes_come_and_go_at_once_below_one_parent() {
    let workers: Vec<_> = (0..4)
        .map(|number| {
            std::thread::spawn(move || {
                let sandbox = Sandbox::named(&format!("crowd-{number}"));
                for _ in 0..5 {
                    sandbox.run(&["--memory", "64M", "--pids", "10"], &["true"]).exits(0);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
}
