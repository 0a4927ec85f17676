//! `classify`: the threads of a virtual machine, each where it belongs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use ringfence::{
    Entry, Error, ErrorKind, Host, Pin, Placed, Report, Result, Sandbox, SandboxId, State, VcpuHints,
};
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;
use crate::limits::VcpuOptions;

/// How long a VMM may take to make its vCPU threads, where `run` looks for them.
const AT_START: Duration = Duration::from_secs(30);
/// For one look: a monitor answers slowly while the machine starts within its limits.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Find the threads that run the guest's CPUs, and move all others to the overhead; pin them, where --pin was said
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
        let (placed, state) =
            classify(context, &host, &self.id, &self.vcpus.hints(), context.global.timeout)?;
        context.output.report(&placed.report);
        let Placed { vcpus, overhead, moved, report } = placed;
        let shown = json!({
            "id": self.id, "vcpus": vcpus, "overhead": overhead, "moved": moved, "pinned": state.pinned,
            "report": report,
        });
        let pinned =
            if state.pinned.is_empty() { String::new() } else { format!("; {}", pins(&state.pinned)) };
        let line = format!("{vcpus} threads of vCPUs, {overhead} others; {moved} moved{pinned}");
        context.unsupported().mind(&report)?;
        context.output.object(&shown, line)?;
        Ok(Exit::Done)
    }
}

/// vCPUs and the CPUs that they are pinned to.
pub fn pins(pinned: &BTreeMap<u32, u32>) -> String {
    let each: Vec<_> = pinned.iter().map(|(vcpu, cpu)| format!("vCPU {vcpu} on CPU {cpu}")).collect();
    each.join(", ")
}

/// Threads are looked for without the lock, and moved under it.
fn classify(
    context: &Context,
    host: &Host,
    id: &SandboxId,
    hints: &VcpuHints,
    within: Duration,
) -> Result<(Placed, State)> {
    let state = context.state(host, id)?;
    if state.part_paths().is_empty() {
        let why = "nested or separate: this sandbox has no parts into which threads could be told apart";
        return Err(Error::invalid("overhead", "together", why));
    }
    let found = Sandbox::restore(host, state)?.find_vcpus(hints, within)?;
    let (entry, sandbox) = context.open(host, id)?;
    let mut placed = sandbox.place(&found)?;
    entry.save(&sandbox.state())?;
    placed.report.append(pin(context, host, &entry, &sandbox));
    Ok((placed, sandbox.state()))
}

/// Pins vCPUs as the sandbox wants it; says why, where that cannot be.
pub fn pin(context: &Context, host: &Host, entry: &Entry, sandbox: &Sandbox) -> Report {
    let state = sandbox.state();
    if state.pin.is_none() && state.pinned.is_empty() {
        return Report::default();
    }
    entry.pin_vcpus(host, sandbox, context.global.timeout).unwrap_or_else(|error| {
        let mut report = Report::default();
        let wanted = state.pin.map_or("none", Pin::as_str);
        report.add("pin", wanted, format!("not pinned: {error}"));
        report
    })
}

/// Does the same for a VMM that was just started, and says what could not be done: nothing fails for it. Given up when it
/// `has_ended`.
pub fn at_start(context: &Context, host: &Host, id: &SandboxId, has_ended: impl Fn() -> bool) {
    let deadline = Instant::now() + AT_START;
    let error = loop {
        match classify(context, host, id, &VcpuHints::default(), AT_ONCE) {
            Ok((placed, _)) => return context.output.report(&placed.report),
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
