//! The layout of a sandbox: which limit is the whole's, and which a part's. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Overhead, State};
use crate::error::{Error, Result};
use crate::explain::Key;
use crate::host::{Controller, Host, Version};
use crate::plan::PartWant;
use crate::resources::{Cpu, Resources};

/// A part of a sandbox, into which threads go: a threaded cgroup below that of the whole on v2, and the same in the
/// hierarchies of cpu, cpuacct and cpuset on v1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The threads that run the guest's CPUs, with the quota, the period, the burst and the CPUs of the workload.
    Vcpu,
    /// All else: the VMM's main thread, its I/O threads, vhost workers, helpers such as virtiofsd.
    Overhead,
    /// What holds the parts of I/O threads, where these have limits of their own; no thread is in it.
    IoThreads,
    /// The thread of one vCPU, by the vCPU's number; inside [`Vcpu`](Self::Vcpu).
    OneVcpu(u32),
    /// One I/O thread, by its position among those that the VMM tells.
    OneIoThread(u32),
}

impl Part {
    /// Those that are there from the start, in the order in which they are made.
    pub const FIRST: [Self; 2] = [Self::Vcpu, Self::Overhead];

    /// Whether it comes and goes with the threads of the VMM.
    pub(super) fn is_for_threads(self) -> bool {
        !Self::FIRST.contains(&self)
    }

    /// The part that it is inside of.
    pub(super) fn above(self) -> Option<Self> {
        match self {
            Self::OneVcpu(_) => Some(Self::Vcpu),
            Self::OneIoThread(_) => Some(Self::IoThreads),
            Self::Vcpu | Self::Overhead | Self::IoThreads => None,
        }
    }

    /// Whether its threads run vCPUs.
    pub(super) fn is_of_vcpus(self) -> bool {
        matches!(self, Self::Vcpu | Self::OneVcpu(_))
    }

    pub(super) fn path_in(self, cgroup: &str) -> String {
        format!("{cgroup}/{self}")
    }
}

impl fmt::Display for Part {
    /// The path of its directory, from that of the whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpu => f.write_str("vcpu"),
            Self::Overhead => f.write_str("overhead"),
            Self::IoThreads => f.write_str("iothread"),
            Self::OneVcpu(number) => write!(f, "vcpu/{number}"),
            Self::OneIoThread(number) => write!(f, "iothread/{number}"),
        }
    }
}

impl FromStr for Part {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |prefix| text.strip_prefix(prefix).and_then(|number| number.parse().ok());
        let one = number("vcpu/").map(Self::OneVcpu).or(number("iothread/").map(Self::OneIoThread));
        let mut known = Self::FIRST.into_iter().chain([Self::IoThreads]).chain(one);
        let found = known.find(|part| part.to_string() == text);
        found.ok_or_else(|| Error::invalid("part", text, "vcpu, overhead, vcpu/N, iothread or iothread/N"))
    }
}

impl Serialize for Part {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Whether it is about what each part has by itself.
pub(super) fn is_by_part(key: &Key) -> bool {
    matches!(key.controller(), Controller::Cpu | Controller::Cpuset)
}

/// The names of v2 files whose values are those of the vCPUs.
const OF_VCPUS: [&str; 4] = ["cpu.max", "cpu.max.burst", "cpuset.cpus", "cpuset.cpus.partition"];

/// Limits as the whole has them, and as each part has them.
#[derive(Debug, Default)]
pub(super) struct Shares<'a> {
    pub(super) whole: Cow<'a, Resources>,
    /// Where there are parts.
    by_part: Option<Box<ByPart>>,
}

#[derive(Debug)]
struct ByPart {
    vcpu: Resources,
    overhead: Resources,
    iothreads: Resources,
    each: EachThread,
}

/// Limits that each thread of a kind has by itself, in a part of its own, which is made when the thread is found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EachThread {
    /// Of each vCPU, `vcpu/N`: at most what they have together.
    #[serde(skip_serializing_if = "Resources::is_empty")]
    pub vcpu: Resources,
    /// Of each I/O thread that the VMM tells, `iothread/N`.
    #[serde(skip_serializing_if = "Resources::is_empty")]
    pub iothread: Resources,
}

impl EachThread {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.vcpu.is_empty() && self.iothread.is_empty()
    }

    /// The part of each thread: that of its kind, or one of its own.
    pub(super) fn parts_of(
        &self,
        vcpus: &BTreeMap<u32, u32>,
        iothreads: &BTreeMap<u32, u32>,
    ) -> BTreeMap<u32, Part> {
        let mut parts = BTreeMap::new();
        for (index, tid) in vcpus {
            let part = if self.vcpu.is_empty() { Part::Vcpu } else { Part::OneVcpu(*index) };
            // One thread may run several.
            parts.entry(*tid).or_insert(part);
        }
        for (index, tid) in iothreads.iter().filter(|_| !self.iothread.is_empty()) {
            parts.entry(*tid).or_insert(Part::OneIoThread(*index));
        }
        parts
    }
}

