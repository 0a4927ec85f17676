//! All cgroups below one, however deep: whoever was given a cgroup may nest others in it as deep as they like, with names
//! that no path could hold. One descriptor is open at a time, and the way back up is `..`.

use std::collections::BTreeSet;
use std::ffi::OsString;

use rustix::io::Errno;

use crate::cgroup::freeze::event;
use crate::host::Version;
use crate::kernel::dir::CgroupDir;
use crate::kernel::proc;

/// The processes of a directory and of those below it.
///
/// v1 lists the process of every live task. v2 lists a process where its first thread is, or was: if that has ended and the
/// others live on, they can be moved and it cannot. What is not populated has nobody in it then, and what is populated
/// without a process has threads.
pub(crate) fn members(dir: &CgroupDir, version: Version, pids: &mut BTreeSet<u32>) -> Result<(), Errno> {
    let Some(top) = unless_removed(listed(dir, version, pids))?.flatten() else { return Ok(()) };
    if top.children.is_empty() && !top.is_without_process {
        return Ok(());
    }
    let Some(mut here) = unless_removed(dir.open_dir(""))? else { return Ok(()) };
    let mut levels = vec![top];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.children.pop() {
            let Some(child) = unless_removed(here.open_dir(&name))? else { continue };
            if let Some(below) = unless_removed(listed(&child, version, pids))?.flatten() {
                here = child;
                levels.push(below);
            }
            continue;
        }
        if level.is_without_process && pids.len() == level.known {
            let threads = unless_removed(here.read("cgroup.threads"))?.unwrap_or_default();
            pids.extend(threads.lines().filter_map(|tid| proc::process_of(tid.parse().ok()?)));
        }
        levels.pop();
        if !levels.is_empty() {
            here = here.parent()?;
        }
    }
    Ok(())
}

/// A level on the way down.
struct Level {
    /// Those that are still to be looked at.
    children: Vec<OsString>,
    /// v2: it lists none itself.
    is_without_process: bool,
    /// How many processes were known before.
    known: usize,
}

/// Takes the processes of one directory. `None` if nobody is in it or below it.
fn listed(dir: &CgroupDir, version: Version, pids: &mut BTreeSet<u32>) -> Result<Option<Level>, Errno> {
    if version == Version::V2 && !is_populated(dir)? {
        return Ok(None);
    }
    let known = pids.len();
    let mut is_without_process = false;
    match dir.read("cgroup.procs") {
        Ok(list) => {
            is_without_process = version == Version::V2 && list.is_empty();
            // With 0: somebody whom this PID namespace does not know is inside all the same.
            pids.extend(list.lines().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        // A threaded part: its processes are listed in the domain above.
        Err(Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(errno),
    }
    Ok(Some(Level { children: dir.children()?, is_without_process, known }))
}

/// What was removed meanwhile has nobody in it, and counts nothing.
pub(crate) fn unless_removed<T>(result: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match result {
        Err(Errno::NODEV | Errno::NOENT) => Ok(None),
        done => done.map(Some),
    }
}

/// Whether a live task is in a v2 cgroup or below it. The machine's root does not say, and is.
fn is_populated(dir: &CgroupDir) -> Result<bool, Errno> {
    match dir.read("cgroup.events") {
        Ok(events) => Ok(event(&events, "populated")),
        Err(Errno::NOENT) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Removes what can be removed of the cgroups below a directory, and tells of each by the names that lead to it.
pub(super) fn clear_below(dir: &CgroupDir, mut removed: impl FnMut(&[OsString])) -> Result<(), Errno> {
    let mut here = dir.open_dir("")?;
    let mut names: Vec<OsString> = Vec::new();
    let mut pending = vec![here.children()?];
    while let Some(children) = pending.last_mut() {
        let name = match children.pop() {
            Some(name) => {
                names.push(name.clone());
                match (here.remove_dir(&name), here.open_dir(&name)) {
                    (Err(_), Ok(child)) => {
                        pending.push(child.children().unwrap_or_default());
                        here = child;
                        continue;
                    }
                    (Ok(()), _) => removed(&names),
                    // Somebody else did.
                    (Err(_), Err(_)) => {}
                }
                names.pop();
                continue;
            }
            None => names.last().cloned(),
        };
        pending.pop();
        let Some(name) = name else { break };
        here = here.parent()?;
        if here.remove_dir(&name).is_ok() {
            removed(&names);
        }
        names.pop();
    }
    Ok(())
}

/// Opens every cgroup below a directory, with the names that lead to it, and goes on into those for which `enter` says so.
/// What vanishes meanwhile, or cannot be opened, is passed over.
pub(crate) fn descend(
    dir: &CgroupDir,
    mut enter: impl FnMut(&CgroupDir, &[OsString]) -> bool,
) -> Result<(), Errno> {
    let mut here = dir.open_dir("")?;
    let mut names = Vec::new();
    let mut pending = vec![here.children()?];
    while let Some(children) = pending.last_mut() {
        if let Some(name) = children.pop() {
            let Ok(child) = here.open_dir(&name) else { continue };
            names.push(name);
            if enter(&child, &names) {
                pending.push(child.children().unwrap_or_default());
                here = child;
            } else {
                names.pop();
            }
            continue;
        }
        pending.pop();
        if names.pop().is_some() {
            here = here.parent()?;
        }
    }
    Ok(())
}
