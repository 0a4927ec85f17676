//! `gc`: sandboxes for which nobody answers any more.

use std::time::Duration;

use clap::Args;
use ringfence::{Entry, ErrorKind, Host, Phase, Remaining, Result, Sandbox, SandboxId, State};
use serde::Serialize;

use crate::commands::rm::remove_recorded;
use crate::context::{Context, alive, unless_gone};
use crate::exit::Exit;
use crate::output::Table;

/// Find sandboxes whose holder died, and what interrupted creations and removals left; remove them with --apply
///
/// Only sandboxes without processes, unless --kill is given. The holder is the process of `ringfence run`, or the command
/// itself with --detach; sandboxes of `create`, and those that --keep left, have none and stay.
#[derive(Debug, Args)]
pub struct Gc {
    /// Remove what is found, instead of only listing it
    #[arg(long)]
    apply: bool,

    /// Take those too in which processes live, and kill them
    #[arg(long)]
    kill: bool,
}

#[derive(Debug, Serialize)]
struct Found {
    /// The ID, or the path of a cgroup without one.
    id: String,
    why: String,
    action: Action,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    /// Its cgroup is gone: only the record is removed.
    Forget,
    /// It is removed.
    Remove,
    /// What lives inside is killed, then it is removed.
    Kill,
    /// It stays, and is again as it was before the change.
    Settle,
}

impl Gc {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let (mut found, exit) = context.each(&host, |id| self.collect(context, &host, id))?;
        found.extend(self.leftovers(context, &host)?);
        if self.apply {
            context.store(&host).sweep()?;
        }
        context.output.list(&found, || table(&found))?;
        Ok(exit)
    }

    /// Cgroups that are ours and that no record speaks of; by their paths.
    fn leftovers(&self, context: &Context, host: &Host) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for leftover in context.store(host).leftovers(host)? {
            let Some(pids) = unless_gone(leftover.processes(host))? else { continue };
            let (action, remaining) = match (pids.is_empty(), self.kill) {
                (true, _) => (Action::Remove, Remaining::Refuse),
                (false, true) if !leftover.is_shared => (Action::Kill, Remaining::Kill),
                (false, _) => continue,
            };
            if self.apply {
                unless_gone(leftover.remove(host, remaining, context.global.timeout))?;
            }
            found.push(Found { id: format!("/{}", leftover.path), why: leftover.why.to_owned(), action });
        }
        Ok(found)
    }

    fn collect(&self, context: &Context, host: &Host, id: &SandboxId) -> Result<Option<Found>> {
        let entry = match context.store(host).lock(id, Duration::ZERO) {
            // Somebody is at work on it.
            Err(error) if error.kind() == ErrorKind::Locked => return Ok(None),
            entry => entry?,
        };
        let Some(state) = entry.load()? else { return Ok(None) };
        let sandbox = alive(host, &state)?;
        let Some(why) = why(&state, sandbox.as_ref()) else {
            return sandbox
                .filter(Sandbox::is_unsettled)
                .map(|sandbox| self.settle(id, &entry, &sandbox))
                .transpose();
        };
        let action = match sandbox.map(|sandbox| unless_gone(sandbox.processes())).transpose()?.flatten() {
            None => Action::Forget,
            Some(pids) if pids.is_empty() => Action::Remove,
            Some(_) if self.kill => Action::Kill,
            Some(_) => return Ok(None),
        };
        if self.apply {
            self.remove(context, host, entry, state, action)?;
        }
        Ok(Some(Found { id: id.to_string(), why, action }))
    }

    /// A change that was interrupted is taken back.
    fn settle(&self, id: &SandboxId, entry: &Entry, sandbox: &Sandbox) -> Result<Found> {
        if self.apply {
            entry.settle(sandbox)?;
        }
        let why = "a change of it was interrupted".to_owned();
        Ok(Found { id: id.to_string(), why, action: Action::Settle })
    }

    fn remove(
        &self,
        context: &Context,
        host: &Host,
        entry: Entry,
        state: State,
        action: Action,
    ) -> Result<()> {
        let remaining = match action {
            Action::Kill => Remaining::Kill,
            Action::Forget | Action::Remove | Action::Settle => Remaining::Refuse,
        };
        remove_recorded(context, host, entry, state, remaining).map(drop)
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

fn table(found: &[Found]) -> Table {
    let mut table = Table::new(["ID", "WHY", "ACTION"]);
    for Found { id, why, action } in found {
        let action = match action {
            Action::Forget => "forget",
            Action::Remove => "remove",
            Action::Kill => "kill",
            Action::Settle => "settle",
        };
        table.row([id.clone(), why.clone(), action.to_owned()]);
    }
    table
}
