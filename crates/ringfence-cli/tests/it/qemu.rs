//! A real virtual machine, ring-fenced: QEMU boots a Linux guest inside with the devices of its profile, and what is in
//! the profile is what QEMU asks for.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{self, Sandbox, finish, ringfence, skip, until, wait};

testbed! {
    // A Linux guest takes many minutes where another emulator is below.
    modes: "host";
}

const QEMU: &str = "qemu-system-x86_64";
const TAP: &str = "tap,id=n,ifname=rf-tap,script=no,downscript=no";

/// Kernel and initrd of a small guest; QEMU comes with them.
fn guest() -> Option<[String; 2]> {
    let testbed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testbed/testbed");
    let made = Command::new(testbed).arg("guest-kernel").stderr(Stdio::inherit()).output();
    let Some(made) = made.ok().filter(|made| made.status.success()) else {
        skip("the testbed makes no guest kernel here");
        return None;
    };
    let text = String::from_utf8(made.stdout).unwrap();
    let path = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    Some(["kernel", "initrd"].map(path))
}

#[test]
fn a_linux_guest_boots_under_the_qemu_profile_and_leaves_nothing_behind() {
    let Some([kernel, initrd]) = guest() else { return };
    let sandbox = Sandbox::named("boot");
    let console: PathBuf = sandbox.scratch.path().join("console");
    let serial = format!("file:{}", console.display());
    #[rustfmt::skip]
    let program = [
        QEMU, "-accel", "tcg", "-cpu", "max", "-m", "192", "-nodefaults", "-no-user-config", "-display", "none",
        "-no-reboot", "-serial", &serial, "-kernel", &kernel, "-initrd", &initrd,
        "-append", "console=ttyS0 quiet panic=-1 idle=1000",
    ];
    let running = sandbox.start(&["--profile", "qemu", "--memory", "512M", "--pids", "64"], &program);
    let run = running.id();
    until("the guest is up", || {
        std::fs::read_to_string(&console).is_ok_and(|said| said.contains("guest is up"))
    });

    // What the guest has touched of its memory is charged to the sandbox, and QEMU's threads are counted.
    let stats = &sandbox.json("stats", &[])[0];
    assert!(stats["memory"]["current"].as_u64().unwrap() > 50 << 20, "{stats}");
    assert!(stats["pids"]["current"].as_u64().unwrap() >= 2, "{stats}");
    assert!(stats["cpu"]["usage_us"].as_u64().unwrap() > 100_000, "{stats}");
    let threads = sandbox.json("ps", &["--threads"]);
    assert!(threads.as_array().unwrap().len() >= 2, "{threads}");

    // QEMU takes SIGTERM as a request to quit, and does.
    support::send(run, rustix::process::Signal::TERM);
    wait(running, "run".to_owned()).exits(0);
    sandbox.is_gone();
}

#[test]
fn a_guest_boots_and_what_qemu_opens_is_what_its_profile_allows() {
    let Some([kernel, initrd]) = guest() else { return };
    if Command::new("strace").arg("-V").output().is_err() {
        return skip("there is no strace");
    }
    let sandbox = Sandbox::named("traced");
    let scratch = |name: &str| sandbox.scratch.path().join(name).display().to_string();
    let (console, trace, disk) = (scratch("console"), scratch("trace"), scratch("disk"));
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let (serial, drive) = (format!("file:{console}"), format!("file={disk},format=raw,if=virtio"));
    #[rustfmt::skip]
    let program = [
        "strace", "-f", "--seccomp-bpf", "-e", "trace=open,openat", "-o", &trace,
        QEMU, "-accel", "tcg", "-cpu", "max", "-m", "192", "-nodefaults", "-no-user-config", "-display", "none",
        "-no-reboot", "-serial", &serial, "-monitor", "pty", "-kernel", &kernel, "-initrd", &initrd, "-drive", &drive,
        "-object", "rng-random,id=r,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=r",
        "-append", "console=ttyS0 quiet panic=-1 idle=1000",
    ];
    let running = sandbox.start(&["--profile", "qemu"], &program);
    until("the guest is up", || {
        std::fs::read_to_string(&console).is_ok_and(|said| said.contains("guest is up"))
    });
    let traced = std::fs::read_to_string(&trace).unwrap();
    assert!(!traced.contains("EPERM"), "{traced}");
    let mut opened = std::collections::BTreeSet::new();
    for line in traced.lines().filter(|line| !line.contains("= -1 ")) {
        let Some(path) = line.split('"').nth(1).filter(|path| path.starts_with("/dev/")) else { continue };
        if ringfence::DeviceRule::path(path).is_ok() {
            let access = if line.contains("O_RDWR") { "rw" } else { "r" };
            finish(sandbox.ringfence(&[
                "devices",
                "check",
                "--id",
                &sandbox.id,
                &format!("{path}:{access}"),
            ]))
            .exits(0);
            opened.insert(path.to_owned());
        }
    }
    assert!(opened.contains("/dev/urandom") && opened.contains("/dev/ptmx"), "{opened:?}");
    // strace keeps a signal to end to itself.
    sandbox.does("kill", &[]);
    wait(running, "run".to_owned());
    sandbox.is_gone();
}

