//! `create`, `adopt` and `repair`, and how they are undone.

use super::Turn;
use crate::state::{Actor, Dir, Inode, LEAF, Mark, Owner, PARENT, Record, Step};

impl Turn<'_> {
    pub(super) fn look_above(&mut self, h: usize) {
        match self.mark_at(h, PARENT) {
            Some(Mark::Sandbox { .. }) => self.end(Step::Refused),
            _ => self.next_hierarchy(h, Step::LookAbove, Step::WriteIntent),
        }
    }

    /// Renames the record, which names the ancestors that are missing now, into its place.
    pub(super) fn write_intent(&mut self, h: usize) {
        let (rules, slot, path) = (self.protocol.rules, self.slot(), self.path());
        let missing = (0..self.protocol.hierarchies)
            .filter(|one| path == LEAF && self.state.dir(*one, PARENT).is_none())
            .fold(0, |all, one| all | 1 << one);
        let before = self.state.records[slot];
        let ancestors = before.map_or(0, |record| record.ancestors)
            | if rules.record_ancestors && !self.is_adopting() { missing } else { 0 };
        let record = if self.is_repairing() {
            before.map(|record| Record { making: record.making || rules.record_repair, ancestors, ..record })
        } else {
            Some(Record {
                creation: self.me().creation,
                path: u8::try_from(path).unwrap_or(0),
                ready: false,
                removing: false,
                kill: false,
                adopted: self.is_adopting(),
                making: rules.record_making && !self.is_adopting(),
                ancestors,
            })
        };
        self.state.records[slot] = record;
        self.go_to(self.first_of_hierarchy(), h);
    }

    pub(super) fn first_of_hierarchy(&self) -> Step {
        if self.is_adopting() { Step::OpenLeaf } else { Step::MakeAncestor }
    }

    pub(super) fn make_ancestor(&mut self, h: usize) {
        if self.is_repairing() && self.is_marked(h, LEAF) {
            return self.next_hierarchy(h, Step::MakeAncestor, Step::WriteReady);
        }
        let may_make = !self.protocol.rules.record_ancestors
            || self.record().is_some_and(|record| record.ancestors & 1 << h != 0);
        let owner = Owner::Creation(self.me().creation);
        match (self.path() == LEAF && may_make).then(|| self.state.mkdir(h, PARENT, owner)).flatten() {
            Some(inode) => {
                self.me().ancestor[h] = inode;
                self.go(if self.protocol.rules.mark_ancestors { Step::MarkAncestor } else { Step::MakeLeaf });
            }
            None => self.go(Step::MakeLeaf),
        }
    }

    pub(super) fn mark_ancestor(&mut self, h: usize) {
        let inode = self.me().ancestor[h];
        if let Some(dir) = self.state.by_inode(h, inode) {
            dir.mark = Some(dir.mark.unwrap_or(Mark::Ancestor));
        }
        self.go(Step::MakeLeaf);
    }

    pub(super) fn make_leaf(&mut self, h: usize) {
        let (path, owner) = (self.path(), Owner::Creation(self.me().creation));
        match self.state.mkdir(h, path, owner) {
            Some(inode) if self.protocol.rules.mkdir_is_atomic => {
                self.me().leaf[h] = inode;
                self.go(Step::MarkLeaf);
            }
            Some(_) => self.go(Step::OpenLeaf),
            // ENOENT: another sandbox that shared the ancestors removed them.
            None if self.protocol.rules.retry_ancestors && self.state.dir(h, path).is_none() => {
                self.me().ancestor[h] = 0;
                self.go(Step::WriteIntent);
            }
            None => {
                self.state.harm.refused |= self.state.dir(h, path).is_none();
                self.go(Step::UndoLeaf);
            }
        }
    }

    pub(super) fn open_leaf(&mut self, h: usize) {
        let path = self.path();
        let is_adoptable = |dir: &&Dir| dir.mark.is_none() && dir.processes.is_empty();
        match self
            .state
            .dir(h, path)
            .filter(|dir| !self.is_adopting() || is_adoptable(dir))
            .map(|dir| dir.inode)
        {
            Some(inode) => {
                self.me().leaf[h] = inode;
                self.go(Step::MarkLeaf);
            }
            None => self.go(Step::UndoLeaf),
        }
    }

    pub(super) fn mark_leaf(&mut self, h: usize) {
        let (mark, inode, is_exclusive) =
            (self.mark(), self.me().leaf[h], self.protocol.rules.exclusive_mark);
        match self.state.by_inode(h, inode) {
            Some(dir) if dir.mark.is_none() || !is_exclusive => {
                dir.mark = Some(mark);
                self.go(Step::LookAround);
            }
            other => {
                // An adoption took our new directory. If it is given back, it has no mark: the record keeps it in view.
                let is_overtaken = other.is_some() && self.protocol.rules.record_overtaken;
                self.me().keep |= is_overtaken && !self.is_adopting();
                self.me().leaf[h] = 0;
                self.go(Step::UndoLeaf);
            }
        }
    }

    /// Looks for sandboxes above and below, and for processes.
    pub(super) fn look_around(&mut self, h: usize) {
        let (path, inode) = (self.path(), self.me().leaf[h]);
        let is_below = path == LEAF && matches!(self.mark_at(h, PARENT), Some(Mark::Sandbox { .. }));
        let is_above = path == PARENT && self.state.dir(h, LEAF).is_some();
        let is_nested = self.protocol.rules.look_around_after_mark && (is_below || is_above);
        let is_alone = self.state.by_inode(h, inode).is_some_and(|dir| dir.processes.is_empty());
        if is_alone && !is_nested {
            self.go(Step::WriteLimits);
        } else {
            self.go(Step::UndoLeaf);
        }
    }

    /// Writes the limits through the descriptor, which fails if the directory is gone.
    pub(super) fn write_limits(&mut self, h: usize) {
        let inode = self.me().leaf[h];
        let dir = self.state.by_inode(h, inode);
        if let Some(dir) = dir {
            dir.limited = true;
            self.next_hierarchy(h, self.first_of_hierarchy(), Step::WriteReady);
        } else {
            self.go(Step::UndoLeaf);
        }
    }

    pub(super) fn write_ready(&mut self) {
        let (slot, path, creation, adopted) =
            (self.slot(), self.path(), self.me().creation, self.is_adopting());
        let path_bits = u8::try_from(path).unwrap_or(0);
        let (path, ready, removing, kill, making, ancestors) = (path_bits, true, false, false, false, 0);
        let ready = Record { creation, path, ready, removing, kill, adopted, making, ancestors };
        if self.is_repairing() {
            let before = self.state.records[slot];
            self.state.records[slot] = before.map(|record| Record { making: false, ancestors: 0, ..record });
            return self.end(Step::Done);
        }
        self.state.records[slot] = Some(ready);
        for (h, inode) in self.me().leaf.into_iter().enumerate().filter(|_| adopted) {
            if let Some(dir) = self.state.by_inode(h, inode) {
                dir.owner = Owner::Creation(creation);
            }
        }
        self.unlock();
        *self.me() = Actor { creation, ..Actor::at(Step::LockForSpawn) };
    }

    pub(super) fn undo_leaf(&mut self, h: usize) {
        let (rules, path, inode) = (self.protocol.rules, self.path(), self.me().leaf[h]);
        if !rules.undo_own_only && !self.is_adopting() {
            self.kill_all(self.state.processes(h, path));
            self.rmdir(h, path);
        } else if self.is_adopting() && rules.give_back {
            self.take_mark_back(h, inode);
        } else if self.has_inode(h, path, inode) {
            self.rmdir(h, path);
        }
        self.go(Step::UndoAncestor);
    }

    pub(super) fn take_mark_back(&mut self, h: usize, inode: Inode) {
        let mark = self.mark();
        if let Some(dir) = self.state.by_inode(h, inode) {
            dir.mark.take_if(|one| *one == mark);
        }
    }

    pub(super) fn undo_ancestor(&mut self, h: usize) {
        let inode = self.me().ancestor[h];
        let is_removed = if self.protocol.rules.mark_ancestors {
            self.has_inode(h, PARENT, inode)
        } else {
            self.path() == LEAF && !self.is_adopting()
        };
        if is_removed {
            self.rmdir(h, PARENT);
        }
        if h > 0 { self.go_to(Step::UndoLeaf, h - 1) } else { self.go(Step::UndoRecord) }
    }

    pub(super) fn undo_record(&mut self) {
        let (slot, path, keep) = (self.slot(), self.path(), self.me().keep);
        if self.is_repairing() {
            if let Some(record) = self.state.records[slot].as_mut().filter(|_| !keep) {
                (record.making, record.ancestors) = (false, 0);
            }
        } else if !keep && !(0..self.protocol.hierarchies).any(|h| self.is_marked(h, path)) {
            self.state.records[slot] = None;
        }
        self.end(Step::Refused);
    }
}
