//! Version 1: one directory in every hierarchy, one file per value.

use rustix::io::Errno;

use super::{
    Action, Bandwidth, DEVICES_LIST, DeviceWant, Dir, Draft, NOT_VALID_HERE, Reaction, ReadSet, Step, Undo,
    Verify, Want, convert, explain_set, weight_and_idle,
};
use crate::devices::transition::{self, LiveDevices, LiveList};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Controller, Hierarchy, Host, Version};
use crate::resources::{CpuSet, Limit};

const LIMIT: &str = "memory.limit_in_bytes";
const MEMSW: &str = "memory.memsw.limit_in_bytes";
const USAGE: &str = "memory.usage_in_bytes";

/// The names of the two files of a cpuset.
fn cpuset_files(hierarchy: &Hierarchy) -> [&'static str; 2] {
    if hierarchy.noprefix { ["cpus", "mems"] } else { ["cpuset.cpus", "cpuset.mems"] }
}

pub(super) fn needs(host: &Host, want: &Want<'_>, index: usize, set: &mut ReadSet) {
    let Some(hierarchy) = host.hierarchies.get(index) else { return };
    let change = want.change;
    for controller in &hierarchy.controllers {
        match controller {
            Controller::Cpuset if want.create => set.inherited = Some((index, cpuset_files(hierarchy))),
            Controller::Cpuset => {
                let [cpus, mems] = cpuset_files(hierarchy);
                change.cpu.cpus.iter().for_each(|_| set.file(index, cpus));
                change.cpu.mems.iter().for_each(|_| set.file(index, mems));
            }
            _ if want.create => {}
            Controller::Memory => {
                let memory = &change.memory;
                if memory.limit.is_some() || memory.swap.is_some() {
                    set.file(index, LIMIT);
                    set.file(index, MEMSW);
                }
                if memory.limit.is_some() && memory.check_before_update == Some(true) {
                    set.file(index, USAGE);
                }
                for (wanted, file) in [
                    (memory.reservation.is_some(), "memory.soft_limit_in_bytes"),
                    (memory.disable_oom_killer.is_some(), "memory.oom_control"),
                    (memory.swappiness.is_some(), "memory.swappiness"),
                    (memory.kernel_tcp.is_some(), "memory.kmem.tcp.limit_in_bytes"),
                ] {
                    if wanted {
                        set.file(index, file);
                    }
                }
            }
            Controller::Cpu => {
                let cpu = &change.cpu;
                if cpu.shares.is_some() || cpu.weight.is_some() || cpu.idle.is_some() {
                    set.file(index, "cpu.shares");
                    set.file(index, "cpu.idle");
                }
                if cpu.quota.is_some() || cpu.period.is_some() || cpu.burst.is_some() {
                    for file in ["cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.cfs_burst_us"] {
                        set.file(index, file);
                    }
                }
                if cpu.realtime_period.is_some() || cpu.realtime_runtime.is_some() {
                    set.file(index, "cpu.rt_period_us");
                    set.file(index, "cpu.rt_runtime_us");
                }
            }
            Controller::Pids if change.pids.limit.is_some() => set.file(index, "pids.max"),
            Controller::Devices if want.devices.is_some() => set.file(index, DEVICES_LIST),
            _ => {}
        }
    }
}

/// The directories in every v1 hierarchy, so that a process that joins is counted, frozen and found in each.
pub(super) fn make_dirs(draft: &mut Draft<'_>) {
    for (index, hierarchy) in draft.host.hierarchies.iter().enumerate() {
        if hierarchy.version == Version::V1 {
            let leaf = draft.leaf(index);
            make_dir(draft, &leaf);
        }
    }
}

/// The directory, and what is missing above it.
pub(super) fn make_dir(draft: &mut Draft<'_>, leaf: &Dir) {
    let mut chain = vec![leaf.clone()];
    let mut above = leaf.parent();
    while let Some(dir) = above.filter(|dir| !dir.path.is_empty()) {
        above = dir.parent();
        chain.push(dir);
    }
    for dir in chain.into_iter().rev() {
        let ancestor = dir != *leaf;
        draft.push(Step::new(Action::MakeDir { dir, ancestor })).undo = Undo::RemoveDir;
    }
}

