//! Tasks that the freezer cannot stop: those that wait in the kernel, and those of the kernel itself that work for a VMM.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Sandbox, finish, is_alive, is_on_v1, send, skip, until};
use serde_json::Value;

testbed! {
    // Guests without systemd have no loop device.
    modes: "host systemd";
    drivers: "cgroupfs systemd";
    guest: "own";
}

fn done(program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments);
    finish(command).exits(0);
}

/// A file system that lets nobody write for as long as this lives: who tries waits, and cannot be stopped.
struct Stuck<'a>(&'a Path);

impl<'a> Stuck<'a> {
    fn new(sandbox: &Sandbox, at: &'a Path) -> Self {
        let disk = sandbox.scratch.path().join("disk");
        fs::File::create(&disk).unwrap().set_len(4 << 20).unwrap();
        fs::create_dir(at).unwrap();
        let (disk, point) = (disk.to_str().unwrap(), at.to_str().unwrap());
        done("mke2fs", &["-q", "-F", disk]);
        done("mount", &["-o", "loop", disk, point]);
        done("fsfreeze", &["--freeze", point]);
        Self(at)
    }
}

impl Drop for Stuck<'_> {
    fn drop(&mut self) {
        let point = self.0.to_str().unwrap();
        done("fsfreeze", &["--unfreeze", point]);
        let mut unmount = Command::new("umount");
        unmount.arg("--lazy").arg(point);
        finish(unmount).exits(0);
    }
}

#[test]
fn where_one_task_cannot_be_stopped_all_run_on() {
    if !crate::support::soak::in_testbed() {
        return skip("it freezes a file system: in the testbed");
    }
    let sandbox = Sandbox::named("stuck");
    let at = sandbox.scratch.path().join("mounted");
    let stuck = Stuck::new(&sandbox, &at);
    let waits = sandbox.detached(&[], &format!("echo x > {}/file; exec sleep 1000", at.display()));
    until("it waits", || fs::read_to_string(format!("/proc/{waits}/stat")).unwrap().contains(") D "));
    let mut exec = sandbox.command("exec", &["--", "sleep", "1000"]);
    let mut sleep = exec.spawn().unwrap();
    until("both are inside", || sandbox.processes().len() == 2);

    let error = sandbox.attempt_json("freeze", &["--timeout", "0.5"]).exits(1).error();
    assert_eq!(error["kind"], "timed_out", "{error}");
    assert!(error["message"].as_str().unwrap().contains("thawed again"), "{error}");
    assert_eq!(sandbox.json("show", &[])["state"], "running");
    let (file, value) =
        if is_on_v1("freezer") { ("freezer.state", "THAWED") } else { ("cgroup.freeze", "0") };
    assert_eq!(fs::read_to_string(sandbox.dir("freezer").join(file)).unwrap().trim_end(), value);

    drop(stuck);
    until("it waits no more", || {
        !fs::read_to_string(format!("/proc/{waits}/stat")).unwrap().contains(") D ")
    });
    sandbox.does("freeze", &[]);
    assert_eq!(sandbox.json("show", &[])["state"], "frozen");
    sandbox.does("rm", &["--kill"]);
    sleep.wait().unwrap();
}

#[test]
fn the_kernels_own_worker_for_a_vmm_is_sorted_counted_out_of_freezing_and_removed_with_it() {
    if !Command::new("modprobe").arg("vhost_net").status().is_ok_and(|status| status.success()) {
        return skip("no vhost_net");
    }
    for last in ["--kill", "--drain"] {
        let sandbox = Sandbox::named("vhost");
        let options = ["--profile", "qemu", "--vmm", "vcpu{}", "--vcpus", "1"];
        let mut run = sandbox.probe_command("run", &options, "vhost");
        let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let named = |name: &str| {
            let tasks = sandbox.attempt_json("ps", &["--threads"]);
            let tasks = if tasks.code == 0 { tasks.json() } else { Value::Null };
            let mut tasks = tasks.as_array().into_iter().flatten();
            tasks.find(|task| task["name"].as_str().unwrap().starts_with(name)).cloned()
        };
        let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
        until("it has a vCPU", || named("vcpu0").is_some_and(|task| task["part"] == "vcpu"));
        let vmm = number(&named("vcpu0").unwrap()["pid"]);
        until("the kernel works for it", || {
            sandbox.does("classify", &[]);
            named("vhost-").is_some_and(|task| task["part"] == "overhead")
        });
        let worker = number(&named("vhost-").unwrap()["tid"]);

        sandbox.does("freeze", &[]);
        assert_eq!(sandbox.json("show", &[])["state"], "frozen");
        sandbox.does("thaw", &[]);
        assert_eq!(sandbox.json("show", &[])["state"], "running");
        sandbox.does("rm", &[last]);
        sandbox.is_gone();
        assert_eq!(is_alive(vmm), last == "--drain");
        send(vmm, rustix::process::Signal::KILL);
        run.wait().unwrap();
        until("the worker ends", || !Path::new(&format!("/proc/{worker}")).exists());
    }
}
