//! All or nothing with systemd: each step of a unit's start and of its change is made to fail in turn.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::PoisonError;

use super::cgroupfs::carry_out_and;
use super::dirs::Dirs;
use super::observe::plan_on;
use super::on_a_kernel::{SOON, failing_at, nothing_changed, policy, resources, snapshot, want};
use super::systemd::Processes;
use crate::Remaining;
use crate::cgroup::{Cgroup, Command, STATISTICS};
use crate::devices::DevicePolicy;
use crate::devices::filter::{Earlier, Override};
use crate::host::Host;
use crate::path::SystemdName;
use crate::plan::{DeviceWant, UnitWant, Want};
use crate::resources::Resources;
use crate::sandbox::begun::UNRECORDED;
use crate::systemd::on_systemd::alone;

/// A unit of systemd for a test, stopped however it ends.
struct Unit<'a> {
    host: &'a Host,
    name: SystemdName,
}

impl<'a> Unit<'a> {
    fn new(host: &'a Host, what: &str) -> Self {
        let id = std::process::id();
        let slice = format!("rf_{id}_{what}.slice");
        Self { host, name: SystemdName::new(&slice, "rf", &format!("{id}-{what}")).unwrap() }
    }

    fn path(&self) -> String {
        self.name.below(&self.host.systemd_root)
    }

    fn is_gone(&self) -> bool {
        let dirs = self.host.hierarchies.iter().map(|hierarchy| hierarchy.root.join(self.path()));
        dirs.into_iter().all(|dir| !dir.exists())
            && !self.host.manager().unwrap().is_taken(&self.name.unit()).unwrap()
    }
}

impl Drop for Unit<'_> {
    fn drop(&mut self) {
        let stop = |unit: &str| _ = self.host.manager().and_then(|manager| manager.stop(unit, false));
        stop(&self.name.unit());
        if let Ok(cgroup) = Cgroup::open_at(self.host, &self.path()) {
            _ = cgroup.destroy(Remaining::Kill, SOON);
        }
        stop(self.name.slice());
        if let Ok(slice) = Cgroup::open_at(self.host, self.path().rsplit_once('/').unwrap().0) {
            slice.remove_where_empty();
        }
    }
}

fn sleeper() -> std::process::Child {
    std::process::Command::new("sleep").arg("1000").spawn().unwrap()
}

fn cgroups_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

#[test]
fn a_change_of_a_unit_that_fails_at_any_step_leaves_every_file_as_it_was() {
    let Some((host, _alone)) = alone() else { return };
    let unit = Unit::new(&host, "change");
    let (path, nothing) = (unit.path(), Resources::default());
    let named = Some(UnitWant { name: &unit.name, description: "Ringfence test" });
    for (flipped, second) in [(false, false), (false, true), (true, false), (true, true)] {
        let (before, after) = (resources(&host, second), resources(&host, !second));
        let old = policy(&["c 10:232 rwm", "b 8:0 r"]);
        let new = match flipped {
            true => DevicePolicy::allow_all(),
            false => policy(&["c 10:232 r", "b 8:* rw", "c 10:200 rw"]),
        };
        let devices = DeviceWant { before: None, policy: &old, overriding: Override::Refuse };
        let create = Want {
            create: true,
            statistics: STATISTICS,
            unit: named,
            ..want(&path, &nothing, &before, devices)
        };
        let mut child = sleeper();
        let (cgroup, _) = Cgroup::create_as(&host, &create, Processes::Running(&[child.id()])).unwrap();
        let dirs: BTreeSet<PathBuf> = cgroup.paths().into_values().collect();
        let devices = DeviceWant { before: Some(&old), policy: &new, ..devices };
        let change = Want { unit: named, ..want(&path, &before, &after, devices) };
        let plan = plan_on(&host, &mut Dirs::new(&host, cgroup.dirs.clone()), &change).unwrap();
        let files = snapshot(&dirs);
        for position in 0..=plan.steps.len() {
            let filter = cgroup.filter.lock().unwrap_or_else(PoisonError::into_inner);
            let mut open = Dirs::new(&host, cgroup.dirs.clone());
            let failing = failing_at(&plan, position);
            let error = carry_out_and(
                &failing,
                &mut open,
                filter.as_earlier(),
                Processes::NONE,
                UNRECORDED,
                &mut |_| Ok(()),
            )
            .unwrap_err();
            assert_eq!(error.errno(), Some(rustix::io::Errno::NOENT.raw_os_error()), "{error}\n{plan}");
            assert!(!format!("{:?}", std::error::Error::source(&error)).contains("undone"), "{error:?}");
            nothing_changed(&cgroup, &filter, &files, &old, &format!("{position} of\n{plan}"));
        }
        cgroup.change_as(&change).unwrap();
        assert_ne!(snapshot(&dirs), files);
        cgroup.destroy(Remaining::Kill, SOON).unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_start_of_a_unit_that_fails_at_any_step_leaves_nothing() {
    let Some((host, _alone)) = alone() else { return };
    let unit = Unit::new(&host, "start");
    let (path, nothing, change) = (unit.path(), Resources::default(), resources(&host, true));
    let policy = policy(&["c 10:232 rwm"]);
    let devices = DeviceWant { before: None, policy: &policy, overriding: Override::Refuse };
    let named = Some(UnitWant { name: &unit.name, description: "Ringfence test" });
    let create =
        Want { create: true, statistics: STATISTICS, unit: named, ..want(&path, &nothing, &change, devices) };
    let plan = plan_on(&host, &mut Dirs::new(&host, Vec::new()), &create).unwrap();
    for position in 0..=plan.steps.len() {
        let failing = failing_at(&plan, position);
        let fail = |processes: Processes<'_>| {
            let mut dirs = Dirs::new(&host, Vec::new());
            let error =
                carry_out_and(&failing, &mut dirs, Earlier::Unknown, processes, UNRECORDED, &mut |_| Ok(()))
                    .unwrap_err();
            assert_eq!(error.errno(), Some(rustix::io::Errno::NOENT.raw_os_error()), "{error}\n{plan}");
            assert!(
                std::error::Error::source(&error).is_none_or(|source| source.is::<std::io::Error>()),
                "{error:?}"
            );
            assert!(unit.is_gone(), "{position} of\n{plan}");
        };
        // One that ran goes back to where it came from, one of ours is killed.
        let mut child = sleeper();
        let home = cgroups_of(child.id());
        fail(Processes::Running(&[child.id()]));
        assert_eq!(cgroups_of(child.id()), home, "{position} of\n{plan}");
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        let command = Command::new("true");
        let waiting = command.hold().unwrap();
        fail(Processes::Waiting(&[waiting.pid()]));
        drop(waiting);
    }
    let mut child = sleeper();
    let (made, _) = Cgroup::create_as(&host, &create, Processes::Running(&[child.id()])).unwrap();
    made.destroy(Remaining::Kill, SOON).unwrap();
    assert!(unit.is_gone());
    child.wait().unwrap();
}
