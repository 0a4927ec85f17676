//! A full standard output, and a full file system below the state directory: nothing is left running unnoticed, and nobody is
//! kept from killing and removing.

#![allow(clippy::unwrap_used)] // clippy.toml frees only #[test] functions.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use crate::support::{Done, Sandbox, by_systemd, hold, is_alive, wait};

testbed! {
    drivers: "cgroupfs systemd";
}

/// Runs a command whose standard output is full.
fn to_full(mut command: Command) -> Done {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let what = format!("{command:?} > /dev/full");
    wait(command.stdout(full).stderr(Stdio::piped()).spawn().unwrap(), what)
}

#[test]
fn command_whose_result_cannot_be_printed_leaves_nothing_behind() {
    let sandbox = Sandbox::named("stdout");
    for format in ["table", "json"] {
        let pid_file = sandbox.scratch.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 1000", pid_file.display());
        let detach = ["-o", format, "run", &sandbox.id, "--detach", "--", "sh", "-c", &script];
        let done = to_full(sandbox.ringfence(&detach)).exits(125);
        assert!(done.stderr.contains("cannot write the results"), "{}", done.stderr);
        sandbox.is_gone();
        // It may have been killed before it wrote.
        let pid = fs::read_to_string(&pid_file).unwrap_or_default();
        assert!(pid.trim().parse().is_ok_and(|pid| !is_alive(pid)) || pid.is_empty(), "{pid} lives");

        let create = [&["-o", format, "create", &sandbox.id], hold()].concat();
        let done = to_full(sandbox.ringfence(&create)).exits(1);
        assert!(done.stderr.contains("cannot write the results"), "{}", done.stderr);
        sandbox.is_gone();
    }
}

#[test]
fn run_and_exec_leave_a_full_output_to_their_command() {
    let sandbox = Sandbox::named("own-stdout");
    to_full(sandbox.command("run", &["--", "sh", "-c", "echo lost || exit 7"])).exits(7);
    sandbox.is_gone();
    sandbox.detached(&[], "sleep 1000");
    to_full(sandbox.command("exec", &["--", "sh", "-c", "echo lost || exit 9"])).exits(9);
    sandbox.does("rm", &["--kill"]);
}

