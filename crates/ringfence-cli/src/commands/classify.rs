//! `classify`: the threads of a virtual machine, each where it belongs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use ringfence::{
    Entry, Error, ErrorKind, Host, Pin, Placed, ProcessIdentity, Report, Result, Sandbox, SandboxId, State,
    VcpuHints,
};
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;
use crate::limits::VcpuOptions;

/// How long `run` waits for a VMM to make its vCPU threads.
pub const AT_START: Duration = Duration::from_secs(30);
/// The first attempt of `run`, after which it says what it waits for.
const FIRST_ATTEMPT: Duration = Duration::from_secs(1);
/// Each later attempt: a QEMU that starts within its limits answers slowly on its monitor.
const LATER_ATTEMPT: Duration = Duration::from_secs(5);

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
            classify(context, &host, &self.id, &self.vcpus.hints(), context.global.timeout, None)?;
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

/// Finds threads without the lock of the sandbox, and moves them under it. With a `holder`, only in the sandbox that this
/// process answers for, not in a later one of the same name.
fn classify(
    context: &Context,
    host: &Host,
    id: &SandboxId,
    hints: &VcpuHints,
    within: Duration,
    holder: Option<&ProcessIdentity>,
) -> Result<(Placed, State)> {
    let check_holder = |state: &State| match holder {
        Some(_) if state.holder.as_ref() != holder => {
            Err(Error::new(ErrorKind::NotFound, "the sandbox was removed, and its name used again")
                .with_value(id))
        }
        _ => Ok(()),
    };
    let state = context.state(host, id)?;
    check_holder(&state)?;
    if state.part_paths().is_empty() {
        let why = "nested or separate: this sandbox has no parts into which threads could be told apart";
        return Err(Error::invalid("overhead", "together", why));
    }
    let found = Sandbox::restore(host, state)?.find_vcpus(hints, within)?;
    let (entry, sandbox) = context.open(host, id)?;
    check_holder(&sandbox.state())?;
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

/// The search for the vCPU threads of a VMM that was just started.
pub struct StartSearch<'a> {
    pub context: &'a Context,
    pub host: &'a Host,
    pub id: &'a SandboxId,
    /// The process that answers for the sandbox, by which it is known from a later one of the same name.
    pub holder: &'a ProcessIdentity,
    pub within: Duration,
}

/// How a search for vCPU threads ended.
pub enum SearchEnd {
    /// The threads were found and moved.
    Placed(Placed),
    /// The VMM has ended, or the sandbox was removed.
    Gone,
    /// The threads were not found in this time, or could not be moved.
    Failed(Error, Duration),
}

impl StartSearch<'_> {
    /// Searches until the threads are found and moved, the VMM `has_ended`, the sandbox is removed, or the time is over. Calls
    /// `on_wait` once if the first attempt fails.
    pub fn run(&self, has_ended: impl Fn() -> bool, mut on_wait: impl FnMut()) -> SearchEnd {
        let Self { context, host, id, holder, within } = *self;
        let started = Instant::now();
        let mut attempt = FIRST_ATTEMPT;
        loop {
            let left = within.saturating_sub(started.elapsed());
            match classify(context, host, id, &VcpuHints::default(), attempt.min(left), Some(holder)) {
                Ok((placed, _)) => return SearchEnd::Placed(placed),
                Err(error) if error.kind() == ErrorKind::NotFound || has_ended() => return SearchEnd::Gone,
                Err(error) => {
                    let is_over = started.elapsed() >= within;
                    if is_over || !matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Locked) {
                        return SearchEnd::Failed(error, started.elapsed());
                    }
                }
            }
            if attempt == FIRST_ATTEMPT {
                on_wait();
                attempt = LATER_ATTEMPT;
            }
        }
    }
}

/// Says that vCPU threads were not found, and what to do.
pub fn not_found(id: &SandboxId, error: &Error, waited: Duration) -> String {
    format!(
        "the vCPU threads were not found within {:.1} s, so all threads have the limits of the vCPUs: {error}; to search \
         again: ringfence classify {id}",
        waited.as_secs_f64()
    )
}
