//! `devices allow --claim` and `devices release`: what a path means, and what the kernel makes of it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{self, Sandbox, by_systemd, finish, skip};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use serde_json::Value;

testbed! {
    drivers: "cgroupfs systemd";
}

const EPERM: i32 = Errno::PERM.raw_os_error();

/// Nodes can be opened there; not in /tmp where that is mounted with nodev, as systemd does.
fn nodes() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("rf-t-").tempdir_in("/dev").unwrap()
}

/// The node of a device, be there such a device or not.
fn node(path: &Path, kind: FileType, major: u32, minor: u32) -> String {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, makedev(major, minor)).unwrap();
    path.display().to_string()
}

/// Whether a process inside may open these for reading and writing; the kernel refuses with EPERM alone.
#[track_caller]
fn may_open(sandbox: &Sandbox, paths: &[&str]) -> Vec<bool> {
    let script = paths.iter().map(|path| format!("open {path} rw")).collect::<Vec<_>>().join(";");
    let done = sandbox.probe("exec", &[], &script).exits(0);
    done.probed().iter().map(|errno| errno.parse::<i32>().unwrap() != EPERM).collect()
}

/// The claims, as `devices ls` has them: `name: c 10:196 rw, …`.
fn claims(sandbox: &Sandbox) -> Vec<String> {
    let list = sandbox.json("devices ls", &[]);
    let text = |rule: &Value| {
        let [kind, major, minor, access] = ["type", "major", "minor", "access"].map(|key| &rule[key]);
        format!("{kind} {major}:{minor} {access}").replace('"', "")
    };
    let claims = list["claims"].as_object().unwrap().iter();
    claims
        .map(|(name, rules)| {
            let rules: Vec<String> = rules.as_array().unwrap().iter().map(text).collect();
            format!("{name}: {}", rules.join(", "))
        })
        .collect()
}

#[test]
fn two_vfio_groups_share_the_container_until_the_last_is_released() {
    let sandbox = Sandbox::named("vfio");
    let dev = nodes();
    // Numbers that no driver has here: what opens them is told that there is no such device.
    let at = |name: &str, major, minor| node(&dev.path().join(name), FileType::CharacterDevice, major, minor);
    let (first, second) = (at("vfio/12", 511, 12), at("vfio/13", 511, 13));
    let (container, other) = (at("vfio/vfio", 10, 196), at("vfio/14", 511, 14));
    let all = [first.as_str(), &second, &container, &other];
    sandbox.create(&["--profile", "none"]);
    assert_eq!(may_open(&sandbox, &all), [false; 4]);
    let said = sandbox.does("-v devices allow", &[&first, "--claim", "gpu0"]);
    assert!(said.stderr.contains("/dev/vfio/vfio"), "{said:?}");
    sandbox.does("devices allow", &[&second, "--claim", "gpu1"]);
    assert_eq!(may_open(&sandbox, &all), [true, true, true, false]);
    assert_eq!(claims(&sandbox), ["gpu0: c 10:196 rw, c 511:12 rwm", "gpu1: c 10:196 rw, c 511:13 rwm"]);
    sandbox.does("devices release", &["gpu0"]);
    assert_eq!(may_open(&sandbox, &all), [false, true, true, false]);
    let left = sandbox.json("devices release", &["gpu1"]);
    assert_eq!(
        (&left["claims"], &left["devices"]["default"]),
        (&Value::Object(Default::default()), &"deny".into())
    );
    assert_eq!(may_open(&sandbox, &all), [false; 4]);
    let gone = sandbox.attempt_json("devices release", &["gpu1"]).exits(3).error();
    assert_eq!((&gone["setting"], &gone["value"]), (&"claim".into(), &"gpu1".into()));
}

