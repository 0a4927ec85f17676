//! `rm`: removes a sandbox, in whatever state it is.

use clap::Args;
use ringfence::{Outcome, Remaining, Result, SandboxId};
use serde::Serialize;

use crate::context::Context;
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
        let outcome = entry.remove_recorded(&host, state, remaining, context.global.timeout)?;
        context.output.report(&outcome.report);
        context.output.done(&Removed { id: &self.id, outcome }, "")?;
        Ok(Exit::Done)
    }
}
