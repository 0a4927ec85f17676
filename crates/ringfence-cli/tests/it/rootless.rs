//! Users without privileges: in a part of the hierarchies that is delegated to them, in one with some controllers only,
//! and where nothing is; and how one is delegated to them by `--owner`.
//!
//! Each script is run by a real user without capabilities, in a cgroup of its own; what came of it is read by root from
//! the kernel's files.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;

use crate::support::place::{ALL, ORDINARY, Place, UID, enable, has_v2, is_v2, make, remove};
use crate::support::{
    Done, Sandbox, directories_named, finish, hierarchies, hierarchy_of, is_alive, is_on_v1, mode, skip,
    until,
};

testbed! {
    guest: "own";
}

#[test]
fn in_a_delegated_subtree_every_command_works_without_privileges() {
    if !has_v2(ALL) {
        return skip("v2 has no controllers here");
    }
    let place = Place::delegated("whole", ALL);
    let below = format!("/{}/ringfence/{}", place.name, place.sandbox.id);
    let done = place.script(
        "ringfence -o json features
         ringfence create $ID --memory 64M --memory-swap 64M --cpus 0.5 --pids 30 --io-weight 200 --unified memory.high=32M",
    );
    let done = done.exits(0);
    assert!(done.stdout.contains(&format!("\"path\": \"{}\"", place.name)), "{}", done.stdout);
    assert!(done.stderr.contains("CAP_SYS_ADMIN"), "{}", done.stderr);
    assert!(!done.stderr.contains("memory") && !done.stderr.contains("cpu"), "{}", done.stderr);
    for (file, value) in [
        ("memory.max", (64 << 20).to_string()),
        ("memory.high", (32 << 20).to_string()),
        ("memory.swap.max", "0".to_owned()),
        ("cpu.max", "50000 100000".to_owned()),
        ("pids.max", "30".to_owned()),
    ] {
        assert_eq!(place.file(file), value, "{file}");
    }

    let done =
        place.script("ringfence exec $ID -- cat /proc/self/cgroup; ringfence set $ID --memory 80M --pids 40");
    let done = done.exits(0);
    assert!(done.stdout.lines().any(|line| line == format!("0::{below}")), "{}", done.stdout);
    assert_eq!((place.file("memory.max"), place.file("pids.max")), ((80 << 20).to_string(), "40".to_owned()));

    // A process of the same user in the same subtree is moved in, frozen, thawed, killed.
    let done = place.script(
        "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!
         ringfence attach $ID $!
         cat /proc/$!/cgroup
         ringfence freeze $ID
         ringfence -o json show $ID | grep '\"state\"'",
    );
    let done = done.exits(0);
    let pid: u32 = done.stdout.lines().next().unwrap().parse().unwrap();
    assert!(done.stdout.contains(&format!("0::{below}")), "{}", done.stdout);
    assert!(done.stdout.contains("frozen"), "{}", done.stdout);
    assert!(place.file("cgroup.events").contains("frozen 1"));
    assert_eq!(place.file("cgroup.procs"), pid.to_string());
    let done = place.script(
        "ringfence thaw $ID
         ringfence ps $ID
         ringfence stats $ID -o json
         ringfence diff $ID
         ringfence explain $ID memory
         ringfence plan $ID --memory 90M
         ringfence kill $ID
         ringfence rm $ID
         ringfence -q create $ID
         rm $XDG_RUNTIME_DIR/ringfence/$ID.json
         ringfence gc --apply
         ringfence run $ID --memory 20M -- cat /proc/self/cgroup",
    );
    let done = done.exits(0);
    // One without a state is known by its mark.
    let found = done.stdout.lines().find(|line| line.contains("without a state"));
    assert!(found.is_some_and(|line| line.starts_with(&below)), "{}", done.stdout);
    assert!(done.stdout.contains("sleep") && done.stdout.contains("\"limit\": 83886080"), "{}", done.stdout);
    assert!(done.stdout.contains(&format!("0::{below}")), "{}", done.stdout);
    assert!(!is_alive(pid));
    place.is_clean();
}

