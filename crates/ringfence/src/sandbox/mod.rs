//! A sandbox: one virtual machine with everything on the host that serves it.

pub(crate) mod begun;
mod change;
mod claims;
mod config;
mod diff;
mod gc;
mod layout;
mod leftovers;
mod lifecycle;
mod pinning;
mod processes;
mod repair;
mod separate;
mod shared_state;
mod state;
mod state_dir;
mod store;
mod threads;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use begun::Begun;
pub use change::ChangeOptions;
pub use claims::Claim;
pub use config::{Overhead, SandboxConfig, VcpuHints};
pub use diff::Difference;
pub use gc::{Collected, GcAction, GcOptions};
pub use layout::{EachThread, Part};
pub use leftovers::Leftover;
pub use pinning::{Pin, TakenCpus};
pub use processes::Hold;
use processes::part_path;
use separate::Second;
use shared_state::{SharedState, StateGuard};
pub use state::{Inodes, Phase, STATE_VERSION, State};
pub use store::{Entry, Store};
pub use threads::Placed;

use crate::cgroup::mark::new_mark;
use crate::cgroup::{Cgroup, Filter, Outcome, Remaining, stop_default_slice};
use crate::devices::{DevicePolicy, DeviceRule, Profile, runtime_defaults};
use crate::driver::systemd::Processes;
use crate::error::{Error, ErrorKind, Result};
use crate::events::{Counts, Hearer, Hearers, LastCounts, LastWord, Lifetime};
use crate::explain::{Explanation, Key};
use crate::host::Host;
use crate::kernel::poll::Deadline;
use crate::kernel::proc::ProcessIdentity;
use crate::plan::{Dir, Plan, Unsupported, Want};
use crate::report::Report;
use crate::stats::StatsReader;

/// What a sandbox is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Recorded; its cgroup starts with the first process (systemd).
    Planned,
    /// Nothing runs inside.
    Empty,
    /// Processes run inside.
    Running,
    /// All that is inside is stopped.
    Frozen,
    /// A directory of it is missing in some hierarchy: nothing can start or join until it is repaired.
    Damaged,
    /// Its cgroup is gone.
    Gone,
}

impl fmt::Display for Status {
    /// As in JSON: `running`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Planned => "planned",
            Self::Empty => "empty",
            Self::Running => "running",
            Self::Frozen => "frozen",
            Self::Damaged => "damaged",
            Self::Gone => "gone",
        })
    }
}

/// A virtual machine's cgroup, with its device policy and the state from which another process restores it.
///
/// All methods take `&self`, are serialised inside, and block.
#[derive(Debug)]
pub struct Sandbox {
    host: Host,
    /// None where systemd carries it and no process has started it, or the last one has ended.
    cgroup: Mutex<Option<Arc<Cgroup>>>,
    state: SharedState,
    /// What is done about what only shows when a unit starts.
    unsupported: Unsupported,
    /// The overhead where it is separate; its state is here alone.
    apart: Option<Box<Sandbox>>,
    /// Who is told when it is removed.
    hearers: Hearers,
}

impl Sandbox {
    /// The steps that [`Sandbox::create`] would take on this host, or on any other. Pure.
    pub fn plan(host: &Host, config: &SandboxConfig) -> Result<Plan> {
        Self::plan_seen(host, config, |_| host.clone())
    }

    /// [`Sandbox::plan`] for this machine, where an ordinary user's rights may differ from place to place: what is delegated
    /// at the path is looked at.
    pub fn plan_here(host: &Host, config: &SandboxConfig) -> Result<Plan> {
        Self::plan_seen(host, config, |path| host.as_seen_at(path))
    }

    /// The state of a sandbox that is about to be made: what a [`Store`](crate::Store) writes ahead. Changes nothing.
    pub fn intent(host: &Host, config: &SandboxConfig) -> Result<State> {
        let mut state = Self::own_intent(host, config)?;
        Self::add_apart(host, config, &mut state)?;
        Ok(*state)
    }

