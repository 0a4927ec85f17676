//! A sandbox: one virtual machine with everything on the host that serves it.

mod config;
mod diff;
mod leftovers;
mod state;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use config::{Overhead, SandboxConfig};
pub use diff::Difference;
pub use leftovers::Leftover;
pub use state::{Phase, STATE_VERSION, State};
pub use store::{Entry, Store};

use crate::cgroup::{Cgroup, Child, Command, Filter, Outcome, Remaining};
use crate::devices::filter::Override;
use crate::devices::{DevicePolicy, DeviceRule, Profile, runtime_defaults};
use crate::driver::dirs::Dirs;
use crate::error::Result;
use crate::explain::{Explanation, Key};
use crate::host::{Host, Version};
use crate::kernel::proc::ProcessIdentity;
use crate::path::CgroupPath;
use crate::plan::convert::swap_to_v2;
use crate::plan::{self, DeviceWant, Observed, Plan, Unsupported, Want};
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
}

/// A virtual machine's cgroup, with its device policy and the state from which another process restores it.
///
/// All methods take `&self`, are serialised inside, and block.
#[derive(Debug)]
pub struct Sandbox {
    cgroup: Cgroup,
    state: Mutex<State>,
}

impl Sandbox {
    /// The steps that [`Sandbox::create`] would take on this host, or on any other. Pure.
    pub fn plan(host: &Host, config: &SandboxConfig) -> Result<Plan> {
        let state = Self::intent(host, config)?;
        let nothing = Resources::default();
        let mut plan = plan::plan(host, &config.want(&state, &nothing), &Observed::default())?;
        plan.report = joined(state.report, plan.report);
        Ok(plan)
    }

