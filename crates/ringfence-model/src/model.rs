//! A model of who owns which cgroup, for the model checker [`stateright`].
//!
//! The protocol is described in `docs/protocol.md`. Here it is a state machine: creators, removals, `gc`, `repair` and a
//! foreign manager take steps of one system call each, in every order, and each can be killed before each of its steps.
//! `cargo test -p ringfence-model` checks that the properties hold in every reachable state, and that the checker
//! finds a violation as soon as one of the [`Rules`] is switched off.

#![forbid(unsafe_code)]
#![allow(
    clippy::indexing_slicing,
    reason = "arrays of a fixed size, with indices that the model itself makes"
)]

mod properties;
mod rules;
mod state;
mod steps;
#[cfg(test)]
mod tests;

pub use properties::{
    ACCOUNTED, ALWAYS, CONFINED, NO_FOREIGN_KILL, NO_FOREIGN_RMDIR, ONE_WINNER, UNDISTURBED,
};
pub use rules::Rules;
pub use state::{
    Actor, Creation, Dir, HIERARCHIES, Harm, Inode, LEAF, Mark, Owner, PARENT, Processes, Record, State, Step,
};
use stateright::{Model, Property};
use steps::Turn;

/// The role of an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Creates a sandbox, then spawns a process into it.
    Create {
        /// The ID, an index into [`Protocol::stores`].
        slot: usize,
        /// [`LEAF`] or [`PARENT`].
        path: usize,
        /// `adopt=empty`: the leaf exists.
        adopt: bool,
    },
    /// Makes missing directories of a sandbox anew.
    Repair {
        /// The ID.
        slot: usize,
    },
    /// Removes a sandbox.
    Remove {
        /// The ID.
        slot: usize,
        /// `--kill`.
        kill: bool,
    },
    /// Removes what crashes have left.
    Gc {
        /// The store.
        store: u8,
        /// `--kill`.
        kill: bool,
    },
}

/// An action of the foreign manager, of systemd or of the operator behind Ringfence's back; each occurs at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// Makes the parent.
    MakeParent,
    /// Makes the leaf.
    MakeLeaf,
    /// Puts a process into the leaf that it made.
    Populate,
    /// Its process ends.
    Leave,
    /// Removes the leaf if it is empty, as systemd does on v1, whoever made it.
    RemoveLeaf,
    /// Removes the parent if it is empty, whoever made it.
    RemoveParent,
    /// Loses the record of the first ID.
    LoseRecord,
}

impl Foreign {
    /// Everything that the foreign manager can do.
    pub const ALL: [Self; 7] = [
        Self::MakeParent,
        Self::MakeLeaf,
        Self::Populate,
        Self::Leave,
        Self::RemoveLeaf,
        Self::RemoveParent,
        Self::LoseRecord,
    ];

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// An actor takes its next step.
    Step(usize),
    /// An actor is killed.
    Crash(usize),
    /// The foreign manager acts in a hierarchy.
    Foreign(Foreign, usize),
}

/// A host, the rules, and the actors: what the checker explores.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// The rules.
    pub rules: Rules,
    /// How many hierarchies there are, at most [`HIERARCHIES`].
    pub hierarchies: usize,
    /// The store of each ID.
    pub stores: [u8; 2],
    /// The actors.
    pub roles: Vec<Role>,
    /// The actions allowed to the foreign manager, a bit for each.
    pub foreign: u8,
    /// Whether another manager has made the leaf, in every hierarchy. Otherwise the checker begins with two states: the
    /// operator has made the parent, or not.
    pub has_leaf: bool,
}

impl Protocol {
    /// A host with one hierarchy where nobody else interferes, and two stores with one ID each.
    #[must_use]
    pub fn new(rules: Rules, roles: &[Role]) -> Self {
        let roles = roles.to_vec();
        Self { rules, hierarchies: 1, stores: [0, 1], roles, foreign: 0, has_leaf: false }
    }

    /// Lets the foreign manager act.
    #[must_use]
    pub fn foreign(mut self, foreign: &[Foreign]) -> Self {
        self.foreign = foreign.iter().fold(0, |all, one| all | one.bit());
        self
    }

    pub(crate) fn slot_of(&self, role: Role) -> usize {
        match role {
            Role::Create { slot, .. } | Role::Repair { slot } | Role::Remove { slot, .. } => slot,
            Role::Gc { .. } => 0,
        }
    }

    pub(crate) fn store_of(&self, creation: Creation) -> u8 {
        self.roles.get(usize::from(creation)).map_or(0, |role| self.stores[self.slot_of(*role)])
    }

