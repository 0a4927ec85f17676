//! Reading what the planner needs.

use std::borrow::Cow;

use rustix::io::Errno;

use super::dirs::Dirs;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::plan::{Dir, Observed, ReadSet};

/// Reads what the planner needs.
pub(crate) fn observe(host: &Host, dirs: &mut Dirs<'_>, path: &str, set: &ReadSet) -> Result<Observed> {
    let mut observed = Observed::default();
    for (hierarchy, file) in &set.files {
        let dir = Dir::new(*hierarchy, path);
        let full = || dir.full(host).join(file.as_ref());
        let open =
            dirs.get(&dir).map_err(|errno| Error::kernel("cannot open the cgroup", dir.full(host), errno))?;
        match open.read(file) {
            Ok(content) => observed.insert(*hierarchy, path, file.clone(), content),
            // A kernel without the file: the planner takes that as its answer.
            Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(Error::kernel("cannot read what is in force", full(), errno)),
        }
    }
    if let Some((hierarchy, files)) = &set.inherited {
        observe_ancestors(host, dirs, &Dir::new(*hierarchy, path), files, &mut observed)?;
    }
    Ok(observed)
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
            observed.insert(dir.hierarchy, &dir.path, Cow::Borrowed(file), content);
        }
        if complete {
            break;
        }
    }
    Ok(())
}
