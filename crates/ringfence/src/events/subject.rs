//! One sandbox that is watched: its cgroup, that of a separate overhead, and what is to be told of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::counts::{Counts, LastCounts};
use super::place::{Found, Kit, Place};
use super::trigger::PressureTrigger;
use super::{Event, What, now_us};
use crate::error::Result;
use crate::host::Host;
use crate::kernel::proc::ProcessIdentity;
use crate::sandbox::State;

#[derive(Debug)]
pub(super) struct Subject {
    pub(super) key: u32,
    pub(super) id: Arc<str>,
    pub(super) host: Arc<Host>,
    places: Vec<Place>,
    pub(super) triggers: Vec<PressureTrigger>,
    /// Nobody else says that it is removed.
    pub(super) ends_with_cgroup: bool,
    /// There was something to see of it.
    pub(super) was_there: bool,
    /// What was heard of it where there is no place to look at.
    heard: Vec<LastCounts>,
    /// A process that answers for it.
    holder: Option<ProcessIdentity>,
    /// A scope of it has ended since that was told, and nobody has read what it had counted.
    vanished: bool,
    pub(super) was_killed: bool,
    grown: Counts,
    populated: bool,
    frozen: bool,
}

impl Subject {
    pub(super) fn new(key: u32, name: &str, host: &Arc<Host>, state: &State, kit: &mut Kit) -> Result<Self> {
        let mut subject = Self::unseen(key, name, host);
        subject.holder = state.holder.clone();
        for state in [Some(state), state.apart.as_deref()].into_iter().flatten() {
            if state.cgroup.is_empty() {
                continue;
            }
            let is_scope = state.path.as_systemd().is_some_and(|unit| !unit.is_slice());
            match Place::new(key, host, &state.cgroup, is_scope, kit) {
                Ok(place) => subject.places.push(place),
                Err(error) => {
                    subject.close(kit);
                    return Err(error);
                }
            }
        }
        Ok(subject)
    }

    /// One of which nothing is known but its name.
    pub(super) fn unseen(key: u32, name: &str, host: &Arc<Host>) -> Self {
        Self {
            key,
            id: name.into(),
            host: Arc::clone(host),
            places: Vec::new(),
            triggers: Vec::new(),
            ends_with_cgroup: false,
            was_there: false,
            heard: Vec::new(),
            holder: None,
            vanished: false,
            was_killed: false,
            grown: Counts::default(),
            populated: false,
            frozen: false,
        }
    }

    /// Takes what is there as the beginning: only what changes from now on is told.
    pub(super) fn begin(&mut self, kit: &mut Kit) -> Result<()> {
        self.places.iter_mut().try_for_each(|place| place.begin(kit))?;
        self.was_there = true;
        (self.populated, self.frozen) = self.now();
        Ok(())
    }

    pub(super) fn add_pressure(&mut self, trigger: &PressureTrigger, kit: &mut Kit) -> Result<()> {
        trigger.check(&self.host)?;
        let position = self.triggers.len();
        self.places.iter_mut().try_for_each(|place| place.arm(position, trigger, kit))?;
        self.triggers.push(*trigger);
        Ok(())
    }

    pub(super) fn is_there(&self) -> bool {
        self.places.iter().any(Place::is_there)
    }

    /// Populated is one of both, frozen are all that there are.
    fn now(&self) -> (bool, bool) {
        let there = || self.places.iter().filter(|place| place.is_there());
        let populated = there().any(Place::is_populated);
        (populated, self.is_there() && there().all(Place::is_frozen))
    }

    pub(super) fn again(&self) -> Option<Instant> {
        self.places.iter().filter_map(|place| place.again).min()
    }

    /// The slices that count with it.
    pub(super) fn slices(&self) -> impl Iterator<Item = (usize, &str)> {
        self.places.iter().filter_map(Place::slice)
    }

    pub(super) fn is_in(&self, slice: &str) -> bool {
        self.slices().any(|(_, path)| path == slice)
    }

