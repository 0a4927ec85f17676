//! The overhead in a cgroup of its own elsewhere: what is done to the sandbox is done to both.

mod threads;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::begun::Ahead;
use super::change::{ChangeOptions, Changed};
use super::{
    LONGEST_UNDO, Overhead, Part, Sandbox, SandboxConfig, State, Status, gone, joined, open_leftover,
};
use crate::cgroup::{Cgroup, Failures, Outcome, Remaining, signal_all};
use crate::error::{Error, Result};
use crate::events::LastWord;
use crate::host::{Host, Version};
use crate::plan::{self, Plan};
use crate::report::Report;
use crate::resources::Resources;
use crate::systemd::limit_systemd;

/// Said of v2, where it is planned and where threads are placed.
const ONE_DOMAIN: &str = "on cgroup v2 the threads of a process cannot be in different domains: the VMM stays inside with all its \
                          threads and their limits, and its helper processes are outside";

/// The separate overhead of a sandbox that is being made.
pub(super) struct Second<'a> {
    host: &'a Host,
    config: Option<Box<SandboxConfig>>,
    state: Option<Box<State>>,
    pub(super) made: Option<Box<Sandbox>>,
}

impl<'a> Second<'a> {
    pub(super) fn of(host: &'a Host, config: &SandboxConfig, state: Option<Box<State>>) -> Self {
        let config = state
            .as_ref()
            .and_then(|_| config.overhead_at().ok())
            .and_then(|overhead| config.apart(&overhead));
        Self { host, config, state, made: None }
    }

    /// Makes it, if there is to be one, and it is not made yet.
    pub(super) fn make(&mut self) -> Result<()> {
        if let (Some(config), Some(state), None) = (&self.config, &self.state, &self.made) {
            let state = State::clone(state);
            let (made, _) = Sandbox::create_as(self.host, config, state).map_err(about_overhead)?;
            self.made = Some(Box::new(made));
        }
        Ok(())
    }

    /// Takes it away again: nothing runs inside.
    pub(super) fn unmake(&mut self) {
        if let Some(made) = self.made.take() {
            _ = made.destroy(Remaining::Refuse, LONGEST_UNDO);
        }
    }
}

/// Says of an error which of the two cgroups it is about.
fn about_overhead(error: Error) -> Error {
    let why = format!("the separate overhead: {}", error.message());
    let error = if error.setting().is_some() { error } else { error.with_setting("overhead") };
    error.with_message(why)
}

/// What cannot be had of a separate overhead on v2.
fn note_of(host: &Host, overhead: &Overhead, cgroup: &str) -> Report {
    let mut report = Report::default();
    let is_v2 = |index| host.version_of(index) == Version::V2 && host.has_parts(index);
    if !cgroup.is_empty() && (0..host.hierarchies.len()).any(is_v2) {
        report.note("overhead", overhead, ONE_DOMAIN);
    }
    report
}

impl SandboxConfig {
    /// The state of the separate overhead, beside that of the sandbox.
    fn apart_of(&self, host: &Host, state: &State) -> Result<Option<Box<State>>> {
        let Some(config) = self.apart(&state.overhead) else { return Ok(None) };
        let mut apart = Sandbox::own_intent(host, &config)?;
        apart.mark.clone_from(&state.mark);
        let is_below = |below: &str, above: &str| {
            below.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let (inner, outer) = (&apart.cgroup, &state.cgroup);
        if !inner.is_empty() && (is_below(inner, outer) || is_below(outer, inner)) {
            let why = format!(
                "a cgroup of its own: neither /{outer}, which is the sandbox's, nor one below or above it"
            );
            return Err(Error::invalid("overhead", &state.overhead, why));
        }
        Ok(Some(apart))
    }
}

impl Sandbox {
    /// The overhead, where it is separate: a cgroup elsewhere, with processes, limits and statistics of its own. What is done
    /// to the sandbox is done to it too; by itself it is looked at here, or [held](Sandbox::hold).
    pub fn overhead(&self) -> Option<&Self> {
        self.apart.as_deref()
    }

    /// Adds the separate overhead to the state of a sandbox that is about to be made.
    pub(super) fn add_apart(host: &Host, config: &SandboxConfig, state: &mut State) -> Result<()> {
        if let Some(apart) = config.apart_of(host, state)? {
            state.report.append(note_of(host, &state.overhead, &apart.cgroup));
            // They are its own there.
            state.overhead_resources = Resources::default();
            state.apart = Some(apart);
        }
        Ok(())
    }

