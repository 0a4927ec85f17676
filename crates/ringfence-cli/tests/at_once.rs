//! Several commands at once: on one sandbox they take turns, below one parent they do not get in each other's way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::process::Stdio;

use support::{Sandbox, hold, is_on_v1, wait};

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
