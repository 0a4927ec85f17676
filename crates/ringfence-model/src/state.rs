//! The state of the model: directories, records, locks and actors.

/// The hierarchies that a state has room for.
pub const HIERARCHIES: usize = 2;
/// The directory above the leaf, which several sandboxes may share.
pub const PARENT: usize = 0;
/// The leaf of most sandboxes, a child of [`PARENT`].
pub const LEAF: usize = 1;

/// An inode number. 0 stands for none.
pub type Inode = u8;
/// The identity of a creation: the index of the actor that makes it.
pub type Creation = u8;

/// Who may remove a directory, as only the model knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Another manager or the operator.
    Foreign,
    /// A creation made the directory, or adopted it.
    Creation(Creation),
    /// A creation made it, and the operator gave it up with `rm` when it could not be told from a foreign one.
    GivenUp,
}

/// The extended attribute of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    /// Made on the way to a leaf.
    Ancestor,
    /// The directory of a sandbox.
    Sandbox {
        /// The store, or 0 if marks do not tell stores apart.
        store: u8,
        /// The creation, or 0 if marks do not tell creations apart.
        creation: Creation,
    },
}

/// A set of processes: at most one of each creation, and a foreign one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Processes(u8);

impl Processes {
    /// The process of another manager.
    pub const FOREIGN: Self = Self(0x80);

