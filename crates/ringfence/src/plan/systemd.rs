//! The third translation: the steps of the other two, with what has a property of systemd's told to systemd.
//!
//! What systemd knows of is never written behind its back: the next reload, or the next change of a property, would put
//! back what it knows. What it has no property for is written to the files, and stays.

mod devices;
mod properties;

use std::path::PathBuf;

use rustix::io::Errno;

pub(crate) use devices::resets_devices;
pub(crate) use properties::properties_of;
use properties::{Bandwidth, PERIOD, number};

use super::cpu::V1_BANDWIDTH;
use super::draft::minus_one;
use super::{Action, Dir, Draft, Reaction, Step, Undo, layout};
use crate::error::Result;
use crate::host::{Controller, Hierarchy, Host, Version};
use crate::interface::lifts_cpuset;
use crate::path::SystemdName;
use crate::resources::Limit;
use crate::systemd::property::{INFINITY, Property, Value, tell};

/// The unit that carries the cgroup.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnitWant<'a> {
    pub(crate) name: &'a SystemdName,
    /// By which we know it again.
    pub(crate) description: &'a str,
}

/// A value that a file is to hold, and the properties by which it is told to systemd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// The write, for a systemd that lacks a property, and to see that the kernel has it.
    pub(crate) step: Step,
    pub(crate) properties: Vec<Property>,
    /// What takes it back.
    pub(crate) back: Vec<Property>,
}

/// A file's value, and the one that has to be written after it goes down or before it goes up; the planner has put them in
/// the right order.
const ORDERED: [(&str, &str); 4] = [
    ("cpu.max.burst", "cpu.max"),
    ("cpu.cfs_burst_us", "cpu.cfs_quota_us"),
    ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes"),
    ("cpu.idle", "cpu.shares"),
];

/// Turns the steps into those of a unit.
pub(super) fn translate(draft: &mut Draft<'_>, unit: UnitWant<'_>) -> Result<()> {
    let mut steps = std::mem::take(&mut draft.steps);
    if draft.host.rootless {
        report_what_users_cannot(draft, &mut steps);
    }
    let bandwidth = v1_bandwidth(draft, &steps);
    let (mut told, mut before, mut after) = (Vec::new(), Vec::new(), Vec::new());
    let files: Vec<Option<String>> = steps.iter().map(|step| file_of(step).map(str::to_owned)).collect();
    let is_changed = |half: &str| files.iter().flatten().any(|file| file == half);
    let changes_both_halves = !draft.want.create && V1_BANDWIDTH.into_iter().all(is_changed);
    for (position, step) in steps.into_iter().enumerate() {
        if is_device_write(&step) {
            continue;
        }
        if let Some(mut one) = by_property(draft, unit, &step, bandwidth.as_ref()) {
            if allows_no_task(&step) {
                let why = "systemd has no TasksMax of 0: it is told 1, and 0 is written to the file behind it; a reload of \
                           systemd makes it 1";
                draft.report.note(step.setting.clone().unwrap_or_default(), 0, why);
                set_value(&mut one.step, "1".to_owned());
                told.push(one);
                after.push(step);
                continue;
            }
            if let (Action::Write { value: asked, .. }, Action::Write { value: kept, .. }) =
                (&step.action, &one.step.action)
                && asked != kept
                && !lifts_cpuset(file_of(&step).unwrap_or_default(), asked)
            {
                let setting = step.setting.clone().unwrap_or_default();
                if kept.starts_with("max") || *kept == PERIOD.to_string() {
                    let why = "systemd keeps no period without a quota, which needs none";
                    draft.report.note(setting, asked, why);
                } else {
                    let why = format!("systemd keeps it in whole hundredths of a CPU: {kept}");
                    draft.report.add(setting, asked, why);
                }
            }
            // systemd writes the period before the quota. In between, the cgroup may have more bandwidth than its parent or
            // less than a child, which the kernel refuses: with the right values there already, systemd changes nothing.
            if changes_both_halves && file_of(&step).is_some_and(|file| V1_BANDWIDTH.contains(&file)) {
                before.push(one.step.clone());
            }
            told.push(one);
            continue;
        }
        let precedes = |partner: &str| files.iter().skip(position).flatten().any(|file| file == partner);
        let goes_before = match &step.action {
            Action::Write { dir, .. } if draft.want.create => !is_managed_at(draft.host, dir.hierarchy),
            Action::Write { file, .. } => {
                ORDERED.iter().any(|(known, partner)| *known == file.as_ref() && precedes(partner))
            }
            _ => false,
        };
        if goes_before { before.push(step) } else { after.push(step) }
    }
    told.extend(devices::rules(draft, !told.is_empty(), &mut after)?);
    if draft.want.create {
        let (own, start) = start(draft, unit, told);
        draft.steps = own;
        draft.steps.append(&mut before);
        draft.steps.push(start);
        draft.steps.append(&mut enable(draft, &after));
    } else {
        draft.steps = enable(draft, &[before.clone(), after.clone()].concat());
        draft.steps.append(&mut before);
        if !told.is_empty() {
            let set = Step::new(Action::SetProperties { unit: unit.name.unit(), told });
            // When that is taken back, systemd writes them once more, and what they hold now is to be written behind it.
            for (index, setting, file, _) in overwritten(draft) {
                if let Some(now) = draft.now_to_write(index, file) {
                    draft.write(index, setting, file, now).on(Errno::NOENT, Reaction::Skip);
                }
            }
            draft.steps.push(set);
            write_again(draft, &files);
        }
    }
    draft.steps.append(&mut after);
    Ok(())
}

