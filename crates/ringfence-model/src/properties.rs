//! What the protocol promises.

use stateright::Property;

use crate::state::{Creation, Dir, Mark, Owner, PARENT, Processes, Record, State, Step};
use crate::{Protocol, Role};

/// The property that no process is killed that is foreign, of another store, or of a sandbox that nobody removes.
pub const NO_FOREIGN_KILL: &str = "kills no process but the sandbox's own";
/// The property that no directory is removed that is foreign, the operator's, or another sandbox's.
pub const NO_FOREIGN_RMDIR: &str = "removes no directory but the sandbox's own";
/// The property that a process runs only inside directories of its sandbox, in every hierarchy.
pub const CONFINED: &str = "runs processes only inside their sandbox in every hierarchy";
/// The property that after a `gc` nothing is without a record, and no record without anything.
pub const ACCOUNTED: &str = "has a record of what a gc leaves, and of nothing else";
/// The property that one of several creations for one path succeeds.
pub const ONE_WINNER: &str = "makes one sandbox at one path";

/// The property that sandboxes which share ancestors do not disturb each other.
pub const UNDISTURBED: &str = "fails no creation because another sandbox is removed";

/// Every property that must hold.
pub const ALWAYS: [&str; 6] =
    [NO_FOREIGN_KILL, NO_FOREIGN_RMDIR, CONFINED, ACCOUNTED, ONE_WINNER, UNDISTURBED];

/// Whether only directories of their sandbox hold the processes that run, in every hierarchy.
fn is_confined(protocol: &Protocol, state: &State) -> bool {
    state.running.creations().all(|creation| {
        (0..protocol.hierarchies).all(|h| {
            let process = Processes::of(creation);
            let is_its = |dir: &Dir| dir.owner == Owner::Creation(creation) && dir.limited;
            state.dirs[h].iter().flatten().any(|dir| is_its(dir) && dir.processes.contains(process))
        })
    })
}

/// Whether one of the creations for a path succeeds, where nothing else happens but that some of them crash.
fn has_one_winner(protocol: &Protocol, state: &State) -> bool {
    if protocol.foreign != 0 || !protocol.roles.iter().all(|role| matches!(role, Role::Create { .. })) {
        return true;
    }
    let winners = state.records.iter().flatten().filter(|record| record.ready).count();
    let is_undisturbed = state.actors.iter().all(|actor| actor.has_ended() && actor.step != Step::Crashed);
    winners <= 1 && (winners == 1 || !is_undisturbed || protocol.is_nested())
}

/// Whether a `gc --kill` of every store, undisturbed, leaves only what has a record. Asked once all actors have ended.
fn is_accounted(protocol: &Protocol, state: &State) -> bool {
    if !state.actors.iter().all(|actor| actor.has_ended()) {
        return true;
    }
    let mut end = state.clone();
    let stores =
        if protocol.stores[0] == protocol.stores[1] { &protocol.stores[..1] } else { &protocol.stores[..] };
    stores.iter().all(|store| protocol.run_gc(&mut end, *store))
        && end.harm == state.harm
        && has_record_of_each_dir(protocol, &end)
        && end.records.iter().flatten().all(|record| names_a_dir(protocol, &end, record))
}

fn has_record_of_each_dir(protocol: &Protocol, state: &State) -> bool {
    let is_recorded = |creation: Creation| state.record_of(creation).is_some();
    (0..protocol.hierarchies).all(|h| {
        (0..state.dirs[h].len()).filter_map(|node| Some((node, state.dir(h, node)?))).all(
            |(node, dir)| match (dir.owner, dir.mark) {
                (Owner::Creation(_), Some(Mark::Ancestor)) => node == PARENT && !state.is_empty(h, node),
                (Owner::Creation(creation), Some(_)) => is_recorded(creation),
                (Owner::Creation(creation), None) => {
                    state.record_of(creation).is_some_and(|record| state.is_unclear(record, h))
                }
                (_, Some(Mark::Sandbox { creation, .. })) => is_recorded(creation),
                (_, Some(Mark::Ancestor)) => false,
                (_, None) => true,
            },
        )
    })
}

fn names_a_dir(protocol: &Protocol, state: &State, record: &Record) -> bool {
    let mark = protocol.mark(protocol.store_of(record.creation), record.creation);
    (0..protocol.hierarchies).any(|h| {
        state.dir(h, usize::from(record.path)).is_some_and(|dir| dir.mark == Some(mark))
            || state.is_unclear(record, h)
    })
}

/// The properties, and states that the checker has to reach, so that a model in which nothing happens does not pass.
pub(crate) fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(NO_FOREIGN_KILL, |_, state: &State| !state.harm.killed),
        Property::always(NO_FOREIGN_RMDIR, |_, state: &State| !state.harm.removed),
        Property::always(CONFINED, is_confined),
        Property::always(ACCOUNTED, is_accounted),
        Property::always(ONE_WINNER, has_one_winner),
        Property::always(UNDISTURBED, |_, state: &State| !state.harm.refused),
        Property::sometimes("a process runs", |_, state: &State| state.running.creations().next().is_some()),
        Property::sometimes("a creator loses", loses),
        Property::sometimes("a creation is undone", |_, state: &State| is_any_at(state, Step::UndoRecord)),
        Property::sometimes("a record is unclear", has_unclear_record),
        Property::sometimes("a sandbox is damaged", has_damaged_sandbox),
        Property::sometimes("a leftover is collected", collects_leftover),
        Property::sometimes("a removal kills", |_, state: &State| is_any_at(state, Step::Kill)),
    ]
}

fn is_any_at(state: &State, step: Step) -> bool {
    state.actors.iter().any(|actor| actor.step == step)
}

fn loses(protocol: &Protocol, state: &State) -> bool {
    let is_creator = |role: &Role| matches!(role, Role::Create { .. });
    let mut creators = state.actors.iter().zip(&protocol.roles).filter(|(_, role)| is_creator(role));
    creators.any(|(actor, _)| actor.step == Step::Refused)
        && state.records.iter().flatten().any(|one| one.ready)
}

fn has_unclear_record(protocol: &Protocol, state: &State) -> bool {
    let is_one = |record: &Record| (0..protocol.hierarchies).any(|h| state.is_unclear(record, h));
    let mut slots = state.records.iter().zip(state.locks);
    slots.any(|(record, lock)| lock.is_none() && record.as_ref().is_some_and(is_one))
}

fn has_damaged_sandbox(protocol: &Protocol, state: &State) -> bool {
    let mut ready = state.records.iter().flatten().filter(|record| record.ready && !record.removing);
    ready.any(|record| {
        let mark = Some(protocol.mark(protocol.store_of(record.creation), record.creation));
        let is_missing = |h| state.dir(h, usize::from(record.path)).is_none_or(|dir| dir.mark != mark);
        let missing = (0..protocol.hierarchies).filter(|h| is_missing(*h)).count();
        (1..protocol.hierarchies).contains(&missing)
    })
}

fn collects_leftover(_: &Protocol, state: &State) -> bool {
    let is_there = |inode| inode != 0 && state.dirs.iter().flatten().flatten().any(|dir| dir.inode == inode);
    let mut collectors = state.actors.iter().filter(|actor| actor.step == Step::RemoveLeftover);
    collectors.any(|actor| actor.leaf.into_iter().any(is_there))
}
