//! The command as a process of the sandbox that it acts on: it is never stopped for ever, and never killed by itself.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use crate::support::{Done, Sandbox, binary, by_systemd, is_alive, is_on_v1, until};

testbed! {
    drivers: "cgroupfs systemd";
}

/// How a sandbox is made, and where in it the command runs.
struct Place {
    options: &'static [&'static str],
    part: &'static [&'static str],
    /// In a cgroup below, where it can be frozen.
    below: bool,
}

const NESTED: &[&str] = &["--overhead", "nested", "--cpus", "1"];

const PLACES: [Place; 4] = [
    Place { options: &[], part: &[], below: false },
    Place { options: &[], part: &[], below: true },
    Place { options: NESTED, part: &["--part", "vcpu"], below: false },
    Place { options: NESTED, part: &["--part", "overhead"], below: false },
];

impl Place {
    /// A sandbox with a process in it, in a parent that takes what is drained.
    fn sandbox(&self, parent: &Sandbox) -> (Sandbox, u32) {
        let name = parent.id.rsplit('-').next().unwrap();
        let sandbox = Sandbox::named(&format!("inside-{name}"));
        let path = sandbox.path_in(parent);
        let pid = sandbox
            .detached(&[self.options, &["--allow-nested", "--path", &path]].concat(), "exec sleep 1000");
        (sandbox, pid)
    }

    /// Runs `ringfence VERB ID ARGS` inside.
    fn inside(&self, sandbox: &Sandbox, verb: &str, args: &[&str]) -> Done {
        let words = [&["exec", "\"$0\" \"$@\""][..], &[]].concat().join(" ");
        let script = if self.below {
            let below = sandbox.dir("freezer").join("below");
            let below = below.display();
            format!("mkdir -p {below} && echo $$ > {below}/cgroup.procs && {words}")
        } else {
            words
        };
        let own = [binary().to_str().unwrap().to_owned(), "-o".to_owned(), "json".to_owned()];
        let state = ["--state-dir".to_owned(), sandbox.state_dir().to_str().unwrap().to_owned()];
        let verb = verb.split(' ').map(str::to_owned).chain([sandbox.id.clone()]);
        let args = args.iter().map(|arg| (*arg).to_owned());
        let all: Vec<String> = own.into_iter().chain(state).chain(verb).chain(args).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        sandbox.attempt("exec", &[self.part, &["--", "sh", "-c", &script], &all].concat())
    }
}

/// Named as no other test's: so is what is in it.
fn parent(name: &str) -> Sandbox {
    Sandbox::parent(&format!("inside-parent-{name}"), &["--pids", "1000"])
}

fn numbers(list: &serde_json::Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|pid| u32::try_from(pid.as_u64().unwrap()).unwrap()).collect()
}

#[test]
fn freeze_by_a_process_inside_is_refused() {
    let parent = parent("freeze");
    for place in PLACES {
        let (sandbox, pid) = place.sandbox(&parent);
        let error = place.inside(&sandbox, "freeze", &[]).exits(5).error();
        assert_eq!(error["kind"], "busy", "{error}");
        assert!(error["message"].as_str().unwrap().contains("the calling process (PID "), "{error}");
        assert_eq!(sandbox.json("show", &[])["state"], "running");
        // From outside it is frozen, the process that was refused is gone.
        sandbox.does("freeze", &[]);
        sandbox.does("thaw", &[]);
        assert!(is_alive(pid));
        sandbox.does("rm", &["--kill"]);
    }
    parent.does("rm", &["--kill"]);
}

#[test]
fn freeze_by_a_process_in_the_separate_overhead_is_refused_before_anything_stops() {
    let (sandbox, other) = (Sandbox::named("inside-separate"), Sandbox::named("inside-overhead"));
    let path = if by_systemd() { format!("ringfence.slice:ringfence:{}", other.id) } else { other.cgroup() };
    let overhead = format!("separate={path}");
    sandbox.detached(&["--overhead", &overhead], "exec sleep 1000");
    let place = Place { options: &[], part: &["--part", "overhead"], below: false };
    assert_eq!(place.inside(&sandbox, "freeze", &[]).exits(5).error()["kind"], "busy");
    assert_eq!(sandbox.json("show", &[])["state"], "running");
    let removed = place.inside(&sandbox, "kill", &[]).exits(0).json();
    assert_eq!(numbers(&removed["pids"]).len(), 1, "{removed}");
    sandbox.does("rm", &["--kill"]);
}

