//! `repair`: makes what is missing of a sandbox anew.

use clap::Args;
use ringfence::{Result, SandboxId};

use crate::commands::show::Shown;
use crate::context::Context;
use crate::exit::Exit;

/// Make directories anew that are missing in some hierarchy, with their limits, and move the processes into them
///
/// `ls` and `show` call such a sandbox damaged; nothing starts in it or joins it until it is repaired. On cgroup v1, systemd
/// removes directories by itself, for example with a slice that is stopped.
#[derive(Debug, Args)]
pub struct Repair {
    /// Name of the sandbox
    id: SandboxId,
}

impl Repair {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let (entry, sandbox) = context.open(&host, &self.id)?;
        let report = sandbox.repair()?;
        let state = sandbox.state();
        entry.save(&state)?;
        context.output.report(&report);
        let shown = Shown::of(&self.id, &state, Some(&sandbox))?;
        context.output.done(&shown, "")?;
        Ok(Exit::Done)
    }
}
