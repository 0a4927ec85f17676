//! `stats`: what sandboxes use.

use std::time::Duration;

use clap::Args;
use ringfence::stats::Stats as Sample;
use ringfence::{Host, Limit, Result, Sandbox, SandboxId, StatsReader};
use serde::Serialize;

use crate::context::{Context, seconds as parse_seconds, unless_gone};
use crate::exit::Exit;
use crate::output::{Format, Table, bytes, or_dash, seconds};

/// Print statistics of sandboxes
///
/// Times in microseconds and sizes in bytes in JSON; what this kernel does not have is absent.
#[derive(Debug, Args)]
pub struct Stats {
    /// Names of sandboxes [default: all]
    #[arg(value_name = "ID")]
    ids: Vec<SandboxId>,

    /// Print again every so many seconds, until the sandboxes are gone; with -o json one array per line
    #[arg(long, value_name = "SECONDS", value_parser = |text: &str| parse_seconds("interval", text))]
    interval: Option<Duration>,
}

#[derive(Debug, Serialize)]
struct Sampled {
    id: SandboxId,
    #[serde(flatten)]
    sample: Sample,
}

impl Stats {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let (mut readers, exit) = self.readers(context, &host)?;
        loop {
            let mut sampled = Vec::new();
            let mut left = Vec::new();
            for (id, mut reader) in readers {
                if let Some(sample) = unless_gone(reader.sample().cloned())? {
                    sampled.push(Sampled { id: id.clone(), sample });
                    left.push((id, reader));
                }
            }
            match self.interval {
                Some(_) if context.output.format() == Format::Json => context.output.line(&sampled)?,
                _ => context.output.list(&sampled, || table(&sampled))?,
            }
            match self.interval {
                Some(interval) if !left.is_empty() && !context.output.is_closed() => {
                    std::thread::sleep(interval)
                }
                _ => return Ok(exit),
            }
            readers = left;
        }
    }

    /// Of the sandboxes that were named, which must be there; or of all that are.
    fn readers(&self, context: &Context, host: &Host) -> Result<(Vec<(SandboxId, StatsReader)>, Exit)> {
        let reader = |id: &SandboxId| {
            let sandbox = Sandbox::restore(host, context.state(host, id)?)?;
            Ok((id.clone(), sandbox.stats_reader()?))
        };
        if self.ids.is_empty() {
            return context.each(host, |id| unless_gone(reader(id)));
        }
        let readers: Result<Vec<_>> = self.ids.iter().map(reader).collect();
        Ok((readers?, Exit::Done))
    }
}

fn table(sampled: &[Sampled]) -> Table {
    let mut table = Table::new(["ID", "CPU", "THROTTLED", "MEMORY", "PEAK", "LIMIT", "SWAP", "PIDS"]);
    let limit = |limit: Option<Limit>| match limit {
        Some(Limit::Value(value)) => bytes(value),
        other => or_dash(other),
    };
    for Sampled { id, sample } in sampled {
        table.row([
            id.to_string(),
            or_dash(sample.cpu.usage_us.map(seconds)),
            or_dash(sample.cpu.throttled_us.map(seconds)),
            or_dash(sample.memory.current.map(bytes)),
            or_dash(sample.memory.peak.map(bytes)),
            limit(sample.memory.limit),
            or_dash(sample.memory.swap_current.map(bytes)),
            or_dash(sample.pids.current),
        ]);
    }
    table
}
