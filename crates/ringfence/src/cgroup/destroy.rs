//! The end of a cgroup: killing or moving what is inside, and removing it in every hierarchy.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::Signal;
use serde::{Serialize, Serializer};

use crate::cgroup::freeze::event;
use crate::cgroup::mark::{is_ancestor, is_described, is_unfinished, mark_drained, mark_of};
use crate::cgroup::signal::send_inside;
use crate::cgroup::slice::stop_default_slice;
use crate::cgroup::tree::clear_below;
use crate::cgroup::{Cgroup, members};
use crate::driver::dirs::Dirs;
use crate::error::{Error, ErrorKind, Result};
use crate::events::{Counts, LastCounts};
use crate::host::{Controller, Host, Version};
use crate::kernel::dir::{CgroupDir, read_all};
use crate::kernel::poll::{Deadline, wait_for_change};
use crate::kernel::proc;
use crate::path::{DRAINED, SystemdName};
use crate::plan::{self, Dir};
use crate::report::Report;
use crate::systemd::{Started, limit};

/// By which the scopes of drained processes are known.
const DRAINED_DESCRIPTION: &str = "Ringfence: drained processes";

/// What becomes of processes that are still inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remaining {
    /// Nothing is removed while there are any.
    Refuse,
    /// They live on, within the limits of the parent: on v1 in the parent, on v2 in a leaf `drained` beside.
    Drain,
    /// They are killed.
    Kill,
}

/// What [`Cgroup::destroy`] did.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Processes that were killed.
    pub killed: BTreeSet<u32>,
    /// Processes that were moved out.
    pub moved: BTreeSet<u32>,
    /// Directories that were removed.
    #[serde(serialize_with = "as_text")]
    pub removed: Vec<PathBuf>,
    /// What could not be done, or recorded.
    #[serde(skip_serializing_if = "Report::is_empty")]
    pub report: Report,
    /// What the kernel had counted when everything inside was dead: nothing is known of it afterwards.
    #[serde(skip_serializing_if = "Counts::is_unknown")]
    pub events: Counts,
}

/// Whoever a cgroup was delegated to may have made others in it with names that are no UTF-8, which JSON cannot hold.
fn as_text<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

impl Outcome {
    pub(crate) fn extend(&mut self, other: Self) {
        self.killed.extend(other.killed);
        self.moved.extend(other.moved);
        self.removed.extend(other.removed);
        self.events.add(&other.events);
        self.report.append(other.report);
    }
}

/// What was done all the same, and all that went wrong; the source of the error that [`Cgroup::destroy`] returns.
#[derive(Debug)]
pub struct Failures {
    errors: Vec<Error>,
    outcome: Outcome,
}

impl Failures {
    /// What went wrong, where that is more than one thing: the error itself has one alone.
    pub fn errors(&self) -> &[Error] {
        &self.errors
    }

    /// What was moved, killed and removed before and after.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// The outcome, or one error for all that went wrong.
    pub(crate) fn or_outcome(mut errors: Vec<Error>, outcome: Outcome) -> Result<Outcome> {
        let error = match errors.pop() {
            None => return Ok(outcome),
            Some(only) if errors.is_empty() => only,
            Some(last) => {
                let kind = last.kind();
                errors.push(last);
                let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
                Error::new(kind, format!("not all of it could be done: {}", all.join("; ")))
            }
        };
        Err(error.with_source(Self { errors, outcome }))
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { killed, moved, removed, .. } = &self.outcome;
        write!(
            f,
            "all the same, {} processes were killed, {} moved out, and {} directories removed",
            killed.len(),
            moved.len(),
            removed.len()
        )
    }
}

impl std::error::Error for Failures {}

impl Cgroup {
    /// Kills every process inside, those that are being forked meanwhile too, and returns when none is left.
    ///
    /// A frozen cgroup is thawed: frozen tasks do not die. Kernel threads cannot be killed and are moved out. The calling
    /// process is spared; while it is inside, the others are killed one by one, without freezing them.
    pub fn kill(&self, timeout: Duration) -> Result<BTreeSet<u32>> {
        let deadline = Deadline::after(timeout);
        self.refuse_nested()?;
        let mut outcome = Outcome::default();
        let failures = self.kill_until_empty(None, deadline, &mut outcome);
        Failures::or_outcome(failures, outcome).map(|outcome| outcome.killed)
    }

