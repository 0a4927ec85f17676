//! The default slice of units, which goes with its last unit.
//!
//! systemd removes every empty cgroup below a slice that it stops, those of a unit too that has started in it meanwhile: a
//! part in which nothing runs yet would be gone. So whoever starts a unit there, and whoever stops the slice, lock the
//! directory above it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::ownership::keeps_units;
use super::{Outcome, mark};
use crate::driver::dirs::Dirs;
use crate::host::Host;
use crate::kernel::dir::CgroupDir;
use crate::kernel::poll::Deadline;
use crate::path::DEFAULT_SLICE;
use crate::plan::{self, Dir};

/// A slice has stopped long before. Everybody may lock a directory, and keeps nobody from starting a unit for longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Keeps the slice of a unit, by the unit's path, from being stopped while this is held.
pub(super) fn keep(host: &Host, unit: &str) -> Option<OwnedFd> {
    lock(host, unit.rsplit_once('/')?.0, FlockOperation::NonBlockingLockShared)
}

/// `None` if it is not to be had.
fn lock(host: &Host, slice: &str, how: FlockOperation) -> Option<OwnedFd> {
    let (index, _) = host.hierarchies.iter().enumerate().find(|(_, known)| plan::is_managed(known))?;
    let above = slice.rsplit_once('/').map_or("", |(above, _)| above);
    let opened = host.open(index, above).and_then(|above| above.open_to_read()).ok()?;
    let deadline = Deadline::after(PATIENCE);
    loop {
        match rustix::fs::flock(&opened, how) {
            Ok(()) => return Some(opened),
            Err(Errno::WOULDBLOCK) if !deadline.is_over() => deadline.sleep(Duration::from_millis(1)),
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// The slice of a unit, by the unit's path, where it is not there yet: systemd starts it with the unit.
pub(super) fn to_be_made<'p>(host: &Host, unit: &'p str) -> Option<&'p str> {
    let slice = unit.rsplit_once('/')?.0;
    let is_there = units_directories(host, slice).any(|dir| host.open(dir.hierarchy, &dir.path).is_ok());
    (!is_there).then_some(slice)
}

/// Marks a slice that systemd started for a unit of ours, so that it is stopped with its last unit. One that was there
/// before is an operator's, with its limits, and stays.
pub(super) fn mark_made(host: &Host, slice: &str) {
    for dir in units_directories(host, slice) {
        if let Ok(open) = host.open(dir.hierarchy, &dir.path) {
            _ = mark::mark(&open, mark::ANCESTOR);
        }
    }
}

/// The directories of a unit in the hierarchies in which systemd keeps all of its units.
fn units_directories(host: &Host, path: &str) -> impl Iterator<Item = Dir> {
    let known = host.hierarchies.iter().enumerate();
    known.filter(|(_, known)| keeps_units(known)).map(move |(index, _)| Dir::new(index, path))
}

/// Stops the slice if it was started for units of ours and none is left in it: alone, so that none goes with it. In
/// hierarchies that systemd does not know, its directory is ours where it is marked.
pub(crate) fn stop_default_slice(host: &Host, path: &str, outcome: &mut Outcome) {
    // Without it, a unit starts in it, which ends it later.
    let Some(_alone) = lock(host, path, FlockOperation::NonBlockingLockExclusive) else {
        return;
    };
    let mut dirs = Dirs::new(host, Vec::new());
    let slices = |is_managed: bool| {
        let known = host.hierarchies.iter().enumerate();
        let chosen = known.filter(move |(_, hierarchy)| plan::is_managed(hierarchy) == is_managed);
        chosen.map(|(index, _)| Dir::new(index, path))
    };
    let there: Vec<_> = slices(true).filter_map(|slice| dirs.get(&slice).ok()).collect();
    let has_units = |slice: &Arc<CgroupDir>| slice.children().is_ok_and(|children| !children.is_empty());
    if there.iter().any(has_units) {
        return;
    }
    if there.iter().any(|slice| mark::is_ancestor(slice))
        && let Ok(manager) = host.manager()
    {
        _ = manager.stop(DEFAULT_SLICE, true);
    }
    for slice in slices(false) {
        let Ok(open) = dirs.get(&slice) else { continue };
        if mark::is_ancestor(&open) && dirs.remove(&slice, &open).is_ok() {
            outcome.removed.push(slice.full(host));
        }
    }
}
