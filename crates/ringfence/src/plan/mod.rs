//! The planner: from what is wanted, what the host is and what is there now, to ordered steps.
//!
//! Pure: no system call, no clock; what is in force it asks its caller, and only what ordering and undo require. v1 and v2
//! are two translations into the same steps, a file for each controller; `layout` makes what they are written into, or
//! `systemd` tells them to the unit that carries the cgroup.

pub(crate) mod convert;
mod cpu;
mod cpuset;
mod devices;
mod draft;
mod hugetlb;
mod io;
mod layout;
mod memory;
mod network;
mod observed;
mod pids;
mod rdma;
mod step;
mod systemd;
mod unified;

pub(crate) use devices::DEVICES_LIST;
use draft::Draft;
use observed::Observed;
pub(crate) use observed::{FileAt, Read, UNREAD};
pub(crate) use step::{Action, Dir, Reaction, Undo, Verify};
pub use step::{Plan, Step};
pub(crate) use systemd::{
    Told, UnitWant, in_order_of_leaving, is_managed, properties_of, resets_devices, scope,
};

use std::fmt;
use std::sync::Arc;

use crate::devices::DevicePolicy;
use crate::devices::filter::Override;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Controller, Host, Version};
use crate::interface::lifts_cpuset;
use crate::report::Report;
use crate::resources::{CpuSet, Resources};

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
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] with the first such line, in strict mode.
    pub fn mind(self, report: &Report) -> Result<()> {
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
    pub(crate) overriding: Override,
}

/// The setting that says whom a cgroup is given to.
pub(crate) const OWNER: &str = "owner";

/// Whom a cgroup is given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl fmt::Display for Owner {
    /// As `--owner` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// Everything that is wanted of one cgroup.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want<'a> {
    /// Below the root of each hierarchy.
    pub(crate) path: &'a str,
    /// The unit of systemd that carries it; else it is ours alone.
    pub(crate) unit: Option<UnitWant<'a>>,
    /// Whether the cgroup is to be made; else it is changed.
    pub(crate) create: bool,
    /// What was wanted before: gives meaning to a change that says only half.
    pub(crate) base: &'a Resources,
    /// What is to become different.
    pub(crate) change: &'a Resources,
    pub(crate) devices: Option<DeviceWant<'a>>,
    /// The policy in force before the change: systemd on v1 resets the list of devices with every change of a unit.
    pub(crate) devices_now: Option<&'a DevicePolicy>,
    /// A quota of CPU time brings a burst of the same size with it, unless the caller says something about bursts.
    pub(crate) burst_by_default: bool,
    /// When memory runs out, all processes are killed, unless the caller says something about it (v2, `memory.oom.group`).
    pub(crate) oom_group_by_default: bool,
    /// Lower a memory limit below what is in use.
    pub(crate) force: bool,
    /// Move processes out of a namespace root that holds some, so that it can enable controllers.
    pub(crate) evacuate: bool,
    /// The cgroup may be inside another sandbox's.
    pub(crate) allow_nested: bool,
    /// Controllers that statistics need, beside those that carry limits (v2).
    pub(crate) statistics: &'a [Controller],
    /// The user to whom the new cgroup is delegated.
    pub(crate) owner: Option<Owner>,
    /// Its threaded parts, made and changed with it.
    pub(crate) parts: &'a [PartWant],
    /// The cgroup of which this is a threaded part itself.
    pub(crate) threads_of: Option<&'a str>,
    /// The mark of the directories that are made.
    pub(crate) mark: Option<&'a str>,
    pub(crate) unsupported: Unsupported,
}

/// What is wanted of a part of a cgroup, into which threads go.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PartWant {
    /// Below the root of each hierarchy.
    pub(crate) path: String,
    /// As in [`Want`].
    pub(crate) base: Resources,
    pub(crate) change: Resources,
}

impl PartWant {
    /// Whether it has CPUs or memory nodes of its own.
    fn has_cpuset(&self) -> bool {
        let Resources { cpu, unified, .. } = &self.change;
        let is_set = |set: &Option<CpuSet>| set.as_ref().is_some_and(|set| !set.is_empty());
        let is_named =
            |(name, value): (&String, &String)| name.starts_with("cpuset.") && !lifts_cpuset(name, value);
        is_set(&cpu.cpus) || is_set(&cpu.mems) || unified.iter().any(is_named)
    }
}

