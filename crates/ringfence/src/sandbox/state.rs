//! What another process needs to take a sandbox over.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::layout::{self, EachThread, Shares};
use super::{Begun, Overhead, Part, Pin, VcpuHints};
use crate::cgroup::Cgroup;
use crate::cgroup::mark::describe;
use crate::devices::filter::Override;
use crate::devices::{DevicePolicy, DeviceRule, Profile};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Host, Mode};
use crate::kernel::proc::{self, ProcessIdentity};
use crate::path::{CgroupPath, Subpath};
use crate::plan::{DeviceWant, Owner, PartWant, UnitWant, Want};
use crate::report::Report;
use crate::resources::Resources;
use crate::systemd::OURS;

/// The version of the format that is written. States of version 1 are read: they have no limits of block devices, huge
/// pages, network and RDMA, and no bursts by default. Sandboxes of version 2 and before are marked in one hierarchy alone.
pub const STATE_VERSION: u32 = 3;

/// How far a sandbox has come; written before and after the kernel is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It is being made; if nobody is at it, a crash left it half made.
    Creating,
    /// It is there.
    Ready,
    /// It is being removed.
    Removing,
}

/// Everything that another process needs to restore a sandbox: a value, kept by the caller or by a
/// [`Store`](crate::Store).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The format, [`STATE_VERSION`].
    pub version: u32,
    /// How far it has come.
    pub phase: Phase,
    /// The path as it was given.
    pub path: CgroupPath,
    /// The path below the root of each hierarchy; empty for a sandbox without a cgroup, where none is delegated.
    pub cgroup: String,
    /// The host's mode when it was made.
    pub mode: Mode,
    /// What is wanted, the caller's device rules included.
    pub resources: Resources,
    /// The hypervisor profile.
    pub profile: Profile,
    /// A quota of CPU time brings a burst of the same size with it, unless `resources` say something about bursts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub burst_by_default: bool,
    /// The burst in microseconds that the caller asked for, if the present quota allows only a shorter one. A higher quota
    /// brings it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_asked: Option<u64>,
    /// The device policy in force: the profile, the caller's rules and the claims together.
    pub devices: DevicePolicy,
    /// The same without the claims; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unclaimed: Option<DevicePolicy>,
    /// The kernel's number of our device program (v2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_program: Option<u32>,
    /// A device program of another manager above may be overridden (v2).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub override_device_programs: bool,
    /// Devices that were added later, by the name of their claim; each has rules that allow, and no two for the same numbers.
    #[serde(default)]
    pub claims: BTreeMap<String, Vec<DeviceRule>>,
    /// Where the VMM's own threads are.
    pub overhead: Overhead,
    /// Limits of the overhead by itself.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub overhead_resources: Resources,
    /// Limits of each thread of a kind by itself.
    #[serde(default, skip_serializing_if = "EachThread::is_empty")]
    pub each: EachThread,
    /// Parts of the sandbox with limits of their own: name → path below the root of each hierarchy.
    #[serde(default)]
    pub parts: BTreeMap<Part, String>,
    /// How they are found that run vCPUs.
    #[serde(default, skip_serializing_if = "VcpuHints::is_empty")]
    pub vcpu_hints: VcpuHints,
    /// The threads that run vCPUs, as far as they were found: index → thread ID.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vcpus: BTreeMap<u32, u32>,
    /// The I/O threads, where these have limits of their own: position → thread ID.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub iothreads: BTreeMap<u32, u32>,
    /// How vCPUs are to be pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// The vCPUs that are pinned: index → CPU.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pinned: BTreeMap<u32, u32>,
    /// The process that answers for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<ProcessIdentity>,
    /// Without a cgroup: the processes that were started, which is all that is known of what is inside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub started: Vec<ProcessIdentity>,
    /// What could not be done.
    #[serde(default)]
    pub report: Report,
    /// Whom the cgroup is delegated to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// The extended attribute on its directories: the identities of the store and of this creation, `STORE/CREATION`. What
    /// carries another mark, or none, is not this sandbox's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
    /// By which its directories are known where they could not be marked, or where their marks cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes: Option<Inodes>,
    /// The process that keeps a scope of systemd alive while nothing else runs inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placeholder: Option<ProcessIdentity>,
    /// The overhead where it is separate: a cgroup like that of a sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apart: Option<Box<State>>,
    /// A change that was begun: if nobody is at it, a crash left it half made, and [`Sandbox::settle`](crate::Sandbox::settle)
    /// takes it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Begun>,
    /// Its removal was begun with killing what is inside; without, it goes on only if nothing is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub killing: bool,
    /// Fields that this version does not know: they are kept as they are for the one that wrote them.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// The directories of a cgroup, by the kernel's numbers.
