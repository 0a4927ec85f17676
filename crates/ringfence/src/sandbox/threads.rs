//! Which thread is in which part, and putting them there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::layout::{self, Shares};
use super::pinning::{own, pinned};
use super::{Part, Sandbox, State, VcpuHints};
use crate::cgroup::{Cgroup, Task};
use crate::driver::dirs::Dirs;
use crate::driver::systemd::Processes;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Version;
use crate::kernel::dir::CgroupDir;
use crate::kernel::poll::Deadline;
use crate::kernel::proc;
use crate::plan::{Dir, Want};
use crate::report::Report;
use crate::threads::{Expect, VmmThreads};

/// A thread that is made while threads are placed starts where the one that made it is: it is found by the next pass.
pub(super) const PASSES: usize = 100;

/// How long one of several processes is looked at for the threads of a VMM, at first; each time twice as long.
const LOOK: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(10);

/// What [`Sandbox::place_vcpus`] did.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Placed {
    /// Threads that run vCPUs, all in their part now.
    pub vcpus: usize,
    /// Other threads, in that of the overhead.
    pub overhead: usize,
    /// How many of them were elsewhere before.
    pub moved: usize,
    /// What could not be moved.
    pub report: Report,
}

/// The directories of one hierarchy in which threads are told apart.
pub(super) struct Parts {
    version: Version,
    whole: Arc<CgroupDir>,
    parts: BTreeMap<Part, (Dir, Arc<CgroupDir>)>,
}

/// The threads of each directory.
pub(super) struct Threads {
    whole: BTreeSet<u32>,
    parts: BTreeMap<Part, BTreeSet<u32>>,
}

impl Threads {
    /// Whether a thread is where vCPUs belong.
    pub(super) fn has_vcpu(&self, tid: u32) -> bool {
        self.parts.iter().any(|(part, tids)| part.is_of_vcpus() && tids.contains(&tid))
    }
}

impl Parts {
    fn file(&self) -> &'static str {
        match self.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.threads",
        }
    }

    fn list(&self, dir: &CgroupDir) -> Result<BTreeSet<u32>, Errno> {
        Ok(proc::numbers(&dir.read(self.file())?).collect())
    }

    pub(super) fn threads(&self) -> Result<Threads> {
        let listed = |dir: &CgroupDir| {
            self.list(dir).map_err(|errno| Error::kernel("cannot list the threads", self.file(), errno))
        };
        let parts = self.parts.iter().map(|(part, (_, dir))| Ok((*part, listed(dir)?)));
        Ok(Threads { whole: listed(&self.whole)?, parts: parts.collect::<Result<_>>()? })
    }

    /// Moves a thread; whether it was there to be moved.
    fn put(&self, cgroup: &Cgroup, part: Part, tid: u32) -> Result<bool> {
        let Some((dir, open)) = self.parts.get(&part) else { return Ok(false) };
        match open.migrate(self.file(), tid) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(errno) => {
                let why = match errno {
                    Errno::OPNOTSUPP => "its process is not in this sandbox: attach that first",
                    Errno::INVAL => {
                        "this thread cannot be moved (a kernel thread, or real-time without budget)"
                    }
                    _ => "cannot move the thread",
                };
                let path = dir.full(&cgroup.host).join(self.file());
                Err(Error::kernel(why, path, errno).with_setting("tid").with_value(tid))
            }
        }
    }
}

