//! Many units of systemd at once. Real systemd, in the testbed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // clippy.toml frees only #[test] functions.

mod support;

use std::process;
use std::time::Duration;

use ringfence::{Command, Host, Remaining, Resources, Sandbox, SandboxConfig, null};
use support::times;

const SOON: Duration = Duration::from_secs(60);
const THREADS: usize = 8;

fn units() -> Vec<String> {
    let mut list = process::Command::new("systemctl");
    let list = list.args(["list-units", "--all", "--plain", "--no-legend", "--full"]).output().unwrap();
    let ours = format!("rf-{}-", process::id());
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    list.lines().filter(|line| line.contains(&ours)).map(str::to_owned).collect()
}

#[test]
fn many_units_are_made_and_removed_by_eight_threads_at_once_and_none_is_left() {
    let host = Host::detect().unwrap();
    if !host.systemd || host.rootless {
        eprintln!("SKIPPED: systemd is not process 1 here, or is not ours to speak with");
        return;
    }
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
                    let command = Command::new("sleep").args(["1000"]);
                    let command = command.stdin(null().unwrap()).stdout(null().unwrap());
                    let child = vm.spawn(&command.stderr(null().unwrap())).unwrap();
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
