//! Freezing and thawing: v1's freezer, or `cgroup.freeze` of v2 (Linux 5.2). Always confirmed, always with a deadline.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::cgroup::ownership::damaged;
use crate::cgroup::{Cgroup, descend};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Controller, Version};
use crate::kernel::dir::{CgroupDir, read_all};
use crate::kernel::poll::{Deadline, wait_for_change};
use crate::kernel::proc;
use crate::plan::Dir;
use crate::report::Report;

/// v1 has nothing to wait on.
const PAUSE: Duration = Duration::from_millis(1);
/// v2 wakes us; this is for what it cannot tell (kernel threads that never freeze).
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl Cgroup {
    /// Stops every task inside, and returns when all have stopped.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] when they have not in time; they are then thawed again. [`ErrorKind::Busy`] when the calling
    /// process is inside, in this cgroup or in one below it: nothing is changed then.
    pub fn freeze(&self, timeout: Duration) -> Result<()> {
        let deadline = Deadline::after(timeout);
        self.refuse_caller_inside()?;
        let (version, dir) = self.freezer()?;
        let was_frozen = is_told_to_freeze(version, dir);
        let frozen = match version {
            Version::V1 => freeze_v1(dir, deadline),
            Version::V2 => freeze_v2(dir, deadline),
        };
        match frozen {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.write_thawed()?;
                let why = format!("not all tasks stopped within {timeout:?}; thawed again");
                Err(Error::new(ErrorKind::TimedOut, why).with_value(&self.path))
            }
            Err(errno) => {
                // Some may have stopped by now. The first error is the one to tell.
                if !was_frozen {
                    _ = self.write_thawed();
                }
                Err(self.freezer_error("cannot freeze", errno))
            }
        }
    }

    /// Lets the tasks run again. Under a frozen ancestor they stay stopped: the report names it, and nothing is waited for.
    pub fn thaw(&self, timeout: Duration) -> Result<Report> {
        let deadline = Deadline::after(timeout);
        let mut report = Report::default();
        self.write_thawed()?;
        let (version, dir) = self.freezer()?;
        loop {
            if !frozen_now(version, dir)
                .map_err(|errno| self.freezer_error("cannot see whether it thawed", errno))?
            {
                return Ok(report);
            }
            if let Some(ancestor) = self.frozen_ancestor()? {
                let why = format!("its processes stay stopped because {ancestor} is frozen: thaw {ancestor}");
                report.add("thaw", format!("/{}", self.path), why);
                return Ok(report);
            }
            if deadline.is_over() {
                return Err(Error::new(ErrorKind::TimedOut, "not thawed in time").with_value(&self.path));
            }
            deadline.sleep(PAUSE);
        }
    }

    /// Whether tasks are stopped, or about to be, by this cgroup or one above it.
    pub fn is_frozen(&self) -> Result<bool> {
        let frozen = |(version, dir)| match frozen_now(version, dir) {
            // Before Linux 5.2 v2 has no freezer.
            Err(Errno::NOENT) => Ok(false),
            result => result.map_err(|errno| self.freezer_error("cannot see whether it is frozen", errno)),
        };
        self.freezer().map_or(Ok(false), frozen)
    }

    /// v1's freezer where it is mounted, else v2's tree.
    pub(crate) fn freezer(&self) -> Result<(Version, &CgroupDir)> {
        if !self.exists() {
            return Err(Error::new(ErrorKind::Unsupported, self.host.why_nothing()));
        }
        if let Some((Version::V1, dir)) = self.dir_of(Controller::Freezer) {
            return Ok((Version::V1, dir));
        }
        if let Some((index, _)) = self.host.hierarchy_of(Controller::Freezer) {
            return Err(damaged(&Dir::new(index, Arc::clone(&self.path)), &self.host));
        }
        let unified =
            self.unified().ok_or_else(|| Error::new(ErrorKind::Unsupported, "this host has no freezer"))?;
        Ok((Version::V2, unified))
    }

    pub(crate) fn write_thawed(&self) -> Result<()> {
        let (version, dir) = self.freezer()?;
        let written = match version {
            Version::V1 => dir.write("freezer.state", "THAWED"),
            Version::V2 => dir.write("cgroup.freeze", "0"),
        };
        written.map_err(|errno| self.freezer_error("cannot thaw", errno))
    }

    /// Thaws the cgroup and every one below it, each of which may be frozen by itself: on v1 a signal to a frozen task waits
    /// for that. On v2 it does not, and what is moved out of a frozen cgroup runs.
    pub(crate) fn thaw_tree(&self) {
        _ = self.write_thawed();
        if let Ok((Version::V1, dir)) = self.freezer() {
            // One that vanishes meanwhile needs no thawing.
            _ = descend(dir, |child, _| {
                _ = child.write("freezer.state", "THAWED");
                true
            });
        }
    }

    /// The nearest ancestor that is frozen by itself, and stops the processes in this cgroup whatever its own setting is; as
    /// a path below the root of the hierarchy, with a leading slash.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the host has no freezer.
    pub fn frozen_ancestor(&self) -> Result<Option<String>> {
        let (version, own) = self.freezer()?;
        let controller = self.host.hierarchy_of(Controller::Freezer).map(|(index, _)| index);
        let unified = self.host.unified().map(|(index, _)| index);
        let index = if version == Version::V1 { controller } else { unified };
        let Some(index) = index else { return Ok(None) };
        let root =
            self.host.root(index).map_err(|errno| self.freezer_error("cannot open the root", errno))?;
        let mut path = &*self.path;
        while let Some((above, _)) = path.rsplit_once('/') {
            path = above;
            let Ok(dir) = root.open_dir(path) else { continue };
            if is_told_to_freeze(version, &dir) {
                return Ok(Some(format!("/{path}")));
            }
        }
        let is_frozen_from_above =
            version == Version::V1 && own.read("freezer.parent_freezing").is_ok_and(|told| told == "1");
        Ok(is_frozen_from_above.then(|| "a cgroup above the root of this cgroup namespace".to_owned()))
    }

    /// Refuses to let a process join a frozen cgroup, and names what has to be thawed.
    pub(super) fn refuse_frozen(&self) -> Result<()> {
        if !self.is_frozen()? {
            return Ok(());
        }
        let (version, dir) = self.freezer()?;
        let why = match self.frozen_ancestor()? {
            Some(ancestor) if is_told_to_freeze(version, dir) => format!(
                "the cgroup is frozen, and so is {ancestor}: a process that joins it never runs; thaw both first"
            ),
            Some(ancestor) => format!(
                "the cgroup is frozen with {ancestor}: a process that joins it never runs; thaw {ancestor} first"
            ),
            None => "the cgroup is frozen: a process that joins it never runs; thaw it first".to_owned(),
        };
        Err(Error::new(ErrorKind::Busy, why).with_value(&self.path))
    }

    /// The error for processes that SIGKILL did not end in time. On v1 a frozen ancestor keeps them alive.
    pub(super) fn not_killed(&self, pids: &BTreeSet<u32>) -> Error {
        let is_v1 = matches!(self.freezer(), Ok((Version::V1, _)));
        let ancestor = if is_v1 { self.frozen_ancestor().ok().flatten() } else { None };
        match ancestor {
            Some(ancestor) => {
                let why = format!(
                    "SIGKILL was sent to {pids:?}, but {ancestor} is frozen, and with cgroup v1 a frozen process ends only \
                     when it is thawed: thaw {ancestor}"
                );
                self.about(Error::new(ErrorKind::Busy, why))
            }
            None => {
                let why = format!("processes live on after SIGKILL: {pids:?}");
                self.about(Error::new(ErrorKind::TimedOut, why))
            }
        }
    }

    fn freezer_error(&self, what: &'static str, errno: Errno) -> Error {
        Error::kernel(what, &*self.path, errno)
    }
}