impl<'a> Want<'a> {
    /// The same, for a part of this.
    pub(crate) fn of_part(&self, part: &'a PartWant) -> Self {
        Self {
            path: &part.path,
            base: &part.base,
            change: &part.change,
            unit: None,
            devices: None,
            devices_now: None,
            oom_group_by_default: false,
            evacuate: false,
            statistics: &[Controller::Cpu],
            parts: &[],
            threads_of: part.path.rsplit_once('/').map(|(above, _)| above),
            ..*self
        }
    }

    /// A change of limits, and nothing else.
    pub(crate) fn change(path: &'a str, base: &'a Resources, change: &'a Resources) -> Self {
        Self {
            path,
            unit: None,
            create: false,
            base,
            change,
            devices: None,
            devices_now: None,
            burst_by_default: false,
            oom_group_by_default: false,
            force: false,
            evacuate: false,
            allow_nested: false,
            statistics: &[],
            owner: None,
            parts: &[],
            threads_of: None,
            mark: None,
            unsupported: Unsupported::Report,
        }
    }
}

/// The ordered steps that make the cgroup, or change it, and the report of what cannot be done here. `read` tells what is
/// in force.
pub(crate) fn plan(host: &Host, want: &Want<'_>, read: &Read<'_>) -> Result<Plan> {
    let (steps, report) = think_out(host, want, &Observed::new(read))?;
    want.unsupported.mind(&report)?;
    Ok(Plan {
        host: host.clone(),
        steps,
        report,
        unsupported: want.unsupported,
        by_systemd: want.unit.is_some(),
        path: want.path.into(),
        mark: want.mark.map(Arc::from),
        allow_nested: want.allow_nested || want.unit.is_some(),
    })
}

/// The steps of the cgroup and of its parts, and the report.
fn think_out(host: &Host, want: &Want<'_>, observed: &Observed<'_>) -> Result<(Vec<Step>, Report)> {
    let (mut steps, mut report) = think_out_one(host, want, observed)?;
    if want.parts.is_empty() {
        return Ok((steps, report));
    }
    let mut of_parts = Vec::new();
    // A new one is found to be as its steps make it.
    let made = |file: FileAt<'_>| {
        let written = steps.iter().rev().find_map(|step| match &step.action {
            Action::Write { dir, file: name, value } if file.is(dir, name) => Some(value.clone()),
            _ => None,
        });
        Ok(written.or_else(|| observed.look(file).as_deref().map(str::to_owned)))
    };
    let made = Observed::new(&made);
    for part in want.parts {
        let found = if want.create { &made } else { observed };
        let (mut more, about) = think_out_one(host, &want.of_part(part), found)?;
        follow_parent(host, part, &[&steps, &of_parts], &mut more);
        of_parts.extend(more);
        report.append(about);
    }
    // What a part has asked for by way of the whole.
    observed.failure()?;
    if !want.create {
        steps.splice(0..0, lowered_bandwidth(host, observed, &steps, &mut of_parts));
    }
    steps.extend(of_parts);
    if !want.create {
        around_parts(host, want, observed, &mut steps);
    }
    Ok((steps, report))
}

/// Gives a part of v1 whose CPUs or memory nodes are lifted those that the cgroup above it is to have after the change, not
/// those that it has before it.
fn follow_parent(host: &Host, part: &PartWant, planned: &[&[Step]], steps: &mut [Step]) {
    let is_lifted = |set: &Option<CpuSet>| set.as_ref().is_some_and(CpuSet::is_empty);
    let cpu = &part.change.cpu;
    for step in steps {
        let Action::Write { dir, file, value } = &mut step.action else { continue };
        let follows =
            file.ends_with("cpus") && is_lifted(&cpu.cpus) || file.ends_with("mems") && is_lifted(&cpu.mems);
        if !follows || host.version_of(dir.hierarchy) != Version::V1 || *dir.path != part.path {
            continue;
        }
        let parent = dir.parent();
        let above =
            planned.iter().rev().flat_map(|steps| steps.iter().rev()).find_map(|step| match &step.action {
                Action::Write { dir, file: name, value } if Some(dir) == parent.as_ref() && name == file => {
                    Some(value)
                }
                _ => None,
            });
        if let Some(above) = above {
            value.clone_from(above);
        }
    }
}