#[test]
fn kill_by_a_process_inside_kills_all_others_and_spares_it() {
    let parent = parent("kill");
    for place in PLACES {
        let (sandbox, pid) = place.sandbox(&parent);
        let forks = "for i in 1 2 3; do (while :; do sleep 1000 & sleep 0.01; done) & done; exec sleep 1000";
        let mut exec = sandbox.command("exec", &["--", "sh", "-c", forks]).spawn().unwrap();
        until("it forks", || sandbox.processes().len() > 6);
        let stopped = place.inside(&sandbox, "kill", &["--signal", "STOP"]).exits(0).json();
        assert!(numbers(&stopped["pids"]).contains(&pid), "{stopped}");
        let killed = place.inside(&sandbox, "kill", &[]).exits(0).json();
        assert!(numbers(&killed["pids"]).contains(&pid), "{killed}");
        assert!(killed["report"][0]["why"].as_str().unwrap().contains("is spared"), "{killed}");
        assert!(!is_alive(pid));
        exec.wait().unwrap();
        sandbox.does("rm", &[]);
    }
    parent.does("rm", &["--kill"]);
}

#[test]
fn rm_by_a_process_inside_removes_the_sandbox_around_it() {
    let parent = parent("rm");
    for place in PLACES {
        for how in ["--kill", "--drain"] {
            let (sandbox, pid) = place.sandbox(&parent);
            let error = place.inside(&sandbox, "rm", &[]).exits(5).error();
            assert!(error["message"].as_str().unwrap().contains("is the calling process"), "{error}");
            assert!(is_alive(pid));

            let removed = place.inside(&sandbox, "rm", &[how]).exits(0).json();
            sandbox.is_gone();
            let (killed, moved) = (numbers(&removed["killed"]), numbers(&removed["moved"]));
            assert_eq!(killed.contains(&pid), how == "--kill", "{removed}");
            assert_eq!(is_alive(pid), how == "--drain");
            // The caller is moved out, and nobody else where the others are killed.
            assert_eq!(moved.len(), if how == "--kill" { 1 } else { 2 }, "{removed}");
            crate::support::send(pid, rustix::process::Signal::KILL);
            until("ended", || !is_alive(pid));
        }
    }
    parent.does("rm", &["--kill"]);
}

#[test]
fn rm_goes_on_when_the_shell_that_started_it_inside_is_killed() {
    let parent = parent("shell");
    let (sandbox, pid) = PLACES[0].sandbox(&parent);
    let (own, state) = (binary(), sandbox.state_dir());
    let script = format!("{} --state-dir {} rm {} --kill; :", own.display(), state.display(), sandbox.id);
    // It is a process of the sandbox like any other.
    sandbox.attempt("exec", &["--", "sh", "-c", &script]).exits(128 + 9);
    until("removed", || {
        sandbox.directories().is_empty() && !sandbox.state_dir().join(format!("{}.json", sandbox.id)).exists()
    });
    assert!(!is_alive(pid));
    parent.does("rm", &["--kill"]);
}

#[test]
fn devices_are_changed_by_a_process_inside() {
    for place in PLACES {
        let sandbox = Sandbox::named("inside-devices");
        let pid = sandbox.detached(place.options, "exec sleep 1000");
        let is_seen = by_systemd() && is_on_v1("devices");
        for (verb, args) in [
            ("devices allow", &["c 10:229 rw"][..]),
            ("devices allow", &["c 10:228 rw", "--claim", "disk"]),
            ("devices release", &["disk"]),
        ] {
            let done = place.inside(&sandbox, verb, args).exits(0).json();
            assert_eq!(done["report"].to_string().contains("for a moment"), is_seen, "{verb}: {done}");
        }
        if is_seen {
            let strict = place.inside(&sandbox, "devices allow", &["c 10:227 rw", "--strict"]).exits(1);
            assert!(strict.error()["message"].as_str().unwrap().contains("for a moment"));
            assert!(!sandbox.json("devices ls", &[]).to_string().contains("227"));
        }
        assert!(sandbox.json("devices ls", &[]).to_string().contains("229"));
        assert!(is_alive(pid));
        sandbox.does("rm", &["--kill"]);
    }
}
