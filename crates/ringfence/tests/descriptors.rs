//! By itself in its process, so that every open descriptor is this test's.

#![allow(clippy::unwrap_used)]

mod support;

use ringfence::{Command, ErrorKind, Host, Remaining, Resources, Sandbox, SandboxConfig};
use support::{SOON, open_files, path, sleeper};

/// A whole life, with a refused change and a refused creation in it.
fn live(host: &Host) {
    let config = SandboxConfig::new(path("fds")).resources(Resources::new().pids_limit(5));
    let (vm, _) = Sandbox::create(host, &config).unwrap();
    let child = vm.spawn(&sleeper()).unwrap();
    assert_eq!(Sandbox::create(host, &config).unwrap_err().kind(), ErrorKind::AlreadyExists);
    vm.change(&Resources::new().pids_limit(6)).unwrap();
    vm.change(&Resources::new().pids_limit(7).cpuset_mems("4000".parse().unwrap())).unwrap_err();
    assert!(vm.spawn(&Command::new("true")).unwrap().wait().unwrap().success());
    vm.spawn(&Command::new("/dev/null")).unwrap_err();
    vm.stats_reader().unwrap().sample().unwrap();
    vm.freeze(SOON).unwrap();
    vm.thaw(SOON).unwrap();
    vm.destroy(Remaining::Kill, SOON).unwrap();
    child.wait().unwrap();
}

#[test]
fn a_life_leaves_no_descriptor_open() {
    let host = Host::detect().unwrap();
    // The roots of the hierarchies are opened once for the host, and stay.
    live(&host);
    let before = open_files();
    for _ in 0..10 {
        live(&host);
    }
    assert_eq!(open_files(), before);
}
