//! Who is in the separate overhead: helpers whole, and on v1 the VMM's own threads as far as threads count.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustix::io::Errno;

use super::ONE_DOMAIN;
use crate::cgroup::{Cgroup, Task};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Host, Version};
use crate::kernel::dir::CgroupDir;
use crate::kernel::proc;
use crate::plan::Dir;
use crate::report::Report;
use crate::sandbox::threads::{PASSES, processes_of};
use crate::sandbox::{Overhead, Part, Placed, Sandbox, State};

/// The file that lists threads, and moves one, on v1.
const TASKS: &str = "tasks";

type Place = (Dir, Arc<CgroupDir>);

/// A hierarchy of v1 in which threads of one process can be in different cgroups to some effect: CPU time, CPUs.
struct Split {
    inside: Place,
    outside: Place,
}

impl Split {
    fn all(cgroup: &Cgroup, outside: &Cgroup) -> Vec<Self> {
        let split = |place: &Place| {
            let (dir, _) = place;
            let is_by_thread = cgroup.version(dir) == Version::V1 && cgroup.host.has_parts(dir.hierarchy);
            let other = outside.dirs.iter().find(|(other, _)| other.hierarchy == dir.hierarchy);
            let outside = other.filter(|_| is_by_thread)?.clone();
            Some(Self { inside: place.clone(), outside })
        };
        cgroup.dirs.iter().filter_map(split).collect()
    }

    /// Threads of the VMM that are not where they belong, and where that is.
    fn misplaced(
        &self,
        host: &Host,
        vmms: &BTreeSet<u32>,
        vcpus: &BTreeSet<u32>,
    ) -> Result<Vec<(u32, &Place)>> {
        let (inside, outside) = (listed(host, &self.inside)?, listed(host, &self.outside)?);
        // After what is listed: a thread that was made meanwhile is found by the next pass.
        let own: BTreeSet<u32> = vmms.iter().flat_map(|pid| proc::threads(*pid)).collect();
        let leave = inside.into_iter().filter(|tid| own.contains(tid) && !vcpus.contains(tid));
        let enter = outside.into_iter().filter(|tid| vcpus.contains(tid));
        let (leave, enter) = (leave.map(|tid| (tid, &self.outside)), enter.map(|tid| (tid, &self.inside)));
        Ok(leave.chain(enter).collect())
    }
}

/// None of a scope that ends at this moment.
fn listed(host: &Host, (dir, open): &Place) -> Result<BTreeSet<u32>> {
    match open.read(TASKS) {
        Ok(list) => Ok(proc::numbers(&list).collect()),
        Err(Errno::NODEV | Errno::NOENT) => Ok(BTreeSet::new()),
        Err(errno) => Err(Error::kernel("cannot list the threads", dir.full(host).join(TASKS), errno)),
    }
}

/// Moves a thread; whether both were there.
fn put(host: &Host, (dir, open): &Place, tid: u32) -> Result<bool> {
    match open.migrate(TASKS, tid) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH | Errno::NODEV | Errno::NOENT) => Ok(false),
        Err(errno) => {
            let error = Error::kernel("cannot move the thread", dir.full(host).join(TASKS), errno);
            Err(error.with_setting("tid").with_value(tid))
        }
    }
}

impl Sandbox {
    /// [`Sandbox::place_vcpus`] where the overhead is separate: every process but the VMM goes there whole, and on v1 the
    /// VMM's other threads in the hierarchies in which threads count.
    pub(in crate::sandbox) fn place_apart(&self, apart: &Self, vcpus: &[(u32, u32)]) -> Result<Placed> {
        let mut state = self.locked();
        let cgroup = self.present_or_not_found(&state)?;
        let vmms = processes_of(vcpus, &cgroup.processes()?)?;
        if vmms.is_empty() {
            let why =
                "at least one thread of a vCPU: by that the VMM is known, and all else goes to the overhead";
            return Err(Error::invalid("vcpus", "none", why));
        }
        let wanted: BTreeSet<u32> = vcpus.iter().map(|(_, tid)| *tid).collect();
        let mut stays = vmms.clone();
        stays.extend(state.placeholder.as_ref().map(|held| held.pid));
        let (mut moved, mut report) = (BTreeSet::new(), Report::default());
        for _ in 0..PASSES {
            let before = moved.len();
            moved.extend(move_processes(&cgroup, apart, &mut stays, &mut report)?);
            let outside = apart.present_or_left()?;
            let splits = outside.as_ref().map(|outside| Split::all(&cgroup, outside)).unwrap_or_default();
            let mut is_settled = moved.len() == before;
            for split in &splits {
                for (tid, place) in split.misplaced(&cgroup.host, &vmms, &wanted)? {
                    if put(&cgroup.host, place, tid)? {
                        is_settled = false;
                        moved.insert(tid);
                    }
                }
            }
            if is_settled {
                state.vcpus = vcpus.iter().copied().collect();
                let others =
                    vmms.iter().flat_map(|pid| proc::threads(*pid)).filter(|tid| !wanted.contains(tid));
                say_what_stays(&state, &cgroup, others.count(), &splits, &mut report);
                let overhead = match (outside, splits.first()) {
                    (_, Some(split)) => listed(&cgroup.host, &split.outside)?.len(),
                    (Some(outside), None) => outside.tasks(true)?.len(),
                    (None, None) => 0,
                };
                return Ok(Placed { vcpus: wanted.len(), overhead, moved: moved.len(), report });
            }
        }
        let why = format!("new threads appear faster than they can be placed ({} were)", moved.len());
        Err(Error::new(ErrorKind::TimedOut, why).with_value(&state.cgroup))
    }

