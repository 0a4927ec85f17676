//! `create`: makes the cgroups and writes every limit.

use clap::Args;
use ringfence::{Command, Entry, Error, Host, ProcessIdentity, Remaining, Result, Sandbox, SandboxId, null};

use crate::commands::show::Shown;
use crate::context::Context;
use crate::exit::Exit;
use crate::limits::{Wanted, node_on};

/// Make a sandbox: its cgroups, with every limit, and no process yet
///
/// A scope of systemd starts with its first process, which `run`, `exec` or `attach` bring; until then it is planned.
#[derive(Debug, Args)]
pub struct Create {
    /// Name of the new sandbox
    id: SandboxId,

    #[command(flatten)]
    wanted: Wanted,

    /// Start a process inside that does nothing, so that a scope of systemd starts now, and one in a separate overhead; rm
    /// takes them along
    #[arg(long)]
    hold: bool,
}

impl Create {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let (entry, sandbox) = make(context, &host, &self.id, &self.wanted, None)?;
        if self.hold
            && let Err(error) = hold(&entry, &sandbox)
        {
            return Err(unmake(context, entry, &sandbox, error));
        }
        let state = sandbox.state();
        let shown = match Shown::of(&self.id, &state, Some(&sandbox)) {
            Ok(shown) => shown,
            Err(error) => return Err(unmake(context, entry, &sandbox, error)),
        };
        context.output.report(&state.full_report());
        match context.output.done(&shown, &shown) {
            Ok(()) => Ok(Exit::Done),
            Err(error) => Err(unmake(context, entry, &sandbox, error)),
        }
    }
}

/// Starts a process inside that does nothing; by its name, which is what is seen of it.
fn hold(entry: &Entry, sandbox: &Sandbox) -> Result<()> {
    let own = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let me = Command::new(own).args(["hold"]).new_session();
    let me = me.stdin(null()?).stdout(null()?).stderr(null()?);
    std::iter::once(sandbox).chain(sandbox.overhead()).try_for_each(|one| one.hold(&me).map(drop))?;
    entry.save(&sandbox.state())
}

/// Takes a sandbox away again, which was made a moment ago; what cannot be removed stays recorded. The error is the one for
/// which that is done.
fn unmake(context: &Context, entry: Entry, sandbox: &Sandbox, error: Error) -> Error {
    match entry.remove_with(sandbox, Remaining::Kill, context.global.timeout) {
        Ok(_) => error,
        Err(also) => error.with_source(also),
    }
}

/// Makes a sandbox and records it; it is still under its lock.
pub fn make(
    context: &Context,
    host: &Host,
    id: &SandboxId,
    wanted: &Wanted,
    holder: Option<ProcessIdentity>,
) -> Result<(Entry, Sandbox)> {
    let config = wanted.config(context, id, context.by_systemd(host), node_on(host))?;
    let entry = context.store(host).lock(id, context.global.timeout)?;
    context.announce(|| Sandbox::plan_here(host, &config))?;
    let sandbox = entry.create(host, &config, holder)?;
    Ok((entry, sandbox))
}
