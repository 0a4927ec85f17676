//! From create to rm: what runs inside, who ends it, and that nothing remains.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{
    self, Sandbox, by_systemd, directories_named, driver, finish, hierarchies, hold, is_alive, send,
    units_named, until, wait,
};
use rustix::process::Signal;
use serde_json::Value;

testbed! {
    drivers: "cgroupfs systemd";
}

/// Signals that end a process become 128 and their number.
const TERMINATED: i32 = 128 + 15;
const KILLED: i32 = 128 + 9;

/// A process of our own outside any sandbox, killed at the end.
struct Outsider(Child);

impl Outsider {
    fn start() -> Self {
        Self(Command::new("sleep").arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Kills what a test left to itself on purpose.
struct Reaped(u32);

impl Drop for Reaped {
    fn drop(&mut self) {
        send(self.0, Signal::KILL);
        until("ended", || !is_alive(self.0));
    }
}

/// Where a process is, in each mounted hierarchy that the kernel lists.
fn places(pid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let v2_is_mounted = hierarchies().iter().any(|one| one.is_v2);
    let listed = text.lines().filter(|line| v2_is_mounted || !line.starts_with("0::"));
    listed.map(|line| line.splitn(3, ':').nth(2).unwrap().to_owned()).collect()
}

fn state_of(sandbox: &Sandbox) -> Value {
    sandbox.json("show", &[])["state"].clone()
}

#[test]
fn a_sandbox_is_created_listed_shown_and_removed() {
    let sandbox = Sandbox::named("life");
    sandbox.create(&["--memory", "64M"]);
    assert_eq!(sandbox.directories().len(), hierarchies().len(), "a directory in every hierarchy");
    let state = if by_systemd() { "running" } else { "empty" };

    let list = finish(sandbox.ringfence(&["-o", "json", "ls"])).exits(0).json();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(
        (&list[0]["id"], &list[0]["state"], &list[0]["pids"]),
        (&sandbox.id.as_str().into(), &state.into(), &sandbox.held().into())
    );

    let shown = sandbox.json("show", &[]);
    assert_eq!(shown["id"], sandbox.id.as_str());
    assert_eq!(shown["driver"], driver());
    assert_eq!(shown["host"]["mode"], support::mode());
    assert_eq!(shown["state"], state);
    assert_eq!(shown["resources"]["memory"]["limit"], 64 << 20);
    assert_eq!(shown["devices"]["default"], "deny");
    for (controller, path) in shown["paths"].as_object().unwrap() {
        assert!(fs::exists(path.as_str().unwrap()).unwrap(), "{controller}: {path}");
    }

    sandbox.does("rm", &[]);
    sandbox.is_gone();
    assert_eq!(finish(sandbox.ringfence(&["-o", "json", "ls"])).exits(0).json(), Value::Array(Vec::new()));
}

#[test]
fn run_ends_with_the_status_of_its_command() {
    let sandbox = Sandbox::named("status");
    let not_a_program = sandbox.scratch.path().join("text");
    fs::write(&not_a_program, "no program").unwrap();
    let not_a_program = not_a_program.to_str().unwrap();
    for (program, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "kill -TERM $$"], TERMINATED),
        (&["sh", "-c", "kill -KILL $$"], KILLED),
        (&["/does/not/exist"], 127),
        (&["does-not-exist-in-any-path"], 127),
        (&[not_a_program], 126),
        (&["/"], 126),
    ] {
        let done = sandbox.run(&["--profile", "none"], program).exits(code);
        assert_eq!(done.stderr.is_empty(), code != 126 && code != 127, "{program:?}: {}", done.stderr);
        sandbox.is_gone();
    }
    sandbox.create(&[]);
    sandbox.run(&[], &["true"]).exits(125);
    assert!(sandbox.is_idle(), "the other sandbox of this name is left alone");
    sandbox.attempt("exec", &["--", "sh", "-c", "exit 9"]).exits(9);
    sandbox.attempt("exec", &["--", "/does/not/exist"]).exits(127);
    Sandbox::named("nobody").attempt("exec", &["--", "true"]).exits(125);
}

#[test]
fn input_and_output_of_the_command_pass_through() {
    let sandbox = Sandbox::named("stdio");
    let mut child =
        sandbox.start(&["--profile", "none"], &["sh", "-c", "cat; echo aside >&2; pwd; echo $RF_T_WORD"]);
    let text = "line\n".repeat(20_000);
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let done = wait(child, "run cat".to_owned()).exits(0);
    let here = std::env::current_dir().unwrap();
    assert_eq!(done.stdout, format!("{text}{}\n\n", here.display()));
    assert_eq!(done.stderr, "aside\n");
}

#[test]
fn signals_are_passed_on_to_the_command() {
    let sandbox = Sandbox::named("signals");
    for (signal, name, code) in
        [(Signal::TERM, "TERM", 3), (Signal::INT, "INT", 4), (Signal::USR1, "USR1", 5)]
    {
        // Where the tests were started in the background, SIGINT is ignored, and a shell cannot trap what it found ignored.
        let script =
            format!("trap 'echo got {name}; exit {code}' {name}; echo ready; while :; do sleep 0.05; done");
        let mut child = sandbox.start(&[], &["env", "--default-signal=INT", "sh", "-c", &script]);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        assert!(send(child.id(), signal));
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        wait(child, format!("run with {name}")).exits(code);
        assert_eq!(rest, format!("got {name}\n"));
        sandbox.is_gone();
    }
}

#[test]
fn what_remains_when_the_command_ends_is_killed() {
    let sandbox = Sandbox::named("remains");
    let script = "for i in 1 2 3; do (setsid sleep 1000 & echo $!; (trap '' TERM; sleep 1000) & echo $!) ; done; exit 5";
    let done = sandbox.run(&[], &["sh", "-c", script]).exits(5);
    let pids: Vec<u32> = done.stdout.lines().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 6);
    until("all ended", || pids.iter().all(|pid| !is_alive(*pid)));
    sandbox.is_gone();
}

