//! `watch`: what happens in sandboxes, told as it happens.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};

use crate::support::soak::{in_testbed, is_soak};
use crate::support::{self, PATIENCE, Sandbox, driver, finish, hierarchies, hold, send, until, wait};
use rustix::process::Signal;
use serde_json::Value;

testbed! {
    drivers: "cgroupfs systemd";
    soak: "trixie";
}

/// `watch` in the background, and what it has said.
struct Watch {
    child: Option<Child>,
    lines: Receiver<String>,
    seen: Vec<Value>,
}

impl Watch {
    /// Returns when it watches.
    fn start(sandbox: &Sandbox, options: &[&str]) -> Self {
        let mut command = sandbox.ringfence(&[&["-o", "jsonl", "watch"], options].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (said, lines) = mpsc::channel();
        std::thread::spawn(move || stdout.lines().try_for_each(|line| said.send(line.unwrap())));
        let watch = Self { child: Some(child), lines, seen: Vec::new() };
        until("watching", || watch.is_watching());
        watch
    }

    /// It waits in poll(2).
    fn is_watching(&self) -> bool {
        let pid = self.child.as_ref().unwrap().id();
        let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        call.starts_with("7 ") || call.starts_with("271 ")
    }

    /// Waits for an event of a sandbox.
    #[track_caller]
    fn until(&mut self, id: &str, event: &str) -> Value {
        let is_it = |line: &&Value| line["id"] == id && line["event"] == event;
        loop {
            if let Some(found) = self.seen.iter().find(is_it) {
                return found.clone();
            }
            let line = match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => panic!("{event} of {id} was never told: {:#?}", self.seen),
                Err(RecvTimeoutError::Disconnected) => {
                    let ended = self.child.take().map(|child| wait(child, "watch".to_owned()));
                    panic!("watch ended before {event} of {id}: {ended:?} {:#?}", self.seen)
                }
            };
            self.seen.push(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")));
        }
    }

    /// The counts of an event by sandbox, of all that was said.
    fn counts(&mut self, event: &str) -> BTreeMap<String, u64> {
        self.seen.extend(self.lines.try_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap()));
        let mut counts = BTreeMap::new();
        for line in self.seen.iter().filter(|line| line["event"] == event) {
            *counts.entry(line["id"].as_str().unwrap().to_owned()).or_default() +=
                line["count"].as_u64().unwrap_or(1);
        }
        counts
    }

