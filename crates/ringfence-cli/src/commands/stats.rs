//! `stats`: what sandboxes use.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use ringfence::stats::{CpuStats, MemoryStats, Stats as Sample};
use ringfence::{Host, Limit, Part, Result, Sandbox, SandboxId, StatsReader, unless_gone};
use serde::Serialize;

use crate::context::{Context, seconds as parse_seconds};
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
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parts: BTreeMap<Part, SampledPart>,
}

#[derive(Debug, Serialize)]
struct SampledPart {
    cpu: CpuStats,
    /// Where it has processes of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryStats>,
}

/// The readers of one sandbox: of the whole, and of each part.
struct Readers {
    id: SandboxId,
    /// The overhead is separate: its memory is not the whole's.
    is_separate: bool,
    whole: StatsReader,
    parts: BTreeMap<Part, StatsReader>,
}

impl Readers {
    fn of(host: &Host, context: &Context, id: &SandboxId) -> Result<Self> {
        let state = context.state(host, id)?;
        let (parts, is_separate) = (state.part_paths(), state.apart.is_some());
        let sandbox = Sandbox::restore(host, state)?;
        // The scope of a separate overhead may have no process now.
        let reader = |part| Ok(unless_gone(sandbox.part_stats_reader(part))?.map(|reader| (part, reader)));
        let parts = parts.into_keys().filter_map(|part| reader(part).transpose()).collect::<Result<_>>()?;
        Ok(Self { id: id.clone(), is_separate, whole: sandbox.stats_reader()?, parts })
    }

    fn sample(&mut self) -> Result<Sampled> {
        let sample = self.whole.sample()?.clone();
        let is_separate = self.is_separate;
        let part = |(part, reader): (&Part, &mut StatsReader)| {
            let sample = unless_gone(reader.sample())?;
            let memory = |sample: &Sample| is_separate.then(|| sample.memory.clone());
            Ok(sample.map(|sample| (*part, SampledPart { cpu: sample.cpu, memory: memory(sample) })))
        };
        let parts = self.parts.iter_mut().filter_map(|one| part(one).transpose()).collect::<Result<_>>()?;
        Ok(Sampled { id: self.id.clone(), sample, parts })
    }
}

impl Stats {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        let (mut readers, exit) = self.readers(context, &host)?;
        loop {
            let mut sampled = Vec::new();
            let mut left = Vec::new();
            for mut reader in readers {
                if let Some(sample) = unless_gone(reader.sample())? {
                    sampled.push(sample);
                    left.push(reader);
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
    fn readers(&self, context: &Context, host: &Host) -> Result<(Vec<Readers>, Exit)> {
        let reader = |id: &SandboxId| Readers::of(host, context, id);
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
    let mut row = |name: String, cpu: &CpuStats, memory: &MemoryStats, pids: Option<u64>| {
        table.row([
            name,
            or_dash(cpu.usage_us.map(seconds)),
            or_dash(cpu.throttled_us.map(seconds)),
            or_dash(memory.current.map(bytes)),
            or_dash(memory.peak.map(bytes)),
            limit(memory.limit),
            or_dash(memory.swap_current.map(bytes)),
            or_dash(pids),
        ]);
    };
    for Sampled { id, sample, parts } in sampled {
        row(id.to_string(), &sample.cpu, &sample.memory, sample.pids.current);
        for (part, SampledPart { cpu, memory }) in parts {
            row(format!("{id}/{part}"), cpu, &memory.clone().unwrap_or_default(), None);
        }
    }
    table
}
