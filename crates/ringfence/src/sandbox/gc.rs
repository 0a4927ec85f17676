//! Garbage collection: sandboxes for which nobody answers any more, and what interrupted creations and removals left.

use std::time::Duration;

use serde::Serialize;

use super::{Phase, Sandbox, State, Store};
use crate::cgroup::Remaining;
use crate::error::{Error, ErrorKind, Result, unless_gone};
use crate::host::Host;
use crate::path::SandboxId;
use crate::report::Report;

/// How garbage is collected.
#[derive(Debug, Clone, Copy)]
pub struct GcOptions {
    /// Remove what is found, instead of only listing it.
    pub apply: bool,
    /// Take sandboxes too in which processes live, and kill these.
    pub kill: bool,
    /// How long one removal may take.
    pub timeout: Duration,
}

/// What was found for one sandbox or cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// The ID, or the path of a cgroup without a record.
    pub id: String,
    /// Why nobody misses it.
    pub why: String,
    /// What is done about it.
    pub action: GcAction,
    /// The steps of the removal that failed, and changes of the record that could not be written.
    #[serde(skip_serializing_if = "Report::is_empty")]
    pub report: Report,
}

/// What is done about what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GcAction {
    /// Its cgroup is gone: only the record is removed.
    Forget,
    /// It is removed.
    Remove,
    /// The processes inside are killed, then it is removed.
    Kill,
    /// It stays, and is again as it was before a change that was interrupted.
    Settle,
    /// It stays: it was never ready, so that the processes inside are somebody else's.
    Keep,
}

impl Store {
    /// Collects the garbage of this store: recorded sandboxes whose holder died, or whose creation or removal was
    /// interrupted; and cgroups that carry the store's mark and have no record. A sandbox that is locked is passed over.
    ///
    /// The second value has the errors of single sandboxes, which do not keep the others from being collected.
    ///
    /// # Errors
    /// The store cannot be listed, or a cgroup without a record cannot be removed.
    pub fn gc(&self, host: &Host, options: GcOptions) -> Result<(Vec<Collected>, Vec<Error>)> {
        let (mut found, mut failures) = (Vec::new(), Vec::new());
        for id in self.ids()? {
            match self.collect(host, &id, options) {
                Ok(collected) => found.extend(collected),
                Err(error) => failures.push(error),
            }
        }
        let mut is_clean = true;
        for leftover in self.leftovers(host)? {
            let Some(pids) = unless_gone(leftover.processes(host))? else { continue };
            let (action, remaining) = match (pids.is_empty(), options.kill) {
                (true, _) => (GcAction::Remove, Remaining::Refuse),
                (false, true) if !leftover.is_shared => (GcAction::Kill, Remaining::Kill),
                (false, _) => {
                    is_clean &= leftover.is_shared;
                    continue;
                }
            };
            if options.apply {
                unless_gone(leftover.remove(host, remaining, options.timeout))?;
            }
            let (id, why) = (format!("/{}", leftover.path), leftover.why.to_owned());
            found.push(Collected { id, why, action, report: Report::default() });
        }
        if options.apply {
            self.sweep()?;
            // By its identity, what is left is found the next time.
            if is_clean {
                self.remove_if_unused();
            }
        }
        Ok((found, failures))
    }

    fn collect(&self, host: &Host, id: &SandboxId, options: GcOptions) -> Result<Option<Collected>> {
        let entry = match self.lock(id, Duration::ZERO) {
            // Somebody is at work on it.
            Err(error) if error.kind() == ErrorKind::Locked => return Ok(None),
            entry => entry?,
        };
        let Some(state) = entry.load()? else { return Ok(None) };
        let sandbox = unless_gone(Sandbox::restore(host, state.clone()))?;
        let found = |why: String, action, report| Some(Collected { id: id.to_string(), why, action, report });
        let Some(why) = why(&state, sandbox.as_ref()) else {
            return match sandbox.filter(Sandbox::is_unsettled) {
                None => Ok(None),
                Some(sandbox) => {
                    let report = if options.apply { entry.settle(&sandbox)? } else { Report::default() };
                    Ok(found("a change of it was interrupted".to_owned(), GcAction::Settle, report))
                }
            };
        };
        let action =
            match sandbox.as_ref().map(|sandbox| unless_gone(sandbox.processes())).transpose()?.flatten() {
                None => GcAction::Forget,
                Some(pids) if pids.is_empty() => GcAction::Remove,
                // Whoever removed it would have been refused.
                Some(_) if state.phase == Phase::Removing && !state.killing => GcAction::Settle,
                Some(_) if state.phase == Phase::Creating => GcAction::Keep,
                Some(_) if options.kill => GcAction::Kill,
                Some(_) => return Ok(None),
            };
        let mut report = Report::default();
        if options.apply && action == GcAction::Settle {
            entry.save(&State { phase: Phase::Ready, ..state })?;
        } else if options.apply && action != GcAction::Keep {
            let remaining = if action == GcAction::Kill { Remaining::Kill } else { Remaining::Refuse };
            report = entry.remove_recorded(host, state, remaining, options.timeout)?.report;
        }
        Ok(found(why, action, report))
    }
}

/// Why nobody misses it; `None` for one that is to stay.
fn why(state: &State, sandbox: Option<&Sandbox>) -> Option<String> {
    match (sandbox, state.phase, &state.holder) {
        (None, ..) => Some("its cgroup is gone".to_owned()),
        (_, Phase::Creating, _) => Some("its creation was interrupted".to_owned()),
        (_, Phase::Removing, _) => Some("its removal was interrupted".to_owned()),
        (_, Phase::Ready, Some(holder)) if !holder.is_alive() => {
            Some(format!("its holder died (PID {})", holder.pid))
        }
        _ => None,
    }
}
