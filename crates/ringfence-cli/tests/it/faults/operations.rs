//! The operations, and what must be so after a fault in one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use nix::errno::Errno;

use super::tell;
use super::tracer::{self, Ended, Fault, Hit};
use super::world::{Seen, Start, World, possible};
use crate::support::mode;

/// What may be seen after an operation that was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All is as before, or as it was to be.
    Change,
    /// Threads may be on their way from one part of the sandbox to another; never outside.
    Placing,
    /// What is ended does not come back: the same again comes to the end.
    Ending,
}

pub struct Operation {
    pub name: &'static str,
    pub verb: &'static [&'static str],
    pub options: &'static [&'static str],
    pub start: Start,
    pub kind: Kind,
}

const fn operation(
    name: &'static str,
    verb: &'static [&'static str],
    options: &'static [&'static str],
    start: Start,
    kind: Kind,
) -> Operation {
    Operation { name, verb, options, start, kind }
}

pub const OPERATIONS: &[Operation] = &[
    operation(
        "create",
        &["create"],
        &["--profile", "qemu", "--memory", "64M", "--cpus", "0.5", "--pids", "100", "--cpuset-cpus=0"],
        Start::Nothing,
        Kind::Change,
    ),
    operation(
        "set",
        &["set"],
        &["--memory", "128M", "--cpus", "0.25", "--pids", "50", "--cpu-shares", "256", "--cpuset-cpus=0-1"],
        Start::Ready,
        Kind::Change,
    ),
    operation(
        "devices allow",
        &["devices", "allow"],
        &["c 1:11 rw", "--claim", "log"],
        Start::Ready,
        Kind::Change,
    ),
    operation("devices deny", &["devices", "deny"], &["c 1:5 rwm"], Start::Ready, Kind::Change),
    operation("attach", &["attach"], &["PID"], Start::Outside, Kind::Change),
    operation("classify", &["classify"], &[], Start::Machine, Kind::Placing),
    operation("freeze", &["freeze"], &[], Start::Ready, Kind::Change),
    operation("thaw", &["thaw"], &[], Start::Frozen, Kind::Change),
    operation("rm --kill", &["rm"], &["--kill"], Start::Ready, Kind::Ending),
    operation("rm --drain", &["rm"], &["--drain"], Start::Plain, Kind::Ending),
    operation("gc", &["gc"], &["--apply"], Start::Half, Kind::Ending),
];

#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub calls: u64,
    pub faults: u64,
    pub kills: u64,
    /// Done, and said of what it was that it could not be done.
    pub reported: u64,
    pub violations: Vec<String>,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.faults += other.faults;
        self.kills += other.kills;
        self.reported += other.reported;
        self.violations.extend(other.violations.iter().cloned());
    }
}

pub struct Trial {
    operation: &'static Operation,
    world: World,
    before: Seen,
    after: Seen,
    tally: Tally,
    /// What was left by others that were cut short, and what came of it: the same comes of the same.
    known: BTreeMap<Seen, String>,
    /// Nothing has changed since it was brought about.
    is_as_before: bool,
}

impl Operation {
    fn changes_devices(&self) -> bool {
        self.verb[0] == "devices" || self.start == Start::Nothing
    }
}

impl Trial {
    pub fn of(operation: &'static Operation) -> Self {
        let mut world = World::new(&operation.name.replace([' ', '-'], ""));
        world.bring_about(operation.start);
        let before = world.seen();
        let mut trial = Self {
            operation,
            world,
            before,
            after: Seen::new(),
            tally: Tally::default(),
            known: BTreeMap::new(),
            is_as_before: false,
        };
        let done = trial.attempt(0, Fault::None);
        assert_eq!(done.code, 0, "{}: {}", operation.name, done.stderr);
        assert_ne!(done.calls, 0, "{}: none of its calls was seen", operation.name);
        assert_eq!(done.open, [""; 0], "{}: it leaves them open", operation.name);
        trial.tally.calls = done.calls;
        trial.after = trial.world.seen();
        assert_ne!(trial.before, trial.after);
        trial
    }

    fn words(&self) -> Vec<String> {
        let id = if self.operation.name == "gc" { None } else { Some(self.world.sandbox.id.clone()) };
        let options = possible(self.operation.options).map(|word| match word {
            "PID" => self.world.pid("outside").to_string(),
            word => word.to_owned(),
        });
        let verb = self.operation.verb.iter().map(|word| (*word).to_owned());
        verb.chain(id).chain(options).chain(["--timeout".to_owned(), "5".to_owned()]).collect()
    }

    fn attempt(&self, at: u64, fault: Fault) -> Ended {
        let words = self.words();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        tracer::run(&self.world.sandbox.ringfence(&words), at, fault)
    }

