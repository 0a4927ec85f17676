//! A thousand sandboxes, made and destroyed by eight threads while what runs inside forks without end.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::soak::is_soak;
use crate::support::{Guarded, SOON};
use ringfence::{Command, Host, Remaining, Resources, null};

testbed! {
    modes: "host plain-v2";
    gate: "host";
    soak: "host plain-v2";
}

const THREADS: usize = 8;
const EACH: usize = 125;
/// How long new ones are made: a machine has a thousand by then, an emulated one fewer.
fn time() -> Duration {
    Duration::from_secs(if is_soak() { 300 } else { 10 })
}

/// How many cgroups of the memory controller are alive; those that are removed and still charged are not counted.
fn memory_cgroups(host: &Host) -> usize {
    fn count(directory: &Path) -> usize {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        1 + below.map(|entry| count(&entry.path())).sum::<usize>()
    }
    let of_memory = |hierarchy: &&ringfence::Hierarchy| {
        hierarchy.controllers.iter().any(|controller| controller.to_string() == "memory")
    };
    host.hierarchies.iter().find(of_memory).map_or(0, |hierarchy| count(&hierarchy.root))
}

#[test]
fn a_thousand_sandboxes_in_which_forks_never_end_leave_nothing() {
    let host = Host::detect().unwrap();
    let (before, started) = (memory_cgroups(&host), Instant::now());
    let limits = || Resources::new().pids_limit(12).memory_limit(64 << 20).cpu_quota(20_000);
    let work = |thread: usize| {
        let (host, limits) = (&host, &limits);
        move || {
            let (mut paths, mut made, mut killed) = (BTreeSet::new(), 0, 0);
            for round in 0..EACH {
                if started.elapsed() > time() && round > EACH / 50 {
                    break;
                }
                made += 1;
                let vm = Guarded::new(host, &format!("crowd-{thread}-{round}"), limits());
                paths.extend(vm.paths().into_values());
                let storm = "while :; do (sleep 100 & sleep 100 &) & done";
                let command = Command::new("sh").args(["-c", storm]);
                let command = command.stdin(null().unwrap()).stdout(null().unwrap()).stderr(null().unwrap());
                let child = vm.spawn(&command).unwrap();
                killed += vm.destroy(Remaining::Kill, SOON).unwrap().killed.len();
                child.wait().unwrap();
            }
            (paths, made, killed)
        }
    };
    let (mut paths, mut made, mut killed): (BTreeSet<PathBuf>, usize, usize) = Default::default();
    std::thread::scope(|scope| {
        for thread in (0..THREADS).map(|thread| scope.spawn(work(thread))).collect::<Vec<_>>() {
            let (directories, sandboxes, ended) = thread.join().unwrap();
            paths.extend(directories);
            made += sandboxes;
            killed += ended;
        }
    });
    assert!(paths.len() >= made && killed >= made, "{made} {} {killed}", paths.len());
    assert!(paths.iter().all(|path| !path.exists()));
    // Others of this machine come and go as well.
    let after = memory_cgroups(&host);
    assert!(after < before + THREADS, "{before} cgroups of memory before, {after} after");
    println!("{killed} processes killed in {made} sandboxes");
}
