//! What each actor does, one system call at a time.

mod create;
mod gc;
mod remove;
mod spawn;

use crate::state::{Actor, Creation, Dir, Inode, LEAF, Mark, Owner, Processes, Record, State, Step};
use crate::{Protocol, Role};

/// One step of one actor: the state that it changes, and who it is.
pub(crate) struct Turn<'a> {
    pub protocol: &'a Protocol,
    pub state: &'a mut State,
    pub actor: usize,
    pub role: Role,
}

impl Turn<'_> {
    /// Carries out the actor's next step. `false` if it waits for a lock.
    pub fn take(&mut self) -> bool {
        let h = usize::from(self.me().hierarchy);
        match self.me().step {
            Step::Start => return self.start(),
            Step::LookAbove => self.look_above(h),
            Step::WriteIntent => self.write_intent(h),
            Step::MakeAncestor => self.make_ancestor(h),
            Step::MarkAncestor => self.mark_ancestor(h),
            Step::MakeLeaf => self.make_leaf(h),
            Step::OpenLeaf => self.open_leaf(h),
            Step::MarkLeaf => self.mark_leaf(h),
            Step::LookAround => self.look_around(h),
            Step::WriteLimits => self.write_limits(h),
            Step::WriteReady => self.write_ready(),
            Step::UndoLeaf => self.undo_leaf(h),
            Step::UndoAncestor => self.undo_ancestor(h),
            Step::UndoRecord => self.undo_record(),
            Step::LockForSpawn => return self.lock_for_spawn(),
            Step::OpenForSpawn => self.open_for_spawn(h),
            Step::Attach => self.attach(h),
            Step::LockNext => self.lock_next(),
            Step::OpenMarked => self.open_marked(h),
            Step::Kill => self.kill(h, Step::RemoveDir),
            Step::RemoveDir => self.remove_dir(h),
            Step::RmdirLeaf => self.rmdir_leaf(h),
            Step::RemoveAncestor => self.remove_ancestor(h),
            Step::RemoveRecord => self.remove_record(),
            Step::Search => self.search(),
            Step::ReadRecords => self.read_records(),
            Step::CompareAgain => self.compare_again(h),
            Step::KillLeftover => self.kill(h, Step::RemoveLeftover),
            Step::RemoveLeftover => self.remove_leftover(h),
            Step::Done | Step::Refused | Step::Crashed => return false,
        }
        true
    }

    fn me(&mut self) -> &mut Actor {
        &mut self.state.actors[self.actor]
    }

    fn go(&mut self, step: Step) {
        self.me().step = step;
    }

    fn go_to(&mut self, step: Step, hierarchy: usize) {
        self.me().step = step;
        self.me().hierarchy = u8::try_from(hierarchy).unwrap_or(0);
    }

    /// `step` in the next hierarchy, `then` after the last.
    fn next_hierarchy(&mut self, h: usize, step: Step, then: Step) {
        if h + 1 < self.protocol.hierarchies { self.go_to(step, h + 1) } else { self.go_to(then, 0) }
    }

    /// Ends, forgetting everything, and gives locks back.
    fn end(&mut self, step: Step) {
        *self.me() = Actor::at(step);
        self.unlock();
    }

    fn unlock(&mut self) {
        for lock in &mut self.state.locks {
            lock.take_if(|holder| usize::from(*holder) == self.actor);
        }
    }

    fn lock(&mut self, slot: usize) {
        self.state.locks[slot] = u8::try_from(self.actor).ok();
    }

    /// The record that the actor works on.
    fn slot(&mut self) -> usize {
        match self.role {
            Role::Create { slot, .. } | Role::Repair { slot } | Role::Remove { slot, .. } => slot,
            Role::Gc { .. } => usize::from(self.me().position),
        }
    }

    fn store(&mut self) -> u8 {
        if let Role::Gc { store, .. } = self.role { store } else { self.protocol.stores[self.slot()] }
    }

    fn record(&mut self) -> Option<Record> {
        let slot = self.slot();
        self.state.records[slot]
    }

    /// The path that the actor works on.
    fn path(&mut self) -> usize {
        if let Role::Create { path, .. } = self.role {
            return path;
        }
        self.record().map_or(LEAF, |record| usize::from(record.path))
    }

    fn is_adopting(&self) -> bool {
        matches!(self.role, Role::Create { adopt: true, .. })
    }

    fn is_creating(&self) -> bool {
        matches!(self.role, Role::Create { .. })
    }

    fn is_repairing(&self) -> bool {
        matches!(self.role, Role::Repair { .. })
    }

    /// The mark of the sandbox that the actor works for.
    fn mark(&mut self) -> Mark {
        let (store, creation) = (self.store(), self.me().creation);
        self.protocol.mark(store, creation)
    }

    fn is_marked(&mut self, h: usize, node: usize) -> bool {
        let mark = self.mark();
        self.state.dir(h, node).is_some_and(|dir| dir.mark == Some(mark))
    }

    fn mark_at(&self, h: usize, node: usize) -> Option<Mark> {
        self.state.dir(h, node).and_then(|dir| dir.mark)
    }

    fn has_inode(&self, h: usize, node: usize, inode: Inode) -> bool {
        inode != 0 && self.state.dir(h, node).is_some_and(|dir| dir.inode == inode)
    }

    /// rmdir(2) of an empty directory. Harm is that it was neither the sandbox's nor an empty ancestor.
    fn rmdir(&mut self, h: usize, node: usize) -> bool {
        if !self.state.is_empty(h, node) {
            return false;
        }
        let Some(Dir { owner, mark, .. }) = self.state.dirs[h][node].take() else { return false };
        let is_harm = match owner {
            Owner::Foreign => true,
            Owner::GivenUp => false,
            Owner::Creation(_) if mark == Some(Mark::Ancestor) => false,
            Owner::Creation(creation) => self.is_in_use(creation, false),
        };
        self.state.harm.removed |= is_harm;
        true
    }

    /// Kills processes. Harm is that one was foreign, another store's, or one of a sandbox that nobody removes.
    fn kill_all(&mut self, processes: Processes) {
        let is_harm = processes.contains(Processes::FOREIGN)
            || processes.creations().any(|one| self.is_in_use(one, true));
        self.state.harm.killed |= is_harm;
        self.state.end(processes);
    }

    /// Whether a creation is not this actor's to take away: another store's, ready, or not complete and its maker lives.
    fn is_in_use(&mut self, creation: Creation, by_kill: bool) -> bool {
        let is_mine = (self.is_repairing() || self.is_creating()) && self.me().creation == creation;
        let is_made = self.state.actors.get(usize::from(creation)).is_some_and(|maker| !maker.has_ended());
        let is_kept =
            |record: &Record| !(record.removing && (record.kill || !by_kill)) && (record.ready || is_made);
        let foreign_store = self.protocol.store_of(creation) != self.store();
        !is_mine && (foreign_store || self.state.record_of(creation).is_some_and(is_kept))
    }

    fn start(&mut self) -> bool {
        let Role::Gc { .. } = self.role else { return self.start_on(self.protocol.slot_of(self.role)) };
        if !self.protocol.rules.records_after_search {
            let creations = self.state.records.iter().flatten().map(|record| 1 << record.creation);
            self.me().records = creations.fold(0, |all, one| all | one);
        }
        self.lock_next();
        true
    }

    fn start_on(&mut self, slot: usize) -> bool {
        if self.state.locks[slot].is_some() {
            return false;
        }
        self.lock(slot);
        let rules = self.protocol.rules;
        match (self.role, self.state.records[slot]) {
            (Role::Create { path, .. }, None) => {
                self.me().creation = u8::try_from(self.actor).unwrap_or(0);
                let looks_above = !rules.look_around_after_mark && path == LEAF;
                self.go_to(if looks_above { Step::LookAbove } else { Step::WriteIntent }, 0);
            }
            (Role::Repair { .. }, Some(record)) if record.ready && !record.removing => {
                self.me().creation = record.creation;
                self.me().keep = record.making;
                self.go_to(Step::WriteIntent, 0);
            }
            (Role::Remove { kill, .. }, Some(record)) => {
                self.me().creation = record.creation;
                let facts = if rules.removal_keeps_facts {
                    record
                } else {
                    Record { ready: true, making: false, ancestors: 0, ..record }
                };
                self.state.records[slot] = Some(Record { removing: true, kill, ..facts });
                self.go_to(Step::OpenMarked, 0);
            }
            (Role::Remove { .. }, None) => self.end(Step::Done),
            _ => self.end(Step::Refused),
        }
        true
    }

    fn is_gc(&self) -> bool {
        matches!(self.role, Role::Gc { .. })
    }
}
