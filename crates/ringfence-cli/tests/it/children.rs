//! The processes that `run` and `exec` wait for: their own, whatever they inherited, and orphans.

#![allow(clippy::unwrap_used)] // clippy.toml frees only #[test] functions.

use std::process::Command;

use crate::support::{Done, Sandbox, by_systemd, finish, skip};

testbed! {
    drivers: "cgroupfs systemd";
}

/// Has `starter ARGS` start a command, with its environment.
fn started_by(mut starter: Command, command: &Command) -> Done {
    starter.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => starter.env(name, value),
            None => starter.env_remove(name),
        };
    }
    finish(starter)
}

fn with_sigchld_ignored(command: &Command) -> Done {
    let mut starter = Command::new("env");
    starter.arg("--ignore-signal=CHLD");
    started_by(starter, command)
}

#[test]
fn run_and_exec_work_where_the_parent_ignores_sigchld() {
    let sandbox = Sandbox::named("sigchld");
    with_sigchld_ignored(&sandbox.command("run", &["--", "sh", "-c", "exit 7"])).exits(7);
    sandbox.is_gone();
    with_sigchld_ignored(&sandbox.command("run", &["--", "sh", "-c", "kill -TERM $$"])).exits(143);
    sandbox.is_gone();
    with_sigchld_ignored(&sandbox.command("run", &["--", "/no/such/program"])).exits(127);
    sandbox.is_gone();

    with_sigchld_ignored(&sandbox.command("run", &["--detach", "--", "sleep", "1000"])).exits(0);
    with_sigchld_ignored(&sandbox.command("exec", &["--", "sh", "-c", "exit 9"])).exits(9);
    // SIGCHLD is signal 17: bit 16 of the signals that the program ignores.
    let script = "grep SigIgn: /proc/self/status";
    let ignored = with_sigchld_ignored(&sandbox.command("exec", &["--", "sh", "-c", script])).exits(0).stdout;
    let ignored = u64::from_str_radix(ignored.trim_start_matches("SigIgn:").trim(), 16).unwrap();
    assert_eq!(ignored & 1 << 16, 0, "{ignored:x}");
    with_sigchld_ignored(&sandbox.command("rm", &["--kill"])).exits(0);
    sandbox.is_gone();
}

#[test]
fn process_1_of_a_container_collects_orphans() {
    if by_systemd() {
        return skip("systemd does not know PIDs of another PID namespace");
    }
    let sandbox = Sandbox::named("orphans");
    // Each inner shell leaves an orphan behind. Those that have ended count as tasks until they are collected.
    let script =
        "i=0; while [ $i -lt 60 ]; do sh -c 'sleep 0 &' || exit 9; sleep 0.02; i=$((i + 1)); done; exit 7";
    for signal in ["", "kill -KILL $$"] {
        let script = if signal.is_empty() { script } else { signal };
        let mut container = Command::new("unshare");
        container.args(["--pid", "--fork", "--mount-proc"]);
        let run = sandbox.command("run", &["--pids", "20", "--", "sh", "-c", script]);
        started_by(container, &run).exits(if signal.is_empty() { 7 } else { 137 });
        sandbox.is_gone();
    }
}
