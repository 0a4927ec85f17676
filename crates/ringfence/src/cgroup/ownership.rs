//! Decides which directories at a path were made by this creation (docs/protocol.md).

use std::sync::Arc;

use super::{Cgroup, descend, mark};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Hierarchy, Version};
use crate::kernel::dir::CgroupDir;
use crate::plan::{self, Dir};

impl Cgroup {
    /// Closes the directories that are not this cgroup's: another creation, or another manager, made them.
    ///
    /// systemd makes and removes the directories of a unit in the v1 hierarchies as controllers are needed, so that a unit is
    /// known by its main directory alone; its others must only not carry another mark.
    pub(crate) fn keep_own(&mut self) {
        let Some(mark) = self.mark.clone() else { return };
        let is_main = |dir: &Dir| self.host.hierarchies.get(dir.hierarchy).is_some_and(keeps_units);
        let main = self.dirs.iter().find(|(dir, _)| is_main(dir));
        let is_own_unit = self.unit.is_some()
            && main.is_some_and(|(dir, open)| match mark::mark_of(open) {
                Some(found) => *found == *mark,
                None => self.has_own_inode(dir, open) || self.has_own_description(&mark),
            });
        let is_legacy = mark::is_legacy(&mark);
        let is_own = |dir: &Dir, open: &CgroupDir| {
            self.is_own(dir, open, is_own_unit) || is_legacy && mark::mark_of(open).is_none()
        };
        let own = self.dirs.iter().filter(|(dir, open)| is_own(dir, open)).cloned().collect();
        self.dirs = own;
    }

    /// Whether a directory of this path is this cgroup's: by its mark; without one as a directory of its unit, in a hierarchy
    /// in which systemd makes these, or by its inode.
    fn is_own(&self, dir: &Dir, open: &CgroupDir, is_own_unit: bool) -> bool {
        let Some(mark) = &self.mark else { return true };
        match mark::mark_of(open) {
            Some(found) => *found == **mark,
            None if self.unit.is_some() && self.is_managed(dir.hierarchy) => is_own_unit,
            None => self.has_own_inode(dir, open),
        }
    }

    /// Whether a directory is one that was made here, where it has no mark that can be read.
    fn has_own_inode(&self, dir: &Dir, open: &CgroupDir) -> bool {
        self.inodes.iter().any(|(hierarchy, inode)| {
            *hierarchy == dir.hierarchy && open.inode().is_ok_and(|found| found == *inode)
        })
    }

    /// Whether the description of the unit carries the mark: for a unit whose starter died before it marked the directory, or
    /// may not set attributes.
    fn has_own_description(&self, mark: &str) -> bool {
        let Some(unit) = &self.unit else { return false };
        let described = self.host.manager().and_then(|manager| manager.description(&unit.unit()));
        described.is_ok_and(|text| text.is_some_and(|text| mark::is_described(&text, mark)))
    }

    /// Marks the directories that systemd made.
    pub(super) fn mark_unit(&mut self) {
        let (Some(mark), Some(_)) = (&self.mark, &self.unit) else { return };
        for (dir, open) in &self.dirs {
            if self.host.hierarchies.get(dir.hierarchy).is_some_and(keeps_units) {
                _ = mark::mark(open, mark);
                self.inodes.extend(open.inode().map(|inode| (dir.hierarchy, inode)));
            }
        }
    }

    /// Whether a directory that appeared at this path after the cgroup was opened is this cgroup's.
    pub(crate) fn owns(&self, dir: &Dir, open: &CgroupDir) -> bool {
        self.is_own(dir, open, true)
    }

    /// The hierarchies in which it should have a directory and has none.
    pub(crate) fn missing(&self) -> Vec<usize> {
        let is_there = |index: usize| self.dirs.iter().any(|(dir, _)| dir.hierarchy == index);
        let should = |index: &usize| {
            // A user's systemd makes no cgroups on v1, nor may the user.
            let is_denied =
                self.unit.is_some() && self.host.rootless && self.host.version_of(*index) == Version::V1;
            self.host.takes(*index, &self.path) && !is_denied
        };
        (0..self.host.hierarchies.len()).filter(should).filter(|index| !is_there(*index)).collect()
    }

