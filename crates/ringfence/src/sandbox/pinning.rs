//! vCPUs pinned to CPUs, one to each.
//!
//! An affinity is a thread's own (sched_setaffinity(2)), within what its cpuset has. When the cpuset changes, kernels before 6.2
//! forget it; later ones hold to it wherever it fits, and come back to it. So with every change pins are made anew or taken away.

mod choice;

use std::collections::{BTreeMap, BTreeSet};

use rustix::io::Errno;

use super::threads::{Threads, parts_of};
use super::{Overhead, Part, Sandbox, State};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::host::{Controller, Topology, Version};
use crate::kernel::{affinity, proc};
use crate::report::Report;
use crate::resources::CpuSet;

use choice::Choice;
pub use choice::{Pin, TakenCpus};

/// The setting in reports and errors.
const PIN: &str = "pin";

/// The vCPU threads that run, and what they may use.
struct Running {
    /// Index → thread; of vCPUs that share a thread the first.
    vcpus: BTreeMap<u32, u32>,
    cpus: CpuSet,
    mems: CpuSet,
    /// The CPUs are those of a cpuset, by which they are bounded whatever their affinity.
    by_cpuset: bool,
}

impl Sandbox {
    /// Other pinning, or none: for the next [`Sandbox::pin_vcpus`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a sandbox whose vCPUs are not told from other threads.
    pub fn set_pin(&self, pin: Option<Pin>) -> Result<()> {
        let mut state = self.locked();
        pin.map_or(Ok(()), |pin| state.allows_pin(pin))?;
        state.pin = pin;
        Ok(())
    }

    /// Pins the vCPUs that were found, as the configuration says ([`SandboxConfig::pin`](crate::SandboxConfig::pin)); where
    /// that cannot be, none is pinned, and the report says why. To be called when they were placed, and after a change of
    /// CPUs or of the number of vCPUs: what no longer matches is reset then. [`Entry::pin_vcpus`](crate::Entry::pin_vcpus)
    /// knows what others have taken.
    ///
    /// # Errors
    /// The kernel refused (without CAP_SYS_NICE threads of another user cannot be pinned): then none is pinned.
    pub fn pin_vcpus(&self, taken: &TakenCpus) -> Result<Report> {
        self.pin_with(taken, |_| Ok(()))
    }

    /// The same; what is about to be pinned is recorded before it is.
    pub(super) fn pin_with(
        &self,
        taken: &TakenCpus,
        record: impl FnOnce(&State) -> Result<()>,
    ) -> Result<Report> {
        let mut state = self.locked();
        let mut report = Report::default();
        let Some(cgroup) = self.present(&state)?.filter(|_| !state.parts.is_empty()) else {
            state.pinned.clear();
            return Ok(report);
        };
        let running = Running::of(&cgroup, &state)?;
        let chosen = match state.pin {
            Some(pin) if !running.vcpus.is_empty() => running.choose(pin, taken, &state.pinned),
            _ => Ok(BTreeMap::new()),
        };
        let wanted = chosen.unwrap_or_else(|why| {
            if let Some(pin) = state.pin {
                report.add(PIN, pin, format!("not pinned: {why}"));
            }
            BTreeMap::new()
        });
        let before = std::mem::replace(&mut state.pinned, wanted);
        let tried = BTreeSet::from([PIN.into()]);
        state.report.supersede(&tried, &report);
        let done = if state.pinned.is_empty() { Ok(()) } else { record(&self.snapshot(&state)) };
        if let Err(error) = done.and_then(|()| running.pin(&mut state.pinned)) {
            running.release(state.pinned.keys().chain(before.keys()));
            state.pinned.clear();
            return Err(error.with_setting(PIN));
        }
        running.release(before.keys().filter(|vcpu| !state.pinned.contains_key(vcpu)));
        Ok(report)
    }

