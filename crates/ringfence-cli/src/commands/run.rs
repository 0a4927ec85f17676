//! `run`: a sandbox for the lifetime of one command.

use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use nix::errno::Errno;
use ringfence::{
    Child, Command, Error, ErrorKind, Hold, Host, ProcessIdentity, Profile, Remaining, Report, Result,
    Sandbox, SandboxId, State, limit_systemd, null,
};
use serde::Serialize;
use serde_json::json;

use crate::commands::classify::{AT_START, SearchEnd, StartSearch, not_found};
use crate::commands::{create, place_vcpus};
use crate::context::{Context, seconds};
use crate::exit::Exit;
use crate::limits::Wanted;
use crate::output::Format;
use crate::supervise::Supervisor;

/// Make a sandbox, run a command inside, and remove the sandbox when the command ends
///
/// The command never runs outside, not for an instant. Signals are passed on to it. When it ends, what remains inside is
/// killed. Exit status: the command's own, 128+signal if it was killed; 127 if it was not found, 126 if it could not be
/// executed; 2 for bad input, 125 for every other failure of ringfence.
#[derive(Debug, Args)]
pub struct Run {
    /// Name of the new sandbox
    id: SandboxId,

    /// Leave the sandbox, and what still runs inside, when the command has ended
    #[arg(long, conflicts_with = "detach")]
    keep: bool,

    /// Print the command's PID and return; it has a session of its own and /dev/null as input and output
    ///
    /// Where the sandbox has parts, a helper process looks for the vCPU threads for up to 30 s and moves them.
    #[arg(long)]
    detach: bool,

    /// With --detach, before it returns: wait at most this long for the vCPU threads, and report what was found
    #[arg(long, value_name = "SECONDS", requires = "detach", value_parser = |text: &str| seconds("wait-vcpus", text))]
    wait_vcpus: Option<Duration>,

    #[command(flatten)]
    wanted: Wanted,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// The result of `run --detach`, as it is printed.
#[derive(Debug, Serialize)]
struct Detached<'a> {
    id: &'a SandboxId,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpus: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overhead: Option<usize>,
    report: Report,
}

