//! `gc`: the records, then the search for leftovers.

use super::Turn;
use crate::state::{Actor, LEAF, Mark, PARENT, Record, Step};

impl Turn<'_> {
    /// `gc` takes the next record whose lock is free, and after the last one searches for leftovers.
    pub(super) fn lock_next(&mut self) {
        let (store, first) = (self.store(), usize::from(self.me().position));
        let stores = self.protocol.stores;
        let is_free = |slot: &usize| {
            stores[*slot] == store && self.state.locks[*slot].is_none() && self.state.records[*slot].is_some()
        };
        let slot = (first..stores.len()).find(is_free);
        let records = self.me().records;
        *self.me() = Actor { records, ..Actor::at(Step::Search) };
        if let Some((slot, record)) = slot.and_then(|slot| Some((slot, self.state.records[slot]?))) {
            self.lock(slot);
            self.me().position = u8::try_from(slot).unwrap_or(0);
            self.me().creation = record.creation;
            self.go(Step::OpenMarked);
        }
    }

    /// `gc` looks at the next directory: leaf before parent in each hierarchy.
    pub(super) fn search(&mut self) {
        let position = usize::from(self.me().position);
        let (h, node) = (position / 2, if position.is_multiple_of(2) { LEAF } else { PARENT });
        if h >= self.protocol.hierarchies {
            return self.end(Step::Done);
        }
        let store = self.protocol.marked_store(self.store());
        match self.state.dir(h, node).map(|dir| (dir.inode, dir.mark)) {
            Some((inode, Some(Mark::Sandbox { store: marked, creation }))) if marked == store => {
                self.me().creation = creation;
                self.me().leaf[h] = inode;
                self.go_to(Step::ReadRecords, h);
            }
            Some((_, Some(Mark::Ancestor))) if self.protocol.rules.gc_collects_ancestors => {
                self.rmdir(h, node);
                self.search_on();
            }
            _ => self.search_on(),
        }
    }

    pub(super) fn search_on(&mut self) {
        let Actor { position, records, .. } = *self.me();
        *self.me() = Actor { position: position + 1, records, ..Actor::at(Step::Search) };
    }

    pub(super) fn read_records(&mut self) {
        let (rules, store, Actor { creation, position, records, .. }) =
            (self.protocol.rules, self.store(), *self.me());
        let path = if position.is_multiple_of(2) { LEAF } else { PARENT };
        let is_recorded = self.state.records.iter().zip(self.protocol.stores).any(|(record, of)| {
            let is_its = |record: &Record| match rules.creation_identity {
                true => record.creation == creation,
                false => usize::from(record.path) == path,
            };
            of == store && record.as_ref().is_some_and(is_its)
        });
        let was_recorded = records & 1 << creation != 0;
        if if rules.records_after_search { is_recorded } else { was_recorded } {
            self.search_on();
        } else {
            let compares = rules.leftover_compares_again;
            self.go(if compares { Step::CompareAgain } else { Step::RemoveLeftover });
        }
    }

    /// An adoption that did not complete takes back its mark before its record goes: with the mark, the directory is ours.
    pub(super) fn compare_again(&mut self, h: usize) {
        let (inode, mark) = (self.me().leaf[h], self.mark());
        match self.state.by_inode(h, inode) {
            Some(dir) if dir.mark == Some(mark) => self.go(Step::RemoveLeftover),
            _ => self.search_on(),
        }
    }

    pub(super) fn remove_leftover(&mut self, h: usize) {
        let inode = self.me().leaf[h];
        let node = [LEAF, PARENT].into_iter().find(|node| self.has_inode(h, *node, inode));
        let Some(node) = node else { return self.search_on() };
        if !self.rmdir(h, node) && self.may_kill() && !self.state.processes(h, node).is_empty() {
            return self.go(Step::KillLeftover);
        }
        self.search_on();
    }
}
