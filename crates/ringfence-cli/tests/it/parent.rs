//! By itself in its process, so that the default parent is this test's.

#![allow(clippy::unwrap_used)]

use std::fs;

use crate::support::{Sandbox, by_systemd, directories_named, finish, is_alive, send, skip, until};

testbed! {
    drivers: "cgroupfs systemd";
}

#[test]
fn one_gc_removes_the_leaf_of_the_drained_and_the_default_parent_in_every_hierarchy() {
    let parent = if by_systemd() { "ringfence.slice" } else { "ringfence" };
    if !directories_named(parent).is_empty() {
        return skip("others have sandboxes here");
    }
    let sandbox = Sandbox::named("drained-from");
    let pid = sandbox.detached(&[], "exec sleep 1000");
    sandbox.does("rm", &["--drain"]);
    assert!(!directories_named(parent).is_empty(), "it lives on inside");
    send(pid, rustix::process::Signal::KILL);
    until("it has ended", || !is_alive(pid));
    // The last of it leaves a moment later, and systemd removes its scope another moment later.
    let is_scope = |entry: fs::DirEntry| entry.path().extension().is_some_and(|kind| kind == "scope");
    let is_left = |path: &std::path::PathBuf| {
        ["cgroup.procs", "drained/cgroup.procs"]
            .iter()
            .any(|file| fs::read_to_string(path.join(file)).is_ok_and(|pids| !pids.is_empty()))
            || fs::read_dir(path).is_ok_and(|all| all.flatten().any(is_scope))
    };
    until("it has left", || !directories_named(parent).iter().any(is_left));
    finish(sandbox.ringfence(&["gc", "--apply"])).exits(0);
    assert_eq!(directories_named(parent), Vec::<std::path::PathBuf>::new());
}