/// A new cpuset is empty, and nothing can join it: every level that is empty is filled from the one above, top-down.
pub(super) fn cpuset(draft: &mut Draft<'_>, index: usize) {
    let Some(hierarchy) = draft.host.hierarchies.get(index) else { return };
    let files = cpuset_files(hierarchy);
    let wanted = [draft.want.change.cpu.cpus.clone(), draft.want.change.cpu.mems.clone()];
    let settings = ["cpu.cpus", "cpu.mems"];
    if draft.want.create {
        let machine = [draft.host.cpus.to_string(), draft.host.mems.to_string()];
        for ((file, setting), (wanted, machine)) in
            files.into_iter().zip(settings).zip(wanted.iter().zip(machine))
        {
            fill(draft, index, file, machine);
            if let Some(set) = wanted {
                explain_set(draft.write(index, setting, file, set));
            }
        }
    } else {
        for ((file, setting), wanted) in files.into_iter().zip(settings).zip(wanted) {
            if let Some(set) = wanted {
                explain_set(draft.write(index, setting, file, set));
            }
        }
    }
}

/// Fills the empty levels of one cpuset file; `machine` is what the root has unless it was read.
///
/// What is above the topmost level that was read is full: it was not looked at, and is not ours to write.
fn fill(draft: &mut Draft<'_>, index: usize, file: &'static str, machine: String) {
    let mut inherited = draft.observed.get(index, "", file).map_or(machine, str::to_owned);
    let path = draft.want.path;
    let is_set = |wanted: &Option<CpuSet>| wanted.is_some();
    let cpu = &draft.want.change.cpu;
    let leaf_is_wanted = if file.ends_with("cpus") { is_set(&cpu.cpus) } else { is_set(&cpu.mems) };
    let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).chain([path.len()]).collect();
    let levels: Vec<&str> = ends.into_iter().filter_map(|end| path.get(..end)).collect();
    let was_read = |level: &&str| draft.observed.get(index, level, file).is_some();
    let root_was_read = was_read(&"");
    let full = levels.iter().position(was_read).filter(|_| !root_was_read).unwrap_or(0);
    for level in levels.into_iter().skip(full) {
        let now = draft.observed.get(index, level, file);
        match now {
            Some(now) if !now.is_empty() => inherited = now.to_owned(),
            _ if level == path && leaf_is_wanted => {}
            // Empty, or not there yet. If somebody else makes it first, they fill it with the same.
            _ => {
                let dir = Dir::new(index, level);
                draft.push(Step::new(Action::Write { dir, file: file.into(), value: inherited.clone() }));
            }
        }
    }
}

/// A new cgroup has its parent's list, which is reset; a change is the smallest set of writes.
pub(super) fn devices(draft: &mut Draft<'_>, index: usize, wanted: &DeviceWant<'_>) -> Result<()> {
    let list = match draft.now(index, DEVICES_LIST) {
        Some(list) => transition::parse_devices_list(list.as_bytes())?,
        None => LiveList::AllowByDefault,
    };
    let live = LiveDevices { list, known: wanted.before.cloned() };
    let writes = transition::transition(&live, wanted.policy, wanted.running)?;
    let mut undo = match wanted.before {
        Some(before) if !draft.want.create => {
            let then = LiveDevices { list: wanted.policy.into(), known: Some(wanted.policy.clone()) };
            transition::transition(&then, before, false)?
        }
        _ => Vec::new(),
    };
    let last = writes.len().saturating_sub(1);
    for (position, write) in writes.into_iter().enumerate() {
        let reset = write.is_reset();
        let dir = draft.leaf(index);
        let step = draft.push(Step::new(Action::Write { dir, file: write.file.into(), value: write.value }));
        step.setting = Some("devices".into());
        step.on(Errno::PERM, Reaction::DeviceRule);
        // EINVAL of a reset: there are child cgroups; a removed one counts for a moment more.
        step.on(Errno::INVAL, if reset { Reaction::DeviceReset } else { Reaction::DeviceRule });
        if position == 0 {
            step.undo = Undo::Write(undo.drain(..).map(|write| (write.file.into(), write.value)).collect());
        }
        if position == last {
            step.verify(Verify::DeviceList(wanted.policy.clone()));
        }
    }
    Ok(())
}