/// Whether it is a `pids.max` of 0.
fn allows_no_task(step: &Step) -> bool {
    matches!(&step.action, Action::Write { file, value, .. } if file == "pids.max" && value.trim() == "0")
}

/// With every change systemd writes all files that it knows of, also those for which it was told nothing.
fn write_again(draft: &mut Draft<'_>, told: &[Option<String>]) {
    for (index, setting, file, value) in overwritten(draft) {
        if !told.iter().flatten().any(|told| told == file) {
            draft.write(index, setting, file, value).on(Errno::NOENT, Reaction::Skip);
        }
    }
}

/// What was asked for that systemd writes over: hierarchy, setting, file and value.
fn overwritten(draft: &Draft<'_>) -> Vec<(usize, &'static str, &'static str, String)> {
    let base = draft.want.base;
    let mut files = Vec::new();
    let unified = |file: &str| base.unified.get(file).zip(draft.host.unified());
    if let Some((value, (index, _))) = unified("memory.oom.group") {
        files.push((index, "unified.memory.oom.group", "memory.oom.group", value.clone()));
    } else if draft.want.oom_group_by_default
        && let Some((index, Version::V2)) = draft.place_of(Controller::Memory)
    {
        files.push((index, "unified.memory.oom.group", "memory.oom.group", "1".to_owned()));
    }
    // systemd writes the TasksMax of 1 that it was told for 0.
    if let Some((value, (index, _))) = unified("pids.max").filter(|(value, _)| value.trim() == "0") {
        files.push((index, "unified.pids.max", "pids.max", value.trim().to_owned()));
    }
    if let (Some(weight), Some((index, Version::V1))) = (base.block_io.weight, draft.place_of(Controller::Io))
        && draft.host.capabilities.bfq_weight
    {
        files.push((index, "blockIO.weight", "blkio.bfq.weight", weight.to_string()));
    }
    files
}

/// A user's manager takes every limit, and on cgroup v1 none is in force.
fn report_what_users_cannot(draft: &mut Draft<'_>, steps: &mut Vec<Step>) {
    let host = draft.host;
    steps.retain(|step| {
        let Action::Write { dir, value, .. } = &step.action else { return true };
        if host.version_of(dir.hierarchy) == Version::V2 {
            return true;
        }
        if let Some(setting) = step.setting.clone().filter(|setting| setting != "devices") {
            draft.report.add(setting, value, "a user's systemd has no say on cgroup v1");
        }
        false
    });
}

fn file_of(step: &Step) -> Option<&str> {
    step.as_write().map(|(_, file, _)| file)
}

fn is_device_write(step: &Step) -> bool {
    file_of(step).is_some_and(|file| file.starts_with("devices."))
}

