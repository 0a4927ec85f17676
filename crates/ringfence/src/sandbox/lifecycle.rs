//! Making and removing sandboxes that a [`Store`](super::Store) records, so that a crash between any two steps leaves
//! nothing that the record does not name.

use std::time::Duration;

use super::{Entry, LONGEST_UNDO, Phase, Sandbox, SandboxConfig, State};
use crate::cgroup::mark::new_mark;
use crate::cgroup::{Cgroup, Outcome, Remaining};
use crate::error::{Error, ErrorKind, Result, unless_gone};
use crate::host::Host;
use crate::kernel::proc::ProcessIdentity;

impl Phase {
    /// What is wrong with a sandbox in this phase of which nobody holds the lock; `None` for one that is ready.
    pub fn interrupted(self) -> Option<&'static str> {
        match self {
            Self::Creating => Some(
                "its creation was interrupted: `ringfence rm` or `ringfence gc --apply` removes what is left",
            ),
            Self::Removing => Some(
                "its removal was interrupted: `ringfence rm` or `ringfence gc --apply` removes what is left",
            ),
            Self::Ready => None,
        }
    }
}

impl Entry {
    /// Makes the sandbox and records it. The record is written before the first directory is made, and names the mark that
    /// all of its directories will carry. `holder` is the process that answers for the sandbox; without one it stays until
    /// it is removed.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if there is such a sandbox, cgroup or unit; otherwise the setting that failed, or what
    /// could not be recorded. What this call made is removed then; what was there before is left as it was.
    pub fn create(
        &self,
        host: &Host,
        config: &SandboxConfig,
        holder: Option<ProcessIdentity>,
    ) -> Result<Sandbox> {
        if let Some(state) = self.load()? {
            let why = state.phase.interrupted().unwrap_or("there is such a sandbox already");
            return Err(Error::new(ErrorKind::AlreadyExists, why).with_value(self.id()));
        }
        let mut intent = Sandbox::intent(host, config)?;
        intent.holder.clone_from(&holder);
        let identity = self.identity()?;
        intent.mark = Some(new_mark(Some(identity))?);
        if let Some(apart) = &mut intent.apart {
            apart.mark.clone_from(&intent.mark);
        }
        let mut units = intent.units().into_iter();
        let recorded = units.try_for_each(|unit| self.claim_unit(&unit)).and_then(|()| self.save(&intent));
        self.keep_identity(identity);
        // A record that was written all the same may only not be safe from a loss of power.
        recorded.map_err(|error| self.give_up(&intent, error))?;
        let (sandbox, _) = Sandbox::create_as(host, config, intent.clone()).map_err(|error| {
            // All of it was undone. What could not be, still carries the mark, and stays recorded.
            match unless_gone(Sandbox::restore(host, intent.clone())) {
                Ok(None) => self.give_up(&intent, error),
                Ok(Some(left)) => self.undo(&left, error),
                Err(also) => error.with_source(also),
            }
        })?;
        sandbox.set_holder(holder);
        self.save(&sandbox.state()).map_err(|error| self.undo(&sandbox, error))?;
        Ok(sandbox)
    }

    /// Removes the record of a sandbox that could not be made, and returns the error for which it could not.
    fn give_up(&self, intent: &State, error: Error) -> Error {
        // They are claimed before they are recorded.
        self.release_units(&intent.units());
        match self.forget() {
            Ok(()) => error,
            Err(also) => error.with_source(also),
        }
    }

    /// Removes a sandbox in which nothing runs yet; where something was put into it meanwhile, it stays recorded.
    fn undo(&self, sandbox: &Sandbox, error: Error) -> Error {
        match sandbox.destroy(Remaining::Refuse, LONGEST_UNDO) {
            Ok(_) if sandbox.is_gone() || sandbox.held().is_none_or(|held| !held.is_there()) => {
                self.give_up(&sandbox.state(), error)
            }
            Ok(_) => error,
            Err(also) => error.with_source(also),
        }
    }

    /// Removes the sandbox and its record: in every hierarchy, what carries its mark. What has its path and was made by
    /// somebody else is left alone. Nothing is killed in a sandbox whose creation was interrupted: nothing of it runs yet.
    ///
    /// A state directory that cannot be written to keeps nothing from being killed and removed: what could not be recorded
    /// is in the report of the outcome.
    ///
    /// # Errors
    /// Those of [`Sandbox::destroy`]; the record says then that the removal was begun, unless nothing was changed.
    pub fn remove_with(self, sandbox: &Sandbox, remaining: Remaining, timeout: Duration) -> Result<Outcome> {
        let before = sandbox.state();
        // What is refused leaves everything as it was, the record too.
        sandbox.allows_removal(remaining)?;
        self.tell_watchers_of(sandbox);
        // Before it was ready, nothing was started in it: whoever is inside was put there by somebody else.
        let is_new = before.phase == Phase::Creating;
        let remaining = if is_new && remaining == Remaining::Kill { Remaining::Refuse } else { remaining };
        let phase = if is_new { Phase::Creating } else { Phase::Removing };
        let begun = self.save(&State { phase, killing: remaining == Remaining::Kill, ..before.clone() });
        match sandbox.destroy(remaining, timeout) {
            Ok(mut outcome) => {
                remove_unmarked(sandbox.host(), &before, &mut outcome);
                if let Err(error) = self.forget() {
                    outcome.report.add("record", self.id(), error.to_string());
                }
                Ok(outcome)
            }
            Err(error) => {
                // Refused because of live processes: nothing has changed.
                if begun.is_ok() && remaining == Remaining::Refuse && error.kind() == ErrorKind::Busy {
                    self.save(&before)?;
                }
                Err(error)
            }
        }
    }

    /// [`Entry::remove_with`] of what is left of a recorded sandbox: all of it, a part, or the record alone.
    ///
    /// # Errors
    /// Those of [`Entry::remove_with`].
    pub fn remove_recorded(
        self,
        host: &Host,
        state: State,
        remaining: Remaining,
        timeout: Duration,
    ) -> Result<Outcome> {
        if let Some(sandbox) = unless_gone(Sandbox::restore(host, state.clone()))? {
            return self.remove_with(&sandbox, remaining, timeout);
        }
        let mut outcome = Outcome::default();
        remove_unmarked(host, &state, &mut outcome);
        self.forget()?;
        Ok(outcome)
    }
}

/// The report line for a cgroup at the path of a sandbox whose record is removed.
const OF_OTHERS: &str = "left alone: this cgroup was made by somebody else";

/// Removes the directories that an interrupted creation had made and not yet marked. Reports any other cgroup at the path.
fn remove_unmarked(host: &Host, state: &State, outcome: &mut Outcome) {
    for state in std::iter::once(state).chain(state.apart.as_deref()).filter(|state| !state.cgroup.is_empty())
    {
        if state.path.is_systemd() {
            continue;
        }
        if state.phase == Phase::Creating {
            outcome.extend(Cgroup::remove_unfinished(host, &state.cgroup));
        }
        if Cgroup::open_at(host, &state.cgroup).is_ok() {
            outcome.report.add("cgroup", format!("/{}", state.cgroup), OF_OTHERS);
        }
    }
}
