//! Open descriptors: none is left open, and few are enough. Each test has a process to itself.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use crate::support::{Guarded, SOON, open_files, path, runs_alone, sleeper};
use ringfence::{
    Command, DeviceRule, ErrorKind, Host, JoinOptions, Limit, Remaining, Resources, Sandbox, SandboxConfig,
    StatsReader,
};
use rustix::process::{Resource, getrlimit, setrlimit};

testbed! {
    drivers: "cgroupfs systemd";
}

/// Lowers the limit until it is dropped.
struct Lowered(u64);

impl Lowered {
    fn to(few: u64) -> Self {
        let mut limit = getrlimit(Resource::Nofile);
        let before = limit.current.replace(few).unwrap();
        setrlimit(Resource::Nofile, limit).unwrap();
        Self(before)
    }
}

impl Drop for Lowered {
    fn drop(&mut self) {
        let limit = getrlimit(Resource::Nofile);
        _ = setrlimit(Resource::Nofile, rustix::process::Rlimit { current: Some(self.0), ..limit });
    }
}

/// Whether all have the same values.
fn sample(readers: &mut [StatsReader]) -> bool {
    let known = readers.iter_mut().map(|reader| {
        let stats = reader.sample().unwrap();
        assert!(stats.cpu.usage_us.is_some(), "{stats:?}");
        let pids = stats.pids.current;
        (pids, stats.memory.stat.iter().count(), stats.pressure == Default::default())
    });
    known.collect::<BTreeSet<_>>().len() == 1
}

#[test]
fn readers_beyond_half_of_the_limit_of_open_files_open_theirs_with_each_sample() {
    if runs_alone(
        module_path!(),
        "readers_beyond_half_of_the_limit_of_open_files_open_theirs_with_each_sample",
    ) {
        return;
    }
    let host = Host::detect().unwrap();
    let config = SandboxConfig::new(path("descriptors"));
    let vm = Guarded::make(&host, &config);
    let mut before = open_files();
    let other = Guarded::make(&host, &SandboxConfig::new(path("other")));
    let handle = open_files() as u64 - before as u64 - other.held();
    before = open_files();
    let first = vm.stats_reader().unwrap();
    let each = open_files() - before;
    assert_ne!(each, 0);

    // For two handles and three of them, twice.
    let lowered = Lowered::to(2 * (2 * handle + 3 * each as u64) + 1);
    let mut readers = vec![first];
    readers.extend((0..20).map(|_| vm.stats_reader().unwrap()));
    assert!(sample(&mut readers));
    assert!(open_files() <= before + 3 * each, "{} {before} {each}", open_files());

    // Those that are left keep theirs as soon as there is room.
    readers.drain(..18);
    assert!(sample(&mut readers));
    assert_eq!(open_files(), before + 3 * each, "{handle} {each} {before} {readers:?}");

    // None is left to open a file with.
    readers.extend((0..3).map(|_| vm.stats_reader().unwrap()));
    let mut taken = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        taken.push(file);
    }
    let error = readers.pop().unwrap().sample().unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Kernel, Some(24)), "{error}");
    drop(taken);

    // Another of the same name is not the one that was.
    drop(vm);
    let again = Guarded::make(&host, &config);
    for reader in &mut readers {
        assert_eq!(reader.sample().unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert!(sample(&mut [again.stats_reader().unwrap()]));
    drop(lowered);
}

#[test]
fn a_sandbox_beyond_half_of_the_limit_of_open_files_is_held_by_none_and_is_all_that_others_are() {
    if runs_alone(
        module_path!(),
        "a_sandbox_beyond_half_of_the_limit_of_open_files_is_held_by_none_and_is_all_that_others_are",
    ) {
        return;
    }
    let host = Host::detect().unwrap();
    let first = Guarded::make(&host, &SandboxConfig::new(path("held")));
    let _few = Lowered::to(160);
    let mut readers = Vec::new();
    loop {
        let before = open_files();
        readers.push(first.stats_reader().unwrap());
        if open_files() == before {
            break;
        }
    }
    let config = |number| {
        let resources = Resources::new().pids_limit(50);
        SandboxConfig::new(path(&format!("let-go-{number}"))).resources(resources)
    };
    // The rest of the share is of as many.
    let mut held = Vec::new();
    let (config, vm) = (0..40)
        .find_map(|number| {
            let before = open_files();
            let config = config(number);
            let vm = Guarded::make(&host, &config);
            if open_files() as u64 == before as u64 + vm.held() {
                return Some((config, vm));
            }
            held.push(vm);
            None
        })
        .unwrap();

    let before = open_files();
    let child = vm.spawn(&sleeper()).unwrap();
    assert_eq!(vm.processes().unwrap(), [child.pid()].into());
    vm.change(&Resources::new().pids_limit(60)).unwrap();
    assert_eq!(vm.number("pids", "pids.max", "pids.max"), Limit::Value(60));
    let kmsg = DeviceRule::path("/dev/kmsg").unwrap();
    vm.change(&Resources::new().device(kmsg.clone())).unwrap();
    assert!(vm.devices().check_rule(&kmsg).allowed);
    assert_eq!(vm.diff().unwrap(), []);
    vm.freeze(SOON).unwrap();
    assert!(vm.cgroup().unwrap().is_frozen().unwrap());
    vm.thaw(SOON).unwrap();
    assert_eq!(vm.stats_reader().unwrap().sample().unwrap().pids.current, Some(1 + vm.held()));
    child.signal(9).unwrap();
    child.wait().unwrap();
    drop(child);
    assert_eq!(open_files(), before);

    // Another of the same name is not the one that was.
    let old = vm.cgroup().unwrap();
    Sandbox::restore(&host, vm.state()).unwrap().destroy(Remaining::Kill, SOON).unwrap();
    let again = Guarded::make(&host, &config);
    let inside = again.spawn(&sleeper()).unwrap();
    assert_eq!(old.processes().unwrap(), BTreeSet::new());
    let foreign = JoinOptions { foreign: true, ..JoinOptions::default() };
    for done in [
        old.change(&Resources::new().pids_limit(70)).map(drop),
        old.join_with(inside.pid(), foreign),
        old.spawn(&sleeper()).map(drop),
    ] {
        let error = done.unwrap_err();
        assert!(error.kind() == ErrorKind::NotFound || error.errno() == Some(2), "{error}");
    }
    assert_eq!(again.number("pids", "pids.max", "pids.max"), Limit::Value(50));
    again.kill(SOON).unwrap();
    inside.wait().unwrap();
}

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
    if runs_alone(module_path!(), "a_life_leaves_no_descriptor_open") {
        return;
    }
    let host = Host::detect().unwrap();
    // The roots of the hierarchies are opened once for the host, and stay.
    live(&host);
    let before = open_files();
    for _ in 0..10 {
        live(&host);
    }
    assert_eq!(open_files(), before);
}
