//! What fails in the middle leaves everything as it was, and what was interrupted can be cleared away.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::{
    self, Sandbox, binary, by_systemd, directories_named, finish, hierarchies, hold, is_alive, is_on_v1,
    mode, send, skip, until, wait,
};
use serde_json::{Value, json};

testbed! {
    drivers: "cgroupfs systemd";
}

/// Limits that the planner takes and the kernel refuses, after others that it has taken by then. Below `parent_of`.
fn refused_by_the_kernel() -> &'static [&'static str] {
    if is_on_v1("cpu") {
        // More than the parent's share of time.
        &["--memory", "128M", "--cpu-shares", "2048", "--cpus", "2", "--pids", "20"]
    } else {
        &[
            "--memory",
            "128M",
            "--cpu-shares",
            "2048",
            "--cpus",
            "0.4",
            "--pids",
            "20",
            "--unified",
            "memory.nosuch=1",
        ]
    }
}

/// Half a CPU for whatever is below.
fn parent_of(name: &str) -> (Sandbox, Sandbox, String) {
    let parent = Sandbox::parent(&format!("{name}-parent"), &["--cpus", "0.5"]);
    let sandbox = Sandbox::named(name);
    let path = sandbox.path_in(&parent);
    (parent, sandbox, path)
}

/// All that a failed change could have touched.
fn files(sandbox: &Sandbox) -> Vec<(&'static str, Option<String>)> {
    let v1 = [
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "cpu.shares",
        "cpu.cfs_quota_us",
        "cpu.cfs_period_us",
    ];
    let v2 = ["memory.max", "memory.swap.max", "memory.high", "cpu.weight", "cpu.max", "cpu.max.burst"];
    let both = ["cpuset.cpus", "cpuset.mems", "pids.max"];
    [&v1[..], &v2, &both].concat().into_iter().map(|file| (file, sandbox.file(file))).collect()
}

#[test]
fn a_creation_that_fails_in_the_middle_leaves_no_directory() {
    let (parent, sandbox, path) = parent_of("create");
    let options = [&["--allow-nested", "--path", path.as_str()], refused_by_the_kernel()].concat();
    let error = sandbox.attempt_json("create", &[hold(), &options].concat()).exits(1).error();
    assert_eq!(error["kind"], "kernel", "{error}");
    assert!(error["setting"].is_string(), "{error}");
    // What systemd writes is read back: nobody says why it is not there.
    assert!(error["errno"].is_number() || by_systemd() && is_on_v1("cpu"), "{error}");
    let file = error["path"].as_str().unwrap();
    assert!(file.contains(&sandbox.id), "{error}");
    sandbox.is_gone();

    // The same for run: its command never starts.
    let witness = sandbox.scratch.path().join("started");
    sandbox.run(&options, &["touch", witness.to_str().unwrap()]).exits(125);
    assert!(!witness.exists());
    sandbox.is_gone();

    if by_systemd() {
        return skip("slices on the way are systemd's");
    }
    // Nor is there a trace of parents that had to be made on the way.
    let on_the_way = format!("{}-way", sandbox.id);
    let deeper = format!("/ringfence/{}/{on_the_way}/{}", parent.id, sandbox.id);
    sandbox
        .attempt(
            "create",
            &[&["--allow-nested", "--path", deeper.as_str()], refused_by_the_kernel()].concat(),
        )
        .exits(1);
    sandbox.is_gone();
    assert_eq!(directories_named(&on_the_way), [] as [PathBuf; 0]);
}

#[test]
fn a_change_that_fails_in_the_middle_changes_nothing() {
    let (_parent, sandbox, path) = parent_of("set");
    sandbox.create(&[
        "--allow-nested",
        "--path",
        &path,
        "--memory",
        "64M",
        "--cpu-shares",
        "512",
        "--cpus",
        "0.2",
        "--pids",
        "10",
    ]);
    let (before, shown) = (files(&sandbox), sandbox.json("show", &[]));
    let error = sandbox.attempt_json("set", refused_by_the_kernel()).exits(1).error();
    assert_eq!(error["kind"], "kernel", "{error}");
    assert!(error["path"].as_str().unwrap().contains(&sandbox.id), "{error}");
    assert_eq!(files(&sandbox), before);
    assert_eq!(sandbox.json("show", &[]), shown, "the record too");
    // And what was refused does not stand in the way of what is right.
    sandbox.does("set", &["--memory", "128M", "--cpus", "0.3", "--pids", "20"]);
}