    /// [`Cgroup::kill`] for all but one.
    pub(crate) fn kill_others(&self, spared: u32, timeout: Duration) -> Result<BTreeSet<u32>> {
        self.refuse_nested()?;
        let mut outcome = Outcome::default();
        let failures = self.kill_until_empty(Some(spared), Deadline::after(timeout), &mut outcome);
        Failures::or_outcome(failures, outcome).map(|outcome| outcome.killed)
    }

    /// Kills one process inside and waits until it has left; a frozen cgroup is thawed.
    pub(crate) fn kill_one(&self, pid: u32, deadline: Deadline) {
        self.thaw_tree();
        _ = send_inside(&BTreeSet::from([pid]), &|| self.processes(), Signal::KILL);
        while self.processes().is_ok_and(|inside| inside.contains(&pid)) && !deadline.is_over() {
            deadline.sleep(Duration::from_millis(1));
        }
    }

    fn kill_until_empty(&self, spared: Option<u32>, deadline: Deadline, outcome: &mut Outcome) -> Vec<Error> {
        let mut pause = Duration::from_micros(200);
        loop {
            let mut pids = match self.processes() {
                Ok(pids) => pids,
                Err(error) => return vec![error],
            };
            let holds_caller = pids.remove(&std::process::id());
            pids.retain(|pid| Some(*pid) != spared);
            if pids.is_empty() {
                // Thawed all the same, so that what joins later runs.
                self.thaw_tree();
                return Vec::new();
            }
            let kernel = self.kill_once(&pids, spared, holds_caller);
            outcome.killed.extend(pids.difference(&kernel));
            let failures = if kernel.is_empty() { Vec::new() } else { self.drain_once(&kernel, outcome) };
            if !failures.is_empty() {
                return failures;
            }
            if deadline.is_over() {
                return vec![self.not_killed(&pids)];
            }
            deadline.sleep(pause);
            if !holds_caller {
                pause = (pause * 2).min(Duration::from_millis(20));
            }
        }
    }

    /// One pass: `cgroup.kill` (Linux 5.14) where there is one, and a signal for each that is listed still, so that what is
    /// in a v1 hierarchy alone is reached too, and on Linux 6.1 a process whose first thread ended elsewhere. Where that is all,
    /// it is frozen meanwhile, so that nothing forks; on v1 it dies when it thaws. Neither is done to the calling process.
    /// Returns the kernel threads.
    fn kill_once(&self, pids: &BTreeSet<u32>, spared: Option<u32>, holds_caller: bool) -> BTreeSet<u32> {
        let killed = spared.is_none()
            && !holds_caller
            && self.host.capabilities.cgroup_kill
            && self.unified().is_some_and(|dir| dir.write("cgroup.kill", "1").is_ok());
        if let (false, false, Ok((version, dir))) = (killed, holds_caller, self.freezer()) {
            _ = match version {
                Version::V1 => dir.write("freezer.state", "FROZEN"),
                Version::V2 => dir.write("cgroup.freeze", "1"),
            };
        }
        let mut kernel = BTreeSet::new();
        let mut listed = self.processes().unwrap_or_else(|_| pids.clone());
        listed.retain(|pid| Some(*pid) != spared && *pid != std::process::id());
        _ = send_inside(&listed, &|| self.processes(), Signal::KILL);
        for pid in pids {
            if proc::Stat::read(*pid).is_some_and(|stat| stat.is_kernel_thread()) {
                kernel.insert(*pid);
            }
        }
        self.thaw_tree();
        kernel
    }

    /// Removes the cgroup in every hierarchy; the caller says what becomes of processes that are still inside.
    ///
    /// A hierarchy from which the cgroup is gone is skipped. A failure in one hierarchy does not stop the others. The calling process is never
    /// killed: where it is inside, it is moved out last, as by [`Remaining::Drain`].
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when there are processes and they were to be refused: nothing is changed then; or when the calling
    /// process is all that remains inside and cannot be moved out. Otherwise all failures in one, as the error's source.
    pub fn destroy(&self, remaining: Remaining, timeout: Duration) -> Result<Outcome> {
        self.destroy_telling(remaining, timeout, &mut |_| {})
    }

