//! Commands of several processes on shared sandboxes and on their own, in any order: what each answered, and what is there in
//! the end, is what it would have been one after the other, in some order that agrees with the clock.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use crate::support::soak::is_soak;
use crate::support::{Sandbox, directories_named, finish, hierarchy_of};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

testbed! {
    modes: "host trixie plain-v1";
    soak: "host trixie plain-v1";
}

const PROCESSES: usize = 3;
const CALLS: std::ops::RangeInclusive<usize> = 4..=6;
/// How long new histories are tried: machines are of different speeds.
fn time() -> Duration {
    Duration::from_secs(if is_soak() { 240 } else { 8 })
}

/// What a process asks of a sandbox.
#[derive(Debug, Clone, Copy)]
enum Call {
    Create(u64),
    Remove,
    Set(u64),
    Claim(u8),
    Release(u8),
    Freeze,
    Thaw,
    Exec,
}

/// All that is kept of a sandbox here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Live {
    pids: u64,
    claims: BTreeSet<u8>,
    frozen: bool,
}

const NO_SUCH_SANDBOX: i32 = 3;
const TAKEN_OR_BUSY: i32 = 5;
const EXEC_FAILED: i32 = 125;

impl Call {
    fn arguments(self, id: &str) -> Vec<String> {
        let (verb, rest): (&str, Vec<String>) = match self {
            Self::Create(pids) => {
                ("create", vec!["--pids".into(), pids.to_string(), "--profile=none".into()])
            }
            Self::Remove => ("rm", vec!["--kill".into()]),
            Self::Set(pids) => ("set", vec!["--pids".into(), pids.to_string()]),
            Self::Claim(n) => (
                "devices allow",
                vec![format!("c 10:{} rw", 200 + u32::from(n)), "--claim".into(), format!("claim{n}")],
            ),
            Self::Release(n) => ("devices release", vec![format!("claim{n}")]),
            Self::Freeze => ("freeze", vec![]),
            Self::Thaw => ("thaw", vec![]),
            Self::Exec => ("exec", vec!["--".into(), "true".into()]),
        };
        verb.split(' ').map(str::to_owned).chain([id.to_owned()]).chain(rest).collect()
    }

    /// What becomes of a sandbox, or of none, and how the command exits.
    fn apply(self, before: &Option<Live>) -> (Option<Live>, i32) {
        let Some(live) = before else {
            return match self {
                Self::Create(pids) => (Some(Live { pids, claims: BTreeSet::new(), frozen: false }), 0),
                Self::Exec => (None, EXEC_FAILED),
                _ => (None, NO_SUCH_SANDBOX),
            };
        };
        let mut after = live.clone();
        match self {
            Self::Create(_) => return (Some(after), TAKEN_OR_BUSY),
            Self::Remove => return (None, 0),
            Self::Release(n) if !live.claims.contains(&n) => return (Some(after), NO_SUCH_SANDBOX),
            Self::Exec if live.frozen => return (Some(after), EXEC_FAILED),
            Self::Exec => {}
            Self::Set(pids) => after.pids = pids,
            Self::Claim(n) => drop(after.claims.insert(n)),
            Self::Release(n) => drop(after.claims.remove(&n)),
            Self::Freeze => after.frozen = true,
            Self::Thaw => after.frozen = false,
        }
        (Some(after), 0)
    }
}

/// A call with its answer and when it was under way.
#[derive(Debug)]
struct Event {
    call: Call,
    exit: i32,
    from: Instant,
    to: Instant,
    #[expect(dead_code, reason = "printed where no order explains it")]
    said: String,
}

/// Whether there is an order in which each call answers as it did, none comes before one that had ended when it began, and
/// which ends like this.
fn is_explained(events: &[Event], end: &Option<Live>) -> bool {
    let all = (1_u32 << events.len()) - 1;
    let mut seen = HashSet::new();
    let mut pending = vec![(0_u32, None::<Live>)];
    while let Some((done, state)) = pending.pop() {
        if done == all && state == *end {
            return true;
        }
        if !seen.insert((done, state.clone())) {
            continue;
        }
        let left = || events.iter().enumerate().filter(|(index, _)| done & (1 << index) == 0);
        for (index, event) in left() {
            if left().any(|(_, other)| other.to < event.from) {
                continue;
            }
            let (after, exit) = event.call.apply(&state);
            if exit == event.exit {
                pending.push((done | 1 << index, after));
            }
        }
    }
    false
}

