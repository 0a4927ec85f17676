//! Four state directories in two mount namespaces and a foreign manager race for the same paths: nothing foreign is killed,
//! moved or removed, and everything of ours goes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::soak::is_soak;
use crate::support::{binary, by_systemd, directories_named, driver, hierarchies, is_alive, send};
use rustix::process::Signal;

testbed! {
    drivers: "cgroupfs systemd";
    gate: "host trixie";
    soak: "host trixie bw-legacy";
    guest: "own";
}

/// The last components of the paths for which all of them race.
const PATHS: [&str; 3] = ["one", "two", "three"];

/// The directory of a store, and the one over which it is mounted in a namespace of its own: that of another store.
struct Store {
    number: usize,
    directory: PathBuf,
    seen_as: PathBuf,
}

/// Numbers without a pattern, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// State shared by the stores and the foreign manager: the paths, the end of the race, and what was seen to go wrong.
struct Race {
    name: String,
    until: Instant,
    violations: Mutex<Vec<String>>,
    won: AtomicUsize,
    lost: AtomicUsize,
    foreign: AtomicUsize,
    seed: AtomicU64,
}

impl Race {
    fn goes_on(&self) -> bool {
        Instant::now() < self.until && self.violations.lock().unwrap().is_empty()
    }

    fn expects(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violations.lock().unwrap().push(what());
        }
    }

    fn dice(&self) -> Dice {
        Dice(self.seed.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed))
    }

    fn path(&self, name: &str) -> String {
        if by_systemd() {
            format!("ringfence.slice:ringfence:{}-{name}", self.name)
        } else {
            format!("/{}/{name}", self.name)
        }
    }
}