#[test]
fn what_the_user_was_not_given_is_reported_and_strict_refuses_before_anything_is_done() {
    if !has_v2(ALL) {
        return skip("v2 has no controllers here");
    }
    // What another test has enabled at the root shows at the first level: delegated is the second.
    let mut place = Place::named("part");
    let outer = place.v2().to_owned();
    enable(outer.parent().unwrap(), ALL);
    enable(&outer, &["cpu", "pids"]);
    let inner = outer.join("inner");
    make(&inner);
    for file in [".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
        chown(inner.join(file), Some(UID), Some(UID)).unwrap();
    }
    make(&inner.join("leaf"));
    place.dirs = vec![inner.clone()];

    let wanted = "--memory 64M --cpus 0.5 --pids 30 --unified memory.high=32M";
    let done = place.script(&format!("ringfence --strict create $ID {wanted} --device-deny 'a *:* rwm'"));
    let done = done.exits(1);
    assert!(
        done.stderr.contains("not delegated") || done.stderr.contains("CAP_SYS_ADMIN"),
        "{}",
        done.stderr
    );
    place.is_clean();

    let done = place.script(&format!("ringfence -o json create $ID {wanted}")).exits(0);
    let shown = done.json();
    for setting in ["memory.limit", "unified.memory.high"] {
        let lines = shown["report"].as_array().unwrap();
        let line = lines.iter().find(|line| line["setting"] == setting);
        let line = line.unwrap_or_else(|| panic!("no {setting} in {lines:?}"));
        assert_eq!(line["why"], "the memory controller is not delegated to this user");
    }
    assert_eq!((place.file("cpu.max"), place.file("pids.max")), ("50000 100000".to_owned(), "30".to_owned()));
    assert!(!inner.join("ringfence").join(&place.sandbox.id).join("memory.max").exists());

    // The same for a change, which strict refuses whole.
    let done = place.script("ringfence --strict set $ID --memory 10M --pids 7").exits(1);
    assert!(done.stderr.contains("memory controller is not delegated"), "{}", done.stderr);
    assert_eq!(place.file("pids.max"), "30");
    let done =
        place.script("ringfence set $ID --memory 10M --pids 7; ringfence explain $ID memory.max").exits(0);
    assert!(done.stderr.contains("memory controller is not delegated"), "{}", done.stderr);
    assert_eq!(place.file("pids.max"), "7");
    place.script("ringfence rm $ID").exits(0);
    place.is_clean();
    remove(&outer);
}

#[test]
fn where_the_delegated_cgroup_itself_holds_processes_the_error_names_the_remedy_which_works() {
    if !has_v2(ALL) {
        return skip("v2 has no controllers here");
    }
    let place = Place::delegated("busy", ALL);
    let done = place.script_in("", ORDINARY, "ringfence create $ID --memory 64M --pids 9").exits(1);
    assert!(done.stderr.contains("processes are in this cgroup"), "{}", done.stderr);
    assert!(done.stderr.contains("--evacuate"), "{}", done.stderr);
    place.is_clean();
    assert_eq!(fs::read_to_string(place.v2().join("cgroup.subtree_control")).unwrap().trim(), "");

    let text = "ringfence create $ID --memory 64M --pids 9 --evacuate
                cat /proc/self/cgroup
                ringfence exec $ID -- cat /proc/self/cgroup";
    let done = place.script_in("", ORDINARY, text).exits(0);
    let line = |below: &str| format!("0::/{}/{below}", place.name);
    assert!(done.stdout.lines().any(|said| said == line("evacuated")), "{}", done.stdout);
    let inside = line(&format!("ringfence/{}", place.sandbox.id));
    assert!(done.stdout.lines().any(|said| said == inside), "{}", done.stdout);
    assert_eq!(place.file("memory.max"), (64 << 20).to_string());
    place.script("ringfence rm $ID").exits(0);
    place.is_clean();
}

