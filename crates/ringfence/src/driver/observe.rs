//! Reading what the planner needs.

use std::borrow::Cow;

use rustix::io::Errno;

use super::dirs::Dirs;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::plan::{Dir, Observed, Plan, Want, plan_or_needs};

/// Plans, and reads what the planner needs for that.
pub(crate) fn plan_on(host: &Host, dirs: &mut Dirs<'_>, want: &Want<'_>) -> Result<Plan> {
    let mut observed = Observed::default();
    loop {
        let set = match plan_or_needs(host, want, &observed) {
            Ok(plan) => return plan,
            Err(set) => set,
        };
        for key in set.files {
            let is_written = set.written.contains(&key);
            let (hierarchy, path, file) = key;
            let dir = Dir::new(hierarchy, path);
            dirs.get(&dir).map_err(|errno| Error::kernel("cannot open the cgroup", dir.full(host), errno))?;
            let read = if is_written { dirs.read_to_write(&dir, &file) } else { dirs.read(&dir, &file) };
            let content = match read {
                Ok(content) => Some(content),
                // A kernel without the file: the planner takes that as its answer.
                Err(Errno::NOENT | Errno::OPNOTSUPP) => None,
                Err(errno) => {
                    let path = dir.full(host).join(file.as_ref());
                    return Err(Error::kernel("cannot read what is in force", path, errno));
                }
            };
            observed.insert(hierarchy, &dir.path, file, content);
        }
        if let Some((hierarchy, files)) = set.inherited {
            observe_ancestors(host, dirs, &Dir::new(hierarchy, want.path), &files, &mut observed)?;
            observed.inherited_is_known();
        }
    }
}

/// Reads the cpusets of the ancestors that exist, from the nearest up to the first in which nothing is empty.
fn observe_ancestors(
    host: &Host,
    dirs: &mut Dirs<'_>,
    leaf: &Dir,
    files: &[&'static str; 2],
    observed: &mut Observed,
) -> Result<()> {
    let mut next = leaf.parent();
    while let Some(dir) = next {
        next = dir.parent();
        let Ok(open) = dirs.get(&dir) else { continue };
        let mut complete = true;
        for file in files {
            let content = open.read(file).map_err(|errno| {
                Error::kernel("cannot read the CPU set", dir.full(host).join(file), errno)
            })?;
            complete &= !content.is_empty();
            observed.insert(dir.hierarchy, &dir.path, Cow::Borrowed(file), Some(content));
        }
        if complete {
            break;
        }
    }
    Ok(())
}
