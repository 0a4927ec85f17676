//! Version 2: one directory, with the controllers that are needed enabled above it.

use rustix::io::Errno;

use super::{
    Action, Bandwidth, Dir, Draft, NOT_VALID_HERE, Reaction, ReadSet, Step, Verify, Want, convert,
    explain_set, lowered, v1, weight_and_idle,
};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Controller, Hierarchy, Host};
use crate::resources::{Cpu, Limit, Resources, parse_limit};

pub(super) fn needs(_host: &Host, want: &Want<'_>, index: usize, set: &mut ReadSet) {
    if want.create {
        return;
    }
    let Resources { memory, cpu, pids, unified, .. } = want.change;
    if memory.limit.is_some() || memory.swap.is_some() {
        for file in ["memory.max", "memory.swap.max", "memory.current"] {
            set.file(index, file);
        }
    }
    if memory.reservation.is_some() {
        set.file(index, "memory.low");
    }
    if cpu.shares.is_some() || cpu.weight.is_some() || cpu.idle.is_some() {
        set.file(index, "cpu.weight");
        set.file(index, "cpu.idle");
    }
    if cpu.quota.is_some() || cpu.period.is_some() || cpu.burst.is_some() {
        set.file(index, "cpu.max");
        set.file(index, "cpu.max.burst");
    }
    for (wanted, file) in [
        (cpu.cpus.is_some(), "cpuset.cpus"),
        (cpu.mems.is_some(), "cpuset.mems"),
        (pids.limit.is_some(), "pids.max"),
    ] {
        if wanted {
            set.file(index, file);
        }
    }
    for key in unified.keys() {
        set.file(index, key.clone());
        // What bounds the file, or is bounded by it.
        let beside: &[&str] = match key.as_str() {
            "memory.max" => &["memory.current"],
            "cpu.max" | "cpu.max.burst" => &["cpu.max", "cpu.max.burst"],
            "cpu.weight" | "cpu.idle" => &["cpu.weight", "cpu.idle"],
            _ => &[],
        };
        beside.iter().for_each(|file| set.file(index, *file));
    }
}

/// The controllers without which a limit of these resources has no file.
fn limited(resources: &Resources) -> Vec<Controller> {
    let Resources { memory, cpu, pids, unified, .. } = resources;
    let mut controllers = Vec::new();
    if cpu.cpus.is_some() || cpu.mems.is_some() {
        controllers.push(Controller::Cpuset);
    }
    if cpu.shares.is_some()
        || cpu.weight.is_some()
        || cpu.idle.is_some()
        || cpu.quota.is_some()
        || cpu.period.is_some()
        || cpu.burst.is_some()
    {
        controllers.push(Controller::Cpu);
    }
    if memory.limit.is_some() || memory.swap.is_some() || memory.reservation.is_some() {
        controllers.push(Controller::Memory);
    }
    if pids.limit.is_some() {
        controllers.push(Controller::Pids);
    }
    for key in unified.keys() {
        if let Some(controller) = controller_of(key)
            && !controllers.contains(&controller)
        {
            controllers.push(controller);
        }
    }
    controllers
}

/// The controller that a file belongs to, by the part of its name before the first dot.
fn controller_of(file: &str) -> Option<Controller> {
    Controller::from_v2(file.split('.').next()?)
}

/// mkdir each level and enable in it, while it is empty, what the next level needs.
pub(super) fn make_dirs(draft: &mut Draft<'_>) {
    let Some((index, hierarchy)) = draft.host.unified() else { return };
    let (required, wanted) = enabled(hierarchy, draft.want);
    let leaf = draft.leaf(index);
    let first = draft.steps.len();
    v1::make_dir(draft, &leaf);
    if required.is_empty() && wanted.is_empty() {
        return;
    }
    let enable = |dir: Dir| {
        let evacuate = draft.want.evacuate && dir.path.is_empty();
        let (required, wanted) = (required.clone(), wanted.clone());
        Step::new(Action::EnableControllers { dir, required, wanted, evacuate })
    };
    let mut steps = Vec::new();
    for step in draft.steps.split_off(first) {
        if let Action::MakeDir { dir, .. } = &step.action
            && let Some(parent) = dir.parent()
        {
            steps.push(enable(parent));
        }
        steps.push(step);
    }
    draft.steps.extend(steps);
}

