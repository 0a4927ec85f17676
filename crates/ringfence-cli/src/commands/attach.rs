//! `attach`: running processes join a sandbox.

use clap::Args;
use ringfence::{Error, ErrorKind, Part, Result, SandboxId};
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;

/// Move running processes, with all their threads, into a sandbox; or threads of its processes into a part
#[derive(Debug, Args)]
pub struct Attach {
    /// Name of the sandbox
    id: SandboxId,

    /// Move them to this part: vcpu (with a separate overhead the sandbox itself) or overhead [default: overhead, where that has
    /// a place of its own]
    #[arg(long)]
    part: Option<Part>,

    /// Move single threads, by thread ID, of processes that are inside already
    #[arg(long)]
    thread: bool,

    /// Move process 1, kernel threads and first processes of PID namespaces too, on which the machine or a container depends
    #[arg(long)]
    force: bool,

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
        let part = self.part.or_else(|| sandbox.default_part());
        match part {
            Some(part) if self.thread => sandbox.join_threads(part, &self.pids),
            None if self.thread => {
                let why = "nothing: threads are told apart where the overhead is nested or separate, and this sandbox has no parts";
                Err(Error::invalid("thread", "true", why))
            }
            // A unit of systemd may start with them.
            part => entry.join_part(&sandbox, part, &self.pids, self.force),
        }
        .map_err(not_the_sandbox)?;
        context.output.done(&json!({"id": self.id, "attached": self.pids}), "")?;
        Ok(Exit::Done)
    }
}
