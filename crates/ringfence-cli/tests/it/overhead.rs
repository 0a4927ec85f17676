//! The overhead in a cgroup of its own elsewhere, from the command line.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::path::PathBuf;

use crate::support::{
    Sandbox, by_systemd, directories_named, finish, is_alive, send, units_named, until, wait,
};
use rustix::process::Signal;
use serde_json::{Value, json};

testbed! {
    drivers: "cgroupfs systemd";
}

/// A sandbox, and the path of its overhead.
struct Both {
    sandbox: Sandbox,
    /// The name of its directory.
    directory: String,
    option: String,
}

fn name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

impl Both {
    fn named(name: &str) -> Self {
        let sandbox = Sandbox::named(name);
        let own = format!("{}-overhead", sandbox.id);
        if by_systemd() {
            let option = format!("--overhead=separate=ringfence.slice:rf:{own}");
            return Self { directory: format!("rf-{own}.scope"), sandbox, option };
        }
        Self { sandbox, option: format!("--overhead=separate={own}"), directory: own }
    }

    fn path(&self) -> String {
        let parent = if by_systemd() { "ringfence.slice" } else { "ringfence" };
        format!("/{parent}/{}", self.directory)
    }

    fn outside(&self) -> Vec<PathBuf> {
        directories_named(&self.directory)
    }

    #[track_caller]
    fn is_gone(&self) {
        self.sandbox.is_gone();
        let (left, units) = (self.outside(), units_named(&self.directory));
        assert!(left.is_empty() && units.is_empty(), "left behind: {left:?} {units:?}");
    }

    /// The paths of a process, in all hierarchies in which it is in one of both.
    fn paths_of(&self, pid: u32) -> Vec<String> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2).map(str::to_owned));
        let both = [self.path(), self.sandbox.cgroup()];
        let mut paths: Vec<_> = paths.filter(|path| both.contains(path)).collect();
        paths.sort();
        paths.dedup();
        paths
    }

    /// A helper that runs, started by `exec`.
    fn helper(&self, options: &[&str]) -> (std::process::Child, u32) {
        let before = self.pids();
        let mut command = self.sandbox.command("exec", options);
        let child = command.args(["--", "sleep", "1000"]).spawn().unwrap();
        let mut found = None;
        // It may be seen before it is inside everywhere, and executed then.
        let runs = |pid: &u32| name(*pid) == "sleep\n";
        until("the helper runs", || {
            found = self.pids().into_iter().find(|pid| !before.contains(pid) && runs(pid));
            found.is_some()
        });
        (child, found.unwrap())
    }

    /// What is inside, but for what `run` holds scopes of systemd with.
    fn pids(&self) -> Vec<u32> {
        let list = self.sandbox.json("ps", &[]);
        let pids = list.as_array().unwrap().iter().map(|task| task["pid"].as_u64().unwrap() as u32);
        pids.filter(|pid| name(*pid) != "ringfence-hold\n").collect()
    }

    fn part_of(&self, pid: u32) -> Value {
        let list = self.sandbox.json("ps", &[]);
        list.as_array().unwrap().iter().find(|task| task["pid"] == pid).unwrap()["part"].clone()
    }
}

#[test]
fn commands_work_on_both_and_leave_neither() {
    let both = Both::named("both");
    let sandbox = &both.sandbox;
    let limits = [&*both.option, "--memory", "64M", "--overhead-memory", "32M", "--overhead-cpus", "0.5"];
    let plan = sandbox.json("plan", &limits).to_string();
    assert!(plan.contains(&both.directory) && plan.contains(&sandbox.directory), "{plan}");
    let main = sandbox.detached(&limits, "sleep 1000");
    assert_eq!(both.paths_of(main), [sandbox.cgroup()]);
    let (child, helper) = both.helper(&[]);
    assert_eq!(both.paths_of(helper), [both.path()]);
    assert_eq!((both.part_of(helper), both.part_of(main)), ("overhead".into(), Value::Null));
    let (inside, other) = both.helper(&["--part", "vcpu"]);
    assert_eq!(both.paths_of(other), [sandbox.cgroup()]);
    sandbox.does("attach", &[&other.to_string()]);
    assert_eq!(both.paths_of(other), [both.path()]);

    let shown = sandbox.json("show", &[]);
    assert_eq!(shown["parts"], json!({"overhead": both.path().trim_start_matches('/')}));
    assert_eq!(shown["overhead"]["path"], both.path());
    assert_eq!(shown["overhead"]["resources"]["memory"]["limit"], 32 << 20);
    let stats = sandbox.json("stats", &[])[0].clone();
    assert_eq!(
        (&stats["memory"]["limit"], &stats["parts"]["overhead"]["memory"]["limit"]),
        (&json!(64 << 20), &json!(32 << 20))
    );
    sandbox.does("stats", &[]);
    sandbox.does("set", &["--overhead-memory", "40M", "--overhead-cpus", "max"]);
    let stats = sandbox.json("stats", &[])[0].clone();
    assert_eq!(
        (&stats["memory"]["limit"], &stats["parts"]["overhead"]["memory"]["limit"]),
        (&json!(64 << 20), &json!(40 << 20))
    );
    sandbox.does("devices allow", &["c 10:200 rwm"]);
    assert_eq!(sandbox.json("diff", &[]), json!([]));
    sandbox.does("freeze", &[]);
    assert_eq!(sandbox.json("show", &[])["overhead"]["state"], "frozen");
    sandbox.does("thaw", &[]);

    sandbox.attempt("rm", &[]).exits(5);
    assert!(is_alive(main) && is_alive(helper));
    sandbox.does("rm", &["--kill"]);
    both.is_gone();
    for child in [child, inside] {
        wait(child, "exec".to_owned()).exits(137);
    }
}