/// Whether systemd makes its units' cgroups in a hierarchy: on v1 in its own and in those of the controllers that it
/// knows. In the others the cgroups are ours to make, and to remove.
pub(crate) fn is_managed(hierarchy: &Hierarchy) -> bool {
    const MANAGED: [Controller; 6] = [
        Controller::Cpu,
        Controller::Cpuacct,
        Controller::Io,
        Controller::Memory,
        Controller::Devices,
        Controller::Pids,
    ];
    hierarchy.version == Version::V2
        || hierarchy.name.as_deref() == Some("systemd")
        || hierarchy.controllers.iter().any(|controller| MANAGED.contains(controller))
}

fn is_managed_at(host: &Host, hierarchy: usize) -> bool {
    host.hierarchies.get(hierarchy).is_some_and(is_managed)
}

/// The unit with everything that it is told, and before it what is ours to make.
fn start(draft: &Draft<'_>, unit: UnitWant<'_>, told: Vec<Told>) -> (Vec<Step>, Step) {
    let mut own = layout::make(draft);
    own.retain(|step| match &step.action {
        // A user cannot make any.
        Action::MakeDir { dir, .. } => !draft.host.rootless && !is_managed_at(draft.host, dir.hierarchy),
        _ => false,
    });
    for step in &mut own {
        // A scope that ended by itself has left it: it is taken as it is.
        if let Action::MakeDir { ancestor, .. } = &mut step.action {
            *ancestor = true;
        }
    }
    let name = unit.name;
    let mut properties = if name.is_slice() {
        vec![Property::text("Description", unit.description), every_task()]
    } else {
        scope(unit.description, name.slice())
    };
    properties.push(Property::new("DefaultDependencies", Value::Bool(false)));
    // Without it a later change would move the processes, in v1's blkio.
    properties
        .extend(["CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"].map(Property::yes));
    let start = Action::StartUnit {
        unit: name.unit(),
        slice: name.slice().to_owned(),
        path: draft.want.path.to_owned(),
        properties,
        told,
    };
    let mut start = Step::new(start);
    start.undo = Undo::StopUnit;
    (own, start)
}

/// What every scope of ours is told.
pub(crate) fn scope(description: &str, slice: &str) -> Vec<Property> {
    vec![
        Property::text("Description", description),
        Property::text("Slice", slice),
        Property::yes("Delegate"),
        // A process that dies before the job would leave a failed unit in the way.
        Property::text("CollectMode", "inactive-or-failed"),
        every_task(),
    ]
}

/// The manager's default is some thousand tasks.
fn every_task() -> Property {
    Property::number("TasksMax", INFINITY)
}

/// Controllers that systemd does not know are enabled for the unit by us, in what it has made above; it leaves them alone.
fn enable(draft: &Draft<'_>, writes: &[Step]) -> Vec<Step> {
    const UNKNOWN: [Controller; 3] = [Controller::Hugetlb, Controller::Rdma, Controller::Misc];
    let mut steps = layout::enable_for(draft, writes);
    for step in &mut steps {
        if let Action::EnableControllers { required, .. } = &mut step.action {
            required.retain(|controller| UNKNOWN.contains(controller));
        }
    }
    steps.retain(
        |step| !matches!(&step.action, Action::EnableControllers { required, .. } if required.is_empty()),
    );
    steps
}