    /// In a box: a state is large, and is handed on.
    fn own_intent(host: &Host, config: &SandboxConfig) -> Result<Box<State>> {
        config.resources.validate()?;
        let cgroup = config.resolve(host)?;
        let overhead = config.overhead_at()?;
        let (base, missing) = base_rules(config.profile, host)?;
        let (devices, denied) =
            DevicePolicy::with_base(&config.resources.devices, &base, &config.profile.required(host))?;
        let mut report = joined(joined(config.unread.clone(), missing), denied);
        let parts = layout::paths(host, &overhead, &cgroup, config.path.is_systemd());
        if parts.is_empty() && overhead == Overhead::Nested {
            let why = "no hierarchy for CPU time or CPUs is at hand: all limits hold for the whole";
            report.add("overhead", "nested", why);
        }
        if let Some(pin) = config.pin.filter(|_| parts.is_empty()) {
            if overhead != Overhead::Nested {
                return Err(pinning::without_vcpus(pin, &overhead));
            }
            report.add("pin", pin, "not pinned: vCPUs are not told from other threads");
        }
        if cgroup.is_empty() {
            report.add("cgroup", &config.path, format!("{}: {IN_OUR_OWN}", host.why_nothing()));
        }
        config.unsupported.mind(&report)?;
        Ok(Box::new(State {
            version: STATE_VERSION,
            phase: Phase::Creating,
            path: host.with_slice(&config.path),
            cgroup,
            mode: host.mode,
            resources: config.resources.clone().without_lifted_cpusets(),
            profile: config.profile,
            // Without it, a quota with which all vCPUs can be busy at once stops them all at once.
            burst_by_default: config.profile != Profile::None,
            burst_asked: None,
            devices,
            device_program: None,
            override_device_programs: config.override_device_programs,
            unclaimed: None,
            claims: BTreeMap::new(),
            overhead,
            overhead_resources: config.overhead_resources.clone(),
            each: config.each.clone(),
            parts,
            vcpu_hints: config.vcpu_hints.clone(),
            vcpus: BTreeMap::new(),
            iothreads: BTreeMap::new(),
            pin: config.pin,
            pinned: BTreeMap::new(),
            holder: None,
            started: Vec::new(),
            report,
            owner: config.owner,
            mark: Some(new_mark(None)?),
            inodes: None,
            placeholder: None,
            apart: None,
            begun: None,
            killing: false,
            unknown: BTreeMap::new(),
        }))
    }

    /// Makes the cgroups and writes every limit: all of it or nothing.
    ///
    /// A scope of systemd does not live without a process: it is planned, and starts with the first one that is spawned or
    /// joins, which then has every limit from the start. The same again when the last one has ended.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if there is such a cgroup; otherwise the setting that failed.
    pub fn create(host: &Host, config: &SandboxConfig) -> Result<(Self, Report)> {
        Self::create_as(host, config, Self::intent(host, config)?)
    }

    /// [`Sandbox::create`] of what was recorded as intended.
    pub(crate) fn create_as(host: &Host, config: &SandboxConfig, mut state: State) -> Result<(Self, Report)> {
        let apart = state.apart.take();
        let mut second = Second::of(host, config, apart);
        let host = &host.as_seen_at(&state.cgroup);
        let cgroup = match state.path.as_systemd().filter(|unit| !unit.is_slice()) {
            Some(unit) => {
                if host.manager()?.is_taken(&unit.unit())? {
                    let why = "systemd has such a unit already";
                    return Err(Error::new(ErrorKind::AlreadyExists, why).with_value(unit.unit()));
                }
                state.report = Self::own_plan(host, config)?.report;
                second.make()?;
                None
            }
            None => {
                let anew = state.anew();
                let made =
                    Cgroup::create_and(host, &config.want(&state, &anew), Processes::NONE, &mut || {
                        second.make()
                    });
                let (cgroup, created) = made.inspect_err(|_| second.unmake())?;
                state.inodes = Inodes::of(&cgroup);
                state.device_program = cgroup.filter_id();
                state.report.append(created);
                Some(Arc::new(cgroup))
            }
        };
        state.phase = Phase::Ready;
        let (host, unsupported, apart) = (host.clone(), config.unsupported, second.made);
        let (cgroup, state) = (Mutex::new(cgroup), SharedState::new(state));
        let made = Self { host, cgroup, state, unsupported, apart, hearers: Hearers::default() };
        let mut report = made.known().report.clone();
        made.apart.iter().for_each(|apart| report.add_new(&apart.known().report));
        Ok((made, report))
    }

    /// Takes over a sandbox that another process made.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if its cgroup is gone from every hierarchy, unless it is a scope of systemd, which starts
    /// again; [`ErrorKind::State`](crate::ErrorKind::State) if the state is of a newer version.
    pub fn restore(host: &Host, mut state: State) -> Result<Self> {
        let apart = state.apart.take().map(|apart| Self::opened(host, *apart)).transpose()?;
        let mut found = Self::opened(host, state)?;
        // What is left of one of the two can still be removed.
        if found.is_gone() && apart.as_ref().is_none_or(|apart| apart.held().is_none()) {
            return Err(gone(&found.known()));
        }
        found.apart = apart.map(Box::new);
        Ok(found)
    }

