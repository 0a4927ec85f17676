//! One connection, one call for each thing, from many threads and inside async runtimes. Real systemd, in the testbed.

use std::path::Path;
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::cgroup::{Child, Command, null};
use crate::error::ErrorKind;
use crate::host::Host;
use crate::resources::Resources;
use crate::sandbox::{Sandbox, SandboxConfig, Status};
use crate::skip::skip;
use crate::{CgroupPath, Remaining};

const SOON: Duration = Duration::from_secs(60);

/// The bus is restarted by one of these tests, and units come and go: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// This machine, for a test that has its systemd to itself.
pub(crate) fn alone() -> Option<(Host, MutexGuard<'static, ()>)> {
    let host = Host::detect().unwrap();
    if !host.systemd || host.rootless {
        skip("systemd is not process 1 here, or is not ours to speak with");
        return None;
    }
    Some((host, ALONE.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// A slice of this test's own, stopped at its end.
struct Slice(String);

impl Slice {
    fn new(what: &str) -> Self {
        Self(format!("rf_{}_{what}.slice", process::id()))
    }

    fn path(&self, name: &str) -> CgroupPath {
        format!("{}:rf:{name}", self.0).parse().unwrap()
    }

    fn config(&self, name: &str) -> SandboxConfig {
        let limits = Resources::new().memory_limit(64 << 20).pids_limit(20).cpu_quota(50_000);
        SandboxConfig::new(self.path(name)).resources(limits)
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        _ = process::Command::new("systemctl").args(["stop", &self.0]).status();
    }
}

fn sleeper() -> Command {
    let command = Command::new("sleep").args(["1000"]);
    command.stdin(null().unwrap()).stdout(null().unwrap()).stderr(null().unwrap())
}

fn place(child: &Child) -> String {
    std::fs::read_to_string(format!("/proc/{}/cgroup", child.pid())).unwrap()
}

fn calls(host: &Host, method: &str) -> (usize, usize) {
    let mut calls = host.manager().unwrap().calls();
    // A part of connecting, which happens with the first call.
    calls.retain(|call| *call != "Subscribe");
    (calls.iter().filter(|call| **call == method).count(), calls.len())
}

#[test]
fn a_creation_is_one_call_and_so_is_a_change() {
    let Some((host, _alone)) = alone() else { return };
    let slice = Slice::new("calls");
    let (vm, _) = Sandbox::create(&host, &slice.config("calls")).unwrap();
    assert_eq!(calls(&host, "GetUnit"), (1, 1), "whether there is one already");
    assert_eq!(vm.status().unwrap(), Status::Planned);
    let child = vm.spawn(&sleeper()).unwrap();
    assert_eq!(calls(&host, "StartTransientUnit"), (1, 1));
    assert!(place(&child).contains("rf-calls.scope"), "{}", place(&child));
    drop(vm.spawn(&sleeper()).unwrap());
    // Who joins later is born inside; on v1 alone, where systemd moves processes about, it moves this one too.
    let moved = usize::from(host.unified().is_none());
    assert_eq!(calls(&host, "AttachProcessesToUnit"), (moved, moved));
    vm.change(&Resources::new().memory_limit(80 << 20).cpu_weight(50).pids_limit(30)).unwrap();
    let (set, all) = calls(&host, "SetUnitProperties");
    // It answers before it writes: where that is seen, it is asked once more.
    assert!(set == 1 && all <= 2, "{set} of {all}");
    vm.change(&Resources::new().cpu_burst(10_000)).unwrap();
    assert_eq!(calls(&host, ""), (0, 0), "it has no word for bursts");
    vm.destroy(Remaining::Kill, SOON).unwrap();
    // Which unit has the name, its invocation, whose it is: then that one is stopped. It may have ended by itself.
    let (stopped, all) = calls(&host, "Stop");
    assert!(stopped <= 1 && (1..=4).contains(&all), "{stopped} of {all}");
}

#[test]
fn a_bus_that_goes_and_comes_back_is_connected_to_again() {
    let Some((host, _alone)) = alone() else { return };
    let slice = Slice::new("bus");
    let (vm, _) = Sandbox::create(&host, &slice.config("bus")).unwrap();
    for _ in 0..2 {
        let restarted = process::Command::new("systemctl").args(["restart", "dbus"]).status().unwrap();
        assert!(restarted.success());
        let child = vm.spawn(&sleeper()).unwrap();
        assert!(place(&child).contains("rf-bus.scope"), "{}", place(&child));
        vm.change(&Resources::new().memory_limit(70 << 20)).unwrap();
        assert_eq!(vm.diff().unwrap(), []);
    }
    assert!(process::Command::new("systemctl").args(["restart", "dbus"]).status().unwrap().success());
    vm.destroy(Remaining::Kill, SOON).unwrap();
}

#[test]
fn nobody_at_the_address_is_an_error_at_once() {
    let Some((_, _alone)) = alone() else { return };
    for address in ["unix:path=/run/no/such/socket", "nonsense"] {
        let begun = std::time::Instant::now();
        let error = super::Manager::new(address.to_owned()).is_taken("x.scope").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Systemd, "{error}");
        assert!(error.to_string().contains(address), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    // One that takes the connection and says nothing is given up on.
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("mute");
    let _mute = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let address = format!("unix:path={}", socket.display());
    let error = super::Manager::new(address).is_taken("x.scope").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
}

#[test]
fn what_systemd_says_is_in_the_error() {
    let Some((host, _alone)) = alone() else { return };
    let manager = host.manager().unwrap();
    let error =
        manager.set("rf-no-such.scope", &[super::property::Property::number("TasksMax", 5)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("Unit rf-no-such.scope not"), "{error}");
    assert!(!manager.is_taken("rf-no-such.scope").unwrap());
    assert!(!manager.stop("rf-no-such.scope", false).unwrap());
    let version = manager.version().unwrap();
    let number =
        version.split(|c: char| !c.is_ascii_digit()).next().and_then(|number| number.parse::<u32>().ok());
    assert!(number.is_some_and(|number| (250..1000).contains(&number)), "{version}");
    let systemctl = std::process::Command::new("systemctl").arg("--version").output().unwrap();
    let systemctl = String::from_utf8(systemctl.stdout).unwrap();
    assert!(systemctl.contains(&format!("({version})")), "{version} is not in {systemctl}");
}

/// Everything that speaks with systemd, on whatever thread it is called.
fn whole_life(host: &Host, slice: &Slice, name: &str) {
    let (vm, _) = Sandbox::create(host, &slice.config(name)).unwrap();
    let child = vm.spawn(&sleeper()).unwrap();
    assert!(place(&child).contains(&format!("rf-{name}.scope")));
    vm.change(&Resources::new().pids_limit(25)).unwrap();
    vm.destroy(Remaining::Kill, SOON).unwrap();
    assert!(!Path::new(&format!("/proc/{}/exe", child.pid())).exists());
}

#[test]
fn it_works_on_the_threads_of_async_runtimes() {
    let Some((host, _alone)) = alone() else { return };
    let one = tokio::runtime::Builder::new_current_thread().build().unwrap();
    one.block_on(async { whole_life(&host, &Slice::new("async"), "async") });
    let many = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    many.block_on(async {
        let tasks: Vec<_> = (0..4)
            .map(|number| {
                let (host, name) = (host.clone(), format!("task{number}"));
                tokio::spawn(async move { whole_life(&host, &Slice::new(&name), &name) })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}