#[test]
fn cpus_that_the_machine_does_not_have_are_refused_and_undone() {
    let sandbox = Sandbox::named("cpuset");
    let options = ["--memory", "64M", "--cpuset-cpus", "4095"];
    let error = sandbox.attempt_json("create", &[hold(), &options].concat()).exits(1).error();
    assert!(error["setting"].as_str().unwrap().contains("cpu"), "{error}");
    sandbox.is_gone();

    sandbox.create(&["--cpuset-cpus", "0", "--pids", "10"]);
    let before = files(&sandbox);
    sandbox.attempt("set", &["--pids", "20", "--cpuset-cpus", "0,4095"]).exits(1);
    assert_eq!(files(&sandbox), before);
}

#[test]
fn a_limit_below_what_is_in_use_is_refused_before_it_kills() {
    let sandbox = Sandbox::named("in-use");
    let mut command = sandbox.probe_command("run", &["--memory", "256M"], "hold 60");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let file = if is_on_v1("memory") { "memory.usage_in_bytes" } else { "memory.current" };
    let is_made = || sandbox.directories().len() == hierarchies().len();
    until("in use", || {
        is_made() && sandbox.file(file).is_some_and(|used| used.parse::<u64>().unwrap_or(0) > 60 << 20)
    });
    let before = files(&sandbox);
    if is_on_v1("memory") {
        // v1 swaps out what it can before it says EBUSY: without swap it cannot.
        if fs::read_to_string("/proc/swaps").unwrap().lines().count() < 2 {
            let error = sandbox.attempt_json("set", &["--pids", "30", "--memory", "16M"]).error();
            assert_eq!(error["setting"], "memory.limit", "{error}");
            assert_eq!(files(&sandbox), before);
        }
    } else {
        let error = sandbox.attempt_json("set", &["--pids", "30", "--memory", "16M"]).exits(5).error();
        assert_eq!((&error["kind"], &error["setting"]), (&json!("busy"), &json!("memory.limit")));
        assert_eq!(files(&sandbox), before);
    }
    assert!(!sandbox.processes().is_empty(), "it lives");
    sandbox.does("kill", &[]);
    wait(child, "run".to_owned()).exits(137);
}