#[test]
fn both_are_collected_when_whoever_answered_for_them_was_killed() {
    let both = Both::named("gc");
    let sandbox = &both.sandbox;
    let run = sandbox.start(&[&both.option], &["sleep", "1000"]);
    until("it runs", || sandbox.attempt("ps", &[]).code == 0 && both.pids().len() == 1);
    let main = both.pids()[0];
    let (child, helper) = both.helper(&[]);
    send(run.id(), Signal::KILL);
    send(main, Signal::KILL);
    wait(run, "run".to_owned());
    until("the VMM is gone", || !is_alive(main));
    // The helper keeps both.
    finish(sandbox.ringfence(&["gc", "--apply"])).exits(0);
    assert_eq!(both.pids(), [helper]);
    finish(sandbox.ringfence(&["gc", "--apply", "--kill"])).exits(0);
    wait(child, "exec".to_owned()).exits(137);
    both.is_gone();

    // Their state is lost: each carries the mark of the store.
    if !by_systemd() {
        sandbox.create(&[&both.option]);
        std::fs::remove_file(sandbox.state_dir().join(format!("{}.json", sandbox.id))).unwrap();
        let found = finish(sandbox.ringfence(&["-o", "json", "gc", "--apply"])).exits(0).json();
        assert!(found.to_string().contains(&both.path()), "{found}");
        both.is_gone();
    }
}

#[test]
fn an_overhead_that_cannot_be_made_takes_the_sandbox_along() {
    let both = Both::named("taken");
    let other = Sandbox::named("taken-overhead");
    let path = both.option.trim_start_matches("--overhead=separate=");
    other.create(&["--path", path]);
    let error = both.sandbox.attempt_json("create", &[&both.option]).exits(5).error();
    assert!(error["message"].as_str().unwrap().contains("already"), "{error}");
    both.sandbox.is_gone();
    other.does("rm", &["--kill"]);
    both.is_gone();
}

#[test]
fn what_cannot_be_asked_for_is_refused_in_words() {
    let both = Both::named("refused");
    let refused = |options: &[&str], setting: &str, value: &str| {
        let error = both.sandbox.attempt_json("create", options).exits(2).error();
        assert_eq!((&error["setting"], &error["value"]), (&setting.into(), &value.into()), "{error}");
        error["message"].as_str().unwrap().to_owned()
    };
    for kind in ["nested", "together"] {
        let why =
            refused(&["--overhead", kind, "--overhead-memory", "1M"], "overhead.memory.limit", "1048576");
        assert!(why.contains("separate"), "{why}");
    }
    let text = both.sandbox.attempt("create", &["--overhead", "apart"]).exits(2).stderr;
    assert!(text.contains("together, nested or separate=PATH"), "{text}");
    let own = if by_systemd() {
        format!("ringfence.slice:ringfence:{}", both.sandbox.id)
    } else {
        both.sandbox.id.clone()
    };
    let why = refused(&["--overhead", &format!("separate={own}")], "overhead", &format!("separate={own}"));
    assert!(why.contains("of its own"), "{why}");
    // What it is does not change.
    both.sandbox.create(&["--overhead", "nested"]);
    both.sandbox.attempt("set", &["--overhead", "together"]).exits(2);
    both.sandbox.attempt("set", &["--overhead-memory", "1M"]).exits(2);
    let why = both.sandbox.attempt_json("plan", &[&both.option]).exits(2).error();
    assert!(why["message"].as_str().unwrap().contains("--overhead"), "{why}");
    both.sandbox.does("rm", &["--kill"]);
}

#[test]
fn both_are_held_where_that_is_asked_for() {
    let both = Both::named("held");
    both.sandbox.does("create", &["--hold", &both.option]);
    assert_eq!(both.pids().len(), 2);
    assert!(!both.outside().is_empty());
    both.sandbox.does("rm", &[]);
    both.is_gone();
}
