//! The open roots of the hierarchies.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use super::Host;
use crate::kernel::dir::CgroupDir;

/// Root directories that were opened, shared by all copies of a [`Host`]: each is opened once per process. No part of the
/// facts: a host that was read from JSON opens its own.
#[derive(Debug, Clone, Default)]
pub struct Roots(Arc<Mutex<Vec<Root>>>);

type Root = (PathBuf, Arc<CgroupDir>);

impl Roots {
    fn get(&self, root: &Path) -> Result<Arc<CgroupDir>, Errno> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, dir)) = open.iter().find(|(path, _)| path.as_os_str() == root.as_os_str()) {
            return Ok(Arc::clone(dir));
        }
        let dir = Arc::new(CgroupDir::open_root(root)?);
        open.push((root.to_owned(), Arc::clone(&dir)));
        Ok(dir)
    }
}

/// Hosts are equal by their facts.
impl PartialEq for Roots {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Roots {}

impl Host {
    /// The root cgroup of a hierarchy.
    pub(crate) fn root(&self, hierarchy: usize) -> Result<Arc<CgroupDir>, Errno> {
        let hierarchy = self.hierarchies.get(hierarchy).ok_or(Errno::NOENT)?;
        self.roots.get(&hierarchy.root)
    }

    /// A cgroup of a hierarchy, opened anew.
    pub(crate) fn open(&self, hierarchy: usize, path: &str) -> Result<CgroupDir, Errno> {
        self.root(hierarchy)?.open_dir(path)
    }
}