impl Sandbox {
    /// Finds the vCPU threads of the VMM among the processes inside, again until there are as many as expected or the time
    /// is over. What `hints` do not say was said at the creation, or is known from the profile.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] where nothing says how they are found; [`ErrorKind::NotFound`] where
    /// nothing runs; [`ErrorKind::TimedOut`] if there were too few.
    pub fn find_vcpus(&self, hints: &VcpuHints, within: Duration) -> Result<VmmThreads> {
        let deadline = Deadline::after(within);
        let (finder, count, placeholder) = {
            let state = self.known();
            let hints = hints.or(&state.vcpu_hints);
            (hints.finder(state.profile), hints.count, state.placeholder.clone())
        };
        let finder = finder.ok_or_else(|| {
            let why = "the socket of QEMU's monitor (qmp), or how the threads of vCPUs are called (vmm)";
            Error::invalid("vcpus", "unknown", why)
        })?;
        let mut look = LOOK;
        loop {
            let mut inside = self.own_processes()?;
            // What keeps a scope of systemd alive is no VMM.
            inside.retain(|pid| placeholder.as_ref().is_none_or(|process| process.pid != *pid));
            if inside.is_empty() {
                return Err(Error::new(ErrorKind::NotFound, "nothing runs inside"));
            }
            let mut failed = None;
            for pid in &inside {
                // Of several, each gets a look; one alone all the time.
                let patience = if inside.len() == 1 { deadline.left() } else { deadline.left().min(look) };
                let expect = count.map_or(Expect::any(), Expect::vcpus).within(patience);
                match finder.find(*pid, expect) {
                    Ok(found) => return Ok(found),
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = failed.filter(|_| deadline.is_over()) {
                return Err(error);
            }
            look = look.saturating_mul(2);
            deadline.sleep(PAUSE);
        }
    }

    /// Finds the threads of the VMM and puts each where it belongs: [`Sandbox::find_vcpus`], then
    /// [`Sandbox::place_vcpus`]; kernel threads that work for the VMM join the overhead as far as the kernel lets them.
    ///
    /// # Errors
    /// Those of both.
    pub fn classify(&self, hints: &VcpuHints, within: Duration) -> Result<Placed> {
        self.place(&self.find_vcpus(hints, within)?)
    }

    /// Puts what was found where it belongs.
    pub fn place(&self, found: &VmmThreads) -> Result<Placed> {
        let vcpus: Vec<_> = found.vcpus.iter().map(|vcpu| (vcpu.index, vcpu.tid)).collect();
        let iothreads: Vec<_> = (0..).zip(found.io_threads.iter().map(|thread| thread.tid)).collect();
        let mut placed = self.sort(&vcpus, &iothreads, Some(found.pid))?;
        for thread in found.clone().with_kernel_threads().kernel_threads {
            let joined = self.join_part_forced(Part::Overhead, &[thread.pid]);
            if let Err(error) = joined {
                placed.report.note(
                    "overhead",
                    thread.name,
                    format!("this kernel thread stays outside: {error}"),
                );
            }
        }
        Ok(placed)
    }

    /// Puts threads of which the caller knows that they run vCPUs, each with its index, into the part of the vCPUs, and all
    /// others into that of the overhead; again and again until a pass finds none to move.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] where the sandbox has no parts, and for a thread that is not inside.
    pub fn place_vcpus(&self, vcpus: &[(u32, u32)]) -> Result<Placed> {
        self.sort(vcpus, &[], None)
    }

    /// The same with the threads that are known.
    pub(super) fn place_again(&self) -> Result<Report> {
        let state = self.known();
        let known = |threads: &BTreeMap<u32, u32>| -> Vec<_> { threads.iter().map(own).collect() };
        let (vcpus, iothreads) = (known(&state.vcpus), known(&state.iothreads));
        drop(state);
        let vmm = vcpus.iter().find_map(|(_, tid)| proc::process_of(*tid));
        match vmm {
            Some(vmm) => Ok(self.sort(&vcpus, &iothreads, Some(vmm))?.report),
            None => Ok(Report::default()),
        }
    }

    /// Puts vCPU threads in their place, and I/O threads in places of their own if they are to have them; of those that were
    /// found in a `vmm`, some may have ended meanwhile, or all with it.
    fn sort(&self, vcpus: &[(u32, u32)], iothreads: &[(u32, u32)], vmm: Option<u32>) -> Result<Placed> {
        if let Some(apart) = &self.apart {
            let mut vcpus = vcpus.to_vec();
            vcpus.retain(|(_, tid)| vmm.is_none() || proc::process_of(*tid).is_some());
            return self.place_apart(apart, &vcpus);
        }
        let mut state = self.locked();
        let cgroup = self.present_or_not_found(&state)?;
        parts_of(&cgroup, &state)?;
        let inside = cgroup.processes()?;
        if let Some(pid) = vmm.filter(|pid| !inside.contains(pid)) {
            let why = "the VMM has ended meanwhile, or is inside no more";
            return Err(Error::new(ErrorKind::NotFound, why).with_value(pid));
        }
        let there = |threads: &[(u32, u32)]| -> Result<BTreeMap<u32, u32>> {
            let mut there = BTreeMap::new();
            for (index, tid) in threads {
                match proc::process_of(*tid) {
                    Some(pid) if inside.contains(&pid) => drop(there.insert(*index, *tid)),
                    None if vmm.is_some() && proc::has_ended(*tid) => {}
                    None if vmm.is_some() => {
                        let why = "it is there, and cannot be looked at";
                        let error =
                            Error::new(ErrorKind::Kernel, why).with_path(format!("/proc/{tid}/status"));
                        return Err(error.with_setting("tid").with_value(tid));
                    }
                    _ => {
                        let why = "the ID of a thread of a process in this sandbox";
                        return Err(Error::invalid("tid", tid, why));
                    }
                }
            }
            Ok(there)
        };
        let (vcpus, iothreads) = (there(vcpus)?, there(iothreads)?);
        let wanted = state.each.parts_of(&vcpus, &iothreads);
        let mut report = Report::default();
        for part in wanted.values().collect::<BTreeSet<_>>() {
            report.append(self.make_part(&mut state, *part)?);
        }
        let hierarchies = parts_of(&cgroup, &state)?;
        let mut moved = BTreeSet::new();
        for _ in 0..PASSES {
            let mut is_settled = true;
            for parts in &hierarchies {
                for (tid, part) in misplaced(&parts.threads()?, &wanted) {
                    if parts.put(&cgroup, part, tid)? {
                        is_settled = false;
                        moved.insert(tid);
                    }
                }
            }
            if is_settled {
                let all = hierarchies.first().map(Parts::threads).transpose()?;
                let (mut vcpu_threads, mut overhead) = (0, 0);
                for (part, tids) in all.iter().flat_map(|all| &all.parts) {
                    *if part.is_of_vcpus() { &mut vcpu_threads } else { &mut overhead } += tids.len();
                }
                let before = std::mem::replace(&mut state.vcpus, vcpus);
                state.iothreads = iothreads;
                self.keep_pinned(&cgroup, &mut state, &before, &moved, &mut report);
                remove_unused(&cgroup, &mut state, &wanted);
                return Ok(Placed { vcpus: vcpu_threads, overhead, moved: moved.len(), report });
            }
        }
        let why = format!("new threads appear faster than they can be placed ({} were)", moved.len());
        Err(Error::new(ErrorKind::TimedOut, why).with_value(&state.cgroup))
    }

    /// Makes a part, and what it is inside of, unless they are there. One that nobody has recorded was made by a command that
    /// was killed: it is given the limits once more.
    fn make_part(&self, state: &mut State, part: Part) -> Result<Report> {
        let mut report = Report::default();
        for part in part.above().into_iter().chain([part]) {
            if state.parts.contains_key(&part) {
                continue;
            }
            let path = BTreeMap::from([(part, part.path_in(&state.cgroup))]);
            let anew = state.anew();
            let whole = state.want(&anew);
            for wanted in &layout::parts(&path, &Shares::default(), &state.shares()) {
                let want = Want { unsupported: self.unsupported, ..whole.of_part(wanted) };
                report.append(match Cgroup::create_as(&self.host, &want, Processes::NONE) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => self.make_part_again(&want)?,
                    made => made?.1,
                });
            }
            state.parts.extend(path);
        }
        Ok(report)
    }

    /// One that is empty may be half made: some of its files are set by a creation alone. One with threads inside is whole.
    fn make_part_again(&self, want: &Want<'_>) -> Result<Report> {
        let there = Cgroup::open_at(&self.host, want.path)?;
        if there.processes()?.is_empty() {
            there.remove_where_empty();
            match Cgroup::create_as(&self.host, want, Processes::NONE) {
                // On v2 it does not list its threads as processes.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => return made.map(|(_, report)| report),
            }
        }
        Ok(there.change_as(&Want { create: false, ..*want })?.0)
    }

    /// Puts the calling thread into a part: for a VMM that lives in the process of its runtime, which is in this sandbox.
    pub fn join_current_thread(&self, part: Part) -> Result<()> {
        self.join_threads(part, &[rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()])
    }

    /// Puts running threads into a part.
    ///
    /// Where systemd has v1 hierarchies and the process of a thread is in a unit of its own, systemd takes the thread back
    /// should it move the processes of that unit about: it knows processes alone.
    ///
    /// # Errors
    /// The process of each must be inside: what is killed here is killed whole. On v2 threads of one process cannot be in
    /// different domains.
    pub fn join_threads(&self, part: Part, tids: &[u32]) -> Result<()> {
        if let Some(apart) = &self.apart {
            return self.join_threads_apart(apart, part, tids);
        }
        let state = self.locked();
        let cgroup = self.present_or_not_found(&state)?;
        let hierarchies = parts_of(&cgroup, &state)?;
        let inside = cgroup.whole_processes()?;
        for tid in tids {
            let process = proc::process_of(*tid);
            if process.is_some_and(|pid| !inside.contains(&pid)) {
                let why = "a thread of a process in this sandbox: attach the process first";
                return Err(Error::invalid("tid", tid, why));
            }
            for parts in &hierarchies {
                if !parts.put(&cgroup, part, *tid)? {
                    let error = Error::kernel("there is no such thread, or no more", "/proc", Errno::SRCH);
                    return Err(error.with_setting("tid").with_value(tid));
                }
            }
        }
        Ok(())
    }

    /// The processes inside, or all their threads, each with the part in which it is.
    pub fn tasks(&self, threads: bool) -> Result<Vec<Task>> {
        if let Some(apart) = &self.apart {
            return self.tasks_apart(apart, threads);
        }
        let state = self.known();
        let Some(cgroup) = self.present(&state)? else { return Ok(Vec::new()) };
        let mut tasks = cgroup.tasks(threads)?;
        let first = if state.parts.is_empty() { None } else { parts_of(&cgroup, &state)?.into_iter().next() };
        let Some(known) = first.map(|parts| parts.threads()).transpose()? else { return Ok(tasks) };
        for task in &mut tasks {
            let found = known.parts.iter().find(|(_, tids)| tids.contains(&task.tid));
            let Some((part, _)) = found else { continue };
            task.part = Some(*part);
            task.index = state.vcpus.iter().find(|(_, tid)| **tid == task.tid).map(|(index, _)| *index);
            task.pinned = task.index.and_then(|index| pinned(&state, index, task.tid));
            if let Some(path) = state.parts.get(part) {
                task.cgroup = format!("/{path}");
            }
        }
        Ok(tasks)
    }
}

/// The processes whose threads run vCPUs; each must be inside.
pub(super) fn processes_of(vcpus: &[(u32, u32)], inside: &BTreeSet<u32>) -> Result<BTreeSet<u32>> {
    let process = |(_, tid): &(u32, u32)| {
        proc::process_of(*tid)
            .filter(|pid| inside.contains(pid))
            .ok_or_else(|| Error::invalid("tid", tid, "the ID of a thread of a process in this sandbox"))
    };
    vcpus.iter().map(process).collect()
}

/// Threads that are not where they belong, and where that is.
fn misplaced(now: &Threads, wanted: &BTreeMap<u32, Part>) -> Vec<(u32, Part)> {
    let whole = now.whole.iter().map(|tid| (None, *tid));
    let parts = now.parts.iter().flat_map(|(part, tids)| tids.iter().map(|tid| (Some(*part), *tid)));
    let belongs = |(is, tid)| {
        let part = wanted.get(&tid).copied().unwrap_or(Part::Overhead);
        (is != Some(part)).then_some((tid, part))
    };
    whole.chain(parts).filter_map(belongs).collect()
}

/// Removes the parts of threads that have ended, the inner ones first. One that has threads stays, and is seen to the next time.
fn remove_unused(cgroup: &Cgroup, state: &mut State, wanted: &BTreeMap<u32, Part>) {
    let used: BTreeSet<_> =
        wanted.values().flat_map(|part| part.above().into_iter().chain([*part])).collect();
    let unused: Vec<_> =
        state.parts.keys().copied().filter(|part| part.is_for_threads() && !used.contains(part)).collect();
    let mut dirs = Dirs::of(cgroup);
    for part in unused.into_iter().rev() {
        let path = part.path_in(&state.cgroup);
        let mut is_gone = true;
        for (whole, _) in &cgroup.dirs {
            let dir = Dir::new(whole.hierarchy, &*path);
            let removed = dir.parent().map(|above| dirs.get(&above)?.remove_dir(dir.name()));
            is_gone &= matches!(removed, None | Some(Ok(()) | Err(Errno::NOENT)));
        }
        if is_gone {
            state.parts.remove(&part);
        }
    }
}

/// The hierarchies in which the sandbox has parts, open.
pub(super) fn parts_of(cgroup: &Cgroup, state: &State) -> Result<Vec<Parts>> {
    if state.parts.is_empty() {
        let why = "the sandbox has no parts: its overhead is together with the workload";
        return Err(Error::new(ErrorKind::InvalidInput, why).with_setting("overhead").with_value("together"));
    }
    let mut hierarchies: BTreeMap<usize, Parts> = BTreeMap::new();
    for (part, path) in &state.parts {
        for (dir, open) in cgroup.directories_of(path)? {
            let Some((_, whole)) = cgroup.dirs.iter().find(|(known, _)| known.hierarchy == dir.hierarchy)
            else {
                continue;
            };
            let parts = hierarchies.entry(dir.hierarchy).or_insert_with(|| Parts {
                version: cgroup.version(&dir),
                whole: Arc::clone(whole),
                parts: BTreeMap::new(),
            });
            parts.parts.insert(*part, (dir, open));
        }
    }
    Ok(hierarchies.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_whole_or_in_the_wrong_part_is_misplaced() {
        let set = |tids: &[u32]| tids.iter().copied().collect::<BTreeSet<u32>>();
        let parts = BTreeMap::from([
            (Part::Vcpu, set(&[1, 2, 3])),
            (Part::Overhead, set(&[4, 5])),
            (Part::OneVcpu(0), set(&[8, 9])),
        ]);
        let now = Threads { whole: set(&[6, 7]), parts };
        let to = |tids: &[u32], part| tids.iter().map(|tid| (*tid, part)).collect::<Vec<_>>();
        let sorted = |wanted: &[Vec<(u32, Part)>]| -> BTreeSet<_> {
            misplaced(&now, &wanted.concat().into_iter().collect()).into_iter().collect()
        };
        let expected = [to(&[2, 3, 7, 8, 9], Part::Overhead), to(&[4, 6], Part::Vcpu)].concat();
        assert_eq!(sorted(&[to(&[1, 4, 6], Part::Vcpu)]), expected.into_iter().collect());
        // With one of its own.
        let expected = [to(&[2, 3, 6, 7, 9], Part::Overhead), to(&[1], Part::OneVcpu(1))].concat();
        let wanted = [to(&[8], Part::OneVcpu(0)), to(&[1], Part::OneVcpu(1)), to(&[5], Part::Overhead)];
        assert_eq!(sorted(&wanted), expected.into_iter().collect());
    }
}
