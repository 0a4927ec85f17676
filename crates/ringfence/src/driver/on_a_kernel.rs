//! All or nothing, on this machine's kernel: each step of a plan is made to fail in turn, and everything is as before.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use super::cgroupfs::carry_out_and;
use super::dirs::Dirs;
use super::observe::plan_on;
use super::systemd::Processes;
use crate::Remaining;
use crate::cgroup::{Cgroup, Filter, STATISTICS};
use crate::devices::filter::{Earlier, Override, is_installed};
use crate::devices::program;
use crate::devices::{DeviceNumber, DevicePolicy, DeviceRule, runtime_defaults};
use crate::error::ErrorKind;
use crate::host::DeviceNode;
use crate::host::{Controller, Host, Version};
use crate::plan::{Action, DeviceWant, Dir, Plan, Step, Want};
use crate::resources::{Limit, Rdma, Resources};
use crate::sandbox::begun::UNRECORDED;
use crate::skip::skip;

pub(super) const SOON: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;

/// Removes the cgroup however its test ends.
struct Gone<'a>(&'a Host, String);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        for path in [self.1.clone(), format!("{}/x", self.1), format!("{}/x/y", self.1)].into_iter().rev() {
            if let Ok(cgroup) = Cgroup::open_at(self.0, &path) {
                _ = cgroup.destroy(Remaining::Kill, SOON);
            }
        }
    }
}

pub(super) fn policy(rules: &[&str]) -> DevicePolicy {
    let rules: Vec<DeviceRule> = rules
        .iter()
        .map(|rule| DeviceRule::parse(true, rule, |path| DeviceNode::at(path)).unwrap())
        .collect();
    DevicePolicy::with_base(&rules, &runtime_defaults(), &[]).unwrap().0
}

pub(super) fn want<'a>(
    path: &'a str,
    base: &'a Resources,
    change: &'a Resources,
    devices: DeviceWant<'a>,
) -> Want<'a> {
    Want { devices: Some(devices), ..Want::change(path, base, change) }
}

/// The plan, with a step before the one at `position` that no kernel carries out.
pub(super) fn failing_at(plan: &Plan, position: usize) -> Plan {
    let mut plan = plan.clone();
    let dir = Dir::new(0, "");
    let refused = Action::Write { dir, file: "rf.no.such.file".into(), value: "1".to_owned() };
    plan.steps.insert(position, Step::new(refused));
    plan
}

/// Every file of the directories that can be read and does not count, and the programs that are attached.
pub(super) fn snapshot(dirs: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, String> {
    const COUNTED: &[&str] = &[
        "stat",
        "usage",
        "current",
        "peak",
        "events",
        "pressure",
        "slabinfo",
        "failcnt",
        "cgroup.controllers",
    ];
    let mut found = BTreeMap::new();
    for dir in dirs {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_file()
                && !COUNTED.iter().any(|part| name.contains(part))
                && let Ok(text) = std::fs::read_to_string(&path)
            {
                // The order of a list of devices is that of their coming.
                let mut lines: Vec<_> = text.lines().collect();
                lines.sort_unstable();
                found.insert(path, lines.join("\n"));
            }
        }
    }
    found
}

/// Every file is as it was, and so is the device program.
#[track_caller]
pub(super) fn nothing_changed(
    cgroup: &Cgroup,
    filter: &Filter,
    files: &BTreeMap<PathBuf, String>,
    devices: &DevicePolicy,
    what: &str,
) {
    let dirs: BTreeSet<PathBuf> = cgroup.paths().into_values().collect();
    let different = differences(&snapshot(&dirs), files);
    assert!(different.is_empty(), "{different:#?}: {what}");
    if let Some((_, open)) = cgroup.dirs.iter().find(|_| filter.id().is_some()) {
        assert!(
            is_installed(open.descriptor().unwrap().as_fd(), &program::compile(devices)).unwrap(),
            "{what}"
        );
    }
}

