//! A sandbox: one virtual machine with everything on the host that serves it.

mod claims;
mod config;
mod diff;
mod layout;
mod leftovers;
mod state;
mod store;
mod threads;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

pub use claims::Claim;
use claims::Devices;
pub use config::{Overhead, SandboxConfig, VcpuHints};
pub use diff::Difference;
pub use layout::Part;
use layout::Shares;
pub use leftovers::Leftover;
use state::Anew;
pub use state::{Phase, STATE_VERSION, State};
pub use store::{Entry, Store};
pub use threads::Placed;

use crate::cgroup::{Cgroup, Child, Command, Filter, Outcome, Remaining, send, stop_default_slice};
use crate::devices::filter::Override;
use crate::devices::{DevicePolicy, DeviceRule, Profile, runtime_defaults};
use crate::driver::dirs::Dirs;
use crate::driver::systemd::Processes;
use crate::error::{Error, ErrorKind, Result};
use crate::explain::{Explanation, Key};
use crate::host::{Host, Version};
use crate::kernel::proc::ProcessIdentity;
use crate::path::{CgroupPath, SystemdName};
use crate::plan::convert::swap_to_v2;
use crate::plan::{self, DeviceWant, Observed, PartWant, Plan, Unsupported, Want};
use crate::report::Report;
use crate::resources::{Limit, Resources};
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
            Self::Gone => "gone",
        })
    }
}

/// How a change is to be made.
#[derive(Debug, Clone, Default)]
pub struct ChangeOptions {
    /// Lower a memory limit below what is in use: on v2 the kernel kills at once.
    pub force: bool,
    /// What is done about settings that this host does not have.
    pub unsupported: Unsupported,
    /// The fields of the document, from which the change was read, that nobody reads: part of the report.
    pub unread: Report,
    /// What is to become different for the overhead, where it has a part of its own.
    pub overhead: Resources,
}

/// A virtual machine's cgroup, with its device policy and the state from which another process restores it.
///
/// All methods take `&self`, are serialised inside, and block.
#[derive(Debug)]
pub struct Sandbox {
    host: Host,
    /// None where systemd carries it and no process has started it, or the last one has ended.
    cgroup: Mutex<Option<Arc<Cgroup>>>,
    state: Mutex<State>,
    /// What is done about what only shows when a unit starts.
    unsupported: Unsupported,
}

impl Sandbox {
    /// The steps that [`Sandbox::create`] would take on this host, or on any other. Pure.
    pub fn plan(host: &Host, config: &SandboxConfig) -> Result<Plan> {
        let state = Self::intent(host, config)?;
        let mut plan = plan::plan(host, &config.want(&state, &state.anew()), &Observed::default())?;
        plan.report = joined(state.report, plan.report);
        Ok(plan)
    }

    /// [`Sandbox::plan`] for this machine, where an ordinary user's rights may differ from place to place: what is delegated
    /// at the path is looked at.
    pub fn plan_here(host: &Host, config: &SandboxConfig) -> Result<Plan> {
        Self::plan(&host.as_seen_at(&config.resolve(host)?), config)
    }

