//! The directories and files of one operation: each is opened once.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::cgroup::Cgroup;
use crate::host::Host;
use crate::kernel::dir::{CgroupDir, read_text};
use crate::plan::Dir;

/// Directories that are open, by hierarchy and path; each is opened once for one operation.
#[derive(Debug)]
pub(crate) struct Dirs<'a> {
    pub(super) host: &'a Host,
    /// The cgroup for which the directories are opened, where there is one already.
    cgroup: Option<&'a Cgroup>,
    open: Vec<(Dir, Arc<CgroupDir>)>,
    files: Vec<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    dir: Dir,
    name: String,
    access: OFlags,
    fd: OwnedFd,
}

/// What is read before it is written, and read back, is within so many files.
const OPEN_FILES: usize = 32;

impl<'a> Dirs<'a> {
    pub(crate) fn new(host: &'a Host, open: Vec<(Dir, Arc<CgroupDir>)>) -> Self {
        Self { host, cgroup: None, open, files: Vec::new() }
    }

    /// For an operation on a cgroup: a directory that has its path and was made by somebody else is not there.
    pub(crate) fn of(cgroup: &'a Cgroup) -> Self {
        Self { cgroup: Some(cgroup), ..Self::new(&cgroup.host, cgroup.dirs.clone()) }
    }

    /// The directory, opened now if it was not yet.
    pub(crate) fn get(&mut self, dir: &Dir) -> Result<Arc<CgroupDir>, Errno> {
        if let Some(open) = self.known(dir.hierarchy, &dir.path) {
            return Ok(open);
        }
        let root = self.host.root(dir.hierarchy)?;
        if dir.path.is_empty() {
            return Ok(root);
        }
        let opened = match self.cgroup.and_then(|cgroup| Some((cgroup, cgroup.below(&dir.path)?))) {
            Some((cgroup, below)) => {
                let whole = self.get(&Dir::new(dir.hierarchy, Arc::clone(&cgroup.path)))?;
                whole.open_dir(below)?
            }
            None => root.open_dir(&*dir.path)?,
        };
        if self.cgroup.is_some_and(|cgroup| cgroup.path == dir.path && !cgroup.owns(dir, &opened)) {
            return Err(Errno::NOENT);
        }
        let opened = Arc::new(opened);
        self.open.push((dir.clone(), Arc::clone(&opened)));
        Ok(opened)
    }

    /// Removes a directory that is open, if its name still leads to it.
    pub(crate) fn remove(&mut self, dir: &Dir, open: &CgroupDir) -> Result<(), Errno> {
        self.above(dir)?.remove_same(dir.name(), open)
    }

    /// The directory above one that is not the root.
    pub(crate) fn above(&mut self, dir: &Dir) -> Result<Arc<CgroupDir>, Errno> {
        match dir.above() {
            None => Err(Errno::INVAL),
            Some("") => self.host.root(dir.hierarchy),
            Some(above) => match self.known(dir.hierarchy, above) {
                Some(open) => Ok(open),
                None => self.get(&Dir::new(dir.hierarchy, above)),
            },
        }
    }

    fn known(&self, hierarchy: usize, path: &str) -> Option<Arc<CgroupDir>> {
        let is_it = |(known, _): &&(Dir, _)| known.hierarchy == hierarchy && *known.path == *path;
        self.open.iter().find(is_it).map(|(_, open)| Arc::clone(open))
    }

    /// A file of a directory, opened now if it is not yet, or not so that it can be read or written as is needed.
    pub(super) fn file(&mut self, dir: &Dir, name: &str, access: OFlags) -> Result<&OwnedFd, Errno> {
        let is_fit = |file: &OpenFile| {
            file.dir == *dir && file.name == name && (file.access == access || file.access == OFlags::RDWR)
        };
        let at = match self.files.iter().position(is_fit) {
            Some(at) => at,
            None => {
                let fd = self.get(dir)?.open(name, access)?;
                if self.files.len() == OPEN_FILES {
                    self.files.remove(0);
                }
                self.files.push(OpenFile { dir: dir.clone(), name: name.to_owned(), access, fd });
                self.files.len() - 1
            }
        };
        self.files.get(at).map(|file| &file.fd).ok_or(Errno::BADF)
    }

    /// Reads a file, which stays open.
    pub(super) fn read(&mut self, dir: &Dir, name: &str) -> Result<String, Errno> {
        read_text(self.file(dir, name, OFlags::RDONLY)?)
    }

    /// Reads a file that is about to be written; one that this process may not write too.
    pub(super) fn read_to_write(&mut self, dir: &Dir, name: &str) -> Result<String, Errno> {
        match self.file(dir, name, OFlags::RDWR) {
            Ok(file) => read_text(file),
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::INVAL) => self.read(dir, name),
            Err(errno) => Err(errno),
        }
    }

    /// Gives the descriptor of a directory away.
    pub(crate) fn take(&mut self, dir: &Dir) -> Result<Arc<CgroupDir>, Errno> {
        let opened = self.get(dir)?;
        self.open.retain(|(known, _)| known != dir);
        Ok(opened)
    }
}
