//! The planner: from what is wanted, what the host is and what is there now, to ordered steps.
//!
//! Pure: no system call, no clock. [`needs`] says what must be read first; [`plan`] makes the steps. v1 and v2 are two
//! translations into the same steps.

pub(crate) mod convert;
mod step;
mod v1;
mod v2;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use rustix::io::Errno;

pub(crate) use step::{Action, Dir, Reaction, Undo, Verify};
pub use step::{Plan, Step};

use crate::devices::DevicePolicy;
use crate::devices::filter::Override;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Controller, Host, Version};
use crate::report::Report;
use crate::resources::{Cpu, Resources};

/// What is done about a setting that this host does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unsupported {
    /// A line in the report.
    #[default]
    Report,
    /// An error, before anything is changed ("strict").
    Refuse,
}

impl Unsupported {
    /// Strict mode: the first thing that cannot be done is the error.
    pub(crate) fn mind(self, report: &Report) -> Result<()> {
        match report.unsupported().next() {
            Some(line) if self == Self::Refuse => Err(Error::new(ErrorKind::Unsupported, line.why.clone())
                .with_setting(line.setting.clone())
                .with_value(&line.value)),
            _ => Ok(()),
        }
    }
}

/// The device policy that is wanted, and the one that was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeviceWant<'a> {
    pub(crate) before: Option<&'a DevicePolicy>,
    pub(crate) policy: &'a DevicePolicy,
    /// Processes run inside, and would notice a moment in which everything is refused.
    pub(crate) running: bool,
    pub(crate) overriding: Override,
}

/// v1's list of what is allowed.
pub(crate) const DEVICES_LIST: &str = "devices.list";

/// Everything that is wanted of one cgroup.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want<'a> {
    /// Below the root of each hierarchy.
    pub(crate) path: &'a str,
    /// Whether the cgroup is to be made; else it is changed.
    pub(crate) create: bool,
    /// What was wanted before: gives meaning to a change that says only half.
    pub(crate) base: &'a Resources,
    /// What is to become different.
    pub(crate) change: &'a Resources,
    pub(crate) devices: Option<DeviceWant<'a>>,
    /// Lower a memory limit below what is in use.
    pub(crate) force: bool,
    /// Move processes out of a namespace root that holds some, so that it can enable controllers.
    pub(crate) evacuate: bool,
    /// Controllers that statistics need, beside those that carry limits (v2).
    pub(crate) statistics: &'a [Controller],
    pub(crate) unsupported: Unsupported,
}

