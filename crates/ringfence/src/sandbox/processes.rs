//! Processes: into a sandbox and its parts, running ones and new ones.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Part, Sandbox, State};
use crate::cgroup::{Cgroup, Child, Command, refuse_system};
use crate::driver::systemd::Processes;
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::proc::ProcessIdentity;
use crate::kernel::spawn::Started;

impl Sandbox {
    /// The processes inside, and in a separate overhead.
    pub fn processes(&self) -> Result<BTreeSet<u32>> {
        let mut processes = self.own_processes()?;
        if let Some(apart) = &self.apart {
            processes.extend(apart.own_processes()?);
        }
        Ok(processes)
    }

    pub(super) fn own_processes(&self) -> Result<BTreeSet<u32>> {
        match self.present(&self.known())? {
            Some(cgroup) => cgroup.processes(),
            None => Ok(BTreeSet::new()),
        }
    }

    /// Joins running processes with all their threads: all of them, or none. Where the overhead has a place of its own, they
    /// go there.
    pub fn join_all(&self, pids: &[u32]) -> Result<()> {
        self.join_part(self.default_part(), pids)
    }

    /// Where processes go of which nothing is said: to the overhead, where it has a place of its own.
    pub fn default_part(&self) -> Option<Part> {
        if self.apart.is_some() {
            return Some(Part::Overhead);
        }
        self.known().parts.contains_key(&Part::Overhead).then_some(Part::Overhead)
    }

    /// The same, into a part.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a sandbox without parts.
    pub fn join_part(&self, part: impl Into<Option<Part>>, pids: &[u32]) -> Result<()> {
        refuse_system(pids)?;
        self.join_part_forced(part, pids)
    }

    /// [`Sandbox::join_part`], also for processes on which the machine or a container depends: process 1, kernel threads,
    /// first processes of PID namespaces.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a sandbox without parts.
    pub fn join_part_forced(&self, part: impl Into<Option<Part>>, pids: &[u32]) -> Result<()> {
        let (place, part) = self.place_of(part.into());
        place.join_here(part, pids)
    }

