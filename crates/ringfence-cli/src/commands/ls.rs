//! `ls`: what sandboxes there are.

use clap::Args;
use ringfence::{Host, Result, SandboxId, State, Status, unless_gone};
use serde::Serialize;

use crate::commands::show::{driver, path, status};
use crate::context::{Context, alive};
use crate::exit::Exit;
use crate::output::{Table, bytes, or_dash, seconds};

/// List the sandboxes
#[derive(Debug, Args)]
pub struct Ls {}

/// One line of the list. What cannot be known of a cgroup that is gone is absent.
#[derive(Debug, Serialize)]
struct Listed {
    id: SandboxId,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    driver: &'static str,
    state: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pids: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_us: Option<u64>,
}

impl Ls {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let store = context.store(&host);
        let (listed, exit) =
            context.each(&host, |id| store.load(id)?.map(|state| list(&host, id, &state)).transpose())?;
        context.output.list(&listed, || table(&listed))?;
        Ok(exit)
    }
}

fn list(host: &Host, id: &SandboxId, state: &State) -> Result<Listed> {
    let sandbox = alive(host, state)?;
    let status = status(sandbox.as_ref())?;
    let sandbox = sandbox.filter(|_| status != Status::Gone);
    let pids = sandbox.as_ref().map(|sandbox| unless_gone(sandbox.processes())).transpose()?.flatten();
    let reader = sandbox.as_ref().map(|sandbox| unless_gone(sandbox.stats_reader())).transpose()?.flatten();
    let stats = reader.map(|mut reader| unless_gone(reader.sample().cloned())).transpose()?.flatten();
    Ok(Listed {
        id: id.clone(),
        path: path(state),
        driver: driver(state),
        state: status,
        pids: pids.map(|pids| pids.len()),
        memory_bytes: stats.as_ref().and_then(|stats| stats.memory.current),
        cpu_us: stats.as_ref().and_then(|stats| stats.cpu.usage_us),
    })
}

fn table(listed: &[Listed]) -> Table {
    let mut table = Table::new(["ID", "STATE", "PIDS", "MEMORY", "CPU", "PATH"]);
    for Listed { id, path, state, pids, memory_bytes, cpu_us, .. } in listed {
        table.row([
            id.to_string(),
            state.to_string(),
            or_dash(*pids),
            or_dash(memory_bytes.map(bytes)),
            or_dash(cpu_us.map(seconds)),
            or_dash(path.as_deref()),
        ]);
    }
    table
}