#[test]
fn what_the_sandbox_was_made_with_outlasts_every_claim() {
    let sandbox = Sandbox::named("kept");
    let dev = nodes();
    let at = |name: &str, minor| node(&dev.path().join(name), FileType::CharacterDevice, 10, minor);
    let (container, group) =
        (at("vfio/vfio", 196), node(&dev.path().join("vfio/7"), FileType::CharacterDevice, 511, 7));
    sandbox.create(&["--profile", "none", "--device-allow", "c 10:196 rw"]);
    sandbox.does("devices allow", &[&group, "/dev/zero", "--claim", "gpu"]);
    sandbox.does("devices release", &["gpu"]);
    assert_eq!(may_open(&sandbox, &[&container, &group, "/dev/zero"]), [true, false, true]);
    // What is denied while a claim needs it stays.
    sandbox.does("devices allow", &[&group, "--claim", "gpu"]);
    let denied = sandbox.does("devices deny", &["c 10:196 rwm"]);
    assert!(denied.stderr.contains("claim gpu"), "{denied:?}");
    sandbox.attempt("--strict devices deny", &["c 10:196 rwm"]).exits(1);
    assert_eq!(may_open(&sandbox, &[&container, &group]), [true, true]);
    // A part of the claim.
    sandbox.does("devices deny", &[&group, "--claim", "gpu"]);
    assert_eq!(may_open(&sandbox, &[&container, &group]), [true, false]);
    sandbox.does("devices release", &["gpu"]);
    assert_eq!(may_open(&sandbox, &[&container]), [false]);
}

#[test]
fn an_iommufd_device_needs_the_iommu_and_a_tap_nothing() {
    let sandbox = Sandbox::named("others");
    let dev = nodes();
    let at = |name: &str, minor| node(&dev.path().join(name), FileType::CharacterDevice, 511, minor);
    sandbox.create(&["--profile", "none"]);
    sandbox.does("devices allow", &[&at("vfio/devices/vfio0", 1), "--claim", "dev"]);
    sandbox.does("devices allow", &[&at("tap5", 2), "--claim", "tap"]);
    let claims = claims(&sandbox);
    let misc = fs::read_to_string("/sys/class/misc/iommu/dev");
    let iommu = misc.map_or(String::new(), |number| format!("c {} rw, ", number.trim()));
    assert_eq!(claims, [format!("dev: {iommu}c 511:1 rwm"), "tap: c 511:2 rwm".to_owned()]);
}

#[test]
fn what_is_no_device_is_refused_and_a_file_is_told_that_it_needs_none() {
    let sandbox = Sandbox::named("refused");
    sandbox.create(&["--profile", "none"]);
    let image = sandbox.scratch.path().join("disk.img");
    fs::write(&image, "").unwrap();
    let error =
        sandbox.attempt_json("devices allow", &[image.to_str().unwrap(), "--claim", "disk"]).exits(2).error();
    assert!(error["message"].as_str().unwrap().contains("needs no rule"), "{error}");
    for (rule, claim) in [("/dev/none", "disk"), ("a", "disk"), ("c 1:11 r", "a disk"), ("c 1:11 r", "")] {
        sandbox.attempt("devices allow", &[rule, "--claim", claim]).exits(2);
    }
    sandbox.attempt("devices deny", &["c 1:11 r", "--claim", "disk"]).exits(3);
    assert_eq!(claims(&sandbox), Vec::<String>::new());
}

#[test]
fn what_cannot_be_recorded_is_taken_back() {
    let sandbox = Sandbox::named("unkept");
    let dev = nodes();
    let at = |name: &str, minor| node(&dev.path().join(name), FileType::CharacterDevice, 511, minor);
    let (first, second) = (at("x", 1), at("y", 2));
    sandbox.create(&["--profile", "none"]);
    sandbox.does("devices allow", &[&first, "--claim", "x"]);
    let before = sandbox.json("devices ls", &[]);
    // In the way of the file that the state is first written to.
    let temporary = sandbox.state_dir().join(format!("{}.tmp", sandbox.id));
    for (verb, arguments) in [
        ("devices allow", &[second.as_str(), "--claim", "x"][..]),
        ("devices allow", &[&second]),
        ("devices deny", &["c 1:5 rw"]),
        ("devices release", &["x"]),
    ] {
        fs::create_dir(&temporary).unwrap();
        let refused = sandbox.attempt(verb, arguments);
        fs::remove_dir(&temporary).unwrap();
        assert!(refused.exits(1).stderr.contains("state"), "{verb}");
        assert_eq!(may_open(&sandbox, &[&first, &second, "/dev/zero"]), [true, false, true], "{verb}");
    }
    assert_eq!(sandbox.json("devices ls", &[]), before);
    sandbox.does("devices release", &["x"]);
}