    /// The state of a sandbox that is about to be made: what a [`Store`](crate::Store) writes ahead. Changes nothing.
    pub fn intent(host: &Host, config: &SandboxConfig) -> Result<State> {
        config.resources.validate()?;
        let cgroup = config.resolve(host)?;
        let overhead = config.overhead_at()?;
        let (base, missing) = base_rules(config.profile, host)?;
        let (devices, denied) =
            DevicePolicy::with_base(&config.resources.devices, &base, &config.profile.required(host))?;
        let mut report = joined(joined(config.unread.clone(), missing), denied);
        let parts = layout::paths(host, overhead, &cgroup, config.path.is_systemd());
        if parts.is_empty() && overhead == Overhead::Nested {
            let why = "no hierarchy for CPU time or CPUs is at hand: all limits hold for the whole";
            report.add("overhead", "nested", why);
        }
        if cgroup.is_empty() {
            report.add("cgroup", &config.path, format!("{}: {IN_OUR_OWN}", host.why_nothing()));
        }
        config.unsupported.mind(&report)?;
        Ok(State {
            version: STATE_VERSION,
            phase: Phase::Creating,
            path: config.path.clone(),
            cgroup,
            parent_is_default: matches!(config.path, CgroupPath::Relative(_)),
            mode: host.mode,
            resources: config.resources.clone(),
            profile: config.profile,
            // Without it, a quota with which all vCPUs can be busy at once stops them all at once.
            burst_by_default: config.profile != Profile::None,
            devices,
            device_program: None,
            override_device_programs: config.override_device_programs,
            unclaimed: None,
            claims: BTreeMap::new(),
            overhead,
            overhead_resources: config.overhead_resources.clone(),
            parts,
            vcpu_hints: config.vcpu_hints.clone(),
            vcpus: BTreeMap::new(),
            holder: None,
            started: Vec::new(),
            report,
            owner: config.owner,
            mark: config.mark.clone(),
            placeholder: None,
            unknown: BTreeMap::new(),
        })
    }

    /// Makes the cgroups and writes every limit: all of it or nothing.
    ///
    /// A scope of systemd does not live without a process: it is planned, and starts with the first one that is spawned or
    /// joins, which then has every limit from the start. The same again when the last one has ended.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if there is such a cgroup; otherwise the setting that failed.
    pub fn create(host: &Host, config: &SandboxConfig) -> Result<(Self, Report)> {
        let mut state = Self::intent(host, config)?;
        let host = &host.as_seen_at(&state.cgroup);
        let cgroup = match state.path.as_systemd().filter(|unit| !unit.is_slice()) {
            Some(unit) => {
                if host.manager()?.active(&unit.unit())?.is_some() {
                    let why = "systemd has such a unit already";
                    return Err(Error::new(ErrorKind::AlreadyExists, why).with_value(unit.unit()));
                }
                state.report = Self::plan(host, config)?.report;
                None
            }
            None => {
                let anew = state.anew();
                let (mut cgroup, created) =
                    Cgroup::create_as(host, &config.want(&state, &anew), Processes::NONE)?;
                cgroup.parent_is_default = state.parent_is_default;
                state.mark.iter().for_each(|mark| cgroup.mark(mark));
                state.device_program = cgroup.filter_id();
                state.report.append(created);
                Some(Arc::new(cgroup))
            }
        };
        state.phase = Phase::Ready;
        let report = state.report.clone();
        let (host, unsupported) = (host.clone(), config.unsupported);
        let (cgroup, state) = (Mutex::new(cgroup), Mutex::new(state));
        Ok((Self { host, cgroup, state, unsupported }, report))
    }

