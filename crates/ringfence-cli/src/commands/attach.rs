//! `attach`: running processes join a sandbox.

use clap::Args;
use ringfence::{Error, ErrorKind, Result, SandboxId};
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;

/// Move running processes, with all their threads, into a sandbox
#[derive(Debug, Args)]
pub struct Attach {
    /// Name of the sandbox
    id: SandboxId,

    /// Processes to move: all of them, or none
    #[arg(required = true, value_name = "PID")]
    pids: Vec<u32>,
}

/// That a process is not found must not be taken for a sandbox that is not.
fn not_the_sandbox(error: Error) -> Error {
    if error.kind() == ErrorKind::NotFound { error.with_kind(ErrorKind::Kernel) } else { error }
}

impl Attach {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let (entry, sandbox) = context.open(&host, &self.id)?;
        sandbox.join_all(&self.pids).map_err(not_the_sandbox)?;
        // A unit of systemd may have started with them.
        entry.save(&sandbox.state())?;
        context.output.done(&json!({"id": self.id, "attached": self.pids}), "")?;
        Ok(Exit::Done)
    }
}
