//! systemd reloads and executes itself anew while sandboxes are units of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::support::systemd::{
    create, drained, exec, file, limits_hold, nothing_is_left, run, skipped, systemctl, unit, units_like,
};
use crate::support::{Sandbox, directories_named, finish, is_on_v1, skip, until};

testbed! {
    modes: "systemd";
    gate: "trixie";
    // systemd executes itself anew here, after which a user's systemd may be unable to start scopes.
    guest: "own";
}

/// One at a time: each has systemd to itself.
static SYSTEMD: Mutex<()> = Mutex::new(());

#[test]
fn the_slice_goes_with_the_last_sandbox_in_it_whatever_its_end() {
    if skipped() {
        return;
    }
    let _alone = SYSTEMD.lock().unwrap_or_else(PoisonError::into_inner);
    let is_gone = || {
        let dirs = directories_named("ringfence.slice");
        assert!(
            units_like("ringfence").is_empty() && dirs.is_empty(),
            "{:?} {dirs:?}",
            units_like("ringfence")
        );
    };
    let (one, other) = (Sandbox::named("one"), Sandbox::named("other"));
    run(&one, &PATIENT, "true").exits(0);
    is_gone();
    create(&one, &["--hold"]);
    create(&other, &PATIENT);
    exec(&other, "true").exits(0);
    other.does("rm", &[]);
    assert_eq!(units_like("ringfence").len(), 2, "one is still there");
    one.does("rm", &[]);
    is_gone();
    // Of a scope with drained processes nobody is told when it ends.
    create(&one, &["--hold"]);
    exec(&one, "sleep 1000 </dev/null >/dev/null 2>&1 &").exits(0);
    one.does("rm", &["--drain"]);
    systemctl(&["kill", "--signal=KILL", &drained(&one)]);
    nothing_is_left(&one);
    let found = finish(one.ringfence(&["-o", "json", "gc", "--apply"])).exits(0).json();
    assert_eq!(found[0]["id"], "/ringfence.slice", "{found}");
    is_gone();
}

#[test]
fn a_change_is_told_to_systemd_and_outlives_its_reloads() {
    if skipped() {
        return;
    }
    let _alone = SYSTEMD.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = Sandbox::named("reload");
    create(&sandbox, &[&PATIENT[..], &["--hold"]].concat());
    sandbox.does("set", &["--cpus", "0.8", "--memory-swap", "96M"]);
    sandbox.does("devices allow", &["c 10:237 rw"]);
    sandbox.does("devices deny", &["c 1:9 rwm"]);
    let allowed = |device: &str| {
        let opened = format!("exec 3<{device}");
        exec(&sandbox, &opened).code == 0
    };
    let loop_control = sandbox.scratch.path().join("loop");
    let mut mknod = Command::new("mknod");
    mknod.args([loop_control.to_str().unwrap(), "c", "10", "237"]);
    finish(mknod).exits(0);
    let is_there = fs::File::open(&loop_control).is_ok();
    let look = |when: &str| {
        limits_hold(&sandbox, 80);
        if is_on_v1("memory") {
            assert_eq!(file(&sandbox, "memory", "memory.memsw.limit_in_bytes"), "100663296", "{when}");
        } else {
            assert_eq!(file(&sandbox, "memory", "memory.swap.max"), "33554432", "{when}");
        }
        assert!(allowed("/dev/null") && !allowed("/dev/vda") && !allowed("/dev/urandom"), "{when}");
        assert_eq!(allowed(loop_control.to_str().unwrap()), is_there, "{when}: what was added");
        assert_eq!(sandbox.json("diff", &[]), serde_json::json!([]), "{when}");
    };
    if !is_there {
        skip("there is no loop-control here: that it opens is not tried");
    }
    look("before");
    systemctl(&["daemon-reload"]);
    look("after daemon-reload");
    systemctl(&["daemon-reexec"]);
    look("after daemon-reexec");
    sandbox.does("set", &["--pids", "60"]);
    sandbox.does("set", &["--pids", "50"]);
    look("after another change");
    sandbox.does("rm", &[]);
    nothing_is_left(&sandbox);
}

#[test]
fn what_a_reload_resets_of_devices_opens_nothing() {
    if skipped() {
        return;
    }
    let _alone = SYSTEMD.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = Sandbox::named("reload-devices");
    let document = sandbox.all_devices_but_kmsg();
    create(&sandbox, &["--hold", "--profile", "none", "--resources", document.to_str().unwrap()]);
    let opens = |device: &str| exec(&sandbox, &format!("exec 3<{device}")).code == 0;
    for order in ["daemon-reload", "daemon-reexec"] {
        assert!(opens("/dev/null") && opens("/dev/vda") && !opens("/dev/kmsg"), "before {order}");
        systemctl(&[order]);
        assert!(opens("/dev/vda") && !opens("/dev/kmsg"), "after {order}");
        sandbox.does("set", &["--pids", "50"]);
    }
    assert!(opens("/dev/null") && opens("/dev/vda") && !opens("/dev/kmsg"));
    sandbox.does("rm", &[]);
    nothing_is_left(&sandbox);
}

#[test]
fn a_systemd_that_executes_itself_anew_again_and_again_is_waited_for() {
    if skipped() {
        return;
    }
    let _alone = SYSTEMD.lock().unwrap_or_else(PoisonError::into_inner);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..3 {
                systemctl(&["daemon-reexec"]);
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut number = 0;
        while number == 0 || !done.load(Ordering::Relaxed) {
            number += 1;
            let sandbox = Sandbox::named(&format!("reexec-{number}"));
            let ran = run(&sandbox, &PATIENT, "cat /proc/self/cgroup");
            assert_eq!(ran.code, 0, "{ran:?}");
            assert!(ran.stdout.contains(&unit(&sandbox)), "{}", ran.stdout);
            create(&sandbox, &[&PATIENT[..], &["--hold"]].concat());
            sandbox.does("set", &["--cpus", "0.6"]);
            limits_hold(&sandbox, 60);
            sandbox.does("rm", &[]);
            nothing_is_left(&sandbox);
        }
    });
}

#[test]
fn systemd_that_reloads_slowly_is_waited_for() {
    if skipped() {
        return;
    }
    if !crate::support::soak::in_testbed() {
        return skip("a generator of systemd is installed in the testbed alone");
    }
    let _alone = SYSTEMD.lock().unwrap_or_else(PoisonError::into_inner);
    // systemd answers no call until its generators have ended, here for longer than Ringfence waits for one answer.
    let generators = Path::new("/run/systemd/system-generators");
    let generator = generators.join("ringfence-test");
    fs::create_dir_all(generators).unwrap();
    fs::write(&generator, "#!/bin/sh\n: >\"$1/ringfence-test\"\nsleep 25\n").unwrap();
    fs::set_permissions(&generator, fs::Permissions::from_mode(0o755)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| systemctl(&["daemon-reload"]));
        until("the generator runs", || Path::new("/run/systemd/generator/ringfence-test").exists());
        fs::remove_file(&generator).unwrap();
        let sandbox = Sandbox::named("slow");
        let options = PATIENT;
        let ran = run(&sandbox, &options, "cat /proc/self/cgroup");
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.stdout.contains(&unit(&sandbox)), "{}", ran.stdout);
        nothing_is_left(&sandbox);
    });
}

/// systemd that executes itself anew in a guest takes longer than the timeout of a command.
const PATIENT: [&str; 10] =
    ["--memory", "64M", "--cpus", "0.5", "--pids", "50", "--cpuset-cpus", "0", "--timeout", "60"];