    /// The steps of a creation, on the host as it is seen at each of the two paths.
    pub(super) fn plan_seen(
        host: &Host,
        config: &SandboxConfig,
        seen: impl Fn(&str) -> Host,
    ) -> Result<Plan> {
        let mut plan = Self::own_plan(&seen(&config.resolve(host)?), config)?;
        if let Some(second) = config.apart(&config.overhead_at()?)
            && let Some(apart) = Self::intent(host, config)?.apart
        {
            plan.append(Self::own_plan(&seen(&apart.cgroup), &second)?);
        }
        Ok(plan)
    }

    /// Those of the sandbox itself.
    pub(super) fn own_plan(host: &Host, config: &SandboxConfig) -> Result<Plan> {
        // The same on every machine: what is made will have a mark of its own.
        let state = State { mark: None, ..Self::intent(host, config)? };
        let mut plan = plan::plan(host, &config.want(&state, &state.anew()), plan::UNREAD)?;
        plan.report = joined(state.report, plan.report);
        Ok(plan)
    }

    /// Which of the two cgroups a part is, where the overhead is separate: the vCPUs are in the sandbox itself.
    pub(super) fn place_of(&self, part: Option<Part>) -> (&Self, Option<Part>) {
        match (&self.apart, part) {
            (Some(apart), Some(Part::Overhead)) => (apart, None),
            (Some(_), _) => (self, None),
            (None, part) => (self, part),
        }
    }

    /// What is changed of the sandbox itself, and what of the separate overhead: its limits, and what both may open.
    pub(super) fn shared_out(
        &self,
        change: &Resources,
        options: ChangeOptions,
    ) -> Result<(ChangeOptions, Option<(Resources, ChangeOptions)>)> {
        if self.apart.is_none() {
            return Ok((options, None));
        }
        self.known().overhead.allows(&options.overhead)?;
        let theirs = Resources { devices: change.devices.clone(), ..options.overhead.clone() };
        let their_options = ChangeOptions {
            overhead: Resources::default(),
            unread: Report::default(),
            pin: None,
            ..options.clone()
        };
        Ok((ChangeOptions { overhead: Resources::default(), ..options }, Some((theirs, their_options))))
    }

    /// Carries a change out, and another one on the separate overhead: both, or none.
    pub(super) fn carry_out_both(
        &self,
        state: &mut State,
        planned: Changed,
        options: &ChangeOptions,
        ahead: Ahead<'_>,
        theirs: impl Fn(&Self) -> Result<Report>,
    ) -> Result<Report> {
        let mut about = Report::default();
        let mut also = || {
            if let Some(apart) = &self.apart {
                about = theirs(apart).map_err(about_overhead)?;
            }
            Ok(())
        };
        let mut report = self.carry_out(state, planned, options, ahead, &mut also)?;
        report.add_new(&about);
        Ok(report)
    }

    /// The cgroup, or none where systemd starts it with the first process.
    pub(super) fn present_or_planned(&self, state: &State) -> Result<Option<Arc<Cgroup>>> {
        match self.present(state)? {
            None if !state.path.is_systemd() => Err(gone(state)),
            present => Ok(present),
        }
    }

    /// The same, or what a scope of systemd that has ended left: directories with threads of the VMM.
    fn present_or_left(&self) -> Result<Option<Arc<Cgroup>>> {
        let state = self.known();
        match self.present(&state)? {
            None => open_leftover(&self.host, &state),
            present => Ok(present),
        }
    }

    /// The sandbox itself, and its separate overhead.
    fn both(&self) -> impl DoubleEndedIterator<Item = &Self> {
        std::iter::once(self).chain(self.apart.as_deref())
    }

    /// Those of both that have a cgroup now. The error is that of the sandbox where none has.
    fn both_present(&self) -> Result<Vec<&Self>> {
        let mut present = Vec::new();
        for one in self.both() {
            if one.present(&one.known())?.is_some() {
                present.push(one);
            }
        }
        if present.is_empty() {
            self.cgroup()?;
        }
        Ok(present)
    }