#[test]
fn where_some_hierarchies_are_delegated_the_others_are_left_alone() {
    if !is_on_v1("memory") {
        return skip("there is one hierarchy here");
    }
    let given = ["memory", "pids"].map(|name| hierarchy_of(name).point);
    let place = Place::delegated_where("some", &[], |point| given.iter().any(|given| given == point));
    let done = place.script(
        "ringfence -q create $ID --memory 64M --pids 9 --cpus 0.5
         ringfence exec $ID -- cat /proc/self/cgroup
         ringfence -o json show $ID",
    );
    let done = done.exits(0);
    let dir = format!("{}/ringfence/{}", place.name, place.sandbox.id);
    let read = |place: usize, file: &str| fs::read_to_string(given[place].join(&dir).join(file)).unwrap();
    assert_eq!((read(0, "memory.limit_in_bytes"), read(1, "pids.max")), ("67108864\n".into(), "9\n".into()));
    let inside: Vec<_> = done.stdout.lines().filter(|line| line.ends_with(&format!(":/{dir}"))).collect();
    assert_eq!(inside.len(), 2, "{}", done.stdout);
    assert_eq!(directories_named(&place.sandbox.id).len(), 2);
    for why in ["the cpu controller is not delegated to this user", "the devices controller is not delegated"]
    {
        assert!(done.stdout.contains(why), "{}", done.stdout);
    }
    // What runs inside is found and killed without a freezer.
    let text =
        "ringfence -q run $ID-2 --detach --pids 5 -- sleep 1000; ringfence rm $ID-2 --kill; ringfence rm $ID";
    let pid = place.script(text).exits(0).stdout.trim().parse().unwrap();
    assert!(!is_alive(pid));
    place.is_clean();
}

#[test]
fn what_the_user_manager_of_systemd_was_given_serves_as_well() {
    if mode() != "v2" || !Path::new("/run/user/1000/bus").exists() {
        return skip("there is no user manager with cgroup v2");
    }
    let place = Place::named("manager");
    let text = "export XDG_RUNTIME_DIR=/run/user/1000
                exec systemd-run --user --pipe --wait --quiet --setenv=PATH=\"$PATH\" --setenv=ID=$ID \\
                    sh -euc 'ringfence -q create $ID --memory 64M --driver cgroupfs
                             cat /sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/ringfence/$ID/memory.max
                             ringfence exec $ID -- cat /proc/self/cgroup
                             ringfence rm $ID'";
    let done = place.script_in("", ORDINARY, text).exits(0);
    let own = format!("0::/user.slice/user-1000.slice/user@1000.service/ringfence/{}", place.sandbox.id);
    assert_eq!(done.stdout.lines().collect::<Vec<_>>(), ["67108864", &own]);
    place.is_clean();
}

#[test]
fn without_anything_delegated_a_command_runs_where_its_caller_is_and_the_report_says_what_is_missing() {
    let place = Place::named("none");
    let done =
        place.script_in("", ORDINARY, "ringfence run $ID --memory 64M --pids 9 -- cat /proc/self/cgroup");
    let done = done.exits(0);
    // In every hierarchy in the caller's own.
    let own = done.stdout.lines().filter(|line| line.ends_with(&format!(":/{}", place.name))).count();
    assert_eq!(own, hierarchies().len(), "{}", done.stdout);
    for missing in ["cgroup", "memory.limit = 67108864", "pids.limit = 9", "devices"] {
        let line = done.stderr.lines().find(|line| line.contains(missing));
        let line = line.unwrap_or_else(|| panic!("nothing about {missing} in {}", done.stderr));
        assert!(line.contains("no cgroup is delegated to this user"), "{line}");
    }
    place.is_clean();

    let done = place.script_in("", ORDINARY, "ringfence --strict create $ID --memory 64M").exits(1);
    assert!(done.stderr.contains("no cgroup is delegated"), "{}", done.stderr);
    let done = place.script_in("", ORDINARY, "ringfence --strict run $ID -- touch ran").exits(125);
    assert!(done.stderr.contains("no cgroup is delegated"), "{}", done.stderr);
    assert!(!place.runtime().join("ran").exists());
    place.is_clean();
}

