//! One sandbox that is watched: its cgroup, that of a separate overhead, and what is to be told of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::counts::{Counts, LastCounts, Tally};
use super::event::{Event, What, now_us};
use super::place::{Kit, Place};
use super::trigger::PressureTrigger;
use crate::error::Result;
use crate::host::Host;
use crate::sandbox::State;

#[derive(Debug)]
pub(super) struct Subject {
    pub(super) key: u32,
    pub(super) id: Arc<str>,
    host: Arc<Host>,
    places: Vec<Place>,
    pub(super) triggers: Vec<PressureTrigger>,
    /// Nobody else says that it is removed.
    pub(super) ends_with_cgroup: bool,
    /// What listens to the sandbox lives as long as this.
    pub(super) lifetime: Option<Arc<()>>,
    /// There was something to see of it.
    pub(super) was_there: bool,
    tally: Tally,
    populated: bool,
    frozen: bool,
}

impl Subject {
    pub(super) fn new(key: u32, name: &str, host: &Arc<Host>, state: &State, kit: &mut Kit) -> Result<Self> {
        let mut subject = Self::unseen(key, name, host);
        for state in [Some(state), state.apart.as_deref()].into_iter().flatten() {
            if state.cgroup.is_empty() {
                continue;
            }
            match Place::new(key, host, &state.cgroup, kit) {
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
            lifetime: None,
            was_there: false,
            tally: Tally::default(),
            populated: false,
            frozen: false,
        }
    }

    /// Whether there are places to look at.
    pub(super) fn is_seen(&self) -> bool {
        !self.places.is_empty()
    }

    /// Is in the place of one that was only heard of.
    pub(super) fn take_over(&mut self, heard: Self) {
        (self.was_there, self.tally) = (heard.was_there, heard.tally);
    }

    /// Takes what is there as the beginning: only what changes from now on is told.
    pub(super) fn begin(&mut self, kit: &mut Kit) -> Result<()> {
        self.places.iter_mut().try_for_each(|place| place.begin(kit, &mut self.tally))?;
        self.tally.grown = Counts::default();
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

    /// Reads everything.
    pub(super) fn look(&mut self, kit: &mut Kit) -> Result<()> {
        let mut looked = Ok(());
        for place in &mut self.places {
            let found = place.look(&self.triggers, kit, &mut self.tally);
            self.was_there |= place.is_there();
            looked = looked.and(found);
        }
        looked
    }

    /// Takes in what was read last by whoever removes it.
    pub(super) fn hear(&mut self, last: &LastCounts) {
        self.was_there = true;
        self.tally.count(last);
    }

    /// Tells what has changed since this was told.
    pub(super) fn tell(&mut self, queue: &mut VecDeque<Result<Event>>) {
        let (populated, frozen) = self.now();
        if populated && !self.populated {
            self.say(What::Populated, queue);
        }
        let grown = std::mem::take(&mut self.tally.grown);
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