    fn opened(host: &Host, mut state: State) -> Result<Self> {
        state.check()?;
        // What is written from now on is in this version's format.
        state.version = STATE_VERSION;
        state.path = host.with_slice(&state.path);
        let host = &host.as_seen_at(&state.cgroup);
        let cgroup = open(host, &state)?;
        let (cgroup, state) = (Mutex::new(cgroup), SharedState::new(state));
        let (unsupported, hearers) = (Unsupported::Report, Hearers::default());
        Ok(Self { host: host.clone(), cgroup, state, unsupported, apart: None, hearers })
    }

    fn held(&self) -> Option<Arc<Cgroup>> {
        self.cgroup.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether its cgroup was removed. A scope of systemd starts again.
    fn is_gone(&self) -> bool {
        self.held().is_none() && !self.known().path.is_systemd()
    }

    /// Its cgroup as it is now, if it has one.
    fn present(&self, state: &State) -> Result<Option<Arc<Cgroup>>> {
        let mut held = self.cgroup.lock().unwrap_or_else(PoisonError::into_inner);
        // A scope ends with its last process, and another process may have started it again.
        if state.path.is_systemd() && !held.as_ref().is_some_and(|cgroup| cgroup.is_there()) {
            *held = open(&self.host, state)?;
        }
        Ok(held.clone())
    }

    fn present_or_not_found(&self, state: &State) -> Result<Arc<Cgroup>> {
        self.present(state)?.ok_or_else(|| {
            if !state.path.is_systemd() {
                return gone(state);
            }
            let why =
                "nothing runs inside, so that there is no cgroup: systemd starts it with the first process";
            Error::new(ErrorKind::NotFound, why).with_value(&state.cgroup)
        })
    }

    /// Starts the scope that was planned, around processes.
    fn start(&self, state: &mut State, processes: Processes<'_>) -> Result<Arc<Cgroup>> {
        if !state.path.is_systemd() {
            return Err(gone(state));
        }
        state.forget_threads();
        let anew = state.anew();
        let want = Want { unsupported: self.unsupported, ..state.want(&anew) };
        let (cgroup, report) = Cgroup::create_as(&self.host, &want, processes)?;
        state.inodes = Inodes::of(&cgroup);
        state.device_program = cgroup.filter_id();
        state.report.supersede(&BTreeSet::new(), &report);
        let cgroup = Arc::new(cgroup);
        *self.cgroup.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&cgroup));
        Ok(cgroup)
    }

    /// What another process needs to restore it.
    pub fn state(&self) -> State {
        self.snapshot(&self.known())
    }

    fn snapshot(&self, state: &State) -> State {
        let mut state = state.clone();
        let held = self.cgroup.lock().unwrap_or_else(PoisonError::into_inner);
        state.started = held.as_ref().map(|cgroup| cgroup.started()).unwrap_or_default();
        state.apart = self.apart.as_ref().map(|apart| Box::new(apart.state()));
        state
    }

    /// The state for an operation; waits for the running one.
    fn locked(&self) -> StateGuard<'_> {
        self.state.lock()
    }

    /// The state for a reader; does not wait for a running operation.
    fn known(&self) -> Arc<State> {
        self.state.snapshot()
    }

    /// The process that answers for the sandbox; `None` for one that stays without.
    pub fn set_holder(&self, holder: Option<ProcessIdentity>) {
        self.locked().holder = holder;
    }

    /// Controller → directory; the v2 tree is `unified`.
    pub fn paths(&self) -> BTreeMap<String, PathBuf> {
        let present = self.present(&self.known());
        present.ok().flatten().map(|cgroup| cgroup.paths()).unwrap_or_default()
    }

    fn own_status(&self) -> Result<Status> {
        let absent = || if self.is_gone() { Status::Gone } else { Status::Planned };
        let Some(cgroup) = self.present(&self.known())? else { return Ok(absent()) };
        let present = || match cgroup.is_frozen()? {
            _ if !self.damage(&cgroup).is_empty() => Ok(Status::Damaged),
            true => Ok(Status::Frozen),
            false if cgroup.processes()?.is_empty() => Ok(Status::Empty),
            false => Ok(Status::Running),
        };
        match present() {
            // It ended at this moment.
            Err(_) if !cgroup.is_there() => Ok(absent()),
            status => status,
        }
    }

    /// The missing directories of the sandbox and of its parts, each in one hierarchy.
    fn damage(&self, cgroup: &Cgroup) -> Vec<Dir> {
        let parts = self.known().parts.values().cloned().collect::<Vec<_>>();
        cgroup.damage(parts.iter().map(String::as_str))
    }

    /// The device policy in force.
    pub fn devices(&self) -> DevicePolicy {
        self.known().devices.clone()
    }

    /// A reader of statistics that keeps its descriptors between samples.
    pub fn stats_reader(&self) -> Result<StatsReader> {
        self.cgroup()?.stats_reader()
    }

    /// A reader of what one part uses: CPU time and throttling.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a sandbox without parts.
    pub fn part_stats_reader(&self, part: Part) -> Result<StatsReader> {
        if let (place, None) = self.place_of(Some(part)) {
            return place.stats_reader();
        }
        let whole = self.cgroup()?;
        Cgroup::open_at(&whole.host, part_path(&self.known(), part)?)?.stats_reader()
    }

    /// The value in effect, and which ancestor decides it: of CPU time and CPUs for the vCPUs, where these are a part. See
    /// [`Cgroup::explain`].
    pub fn explain(&self, key: &Key) -> Result<Explanation> {
        let whole = self.cgroup()?;
        let vcpus = self.known().parts.get(&Part::Vcpu).filter(|_| layout::is_by_part(key)).cloned();
        match vcpus.map(|path| Cgroup::open_at(&whole.host, &path)).transpose()? {
            Some(part) if part.has_place_of(key.controller()) => part.explain(key),
            _ => whole.explain(key),
        }
    }

    /// The same for one part, of what parts have by themselves: CPU time, CPUs and memory nodes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a sandbox without parts, and for what is the whole's.
    pub fn explain_part(&self, part: Part, key: &Key) -> Result<Explanation> {
        if !layout::is_by_part(key) {
            let why = "cpu or cpuset for a part: everything else is the whole's";
            return Err(Error::invalid("key", key, why));
        }
        let whole = self.cgroup()?;
        Cgroup::open_at(&whole.host, part_path(&self.known(), part)?)?.explain(key)
    }

    /// The host, as it is seen where the sandbox is.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// How often what [`Events`](crate::Events) tell of has happened in the cgroup that is there now, and in that of a separate
    /// overhead.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.last_counts().for_each(|last| counts.add(&last.counts));
        counts
    }

    /// The same of each by itself.
    fn last_counts(&self) -> impl Iterator<Item = LastCounts> {
        let both = std::iter::once(self).chain(self.apart.as_deref());
        both.filter_map(|one| one.held()?.counted())
    }

    /// Whom to tell what was counted before it is removed, and that it is.
    pub(crate) fn before_removal(&self, lifetime: Lifetime, hearer: Hearer) {
        if let Some(apart) = &self.apart {
            apart.hearers.add(Lifetime::clone(&lifetime), Arc::clone(&hearer));
        }
        self.hearers.add(lifetime, hearer);
    }

    fn own_freeze(&self, timeout: Duration) -> Result<()> {
        let state = self.locked();
        self.present_or_not_found(&state)?.freeze(timeout)
    }

    fn own_thaw(&self, timeout: Duration) -> Result<Report> {
        let state = self.locked();
        self.present_or_not_found(&state)?.thaw(timeout)
    }

    fn own_kill(&self, timeout: Duration) -> Result<BTreeSet<u32>> {
        let state = self.locked();
        let Some(cgroup) = self.present(&state)? else { return Ok(BTreeSet::new()) };
        // Whoever supervises it has still to read what was counted, and removes it then.
        let is_supervised = state.holder.as_ref().is_some_and(ProcessIdentity::is_alive);
        match state.held_by().filter(|_| is_supervised) {
            Some(spared) => cgroup.kill_others(spared, timeout),
            None => cgroup.kill(timeout),
        }
    }

    /// Refuses a removal before anything is changed: if other sandboxes are nested inside, or if processes live and `remaining`
    /// says to refuse.
    pub(crate) fn allows_removal(&self, remaining: Remaining) -> Result<()> {
        for one in std::iter::once(self).chain(self.apart.as_deref()) {
            let state = one.known();
            if let Some(cgroup) = one.present(&state)? {
                cgroup.refuse_nested()?;
                let held = state.held_by();
                if remaining == Remaining::Refuse && cgroup.processes()?.iter().any(|pid| Some(*pid) != held)
                {
                    cgroup.refuse_living()?;
                }
            }
        }
        Ok(())
    }

    fn own_destroy(&self, remaining: Remaining, timeout: Duration) -> Result<Outcome> {
        let mut state = self.locked();
        let cgroup = match self.present(&state)? {
            Some(cgroup) => Some(cgroup),
            // What is ours of a scope that has ended.
            None => open_leftover(&self.host, &state)?,
        };
        state.phase = Phase::Removing;
        let Some(cgroup) = cgroup else {
            let mut outcome = Outcome::default();
            if let Some(unit) = state.path.as_systemd() {
                // systemd may not have seen yet that nothing runs inside.
                _ = self.host.manager().and_then(|manager| manager.is_taken(&unit.unit()));
                if unit.is_in_default_slice()
                    && let Some((slice, _)) = state.cgroup.rsplit_once('/')
                {
                    stop_default_slice(&self.host, slice, &mut outcome);
                }
            }
            return Ok(outcome);
        };
        let cgroup = cgroup.with_renamed();
        let deadline = Deadline::after(timeout);
        let mut killed = BTreeSet::new();
        let remaining = match (remaining, state.held_by()) {
            // So that what is counted last is read while systemd does not remove it yet.
            (Remaining::Kill, Some(spared)) => {
                killed = cgroup.kill_others(spared, timeout / 2).unwrap_or_default();
                Remaining::Kill
            }
            (Remaining::Refuse | Remaining::Drain, Some(only))
                if cgroup.processes()? == BTreeSet::from([only]) =>
            {
                Remaining::Kill
            }
            (Remaining::Drain, Some(held)) if cgroup.processes()?.contains(&held) => {
                // It has nothing to live on for.
                cgroup.kill_one(held, deadline);
                Remaining::Drain
            }
            (remaining, _) => remaining,
        };
        let mut tell = |last| self.hearers.tell(LastWord::Counted(last));
        let destroyed = cgroup.destroy_telling(remaining, deadline.left(), &mut tell);
        let mut outcome = destroyed.inspect_err(|_| state.phase = Phase::Ready)?;
        outcome.killed.append(&mut killed);
        Ok(outcome)
    }

    /// The cgroup as a whole.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for a scope of systemd in which nothing runs.
    pub fn cgroup(&self) -> Result<Arc<Cgroup>> {
        self.present_or_not_found(&self.known())
    }
}

