//! The life of a sandbox, stage by stage: time, and system calls.
//!
//! | stage | what is done |
//! | --- | --- |
//! | create | the cgroup with limits on CPU time, memory and tasks and ten rules for devices, and a process joined |
//! | set | another limit on tasks |
//! | devices | one device more is allowed |
//! | spawn | from the call to the end of a program of three instructions, which was started inside |
//! | destroy | of an empty cgroup |
//!
//! The managers take turns, a whole life each. What they are compared with is bare system calls without a check or a way
//! back; beside them stand those with the checks that `crates/ringfence/tests/it/budget.rs` spells out.

use std::time::{Duration, Instant};

use ringfence::Host;

use crate::manager::{self, Manager, Program};
use crate::race::Spread;
use crate::sandbox::Sleeper;
use crate::table::Table;
use crate::{Result, calls};

pub const STAGES: [&str; 5] = ["create", "set", "devices", "spawn", "destroy"];

/// A process that joins and leaves again.
struct Guest {
    process: Sleeper,
    /// Where it came from, by hierarchy.
    homes: Vec<std::path::PathBuf>,
    bare: std::cell::RefCell<manager::bare::Bare>,
}

impl Guest {
    fn new(host: &Host) -> Result<Self> {
        let process = Sleeper::start()?;
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let mut homes = Vec::new();
        for hierarchy in &host.hierarchies {
            let is_it = |line: &&str| {
                let names = line.split(':').nth(1).unwrap_or_default();
                let name = hierarchy.name.as_ref().map(|name| format!("name={name}"));
                let first = hierarchy.controllers.first().map(|controller| controller.v1_name().to_owned());
                match hierarchy.version {
                    ringfence::Version::V2 => names.is_empty(),
                    ringfence::Version::V1 => {
                        let wanted = name.or(first).unwrap_or_default();
                        names.split(',').any(|name| name == wanted)
                    }
                }
            };
            let line = own.lines().find(is_it).ok_or("a hierarchy is not in /proc/self/cgroup")?;
            let path = line.splitn(3, ':').nth(2).unwrap_or_default().trim_start_matches('/');
            homes.push(hierarchy.root.join(path).join("cgroup.procs"));
        }
        let bare = manager::bare::Bare::new(host).into();
        Ok(Self { process, homes, bare })
    }

    fn go_home(&self) -> Result<()> {
        for home in &self.homes {
            std::fs::write(home, self.process.id().to_string())?;
        }
        Ok(())
    }
}

/// One life; what is measured of each stage is `around` it.
fn live(
    manager: &mut dyn Manager,
    guest: &Guest,
    program: &Program,
    number: usize,
    around: &mut dyn FnMut(usize, &mut dyn FnMut() -> Result<()>) -> Result<()>,
) -> Result<()> {
    let name = format!("rf-bench-{}-{number}", std::process::id());
    if let Err(error) = around(0, &mut || manager.create(&name, guest.process.id())) {
        // What is left of it.
        guest.go_home()?;
        _ = guest.bare.borrow_mut().remove(&name);
        return Err(error);
    }
    let mut stages = || {
        // What a peer cannot do at all is left out for it.
        _ = around(1, &mut || manager.set(manager::PIDS + 1));
        _ = around(2, &mut || manager.allow(manager::RULES));
        // Behind it, memory is copied page by page where it is written to: the last one.
        _ = around(3, &mut || manager.spawn(program));
        guest.go_home()
    };
    let lived = stages();
    around(4, &mut || manager.destroy())?;
    lived
}

/// How many lives, after those that warm up.
const LIVES: usize = 101;
const WARM_UP: usize = 5;

pub fn run() -> Result<()> {
    let host = Host::detect()?;
    let guest = Guest::new(&host)?;
    let program = Program::new()?;
    let mut managers = manager::all(&host);
    let mut times = vec![[const { Vec::new() }; STAGES.len()]; managers.len()];
    let mut failures: Vec<Vec<String>> = vec![Vec::new(); managers.len()];
    let mut number = 0;
    for round in 0..WARM_UP + lives() {
        // Nobody always comes first.
        for turn in 0..managers.len() {
            let at = (round + turn) % managers.len();
            let (mine, wrong) = (&mut times[at], &mut failures[at]);
            if wrong.iter().any(|why| why.starts_with("create")) {
                continue;
            }
            number += 1;
            let mut around = |stage: usize, work: &mut dyn FnMut() -> Result<()>| {
                let begun = Instant::now();
                let done = work();
                let took = begun.elapsed();
                match &done {
                    Ok(()) if round >= WARM_UP => mine[stage].push(took.as_secs_f64()),
                    Ok(()) => {}
                    Err(error) => {
                        let why = format!("{}: {error}", STAGES[stage]);
                        if !wrong.contains(&why) {
                            wrong.push(why);
                        }
                    }
                }
                done
            };
            _ = live(managers[at].1.as_mut(), &guest, &program, number, &mut around);
            // The kernel removes in the background.
            if cfg!(not(debug_assertions)) {
                std::thread::sleep(Duration::from_micros(300));
            }
        }
    }
    let calls = calls::count()?;
    println!("## Life of a sandbox ({}, {} lives)\n", crate::machine(&host), lives());
    let mut table = Table::new(&["stage", "manager", "median", "quartiles", "ratio", "system calls"]);
    for (stage, name) in STAGES.iter().enumerate() {
        for (at, (manager, _)) in managers.iter().enumerate() {
            let counted = calls.get(&(manager.clone(), (*name).to_owned()));
            let counted = counted.map_or("–".to_owned(), usize::to_string);
            let (mine, floor) = (&times[at][stage], &times[0][stage]);
            if mine.len() < lives() / 2 {
                table.row([*name, manager, "cannot", "", "", ""].map(str::to_owned));
                continue;
            }
            let spread = Spread::of(mine.clone());
            let ratio = spread.median / Spread::of(floor.clone()).median;
            table.row([
                (*name).to_owned(),
                manager.clone(),
                format!("{:.0} µs", spread.median * 1e6),
                format!("{:.0}–{:.0}", spread.low * 1e6, spread.high * 1e6),
                format!("{ratio:.2}"),
                counted,
            ]);
        }
    }
    println!("{table}");
    for ((manager, _), wrong) in managers.iter().zip(&failures) {
        wrong.iter().for_each(|why| println!("{manager} cannot: {why}"));
    }
    println!();
    Ok(())
}

/// A few for a quick look.
fn lives() -> usize {
    std::env::var("RINGFENCE_BENCH_LIVES").ok().and_then(|lives| lives.parse().ok()).unwrap_or(LIVES)
}

/// What strace(1) looks at: two lives of each manager, the second of which is marked.
pub fn traced() -> Result<()> {
    let host = Host::detect()?;
    let guest = Guest::new(&host)?;
    let program = Program::new()?;
    let mut number = 0;
    for (name, mut manager) in manager::all(&host) {
        for is_measured in [false, true] {
            number += 1;
            let mut around = |stage: usize, work: &mut dyn FnMut() -> Result<()>| {
                let mark = |what: &str| {
                    let path = format!("{}{name}/{}/{what}", crate::strace::MARK, STAGES[stage]);
                    is_measured.then(|| std::path::Path::new(&path).exists())
                };
                mark("begin");
                let done = work();
                mark(if done.is_ok() { "end" } else { "failed" });
                done
            };
            _ = live(manager.as_mut(), &guest, &program, number, &mut around);
        }
    }
    Ok(())
}
