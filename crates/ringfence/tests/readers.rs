//! Many readers and few descriptors, in a process of its own, whose limit it lowers.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use ringfence::{ErrorKind, Host, SandboxConfig, StatsReader};
use rustix::process::{Resource, getrlimit, setrlimit};
use support::{Guarded, open_files, path};

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
    let host = Host::detect().unwrap();
    let config = SandboxConfig::new(path("descriptors"));
    let vm = Guarded::make(&host, &config);
    let before = open_files();
    let first = vm.stats_reader().unwrap();
    let each = open_files() - before;
    assert_ne!(each, 0);

    // For three of them, twice.
    let mut limit = getrlimit(Resource::Nofile);
    let (most, few) = (limit.current, 6 * each as u64 + 1);
    limit.current = Some(few);
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut readers = vec![first];
    readers.extend((0..20).map(|_| vm.stats_reader().unwrap()));
    assert!(sample(&mut readers));
    assert!(open_files() <= before + 3 * each, "{} {before} {each}", open_files());

    // Those that are left keep theirs as soon as there is room.
    readers.drain(..18);
    assert!(sample(&mut readers));
    assert_eq!(open_files(), before + 3 * each);

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
    limit.current = most;
    setrlimit(Resource::Nofile, limit).unwrap();
}