fn calls() -> impl Strategy<Value = Vec<Vec<(usize, Call)>>> {
    let call = prop_oneof![
        3 => (30..60_u64).prop_map(Call::Create),
        2 => Just(Call::Remove),
        3 => (60..90_u64).prop_map(Call::Set),
        2 => (0..2_u8).prop_map(Call::Claim),
        2 => (0..2_u8).prop_map(Call::Release),
        1 => Just(Call::Freeze),
        2 => Just(Call::Thaw),
        1 => Just(Call::Exec),
    ];
    // Of three sandboxes two are shared, and the third is each process's own.
    vec(vec((0..3_usize, call), CALLS), PROCESSES)
}

/// What there is of a sandbox, by its state and by the kernel, which must agree.
fn found(base: &Sandbox, id: &str) -> Option<Live> {
    let done = finish(base.ringfence(&["-o", "json", "show", id]));
    if done.code == NO_SUCH_SANDBOX {
        assert!(directories_named(id).is_empty(), "{id} has no state, and directories");
        return None;
    }
    let shown = done.exits(0).json();
    let pids = shown["resources"]["pids"]["limit"].as_u64().unwrap();
    let point = hierarchy_of("pids").point;
    let directory =
        directories_named(id).into_iter().find(|directory| directory.starts_with(&point)).unwrap();
    let live = std::fs::read_to_string(directory.join("pids.max")).unwrap();
    assert_eq!(live.trim(), pids.to_string());
    let claims = shown["claims"].as_object().unwrap().keys();
    let claims = claims.map(|name| name.trim_start_matches("claim").parse().unwrap()).collect();
    let frozen = shown["state"] == "frozen";
    finish(base.ringfence(&["diff", id])).exits(0);
    Some(Live { pids, claims, frozen })
}

#[test]
fn whatever_several_processes_do_at_once_could_have_been_done_in_turns() {
    let base = Sandbox::named("histories");
    let mut runner = TestRunner::default();
    let until = Instant::now() + time();
    let mut round = 0;
    while round == 0 || Instant::now() < until {
        round += 1;
        let scripts = calls().new_tree(&mut runner).unwrap().current();
        let id = |process: usize, which: usize| match which {
            2 => format!("{}-{round}-own-{process}", base.id),
            shared => format!("{}-{round}-shared-{shared}", base.id),
        };
        let mut histories: BTreeMap<String, Vec<Event>> = BTreeMap::new();
        std::thread::scope(|scope| {
            let started = scripts.iter().enumerate().map(|(process, script)| {
                let (base, id) = (&base, &id);
                scope.spawn(move || {
                    let one = |(which, call): &(usize, Call)| {
                        let id = id(process, *which);
                        let mut command = base.ringfence(&["--timeout", "60"]);
                        command.args(call.arguments(&id));
                        let from = Instant::now();
                        let done = finish(command);
                        let event = Event {
                            call: *call,
                            exit: done.code,
                            from,
                            to: Instant::now(),
                            said: done.stderr,
                        };
                        (id, event)
                    };
                    script.iter().map(one).collect::<Vec<_>>()
                })
            });
            for events in started.collect::<Vec<_>>() {
                for (id, event) in events.join().unwrap() {
                    histories.entry(id).or_default().push(event);
                }
            }
        });
        finish(base.ringfence(&["gc", "--apply"])).exits(0);
        for (id, events) in &histories {
            let end = found(&base, id);
            assert!(is_explained(events, &end), "{id} ends as {end:?} after {events:#?}");
            if end.is_some() {
                finish(base.ringfence(&["rm", "--kill", id])).exits(0);
            }
            assert!(directories_named(id).is_empty(), "{id}");
        }
    }
    println!("{round} histories");
}

#[test]
fn a_history_that_no_order_explains_is_found_out() {
    let start = Instant::now();
    let event = |call, exit, from: u64, to: u64| {
        let at = |ms| start + Duration::from_millis(ms);
        Event { call, exit, from: at(from), to: at(to), said: String::new() }
    };
    let live = |pids| Some(Live { pids, claims: BTreeSet::new(), frozen: false });
    let two_sets = |from| {
        [event(Call::Create(30), 0, 0, 1), event(Call::Set(60), 0, 2, 5), event(Call::Set(70), 0, from, 8)]
    };
    assert!(is_explained(&two_sets(6), &live(70)));
    // At once: either may have been last; one after the other: not.
    assert!(is_explained(&two_sets(4), &live(60)) && !is_explained(&two_sets(6), &live(60)));
    assert!(!is_explained(&two_sets(6), &None));
    let twice = [event(Call::Create(30), 0, 0, 3), event(Call::Create(40), 0, 1, 4)];
    assert!(!is_explained(&twice, &live(30)) && !is_explained(&twice, &live(40)));
}
