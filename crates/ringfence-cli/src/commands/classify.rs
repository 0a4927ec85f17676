//! `classify`: the threads of a virtual machine, each where it belongs.

use std::time::{Duration, Instant};

use clap::Args;
use ringfence::{Error, ErrorKind, Host, Placed, Result, Sandbox, SandboxId, VcpuHints};
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;
use crate::limits::VcpuOptions;

/// How long a VMM may take to make its vCPU threads, where `run` looks for them.
const AT_START: Duration = Duration::from_secs(30);
/// For one look: a monitor answers slowly while the machine starts within its limits.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Find the threads that run the guest's CPUs, and move all others to the overhead
///
/// For a sandbox whose overhead is nested or separate. In a separate one go helper processes too, and on cgroup v2 they alone:
/// there the threads of a process stay together. Again after a CPU was plugged in: what is in its place stays there.
#[derive(Debug, Args)]
pub struct Classify {
    /// Name of the sandbox
    id: SandboxId,

    #[command(flatten)]
    vcpus: VcpuOptions,
}

impl Classify {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let placed = classify(context, &host, &self.id, &self.vcpus.hints(), context.global.timeout)?;
        context.output.report(&placed.report);
        let Placed { vcpus, overhead, moved, report } = placed;
        let shown =
            json!({"id": self.id, "vcpus": vcpus, "overhead": overhead, "moved": moved, "report": report});
        let line = format!("{vcpus} threads of vCPUs, {overhead} others; {moved} moved");
        context.output.object(&shown, line)?;
        Ok(Exit::Done)
    }
}

/// Threads are looked for without the lock, and moved under it.
fn classify(
    context: &Context,
    host: &Host,
    id: &SandboxId,
    hints: &VcpuHints,
    within: Duration,
) -> Result<Placed> {
    let state = context.state(host, id)?;
    if state.part_paths().is_empty() {
        let why = "nested or separate: this sandbox has no parts into which threads could be told apart";
        return Err(Error::invalid("overhead", "together", why));
    }
    let found = Sandbox::restore(host, state)?.find_vcpus(hints, within)?;
    let (entry, sandbox) = context.open(host, id)?;
    let placed = sandbox.place(&found)?;
    entry.save(&sandbox.state())?;
    Ok(placed)
}

/// Does the same for a VMM that was just started, and says what could not be done: nothing fails for it. Given up when it
/// `has_ended`.
pub fn at_start(context: &Context, host: &Host, id: &SandboxId, has_ended: impl Fn() -> bool) {
    let deadline = Instant::now() + AT_START;
    let error = loop {
        match classify(context, host, id, &VcpuHints::default(), AT_ONCE) {
            Ok(placed) => return context.output.report(&placed.report),
            Err(error)
                if error.kind() == ErrorKind::TimedOut && Instant::now() < deadline && !has_ended() => {}
            Err(error) => break error,
        }
    };
    match error.kind() {
        // It has ended, or somebody removed it.
        ErrorKind::NotFound => {}
        _ if has_ended() => {}
        _ => context.output.diagnostic(format!(
            "the threads of the guest's CPUs were not found, so that all threads have their limits: {error}; \
             `ringfence classify {id}` looks again"
        )),
    }
}
