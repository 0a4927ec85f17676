//! `exec`: one more command in a sandbox that exists.

use std::ffi::OsString;

use clap::Args;
use ringfence::{Part, Result, SandboxId, limit_systemd};

use crate::commands::run::command;
use crate::context::Context;
use crate::exit::Exit;
use crate::supervise::Supervisor;

/// Run a command inside a sandbox that exists
///
/// Signals are passed on to it. Exit status: the command's own, 128+signal if it was killed; 127 if it was not found, 126
/// if it could not be executed; 2 for bad input, 125 for every other failure of ringfence.
#[derive(Debug, Args)]
pub struct Exec {
    /// Name of the sandbox
    id: SandboxId,

    /// Start it in this part: vcpu (with a separate overhead the sandbox itself) or overhead [default: overhead, where that has
    /// a place of its own]
    #[arg(long)]
    part: Option<Part>,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Exec {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let limit = limit_systemd(context.global.timeout);
        let (entry, sandbox) = context.open(&host, &self.id)?;
        let supervisor = Supervisor::new()?;
        let part = self.part.or_else(|| sandbox.default_part());
        let command = supervisor.unblock(command(&self.command, false)?);
        let child = sandbox.spawn_in(part, &command)?;
        // What was started may have made it what it is: a unit of systemd, or the processes of one without a cgroup.
        // The command runs by now: what cannot be recorded is reported, and its status is ours all the same.
        if let Err(error) = entry.save(&sandbox.state()) {
            context.output.error(&error);
        }
        drop((entry, sandbox, limit));
        Ok(supervisor.wait(&child)?.into())
    }
}