#[test]
fn a_cgroup_file_system_that_is_read_only_is_named() {
    if by_systemd() {
        return skip("it is systemd that writes, and not to our mounts");
    }
    let sandbox = Sandbox::named("read-only");
    let remount: Vec<_> = hierarchies()
        .iter()
        .map(|one| format!("mount -o remount,bind,ro {} &&", one.point.display()))
        .collect();
    let state = sandbox.state_dir();
    let script = format!(
        "{} exec {} --driver cgroupfs -o json --state-dir {} create {} --memory 64M",
        remount.join(" "),
        binary().display(),
        state.display(),
        sandbox.id
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let error = finish(command).exits(1).error();
    assert_eq!(error["errno"], rustix::io::Errno::ROFS.raw_os_error(), "{error}");
    assert!(error["path"].as_str().unwrap().starts_with("/sys/fs/cgroup"), "{error}");
    sandbox.is_gone();
    // Nothing has changed for the others.
    sandbox.create(&[]);
}

#[test]
fn a_sandbox_whose_directories_were_taken_away_is_gone_and_can_be_cleared() {
    if by_systemd() {
        return skip("what holds a scope keeps its directories");
    }
    let sandbox = Sandbox::named("vanished");
    sandbox.create(&["--memory", "64M"]);
    sandbox.directories().iter().for_each(|directory| fs::remove_dir(directory).unwrap());
    assert_eq!(sandbox.json("show", &[])["state"], "gone");
    let list = finish(sandbox.ringfence(&["-o", "json", "ls"])).exits(0).json();
    assert_eq!(list[0]["state"], "gone");
    for (verb, args, code) in [
        ("set", &["--pids", "5"][..], 3),
        ("freeze", &[], 3),
        ("stats", &[], 3),
        ("exec", &["--", "true"], 125),
        ("devices allow", &["c 1:11 r"], 3),
    ] {
        sandbox.attempt(verb, args).exits(code);
        assert_eq!(sandbox.directories(), [] as [PathBuf; 0], "{verb} brings nothing back");
    }
    sandbox.does("rm", &[]);
    sandbox.is_gone();
    sandbox.create(&[]);
}

#[test]
fn a_sandbox_that_lost_one_of_its_directories_can_be_removed() {
    if by_systemd() {
        return skip("what holds a scope keeps its directories");
    }
    let all = hierarchies();
    let sandbox = Sandbox::named("half");
    sandbox.create(&["--memory", "64M"]);
    fs::remove_dir(sandbox.dir("pids")).unwrap();
    assert_eq!(sandbox.directories().len(), if all.len() == 1 { 0 } else { all.len() - 1 });
    sandbox.does("rm", &["--kill"]);
    sandbox.is_gone();
}

#[test]
fn a_process_that_has_vanished_is_named_and_no_other_joins() {
    let sandbox = Sandbox::named("attach");
    sandbox.create(&[]);
    let mut gone = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
    let vanished = gone.id().to_string();
    gone.wait().unwrap();
    // Not "no such sandbox": that has a code of its own.
    let error = sandbox.attempt_json("attach", &[&vanished]).exits(1).error();
    assert_eq!((&error["setting"], &error["value"]), (&json!("pid"), &json!(vanished)), "{error}");
    assert!(error["message"].as_str().unwrap().contains("process"), "{error}");
    assert_eq!(sandbox.processes(), [] as [u32; 0]);

    let mut sleeper = Command::new("sleep");
    sleeper.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut sleeper = sleeper.spawn().unwrap();
    let sleeping = sleeper.id().to_string();
    let place = || fs::read_to_string(format!("/proc/{sleeping}/cgroup")).unwrap();
    let before = place();
    let told = sandbox.attempt("attach", &[&sleeping, &vanished]);
    let after = place();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let told = told.exits(1).stderr;
    assert!(told.contains(&vanished) && !told.contains(&sleeping), "{told}");
    assert_eq!(after, before);
}

#[test]
fn a_state_directory_that_cannot_be_is_named_and_nothing_is_made() {
    let sandbox = Sandbox::named("no-state");
    let file = sandbox.scratch.path().join("file");
    fs::write(&file, "").unwrap();
    for place in [file.to_str().unwrap(), "/proc/no/such/place"] {
        let command = |args: &[&str]| {
            let mut command = support::ringfence();
            command.args(["-o", "json", "--state-dir", place]).args(args);
            finish(command)
        };
        let error = command(&["create", &sandbox.id]).exits(1).error();
        assert!(error["path"].as_str().unwrap().starts_with(place), "{error}");
        assert_eq!(sandbox.directories(), [] as [PathBuf; 0]);
        command(&["run", &sandbox.id, "--", "true"]).exits(125);
        assert_eq!(sandbox.directories(), [] as [PathBuf; 0]);
    }
}

/// The file in which the state is.
fn state_file(sandbox: &Sandbox) -> PathBuf {
    let entries = fs::read_dir(sandbox.state_dir()).unwrap().map(|entry| entry.unwrap().path());
    let mut states = entries.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    states.next().unwrap()
}

#[test]
fn a_state_that_cannot_be_read_is_an_error_that_names_the_file() {
    let sandbox = Sandbox::named("corrupt");
    sandbox.create(&["--memory", "64M"]);
    let file = state_file(&sandbox);
    let good = fs::read_to_string(&file).unwrap();
    assert_eq!(
        fs::metadata(sandbox.state_dir()).unwrap().permissions().mode() & 0o77,
        0,
        "for its owner alone"
    );

    let mut newer: Value = serde_json::from_str(&good).unwrap();
    newer["version"] = json!(999);
    let half = &good[..good.len() / 2];
    for (what, content) in
        [("empty", ""), ("cut off", half), ("no state", "[1, 2]"), ("newer", &newer.to_string())]
    {
        fs::write(&file, content).unwrap();
        for (verb, args) in
            [("show", &[][..]), ("set", &["--pids", "5"]), ("freeze", &[]), ("devices ls", &[])]
        {
            let error = sandbox.attempt_json(verb, args).exits(1).error();
            assert_eq!(error["kind"], "state", "{what}, {verb}: {error}");
            if what == "newer" {
                assert!(error["message"].as_str().unwrap().contains("newer"), "{verb}: {error}");
            } else {
                assert_eq!(error["path"], file.to_str().unwrap(), "{what}, {verb}");
            }
        }
        // It is not overwritten by one who takes it for free.
        assert_ne!(sandbox.attempt("create", &[]).code, 0, "{what}");
        assert_eq!(fs::read_to_string(&file).unwrap(), content, "{what}");
    }
    fs::write(&file, &good).unwrap();
    assert!(sandbox.is_idle());
}

#[test]
fn another_process_changes_limits_and_devices() {
    let sandbox = Sandbox::named("restored");
    let pid = sandbox.detached(&["--memory", "64M", "--profile", "none"], "sleep 1000");
    // Every command is another process; these two have the state from the file alone.
    let moved = sandbox.scratch.path().join("elsewhere");
    fs::rename(sandbox.state_dir(), &moved).unwrap();
    let elsewhere = |args: &[&str]| {
        let mut command = support::ringfence();
        command.arg("--state-dir").arg(&moved).args(args);
        finish(command).exits(0)
    };
    elsewhere(&["set", &sandbox.id, "--memory", "128M"]);
    elsewhere(&["devices", "allow", &sandbox.id, "c 1:11 rw"]);
    elsewhere(&["devices", "deny", &sandbox.id, "c 1:5 rwm"]);
    fs::rename(&moved, sandbox.state_dir()).unwrap();

    let file = if is_on_v1("memory") { "memory.limit_in_bytes" } else { "memory.max" };
    assert_eq!(sandbox.file(file).unwrap(), (128 << 20).to_string());
    let done = sandbox.probe("exec", &[], "open /dev/kmsg rw;open /dev/zero r;open /dev/null rw").exits(0);
    let eperm = rustix::io::Errno::PERM.raw_os_error().to_string();
    let refused: Vec<bool> = done.probed().iter().map(|errno| **errno == eperm).collect();
    assert_eq!(refused, [false, true, false]);
    assert!(is_alive(pid));
}

#[test]
fn a_creation_that_was_killed_is_cleared_by_rm_or_gc() {
    for clear in ["rm", "gc"] {
        let sandbox = Sandbox::named(&format!("killed-{clear}"));
        // At some point on its way; not always in the middle, so several times.
        for pause in 0..8_u64 {
            let options = [hold(), &["--memory", "64M", "--pids", "10"]].concat();
            let mut create = sandbox.command("create", &options);
            let child = create.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(pause));
            send(child.id(), rustix::process::Signal::KILL);
            child.wait_with_output().unwrap();
            if clear == "gc" {
                finish(sandbox.ringfence(&["gc", "--apply", "--kill"])).exits(0);
                // A scope that was not started yet has none either.
                if sandbox.directories().is_empty() && !by_systemd() {
                    continue;
                }
                // It came to its end: there is nothing to collect.
                let shown = sandbox.attempt("show", &[]);
                let is_unclear = shown.stdout.contains("state     gone");
                assert!(shown.code == 3 && by_systemd() || is_unclear || sandbox.is_idle(), "{shown:?}");
            }
            let removed = sandbox.attempt("rm", &["--kill"]);
            assert!([0, 3].contains(&removed.code), "{removed:?}");
            // Before there was a record, the identity of the store was made, by which gc finds what has lost its record.
            finish(sandbox.ringfence(&["gc", "--apply"])).exits(0);
            sandbox.is_gone();
        }
    }
}