impl Run {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let me = this_process()?;
        let limit = limit_systemd(context.global.timeout);
        let supervisor = if self.detach { None } else { Some(Supervisor::new()?) };
        let (entry, sandbox) = create::make(context, &host, &self.id, &self.wanted, Some(me.clone()))?;
        let started = self.refuse_useless_wait(&sandbox).and_then(|()| command(&self.command, self.detach));
        let started = started.and_then(|command| {
            let command = match &supervisor {
                Some(supervisor) => supervisor.unblock(command),
                None => command,
            };
            start(&sandbox, &command, supervisor.is_some())
        });
        let (child, held) = match started {
            Ok(started) => started,
            Err(error) => {
                entry.remove_with(&sandbox, Remaining::Kill, context.global.timeout)?;
                return Err(error);
            }
        };
        match supervisor {
            None => {
                // One that has ended already answers for nothing: we stay the holder, and gc finds us gone.
                let holder = ProcessIdentity::of(child.pid());
                sandbox.set_holder(Some(holder.clone().unwrap_or_else(|| me.clone())));
                let state = sandbox.state();
                if let Err(error) = entry.save(&state) {
                    // Without a record of its holder, gc would take it for abandoned.
                    return Err(match entry.remove_with(&sandbox, Remaining::Kill, context.global.timeout) {
                        Ok(_) => error,
                        Err(also) => error.with_source(also),
                    });
                }
                drop((entry, sandbox, limit));
                let answers = holder.clone().unwrap_or(me);
                match self.detached(context, &host, child.pid(), holder, &state) {
                    Ok(()) => Ok(Exit::Done),
                    // Nobody knows that it runs.
                    Err(error) => Err(self.take_back(context, &host, &answers, error)),
                }
            }
            Some(supervisor) => {
                // What was started may have made it what it is: a unit of systemd, or the processes of one without a cgroup.
                // The command runs by now: what cannot be recorded is reported, and its status is ours all the same.
                let state = sandbox.state();
                if let Err(error) = entry.save(&state) {
                    context.output.error(&error);
                }
                context.output.report_always(&state.full_report());
                drop((entry, limit));
                let has_ended = AtomicBool::new(false);
                let status = std::thread::scope(|scope| {
                    if is_worth_looking(&state) {
                        let has_ended = || has_ended.load(Ordering::Relaxed);
                        let (host, holder) = (&host, &me);
                        scope.spawn(move || self.place_vcpus(context, host, holder, has_ended));
                    }
                    let status = supervisor.wait(&child);
                    has_ended.store(true, Ordering::Relaxed);
                    status
                })?;
                let _limit = limit_systemd(context.global.timeout);
                let counted = sandbox.counts().oom_kill;
                let counted_last = match self.end(context, &host, &me, sandbox) {
                    Err(error) if error.kind() == ErrorKind::State => {
                        context.output.error(&error);
                        None
                    }
                    ended => ended?,
                };
                drop(held);
                self.tell_of_oom(context, counted.max(counted_last));
                Ok(status.into())
            }
        }
    }

    /// Without parts there is nowhere to move threads to.
    fn refuse_useless_wait(&self, sandbox: &Sandbox) -> Result<()> {
        match self.wait_vcpus {
            Some(time) if sandbox.state().part_paths().is_empty() => {
                let why = "needs --overhead nested or --overhead separate=PATH: this sandbox has no parts";
                Err(Error::invalid("wait-vcpus", time.as_secs_f64(), why))
            }
            _ => Ok(()),
        }
    }

    /// Prints the PID of a command that runs on without us. `holder` is `None` where it has ended already.
    fn detached(
        &self,
        context: &Context,
        host: &Host,
        pid: u32,
        holder: Option<ProcessIdentity>,
        state: &State,
    ) -> Result<()> {
        let mut printed =
            Detached { id: &self.id, pid, vcpus: None, overhead: None, report: state.full_report() };
        let report = &mut printed.report;
        match (&holder, self.wait_vcpus) {
            (Some(holder), Some(within)) => {
                let search = StartSearch { context, host, id: &self.id, holder, within };
                match search.run(|| !holder.is_alive(), || ()) {
                    SearchEnd::Placed(placed) => {
                        (printed.vcpus, printed.overhead) = (Some(placed.vcpus), Some(placed.overhead));
                        if context.output.format() == Format::Table && !context.global.quiet {
                            let (vcpus, others) = (placed.vcpus, placed.overhead);
                            let words = format!("{}: {vcpus} threads of vCPUs, {others} others", self.id);
                            context.output.diagnostic(words);
                        }
                        report.append(placed.report);
                    }
                    SearchEnd::Gone => {
                        report.add("wait-vcpus", within.as_secs_f64(), "the command has ended")
                    }
                    SearchEnd::Failed(error, waited) => {
                        report.add("wait-vcpus", within.as_secs_f64(), not_found(&self.id, &error, waited));
                    }
                }
            }
            (Some(holder), None) if is_worth_looking(state) => {
                if let Err(error) = place_vcpus::start(context, host, &self.id, holder) {
                    report.add(
                        "vcpus",
                        "not moved",
                        format!("{error}; to move them: ringfence classify {}", self.id),
                    );
                }
            }
            _ => {}
        }
        context.output.report(&printed.report);
        context.output.object(&printed, pid)
    }

    /// Kills and removes a detached sandbox after an error, unless another one has its name by now.
    fn take_back(&self, context: &Context, host: &Host, holder: &ProcessIdentity, error: Error) -> Error {
        let remove = || {
            let entry = context.store(host).lock(&self.id, context.global.timeout)?;
            match entry.load()?.filter(|state| state.holder.as_ref() == Some(holder)) {
                Some(state) => {
                    entry.remove_recorded(host, state, Remaining::Kill, context.global.timeout).map(drop)
                }
                None => Ok(()),
            }
        };
        match remove() {
            Ok(()) => error,
            Err(also) => error.with_source(also),
        }
    }

    /// Moves the vCPU threads when the VMM has made them. Nothing fails because they are not found.
    fn place_vcpus(
        &self,
        context: &Context,
        host: &Host,
        holder: &ProcessIdentity,
        has_ended: impl Fn() -> bool,
    ) {
        let search = StartSearch { context, host, id: &self.id, holder, within: AT_START };
        let say_what_for = || {
            if !context.global.quiet {
                let event =
                    json!({"id": self.id, "event": "waiting_for_vcpus", "seconds": AT_START.as_secs()});
                let words =
                    format!("{}: waiting up to {} s for the vCPU threads", self.id, AT_START.as_secs());
                context.output.tell(&event, words);
            }
        };
        match search.run(has_ended, say_what_for) {
            SearchEnd::Placed(placed) => context.output.report(&placed.report),
            SearchEnd::Gone => {}
            SearchEnd::Failed(error, waited) => {
                context.output.diagnostic(not_found(&self.id, &error, waited))
            }
        }
    }

    /// Others may have changed the sandbox meanwhile, or removed it, or made another one of the same name. How many
    /// processes were killed for want of memory, as far as it shows at the end.
    fn end(
        &self,
        context: &Context,
        host: &Host,
        me: &ProcessIdentity,
        sandbox: Sandbox,
    ) -> Result<Option<u64>> {
        let entry = match context.store(host).lock(&self.id, context.global.timeout) {
            // The state directory cannot be written to, or is gone. Nobody else removes the sandbox then.
            Err(error) if error.kind() == ErrorKind::State && !self.keep => {
                context.output.error(&error);
                return Ok(sandbox.destroy(Remaining::Kill, context.global.timeout)?.events.oom_kill);
            }
            entry => entry?,
        };
        let Some(mut state) = entry.load()?.filter(|state| state.holder.as_ref() == Some(me)) else {
            return Ok(None);
        };
        if self.keep {
            entry.tell_watchers_now(&sandbox);
            (state.holder, state.placeholder) = (None, None);
            state.apart.iter_mut().for_each(|apart| apart.placeholder = None);
            return entry.save(&state).map(|()| None);
        }
        drop(sandbox);
        let outcome = entry.remove_recorded(host, state, Remaining::Kill, context.global.timeout)?;
        context.output.report_always(&outcome.report);
        Ok(outcome.events.oom_kill)
    }

    /// On stderr, since stdout is the command's.
    fn tell_of_oom(&self, context: &Context, kills: Option<u64>) {
        let Some(count) = kills.filter(|kills| *kills > 0) else { return };
        let event = json!({"id": self.id, "event": "oom_kill", "count": count});
        let words = if count == 1 {
            format!("{}: out of memory: the kernel killed a process inside", self.id)
        } else {
            format!("{}: out of memory: the kernel killed {count} processes inside", self.id)
        };
        context.output.tell(&event, words);
    }
}

