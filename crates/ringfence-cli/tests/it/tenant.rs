//! Something inside a sandbox (a tenant, a nested container) enables controllers for children of its own: cgroup v2 takes no
//! more processes into the sandbox's cgroup, and they go to a leaf below it.

#![allow(clippy::unwrap_used)] // clippy.toml frees only #[test] functions.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::{Sandbox, is_on_v1, skip};

testbed! {
    modes: "trixie plain-v2";
    drivers: "cgroupfs systemd";
    gate: "trixie";
}

/// A sandbox whose processes its tenant has moved to a cgroup `tenant`, with controllers enabled beside it; and its directory.
fn with_tenant(name: &str, options: &[&str]) -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::named(name);
    sandbox.detached(options, "exec sleep 1000");
    let dir = sandbox.dir("cgroup");
    let tenant = dir.join("tenant");
    fs::create_dir(&tenant).unwrap();
    for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines() {
        fs::write(tenant.join("cgroup.procs"), pid).unwrap();
    }
    fs::write(dir.join("cgroup.subtree_control"), "+memory +pids").unwrap();
    (sandbox, dir)
}

#[test]
fn exec_and_attach_go_to_a_leaf_beside_the_tenant() {
    if is_on_v1("memory") {
        return skip("cgroup v1 takes processes into a cgroup with children");
    }
    let (sandbox, dir) = with_tenant("tenant", &["--memory", "64M", "--owner", "1000:1000"]);
    let leaf = format!("{}/evacuated", sandbox.cgroup());
    for _ in 0..2 {
        let place = sandbox.does("exec", &["--", "cat", "/proc/self/cgroup"]).stdout;
        assert_eq!(place.trim(), format!("0::{leaf}"));
    }
    let mut sleeper = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let pid = sleeper.id();
    sandbox.does("attach", &[&pid.to_string()]);
    let place = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(place.trim(), format!("0::{leaf}"));

    // The tenant may move processes out of it.
    for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
        let metadata = fs::metadata(dir.join("evacuated").join(file)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 1000), "{file}");
    }
    assert_eq!(fs::metadata(dir.join("evacuated/memory.max")).unwrap().uid(), 0);

    let list = sandbox.json("ps", &[]);
    let places: Vec<_> =
        list.as_array().unwrap().iter().map(|task| task["cgroup"].as_str().unwrap()).collect();
    assert_eq!(places.iter().filter(|place| **place == leaf).count(), 1, "{list}");
    assert!(places.contains(&format!("{}/tenant", sandbox.cgroup()).as_str()), "{list}");
    sandbox.does("freeze", &[]);
    sandbox.does("thaw", &[]);
    sandbox.does("rm", &["--kill"]);
    assert!(!sleeper.wait().unwrap().success());
    sandbox.is_gone();
}

#[test]
fn exec_goes_to_the_cgroup_of_the_first_process_where_no_leaf_can_be_made() {
    if is_on_v1("memory") {
        return skip("cgroup v1 takes processes into a cgroup with children");
    }
    let (sandbox, _) = with_tenant("full-tenant", &["--unified", "cgroup.max.descendants=1"]);
    let place = sandbox.does("exec", &["--", "cat", "/proc/self/cgroup"]).stdout;
    assert_eq!(place.trim(), format!("0::{}/tenant", sandbox.cgroup()));
    sandbox.does("rm", &["--kill"]);
}