fn gone(state: &State) -> Error {
    Error::new(ErrorKind::NotFound, "there is no such cgroup in any hierarchy").with_value(&state.cgroup)
}

/// The cgroup of a state, if it is there.
fn open(host: &Host, state: &State) -> Result<Option<Arc<Cgroup>>> {
    Ok(open_leftover(host, state)?.filter(|cgroup| state.cgroup.is_empty() || cgroup.is_there()))
}

/// The same, or what there is of it.
fn open_leftover(host: &Host, state: &State) -> Result<Option<Arc<Cgroup>>> {
    let mut cgroup = match Cgroup::open_at(host, &state.cgroup) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    cgroup.ours = true;
    cgroup.unit = state.path.as_systemd().cloned();
    cgroup.mark = state.mark.as_deref().map(Arc::from);
    cgroup.inodes = state.inodes.as_ref().map(|inodes| inodes.on(host)).unwrap_or_default();
    cgroup.keep_own();
    if !cgroup.exists() && !state.cgroup.is_empty() {
        return Ok(None);
    }
    cgroup.started = Mutex::new(state.started.clone());
    if let Some(id) = state.device_program {
        cgroup.filter = Mutex::new(Filter::Id(id));
    }
    Ok(Some(Arc::new(cgroup)))
}

/// How long the directories of a creation that failed may be busy: those below them were removed a moment before.
const LONGEST_UNDO: Duration = Duration::from_secs(5);

/// Without a cgroup.
const IN_OUR_OWN: &str = "nothing can be limited, and what is started runs in the cgroup of who starts it";

/// The runtime defaults, and what the hypervisor needs.
fn base_rules(profile: Profile, host: &Host) -> Result<(Vec<DeviceRule>, Report)> {
    let (needed, report) = profile.rules(host)?;
    Ok(([runtime_defaults(), needed].concat(), report))
}

fn joined(mut first: Report, second: Report) -> Report {
    first.append(second);
    first
}