    /// [`Sandbox::join_threads`] where the overhead is separate.
    pub(in crate::sandbox) fn join_threads_apart(
        &self,
        apart: &Self,
        part: Part,
        tids: &[u32],
    ) -> Result<()> {
        let place = if part == Part::Overhead { apart } else { self };
        let cgroup = place.cgroup()?;
        let host = &cgroup.host;
        let by_thread: Vec<_> = cgroup.dirs.iter().filter(|(dir, _)| host.has_parts(dir.hierarchy)).collect();
        for tid in tids {
            for place in &by_thread {
                if host.version_of(place.0.hierarchy) == Version::V2 {
                    let inside = cgroup.processes()?;
                    if !proc::process_of(*tid).is_some_and(|pid| inside.contains(&pid)) {
                        let why = "on cgroup v2 the threads of a process cannot be in different domains: attach the process";
                        return Err(Error::new(ErrorKind::Unsupported, why)
                            .with_setting("tid")
                            .with_value(tid));
                    }
                } else if !put(host, place, *tid)? {
                    let error = Error::kernel("there is no such thread, or no more", "/proc", Errno::SRCH);
                    return Err(error.with_setting("tid").with_value(tid));
                }
            }
        }
        Ok(())
    }

    /// [`Sandbox::tasks`] where the overhead is separate. A process is where its memory is charged; its threads may be
    /// outside.
    pub(in crate::sandbox) fn tasks_apart(&self, apart: &Self, threads: bool) -> Result<Vec<Task>> {
        let state = self.known();
        let (own, outside) = (self.present(&state)?, apart.present_or_left()?);
        let mut tasks = own.as_ref().map(|own| own.tasks(threads)).transpose()?.unwrap_or_default();
        if let Some(outside) = &outside {
            let inside = own.as_ref().map(|own| own.processes()).transpose()?.unwrap_or_default();
            let first = own.as_ref().and_then(|own| Split::all(own, outside).into_iter().next());
            if let (true, Some(split)) = (threads, first) {
                let those = listed(&outside.host, &split.outside)?;
                for task in tasks.iter_mut().filter(|task| those.contains(&task.tid)) {
                    (task.part, task.cgroup) = (Some(Part::Overhead), format!("/{}", outside.path));
                }
            }
            let mut theirs = outside.tasks(threads)?;
            theirs.retain(|task| !inside.contains(&task.pid));
            theirs.iter_mut().for_each(|task| task.part = Some(Part::Overhead));
            tasks.extend(theirs);
        }
        for task in &mut tasks {
            if let Some((index, _)) = state.vcpus.iter().find(|(_, tid)| **tid == task.tid) {
                task.index = Some(*index);
                task.part = task.part.or(Some(Part::Vcpu));
            }
        }
        tasks.sort_by_key(|task| (task.pid, task.tid));
        Ok(tasks)
    }
}

/// Moves whole processes to the overhead; those that are to stay grow by what cannot be moved.
fn move_processes(
    cgroup: &Cgroup,
    apart: &Sandbox,
    stays: &mut BTreeSet<u32>,
    report: &mut Report,
) -> Result<Vec<u32>> {
    let mut moved = Vec::new();
    for pid in cgroup.processes()? {
        if stays.contains(&pid) {
            continue;
        }
        match apart.join(pid) {
            Ok(()) => moved.push(pid),
            Err(_) if !proc::is_running(pid) => {}
            Err(error) => {
                let name = proc::name(pid).unwrap_or_else(|| pid.to_string());
                report.note("overhead", name, format!("this process stays inside: {error}"));
                stays.insert(pid);
            }
        }
    }
    Ok(moved)
}

/// Why threads of the VMM are still inside.
fn say_what_stays(state: &State, cgroup: &Cgroup, others: usize, splits: &[Split], report: &mut Report) {
    let host = &cgroup.host;
    let by_thread: Vec<_> = cgroup.dirs.iter().filter(|(dir, _)| host.has_parts(dir.hierarchy)).collect();
    let is_unit = matches!(&state.overhead, Overhead::Separate(path) if path.is_systemd());
    let stays = "other threads of the VMM stay inside";
    let why = if by_thread.iter().any(|(dir, _)| host.version_of(dir.hierarchy) == Version::V2) {
        format!("{others} {stays}: {ONE_DOMAIN}")
    } else if by_thread.is_empty() || splits.len() < by_thread.len() && !is_unit {
        format!("{others} {stays}: no hierarchy for CPU time or CPUs is at hand")
    } else if splits.len() < by_thread.len() {
        format!(
            "{others} {stays}: systemd starts the scope of the overhead with its first process; start a helper there, or hold \
             it, and place them again"
        )
    } else {
        return;
    };
    report.note("overhead", &state.overhead, why);
}