    /// The process of a creation.
    #[must_use]
    pub const fn of(creation: Creation) -> Self {
        Self(1 << creation)
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` are in the set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The processes of both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The processes of this set that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The creations whose process is in the set.
    pub fn creations(self) -> impl Iterator<Item = Creation> {
        (0..7).filter(move |creation| self.contains(Self::of(*creation)))
    }
}

/// A directory in one hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dir {
    /// Its inode number.
    pub inode: Inode,
    /// Whose it is.
    pub owner: Owner,
    /// Its extended attribute.
    pub mark: Option<Mark>,
    /// Whether the sandbox's limits are set.
    pub limited: bool,
    /// The processes in it, without those in directories below.
    pub processes: Processes,
}

/// The record of a sandbox in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::struct_excessive_bools, reason = "facts that change one by one")]
pub struct Record {
    /// The identity of this creation.
    pub creation: Creation,
    /// Where the leaf is: [`PARENT`] or [`LEAF`].
    pub path: u8,
    /// Whether the creation has completed. Phases: Creating (no), Ready (yes), Removing (`removing`).
    pub ready: bool,
    /// Whether a removal has begun.
    pub removing: bool,
    /// Whether the removal may kill.
    pub kill: bool,
    /// Whether the leaf existed before, and `adopt=empty` was given.
    pub adopted: bool,
    /// Whether directories are being made: an unmarked one may be ours.
    pub making: bool,
    /// The ancestors that were missing, a bit for each hierarchy.
    pub ancestors: u8,
}

/// What an actor does next. Each is one system call, and a point at which the actor can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the steps have one match arm each in steps.rs, which says what they do")]
pub enum Step {
    Start,
    // create, adopt, repair
    LookAbove,
    WriteIntent,
    MakeAncestor,
    MarkAncestor,
    MakeLeaf,
    OpenLeaf,
    MarkLeaf,
    LookAround,
    WriteLimits,
    WriteReady,
    UndoLeaf,
    UndoAncestor,
    UndoRecord,
    // spawn
    LockForSpawn,
    OpenForSpawn,
    Attach,
    // remove, gc
    LockNext,
    OpenMarked,
    Kill,
    RemoveDir,
    RmdirLeaf,
    RemoveAncestor,
    RemoveRecord,
    // gc: leftovers
    Search,
    ReadRecords,
    CompareAgain,
    KillLeftover,
    RemoveLeftover,
    // the end
    Done,
    Refused,
    Crashed,
}

/// An actor: its next step and what it keeps in memory, which a crash loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Actor {
    /// What it does next.
    pub step: Step,
    /// The hierarchy in which it does so.
    pub hierarchy: u8,
    /// The record that `gc` or a removal works on; in the search of `gc` the directory.
    pub position: u8,
    /// The leaf that it made or opened in each hierarchy.
    pub leaf: [Inode; HIERARCHIES],
    /// The ancestor that it made in each hierarchy.
    pub ancestor: [Inode; HIERARCHIES],
    /// The creation that it acts for.
    pub creation: Creation,
    /// Whether something was seen that keeps the record, or that keeps `making` in it.
    pub keep: bool,
    /// Which creations had a record when it read all of them.
    pub records: u8,
}

impl Actor {
    /// An actor at a step that remembers nothing.
    #[must_use]
    pub const fn at(step: Step) -> Self {
        Self {
            step,
            hierarchy: 0,
            position: 0,
            leaf: [0; HIERARCHIES],
            ancestor: [0; HIERARCHIES],
            creation: 0,
            keep: false,
            records: 0,
        }
    }

    /// Whether it has ended, by itself or by a crash.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.step, Step::Done | Step::Refused | Step::Crashed)
    }
}

/// Harm that was done. It is kept, so that a property can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Harm {
    /// A process was killed that is not the sandbox's.
    pub killed: bool,
    /// A directory was removed that is not the sandbox's.
    pub removed: bool,
    /// A creation failed because another sandbox removed the ancestors that both need.
    pub refused: bool,
}

/// A state of the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The directories, by hierarchy, [`PARENT`] and [`LEAF`].
    pub dirs: [[Option<Dir>; 2]; HIERARCHIES],
    /// The record of each ID.
    pub records: [Option<Record>; 2],
    /// The actor that holds the lock of each ID.
    pub locks: [Option<u8>; 2],
    /// The actors.
    pub actors: Vec<Actor>,
    /// The processes that have started, in the directories of all hierarchies.
    pub running: Processes,
    /// The actions left to the foreign manager, a bit for each [`Foreign`](crate::Foreign).
    pub foreign: u8,
    /// Harm done.
    pub harm: Harm,
}

impl State {
    /// The directory at a path.
    #[must_use]
    pub fn dir(&self, hierarchy: usize, node: usize) -> Option<&Dir> {
        self.dirs[hierarchy][node].as_ref()
    }

    /// The directory that an open descriptor refers to, unless it was removed.
    pub fn by_inode(&mut self, hierarchy: usize, inode: Inode) -> Option<&mut Dir> {
        self.dirs[hierarchy].iter_mut().flatten().find(|dir| inode != 0 && dir.inode == inode)
    }

    /// An inode number that neither a directory nor a descriptor has, so that states do not differ by numbers alone.
    #[must_use]
    pub fn free_inode(&self) -> Inode {
        let of_dirs = self.dirs.iter().flatten().flatten().map(|dir| dir.inode);
        let of_actors = self.actors.iter().flat_map(|actor| actor.leaf.into_iter().chain(actor.ancestor));
        let used: Vec<Inode> = of_dirs.chain(of_actors).collect();
        (1..).find(|inode| !used.contains(inode)).unwrap_or(Inode::MAX)
    }

    /// Whether rmdir(2) would succeed.
    #[must_use]
    pub fn is_empty(&self, hierarchy: usize, node: usize) -> bool {
        let has_child = node == PARENT && self.dir(hierarchy, LEAF).is_some();
        !has_child && self.dir(hierarchy, node).is_some_and(|dir| dir.processes.is_empty())
    }

    /// The processes in a directory and below it.
    #[must_use]
    pub fn processes(&self, hierarchy: usize, node: usize) -> Processes {
        (node..=LEAF)
            .filter_map(|below| self.dir(hierarchy, below))
            .fold(Processes::default(), |all, dir| all.with(dir.processes))
    }

    /// Takes processes out of every directory: they have ended.
    pub fn end(&mut self, processes: Processes) {
        for dir in self.dirs.iter_mut().flatten().flatten() {
            dir.processes = dir.processes.without(processes);
        }
        self.running = self.running.without(processes);
    }

    /// Makes a directory; whether it did not exist and its parent does.
    pub fn mkdir(&mut self, hierarchy: usize, node: usize, owner: Owner) -> Option<Inode> {
        let has_parent = node == PARENT || self.dir(hierarchy, PARENT).is_some();
        if !has_parent || self.dir(hierarchy, node).is_some() {
            return None;
        }
        let inode = self.free_inode();
        self.dirs[hierarchy][node] =
            Some(Dir { inode, owner, mark: None, limited: false, processes: Processes::default() });
        Some(inode)
    }

    /// The record of a creation.
    #[must_use]
    pub fn record_of(&self, creation: Creation) -> Option<&Record> {
        self.records.iter().flatten().find(|record| record.creation == creation)
    }

    /// Whether a directory is there that the record's creation may have made, and that has no mark.
    #[must_use]
    pub fn is_unclear(&self, record: &Record, hierarchy: usize) -> bool {
        let is_unmarked = |node: usize| self.dir(hierarchy, node).is_some_and(|dir| dir.mark.is_none());
        let names_ancestor = record.ancestors & 1 << hierarchy != 0;
        record.making && is_unmarked(usize::from(record.path)) || names_ancestor && is_unmarked(PARENT)
    }

    /// The operator removes a record whose directories cannot be told from foreign ones, and sees to them.
    pub fn give_up(&mut self, record: &Record) {
        let owner = Owner::Creation(record.creation);
        for hierarchy in 0..HIERARCHIES {
            if self.is_unclear(record, hierarchy) {
                let unmarked = self.dirs[hierarchy].iter_mut().flatten().filter(|dir| dir.mark.is_none());
                unmarked.filter(|dir| dir.owner == owner).for_each(|dir| dir.owner = Owner::GivenUp);
            }
        }
    }
}
