//! Ringfence never kills in, moves out of or removes a cgroup that another manager or another store made, and leaves nothing of
//! its own behind.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::soak::times;
use crate::support::{
    Done, Sandbox, binary, by_systemd, directories_named, finish, hierarchies, is_alive, is_on_v1, mode,
    ringfence, skip, until,
};

testbed! {
    drivers: "cgroupfs systemd";
}

/// A second state directory.
struct OtherStore(tempfile::TempDir);

impl OtherStore {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn directory(&self) -> PathBuf {
        self.0.path().join("states")
    }

    /// `ringfence ARGS` on this store.
    fn attempt(&self, args: &[&str]) -> Done {
        let mut command = ringfence();
        command.args(["-o", "json", "--state-dir"]).arg(self.directory()).args(args);
        finish(command)
    }
}

/// A process that is no sandbox's, killed at the end.
struct Foreigner(Child);

impl Foreigner {
    fn start() -> Self {
        Self(Command::new("sleep").arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    /// Goes into a cgroup as other managers' processes do.
    fn joins(&self, directory: &Path) {
        fs::write(directory.join("cgroup.procs"), self.0.id().to_string()).unwrap();
    }

    fn lives(&self) -> bool {
        is_alive(self.0.id())
    }
}

impl Foreigner {
    fn end(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Drop for Foreigner {
    fn drop(&mut self) {
        self.end();
    }
}

/// Makes a directory as another manager does, fit for processes.
fn make(directory: &Path) {
    fs::create_dir(directory).unwrap();
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if directory.join("tasks").exists()
            && let Ok(above) = fs::read(directory.parent().unwrap().join(file))
        {
            fs::write(directory.join(file), above).unwrap();
        }
    }
}

/// Removes the directories, deepest first.
fn remove_all(directories: &[PathBuf]) {
    for directory in directories {
        let below = fs::read_dir(directory).into_iter().flatten().flatten();
        let below: Vec<_> = below.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        remove_all(&below);
        fs::remove_dir(directory).unwrap();
    }
}

/// Directories of another manager in the place of a sandbox's, with a process inside; removed at the end.
struct Taken {
    directories: Vec<PathBuf>,
    foreigner: Foreigner,
}

impl Taken {
    /// In each hierarchy: removes the sandbox behind the command's back, and makes its path anew.
    fn everywhere(sandbox: &Sandbox) -> Self {
        let directories = sandbox.directories();
        remove_all(&directories);
        directories.iter().for_each(|directory| make(directory));
        Self::with(directories)
    }

    /// In one hierarchy.
    fn in_place_of(directory: &Path) -> Self {
        remove_all(std::slice::from_ref(&directory.to_owned()));
        make(directory);
        Self::with(vec![directory.to_owned()])
    }

    fn with(directories: Vec<PathBuf>) -> Self {
        let foreigner = Foreigner::start();
        directories.iter().for_each(|directory| foreigner.joins(directory));
        Self { directories, foreigner }
    }

    fn is_untouched(&self) -> bool {
        self.foreigner.lives() && self.directories.iter().all(|directory| directory.exists())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.foreigner.end();
        let is_removed = |directory: &PathBuf| fs::remove_dir(directory).is_ok() || !directory.exists();
        until("empty", || self.directories.iter().all(is_removed));
    }
}

/// Whether this machine is a guest of the testbed, which is thrown away.
fn is_guest() -> bool {
    std::env::var("RINGFENCE_TESTBED_MODE").is_ok_and(|mode| mode != "host")
}

/// Starts a process in a sandbox that lives on.
fn started_in(sandbox: &Sandbox) -> u32 {
    let script = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!";
    sandbox.does("exec", &["--", "sh", "-c", script]).stdout.trim().parse().unwrap()
}

fn state_file(sandbox: &Sandbox) -> PathBuf {
    sandbox.state_dir().join(format!("{}.json", sandbox.id))
}

fn edit_state(sandbox: &Sandbox, edit: impl FnOnce(&mut Value)) {
    let mut state = serde_json::from_slice(&fs::read(state_file(sandbox)).unwrap()).unwrap();
    edit(&mut state);
    fs::write(state_file(sandbox), state.to_string()).unwrap();
}

/// A path without a parent that the tests beside this one make and remove.
fn alone(sandbox: &Sandbox) -> String {
    format!("/{}", sandbox.directory)
}

/// The path option for a sandbox of this name, for the driver under test.
fn path_of(sandbox: &Sandbox) -> String {
    if by_systemd() {
        format!("ringfence.slice:ringfence:{}", sandbox.id)
    } else {
        format!("/ringfence/{}", sandbox.id)
    }
}

#[test]
fn second_sandbox_for_a_path_is_refused_and_the_first_lives_on() {
    let (first, second, other) =
        (Sandbox::named("own-first"), Sandbox::named("own-second"), OtherStore::new());
    let path = path_of(&first);
    let pid = first.detached(&["--path", &path], "exec sleep 1000");
    let error = second.attempt_json("create", &["--path", &path]).exits(5).error();
    assert_eq!(error["kind"], "already_exists", "{error}");
    let error = other.attempt(&["create", "third", "--path", &path]).exits(5).error();
    assert_eq!(error["kind"], "already_exists", "{error}");
    let run = ["run", "fourth", "--path", &path, "--", "true"];
    other.attempt(&run).exits(125);
    assert!(is_alive(pid));
    assert!(!other.directory().exists() && !state_file(&second).exists());
    first.does("rm", &["--kill"]);
    assert!(!is_alive(pid));
}

#[test]
fn unit_that_has_not_started_belongs_to_one_sandbox() {
    if !by_systemd() {
        return skip("a cgroup of our own is there at once");
    }
    let (first, second, other) =
        (Sandbox::named("own-planned"), Sandbox::named("own-also"), OtherStore::new());
    let path = path_of(&first);
    first.does("create", &["--path", &path]);
    let in_first = |args: &[&str]| finish(first.ringfence(&[&["-o", "json"], args].concat()));
    let error = in_first(&["create", &second.id, "--path", &path]).exits(5).error();
    assert!(error["message"].as_str().unwrap().contains(&first.id), "{error}");
    // Another store cannot know of it; it has what started first.
    other.attempt(&["create", "x", "--path", &path]).exits(0);
    let pid = started_in(&first);
    let refused = other.attempt(&["exec", "x", "--", "true"]);
    assert_eq!(refused.code, 125, "{refused:?}");
    other.attempt(&["rm", "x", "--kill"]).exits(0);
    assert!(is_alive(pid));
    first.does("rm", &["--kill"]);
    // The unit is free again.
    second.does("create", &["--path", &path]);
    second.does("rm", &[]);
}

#[test]
fn what_the_machine_depends_on_is_attached_only_if_that_is_asked_for() {
    let sandbox = Sandbox::named("own-system");
    sandbox.create(&["--profile", "none"]);
    let mut container = Command::new("unshare");
    container.args(["-p", "-f", "--kill-child", "sleep", "1000"]).stdin(Stdio::null()).stdout(Stdio::null());
    let container = Foreigner(container.spawn().unwrap());
    let children = format!("/proc/{0}/task/{0}/children", container.0.id());
    let first = || fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
    until("the container runs", || !first().is_empty());
    let first = first();
    for (pid, what) in [("1", "process 1"), ("2", "kernel thread"), (first.as_str(), "PID namespace")] {
        // Never on the machine that runs the tests: should it not be refused, the machine would suffer.
        if pid != first && !is_guest() {
            continue;
        }
        let before = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let error = sandbox.attempt_json("attach", &[pid]).exits(5).error();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(what) && message.contains("--force"), "{error}");
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap(), before);
    }
    sandbox.does("attach", &["--force", &first]);
    assert!(fs::read_to_string(format!("/proc/{first}/cgroup")).unwrap().contains(&sandbox.directory));
    sandbox.does("rm", &["--kill"]);
}

#[test]
fn thread_of_a_process_outside_is_not_taken_into_a_part() {
    let sandbox = Sandbox::named("own-thread");
    sandbox.create(&["--overhead", "nested", "--profile", "none", "--cpus", "0.5"]);
    if !sandbox.dir("cpu").join("vcpu").exists() {
        return skip("no parts here");
    }
    let outsider = Foreigner::start();
    let tid = outsider.0.id().to_string();
    let done = sandbox.attempt("attach", &["--thread", "--part", "vcpu", &tid]);
    assert_ne!(done.code, 0);
    assert!(done.stderr.contains("attach the process first"), "{}", done.stderr);
    sandbox.does("rm", &["--kill"]);
    assert!(outsider.lives(), "it was killed");
}

#[test]
fn losers_of_a_race_for_a_path_harm_nobody() {
    let stores = [OtherStore::new(), OtherStore::new()];
    for round in 0..times(30) {
        let name = Sandbox::named(&format!("own-race-{round}"));
        let path = path_of(&name);
        let start = |store: &OtherStore, id: &str| {
            let mut command = ringfence();
            command.args(["-q", "--state-dir"]).arg(store.directory());
            command.args([
                "run",
                id,
                "--detach",
                "--profile",
                "none",
                "--path",
                &path,
                "--",
                "sleep",
                "1000",
            ]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let racing: Vec<_> =
            [(0, "a"), (0, "b"), (1, "c")].map(|(store, id)| (store, id, start(&stores[store], id))).into();
        let mut winners = Vec::new();
        for (store, id, child) in racing {
            let output = child.wait_with_output().unwrap();
            match output.status.code() {
                Some(0) => {
                    let pid = String::from_utf8(output.stdout).unwrap().trim().parse::<u32>().unwrap();
                    winners.push((store, id, pid));
                }
                code => {
                    let said = String::from_utf8_lossy(&output.stderr);
                    assert_eq!(code, Some(125), "{said}");
                    assert!(said.contains("already") || said.contains("another process"), "{said}");
                }
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        let (store, id, pid) = winners[0];
        assert!(is_alive(pid), "round {round}: the winner was killed");
        stores[store].attempt(&["rm", id, "--kill"]).exits(0);
        name.is_gone();
    }
    for store in &stores {
        assert!(!store.directory().exists());
    }
}

#[test]
fn cgroup_of_somebody_else_at_our_path_is_gone_for_us() {
    if by_systemd() {
        return skip("systemd alone makes what has the path of a unit");
    }
    for removal in [&["rm", "--kill"][..], &["rm"], &["gc", "--apply", "--kill"]] {
        let sandbox = Sandbox::named("own-exchanged");
        sandbox.create(&["--path", &alone(&sandbox), "--memory", "64M"]);
        let taken = Taken::everywhere(&sandbox);
        assert_eq!(sandbox.json("show", &[])["state"], "gone");
        assert_ne!(sandbox.attempt("exec", &["--", "true"]).code, 0);
        assert_ne!(sandbox.attempt("freeze", &[]).code, 0);
        assert_ne!(sandbox.attempt("set", &["--memory", "32M"]).code, 0);
        if removal[0] == "gc" {
            finish(sandbox.ringfence(removal)).exits(0);
        } else {
            let done = sandbox.attempt("rm", &removal[1..]).exits(0);
            assert!(done.stderr.contains("left alone"), "{}", done.stderr);
        }
        assert!(taken.is_untouched(), "{removal:?} killed or removed what is not ours");
        assert!(!state_file(&sandbox).exists(), "the record stays");
    }
}

#[test]
fn cgroup_of_somebody_else_in_one_hierarchy_is_not_changed() {
    if by_systemd() || mode() == "v2" {
        return skip("systemd makes a unit's cgroups, and v2 has one hierarchy");
    }
    let sandbox = Sandbox::named("own-one");
    let path = alone(&sandbox);
    sandbox.create(&["--path", &path, "--profile", "none", "--pids", "77", "--memory", "64M"]);
    let pids = crate::support::hierarchy_of("pids").point.join(&sandbox.directory);
    let taken = Taken::in_place_of(&pids);
    let before = fs::read_to_string(pids.join("pids.max")).unwrap();
    assert_eq!(sandbox.json("show", &[])["state"], "damaged");
    // What is in the other hierarchies can be changed.
    sandbox.does("set", &["--memory", "32M"]);
    assert_ne!(sandbox.attempt("set", &["--memory", "48M", "--pids", "5"]).code, 0);
    assert_ne!(sandbox.attempt("repair", &[]).code, 0, "it would take a foreign cgroup");
    sandbox.does("rm", &["--kill"]);
    assert!(taken.is_untouched());
    assert_eq!(fs::read_to_string(pids.join("pids.max")).unwrap(), before);
    drop(taken);
    sandbox.is_gone();
}

#[test]
fn interrupted_creation_does_not_claim_what_others_made_at_its_path() {
    if by_systemd() {
        return skip("systemd alone makes what has the path of a unit");
    }
    let sandbox = Sandbox::named("own-interrupted");
    sandbox.create(&["--path", &alone(&sandbox)]);
    edit_state(&sandbox, |state| state["phase"] = "creating".into());
    let taken = Taken::everywhere(&sandbox);
    let found = finish(sandbox.ringfence(&["-o", "json", "gc", "--apply", "--kill"])).exits(0).json();
    assert_eq!(found[0]["action"], "forget", "{found}");
    assert!(taken.is_untouched());
    assert!(!state_file(&sandbox).exists());
}

#[test]
fn creation_that_meets_a_foreign_cgroup_leaves_it_alone() {
    if by_systemd() {
        return skip("systemd alone makes what has the path of a unit");
    }
    let sandbox = Sandbox::named("own-there-already");
    // In the last hierarchy alone, so that the others are made before it is seen.
    let last = hierarchies().last().unwrap().point.join(&sandbox.directory);
    make(&last);
    let taken = Taken::with(vec![last.clone()]);
    sandbox.attempt("create", &["--path", &alone(&sandbox)]).exits(5);
    assert!(taken.is_untouched());
    assert_eq!(
        sandbox.directories(),
        std::slice::from_ref(&last),
        "what was made in the other hierarchies is gone"
    );
    assert!(!state_file(&sandbox).exists());
}

#[test]
fn gc_leaves_what_another_store_of_the_same_path_made() {
    // As in a container with its own /run: the same path of the state directory, in another mount namespace.
    let sandbox = Sandbox::named("own-container");
    let directory = sandbox.state_dir();
    fs::create_dir_all(&directory).unwrap();
    fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let script = format!(
        "mount -t tmpfs tmpfs {directory} && chmod 700 {directory} &&
         exec {} -q --state-dir {directory} run {} --detach --profile none {} -- sleep 1000",
        binary().display(),
        sandbox.id,
        if by_systemd() { "--driver systemd" } else { "--driver cgroupfs" },
        directory = directory.display()
    );
    let mut inside = Command::new("unshare");
    inside.args(["-m", "sh", "-c", &script]).stdin(Stdio::null());
    let pid: u32 = finish(inside).exits(0).stdout.trim().parse().unwrap();
    let found = finish(sandbox.ringfence(&["-o", "json", "gc", "--apply", "--kill"])).exits(0).json();
    assert!(!found.to_string().contains(&sandbox.id), "{found}");
    assert!(is_alive(pid), "gc outside killed what is inside");
    assert!(!sandbox.directories().is_empty());
    // The mount namespace went with its last process that holds it; its record with it.
    crate::support::send(pid, rustix::process::Signal::KILL);
    until("ended", || !is_alive(pid));
    until("removed", || {
        sandbox.directories().iter().for_each(|directory| _ = fs::remove_dir(directory));
        sandbox.directories().is_empty()
    });
    directories_named("ringfence").iter().for_each(|parent| _ = fs::remove_dir(parent));
}

#[test]
fn cgroup_whose_record_was_lost_is_found_by_its_mark() {
    let sandbox = Sandbox::named("own-lost");
    let pid = sandbox.detached(&[], "exec sleep 1000");
    fs::remove_file(state_file(&sandbox)).unwrap();
    let found = finish(sandbox.ringfence(&["-o", "json", "gc", "--apply"])).exits(0).json();
    assert!(!found.to_string().contains(&sandbox.id) && is_alive(pid), "{found}");
    let found = finish(sandbox.ringfence(&["-o", "json", "gc", "--apply", "--kill"])).exits(0).json();
    assert!(found.to_string().contains(&sandbox.id), "{found}");
    assert!(!is_alive(pid));
    sandbox.is_gone();
}

#[test]
fn parent_that_an_operator_prepared_stays_with_its_limits() {
    if by_systemd() {
        return skip("a slice is an operator's by its unit file");
    }
    let sandbox = Sandbox::named("own-parent");
    let parent = format!("{}-pods", sandbox.id);
    let memory = crate::support::hierarchy_of("memory").point.join(&parent);
    fs::create_dir(&memory).unwrap();
    let limit = if is_on_v1("memory") { "memory.limit_in_bytes" } else { "memory.max" };
    if memory.join(limit).exists() {
        fs::write(memory.join(limit), "104857600").unwrap();
    }
    for _ in 0..2 {
        sandbox.does("run", &["--parent", &format!("/{parent}"), "--", "true"]);
        let now = fs::read_to_string(memory.join(limit));
        assert!(now.is_ok_and(|now| now.trim() == "104857600"), "the parent went with its limit");
    }
    finish(sandbox.ringfence(&["gc", "--apply"])).exits(0);
    assert_eq!(directories_named(&parent), std::slice::from_ref(&memory), "what was made on the way is gone");
    fs::remove_dir(&memory).unwrap();
}

#[test]
fn parents_that_were_made_on_the_way_go_with_the_last_sandbox() {
    if by_systemd() {
        return skip("systemd makes and keeps slices");
    }
    let (first, second) = (Sandbox::named("own-way-one"), Sandbox::named("own-way-two"));
    let pod = format!("{}-pod", first.id);
    first.create(&["--path", &format!("{pod}/a/c1")]);
    second.create(&["--path", &format!("{pod}/c2")]);
    first.does("rm", &[]);
    assert_eq!(directories_named("a").len(), 0);
    assert_eq!(directories_named(&pod).len(), hierarchies().len());
    second.does("rm", &[]);
    assert_eq!(directories_named(&pod).len(), 0);
    assert_eq!(directories_named("c1").len() + directories_named("c2").len(), 0);
}

#[test]
fn sandbox_inside_another_takes_permission_and_outlives_an_attempt_to_remove_the_outer() {
    if by_systemd() {
        return skip("units are in slices, not in each other");
    }
    let (outer, inner) = (Sandbox::named("own-outer"), Sandbox::named("own-inner"));
    outer.create(&[]);
    let path = format!("{}/{}", outer.cgroup(), inner.directory);
    let error = inner.attempt_json("create", &["--path", &path]).exits(5).error();
    assert!(error["message"].as_str().unwrap().contains("another sandbox"), "{error}");
    assert!(inner.directories().is_empty() && !state_file(&inner).exists());
    inner.create(&["--allow-nested", "--path", &path]);
    for how in [&[][..], &["--kill"], &["--drain"]] {
        let error = outer.attempt_json("rm", how).exits(5).error();
        assert!(error["message"].as_str().unwrap().contains(&inner.directory), "{error}");
    }
    assert_eq!(inner.directories().len(), hierarchies().len());
    outer.attempt("kill", &[]).exits(5);
    // The other way round: one around a sandbox that is there.
    let around = Sandbox::named("own-around");
    around.attempt("create", &["--path", &outer.cgroup()]).exits(5);
    inner.does("rm", &[]);
    outer.does("rm", &[]);
}

#[test]
fn directory_that_is_missing_in_one_hierarchy_keeps_everything_from_starting_until_repaired() {
    if mode() == "v2" {
        return skip("one hierarchy has all controllers");
    }
    let sandbox = Sandbox::named("own-damaged");
    sandbox.create(&["--profile", "none", "--pids", "77", "--memory", "64M"]);
    let pids = sandbox.dir("pids");
    if fs::remove_dir(&pids).is_err() {
        // What holds the scope is in it.
        let root = hierarchies().into_iter().find(|one| pids.starts_with(&one.point)).unwrap();
        for pid in fs::read_to_string(pids.join("cgroup.procs")).unwrap().lines() {
            fs::write(root.point.join("cgroup.procs"), pid).unwrap();
        }
        fs::remove_dir(&pids).unwrap();
    }
    assert_eq!(sandbox.json("show", &[])["state"], "damaged");
    let list = finish(sandbox.ringfence(&["-o", "json", "ls"])).exits(0).json();
    assert_eq!(list[0]["state"], "damaged");
    let outsider = Foreigner::start();
    for (verb, args) in
        [("exec", vec!["--".into(), "true".into()]), ("attach", vec![outsider.0.id().to_string()])]
    {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let done = sandbox.attempt(verb, &args);
        assert_ne!(done.code, 0, "{done:?}");
        assert!(done.stderr.contains("damaged") && done.stderr.contains("pids"), "{done:?}");
    }
    let before = sandbox.directories();
    sandbox.does("repair", &[]);
    assert_eq!(sandbox.directories().len(), before.len() + 1);
    assert_eq!(fs::read_to_string(pids.join("pids.max")).unwrap().trim(), "77");
    assert_ne!(sandbox.json("show", &[])["state"], "damaged");
    let inside = sandbox.attempt("exec", &["--", "cat", "/proc/self/cgroup"]).exits(0);
    let line = inside.stdout.lines().find(|line| line.contains("pids:")).unwrap().to_owned();
    assert!(line.ends_with(&sandbox.directory), "{line}");
    // Those that were inside are in it again.
    let held = fs::read_to_string(pids.join("cgroup.procs")).unwrap().lines().count() as u64;
    assert_eq!(held, sandbox.held());
    sandbox.does("repair", &[]);
    sandbox.does("rm", &["--kill"]);
    sandbox.is_gone();
}

#[test]
fn part_that_is_missing_keeps_everything_from_starting_until_repaired() {
    let sandbox = Sandbox::named("own-part");
    sandbox.create(&["--overhead", "nested", "--profile", "none", "--cpus", "0.5"]);
    let part = sandbox.dir("cpu").join("vcpu");
    if !part.exists() {
        sandbox.does("rm", &["--kill"]);
        return skip("no parts here");
    }
    fs::remove_dir(&part).unwrap();
    assert_eq!(sandbox.json("show", &[])["state"], "damaged");
    let done = sandbox.attempt("exec", &["--part", "vcpu", "--", "true"]);
    assert_ne!(done.code, 0, "it started without the quota");
    sandbox.does("repair", &[]);
    let quota = if is_on_v1("cpu") { ("cpu.cfs_quota_us", "50000") } else { ("cpu.max", "50000 100000") };
    assert_eq!(fs::read_to_string(part.join(quota.0)).unwrap().trim(), quota.1);
    sandbox.does("exec", &["--part", "vcpu", "--", "true"]);
    sandbox.does("rm", &["--kill"]);
    sandbox.is_gone();
}

#[test]
fn owner_gains_nothing_by_moving_its_processes_out_of_the_parts() {
    let sandbox = Sandbox::named("own-parts");
    let options = ["--owner", "1000:1000", "--overhead", "nested", "--profile", "none"];
    sandbox.create(&[&options[..], &["--cpus", "0.5", "--cpuset-cpus", "0"]].concat());
    let whole = sandbox.dir("cpu");
    if !whole.join("vcpu").exists() {
        sandbox.does("rm", &["--kill"]);
        return skip("no parts here");
    }
    let held = |directory: &Path, v1: &str, v2: &str| {
        let file = if directory.join("tasks").exists() { v1 } else { v2 };
        fs::read_to_string(directory.join(file)).unwrap().trim().to_owned()
    };
    let document = sandbox.scratch.path().join("resources.json");
    // On v1, at no moment a part may have more than the whole.
    for (quota, period) in [
        (50_000, 100_000),
        (20_000, 100_000),
        (80_000, 100_000),
        (90_000, 200_000),
        (60_000, 100_000),
        (40_000, 50_000),
    ] {
        fs::write(&document, format!("{{\"cpu\": {{\"quota\": {quota}, \"period\": {period}}}}}")).unwrap();
        sandbox.does("set", &["--resources", document.to_str().unwrap()]);
        for directory in [whole.clone(), whole.join("vcpu")] {
            let now = held(&directory, "cpu.cfs_quota_us", "cpu.max");
            let expected = [quota.to_string(), format!("{quota} {period}")];
            assert!(expected.contains(&now), "{directory:?}: {now}");
        }
    }
    let cpuset = sandbox.dir("cpuset");
    for directory in [cpuset.clone(), cpuset.join("vcpu")] {
        assert_eq!(held(&directory, "cpuset.cpus", "cpuset.cpus"), "0", "{directory:?}");
    }
    assert_eq!(sandbox.json("diff", &[]), serde_json::json!([]));
    sandbox.does("rm", &["--kill"]);
}

#[test]
fn directory_that_was_renamed_is_removed_with_the_sandbox() {
    let on_v1 = hierarchies().into_iter().find(|one| !one.is_v2 && one.point.ends_with("freezer"));
    let Some(freezer) = on_v1.filter(|_| !by_systemd()) else { return skip("cgroup v2 renames nothing") };
    let sandbox = Sandbox::named("own-renamed");
    let pid = sandbox.detached(&["--profile", "none"], "exec sleep 1000");
    let was = freezer.point.join(sandbox.cgroup().trim_start_matches('/'));
    let is = was.with_file_name(format!("{}-elsewhere", sandbox.directory));
    fs::rename(&was, &is).unwrap();
    assert_eq!(sandbox.json("show", &[])["state"], "damaged");
    sandbox.does("repair", &[]);
    assert!(was.exists() && !is.exists());
    fs::rename(&was, &is).unwrap();
    sandbox.does("rm", &["--kill"]);
    assert!(!is_alive(pid) && !is.exists(), "it stays behind");
    sandbox.is_gone();
}

#[test]
fn interrupted_removal_without_kill_does_not_let_gc_kill() {
    let sandbox = Sandbox::named("own-half-removed");
    let pid = sandbox.detached(&[], "exec sleep 1000");
    edit_state(&sandbox, |state| state["phase"] = "removing".into());
    finish(sandbox.ringfence(&["gc", "--apply", "--kill"])).exits(0);
    assert!(is_alive(pid), "rm would have refused");
    assert_eq!(sandbox.json("show", &[])["state"], "running");
    sandbox.does("rm", &["--kill"]);
    assert!(!is_alive(pid));
}