    /// What it is doing now: what runs in a separate overhead runs in it.
    pub fn status(&self) -> Result<Status> {
        let own = self.own_status()?;
        let Some(apart) = self.apart.as_ref().filter(|_| own != Status::Gone) else { return Ok(own) };
        let all = [own, apart.own_status()?];
        let ranked = [Status::Running, Status::Frozen, Status::Empty];
        Ok(ranked.into_iter().find(|status| all.contains(status)).unwrap_or(own))
    }

    /// Stops every task inside, then those of a separate overhead, on which it may wait. See [`Cgroup::freeze`].
    pub fn freeze(&self, timeout: Duration) -> Result<()> {
        let mut stopped: Vec<&Self> = Vec::new();
        let present = self.both_present()?;
        for one in &present {
            one.cgroup()?.refuse_caller_inside()?;
        }
        for one in present {
            if let Err(error) = one.own_freeze(timeout) {
                for one in stopped {
                    _ = one.own_thaw(timeout);
                }
                return Err(error);
            }
            stopped.push(one);
        }
        Ok(())
    }

    /// Lets the tasks run again. See [`Cgroup::thaw`].
    pub fn thaw(&self, timeout: Duration) -> Result<Report> {
        let mut report = Report::default();
        let mut failed = None;
        for one in self.both_present()?.into_iter().rev() {
            match one.own_thaw(timeout) {
                Ok(about) => report.add_new(&about),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(report), Err)
    }

    /// The frozen cgroup above the sandbox, or above its separate overhead, that keeps processes inside stopped. See
    /// [`Cgroup::frozen_ancestor`].
    pub fn frozen_ancestor(&self) -> Result<Option<String>> {
        for one in self.both_present()? {
            if let Some(ancestor) = one.cgroup()?.frozen_ancestor()? {
                return Ok(Some(ancestor));
            }
        }
        Ok(None)
    }

    /// Sends a signal to every process inside, once; returns those that were sent it. The calling process is spared.
    pub fn signal(&self, signal: i32) -> Result<BTreeSet<u32>> {
        // Of both at once: on v1 the VMM is in both.
        signal_all(&|| self.processes(), signal)
    }

    /// Kills everything inside but the calling process. See [`Cgroup::kill`].
    pub fn kill(&self, timeout: Duration) -> Result<BTreeSet<u32>> {
        let _limit = limit_systemd(timeout);
        let mut killed = BTreeSet::new();
        let mut failed = None;
        for one in self.both() {
            match one.own_kill(timeout) {
                Ok(pids) => killed.extend(pids),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(killed), Err)
    }

    /// Removes it in every hierarchy, with a separate overhead. See [`Cgroup::destroy`].
    pub fn destroy(&self, remaining: Remaining, timeout: Duration) -> Result<Outcome> {
        let _limit = limit_systemd(timeout);
        let outcome = self.destroy_both(remaining, timeout)?;
        self.hearers.tell(LastWord::Removed);
        Ok(outcome)
    }

    fn destroy_both(&self, remaining: Remaining, timeout: Duration) -> Result<Outcome> {
        let Some(apart) = &self.apart else { return self.own_destroy(remaining, timeout) };
        if remaining == Remaining::Refuse {
            for one in self.both() {
                one.refuse_living()?;
            }
        }
        let (mut all, mut errors) = (Outcome::default(), Vec::new());
        for one in [self, apart] {
            match one.own_destroy(remaining, timeout) {
                Ok(outcome) => all.extend(outcome),
                Err(error) => {
                    let source = std::error::Error::source(&error);
                    if let Some(failures) = source.and_then(|source| source.downcast_ref::<Failures>()) {
                        all.extend(failures.outcome().clone());
                    }
                    errors.push(error);
                }
            }
        }
        Failures::or_outcome(errors, all)
    }

    /// Nothing is removed of both while there are processes in one, but for those that only hold it.
    fn refuse_living(&self) -> Result<()> {
        let state = self.known();
        let Some(cgroup) = self.present(&state)? else { return Ok(()) };
        let held = state.placeholder.as_ref().map(|held| BTreeSet::from([held.pid]));
        if held.is_some_and(|held| cgroup.processes().is_ok_and(|pids| pids == held)) {
            return Ok(());
        }
        cgroup.refuse_living()
    }
}