    /// The same; what was counted is told before it is gone.
    pub(crate) fn destroy_telling(
        &self,
        remaining: Remaining,
        timeout: Duration,
        tell: &mut dyn FnMut(LastCounts),
    ) -> Result<Outcome> {
        let deadline = Deadline::after(timeout);
        self.refuse_nested()?;
        let _limit = limit(deadline);
        let mut outcome = Outcome::default();
        let mut failures: Vec<Error> = Vec::new();
        // systemd may remove the cgroup behind the last process that is killed here.
        let mut counted = self.unit.as_ref().and_then(|_| self.counted());
        match remaining {
            Remaining::Refuse => self.refuse_living()?,
            // What has no cgroup is nowhere that it could be moved out of.
            Remaining::Drain if !self.exists() => {}
            Remaining::Drain => failures = self.drain_until_empty(deadline, &mut outcome),
            Remaining::Kill => failures = self.kill_until_empty(None, deadline, &mut outcome),
        }
        // With processes left inside, rmdir is refused: that says nothing new.
        let is_occupied = !failures.is_empty();
        // Of what is left, nothing will go by itself: each directory is tried once.
        let deadline = if failures.is_empty() { deadline } else { Deadline::after(Duration::ZERO) };
        // Now it is alone: what is counted is read before it leaves, since systemd may remove the cgroup behind it.
        let holds_caller = remaining == Remaining::Kill
            && self.exists()
            && self.processes().is_ok_and(|pids| pids.contains(&std::process::id()));
        if remaining != Remaining::Refuse && !holds_caller && !is_occupied {
            failures.extend(self.wait_until_unpopulated(deadline).err());
        }
        match (&mut counted, self.counted()) {
            (Some(known), Some(now)) => _ = known.counts.advance(&now.counts),
            (known, now) => *known = known.or(now),
        }
        if let Some(last) = counted {
            outcome.events = last.counts;
            tell(last);
        }
        if holds_caller && failures.is_empty() {
            let failed = self.move_caller_out(deadline, &mut outcome);
            failures.extend(failed.or_else(|| self.wait_until_unpopulated(deadline).err()));
        }
        if failures.is_empty()
            && let Some(unit) = &self.unit
        {
            // When the last process has died, the scope ends, and others may start one of its name.
            let is_own = |text: &str| self.mark.as_ref().is_none_or(|mark| is_described(text, mark));
            let stopped = self.host.manager().and_then(|manager| manager.stop_own(&unit.unit(), &is_own));
            failures.extend(stopped.err());
        }
        // In all hierarchies: one that was not there when the cgroup was opened may be by now.
        let all = if self.exists() { self.host.hierarchies.len() } else { 0 };
        let renamed = self.dirs.iter().map(|(dir, _)| dir.clone()).filter(|dir| dir.path != self.path);
        let named = (0..all).map(|hierarchy| Dir::new(hierarchy, Arc::clone(&self.path)));
        for dir in named.chain(renamed) {
            let failed = self.remove_tree(&dir, deadline, &mut outcome).err();
            failures.extend(failed.filter(|error| !is_occupied || error.kind() != ErrorKind::Busy));
        }
        match &self.unit {
            Some(unit) if unit.is_in_default_slice() => {
                let own = Dir::new(0, Arc::clone(&self.path));
                stop_default_slice(&self.host, own.above().unwrap_or_default(), &mut outcome);
            }
            // Slices that systemd made carry no mark. In hierarchies without systemd (v1), their directories are marked.
            _ => self.remove_made_ancestors(&mut outcome),
        }
        Failures::or_outcome(failures, outcome)
    }

    /// For [`Remaining::Refuse`].
    pub(crate) fn refuse_living(&self) -> Result<()> {
        let pids = self.processes()?;
        if pids.is_empty() {
            return Ok(());
        }
        let me = std::process::id();
        let caller =
            if pids.contains(&me) { format!(" ({me} is the calling process)") } else { String::new() };
        let why =
            format!("processes are still inside: {pids:?}{caller}; say whether to kill or to drain them");
        Err(self.about(Error::new(ErrorKind::Busy, why)))
    }