/// Takes the bandwidth writes out of the parts' steps where the whole's bandwidth decreases (v1): they have to come first,
/// because the kernel refuses (EINVAL) a child with more bandwidth than its parent at every moment.
fn lowered_bandwidth(
    host: &Host,
    observed: &Observed<'_>,
    of_whole: &[Step],
    of_parts: &mut Vec<Step>,
) -> Vec<Step> {
    let is_bandwidth = |step: &Step| {
        step.as_write().is_some_and(|(dir, file, _)| {
            cpu::V1_BANDWIDTH.contains(&file) && host.version_of(dir.hierarchy) == Version::V1
        })
    };
    let of_whole = of_whole.iter().flat_map(Step::and_told);
    let writes: Vec<_> = of_whole.filter(|step| is_bandwidth(step)).filter_map(Step::as_write).collect();
    let Some((dir, ..)) = writes.first() else { return Vec::new() };
    let number = |text: &str| text.trim().parse::<i64>().ok();
    let now = |name: &str| observed.look(FileAt::to_write(dir, name)).and_then(|text| number(&text));
    let then = |name: &str| {
        let written = writes.iter().rev().find(|(_, file, _)| *file == name);
        written.map_or_else(|| now(name), |(.., value)| number(value))
    };
    // CPU time per period; a quota of -1 is no limit.
    let share = |[quota, period]: [Option<i64>; 2]| match (quota, period) {
        (Some(quota), Some(period)) if quota >= 0 => quota as f64 / period as f64,
        _ => f64::INFINITY,
    };
    if share(cpu::V1_BANDWIDTH.map(then)) >= share(cpu::V1_BANDWIDTH.map(now)) {
        return Vec::new();
    }
    let (first, rest) = std::mem::take(of_parts).into_iter().partition(is_bandwidth);
    *of_parts = rest;
    first
}

/// Orders the writes of CPUs and memory nodes of the cgroups above a part so that the set of a part lies within the set
/// above it at every moment. v1 demands that; v2 before Linux 5.17 refuses to take from a cgroup what a child's
/// `cpuset.cpus` or `cpuset.mems` holds (commit 1f1562fcd04a).
///
/// What is above a part gets the old set and the new one together while the parts change, and then the new one. On v2 one
/// write is enough if the set only grows (before the parts) or only shrinks (after them).
fn around_parts(host: &Host, want: &Want<'_>, observed: &Observed<'_>, steps: &mut Vec<Step>) {
    let is_above_some = |path: &str| {
        let is_below =
            |part: &PartWant| part.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        want.parts.iter().any(is_below)
    };
    let mut last = Vec::new();
    let mut first = |mut step: Step| {
        let whole = step.clone();
        if let Action::Write { dir, file, value } = &mut step.action
            && (file.ends_with("cpus") || file.ends_with("mems"))
            && is_above_some(&dir.path)
            && let Some(now) = observed.look(FileAt::to_write(dir, file))
            && !now.is_empty()
        {
            if host.version_of(dir.hierarchy) == Version::V2 {
                let (Ok(before), Ok(after)) = (now.parse::<CpuSet>(), value.parse::<CpuSet>()) else {
                    return Some(step);
                };
                if before.is_subset(&after) {
                    return Some(step);
                }
                if after.is_subset(&before) {
                    last.push(whole);
                    return None;
                }
            }
            *value = format!("{now},{value}");
            step.verify = Verify::Accepted;
            last.push(whole);
        }
        Some(step)
    };
    *steps = std::mem::take(steps).into_iter().filter_map(&mut first).collect();
    steps.extend(last.into_iter().rev());
}

/// The same of one of them.
fn think_out_one(host: &Host, want: &Want<'_>, observed: &Observed<'_>) -> Result<(Vec<Step>, Report)> {
    // What was wanted before is in force: what nobody could read of it was refused then.
    let (base, _) = want.base.with_named_fields();
    let (change, taken) = want.change.with_named_fields();
    want.change.validate()?;
    taken?;
    let fields = Want { base: &base, change: &change, ..*want };
    let mut draft = Draft::new(host, &fields, &want.change.unified, observed);
    let done = translate(&mut draft);
    let (steps, report) = (draft.steps, draft.report);
    // What could not be read explains whatever else is wrong.
    observed.failure()?;
    done.map(|()| (steps, report))
}

fn translate(draft: &mut Draft<'_>) -> Result<()> {
    cpuset::plan(draft);
    devices::plan(draft)?;
    memory::plan(draft)?;
    cpu::plan(draft)?;
    pids::plan(draft);
    io::plan(draft);
    hugetlb::plan(draft);
    network::plan(draft);
    rdma::plan(draft);
    unified::plan(draft)?;
    memory::kill_as_group(draft);
    layout::hand_over(draft);
    if let Some(unit) = draft.want.unit {
        return systemd::translate(draft, unit);
    }
    let before = if draft.want.create { layout::make(draft) } else { layout::enable_missing(draft) };
    draft.steps.splice(0..0, before);
    Ok(())
}

#[cfg(test)]
mod tests;
