//! `rm`: removes a sandbox, in whatever state it is.

use std::time::Duration;

use clap::Args;
use ringfence::{Entry, ErrorKind, Host, Outcome, Phase, Remaining, Result, Sandbox, SandboxId, State};
use serde::Serialize;

use crate::context::{Context, alive};
use crate::exit::Exit;
use crate::supervise::outlive_session;

/// Remove a sandbox; refuses while processes live inside, unless told what becomes of them
///
/// This command itself is never killed: where it runs inside, it is moved out last.
#[derive(Debug, Args)]
pub struct Rm {
    /// Name of the sandbox
    id: SandboxId,

    /// Kill the processes inside
    #[arg(long, conflicts_with = "drain")]
    kill: bool,

    /// Move the processes inside out, to live on within the limits of the parent
    #[arg(long)]
    drain: bool,
}

#[derive(Debug, Serialize)]
struct Removed<'a> {
    id: &'a SandboxId,
    #[serde(flatten)]
    outcome: Outcome,
}

impl Rm {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        if self.kill {
            outlive_session()?;
        }
        let host = context.host()?;
        let (entry, state) = context.lock(&host, &self.id)?;
        let remaining = match (self.kill, self.drain) {
            (true, _) => Remaining::Kill,
            (_, true) => Remaining::Drain,
            _ => Remaining::Refuse,
        };
        let outcome = remove_recorded(context, &host, entry, state, remaining)?;
        context.output.done(&Removed { id: &self.id, outcome }, "")?;
        Ok(Exit::Done)
    }
}

/// Removes what is left of a recorded sandbox: all of it, a half, or the record alone.
pub fn remove_recorded(
    context: &Context,
    host: &Host,
    entry: Entry,
    state: State,
    remaining: Remaining,
) -> Result<Outcome> {
    match alive(host, &state)? {
        Some(sandbox) => remove(entry, &sandbox, remaining, context.global.timeout),
        None => entry.remove().map(|()| Outcome::default()),
    }
}

/// Removes a sandbox and its record, written ahead.
pub fn remove(entry: Entry, sandbox: &Sandbox, remaining: Remaining, timeout: Duration) -> Result<Outcome> {
    let before = sandbox.state();
    entry.tell_watchers_of(sandbox);
    entry.save(&State { phase: Phase::Removing, ..before.clone() })?;
    match sandbox.destroy(remaining, timeout) {
        Ok(outcome) => entry.remove().map(|()| outcome),
        Err(error) => {
            // Refused because of live processes: nothing has changed.
            if remaining == Remaining::Refuse && error.kind() == ErrorKind::Busy {
                entry.save(&before)?;
            }
            Err(error)
        }
    }
}