fn differences(now: &BTreeMap<PathBuf, String>, then: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let changed = then.iter().filter(|(path, text)| now.get(*path) != Some(text));
    changed.map(|(path, text)| format!("{}: {text:?}, now {:?}", path.display(), now.get(path))).collect()
}

/// All that a change can change, in one; `first` and `second` are the values of two such states.
pub(super) fn resources(host: &Host, second: bool) -> Resources {
    let pick = |first: u64, other: u64| if second { other } else { first };
    let mut wanted = Resources::new()
        .memory_limit(pick(64, 200) * MIB)
        .memory_swap(pick(96, 300) * MIB)
        .memory_reservation(pick(32, 16) * MIB)
        .cpu_weight(pick(50, 200))
        .cpu_idle(second)
        .cpu_quota(pick(50_000, 20_000))
        .cpu_period(pick(100_000, 50_000))
        .cpu_burst(pick(40_000, 1_000))
        .pids_limit(pick(100, 50))
        .cpuset_mems(host.mems.clone());
    let disk = disk();
    wanted = wanted
        .io_weight(pick(100, 500))
        .io_device_weight(disk, pick(200, 300))
        .io_read_bps(disk, pick(1, 2) * MIB)
        .io_write_iops(disk, pick(100, 50))
        .network_class_id(pick(0x10_0001, 0x10_0002) as u32)
        .network_priority("lo", pick(3, 4) as u32);
    if second {
        wanted = wanted.io_write_bps(disk, 3 * MIB).io_read_iops(disk, Limit::Max);
    }
    for device in std::fs::read_dir("/sys/class/infiniband").into_iter().flatten().flatten() {
        let limits = |number| Some(Limit::Value(number));
        let limits = Rdma { hca_handles: limits(pick(3, 4)), hca_objects: limits(pick(10, 20)) };
        wanted = wanted.rdma(device.file_name().into_string().unwrap(), limits);
    }
    for size in &host.huge_page_sizes {
        wanted = wanted.hugepage_limit(*size, pick(2, 4) * size.bytes());
    }
    wanted.cpu.cpus = if second { "0".parse().ok() } else { Some(host.cpus.clone()) };
    if matches!(host.hierarchy_of(Controller::Memory), Some((_, memory)) if memory.version == Version::V1) {
        wanted = wanted.memory_swappiness(pick(60, 10)).disable_oom_killer(second);
    } else {
        wanted = wanted
            .unified("memory.high", pick(60, 50).to_string() + "M")
            .unified("memory.min", pick(1, 2).to_string() + "M")
            .unified("io.max", format!("{disk} riops={}", pick(1000, 2000)))
            .unified("hugetlb.2MB.rsvd.max", (pick(8, 10) * MIB).to_string())
            .unified("memory.oom.group", pick(0, 1).to_string());
    }
    wanted
}

/// A disk of this machine.
fn disk() -> DeviceNumber {
    let mut disks: Vec<_> =
        std::fs::read_dir("/sys/block").unwrap().map(|disk| disk.unwrap().path()).collect();
    disks.sort();
    let number = |disk: &PathBuf| std::fs::read_to_string(disk.join("dev")).ok()?.trim().parse().ok();
    disks.iter().find_map(number).expect("a disk")
}

fn skipped(host: &Host, test: &str) -> bool {
    let made = host.hierarchies.iter().all(|hierarchy| {
        let dir = hierarchy.root.join(format!("rf-probe-{}-{test}", std::process::id()));
        std::fs::create_dir(&dir).and_then(|()| std::fs::remove_dir(dir)).is_ok()
    });
    if !made {
        skip("no cgroup can be made here");
    }
    !made
}