#[test]
fn a_claim_is_there_before_the_first_process_is() {
    let sandbox = Sandbox::named("early");
    let dev = nodes();
    let path = node(&dev.path().join("x"), FileType::CharacterDevice, 511, 9);
    // With systemd nothing is there but the plan.
    sandbox.does("create", &["--profile", "none"]);
    sandbox.does("devices allow", &[&path, "--claim", "x"]);
    assert_eq!(may_open(&sandbox, &[&path]), [true]);
    if by_systemd() {
        // Its scope ended with the probe, and starts anew.
        sandbox.does("devices release", &["x"]);
        assert_eq!(may_open(&sandbox, &[&path]), [false]);
    }
}

/// Whether this is a guest of the testbed, where disks may be made.
fn is_testbed() -> bool {
    crate::support::soak::in_testbed()
}

fn say(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|done| done.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn a_disk_is_read_without_what_it_lies_on_which_is_allowed_on_request() {
    if !is_testbed() {
        return skip("disks are made in guests of the testbed alone");
    }
    _ = say("modprobe", &["null_blk"]);
    _ = say("modprobe", &["loop"]);
    let below = "/dev/nullb0";
    if !Path::new(below).exists() {
        return skip("no null_blk here");
    }
    let over = say("losetup", &["--find", "--show", below]).unwrap();
    let sandbox = Sandbox::named("disk");
    sandbox.create(&["--profile", "none"]);
    sandbox.does("devices allow", &[&over, "--claim", "disk"]);
    assert_eq!(may_open(&sandbox, &[&over, below]), [true, false]);
    let read = |path: &str| {
        sandbox.attempt("exec", &["--", "dd", &format!("if={path}"), "of=/dev/null", "count=8"]).code
    };
    assert_eq!((read(&over), read(below)), (0, 1));
    sandbox.does("devices allow", &[&over, "--beneath", "--claim", "disk"]);
    assert_eq!(may_open(&sandbox, &[&over, below]), [true, true]);
    sandbox.does("devices release", &["disk"]);
    assert_eq!(may_open(&sandbox, &[&over, below]), [false, false]);

    // A logical volume, and a multipath disk, are device mapper's targets over a device; the UUID says which.
    for (uuid, with_it) in [("LVM-rf", false), ("mpath-rf", true)] {
        let name = format!("rf-t-{}", std::process::id());
        let table = format!("0 2048 linear {below} 0");
        let Some(_) = say("dmsetup", &["create", &name, "--uuid", uuid, "--table", &table]) else {
            skip("no dmsetup here: the device mapper is not tried");
            break;
        };
        let node = say("dmsetup", &["info", "-c", "--noheadings", "-o", "blkdevname", &name]).unwrap();
        let volume = format!("/dev/{node}");
        sandbox.does("devices allow", &[&volume, "--claim", "volume"]);
        assert_eq!(may_open(&sandbox, &[&volume, below]), [true, with_it], "{uuid}");
        assert_eq!((read(&volume), read(below)), (0, i32::from(!with_it)), "{uuid}");
        sandbox.does("devices allow", &[&volume, "--beneath", "--claim", "volume"]);
        assert_eq!(may_open(&sandbox, &[below]), [true], "{uuid}");
        sandbox.does("devices release", &["volume"]);
        assert_eq!(may_open(&sandbox, &[&volume, below]), [false; 2], "{uuid}");
        say("dmsetup", &["remove", &name]).unwrap();
    }
    say("losetup", &["--detach", &over]).unwrap();
}

#[test]
fn a_claim_that_the_parent_refuses_leaves_the_list_and_the_state_as_they_were() {
    if !support::is_on_v1("devices") || by_systemd() {
        return skip("nothing refuses a claim here");
    }
    let parent = Sandbox::parent("above", &["--profile", "none", "--device-allow", "c 1:11 r"]);
    let sandbox = Sandbox::named("below");
    sandbox.create(&["--profile", "none", "--allow-nested", "--path", &sandbox.path_in(&parent)]);
    let before = (sandbox.json("devices ls", &[]), sandbox.file("devices.list"));
    let refused = sandbox.attempt("devices allow", &["c 1:11 r", "c 10:229 rw", "--claim", "both"]).exits(1);
    assert!(refused.stderr.contains("parent"), "{refused:?}");
    assert_eq!((sandbox.json("devices ls", &[]), sandbox.file("devices.list")), before);
    finish(sandbox.command("diff", &[])).exits(0);
}