/// Starts the command. One that is supervised finds its scope held, and a separate overhead's, so that systemd does not
/// remove it, with what was counted inside, before we have read that.
fn start(sandbox: &Sandbox, command: &Command, is_supervised: bool) -> Result<(Child, Vec<Hold>)> {
    let scopes = std::iter::once(sandbox).chain(sandbox.overhead());
    let scopes = scopes.filter(|one| is_supervised && one.state().path.is_systemd());
    let held = scopes.map(Sandbox::hold_meanwhile).collect::<Result<Vec<_>>>()?;
    match sandbox.spawn(command) {
        // A limit of one task leaves no room for another.
        Err(error) if !held.is_empty() && error.errno() == Some(Errno::EAGAIN as i32) => {
            drop(held);
            Ok((sandbox.spawn(command)?, Vec::new()))
        }
        spawned => Ok((spawned?, held)),
    }
}

/// Whether the threads of vCPUs can be told from the others, and somebody said how: QEMU names them only when it is told to.
fn is_worth_looking(state: &State) -> bool {
    !state.part_paths().is_empty()
        && (!state.vcpu_hints.is_empty() || state.pin.is_some() || state.profile != Profile::Qemu)
}

/// A command as it was typed.
pub fn command(words: &[OsString], detached: bool) -> Result<Command> {
    let (program, args) =
        words.split_first().ok_or_else(|| Error::invalid("command", "", "takes a program"))?;
    let command = Command::new(program).args(args);
    if !detached {
        return Ok(command);
    }
    // A pipe that it kept open would make whoever reads our output wait for it.
    Ok(command.new_session().stdin(null()?).stdout(null()?).stderr(null()?))
}

fn this_process() -> Result<ProcessIdentity> {
    let me = ProcessIdentity::of(std::process::id());
    me.ok_or_else(|| {
        Error::new(ErrorKind::Kernel, "cannot read who this process is").with_path("/proc/self/stat")
    })
}
