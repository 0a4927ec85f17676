//! `doctor` is held against the kernel's own files, with things as they are and with things broken in a mount namespace.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Done, binary, finish, hierarchies, mode, ringfence, skip};
use serde_json::Value;

testbed! {}

fn doctor(args: &[&str]) -> Done {
    let mut command = ringfence();
    command.args(["-o", "json", "doctor"]).args(args);
    finish(command)
}

/// `doctor` after a shell script, in a mount namespace where the script can break what it likes.
fn doctor_after(script: &str) -> Done {
    let mut command = Command::new("unshare");
    let script = format!("{script}\nexec \"$0\" -o json doctor");
    command.args(["--mount", "sh", "-ec", &script]).arg(binary()).env_remove("RINGFENCE_CGROUP_ROOT");
    finish(command)
}

#[track_caller]
fn finding(done: &Done, check: &str) -> Value {
    let all = done.json();
    let found = all.as_array().unwrap().iter().find(|finding| finding["check"] == check);
    found.unwrap_or_else(|| panic!("no {check} in {all:#}")).clone()
}

#[track_caller]
fn says(finding: &Value, key: &str, part: &str) {
    let text = finding[key].as_str().unwrap_or_default();
    assert!(text.contains(part), "no {part:?} in {finding:#}");
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim_end().to_owned()
}

#[test]
fn every_finding_has_its_keys_and_what_is_not_well_says_what_to_do() {
    let done = doctor(&[]);
    let worst = worst_of(&done.json());
    let done = done.exits(if worst == "unusable" { 1 } else { 0 });
    assert_eq!(done.stderr, "");
    // Sandboxes of other tests come and go meanwhile.
    let strict = doctor(&["--strict"]);
    let worst = worst_of(&strict.json());
    strict.exits(if worst == "good" { 0 } else { 1 });
    let mut table = ringfence();
    table.arg("doctor");
    let table = finish(table).exits(done.code).stdout;
    assert!(table.starts_with("VERDICT") && table.contains("cgroups"), "{table}");
}

fn worst_of(all: &Value) -> &'static str {
    let mut worst = "good";
    for finding in all.as_array().unwrap() {
        assert!(finding["check"].is_string() && finding["found"].is_string(), "{finding:#}");
        let verdict = finding["verdict"].as_str().unwrap();
        assert_eq!(finding["ok"], matches!(verdict, "good" | "note"), "{finding:#}");
        assert!(verdict == "good" || finding["do"].is_string(), "{finding:#}");
        if verdict == "unusable" || (verdict == "limited" && worst == "good") {
            worst = if verdict == "unusable" { "unusable" } else { "limited" };
        }
    }
    worst
}

#[test]
fn the_features_of_this_build_stand_beside_those_of_the_host() {
    let mut features = ringfence();
    features.arg("features");
    let features = finish(features).exits(0).json();
    for (list, name) in [("drivers", "cgroupfs"), ("profiles", "qemu"), ("profiles", "none")] {
        assert!(features[list].as_array().unwrap().contains(&name.into()), "{features:#}");
    }
    assert!(features["state_version"].is_u64() && features["version"].is_string(), "{features:#}");
}

#[test]
fn mode_mounts_and_controllers_are_those_of_the_kernel() {
    let done = doctor(&[]);
    let cgroups = finding(&done, "cgroups");
    says(&cgroups, "found", mode());
    assert_eq!(cgroups["ok"], true);
    let all = hierarchies();
    let there = finding(&done, "controllers");
    let there: Vec<&str> = there["found"].as_str().unwrap().split([' ', ';']).collect();
    for hierarchy in &all {
        says(&cgroups, "found", hierarchy.point.file_name().unwrap().to_str().unwrap());
        let offered: Vec<String> = match hierarchy.is_v2 {
            true => read(hierarchy.point.join("cgroup.controllers")).split(' ').map(str::to_owned).collect(),
            false => hierarchy.controllers.clone(),
        };
        for name in ["cpu", "cpuset", "memory", "pids", "hugetlb", "devices", "freezer"] {
            if offered.iter().any(|offered| offered == name) {
                assert!(there.contains(&name), "{name} of {offered:?} is not in {there:?}");
            }
        }
    }
}

