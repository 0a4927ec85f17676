//! The directories of one operation: each is opened once.

use std::sync::Arc;

use rustix::io::Errno;

use crate::host::Host;
use crate::kernel::dir::CgroupDir;
use crate::plan::Dir;

/// Directories that are open, by hierarchy and path; each is opened once for one operation.
#[derive(Debug)]
pub(crate) struct Dirs<'a> {
    pub(super) host: &'a Host,
    open: Vec<(Dir, Arc<CgroupDir>)>,
}

impl<'a> Dirs<'a> {
    pub(crate) fn new(host: &'a Host, open: Vec<(Dir, Arc<CgroupDir>)>) -> Self {
        Self { host, open }
    }

    /// The directory, opened now if it was not yet.
    pub(crate) fn get(&mut self, dir: &Dir) -> Result<Arc<CgroupDir>, Errno> {
        if let Some((_, open)) = self.open.iter().find(|(known, _)| known == dir) {
            return Ok(Arc::clone(open));
        }
        let root = self.host.root(dir.hierarchy)?;
        let opened = if dir.path.is_empty() { root } else { Arc::new(root.open_dir(&dir.path)?) };
        self.open.push((dir.clone(), Arc::clone(&opened)));
        Ok(opened)
    }

    /// Gives the descriptor of a directory away.
    pub(crate) fn take(&mut self, dir: &Dir) -> Result<Arc<CgroupDir>, Errno> {
        let opened = self.get(dir)?;
        self.open.retain(|(known, _)| known != dir);
        Ok(opened)
    }
}
