//! The calling process as one of those inside: no call may stop it for ever, or kill it.

use std::collections::BTreeSet;

use rustix::io::Errno;

use super::{Cgroup, descend, members};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Version;
use crate::kernel::dir::CgroupDir;
use crate::kernel::{poll::Deadline, proc};

impl Cgroup {
    /// Refuses to freeze the cgroup where that would stop the calling process, which then could never thaw it.
    pub(crate) fn refuse_caller_inside(&self) -> Result<()> {
        if !self.freezes_caller()? {
            return Ok(());
        }
        let why = format!(
            "the calling process (PID {}) is inside and would stop itself for ever: freeze it from outside",
            std::process::id()
        );
        Err(Error::new(ErrorKind::Busy, why).with_value(&self.path))
    }

    /// Whether the calling process, or a thread of it, is where freezing this cgroup stops it.
    pub(crate) fn freezes_caller(&self) -> Result<bool> {
        let (version, dir) = self.freezer()?;
        holds_caller(version, dir)
            .map_err(|errno| Error::kernel("cannot list the processes", &*self.path, errno))
    }

    /// Moves the calling process out, as [`Remaining::Drain`](crate::Remaining::Drain) does.
    pub(super) fn move_caller_out(&self, deadline: Deadline, outcome: &mut super::Outcome) -> Option<Error> {
        let caller = BTreeSet::from([std::process::id()]);
        let is_inside = |pids: &BTreeSet<u32>| !pids.is_disjoint(&caller);
        loop {
            let failures = self.drain_some(&caller, outcome);
            match self.processes() {
                Ok(pids) if !is_inside(&pids) => return None,
                Ok(_) if failures.is_empty() && !deadline.is_over() => {
                    deadline.sleep(std::time::Duration::from_millis(1));
                }
                Ok(_) => {
                    let why = "the calling process is what remains inside, and it cannot be moved out: remove the \
                               cgroup from outside";
                    let error = self.about(Error::new(ErrorKind::Busy, why));
                    return Some(failures.into_iter().fold(error, |error, source| error.with_source(source)));
                }
                Err(error) => return Some(error),
            }
        }
    }
}

/// Whether a thread of this process is in a directory or below it.
fn holds_caller(version: Version, dir: &CgroupDir) -> Result<bool, Errno> {
    let mut pids = BTreeSet::new();
    members(dir, version, &mut pids)?;
    if pids.contains(&std::process::id()) {
        return Ok(true);
    }
    // A threaded cgroup lists threads alone.
    if version == Version::V1 || dir.read("cgroup.procs") != Err(Errno::OPNOTSUPP) {
        return Ok(false);
    }
    let own = proc::threads(std::process::id());
    let lists_own = |dir: &CgroupDir| {
        let listed = dir.read("cgroup.threads").unwrap_or_default();
        proc::numbers(&listed).any(|tid| own.contains(&tid))
    };
    let mut found = lists_own(dir);
    descend(dir, |below, _| {
        found = found || lists_own(below);
        !found
    })?;
    Ok(found)
}