    /// Takes over a sandbox that another process made.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if its cgroup is gone from every hierarchy, unless it is a scope of systemd, which starts
    /// again; [`ErrorKind::State`](crate::ErrorKind::State) if the state is of a newer version.
    pub fn restore(host: &Host, mut state: State) -> Result<Self> {
        state.check_version()?;
        // What is written from now on is in this version's format.
        state.version = STATE_VERSION;
        let host = &host.as_seen_at(&state.cgroup);
        let cgroup = open(host, &state)?;
        if cgroup.is_none() && !state.path.is_systemd() {
            let why = "there is no such cgroup in any hierarchy";
            return Err(Error::new(ErrorKind::NotFound, why).with_value(&state.cgroup));
        }
        let (cgroup, state) = (Mutex::new(cgroup), Mutex::new(state));
        Ok(Self { host: host.clone(), cgroup, state, unsupported: Unsupported::Report })
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
            let why =
                "nothing runs inside, so that there is no cgroup: systemd starts it with the first process";
            Error::new(ErrorKind::NotFound, why).with_value(&state.cgroup)
        })
    }

    /// Starts the scope that was planned, around processes.
    fn start(&self, state: &mut State, processes: Processes<'_>) -> Result<Arc<Cgroup>> {
        let anew = state.anew();
        let want = Want { unsupported: self.unsupported, ..state.want(&anew) };
        let (cgroup, report) = Cgroup::create_as(&self.host, &want, processes)?;
        state.mark.iter().for_each(|mark| cgroup.mark(mark));
        state.device_program = cgroup.filter_id();
        state.report.supersede(&BTreeSet::new(), &report);
        let cgroup = Arc::new(cgroup);
        *self.cgroup.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&cgroup));
        Ok(cgroup)
    }

    /// What another process needs to restore it.
    pub fn state(&self) -> State {
        let mut state = self.locked().clone();
        let held = self.cgroup.lock().unwrap_or_else(PoisonError::into_inner);
        state.started = held.as_ref().map(|cgroup| cgroup.started()).unwrap_or_default();
        state
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process that answers for the sandbox; `None` for one that stays without.
    pub fn set_holder(&self, holder: Option<ProcessIdentity>) {
        self.locked().holder = holder;
    }

    /// Controller → directory; the v2 tree is `unified`.
    pub fn paths(&self) -> BTreeMap<String, PathBuf> {
        let present = self.present(&self.locked());
        present.ok().flatten().map(|cgroup| cgroup.paths()).unwrap_or_default()
    }

    /// What it is doing now.
    pub fn status(&self) -> Result<Status> {
        let Some(cgroup) = self.present(&self.locked())? else { return Ok(Status::Planned) };
        if cgroup.is_frozen()? {
            return Ok(Status::Frozen);
        }
        Ok(if cgroup.processes()?.is_empty() { Status::Empty } else { Status::Running })
    }

    /// The steps of [`Sandbox::change`], without doing them.
    pub fn plan_change(&self, change: &Resources, options: ChangeOptions) -> Result<Plan> {
        let state = self.locked();
        let planned = Changed::of(&state, change, &options, &self.host)?;
        self.think(&state, planned, &options)
    }

    fn think(&self, state: &State, planned: Changed, options: &ChangeOptions) -> Result<Plan> {
        let mut plan = match self.present(state)? {
            Some(cgroup) => {
                let anew = state.anew();
                let want = planned.want(&cgroup, state, &anew, options);
                Cgroup::plan_with(&self.host, &want, &mut Dirs::new(&self.host, cgroup.dirs.clone()))?
            }
            None => planned.plan_anew(&self.host, state, options.unsupported)?,
        };
        plan.report = joined(planned.report, plan.report);
        Ok(plan)
    }

    /// Changes limits: merges, all or nothing. Device rules are taken after those from before.
    pub fn change(&self, change: &Resources) -> Result<Report> {
        self.change_with(change, ChangeOptions::default())
    }

    /// [`Sandbox::change`] with options.
    pub fn change_with(&self, change: &Resources, options: ChangeOptions) -> Result<Report> {
        let mut state = self.locked();
        let planned = Changed::of(&state, change, &options, &self.host)?;
        self.carry_out(&mut state, planned, &options)
    }

    fn carry_out(&self, state: &mut State, planned: Changed, options: &ChangeOptions) -> Result<Report> {
        options.unsupported.mind(&planned.report)?;
        let (changed, tried) = match self.present(state)? {
            Some(cgroup) => {
                let anew = state.anew();
                let made = cgroup.change_as(&planned.want(&cgroup, state, &anew, options))?;
                state.device_program = cgroup.filter_id();
                made
            }
            // Everything is planned once more.
            None => {
                let plan = planned.plan_anew(&self.host, state, options.unsupported)?;
                let tried = plan.writes().filter_map(|step| step.setting.clone()).collect();
                (plan.report, tried)
            }
        };
        let report = joined(planned.report, changed);
        state.report.supersede(&tried, &report);
        state.resources = planned.resources;
        state.overhead_resources = planned.overhead_resources;
        planned.devices.keep_in(state);
        Ok(report)
    }

    /// The device policy in force.
    pub fn devices(&self) -> DevicePolicy {
        self.locked().devices.clone()
    }

    /// The processes inside.
    pub fn processes(&self) -> Result<BTreeSet<u32>> {
        match self.present(&self.locked())? {
            Some(cgroup) => cgroup.processes(),
            None => Ok(BTreeSet::new()),
        }
    }

    /// Joins running processes with all their threads: all of them, or none. Where the sandbox has parts, they go to the
    /// overhead.
    pub fn join_all(&self, pids: &[u32]) -> Result<()> {
        self.join_part(self.default_part(), pids)
    }

    /// Where processes go of which nothing is said: to the overhead, where there are parts.
    pub fn default_part(&self) -> Option<Part> {
        self.locked().parts.contains_key(&Part::Overhead).then_some(Part::Overhead)
    }

    /// The same, into a part.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a sandbox without parts.
    pub fn join_part(&self, part: impl Into<Option<Part>>, pids: &[u32]) -> Result<()> {
        let part = part.into();
        let mut state = self.locked();
        let mut races = 0;
        loop {
            if let Some(cgroup) = self.present(&state)? {
                return seat(&cgroup, &state, part)?.join_all(pids);
            }
            races += 1;
            match self.start(&mut state, Processes::Running(pids)) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists && races < RACES => {}
                started => {
                    let seat = seat(&started?, &state, part)?;
                    return pids.iter().try_for_each(|pid| seat.take_seat(*pid));
                }
            }
        }
    }

    /// Joins a running process with all its threads.
    pub fn join(&self, pid: u32) -> Result<()> {
        self.join_all(&[pid])
    }

    /// Starts a command inside; it never runs outside, not for an instant. Where the sandbox has parts, it is born among the
    /// vCPUs, limited as they are, until [`Sandbox::place_vcpus`] tells its threads apart.
    pub fn spawn(&self, command: &Command) -> Result<Child> {
        let part = self.locked().parts.contains_key(&Part::Vcpu).then_some(Part::Vcpu);
        self.spawn_in(part, command)
    }

    /// The same, in a part.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a sandbox without parts.
    pub fn spawn_in(&self, part: impl Into<Option<Part>>, command: &Command) -> Result<Child> {
        let part = part.into();
        let mut state = self.locked();
        for _ in 0..RACES {
            if let Some(cgroup) = self.present(&state)? {
                match seat(&cgroup, &state, part).and_then(|seat| seat.spawn(command)) {
                    // A scope that ended at this moment.
                    Err(error)
                        if state.path.is_systemd()
                            && error.is_one_of(&[Errno::NOENT, Errno::NODEV])
                            && !cgroup.is_there() => {}
                    spawned => return spawned,
                }
            }
            match self.spawn_first(&mut state, part, command) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                spawned => return spawned,
            }
        }
        self.spawn_first(&mut state, part, command)
    }

    /// Starts a command with the scope around it.
    fn spawn_first(&self, state: &mut State, part: Option<Part>, command: &Command) -> Result<Child> {
        let waiting = command.hold()?;
        let cgroup = self.start(state, Processes::Waiting(&[waiting.pid()]))?;
        seat(&cgroup, state, part)?.take_seat(waiting.pid())?;
        command.go(waiting)
    }

    /// Starts a command that does nothing but live: it keeps a scope of systemd alive, and is no reason for
    /// [`Remaining::Refuse`] to refuse.
    pub fn hold(&self, command: &Command) -> Result<Child> {
        let child = self.spawn_in(self.default_part(), command)?;
        self.locked().placeholder = ProcessIdentity::of(child.pid());
        Ok(child)
    }

    /// A closure for `pre_exec` of std's and tokio's `Command`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for a scope of systemd in which nothing runs.
    pub fn join_hook(&self) -> Result<impl FnMut() -> std::io::Result<()> + Send + Sync + 'static + use<>> {
        let state = self.locked();
        let part = state.parts.contains_key(&Part::Vcpu).then_some(Part::Vcpu);
        seat(&self.present_or_not_found(&state)?, &state, part)?.join_hook()
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
        let whole = self.cgroup()?;
        Cgroup::open_at(&whole.host, part_path(&self.locked(), part)?)?.stats_reader()
    }

    /// The value in effect, and which ancestor decides it. See [`Cgroup::explain`].
    pub fn explain(&self, key: &Key) -> Result<Explanation> {
        self.cgroup()?.explain(key)
    }

    /// Stops every task inside. See [`Cgroup::freeze`].
    pub fn freeze(&self, timeout: Duration) -> Result<()> {
        let state = self.locked();
        self.present_or_not_found(&state)?.freeze(timeout)
    }

    /// Lets the tasks run again. See [`Cgroup::thaw`].
    pub fn thaw(&self, timeout: Duration) -> Result<Report> {
        let state = self.locked();
        self.present_or_not_found(&state)?.thaw(timeout)
    }

    /// Sends a signal to every process inside, once.
    pub fn signal(&self, signal: i32) -> Result<BTreeSet<u32>> {
        match self.present(&self.locked())? {
            Some(cgroup) => cgroup.signal(signal),
            None => Ok(BTreeSet::new()),
        }
    }

    /// Kills everything inside. See [`Cgroup::kill`].
    pub fn kill(&self, timeout: Duration) -> Result<BTreeSet<u32>> {
        let state = self.locked();
        match self.present(&state)? {
            Some(cgroup) => cgroup.kill(timeout),
            None => Ok(BTreeSet::new()),
        }
    }

    /// Removes it in every hierarchy. See [`Cgroup::destroy`].
    pub fn destroy(&self, remaining: Remaining, timeout: Duration) -> Result<Outcome> {
        let mut state = self.locked();
        let cgroup = match self.present(&state)? {
            Some(cgroup) => Some(cgroup),
            // What is ours of a scope that has ended.
            None => open_leftover(&self.host, &state)?,
        };
        state.phase = Phase::Removing;
        let Some(cgroup) = cgroup else {
            let mut outcome = Outcome::default();
            if state.path.as_systemd().is_some_and(SystemdName::is_in_default_slice)
                && let Some((slice, _)) = state.cgroup.rsplit_once('/')
            {
                stop_default_slice(&self.host, slice, &mut outcome);
            }
            return Ok(outcome);
        };
        let remaining = match (remaining, state.placeholder.as_ref().filter(|process| process.is_alive())) {
            (Remaining::Refuse | Remaining::Drain, Some(only))
                if cgroup.processes()? == BTreeSet::from([only.pid]) =>
            {
                Remaining::Kill
            }
            (Remaining::Drain, Some(held)) => {
                // It has nothing to live on for.
                send(held.pid, Signal::KILL);
                Remaining::Drain
            }
            (remaining, _) => remaining,
        };
        cgroup.destroy(remaining, timeout).inspect_err(|_| state.phase = Phase::Ready)
    }

    /// The cgroup as a whole.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for a scope of systemd in which nothing runs.
    pub fn cgroup(&self) -> Result<Arc<Cgroup>> {
        self.present_or_not_found(&self.locked())
    }
}

