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

    /// Processes to move; the first that cannot be moved ends it
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
        let (_entry, sandbox) = context.open(&host, &self.id)?;
        self.pids.iter().try_for_each(|pid| sandbox.join(*pid)).map_err(not_the_sandbox)?;
        context.output.done(&json!({"id": self.id, "attached": self.pids}), "")?;
        Ok(Exit::Done)
    }
}
