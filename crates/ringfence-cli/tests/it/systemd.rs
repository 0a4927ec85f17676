//! Sandboxes as units of systemd: how they start, what becomes of them, and who else has a say. Real systemd, in the testbed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::process::Command;

use crate::support::systemd::{
    LIMITS, create, detached, drained, exec, limits_hold, nothing_is_left, run, skipped, state_of, systemctl,
    unit, units_like, with,
};
use crate::support::{
    self, Sandbox, directories_named, finish, hierarchies, hierarchy_of, is_alive, is_on_v1, send, until,
};

testbed! {
    modes: "systemd";
    gate: "trixie";
    // What this kernel has no file for changes with the modules that other tests load.
    guest: "own";
}

#[test]
fn the_first_instruction_runs_in_every_hierarchy_with_every_limit_in_force() {
    if skipped() {
        return;
    }
    let sandbox = Sandbox::named("first");
    let mut files: Vec<String> = Vec::new();
    for (controller, name) in [
        ("memory", if is_on_v1("memory") { "memory.limit_in_bytes" } else { "memory.max" }),
        ("pids", "pids.max"),
        ("cpuset", "cpuset.cpus"),
        ("cpu", if is_on_v1("cpu") { "cpu.cfs_quota_us" } else { "cpu.max" }),
    ] {
        let point = hierarchy_of(controller).point;
        files.push(format!("{}/ringfence.slice/{}/{name}", point.display(), unit(&sandbox)));
    }
    let script = format!(
        "cat /proc/self/cgroup; cat {}; cat /dev/zero | head -c 1 >/dev/null && echo zero; cat /dev/vda",
        files.join(" ")
    );
    let done = run(&sandbox, &LIMITS, &script);
    let lines: Vec<&str> = done.stdout.lines().collect();
    let (places, values) = lines.split_at(lines.iter().position(|line| !line.contains(':')).unwrap());
    let v2_is_mounted = hierarchies().iter().any(|one| one.is_v2);
    let counted: Vec<_> = places.iter().filter(|line| v2_is_mounted || !line.starts_with("0::")).collect();
    assert_eq!(counted.len(), hierarchies().len(), "{places:?}");
    for place in counted {
        assert!(place.ends_with(&format!(":/ringfence.slice/{}", unit(&sandbox))), "{place}");
    }
    let quota = if is_on_v1("cpu") { "50000" } else { "50000 100000" };
    assert_eq!(values, ["67108864", "50", "0", quota, "zero"]);
    assert!(done.stderr.contains("Operation not permitted"), "a disk was opened: {}", done.stderr);
    nothing_is_left(&sandbox);
}

#[test]
fn a_scope_is_planned_until_its_first_process_and_starts_again_after_its_last() {
    if skipped() {
        return;
    }
    let sandbox = Sandbox::named("planned");
    create(&sandbox, &LIMITS);
    assert_eq!(sandbox.json("show", &[])["state"], "planned");
    assert_eq!(
        (sandbox.json("show", &[])["driver"].as_str(), state_of(&unit(&sandbox)).as_str()),
        (Some("systemd"), "inactive")
    );
    assert_eq!(sandbox.json("ps", &[]), serde_json::json!([]));
    for _ in 0..2 {
        let done = exec(&sandbox, "cat /proc/self/cgroup; sleep 0.1").exits(0);
        assert!(done.stdout.contains(&unit(&sandbox)), "{}", done.stdout);
        until("ended", || state_of(&unit(&sandbox)) == "inactive");
        assert_eq!(sandbox.json("show", &[])["state"], "planned");
    }
    // A change of what is planned is a change of what starts.
    sandbox.does("set", &["--cpus", "0.7"]);
    sandbox.attempt("set", &["--memory", "64M", "--memory-swap", "1M"]).exits(2);
    let pid = detached_exec(&sandbox);
    limits_hold(&sandbox, 70);
    assert_eq!(sandbox.json("diff", &[]), serde_json::json!([]));
    sandbox.attempt("rm", &[]).exits(5);
    sandbox.does("rm", &["--kill"]);
    assert!(!is_alive(pid));
    nothing_is_left(&sandbox);
}