#[test]
fn a_storm_of_forks_does_not_outrun_the_end() {
    let sandbox = Sandbox::named("storm");
    let script = "storm() { storm & storm & }; storm; sleep 0.2";
    let done = sandbox.run(&["--pids", "60"], &["sh", "-c", &format!("{{ {script}; }} 2>/dev/null")]);
    // The storm may leave the shell no room for its last fork.
    assert!([0, 2].contains(&done.code), "{done:?}");
    sandbox.is_gone();

    sandbox.detached(&["--pids", "60"], "storm() { storm & storm & }; while :; do storm; done");
    sandbox.does("rm", &["--kill"]);
    sandbox.is_gone();
}

#[test]
fn a_kept_sandbox_outlives_its_command_and_so_does_what_runs_inside() {
    let sandbox = Sandbox::named("kept");
    sandbox
        .run(&["--keep", "--memory", "64M"], &["sh", "-c", "sleep 1000 >/dev/null 2>&1 & exit 3"])
        .exits(3);
    let shown = sandbox.json("show", &[]);
    assert_eq!(shown["state"], "running");
    assert_eq!(shown["resources"]["memory"]["limit"], 64 << 20);
    assert!(shown["holder"].is_null(), "after an orderly end nobody answers for it: {shown}");
    sandbox.does("kill", &[]);
    until("empty", || sandbox.is_idle());
    sandbox.does("rm", &[]);
}

#[test]
fn a_detached_command_runs_on_and_is_the_holder() {
    let sandbox = Sandbox::named("detached");
    let pid = sandbox.detached(&["--pids", "20"], "sleep 1000 & wait");
    until("two processes", || sandbox.processes().len() == 2);
    assert!(sandbox.processes().contains(&pid));
    assert_eq!(state_of(&sandbox), "running");
    assert_eq!(sandbox.json("show", &[])["holder"]["pid"], pid);
    let listed = sandbox.json("ps", &[]);
    let listed: Vec<_> = listed.as_array().unwrap().iter().map(|one| one["pid"].as_u64().unwrap()).collect();
    let live: Vec<_> = sandbox.processes().into_iter().map(u64::from).collect();
    assert_eq!(listed, live);
    sandbox.does("kill", &[]);
    until("empty", || sandbox.is_idle());
    assert!(!is_alive(pid));
    sandbox.does("rm", &[]);
}

