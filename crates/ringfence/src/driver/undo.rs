//! What was done, and taking it back.

use std::borrow::Cow;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::dirs::Dirs;
use super::systemd::Processes;
use crate::devices::filter::DeviceFilter;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::interface::holds;
use crate::kernel::dir::CgroupDir;
use crate::kernel::proc::{self, ProcessIdentity};
use crate::plan::{self, Action, Dir, Told, Undo};
use crate::systemd::property::Property;

/// Where a process is, in each hierarchy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) pid: u32,
    /// By which it is told from a later one of the same number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<ProcessIdentity>,
    cgroups: Vec<(String, String)>,
}

impl Origin {
    /// # Errors
    /// There is no such process, or it has ended: the kernel takes a zombie without moving anything.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let found = ProcessIdentity::of(pid).and_then(|identity| Some((identity, proc::cgroups(pid)?)));
        let (identity, cgroups) = found.ok_or_else(|| {
            Error::new(ErrorKind::Kernel, "there is no such process, or no more")
                .with_errno(Errno::SRCH)
                .with_setting("pid")
                .with_value(pid)
        })?;
        Ok(Self { pid, identity: Some(identity), cgroups })
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&self) -> bool {
        self.identity.as_ref().is_some_and(ProcessIdentity::is_alive)
    }

    /// Whether it was in this cgroup.
    pub(crate) fn is_in(&self, host: &Host, dir: &Dir) -> bool {
        let is_here = |(names, path): &(String, String)| {
            host.hierarchies.get(dir.hierarchy).is_some_and(|known| known.is_called(names))
                && path.trim_start_matches('/') == &*dir.path
        };
        self.cgroups.iter().any(is_here)
    }

    /// Moves the process back, if it still runs, in every hierarchy in which that can be done: what it came from may be out of
    /// our sight or reach.
    pub(crate) fn put_back(&self, host: &Host) -> Result<(), Errno> {
        let mut outcome = Ok(());
        if !self.is_alive() {
            return outcome;
        }
        for hierarchy in plan::in_order_of_leaving(host) {
            match self.restore(host, hierarchy) {
                Ok(()) | Err(Errno::SRCH) => {}
                failed => outcome = outcome.and(failed),
            }
        }
        outcome
    }

    fn restore(&self, host: &Host, hierarchy: usize) -> Result<(), Errno> {
        let known = host.hierarchies.get(hierarchy).ok_or(Errno::NOENT)?;
        let Some((_, path)) = self.cgroups.iter().find(|(names, _)| known.is_called(names)) else {
            return Ok(());
        };
        let root = host.root(hierarchy)?;
        match path.trim_start_matches('/') {
            "" => root.join(self.pid),
            path => root.open_dir(path)?.join(self.pid),
        }
    }
}

/// What was done so far, in order.
#[derive(Default)]
pub(super) struct Log(Vec<Done>);