    /// Ends it by a signal.
    #[track_caller]
    fn end(&mut self, signal: Signal) {
        let child = self.child.take().unwrap();
        send(child.id(), signal);
        assert_eq!(wait(child, "watch".to_owned()).exits(0).stderr, "");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

const SMALL: [&str; 6] = ["--memory", "8M", "--memory-swap", "8M", "--profile", "none"];
const OOM: [&str; 2] = ["tail", "/dev/zero"];

/// One of several sandboxes with one store.
fn run(sandbox: &Sandbox, id: &str, options: &[&str], program: &[&str]) -> Command {
    sandbox.ringfence(&[&["run", id], options, &["--"], program].concat())
}

/// A hundred in a soak and on a machine; fewer where it is emulated.
fn how_many() -> u32 {
    if in_testbed() && !is_soak() { 16 } else { 100 }
}

#[test]
fn of_100_sandboxes_that_run_out_of_memory_and_are_removed_at_once_100_kills_are_told() {
    let sandbox = Sandbox::named("hundred");
    let mut watch = Watch::start(&sandbox, &[]);
    let id = |number| format!("{}-{number}", sandbox.id);
    let half = how_many() / 2;
    // Two at a time: each is the neighbour of another.
    std::thread::scope(|scope| {
        for these in [0..half, half..2 * half] {
            let sandbox = &sandbox;
            scope.spawn(move || {
                for number in these {
                    let done = finish(run(sandbox, &id(number), &SMALL, &OOM)).exits(137);
                    assert!(done.stderr.contains("the kernel killed a process inside"), "{}", done.stderr);
                }
            });
        }
    });
    (0..2 * half).for_each(|number| drop(watch.until(&id(number), "removed")));
    let kills = watch.counts("oom_kill");
    let wrong: Vec<_> = kills.iter().filter(|(_, count)| **count != 1).collect();
    assert!(kills.len() == 2 * half as usize && wrong.is_empty(), "{} {wrong:?}", kills.len());
    watch.end(Signal::TERM);
    sandbox.is_gone();
}

#[test]
fn with_an_id_it_tells_of_that_sandbox_alone_and_ends_with_it() {
    let sandbox = Sandbox::named("one");
    let other = format!("{}-other", sandbox.id);
    sandbox.does("create", &[]);
    let mut watch = Watch::start(&sandbox, &[&sandbox.id]);
    finish(run(&sandbox, &other, &[], &["true"])).exits(0);
    let pid = sandbox.does("exec", &["--", "sh", "-c", "echo $$; exec sleep 0.5"]).stdout;
    assert!(pid.trim().parse::<u32>().is_ok());
    watch.until(&sandbox.id, "populated");
    watch.until(&sandbox.id, "empty");
    sandbox.does("rm", &[]);
    watch.until(&sandbox.id, "removed");
    let done = wait(watch.child.take().unwrap(), "watch".to_owned()).exits(0);
    assert_eq!(done.stderr, "");
    assert!(watch.lines.iter().next().is_none() && watch.seen.iter().all(|line| line["id"] != *other));
}

#[test]
fn freezing_and_limits_are_told_of_sandboxes_that_come_later() {
    let sandbox = Sandbox::named("later");
    let mut watch = Watch::start(&sandbox, &[]);
    sandbox.does("create", &[hold(), &["--pids", "5"]].concat());
    let mut inside = sandbox.command("exec", &["--", "sleep", "1000"]).spawn().unwrap();
    watch.until(&sandbox.id, "populated");
    sandbox.does("freeze", &[]);
    watch.until(&sandbox.id, "frozen");
    sandbox.does("thaw", &[]);
    watch.until(&sandbox.id, "thawed");
    let forks = "for i in 1 2 3 4 5 6 7 8; do sleep 0.1 & done; wait";
    sandbox.attempt("exec", &["--", "sh", "-c", forks]);
    let told = watch.until(&sandbox.id, "pids_max");
    assert!(told["count"].as_u64() > Some(0) && told["at_us"].is_u64(), "{told}");
    let removed = sandbox.json("rm", &["--kill"]);
    assert_eq!(removed["events"]["oom_kill"], 0, "{removed}");
    inside.wait().unwrap();
    watch.until(&sandbox.id, "removed");
    watch.end(Signal::INT);
}

#[test]
fn run_says_that_its_command_was_killed_for_want_of_memory() {
    let sandbox = Sandbox::named("told");
    let inside = ["sh", "-c", "tail /dev/zero; exit 3"];
    let done = sandbox.run(&SMALL, &inside).exits(3);
    assert!(done.stderr.contains("out of memory"), "{}", done.stderr);
    let json = sandbox.attempt_json("run", &[&SMALL[..], &["--"], &inside].concat()).exits(3).stderr;
    let lines = json.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let told: Vec<_> = lines.filter(|line| line["event"] == "oom_kill").collect();
    assert_eq!(
        (told.len(), &told[0]["count"], &told[0]["id"]),
        (1, &1.into(), &sandbox.id.as_str().into()),
        "{json}"
    );
    let kept = sandbox.run(&[&SMALL[..], &["--keep"]].concat(), &OOM).exits(137);
    assert!(kept.stderr.contains("out of memory"), "{}", kept.stderr);
    let fine = finish(run(&sandbox, &format!("{}-fine", sandbox.id), &SMALL, &["true"])).exits(0);
    assert_eq!(fine.stderr, "");
}

#[test]
fn who_is_killed_later_is_told_of_what_was_killed_for_want_of_memory_before() {
    let sandbox = Sandbox::named("later-killed");
    let mut watch = Watch::start(&sandbox, &[]);
    let command = run(&sandbox, &sandbox.id, &SMALL, &["sh", "-c", "tail /dev/zero; sleep 1000"]);
    std::thread::scope(|scope| {
        let done = scope.spawn(|| finish(command));
        assert_eq!(watch.until(&sandbox.id, "oom_kill")["count"], 1);
        sandbox.does("kill", &[]);
        let done = done.join().unwrap().exits(137);
        assert!(done.stderr.contains("out of memory"), "{}", done.stderr);
    });
    watch.until(&sandbox.id, "removed");
    watch.end(Signal::TERM);
    sandbox.is_gone();
}

#[test]
fn a_virtual_machine_that_is_killed_as_a_whole_is_told() {
    let sandbox = Sandbox::named("whole");
    let whole = ["--memory", "8M", "--memory-swap", "8M", "--profile", "qemu"];
    // What ended before, and what is still there when the command has ended.
    for inside in ["sleep 1000 & tail /dev/zero", "(sleep 0.3; exec tail /dev/zero) & tail /dev/zero"] {
        let done = sandbox.run(&whole, &["sh", "-c", inside]).exits(137);
        assert!(done.stderr.contains("out of memory"), "{}", done.stderr);
    }
    sandbox.is_gone();
}

#[test]
fn a_limit_of_one_task_is_room_for_the_command() {
    let sandbox = Sandbox::named("alone");
    sandbox.run(&["--pids", "1"], &["true"]).exits(0);
    sandbox.is_gone();
}

#[test]
fn who_does_not_read_loses_nothing_and_does_not_keep_it_from_ending() {
    let sandbox = Sandbox::named("slow");
    let command =
        |args: &[&str]| sandbox.ringfence(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let watch = Watch::start(&sandbox, &[]);
    drop(watch);
    let mut slow = command(&["watch", "-o", "jsonl"]).unwrap();
    let spool = || {
        let entries = std::fs::read_dir(sandbox.state_dir().join("watchers")).into_iter().flatten().flatten();
        let mut files = entries.map(|entry| entry.path());
        files.any(|path| path.file_name().unwrap().to_string_lossy().starts_with(&slow.id().to_string()))
    };
    until("watching", spool);
    // The one that was killed is forgotten with the next sandbox that goes.
    for _ in 0..5 {
        sandbox.run(&SMALL, &OOM).exits(137);
    }
    let left = std::fs::read_dir(sandbox.state_dir().join("watchers")).unwrap().count();
    assert_eq!(left, 1);
    let mut text = [0; 65_536];
    let mut read = String::new();
    let mut stdout = slow.stdout.take().unwrap();
    until("five kills", || {
        let length = stdout.read(&mut text).unwrap();
        read += &String::from_utf8_lossy(&text[..length]);
        read.matches("\"removed\"").count() == 5
    });
    assert_eq!(read.matches("\"oom_kill\"").count(), 5, "{read}");
    // A closed pipe ends it too, though nothing is to be said.
    drop(stdout);
    assert_eq!(wait(slow, "watch".to_owned()).exits(0).stderr, "");
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let sandbox = Sandbox::named("refused");
    let error = sandbox.attempt_json("watch", &[]).exits(3).error();
    assert_eq!((&error["kind"], &error["value"]), (&"not_found".into(), &sandbox.id.as_str().into()));
    assert!(!sandbox.state_dir().exists(), "looking leaves no trace");
    let bad = finish(sandbox.ringfence(&["-o", "json", "watch", "--pressure", "memory:some:2s/1s"])).exits(2);
    let error = bad.error();
    assert_eq!((&error["setting"], &error["value"]), (&"pressure".into(), &"memory:some:2s/1s".into()));
    if !hierarchies().iter().any(|hierarchy| hierarchy.is_v2) {
        let wanted = ["-o", "json", "watch", "--pressure", "memory:some:1s/2s"];
        let error = finish(sandbox.ringfence(&wanted)).exits(1).error();
        assert_eq!(error["kind"], "unsupported");
        assert!(error["message"].as_str().unwrap().contains("v1"), "{error}");
    }
    assert!(!sandbox.state_dir().exists(), "looking leaves no trace");
}

#[test]
fn descriptors_that_have_run_out_are_said() {
    let sandbox = Sandbox::named("many");
    let ids: Vec<_> = (0..12).map(|number| format!("{}-{number}", sandbox.id)).collect();
    for id in &ids {
        finish(sandbox.ringfence(&[&["create", id], hold()].concat())).exits(0);
    }
    let mut limited = Command::new("prlimit");
    let watch = sandbox.ringfence(&["-o", "json", "watch"]);
    limited.arg("--nofile=32:32").arg(watch.get_program()).args(watch.get_args());
    limited.env("RINGFENCE_DRIVER", driver());
    let error = finish(limited).exits(1).error();
    assert_eq!((&error["kind"], &error["errno"]), (&"kernel".into(), &24.into()), "{error}");
    assert!(error["message"].as_str().unwrap().contains("RLIMIT_NOFILE"), "{error}");
    ids.iter().for_each(|id| drop(finish(sandbox.ringfence(&["rm", "--kill", id])).exits(0)));
}

#[test]
fn pressure_is_told_of_every_sandbox() {
    if !hierarchies().iter().any(|hierarchy| hierarchy.is_v2) {
        return support::skip("there is no v2 tree");
    }
    let sandbox = Sandbox::named("stall");
    let mut watch = Watch::start(&sandbox, &["--pressure", "cpu:some:100ms/2s"]);
    let busy = "for i in 1 2 3 4 5 6; do while :; do :; done & done; sleep 1000";
    let mut running = sandbox.start(&[], &["sh", "-c", busy]);
    let told = watch.until(&sandbox.id, "pressure");
    assert_eq!(told["trigger"], "cpu:some:100ms/2s");
    sandbox.does("kill", &[]);
    running.wait().unwrap();
    watch.until(&sandbox.id, "removed");
    watch.end(Signal::HUP);
}

/// A cgroup that is being removed has lost its files while its directory can still be opened.
#[test]
fn a_watch_for_pressure_outlives_the_removal_of_sandboxes() {
    if !hierarchies().iter().any(|hierarchy| hierarchy.is_v2) {
        return support::skip("there is no v2 tree");
    }
    let sandbox = Sandbox::named("outlives");
    let mut watch = Watch::start(&sandbox, &["--pressure", "cpu:some:100ms/2s"]);
    for number in 0..how_many() {
        let id = format!("{}-{number}", sandbox.id);
        finish(run(&sandbox, &id, &[], &["sleep", "0.05"])).exits(0);
        watch.until(&id, "removed");
    }
    watch.end(Signal::HUP);
}

#[test]
fn an_ordinary_user_is_told_which_windows_the_kernel_takes() {
    if !hierarchies().iter().any(|hierarchy| hierarchy.is_v2) {
        return support::skip("there is no v2 tree");
    }
    let sandbox = Sandbox::named("rule");
    let asked = sandbox.ringfence(&["-o", "json", "watch", "--pressure", "memory:some:100ms/1s"]);
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource"]);
    command
        .arg(asked.get_program())
        .args(asked.get_args())
        .env("NO_COLOR", "1")
        .env("RINGFENCE_DRIVER", driver());
    let error = finish(command).exits(1).error();
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("CAP_SYS_RESOURCE") && message.contains("2s"), "{error}");
    assert_eq!(error["kind"], "unsupported");
}