#[test]
fn kill_sends_the_signal_that_was_asked_for() {
    let sandbox = Sandbox::named("signal");
    let file = sandbox.scratch.path().join("said");
    let said = file.display();
    let script = format!("trap 'echo got >{said}; exit 0' USR1; : >{said}; while :; do sleep 0.05; done");
    sandbox.detached(&[], &script);
    until("ready", || file.exists());
    sandbox.does("kill", &["--signal", "USR1"]);
    until("told", || fs::read_to_string(&file).unwrap() == "got\n");
    until("ended", || sandbox.is_idle());
}

#[test]
fn exec_starts_inside_and_attach_moves_inside() {
    let sandbox = Sandbox::named("join");
    sandbox.create(&["--pids", "20"]);
    let inside = sandbox.does("exec", &["--", "cat", "/proc/self/cgroup"]).stdout;
    assert!(inside.contains(&sandbox.cgroup()), "{inside}");

    let outsiders = [Outsider::start(), Outsider::start()];
    let [first, second] = outsiders.each_ref().map(Outsider::pid);
    sandbox.does("attach", &[&first.to_string(), &second.to_string()]);
    for pid in [first, second] {
        let all = places(pid);
        assert!(all.iter().all(|place| *place == sandbox.cgroup()), "{all:?}");
        assert_eq!(all.len(), hierarchies().len(), "{all:?}");
    }
    assert_eq!(sandbox.json("ps", &[]).as_array().unwrap().len() as u64, 2 + sandbox.held());
    sandbox.does("rm", &["--kill"]);
    assert!(!is_alive(first) && !is_alive(second));
}

#[test]
fn freezing_stops_everything_and_thawing_lets_it_go_on() {
    let sandbox = Sandbox::named("frozen");
    let file = sandbox.scratch.path().join("count");
    let script = format!("while :; do echo >>{}; sleep 0.01; done", file.display());
    sandbox.detached(&[], &script);
    let count = || fs::metadata(&file).map_or(0, |file| file.len());
    until("at work", || count() > 3);

    sandbox.does("freeze", &[]);
    assert_eq!(state_of(&sandbox), "frozen");
    let before = count();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(count(), before);

    // Joining a frozen cgroup would never come to an end.
    let outsider = Outsider::start();
    let error = sandbox.attempt_json("attach", &[&outsider.pid().to_string()]).exits(5).error();
    assert!(error["message"].as_str().unwrap().contains("frozen"), "{error}");
    assert!(places(outsider.pid()).iter().all(|place| !place.contains(&sandbox.id)));
    let refused = sandbox.attempt("exec", &["--", "true"]).exits(125);
    assert!(refused.stderr.contains("frozen"), "{}", refused.stderr);

    sandbox.does("thaw", &[]);
    until("at work again", || count() > before);
    assert_eq!(state_of(&sandbox), "running");
    // Twice is as good as once, by either name.
    sandbox.does("pause", &[]);
    sandbox.does("pause", &[]);
    sandbox.does("resume", &[]);
    sandbox.does("resume", &[]);
    // What is frozen dies all the same.
    sandbox.does("freeze", &[]);
    sandbox.does("rm", &["--kill"]);
}

#[test]
fn rm_refuses_what_lives_kills_it_or_drains_it_as_told() {
    let parent = Sandbox::parent("drain-parent", &["--pids", "50", "--memory", "256M"]);
    let sandbox = Sandbox::named("drained");
    let pid = sandbox.detached(&["--allow-nested", "--path", &sandbox.path_in(&parent)], "exec sleep 1000");
    let _reaped = Reaped(pid);

    let error = sandbox.attempt_json("rm", &[]).exits(5).error();
    assert_eq!(error["kind"], "busy");
    assert!(is_alive(pid) && sandbox.processes() == [pid], "left as it was");
    assert_eq!(state_of(&sandbox), "running");

    sandbox.does("rm", &["--drain"]);
    sandbox.is_gone();
    assert!(is_alive(pid));
    let above = if by_systemd() { format!("/{}", parent.directory) } else { parent.cgroup() };
    for place in places(pid) {
        assert!(place.starts_with(&above), "out of the parent's limits: {place}");
    }
    drop(_reaped);
    until("no scope", || units_named(&format!("ringfence-{}*", sandbox.id)).is_empty());
    parent.does("rm", &["--kill"]);
}

