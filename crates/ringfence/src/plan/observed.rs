//! What the planner asks: what the files of cgroups hold now.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::Dir;
use crate::error::{Error, Result};

/// A file of a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileAt<'a> {
    /// Index of the hierarchy.
    pub(crate) hierarchy: usize,
    /// Below its root.
    pub(crate) path: &'a str,
    pub(crate) name: &'a str,
    /// It is read because it is to be written.
    pub(crate) to_write: bool,
}

impl<'a> FileAt<'a> {
    pub(super) fn to_write(dir: &'a Dir, name: &'a str) -> Self {
        Self { hierarchy: dir.hierarchy, path: &dir.path, name, to_write: true }
    }

    pub(super) fn is(&self, dir: &Dir, name: &str) -> bool {
        self.hierarchy == dir.hierarchy && self.name == name && self.path == &*dir.path
    }
}

/// Tells what a file holds; `None`: there is no such file.
pub(crate) type Read<'a> = dyn Fn(FileAt<'_>) -> Result<Option<String>> + 'a;

/// Nothing is there yet.
pub(crate) const UNREAD: &Read<'static> = &|_| Ok(None);

/// What was asked for: each file once.
pub(super) struct Observed<'a> {
    read: &'a Read<'a>,
    /// By the name of the file.
    found: RefCell<BTreeMap<String, Vec<Found>>>,
    /// The first file that could not be read.
    failure: Cell<Option<Error>>,
}

struct Found {
    hierarchy: usize,
    path: String,
    content: Option<Rc<str>>,
}

impl<'a> Observed<'a> {
    pub(super) fn new(read: &'a Read<'a>) -> Self {
        Self { read, found: RefCell::default(), failure: Cell::default() }
    }

    /// What the file holds, read now if it was not yet. One that cannot be read holds nothing, and is a
    /// [`failure`](Self::failure).
    pub(super) fn look(&self, file: FileAt<'_>) -> Option<Rc<str>> {
        if let Some(found) = self.known(&file) {
            return found;
        }
        let content = (self.read)(file).unwrap_or_else(|error| {
            let first = self.failure.take().unwrap_or(error);
            self.failure.set(Some(first));
            None
        });
        let content: Option<Rc<str>> = content.map(Rc::from);
        let FileAt { hierarchy, path, name, .. } = file;
        let found = Found { hierarchy, path: path.to_owned(), content: content.clone() };
        self.found.borrow_mut().entry(name.to_owned()).or_default().push(found);
        content
    }

    fn known(&self, FileAt { hierarchy, path, name, .. }: &FileAt<'_>) -> Option<Option<Rc<str>>> {
        let found = self.found.borrow();
        let is_it = |found: &&Found| found.hierarchy == *hierarchy && found.path == *path;
        found.get(*name)?.iter().find(is_it).map(|found| found.content.clone())
    }

    /// Whether the file was looked at, and is there.
    pub(super) fn has(&self, file: &FileAt<'_>) -> bool {
        matches!(self.known(file), Some(Some(_)))
    }

    /// The error of the first file that could not be read.
    pub(super) fn failure(&self) -> Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }
}
