//! `explain`: the value in effect, and which ancestor decides it.

use clap::Args;
use ringfence::explain::{Ancestors, Decider, Key, Value};
use ringfence::{Explanation, Limit, Part, Result, Sandbox, SandboxId};

use crate::context::Context;
use crate::exit::Exit;
use crate::output::{Format, Table, bytes, or_dash};

/// Explain a limit: the value in effect, and which cgroup on the way from the root decides it
///
/// An ancestor with less wins over what was asked of the sandbox. KEY is a controller (memory, cpu, cpuset, pids, io), a
/// setting of OCI (memory.limit, cpu.quota, hugepageLimits.2MB), or a file of cgroup v2 or v1 (memory.max,
/// cpu.cfs_quota_us); any name is taken on any host. A wrong one is answered with all that there are.
#[derive(Debug, Args)]
pub struct Explain {
    /// Name of the sandbox
    id: SandboxId,

    /// What to explain: memory, cpu.quota, pids.max, …
    key: Key,

    /// Explain it for this part: vcpu or overhead [default: vcpu for cpu and cpuset, where the sandbox has parts]
    #[arg(long)]
    part: Option<Part>,
}

impl Explain {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let sandbox = Sandbox::restore(&host, context.state(&host, &self.id)?)?;
        let explanation = match self.part {
            Some(part) => sandbox.explain_part(part, &self.key)?,
            None => sandbox.explain(&self.key)?,
        };
        context.output.tables(&explanation, &[answer(&explanation), levels(&explanation)])?;
        if let (Format::Table, Some(note)) = (context.output.format(), note(explanation.ancestors)) {
            context.output.words(format_args!("\nnote: {note}"))?;
        }
        Ok(Exit::Done)
    }
}

fn note(ancestors: Ancestors) -> Option<&'static str> {
    match ancestors {
        Ancestors::All => None,
        Ancestors::Visible => Some("/ is not the machine's root, and there may be less above it"),
        Ancestors::None => Some("on cgroup v1 the throttles of a cgroup do not hold for those below it"),
    }
}

/// What is in effect: a row, or one for each throttle.
fn answer(explanation: &Explanation) -> Table {
    let mut table = Table::new(["KEY", "EFFECTIVE", "DECIDED BY"]);
    match (&explanation.effective, &explanation.decided_by) {
        (Value::Throttles(devices), Some(Decider::Throttles(deciders))) => {
            for (device, throttles) in devices {
                let deciders = deciders.get(device).into_iter().flat_map(|deciders| deciders.iter());
                for ((kind, value), (_, path)) in throttles.iter().zip(deciders) {
                    table.row([format!("{device} {kind}"), value.to_string(), path.clone()]);
                }
            }
        }
        (effective, decider) => {
            let path = match decider {
                Some(Decider::Level(path)) => Some(path),
                _ => None,
            };
            table.row([explanation.key.clone(), text(effective), or_dash(path)]);
        }
    }
    table
}

/// What each level has.
fn levels(explanation: &Explanation) -> Table {
    let files = explanation.files.join(" ");
    let heading = if let Value::Throttles(_) = explanation.effective { "THROTTLES" } else { &files };
    let mut table = Table::new(["PATH", heading]);
    for level in &explanation.chain {
        table.row([level.path.clone(), or_dash(level.value.as_ref().map(text))]);
    }
    table
}

/// A value for people; one that says nothing is a dash.
fn text(value: &Value) -> String {
    match value {
        Value::Bytes(Limit::Value(value)) => bytes(*value),
        Value::Bandwidth(bandwidth) => match bandwidth.cpus() {
            Some(cpus) => format!("{bandwidth} ({} CPUs)", (cpus * 1000.0).round() / 1000.0),
            None => bandwidth.to_string(),
        },
        other => Some(other.to_string()).filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned()),
    }
}