    /// After threads were placed, or CPUs changed: keeps what is pinned where it is, as far as that still fits, and resets
    /// the rest. Pins nothing else, since that takes to know what is taken.
    ///
    /// `vcpus` are those from before, and `moved` the threads that were in another part.
    pub(super) fn keep_pinned(
        &self,
        cgroup: &Cgroup,
        state: &mut State,
        vcpus: &BTreeMap<u32, u32>,
        moved: &BTreeSet<u32>,
        report: &mut Report,
    ) {
        let Some(pin) = state.pin.filter(|_| !state.pinned.is_empty()) else { return };
        let kept = Running::of(cgroup, state).and_then(|running| {
            let inside = cgroup.processes()?;
            let is_inside = |tid: u32| proc::process_of(tid).is_some_and(|pid| inside.contains(&pid));
            // Another thread runs this vCPU now, or this thread another one, or none.
            state.pinned.retain(|vcpu, _| {
                let Some(tid) = vcpus.get(vcpu) else { return false };
                let stays = running.vcpus.get(vcpu) == Some(tid) && !moved.contains(tid);
                if !stays && is_inside(*tid) {
                    running.free(*tid);
                }
                stays
            });
            let before = std::mem::take(&mut state.pinned);
            let chosen = running.choose(pin, &TakenCpus::new(), &before).unwrap_or_default();
            state.pinned =
                before.iter().filter(|(vcpu, cpu)| chosen.get(vcpu) == Some(cpu)).map(own).collect();
            if pin == Pin::Matching && state.pinned.len() < running.vcpus.len() {
                state.pinned.clear();
            }
            let done = running.pin(&mut state.pinned);
            running.release(before.keys().filter(|vcpu| !state.pinned.contains_key(vcpu)));
            done
        });
        if let Err(error) = kept {
            state.pinned.clear();
            report.add(PIN, pin, format!("not pinned: {error}"));
        }
    }

    /// Whether vCPUs are to be pinned.
    pub(super) fn is_pinned(&self) -> bool {
        self.known().pin.is_some()
    }

    /// The CPUs to which vCPUs that run are pinned.
    pub fn pinned_cpus(&self) -> Result<CpuSet> {
        let state = self.known();
        let Some(cgroup) = self.present(&state)?.filter(|_| !state.pinned.is_empty()) else {
            return Ok(CpuSet::new());
        };
        let vcpus = running_vcpus(&cgroup, &state)?;
        let held = state.pinned.iter().filter(|(vcpu, _)| vcpus.contains_key(vcpu)).map(|(_, cpu)| *cpu);
        CpuSet::from_numbers(held)
    }
}

impl State {
    /// vCPUs can only be pinned where they are told from other threads.
    pub(super) fn allows_pin(&self, pin: Pin) -> Result<()> {
        if self.parts.is_empty() { Err(without_vcpus(pin, &self.overhead)) } else { Ok(()) }
    }
}

impl Running {
    fn of(cgroup: &Cgroup, state: &State) -> Result<Self> {
        let vcpus = running_vcpus(cgroup, state)?;
        let cpus = effective(cgroup, state, "cpuset.cpus.effective", "cpuset.effective_cpus");
        let mems = effective(cgroup, state, "cpuset.mems.effective", "cpuset.effective_mems");
        let by_cpuset = cpus.is_some();
        let cpus = cpus.or_else(|| mask_of_others(&vcpus)).unwrap_or_else(|| cgroup.host.cpus.clone());
        Ok(Self { vcpus, cpus, mems: mems.unwrap_or_else(|| cgroup.host.mems.clone()), by_cpuset })
    }

    fn choose(
        &self,
        pin: Pin,
        taken: &TakenCpus,
        before: &BTreeMap<u32, u32>,
    ) -> Result<BTreeMap<u32, u32>, String> {
        let vcpus: Vec<u32> = self.vcpus.keys().copied().collect();
        let topology = Topology::read(&self.cpus);
        let (allowed, mems, topology) = (&self.cpus, &self.mems, &topology);
        Choice { pin, allowed, mems, topology, taken, vcpus: &vcpus, before }.make()
    }