/// A change may need a controller that nothing has needed before: where none of its files was there to be read, it is
/// enabled from the root down. Processes that run inside do not hinder that.
pub(super) fn enable_missing(draft: &mut Draft<'_>) {
    let Some((index, hierarchy)) = draft.host.unified() else { return };
    let (mut required, _) = enabled(hierarchy, draft.want);
    let mut files = ReadSet::default();
    needs(draft.host, draft.want, index, &mut files);
    let there: Vec<_> = files
        .files
        .iter()
        .filter(|(_, file)| draft.now(index, file).is_some())
        .filter_map(|(_, file)| controller_of(file))
        .collect();
    required.retain(|controller| !there.contains(controller));
    if required.is_empty() {
        return;
    }
    let mut above = draft.leaf(index).parent();
    let mut steps = Vec::new();
    while let Some(dir) = above {
        above = dir.parent();
        let (required, wanted, evacuate) = (required.clone(), Vec::new(), false);
        steps.push(Step::new(Action::EnableControllers { dir, required, wanted, evacuate }));
    }
    draft.steps.extend(steps.into_iter().rev());
}

fn enabled(hierarchy: &Hierarchy, want: &Want<'_>) -> (Vec<Controller>, Vec<Controller>) {
    let offered = |controller: &Controller| hierarchy.controllers.contains(controller);
    let required: Vec<_> = limited(want.change).into_iter().filter(offered).collect();
    let wanted = want.statistics.iter().copied().filter(offered);
    let wanted = wanted.filter(|controller| !required.contains(controller)).collect();
    (required, wanted)
}

pub(super) fn cpuset(draft: &mut Draft<'_>, index: usize) {
    let cpu = &draft.want.change.cpu;
    let sets = [
        ("cpu.cpus", "cpuset.cpus", "cpuset.cpus.effective", &cpu.cpus),
        ("cpu.mems", "cpuset.mems", "cpuset.mems.effective", &cpu.mems),
    ];
    for (setting, file, effective, set) in sets {
        if let Some(set) = set {
            let step = draft.write(index, setting, file, set);
            explain_set(step).verify(Verify::Within { file: effective, asked: set.clone() });
        }
    }
}

pub(super) fn memory(draft: &mut Draft<'_>, index: usize) -> Result<()> {
    limit_and_swap(draft, index)?;
    let memory = &draft.want.change.memory;
    if let Some(limit) = memory.reservation {
        draft.write(index, "memory.reservation", "memory.low", limit);
    }
    let report = &mut draft.report;
    if let Some(limit) = memory.kernel_tcp {
        report.add(
            "memory.kernelTCP",
            limit,
            "cgroup v2 counts TCP buffers as memory and has no limit of their own",
        );
    }
    if let Some(swappiness) = memory.swappiness {
        report.add("memory.swappiness", swappiness, "cgroup v2 has no per-cgroup swappiness");
    }
    if memory.disable_oom_killer == Some(true) {
        report.add("memory.disableOOMKiller", true, "cgroup v2 cannot switch the OOM killer off");
    }
    Ok(())
}

/// OCI's swap is memory plus swap; v2 limits swap alone.
fn limit_and_swap(draft: &mut Draft<'_>, index: usize) -> Result<()> {
    let (base, change) = (&draft.want.base.memory, &draft.want.change.memory);
    let swap = match (change.limit, change.swap) {
        (None, None) => return Ok(()),
        (limit, Some(swap)) => {
            let now = || draft.now_number(index, "memory.max").map_or(Limit::Max, Limit::Value);
            Some(convert::swap_to_v2(limit.or(base.limit).unwrap_or_else(now), swap)?)
        }
        // Without a limit of memory, one of swap alone would be left behind.
        (Some(Limit::Max), None) => Some(Limit::Max),
        (Some(Limit::Value(_)), None) => None,
    };
    if let Some(limit) = change.limit {
        refuse_below_usage(draft, index, "memory.limit", limit)?;
        let verify = lowered(draft.want, limit, "a size in bytes");
        draft.write(index, "memory.limit", "memory.max", paged(draft, limit)).verify(verify);
    }
    match swap {
        Some(swap) if draft.host.capabilities.swap => {
            let now = draft.now_number(index, "memory.swap.max").map_or(Limit::Max, Limit::Value);
            if !draft.want.create && swap < now {
                let why =
                    "in force from now on; what is in swap already stays there (v2 does not reclaim swap)";
                draft.report.note("memory.swap", change.swap.unwrap_or(swap), why);
            }
            let value = paged(draft, swap);
            draft.write(index, "memory.swap", "memory.swap.max", value);
        }
        Some(swap @ Limit::Value(_)) => {
            let why = "swap accounting is off in this kernel";
            draft.report.add("memory.swap", change.swap.unwrap_or(swap), why);
        }
        _ => {}
    }
    Ok(())
}

