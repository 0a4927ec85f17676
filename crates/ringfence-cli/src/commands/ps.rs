//! `ps`: the processes and threads of a sandbox.

use clap::Args;
use ringfence::{Result, SandboxId, Task, unless_gone};

use crate::context::{Context, alive};
use crate::exit::Exit;
use crate::output::Table;

/// List the processes of a sandbox
#[derive(Debug, Args)]
pub struct Ps {
    /// Name of the sandbox
    id: SandboxId,

    /// List every thread
    #[arg(long)]
    threads: bool,
}

impl Ps {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let state = context.state(&host, &self.id)?;
        let sandbox = alive(&host, &state)?;
        let tasks = sandbox.map(|sandbox| unless_gone(sandbox.tasks(self.threads))).transpose()?.flatten();
        let tasks = tasks.unwrap_or_default();
        context.output.list(&tasks, || table(&tasks))?;
        Ok(Exit::Done)
    }
}

fn table(tasks: &[Task]) -> Table {
    let mut table = Table::new(["PID", "TID", "NAME", "PART", "CGROUP"]);
    for Task { pid, tid, name, part, index, pinned, cgroup } in tasks {
        let part = part.map_or("-".to_owned(), |part| part.to_string());
        let part = index.filter(|_| part == "vcpu").map_or(part.clone(), |index| format!("{part} {index}"));
        let part = pinned.map_or(part.clone(), |cpu| format!("{part} on CPU {cpu}"));
        table.row([pid.to_string(), tid.to_string(), name.clone(), part, cgroup.clone()]);
    }
    table
}