    /// Reads everything: the kills that are new, and whether a scope has ended.
    pub(super) fn look(&mut self, kit: &mut Kit) -> Result<(u64, bool)> {
        let mut grown = Counts::default();
        let mut looked = Ok(());
        for place in &mut self.places {
            match place.look(&self.triggers, kit, &mut grown) {
                Ok(found) => {
                    self.was_there |= found != Found::Nothing;
                    self.vanished |= found == Found::Lost && !is_supervised(&self.holder);
                }
                Err(error) => looked = Err(error),
            }
        }
        self.grown.add(&grown);
        looked.map(|()| (grown.oom_kill.unwrap_or(0), self.vanished))
    }

    /// Takes in what was read last by whoever removes it: the kills that are new.
    pub(super) fn hear(&mut self, last: &LastCounts) -> u64 {
        self.was_there = true;
        let mut grown = Counts::default();
        if !self.places.iter_mut().any(|place| place.hear(last, &mut grown)) {
            match self.places.first_mut() {
                Some(place) => place.hear_of(last, &mut grown),
                None => {
                    let known = self.heard.iter_mut().find(|known| known.instance == last.instance);
                    match known {
                        Some(known) => grown = known.counts.advance(&last.counts),
                        None => {
                            self.heard.push(*last);
                            grown = Counts::default().advance(&last.counts);
                        }
                    }
                }
            }
        }
        self.grown.add(&grown);
        grown.oom_kill.unwrap_or(0)
    }

    /// Its scope has ended, this one, whether it was seen or not, and the process that was waited for was killed.
    pub(super) fn has_ended(&mut self, instance: Option<u64>, was_killed: bool) {
        self.was_killed = was_killed;
        if let Some((place, instance)) = self.places.iter_mut().find(|place| place.is_scope).zip(instance) {
            self.vanished |= place.was_missed(instance);
        }
    }

    /// Whether one that its slice has counted may have been killed in it.
    pub(super) fn may_lack_a_kill(&self) -> bool {
        self.vanished && self.places.iter().any(|place| place.may_lack_a_kill(self.was_killed))
    }

    /// What it lacks is known.
    pub(super) fn is_settled(&mut self) {
        self.vanished = false;
    }

    /// One was killed in the scope that has ended.
    pub(super) fn credit(&mut self) {
        let was_killed = self.was_killed;
        if let Some(place) = self.places.iter_mut().find(|place| place.may_lack_a_kill(was_killed)) {
            place.credit(1);
            self.grown.add(&Counts { oom_kill: Some(1), ..Counts::default() });
        }
    }

    pub(super) fn last(&self) -> impl Iterator<Item = LastCounts> {
        self.places.iter().flat_map(Place::last).chain(self.heard.iter().copied())
    }

    /// Tells what has changed since this was told.
    pub(super) fn tell(&mut self, queue: &mut VecDeque<Result<Event>>) {
        let (populated, frozen) = self.now();
        if populated && !self.populated {
            self.say(What::Populated, queue);
        }
        let grown = std::mem::take(&mut self.grown);
        grown.as_events().for_each(|what| self.say(what, queue));
        if frozen != self.frozen {
            self.say(if frozen { What::Frozen } else { What::Thawed }, queue);
        }
        if self.populated && !populated {
            self.say(What::Empty, queue);
        }
        (self.populated, self.frozen) = (populated, frozen);
    }

    pub(super) fn say(&self, what: What, queue: &mut VecDeque<Result<Event>>) {
        queue.push_back(Ok(Event { at_us: now_us(), id: Arc::clone(&self.id), what }));
    }

    /// Ends all watches.
    pub(super) fn close(&mut self, kit: &mut Kit) {
        self.places.iter_mut().for_each(|place| place.close(kit));
    }
}

/// Whether another process will say what was counted: a `run` that waits for its command.
fn is_supervised(holder: &Option<ProcessIdentity>) -> bool {
    holder.as_ref().is_some_and(|holder| holder.pid != std::process::id() && holder.is_alive())
}
