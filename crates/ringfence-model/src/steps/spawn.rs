//! `spawn`: a process starts inside, in every hierarchy.

use super::Turn;
use crate::state::{Processes, Record, Step};

impl Turn<'_> {
    /// Takes the lock and reads the record: the sandbox is still this one, and complete.
    pub(super) fn lock_for_spawn(&mut self) -> bool {
        if !self.protocol.rules.spawn_takes_lock {
            self.go(Step::OpenForSpawn);
            return true;
        }
        let (slot, creation) = (self.slot(), self.me().creation);
        if self.state.locks[slot].is_some() {
            return false;
        }
        self.lock(slot);
        let is_usable = |record: &Record| record.creation == creation && !record.removing && !record.making;
        if self.record().as_ref().is_some_and(is_usable) {
            self.go(Step::OpenForSpawn);
        } else {
            self.end(Step::Refused);
        }
        true
    }

    pub(super) fn open_for_spawn(&mut self, h: usize) {
        let path = self.path();
        if self.protocol.rules.spawn_compares_mark && !self.is_marked(h, path) {
            return self.end(Step::Refused);
        }
        self.me().leaf[h] = self.state.dir(h, path).map_or(0, |dir| dir.inode);
        self.next_hierarchy(h, Step::OpenForSpawn, Step::Attach);
    }

    /// Attaches the process through the descriptor. Without comparing marks it is attached where there is a directory.
    pub(super) fn attach(&mut self, h: usize) {
        let process = Processes::of(self.me().creation);
        let inode = self.me().leaf[h];
        let is_killed =
            h > 0 && !self.state.dirs.iter().flatten().flatten().any(|dir| dir.processes.contains(process));
        let is_skipped = inode == 0 && !self.protocol.rules.spawn_compares_mark;
        match self.state.by_inode(h, inode) {
            _ if is_killed => return self.end(Step::Refused),
            Some(dir) => dir.processes = dir.processes.with(process),
            None if is_skipped => {}
            None => {
                self.state.end(process);
                return self.end(Step::Refused);
            }
        }
        if h + 1 < self.protocol.hierarchies {
            return self.go_to(Step::Attach, h + 1);
        }
        self.state.running = self.state.running.with(process);
        self.end(Step::Done);
    }
}
