//! `create`: makes the cgroups and writes every limit.

use clap::Args;
use ringfence::{
    Command, Entry, Error, ErrorKind, Host, Phase, ProcessIdentity, Remaining, Result, Sandbox, SandboxId,
    null,
};

use crate::commands::rm;
use crate::commands::show::Shown;
use crate::context::{Context, alive, unfinished};
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
        context.output.done(&shown, &shown)?;
        Ok(Exit::Done)
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
    match rm::remove(entry, sandbox, Remaining::Kill, context.global.timeout) {
        Ok(_) => error,
        Err(also) => error.with_source(also),
    }
}

/// Makes a sandbox and records it, written ahead; it is still under its lock.
pub fn make(
    context: &Context,
    host: &Host,
    id: &SandboxId,
    wanted: &Wanted,
    holder: Option<ProcessIdentity>,
) -> Result<(Entry, Sandbox)> {
    let store = context.store(host);
    let config = wanted.config(context, id, context.by_systemd(host), node_on(host))?.kept_in(&store);
    let mut intent = Sandbox::intent(host, &config)?;
    intent.holder = holder.clone();
    let entry = store.lock(id, context.global.timeout)?;
    if let Some(state) = entry.load()? {
        let why = match state.phase {
            Phase::Ready => "there is such a sandbox already",
            phase => unfinished(phase),
        };
        return Err(Error::new(ErrorKind::AlreadyExists, why).with_value(id));
    }
    if let Some(there) = alive(host, &intent)? {
        let is_there = |one: &Sandbox, path: &str| !path.is_empty() && one.cgroup().is_ok();
        let overhead = intent.apart.iter().zip(there.overhead()).map(|(state, one)| (one, &state.cgroup));
        for (one, path) in std::iter::once((&there, &intent.cgroup)).chain(overhead) {
            if is_there(one, path) {
                // Never recorded, not for an instant: rm and gc take what is recorded for ours.
                let why = "there is such a cgroup already, and no sandbox of this name";
                return Err(Error::new(ErrorKind::AlreadyExists, why).with_value(format!("/{path}")));
            }
        }
    }
    context.announce(|| Sandbox::plan_here(host, &config))?;
    if let Err(error) = entry.save(&intent) {
        // It may be there all the same, and only not be safe from a loss of power.
        return Err(match entry.remove() {
            Ok(()) => error,
            Err(also) => error.with_source(also),
        });
    }
    match Sandbox::create(host, &config) {
        Ok((sandbox, _)) => {
            sandbox.set_holder(holder);
            match entry.save(&sandbox.state()) {
                Ok(()) => Ok((entry, sandbox)),
                Err(error) => Err(unmake(context, entry, &sandbox, error)),
            }
        }
        Err(error) => {
            // The library has undone everything; where it could not, what is left stays recorded.
            let forgotten = match alive(host, &intent) {
                Ok(None) => entry.remove(),
                Ok(Some(left)) => return Err(unmake(context, entry, &left, error)),
                Err(unknown) => Err(unknown),
            };
            Err(match forgotten {
                Ok(()) => error,
                Err(also) => error.with_source(also),
            })
        }
    }
}
