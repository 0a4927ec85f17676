//! The calling process inside the cgroup that it acts on: it is never stopped for ever, and never killed by itself.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::support::{SOON, by_systemd, runs_alone, skip, sleeper};
use ringfence::{
    Cgroup, Controller, DeviceRule, ErrorKind, Host, Overhead, Part, Remaining, Resources, Sandbox,
    SandboxConfig,
};

testbed! {
    drivers: "cgroupfs systemd";
}

/// A path in a parent of the test's own, which takes who is drained.
fn path_in(parent: &str, what: &str) -> String {
    match by_systemd() {
        true => format!("{}.slice:rf:{what}", parent.replace('-', "_")),
        false => format!("/{parent}/{what}"),
    }
}

/// Runs a test in a process of its own, which is moved about, then removes the parent; `None` in that process's parent.
fn alone(test: &str) -> Option<(Host, String)> {
    let host = Host::detect().unwrap();
    let parent_of = |pid: u32| format!("rf-around-{pid}-{}", test.len());
    if !runs_alone(module_path!(), test) {
        return Some((host, parent_of(std::os::unix::process::parent_id())));
    }
    let parent = parent_of(std::process::id());
    if by_systemd() {
        let slice = format!("{}.slice", parent.replace('-', "_"));
        _ = std::process::Command::new("systemctl").args(["stop", &slice]).output();
        return None;
    }
    for hierarchy in &host.hierarchies {
        let dir = hierarchy.root.join(&parent);
        _ = std::fs::remove_dir(dir.join("drained"));
        let removed = std::fs::remove_dir(&dir);
        assert!(removed.is_ok() || !dir.exists(), "{removed:?}");
    }
    None
}

fn own_cgroups() -> String {
    std::fs::read_to_string("/proc/self/cgroup").unwrap()
}

#[test]
fn sandbox_is_managed_by_a_process_inside_it() {
    let Some((host, parent)) = alone("sandbox_is_managed_by_a_process_inside_it") else { return };
    let me = std::process::id();
    for part in [None, Some(Part::Vcpu), Some(Part::Overhead)] {
        for remaining in [Remaining::Kill, Remaining::Drain] {
            let config = SandboxConfig::new(path_in(&parent, "own").parse().unwrap());
            let config = match part {
                Some(_) => config.overhead(Overhead::Nested).resources(Resources::new().cpu_quota(50_000)),
                None => config,
            };
            let (vm, _) = Sandbox::create(&host, &config).unwrap();
            let child = vm.spawn_in(part, &sleeper()).unwrap();
            let dirs: BTreeSet<_> = vm.paths().into_values().collect();
            vm.join_part(part, &[me]).unwrap();

            let started = Instant::now();
            let error = vm.freeze(SOON).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
            assert!(error.to_string().contains(&me.to_string()), "{error}");
            let rule = DeviceRule::parse(true, "c 10:229 rw", |_| unreachable!()).unwrap();
            vm.change(&Resources::new().devices(vec![rule.clone()])).unwrap();
            vm.claim_devices("disk", &[rule]).unwrap();
            vm.release_devices("disk").unwrap();
            assert_eq!(vm.destroy(Remaining::Refuse, SOON).unwrap_err().kind(), ErrorKind::Busy);
            if remaining == Remaining::Kill {
                assert_eq!(vm.kill(SOON).unwrap(), BTreeSet::from([child.pid()]));
                assert_eq!(vm.processes().unwrap(), BTreeSet::from([me]));
            }
            let outcome = vm.destroy(remaining, SOON).unwrap();
            assert!(started.elapsed() < SOON);
            assert!(outcome.moved.contains(&me), "{outcome:?}");
            assert!(dirs.iter().all(|dir| !dir.exists()));
            assert!(!own_cgroups().contains("/own"));
            child.signal(9).unwrap();
            child.wait().unwrap();
        }
    }
}

#[test]
fn cgroup_that_is_threaded_is_not_frozen_by_a_thread_in_it() {
    let Some((host, parent)) = alone("cgroup_that_is_threaded_is_not_frozen_by_a_thread_in_it") else {
        return;
    };
    if by_systemd() || host.unified().is_none() || host.hierarchy_of(Controller::Freezer).is_some() {
        return skip("the freezer is v1's, where processes are listed everywhere");
    }
    let config = SandboxConfig::new(path_in(&parent, "own").parse().unwrap());
    let config = config.overhead(Overhead::Nested).resources(Resources::new().cpu_quota(50_000));
    let (vm, _) = Sandbox::create(&host, &config).unwrap();
    vm.join_part(Part::Vcpu, &[std::process::id()]).unwrap();
    let part = Cgroup::open(&host, &path_in(&parent, "own/vcpu").parse().unwrap()).unwrap();
    assert_eq!(part.freeze(SOON).unwrap_err().kind(), ErrorKind::Busy);
    vm.destroy(Remaining::Kill, SOON).unwrap();
}
