//! `rm`, and the records that `gc` finishes.

use super::Turn;
use crate::Role;
use crate::state::{LEAF, Mark, PARENT, Record, Step};

impl Turn<'_> {
    /// Opens the directory by its path and compares the mark.
    pub(super) fn open_marked(&mut self, h: usize) {
        let Some(record) = self.record() else { return self.go(Step::RemoveRecord) };
        let path = usize::from(record.path);
        let is_ours = self.state.dir(h, path).is_some()
            && (!self.protocol.rules.compare_mark || self.is_marked(h, path));
        // What may be ours keeps the record, until `rm` gives it up.
        self.me().keep |= self.is_gc() && self.state.is_unclear(&record, h);
        if self.is_gc() && record.ready && !record.removing {
            self.me().keep |= is_ours;
            return self.next_hierarchy(h, Step::OpenMarked, Step::RemoveRecord);
        }
        self.me().leaf[h] = self.state.dir(h, path).filter(|_| is_ours).map_or(0, |dir| dir.inode);
        self.go(if is_ours { Step::RemoveDir } else { Step::RemoveAncestor });
    }

    pub(super) fn may_kill(&mut self) -> bool {
        let (Role::Remove { kill, .. } | Role::Gc { kill, .. }) = self.role else { return false };
        let is_leftover = matches!(self.me().step, Step::KillLeftover | Step::RemoveLeftover);
        let rules = self.protocol.rules;
        let may_kill = |record: Record| {
            (record.ready || !rules.kill_only_ready)
                && (record.kill || !record.removing || !rules.gc_refuses_as_rm)
        };
        kill && (is_leftover || self.record().is_some_and(may_kill))
    }

    /// Kills what is inside the directory that was opened.
    pub(super) fn kill(&mut self, h: usize, then: Step) {
        let inode = self.me().leaf[h];
        if let Some(node) = [LEAF, PARENT].into_iter().find(|node| self.has_inode(h, *node, inode)) {
            self.kill_all(self.state.processes(h, node));
        }
        self.go(then);
    }

    /// Compares the inode of the name, then calls rmdir(2).
    pub(super) fn remove_dir(&mut self, h: usize) {
        let (rules, path, inode, record) =
            (self.protocol.rules, self.path(), self.me().leaf[h], self.record());
        if !self.has_inode(h, path, inode) {
            self.go(Step::RemoveAncestor);
        } else if rules.give_back && record.is_some_and(|record| record.adopted && !record.ready) {
            self.take_mark_back(h, inode);
            self.go(Step::RemoveAncestor);
        } else if rules.rmdir_is_atomic {
            self.rmdir_leaf(h);
        } else {
            self.go(Step::RmdirLeaf);
        }
    }

    pub(super) fn rmdir_leaf(&mut self, h: usize) {
        let path = self.path();
        if self.rmdir(h, path) {
            self.go(Step::RemoveAncestor);
        } else if self.may_kill() && !self.state.processes(h, path).is_empty() {
            self.go(Step::Kill);
        } else {
            self.me().keep |= self.state.dir(h, path).is_some();
            self.go(Step::RemoveAncestor);
        }
    }

    pub(super) fn remove_ancestor(&mut self, h: usize) {
        let is_shared = self.mark_at(h, PARENT) == Some(Mark::Ancestor);
        if self.path() == LEAF && (is_shared || !self.protocol.rules.mark_ancestors) {
            self.rmdir(h, PARENT);
        }
        self.next_hierarchy(h, Step::OpenMarked, Step::RemoveRecord);
    }

    pub(super) fn remove_record(&mut self) {
        let slot = self.slot();
        if let Some(record) = self.state.records[slot].take() {
            if self.me().keep {
                // Without --kill: refused, and the earlier phase is written back.
                let is_refused = !record.kill && (self.protocol.rules.gc_refuses_as_rm || !self.is_gc());
                self.state.records[slot] =
                    Some(Record { removing: record.removing && !is_refused, ..record });
            } else if !self.is_gc() {
                self.state.give_up(&record);
            }
        }
        self.unlock();
        if !self.is_gc() {
            return self.end(Step::Done);
        }
        self.me().position += 1;
        self.lock_next();
    }
}
