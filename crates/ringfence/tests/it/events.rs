//! What is told of sandboxes, on a real kernel, in the cgroup mode of the machine that runs it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)] // clippy.toml frees only #[test] functions.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::soak::times;
use crate::support::{Guarded, MIB, SOON, by_systemd, path, skip, sleeper};
use ringfence::{
    Command, Controller, ErrorKind, Event, Events, Host, Limit, PressureTrigger, Profile, Remaining,
    Resources, Sandbox, SandboxConfig, Store, Version, What, null,
};

testbed! {
    drivers: "cgroupfs systemd";
    soak: "trixie";
}

/// Memory for a shell, and not for what [`oom`] asks for.
fn small() -> Resources {
    Resources::new().memory_limit(8 * MIB).memory_swap(Limit::Value(9 * MIB))
}

/// Without a profile: the kernel counts the victim twice where it kills the whole cgroup (`memory.oom.group`).
fn config(name: &str) -> SandboxConfig {
    SandboxConfig::new(path(name)).profile(Profile::None)
}

/// Raises limits as a runtime does that has many sandboxes: open files, and locked memory, within which Linux < 5.11 counts
/// the device programs of all sandboxes.
fn open_many() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// A command that is killed for want of memory.
fn oom() -> Command {
    quiet(Command::new("tail").args(["/dev/zero"]))
}

fn shell(script: &str) -> Command {
    quiet(Command::new("sh").args(["-c", script]))
}

fn quiet(command: Command) -> Command {
    command.stdin(null().unwrap()).stdout(null().unwrap()).stderr(null().unwrap())
}

/// Waits for an event that is `wanted`; what came before it is taken too.
#[track_caller]
fn until(events: &mut Events, mut wanted: impl FnMut(&Event) -> bool) -> Vec<Event> {
    let deadline = Instant::now() + SOON;
    let mut all = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(event) = events.wait(left).unwrap() else { panic!("still only {all:#?}") };
        let found = wanted(&event);
        all.push(event);
        if found {
            return all;
        }
    }
}

/// All that can be had without waiting longer than this.
fn rest(events: &mut Events, wait: Duration) -> Vec<Event> {
    std::iter::from_fn(|| events.wait(wait).unwrap()).collect()
}

fn kills<'a>(events: impl IntoIterator<Item = &'a Event>) -> u64 {
    let count = |event: &Event| if let What::OomKill { count } = event.what { count } else { 0 };
    events.into_iter().map(count).sum()
}

fn whats(events: &[Event]) -> Vec<What> {
    events.iter().map(|event| event.what).collect()
}

#[test]
fn processes_that_come_and_go_and_stop_are_told() {
    let host = Host::detect().unwrap();
    // A scope is planned, and starts later.
    let vm = Guarded::planned(&host, &SandboxConfig::new(path("states")));
    let mut events = Events::new().unwrap();
    events.add("vm", &vm).unwrap();
    assert_eq!(rest(&mut events, Duration::ZERO), []);
    let child = vm.spawn(&sleeper()).unwrap();
    assert_eq!(whats(&until(&mut events, |_| true)), [What::Populated]);
    vm.freeze(SOON).unwrap();
    assert_eq!(whats(&until(&mut events, |_| true)), [What::Frozen]);
    vm.thaw(SOON).unwrap();
    assert_eq!(whats(&until(&mut events, |_| true)), [What::Thawed]);
    child.signal(9).unwrap();
    child.wait().unwrap();
    assert_eq!(whats(&until(&mut events, |_| true)), [What::Empty]);
    let again = vm.spawn(&sleeper()).unwrap();
    let event = until(&mut events, |_| true).remove(0);
    assert_eq!((&*event.id, event.what), ("vm", What::Populated));
    let json = serde_json::to_value(&event).unwrap();
    assert_eq!(
        (&json["id"], &json["event"], json["at_us"].is_u64()),
        (&"vm".into(), &"populated".into(), true)
    );
    vm.destroy(Remaining::Kill, SOON).unwrap();
    again.wait().unwrap();
    // As an iterator it ends with the last sandbox.
    let last: Vec<_> = events.by_ref().map(|event| event.unwrap().what).collect();
    assert_eq!(last, [What::Empty, What::Removed]);
    assert!(events.is_over() && events.wait(SOON).unwrap().is_none());
}