/// How often a scope may start or end at the very moment at which it is asked for.
const RACES: usize = 5;

/// Where a process goes: into a part, or into the whole.
fn seat(cgroup: &Arc<Cgroup>, state: &State, part: Option<Part>) -> Result<Arc<Cgroup>> {
    match part {
        Some(part) => cgroup.seat(part_path(state, part)?).map(Arc::new),
        None => Ok(Arc::clone(cgroup)),
    }
}

fn part_path(state: &State, part: Part) -> Result<&str> {
    let path = state.parts.get(&part);
    path.map(String::as_str).ok_or_else(|| {
        let why = "nothing: this sandbox has no parts, its overhead is together with the workload";
        Error::invalid("part", part, why)
    })
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
    cgroup.parent_is_default = state.parent_is_default;
    cgroup.unit = state.path.as_systemd().cloned();
    cgroup.started = Mutex::new(state.started.clone());
    if let Some(id) = state.device_program {
        cgroup.filter = Mutex::new(Filter::Id(id));
    }
    Ok(Some(Arc::new(cgroup)))
}

/// What a change leaves as the state.
struct Changed {
    resources: Resources,
    overhead_resources: Resources,
    /// What is to become different, as it lies on the whole and its parts.
    shares: Shares,
    parts: Vec<PartWant>,
    devices: Devices,
    report: Report,
}