    /// Brings the sandbox back to what it was before.
    fn back(&mut self) {
        if std::mem::take(&mut self.is_as_before) {
            return;
        }
        let is_hidden = mode() == "v2" && self.operation.changes_devices();
        if !is_hidden && self.world.is_back(&self.before) {
            return;
        }
        let mut different = String::new();
        for _ in 0..3 {
            self.world.bring_about(self.operation.start);
            different = differences(&self.before, &self.world.seen());
            if different.is_empty() {
                return;
            }
            tell(&format!("{}: once more, since {different}\n", self.operation.name));
        }
        panic!("{}: {different}", self.operation.name);
    }

    /// At each call it is killed, and the call fails in every way.
    pub fn whole(mut self) -> Tally {
        for at in 0.. {
            if !self.kill(at) {
                break;
            }
            for way in 0.. {
                // The loader and the runtime have nothing in their hands yet: one way is as good as another.
                if self.fail(at, way).is_none_or(|hit| hit.is_start) {
                    break;
                }
            }
        }
        self.tally
    }

    /// At so many of the calls, evenly spread: it is killed, and the call fails in one way.
    pub fn sample(mut self, number: u64) -> Tally {
        let calls = self.tally.calls;
        for (which, at) in (0..number).map(|which| (which, calls * (2 * which + 1) / (2 * number))) {
            self.kill(at);
            if self.fail(at, which as usize % 4).is_none() {
                self.fail(at, 0);
            }
        }
        self.tally
    }

    /// Whether there was such a call.
    fn kill(&mut self, at: u64) -> bool {
        self.back();
        let killed = self.attempt(at, Fault::Kill);
        let Some(hit) = killed.hit.clone() else { return false };
        self.tally.kills += 1;
        self.judge(at, Fault::Kill, &hit, &killed);
        true
    }

    /// The call that failed, if it can fail so.
    fn fail(&mut self, at: u64, way: usize) -> Option<Hit> {
        self.back();
        let ended = self.attempt(at, Fault::Fail(way));
        let hit = ended.hit.clone().filter(|hit| hit.errno.is_some())?;
        self.tally.faults += 1;
        self.judge(at, Fault::Fail(way), &hit, &ended);
        Some(hit)
    }

    fn judge(&mut self, at: u64, fault: Fault, hit: &Hit, ended: &Ended) {
        let mut wrong = String::new();
        if ended.hung {
            wrong += "it hangs; ";
        }
        if !hit.is_start && (ended.code == 101 || ended.stderr.contains("panicked")) {
            wrong += "it panics; ";
        }
        if ended.code < 0 && fault != Fault::Kill && !(hit.is_memory || hit.is_start) {
            wrong += "it aborts; ";
        }
        if !ended.open.is_empty() && ended.code >= 0 {
            _ = write!(wrong, "it leaves open {:?}; ", ended.open);
        }
        let is_about_output = hit.call.contains("(pipe:");
        if ended.code > 0 && ended.stderr.trim().is_empty() && !is_about_output && !hit.is_start {
            wrong += "it does not say why; ";
        }
        wrong += &match ended.code {
            0 => self.done(hit, ended),
            code if code > 0 => self.refused(is_about_output),
            _ => self.killed(at, ended),
        };
        if !wrong.is_empty() {
            let Hit { call, errno, .. } = hit;
            let how = errno.map_or("killed".to_owned(), |errno| format!("{errno:?}"));
            let Ended { code, stdout, stderr, .. } = ended;
            let violation = format!(
                "{}: call {at} {call} {how}: exit {code}: {}\n   {}{}\n",
                self.operation.name,
                wrong,
                stdout.trim(),
                stderr.trim()
            );
            tell(&violation);
            self.tally.violations.push(violation);
        }
    }

    /// The state of the machine after `gc` has swept a lock or the store's identity that stayed alone. A failed call may leave
    /// these: they say nothing of a sandbox.
    fn swept(&self) -> Seen {
        let now = self.world.seen();
        let is_left = now.contains_key("file ID.lock") || now.contains_key("file .identity");
        if is_left && !now.contains_key("file ID.json") {
            self.world.does(&["gc", "--apply"]);
            return self.world.seen();
        }
        now
    }

