//! Users without privileges, with a systemd of their own that makes their sandboxes: the one who lingers in the testbed's
//! guests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use crate::support::systemd::{create, limits_hold, nothing_is_left, skipped, unit};
use crate::support::{
    self, Done, Sandbox, binary, directories_named, finish, hierarchy_of, is_on_v1, skip, until,
};

testbed! {
    modes: "systemd";
    gate: "trixie";
    guest: "own";
}

const UID: u32 = 1000;

/// Runs a script as the user, whose systemd is asked; `ringfence` is in its path.
fn as_user(sandbox: &Sandbox, script: &str) -> Done {
    let bin = sandbox.scratch.path().join("bin");
    if !bin.exists() {
        fs::create_dir(&bin).unwrap();
        fs::copy(binary(), bin.join("ringfence")).unwrap();
        fs::set_permissions(sandbox.scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args([
        &format!("--reuid={UID}"),
        &format!("--regid={UID}"),
        "--clear-groups",
        "--inh-caps=-all",
        "env",
        "-i",
    ]);
    command.arg(format!("PATH={}:/usr/bin:/bin", bin.display()));
    command.args([
        format!("XDG_RUNTIME_DIR=/run/user/{UID}"),
        format!("ID={}", sandbox.id),
        "NO_COLOR=1".to_owned(),
    ]);
    command.args(["sh", "-c", &format!("set -e; {script}")]);
    finish(command)
}

fn no_user() -> bool {
    let bus = format!("/run/user/{UID}/bus");
    let missing = skipped() || !std::path::Path::new(&bus).exists();
    if missing {
        skip("no user with a systemd of their own here");
    }
    missing
}

#[test]
fn an_empty_slice_is_the_user_slice_of_a_users_systemd() {
    if no_user() {
        return;
    }
    let sandbox = Sandbox::named("slice");
    let script = "ringfence run $ID --path :ringfence:$ID -- cat /proc/self/cgroup";
    let done = as_user(&sandbox, script).exits(0);
    let wanted = format!("/user@{UID}.service/user.slice/{}", unit(&sandbox));
    assert!(done.stdout.lines().any(|line| line.ends_with(&wanted)), "{}", done.stdout);
    nothing_is_left(&sandbox);
}

#[test]
fn a_user_whose_systemd_answers_has_every_command_and_the_limits_of_v2() {
    if no_user() {
        return;
    }
    let sandbox = Sandbox::named("user");
    let limits = "--memory 64M --memory-swap 64M --cpus 0.5 --pids 50";
    let done = as_user(&sandbox, &format!("ringfence -o json create $ID {limits} --hold")).exits(0);
    let shown = done.json();
    assert_eq!((&shown["driver"], &shown["state"]), (&"systemd".into(), &"running".into()), "{shown}");
    let path = shown["path"].as_str().unwrap();
    let slice = format!("/user.slice/user-{UID}.slice/user@{UID}.service/ringfence.slice");
    assert_eq!(path, format!("{slice}/{}", unit(&sandbox)));
    let reported = |setting: &str| {
        shown["report"]
            .as_array()
            .unwrap()
            .iter()
            .any(|line| line["setting"] == setting && line["note"] != true)
    };
    assert!(reported("devices"), "{shown}");
    if is_on_v1("memory") {
        // Nothing is believed: all of it is told.
        for setting in ["memory.limit", "memory.swap", "cpu.quota", "pids.limit"] {
            assert!(reported(setting), "{setting}: {shown}");
        }
        let refused = as_user(&sandbox, "ringfence --strict run $ID-strict --memory 64M -- true").exits(125);
        assert!(
            refused.stderr.contains("cgroup v1") || refused.stderr.contains("devices"),
            "{}",
            refused.stderr
        );
        as_user(&sandbox, "ringfence rm $ID").exits(0);
        return nothing_is_left(&sandbox);
    }
    let file = |name: &str| {
        let dir = hierarchy_of("memory").point.join(path.trim_start_matches('/'));
        fs::read_to_string(dir.join(name)).unwrap().trim().to_owned()
    };
    for (name, value) in [
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("cpu.max", "50000 100000"),
        ("cpu.max.burst", "50000"),
        ("pids.max", "50"),
    ] {
        assert_eq!(file(name), value, "{name}");
    }
    assert!(!reported("memory.limit") && !reported("cpu.quota") && !reported("pids.limit"), "{shown}");

    let done = as_user(
        &sandbox,
        "ringfence exec $ID -- cat /proc/self/cgroup
         ringfence set $ID --memory 80M --pids 40
         sleep 1000 </dev/null >/dev/null 2>&1 & ringfence attach $ID $!
         cat /proc/$!/cgroup
         ringfence ps $ID
         ringfence stats $ID -o json
         ringfence diff $ID
         ringfence freeze $ID && ringfence -o json show $ID | grep '\"state\"'
         ringfence thaw $ID",
    );
    let done = done.exits(0);
    assert_eq!(done.stdout.matches(&format!("0::{path}")).count(), 2, "{}", done.stdout);
    assert!(
        done.stdout.contains("\"frozen\"") && done.stdout.contains("\"limit\": 83886080"),
        "{}",
        done.stdout
    );
    assert_eq!((file("memory.max"), file("pids.max")), ("83886080".to_owned(), "40".to_owned()));
    as_user(&sandbox, "ringfence rm $ID").exits(5);
    as_user(&sandbox, "ringfence rm $ID --kill").exits(0);
    nothing_is_left(&sandbox);

    let done =
        as_user(&sandbox, "ringfence run $ID --memory 64M -- sh -c 'cat /proc/self/cgroup; exit 7'").exits(7);
    assert!(done.stdout.contains(&format!("0::{path}")), "{}", done.stdout);
    let listed = as_user(&sandbox, "ringfence -o json ls; ringfence -o json gc").exits(0);
    assert!(!listed.stdout.contains(&sandbox.id), "{}", listed.stdout);
    nothing_is_left(&sandbox);
    until("the slice is gone", || {
        directories_named("ringfence.slice").iter().all(|dir| !dir.starts_with(&slice))
    });
}

#[test]
fn a_user_without_a_bus_is_told_where_it_was_looked_for() {
    if no_user() {
        return;
    }
    let sandbox = Sandbox::named("no-bus");
    let script = "XDG_RUNTIME_DIR=/nowhere ringfence --state-dir /tmp/$ID-state --driver systemd create $ID --memory 64M";
    let done = as_user(&sandbox, script).exits(1);
    assert!(done.stderr.contains("/nowhere/bus"), "{}", done.stderr);
    // Without a word about the driver, it is done without systemd.
    let script =
        "XDG_RUNTIME_DIR=/nowhere ringfence --state-dir /tmp/$ID-state create $ID --memory 64M -o json
                  XDG_RUNTIME_DIR=/nowhere ringfence --state-dir /tmp/$ID-state rm $ID; rm -rf /tmp/$ID-state";
    let done = as_user(&sandbox, script).exits(0);
    assert!(done.stdout.contains("\"cgroupfs\""), "{}", done.stdout);
}

#[test]
fn a_unit_is_delegated_to_its_owner_who_makes_sandboxes_inside() {
    if no_user() {
        return;
    }
    let sandbox = Sandbox::named("owner");
    create(
        &sandbox,
        &[
            "--memory",
            "64M",
            "--cpus",
            "0.5",
            "--pids",
            "50",
            "--cpuset-cpus",
            "0",
            "--owner",
            &format!("{UID}:{UID}"),
            "--hold",
        ],
    );
    limits_hold(&sandbox, 50);
    let dirs = directories_named(&unit(&sandbox));
    assert!(!dirs.is_empty());
    for dir in &dirs {
        assert_eq!(fs::metadata(dir).unwrap().uid(), UID, "{dir:?}");
        assert_eq!(fs::metadata(dir.join("cgroup.procs")).unwrap().uid(), UID, "{dir:?}");
        for limit in ["memory.max", "memory.limit_in_bytes", "pids.max", "cpu.max", "cpu.cfs_quota_us"] {
            if let Ok(limits) = fs::metadata(dir.join(limit)) {
                assert_eq!(limits.uid(), 0, "{dir:?} {limit}");
            }
        }
    }
    // A reload leaves it theirs.
    support::systemd::systemctl(&["daemon-reload"]);
    sandbox.does("set", &["--pids", "60"]);
    sandbox.does("set", &["--pids", "50"]);
    for dir in &dirs {
        assert_eq!(fs::metadata(dir).unwrap().uid(), UID, "{dir:?}");
    }
    if is_on_v1("memory") {
        sandbox.does("rm", &[]);
        return nothing_is_left(&sandbox);
    }
    as_user(&sandbox, "true").exits(0);
    let bin = sandbox.scratch.path().join("bin/ringfence");
    let inner = format!(
        "exec setpriv --reuid={UID} --regid={UID} --clear-groups --inh-caps=-all env -i PATH=/usr/bin:/bin \
         XDG_RUNTIME_DIR=/nowhere {} --state-dir /tmp/{}-state --driver cgroupfs run inner --evacuate --memory 20M -- \
         sh -c 'cat /proc/self/cgroup; cat /sys/fs/cgroup$(cut -d: -f3- /proc/self/cgroup)/memory.max'",
        bin.display(),
        sandbox.id
    );
    let done = sandbox.attempt("exec", &["--", "sh", "-c", &inner]).exits(0);
    assert!(
        done.stdout.contains(&format!("{}/ringfence/inner", unit(&sandbox))),
        "{}{}",
        done.stdout,
        done.stderr
    );
    assert!(done.stdout.contains("20971520"), "{}", done.stdout);
    sandbox.does("rm", &["--kill"]);
    _ = fs::remove_dir_all(format!("/tmp/{}-state", sandbox.id));
    nothing_is_left(&sandbox);
}