#[test]
fn an_empty_slice_is_the_system_slice_and_a_dash_is_the_root_slice() {
    if skipped() {
        return;
    }
    for (slice, place) in [("", "/system.slice"), ("-", ""), ("-.slice", "")] {
        let sandbox = Sandbox::named("slice");
        let path = format!("{slice}:ringfence:{}", sandbox.id);
        create(&sandbox, &["--memory", "64M", &format!("--path={path}")]);
        let done = exec(&sandbox, "cat /proc/self/cgroup").exits(0);
        let wanted = format!(":{place}/{}", unit(&sandbox));
        assert!(done.stdout.lines().any(|line| line.ends_with(&wanted)), "{path}: {}", done.stdout);
        assert!(directories_named(&path).is_empty(), "{path}: a directory of this name");
        sandbox.does("rm", &["--kill"]);
        nothing_is_left(&sandbox);
    }
}

/// Starts something that stays, by exec, and returns its PID.
fn detached_exec(sandbox: &Sandbox) -> u32 {
    let done = exec(sandbox, "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!").exits(0);
    done.stdout.trim().parse().expect("a PID")
}

#[test]
fn a_process_that_is_attached_starts_the_scope_and_one_that_is_gone_does_not() {
    if skipped() {
        return;
    }
    let sandbox = Sandbox::named("attach");
    create(&sandbox, &LIMITS);
    sandbox.attempt("attach", &["4194303"]).exits(1);
    assert_eq!(state_of(&unit(&sandbox)), "inactive");
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    sandbox.does("attach", &[&child.id().to_string()]);
    let place = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    assert!(place.lines().any(|line| line.ends_with(&unit(&sandbox))), "{place}");
    limits_hold(&sandbox, 50);
    let before = place;
    sandbox.attempt("attach", &["4194303"]).exits(1);
    assert_eq!(fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap(), before);
    sandbox.does("rm", &["--kill"]);
    child.wait().unwrap();
    nothing_is_left(&sandbox);
}

#[test]
fn a_holder_keeps_the_scope_and_goes_with_it() {
    if skipped() {
        return;
    }
    let sandbox = Sandbox::named("hold");
    create(&sandbox, &[&LIMITS[..], &["--hold"]].concat());
    assert_eq!(state_of(&unit(&sandbox)), "active");
    limits_hold(&sandbox, 50);
    exec(&sandbox, "true").exits(0);
    assert_eq!(state_of(&unit(&sandbox)), "active");
    let pid = detached_exec(&sandbox);
    sandbox.attempt("rm", &[]).exits(5);
    send(pid, rustix::process::Signal::KILL);
    until("ended", || !is_alive(pid));
    sandbox.does("rm", &[]);
    nothing_is_left(&sandbox);
}

#[test]
fn where_others_are_drained_the_holder_dies_and_they_live_on() {
    if skipped() {
        return;
    }
    let sandbox = Sandbox::named("held");
    create(&sandbox, &[&LIMITS[..], &["--hold"]].concat());
    let holder: u32 = sandbox.json("ps", &[])[0]["pid"].as_u64().unwrap().try_into().unwrap();
    let pid = detached_exec(&sandbox);
    let outcome = sandbox.json("rm", &["--drain"]);
    assert_eq!(outcome["moved"], serde_json::json!([pid]), "{outcome}");
    assert!(is_alive(pid));
    until("the holder has ended", || !is_alive(holder));
    systemctl(&["kill", "--signal=KILL", &drained(&sandbox)]);
    until("ended", || !is_alive(pid));
    nothing_is_left(&sandbox);
}

#[test]
fn what_the_kernel_refuses_is_an_error_although_systemd_takes_it_and_nothing_changes() {
    if skipped() {
        return;
    }
    let sandbox = Sandbox::named("refused");
    create(&sandbox, &[&LIMITS[..], &["--memory-swap", "96M", "--hold"]].concat());
    let before = sandbox.json("show", &[])["resources"].clone();
    // A CPU that is not there, or not online.
    let done = sandbox.attempt_json("set", &["--cpus", "0.9", "--cpuset-cpus", "0,7"]);
    assert_ne!(done.code, 0);
    assert_eq!(done.error()["setting"], "cpu.cpus", "{}", done.stderr);
    // A disk that is not there.
    let document = sandbox.scratch.path().join("io.json");
    fs::write(
        &document,
        r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 99, "minor": 99, "rate": 1048576}]}}"#,
    )
    .unwrap();
    let done = sandbox.attempt_json("set", &["--cpus", "0.9", "--resources", document.to_str().unwrap()]);
    assert_ne!(done.code, 0);
    assert!(
        done.error()["setting"].as_str().unwrap().starts_with("blockIO.throttleReadBpsDevice"),
        "{}",
        done.stderr
    );
    limits_hold(&sandbox, 50);
    assert_eq!(sandbox.json("show", &[])["resources"], before);
    assert_eq!(sandbox.json("diff", &[]), serde_json::json!([]));
    systemctl(&["daemon-reload"]);
    limits_hold(&sandbox, 50);
    sandbox.does("rm", &[]);
    nothing_is_left(&sandbox);
}