#[test]
fn the_kernel_pressure_swap_and_pages_are_as_the_kernel_has_them() {
    let done = doctor(&[]);
    says(&finding(&done, "kernel"), "found", &read("/proc/sys/kernel/osrelease"));
    assert_eq!(finding(&done, "pressure")["ok"], fs::File::open("/proc/pressure/cpu").is_ok());
    let swap = if read("/proc/swaps").lines().count() > 1 { "on" } else { "off" };
    assert!(finding(&done, "swap")["found"].as_str().unwrap().starts_with(swap));
    let huge = finding(&done, "huge-pages");
    let reserved = read("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    if reserved.parse::<u64>().is_ok_and(|pages| pages > 0) {
        says(&huge, "found", &format!("of {reserved} free"));
    }
}

#[test]
fn dying_cgroups_and_mount_options_are_those_of_the_version_2_tree() {
    let Some(unified) = hierarchies().into_iter().find(|hierarchy| hierarchy.is_v2) else {
        return skip("there is no version 2 hierarchy");
    };
    let done = doctor(&[]);
    let stat = read(unified.point.join("cgroup.stat"));
    let dying = stat.lines().find_map(|line| line.strip_prefix("nr_dying_descendants ")).unwrap();
    assert_eq!(finding(&done, "dying-cgroups")["ok"], dying.parse::<u64>().unwrap() < 1000, "{stat}");
    let options = finding(&done, "mount-options");
    let features = read("/sys/kernel/cgroup/features");
    for option in ["nsdelegate", "memory_recursiveprot"] {
        let is_set = unified.controllers.iter().any(|given| given == option);
        let is_told = options["found"].as_str().unwrap().split(';').next().unwrap().contains(option);
        assert_eq!(is_told, is_set, "{options:#}");
        if !is_set && features.contains(option) && (option == "nsdelegate" || mode() == "v2") {
            assert_eq!(options["verdict"], "note");
            says(&options, "do", option);
        }
    }
}

/// A cgroup of the test's own in the version 2 tree.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(name: &str) -> Option<Self> {
        let unified = hierarchies().into_iter().find(|hierarchy| hierarchy.is_v2)?;
        let directory = unified.point.join(format!("rf-t-{}-{name}", std::process::id()));
        fs::create_dir(&directory).ok().map(|()| Self(directory))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).unwrap();
    }
}

#[test]
fn a_tree_that_is_full_or_too_shallow_is_told_with_the_file_to_write() {
    let Some(cgroup) = Cgroup::make("full") else { return skip("no cgroup can be made in version 2") };
    let root = cgroup.0.to_str().unwrap();
    let limits = || finding(&doctor(&["--cgroup-root", root]), "cgroup-limits");
    assert_eq!(limits()["ok"], true);
    for (file, value) in [("cgroup.max.descendants", "0"), ("cgroup.max.depth", "2")] {
        fs::write(cgroup.0.join(file), value).unwrap();
        let found = limits();
        assert_eq!((&found["ok"], &found["verdict"]), (&false.into(), &"limited".into()), "{found:#}");
        let advice = found["do"].as_str().unwrap();
        assert_eq!(advice, format!("echo max > {root}/{file}"));
        assert!(Command::new("sh").args(["-c", advice]).status().unwrap().success());
        assert_eq!(limits()["ok"], true);
    }
}

#[test]
fn processes_beside_children_are_told_with_the_command_that_moves_them() {
    let Some(cgroup) = Cgroup::make("beside") else { return skip("no cgroup can be made in version 2") };
    if read(cgroup.0.join("cgroup.controllers")).is_empty() {
        return skip("no controllers are enabled for cgroups of version 2");
    }
    let root = cgroup.0.to_str().unwrap();
    let enabled = || finding(&doctor(&["--cgroup-root", root]), "enabled-controllers");
    assert_eq!(enabled()["ok"], true);
    let mut inside = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(cgroup.0.join("cgroup.procs"), inside.id().to_string()).unwrap();
    let found = enabled();
    let advice = found["do"].as_str().unwrap_or_default();
    let moved = Command::new("sh").args(["-c", advice]).status();
    let after = enabled();
    inside.kill().unwrap();
    inside.wait().unwrap();
    fs::remove_dir(cgroup.0.join("init")).unwrap();
    assert_eq!(found["verdict"], "limited", "{found:#}");
    assert!(moved.unwrap().success() && after["ok"] == true, "{after:#}");
}

#[test]
fn systemd_and_the_bus_are_found_where_they_are() {
    let done = doctor(&[]);
    let systemd = finding(&done, "systemd");
    if !Path::new("/run/systemd/system").is_dir() {
        return says(&systemd, "found", &read("/proc/1/comm"));
    }
    let mut version = Command::new("systemctl");
    version.arg("--version");
    let version = finish(version).exits(0).stdout;
    says(&systemd, "found", &format!("version {}", version.split(' ').nth(1).unwrap()));
    assert_eq!(finding(&done, "system-bus")["verdict"], "good");
    let done = doctor_after("mount -t tmpfs none /run/dbus");
    let bus = finding(&done, "system-bus");
    assert_eq!(bus["ok"], false);
    says(&bus, "do", "dbus.socket");
}