    /// It says that it is done.
    fn done(&mut self, hit: &Hit, ended: &Ended) -> String {
        let now = self.swept();
        self.is_as_before = now == self.before;
        let different = differences(&self.after, &now);
        if different.is_empty() {
            return self.agrees();
        }
        // What a fault hides of the machine is as if this were another one: what it cannot do is said.
        let is_said = !ended.stderr.trim().is_empty() || ended.stdout.contains("\nreport ");
        if hit.errno == Some(Errno::ENOENT) && is_said && !hit.is_before_lock {
            // A file that is not there is a setting that this kernel has not.
            self.tally.reported += 1;
            let is_placed = self.operation.kind == Kind::Placing;
            return if is_placed { String::new() } else { self.agrees_by_command() };
        }
        // A burst by default is only had where there is one.
        if hit.is_before_lock && (is_said || hit.errno == Some(Errno::ENOENT)) {
            self.tally.reported += 1;
            if self.operation.start == Start::Nothing {
                _ = self.world.does(&["rm", &self.world.sandbox.id]);
            }
            // What is placed once stays as it was placed.
            return if self.operation.kind == Kind::Placing { String::new() } else { self.again() };
        }
        format!("it says that it is done, and {different}")
    }

    /// What is recorded is what is in force. All but the devices of v2 is seen without the command.
    fn agrees(&self) -> String {
        let hides = mode() == "v2" && self.operation.changes_devices();
        if hides { self.agrees_by_command() } else { String::new() }
    }

    fn agrees_by_command(&self) -> String {
        let differs = self.world.diff();
        if differs.is_empty() { differs } else { format!("what is recorded is not so: {differs}") }
    }

    fn refused(&mut self, is_about_output: bool) -> String {
        let now = self.swept();
        let as_before = differences(&self.before, &now);
        self.is_as_before = as_before.is_empty();
        match self.operation.kind {
            _ if as_before.is_empty() => self.agrees_if_there(),
            // It is done, and only that could not be seen or said.
            _ if (is_about_output || self.operation.name == "thaw")
                && differences(&self.after, &now).is_empty() =>
            {
                String::new()
            }
            Kind::Change => format!("it failed, and {as_before}"),
            Kind::Placing => {
                let blurred = differences(&World::blurred(&self.before), &World::blurred(&now));
                if blurred.is_empty() { self.again() } else { format!("it failed, and {blurred}") }
            }
            Kind::Ending => self.again(),
        }
    }

    fn agrees_if_there(&self) -> String {
        if self.operation.start == Start::Nothing { String::new() } else { self.agrees() }
    }

    fn killed(&mut self, at: u64, ended: &Ended) -> String {
        let mut left = self.world.seen();
        self.is_as_before = left == self.before;
        // Both ways on are tried of each.
        left.insert("then".to_owned(), format!("{}, {}", at % 2, ended.about_devices));
        if let Some(known) = self.known.get(&left) {
            return known.clone();
        }
        self.is_as_before = false;
        let comes = self.comes_of(at);
        self.known.insert(left, comes.clone());
        comes
    }

    fn comes_of(&mut self, at: u64) -> String {
        let is_create = self.operation.start == Start::Nothing;
        // Either whatever command comes next on the sandbox settles it, or gc.
        if at.is_multiple_of(2) || is_create {
            let gc: &[&str] = if is_create || self.operation.options.contains(&"--kill") {
                &["gc", "--apply", "--kill"]
            } else {
                &["gc", "--apply"]
            };
            let collected = self.world.does(gc);
            if collected.code != 0 {
                return format!("gc fails afterwards: {}", collected.stderr);
            }
            let now = self.world.seen();
            let (as_before, as_after) = (differences(&self.before, &now), differences(&self.after, &now));
            match self.operation.kind {
                Kind::Change if as_after.is_empty() => return self.agrees_if_there(),
                Kind::Change if !as_before.is_empty() => {
                    return format!(
                        "gc leaves neither what was ({as_before}) nor what was to be ({as_after})"
                    );
                }
                _ => {}
            }
        }
        self.again()
    }

    /// The same again comes to the same end.
    fn again(&self) -> String {
        let words = self.words();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let again = self.world.does(&words);
        let is_gone = self.operation.kind == Kind::Ending && again.code == 3;
        if again.code != 0 && !is_gone {
            return format!("the same again fails: {}", again.stderr);
        }
        let different = differences(&self.after, &self.world.seen());
        if !different.is_empty() {
            return format!("the same again leaves {different}");
        }
        self.agrees()
    }
}

/// What differs, briefly.
fn differences(expected: &Seen, found: &Seen) -> String {
    let mut text = String::new();
    let mut more = 0;
    let keys: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    for key in keys {
        let (one, other) = (expected.get(key), found.get(key));
        if one != other {
            if text.len() > 500 {
                more += 1;
                continue;
            }
            let short = |value: Option<&String>| {
                value.map_or("absent".to_owned(), |value| value.chars().take(200).collect())
            };
            _ = write!(text, "{key} is {:?} instead of {:?}; ", short(other), short(one));
        }
    }
    if more > 0 {
        _ = write!(text, "and {more} more; ");
    }
    text
}