#[track_caller]
fn is_drained(sandbox: &Sandbox, pid: u32) {
    let place = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let scope = format!("/ringfence.slice/{}", drained(sandbox));
    assert!(place.lines().any(|line| line.ends_with(&scope)), "{place}");
    assert_eq!(state_of(&drained(sandbox)), "active");
}

#[test]
fn what_is_drained_lives_on_in_a_scope_beside_it() {
    if skipped() {
        return;
    }
    let sandbox = Sandbox::named("drain");
    let script = "(trap '' TERM; while :; do sleep 1; done) & exec sleep 1000";
    let pid = detached(&sandbox, &LIMITS, script);
    let moved = sandbox.json("rm", &["--drain"])["moved"].as_array().unwrap().len();
    assert!(moved >= 2, "{moved}");
    is_drained(&sandbox, pid);
    assert_eq!(state_of(&unit(&sandbox)), "inactive");
    systemctl(&["kill", "--signal=KILL", &drained(&sandbox)]);
    nothing_is_left(&sandbox);
}

#[test]
fn processes_that_end_while_they_are_drained_take_none_with_them() {
    if skipped() {
        return;
    }
    let sandbox = Sandbox::named("drain-ends");
    // At each moment one of them is about to end.
    let script = "for i in 1 2 3 4; do (trap '' TERM; while :; do sleep 0.05; done) & done; exec sleep 1000";
    for _ in 0..6 {
        let pid = detached(&sandbox, &[], script);
        sandbox.does("rm", &["--drain", "--timeout", "50"]);
        is_drained(&sandbox, pid);
        systemctl(&["kill", "--signal=KILL", &drained(&sandbox)]);
        until("they have ended", || state_of(&drained(&sandbox)) == "inactive");
    }
    nothing_is_left(&sandbox);
}

#[test]
fn whoever_locks_the_directory_above_the_slice_keeps_no_unit_from_starting() {
    if skipped() {
        return;
    }
    let lock = |hierarchy: support::Hierarchy| {
        let directory = fs::File::open(&hierarchy.point).unwrap();
        directory.lock().unwrap();
        directory
    };
    let locks: Vec<_> = hierarchies().into_iter().map(lock).collect();
    let sandbox = Sandbox::named("locked-out");
    run(&sandbox, &LIMITS, "true").exits(0);
    drop(locks);
    nothing_is_left(&sandbox);
}

#[test]
fn a_unit_of_others_is_left_alone_and_one_that_failed_is_in_nobodys_way() {
    if skipped() {
        return;
    }
    let sandbox = Sandbox::named("taken");
    let name = unit(&sandbox);
    let mut theirs = Command::new("systemd-run");
    theirs.args([
        "--scope",
        "--slice=ringfence.slice",
        "--unit",
        &name,
        "-p",
        "MemoryMax=77M",
        "sleep",
        "1000",
    ]);
    let mut theirs =
        theirs.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    until("theirs runs", || state_of(&name) == "active");
    for verb in ["create", "run"] {
        let options = with(&LIMITS);
        let mut options: Vec<_> = options.iter().map(String::as_str).collect();
        if verb == "run" {
            options.extend(["--", "true"]);
        }
        let done = sandbox.attempt_json(verb, &options).exits(if verb == "run" { 125 } else { 5 });
        assert_eq!(done.error()["kind"], "already_exists", "{}", done.stderr);
    }
    assert_eq!(systemctl(&["show", "-P", "MemoryMax", &name]).trim(), (77 << 20).to_string());
    assert!(theirs.try_wait().unwrap().is_none(), "their process was ended");
    systemctl(&["stop", &name]);
    theirs.wait().unwrap();

    let mut fails = Command::new("systemd-run");
    fails.args([
        "--scope",
        "--slice=ringfence.slice",
        "--unit",
        &name,
        "-p",
        "RuntimeMaxSec=1",
        "sleep",
        "1000",
    ]);
    let mut fails =
        fails.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    until("it failed", || state_of(&name) == "failed");
    fails.wait().unwrap();
    run(&sandbox, &LIMITS, "true").exits(0);
    nothing_is_left(&sandbox);
}