impl<'a> Shares<'a> {
    pub(super) fn into_owned(self) -> Shares<'static> {
        Shares { whole: Cow::Owned(self.whole.into_owned()), by_part: self.by_part }
    }

    /// All of it is the whole's where there are no parts.
    ///
    /// With an owner, the bandwidth and the CPUs of the vCPUs hold for the whole as well: the owner can move processes from the
    /// parts into the whole.
    ///
    /// Else the vCPUs have the bandwidth and the CPUs of the workload; real-time bandwidth and memory nodes are everybody's,
    /// since no part can have what the whole has not; the rest is the whole's.
    pub(super) fn of(
        has_parts: bool,
        has_owner: bool,
        resources: &'a Resources,
        overhead: &Resources,
        each: &EachThread,
    ) -> Self {
        let whole = Self::whole_of(has_parts && !has_owner, resources);
        let is_of_vcpus = |name: &&str| resources.unified.contains_key(*name);
        let is_by_part = resources.cpu != Cpu::default() || OF_VCPUS.iter().any(is_of_vcpus);
        if !has_parts || !is_by_part && overhead.is_empty() && each.is_empty() {
            return Self { whole, by_part: None };
        }
        let Cpu { quota, period, burst, realtime_runtime, realtime_period, cpus, mems, .. } =
            resources.cpu.clone();
        let mut vcpu = Resources::default();
        let mut overhead = overhead.clone();
        let (mut each, mut iothreads) = (each.clone(), Resources::default());
        for limits in [&mut overhead, &mut iothreads, &mut each.vcpu, &mut each.iothread] {
            limits.cpu.mems.clone_from(&mems);
        }
        // On v1 a part has the CPUs that it was given, and none that the part above it has not.
        each.vcpu.cpu.cpus = each.vcpu.cpu.cpus.or_else(|| cpus.clone());
        vcpu.cpu =
            Cpu { quota, period, burst, realtime_runtime, realtime_period, cpus, mems, ..Cpu::default() };
        let named = OF_VCPUS.iter().filter_map(|name| resources.unified.get_key_value(*name));
        vcpu.unified = named.map(|(name, value)| (name.clone(), value.clone())).collect();
        Self { whole, by_part: Some(Box::new(ByPart { vcpu, overhead, iothreads, each })) }
    }

    /// What of it is the whole's: all, or what is left where the vCPUs alone have the rest.
    fn whole_of(is_shared_out: bool, resources: &'a Resources) -> Cow<'a, Resources> {
        let mut whole = Cow::Borrowed(resources);
        if !is_shared_out {
            return whole;
        }
        let Cpu { quota, period, burst, cpus, .. } = &resources.cpu;
        if quota.is_some() || period.or(*burst).is_some() || cpus.is_some() {
            let cpu = &mut whole.to_mut().cpu;
            (cpu.quota, cpu.period, cpu.burst, cpu.cpus) = (None, None, None, None);
        }
        for name in OF_VCPUS.iter().filter(|name| resources.unified.contains_key(**name)) {
            whole.to_mut().unified.remove(*name);
        }
        whole
    }

    pub(super) fn part(&self, part: Part) -> &Resources {
        let Some(by_part) = &self.by_part else { return Resources::nothing() };
        match part {
            Part::Vcpu => &by_part.vcpu,
            Part::Overhead => &by_part.overhead,
            Part::OneVcpu(_) => &by_part.each.vcpu,
            Part::IoThreads => &by_part.iothreads,
            Part::OneIoThread(_) => &by_part.each.iothread,
        }
    }
}

/// What is wanted of each part, from the shares before and those that change.
pub(super) fn parts(paths: &BTreeMap<Part, String>, base: &Shares<'_>, change: &Shares<'_>) -> Vec<PartWant> {
    let want = |(part, path): (&Part, &String)| PartWant {
        path: path.clone(),
        base: base.part(*part).clone(),
        change: change.part(*part).clone(),
    };
    paths.iter().map(want).collect()
}

/// The same, of those of which something changes.
pub(super) fn changed_parts(state: &State, change: &Shares<'_>) -> Vec<PartWant> {
    if change.by_part.is_none() {
        return Vec::new();
    }
    let mut parts = parts(&state.parts, &state.shares(), change);
    parts.retain(|part| !part.change.is_empty());
    parts
}