#[test]
fn of_a_sandbox_without_a_cgroup_is_told_what_is_true_and_what_was_started_can_be_killed() {
    let place = Place::named("started");
    let script = |text: &str| place.script_in("", ORDINARY, text);
    let bystander = "sleep 999 </dev/null >/dev/null 2>&1 & echo $!";
    let bystander: u32 = script(bystander).exits(0).stdout.trim().parse().unwrap();
    let pid: u32 =
        script("ringfence -q run $ID --detach -- sleep 1000").exits(0).stdout.trim().parse().unwrap();

    let shown = script("ringfence -o json show $ID").exits(0).json();
    assert_eq!((&shown["state"], &shown["paths"]), (&"running".into(), &serde_json::json!({})), "{shown}");
    assert!(shown["path"].is_null(), "{shown}");
    assert_eq!(shown["holder"]["pid"], pid);
    let processes = script("ringfence -o json ps $ID").exits(0).json();
    assert_eq!((processes.as_array().unwrap().len(), &processes[0]["pid"]), (1, &pid.into()), "{processes}");
    let sample = script("ringfence -o json stats $ID").exits(0).json();
    assert!(sample[0]["memory"]["current"].is_null(), "{sample}");
    let done = script("ringfence set $ID --pids 7; ringfence diff $ID").exits(0);
    assert!(done.stderr.contains("pids.limit = 7: no cgroup is delegated"), "{}", done.stderr);
    for verb in ["freeze $ID", "thaw $ID", "attach $ID $$", "explain $ID memory"] {
        let done = script(&format!("ringfence {verb}")).exits(1);
        assert!(done.stderr.contains("no cgroup is delegated"), "{verb}: {}", done.stderr);
    }
    script("ringfence rm $ID").exits(5);
    script("ringfence exec $ID -- true").exits(0);
    assert_eq!(script("ringfence gc --apply --kill -o json").exits(0).json(), serde_json::json!([]));
    assert!(is_alive(pid));

    script("ringfence kill $ID").exits(0);
    assert!(!is_alive(pid) && is_alive(bystander));
    // Its holder is dead now.
    let found = script("ringfence gc --apply -o json").exits(0).json();
    assert_eq!((&found[0]["id"], &found[0]["action"]), (&place.sandbox.id.as_str().into(), &"remove".into()));
    place.is_clean();

    let pid: u32 =
        script("ringfence -q run $ID --detach -- sleep 1000").exits(0).stdout.trim().parse().unwrap();
    script("ringfence rm $ID --kill").exits(0);
    assert!(!is_alive(pid) && is_alive(bystander));
    let pid: u32 =
        script("ringfence -q run $ID --detach -- sleep 1000").exits(0).stdout.trim().parse().unwrap();
    script("ringfence rm $ID --drain").exits(0);
    assert!(is_alive(pid) && is_alive(bystander));
    place.is_clean();
    // A command in the foreground, and what `exec` started beside it, are known too.
    let text = "ringfence -q run $ID -- sleep 998 & sleep 0.1
                until ringfence -o json ps $ID 2>/dev/null | grep -q sleep; do sleep 0.1; done
                ringfence rm $ID --kill; wait $! || echo ended with $?";
    let done = script(text).exits(0);
    assert!(done.stdout.contains("ended with 137"), "{} {}", done.stdout, done.stderr);
    place.is_clean();
}

#[test]
fn an_absolute_path_that_cannot_be_made_is_an_error_that_says_why() {
    let place = Place::named("absolute");
    let text = "ringfence -o json create $ID --path /$ID --pids 9";
    let error = place.script_in("", ORDINARY, text).exits(1).error();
    assert_eq!(error["errno"], 13, "{error}");
    let (message, path) = (error["message"].as_str().unwrap(), error["path"].as_str().unwrap());
    assert!(message.contains("delegated"), "{error}");
    assert!(path.starts_with("/sys/fs/cgroup"), "{error}");
    place.is_clean();
}