#[test]
fn a_slice_carries_limits_and_takes_units_alone() {
    if skipped() {
        return;
    }
    let slice = Sandbox::named("slice");
    let name = format!("{}-a-b.slice", slice.id.replace('-', "_"));
    create(&slice, &[&format!("--path=-.slice::{name}"), "--memory", "128M", "--pids", "100"]);
    assert_eq!(state_of(&name), "active");
    let shown = slice.json("show", &[]);
    let parts: Vec<_> = name.trim_end_matches(".slice").split('-').collect();
    let path = format!("/{0}.slice/{0}-a.slice/{name}", parts[0]);
    assert_eq!((shown["path"].as_str().unwrap(), shown["state"].as_str().unwrap()), (path.as_str(), "empty"));
    let memory = if is_on_v1("memory") { "memory.limit_in_bytes" } else { "memory.max" };
    let dir = hierarchy_of("memory").point.join(path.trim_start_matches('/'));
    assert_eq!(fs::read_to_string(dir.join(memory)).unwrap().trim(), "134217728");
    let done = slice.attempt_json("exec", &["--", "true"]).exits(2);
    assert!(done.error()["message"].as_str().unwrap().contains("scope"), "{}", done.stderr);

    let scope = Sandbox::named("in-slice");
    let done = run(
        &scope,
        &["--path", &format!("{name}:cri:{}", scope.id), "--memory", "32M"],
        "cat /proc/self/cgroup",
    );
    assert!(done.stdout.contains(&format!("{path}/cri-{}.scope", scope.id)), "{}", done.stdout);
    slice.does("set", &["--memory", "256M"]);
    assert_eq!(fs::read_to_string(dir.join(memory)).unwrap().trim(), "268435456");
    slice.does("rm", &[]);
    assert_eq!(state_of(&name), "inactive");
    systemctl(&["stop", &format!("{}.slice", parts[0])]);
    until("gone", || units_like(parts[0]).is_empty());
    nothing_is_left(&scope);
    let top = format!("{}.slice", parts[0]);
    until("no directory on the way", || directories_named(&top).is_empty());
}

#[test]
fn a_path_and_a_driver_that_do_not_fit_are_refused_with_what_is_expected() {
    if skipped() {
        return;
    }
    let sandbox = Sandbox::named("fit");
    for (options, says) in [
        (["--driver", "systemd", "--path", "/a/b"], "slice:prefix:name"),
        (["--driver", "cgroupfs", "--path", "a.slice:b:c"], "takes a path"),
        (["--driver", "systemd", "--parent", "/vc"], "unit of systemd"),
    ] {
        let done = sandbox.attempt_json("create", &options).exits(2);
        assert!(done.error()["message"].as_str().unwrap().contains(says), "{}", done.stderr);
    }
    // Without a path, and without a word about the driver, it is systemd that makes it.
    let mut auto = sandbox.command("create", &["--driver", "auto"]);
    auto.env_remove("RINGFENCE_DRIVER");
    finish(auto).exits(0);
    assert_eq!(sandbox.json("show", &[])["driver"], "systemd");
    sandbox.does("rm", &[]);
}

#[test]
fn what_a_dead_holder_left_is_collected() {
    if skipped() {
        return;
    }
    let sandbox = Sandbox::named("gc");
    let options = with(&LIMITS);
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let mut child = sandbox.start(&options, &["sleep", "1000"]);
    until("inside", || sandbox.attempt("ps", &[]).stdout.contains("sleep"));
    send(child.id(), rustix::process::Signal::KILL);
    child.wait().unwrap();
    let listed =
        |args: &[&str]| finish(sandbox.ringfence(&[&["-o", "json", "gc"], args].concat())).exits(0).json();
    assert_eq!(listed(&[]), serde_json::json!([]), "it still runs");
    let found = listed(&["--apply", "--kill"]);
    assert_eq!((&found[0]["id"], &found[0]["action"]), (&sandbox.id.as_str().into(), &"kill".into()));
    nothing_is_left(&sandbox);

    // The unit is there and its record is lost.
    create(&sandbox, &[&LIMITS[..], &["--hold"]].concat());
    fs::remove_file(sandbox.state_dir().join(format!("{}.json", sandbox.id))).unwrap();
    let found = listed(&["--apply", "--kill"]);
    assert!(found[0]["id"].as_str().unwrap().ends_with(&unit(&sandbox)), "{found}");
    nothing_is_left(&sandbox);
}