/// The kernel rounds down to pages, and reads the greatest number of pages that it can count as `max`; so do we, to read
/// back what was written.
fn paged(draft: &Draft<'_>, limit: Limit) -> Limit {
    let pages = |bytes| convert::page_floor(bytes, draft.host.page_size);
    match limit {
        Limit::Value(bytes) if pages(bytes) < pages(i64::MAX.cast_unsigned()) => Limit::Value(pages(bytes)),
        _ => Limit::Max,
    }
}

/// v2 takes a limit below what is in use, and kills at once.
fn refuse_below_usage(draft: &Draft<'_>, index: usize, setting: &'static str, limit: Limit) -> Result<()> {
    match (draft.now_number(index, "memory.current"), limit) {
        (Some(usage), Limit::Value(limit)) if limit < usage && !draft.want.force => {
            let why = format!(
                "below the {usage} bytes in use: the kernel would kill at once (force it to have that)"
            );
            Err(Error::new(ErrorKind::Busy, why).with_setting(setting).with_value(limit))
        }
        _ => Ok(()),
    }
}

pub(super) fn cpu(draft: &mut Draft<'_>, index: usize) -> Result<()> {
    let (change, unified) = (&draft.want.change.cpu, &draft.want.change.unified);
    // What is in `unified` too is written with the rest of it, in an order that the kernel takes.
    let is_unified = |files: [&str; 2]| files.into_iter().any(|file| unified.contains_key(file));
    if !is_unified(WEIGHT_FILES) {
        weight(draft, index, change);
    }
    if !is_unified(BANDWIDTH_FILES) {
        bandwidth(draft, index, change)?;
    }
    let realtime = [
        ("cpu.realtimeRuntime", change.realtime_runtime.map(|runtime| runtime.to_string())),
        ("cpu.realtimePeriod", change.realtime_period.map(|period| period.to_string())),
    ];
    for (setting, value) in realtime {
        if let Some(value) = value {
            draft.report.add(setting, value, "cgroup v2 has no real-time limits");
        }
    }
    Ok(())
}

const WEIGHT_FILES: [&str; 2] = ["cpu.idle", "cpu.weight"];
const BANDWIDTH_FILES: [&str; 2] = ["cpu.max", "cpu.max.burst"];

fn weight(draft: &mut Draft<'_>, index: usize, change: &Cpu) {
    let weight = |cpu: &Cpu| cpu.weight.or(cpu.shares.map(convert::shares_to_weight));
    let setting = if change.weight.is_some() { "cpu.weight" } else { "cpu.shares" };
    let base = draft.want.base;
    let unified = base.unified.get("cpu.weight").and_then(|weight| weight.trim().parse().ok());
    let (file, before) = ((setting, "cpu.weight", Verify::Accepted), unified.or(weight(&base.cpu)));
    weight_and_idle(draft, index, file, change.idle, weight(change), before);
}

/// `cpu.max` and `cpu.max.burst`: the kernel refuses a burst above the quota at every moment, so that the burst goes down
/// before the quota and up after it.
fn bandwidth(draft: &mut Draft<'_>, index: usize, change: &Cpu) -> Result<()> {
    if change.quota.is_none() && change.period.is_none() && change.burst.is_none() {
        return Ok(());
    }
    if !draft.host.capabilities.cpu_quota {
        super::report_no_bandwidth(draft, change);
        return Ok(());
    }
    let (quota, period) =
        draft.now(index, "cpu.max").and_then(|text| text.split_once(' ')).unwrap_or(("max", ""));
    let now = Bandwidth {
        quota: quota.parse().map_or(Limit::Max, Limit::Value),
        period: period.parse().unwrap_or(Bandwidth::NEW.period),
        burst: draft.now_number(index, "cpu.max.burst").unwrap_or(0),
    };
    let then = now.changed(change)?;
    let burst = super::supported_burst(draft, change.burst, now.burst, then.burst);
    if let Some(burst) = burst.filter(|burst| *burst < now.burst) {
        draft.write(index, "cpu.burst", "cpu.max.burst", burst);
    }
    if change.quota.is_some() || change.period.is_some() {
        let setting = if change.quota.is_some() { "cpu.quota" } else { "cpu.period" };
        let value = format!("{} {}", then.quota, then.period);
        let allowed = "a quota of 1000 µs and more, a period of 1000 to 1000000 µs";
        let verify = lowered(draft.want, then.quota, allowed);
        draft.write(index, setting, "cpu.max", value).verify(verify).on(Errno::INVAL, NOT_VALID_HERE);
    }
    if let Some(burst) = burst.filter(|burst| *burst >= now.burst) {
        draft.write(index, "cpu.burst", "cpu.max.burst", burst);
    }
    Ok(())
}