#[test]
fn what_a_killed_run_leaves_is_removed_by_rm() {
    let sandbox = Sandbox::named("orphan");
    let child = sandbox.start(&["--memory", "64M"], &["sh", "-c", "sleep 1000 & sleep 1000"]);
    sandbox.wait_until_populated();
    send(child.id(), Signal::KILL);
    assert_eq!(exit_code(child), -9);
    sandbox.does("rm", &["--kill"]);
    sandbox.is_gone();
}

/// The exit code alone: what lives on holds the pipes.
fn exit_code(mut child: Child) -> i32 {
    let status = child.wait().unwrap();
    status.code().unwrap_or_else(|| -status.signal().unwrap())
}

#[test]
fn gc_lists_what_a_killed_run_left_and_removes_it_when_told_to() {
    let sandbox = Sandbox::named("garbage");
    let kept = format!("{}-kept", sandbox.id);
    let child = sandbox.start(&[], &["sh", "-c", "sleep 1000"]);
    sandbox.wait_until_populated();
    finish(sandbox.ringfence(&[&["create", &kept], hold()].concat())).exits(0);
    let kept_directory = sandbox.directory.replace(&sandbox.id, &kept);

    let gc = |options: &[&str]| {
        let list = finish(sandbox.ringfence(&[&["-o", "json", "gc"], options].concat())).exits(0).json();
        let ours = |one: &&Value| one["id"].as_str().is_some_and(|id| id.starts_with(&sandbox.id));
        list.as_array().unwrap().iter().filter(ours).cloned().collect::<Vec<_>>()
    };
    assert_eq!(
        gc(&["--apply", "--kill"]),
        [] as [Value; 0],
        "its holder lives, and the other one never had any"
    );
    send(child.id(), Signal::KILL);
    exit_code(child);

    let listed = gc(&["--kill"]);
    assert_eq!((listed.len(), &listed[0]["id"]), (1, &sandbox.id.as_str().into()), "{listed:?}");
    assert!(listed[0]["why"].is_string() && listed[0]["action"].is_string(), "{listed:?}");
    assert!(!sandbox.directories().is_empty(), "only listed");
    gc(&["--apply", "--kill"]);
    assert!(sandbox.directories().is_empty());
    assert!(!directories_named(&kept_directory).is_empty());
    finish(sandbox.ringfence(&["rm", &kept])).exits(0);
    assert!(directories_named(&kept_directory).is_empty());
}

#[test]
fn a_sandbox_that_does_not_exist_is_said_to_not_exist() {
    let sandbox = Sandbox::named("nothing");
    for (verb, args) in [
        ("show", &[][..]),
        ("set", &["--pids", "5"]),
        ("rm", &[]),
        ("freeze", &[]),
        ("thaw", &[]),
        ("kill", &[]),
        ("ps", &[]),
        ("stats", &[]),
        ("attach", &["1"]),
        ("devices ls", &[]),
        ("devices allow", &["c 1:3 r"]),
    ] {
        let error = sandbox.attempt_json(verb, args).exits(3).error();
        assert_eq!(error["kind"], "not_found", "{verb}");
        let told = sandbox.attempt(verb, args).exits(3).stderr;
        assert!(told.contains(&sandbox.id), "{verb}: {told}");
    }
    assert!(!sandbox.state_dir().exists(), "looking leaves no trace");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let sandbox = Sandbox::named("pipe");
    sandbox.create(&[]);
    let mut command = sandbox.command("show", &[]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let done = wait(child, "show".to_owned()).exits(0);
    assert_eq!(done.stderr, "");
}