///
/// A mark takes a kernel that has extended attributes on cgroups, and CAP_SYS_ADMIN to be read where it was set with that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inodes {
    /// `/proc/sys/kernel/random/boot_id` of the boot in which they were made.
    boot_id: String,
    /// Hierarchy, as `/proc/PID/cgroup` calls it → inode.
    inodes: BTreeMap<String, u64>,
}

impl Inodes {
    /// Of a cgroup that was just made.
    pub(super) fn of(cgroup: &Cgroup) -> Option<Self> {
        let name =
            |(index, inode): &(usize, u64)| Some((cgroup.host.hierarchies.get(*index)?.called(), *inode));
        let inodes: BTreeMap<_, _> = cgroup.inodes.iter().filter_map(name).collect();
        let boot_id = proc::boot_id().filter(|_| !inodes.is_empty())?.to_owned();
        Some(Self { boot_id, inodes })
    }

    /// The same by the indices of hierarchies; none after another boot.
    pub(super) fn on(&self, host: &Host) -> Vec<(usize, u64)> {
        if proc::boot_id() != Some(&*self.boot_id) {
            return Vec::new();
        }
        let known = host.hierarchies.iter().enumerate();
        known.filter_map(|(index, known)| Some((index, *self.inodes.get(&known.called())?))).collect()
    }
}

/// What the planner is told beside a state: that nothing was wanted before, and by what a unit is known again.
#[derive(Debug)]
pub(super) struct Anew<'a> {
    pub(super) whole: Cow<'a, Resources>,
    parts: Vec<PartWant>,
    /// Of the unit, if there is one.
    description: Option<String>,
}

impl State {
    /// The PID of what keeps a scope alive, while it does.
    pub(super) fn held_by(&self) -> Option<u32> {
        self.placeholder.as_ref().filter(|process| process.is_alive()).map(|process| process.pid)
    }

    /// The units of systemd that carry it and its separate overhead.
    pub(super) fn units(&self) -> Vec<String> {
        let both = std::iter::once(self).chain(self.apart.as_deref());
        both.filter_map(|one| Some(one.path.as_systemd()?.unit())).collect()
    }

    /// The paths of the parts, and of the overhead where it is separate.
    pub fn part_paths(&self) -> BTreeMap<Part, String> {
        let apart = self.apart.iter().map(|apart| (Part::Overhead, apart.cgroup.clone()));
        self.parts.clone().into_iter().chain(apart).collect()
    }

    /// Whether `rules` is the list of the caller's device rules that is in force: the same rules in the same order. Never for
    /// an empty list, which says nothing of devices.
    pub fn has_device_rules(&self, rules: &[DeviceRule]) -> bool {
        let own = &self.resources.devices;
        // The path is for messages alone.
        let key = |rule: &DeviceRule| (rule.allow, rule.kind, rule.numbers, rule.access);
        !rules.is_empty() && own.iter().map(key).eq(rules.iter().map(key))
    }

    /// What could not be done, of a separate overhead too.
    pub fn full_report(&self) -> Report {
        let mut report = self.report.clone();
        self.apart.iter().for_each(|apart| report.add_new(&apart.report));
        report
    }