#[test]
fn a_device_that_is_taken_away_is_what_qemu_fails_at() {
    if guest().is_none() {
        return;
    }
    for (device, option) in [("/dev/kvm", ["-accel", "kvm"]), ("/dev/net/tun", ["-netdev", TAP])] {
        if !Path::new(device).exists() {
            skip(&format!("this host has no {device}"));
            continue;
        }
        let sandbox = Sandbox::named("without");
        let program = [&[QEMU, "-machine", "none", "-display", "none", "-nodefaults"][..], &option].concat();
        let done = sandbox.run(&["--profile", "qemu", "--device-deny", device], &program);
        assert_eq!(done.code, 1, "{}", done.stderr);
        assert!(done.stderr.contains("Operation not permitted"), "{device}: {}", done.stderr);
    }
}

#[test]
fn qemu_asks_for_each_device_of_its_profile() {
    if guest().is_none() {
        return;
    }
    if Command::new("strace").arg("-V").output().is_err() {
        return skip("there is no strace");
    }
    let vhost = format!("{TAP},vhost=on");
    let cases: &[(&str, &[&str])] = &[
        ("/dev/kvm", &["-machine", "none", "-accel", "kvm"]),
        ("/dev/net/tun", &["-machine", "none", "-netdev", TAP]),
        ("/dev/vhost-net", &["-machine", "none", "-netdev", &vhost]),
        ("/dev/vhost-vsock", &["-machine", "q35", "-device", "vhost-vsock-pci,guest-cid=3"]),
    ];
    for (device, options) in cases {
        let scratch = tempfile::tempdir().unwrap();
        let trace = scratch.path().join("trace");
        let mut command = Command::new("strace");
        command.args(["-f", "-e", "trace=open,openat", "-o"]).arg(&trace);
        // Should it come so far, the machine stays stopped, and the monitor is told to quit.
        command.args([QEMU, "-S", "-display", "none", "-nodefaults", "-monitor", "stdio"]).args(*options);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // One that has gone by itself is as good.
        _ = std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"quit\n");
        wait(child, format!("{command:?}"));
        let traced = std::fs::read_to_string(&trace).unwrap();
        let asked = traced.lines().find(|line| line.contains(&format!("\"{device}\"")));
        let asked = asked.unwrap_or_else(|| panic!("QEMU {options:?} did not open {device}"));
        assert!(asked.contains("O_RDWR"), "{asked}");
    }
}

#[test]
fn the_profile_on_a_host_that_has_everything_is_these_devices_and_no_others() {
    let mut command = ringfence();
    command.args(["-o", "json", "plan", "x", "--profile", "qemu", "--host", "v2"]);
    let plan = finish(command).exits(0).json();
    let filter = plan["steps"].as_array().unwrap().iter().find(|step| step["op"] == "device_filter").unwrap();
    let rule = |rule: &serde_json::Value| {
        let [kind, major, minor, access] = ["type", "major", "minor", "access"].map(|key| &rule[key]);
        format!("{kind} {major}:{minor} {access}").replace('"', "")
    };
    let listed: Vec<String> = filter["exceptions"].as_array().unwrap().iter().map(rule).collect();
    #[rustfmt::skip]
    let expected = [
        "b 253:* rw", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm",
        "c 10:196 rw", "c 10:200 rw", "c 10:232 rw", "c 10:238 rw", "c 10:241 rw", "c 136:* rwm",
    ];
    assert_eq!(listed, expected);
}
