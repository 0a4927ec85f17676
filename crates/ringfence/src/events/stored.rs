//! The sandboxes of a store: those that there are, and those that are still to come.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustix::fs::inotify::ReadFlags;

use super::Events;
use super::farewell::{LastWord, Line, Spool};
use super::subject::Subject;
use super::trigger::PressureTrigger;
use super::watches::Whom;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::path::SandboxId;
use crate::sandbox::Store;

/// A store that is watched.
#[derive(Debug)]
pub(super) struct Stored {
    host: Arc<Host>,
    store: Store,
    spool: Spool,
    /// These alone.
    only: Option<BTreeSet<SandboxId>>,
    triggers: Vec<PressureTrigger>,
}

impl Stored {
    /// Whether sandboxes may still come.
    pub(super) fn has_future(&self) -> bool {
        self.only.is_none()
    }

    pub(super) fn triggers(&self) -> Vec<PressureTrigger> {
        self.triggers.clone()
    }

    fn wants(&self, id: &SandboxId) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(id))
    }
}

impl Events {
    /// Adds all sandboxes of a store, those that are made from now on too, under their IDs; or only some, which must be
    /// there. All of them with these thresholds of pressure. One store for each stream.
    ///
    /// The store's directory is made if there is none, and is there for as long as it is watched.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an ID that there is not; those of [`Events::add_pressure`]; [`ErrorKind::State`] where the
    /// directory cannot be read or written.
    pub fn add_store(
        &mut self,
        host: &Host,
        store: &Store,
        only: Option<&[SandboxId]>,
        triggers: &[PressureTrigger],
    ) -> Result<()> {
        if self.stored.is_some() {
            return Err(Error::new(ErrorKind::InvalidInput, "a store is watched already"));
        }
        triggers.iter().try_for_each(|trigger| trigger.check(host))?;
        for id in only.unwrap_or_default() {
            if store.load(id)?.is_none() {
                return Err(Error::new(ErrorKind::NotFound, "there is no such sandbox").with_value(id));
            }
        }
        let directory = store.directory();
        let cannot = |error: std::io::Error| {
            let error = Error::new(ErrorKind::State, "cannot watch the state directory").with_source(error);
            error.with_path(directory)
        };
        let spool = Spool::new(directory).map_err(cannot)?;
        let watched = std::fs::File::open(directory).map_err(cannot)?;
        let watches = &mut self.kit.watches;
        let watched = watches.directory(&watched, Whom::Store, None);
        watched.and_then(|_| watches.file(&spool.file, Whom::Spool)).map_err(|errno| cannot(errno.into()))?;
        let only = only.map(|ids| ids.iter().cloned().collect::<BTreeSet<_>>());
        let host = Arc::new(host.clone());
        // What is made from here on is told of.
        let ids = store.ids()?;
        let stored = Stored { host, store: store.clone(), spool, only, triggers: triggers.to_vec() };
        let wanted: Vec<_> = ids.into_iter().filter(|id| stored.wants(id)).collect();
        self.stored = Some(stored);
        for id in wanted {
            match self.add_known(&id, true) {
                // Those of which it cannot be known what happens do not keep the others.
                Err(error) if error.kind() == ErrorKind::State && self.has_future() => {
                    self.queue.push_back(Err(error));
                }
                added => added?,
            }
        }
        Ok(())
    }

    fn has_future(&self) -> bool {
        self.stored.as_ref().is_some_and(Stored::has_future)
    }

    /// Adds a sandbox by its state, if there is one.
    fn add_known(&mut self, id: &SandboxId, is_there: bool) -> Result<()> {
        let Some(stored) = &self.stored else { return Ok(()) };
        let Some(state) = stored.store.load(id)? else { return Ok(()) };
        let host = if stored.host.rootless {
            Arc::new(stored.host.as_seen_at(&state.cgroup))
        } else {
            Arc::clone(&stored.host)
        };
        let key = self.next_key();
        let mut subject = Subject::new(key, id.as_str(), &host, &state, &mut self.kit)?;
        if let Some(heard) = self.key_of(id).and_then(|key| self.subjects.remove(&key)) {
            subject.take_over(heard);
        }
        if is_there {
            subject.begin(&mut self.kit)?;
        }
        for trigger in self.stored.as_ref().map(Stored::triggers).unwrap_or_default() {
            subject.add_pressure(&trigger, &mut self.kit)?;
        }
        self.subjects.insert(key, subject);
        self.look_at(key);
        Ok(())
    }

    fn key_of(&self, id: &SandboxId) -> Option<u32> {
        let mut subjects = self.subjects.values();
        subjects.find(|subject| &*subject.id == id.as_str()).map(|subject| subject.key)
    }

    /// Whether it is looked at, and not only heard of.
    fn is_seen(&self, id: &SandboxId) -> bool {
        self.key_of(id).and_then(|key| self.subjects.get(&key)).is_some_and(Subject::is_seen)
    }

    /// A file of the state directory came or went.
    pub(super) fn take_stored(&mut self, name: &[u8], flags: ReadFlags) {
        let id = str::from_utf8(name).ok().and_then(|name| name.strip_suffix(".json")?.parse().ok());
        let Some(id): Option<SandboxId> = id else { return };
        if self.stored.as_ref().is_none_or(|stored| !stored.wants(&id)) {
            return;
        }
        self.take_spool();
        if flags.contains(ReadFlags::DELETE) {
            self.end_unless_kept(&id);
        } else if !self.is_seen(&id)
            && self.has_future()
            && let Err(error) = self.add_known(&id, false)
        {
            self.queue.push_back(Err(error));
        }
    }

    /// The state was removed by hand, or by whoever could not say so.
    fn end_unless_kept(&mut self, id: &SandboxId) {
        let is_kept = self.stored.as_ref().is_some_and(|stored| matches!(stored.store.load(id), Ok(Some(_))));
        if let Some(key) = self.key_of(id).filter(|_| !is_kept) {
            self.end(key);
        }
    }

    /// Takes in what those say that remove sandboxes.
    pub(super) fn take_spool(&mut self) {
        let Some(stored) = &mut self.stored else { return };
        let mut lines = Vec::new();
        stored.spool.read_lines(&mut self.kit.buffer, |line| lines.push(line));
        for Line { id, last } in lines {
            let Some(stored) = &self.stored else { return };
            if !stored.wants(&id) {
                continue;
            }
            let key = match self.key_of(&id) {
                Some(key) => key,
                // It came and went while we were not looking.
                None if last.is_some() && stored.has_future() => {
                    let host = Arc::clone(&stored.host);
                    let key = self.next_key();
                    self.subjects.insert(key, Subject::unseen(key, id.as_str(), &host));
                    key
                }
                None => continue,
            };
            self.hear(key, last.map_or(LastWord::Removed, LastWord::Counted));
        }
    }

    /// So much happened that not all of it was told.
    pub(super) fn rescan(&mut self) {
        self.take_spool();
        let Some(stored) = &self.stored else { return };
        let ids = match stored.store.ids() {
            Ok(ids) => ids,
            Err(error) => return self.queue.push_back(Err(error)),
        };
        let gone = self.subjects.values().filter_map(|subject| subject.id.parse::<SandboxId>().ok());
        let gone: Vec<_> = gone.filter(|id| !ids.contains(id)).collect();
        gone.iter().for_each(|id| self.end_unless_kept(id));
        for id in ids {
            if !self.is_seen(&id)
                && self.has_future()
                && let Err(error) = self.add_known(&id, false)
            {
                self.queue.push_back(Err(error));
            }
        }
    }
}