    /// The state of a sandbox that is about to be made: what a [`Store`](crate::Store) writes ahead. Changes nothing.
    pub fn intent(host: &Host, config: &SandboxConfig) -> Result<State> {
        config.resources.validate()?;
        let cgroup = config.resolve(host)?;
        let (base, missing) = base_rules(config.profile, host)?;
        let (devices, denied) =
            DevicePolicy::with_base(&config.resources.devices, &base, &config.profile.required(host))?;
        let mut report = joined(joined(config.unread.clone(), missing), denied);
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
            claims: BTreeMap::new(),
            overhead: config.overhead,
            parts: BTreeMap::new(),
            holder: None,
            started: Vec::new(),
            report,
            unknown: BTreeMap::new(),
        })
    }

    /// Makes the cgroups and writes every limit: all of it or nothing.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if there is such a cgroup; otherwise the setting that failed.
    pub fn create(host: &Host, config: &SandboxConfig) -> Result<(Self, Report)> {
        let mut state = Self::intent(host, config)?;
        let nothing = Resources::default();
        let (mut cgroup, created) = Cgroup::create_as(host, &config.want(&state, &nothing))?;
        cgroup.parent_is_default = state.parent_is_default;
        if let Some(text) = &config.mark {
            cgroup.mark(text);
        }
        state.phase = Phase::Ready;
        state.device_program = cgroup.filter_id();
        state.report.append(created);
        let report = state.report.clone();
        Ok((Self { cgroup, state: Mutex::new(state) }, report))
    }

    /// Takes over a sandbox that another process made.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if its cgroup is gone from every hierarchy; [`ErrorKind::State`](crate::ErrorKind::State) if the state is of a newer
    /// version.
    pub fn restore(host: &Host, mut state: State) -> Result<Self> {
        state.check_version()?;
        // What is written from now on is in this version's format.
        state.version = STATE_VERSION;
        let mut cgroup = Cgroup::open_at(host, &state.cgroup)?;
        cgroup.ours = true;
        cgroup.parent_is_default = state.parent_is_default;
        cgroup.started = Mutex::new(state.started.clone());
        if let Some(id) = state.device_program {
            cgroup.filter = Mutex::new(Filter::Id(id));
        }
        Ok(Self { cgroup, state: Mutex::new(state) })
    }

    /// What another process needs to restore it.
    pub fn state(&self) -> State {
        State { started: self.cgroup.started(), ..self.locked().clone() }
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
        self.cgroup.paths()
    }

    /// What it is doing now.
    pub fn status(&self) -> Result<Status> {
        if self.cgroup.is_frozen()? {
            return Ok(Status::Frozen);
        }
        Ok(if self.cgroup.processes()?.is_empty() { Status::Empty } else { Status::Running })
    }

    /// The steps of [`Sandbox::change`], without doing them.
    pub fn plan_change(&self, change: &Resources, options: ChangeOptions) -> Result<Plan> {
        let state = self.locked();
        let planned = Changed::of(&state, change, &options, &self.cgroup.host)?;
        let want = planned.want(&self.cgroup, &state, change, &options);
        let mut dirs = Dirs::new(&self.cgroup.host, self.cgroup.dirs.clone());
        let mut plan = Cgroup::plan_with(&self.cgroup.host, &want, &mut dirs)?;
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
        let planned = Changed::of(&state, change, &options, &self.cgroup.host)?;
        options.unsupported.mind(&planned.report)?;
        let want = planned.want(&self.cgroup, &state, change, &options);
        let (changed, tried) = self.cgroup.change_as(&want)?;
        let report = joined(planned.report, changed);
        state.report.supersede(&tried, &report);
        state.resources = planned.resources;
        state.devices = planned.devices;
        state.device_program = self.cgroup.filter_id();
        Ok(report)
    }

    /// The device policy in force.
    pub fn devices(&self) -> DevicePolicy {
        self.locked().devices.clone()
    }

    /// The processes inside.
    pub fn processes(&self) -> Result<BTreeSet<u32>> {
        self.cgroup.processes()
    }

    /// Joins a running process with all its threads.
    pub fn join(&self, pid: u32) -> Result<()> {
        let _serialised = self.locked();
        self.cgroup.join(pid)
    }

    /// Starts a command inside; it never runs outside, not for an instant.
    pub fn spawn(&self, command: &Command) -> Result<Child> {
        let _serialised = self.locked();
        self.cgroup.spawn(command)
    }

    /// A closure for `pre_exec` of std's and tokio's `Command`.
    pub fn join_hook(&self) -> Result<impl FnMut() -> std::io::Result<()> + Send + Sync + 'static> {
        self.cgroup.join_hook()
    }

    /// A reader of statistics that keeps its descriptors between samples.
    pub fn stats_reader(&self) -> Result<StatsReader> {
        self.cgroup.stats_reader()
    }

    /// The value in effect, and which ancestor decides it. See [`Cgroup::explain`].
    pub fn explain(&self, key: &Key) -> Result<Explanation> {
        self.cgroup.explain(key)
    }

    /// Stops every task inside. See [`Cgroup::freeze`].
    pub fn freeze(&self, timeout: Duration) -> Result<()> {
        let _serialised = self.locked();
        self.cgroup.freeze(timeout)
    }

    /// Lets the tasks run again. See [`Cgroup::thaw`].
    pub fn thaw(&self, timeout: Duration) -> Result<Report> {
        let _serialised = self.locked();
        self.cgroup.thaw(timeout)
    }

    /// Sends a signal to every process inside, once.
    pub fn signal(&self, signal: i32) -> Result<BTreeSet<u32>> {
        self.cgroup.signal(signal)
    }

    /// Kills everything inside. See [`Cgroup::kill`].
    pub fn kill(&self, timeout: Duration) -> Result<BTreeSet<u32>> {
        let _serialised = self.locked();
        self.cgroup.kill(timeout)
    }

    /// Removes it in every hierarchy. See [`Cgroup::destroy`].
    pub fn destroy(&self, remaining: Remaining, timeout: Duration) -> Result<Outcome> {
        let mut state = self.locked();
        state.phase = Phase::Removing;
        self.cgroup.destroy(remaining, timeout).inspect_err(|_| state.phase = Phase::Ready)
    }

    /// The cgroup as a whole.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }
}

/// What a change leaves as the state.
struct Changed {
    resources: Resources,
    devices: DevicePolicy,
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
        if let Some(swap) = resources.memory.swap {
            swap_to_v2(resources.memory.limit.unwrap_or(Limit::Max), swap)?;
        }
        let unread = options.unread.clone();
        if change.devices.is_empty() {
            return Ok(Self { resources, devices: state.devices.clone(), report: unread });
        }
        DeviceRule::drop_superseded(&mut resources.devices);
        let base = || base_rules(state.profile, host).map(|(base, _)| base);
        let (devices, report) =
            state.devices.changed(&change.devices, base, &state.profile.required(host))?;
        Ok(Self { resources, devices, report: joined(unread, report) })
    }

    fn want<'a>(
        &'a self,
        cgroup: &'a Cgroup,
        state: &'a State,
        change: &'a Resources,
        options: &ChangeOptions,
    ) -> Want<'a> {
        let mut want = Want::change(&state.cgroup, &state.resources, change);
        want.burst_by_default = state.burst_by_default;
        want.force = options.force;
        want.unsupported = options.unsupported;
        if !change.devices.is_empty() {
            // What cannot be listed counts as running.
            let running = !cgroup.is_frozen().unwrap_or(false)
                && cgroup.processes().map_or(true, |processes| !processes.is_empty());
            let overriding = Override::from_allowed(state.override_device_programs);
            want.devices =
                Some(DeviceWant { before: Some(&state.devices), policy: &self.devices, running, overriding });
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