impl Store {
    /// `ringfence ARGS` on this store, in its mount namespace.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = if self.directory == self.seen_as {
            Command::new(binary())
        } else {
            let mut command = Command::new("unshare");
            let script = "mount --bind \"$0\" \"$1\" && shift && exec \"$@\"";
            command.args(["-m", "sh", "-c", script]).arg(&self.directory).arg(&self.seen_as).arg(binary());
            command
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("RINGFENCE_") {
                command.env_remove(name);
            }
        }
        let states = self.seen_as.join("states");
        command.env("RINGFENCE_DRIVER", driver()).args(["--timeout", "30", "--state-dir"]).arg(states);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn does(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let output = self.command(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Starts, removes, marks and collects, and is killed at it, until the time is over.
    fn races(&self, race: &Race) {
        let mut dice = race.dice();
        let id = format!("id{}", self.number);
        while race.goes_on() {
            let path = race.path(PATHS[dice.roll(PATHS.len() as u64) as usize]);
            let run =
                ["-q", "run", &id, "--detach", "--profile", "none", "--path", &path, "--", "sleep", "1000"];
            if dice.roll(3) == 0 {
                // It dies somewhere on its way.
                let mut child = self.command(&run).spawn().unwrap();
                std::thread::sleep(Duration::from_millis(dice.roll(40)));
                _ = child.kill();
                child.wait().unwrap();
                self.clears(race, &id);
                continue;
            }
            let (code, stdout, stderr) = self.does(&run);
            let Some(pid) = stdout.trim().parse::<u32>().ok().filter(|_| code == Some(0)) else {
                race.expects(code == Some(125), || format!("store {}: run: {code:?} {stderr}", self.number));
                race.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            race.won.fetch_add(1, Ordering::Relaxed);
            for _ in 0..dice.roll(6) {
                std::thread::sleep(Duration::from_millis(dice.roll(20)));
                match dice.roll(4) {
                    0 => drop(self.does(&["gc", "--apply", "--kill"])),
                    1 => drop(self.does(&["exec", &id, "--", "true"])),
                    2 => drop(self.does(&["repair", &id])),
                    _ => drop(self.does(&["ls"])),
                }
                race.expects(is_alive(pid), || format!("store {}: its VM was killed", self.number));
            }
            if dice.roll(3) == 0 {
                // A removal that dies somewhere on its way.
                let mut child = self.command(&["rm", &id, "--kill"]).spawn().unwrap();
                std::thread::sleep(Duration::from_millis(dice.roll(30)));
                _ = child.kill();
                child.wait().unwrap();
            }
            self.clears(race, &id);
            race.expects(!is_alive(pid), || format!("store {}: rm --kill left its VM", self.number));
        }
    }

    /// Removes what there is of its sandbox.
    fn clears(&self, race: &Race, id: &str) {
        let (code, _, stderr) = self.does(&["rm", id, "--kill"]);
        race.expects(matches!(code, Some(0 | 3)), || {
            format!("store {}: rm --kill: {code:?} {stderr}", self.number)
        });
        let (code, _, stderr) = self.does(&["gc", "--apply", "--kill"]);
        race.expects(code == Some(0), || format!("store {}: gc: {code:?} {stderr}", self.number));
    }
}

/// A manager that knows nothing of marks: it makes the same paths, puts a process in, and removes them again.
fn foreign_manager(race: &Race) {
    let mut dice = race.dice();
    while race.goes_on() {
        let path = format!("{}/{}", race.name, PATHS[dice.roll(PATHS.len() as u64) as usize]);
        let mut made = Vec::new();
        for hierarchy in hierarchies() {
            let directory = hierarchy.point.join(&path);
            if fs::create_dir(&directory).is_err() {
                break;
            }
            made.push(directory);
        }
        let has_all = made.len() == hierarchies().len() && made.iter().all(|directory| is_fit(directory));
        if has_all {
            let mut process = Command::new("sleep");
            let process = process.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
            lives_on(race, &mut dice, &made, process);
        }
        for directory in &made {
            // The process leaves a moment after it was waited for.
            let deadline = Instant::now() + Duration::from_secs(10);
            while fs::remove_dir(directory).is_err() {
                let is_there = directory.exists();
                race.expects(is_there || !has_all, || format!("{directory:?} was removed by others"));
                if !is_there || Instant::now() > deadline {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        std::thread::sleep(Duration::from_millis(dice.roll(20)));
    }
}

/// v1: nothing joins a cpuset that has no CPUs.
fn is_fit(directory: &Path) -> bool {
    ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| directory.join("tasks").exists()).all(|file| {
        let above = fs::read(directory.parent().unwrap().join(file));
        above.is_err() || fs::write(directory.join(file), above.unwrap()).is_ok()
    })
}

fn lives_on(race: &Race, dice: &mut Dice, made: &[PathBuf], mut process: Child) {
    let joins = |directory: &PathBuf| fs::write(directory.join("cgroup.procs"), process.id().to_string());
    if made.iter().all(|directory| joins(directory).is_ok()) {
        race.foreign.fetch_add(1, Ordering::Relaxed);
        let places = || fs::read_to_string(format!("/proc/{}/cgroup", process.id())).unwrap_or_default();
        let before = places();
        std::thread::sleep(Duration::from_millis(dice.roll(60)));
        race.expects(is_alive(process.id()), || "a foreign process was killed".to_owned());
        race.expects(places() == before, || format!("a foreign process was moved: {before} {}", places()));
        race.expects(made.iter().all(|directory| directory.exists()), || {
            "a foreign cgroup is gone".to_owned()
        });
    }
    _ = process.kill();
    _ = process.wait();
}

/// Stores and a foreign manager on the same paths, for a minute, or ten in a soak; a fifth of that in a guest.
#[test]
fn racing_stores_and_a_foreign_manager_harm_nobody() {
    let whole = if is_soak() { 600 } else { 30 };
    let scratch = tempfile::tempdir().unwrap();
    let directory = |number: usize| {
        let directory = scratch.path().join(format!("store{number}"));
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        directory
    };
    let own = [directory(0), directory(1)];
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let stores = [0, 1, 2, 3].map(|number| Store {
        number,
        directory: own.get(number).cloned().unwrap_or_else(|| directory(number)),
        seen_as: own[number % 2].clone(),
    });
    let race = Race {
        name: format!("rf-stress-{}", std::process::id()),
        until: Instant::now() + Duration::from_secs(whole),
        violations: Mutex::default(),
        won: AtomicUsize::default(),
        lost: AtomicUsize::default(),
        foreign: AtomicUsize::default(),
        seed: AtomicU64::new(seed),
    };
    std::thread::scope(|scope| {
        for store in &stores {
            let race = &race;
            scope.spawn(move || store.races(race));
        }
        if !by_systemd() {
            scope.spawn(|| foreign_manager(&race));
        }
    });
    for store in &stores {
        store.clears(&race, &format!("id{}", store.number));
    }
    let (won, lost, foreign) =
        [&race.won, &race.lost, &race.foreign].map(|count| count.load(Ordering::Relaxed)).into();
    println!("{won} won, {lost} lost, {foreign} foreign");
    let mut left: Vec<_> = PATHS
        .iter()
        .flat_map(|name| {
            directories_named(&if by_systemd() {
                format!("ringfence-{}-{name}.scope", race.name)
            } else {
                (*name).to_owned()
            })
        })
        .collect();
    left.extend(directories_named(&race.name));
    for directory in &left {
        for pid in fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default().lines() {
            _ = pid.parse().map(|pid| send(pid, Signal::KILL));
        }
        _ = fs::remove_dir(directory);
    }
    let violations = race.violations.into_inner().unwrap();
    assert!(violations.is_empty(), "seed {seed}: {violations:#?}");
    assert!(left.is_empty(), "seed {seed}: left behind: {left:#?}");
    assert!(
        won > 0 && lost > 0 && (foreign > 0 || by_systemd()),
        "{won} won, {lost} lost, {foreign} foreign"
    );
}
