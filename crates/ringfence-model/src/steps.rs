//! What each actor does, one system call at a time.

use crate::state::{Actor, Creation, Dir, Inode, LEAF, Mark, Owner, PARENT, Processes, Record, State, Step};
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

    fn look_above(&mut self, h: usize) {
        match self.mark_at(h, PARENT) {
            Some(Mark::Sandbox { .. }) => self.end(Step::Refused),
            _ => self.next_hierarchy(h, Step::LookAbove, Step::WriteIntent),
        }
    }

    /// Renames the record, which names the ancestors that are missing now, into its place.
    fn write_intent(&mut self, h: usize) {
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

    fn first_of_hierarchy(&self) -> Step {
        if self.is_adopting() { Step::OpenLeaf } else { Step::MakeAncestor }
    }

    fn make_ancestor(&mut self, h: usize) {
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

    fn mark_ancestor(&mut self, h: usize) {
        let inode = self.me().ancestor[h];
        if let Some(dir) = self.state.by_inode(h, inode) {
            dir.mark = Some(dir.mark.unwrap_or(Mark::Ancestor));
        }
        self.go(Step::MakeLeaf);
    }

    fn make_leaf(&mut self, h: usize) {
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

    fn open_leaf(&mut self, h: usize) {
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

    fn mark_leaf(&mut self, h: usize) {
        let (mark, inode, is_exclusive) =
            (self.mark(), self.me().leaf[h], self.protocol.rules.exclusive_mark);
        match self.state.by_inode(h, inode) {
            Some(dir) if dir.mark.is_none() || !is_exclusive => {
                dir.mark = Some(mark);
                self.go(Step::LookAround);
            }
            _ => {
                self.me().leaf[h] = 0;
                self.go(Step::UndoLeaf);
            }
        }
    }

    /// Looks for sandboxes above and below, and for processes.
    fn look_around(&mut self, h: usize) {
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
    fn write_limits(&mut self, h: usize) {
        let inode = self.me().leaf[h];
        let dir = self.state.by_inode(h, inode);
        if let Some(dir) = dir {
            dir.limited = true;
            self.next_hierarchy(h, self.first_of_hierarchy(), Step::WriteReady);
        } else {
            self.go(Step::UndoLeaf);
        }
    }

    fn write_ready(&mut self) {
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

    /// Takes the lock and reads the record: the sandbox is still this one, and complete.
    fn lock_for_spawn(&mut self) -> bool {
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

    fn undo_leaf(&mut self, h: usize) {
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

    fn take_mark_back(&mut self, h: usize, inode: Inode) {
        let mark = self.mark();
        if let Some(dir) = self.state.by_inode(h, inode) {
            dir.mark.take_if(|one| *one == mark);
        }
    }

    fn undo_ancestor(&mut self, h: usize) {
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

    fn undo_record(&mut self) {
        let (slot, path, was_making) = (self.slot(), self.path(), self.me().keep);
        if self.is_repairing() {
            if let Some(record) = self.state.records[slot].as_mut().filter(|_| !was_making) {
                (record.making, record.ancestors) = (false, 0);
            }
        } else if !(0..self.protocol.hierarchies).any(|h| self.is_marked(h, path)) {
            self.state.records[slot] = None;
        }
        self.end(Step::Refused);
    }

    fn open_for_spawn(&mut self, h: usize) {
        let path = self.path();
        if self.protocol.rules.spawn_compares_mark && !self.is_marked(h, path) {
            return self.end(Step::Refused);
        }
        self.me().leaf[h] = self.state.dir(h, path).map_or(0, |dir| dir.inode);
        self.next_hierarchy(h, Step::OpenForSpawn, Step::Attach);
    }

    /// Attaches the process through the descriptor. Without comparing marks it is attached where there is a directory.
    fn attach(&mut self, h: usize) {
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

    /// `gc` takes the next record whose lock is free, and after the last one searches for leftovers.
    fn lock_next(&mut self) {
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

    fn is_gc(&self) -> bool {
        matches!(self.role, Role::Gc { .. })
    }

    /// Opens the directory by its path and compares the mark.
    fn open_marked(&mut self, h: usize) {
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

    fn may_kill(&mut self) -> bool {
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
    fn kill(&mut self, h: usize, then: Step) {
        let inode = self.me().leaf[h];
        if let Some(node) = [LEAF, PARENT].into_iter().find(|node| self.has_inode(h, *node, inode)) {
            self.kill_all(self.state.processes(h, node));
        }
        self.go(then);
    }

    /// Compares the inode of the name, then calls rmdir(2).
    fn remove_dir(&mut self, h: usize) {
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

    fn rmdir_leaf(&mut self, h: usize) {
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

    fn remove_ancestor(&mut self, h: usize) {
        let is_shared = self.mark_at(h, PARENT) == Some(Mark::Ancestor);
        if self.path() == LEAF && (is_shared || !self.protocol.rules.mark_ancestors) {
            self.rmdir(h, PARENT);
        }
        self.next_hierarchy(h, Step::OpenMarked, Step::RemoveRecord);
    }

    fn remove_record(&mut self) {
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

    /// `gc` looks at the next directory: leaf before parent in each hierarchy.
    fn search(&mut self) {
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

    fn search_on(&mut self) {
        let Actor { position, records, .. } = *self.me();
        *self.me() = Actor { position: position + 1, records, ..Actor::at(Step::Search) };
    }

    fn read_records(&mut self) {
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
    fn compare_again(&mut self, h: usize) {
        let (inode, mark) = (self.me().leaf[h], self.mark());
        match self.state.by_inode(h, inode) {
            Some(dir) if dir.mark == Some(mark) => self.go(Step::RemoveLeftover),
            _ => self.search_on(),
        }
    }

    fn remove_leftover(&mut self, h: usize) {
        let inode = self.me().leaf[h];
        let node = [LEAF, PARENT].into_iter().find(|node| self.has_inode(h, *node, inode));
        let Some(node) = node else { return self.search_on() };
        if !self.rmdir(h, node) && self.may_kill() && !self.state.processes(h, node).is_empty() {
            return self.go(Step::KillLeftover);
        }
        self.search_on();
    }
}