/// The caller's own files, in the fixed order of their names, in the place of what was derived for the same file.
pub(super) fn unified(draft: &mut Draft<'_>) -> Result<()> {
    let wanted = &draft.want.change.unified;
    let Some((key, value)) = wanted.first_key_value() else { return Ok(()) };
    let Some((index, hierarchy)) = draft.host.unified() else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "unified settings need cgroup v2, and this host has v1 alone",
        )
        .with_setting(format!("unified.{key}"))
        .with_value(value));
    };
    let mut bounded = None;
    for (key, value) in wanted {
        let refuse = |why: String| {
            Err(Error::new(ErrorKind::Unsupported, why)
                .with_setting(format!("unified.{key}"))
                .with_value(value))
        };
        match controller_of(key) {
            None => return refuse("the part before the dot is no controller of cgroup v2".to_owned()),
            Some(controller) if !hierarchy.controllers.contains(&controller) => {
                return refuse(format!("this host's cgroup v2 does not offer the {} controller", controller));
            }
            Some(_) => {}
        }
        match key.as_str() {
            "memory.max" => {
                if let Ok(limit) = parse_limit("unified.memory.max", value.trim()) {
                    refuse_below_usage(draft, index, "unified.memory.max", limit)?;
                }
            }
            // Once for both files of a pair.
            file if BANDWIDTH_FILES.contains(&file) || WEIGHT_FILES.contains(&file) => {
                if bounded.is_none() {
                    bounded = Some(unified_cpu(draft, index)?);
                }
                continue;
            }
            _ => {}
        }
        draft.steps.retain(|step| match &step.action {
            Action::Write { dir, file, .. } => dir.hierarchy != index || file != key,
            _ => true,
        });
        // A file of several lines takes one of them at a time.
        let lines: Vec<&str> =
            if value.trim().contains('\n') { value.lines().collect() } else { vec![value] };
        for line in lines.into_iter().filter(|line| !line.trim().is_empty()) {
            let step = draft.write(index, format!("unified.{key}"), key.clone(), line);
            let effective = match key.as_str() {
                "cpuset.cpus" => Some("cpuset.cpus.effective"),
                "cpuset.mems" => Some("cpuset.mems.effective"),
                _ => None,
            };
            if let (Some(file), Ok(asked)) = (effective, line.trim().parse()) {
                explain_set(step).verify(Verify::Within { file, asked });
            }
            step.on(Errno::NOENT, Reaction::Explain("this kernel has no such file"))
                .on(Errno::INVAL, NOT_VALID_HERE);
        }
    }
    Ok(())
}

/// The files of the cpu controller that bound each other, from `unified` over what OCI's fields say.
fn unified_cpu(draft: &mut Draft<'_>, index: usize) -> Result<()> {
    let unified = &draft.want.change.unified;
    let given = |files: [&'static str; 2]| files.into_iter().any(|file| unified.contains_key(file));
    let mut cpu = draft.want.change.cpu.clone();
    if let Some(text) = unified.get("cpu.max") {
        let mut words = text.split_whitespace();
        let quota = match words.next() {
            Some("max") => Some(Limit::Max),
            word => word.and_then(|word| word.parse().ok()).map(Limit::Value),
        };
        let period = words.next().map(str::parse).transpose().ok();
        let (Some(_), Some(period), None) = (quota, period, words.next()) else {
            return Err(Error::invalid("unified.cpu.max", text, "takes a quota or max, and a period, in µs"));
        };
        (cpu.quota, cpu.period) = (quota, period.or(cpu.period));
    }
    let number = |file: &'static str| -> Result<Option<u64>> {
        let Some(text) = unified.get(file) else { return Ok(None) };
        let refused = |_| Error::invalid(format!("unified.{file}"), text, "takes a whole number");
        text.trim().parse().map(Some).map_err(refused)
    };
    cpu.burst = number("cpu.max.burst")?.or(cpu.burst);
    cpu.weight = number("cpu.weight")?.or(cpu.weight);
    if let Some(idle) = number("cpu.idle")? {
        if idle > 1 {
            return Err(Error::invalid("unified.cpu.idle", idle, "takes 0 to 1"));
        }
        cpu.idle = Some(i64::from(idle == 1));
    }
    let first = draft.steps.len();
    if given(WEIGHT_FILES) {
        weight(draft, index, &cpu);
    }
    if given(BANDWIDTH_FILES) {
        bandwidth(draft, index, &cpu)?;
    }
    for step in draft.steps.iter_mut().skip(first) {
        if let Action::Write { file, .. } = &step.action
            && unified.contains_key(file.as_ref())
        {
            step.setting = Some(format!("unified.{file}").into());
            step.on(Errno::INVAL, NOT_VALID_HERE);
        }
    }
    Ok(())
}
