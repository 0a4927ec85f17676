//! Ringfence beside other cgroup managers, as ratios within one run: `make bench`, or `cargo run --release -- NAME…`.
//!
//! A file per benchmark; each makes cgroups of its own (`rf-bench-PID`) and removes them. Times depend on the machine and
//! on what else runs there, so that nothing is asserted.

mod calls;
mod life;
mod manager;
mod plot;
mod race;
mod sandbox;
mod scale;
mod start;
mod stats;
// What the budgets of the library are counted with.
#[path = "../../crates/ringfence/tests/it/support/strace.rs"]
mod strace;
mod table;
mod units;
mod ways;

use std::error::Error;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

type Benchmark = fn() -> Result<()>;

const BENCHMARKS: [(&str, Benchmark); 6] = [
    ("start", start::run),
    ("life", life::run),
    ("stats", stats::run),
    ("scale", scale::run),
    ("units", units::run),
    ("ways", ways::run),
];

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted == [calls::TRACED] {
        return life::traced();
    }
    if let [plot, results] = wanted.as_slice()
        && plot == "--plot"
    {
        print!("{}", plot::svg(&std::fs::read_to_string(results)?)?);
        return Ok(());
    }
    if let Some(unknown) = wanted.iter().find(|name| BENCHMARKS.iter().all(|(known, _)| known != name)) {
        let known: Vec<&str> = BENCHMARKS.iter().map(|(name, _)| *name).collect();
        return Err(format!("no benchmark is called {unknown}: there are {}", known.join(", ")).into());
    }
    // Readers of many sandboxes keep many files open.
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let all = rustix::process::Rlimit { current: most, maximum: most };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all)?;
    for (name, run) in BENCHMARKS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            run()?;
        }
    }
    Ok(())
}

/// What the numbers are from.
fn machine(host: &ringfence::Host) -> String {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cpu = cpu.trim_start_matches([' ', '\t', ':']);
    format!("cgroup {}, Linux {kernel}, {cpu}", host.mode.as_str())
}

/// The version of a crate in the lock file.
fn version(name: &str) -> &'static str {
    let entry = format!("name = \"{name}\"\nversion = \"");
    let after = include_str!("../Cargo.lock").split_once(&entry).map_or("", |(_, after)| after);
    after.split('"').next().unwrap_or_default()
}
