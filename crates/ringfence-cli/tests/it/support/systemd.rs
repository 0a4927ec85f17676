//! Sandboxes as units of systemd: what the tests of those have in common.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::{Done, Sandbox, directories_named, finish, hierarchy_of, is_on_v1, skip, until};

const SYSTEMD: [&str; 2] = ["--driver", "systemd"];

/// Whether there is no systemd here to speak with.
pub fn skipped() -> bool {
    let is_there = std::path::Path::new("/run/systemd/system").is_dir();
    if !is_there {
        skip("systemd is not process 1 here");
    }
    !is_there
}

pub fn with(options: &[&str]) -> Vec<String> {
    SYSTEMD.iter().chain(options).map(|option| (*option).to_owned()).collect()
}

pub fn run(sandbox: &Sandbox, options: &[&str], script: &str) -> Done {
    let options = with(options);
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    sandbox.run(&options, &["sh", "-c", script])
}

/// The same, and it goes on; its PID.
pub fn detached(sandbox: &Sandbox, options: &[&str], script: &str) -> u32 {
    let options = with(options);
    sandbox.detached(&options.iter().map(String::as_str).collect::<Vec<_>>(), script)
}

/// The unit of the processes that were drained out of a sandbox.
pub fn drained(sandbox: &Sandbox) -> String {
    format!("ringfence-{}-drained.scope", sandbox.id)
}

pub fn create(sandbox: &Sandbox, options: &[&str]) -> Done {
    let options = with(options);
    sandbox.does("create", &options.iter().map(String::as_str).collect::<Vec<_>>())
}

pub fn exec(sandbox: &Sandbox, script: &str) -> Done {
    sandbox.attempt("exec", &["--", "sh", "-c", script])
}

pub fn unit(sandbox: &Sandbox) -> String {
    format!("ringfence-{}.scope", sandbox.id)
}

pub fn systemctl(args: &[&str]) -> String {
    let mut command = Command::new("systemctl");
    command.args(args);
    finish(command).stdout
}

pub fn state_of(unit: &str) -> String {
    systemctl(&["show", "-P", "ActiveState", unit]).trim().to_owned()
}

/// Units of any state whose names have a part in them.
pub fn units_like(part: &str) -> Vec<String> {
    let list = systemctl(&["list-units", "--all", "--plain", "--no-legend", "--full"]);
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.contains(part)).map(str::to_owned).collect()
}

#[track_caller]
pub fn nothing_is_left(sandbox: &Sandbox) {
    until("the unit is gone", || units_like(&sandbox.id).is_empty());
    let left: Vec<PathBuf> =
        [unit(sandbox), sandbox.id.clone()].iter().flat_map(|name| directories_named(name)).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A file of the unit's cgroup.
#[track_caller]
pub fn file(sandbox: &Sandbox, controller: &str, name: &str) -> String {
    let hierarchy = hierarchy_of(controller);
    let dirs = directories_named(&unit(sandbox));
    let dir = dirs.iter().find(|dir| dir.starts_with(&hierarchy.point)).expect("a directory");
    let text = fs::read_to_string(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    text.trim_end().to_owned()
}

/// What the limits of these tests become.
pub const LIMITS: [&str; 8] = ["--memory", "64M", "--cpus", "0.5", "--pids", "50", "--cpuset-cpus", "0"];

#[track_caller]
pub fn limits_hold(sandbox: &Sandbox, cpus: u32) {
    let memory = if is_on_v1("memory") { "memory.limit_in_bytes" } else { "memory.max" };
    assert_eq!(file(sandbox, "memory", memory), "67108864");
    assert_eq!(file(sandbox, "pids", "pids.max"), "50");
    assert_eq!(file(sandbox, "cpuset", "cpuset.cpus"), "0");
    if is_on_v1("cpu") {
        assert_eq!(file(sandbox, "cpu", "cpu.cfs_quota_us"), (cpus * 1000).to_string());
        assert_eq!(file(sandbox, "cpu", "cpu.cfs_burst_us"), (cpus * 1000).to_string());
    } else {
        assert_eq!(file(sandbox, "cpu", "cpu.max"), format!("{} 100000", cpus * 1000));
        assert_eq!(file(sandbox, "cpu", "cpu.max.burst"), (cpus * 1000).to_string());
    }
}