#[test]
fn what_this_systemd_or_kernel_has_no_word_for_is_an_error_that_names_it_and_leaves_nothing() {
    if skipped() || is_on_v1("memory") {
        return;
    }
    // memory.zswap.max: a property since systemd 253, a file if the kernel has zswap (Debian's cloud kernel 7.2, not 6.12).
    // io.bfq.weight: a property, but no file until BFQ is loaded. memory.none: neither.
    for (file, value) in [("memory.zswap.max", "1048576"), ("io.bfq.weight", "500"), ("memory.none", "1")] {
        let asked = format!("{file}={value}");
        let sandbox = Sandbox::named("lacks");
        let options = with(&["--memory", "64M", "--unified", &asked, "--", "true"]);
        let done = sandbox.attempt_json("run", &options.iter().map(String::as_str).collect::<Vec<_>>());
        if hierarchy_of("memory").point.join("system.slice").join(file).exists() {
            assert_eq!(file, "memory.zswap.max", "every kernel lacks the others");
            done.exits(0);
            create(&sandbox, &[&LIMITS[..], &["--hold"]].concat());
            sandbox.does("set", &["--unified", &asked]);
            let held = support::systemd::file(&sandbox, "memory", file);
            assert_eq!((held.as_str(), &sandbox.json("diff", &[])), (value, &serde_json::json!([])));
        } else {
            let done = done.exits(125);
            let error = done.error();
            assert_eq!(error["setting"], format!("unified.{file}"), "{error}");
            assert!(error["path"].as_str().unwrap().ends_with(&format!("/{file}")), "{error}");
            nothing_is_left(&sandbox);
            create(&sandbox, &[&LIMITS[..], &["--hold"]].concat());
            let done = sandbox.attempt_json("set", &["--memory", "80M", "--unified", &asked]);
            assert_ne!(done.code, 0);
            assert_eq!(done.error()["setting"], format!("unified.{file}"), "{}", done.stderr);
        }
        limits_hold(&sandbox, 50);
        sandbox.does("rm", &[]);
        nothing_is_left(&sandbox);
    }
}

#[test]
fn a_pids_max_of_0_stays_0_whatever_else_changes() {
    if skipped() || is_on_v1("pids") {
        return;
    }
    let sandbox = Sandbox::named("notask");
    create(&sandbox, &["--hold"]);
    let max = || support::systemd::file(&sandbox, "pids", "pids.max");
    sandbox.does("set", &["--unified", "pids.max=0"]);
    assert_eq!(max(), "0");
    sandbox.does("set", &["--memory", "64M"]);
    assert_eq!(max(), "0", "systemd writes all files with every change");
    assert_eq!(sandbox.json("diff", &[]), serde_json::json!([]));
    sandbox.does("set", &["--pids", "10"]);
    assert_eq!(max(), "10");
    sandbox.does("rm", &[]);
    nothing_is_left(&sandbox);
}

#[test]
fn the_group_that_is_killed_whole_stays_one_whatever_else_changes() {
    if skipped() || is_on_v1("memory") {
        return;
    }
    let sandbox = Sandbox::named("group");
    create(&sandbox, &["--unified", "memory.oom.group=1", "--hold"]);
    let group = || support::systemd::file(&sandbox, "memory", "memory.oom.group");
    assert_eq!(group(), "1");
    sandbox.does("set", &["--memory", "64M"]);
    assert_eq!(group(), "1", "systemd writes all files with every change");
    sandbox.does("rm", &[]);
    // Set later, when systemd has no word for it any more.
    create(&sandbox, &["--hold"]);
    sandbox.does("set", &["--unified", "memory.oom.group=1"]);
    sandbox.does("set", &["--memory", "64M"]);
    assert_eq!(group(), "1");
    assert_eq!(sandbox.json("diff", &[]), serde_json::json!([]));
    sandbox.does("rm", &[]);
    nothing_is_left(&sandbox);
}