/// Runs a shell script with `rf` for the command, `$ID` and `$STATE`: a state directory on a file system of 64 KiB of its own,
/// which `fill` fills.
fn on_a_small_file_system(sandbox: &Sandbox, script: &str) -> Done {
    let prelude = "mount -t tmpfs -o size=64k,mode=700 none \"$STATE\"
        fill() { cat /dev/zero > \"$STATE/fill\" 2> /dev/null || true; test \"$(df --output=avail \"$STATE\" | tail -n 1)\" -eq 0; }
        rf() { \"$BIN\" --state-dir \"$STATE\" \"$@\"; }\n";
    let state = sandbox.state_dir();
    fs::create_dir_all(&state).unwrap();
    let rf = sandbox.ringfence(&[]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", &format!("{prelude}{script}")]);
    for (name, value) in rf.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("BIN", rf.get_program()).env("STATE", &state).env("ID", &sandbox.id).stdin(Stdio::null());
    let what = script.to_owned();
    let done = wait(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(), what);
    // The file system went with its namespace.
    fs::remove_dir(&state).unwrap();
    done
}

#[test]
fn full_state_file_system_does_not_keep_rm_from_killing() {
    let sandbox = Sandbox::named("rm-full");
    let script =
        "pid=$(rf run \"$ID\" --detach -- sleep 1000); fill; rf rm \"$ID\" --kill; test ! -e /proc/$pid/exe
                  test ! -e \"$STATE/$ID.json\"";
    on_a_small_file_system(&sandbox, script).exits(0);
    sandbox.is_gone();
}

#[test]
fn full_state_file_system_does_not_keep_gc_from_killing() {
    let sandbox = Sandbox::named("gc-full");
    // Its holder ends, and leaves a process behind.
    let script =
        "rf run \"$ID\" --detach -- sh -c 'sleep 1000 & sleep 0.2'; sleep 1; fill; rf gc --apply --kill
                  test ! -e \"$STATE/$ID.json\"";
    on_a_small_file_system(&sandbox, script).exits(0);
    sandbox.is_gone();
}

#[test]
fn read_only_state_file_system_keeps_nothing_from_being_killed_and_removed() {
    let sandbox = Sandbox::named("read-only-rm");
    let alive = "pid=$(rf run \"$ID\" --detach -- sleep 1000)";
    let orphaned = "rf run \"$ID\" --detach -- sh -c 'sleep 1000 & sleep 0.2'; pid=; sleep 1";
    for (start, removal, status) in
        [(alive, "rm \"$ID\" --kill", 0), (orphaned, "gc --apply --kill", 0), (alive, "rm \"$ID\"", 5)]
    {
        let script = format!(
            "{start}; mount -o remount,ro \"$STATE\"; set +e
             rf show \"$ID\" > /dev/null && rf ps \"$ID\" > /dev/null || exit 21
             rf set \"$ID\" --pids 77 && exit 22
             rf -o json diff \"$ID\" | grep -q '^\\[\\]$' || exit 23
             rf show no-such; test $? -eq 3 || exit 24
             rf {removal}; status=$?
             test \"$pid\" && test -e /proc/$pid/exe && kill $pid
             test -e \"$STATE/$ID.json\" || exit 25
             mount -o remount,rw \"$STATE\"; rf rm \"$ID\" --kill || exit 26; exit $status"
        );
        let done = on_a_small_file_system(&sandbox, &script).exits(status);
        assert!(done.stderr.contains("Read-only"), "{removal}: {}", done.stderr);
        sandbox.is_gone();
    }
}

#[test]
fn run_returns_the_status_of_its_command_when_the_state_file_system_is_full() {
    let sandbox = Sandbox::named("run-full");
    let script = "set +e; export STATE; rf run \"$ID\" -- sh -c '
                      sleep 1000 & sleep 0.5; cat /dev/zero > \"$STATE/fill\" 2> /dev/null; exit 7'";
    on_a_small_file_system(&sandbox, script).exits(7);
    sandbox.is_gone();
    // Read-only is as good as full.
    let script = "set +e; export STATE; rf run \"$ID\" -- sh -c '
                      sleep 1000 & sleep 0.5; mount -o remount,ro \"$STATE\"; exit 7'";
    let done = on_a_small_file_system(&sandbox, script).exits(7);
    assert!(done.stderr.contains("Read-only"), "{}", done.stderr);
    sandbox.is_gone();
    // Full from the start: nothing is started.
    on_a_small_file_system(&sandbox, "set +e; fill; rf run \"$ID\" -- sleep 1000").exits(125);
    sandbox.is_gone();
}

#[test]
fn creation_whose_second_record_does_not_fit_is_removed_with_its_parts() {
    let sandbox = Sandbox::named("create-full");
    // The directory, the lock, the identity of the store and the first record; a unit has a link besides.
    let inodes = if by_systemd() { 5 } else { 4 };
    let script = format!(
        "set +e; mount -o remount,nr_inodes={inodes} \"$STATE\"
         rf create \"$ID\" --overhead nested --cpus 0.5; status=$?
         test ! -e \"$STATE/$ID.json\" || exit 9; exit $status"
    );
    let done = on_a_small_file_system(&sandbox, &script).exits(1);
    assert!(done.stderr.contains("No space left"), "{}", done.stderr);
    assert!(!done.stderr.contains("caused by"), "{}", done.stderr);
    sandbox.is_gone();
}

#[test]
fn exec_returns_the_status_of_its_command_when_the_state_file_system_is_full() {
    let sandbox = Sandbox::named("exec-full");
    let script =
        "rf run \"$ID\" --detach -- sleep 1000; fill; set +e; rf exec \"$ID\" -- sh -c 'exit 9'; status=$?
                  rf rm \"$ID\" --kill || exit 1; exit $status";
    let done = on_a_small_file_system(&sandbox, script).exits(9);
    assert!(done.stderr.contains("No space left"), "{}", done.stderr);
    sandbox.is_gone();
}
