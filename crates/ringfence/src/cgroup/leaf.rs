//! Processes that come after something inside has enabled controllers for children of its own, as a tenant or a nested
//! container does: cgroup v2 then takes no process into the cgroup itself (EBUSY), and they go to a leaf below it.

use std::sync::Arc;

use rustix::io::Errno;

use crate::cgroup::Cgroup;
use crate::driver::cgroupfs::delegated_files;
use crate::error::{Error, Result};
use crate::host::Version;
use crate::kernel::dir::CgroupDir;
use crate::kernel::proc;
use crate::path::EVACUATED;

impl Cgroup {
    /// The leaf that takes processes in the place of the cgroup's v2 directory, made if it is not there; `None` if the
    /// directory takes processes itself, as far as its files say.
    pub(super) fn leaf(&self) -> Result<Option<Arc<CgroupDir>>> {
        let Some(whole) = self.unified() else { return Ok(None) };
        // Threaded cgroups, and their domain, take processes whatever is enabled.
        let is_domain = whole.read("cgroup.type").is_ok_and(|kind| kind == "domain");
        if !is_domain || whole.read("cgroup.subtree_control").is_ok_and(|enabled| enabled.is_empty()) {
            return Ok(None);
        }
        let made = whole.make_dir(EVACUATED);
        let opened = match made {
            Ok(()) | Err(Errno::EXIST) => whole.open_dir(EVACUATED),
            Err(errno) => Err(errno),
        };
        let leaf = match opened {
            Ok(leaf) => leaf,
            // Not permitted, or as many cgroups as cgroup.max.descendants allows.
            Err(errno) => {
                let failed = || {
                    Error::kernel("cannot make a leaf for processes", &*self.path, errno)
                        .with_value(EVACUATED)
                };
                return self.first_leaf(whole).map(Some).ok_or_else(failed);
            }
        };
        if made.is_ok() {
            let given = give_as(whole, &leaf);
            given.map_err(|errno| {
                Error::kernel("cannot delegate the leaf for processes", &*self.path, errno)
            })?;
        }
        Ok(Some(Arc::new(leaf)))
    }

    /// The cgroup below this one in which its first process is.
    fn first_leaf(&self, whole: &CgroupDir) -> Option<Arc<CgroupDir>> {
        let pids = self.processes().ok()?;
        let places = pids.iter().filter_map(|pid| {
            let cgroups = proc::cgroups(*pid)?;
            let (_, path) = cgroups.into_iter().find(|(names, _)| names.is_empty())?;
            let below = path.strip_prefix('/')?.strip_prefix(&*self.path)?.strip_prefix('/')?.to_owned();
            whole.open_dir(below).ok()
        });
        places.map(Arc::new).next()
    }
}

/// Gives the leaf to the owner of the directory above it, so that whoever was given that can move processes out of the leaf.
fn give_as(whole: &CgroupDir, leaf: &CgroupDir) -> Result<(), Errno> {
    let (theirs, ours) = (whole.stat()?, leaf.stat()?);
    if (theirs.st_uid, theirs.st_gid) == (ours.st_uid, ours.st_gid) {
        return Ok(());
    }
    for file in [".".to_owned()].into_iter().chain(delegated_files(Version::V2)) {
        match leaf.give(&file, theirs.st_uid, theirs.st_gid) {
            // This kernel has it not, or not without its controller.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