/// Whether it was frozen by itself, as far as that can be read.
fn is_told_to_freeze(version: Version, dir: &CgroupDir) -> bool {
    let told = match version {
        Version::V1 => dir.read("freezer.self_freezing"),
        Version::V2 => dir.read("cgroup.freeze"),
    };
    told.is_ok_and(|told| told == "1")
}

fn frozen_now(version: Version, dir: &CgroupDir) -> Result<bool, Errno> {
    match version {
        Version::V1 => Ok(dir.read("freezer.state")? != "THAWED"),
        Version::V2 => Ok(event(&dir.read("cgroup.events")?, "frozen") || dir.read("cgroup.freeze")? == "1"),
    }
}

/// A flag of `cgroup.events`.
pub(crate) fn event(events: &str, name: &str) -> bool {
    events.lines().filter_map(|line| line.split_once(' ')).any(|(key, value)| key == name && value == "1")
}

/// A task that forks while the freezer walks the tasks can be missed: write again until the state says FROZEN.
fn freeze_v1(dir: &CgroupDir, deadline: Deadline) -> Result<bool, Errno> {
    loop {
        dir.write("freezer.state", "FROZEN")?;
        if dir.read("freezer.state")? == "FROZEN" {
            return Ok(true);
        }
        if deadline.is_over() {
            return Ok(false);
        }
        deadline.sleep(PAUSE);
    }
}

fn freeze_v2(dir: &CgroupDir, deadline: Deadline) -> Result<bool, Errno> {
    let events = dir.open("cgroup.events", OFlags::RDONLY)?;
    dir.write("cgroup.freeze", "1")?;
    let mut buffer = Vec::with_capacity(64);
    loop {
        read_all(&events, &mut buffer)?;
        if event(&String::from_utf8_lossy(&buffer), "frozen") {
            return Ok(true);
        }
        if deadline.is_over() {
            return Ok(false);
        }
        wait_for_change(&events, LOOK_AGAIN.min(deadline.left()))?;
        if only_kernel_threads_run(dir) {
            return Ok(true);
        }
    }
}

/// A kernel thread inside (vhost before Linux 6.4, KVM's huge-page worker before 6.14) keeps `frozen 0` for ever:
/// frozen is then that every other task has stopped, here and below.
fn only_kernel_threads_run(dir: &CgroupDir) -> bool {
    let mut threads: Vec<u32> = Vec::new();
    let mut list = |dir: &CgroupDir| {
        let listed = dir.read("cgroup.threads").unwrap_or_default();
        threads.extend(listed.lines().filter_map(|tid| tid.parse::<u32>().ok()));
        true
    };
    list(dir);
    if descend(dir, |below, _| list(below)).is_err() {
        return false;
    }
    let is_kernels = |tid: &u32| proc::Stat::read(*tid).is_some_and(|stat| stat.is_kernel_thread());
    let (kernel, user): (Vec<u32>, Vec<u32>) = threads.into_iter().partition(is_kernels);
    !kernel.is_empty() && user.into_iter().all(proc::is_stopped_by_freezer)
}