/// The paths of the parts, as far as this host has a place for them.
pub(super) fn paths(host: &Host, overhead: &Overhead, cgroup: &str, is_unit: bool) -> BTreeMap<Part, String> {
    // A user's systemd has no say on v1, nor has the user.
    let is_ours = |index| !(is_unit && host.rootless && host.version_of(index) == Version::V1);
    let has_place = |index| is_ours(index) && host.takes(index, cgroup) && host.has_parts(index);
    if *overhead != Overhead::Nested || !(0..host.hierarchies.len()).any(has_place) {
        return BTreeMap::new();
    }
    Part::FIRST.into_iter().map(|part| (part, part.path_in(cgroup))).collect()
}

impl State {
    /// Limits as they lie on the whole and its parts.
    pub(super) fn shares(&self) -> Shares<'_> {
        self.shares_of(&self.resources, &self.overhead_resources, &self.each)
    }

    /// The same, for others.
    pub(super) fn shares_of<'a>(
        &self,
        resources: &'a Resources,
        overhead: &Resources,
        each: &EachThread,
    ) -> Shares<'a> {
        Shares::of(!self.parts.is_empty(), self.owner.is_some(), resources, overhead, each)
    }

    /// What the whole has of its limits.
    pub(super) fn whole(&self) -> Cow<'_, Resources> {
        Shares::whole_of(!self.parts.is_empty() && self.owner.is_none(), &self.resources)
    }

    /// Forgets the parts of single threads: they went with the cgroup.
    pub(super) fn forget_threads(&mut self) {
        self.parts.retain(|part, _| !part.is_for_threads());
        (self.vcpus, self.iothreads) = Default::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Mode;
    use crate::resources::Limit;

    #[test]
    fn bandwidth_and_cpus_go_to_the_vcpus_and_the_rest_stays_with_the_whole() {
        let mut resources = Resources::default();
        resources.memory.limit = Some(Limit::Value(1 << 30));
        resources.pids.limit = Some(Limit::Value(50));
        resources.cpu = Cpu {
            weight: Some(200),
            quota: Some(Limit::Value(50_000)),
            period: Some(100_000),
            burst: Some(1),
            cpus: Some("0".parse().unwrap()),
            mems: Some("0".parse().unwrap()),
            ..Cpu::default()
        };
        let lines = [("cpu.max.burst", "5"), ("memory.high", "7")];
        resources.unified = lines.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut overhead = Resources::default();
        overhead.cpu.quota = Some(Limit::Value(10_000));

        let each = EachThread::default();
        let Shares { whole, by_part } = Shares::of(true, false, &resources, &overhead, &each);
        let ByPart { vcpu, overhead: given, .. } = *by_part.unwrap();
        assert_eq!((whole.memory.limit, whole.pids.limit), (resources.memory.limit, resources.pids.limit));
        assert_eq!(whole.cpu, Cpu { weight: Some(200), mems: resources.cpu.mems.clone(), ..Cpu::default() });
        assert_eq!(vcpu.cpu, Cpu { weight: None, ..resources.cpu.clone() });
        assert_eq!((vcpu.memory, vcpu.pids), Default::default());
        assert_eq!(whole.unified.keys().collect::<Vec<_>>(), ["memory.high"]);
        assert_eq!(vcpu.unified.keys().collect::<Vec<_>>(), ["cpu.max.burst"]);
        overhead.cpu.mems.clone_from(&resources.cpu.mems);
        assert_eq!(given, overhead);
        // Nothing is lost where there are no parts.
        assert_eq!(*Shares::of(false, false, &resources, &overhead, &each).whole, resources);
        // An owner gains nothing by moving its processes out of the parts.
        let Shares { whole, by_part } = Shares::of(true, true, &resources, &overhead, &each);
        assert_eq!((&*whole, &by_part.unwrap().vcpu.cpu.quota), (&resources, &resources.cpu.quota));
    }

    #[test]
    fn parts_have_a_place_where_there_is_a_hierarchy_for_threads() {
        for mode in [Mode::V1, Mode::Hybrid, Mode::V2] {
            let host = Host::standard(mode, false);
            let found = paths(&host, &Overhead::Nested, "ringfence/a", false);
            assert_eq!(found[&Part::Vcpu], "ringfence/a/vcpu");
            assert_eq!(found[&Part::Overhead], "ringfence/a/overhead");
            assert!(paths(&host, &Overhead::Together, "ringfence/a", false).is_empty());
            // Without a cgroup.
            assert!(paths(&host, &Overhead::Nested, "", false).is_empty());
        }
    }
}
