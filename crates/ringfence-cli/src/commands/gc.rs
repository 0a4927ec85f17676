//! `gc`: sandboxes for which nobody answers any more.

use clap::Args;
use ringfence::{Collected, GcAction, GcOptions, Result};

use crate::context::Context;
use crate::exit::Exit;
use crate::output::Table;

/// Find sandboxes whose holder died, and what interrupted creations and removals left; remove them with --apply
///
/// Only sandboxes without processes, unless --kill is given. The holder is the process of `ringfence run`, or the command
/// itself with --detach; sandboxes of `create`, and those that --keep left, have none and stay. What carries no mark of this
/// state directory is never touched.
#[derive(Debug, Args)]
pub struct Gc {
    /// Remove what is found, instead of only listing it
    #[arg(long)]
    apply: bool,

    /// Take those too in which processes live, and kill them
    #[arg(long)]
    kill: bool,
}

impl Gc {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let options = GcOptions { apply: self.apply, kill: self.kill, timeout: context.global.timeout };
        let (found, failures) = context.store(&host).gc(&host, options)?;
        failures.iter().for_each(|error| context.output.error(error));
        found.iter().for_each(|one| context.output.report(&one.report));
        context.output.list(&found, || table(&found))?;
        Ok(if failures.is_empty() { Exit::Done } else { Exit::Failed })
    }
}

fn table(found: &[Collected]) -> Table {
    let mut table = Table::new(["ID", "WHY", "ACTION"]);
    for Collected { id, why, action, .. } in found {
        let action = match action {
            GcAction::Forget => "forget",
            GcAction::Remove => "remove",
            GcAction::Kill => "kill",
            GcAction::Settle => "settle",
            GcAction::Keep => "keep",
        };
        table.row([id.clone(), why.clone(), action.to_owned()]);
    }
    table
}
