//! Many units of systemd at once. Real systemd, in the testbed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // clippy.toml frees only #[test] functions.

use std::os::unix::process::CommandExt as _;
use std::process;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::support::soak::times;
use crate::support::{skip, sleeper, stop};
use ringfence::{Host, Remaining, Resources, Sandbox, SandboxConfig};

testbed! {
    modes: "systemd";
    gate: "trixie";
    soak: "systemd";
    guest: "own";
}

const SOON: Duration = Duration::from_secs(60);
const THREADS: usize = 8;

/// What systemd does for one test is not to be in the way of the other.
static SYSTEMD: Mutex<()> = Mutex::new(());

/// Systemd, if it is process 1 here and ours to speak with.
fn host() -> Option<Host> {
    let host = Host::detect().unwrap();
    if !host.systemd || host.rootless {
        skip("systemd is not process 1 here, or is not ours to speak with");
        return None;
    }
    Some(host)
}

fn units() -> Vec<String> {
    let mut list = process::Command::new("systemctl");
    let list = list.args(["list-units", "--all", "--plain", "--no-legend", "--full"]).output().unwrap();
    let ours = format!("rf-{}-", process::id());
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    list.lines().filter(|line| line.contains(&ours)).map(str::to_owned).collect()
}

#[test]
fn many_units_are_made_and_removed_by_eight_threads_at_once_and_none_is_left() {
    let Some(host) = host() else { return };
    let _alone = SYSTEMD.lock().unwrap_or_else(PoisonError::into_inner);
    let slice = format!("rf_{}_many.slice", process::id());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (host, slice) = (&host, &slice);
            scope.spawn(move || {
                for number in 0..times(25) {
                    let name = format!("{}-{thread}-{number}", process::id());
                    let limits = Resources::new().memory_limit(64 << 20).pids_limit(20).cpu_quota(50_000);
                    let path = format!("{slice}:rf:{name}").parse().unwrap();
                    let (vm, _) = Sandbox::create(host, &SandboxConfig::new(path).resources(limits)).unwrap();
                    let child = vm.spawn(&sleeper()).unwrap();
                    let place = std::fs::read_to_string(format!("/proc/{}/cgroup", child.pid())).unwrap();
                    assert!(place.contains(&format!("rf-{name}.scope")), "{place}");
                    vm.destroy(Remaining::Kill, SOON).unwrap();
                    child.wait().unwrap();
                }
            });
        }
    });
    let left = units();
    _ = process::Command::new("systemctl").args(["stop", &slice]).status();
    assert!(left.is_empty(), "{left:?}");
}

/// With the first unit that needs a v1 hierarchy, systemd takes the units beside its slice there too, and with the last one
/// back: it lists their processes, and then moves one after the other. Who came to a sandbox from among them meanwhile would
/// be moved with them.
#[test]
fn who_comes_from_among_those_that_systemd_moves_stays_inside() {
    let Some(host) = host() else { return };
    let _alone = SYSTEMD.lock().unwrap_or_else(PoisonError::into_inner);
    let outside = || process::Command::new("sleep").arg("1000").spawn().unwrap();
    let mut bystanders: Vec<_> = (0..60).map(|_| outside()).collect();
    let mut strays = Vec::new();
    for round in 0..5 {
        let slice = format!("rf_{}_moved{round}.slice", process::id());
        let path = format!("{slice}:rf:{}", process::id()).parse().unwrap();
        let (vm, _) = Sandbox::create(&host, &SandboxConfig::new(path)).unwrap();
        let mut joined = outside();
        let first = vm.spawn(&sleeper()).unwrap();
        vm.join(joined.id()).unwrap();
        let spawned = vm.spawn(&sleeper()).unwrap();
        let mut command = process::Command::new("sleep");
        // SAFETY: the hook is async-signal-safe, as it promises.
        unsafe { command.arg("1000").pre_exec(vm.join_hook().unwrap()) };
        let mut hooked = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let own = format!("/{}", vm.state().cgroup);
        for (how, pid) in [
            ("first", first.pid()),
            ("joined", joined.id()),
            ("spawned", spawned.pid()),
            ("hooked", hooked.id()),
        ] {
            let places = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            let away = places.lines().filter(|place| !place.ends_with(&own));
            strays.extend(away.map(|place| format!("round {round}, {how}: {place}")));
        }
        vm.destroy(Remaining::Kill, SOON).unwrap();
        first.wait().unwrap();
        spawned.wait().unwrap();
        joined.wait().unwrap();
        hooked.wait().unwrap();
        stop(&slice);
    }
    for bystander in &mut bystanders {
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }
    assert!(strays.is_empty(), "{strays:#?}");
}