impl Changed {
    fn of(state: &State, change: &Resources, options: &ChangeOptions, host: &Host) -> Result<Self> {
        change.validate()?;
        let version = host
            .hierarchy_of(crate::host::Controller::Memory)
            .map_or(Version::V2, |(_, hierarchy)| hierarchy.version);
        let mut resources = state.resources.clone();
        resources.merge(change, version);
        // A half that is given may contradict the half that stays.
        resources.validate()?;
        let mut overhead_resources = state.overhead_resources.clone();
        overhead_resources.merge(&options.overhead, version);
        state.overhead.allows(&overhead_resources)?;
        let shares = state.shares_of(change, &options.overhead);
        let parts = layout::parts(&state.parts, &state.shares(), &shares);
        if let Some(swap) = resources.memory.swap {
            swap_to_v2(resources.memory.limit.unwrap_or(Limit::Max), swap)?;
        }
        let unread = options.unread.clone();
        if change.devices.is_empty() {
            let devices = Devices::of(state);
            return Ok(Self { resources, overhead_resources, shares, parts, devices, report: unread });
        }
        DeviceRule::drop_superseded(&mut resources.devices);
        let base = || base_rules(state.profile, host).map(|(base, _)| base);
        let (devices, report) =
            Devices::of(state).changed(&change.devices, base, &state.profile.required(host))?;
        let report = joined(unread, report);
        Ok(Self { resources, overhead_resources, shares, parts, devices, report })
    }