    /// Its directories, and those of its parts, that are missing in some hierarchy.
    pub(crate) fn damage<'p>(&self, parts: impl Iterator<Item = &'p str>) -> Vec<Dir> {
        if !self.ours || !self.exists() {
            return Vec::new();
        }
        let mut missing: Vec<Dir> =
            self.missing().into_iter().map(|index| Dir::new(index, Arc::clone(&self.path))).collect();
        for path in parts {
            for (dir, open) in self.dirs.iter().filter(|(dir, _)| self.host.has_parts(dir.hierarchy)) {
                if self.below(path).is_some_and(|below| open.open_dir(below).is_err()) {
                    missing.push(Dir::new(dir.hierarchy, path));
                }
            }
        }
        missing
    }

    /// Adds the directories of this cgroup that somebody renamed.
    pub(crate) fn with_renamed(self: Arc<Self>) -> Arc<Self> {
        let renamed = self.renamed();
        if renamed.is_empty() {
            return self;
        }
        let dirs = self.dirs.iter().cloned().chain(renamed).collect();
        let mut all = Self::for_now(self.host.clone(), Arc::clone(&self.path), dirs);
        (all.ours, all.unit, all.mark) = (self.ours, self.unit.clone(), self.mark.clone());
        all.inodes.clone_from(&self.inodes);
        Arc::new(all)
    }

    /// Directories that carry its mark beside the place where one is missing: somebody renamed them, which v1 allows.
    pub(crate) fn renamed(&self) -> Vec<(Dir, Arc<CgroupDir>)> {
        let Some(mark) = &self.mark else { return Vec::new() };
        let mut found = Vec::new();
        for missing in self.missing().into_iter().map(|index| Dir::new(index, Arc::clone(&self.path))) {
            let Some(above) = missing.parent() else { continue };
            let Ok(open) = self.host.open(above.hierarchy, &above.path) else { continue };
            for name in open.children().unwrap_or_default() {
                let Ok(child) = open.open_dir(&name) else { continue };
                if mark::mark_of(&child).is_some_and(|found| found == **mark)
                    && let Some(name) = name.to_str()
                {
                    let path = if above.path.is_empty() {
                        name.to_owned()
                    } else {
                        format!("{}/{name}", above.path)
                    };
                    found.push((Dir::new(above.hierarchy, path), Arc::new(child)));
                }
            }
        }
        found
    }

    /// The path of a part from this cgroup's directory.
    pub(crate) fn below<'p>(&self, part: &'p str) -> Option<&'p str> {
        part.strip_prefix(&*self.path)?.strip_prefix('/')
    }

    /// Refuses a cgroup of which a directory is missing in some hierarchy: a process that joined the others would run outside
    /// of that controller.
    ///
    /// # Errors
    /// [`ErrorKind::State`], with the directory that is missing.
    pub(crate) fn refuse_damaged(&self) -> Result<()> {
        match self.damage(std::iter::empty()).first() {
            None => Ok(()),
            Some(missing) => Err(damaged(missing, &self.host)),
        }
    }

    /// Refuses to kill or remove what is inside, where other sandboxes' cgroups are nested in it.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`], with their paths.
    pub(crate) fn refuse_nested(&self) -> Result<()> {
        let nested = self.nested();
        if nested.is_empty() {
            return Ok(());
        }
        let why =
            format!("cgroups of other sandboxes are inside: remove these first: /{}", nested.join(", /"));
        Err(Error::new(ErrorKind::Busy, why).with_value(&self.path))
    }

    /// Other sandboxes' cgroups that are nested inside, by their paths.
    fn nested(&self) -> Vec<String> {
        let Some(own) = &self.mark else { return Vec::new() };
        let mut found = Vec::new();
        let has_children = |open: &CgroupDir| open.children().is_ok_and(|list| !list.is_empty());
        for (_, open) in self.dirs.iter().filter(|(_, open)| has_children(open)) {
            _ = descend(open, |below, names| {
                let mark = mark::mark_of(below).filter(|mark| mark::is_of_sandbox(mark) && **mark != **own);
                if mark.is_some() {
                    let names = names.iter().map(|name| name.to_string_lossy());
                    let path = std::iter::once((&*self.path).into()).chain(names).collect::<Vec<_>>();
                    found.push(path.join("/"));
                }
                mark.is_none()
            });
        }
        found.sort();
        found.dedup();
        found
    }
}

/// The error for a cgroup of which a directory is missing in some hierarchy.
pub(crate) fn damaged(missing: &Dir, host: &crate::host::Host) -> Error {
    let why = "damaged: its directory is missing in this hierarchy, and what starts would run outside of the controllers \
               there: `ringfence repair` makes it anew";
    Error::new(ErrorKind::State, why).with_path(missing.full(host))
}

/// Whether systemd keeps its units in this hierarchy, whichever controllers they need.
pub(super) fn keeps_units(known: &Hierarchy) -> bool {
    plan::is_managed(known) && (known.version == Version::V2 || known.name.as_deref() == Some("systemd"))
}