/// Files and what they get, in this order.
type Writes = Vec<(Cow<'static, str>, String)>;

enum Done {
    Made { dir: Dir, made: Arc<CgroupDir>, ancestor: bool },
    Wrote(Dir, Writes),
    Filtered(Dir, DeviceFilter),
    Told { unit: String, back: Vec<Property>, files: Vec<(Dir, Writes)> },
    Started { unit: String, description: String, path: String, kill: bool, origins: Vec<Origin> },
}

impl Log {
    pub(super) fn dir(&mut self, dir: &Dir, made: &Arc<CgroupDir>, ancestor: bool) {
        self.0.push(Done::Made { dir: dir.clone(), made: Arc::clone(made), ancestor });
    }

    pub(super) fn write(&mut self, dir: &Dir, undo: &Undo) {
        if let Undo::Write(writes) = undo {
            self.0.push(Done::Wrote(dir.clone(), writes.clone()));
        }
    }

    pub(super) fn filter(&mut self, dir: &Dir, filter: DeviceFilter) {
        self.0.push(Done::Filtered(dir.clone(), filter));
    }

    pub(super) fn told(&mut self, unit: &str, back: Vec<Property>, told: &[Told]) {
        let files = told.iter().filter_map(|told| match (&told.step.action, &told.step.undo) {
            (Action::Write { dir, .. }, Undo::Write(writes)) => Some((dir.clone(), writes.clone())),
            _ => None,
        });
        self.0.push(Done::Told { unit: unit.to_owned(), back, files: files.collect() });
    }

    pub(super) fn started(
        &mut self,
        unit: &str,
        description: &str,
        path: &str,
        processes: Processes<'_>,
        origins: Vec<Origin>,
    ) {
        let kill = matches!(processes, Processes::Waiting(_));
        let (unit, description, path) = (unit.to_owned(), description.to_owned(), path.to_owned());
        self.0.push(Done::Started { unit, description, path, kill, origins });
    }

    /// Nothing is to be undone any more: the program that is attached now.
    pub(super) fn into_filter(self) -> Option<DeviceFilter> {
        self.0.into_iter().find_map(|done| match done {
            Done::Filtered(_, filter) => Some(filter.settled()),
            _ => None,
        })
    }

    /// Takes everything back, last first. Goes on after a failure, and says what could not be taken back.
    pub(super) fn undo(self, dirs: &mut Dirs<'_>) -> Vec<Error> {
        let mut failures = Vec::new();
        for done in self.0.into_iter().rev() {
            match done {
                Done::Made { dir, made, ancestor } => {
                    failures.extend(remove(dirs, &dir, Some(&made), ancestor));
                }
                Done::Wrote(dir, writes) => failures.extend(write_back(dirs, &dir, writes)),
                Done::Told { unit, back, files } => {
                    let told = dirs.host.manager().and_then(|manager| {
                        manager.set(&unit, &back)?;
                        manager.settle()
                    });
                    failures.extend(told.err());
                    // What systemd has no word for: an empty set, and what the old value rounds to.
                    for (dir, writes) in files {
                        let (page_size, open) = (dirs.host.page_size, dirs.get(&dir));
                        let is_held = |(file, value): &(Cow<'static, str>, String)| {
                            open.as_ref().is_ok_and(|open| {
                                open.read(file).is_ok_and(|now| holds(file, value, &now, page_size))
                            })
                        };
                        if !writes.iter().all(is_held) {
                            failures.extend(write_back(dirs, &dir, writes));
                        }
                    }
                }
                Done::Started { unit, description, path, kill, origins } => {
                    match stop(dirs.host, &unit, &description, kill, &origins) {
                        Ok(()) => remove_rest(dirs, &path),
                        Err(error) => failures.push(error),
                    }
                }
                Done::Filtered(dir, filter) => {
                    let open = dirs.get(&dir);
                    match open.as_ref().map_err(|errno| *errno).and_then(|open| open.descriptor()) {
                        Ok(open) => failures.extend(filter.undo(open.as_fd()).err()),
                        Err(errno) => failures.push(dir.not_opened(dirs.host, errno)),
                    }
                }
            }
        }
        failures
    }
}

fn write_back(dirs: &mut Dirs<'_>, dir: &Dir, writes: Writes) -> Vec<Error> {
    let mut failures = Vec::new();
    for (file, value) in writes {
        let written = dirs.get(dir).and_then(|open| open.write(&file, &value));
        failures.extend(written.err().map(|errno| {
            Error::kernel("cannot put the old value back", file.as_ref(), errno).with_value(value)
        }));
    }
    failures
}

/// Stops a unit that was just started, without the processes that it was started around; if one of them cannot be moved
/// out, it keeps them.
fn stop(host: &Host, unit: &str, description: &str, kill: bool, origins: &[Origin]) -> Result<()> {
    for origin in origins {
        if kill {
            if let Ok(process) = proc::Held::open(origin.pid)
                && origin.is_alive()
            {
                _ = process.signal(Signal::KILL);
            }
            continue;
        }
        origin.put_back(host).map_err(|errno| {
            let why = format!("the process stays in {unit}: it cannot go back to where it came from");
            let error = Error::new(ErrorKind::Kernel, why).with_errno(errno);
            error.with_setting("pid").with_value(origin.pid)
        })?;
    }
    host.manager()?.stop_own(unit, &|text| text == description).map(drop)
}

/// systemd removes the cgroups of a unit that has ended, but tries once. Best effort: where it succeeded there is nothing.
fn remove_rest(dirs: &mut Dirs<'_>, path: &str) {
    let host = dirs.host;
    for (index, _) in host.hierarchies.iter().enumerate().filter(|(_, known)| plan::is_managed(known)) {
        _ = remove(dirs, &Dir::new(index, path), None, false);
    }
}

/// Removes a directory, if it still is the one that was `made`. An ancestor that another sandbox has come to use stays. A
/// cgroup that was made a moment ago may be busy for another.
fn remove(dirs: &mut Dirs<'_>, dir: &Dir, made: Option<&CgroupDir>, ancestor: bool) -> Option<Error> {
    let parent = dirs.above(dir);
    let remove = || {
        let parent = parent.as_ref().map_err(|errno| *errno)?;
        match made {
            Some(made) => parent.remove_same(dir.name(), made),
            None => parent.remove_dir(dir.name()),
        }
    };
    let mut result = remove();
    for _ in 0..20 {
        if result != Err(Errno::BUSY) || ancestor {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
        result = remove();
    }
    match result {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => None,
        Err(Errno::BUSY | Errno::NOTEMPTY) if ancestor => None,
        Err(errno) => Some(Error::kernel("cannot remove the directory", &*dir.path, errno)),
    }
}