    /// Names the cgroup, if there is one.
    pub(super) fn about(&self, error: Error) -> Error {
        if self.path.is_empty() { error } else { error.with_value(&self.path) }
    }

    /// Repeated until nothing is left that was forked meanwhile; given up early where a pass moves nothing and is refused.
    fn drain_until_empty(&self, deadline: Deadline, outcome: &mut Outcome) -> Vec<Error> {
        self.thaw_tree();
        let mut before = BTreeSet::new();
        let mut pause = Duration::from_micros(200);
        loop {
            let pids = match self.processes() {
                Ok(pids) if pids.is_empty() => return Vec::new(),
                // The calling process goes last: an unprivileged one may move others only while it is among them.
                Ok(pids) if pids.len() > 1 => {
                    pids.into_iter().filter(|pid| *pid != std::process::id()).collect()
                }
                Ok(pids) => pids,
                Err(error) => return vec![error],
            };
            let mut failures = self.drain_some(&pids, outcome);
            let is_refused = !failures.is_empty() && pids == before;
            if is_refused || deadline.is_over() {
                if failures.is_empty() {
                    let why = format!("processes are still inside: {pids:?}");
                    failures.push(Error::new(ErrorKind::TimedOut, why).with_value(&self.path));
                }
                return failures;
            }
            before = pids;
            deadline.sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Moves these processes out, by whoever keeps the cgroup.
    pub(super) fn drain_some(&self, pids: &BTreeSet<u32>, outcome: &mut Outcome) -> Vec<Error> {
        match &self.unit {
            Some(unit) => self.drain_to_scope(unit, pids, outcome),
            None => self.drain_once(pids, outcome),
        }
    }

    /// Moves these processes out, in every hierarchy in which they are. One that vanished or that cannot be moved does not
    /// stop the rest.
    fn drain_once(&self, pids: &BTreeSet<u32>, outcome: &mut Outcome) -> Vec<Error> {
        let drained = |(dir, open): &(Dir, Arc<CgroupDir>)| self.drain_here(dir, open, pids, outcome);
        self.dirs.iter().flat_map(drained).collect()
    }

    /// Of one hierarchy.
    fn drain_here(
        &self,
        dir: &Dir,
        open: &CgroupDir,
        pids: &BTreeSet<u32>,
        outcome: &mut Outcome,
    ) -> Vec<Error> {
        let failed = |errno| Error::kernel("cannot drain into the parent", dir.full(&self.host), errno);
        let mut here = BTreeSet::new();
        let mut failures = Vec::from_iter(members(open, self.version(dir), &mut here).err().map(failed));
        here.retain(|pid| pids.contains(pid));
        if here.is_empty() {
            return failures;
        }
        let target = match self.drain_target(dir) {
            Ok(target) => target,
            Err(errno) => {
                failures.push(failed(errno));
                return failures;
            }
        };
        for pid in here {
            match target.join(pid) {
                Ok(()) => drop(outcome.moved.insert(pid)),
                Err(Errno::SRCH) => {}
                Err(errno) => failures.push(failed(errno).with_setting("pid").with_value(pid)),
            }
        }
        failures
    }

    /// systemd has its own way: the processes get a scope beside this one, in the same slice. In hierarchies that systemd
    /// does not know they go to the parent.
    fn drain_to_scope(&self, unit: &SystemdName, pids: &BTreeSet<u32>, outcome: &mut Outcome) -> Vec<Error> {
        let drained = unit.drained();
        // systemd takes no kernel threads.
        let is_kernels = |pid: &u32| proc::Stat::read(*pid).is_some_and(|stat| stat.is_kernel_thread());
        let (kernel, list): (Vec<u32>, Vec<u32>) = pids.iter().partition(|pid| is_kernels(pid));
        let mut failures = Vec::from_iter(self.drain_listed(unit, &list, outcome).err());
        let path = format!("{}/{drained}", self.path.rsplit_once('/').map_or("", |(parent, _)| parent));
        for index in plan::in_order_of_leaving(&self.host).filter(|index| self.is_managed(*index)) {
            let to = Dir::new(index, path.trim_start_matches('/'));
            let mut dirs = Dirs::new(&self.host, Vec::new());
            for pid in &kernel {
                match dirs.get(&to).and_then(|open| open.join(*pid)) {
                    Ok(()) => drop(outcome.moved.insert(*pid)),
                    Err(Errno::SRCH | Errno::NOENT) => {}
                    Err(errno) => {
                        let why = "cannot drain into the scope of drained processes";
                        failures.push(Error::kernel(why, to.full(&self.host), errno));
                    }
                }
            }
        }
        for (dir, open) in self.dirs.iter().filter(|(dir, _)| !self.is_managed(dir.hierarchy)) {
            failures.extend(self.drain_here(dir, open, pids, outcome));
        }
        failures
    }

    /// Starts the scope beside this one, with one process alone: a scope from whose list another has ended meanwhile fails,
    /// with the rest of them in it. It takes the others afterwards: at once, or one by one where one of them has ended.
    fn drain_listed(&self, unit: &SystemdName, pids: &[u32], outcome: &mut Outcome) -> Result<()> {
        let Some((first, rest)) = pids.split_first() else { return Ok(()) };
        let (manager, drained) = (self.host.manager()?, unit.drained());
        let properties = plan::scope(DRAINED_DESCRIPTION, unit.slice());
        let left = match manager.start(&drained, DRAINED_DESCRIPTION, &properties, &[*first])? {
            Started::Anew => {
                outcome.moved.insert(*first);
                rest
            }
            // There is one from before, or from the pass before.
            _ => pids,
        };
        if left.is_empty() || manager.attach(&drained, left).is_ok() {
            outcome.moved.extend(left);
            return Ok(());
        }
        for pid in left {
            match manager.attach(&drained, &[*pid]) {
                Ok(()) => _ = outcome.moved.insert(*pid),
                Err(_) if !proc::is_running(*pid) => {}
                Err(error) => return Err(error.with_setting("pid").with_value(pid)),
            }
        }
        Ok(())
    }

    /// Whether systemd keeps units in a hierarchy.
    pub(super) fn is_managed(&self, hierarchy: usize) -> bool {
        self.host.hierarchies.get(hierarchy).is_some_and(plan::is_managed)
    }

    /// v1: the parent. v2, where a parent with controllers for its children takes no processes, and below the root, which
    /// would be out of every limit: the leaf `drained` in the parent.
    fn drain_target(&self, dir: &Dir) -> Result<Arc<CgroupDir>, Errno> {
        let mut dirs = Dirs::new(&self.host, Vec::new());
        let parent_dir = dir.parent().ok_or(Errno::INVAL)?;
        let parent = dirs.get(&parent_dir)?;
        if self.version(dir) == Version::V1 && !parent_dir.path.is_empty() {
            return Ok(parent);
        }
        match parent.make_dir(DRAINED) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let leaf = parent.open_dir(DRAINED)?;
        mark_drained(&leaf);
        let hierarchy = self.host.hierarchies.get(dir.hierarchy);
        if self.version(dir) == Version::V1
            && hierarchy.is_some_and(|hierarchy| hierarchy.controllers.contains(&Controller::Cpuset))
        {
            let noprefix = hierarchy.is_some_and(|hierarchy| hierarchy.noprefix);
            for file in if noprefix { ["cpus", "mems"] } else { ["cpuset.cpus", "cpuset.mems"] } {
                leaf.write(file, &parent.read(file)?)?;
            }
        }
        Ok(Arc::new(leaf))
    }

    /// v2 says when the last task has really gone.
    fn wait_until_unpopulated(&self, deadline: Deadline) -> Result<()> {
        let Some(dir) = self.unified() else { return Ok(()) };
        let failed = |errno| Error::kernel("cannot wait for the cgroup to become empty", &*self.path, errno);
        let events = match dir.open("cgroup.events", OFlags::RDONLY) {
            Ok(events) => events,
            Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        };
        let mut buffer = Vec::with_capacity(64);
        loop {
            match read_all(&events, &mut buffer) {
                Err(Errno::NODEV) => return Ok(()),
                read => read.map_err(failed)?,
            }
            if !event(&String::from_utf8_lossy(&buffer), "populated") {
                return Ok(());
            }
            if deadline.is_over() {
                return Err(Error::new(ErrorKind::TimedOut, "still populated").with_value(&self.path));
            }
            wait_for_change(&events, deadline.left()).map_err(failed)?;
        }
    }

    /// Depth first; EBUSY goes away when the last task has left, so it is retried until the deadline.
    fn remove_tree(&self, dir: &Dir, deadline: Deadline, outcome: &mut Outcome) -> Result<()> {
        let full = dir.full(&self.host);
        let failed = |errno| Error::kernel("cannot remove the cgroup", &full, errno);
        let mut dirs = Dirs::new(&self.host, self.dirs.clone());
        let open = match (self.opened(dir), dirs.get(dir)) {
            (Some(open), _) => Arc::clone(open),
            (None, Ok(open)) if self.owns(dir, &open) => open,
            // What has its name was made by somebody else.
            (None, Ok(_) | Err(Errno::NOENT | Errno::NODEV)) => return Ok(()),
            (None, Err(errno)) => return Err(failed(errno)),
        };
        let parent = match dirs.above(dir) {
            Ok(parent) => parent,
            Err(Errno::NOENT) if !open.has("cgroup.procs") => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        };
        let mut pause = Duration::from_micros(100);
        loop {
            match parent.remove_same(dir.name(), &open) {
                Ok(()) => {
                    outcome.removed.push(full);
                    return Ok(());
                }
                Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
                Err(Errno::BUSY | Errno::NOTEMPTY) => {}
                Err(errno) => return Err(failed(errno)),
            }
            // Some of it, as long as the last processes are leaving; and it may be gone by now.
            _ = clear_below(&open, |names| {
                outcome.removed.push(full.join(names.iter().collect::<PathBuf>()))
            });
            if deadline.is_over() {
                return Err(failed(Errno::BUSY).with_kind(ErrorKind::Busy));
            }
            deadline.sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// Removes what a creation at this path had made and not marked when it died, as far as it is empty, and the directories
    /// above that were made on the way.
    pub(crate) fn remove_unfinished(host: &Host, path: &str) -> Outcome {
        let mut outcome = Outcome::default();
        let mut dirs = Dirs::new(host, Vec::new());
        for dir in (0..host.hierarchies.len()).map(|hierarchy| Dir::new(hierarchy, path)) {
            if let Ok(open) = dirs.get(&dir)
                && is_unfinished(&open)
                && dirs.remove(&dir, &open).is_ok()
            {
                outcome.removed.push(dir.full(host));
            }
        }
        Self::for_now(host.clone(), path.into(), Vec::new()).remove_made_ancestors(&mut outcome);
        outcome
    }

    /// Removes the directories that are empty, and nothing in them.
    pub(crate) fn remove_where_empty(&self) -> Outcome {
        let mut outcome = Outcome::default();
        let mut dirs = Dirs::new(&self.host, Vec::new());
        for (dir, open) in &self.dirs {
            if dirs.remove(dir, open).is_ok() {
                outcome.removed.push(dir.full(&self.host));
            }
        }
        self.remove_made_ancestors(&mut outcome);
        outcome
    }

    /// Removes the directories above that were made on the way to a sandbox, as far as they are empty: bottom-up, until one is
    /// in use or was made by somebody else. A leaf of drained processes that have ended goes with them.
    fn remove_made_ancestors(&self, outcome: &mut Outcome) {
        // In all hierarchies: where the cgroup itself is missing, its parent may still be.
        for hierarchy in 0..self.host.hierarchies.len() {
            let mut dirs = Dirs::new(&self.host, Vec::new());
            let mut dir = Dir::new(hierarchy, Arc::clone(&self.path));
            while let Some(above) = dir.parent().filter(|above| !above.path.is_empty()) {
                let Ok(open) = dirs.get(&above) else { break };
                if !is_ancestor(&open) {
                    break;
                }
                let removed = dirs.remove(&above, &open).or_else(|_| {
                    let leaf = open.open_dir(DRAINED)?;
                    if mark_of(&leaf).is_none_or(|mark| mark != DRAINED) {
                        return Err(Errno::BUSY);
                    }
                    open.remove_same(DRAINED, &leaf)?;
                    dirs.remove(&above, &open)
                });
                if removed.is_err() {
                    break;
                }
                outcome.removed.push(above.full(&self.host));
                dir = above;
            }
        }
    }
}
