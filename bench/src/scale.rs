//! What one sandbox more costs beside ten, and beside ten thousand.
//!
//! All are made by Ringfence, below one parent, without a process. Of most of them the state alone is kept, as by a command
//! that ends; `RINGFENCE_BENCH_SANDBOXES` makes fewer.

use std::time::Instant;

use ringfence::{Host, Sandbox, State};

use crate::Result;
use crate::manager::bare::Bare;
use crate::manager::ours::Ours;
use crate::race::Spread;
use crate::table::Table;

const NUMBERS: [usize; 4] = [10, 100, 1_000, 10_000];

/// One more is made so often.
const REPEATS: usize = 41;

/// The sandboxes, which are removed whatever happens.
struct Crowd {
    parent: String,
    bare: Bare,
    states: Vec<State>,
}

impl Crowd {
    fn name(&self, what: impl std::fmt::Display) -> String {
        format!("{}/{what}", self.parent)
    }

    fn grow(&mut self, host: &Host, number: usize) -> Result<()> {
        while self.states.len() < number {
            let (sandbox, _) = Sandbox::create(host, &Ours::config(&self.name(self.states.len()))?)?;
            self.states.push(sandbox.state());
        }
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for number in 0..self.states.len() {
            _ = self.bare.remove(&self.name(number));
        }
        if let Err(error) = self.bare.remove(&self.parent) {
            eprintln!("{} is left behind: {error}", self.parent);
        }
    }
}

/// Microseconds.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let begun = Instant::now();
    let done = work()?;
    Ok((begun.elapsed().as_secs_f64() * 1e6, done))
}

pub fn run() -> Result<()> {
    let host = Host::detect()?;
    let parent = format!("rf-scale-{}", std::process::id());
    let mut crowd = Crowd { parent, bare: Bare::new(&host), states: Vec::new() };
    let most = std::env::var("RINGFENCE_BENCH_SANDBOXES").ok().and_then(|most| most.parse().ok());
    println!("## Scale ({})\n", crate::machine(&host));
    let head = [
        "sandboxes",
        "create",
        "bare create",
        "ratio",
        "destroy",
        "bare destroy",
        "ls, each",
        "sample, each",
        "descriptors of readers",
        "memory, each",
        "descriptors of handles",
        "memory, each",
    ];
    let mut table = Table::new(&head);
    for number in NUMBERS.into_iter().filter(|number| most.is_none_or(|most| *number <= most)) {
        crowd.grow(&host, number)?;
        let [mut create, mut bare_create, mut destroy, mut bare_destroy] = [const { Vec::new() }; 4];
        let more = crowd.name("more");
        for _ in 0..REPEATS {
            let (time, (sandbox, _)) = timed(|| Ok(Sandbox::create(&host, &Ours::config(&more)?)?))?;
            create.push(time);
            let refuse = ringfence::Remaining::Refuse;
            destroy.push(timed(|| Ok(sandbox.destroy(refuse, std::time::Duration::from_secs(5))?))?.0);
            bare_create.push(timed(|| crowd.bare.make(&more))?.0);
            bare_destroy.push(timed(|| crowd.bare.remove(&more))?.0);
        }
        let (ls, ()) = timed(|| {
            for state in &crowd.states {
                Sandbox::restore(&host, state.clone())?.status()?;
            }
            Ok(())
        })?;
        // Of all: as far as the limit of descriptors lets them, they keep their files and directories open.
        let (files, memory) = (open_files()?, allocated());
        let restored = |state: &State| Ok(Sandbox::restore(&host, state.clone())?);
        let readers = crowd.states.iter().map(|state| Ok(restored(state)?.stats_reader()?));
        let mut readers = readers.collect::<Result<Vec<_>>>()?;
        let mut sample_all = || Ok(readers.iter_mut().try_for_each(|reader| reader.sample().map(drop))?);
        sample_all()?;
        let reading = (open_files()? - files, (allocated() - memory) / number as f64);
        let mut sample = Vec::new();
        for _ in 0..5 {
            sample.push(timed(&mut sample_all)?.0 / number as f64);
        }
        drop(readers);
        let memory = allocated();
        let held = crowd.states.iter().map(restored).collect::<Result<Vec<_>>>()?;
        let holding = (open_files()? - files, (allocated() - memory) / number as f64);
        drop(held);
        let median = |values: Vec<f64>| Spread::of(values).median;
        let (create, bare) = (median(create), median(bare_create));
        let times = [create, bare, create / bare, median(destroy), median(bare_destroy), ls / number as f64];
        let [create, bare, ratio, destroy, bare_destroy, ls] = times;
        table.row([
            number.to_string(),
            format!("{create:.0} µs"),
            format!("{bare:.0} µs"),
            format!("{ratio:.2}"),
            format!("{destroy:.0} µs"),
            format!("{bare_destroy:.0} µs"),
            format!("{ls:.0} µs"),
            format!("{:.1} µs", median(sample)),
            reading.0.to_string(),
            format!("{:.1} KiB", reading.1),
            holding.0.to_string(),
            format!("{:.1} KiB", holding.1),
        ]);
    }
    println!("{table}");
    println!(
        "RLIMIT_NOFILE: {}.\n",
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
    );
    Ok(())
}

fn open_files() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

/// KiB that the program has allocated.
fn allocated() -> f64 {
    // SAFETY: it takes nothing and only counts.
    let counted = unsafe { libc::mallinfo2() };
    (counted.uordblks + counted.hblkhd) as f64 / 1024.0
}
