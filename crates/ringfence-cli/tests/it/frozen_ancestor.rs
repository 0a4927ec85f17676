//! Commands on a sandbox below a frozen cgroup name that cgroup: it is what has to be thawed.

#![allow(clippy::unwrap_used)] // clippy.toml frees only #[test] functions.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::{Done, Sandbox, is_alive, is_on_v1, until};

testbed! {
    drivers: "cgroupfs systemd";
}

/// Freezes or thaws the cgroup above the sandbox.
fn set_above(sandbox: &Sandbox, frozen: bool) {
    let above = sandbox.dir("freezer").parent().unwrap().to_owned();
    let (file, value) = match (is_on_v1("freezer"), frozen) {
        (true, true) => ("freezer.state", "FROZEN"),
        (true, false) => ("freezer.state", "THAWED"),
        (false, _) => ("cgroup.freeze", if frozen { "1" } else { "0" }),
    };
    fs::write(above.join(file), value).unwrap();
    until("the state is reached", || {
        let state = fs::read_to_string(above.join(if is_on_v1("freezer") { file } else { "cgroup.events" }));
        state.unwrap().contains(if is_on_v1("freezer") {
            value
        } else if frozen {
            "frozen 1"
        } else {
            "frozen 0"
        })
    });
}

/// Whether the sandbox is frozen by its own setting.
fn is_frozen_itself(sandbox: &Sandbox) -> bool {
    let file = if is_on_v1("freezer") { "freezer.self_freezing" } else { "cgroup.freeze" };
    fs::read_to_string(sandbox.dir("freezer").join(file)).unwrap().trim() == "1"
}

#[test]
fn frozen_ancestor_is_named_by_every_command_that_it_hinders() {
    let parent = Sandbox::parent("above", &[]);
    let sandbox = Sandbox::named("below");
    let pid = sandbox.detached(&["--allow-nested", "--path", &sandbox.path_in(&parent)], "exec sleep 1000");
    let ancestor = sandbox.dir("freezer").parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let names = |done: &Done| done.stderr.contains(&format!("/{ancestor} is frozen"));
    set_above(&sandbox, true);

    let done = sandbox.does("freeze", &[]);
    assert!(names(&done) && is_frozen_itself(&sandbox), "{done:?}");
    let refused = sandbox.attempt("exec", &["--", "true"]).exits(125).stderr;
    assert!(refused.contains("thaw both") && refused.contains(&format!("/{ancestor}:")), "{refused}");

    let done = sandbox.does("thaw", &[]);
    assert!(names(&done) && done.stderr.contains("thaw /"), "{done:?}");
    assert!(!is_frozen_itself(&sandbox));
    let done = sandbox.attempt("thaw", &["--strict"]).exits(1);
    assert!(names(&done), "{done:?}");
    let report = sandbox.json("thaw", &[])["report"].clone();
    assert_eq!(report[0]["setting"], "thaw", "{report}");

    let needs_thaw = |text: &str| text.contains(&format!("{ancestor} first"));
    let refused = sandbox.attempt("exec", &["--", "true"]).exits(125).stderr;
    assert!(needs_thaw(&refused), "{refused}");
    let mut sleeper = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let refused = sandbox.attempt("attach", &[&sleeper.id().to_string()]).exits(5).stderr;
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(needs_thaw(&refused), "{refused}");

    let done = sandbox.does("kill", &["--signal", "WINCH"]);
    assert!(names(&done), "{done:?}");
    if is_on_v1("freezer") {
        let done = sandbox.attempt("kill", &["--timeout", "0.5"]).exits(5);
        assert!(names(&done), "{done:?}");
        let done = sandbox.attempt("rm", &["--kill", "--timeout", "0.5"]).exits(5);
        assert!(names(&done) && done.stderr.matches("is frozen").count() == 1, "{done:?}");
        assert!(!done.stderr.contains("cannot remove"), "{done:?}");
        assert!(is_alive(pid));
        set_above(&sandbox, false);
        sandbox.does("rm", &["--kill"]);
    } else {
        // With cgroup v2 frozen processes die.
        sandbox.attempt("rm", &["--kill"]).exits(0);
    }
    sandbox.is_gone();
    parent.does("rm", &["--kill"]);
}