#[test]
fn limits_that_are_met_are_told_with_how_often_and_not_what_was_before() {
    let host = Host::detect().unwrap();
    let vm = Guarded::make(&host, &config("limits").resources(small().pids_limit(6)));
    vm.spawn(&oom()).unwrap().wait().unwrap();
    let mut events = Events::new().unwrap();
    events.add("vm", &vm).unwrap();
    assert_eq!(kills(&rest(&mut events, Duration::from_millis(200))), 0, "it was before");

    vm.spawn(&oom()).unwrap().wait().unwrap();
    let told = until(&mut events, |event| matches!(event.what, What::OomKill { .. }));
    assert_eq!(kills(&told), 1);
    // v1 does not tell of these, and is looked at once a second.
    let told_of_limit = |event: &Event| matches!(event.what, What::MemoryMax { .. });
    if !told.iter().any(told_of_limit) {
        until(&mut events, told_of_limit);
    }
    // A shell cannot fork and gives up.
    vm.spawn(&shell("for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait")).unwrap().wait().unwrap();
    let told = until(&mut events, |event| matches!(event.what, What::PidsMax { .. }));
    assert_eq!(kills(&told), 0);
    if host.hierarchy_of(Controller::Memory).unwrap().1.version == Version::V2 {
        let high: BTreeMap<_, _> = [("memory.high".to_owned(), (2 * MIB).to_string())].into();
        vm.change(&Resources { unified: high, ..Resources::new() }).unwrap();
        let child = vm.spawn(&oom()).unwrap();
        until(&mut events, |event| matches!(event.what, What::MemoryHigh { .. }));
        _ = child.signal(9);
        child.wait().unwrap();
    }
}

#[test]
fn every_one_of_100_kills_is_told_though_the_sandboxes_are_removed_at_once() {
    open_many();
    let host = Host::detect().unwrap();
    let mut events = Events::new().unwrap();
    // Starting units takes its time.
    let hundred = if by_systemd() { 20 } else { times(100) };
    for number in 0..hundred {
        let vm = Guarded::planned(&host, &config("once").resources(small()));
        events.add(&number.to_string(), &vm).unwrap();
        // Without it systemd removes the scope behind its last process.
        let _held = vm.hold_meanwhile().unwrap();
        let child = vm.spawn(&oom()).unwrap();
        assert!(!child.wait().unwrap().success());
        let outcome = vm.destroy(Remaining::Kill, SOON).unwrap();
        assert_eq!(outcome.events.oom_kill, Some(1), "{outcome:?}");
    }
    let told: Vec<_> = events.by_ref().map(Result::unwrap).collect();
    let mut by_id = BTreeMap::<_, u64>::new();
    told.iter().for_each(|event| *by_id.entry(&event.id).or_default() += kills([event]));
    let wrong: Vec<_> = by_id.iter().filter(|(_, kills)| **kills != 1).collect();
    assert!(by_id.len() == hundred && wrong.is_empty(), "{wrong:?}");
    let removed = told.iter().filter(|event| event.what == What::Removed);
    assert_eq!(removed.count(), hundred);
}