#[test]
fn a_change_that_fails_at_any_step_leaves_every_file_as_it_was() {
    let host = Host::detect().unwrap();
    if skipped(&host, "change") {
        return;
    }
    let path = format!("rf-undo-change-{}", std::process::id());
    let _gone = Gone(&host, path.clone());
    let nothing = Resources::default();
    for flipped in [false, true] {
        for second in [false, true] {
            let (before, after) = (resources(&host, second), resources(&host, !second));
            let old = policy(&["c 10:232 rwm", "b 8:0 r"]);
            let new = if flipped {
                DevicePolicy::allow_all()
            } else {
                policy(&["c 10:232 r", "b 8:* rw", "c 10:200 rw"])
            };
            let devices = DeviceWant { before: None, policy: &old, overriding: Override::Refuse };
            let create =
                Want { create: true, statistics: STATISTICS, ..want(&path, &nothing, &before, devices) };
            let (cgroup, _) = Cgroup::create_as(&host, &create, Processes::NONE).unwrap();
            let dirs: BTreeSet<PathBuf> = cgroup.paths().into_values().collect();
            let devices = DeviceWant { before: Some(&old), policy: &new, ..devices };
            let change = want(&path, &before, &after, devices);
            let plan = plan_on(&host, &mut Dirs::new(&host, cgroup.dirs.clone()), &change).unwrap();
            assert!(plan.steps.len() >= 18, "{plan}");
            let files = snapshot(&dirs);
            for position in 0..=plan.steps.len() {
                let filter = cgroup.filter.lock().unwrap_or_else(PoisonError::into_inner);
                let mut open = Dirs::new(&host, cgroup.dirs.clone());
                let error = carry_out_and(
                    &failing_at(&plan, position),
                    &mut open,
                    filter.as_earlier(),
                    Processes::NONE,
                    UNRECORDED,
                    &mut |_| Ok(()),
                )
                .unwrap_err();
                assert!(
                    std::error::Error::source(&error).is_none_or(|source| source.is::<std::io::Error>()),
                    "{position}: {error}: {:?}\n{plan}",
                    std::error::Error::source(&error)
                );
                assert_eq!(error.errno(), Some(rustix::io::Errno::NOENT.raw_os_error()), "{error}");
                nothing_changed(&cgroup, &filter, &files, &old, &format!("{position} of\n{plan}"));
            }
            cgroup.change_as(&change).unwrap();
            assert_ne!(snapshot(&dirs), files);
            cgroup.destroy(Remaining::Kill, SOON).unwrap();
        }
    }
}

#[test]
fn a_creation_that_fails_at_any_step_leaves_no_directory() {
    let host = Host::detect().unwrap();
    if skipped(&host, "create") {
        return;
    }
    let top = format!("rf-undo-create-{}", std::process::id());
    let path = format!("{top}/x/y");
    let _gone = Gone(&host, top.clone());
    let (nothing, change) = (Resources::default(), resources(&host, true));
    let policy = policy(&["c 10:232 rwm"]);
    let devices = DeviceWant { before: None, policy: &policy, overriding: Override::Refuse };
    let create = Want { create: true, statistics: STATISTICS, ..want(&path, &nothing, &change, devices) };
    let plan = plan_on(&host, &mut Dirs::new(&host, Vec::new()), &create).unwrap();
    for position in 0..=plan.steps.len() {
        let mut dirs = Dirs::new(&host, Vec::new());
        let error = carry_out_and(
            &failing_at(&plan, position),
            &mut dirs,
            Earlier::Unknown,
            Processes::NONE,
            UNRECORDED,
            &mut |_| Ok(()),
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Kernel, "{error}");
        for hierarchy in &host.hierarchies {
            assert!(!hierarchy.root.join(Path::new(&top)).exists(), "{position} of\n{plan}");
        }
    }
    let (made, _) = Cgroup::create_as(&host, &create, Processes::NONE).unwrap();
    made.destroy(Remaining::Kill, SOON).unwrap();
    assert!(matches!(change.pids.limit, Some(Limit::Value(50))));
}