#[test]
fn cgroups_that_are_mounted_read_only_make_it_unusable() {
    let points: Vec<_> =
        hierarchies().iter().map(|hierarchy| format!("'{}'", hierarchy.point.display())).collect();
    let read_only =
        format!("for point in {}; do mount -o remount,bind,ro \"$point\"; done", points.join(" "));
    let done = doctor_after(&read_only).exits(1);
    let writable = finding(&done, "writable");
    assert_eq!((&writable["ok"], &writable["verdict"]), (&false.into(), &"unusable".into()), "{writable:#}");
    let command = writable["do"].as_str().unwrap().split(" (").next().unwrap();
    let done = doctor_after(&format!("{read_only}; {command}")).exits(0);
    assert_eq!(finding(&done, "writable")["ok"], true);
}

#[test]
fn without_cgroups_the_advice_makes_it_usable() {
    let unmount = "umount -R -l /sys/fs/cgroup; mount -t tmpfs none /sys/fs/cgroup";
    let done = doctor_after(unmount).exits(1);
    let cgroups = finding(&done, "cgroups");
    assert_eq!((&cgroups["ok"], &cgroups["verdict"]), (&false.into(), &"unusable".into()), "{cgroups:#}");
    let advice = cgroups["do"].as_str().unwrap();
    let done = doctor_after(&format!("{unmount}; {advice}"));
    says(&finding(&done, "cgroups"), "found", "v2 at /sys/fs/cgroup");
}

#[test]
fn a_hypervisor_is_tried_by_making_a_virtual_machine() {
    // In the testbed the module waits to be loaded.
    if crate::support::soak::in_testbed() {
        _ = Command::new("modprobe").arg("kvm_amd").status();
    }
    let found = finding(&doctor(&[]), "virtualization");
    match fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => says(&found, "found", "/dev/kvm"),
        Err(_) => {
            assert_eq!(found["ok"], false);
            says(&found, "do", "modprobe kvm_intel or kvm_amd");
            return skip("there is no /dev/kvm");
        }
    }
    let done = doctor_after("mount --bind /dev/null /dev/kvm");
    let found = finding(&done, "virtualization");
    assert_eq!(found["verdict"], "limited", "{found:#}");
    says(&found, "found", "opens, and makes no virtual machine: ");
    let done = doctor_after("mount -t tmpfs none /dev");
    says(&finding(&done, "virtualization"), "found", "neither /dev/kvm nor /dev/mshv");
    for check in ["vhost-net", "vhost-vsock", "tun"] {
        assert_eq!(finding(&done, check)["verdict"], "note");
    }
}

#[test]
fn an_ordinary_user_is_told_what_is_delegated() {
    const USER: &str = "1000";
    let runtime = format!("/run/user/{USER}");
    let bus = Path::new(&runtime).join("bus");
    let program = binary();
    if !bus.exists() {
        return skip("no ordinary user has a manager");
    }
    let as_user = |before: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", USER, "--regid", USER, "--clear-groups"])
            .args(before)
            .arg(&program)
            .args(["-o", "json", "doctor"])
            .env("XDG_RUNTIME_DIR", &runtime);
        finish(command)
    };
    let outside = as_user(&[]).exits(0);
    let delegation = finding(&outside, "delegation");
    assert_eq!(delegation["ok"], false);
    says(&delegation, "found", "no cgroup is delegated to ");
    assert_eq!(finding(&outside, "user-bus")["verdict"], "good");
    assert_eq!(finding(&outside, "lingering")["verdict"], "good");
    assert_eq!(finding(&outside, "devices")["ok"], false);
    if mode() != "v2" {
        return;
    }
    let inside =
        as_user(&["systemd-run", "--user", "--pipe", "--wait", "--quiet", "--collect", "--"]).exits(0);
    let delegation = finding(&inside, "delegation");
    let manager = format!("/sys/fs/cgroup/user.slice/user-{USER}.slice/user@{USER}.service");
    says(&delegation, "found", &manager);
    let controllers = read(Path::new(&manager).join("cgroup.controllers"));
    let all = ["cpu", "cpuset", "memory", "io", "pids"];
    let has_all = all.iter().all(|name| controllers.split(' ').any(|controller| controller == *name));
    assert_eq!(delegation["ok"], has_all, "{delegation:#}");
}