/// What must be read before planning.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ReadSet {
    /// Files of the cgroup itself.
    pub(crate) files: BTreeSet<(usize, Cow<'static, str>)>,
    /// v1 cpusets: these two files of the nearest ancestors, up to the first where both have a value.
    pub(crate) inherited: Option<(usize, [&'static str; 2])>,
}

impl ReadSet {
    fn file(&mut self, hierarchy: usize, file: impl Into<Cow<'static, str>>) {
        self.files.insert((hierarchy, file.into()));
    }
}

/// What was read: by hierarchy, path and file. A file that is missing was not there; of a cgroup that is yet to be made,
/// nothing is: the kernel's defaults hold.
#[derive(Debug, Default)]
pub(crate) struct Observed(BTreeMap<(usize, String, Cow<'static, str>), String>);

impl Observed {
    pub(crate) fn insert(&mut self, hierarchy: usize, path: &str, file: Cow<'static, str>, content: String) {
        self.0.insert((hierarchy, path.to_owned(), file), content);
    }

    fn get(&self, hierarchy: usize, path: &str, file: &str) -> Option<&str> {
        self.0.get(&(hierarchy, path.to_owned(), Cow::Owned(file.to_owned()))).map(String::as_str)
    }
}

/// The steps while they are being thought out.
struct Draft<'a> {
    host: &'a Host,
    want: &'a Want<'a>,
    observed: &'a Observed,
    steps: Vec<Step>,
    report: Report,
}

impl Draft<'_> {
    fn leaf(&self, hierarchy: usize) -> Dir {
        Dir::new(hierarchy, self.want.path)
    }

    /// What the file of the cgroup holds now; `None` for a new cgroup.
    fn now(&self, hierarchy: usize, file: &str) -> Option<&str> {
        self.observed.get(hierarchy, self.want.path, file)
    }

    /// A number that the file holds now; `None` too where it says `max` or -1.
    fn now_number(&self, hierarchy: usize, file: &str) -> Option<u64> {
        self.now(hierarchy, file)?.parse().ok()
    }

    fn push(&mut self, step: Step) -> &mut Step {
        self.steps.push(step);
        let last = self.steps.len() - 1;
        #[expect(clippy::indexing_slicing, reason = "it was pushed on the line before")]
        &mut self.steps[last]
    }

    /// Writes a file of the cgroup; undone by writing what it holds now.
    fn write(
        &mut self,
        hierarchy: usize,
        setting: impl Into<Cow<'static, str>>,
        file: impl Into<Cow<'static, str>>,
        value: impl ToString,
    ) -> &mut Step {
        let (file, value) = (file.into(), value.to_string());
        let undo = match self.now(hierarchy, &file) {
            Some(now) => Undo::Write(restoring(&file, &value, now)),
            None if self.want.create => Undo::Nothing,
            None => Undo::AsFound,
        };
        let dir = self.leaf(hierarchy);
        let step = self.push(Step::new(Action::Write { dir, file, value }));
        step.setting = Some(setting.into());
        step.undo = undo;
        step
    }
}

/// The writes that take `value` out of a file again which held `now`.
pub(crate) fn restoring(file: &str, value: &str, now: &str) -> Vec<(Cow<'static, str>, String)> {
    let write = |value: &str| (file.to_owned().into(), value.to_owned());
    // Files with a line for each device, which is shown only while it differs from this.
    let default = match file {
        "io.max" => Some("rbps=max wbps=max riops=max wiops=max"),
        "io.weight" | "io.bfq.weight" => Some("default"),
        "io.latency" => Some("target=0"),
        // An empty write is no write at all; a newline clears a set.
        _ if now.is_empty() => return vec![write("\n")],
        // It reads as "root invalid (why)" where the kernel cannot make it so.
        "cpuset.cpus.partition" => {
            return vec![write(now.split_once(" invalid").map_or(now, |(asked, _)| asked))];
        }
        _ => None,
    };
    let device =
        |line: &str| line.split_whitespace().next().filter(|key| key.contains(':')).map(str::to_owned);
    let known: Vec<_> = now.lines().filter_map(device).collect();
    let added = value.lines().filter_map(device).filter(|key| !known.contains(key));
    let reset =
        default.into_iter().flat_map(|default| added.clone().map(move |key| format!("{key} {default}")));
    reset.map(|line| write(&line)).chain(now.lines().map(write)).collect()
}

/// What [`plan`] must know of the cgroup, and of its ancestors.
pub(crate) fn needs(host: &Host, want: &Want<'_>) -> ReadSet {
    let mut set = ReadSet::default();
    for (index, hierarchy) in host.hierarchies.iter().enumerate() {
        match hierarchy.version {
            Version::V1 => v1::needs(host, want, index, &mut set),
            Version::V2 => v2::needs(host, want, index, &mut set),
        }
    }
    set
}

/// The ordered steps that make the cgroup, or change it, and the report of what cannot be done here.
pub(crate) fn plan(host: &Host, want: &Want<'_>, observed: &Observed) -> Result<Plan> {
    want.change.validate()?;
    let mut draft = Draft { host, want, observed, steps: Vec::new(), report: Report::default() };
    if want.create {
        v1::make_dirs(&mut draft);
        v2::make_dirs(&mut draft);
    } else {
        v2::enable_missing(&mut draft);
    }
    cpuset(&mut draft)?;
    devices(&mut draft)?;
    memory(&mut draft)?;
    cpu(&mut draft)?;
    pids(&mut draft);
    v2::unified(&mut draft)?;
    let Draft { steps, report, .. } = draft;
    want.unsupported.mind(&report)?;
    Ok(Plan { host: host.clone(), steps, report, unsupported: want.unsupported })
}

fn cpuset(draft: &mut Draft<'_>) -> Result<()> {
    let cpu = &draft.want.change.cpu;
    match draft.host.hierarchy_of(Controller::Cpuset) {
        Some((index, hierarchy)) => match hierarchy.version {
            Version::V1 => v1::cpuset(draft, index),
            Version::V2 => v2::cpuset(draft, index),
        },
        None => {
            for (setting, set) in [("cpu.cpus", &cpu.cpus), ("cpu.mems", &cpu.mems)] {
                if let Some(set) = set {
                    draft.report.add(setting, set, "this host offers no cpuset controller");
                }
            }
        }
    }
    Ok(())
}

fn devices(draft: &mut Draft<'_>) -> Result<()> {
    let Some(wanted) = draft.want.devices else { return Ok(()) };
    let policy = wanted.policy;
    if let Some((index, _)) = draft.host.hierarchy_of(Controller::Devices) {
        return v1::devices(draft, index, &wanted);
    }
    let value = format!("{} exceptions", policy.exceptions().count());
    match draft.host.unified() {
        Some((index, _)) if draft.host.capabilities.bpf_devices => {
            let dir = draft.leaf(index);
            let step = draft.push(Step::new(Action::DeviceFilter {
                dir,
                policy: policy.clone(),
                overriding: wanted.overriding,
            }));
            step.setting = Some("devices".into());
            step.undo = Undo::DeviceFilter;
        }
        Some(_) => {
            let why = "a device filter needs CAP_SYS_ADMIN (or CAP_BPF and CAP_NET_ADMIN) and a kernel with BPF device programs";
            draft.report.add("devices", value, why);
        }
        None => draft.report.add("devices", value, "this host offers no devices controller"),
    }
    Ok(())
}

fn memory(draft: &mut Draft<'_>) -> Result<()> {
    let memory = &draft.want.change.memory;
    if *memory == Default::default() {
        return Ok(());
    }
    if let Some(limit) = memory.kernel {
        draft.report.add("memory.kernel", limit, "limits on kernel memory are obsolete: it counts as memory");
    }
    if memory.use_hierarchy == Some(false) {
        draft.report.add("memory.useHierarchy", false, "accounting is always hierarchical");
    }
    match draft.host.hierarchy_of(Controller::Memory) {
        Some((index, hierarchy)) => match hierarchy.version {
            Version::V1 => v1::memory(draft, index),
            Version::V2 => v2::memory(draft, index),
        },
        None => {
            let why = "this host offers no memory controller";
            for (setting, limit) in [
                ("memory.limit", memory.limit),
                ("memory.reservation", memory.reservation),
                ("memory.swap", memory.swap),
                ("memory.kernelTCP", memory.kernel_tcp),
            ] {
                if let Some(limit) = limit {
                    draft.report.add(setting, limit, why);
                }
            }
            if let Some(swappiness) = memory.swappiness {
                draft.report.add("memory.swappiness", swappiness, why);
            }
            if memory.disable_oom_killer == Some(true) {
                draft.report.add("memory.disableOOMKiller", true, why);
            }
            Ok(())
        }
    }
}

fn cpu(draft: &mut Draft<'_>) -> Result<()> {
    match draft.host.hierarchy_of(Controller::Cpu) {
        Some((index, hierarchy)) => match hierarchy.version {
            Version::V1 => v1::cpu(draft, index),
            Version::V2 => v2::cpu(draft, index),
        },
        None => {
            let cpu = &draft.want.change.cpu;
            let report = &mut draft.report;
            let why = "this host offers no cpu controller";
            let number = |value: Option<u64>| value.map(|value| value.to_string());
            for (setting, value) in [
                ("cpu.shares", number(cpu.shares)),
                ("cpu.weight", number(cpu.weight)),
                ("cpu.period", number(cpu.period)),
                ("cpu.quota", cpu.quota.map(|quota| quota.to_string())),
                ("cpu.burst", number(cpu.burst)),
                ("cpu.idle", cpu.idle.map(|idle| idle.to_string())),
                ("cpu.realtimePeriod", number(cpu.realtime_period)),
                ("cpu.realtimeRuntime", cpu.realtime_runtime.map(|runtime| runtime.to_string())),
            ] {
                if let Some(value) = value {
                    report.add(setting, value, why);
                }
            }
            Ok(())
        }
    }
}

fn pids(draft: &mut Draft<'_>) {
    // None is one, as the runtimes have it: nothing beyond the first task.
    let least = crate::Limit::Value(1);
    let Some(limit) = draft.want.change.pids.limit.map(|limit| limit.max(least)) else { return };
    match draft.host.hierarchy_of(Controller::Pids) {
        // The file and its words are the same in both versions.
        Some((index, _)) => {
            let verify = lowered(draft.want, limit, "a number or \"max\"");
            draft.write(index, "pids.limit", "pids.max", limit).verify(verify);
        }
        None => draft.report.add("pids.limit", limit, "this host offers no pids controller"),
    }
}

/// A limit on what runs already is read back; nothing runs in a new cgroup.
fn lowered(want: &Want<'_>, limit: crate::Limit, allowed: &'static str) -> Verify {
    match limit {
        crate::Limit::Value(_) if !want.create => Verify::ReadsBack { allowed },
        _ => Verify::Accepted,
    }
}

/// The CPU bandwidth that will be in force: quota, period and burst, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bandwidth {
    quota: crate::Limit,
    period: u64,
    burst: u64,
}

impl Bandwidth {
    /// What a new cgroup has.
    const NEW: Self = Self { quota: crate::Limit::Max, period: 100_000, burst: 0 };

    /// What is asked for on top of what is there. A burst that the caller did not set goes down with the quota; one that
    /// was set and is above it is an error, as it is the kernel's EINVAL.
    fn changed(self, cpu: &Cpu) -> Result<Self> {
        let quota = cpu.quota.unwrap_or(self.quota);
        let period = cpu.period.unwrap_or(self.period);
        let burst = match (cpu.burst, quota) {
            (Some(burst), crate::Limit::Value(quota)) if burst > quota => {
                return Err(Error::invalid("cpu.burst", burst, format!("at most the quota, {quota} µs")));
            }
            (Some(burst), _) => burst,
            (None, crate::Limit::Value(quota)) => self.burst.min(quota),
            (None, crate::Limit::Max) => self.burst,
        };
        Ok(Self { quota, period, burst })
    }
}

/// Where the kernel has no bandwidth control: what was asked of it.
fn report_no_bandwidth(draft: &mut Draft<'_>, cpu: &Cpu) {
    let why = "this kernel has no CPU bandwidth control (CONFIG_CFS_BANDWIDTH)";
    for (setting, value) in [
        ("cpu.quota", cpu.quota),
        ("cpu.period", cpu.period.map(crate::Limit::Value)),
        ("cpu.burst", cpu.burst.map(crate::Limit::Value)),
    ] {
        if let Some(value) = value {
            draft.report.add(setting, value, why);
        }
    }
}

/// `cpu.idle` and the weight beside it, which the kernel lets nobody write while `cpu.idle` is 1 and forgets when it
/// becomes 0. The steps: weight then idle = 1; idle = 0 then weight. `file` and `value` are the version's own weight.
fn weight_and_idle(
    draft: &mut Draft<'_>,
    index: usize,
    (setting, file, verify): (&'static str, &'static str, Verify),
    idle: Option<i64>,
    changed: Option<u64>,
    wanted_before: Option<u64>,
) {
    let idle_now = draft.now(index, "cpu.idle") == Some("1");
    if idle.is_some() && !draft.host.capabilities.cpu_idle {
        draft.report.add("cpu.idle", idle.unwrap_or_default(), "this kernel has no cpu.idle (Linux 5.15)");
    }
    let idle = idle.filter(|_| draft.host.capabilities.cpu_idle).map(|idle| idle == 1);
    let weight_now = draft.now(index, file).map(str::to_owned);
    match (idle_now, idle.unwrap_or(idle_now)) {
        (true, true) => {
            if let Some(weight) = changed {
                draft.report.add(
                    setting,
                    weight,
                    "the cgroup is idle (cpu.idle = 1): its weight counts again when it is not",
                );
            }
        }
        (true, false) => {
            draft.write(index, "cpu.idle", "cpu.idle", 0);
            if let Some(weight) = changed.or(wanted_before) {
                // Writing cpu.idle = 1 again takes the weight with it.
                draft.write(index, setting, file, weight).verify(verify).undo = Undo::Nothing;
            }
        }
        (false, idle) => {
            if let Some(weight) = changed {
                draft.write(index, setting, file, weight).verify(verify);
            }
            if idle {
                let step = draft.write(index, "cpu.idle", "cpu.idle", 1);
                if let Undo::Write(writes) = &mut step.undo {
                    writes.extend(weight_now.map(|weight| (file.into(), weight)));
                }
            }
        }
    }
}

const NOT_VALID_HERE: Reaction = Reaction::Explain(
    "the kernel does not take this value here, beside the values of the cgroup's parent and children",
);

/// The errnos of a CPU set that the parent does not have, or that lacks what the tasks need.
fn explain_set(step: &mut Step) -> &mut Step {
    step.on(Errno::INVAL, Reaction::Explain("not online, or not a list such as 0-3,8"))
        .on(Errno::RANGE, Reaction::Explain("not on this machine"))
        .on(Errno::ACCESS, Reaction::Explain("the parent cgroup does not have all of it"))
        .on(Errno::NOSPC, Reaction::Explain("a set that is in use cannot become empty"))
        .on(Errno::BUSY, Reaction::Explain("a child cgroup uses what would be taken away"))
}

/// The burst to write, if it changes and this kernel has it.
fn supported_burst(draft: &mut Draft<'_>, asked: Option<u64>, now: u64, then: u64) -> Option<u64> {
    if draft.host.capabilities.cpu_burst {
        return (asked.is_some() || then != now).then_some(then);
    }
    if let Some(burst) = asked.filter(|burst| *burst > 0) {
        draft.report.add("cpu.burst", burst, "this kernel has no CPU burst (Linux 5.14)");
    }
    None
}

#[cfg(test)]
mod tests;
