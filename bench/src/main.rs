//! Ringfence beside other cgroup managers, as ratios within one run: `make bench`, or `cargo run --release -- NAME…`.
//!
//! A file per benchmark; each makes cgroups of its own (`rf-bench-PID`) and removes them. Times depend on the machine and
//! on what else runs there, so that nothing is asserted.

mod race;
mod sandbox;
mod stats;

use std::error::Error;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

type Benchmark = fn() -> Result<()>;

const BENCHMARKS: [(&str, Benchmark); 1] = [("stats", stats::run)];

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| BENCHMARKS.iter().all(|(known, _)| known != name)) {
        let known: Vec<&str> = BENCHMARKS.iter().map(|(name, _)| *name).collect();
        return Err(format!("no benchmark is called {unknown}: there are {}", known.join(", ")).into());
    }
    for (name, run) in BENCHMARKS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            run()?;
        }
    }
    Ok(())
}

/// The version of a crate in the lock file.
fn version(name: &str) -> &'static str {
    let entry = format!("name = \"{name}\"\nversion = \"");
    let after = include_str!("../Cargo.lock").split_once(&entry).map_or("", |(_, after)| after);
    after.split('"').next().unwrap_or_default()
}