    /// Of what may be opened, and of nothing else.
    fn of_devices(state: &State, devices: Devices, report: Report) -> Self {
        let (resources, overhead_resources) = (state.resources.clone(), state.overhead_resources.clone());
        let (shares, parts) = Default::default();
        Self { resources, overhead_resources, shares, parts, devices, report }
    }

    /// All of it, in a unit that is yet to be started.
    fn plan_anew(&self, host: &Host, state: &State, unsupported: Unsupported) -> Result<Plan> {
        let (resources, devices) = (self.resources.clone(), self.devices.policy.clone());
        let overhead_resources = self.overhead_resources.clone();
        let then = State { resources, overhead_resources, devices, ..state.clone() };
        let anew = then.anew();
        plan::plan(host, &Want { unsupported, ..then.want(&anew) }, &Observed::default())
    }

    fn want<'a>(
        &'a self,
        cgroup: &Cgroup,
        state: &'a State,
        anew: &'a Anew,
        options: &ChangeOptions,
    ) -> Want<'a> {
        let mut want = Want::change(&state.cgroup, &anew.shares.whole, &self.shares.whole);
        want.parts = &self.parts;
        want.unit = state.unit(anew);
        want.burst_by_default = state.burst_by_default;
        want.force = options.force;
        want.unsupported = options.unsupported;
        if self.devices.are_changed {
            // What cannot be listed counts as running.
            // systemd changes them while all is stopped.
            let running = want.unit.is_none()
                && !cgroup.is_frozen().unwrap_or(false)
                && cgroup.processes().map_or(true, |processes| !processes.is_empty());
            let overriding = Override::from_allowed(state.override_device_programs);
            let (before, policy) = (Some(&state.devices), &self.devices.policy);
            want.devices = Some(DeviceWant { before, policy, running, overriding });
        }
        want
    }
}

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