#[test]
fn a_sandbox_below_processes_does_not_make_their_cgroup_threaded() {
    if mode() != "v2" || by_systemd() {
        return skip("no threaded cgroups on v1, and no scope in another");
    }
    let outer = Sandbox::named("outer");
    outer.detached(&[], "sleep 1000");
    let inner = Sandbox::named("inner");
    let path = format!("/ringfence/{}/{}", outer.id, inner.id);
    let kind = || outer.file("cgroup.type").unwrap();
    for limit in [["--pids", "20"], ["--memory", "64M"], ["--cpus", "0.5"]] {
        let error = inner
            .attempt_json("create", &[&["--allow-nested", "--path", &path], &limit[..]].concat())
            .exits(1)
            .error();
        assert!(error["message"].as_str().unwrap().contains("move them to a leaf"), "{error}");
        assert_eq!(kind(), "domain", "{limit:?}");
        inner.is_gone();
    }
    // Without a limit it needs no controllers: statistics have to do without.
    let done = inner.create(&["--allow-nested", "--path", &path, "-v"]);
    assert!(done.stderr.contains("statistics"), "{}", done.stderr);
    assert_eq!(kind(), "domain");
    inner.does("exec", &["--", "true"]);
    inner.does("rm", &[]);

    // One that is a thread root already takes no sandbox below.
    fs::write(outer.dir("cgroup").join("cgroup.subtree_control"), "+pids").unwrap();
    assert_eq!(kind(), "domain threaded");
    let error = inner.attempt_json("create", &["--allow-nested", "--path", &path]).exits(1).error();
    assert!(error["message"].as_str().unwrap().contains("domain invalid"), "{error}");
    inner.is_gone();
}

#[test]
fn cgroup_of_another_sandbox_is_refused_and_no_record_of_it_stays() {
    let theirs = Sandbox::named("theirs");
    theirs.create(&[]);
    let path = match by_systemd() {
        true => format!("ringfence.slice:ringfence:{}", theirs.id),
        false => theirs.json("show", &[])["path"].as_str().unwrap().to_owned(),
    };
    let ours = Sandbox::named("ours");
    ours.attempt("create", &["--path", &path]).exits(5);
    assert!(!ours.state_dir().exists());
    assert!(theirs.is_idle() && theirs.held() == hold().len() as u64);
}