/// What a write is to systemd, if it has a word for it.
fn by_property(
    draft: &Draft<'_>,
    unit: UnitWant<'_>,
    step: &Step,
    bandwidth: Option<&(Bandwidth, Bandwidth)>,
) -> Option<Told> {
    let Action::Write { dir, file, value } = &step.action else { return None };
    if *dir.path != *draft.want.path || !is_managed_at(draft.host, dir.hierarchy) {
        return None;
    }
    let version = draft.host.version_of(dir.hierarchy);
    let mut step = step.clone();
    if let (Some((then, now)), Version::V1) = (bandwidth, version)
        && V1_BANDWIDTH.contains(&file.as_ref())
    {
        let kept = then.kept();
        let value = match file.as_ref() {
            "cpu.cfs_quota_us" => minus_one(kept.quota),
            _ => kept.period.to_string(),
        };
        set_value(&mut step, value);
        return Some(Told { step, properties: then.properties(), back: now.properties() });
    }
    let (file, value) = (file.clone(), value.clone());
    // With OOMPolicy=kill, systemd itself kills what is left, the process too that holds the scope for what is counted in it:
    // only on request.
    if file == "memory.oom.group" && draft.want.create && !unit.name.is_slice() && !step.is_optional() {
        let policy = if value.trim() == "1" { "kill" } else { "continue" };
        let properties = vec![Property::text("OOMPolicy", policy)];
        return Some(Told { step, properties, back: Vec::new() });
    }
    let properties = properties_of(draft.host, version, &file, &value)?;
    if version == Version::V2 && file == "cpu.max" {
        let kept = Bandwidth::parse(&value)?.kept();
        set_value(&mut step, format!("{} {}", kept.quota, kept.period));
    }
    if let [Property { value: Value::Set(all), .. }] = properties.as_slice()
        && value.trim().is_empty()
    {
        set_value(&mut step, all.to_string());
    }
    let mut back = Vec::new();
    if let Undo::Write(writes) = &step.undo {
        for (file, value) in writes {
            tell(&mut back, properties_of(draft.host, version, file, value).unwrap_or_default());
        }
    }
    Some(Told { step, properties, back })
}

fn set_value(step: &mut Step, new: String) {
    if let Action::Write { value, .. } = &mut step.action {
        *value = new;
    }
}

/// v1 has a file for each half, and systemd wants both: as they will be, and as they are.
fn v1_bandwidth(draft: &Draft<'_>, steps: &[Step]) -> Option<(Bandwidth, Bandwidth)> {
    let (index, version) = draft.place_of(Controller::Cpu)?;
    if version != Version::V1 {
        return None;
    }
    let told = |name: &str| {
        let mut writes = steps.iter().filter_map(|step| match &step.action {
            Action::Write { file, value, .. } if file == name => Some(value.as_str()),
            _ => None,
        });
        writes.next_back()
    };
    let (quota, period) = (told("cpu.cfs_quota_us"), told("cpu.cfs_period_us"));
    if quota.is_none() && period.is_none() {
        return None;
    }
    let limit = |text: Option<&str>| match text.and_then(number) {
        None | Some(INFINITY) => Limit::Max,
        Some(quota) => Limit::Value(quota),
    };
    let micros = |text: Option<&str>| text.and_then(|text| text.parse().ok()).unwrap_or(PERIOD);
    let now = |file| draft.now_to_write(index, file);
    // As for v2, what was asked for is not in the files.
    let asked = &draft.want.base.cpu;
    let before = Bandwidth {
        quota: asked.quota.unwrap_or_else(|| limit(now("cpu.cfs_quota_us").as_deref())),
        period: asked.period.unwrap_or_else(|| micros(now("cpu.cfs_period_us").as_deref())),
    };
    let then = Bandwidth {
        quota: quota.map_or(before.quota, |quota| limit(Some(quota))),
        period: period.map_or(before.period, |period| micros(Some(period))),
    };
    Some((then, before))
}

/// The path of the unit's cgroup, as it is printed: in the hierarchy in which systemd keeps its units.
pub(super) fn printed(host: &Host, path: &str) -> PathBuf {
    Dir::new(own_hierarchy(host), path).full(host)
}

/// Where systemd keeps its units, and sees that they end: v2, or where there is none its own.
fn own_hierarchy(host: &Host) -> usize {
    let main = host.unified().map(|(index, _)| index);
    let named = || host.hierarchies.iter().position(|hierarchy| hierarchy.name.as_deref() == Some("systemd"));
    let first = || host.hierarchies.iter().position(is_managed).unwrap_or_default();
    main.or_else(named).unwrap_or_else(first)
}

/// The hierarchies in the order in which a process leaves a unit: systemd's own last. When the last process has left that
/// one, systemd removes the unit's cgroups, once, and one in which the process still is would stay.
pub(crate) fn in_order_of_leaving(host: &Host) -> impl Iterator<Item = usize> + use<> {
    let (own, number) = (own_hierarchy(host), host.hierarchies.len());
    (0..number).filter(move |index| *index != own).chain((own < number).then_some(own))
}

#[cfg(test)]
mod tests;