#[test]
fn what_was_heard_of_before_it_was_seen_is_told_once_and_watched_from_then_on() {
    let host = Host::detect().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::new(scratch.path().join("state"));
    // The first is known before there is a cgroup, the second is not known at all.
    for is_known in [true, false] {
        let mut events = Events::new().unwrap();
        events.add_store(&host, &store, None, &[]).unwrap();
        let config = config("heard").resources(small());
        let entry = store.lock(&"vm".parse().unwrap(), SOON).unwrap();
        let intent = Sandbox::intent(&host, &config).unwrap();
        entry.save(&intent).unwrap();
        if is_known {
            assert_eq!(rest(&mut events, Duration::ZERO), []);
            entry.save(&intent).unwrap();
        }
        let vm = Guarded::make(&host, &config);
        vm.spawn(&oom()).unwrap().wait().unwrap();
        entry.tell_watchers_now(&vm);
        assert_eq!(kills(&rest(&mut events, Duration::from_millis(300))), 1);
        vm.spawn(&oom()).unwrap().wait().unwrap();
        let told = until(&mut events, |event| matches!(event.what, What::OomKill { .. }));
        assert_eq!(kills(&told), 1);
        vm.destroy(Remaining::Kill, SOON).unwrap();
        entry.remove().unwrap();
        let told = until(&mut events, |event| event.what == What::Removed);
        assert_eq!(kills(&told), 0);
    }
}

#[test]
fn whoever_reads_late_misses_none_of_the_kills() {
    let host = Host::detect().unwrap();
    let vm = Guarded::make(&host, &config("late").resources(small()));
    let mut events = Events::new().unwrap();
    events.add("vm", &vm).unwrap();
    for _ in 0..10 {
        vm.spawn(&oom()).unwrap().wait().unwrap();
    }
    assert_eq!(kills(&rest(&mut events, Duration::from_millis(500))), 10);
    assert_eq!(vm.counts().oom_kill, Some(11 - 1));
}

#[test]
fn one_thread_and_one_descriptor_serve_50_sandboxes() {
    open_many();
    let host = Host::detect().unwrap();
    // Starting units takes its time.
    let number = if by_systemd() { 8 } else { 50 };
    let make = |_| Guarded::make(&host, &SandboxConfig::new(path("many")));
    let vms: Vec<_> = (0..number).map(make).collect();
    let mut events = Events::new().unwrap();
    for (number, vm) in vms.iter().enumerate() {
        events.add(&number.to_string(), vm).unwrap();
    }
    assert!(!is_readable(&events, Duration::from_millis(10)) || rest(&mut events, Duration::ZERO).is_empty());
    for (number, vm) in vms.iter().enumerate() {
        vm.freeze(SOON).unwrap();
        if number == 0 {
            assert!(is_readable(&events, SOON));
        }
    }
    let mut frozen = Vec::new();
    while frozen.len() < number {
        frozen.extend(until(&mut events, |event| event.what == What::Frozen).pop());
    }
    let mut ids: Vec<u32> = frozen.iter().map(|event| event.id.parse().unwrap()).collect();
    ids.sort_unstable();
    assert!(ids.iter().copied().eq(0..number as u32), "{ids:?}");
    drop(vms);
    let removed = events.filter(|event| event.as_ref().unwrap().what == What::Removed).count();
    assert_eq!(removed, number);
}

