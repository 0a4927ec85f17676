//! Who is to be looked at when inotify tells of a file or a directory.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::inotify::WatchFlags;
use rustix::io::Result;

use crate::kernel::watch;

/// Who has an interest in something that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interest {
    pub(super) whom: Whom,
    /// In a directory: in this name alone. `None`: in everything.
    name: Option<Box<[u8]>>,
}

/// What has to be done then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    /// A sandbox is to be looked at.
    Sandbox(u32),
    /// The state directory.
    Store,
    /// What is told to us of the sandboxes in it.
    Spool,
}

/// Everything that is watched: one inotify(7) for all. The same file or directory has the same number for all that have an
/// interest in it.
#[derive(Debug)]
pub(super) struct Watches {
    pub(super) inotify: OwnedFd,
    by_number: BTreeMap<i32, Vec<Interest>>,
}

impl Watches {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { inotify: watch::inotify()?, by_number: BTreeMap::new() })
    }

    /// A file whose contents change.
    pub(super) fn file(&mut self, open: impl AsFd, whom: Whom) -> Result<i32> {
        let number = watch::watch(&self.inotify, open, WatchFlags::MODIFY)?;
        self.add(number, Interest { whom, name: None });
        Ok(number)
    }

    /// What comes and goes in a directory under this name.
    pub(super) fn directory(&mut self, open: impl AsFd, whom: Whom, name: Option<&str>) -> Result<i32> {
        let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        let number = watch::watch(&self.inotify, open, flags)?;
        self.add(number, Interest { whom, name: name.map(|name| name.as_bytes().into()) });
        Ok(number)
    }

    fn add(&mut self, number: i32, interest: Interest) {
        let all = self.by_number.entry(number).or_default();
        if !all.contains(&interest) {
            all.push(interest);
        }
    }

    pub(super) fn forget(&mut self, number: i32, whom: Whom) {
        if let Some(all) = self.by_number.get_mut(&number) {
            all.retain(|interest| interest.whom != whom);
            if all.is_empty() {
                self.by_number.remove(&number);
                watch::unwatch(&self.inotify, number);
            }
        }
    }

    /// Those whom it concerns, appended to `found`.
    pub(super) fn concerned(&self, number: i32, name: &[u8], found: &mut Vec<Whom>) {
        let all = self.by_number.get(&number).map(Vec::as_slice).unwrap_or_default();
        let concerns = |interest: &&Interest| interest.name.as_deref().is_none_or(|known| known == name);
        found.extend(all.iter().filter(concerns).map(|interest| interest.whom));
    }
}