#[test]
fn a_caller_outside_of_what_is_delegated_to_it_is_told_the_rule() {
    if !has_v2(ALL) {
        return skip("v2 has no controllers here");
    }
    let place = Place::delegated("inside", ALL);
    let outside = Place::named("outside");
    let state = place.runtime().join("ringfence");
    let out = |text: &str| {
        let text = format!("export RINGFENCE_STATE_DIR={} ID={}\n{text}", state.display(), place.sandbox.id);
        outside.script_in("", ORDINARY, &text)
    };
    place.script("ringfence create $ID --pids 9").exits(0);
    // Files are its own to write, from wherever it is.
    out("ringfence set $ID --pids 8 --memory 64M").exits(0);
    assert_eq!((place.file("pids.max"), place.file("memory.max")), ("8".to_owned(), (64 << 20).to_string()));
    for (verb, code) in [("exec $ID -- touch ran", 125), ("attach $ID $$", 1)] {
        let error = out(&format!("ringfence -o json {verb}")).exits(code).error();
        assert_eq!(error["errno"], 13, "{verb}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("delegated subtree") && message.contains("common ancestor"), "{error}");
    }
    assert!(!outside.runtime().join("ran").exists());
    assert_eq!(place.file("cgroup.procs"), "");
    place.script("ringfence rm $ID").exits(0);
    place.is_clean();
}

#[test]
fn a_device_filter_takes_two_capabilities_and_not_to_be_root() {
    if mode() != "v2" {
        return skip("devices are on v1 here");
    }
    let place = Place::delegated("filter", ALL);
    let text = "ringfence run $ID --device-deny /dev/full:rwm -- sh -c '
                    : </dev/zero && echo zero is open
                    (: </dev/full) 2>&1 || true'";
    let with = |caps: &[&str]| place.script_in("leaf", &[ORDINARY, caps].concat(), text).exits(0);
    let refused = |done: &Done| done.stdout.contains("not permitted");

    let done = with(&[]);
    assert!(
        !refused(&done) && done.stderr.contains("CAP_BPF and CAP_NET_ADMIN"),
        "{} {}",
        done.stdout,
        done.stderr
    );
    let both = ["--inh-caps", "+bpf,+net_admin", "--ambient-caps", "+bpf,+net_admin"];
    let done = with(&both);
    assert!(refused(&done) && done.stdout.contains("zero is open"), "{} {}", done.stdout, done.stderr);
    assert!(!done.stderr.contains("device filter needs"), "{}", done.stderr);

    // Another process with these two cannot take the place of the first filter: it can close, but not open.
    let text = "ringfence -q create $ID --device-deny /dev/full:rwm
                ringfence devices allow $ID /dev/full:rwm
                ringfence exec $ID -- sh -c '(: </dev/full) 2>&1 || true'
                ringfence rm $ID";
    let done = place.script_in("leaf", &[ORDINARY, &both].concat(), text).exits(0);
    assert!(
        refused(&done) && done.stderr.contains("without CAP_SYS_ADMIN"),
        "{} {}",
        done.stdout,
        done.stderr
    );

    let strict = "ringfence --strict create $ID";
    let done = place.script(strict).exits(1);
    assert!(done.stderr.contains("CAP_BPF"), "{}", done.stderr);
    place.is_clean();
}

/// The files of a directory that belong to the user, and whether the directory does.
fn owned(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let mine =
        entries.filter(|entry| entry.metadata().is_ok_and(|file| (file.uid(), file.gid()) == (UID, UID)));
    let mut names: Vec<_> = mine.map(|entry| entry.file_name().into_string().unwrap()).collect();
    if fs::metadata(dir).unwrap().uid() == UID {
        names.push(".".to_owned());
    }
    names.sort();
    names
}

#[test]
fn a_new_cgroup_is_given_to_its_owner_and_its_limits_are_not() {
    let sandbox = Sandbox::named("given");
    sandbox.create(&["--memory", "64M", "--pids", "30", "--owner", "1000:1000"]);
    let dirs = directories_named(&sandbox.id);
    assert_eq!(dirs.len(), hierarchies().len());
    for dir in dirs {
        let expected: Vec<String> = if is_v2(&dir) {
            let listed = fs::read_to_string("/sys/kernel/cgroup/delegate").unwrap();
            let mut names: Vec<_> =
                listed.lines().filter(|name| dir.join(name).exists()).map(str::to_owned).collect();
            names.push(".".to_owned());
            names.sort();
            names
        } else {
            [".", "cgroup.procs", "tasks"].map(str::to_owned).to_vec()
        };
        assert_eq!(owned(&dir), expected, "{}", dir.display());
    }
    sandbox.does("rm", &[]);
    sandbox.is_gone();

    let plan = sandbox.json("plan", &["--host", "v2", "--owner", "7:8"]);
    let last = plan["steps"].as_array().unwrap().last().unwrap();
    let dir = format!("/sys/fs/cgroup/ringfence/{}", sandbox.id);
    assert_eq!(
        *last,
        serde_json::json!({"op": "delegate", "setting": "owner", "path": dir, "uid": 7, "gid": 8})
    );
}

#[test]
fn an_owner_is_numbers_or_names_and_anything_else_is_an_error() {
    let sandbox = Sandbox::named("owner");
    let plan = |owner: &str| sandbox.attempt_json("plan", &["--host", "v2", "--owner", owner]);
    let given = |owner: &str| {
        let plan = plan(owner).exits(0).json();
        let step = plan["steps"].as_array().unwrap().last().unwrap().clone();
        (step["uid"].as_u64().unwrap(), step["gid"].as_u64().unwrap())
    };
    assert_eq!(given("12:34"), (12, 34));
    assert_eq!(given("root:34"), (0, 34));
    assert_eq!(given("root:root"), (0, 0));
    assert_eq!(given("0"), (0, 0));
    for bad in ["", ":", "no-such-user", "root:no-such-group", "1:2:3", "4294967295:0", "4000000000"] {
        let error = plan(bad).exits(2).error();
        assert_eq!((&error["setting"], &error["value"]), (&"owner".into(), &bad.into()), "{error}");
    }
}

#[test]
fn the_owner_of_a_sandbox_makes_others_inside_without_privileges() {
    let place = Place::named("owner");
    let outer = &place.sandbox;
    outer.create(&["--memory", "128M", "--pids", "50", "--owner", "1000:1000"]);
    let mut command = outer.command("exec", &["--", "setpriv"]);
    let text = "ringfence -q create inner --memory 32M --pids 10 --evacuate
                ringfence -q run second --pids 11 -- cat /proc/self/cgroup
                ringfence exec inner -- cat /proc/self/cgroup";
    let path = format!("{}:{}", outer.scratch.path().display(), std::env::var("PATH").unwrap());
    command.args(ORDINARY).args(["sh", "-euc", text]);
    command.env("PATH", path).env("XDG_RUNTIME_DIR", place.runtime()).current_dir(place.runtime());
    let done = finish(command).exits(0);
    let below = format!(":/ringfence/{}/ringfence/", outer.id);
    for name in ["inner", "second"] {
        let inside = done.stdout.lines().filter(|line| line.ends_with(&format!("{below}{name}"))).count();
        assert_eq!(inside, hierarchies().len(), "{}", done.stdout);
    }
    let value = |controller: &str, file: &str| {
        let dir = outer.dir(controller).join("ringfence/inner");
        fs::read_to_string(dir.join(file)).unwrap().trim().to_owned()
    };
    let memory = if is_on_v1("memory") { "memory.limit_in_bytes" } else { "memory.max" };
    assert_eq!(
        (value("memory", memory), value("pids", "pids.max")),
        ((32 << 20).to_string(), "10".to_owned())
    );
    // The limits that root gave are not the owner's to change.
    let done = place.script_in("", ORDINARY, &format!("echo 60 > {}/pids.max", outer.dir("pids").display()));
    assert_ne!(done.code, 0);
    assert_eq!(outer.file("pids.max").unwrap(), "50");
    until("removed with all that is inside", || outer.attempt("rm", &["--kill"]).code == 0);
    outer.is_gone();
    fs::remove_dir_all(place.runtime().join("ringfence")).unwrap();
}

#[test]
fn however_deep_an_owner_nests_its_cgroups_all_of_it_is_found_and_removed() {
    let sandbox = Sandbox::named("deep");
    sandbox.create(&["--owner", "1000:1000"]);
    // Longer than any path can be, and deeper than descriptors may be open.
    let name = "d".repeat(200);
    let has_v2 = hierarchies().iter().any(|hierarchy| hierarchy.is_v2);
    let mut here = fs::File::open(sandbox.dir(if has_v2 { "cgroup" } else { "pids" })).unwrap();
    for _ in 0..100 {
        rustix::fs::mkdirat(&here, &name, rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        here = rustix::fs::openat(&here, &name, flags, rustix::fs::Mode::empty()).unwrap().into();
    }
    let mut sleep = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let flags = rustix::fs::OFlags::WRONLY;
    let procs = rustix::fs::openat(&here, "cgroup.procs", flags, rustix::fs::Mode::empty()).unwrap();
    rustix::io::write(procs, sleep.id().to_string().as_bytes()).unwrap();

    let limited = |verb: &str, args: &[&str]| {
        let mut command = std::process::Command::new("prlimit");
        let plain = sandbox.command(verb, args);
        command.arg("--nofile=64").arg(plain.get_program()).args(plain.get_args());
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        finish(command)
    };
    let listed = limited("ps", &[]).exits(0).stdout;
    assert!(listed.contains(&format!("{} ", sleep.id())), "{listed}");
    limited("rm", &[]).exits(5);
    limited("rm", &["--kill"]).exits(0);
    sleep.wait().unwrap();
    sandbox.is_gone();
}

#[test]
fn a_user_cannot_give_a_cgroup_away_and_is_told_so() {
    let place = Place::delegated("away", &[]);
    let text = "ringfence create $ID --owner 1001:1001";
    let done = place.script(text).exits(0);
    let told = done.stderr.lines().filter(|line| line.contains("owner = 1001:1001")).count();
    assert!(told == 1 && done.stderr.contains("CAP_CHOWN"), "{}", done.stderr);
    place.script("ringfence rm $ID").exits(0);
    let done = place.script(&format!("{text} --strict")).exits(1);
    assert!(done.stderr.contains("CAP"), "{}", done.stderr);
    place.is_clean();
}

#[test]
fn the_states_of_a_user_are_in_its_runtime_directory_and_nobody_elses_to_read() {
    let place = Place::named("state");
    place.script_in("", ORDINARY, "umask 0; ringfence -q create $ID").exits(0);
    let state = fs::metadata(place.runtime().join("ringfence")).unwrap();
    assert_eq!((state.mode() & 0o7777, state.uid()), (0o700, UID));
    let file =
        fs::metadata(place.runtime().join("ringfence").join(format!("{}.json", place.sandbox.id))).unwrap();
    assert_eq!(file.mode() & 0o7777, 0o600);
    place.script_in("", ORDINARY, "ringfence rm $ID").exits(0);

    let text = "XDG_RUNTIME_DIR=/proc/none ringfence -o json create $ID";
    let error = place.script_in("", ORDINARY, text).exits(1).error();
    assert_eq!(
        (&error["kind"], &error["path"]),
        (&"state".into(), &"/proc/none/ringfence".into()),
        "{error}"
    );
    let text = "XDG_RUNTIME_DIR=/ ringfence -o json create $ID";
    let error = place.script_in("", ORDINARY, text).exits(1).error();
    assert_eq!((&error["errno"], &error["path"]), (&13.into(), &"/ringfence".into()), "{error}");
    assert!(error["message"].as_str().unwrap().contains("--state-dir"), "{error}");
    place.is_clean();
}