fn is_readable(events: &Events, timeout: Duration) -> bool {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(events.as_fd(), rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec {
        tv_sec: timeout.as_secs().cast_signed(),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    rustix::event::poll(&mut fds, Some(&timeout)).unwrap() > 0
}

#[test]
fn waiting_allocates_nothing() {
    let host = Host::detect().unwrap();
    let vm = Guarded::make(&host, &SandboxConfig::new(path("lean")));
    let mut events = Events::new().unwrap();
    events.add("vm", &vm).unwrap();
    let (go, wait) = mpsc::channel();
    std::thread::scope(|scope| {
        let vm = &vm;
        scope.spawn(move || {
            for what in wait {
                if what == What::Frozen { vm.freeze(SOON) } else { vm.thaw(SOON).map(drop) }.unwrap();
            }
        });
        let mut round = || {
            for what in [What::Frozen, What::Thawed] {
                go.send(what).unwrap();
                assert_eq!(events.wait(SOON).unwrap().map(|event| event.what), Some(what));
            }
        };
        round();
        // A channel allocates for some messages of many.
        let rounds = [(); 3].map(|()| crate::allocations::count(|| (0..5).for_each(|_| round())));
        assert!(rounds.contains(&0), "{rounds:?}");
        drop(go);
    });
}

#[test]
fn a_sandbox_that_is_gone_or_has_no_cgroup_is_refused() {
    let host = Host::detect().unwrap();
    let vm = Guarded::planned(&host, &SandboxConfig::new(path("gone")));
    let state = vm.state();
    let other = Sandbox::restore(&host, state).unwrap();
    vm.destroy(Remaining::Kill, SOON).unwrap();
    let mut events = Events::new().unwrap();
    let error = events.add("vm", &other).err();
    // A scope may start again.
    assert_eq!(error.map(|error| error.kind()), (!by_systemd()).then_some(ErrorKind::NotFound));
    let trigger: PressureTrigger = "cpu:some:1s/2s".parse().unwrap();
    assert_eq!(events.add_pressure("nobody", &trigger).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn pressure_is_told_where_the_kernel_measures_it() {
    let host = Host::detect().unwrap();
    let vm = Guarded::make(&host, &SandboxConfig::new(path("pressure")));
    let mut events = Events::new().unwrap();
    events.add("vm", &vm).unwrap();
    let trigger = |text: &str| text.parse::<PressureTrigger>().unwrap();
    let may = fs::read_to_string("/proc/self/status").unwrap();
    let may = may.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    let may = u64::from_str_radix(may, 16).unwrap() & 1 << 24 != 0;
    let short = events.add_pressure("vm", &trigger("cpu:some:50ms/500ms"));
    if host.unified().is_none() {
        let error = short.unwrap_err();
        assert_eq!((error.kind(), error.setting()), (ErrorKind::Unsupported, Some("pressure")));
        assert!(error.message().contains("v1"), "{error}");
        return;
    }
    match short {
        Ok(()) => assert!(may),
        Err(error) => {
            assert!(!may && error.message().contains("CAP_SYS_RESOURCE"), "{error}");
            assert_eq!((error.kind(), error.value()), (ErrorKind::Unsupported, Some("cpu:some:50ms/500ms")));
        }
    }
    let wanted = trigger("cpu:some:100ms/2s");
    events.add_pressure("vm", &wanted).unwrap();
    let busy: Vec<_> = (0..6).map(|_| vm.spawn(&shell("while :; do :; done")).unwrap()).collect();
    // As one does that has other descriptors to wait for too.
    let deadline = Instant::now() + SOON;
    let mut told = Vec::new();
    while !told.contains(&What::Pressure { trigger: wanted }) {
        assert!(Instant::now() < deadline && is_readable(&events, SOON), "{told:?}");
        told.extend(whats(&rest(&mut events, Duration::ZERO)));
    }
    vm.kill(SOON).unwrap();
    busy.iter().for_each(|child| assert!(!child.wait().unwrap().success()));
    if by_systemd() {
        skip("the rest: a scope whose holder was killed has ended");
        return;
    }
    vm.destroy(Remaining::Kill, SOON).unwrap();
    assert_eq!(events.map(|event| event.unwrap().what).last(), Some(What::Removed));
}

#[test]
fn a_thousand_wrong_triggers_are_refused_with_what_is_allowed() {
    let parts = ["memory", "some", "100ms", "1s", ":", "/", "", "99999999999999999999", "irq", "-1s", "é"];
    for n in 0..1000_usize {
        let text: String = (0..5).map(|k| parts[(n * 31 + k * k * 7 + n / 11) % parts.len()]).collect();
        if let Err(error) = text.parse::<PressureTrigger>() {
            assert_eq!(
                (error.kind(), error.setting()),
                (ErrorKind::InvalidInput, Some("pressure")),
                "{text}"
            );
            assert!(!error.message().is_empty());
        }
    }
}