pub(super) fn memory(draft: &mut Draft<'_>, index: usize) -> Result<()> {
    limit_and_swap(draft, index)?;
    let memory = &draft.want.change.memory;
    if let Some(limit) = memory.reservation {
        draft.write(index, "memory.reservation", "memory.soft_limit_in_bytes", minus_one(limit));
    }
    if let Some(disable) = memory.disable_oom_killer {
        let now = draft.now(index, "memory.oom_control").map(|text| text.contains("oom_kill_disable 1"));
        let step = draft.write(index, "memory.disableOOMKiller", "memory.oom_control", u8::from(disable));
        // The file reads as three lines and takes one number.
        step.undo = match now {
            Some(now) => Undo::Write(vec![("memory.oom_control".into(), u8::from(now).to_string())]),
            None => Undo::Nothing,
        };
    }
    if let Some(swappiness) = memory.swappiness {
        draft.write(index, "memory.swappiness", "memory.swappiness", swappiness);
    }
    if let Some(limit) = memory.kernel_tcp {
        draft.write(index, "memory.kernelTCP", "memory.kmem.tcp.limit_in_bytes", minus_one(limit));
    }
    Ok(())
}

/// The kernel keeps limit ≤ memsw at every moment: growing raises memsw first, shrinking lowers the limit first.
fn limit_and_swap(draft: &mut Draft<'_>, index: usize) -> Result<()> {
    let memory = &draft.want.change.memory;
    let Some((limit, swap)) = wanted_limits(draft, index)? else { return Ok(()) };
    if memory.check_before_update == Some(true)
        && let (Some(usage), Limit::Value(limit)) = (draft.now_number(index, USAGE), limit)
        && limit < usage
    {
        return Err(Error::new(ErrorKind::Busy, format!("below the {usage} bytes in use"))
            .with_setting("memory.limit")
            .with_value(limit));
    }
    let swap_now = read_limit(draft, index, MEMSW);
    let steps = [(LIMIT, "memory.limit", memory.limit.map(|_| limit)), (MEMSW, "memory.swap", swap)];
    let growing = swap.is_some_and(|swap| swap >= swap_now);
    let ordered = if growing { [steps[1], steps[0]] } else { steps };
    for (file, setting, value) in ordered {
        if let Some(value) = value {
            draft.write(index, setting, file, minus_one(value)).on(Errno::BUSY, Reaction::MemoryInUse).on(
                Errno::INVAL,
                Reaction::Explain("memory plus swap cannot be less than the limit of memory"),
            );
        }
    }
    Ok(())
}

/// The limit that will be in force, and the memory+swap limit to be written, if any.
fn wanted_limits(draft: &mut Draft<'_>, index: usize) -> Result<Option<(Limit, Option<Limit>)>> {
    let (base, memory) = (&draft.want.base.memory, &draft.want.change.memory);
    if memory.limit.is_none() && memory.swap.is_none() {
        return Ok(None);
    }
    let swap_now = read_limit(draft, index, MEMSW);
    let limit = memory.limit.or(base.limit).unwrap_or_else(|| read_limit(draft, index, LIMIT));
    let swap = match memory.swap {
        Some(swap) => {
            convert::swap_to_v2(limit, swap)?;
            Some(swap)
        }
        None if limit == Limit::Max || limit > swap_now => Some(limit),
        None => None,
    };
    if draft.host.capabilities.swap {
        return Ok(Some((limit, swap)));
    }
    if let Some(swap @ Limit::Value(_)) = memory.swap {
        draft.report.add("memory.swap", swap, "swap accounting is off in this kernel (swapaccount=1)");
    }
    Ok(Some((limit, None)))
}

/// A limit as v1 reads back: no limit is the largest number of pages.
fn read_limit(draft: &Draft<'_>, index: usize, file: &str) -> Limit {
    match draft.now_number(index, file) {
        Some(value) if value < i64::MAX as u64 - draft.host.page_size => Limit::Value(value),
        _ => Limit::Max,
    }
}