    /// For [`State::want`].
    pub(super) fn anew(&self) -> Anew<'_> {
        let shares = self.shares();
        let parts = layout::parts(&self.parts, &Shares::default(), &shares);
        Anew { whole: shares.whole, parts, description: self.description() }
    }

    /// For a change: the parts are as they are.
    pub(super) fn as_it_is(&self) -> Anew<'_> {
        Anew { whole: self.whole(), parts: Vec::new(), description: self.description() }
    }

    fn description(&self) -> Option<String> {
        self.path.as_systemd().map(|_| {
            let what = format!("{OURS}{}", self.path);
            self.mark.as_ref().map_or_else(|| what.clone(), |mark| describe(&what, mark))
        })
    }

    /// The unit of systemd that carries the cgroup.
    pub(super) fn unit<'a>(&'a self, anew: &'a Anew<'_>) -> Option<UnitWant<'a>> {
        let (name, description) = self.path.as_systemd().zip(anew.description.as_deref())?;
        Some(UnitWant { name, description })
    }

    /// All of it, in a cgroup that is yet to be made.
    pub(super) fn want<'a>(&'a self, anew: &'a Anew<'_>) -> Want<'a> {
        let overriding = Override::from_allowed(self.override_device_programs);
        let devices = DeviceWant { before: None, policy: &self.devices, overriding };
        Want {
            create: true,
            devices: Some(devices),
            burst_by_default: self.burst_by_default,
            oom_group_by_default: self.profile != Profile::None,
            unit: self.unit(anew),
            owner: self.owner,
            mark: self.mark.as_deref(),
            parts: &anew.parts,
            ..Want::change(&self.cgroup, Resources::nothing(), &anew.whole)
        }
    }

    /// Refuses a state of a format that this version does not know, and paths that lead elsewhere.
    pub(crate) fn check(&self) -> Result<()> {
        if self.version > STATE_VERSION {
            let why = format!("written by a newer version (this one reads up to {STATE_VERSION})");
            return Err(Error::new(ErrorKind::State, why).with_setting("version").with_value(self.version));
        }
        if !self.cgroup.is_empty() && !Subpath::is_clean(&self.cgroup) {
            let why = "the path of a cgroup below the root of a hierarchy";
            return Err(Error::new(ErrorKind::State, why).with_setting("cgroup").with_value(&self.cgroup));
        }
        for path in self.parts.values() {
            let below = path.strip_prefix(&self.cgroup).and_then(|below| below.strip_prefix('/'));
            if !below.is_some_and(Subpath::is_clean) {
                let why = format!("the path of a part is below that of the sandbox, {}", self.cgroup);
                return Err(Error::new(ErrorKind::State, why).with_setting("parts").with_value(path));
            }
        }
        let apart = self.apart.as_ref().map_or("", |apart| apart.cgroup.as_str());
        self.begun.as_ref().map_or(Ok(()), |begun| begun.check(&[&self.cgroup, apart]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limit;

    /// Written by the version before block devices, huge pages, network and RDMA had fields.
    const VERSION_1: &str = include_str!("state-1.json");

    #[test]
    fn a_state_of_version_1_is_read_and_asks_for_no_burst() {
        let state: State = serde_json::from_str(VERSION_1).unwrap();
        state.check().unwrap();
        assert_eq!((state.version, state.phase, state.profile), (1, Phase::Ready, Profile::Qemu));
        assert_eq!(state.cgroup, "ringfence/vm1");
        assert_eq!(state.resources.memory.swap, Some(Limit::Value(512 << 20)));
        assert_eq!(state.resources.devices.len(), 1);
        assert_eq!(state.devices.exceptions().count(), 11);
        assert!(!state.burst_by_default && state.resources.block_io == Default::default());
        let again: State = serde_json::from_value(serde_json::to_value(&state).unwrap()).unwrap();
        assert_eq!(again, state);
    }

    #[test]
    fn a_number_in_a_field_that_is_not_known_stays_what_it_is_however_often_it_is_kept() {
        let mut json: serde_json::Value = serde_json::from_str(VERSION_1).unwrap();
        json["from_the_future"] = serde_json::json!(1.111_000_000_437_531_9e28);
        let state: State = serde_json::from_str(&json.to_string()).unwrap();
        let again: State = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        assert_eq!((&again, &again.unknown["from_the_future"]), (&state, &json["from_the_future"]));
    }

    #[test]
    fn a_state_of_a_newer_version_is_refused_and_unknown_fields_are_kept() {
        let mut json: serde_json::Value = serde_json::from_str(VERSION_1).unwrap();
        json["from_the_future"] = serde_json::json!({"a": [1]});
        json["resources"]["cpu"]["uclamp"] = 5.into();
        let state: State = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&state).unwrap()["from_the_future"], json["from_the_future"]);
        json["version"] = (STATE_VERSION + 1).into();
        let error = serde_json::from_value::<State>(json).unwrap().check().unwrap_err();
        assert_eq!((error.kind(), error.setting()), (ErrorKind::State, Some("version")));
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let with = |cgroup: &str, part: &str| {
            let mut state: State = serde_json::from_str(VERSION_1).unwrap();
            state.cgroup = cgroup.to_owned();
            state.parts.insert(Part::Vcpu, part.to_owned());
            state.check()
        };
        with("a/b", "a/b/vcpu").unwrap();
        for cgroup in ["..", "a/../../b", "/a", "a//b", "a/", "a/./b", "a\0b", "a\nb"] {
            let error = with(cgroup, &format!("{cgroup}/vcpu")).unwrap_err();
            assert_eq!((error.kind(), error.setting()), (ErrorKind::State, Some("cgroup")), "{cgroup:?}");
        }
        for part in ["", "a/b", "a/bc/vcpu", "a/b/", "a/b/../c", "b/vcpu"] {
            let error = with("a/b", part).unwrap_err();
            assert_eq!((error.kind(), error.setting()), (ErrorKind::State, Some("parts")), "{part:?}");
        }
    }
}