    /// A vCPU that ends meanwhile is no longer pinned.
    fn pin(&self, pinned: &mut BTreeMap<u32, u32>) -> Result<()> {
        let mut failed = None;
        pinned.retain(|vcpu, cpu| {
            let Some(tid) = self.vcpus.get(vcpu) else { return false };
            match CpuSet::from_numbers([*cpu]).map(|cpu| affinity::set(*tid, &cpu)) {
                Ok(Err(Errno::SRCH)) => false,
                Ok(Err(errno)) => {
                    let error = Error::kernel("cannot pin the thread", format!("/proc/{tid}"), errno);
                    failed.get_or_insert(error.with_value(cpu));
                    true
                }
                Ok(Ok(())) => true,
                Err(error) => {
                    failed.get_or_insert(error);
                    true
                }
            }
        });
        failed.map_or(Ok(()), Err)
    }

    /// These may run again on every CPU that they may use. One that has ended needs nothing.
    fn release<'a>(&self, vcpus: impl Iterator<Item = &'a u32>) {
        vcpus.filter_map(|vcpu| self.vcpus.get(vcpu)).for_each(|tid| self.free(*tid));
    }

    fn free(&self, tid: u32) {
        _ = if self.by_cpuset { affinity::set_all(tid) } else { affinity::set(tid, &self.cpus) };
    }
}

/// The vCPU threads that are there, where vCPUs belong.
fn running_vcpus(cgroup: &Cgroup, state: &State) -> Result<BTreeMap<u32, u32>> {
    let threads = parts_of(cgroup, state)?.first().map(|parts| parts.threads()).transpose()?;
    let mut seen = BTreeSet::new();
    let runs = |tid: &u32| threads.as_ref().is_some_and(|threads: &Threads| threads.has_vcpu(*tid));
    let vcpus = state.vcpus.iter().filter(|(_, tid)| runs(tid) && seen.insert(**tid));
    Ok(vcpus.map(own).collect())
}

/// What the cpuset of the vCPUs comes to. On v2 that is what the nearest cgroup above says that has the controller.
fn effective(cgroup: &Cgroup, state: &State, v2: &str, v1: &str) -> Option<CpuSet> {
    let (index, hierarchy) = cgroup.host.hierarchy_of(Controller::Cpuset)?;
    let file = match hierarchy.version {
        Version::V2 => v2,
        Version::V1 => v1.strip_prefix("cpuset.").filter(|_| hierarchy.noprefix).unwrap_or(v1),
    };
    let root = cgroup.host.root(index).ok()?;
    let mut path = state.parts.get(&Part::Vcpu)?.as_str();
    loop {
        let found = root.open_dir(path).and_then(|dir| dir.read(file));
        if let Some(set) =
            found.ok().and_then(|text| text.parse().ok()).filter(|set: &CpuSet| !set.is_empty())
        {
            return Some(set);
        }
        // On v1 what has no directory of its own here is elsewhere, not above.
        if path.is_empty() || hierarchy.version == Version::V1 {
            return None;
        }
        path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
}

/// Without a cpuset: where the VMM's other threads may run, which are not pinned.
fn mask_of_others(vcpus: &BTreeMap<u32, u32>) -> Option<CpuSet> {
    let process = proc::process_of(*vcpus.values().next()?)?;
    let others = proc::threads(process).into_iter().filter(|tid| !vcpus.values().any(|vcpu| vcpu == tid));
    others.filter_map(|tid| affinity::get(tid).ok()).find(|mask| !mask.is_empty())
}

pub(super) fn without_vcpus(pin: Pin, overhead: &Overhead) -> Error {
    let why = match overhead {
        Overhead::Separate(_) => {
            "takes overhead nested: beside a separate one, vCPUs have no part of their own"
        }
        _ => "takes overhead nested: where it is together, vCPUs are not told from other threads",
    };
    Error::invalid(PIN, pin, why)
}

/// The CPU to which the thread of a vCPU is pinned by us, and still is.
pub(super) fn pinned(state: &State, vcpu: u32, tid: u32) -> Option<u32> {
    let cpu = *state.pinned.get(&vcpu)?;
    let mask = affinity::get(tid).ok()?;
    (mask.len() == 1 && mask.contains(cpu)).then_some(cpu)
}

pub(super) fn own((vcpu, value): (&u32, &u32)) -> (u32, u32) {
    (*vcpu, *value)
}