pub(super) fn cpu(draft: &mut Draft<'_>, index: usize) -> Result<()> {
    let (base, change) = (&draft.want.base.cpu, &draft.want.change.cpu);
    let shares = |cpu: &crate::resources::Cpu| cpu.weight.map(convert::weight_to_shares).or(cpu.shares);
    let verify = Verify::ReadsBack { allowed: "2 to 262144" };
    weight_and_idle(
        draft,
        index,
        ("cpu.shares", "cpu.shares", verify),
        change.idle,
        shares(change),
        shares(base),
    );
    bandwidth(draft, index)?;
    realtime(draft, index);
    Ok(())
}

fn bandwidth(draft: &mut Draft<'_>, index: usize) -> Result<()> {
    let change = &draft.want.change.cpu;
    if change.quota.is_none() && change.period.is_none() && change.burst.is_none() {
        return Ok(());
    }
    if !draft.host.capabilities.cpu_quota {
        super::report_no_bandwidth(draft, change);
        return Ok(());
    }
    let now = Bandwidth {
        quota: draft.now_number(index, "cpu.cfs_quota_us").map_or(Limit::Max, Limit::Value),
        period: draft.now_number(index, "cpu.cfs_period_us").unwrap_or(Bandwidth::NEW.period),
        burst: draft.now_number(index, "cpu.cfs_burst_us").unwrap_or(0),
    };
    let then = now.changed(change)?;
    let burst = super::supported_burst(draft, change.burst, now.burst, then.burst);
    if let Some(burst) = burst.filter(|burst| *burst < now.burst) {
        draft.write(index, "cpu.burst", "cpu.cfs_burst_us", burst);
    }
    // A child's quota per period may not exceed its parent's: take the way on which the ratio does not rise first, and
    // the other one if the kernel minds.
    let period_first = then.period >= now.period;
    let write_period = |draft: &mut Draft<'_>| {
        if let Some(period) = change.period {
            let step = draft.write(index, "cpu.period", "cpu.cfs_period_us", period);
            step.on(Errno::INVAL, if period_first { Reaction::Defer } else { NOT_VALID_HERE });
        }
    };
    if period_first {
        write_period(draft);
    }
    if let Some(quota) = change.quota {
        let step = draft.write(index, "cpu.quota", "cpu.cfs_quota_us", minus_one(quota));
        let last = period_first || change.period.is_none();
        step.on(Errno::INVAL, if last { NOT_VALID_HERE } else { Reaction::Defer });
    }
    if !period_first {
        write_period(draft);
    }
    if let Some(burst) = burst.filter(|burst| *burst >= now.burst) {
        draft.write(index, "cpu.burst", "cpu.cfs_burst_us", burst);
    }
    Ok(())
}

fn realtime(draft: &mut Draft<'_>, index: usize) {
    let change = &draft.want.change.cpu;
    let mut settings = [
        ("cpu.realtimePeriod", "cpu.rt_period_us", change.realtime_period.map(|period| period.to_string())),
        (
            "cpu.realtimeRuntime",
            "cpu.rt_runtime_us",
            change.realtime_runtime.map(|runtime| runtime.to_string()),
        ),
    ];
    // The kernel keeps runtime ≤ period at every moment: the runtime goes down before the period, and up after it.
    let runtime_now = draft.now(index, "cpu.rt_runtime_us").and_then(|text| text.parse::<i64>().ok());
    let shrinking = change.realtime_runtime.zip(runtime_now).is_some_and(|(runtime, now)| runtime < now);
    if shrinking {
        settings.reverse();
    }
    for (setting, file, value) in settings {
        let Some(value) = value else { continue };
        if draft.host.capabilities.cpu_rt {
            draft.write(index, setting, file, value).on(
                Errno::INVAL,
                Reaction::Explain(
                    "more real-time than the parent cgroup has left, or less than its tasks need",
                ),
            );
        } else {
            draft.report.add(
                setting,
                value,
                "this kernel has no real-time group scheduling (CONFIG_RT_GROUP_SCHED)",
            );
        }
    }
}

/// v1's word for no limit.
fn minus_one(limit: Limit) -> String {
    match limit {
        Limit::Value(value) => value.to_string(),
        Limit::Max => "-1".to_owned(),
    }
}