    pub(crate) fn is_nested(&self) -> bool {
        self.roles.iter().any(|role| matches!(role, Role::Create { path: PARENT, .. }))
    }

    fn adopts(&self) -> bool {
        self.roles.iter().any(|role| matches!(role, Role::Create { adopt: true, .. }))
    }

    /// The store that a mark names.
    pub(crate) fn marked_store(&self, store: u8) -> u8 {
        if self.rules.store_identity { store } else { 0 }
    }

    pub(crate) fn mark(&self, store: u8, creation: Creation) -> Mark {
        let creation = if self.rules.creation_identity { creation } else { 0 };
        Mark::Sandbox { store: self.marked_store(store), creation }
    }

    /// Runs `gc --kill` of a store to its end. `false` if it does not end.
    pub(crate) fn run_gc(&self, state: &mut State, store: u8) -> bool {
        const STEPS: usize = 100;
        let actor = state.actors.len();
        state.actors.push(Actor::at(Step::Start));
        let role = Role::Gc { store, kill: true };
        let has_ended = (0..STEPS).any(|_| !Turn { protocol: self, state, actor, role }.take());
        state.actors.truncate(actor);
        has_ended
    }

    fn act(&self, state: &mut State, what: Foreign, h: usize) -> bool {
        if state.foreign & what.bit() == 0 {
            return false;
        }
        state.foreign &= !what.bit();
        match what {
            Foreign::MakeParent => state.mkdir(h, PARENT, Owner::Foreign).is_some(),
            Foreign::MakeLeaf => state.mkdir(h, LEAF, Owner::Foreign).is_some(),
            Foreign::Populate => match &mut state.dirs[h][LEAF] {
                // Who hands a directory over puts nothing into it once it is marked.
                Some(dir) if dir.owner == Owner::Foreign && !(self.adopts() && dir.mark.is_some()) => {
                    dir.processes = dir.processes.with(Processes::FOREIGN);
                    true
                }
                _ => false,
            },
            Foreign::Leave => {
                let is_there = state.processes(h, LEAF).contains(Processes::FOREIGN);
                state.end(Processes::FOREIGN);
                is_there
            }
            Foreign::RemoveLeaf => state.is_empty(h, LEAF) && state.dirs[h][LEAF].take().is_some(),
            Foreign::RemoveParent => state.is_empty(h, PARENT) && state.dirs[h][PARENT].take().is_some(),
            Foreign::LoseRecord if h > 0 || state.locks[0].is_some() => false,
            Foreign::LoseRecord => {
                let record = state.records[0].take();
                record.inspect(|record| state.give_up(record)).is_some()
            }
        }
    }

    /// Kills an actor. The kernel releases its locks; a process that it had not started yet ends with it.
    fn crash(&self, state: &mut State, actor: usize) {
        let Actor { step, creation, .. } = state.actors[actor];
        if step == Step::Attach {
            state.end(Processes::of(creation));
        }
        state.actors[actor] = Actor::at(Step::Crashed);
        for lock in &mut state.locks {
            lock.take_if(|holder| usize::from(*holder) == actor);
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let without = State {
            dirs: [[None; 2]; HIERARCHIES],
            records: [None; 2],
            locks: [None; 2],
            actors: vec![Actor::at(Step::Start); self.roles.len()],
            running: Processes::default(),
            foreign: self.foreign,
            harm: Harm::default(),
        };
        let mut with_parent = without.clone();
        for h in 0..self.hierarchies {
            with_parent.mkdir(h, PARENT, Owner::Foreign);
            if self.has_leaf {
                with_parent.mkdir(h, LEAF, Owner::Foreign);
            }
        }
        if self.has_leaf { vec![with_parent] } else { vec![without, with_parent] }
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, actor) in state.actors.iter().enumerate().filter(|(_, actor)| !actor.has_ended()) {
            actions.push(Action::Step(index));
            if actor.step != Step::Start {
                actions.push(Action::Crash(index));
            }
        }
        let possible = Foreign::ALL.into_iter().filter(|one| state.foreign & one.bit() != 0);
        actions.extend(possible.flat_map(|one| (0..self.hierarchies).map(move |h| Action::Foreign(one, h))));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        match action {
            Action::Step(actor) => {
                let role = self.roles[actor];
                Turn { protocol: self, state: &mut next, actor, role }.take().then_some(next)
            }
            Action::Crash(actor) => {
                self.crash(&mut next, actor);
                Some(next)
            }
            Action::Foreign(what, h) => self.act(&mut next, what, h).then_some(next),
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}
