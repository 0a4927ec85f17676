//! `diff`: what is wanted against what is there.

use clap::Args;
use ringfence::{Difference, Result, SandboxId};

use crate::context::Context;
use crate::exit::Exit;
use crate::output::{Table, or_dash};

/// Compare what a sandbox should be with what the kernel holds: exit status 4 if something differs
///
/// Each difference is a file that somebody else has written to, or that the kernel keeps otherwise than asked. Sizes are
/// compared in whole pages, CPU sets as sets. What this host cannot do is not compared: `show` has it in the report.
#[derive(Debug, Args)]
pub struct Diff {
    /// Name of the sandbox
    id: SandboxId,
}

impl Diff {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let (_entry, sandbox) = context.open(&host, &self.id)?;
        let differences = sandbox.diff()?;
        context.output.list(&differences, || table(&differences))?;
        Ok(if differences.is_empty() { Exit::Done } else { Exit::Differs })
    }
}

fn table(differences: &[Difference]) -> Table {
    let mut table = Table::new(["KEY", "WANT", "HAVE"]);
    for Difference { key, want, have, .. } in differences {
        table.row([key.clone(), want.clone(), or_dash(have.as_deref())]);
    }
    table
}