    fn join_here(&self, part: Option<Part>, pids: &[u32]) -> Result<()> {
        let mut state = self.locked();
        let mut races = 0;
        loop {
            if let Some(cgroup) = self.present(&state)? {
                match seat(&cgroup, &state, part).and_then(|seat| seat.join_all(pids)) {
                    // A scope that ended at this moment.
                    Err(_) if state.path.is_systemd() && !cgroup.is_there() => {}
                    joined => return joined,
                }
            }
            races += 1;
            match self.start(&mut state, Processes::Running(pids)) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists && races < RACES => {}
                started => {
                    let seat = seat(&started?, &state, part)?;
                    return pids.iter().try_for_each(|pid| seat.take_seat(*pid));
                }
            }
        }
    }

    /// Joins a running process with all its threads.
    pub fn join(&self, pid: u32) -> Result<()> {
        self.join_all(&[pid])
    }

    /// Starts a command inside; it never runs outside, not for an instant. Where the sandbox has parts, it is born among the
    /// vCPUs, limited as they are, until [`Sandbox::place_vcpus`] tells its threads apart.
    pub fn spawn(&self, command: &Command) -> Result<Child> {
        let part = self.known().parts.contains_key(&Part::Vcpu).then_some(Part::Vcpu);
        self.spawn_in(part, command)
    }

    /// The same, in a part.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a sandbox without parts.
    pub fn spawn_in(&self, part: impl Into<Option<Part>>, command: &Command) -> Result<Child> {
        let (place, part) = self.place_of(part.into());
        place.spawn_here(part, command)
    }

    fn spawn_here(&self, part: Option<Part>, command: &Command) -> Result<Child> {
        let mut state = self.locked();
        for _ in 0..RACES {
            if let Some(cgroup) = self.present(&state)? {
                match seat(&cgroup, &state, part).and_then(|seat| seat.spawn(command)) {
                    // A scope that ended at this moment.
                    Err(_) if state.path.is_systemd() && !cgroup.is_there() => {}
                    spawned => return spawned,
                }
            }
            match self.spawn_first(&mut state, part, command) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                spawned => return spawned,
            }
        }
        self.spawn_first(&mut state, part, command)
    }

    /// Starts a command with the scope around it.
    fn spawn_first(&self, state: &mut State, part: Option<Part>, command: &Command) -> Result<Child> {
        let waiting = command.hold()?;
        let cgroup = self.start(state, Processes::Waiting(&[waiting.pid()]))?;
        seat(&cgroup, state, part)?.take_seat(waiting.pid())?;
        command.go(waiting)
    }

    /// Starts a command that does nothing but live: it keeps a scope of systemd alive, and is no reason for
    /// [`Remaining::Refuse`](crate::Remaining::Refuse) to refuse. A separate overhead has a scope of its own:
    /// [`Sandbox::overhead`].
    pub fn hold(&self, command: &Command) -> Result<Child> {
        let part = self.default_part().filter(|_| self.apart.is_none());
        let child = self.spawn_in(part, command)?;
        self.is_held_by(child.pid());
        Ok(child)
    }

    /// The same for as long as the [`Hold`] lives, by a process that executes nothing: a fork of this one that costs next to
    /// nothing. It keeps what the kernel has counted inside to be read when the last other process has ended, which
    /// [`Sandbox::destroy`] does: without it, systemd removes the cgroup at that moment. It is one task more for
    /// `pids.limit`. A separate overhead is held by itself: [`Sandbox::overhead`].
    pub fn hold_meanwhile(&self) -> Result<Hold> {
        let waiting = Command::placeholder()?;
        let part = self.default_part().filter(|_| self.apart.is_none());
        self.join_here(part, &[waiting.pid()])?;
        self.is_held_by(waiting.pid());
        Ok(Hold(waiting))
    }

    fn is_held_by(&self, pid: u32) {
        spare(pid);
        self.locked().placeholder = ProcessIdentity::of(pid);
    }

    /// A closure for `pre_exec` of std's and tokio's `Command`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for a scope of systemd in which nothing runs.
    pub fn join_hook(&self) -> Result<impl FnMut() -> std::io::Result<()> + Send + Sync + 'static + use<>> {
        let state = self.known();
        let part = state.parts.contains_key(&Part::Vcpu).then_some(Part::Vcpu);
        seat(&self.present_or_not_found(&state)?, &state, part)?.join_hook()
    }
}

/// Keeps a scope of systemd, and what the kernel counts in it, until it is dropped or this process ends. See
/// [`Sandbox::hold_meanwhile`].
#[derive(Debug)]
pub struct Hold(
    // Killed and collected when it is dropped.
    #[expect(dead_code)] Started,
);

/// Has the kernel kill everything else first when memory runs out. Without CAP_SYS_RESOURCE it refuses: then it dies with
/// the others where `memory.oom.group` is set, or if it is the biggest.
fn spare(pid: u32) {
    _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "-1000");
}

/// How often a scope may start or end at the very moment at which it is asked for.
const RACES: usize = 5;

/// Where a process goes: into a part, or into the whole.
fn seat(cgroup: &Arc<Cgroup>, state: &State, part: Option<Part>) -> Result<Arc<Cgroup>> {
    match part {
        Some(part) => cgroup.seat(part_path(state, part)?).map(Arc::new),
        None => Ok(Arc::clone(cgroup)),
    }
}

pub(super) fn part_path(state: &State, part: Part) -> Result<&str> {
    let path = state.parts.get(&part);
    path.map(String::as_str).ok_or_else(|| {
        let why = "nothing: this sandbox has no parts, its overhead is together with the workload";
        Error::invalid("part", part, why)
    })
}
